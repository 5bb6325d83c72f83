"""The work that all learners of a decoder share.

Parameters are split into those that train and those that are frozen, and laid over the mesh. Batches are cut into
micro-batches of rows, gradients are summed, and the optimiser makes its step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from pal_jax.models import lora
from pal_jax.models import params as model_params
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params, ParamSpec
from pal_jax.run import sharding
from pal_jax.run.optim import Optimizer, moment_axes
from pal_jax.types import Metrics, TokenBatch


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adapters in place of full parameters (Hu et al. 2021).

    `dropout` is on in updates and off in `score`, `weights` and whatever decodes them, so with it the ratios of the
    first minibatch are not 1: `first_ratio_deviation` and `approx_kl` then measure the dropout too.
    """

    rank: int = 0  # 0: no adapters, all parameters are trained
    alpha: float = 16.0  # adapters' products are multiplied by alpha / rank
    targets: str = 'all-linear'  # or patterns over the paths of parameters, such as attn/(q|v),down
    dropout: float = 0.0  # the share of an adapter's inputs that an update leaves out

    @property
    def shape(self) -> dict[str, Any]:
        """The arguments by which `models.lora` makes adapters."""
        targets = self.targets if self.targets == 'all-linear' else tuple(self.targets.split(','))
        return {'rank': self.rank, 'alpha': self.alpha, 'targets': targets}


class TrainState(struct.PyTreeNode):
    """Trainable parameters, the frozen parameters that they adapt (empty without LoRA), and the optimiser's state."""

    params: Params
    frozen: Params
    opt_state: optax.OptState


Seed = int | Int[Array, '']


def attached(params: Params, adapters: Lora, seed: Seed) -> tuple[Params, Params]:
    """The trainable and the frozen parameters of a decoder whose adapters are drawn by `seed`."""
    return lora.split(lora.attach(params, key=jax.random.key(seed), **adapters.shape))


def divided(params: Params, adapters: Lora | None, seed: Seed) -> tuple[Params, Params]:
    """The trainable and the frozen parameters of a decoder that only reads.

    Its adapters train, or without adapters everything but its embeddings.
    """
    if adapters:
        return attached(params, adapters, seed)
    frozen = {name: params[name] for name in ('embed', 'unembed') if name in params}
    return {name: x for name, x in params.items() if name not in frozen}, frozen


def new_head(width: int, outputs: int, seed: Seed) -> Float[Array, 'D K']:
    """A head drawn from N(0, 1 / (D + 1)), as the authors of PLUS draw it."""
    return jax.random.normal(jax.random.key(seed), (width, outputs)) / (width + 1)


def join(trainable: Params, frozen: Params) -> Params:
    """The whole model: adapters beside the weights that they adapt, or the parameters themselves."""
    return lora.join(trainable, frozen) if frozen else trainable


def merged(state: TrainState) -> Params:
    """Plain weights that compute the same as the state's adapters on their base."""
    return lora.merge(join(state.params, state.frozen))


COLUMNS = 'tokens', 'positions', 'segments', 'prefix'  # arrays of a `TokenBatch` by column
# Micro-batches are cut to multiples of so many columns.
MULTIPLE = 128


def zeros(params: Params) -> Params:
    """Zeros for sums of gradients in float32, laid over the mesh as their parameters are.

    It is to be called outside of `jit`.
    """
    # Inside of `jit` the shapes alone would be read, and the shardings lost.
    return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32, device=x.sharding), params)


def trained_specs(specs: Params, adapters: Lora | None) -> dict[tuple[str, ...], ParamSpec]:
    """The specs of the leaves that train, those of adapters included, by the path of the leaf."""
    trees = lora.split(lora.lora_specs(specs, **adapters.shape)) if adapters else (specs,)
    leaves = [
        leaf for tree in trees for leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=model_params.is_spec)
    ]
    return {_names(path): spec for path, spec in leaves}


def laid_out(new: Callable[[Params], Any], cfg: ModelConfig, adapters: Lora | None, mesh: Mesh) -> Any:
    """The shapes and shardings of the state that `new` makes of a decoder's weights."""
    specs = model_params.decoder_specs(cfg)
    shapes = jax.eval_shape(new, model_params.abstract(specs))
    return placed(shapes, trained_specs(specs, adapters), mesh)


def jit_to(abstract: Any, function: Callable[..., Any], **options: Any) -> Any:
    """A jitted function whose result has the shardings of `abstract`."""
    return jax.jit(function, out_shardings=jax.tree.map(lambda x: x.sharding, abstract), **options)


def placed(shapes: Any, specs: dict[tuple[str, ...], ParamSpec], mesh: Mesh) -> Any:
    """The shapes with shardings on the mesh.

    A leaf whose path ends as a parameter's path does, such as a moment, has the parameter's sharding. All other leaves
    are replicated.
    """

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        names = _names(path)
        start = next((i for i in range(len(names)) if names[i:] in specs), len(names))
        axes = ()
        if start < len(names):
            spec = specs[names[start:]]
            axes = moment_axes(names[:start], spec.shape, spec.axes, leaf.shape)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.sharding(mesh, axes))

    return jax.tree_util.tree_map_with_path(place, shapes)


def _names(path: Any) -> tuple[str, ...]:
    return tuple(str(getattr(key, 'key', getattr(key, 'name', getattr(key, 'idx', '')))) for key in path)


@functools.partial(jax.jit, static_argnums=(2, 3))
def take(batch: Any, index: Int[np.ndarray, 'P'] | None, mesh: Mesh, length: int | None = None) -> Any:
    """The rows `index` of a batch (None: all), spread over the mesh as before; a `TokenBatch` keeps its first `length`
    columns."""

    def cut(x: Any) -> Any:
        return x.replace(**{name: getattr(x, name)[:, :length] for name in COLUMNS}) if _is_tokens(x) else x

    rows = batch if index is None else jax.tree.map(lambda x: x[index], batch)
    # Without the constraint the compiler may gather the picked rows on one device.
    place = sharding.sharding(mesh, ('batch',))
    return jax.lax.with_sharding_constraint(jax.tree.map(cut, rows, is_leaf=_is_tokens), place)


def micro_batches(tree: Any, mesh: Mesh, micro_rows: int, multiple: int = MULTIPLE) -> Iterator[Any]:
    """Micro-batches of neighbouring rows, up to `micro_rows` rows a device at a time.

    The one `TokenBatch` of the tree loses the columns that are padding in all rows of a micro-batch. Its length is that
    of the longest row, rounded up to a `multiple`.
    """
    (batch,) = (x for x in jax.tree.leaves(tree, is_leaf=_is_tokens) if _is_tokens(x))
    cuts = cuts_of(batch, mesh, micro_rows, multiple)
    for index, length in cuts:
        yield take(tree, index if len(cuts) > 1 else None, mesh, length)


def cuts_of(
    batch: TokenBatch, mesh: Mesh, micro_rows: int, multiple: int = MULTIPLE
) -> list[tuple[Int[np.ndarray, 'P'], int]]:
    """The indices of the rows of each micro-batch, and the number of its columns."""
    height, width = batch.tokens.shape
    on_device = height // sharding.batch_ways(mesh)
    # The fewest equal parts that fit the memory: equal shapes share one compiled program.
    parts = next(k for k in range(1, on_device + 1) if on_device % k == 0 and on_device // k <= micro_rows)
    # A batch may be short, so a micro-batch may have rows of padding alone.
    longest = np.maximum(_longest(batch.segments, parts, mesh), 1)
    # Multiples keep the programs to compile few.
    lengths = (min(width, -(-int(columns) // multiple) * multiple) for columns in longest)
    return list(zip(np.split(np.arange(height), parts), lengths, strict=True))


def _is_tokens(x: Any) -> bool:
    return isinstance(x, TokenBatch)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _longest(segments: Int[Array, 'R T'], parts: int, mesh: Mesh) -> Int[Array, 'P']:
    longest = jnp.max(jnp.sum(segments != 0, axis=1).reshape(parts, -1), axis=1)
    return jax.lax.with_sharding_constraint(longest, sharding.replicated(mesh))


def accumulate(
    loss: Callable[[Params], tuple[Array, Any]], params: Params, grads: Params
) -> tuple[tuple[Array, Any], Params]:
    """The value of `loss(params)`, which is a number and a further result, and `grads` with its gradient added."""
    # The backward pass adds into the sums as it goes, a layer at a time where layers are scanned. So no second copy of
    # the gradients exists.
    sums = jax.tree.map(jax.new_ref, grads)
    pull: Any  # its declared type lacks `with_refs`
    value, pull, aux = jax.vjp(loss, params, has_aux=True)
    pull.with_refs(sums)(jnp.ones_like(value))
    return (value, aux), jax.tree.map(jax.freeze, sums)


def any_of(counts: Array) -> bool:
    """True where anything of a batch counts; the answer is the same in every process.

    A batch in which nothing counts has to be skipped.
    """
    # A step on a batch in which nothing counts would still move parameters by its moments, count an update and decay
    # weights.
    return bool(jnp.any(counts != 0))


global_norm = jax.jit(optax.global_norm)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def apply(
    optimizer: Optimizer | optax.GradientTransformation, state: TrainState, grads: Params, rate: float | Array = 1.0
) -> tuple[TrainState, Array]:
    """The state after the optimiser's step, scaled by `rate`, and the norm of the gradient.

    A norm that is not finite makes no step.
    """
    norm = global_norm(grads)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, optax.tree.scale(rate, updates))
    # The choice is made on the device, so that no step waits for a number to reach the host, and number by number: what
    # comes out of a condition the compiler for GPUs gathers on every device.
    kept = functools.partial(jnp.where, jnp.isfinite(norm))
    params, opt_state = jax.tree.map(kept, (params, opt_state), (state.params, state.opt_state))
    return state.replace(params=params, opt_state=opt_state), norm


@jax.jit
def skipped(before: Array, norm: Array) -> Array:
    """The number of updates in a row, up to the last, whose gradient was not finite."""
    return jnp.where(jnp.isfinite(norm), 0, before + 1)


def floats(metrics: dict[str, Any]) -> Metrics:
    """Device scalars as Python numbers, in one transfer."""
    return {name: float(value) for name, value in jax.device_get(metrics).items()}
