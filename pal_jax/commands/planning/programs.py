"""The hot functions of a recipe as programs to compile: their arguments, their runs in a step, and the arrays that are
in memory beside them. Nothing here has a value: every array is a shape, a dtype and a sharding.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from pal_jax.data.packing import round_up
from pal_jax.decode import engine
from pal_jax.decode.programs import Programs
from pal_jax.decode.requests import bucket, for_slots
from pal_jax.learners.actor import Actor
from pal_jax.learners.critic import Critic
from pal_jax.learners.dpo import PreferenceLearner
from pal_jax.learners.ppo import PolicyLearner
from pal_jax.learners.scorer import Lesson, Scorer
from pal_jax.learners.training import TrainState, apply
from pal_jax.models import params
from pal_jax.models.config import ModelConfig
from pal_jax.objectives.policy import TokenInputs
from pal_jax.run import devices, sharding
from pal_jax.run.planned import Work
from pal_jax.types import TokenBatch

Tree = Any
Learner = PolicyLearner | PreferenceLearner | Actor | Scorer
# Both numbers are those of `decode.local.LocalDecoder`.
CHUNK, PREFILL_ROWS = 512, 8
# The names of the programs of `decoding`.
DECODING = 'publish layer', 'publish rest', 'prefill', 'insert', 'generate'


class Program(NamedTuple):
    """A hot function and its arguments."""

    name: str
    function: Any  # jitted
    arguments: tuple[Any, ...]
    # The runs of the function in a step.
    calls: int
    # The arrays that are in memory while the function runs and are none of its arguments.
    beside: Tree
    # The number of devices that run the function together.
    ways: int


class LearnerParts(NamedTuple):
    """The models of a learner: how they are computed, where, the states of those that train, and their reference."""

    cfg: ModelConfig
    mesh: Mesh
    models: tuple[TrainState, ...]
    reference: Tree
    micro_rows: int


def parts_of(learner: Learner) -> LearnerParts:
    """The models of a learner, as shapes with shardings."""
    match learner:
        case PolicyLearner():
            actor, state = learner.actor, learner.abstract
            models = state.actor.model, *state.critics
            return LearnerParts(actor.cfg, actor.mesh, models, state.actor.reference, actor.micro_rows)
        case PreferenceLearner():
            return parts_of(learner.actor)
        case Actor():
            state = learner.abstract
            return LearnerParts(learner.cfg, learner.mesh, (state.model,), state.reference, learner.micro_rows)
        case Scorer():
            return LearnerParts(learner.cfg, learner.mesh, (learner.abstract.model,), {}, learner.micro_rows)


def training(learner: Learner, work: Work) -> list[Program]:
    """The programs of a training step: gradients, optimisers and scores of every model."""
    match learner:
        case PolicyLearner():
            return improving(learner, work)
        case PreferenceLearner():
            return preferring(learner, work)
        case Actor():
            return imitating(learner, work)
        case Scorer():
            return scoring(learner, work)


def rows_of(learner: Learner, work: Work) -> tuple[int, int]:
    """The rows of a step, a prompt each and padded to the devices, and the rows of a micro-batch; of all devices."""
    parts = parts_of(learner)
    ways = sharding.batch_ways(parts.mesh)
    height = round_up(work.prompts, ways)
    return height, min(parts.micro_rows * ways, height)


def imitating(actor: Actor, work: Work) -> list[Program]:
    """The programs of a supervised step."""
    state, (height, rows) = actor.abstract, rows_of(actor, work)
    batch, weight = tokens(actor.mesh, rows, work)
    model, grads, ways = state.model, gradients(state.model.params), actor.mesh.size
    arguments = actor, grads, model.params, model.frozen, batch, weight, (0, state.step, 0)
    optimizer = actor.imitation or actor.optimizer
    return [
        Program('gradients', Actor._imitation, arguments, height // rows, (model.opt_state, state.reference), ways),
        Program('apply', apply, (optimizer, model, grads), 1, state.reference, ways),
    ]


def preferring(learner: PreferenceLearner, work: Work) -> list[Program]:
    """The programs of a step on pairs: the log-probabilities of actor and reference, then a supervised step."""
    actor, state = learner.actor, learner.actor.abstract
    (height, rows), models = rows_of(learner, work), [state.whole]
    # A loss without a reference reads the actor alone.
    models += [] if learner.dpo.reference_free else [actor.reference(state)]
    batch, calls = tokens(actor.mesh, rows, work)[0], height // rows
    return [
        *(
            Program(name, Actor._logprobs, (actor, params, batch), calls, (state, params), actor.mesh.size)
            for name, params in zip(('logprobs', 'reference'), models, strict=False)
        ),
        *imitating(actor, work),
    ]


def scoring(scorer: Scorer, work: Work) -> list[Program]:
    """The programs of a step of a scorer, every reply of which is scored at its last token."""
    state, (height, rows) = scorer.abstract, rows_of(scorer, work)
    model, mesh = state.model, scorer.mesh
    column: Any = array(mesh, rows, (work.row,), jnp.int32)
    reply: Any = array(mesh, rows, (work.n, 1), jnp.int32)
    acts: Any = array(mesh, rows, (work.n, 1), jnp.bool_)
    batch = TokenBatch(
        tokens=column, positions=column, segments=column, prefix=column, states=reply, actions=reply, acts=acts
    )
    side, number = (array(mesh, rows, (work.n // 2,), dtype) for dtype in (jnp.int32, jnp.float32))
    # A loss that reads no labels leaves them out of its program.
    labels, counts = (array(mesh, rows, sizes) for sizes in ((work.n, scorer.outputs), (work.n,)))
    lesson: Any = Lesson(side, side, number, number, labels, counts)  # type: ignore[arg-type]
    grads = gradients(model.params)
    arguments = scorer, grads, model, batch, lesson
    return [
        Program('gradients', Scorer._gradients, arguments, height // rows, (), mesh.size),
        Program('apply', apply, (scorer.optimizer, model, grads), 1, (), mesh.size),
    ]


def improving(learner: PolicyLearner, work: Work) -> list[Program]:
    """The programs of a step of PPO: gradients, optimisers and scores of the actor and of each critic."""
    state, actor, ways = learner.abstract, learner.actor, sharding.batch_ways(learner.actor.mesh)
    mesh, model = actor.mesh, state.actor.model
    height = round_up(work.prompts, ways * work.minibatches)
    minibatch = height // work.minibatches
    rows, scored = (min(actor.micro_rows * ways, height_at_most) for height_at_most in (minibatch, height))
    batch, weight = tokens(mesh, rows, work)
    # The log-probabilities before the update and of the reference, the advantages and the KL penalties are alike.
    number: Any = weight
    constants = TokenInputs(number, number, number if actor.anchored else None, number)
    if correction := learner.ppo.corrects:
        constants = constants._replace(sampled=number, sequence=number if correction.of_samples else None)
    grads, beside = gradients(model.params), (state.critics, batch)
    updates, ways = work.minibatches * work.epochs, mesh.size
    calls = updates * (minibatch // rows)
    arguments = actor, grads, state.actor, batch, constants, weight, learner.ppo.token_loss, 0
    programs = [
        Program('gradients', Actor.gradients, arguments, calls, beside, ways),
        Program('apply', apply, (actor.optimizer, model, grads), updates, (state.critics, state.actor.reference), ways),
    ]
    unscored = tokens(mesh, scored, work)[0]
    for critic, trained in zip(learner.critics, state.critics, strict=True):
        grads, channels = gradients(trained.params), array(mesh, rows, (*weight.shape[1:], critic.heads))
        arguments = critic, grads, trained, batch, channels, channels, weight, (2, state.actor.step, 0)
        programs += [
            Program('critic gradients', Critic.gradients, arguments, calls, state.actor, ways),
            Program('apply critic', apply, (critic.optimizer, trained, grads), updates, state.actor, ways),
            Program('values', Critic._values, (critic, trained, unscored), height // scored, state.actor, ways),
        ]
    score = actor, state.actor, unscored, learner.ppo.old_logprobs == 'policy'
    return [*programs, Program('score', Actor._score, score, height // scored, state.critics, ways)]


def gradients(params: Tree) -> Tree:
    """The sums of gradients, in float32 and with the shardings of the parameters."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), params)


def array(mesh: Mesh, rows: int, sizes: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    """An array `[rows, *sizes]` whose rows are spread over the mesh."""
    return jax.ShapeDtypeStruct((rows, *sizes), dtype, sharding=sharding.sharding(mesh, ('batch',)))


def tokens(mesh: Mesh, rows: int, work: Work) -> tuple[TokenBatch, jax.ShapeDtypeStruct]:
    """A batch of `rows` rows, and an array `[R, N, A]` with a number for each of its actions."""
    sizes: Any = work.n, round_up(work.completion, 8)
    column: Any = array(mesh, rows, (work.row,), jnp.int32)
    actions: Any = array(mesh, rows, sizes, jnp.int32)
    acts: Any = array(mesh, rows, sizes, jnp.bool_)
    batch = TokenBatch(
        tokens=column, positions=column, segments=column, prefix=column, states=actions, actions=actions, acts=acts
    )
    return batch, array(mesh, rows, sizes)


def decoding(cfg: ModelConfig, learner: PolicyLearner, work: Work, *, int8: bool) -> list[Program]:
    """The programs that send the weights to all decoders, and those of one decoder, beside the training's state."""
    state, actor = learner.abstract, learner.actor
    shares = work.shares_on(actor.mesh)
    wide, mesh = spread(actor.mesh, shares)
    cfg, slots = slots_on(cfg, mesh, work, shares)
    rows, room = round_up(PREFILL_ROWS, sharding.batch_ways(mesh)), work.room
    publish, functions = (Programs(cfg, place, slots=slots, int8=int8) for place in (wide, mesh))
    ordered = Mesh(wide.devices.reshape(actor.mesh.devices.shape), wide.axis_names, axis_types=wide.axis_types)
    places = sharding.param_shardings(params.decoder_specs(cfg), ordered)
    model = state.actor.model
    # Merged weights lie where the base does.
    trained = model.frozen if actor.adapters else model.params
    plain = jax.tree.map(placed, trained, places)
    outer, number = {name: w for name, w in plain.items() if name != 'layers'}, jax.ShapeDtypeStruct((), jnp.int32)
    layer = result(publish.decode_layer, result(publish.send_layer, plain['layers'], number), number)
    published = result(publish.send_outer, outer) | {'layers': [layer] * cfg.layers}
    weights = jax.tree.map(lambda x: placed(x, NamedSharding(mesh, x.sharding.spec)), published)
    caches = slots_of(cfg, mesh, slots, room)
    chunk, place = min(CHUNK, bucket(work.prompt, 64)), sharding.sharding(mesh, ('batch',))
    tokens, length = (jax.ShapeDtypeStruct(sizes, jnp.int32, sharding=place) for sizes in ((rows, chunk), (rows,)))
    # The slots, the place of the first token, and the length of a prompt are `[rows]` integers.
    prompts = weights, caches, length, length, tokens, length
    cached = jax.eval_shape(functions.extend, *prompts)
    prefix = jax.tree.map(lambda like, new: placed(new, like.sharding), prefix_of(caches), cached)
    prompts_of_share = -(-work.prompts // shares)
    # Prompts are prefilled in chunks, several rows at a time.
    chunks = -(-work.prompt // chunk) * -(-prompts_of_share // rows)
    # The answers of a share fill its slots so many times, and each time makes a token a step.
    steps = work.completion * -(-prompts_of_share * (work.sampled or work.n) // slots)
    # The trained weights are arguments already; the rest of the training's state is in memory beside.
    training = state.replace(actor=state.actor.replace(model=model.replace(params={})))
    parts = [
        (publish.send_layer, (plain['layers'], number), cfg.layers, (outer, training, weights), wide.size),
        (publish.send_outer, (outer,), 1, (plain['layers'], training), wide.size),
        (functions.extend, prompts, chunks, state, mesh.size),
        (functions.insert, (caches, prefix, admission(slots)), chunks, (state, weights), mesh.size),
        (functions.generate, (weights, caches), steps, state, mesh.size),
    ]
    return [Program(name, *part) for name, part in zip(DECODING, parts, strict=True)]


def spread(mesh: Mesh, shares: int) -> tuple[Mesh, Mesh]:
    """The mesh of the devices of all decoders, and that of the first decoder, see `decode.shares`."""
    if shares == 1:
        return mesh, mesh
    wide = devices.divide(mesh, shares)
    return wide, Mesh(wide.devices[:1], wide.axis_names, axis_types=wide.axis_types)


def slots_on(cfg: ModelConfig, mesh: Mesh, work: Work, shares: int) -> tuple[ModelConfig, int]:
    """The config and the number of slots of one of `shares` decoders, as `for_slots` has them, over its devices."""
    ways = sharding.batch_ways(mesh)
    cfg, slots = for_slots(cfg, -(-work.slots // shares), mesh.devices.flat[0].platform, ways)
    return cfg, round_up(slots, ways)


def prefix_of(caches: engine.DecodeState) -> engine.PrefixCaches:
    """The part of the state of slots that a prefilled prompt has, too."""
    return engine.PrefixCaches(caches.keys, caches.values, caches.length, caches.token)


def slots_of(cfg: ModelConfig, mesh: Mesh, slots: int, room: int) -> engine.DecodeState:
    """The state of `slots` empty slots of `room` tokens, with the shardings that decoding gives it."""
    shapes = jax.eval_shape(lambda: engine.init_state(cfg, slots, room))
    return jax.tree.map(lambda place, part: placed(part, place), engine.state_shardings(mesh), shapes)


def decoding_memory(cfg: ModelConfig, mesh: Mesh, work: Work, *, int8: bool) -> tuple[int, int]:
    """Bytes on a device of the weights, approximately, and of the caches that decoding keeps."""
    shares = work.shares_on(mesh)
    _, mesh = spread(mesh, shares)
    cfg, slots_of_share = slots_on(cfg, mesh, work, shares)
    specs = params.decoder_specs(cfg)
    places = sharding.param_shardings(specs, mesh, sharding.DECODE_RULES)
    weights = jax.tree.map(placed, params.abstract(specs, 'int8' if int8 else cfg.dtype), places)
    slots = slots_of(cfg, mesh, slots_of_share, work.room)
    return bytes_of(weights), bytes_of(slots)


def admission(slots: int) -> engine.Admission:
    """The admission of requests into all slots at once."""
    dtypes = jnp.int32, jnp.int32, jnp.int32, jnp.uint32, jnp.float32, jnp.int32, jnp.float32
    shapes: Any = [(), (slots,), (slots,), (slots, 2), (slots,), (slots,), (slots,)]
    arrays: Any = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    return engine.Admission(*arrays)


def result(function: Any, *arguments: Any) -> Tree:
    """The arrays that a jitted function returns, with the shardings that the compiler gives them."""
    compiled = function.lower(*arguments).compile()
    return jax.tree.map(placed, jax.eval_shape(function, *arguments), compiled.output_shardings)


def placed(tree: Tree, place: Any) -> Tree:
    """A tree of shapes and dtypes with the sharding `place`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def bytes_of(tree: Tree) -> int:
    """The bytes on one device of the shapes in a tree."""
    leaves = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.ShapeDtypeStruct)]
    return sum(_bytes(x) for x in leaves)


def _bytes(x: jax.ShapeDtypeStruct) -> int:
    """Bytes of the part of one array that lies on a device."""
    # An array without a sharding lies whole on a device.
    sizes = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
    total = jnp.dtype(x.dtype).itemsize
    for size in sizes:
        total *= size
    return total
