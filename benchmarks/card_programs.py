"""The programs that the tasks of `card.py` run, as programs to compile for a card that is not there.

Prompts and answers are as long as they may become. Nothing here has a value but the places of tokens.
"""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks import card_tasks, plan_memory, rlpa_step, train_step
from benchmarks.card_tasks import Results, Size
from benchmarks.shapes import SHAPES

Programs = Iterator[tuple[str, Any]]  # a name, and a `commands.planning.programs.Program`
PROMPT = 1024  # tokens of RLPA's prompts, as `python -m pal_jax.plan` has them


def compiled(part: str, size: Size, card: str) -> Results:
    """Compiles a part's programs for one card, such as h100, and yields what the compiler says of each.

    Raises:
      RuntimeError: the compiler is not installed.
    """
    import jax

    from pal_jax.commands.planning import chips, estimate
    from pal_jax.run.devices import make_mesh

    devices = chips.topology_devices(f'{card}:1')
    chip, start = chips.chip(devices[0]), time.perf_counter()
    mesh = make_mesh(devices=devices).abstract_mesh  # by which jax knows the card that a kernel is for
    for name, program in PARTS[part](size, devices):
        with jax.sharding.use_abstract_mesh(mesh):
            figures, before = estimate.measure(program, chip, 1.0), start
        start = time.perf_counter()
        yield name, {**card_tasks.predicted(figures), 'compile_s': start - before}


def attention(size: Size, devices: Any) -> Programs:
    """Our kernels forward, with the backward pass, and their reference in float32."""
    import jax

    for name, heads in size.attention.items():
        kernels, both, exact = card_tasks.attentions(heads)
        for kind, function, dtype in (('forward', kernels, 'bfloat16'), ('both', both, 'bfloat16'),
                                      ('exact', exact, 'float32')):  # fmt: skip
            shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape in card_tasks.inputs_of(heads)]
            yield f'{name}, {kind}', _program(kind, function, shapes[:3] if kind == 'forward' else shapes, devices)


def train(size: Size, devices: Any) -> Programs:
    """The supervised step, and the programs of an update by PPO, which the planner's part runs too."""
    import jax

    from pal_jax.models import params

    for model in size.models:
        cfg = _shape(model, 'bfloat16')
        update, optimizer = train_step.supervised(cfg)
        weights = params.abstract(params.decoder_specs(cfg))
        tokens = jax.ShapeDtypeStruct(size.train, 'int32')
        shapes = weights, jax.eval_shape(optimizer.init, weights), tokens
        yield f'{model}, supervised', _program('supervised', update, shapes, devices)
        yield from _updates(model, 'bfloat16', size.ppo, devices)


def decode(size: Size, devices: Any) -> Programs:
    """The programs of a decoder of each batch, among them that which begins prompts in no cache."""
    from pal_jax.commands.planning import programs
    from pal_jax.decode.programs import Programs as Functions
    from pal_jax.run.devices import make_mesh

    mesh = make_mesh(devices=devices)
    for model in size.models:
        cfg = _shape(model, 'bfloat16')
        learner = plan_memory.make_learner(cfg, mesh, size.new)
        for batch in size.batches:
            work = programs.Work(batch, 1, size.prompt, size.new, 1, 1, batch)
            for program in programs.decoding(cfg, learner, work, int8=False):
                yield f'{model}, {batch}, {program.name}', program
                if program.name == 'prefill':
                    weights, _, _, _, *prompts = program.arguments
                    begin = Functions(cfg, mesh, slots=batch).prefill
                    fresh = program._replace(function=begin, arguments=(weights, *prompts))
                    yield f'{model}, {batch}, begin', fresh


def rlpa(size: Size, devices: Any) -> Programs:
    """The programs of a step of RLPA and of its decoder."""
    import dataclasses

    from pal_jax.commands.planning import programs
    from pal_jax.run.devices import make_mesh
    from pal_jax.run.planned import planned

    settings = runpy.run_path(str(rlpa_step.CONFIG))['get_config'](size.variant)
    method = planned(settings, PROMPT)
    cfg = dataclasses.replace(_shape(size.models[0], 'bfloat16'), remat=method.policy.remat)
    learner = method.make_learner(cfg, make_mesh(devices=devices), method.micro_rows)
    for program in (*programs.training(learner, method.work),
                    *programs.decoding(cfg, learner, method.work, int8=False)):  # fmt: skip
        yield f'rlpa, {program.name}', program


def equality(size: Size, devices: Any) -> Programs:
    """The programs that sample and score in float32; those in bfloat16 are of the parts before."""
    for model in size.models:
        yield from _updates(model, 'float32', (size.prompt, size.new), devices, decode=True)


def _updates(model: str, dtype: str, lengths: tuple[int, int], devices: Any, decode: bool = False) -> Programs:
    from pal_jax.commands.planning import estimate
    from pal_jax.run.devices import make_mesh

    request = plan_memory.request(_shape(model, dtype), *lengths, devices)._replace(decode=decode)
    learner = request.make_learner(request.cfg, make_mesh(devices=devices), plan_memory.ROWS)
    for program in estimate.hot_functions(request, learner, {}):
        yield f'{model}, {dtype}, {program.name}', program


def _shape(model: str, dtype: str) -> Any:
    from pal_jax.run.devices import for_platform

    return for_platform(SHAPES[model], dtype, 'gpu')


def _program(name: str, function: Any, shapes: Any, devices: Any) -> Any:
    """A program whose arguments lie whole on the first device."""
    from pal_jax.commands.planning import programs
    from pal_jax.run.devices import make_mesh
    from pal_jax.run.sharding import replicated

    return programs.Program(
        name, function, programs.placed(tuple(shapes), replicated(make_mesh(devices=devices))), 1, (), 1
    )


PARTS: dict[str, Callable[[Size, Any], Programs]] = {
    'attention': attention, 'train': train, 'decode': decode, 'rlpa': rlpa, 'equality': equality,
}  # fmt: skip  # those that `plan` runs are of `train`
