"""Stage rollout of Personalized Soups: answers of the base policy under every preference, several to a prompt.

It writes `rollouts.jsonl` into the folder that all stages share: id, preference_id, instruction, input,
preference_prompt, output_1, output_2, ...
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from pal_jax.data import holdouts
from pal_jax.data.passes import shuffled
from pal_jax.decode.answers import Sampler, load_base, make_sampler
from pal_jax.models.params import Params
from pal_jax.recipes.psoups import preferences
from pal_jax.recipes.psoups.preferences import Preference
from pal_jax.recipes.psoups.prompts import Prompt, everyone, prompts_moved, read_prompts
from pal_jax.recipes.psoups.settings import PromptedKeys, RolloutSettings
from pal_jax.run import piecework
from pal_jax.run.forecast import counted
from pal_jax.run.models import make_policy
from pal_jax.run.piecework import Piecework, Records
from pal_jax.run.recipe import Context, Evaluation, Host
from pal_jax.types import Metrics

ROLLOUTS = 'rollouts.jsonl'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(PromptedKeys):
    """The keys of stage rollout."""

    rollout: RolloutSettings = RolloutSettings()


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """Answers of the base policy under every preference and under none, to prompts drawn for each."""

    ctx: Context
    sample: Sampler
    # `load` loads the weights of the base policy.
    load: Callable[[], Params]
    # The prompts of every part, each with the preference that stands in the policy's prompt.
    parts: Sequence[Sequence[tuple[Preference, Prompt]]]
    # The number of answers to a prompt.
    n: int
    seed: int
    # The number of prompts that are left out since they test.
    moved: int = 0

    @functools.cached_property
    def base(self) -> Params:
        """The weights of the base policy, which are loaded once."""
        return self.load()

    def work(self, host: Host, i: int) -> tuple[Records, Host, Metrics]:
        """Sample the answers to the prompts of part `i`."""
        part, n = self.parts[i], self.n
        with self.ctx.phase('rollout'):
            texts = [preferences.ask(prompt.question, [pole]) for pole, prompt in part]
            samples = self.sample(self.base, texts, n, (self.seed, i))
        # Chat templates strip a turn, so reward models would read the stripped text anyway.
        answers = [sample.completion.text.strip() for sample in samples]
        records = [
            {
                'id': f'{pole.id}-{prompt.id}',
                'preference_id': pole.id,
                'instruction': prompt.instruction,
                'input': prompt.input,
                'preference_prompt': pole.text,
                **{f'output_{j + 1}': answer for j, answer in enumerate(answers[k * n : (k + 1) * n])},
            }
            for k, (pole, prompt) in enumerate(part)
        ]
        length = float(np.mean([len(sample.completion.token_ids) for sample in samples]))
        return records, host, {'prompts': float(len(part)), 'length': length}

    def finish(self, records: Records) -> Evaluation:
        """Write all rows into one file."""
        piecework.write(self.ctx.workdir.parent / ROLLOUTS, records)
        return Evaluation({'rows': len(records), 'prompts_moved': self.moved})


def make(settings: Settings, ctx: Context) -> Piecework:
    """The recipe of the stage.

    Raises:
      ValueError: a file of prompts is wrong, or leaves no prompt to learn from.
      RuntimeError: the base policy cannot be had.
    """
    policy, seed = make_policy(settings.policy, ctx, settings.seed), settings.seed
    size, n = settings.rollout.batch_size, settings.rollout.answers
    sample = make_sampler(settings.decode, settings.sampling, policy, ctx, at_once=n * size)
    prompts, moved = read_prompts(settings, 'train', policy.tokenizer), prompts_moved(settings.prompts)
    fewer = holdouts.fewer('rollout.prompts', settings.rollout.prompts, len(prompts), 'prompts.train has no more')
    ctx.log(f'{counted(len(prompts), "prompt")} to learn from; {moved} left out that prompts.test has{fewer}')
    parts = piecework.in_parts(draw(everyone(settings), prompts, settings.rollout.prompts, seed), size)
    stage = Rollouts(ctx, sample, functools.partial(load_base, policy, ctx), parts, n, seed, moved)
    return piecework.make(ctx, len(parts), stage.work, 'rollout', stage.finish)


def draw(
    poles: Sequence[Preference], prompts: Sequence[Prompt], count: int, seed: int
) -> list[tuple[Preference, Prompt]]:
    """Draw `count` prompts, or with 0 all, for each preference apart; the prompts stay in their order."""
    total, count = len(prompts), min(count or len(prompts), len(prompts))
    # Each preference draws its prompts by an order of its own.
    drawn = [{*shuffled(total, start=i * total, size=count, seed=seed)} for i in range(len(poles))]
    return [
        (pole, prompt)
        for k, prompt in enumerate(prompts)
        for pole, numbers in zip(poles, drawn, strict=True)
        if k in numbers
    ]
