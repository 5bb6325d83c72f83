"""The memory that the planner says an update needs on this CPU, beside what one takes.

  python -m benchmarks.plan_memory --prompt=288
Two rows of a prompt and four answers, SmolLM2-135M's shape with random weights. Plan and update have a process each.
Prints one JSON object, in GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import shapes

N, COMPLETION, ROWS = 4, 56, 2
GIB = 2**30


def make_learner(cfg: Any, mesh: Any, completion: int) -> Any:
    from pal_jax.learners import ppo as learners
    from pal_jax.run.optim import Optimizer

    ppo = learners.PPO('group_norm', kl_in='loss', kl_estimator='k3', micro_rows=ROWS)
    optimizer = Optimizer('adamw', lr=1e-5, total_steps=10)
    return learners.make_actor_critic(cfg, ppo, optimizer, mesh, n=N, length=completion)


def request(cfg: Any, prompt: int, completion: int, devices: Sequence[Any]) -> Any:
    """The planner's request for an update of `ROWS` prompts with `N` answers each, on one device."""
    from pal_jax.commands.planning import chips, estimate, programs

    return estimate.PlanRequest(
        cfg=cfg, make_learner=lambda cfg, mesh, _: make_learner(cfg, mesh, completion),
        work=programs.Work(ROWS, N, prompt, completion, 1, 1, N), devices=devices, chip=chips.chip(devices[0]),
        decode=False, int8=False, efficiency=1.0,
    )  # fmt: skip


def planned(cfg: Any, prompt: int) -> dict[str, float]:
    """GiB that stay, and the peak of the largest program."""
    import jax

    from pal_jax.commands.planning import estimate

    choice = estimate.FitOptions(1, 1, 1, cfg.remat, ROWS)
    plan = estimate.make_plan(request(cfg, prompt, COMPLETION, jax.devices()[:1]), choice, lambda _: None)
    return {name: size / GIB for name, size in plan.memory.items()} | {'peak': plan.worst.peak / GIB}


def updates(cfg: Any, prompt: int, completion: int) -> Callable[[], None]:
    """A function that scores and learns from answers to `ROWS` prompts, each time from the state of the last."""
    import jax
    import numpy as np

    from pal_jax.data.packing import pack_rollouts
    from pal_jax.models import params
    from pal_jax.run import devices
    from pal_jax.types import Completion, Sample

    mesh = devices.make_mesh(devices=jax.devices()[:1])
    learner, rng = make_learner(cfg, mesh, completion), np.random.default_rng(0)
    ids = [tuple(rng.integers(0, cfg.vocab, size).tolist()) for size in (prompt, completion)]
    answer = Completion('', ids[1], (0.0,) * completion, 'stop')
    samples = [Sample(ids[0], answer, i // N, rewards=(float(i),)) for i in range(N * ROWS)]
    states = [learner.init(params.init(params.decoder_specs(cfg), jax.random.key(0)))]

    def update() -> None:
        state = states.pop()
        batch, _ = learner.score(state, pack_rollouts(samples, n=N, actions=completion, mesh=mesh))
        batch, _ = learner.advantages(state, batch)
        states.append(learner.update(state, batch, jax.random.key(0))[0])
        jax.block_until_ready(states)

    return update


def taken(cfg: Any, prompt: int) -> dict[str, float]:
    """The most memory of a process that made two updates."""
    from pal_jax.run import memory

    memory.give_back_when_compiling()
    update = updates(cfg, prompt, COMPLETION)
    for _ in range(2):
        update()
        memory.give_back()
    return {'peak': memory.peak_bytes() / GIB}


def main(argv: Sequence[str] | None = None) -> None:
    parser = shapes.arguments(__doc__)
    parser.add_argument('--prompt', type=int, default=288, help='tokens of a prompt')
    parser.add_argument('--part', choices=('planned', 'taken'), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)

    from pal_jax.run import memory
    from pal_jax.run.devices import for_platform

    if args.part:
        part = {'planned': planned, 'taken': taken}[args.part]
        sizes = part(for_platform(shapes.SHAPES[args.model], args.dtype), args.prompt)
        print(json.dumps({name: round(size, 3) for name, size in sizes.items()}))
        return
    command = [sys.executable, '-m', 'benchmarks.plan_memory', *(sys.argv[1:] if argv is None else argv)]
    # Compiling is a part of what is planned, so neither process may find the other's programs.
    environment = {key: value for key, value in os.environ.items() if key != 'JAX_COMPILATION_CACHE_DIR'}
    environment |= {memory.SETTING: memory.ALLOCATOR, 'JAX_PLATFORMS': 'cpu'}
    report: dict[str, Any] = {'model': args.model, 'prompt': args.prompt}
    for part in ('planned', 'taken'):
        done = subprocess.run([*command, f'--part={part}'], env=environment, check=True, stdout=subprocess.PIPE)
        report[part] = json.loads(done.stdout)
    report['planned_over_taken'] = round(report['planned']['peak'] / report['taken']['peak'], 3)
    print(json.dumps(report))


if __name__ == '__main__':
    main()
