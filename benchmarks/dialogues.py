"""Dialogues that go on from what the caches hold, against the same computed from their first token every time."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contest
from benchmarks.contest import Contestant, Result
from benchmarks.contestant import Round
from benchmarks.decoders import ask, local_decoder
from benchmarks.shapes import SHAPES

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
    """The first rollouts of configs/rlpa.py with the model it starts from, which learns nothing meanwhile."""
    from pal_jax.decode.local import LocalDecoder
    from pal_jax.envs import dialogue as env
    from pal_jax.models import sources
    from pal_jax.recipes import rlpa
    from pal_jax.recipes.world import make_world
    from pal_jax.runtime import devices

    config = runpy.run_path(str(CONFIG))['get_config'](variant)
    world, mesh, source = (
        make_world(config),
        devices.make_mesh(),
        sources.resolve(config.policy.source, seed=config.seed),
    )
    cfg, tokenizer = devices.for_platform(source.config, config.policy.dtype), source.tokenizer()
    slots, stride = config.decode.slots, config.decode.stride
    decoder = LocalDecoder(cfg, tokenizer, mesh, slots=slots, stride=stride, reuse=reuse)
    weights = source.load(decoder.param_shardings)
    rollout = rlpa.make_rollout(config, world, rlpa.make_sampler(config, world, tokenizer, decoder), decoder)

    def roll() -> dict[str, float]:
        queue, before = env.open_queue(world.train), decoder.counters.prompt_tokens
        sampled = 0
        for i in range(steps):
            samples, queue = rollout(weights, queue, i)
            sampled += sum(len(sample.completion.token_ids) for sample in samples)
        return {'prompt_tokens': decoder.counters.prompt_tokens - before, 'tokens': sampled}

    return roll


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
