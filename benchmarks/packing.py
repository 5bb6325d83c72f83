"""A PPO update on prompts of mixed lengths: each in a row of its own, or several in a row.

  python -m benchmarks.packing --mix=dialogue,wide --row-tokens=768,1024
All in one process, rounds in turn. `padded` has every row as long as the longest, `trimmed` rows in order of length and
each micro-batch cut to its own longest (`ppo.row_tokens=0`), `packed_N` rows of N tokens. A micro-batch has as many
tokens for each, or one row. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import shapes
from benchmarks.shapes import SHAPES

MIXES = {  # prompts of a step, their shortest and longest, answers to each, their shortest and longest
    'dialogue': (8, 74, 217, 4, 56, 56),  # rounds 1 to 3 of configs/rlpa.py
    'wide': (16, 64, 1024, 4, 16, 56),
}


class Runner(NamedTuple):
    """`step` makes an update and returns its gradient's norm; `real_share` is that of the tokens it computes."""

    step: Callable[[], float]
    real_share: float


def samples(mix: str, vocab: int) -> list[Any]:
    """Prompts evenly spread over their lengths, in random order, and answers of random lengths and rewards."""
    from pal_jax.types import Completion, Sample

    prompts, shortest, longest, n, *answer = MIXES[mix]
    rng = np.random.default_rng(0)
    out = []
    for group, size in enumerate(rng.permutation(np.linspace(shortest, longest, prompts).astype(int))):
        prompt = tuple(rng.integers(0, vocab, size).tolist())
        for _ in range(n):
            ids = tuple(rng.integers(0, vocab, rng.integers(answer[0], answer[1] + 1)).tolist())
            completion = Completion('', ids, (0.0,) * len(ids), 'stop')
            out.append(Sample(prompt, completion, group, rewards=(float(rng.normal()),)))
    return out


def make_runner(cfg: Any, mix: str, micro_tokens: int, row_tokens: int, padded: bool) -> Runner:
    import jax
    import jax.numpy as jnp

    from pal_jax.data.packing import pack_rollouts
    from pal_jax.learners import ppo as learners
    from pal_jax.models import params
    from pal_jax.run.devices import make_mesh
    from pal_jax.run.optim import Optimizer

    n, mesh = MIXES[mix][3], make_mesh(devices=jax.devices()[:1])
    batch = pack_rollouts(samples(mix, cfg.vocab), n=n, actions=56, mesh=mesh, row_tokens=row_tokens)
    height, length = batch.tokens.tokens.shape
    rows = max(1, micro_tokens // length)
    ppo = learners.PPO(
        'group_norm', kl_in='loss', kl_estimator='k3',
        micro_rows=max(size for size in range(1, rows + 1) if height % size == 0),
    )  # fmt: skip
    optimizer = Optimizer('sgd', lr=0.0, total_steps=1)
    learner = learners.make_actor_critic(cfg, ppo, optimizer, mesh, n=n, length=56)
    states = [learner.init(params.init(params.decoder_specs(cfg), jax.random.key(0)))]
    batch, scored = learner.score(states[0], batch)
    batch, _ = learner.advantages(states[0], batch)
    share = scored['real_share']
    if padded:  # padding that claims to be tokens is not cut off
        share = float(jnp.mean(batch.tokens.segments != 0))
        segments = jnp.where(batch.tokens.segments != 0, batch.tokens.segments, 1_000_000)
        batch = batch.replace(tokens=batch.tokens.replace(segments=segments))

    def step() -> float:
        state, metrics = learner.update(states.pop(), batch, jax.random.key(0))
        states.append(jax.block_until_ready(state))
        return metrics['grad_norm']

    return Runner(step, share)


def compare(runners: dict[str, Runner], rounds: int) -> dict[str, Any]:
    """Seconds of an update and of processors in it, and how many times less each needs than `padded` and `trimmed`.

    Ratios are of medians; on a busy machine those of processors say more.
    """
    norms = {name: runner.step() for name, runner in runners.items()}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            start = time.perf_counter(), time.process_time()
            runner.step()
            taken[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    medians = {name: tuple(map(statistics.median, zip(*seconds, strict=True))) for name, seconds in taken.items()}
    out: dict[str, Any] = {}
    for name, (seconds, processors) in medians.items():
        out[name] = {
            'update_s': round(seconds, 3),
            'processor_s': round(processors, 3),
            'real_share': round(runners[name].real_share, 3),
            'grad_norm': round(norms[name], 5),
        }
        for other in ('padded', 'trimmed'):
            ratios = [theirs / ours for theirs, ours in zip(medians[other], medians[name], strict=True)]
            out[name][f'{other}_over'] = {'update': round(ratios[0], 2), 'processor': round(ratios[1], 2)}
    return out


def main(argv: Sequence[str] | None = None) -> None:
    parser = shapes.arguments(__doc__)
    parser.add_argument('--layers', type=int, default=0, help='of the shape; all by default')
    parser.add_argument('--mix', type=shapes.listed(str, tuple(MIXES)), default=list(MIXES))
    parser.add_argument('--row-tokens', type=shapes.listed(int), default=[1024], help='of packed rows')
    parser.add_argument('--micro-tokens', type=int, default=1024, help='tokens of a micro-batch')
    parser.add_argument('--rounds', type=int, default=5, help='timed updates of each')
    args: argparse.Namespace = parser.parse_args(argv)

    from pal_jax.run.devices import for_platform

    cfg = for_platform(SHAPES[args.model], args.dtype)
    cfg = dataclasses.replace(cfg, layers=args.layers or cfg.layers)
    report: dict[str, Any] = {'model': args.model, 'layers': cfg.layers, 'dtype': args.dtype}
    for mix in args.mix:
        rows = {'padded': (0, True), 'trimmed': (0, False)} | {f'packed_{n}': (n, False) for n in args.row_tokens}
        runners = {name: make_runner(cfg, mix, args.micro_tokens, *how) for name, how in rows.items()}
        report[mix] = compare(runners, args.rounds)
    print(json.dumps(report))


if __name__ == '__main__':
    main()
