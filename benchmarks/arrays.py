"""Speeds of environments on arrays in steps a second: the grid, flying cameras, and rounds of AllReduce.

  python -m benchmarks.arrays [--quick]

Each environment steps by actions at random, many side by side in one compiled scan, the best of several runs. Beside
the grid stands the same grid in numpy, vectorised over as many environments, one Python call a step. Prints one JSON
object: `*_per_s`, the machine's peak of matrix products measured beside (`machine`), and `*_per_gflop`, the
steps that go by while the machine makes 10^9 operations of such a product, which compares machines.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.machine import best_seconds, gemm_flops, gemm_size
from pal_jax.recipes.allreduce import rounds, topology
from pal_jax.recipes.allreduce import schedules as allreduce
from pal_jax.recipes.cameras.scene import Cameras
from pal_jax.recipes.cmdp.finite import MOVES, Grid


def grid_steps(environments: int, steps: int, repeats: int) -> float:
    """Steps of the grid a second; an episode that ends starts anew."""
    env = Grid()

    @jax.jit
    def run(key: Any) -> Any:
        def step(cells: Any, key: Any) -> tuple[Any, Any]:
            to_act, to_step = jax.random.split(key)
            action = jax.random.randint(to_act, (environments, 1), 0, len(MOVES))
            after, paid, ended = jax.vmap(env.step)(cells, action, jax.random.split(to_step, environments))
            return jnp.where(ended, 0, after), jnp.sum(paid, axis=0)

        return jax.lax.scan(step, jnp.zeros(environments, jnp.int32), jax.random.split(key, steps))

    return environments * steps / best_seconds(lambda: run(jax.random.key(0))[1], repeats)


def numpy_grid_steps(environments: int, steps: int, repeats: int) -> float:
    """Steps of the same grid a second, in numpy."""
    env, moves = Grid(), np.array(MOVES)
    hazards = np.zeros(env.width, bool)
    hazards[[row * env.columns + column for row, column in env.hazards]] = True
    times = []
    for repeat in range(repeats):
        rng, cells = np.random.default_rng(repeat), np.zeros(environments, int)
        start = time.perf_counter()
        for _ in range(steps):
            action = rng.integers(len(MOVES), size=environments)
            slips = rng.random(environments) < env.slip
            move = moves[np.where(slips, rng.integers(len(MOVES), size=environments), action)]
            row = np.clip(cells // env.columns + move[:, 0], 0, env.rows - 1)
            column = np.clip(cells % env.columns + move[:, 1], 0, env.columns - 1)
            cells = row * env.columns + column
            ended = cells == env.goal
            np.stack([ended, hazards[cells]], axis=1).astype(np.float32).sum(axis=0)
            cells = np.where(ended, 0, cells)
        times.append(time.perf_counter() - start)
    return environments * steps / min(times)


def camera_steps(environments: int, steps: int, repeats: int) -> float:
    """Steps a second of four cameras and six people: rendering, all triangulations, contributions, observations."""
    env = Cameras(4, (6, 6))

    @jax.jit
    def run(scenes: Any, key: Any) -> Any:
        def step(scenes: Any, key: Any) -> tuple[Any, Any]:
            to_act, to_step = jax.random.split(key)
            action = jax.random.randint(to_act, (environments, 4, 5), 0, 3)
            scenes, outcome = jax.vmap(env.step)(scenes, action, jax.random.split(to_step, environments))
            return scenes, (jnp.sum(outcome.contributions), jnp.sum(jax.vmap(env.observe)(scenes)))

        return jax.lax.scan(step, scenes, jax.random.split(key, steps))[1]

    scenes = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), environments))
    return environments * steps / best_seconds(lambda: run(scenes, jax.random.key(1))[0], repeats)


def reduce_episodes(environments: int, repeats: int) -> float:
    """Episodes a second of BCube(3,1) on random trees: transfers picked at random until all is sent."""
    wires = rounds.Wires(topology.bcube(3, 1))
    task, rng = rounds.TransferTask(wires), np.random.default_rng(0)
    parents = jnp.asarray(np.stack([allreduce.random_trees(wires.topology, rng) for _ in range(environments)]))

    @jax.jit
    def run(key: Any) -> Any:
        def one(carry: Any) -> Any:
            t, state = carry
            seen = jax.vmap(task.candidates)(state)
            keys = jax.random.split(jax.random.fold_in(key, t), environments)
            take = jax.vmap(
                lambda key, seen: rounds.pick(key, jnp.zeros(len(seen.valid)), seen, wires.clash, wires.most)
            )
            return t + 1, jax.vmap(task.advance)(state, take(keys, seen)[0])

        start = jnp.zeros((), jnp.int32), jax.vmap(task.start)(parents)
        return jax.lax.while_loop(lambda carry: jnp.any(jax.vmap(task.left)(carry[1]) > 0), one, start)[0]

    return environments / best_seconds(lambda: run(jax.random.key(0)), repeats)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='seconds in place of a minute')
    quick = parser.parse_args(argv).quick
    repeats = 2 if quick else 6
    gflops = gemm_flops('float32', 'float32', gemm_size(), repeats) / 1e9
    speeds = {
        'grid_steps': grid_steps(4096, 64 if quick else 256, repeats),
        'numpy_grid_steps': numpy_grid_steps(4096, 16 if quick else 64, repeats),
        'camera_steps': camera_steps(64, 10 if quick else 50, repeats),
        'reduce_episodes': reduce_episodes(64, repeats),
    }
    report: dict[str, Any] = {f'{name}_per_s': round(speed, 1) for name, speed in speeds.items()}
    report |= {f'{name}_per_gflop': round(speed / gflops, 2) for name, speed in speeds.items()}
    report['machine'] = {'device': jax.devices()[0].device_kind, 'float32_gflops': round(gflops, 1)}
    print(json.dumps(report))


if __name__ == '__main__':
    main()
