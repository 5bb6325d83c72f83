"""What a plan costs: a mesh and a remat choice, compiled for their devices by the devices' own compiler."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from pal_jax.learners.ppo import PolicyLearner
from pal_jax.models.config import ModelConfig
from pal_jax.planning import hlo, programs
from pal_jax.planning.chips import GIB, Chip
from pal_jax.planning.flops import flops
from pal_jax.planning.programs import Program, Work
from pal_jax.runtime import devices, sharding
from pal_jax.runtime.memory import peak_bytes

MakeLearner = Callable[[ModelConfig, Mesh, int], PolicyLearner]  # the number is ppo.micro_rows
REMAT = ('none', 'dots', 'full')  # cheapest first


class Choice(NamedTuple):
    """What can be chosen so that a config fits."""

    data: int
    fsdp: int
    tensor: int
    remat: str
    micro_rows: int  # rows of an update that a device computes at once

    def flags(self) -> str:
        """The command line that makes it so."""
        sizes = ' '.join(f'--config.mesh.{axis}={getattr(self, axis)}' for axis in devices.AXES)
        return f'{sizes} --config.policy.remat={self.remat} --config.ppo.micro_rows={self.micro_rows}'


@dataclasses.dataclass(frozen=True)
class Figures:
    """Of one program on one device: bytes, operations of one run, and seconds of one run at the stated efficiency.

    `peak` is arguments, results, temporaries and what lies beside them; `refused` is why the compiler would not.
    """

    name: str
    calls: int
    arguments: int = 0
    temporaries: int = 0
    beside: int = 0
    peak: int = 0
    flops: float = 0.0
    moved: float = 0.0
    collectives: dict[str, float] = dataclasses.field(default_factory=dict)
    started: int = 0
    overlapped: int = 0
    waiting: int = 0
    seconds: float | None = None
    refused: str = ''


@dataclasses.dataclass(frozen=True)
class Plan:
    """A choice with its figures. `memory`: bytes on a device of each thing that stays in it."""

    choice: Choice
    chip: Chip
    memory: dict[str, int]
    figures: list[Figures]

    @property
    def worst(self) -> Figures:
        return max(self.figures, key=lambda each: each.peak)

    @property
    def fits(self) -> bool:
        return self.worst.peak <= self.chip.memory and not any(each.refused for each in self.figures)

    @property
    def step_seconds(self) -> float | None:
        """Of a step in which every completion is as long as it may become; None where a rate is unknown."""
        seconds = [each.seconds for each in self.figures]
        if None in seconds:
            return None
        return sum(each.calls * (each.seconds or 0.0) for each in self.figures)


class Request(NamedTuple):
    """What is to be planned. `decode` is False where another machine samples."""

    cfg: ModelConfig
    make_learner: MakeLearner
    work: Work
    devices: Sequence[Any]
    chip: Chip
    decode: bool
    int8: bool
    efficiency: float


def make_plan(request: Request, choice: Choice, log: Callable[[str], None], stop_early: bool = False) -> Plan:
    """Compiles every hot function. With `stop_early` not those after the first that does not fit.

    Raises:
      ValueError: the model does not divide over this mesh.
    """
    sizes = {axis: getattr(choice, axis) for axis in devices.AXES}
    mesh = devices.make_mesh(**sizes, devices=request.devices)
    cfg = dataclasses.replace(request.cfg, remat=choice.remat)
    learner = request.make_learner(cfg, mesh, choice.micro_rows)
    memory, figures = resident(learner), []
    if (bound := least(request, learner, choice, memory)) > request.chip.memory:
        reason = f'at least {bound / GIB:.1f} GiB a device: not compiled'
        return Plan(choice, request.chip, memory, [Figures('all', 1, peak=bound, refused=reason)])
    for program in hot_functions(request, learner, memory):
        log(program.name)
        figures.append(measure(program, request.chip, request.efficiency))
        if stop_early and (figures[-1].refused or figures[-1].peak > request.chip.memory):
            break
    if request.devices[0].platform == 'cpu':
        # A run compiles the same programs, so it needs what this process did: for Python, jax, and code and the making
        # of it, which leaves the heap in pieces.
        memory['process'] = peak_bytes() // len(request.devices)
        figures = [beside(each, memory['process']) for each in figures]
    return Plan(choice, request.chip, memory, figures)


def beside(figures: Figures, size: int) -> Figures:
    """The figures with so many bytes more in memory."""
    return dataclasses.replace(figures, beside=figures.beside + size, peak=figures.peak + size)


def resident(learner: PolicyLearner) -> dict[str, int]:
    """Bytes on a device of what training keeps through an update."""
    state = learner.abstract
    models = state.actor.model, *state.critics
    return {
        'parameters': programs.bytes_of(([(m.params, m.frozen) for m in models], state.actor.reference)),
        'optimiser': programs.bytes_of([model.opt_state for model in models]),
        'gradients': max(programs.bytes_of(programs.gradients(model.params)) for model in models),  # one at a time
    }


def least(request: Request, learner: PolicyLearner, choice: Choice, memory: dict[str, int]) -> int:
    """Bytes that no compiler gets by without: of an update its state and what layers keep for the backward pass, of
    decoding that state, the weights and the caches."""
    cfg, work, ways = learner.actor.cfg, request.work, sharding.batch_ways(learner.actor.mesh)
    rows = min(choice.micro_rows, -(-work.prompts // work.minibatches // ways))
    kept = cfg.width if choice.remat == 'full' else 3 * cfg.width + 3 * cfg.mlp // choice.tensor
    activations = rows * work.row * cfg.layers * kept * jnp.dtype(cfg.act_dtype).itemsize
    update = sum(memory.values()) + activations
    if not request.decode:
        return update
    weights, caches = programs.decoding_memory(cfg, learner.actor.mesh, work, int8=request.int8)
    return max(update, memory['parameters'] + memory['optimiser'] + weights + caches)


def hot_functions(request: Request, learner: PolicyLearner, memory: dict[str, int]) -> Iterator[Program]:
    """Those of training, then those of decoding; adds to `memory` what decoding keeps."""
    yield from programs.training(learner, request.work)
    if request.decode:
        parts = programs.decoding(learner.actor.cfg, learner, request.work, int8=request.int8)
        weights, caches = parts[-1].arguments
        memory |= {'decode weights': programs.bytes_of(weights), 'KV cache': programs.bytes_of(caches)}
        yield from parts


def measure(program: Program, chip: Chip, efficiency: float) -> Figures:
    """Compiles a program and reads its figures off what came out."""
    given, beside = programs.bytes_of(program.arguments), programs.bytes_of(program.beside)
    traced = program.function.trace(*program.arguments)
    work = flops(traced.jaxpr.jaxpr) / program.ways
    try:
        compiled = traced.lower().compile()
    except JaxRuntimeError as error:
        needed = over_memory(str(error))
        reason = f'needs {needed / GIB:.1f} GiB' if needed else str(error).strip().splitlines()[0]
        return Figures(
            program.name,
            program.calls,
            beside=beside,
            arguments=given,
            peak=needed + beside,
            flops=work,
            refused=reason,
        )
    stats, traffic = compiled.memory_analysis(), hlo.traffic(compiled.as_text())
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    sent = sum(traffic.collectives.values())
    rates = (work, chip.flops), (traffic.moved, chip.bandwidth), (sent, chip.links)
    seconds = max(amount / rate for amount, rate in rates) / efficiency if all(rate for _, rate in rates) else None
    return Figures(
        program.name, program.calls,
        arguments=given,
        temporaries=stats.temp_size_in_bytes + results,
        beside=beside,
        peak=given + results + stats.temp_size_in_bytes + beside,
        flops=work, seconds=seconds, **traffic._asdict(),
    )  # fmt: skip


def over_memory(message: str) -> int:
    """Bytes that a compiler says a program would need, 0 where it says something else."""
    found = re.search(r'Used ([\d.]+)([KMG])', message)
    return int(float(found[1]) * {'K': 2**10, 'M': 2**20, 'G': 2**30}[found[2]]) if found else 0


def search(request: Request, choices: Iterable[Choice], log: Callable[[str], None]) -> Plan | None:
    """The first choice that fits; None if none does."""
    for choice in choices:
        try:
            plan = make_plan(request, choice, lambda name, c=choice: log(f'{c.flags()}: {name}'), stop_early=True)
        except ValueError:
            continue  # the model does not divide over this mesh
        if plan.fits:
            return plan
    return None


def choices(cfg: ModelConfig, count: int, micro_rows: int) -> list[Choice]:
    """All meshes of so many devices over which a model divides, with each remat, the cheapest first.

    Computing layers twice costs a third more arithmetic; a tensor axis sends activations in every layer, where fsdp
    sends weights; data repeats what fsdp would cut; fewer rows at once gather the weights more often.
    """
    found = []
    for tensor in divisors(count):
        for data in divisors(count // tensor):
            fsdp = count // tensor // data
            divides = not any(size % tensor for size in (cfg.kv_heads, cfg.heads, cfg.mlp, cfg.vocab))
            if divides and cfg.width % fsdp == 0:
                rows = [micro_rows >> halving for halving in range(micro_rows.bit_length())]
                found += [Choice(data, fsdp, tensor, *rest) for rest in itertools.product(REMAT, rows)]
    return sorted(found, key=lambda each: (_cost(each.remat), each.tensor, each.data, -each.micro_rows))


def _cost(remat: str) -> int:
    return REMAT.index(remat) if remat in REMAT else len(REMAT)


def divisors(count: int) -> list[int]:
    return [each for each in range(1, count + 1) if count % each == 0]


def settled(mesh: dict[str, int], count: int, remat: str, micro_rows: int) -> Choice:
    """The choice that a config makes."""
    sizes = dict(mesh)
    if -1 in sizes.values():
        name = next(name for name, size in sizes.items() if size == -1)
        sizes[name] = max(count // -(sizes['data'] * sizes['fsdp'] * sizes['tensor']), 1)
    return Choice(**sizes, remat=remat, micro_rows=micro_rows)
