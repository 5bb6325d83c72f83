"""Tokens/s of many tenants' adapters trained in one program, against one tenant after the other.

  python -m benchmarks.tenants                     # SmolLM2-135M's shape; 1, 8, 32 and 128 tenants
  python -m benchmarks.tenants --quick             # six of its layers; 1 and 8 tenants
  python -m benchmarks.tenants --tenants=8 --rank=32 --length=256 --data=4
Prints a line for each number of tenants and one JSON object at its end. A round is a forward_backward of `--data` data
of `--length` tokens of each tenant, and a step of each. `over_one` tells how many tokens/s all tenants together have
for each of one tenant alone with as many data, and `over_in_turn` the same for tenants one after the other.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import contest, shapes
from pal_jax.models import params
from pal_jax.run.devices import for_platform, make_mesh
from pal_jax.training_server.losses import Datum
from pal_jax.training_server.trainer import Base, Shape, Tenant, Trainer

STEP = {
    'learning_rate': 1e-4, 'beta1': 0.9, 'beta2': 0.95, 'eps': 1e-12, 'weight_decay': 0.0, 'grad_clip_norm': 0.0,
}  # fmt: skip


def make_trainer(args: argparse.Namespace) -> Trainer:
    """The trainer of a base with random weights."""
    shape = shapes.SHAPES[args.model]
    shape = dataclasses.replace(shape, layers=args.layers or shape.layers, tie_embed=False)
    cfg, mesh = for_platform(shape, args.dtype, scan_layers=args.scan_layers), make_mesh()
    weights = params.init(params.decoder_specs(cfg), jax.random.key(0))
    return Trainer(Base(args.model, args.model, cfg, weights, mesh), rows=args.rows, max_rank=args.rank)


def make_data(count: int, length: int, vocab: int) -> list[Datum]:
    """Data of random tokens."""
    tokens = np.random.default_rng(0).integers(0, vocab, (count, length + 1), np.int32)
    return [Datum(row[:-1], {'target_tokens': row[1:]}) for row in tokens]


def round_of(trainer: Trainer, tenants: Sequence[Tenant], data: Sequence[Datum]) -> None:
    """One forward_backward and one step of tenants together, who share the data out among them."""
    size = len(data) // len(tenants)
    parts = [data[i * size : (i + 1) * size] for i in range(len(tenants))]
    batches = [trainer.checked(x, part, 'cross_entropy', {}) for x, part in zip(tenants, parts, strict=True)]
    trainer.forward_backward(batches)
    trainer.optim_steps([trainer.step_of(x, STEP) for x in tenants])
    jax.block_until_ready([x.params for x in tenants])


def seconds_in_turn(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each call in so many rounds, in which the calls take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(trainer: Trainer, count: int, args: argparse.Namespace) -> dict[str, Any]:
    """The figures of so many tenants."""
    shape = Shape(args.rank, True, True, True)
    tenants = [trainer.create(f't{i}', shape, i, {}) for i in range(count)]
    data = make_data(args.data * count, args.length, trainer.base.cfg.vocab)
    calls = {
        'together': lambda: round_of(trainer, tenants, data),
        'in_turn': lambda: [round_of(trainer, [x], data[i::count]) for i, x in enumerate(tenants)] and None,
        'one': lambda: round_of(trainer, tenants[:1], data),
    }
    if count == 1:
        calls = {'together': calls['together']}
    start = time.perf_counter()
    calls['together']()
    warm = time.perf_counter() - start
    seconds, tokens = seconds_in_turn(calls, args.rounds), len(data) * args.length
    figures: dict[str, Any] = {f'{name}_tokens_per_s': round(tokens / min(times), 1) for name, times in seconds.items()}
    for name in [name for name in seconds if name != 'together']:
        pairs = zip(seconds[name], seconds['together'], strict=True)
        figures[f'over_{name}'] = round(statistics.median(other / ours for other, ours in pairs), 2)
    held = [leaf.nbytes for x in tenants for leaf in jax.tree.leaves((x.params, x.opt_state))]
    figures |= {'first_s': round(warm, 1), 'mib_by_tenant': round(sum(held) / count / 2**20, 1)}
    trainer.tenants.clear()
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    parser = shapes.arguments(__doc__)
    parser.set_defaults(dtype='float32')
    parser.add_argument('--layers', type=int, default=0, help='of the model; 0: all')
    parser.add_argument('--tenants', type=shapes.listed(int), default=[1, 8, 32, 128], help='numbers of tenants')
    parser.add_argument('--rank', type=int, default=16, help='of their adapters')
    parser.add_argument('--data', type=int, default=4, help='of each tenant in a round')
    parser.add_argument('--length', type=int, default=64, help='tokens of a datum')
    parser.add_argument('--rows', type=int, default=4, help='sequences in memory at once')
    parser.add_argument('--rounds', type=int, default=3, help='timed rounds')
    parser.add_argument('--scan-layers', action='store_true', help='loop over layers')
    parser.add_argument('--quick', action='store_true', help='--layers=6 --tenants=1,8 --data=2 --scan-layers')
    args = parser.parse_args(argv)
    if args.quick:
        args.layers, args.tenants, args.data, args.scan_layers = 6, [1, 8], 2, True
    around, trainer = contest.surroundings('jax'), make_trainer(args)
    settings = {key: getattr(args, key) for key in ('model', 'dtype', 'layers', 'rank', 'data', 'length', 'rows')}
    report: dict[str, Any] = {**settings, 'tenants': {}}
    for count in args.tenants:
        report['tenants'][count] = measure(trainer, count, args)
        contest.say(f'{count} tenants: {report["tenants"][count]}')
    print(json.dumps(report | around))


if __name__ == '__main__':
    main()
