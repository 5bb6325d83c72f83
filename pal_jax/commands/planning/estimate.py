"""The cost of a plan, that is, of a mesh and a remat choice, whose programs the devices' own compiler compiles."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.errors import JaxRuntimeError
from jax.sharding import Mesh

from pal_jax.commands.planning import hlo, programs
from pal_jax.commands.planning.chips import GIB, Chip
from pal_jax.commands.planning.flops import flops
from pal_jax.commands.planning.programs import Learner, Program, Work
from pal_jax.learners.ppo import PolicyLearner
from pal_jax.models.config import ModelConfig
from pal_jax.run import devices, sharding
from pal_jax.run.memory import peak_bytes

# The number that the function takes is `ppo.micro_rows` or `data.micro_rows`.
MakeLearner = Callable[[ModelConfig, Mesh, int], Learner]
REMAT = ('none', 'dots', 'full')  # cheapest first


class FitOptions(NamedTuple):
    """The settings that can be changed so that a config fits its devices."""

    data: int
    fsdp: int
    tensor: int
    remat: str
    micro_rows: int  # rows of an update that a device computes at once
    slots: int = 0  # requests that all decoders decode at once; 0: as many as the config says

    def flags(self, rows: str = 'ppo.micro_rows') -> str:
        """The flags of a command line that make this choice, where `rows` is the key of the number of rows."""
        sizes = ' '.join(f'--config.mesh.{axis}={getattr(self, axis)}' for axis in devices.AXES)
        slots = f' --config.decode.slots={self.slots}' if self.slots else ''
        return f'{sizes} --config.policy.remat={self.remat} --config.{rows}={self.micro_rows}{slots}'


@dataclasses.dataclass(frozen=True)
class ProgramCost:
    """The cost of one program on one device: bytes of memory, and operations, bytes and seconds of one run."""

    name: str
    # Runs of the program in a step.
    calls: int
    arguments: int = 0
    temporaries: int = 0
    # Bytes that are in memory while the program runs and are none of its arguments.
    beside: int = 0
    # Bytes of arguments, results, temporaries and `beside` together.
    peak: int = 0
    flops: float = 0.0
    # Bytes between the device and its large memory.
    moved: float = 0.0
    # `collectives`, the fields from `started` to `kernels`, and `between` are those of `hlo.Traffic`.
    collectives: dict[str, float] = dataclasses.field(default_factory=dict)
    started: int = 0
    overlapped: int = 0
    waiting: int = 0
    kernels: int = 0
    between: dict[int, float] = dataclasses.field(default_factory=dict)
    # The seconds of a run at the device's own rates by what takes them: arithmetic, memory and links. They work at the
    # same time. It is empty where a rate of the device is unknown.
    limits: dict[str, float] = dataclasses.field(default_factory=dict)
    # The seconds of a run at the requested efficiency; None where a rate of the device is unknown.
    seconds: float | None = None
    # The reason why the compiler refused the program, '' where it did not.
    refused: str = ''

    @property
    def roofline(self) -> float:
        """The seconds of a run at the device's own rates: the largest of `limits`, which has to be known."""
        return max(self.limits.values())


@dataclasses.dataclass(frozen=True)
class FitPlan:
    """A choice with the figures of its programs. `memory` has the bytes of everything that stays on a device."""

    choice: FitOptions
    chip: Chip
    memory: dict[str, int]
    figures: list[ProgramCost]

    @property
    def worst(self) -> ProgramCost:
        """The program that needs most memory."""
        return max(self.figures, key=lambda program: program.peak)

    @property
    def fits(self) -> bool:
        """True where the compiler refuses no program and each fits the memory of the device."""
        return self.worst.peak <= self.chip.memory and not any(program.refused for program in self.figures)

    @property
    def step_seconds(self) -> float | None:
        """Seconds of a step in which every completion is as long as it may become; None where a rate is unknown."""
        return None if any(program.seconds is None for program in self.figures) else _seconds(self.figures)

    @property
    def apart_seconds(self) -> float | None:
        """Seconds of a step whose rollout is ahead of its update, on as many other devices: those of the longer part.

        None where no decoding is planned, or a rate is unknown.
        """
        if (together := self.step_seconds) is None:
            return None
        sampling = _seconds(parts_of(self, decoding=True))
        return max(sampling, together - sampling) if sampling else None

    @property
    def roofline(self) -> float | None:
        """Seconds of a step at the device's own rates, that is, at an efficiency of 1; None where one is unknown."""
        if not all(program.limits for program in self.figures):
            return None
        return sum(program.calls * program.roofline for program in self.figures)

    @property
    def share_of_peak(self) -> float | None:
        """The arithmetic of a step at the device's peak as a share of `roofline`; None where a rate is unknown."""
        arithmetic = sum(program.calls * program.limits.get('arithmetic', 0.0) for program in self.figures)
        return arithmetic / self.roofline if self.roofline else None


class PlanRequest(NamedTuple):
    """A model, the work of its step and the devices to plan for."""

    cfg: ModelConfig
    make_learner: MakeLearner
    work: Work
    devices: Sequence[Any]
    chip: Chip
    # `decode` is False where another machine samples, and `train` where decoding alone is planned.
    decode: bool
    # `int8` decodes with weights of eight bits.
    int8: bool
    # `efficiency` is the share of the chip's peak that a step reaches.
    efficiency: float
    rows: str = 'ppo.micro_rows'  # the key of the rows that a device computes at once
    train: bool = True


def _seconds(programs: Sequence[ProgramCost]) -> float:
    """The seconds of all runs of programs, without those whose seconds are unknown."""
    return sum(program.calls * (program.seconds or 0.0) for program in programs)


def make_plan(
    request: PlanRequest, choice: FitOptions, log: Callable[[str], None], stop_early: bool = False
) -> FitPlan:
    """The plan of a choice, for which every hot function is compiled. `log` takes the name of each.

    With `stop_early`, the functions after the first that does not fit are left out.

    Raises:
      ValueError: the model does not divide over this mesh.
    """
    mesh = mesh_of(request, choice)
    cfg = dataclasses.replace(request.cfg, remat=choice.remat)
    learner = request.make_learner(cfg, mesh, choice.micro_rows)
    if choice.slots:
        request = request._replace(work=request.work._replace(slots=choice.slots))
    memory, figures = resident(learner), []
    # A plan whose lower bound does not fit is not compiled, which would take long.
    if (bound := least(request, learner, choice, memory)) > request.chip.memory:
        reason = f'at least {bound / GIB:.1f} GiB a device: not compiled'
        return FitPlan(choice, request.chip, memory, [ProgramCost('all', 1, peak=bound, refused=reason)])
    for program in hot_functions(request, learner, memory):
        log(program.name)
        figures.append(measure(program, request.chip, request.efficiency))
        if stop_early and (figures[-1].refused or figures[-1].peak > request.chip.memory):
            break
    if request.devices[0].platform == 'cpu':
        # A run compiles the same programs, so it needs the memory that this process needed: for Python, for jax, for
        # compiled code, and for the compiler, which leaves the heap in pieces.
        memory['process'] = peak_bytes() // len(request.devices)
        figures = [beside(figure, memory['process']) for figure in figures]
    return FitPlan(choice, request.chip, memory, figures)


def mesh_of(request: PlanRequest, choice: FitOptions) -> Mesh:
    """The devices in the mesh of a choice."""
    return devices.make_mesh(**{axis: getattr(choice, axis) for axis in devices.AXES}, devices=request.devices)


def beside(figures: ProgramCost, size: int) -> ProgramCost:
    """The figures with `size` bytes more beside the program."""
    return dataclasses.replace(figures, beside=figures.beside + size, peak=figures.peak + size)


def resident(learner: Learner) -> dict[str, int]:
    """Bytes on a device of the arrays that training keeps through an update, by kind."""
    parts = programs.parts_of(learner)
    models = parts.models
    return {
        'parameters': programs.bytes_of(([(m.params, m.frozen) for m in models], parts.reference)),
        'optimiser': programs.bytes_of([model.opt_state for model in models]),
        # Models are updated one at a time, so the largest gradients count.
        'gradients': max(programs.bytes_of(programs.gradients(model.params)) for model in models),
    }


def least(request: PlanRequest, learner: Learner, choice: FitOptions, memory: dict[str, int]) -> int:
    """A lower bound of the bytes on a device, whatever the compiler does."""
    cfg, mesh, *_ = programs.parts_of(learner)
    work, ways = request.work, sharding.batch_ways(mesh)
    rows = min(choice.micro_rows, -(-work.prompts // work.minibatches // ways))
    # With full remat a layer keeps its input alone, otherwise at least some results of its products as well.
    saved_width = cfg.width if choice.remat == 'full' else 3 * cfg.width + 3 * cfg.mlp // choice.tensor
    activations = rows * work.row * cfg.layers * saved_width * jnp.dtype(cfg.act_dtype).itemsize
    # An update needs its state and the activations that layers keep for the backward pass.
    update = sum(memory.values()) + activations
    if not request.decode:
        return update
    weights, caches = programs.decoding_memory(cfg, mesh, work, int8=request.int8)
    # Decoding needs parameters and optimiser state of the training, the weights that decode, and the caches.
    return max(update, memory['parameters'] + memory['optimiser'] + weights + caches)


def hot_functions(request: PlanRequest, learner: Learner, memory: dict[str, int]) -> Iterator[Program]:
    """The programs of training, then those of decoding. The bytes that decoding keeps are added to `memory`."""
    if request.train:
        yield from programs.training(learner, request.work)
    if request.decode:
        assert isinstance(learner, PolicyLearner)
        parts = programs.decoding(learner.actor.cfg, learner, request.work, int8=request.int8)
        weights, caches = parts[-1].arguments
        memory |= {'decode weights': programs.bytes_of(weights), 'KV cache': programs.bytes_of(caches)}
        yield from parts


def measure(program: Program, chip: Chip, efficiency: float) -> ProgramCost:
    """Compile a program, and read its figures off the compiled code."""
    argument_bytes, beside = programs.bytes_of(program.arguments), programs.bytes_of(program.beside)
    traced = program.function.trace(*program.arguments)
    work = flops(traced.jaxpr.jaxpr) / program.ways
    try:
        compiled = traced.lower().compile()
    except JaxRuntimeError as error:
        needed = over_memory(str(error))
        reason = f'needs {needed / GIB:.1f} GiB' if needed else str(error).strip().splitlines()[0]
        return ProgramCost(
            program.name,
            program.calls,
            beside=beside,
            arguments=argument_bytes,
            peak=needed + beside,
            flops=work,
            refused=reason,
        )
    stats, traffic = compiled.memory_analysis(), hlo.traffic(compiled.as_text(), chip.host)
    # Results that take the place of arguments need no memory of their own.
    results = stats.output_size_in_bytes - stats.alias_size_in_bytes
    received = sum(traffic.collectives.values())
    limits = {}
    if chip.flops and chip.bandwidth and chip.links:
        transfer = chip.transfer(received, traffic.between)
        limits = {'arithmetic': work / chip.flops, 'memory': traffic.moved / chip.bandwidth, 'links': transfer}
    return ProgramCost(
        program.name,
        program.calls,
        arguments=argument_bytes,
        temporaries=stats.temp_size_in_bytes + results,
        beside=beside,
        peak=argument_bytes + results + stats.temp_size_in_bytes + beside,
        flops=work,
        limits=limits,
        # The slowest of the limits counts.
        seconds=max(limits.values()) / efficiency if limits else None,
        **traffic._asdict(),
    )


def over_memory(message: str) -> int:
    """The bytes that a program would need, from the compiler's error; 0 where the error says nothing of memory."""
    used = re.search(r'Used ([\d.]+)([KMG])', message)
    return int(float(used[1]) * {'K': 2**10, 'M': 2**20, 'G': 2**30}[used[2]]) if used else 0


def search(request: PlanRequest, choices: Iterable[FitOptions], log: Callable[[str], None]) -> FitPlan | None:
    """The first choice that fits; None if none does."""
    for choice in choices:
        try:
            plan = make_plan(
                request, choice, lambda name, c=choice: log(f'{c.flags(request.rows)}: {name}'), stop_early=True
            )
        except ValueError:
            # The model does not divide over this mesh.
            continue
        if plan.fits:
            return plan
    return None


def quicker(request: PlanRequest, plan: FitPlan, log: Callable[[str], None]) -> FitPlan | None:
    """The plan on the same mesh with the least recomputation and the most slots that fit; None where a step is no
    shorter, or its length is unknown."""
    if not plan.step_seconds:
        return None
    choice, most = plan.choice, requests_at_once(request, plan.choice) if request.decode else 0
    # An update keeps no slots and decoding no activations, so each is chosen by itself.
    cheaper = [choice._replace(remat=remat) for remat in REMAT[: _cost(choice.remat)]]
    trained = search(request._replace(decode=False), cheaper, log) or plan
    # All completions at once, or in two, four, ... turns.
    counts = [most >> halving for halving in range(most.bit_length())]
    more = [choice._replace(slots=slots) for slots in counts if slots > request.work.slots]
    decoded = search(request._replace(train=False), more, log) or plan
    best = FitPlan(
        trained.choice._replace(slots=decoded.choice.slots),
        plan.chip,
        decoded.memory,
        [*parts_of(trained, decoding=False), *parts_of(decoded, decoding=True)],
    )
    return best if (best.step_seconds or 0.0) < plan.step_seconds else None


def parts_of(plan: FitPlan, *, decoding: bool) -> list[ProgramCost]:
    """The figures of decoding, or of all other programs."""
    return [program for program in plan.figures if (program.name in programs.DECODING) == decoding]


def requests_at_once(request: PlanRequest, choice: FitOptions) -> int:
    """The number of slots in which all completions of a step are decoded at once, by all decoders together."""
    mesh = mesh_of(request, choice)
    shares, work = request.work.shares_on(mesh), request.work
    return shares * -(-work.prompts // shares) * (work.sampled or work.n)


def choices(cfg: ModelConfig, count: int, micro_rows: int) -> list[FitOptions]:
    """All meshes of `count` devices over which a model divides, with each remat and number of rows, cheapest first."""
    meshes = []
    for tensor in divisors(count):
        for data in divisors(count // tensor):
            fsdp = count // tensor // data
            divides = not any(size % tensor for size in (cfg.kv_heads, cfg.heads, cfg.mlp, cfg.vocab))
            if divides and cfg.width % fsdp == 0:
                rows = [micro_rows >> halving for halving in range(micro_rows.bit_length())]
                meshes += [FitOptions(data, fsdp, tensor, *pair) for pair in itertools.product(REMAT, rows)]
    # Layers that are computed twice cost a third more arithmetic. A tensor axis sends activations in every layer, where
    # fsdp sends weights. A data axis repeats the state that fsdp would cut. Fewer rows at a time gather the weights
    # more often.
    return sorted(meshes, key=lambda choice: (_cost(choice.remat), choice.tensor, choice.data, -choice.micro_rows))


def _cost(remat: str) -> int:
    """The rank of a remat choice by its arithmetic, 0 the cheapest."""
    return REMAT.index(remat) if remat in REMAT else len(REMAT)


def divisors(count: int) -> list[int]:
    """The divisors of a number, in rising order."""
    return [divisor for divisor in range(1, count + 1) if count % divisor == 0]


def settled(mesh: dict[str, int], count: int, remat: str, micro_rows: int) -> FitOptions:
    """The choice that a config makes."""
    sizes = dict(mesh)
    # An axis of size -1 gets the devices that the others leave.
    if -1 in sizes.values():
        name = next(name for name, size in sizes.items() if size == -1)
        # The product has the -1 as a factor, hence the minus sign.
        sizes[name] = max(count // -(sizes['data'] * sizes['fsdp'] * sizes['tensor']), 1)
    return FitOptions(**sizes, remat=remat, micro_rows=micro_rows)
