"""Plans a run: says by the chips' own compiler if the run fits them, what it needs and how long a step takes.

  pal-jax plan --config=rlpa:paper --topology=v5e:4x4                          no TPU is needed, no weight is read
  pal-jax plan --config=rlpa:paper --topology=h100:8                           and no GPU: a node of eight H100s
  pal-jax plan --config=rlpa --platform=cpu                                    this machine (or cuda)
  pal-jax plan --config=rlpa:paper --topology=v5p:4x4x4 --model=meta-llama/Llama-3.1-8B

Options:
  --config=FILE[:VARIANT]   the run; --config.KEY=VALUE changes one value, such as --config.mesh.tensor=2
  --topology=SLICE          a TPU slice: v5e:4x4, v6e:2x4, v5p:4x4x4; needs pip install 'pal_jax[plan]'
                            or GPUs, a100, h100, h200 or b200, a node of eight or eight such nodes: h100:8, h100:8x8;
                            needs CUDA's compiler (docs/gpu.md), 0.4 GB
  --slices=N                so many TPU slices, which the network of the data centre joins
  --platform=cpu|cuda       the devices of this machine instead
  --model=NAME              another model: a hub id, or a folder with a config.json; default config.policy.source
  --prompt=TOKENS           length of a prompt with its dialogue; default 1024
  --nodecode                leaves decoding out, as config.decode.address does: another machine samples
  --efficiency=SHARE        of the chip's peak that a step is taken to reach; default 0.4
  --json                    one JSON object in place of tables

Known without a network, by their hub ids with any suffix: SmolLM2-135M, Qwen2.5-0.5B, 3B and 7B, Llama-3.2-1B,
Llama-3.1-8B and 70B. Every completion is taken to be as long as it may become. What does not fit is refused (exit
status 1), with the cheapest mesh, remat and micro_rows that do. For a plan that fits, a last line names the least remat
and the most decode.slots that fit, too, if they make a step shorter. docs/tpu.md explains the tables.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import sys
import warnings
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from pal_jax.commands.planning import chips, estimate, shapes
from pal_jax.commands.planning.chips import GIB
from pal_jax.commands.planning.estimate import FitPlan, PlanRequest
from pal_jax.commands.planning.hlo import BETWEEN_SLICES
from pal_jax.models import attention
from pal_jax.models.config import exact_config
from pal_jax.run import cli, devices
from pal_jax.run.planned import PlannedRun, planned
from pal_jax.run.settings import Run

TOPOLOGY = flags.DEFINE_string('topology', '', 'A TPU slice such as v5e:4x4, or GPUs such as h100:8.')
SLICES = flags.DEFINE_integer('slices', 1, 'TPU slices joined by a network.', lower_bound=1)
PLATFORM = flags.DEFINE_enum('platform', '', ['', 'cpu', 'cuda'], 'The devices of this machine.')
MODEL = flags.DEFINE_string('model', '', 'Another model: a hub id, or a folder with a config.json.')
PROMPT = flags.DEFINE_integer('prompt', 1024, 'Tokens of a prompt with its dialogue.', lower_bound=1)
DECODE = flags.DEFINE_boolean('decode', True, 'Plan decoding too.')
EFFICIENCY = flags.DEFINE_float('efficiency', 0.4, "Share of the chip's peak.", lower_bound=0.01, upper_bound=1.0)
JSON = flags.DEFINE_boolean('json', False, 'Print one JSON object.')


def main() -> None:
    """Plan the run of --config, and print the plan. The exit status is 1 where it does not fit."""
    # The compiler for another machine may end the process at a program that it cannot compile, so a child calls it.
    if not TOPOLOGY.value:
        plan_run()
        return
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of a fork: no thread of jax is at work yet
        child = os.fork()
    if not child:
        plan_run()
        return
    # Who ends the planner ends the child, too.
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGABRT, signal.SIGSEGV):
        raise cli.Fault(
            f'the compiler of --topology={TOPOLOGY.value} broke off at the last program named above, with its own '
            'message; --nodecode plans without decoding, which the compiler for TPUs refuses on a part of some slices '
            '(docs/tpu.md)',
            1,
        )
    code = os.waitstatus_to_exitcode(status)
    sys.exit(code if code >= 0 else 128 - code)


def plan_run() -> None:
    """Plan the run in this process."""
    if bool(TOPOLOGY.value) == bool(PLATFORM.value):
        raise cli.Fault('name either a slice (--topology=v5e:4x4) or the devices of this machine (--platform=cpu)')
    if SLICES.value > 1 and not TOPOLOGY.value:
        raise cli.Fault(f'--slices={SLICES.value} are slices of TPUs; name their shape, such as --topology=v5e:4x4')
    console = Console(stderr=True)
    settings = cli.settings()
    method = cli.faults(planned, settings, PROMPT.value)
    request = cli.faults(make_request, settings, method)
    run_plan = cli.faults(plan, settings, method, request, lambda line: console.print(f'compiling {line}', style='dim'))
    # The plan is shown before the search, which may take long.
    if not JSON.value:
        show(run_plan, request)
        if count := getattr(getattr(settings, 'samples', None), 'count', 0):
            print(
                f'not in this plan: for samples.count={count} answers, a device holds a copy of the weights in the '
                'type of decoding during an evaluation; samples.count=0 holds none'
            )
    tell = functools.partial(console.print, style='dim')
    if run_plan.fits:
        better = cli.faults(estimate.quicker, request, run_plan, tell)
    else:
        # Where the plan does not fit, all other choices are tried, the cheapest first.
        everything = estimate.choices(request.cfg, len(request.devices), method.micro_rows)
        others = [choice for choice in everything if choice != run_plan.choice]
        better = cli.faults(estimate.search, request, others, tell)
    if JSON.value:
        print(json.dumps(as_json(run_plan, better, request)))
    else:
        show_better(run_plan, better, request)
    if not run_plan.fits:
        sys.exit(1)


def make_request(settings: Run, method: PlannedRun) -> PlanRequest:
    """The request that the command line makes: model, devices, learner and work of a step.

    Raises:
      ValueError, RuntimeError: an unknown slice, model or device.
    """
    # The compiler for a slice needs no device, so JAX itself runs on the CPU.
    os.environ.setdefault('JAX_PLATFORMS', 'cpu' if TOPOLOGY.value else PLATFORM.value)
    policy, decode = method.policy, method.decode
    cfg = shapes.shape(MODEL.value or policy.source)
    slice_devices = (
        chips.topology_devices(TOPOLOGY.value, SLICES.value) if TOPOLOGY.value else chips.local_devices(PLATFORM.value)
    )
    hosts = len({device.process_index for device in slice_devices})
    cfg = devices.for_platform(cfg, policy.dtype, slice_devices[0].platform, policy.scan_layers)
    cfg = exact_config(cfg) if decode is not None and decode.exact else cfg
    return PlanRequest(
        cfg=cfg,
        make_learner=method.make_learner,
        work=method.work._replace(apart=attention.COLUMNS if cfg.tile else 0),
        devices=slice_devices,
        chip=chips.chip(slice_devices[0], len(slice_devices) // hosts if hosts > 1 else 0),
        decode=DECODE.value and decode is not None and not decode.address,
        int8=decode is not None and decode.int8,
        efficiency=EFFICIENCY.value,
        rows=method.rows,
    )


def plan(settings: Run, method: PlannedRun, request: PlanRequest, log: Any) -> FitPlan:
    """The plan of the mesh, remat and micro-rows that the settings name; `log` takes a line for each compilation."""
    mesh, count = dataclasses.asdict(settings.mesh), len(request.devices)
    choice = estimate.settled(mesh, count, method.policy.remat, method.micro_rows)
    return estimate.make_plan(request, choice, log)


# --- what is printed ------------------------------------------------------------------------------------------------


def show(run_plan: FitPlan, request: PlanRequest) -> None:
    """Print the tables of a plan, and its verdict."""
    console = cli.console()
    console.print(
        f'{len(request.devices)} x {request.devices[0].device_kind}, {run_plan.chip.memory / GIB:.2f} GiB each'
    )
    # Where the arrays of a run alone do not fit, no program is compiled, and its tables have no rows.
    for table in (memory_table(run_plan), bytes_table(run_plan), work_table(run_plan)):
        if table.row_count:
            console.print(table)
    console.print(verdict(run_plan, request), soft_wrap=True)


def show_better(run_plan: FitPlan, better: FitPlan | None, request: PlanRequest) -> None:
    """Print the quicker plan, if there is one; or where the plan does not fit the nearest one that does, or none."""
    console = cli.console()
    if better:
        name = 'quicker' if run_plan.fits else 'nearest that fits'
        console.print(f'{name}: {better.choice.flags(request.rows)}{duration(better)}', soft_wrap=True)
        for table in (bytes_table(better), work_table(better)):
            console.print(table)
    elif not run_plan.fits:
        console.print(f'no mesh of these devices fits, with any remat or {request.rows}', soft_wrap=True)


def memory_table(run_plan: FitPlan) -> Table:
    """A table of the GiB that stay on each device."""
    table = Table('stays on each device', 'GiB')
    for name, size in run_plan.memory.items():
        table.add_row(name, gib(size))
    return table


def bytes_table(run_plan: FitPlan) -> Table:
    """A table with a row for each hot function: the GiB in a device's memory while it runs."""
    table = Table('program', 'given', 'temporary', 'beside', 'peak GiB')
    for program in run_plan.figures:
        sizes = program.arguments, program.temporaries, program.beside, program.peak
        table.add_row(program.name, *map(gib, sizes), *([program.refused] if program.refused else []))
    return table


def work_table(run_plan: FitPlan) -> Table:
    """A table with a row for each hot function: the operations, bytes and seconds of one run on one device."""
    table = Table('program', 'runs', 'TFLOP', 'GB moved', 'GB received', 'overlapped', 'kernels', 'bound by', 's a run')
    for program in run_plan.figures:
        received = [f'{kind} {size / 1e9:.3g}' for kind, size in program.collectives.items()]
        # What slices receive from each other is a kind of its own.
        if between := sum(program.between.values()) - program.collectives.get(BETWEEN_SLICES, 0.0):
            received.append(f'of it over the network {between / 1e9:.3g}')
        numbers = [f'{program.flops / 1e12:.3g}', f'{program.moved / 1e9:.3g}', '\n'.join(received)]
        overlap, seconds = f'{program.overlapped} of {program.started + program.waiting}', program.seconds
        bound = max(program.limits, key=program.limits.__getitem__, default='')
        counts = overlap, str(program.kernels), bound
        table.add_row(program.name, str(program.calls), *numbers, *counts, '' if seconds is None else f'{seconds:.3g}')
    return table


def verdict(run_plan: FitPlan, request: PlanRequest) -> str:
    """One line of text that says if the plan fits, which program needs most memory, and how long a step takes."""
    worst, limit = run_plan.worst, run_plan.chip.memory
    text = f'{"fits" if run_plan.fits else "does not fit"}: {run_plan.choice.flags(request.rows)}'
    text += f'; {worst.name} needs {gib(worst.peak)} of {gib(limit)} GiB'
    return text + duration(run_plan)


def duration(run_plan: FitPlan) -> str:
    """The end of a line of text: how long a step of a plan that fits takes; '' where a rate is unknown."""
    seconds, roofline, share = run_plan.step_seconds, run_plan.roofline, run_plan.share_of_peak
    if not run_plan.fits or seconds is None or roofline is None or share is None:
        return ''
    at_limits = f'{short(roofline)} at the rates of the device, of which arithmetic alone would take {share:.0%}'
    text = f'; a step of full length takes {short(seconds)} at {EFFICIENCY.value:.0%} of these rates, {at_limits}'
    if apart := run_plan.apart_seconds:
        text += f'; were rollouts sampled ahead by as many devices again, {short(apart)}'
    return text


def short(seconds: float) -> str:
    """Seconds in words, with two digits below ten."""
    return f'{seconds:.0f} s' if seconds >= 10 else f'{seconds:.2g} s'


def gib(size: float) -> str:
    """A number of bytes as the text of GiB."""
    return f'{size / GIB:.3f}'


def as_json(run_plan: FitPlan, better: FitPlan | None, request: PlanRequest) -> dict[str, Any]:
    """The plan, and the quicker one, or the nearest one that fits, as values for JSON."""

    def fields(some_plan: FitPlan) -> dict[str, Any]:
        return {
            'mesh': some_plan.choice._asdict(),
            'fits': some_plan.fits,
            'memory': some_plan.memory,
            'limit': some_plan.chip.memory,
            'step_seconds': some_plan.step_seconds,
            'apart_seconds': some_plan.apart_seconds,
            'step_roofline': some_plan.roofline,
            'share_of_peak': some_plan.share_of_peak,
            'programs': [dataclasses.asdict(figures) for figures in some_plan.figures],
        }

    kind = request.devices[0].device_kind
    head = {'devices': len(request.devices), 'device': kind, 'model': dataclasses.asdict(request.cfg)}
    named = {'quicker' if run_plan.fits else 'nearest': fields(better) if better else None}
    return {**head, **fields(run_plan), **named}


if __name__ == '__main__':
    cli.run(main, __doc__ or '')
