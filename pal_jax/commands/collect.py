"""Samples a policy in RLPA's dialogues and writes the best against the worst of n answers, for --config=dpo.

  pal-jax collect --config=rlpa --source=runs/sft --output=pairs.jsonl

Options:
  --config=FILE[:VARIANT]   people, users, rewards, n and rounds, as for training; --config.KEY=VALUE changes one value
  --source=SOURCE           the policy, which writes profile and reply; default config.policy.source
  --output=FILE             JSON lines of prompt, chosen and rejected with their rewards; default pairs.jsonl; one that
                            is there is not replaced
  --prompts=N               answer so many prompts; default each person's dialogue once

Dialogues go on with their best answer, as in training. A prompt whose judged answers all have the same reward gives no
pair.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from pal_jax.commands.talking import SOURCE, open_decoder
from pal_jax.recipes.rlpa.dialogue import messages
from pal_jax.recipes.rlpa.queue import continue_best, open_queue, pop
from pal_jax.recipes.rlpa.settings import of_dialogues
from pal_jax.recipes.rlpa.turns import make_turn_sampler
from pal_jax.recipes.rlpa.users import CountingUser
from pal_jax.recipes.rlpa.world import make_world
from pal_jax.run import cli, devices
from pal_jax.run.forecast import counted
from pal_jax.run.outputs import check_file, whole_file
from pal_jax.run.settings import Run
from pal_jax.types import Sample

PROMPTS = flags.DEFINE_integer('prompts', None, 'How many prompts to answer.', lower_bound=1)


def main() -> None:
    """Write the pairs of answers to the file of --output."""
    path = cli.output('pairs.jsonl', file=True)
    cli.faults(check_file, path)
    if cli.faults(cli.place):
        raise cli.Fault('this runs in one process; leave out --processes')
    devices.initialize(cli.workdir() / 'compiled')
    settings, source = cli.settings(), SOURCE.value if SOURCE.present else None
    pairs = cli.faults(lambda: list(collect(settings, source, PROMPTS.value)))
    cli.faults(write, pairs, path)
    print(f'{path}: {counted(len(pairs), "pair")}')


def write(pairs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the pairs as JSON lines. Raises ValueError where the file exists."""
    with whole_file(path) as partial:
        partial.write_text(''.join(json.dumps(pair) + '\n' for pair in pairs), encoding='utf-8')


def collect(settings: Run, source: str | None, prompts: int | None) -> Iterator[dict[str, Any]]:
    """The preference pairs of `prompts` prompts, whose answers the policy of `source` or else of the settings gives.

    Raises:
      ValueError, RuntimeError: settings without dialogues, a model that cannot be had, or a judge that does not answer.
    """
    settings = of_dialogues(settings)
    world, dialogue = make_world(settings), settings.dialogue
    order = settings.seed if dialogue.shuffle else None
    decoder, tokenizer = open_decoder(settings, source or settings.policy.source)
    sample_turns = make_turn_sampler(settings, world.system, tokenizer, decoder)
    rounds, user = dialogue.rounds, CountingUser(world.user)
    n, prompts_left = dialogue.n_samples_per_prompt, prompts or len(world.train) * rounds
    queue, i = open_queue(world.train, shuffle=order), 0
    while prompts_left > 0:
        size = min(prompts_left, dialogue.rollout_batch_size)
        open_dialogues, queue = pop(queue, size, people=world.train, user=user, seed=i, shuffle=order)
        # The second episode begins, so everybody's dialogue has been answered once.
        if queue.episode and prompts is None:
            return
        samples = world.reward(sample_turns(open_dialogues, n, (settings.seed, i)), i)
        world.check_answers(samples, user)
        groups = [samples[k : k + n] for k in range(0, len(samples), n)]
        yield from (pair for group in groups if (pair := best_and_worst(group, world.system)))
        queue = continue_best(
            queue, groups, max_rounds=rounds, round_batch_size=dialogue.round_batch_size, user=user, seed=i
        )
        prompts_left, i = prompts_left - len(open_dialogues), i + 1


def best_and_worst(group: Sequence[Sample], system: str) -> dict[str, Any] | None:
    """The preference pair of the best and the worst judged sample of one prompt, the first of equals.

    None where all judged samples have the same reward.
    """
    # A sample that nobody could judge is in no pair.
    judged = [sample for sample in group if sample.ok]
    best, worst = (pick(judged, key=lambda sample: sample.reward, default=None) for pick in (max, min))
    if best is None or worst is None or best.reward == worst.reward:
        return None
    texts = {'chosen': best.completion.text, 'rejected': worst.completion.text}
    return {
        'prompt': messages(group[0].source, system),
        **{key: [{'role': 'assistant', 'content': text}] for key, text in texts.items()},
        'chosen_reward': best.reward,
        'rejected_reward': worst.reward,
    }


if __name__ == '__main__':
    cli.run(main, __doc__ or '')
