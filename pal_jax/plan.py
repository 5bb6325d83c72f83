"""Plans a run: whether it fits a TPU slice, what it needs there and how long a step takes, by the slice's own compiler.

  python -m pal_jax.plan --config=configs/rlpa.py:paper --topology=v5e:4x4     no TPU is needed, no weight is read
  python -m pal_jax.plan --config=configs/rlpa.py --platform=cpu               this machine (or cuda)
  python -m pal_jax.plan --config=configs/rlpa.py:paper --topology=v5p:4x4x4 --model=meta-llama/Llama-3.1-8B

Options:
  --config=FILE[:VARIANT]   the run; --config.KEY=VALUE changes one value, such as --config.mesh.tensor=2
  --topology=SLICE          a TPU slice: v5e:4x4, v6e:2x4, v5p:4x4x4; needs pip install 'pal_jax[plan]'
  --platform=cpu|cuda       the devices of this machine instead
  --model=NAME              another model: a hub id, or a folder with a config.json; default config.policy.source
  --prompt=TOKENS           length of a prompt with its dialogue; default 1024
  --nodecode                leaves decoding out, as config.decode.address does: another machine samples
  --efficiency=SHARE        of the chip's peak that a step is taken to reach; default 0.4
  --json                    one JSON object in place of tables

Known without a network, by their hub ids with any suffix: SmolLM2-135M, Qwen2.5-0.5B, 3B and 7B, Llama-3.2-1B,
Llama-3.1-8B and 70B. Every completion is taken to be as long as it may become. What does not fit is refused (exit
status 1), with the cheapest mesh, remat and ppo.micro_rows that do. docs/tpu.md explains the tables.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from typing import Any

from absl import flags
from jax.sharding import Mesh
from rich.console import Console
from rich.table import Table

from pal_jax import cli
from pal_jax.learners.ppo import PolicyLearner
from pal_jax.models.config import ModelConfig
from pal_jax.parts.recipe import Context
from pal_jax.parts.settings import Run
from pal_jax.planning import chips, estimate, programs, shapes
from pal_jax.planning.chips import GIB
from pal_jax.planning.estimate import Plan, Request
from pal_jax.recipes import rlpa
from pal_jax.runtime import devices
from pal_jax.runtime.progress import Stopwatch

TOPOLOGY = flags.DEFINE_string('topology', '', 'A TPU slice such as v5e:4x4.')
PLATFORM = flags.DEFINE_enum('platform', '', ['', 'cpu', 'cuda'], 'The devices of this machine.')
MODEL = flags.DEFINE_string('model', '', 'Another model: a hub id, or a folder with a config.json.')
PROMPT = flags.DEFINE_integer('prompt', 1024, 'Tokens of a prompt with its dialogue.', lower_bound=1)
DECODE = flags.DEFINE_boolean('decode', True, 'Plan decoding too.')
EFFICIENCY = flags.DEFINE_float('efficiency', 0.4, "Share of the chip's peak.", lower_bound=0.01, upper_bound=1.0)
JSON = flags.DEFINE_boolean('json', False, 'Print one JSON object.')


def main() -> None:
    if bool(TOPOLOGY.value) == bool(PLATFORM.value):
        raise cli.Fault('name either a slice (--topology=v5e:4x4) or the devices of this machine (--platform=cpu)')
    console = Console(stderr=True)
    settings = cli.faults(planned, cli.settings())
    request = cli.faults(make_request, settings)
    found = cli.faults(plan, settings, request, lambda line: console.print(f'compiling {line}', style='dim'))
    nearest = None
    if not JSON.value:
        show(found, request)
    if not found.fits:
        everything = estimate.choices(request.cfg, len(request.devices), settings.ppo.micro_rows)
        others = [each for each in everything if each != found.choice]
        nearest = cli.faults(estimate.search, request, others, lambda line: console.print(line, style='dim'))
    if JSON.value:
        print(json.dumps(as_json(found, nearest, request)))
    elif not found.fits:
        show_nearest(nearest)
    if not found.fits:
        sys.exit(1)


def planned(settings: Run) -> rlpa.Settings:
    """Raises ValueError where the settings are of a method without dialogues."""
    if not isinstance(settings, rlpa.Settings):
        raise ValueError(f'recipe={settings.recipe!r} has no dialogues to plan; give a config of rlpa')
    return settings


def make_request(settings: rlpa.Settings) -> Request:
    """What the command line asks for.

    Raises:
      ValueError, RuntimeError: an unknown slice, model or device.
    """
    os.environ.setdefault('JAX_PLATFORMS', 'cpu' if TOPOLOGY.value else PLATFORM.value)
    cfg = shapes.shape(MODEL.value or settings.policy.source)
    found = chips.topology_devices(TOPOLOGY.value) if TOPOLOGY.value else chips.local_devices(PLATFORM.value)

    def make_learner(cfg: ModelConfig, mesh: Mesh, micro_rows: int) -> PolicyLearner:
        changed = dataclasses.replace(settings, ppo=dataclasses.replace(settings.ppo, micro_rows=micro_rows))
        return rlpa.make_learner(changed, cfg, Context(mesh, Stopwatch().phase))

    return Request(
        cfg=devices.for_platform(cfg, settings.policy.dtype, found[0].platform, settings.policy.scan_layers),
        make_learner=make_learner,
        work=programs.work_of(settings, PROMPT.value),
        devices=found,
        chip=chips.chip(found[0]),
        decode=DECODE.value and not settings.decode.address,
        int8=settings.decode.int8,
        efficiency=EFFICIENCY.value,
    )


def plan(settings: rlpa.Settings, request: Request, log: Any) -> Plan:
    """The plan that the settings make."""
    mesh, count = dataclasses.asdict(settings.mesh), len(request.devices)
    choice = estimate.settled(mesh, count, settings.policy.remat, settings.ppo.micro_rows)
    return estimate.make_plan(request, choice, log)


# --- what is told ---------------------------------------------------------------------------------------------------


def show(found: Plan, request: Request) -> None:
    """Tables of a plan, and the verdict."""
    console = cli.console()
    console.print(f'{len(request.devices)} x {request.devices[0].device_kind}, {found.chip.memory / GIB:.2f} GiB each')
    for table in (memory_table(found), bytes_table(found), work_table(found)):
        console.print(table)
    console.print(verdict(found), soft_wrap=True)


def show_nearest(nearest: Plan | None) -> None:
    """The nearest plan that fits."""
    console = cli.console()
    nothing = 'no mesh of these devices fits, with any remat or ppo.micro_rows'
    console.print(f'nearest that fits: {nearest.choice.flags()}' if nearest else nothing, soft_wrap=True)
    for table in (bytes_table(nearest), work_table(nearest)) if nearest else ():
        console.print(table)


def memory_table(found: Plan) -> Table:
    table = Table('stays on each device', 'GiB')
    for name, size in found.memory.items():
        table.add_row(name, gib(size))
    return table


def bytes_table(found: Plan) -> Table:
    """A row a hot function: what is in a device's memory while it runs."""
    table = Table('program', 'given', 'temporary', 'beside', 'peak GiB')
    for each in found.figures:
        sizes = each.arguments, each.temporaries, each.beside, each.peak
        table.add_row(each.name, *map(gib, sizes), *([each.refused] if each.refused else []))
    return table


def work_table(found: Plan) -> Table:
    """A row a hot function: what one run of it does on one device."""
    table = Table('program', 'runs', 'TFLOP', 'GB moved', 'GB received', 'overlapped', 's a run')
    for each in found.figures:
        received = [f'{kind} {size / 1e9:.3g}' for kind, size in each.collectives.items()]
        numbers = [f'{each.flops / 1e12:.3g}', f'{each.moved / 1e9:.3g}', '\n'.join(received)]
        overlap, seconds = f'{each.overlapped} of {each.started + each.waiting}', each.seconds
        table.add_row(each.name, str(each.calls), *numbers, overlap, '' if seconds is None else f'{seconds:.3g}')
    return table


def verdict(found: Plan) -> str:
    """One line: whether it fits, where it is tightest, how long a step takes."""
    worst, limit = found.worst, found.chip.memory
    text = f'{"fits" if found.fits else "does not fit"}: {found.choice.flags()}'
    text += f'; {worst.name} needs {gib(worst.peak)} of {gib(limit)} GiB'
    if found.fits and found.step_seconds is not None:
        text += f'; a step of full length takes {found.step_seconds:.0f} s at {EFFICIENCY.value:.0%} of the peak'
    return text


def gib(size: float) -> str:
    return f'{size / GIB:.3f}'


def as_json(found: Plan, nearest: Plan | None, request: Request) -> dict[str, Any]:
    def told(each: Plan) -> dict[str, Any]:
        return {
            'mesh': each.choice._asdict(),
            'fits': each.fits,
            'memory': each.memory,
            'limit': each.chip.memory,
            'step_seconds': each.step_seconds,
            'programs': [dataclasses.asdict(figures) for figures in each.figures],
        }

    kind = request.devices[0].device_kind
    head = {'devices': len(request.devices), 'device': kind, 'model': dataclasses.asdict(request.cfg)}
    return {**head, **told(found), 'nearest': told(nearest) if nearest else None}


if __name__ == '__main__':
    cli.run(main, __doc__ or '')
