"""A step of a reward model against a supervised step of the same decoder on the same tokens.

  python -m benchmarks.reward_step --pairs=8 --prompt=96 --reply=79
Both read rows of one prompt and its two replies, random tokens, and train all weights in float32; the supervised step
predicts every token of the replies, the reward model scores them (its embeddings are frozen, and it reads a token more
of each). `columns` is how wide their rows are, padding included. `ratio` is the reward
model's median seconds by the other's. Prints one JSON object; see `contest.py` for how the numbers come about.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks import contest, shapes
from benchmarks.contest import Contestant
from benchmarks.contestant import Round
from benchmarks.shapes import SHAPES

KINDS = ('reward', 'language')


def texts(pairs: int, prompt: int, reply: int, vocab: int) -> list[tuple[list[int], list[list[int]]]]:
    """Prompts with two replies each."""
    rng = np.random.default_rng(0)
    return [
        (rng.integers(0, vocab, prompt).tolist(), rng.integers(0, vocab, (2, reply)).tolist()) for _ in range(pairs)
    ]


def make_learner(kind: str, model: str, dtype: str, micro_rows: int, sizes: Sequence[int]) -> Round:
    import jax

    from pal_jax.models import params
    from pal_jax.run.devices import for_platform, make_mesh

    cfg = for_platform(SHAPES[model], dtype)
    weights = params.init(params.decoder_specs(cfg), jax.random.key(0))
    mesh = make_mesh(devices=jax.devices()[:1])
    maker = {'reward': _reward, 'language': _language}[kind]
    step, state = maker(cfg, weights, mesh, micro_rows, texts(*sizes, vocab=cfg.vocab))
    del weights

    def take() -> dict[str, float]:
        nonlocal state
        state, metrics = step(state)
        jax.block_until_ready(state)
        return metrics

    return take


def _reward(cfg: Any, weights: Any, mesh: Any, micro_rows: int, said: Any) -> tuple[Callable[[Any], Any], Any]:
    from pal_jax.data.packing import shared_prompt
    from pal_jax.learners.scorer import Scorer, pack_replies, to_score
    from pal_jax.run.optim import Optimizer

    learner = Scorer(cfg, Optimizer('adamw', lr=1e-5, total_steps=1000), mesh, micro_rows=micro_rows)
    groups = [shared_prompt([to_score(p, reply) for reply in replies]) for p, replies in said]
    pairs = pack_replies(groups, mesh, micro_rows=micro_rows)

    def step(state: Any) -> tuple[Any, dict[str, float]]:
        state, _, figures = learner.learn(state, pairs)
        return state, {'columns': pairs.batch.tokens.shape[1]} | figures

    return step, learner.init(weights)


def _language(cfg: Any, weights: Any, mesh: Any, micro_rows: int, said: Any) -> tuple[Callable[[Any], Any], Any]:
    from pal_jax.data.packing import Example, lay_out, pack_groups, shared_prompt
    from pal_jax.learners.actor import Actor
    from pal_jax.run import sharding
    from pal_jax.run.optim import Optimizer

    optimizer = Optimizer('adamw', lr=1e-5, total_steps=1000)
    length = len(said[0][1][0])
    learner = Actor(cfg, optimizer, mesh, micro_rows=micro_rows, anchored=False)
    groups = [shared_prompt([Example(p, reply) for reply in replies]) for p, replies in said]
    layout = lay_out([group.length for group in groups], micro_rows=micro_rows)
    batch = sharding.put_batch(pack_groups(groups, layout, n=2, actions=length), mesh)

    def step(state: Any) -> tuple[Any, dict[str, float]]:
        state, metrics = learner.imitate(state, batch)
        return state, metrics | {'columns': batch.tokens.shape[1]}

    return step, learner.init(weights)


def main(argv: Sequence[str] | None = None) -> None:
    parser = shapes.arguments(__doc__)
    parser.add_argument('--pairs', type=int, default=8)
    parser.add_argument('--prompt', type=int, default=96, help='tokens of a prompt')
    parser.add_argument('--reply', type=int, default=79, help='tokens of a reply')
    parser.add_argument('--micro-rows', type=int, default=4)
    parser.add_argument('--steps', type=int, default=8, help='rounds that count')
    args = parser.parse_args(argv)
    sizes = args.pairs, args.prompt, args.reply
    settings = {'model': args.model, 'dtype': args.dtype, 'micro_rows': args.micro_rows, 'sizes': sizes}
    players = {kind: Contestant('benchmarks.reward_step:make_learner', {'kind': kind} | settings) for kind in KINDS}
    results = contest.race(players, args.steps).results
    seconds = {kind: statistics.median(result.seconds) for kind, result in results.items()}
    report = {
        kind: {'step_s': round(seconds[kind], 3), 'columns': results[kind].first['columns']} | results[kind].startup()
        for kind in KINDS
    }
    ratio = round(seconds['reward'] / seconds['language'], 3)
    print(json.dumps(settings | {'ratio': ratio} | report | contest.surroundings('jax', 'flax', 'optax')))


if __name__ == '__main__':
    main()
