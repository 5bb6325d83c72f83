"""Dialogues that go on from what the caches hold, against the same computed from their first token every time."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import contest
from benchmarks.contest import Contestant, Result
from benchmarks.contestant import Round
from benchmarks.decoders import ask, local_decoder
from benchmarks.shapes import SHAPES

if TYPE_CHECKING:
    from pal_jax.recipes.rlpa.world import World
    from pal_jax.types import Dialogue

CONFIG = Path(__file__).parents[1] / 'configs' / 'rlpa.py'
ROUNDS, SYSTEM, MESSAGE, REPLY = 6, 128, 32, 32  # rounds of a dialogue; tokens


def make_dialogues(model: str, dtype: str, people: int, reuse: bool) -> Round:
    """People who talk at once, each for `ROUNDS`; they share a system prompt. All tokens are new in every round."""
    decoder = local_decoder(model, dtype, people, reuse)
    rng = np.random.default_rng(0)

    def talk() -> dict[str, float]:
        before = decoder.counters.prompt_tokens
        system = rng.integers(1, SHAPES[model].vocab, SYSTEM).tolist()
        histories = [list(system) for _ in range(people)]
        for _ in range(ROUNDS):
            for history in histories:
                history += rng.integers(1, SHAPES[model].vocab, MESSAGE).tolist()
            completions = decoder([ask(history, REPLY) for history in histories])
            for history, completion in zip(histories, completions, strict=True):
                history += completion.token_ids
        return {'prompt_tokens': decoder.counters.prompt_tokens - before}

    return talk


def once(people: int) -> int:
    """Prompt tokens if each is computed once: the system prompt, every message, and the last token of every reply that
    another message follows, which was sampled and never read."""
    return SYSTEM + people * (ROUNDS * MESSAGE + ROUNDS - 1)


def make_rollouts(variant: str, steps: int, reuse: bool) -> Round:
    """The first rollouts of configs/rlpa.py as a policy meets them that writes its format, sampled by the one that the
    config starts from. What is sampled goes nowhere: both sides read the same dialogues."""
    from pal_jax.decode.local import LocalDecoder
    from pal_jax.models.files import sources
    from pal_jax.recipes.rlpa import turns
    from pal_jax.recipes.rlpa.world import make_world
    from pal_jax.run import devices

    config = runpy.run_path(str(CONFIG))['get_config'](variant)
    source, mesh, n = sources.resolve(config.policy.source), devices.make_mesh(), config.dialogue.n_samples_per_prompt
    cfg, tokenizer = devices.for_platform(source.config, config.policy.dtype), source.tokenizer()
    slots, stride, world = config.decode.slots, config.decode.stride, make_world(config)
    decoder = LocalDecoder(cfg, tokenizer, mesh, slots=slots, stride=stride, reuse=reuse)
    weights, batches = source.load(decoder.param_shardings), script(config.dialogue, world, steps)
    sample = turns.make_turn_sampler(config, world.system, tokenizer, decoder)

    def roll() -> dict[str, float]:
        before, sampled = decoder.counters.prompt_tokens, 0
        for i, batch in enumerate(batches):
            decoder.load(weights)
            sampled += sum(len(reply.completion.token_ids) for reply in sample(batch, n, (config.seed, i)))
            decoder.release()
        return {'prompt_tokens': decoder.counters.prompt_tokens - before, 'tokens': sampled}

    return roll


def script(dialogue: Any, world: World, steps: int) -> list[list[Dialogue]]:
    """The dialogues of the first steps, where the policy notes a fact a round and asks for more."""
    from pal_jax.recipes.rlpa import queue as env
    from pal_jax.recipes.rlpa.profiles import render_completion, render_facts, to_sample
    from pal_jax.types import Completion

    def answer(talk: Dialogue, group: int) -> Any:
        text = render_completion(render_facts(talk.person.facts[: talk.round + 1]), 'I see. What else do you enjoy?')
        return to_sample(talk, Completion(text, (), (), 'stop'), group=group)

    rounds = {'max_rounds': dialogue.max_rounds, 'round_batch_size': dialogue.round_batch_size}
    queue, batches = env.open_queue(world.train), []
    for i in range(steps):
        batch, queue = env.pop(queue, dialogue.rollout_batch_size, people=world.train, user=world.user, seed=i)
        replies = [[answer(talk, group)] for group, talk in enumerate(batch)]
        queue = env.continue_best(queue, replies, **rounds, user=world.user, seed=i)
        batches.append(batch)
    return batches


def measure(model: str, dtype: str, people: int, rounds: int) -> dict[str, Any]:
    settings = {'model': model, 'dtype': dtype, 'people': people}
    sizes = {'people': people, 'rounds': ROUNDS, 'system': SYSTEM, 'message': MESSAGE, 'reply': REPLY}
    return sizes | {'once': once(people)} | _on_and_off('make_dialogues', settings, rounds)


def measure_rollouts(variant: str, steps: int, rounds: int) -> dict[str, Any]:
    sizes = {'variant': variant, 'steps': steps}
    return sizes | _on_and_off('make_rollouts', sizes, rounds)


def _on_and_off(make: str, settings: dict[str, Any], rounds: int) -> dict[str, Any]:
    both = {
        name: Contestant(f'benchmarks.dialogues:{make}', settings | {'reuse': reuse})
        for name, reuse in (('reuse', True), ('no_reuse', False))
    }
    return compare(contest.race(both, rounds).results)


def compare(results: dict[str, Result]) -> dict[str, Any]:
    """Numbers of the fastest round of each, and how many times faster it is to reuse."""
    report: dict[str, Any] = {
        name: {'seconds': round(min(result.seconds), 2), **result.best(), **result.startup()}
        for name, result in results.items()
    }
    return report | {'reuse_over_no_reuse': contest.ratios(results['reuse'], results['no_reuse'])}
