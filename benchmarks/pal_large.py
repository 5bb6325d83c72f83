"""PAL on people and pairs in numbers that are made up: a million of the ones, ten million of the others, on disk.

  python -m benchmarks.pal_large --folder=runs/large
  python -m benchmarks.pal_large --folder=runs/large --users=20000 --pairs=200000 --args=--config.total_steps=4

Everybody holds one of four tastes, which are directions in the space of items, and chooses by a Bradley-Terry model
whose rewards have `--spread` as their standard deviation. The folder is written a chunk at a time, unless it is there;
then `configs/pal.py:large` is trained on it as a user would. Prints one JSON object: seconds of writing and of the run,
pairs a second of the updates and of whole steps, the run's peak memory, and what it found.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pal_jax.data.readers import columns
from pal_jax.run.metrics import read_records

TASTES, WIDTH, CHUNK = 4, 32, 1 << 18
ROOT = Path(__file__).parents[1]


def tastes() -> np.ndarray:
    directions = np.random.default_rng(1).standard_normal((TASTES, WIDTH))
    return (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)


def parts(items: np.ndarray, users: int, pairs: int, spread: float) -> Iterator[tuple[np.ndarray, ...]]:
    """Chunks of the pairs; everybody has as many, up to one."""
    worth = spread * items @ tastes().T  # [S, tastes]
    for start in range(0, pairs, CHUNK):
        rng, size = np.random.default_rng([2, start]), min(CHUNK, pairs - start)
        who = np.arange(start, start + size) % users
        left = rng.integers(0, len(items), size)
        right = (left + rng.integers(1, len(items), size)) % len(items)  # another one
        margin = worth[left, who % TASTES] - worth[right, who % TASTES]
        first = rng.random(size) < 1 / (1 + np.exp(-margin))
        yield who, np.where(first, left, right), np.where(first, right, left)


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--folder', required=True, help='where pairs and run are kept')
    parser.add_argument('--users', type=int, default=1_000_000)
    parser.add_argument('--pairs', type=int, default=10_000_000)
    parser.add_argument('--items', type=int, default=100_000)
    parser.add_argument('--spread', type=float, default=3.0)
    parser.add_argument('--args', default='', help='further flags of the run')
    options = parser.parse_args(args)
    data, run, start = Path(options.folder) / 'pairs', Path(options.folder) / 'run', time.perf_counter()
    if not (data / 'items.npy').exists():
        items = np.random.default_rng(0).standard_normal((options.items, WIDTH)).astype(np.float32)
        columns.write(data, items, parts(items, options.users, options.pairs, options.spread), options.pairs)
    written, start = time.perf_counter() - start, time.perf_counter()
    flags = [f'--config.data={data}', f'--workdir={run}', *shlex.split(options.args)]
    subprocess.run(
        [sys.executable, '-m', 'pal_jax.train', '--config=configs/pal.py:large', *flags], check=True, cwd=ROOT,
        stdout=sys.stderr,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    peak = json.loads((run / 'summary.json').read_text(encoding='utf-8'))['peak_memory_bytes']['host']
    config = json.loads((run / 'config.json').read_text(encoding='utf-8'))
    steps, pairs = read_records(run / 'metrics.jsonl')[1:], config['batch'] * config['updates']  # the first compiles
    draw, update = ([step[f'seconds_{phase}'] for step in steps] for phase in ('draw', 'update'))
    record = read_records(run / 'evals.jsonl')[-1]
    print(json.dumps({
        'users': options.users,
        'pairs': options.pairs,
        'write_s': round(written, 1),
        'run_s': round(seconds, 1),
        'pairs_per_s_of_updates': round(pairs / np.median(update)),
        'pairs_per_s_of_steps': round(pairs / np.median(np.add(draw, update))),
        'peak_gib': round(peak / 2**30, 2),
        **{key: round(record[key], 4) for key in ('seen_shared', 'seen_pal', 'new_shared', 'new_pal')},
    }))  # fmt: skip


if __name__ == '__main__':
    main()
