"""The optimiser of every learner: it clips the gradient, takes a direction, decays weights, and scales by a rate."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from pal_jax.run import sharding
from pal_jax.types import derived

Decay = Literal['cosine', 'linear']


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Settings of an optimiser, in the order in which they act on a gradient.

    The gradient is clipped to a global norm, and `name` makes a direction of it. Weights decay (decoupled, times the
    rate), and the rate follows `make_schedule`.

    `init` and `update` are those of optax's transformations. Optimisers compare by value, so that programs compiled for
    equal settings are used again.

    Raises:
      ValueError: there is no such optimiser, or a value is out of its range.
    """

    # One of adam (or adamw: they differ only in `weight_decay`), lion, adafactor, muon or sgd.
    name: str = 'adamw'
    # The highest rate.
    lr: float = dataclasses.field(kw_only=True)
    # The share of the updates in which the rate rises to `lr`.
    warmup_ratio: float = 0.03
    # The last rate as a share of `lr`.
    min_ratio: float = 0.1
    # The way to the last rate: by a cosine, or by a straight line (linear).
    decay: Decay = 'cosine'
    # The decay of the first moment.
    b1: float = 0.9
    # The decay of the second moment.
    b2: float = 0.95
    # The decay of weights, see `decays` for the leaves that it acts on.
    weight_decay: float = 0.0
    # The largest global norm of a gradient; inf clips nothing.
    max_norm: float = 1.0
    # The updates of the run, see `over`.
    total_steps: int = derived(0)

    def __post_init__(self):
        for key, fits, bounds in (
            ('lr', self.lr >= 0, 'at least 0'),
            ('weight_decay', self.weight_decay >= 0, 'at least 0'),
            ('b1', 0 <= self.b1 < 1, 'in [0, 1)'),
            ('b2', 0 <= self.b2 < 1, 'in [0, 1)'),
            ('max_norm', self.max_norm > 0, 'above 0 (inf clips nothing)'),
        ):
            if not fits:
                raise ValueError(f'{key}={getattr(self, key)} must be {bounds}')
        # The schedule checks the other values.
        self._schedule(self.total_steps or 1)
        _direction(self.name, self.b1, self.b2)

    def over(self, total_steps: int) -> Optimizer:
        """A copy of the optimiser for a run of `total_steps` updates.

        Raises:
          ValueError: `total_steps` is below 1.
        """
        self._schedule(total_steps)
        return dataclasses.replace(self, total_steps=total_steps)

    def _schedule(self, total_steps: int) -> optax.Schedule:
        shape: Any = {'warmup_ratio': self.warmup_ratio, 'min_ratio': self.min_ratio, 'decay': self.decay}
        return make_schedule(lr=self.lr, total_steps=total_steps, **shape)

    @functools.cached_property
    def _chain(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(self.max_norm),
            _direction(self.name, self.b1, self.b2),
            optax.add_decayed_weights(self.weight_decay, mask=decays),
            optax.scale_by_learning_rate(self._schedule(self.total_steps)),
        )

    def rate(self, updates: int) -> float:
        """The rate of the update after so many others."""
        return float(np.asarray(self._schedule(self.total_steps)(updates)))

    def init(self, params: optax.Params) -> optax.OptState:
        """The state before the first update."""
        return self._chain.init(params)

    def update(
        self, grads: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        """The changes to add to the parameters, and the next state."""
        return self._chain.update(grads, state, params)


# A norm that no finite gradient exceeds. Checkpoints hold finite numbers alone.
UNCLIPPED = float(np.finfo(np.float32).max)


@optax.inject_hyperparams
def _adam(
    learning_rate: Any, beta1: Any, beta2: Any, eps: Any, weight_decay: Any, max_norm: Any
) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(max_norm),
        optax.scale_by_adam(beta1, beta2, eps),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


# AdamW (Loshchilov & Hutter 2019) whose numbers are arrays of its state, so that each step may have other ones and no
# program is compiled again; see `with_numbers`. All leaves decay.
ADAM = _adam(learning_rate=1e-4, beta1=0.9, beta2=0.95, eps=1e-12, weight_decay=0.0, max_norm=UNCLIPPED)


def with_numbers(state: Any, **numbers: float) -> Any:
    """The state of `ADAM` with other numbers for the next step.

    Raises:
      ValueError: there is no number of that name.
    """
    if unknown := sorted(numbers.keys() - state.hyperparams.keys()):
        raise ValueError(f'{unknown[0]} is no number of Adam; use {", ".join(state.hyperparams)}')
    # They stay where the numbers before are, so that no program is compiled again.
    arrays = {name: sharding.put(np.float32(x), state.hyperparams[name].sharding) for name, x in numbers.items()}
    return state._replace(hyperparams=state.hyperparams | arrays)


def make_schedule(
    *,
    lr: float,
    total_steps: int,
    warmup_ratio: float = 0.03,
    min_ratio: float = 0.1,
    decay: Decay = 'cosine',
    held: int = 0,
) -> optax.Schedule:
    """The rate as a function of the number of updates.

    It rises linearly to `lr` in `W = ceil(warmup_ratio * total_steps)` updates, of which the first has the rate
    `lr / W`, stays at `lr` for `held` updates, and falls to `min_ratio * lr` by a cosine or a straight line.
    """
    if total_steps < 1 or not 0.0 <= warmup_ratio < 1.0:
        raise ValueError(
            f'a schedule needs total_steps >= 1 and warmup_ratio in [0, 1), got {total_steps}, {warmup_ratio}'
        )
    warmup = min(math.ceil(warmup_ratio * total_steps), total_steps - 1)
    if decay not in get_args(Decay):
        raise ValueError(
            f'decay={decay!r} is unknown; give one of {", ".join(get_args(Decay))}; min_ratio=1 keeps the rate constant'
        )
    if decay == 'linear':
        parts = optax.linear_schedule(0.0, lr, warmup), optax.linear_schedule(lr, min_ratio * lr, total_steps - warmup)
        schedule = optax.join_schedules(parts, [warmup])
    else:
        schedule = optax.warmup_cosine_decay_schedule(0.0, lr, warmup, total_steps, end_value=min_ratio * lr)
    # While the rate rises an update has the rate that it rises to: from 0 the first one would learn nothing.
    # Between rise and fall the count stands still for `held` updates.
    return lambda count: schedule(jnp.maximum(jnp.minimum(count + 1, warmup), count - held))


def decays(params: optax.Params) -> Any:
    """A tree of bools, True for the leaves that decay. Norms and biases, recognised by their names, do not."""

    def is_weight(path: tuple[Any, ...], _: Any) -> bool:
        where = jax.tree_util.keystr(path)
        # The number of axes would not tell norms and biases, since the norm of a stack of layers has two.
        return 'norm' not in where and 'bias' not in where

    return jax.tree_util.tree_map_with_path(is_weight, params)


def _direction(name: str, b1: float, b2: float) -> optax.GradientTransformation:
    """The transformation of gradients that an optimiser's name stands for. Raises ValueError for another name."""
    match name:
        case 'adam' | 'adamw':
            return optax.scale_by_adam(b1, b2)
        case 'lion':
            return optax.scale_by_lion(b1, b2)
        case 'adafactor':
            return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
        case 'muon':
            return _muon(b1, b2)
        case 'sgd':
            return optax.identity()
    raise ValueError(f'unknown optimizer {name!r}; use one of adam, adamw, lion, adafactor, muon, sgd')


def _muon(b1: float, b2: float) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) on the matrices of the layers, and Adam on all other leaves, as its authors advise."""
    matrices = optax.chain(
        # A stack of layers is orthogonalised layer by layer.
        contrib.scale_by_muon(weight_dimension_numbers=_matrices),
        # Updates have the size of Adam's (Liu et al. 2025, section 2.2), so that one rate does for both.
        optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(_as_large_as_adam, updates)),
    )

    def labels(params: optax.Params) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, x: 'adam' if _matrix(path, x) is None else 'muon', params)

    return optax.partition({'muon': matrices, 'adam': optax.scale_by_adam(b1, b2)}, labels)


def _matrices(params: optax.Params) -> Any:
    return jax.tree_util.tree_map_with_path(_matrix, params)


def _matrix(path: tuple[Any, ...], x: Any) -> contrib.MuonDimensionNumbers | None:
    """The axes of a matrix's inputs and of its outputs in a stack of layers; None for any other leaf."""
    where = jax.tree_util.keystr(path)
    if 'layers' not in where or 'bias' in where or getattr(x, 'ndim', 0) < 3:
        return None
    # The output projection of attention has heads and their width as inputs.
    inputs = x.ndim - 2 if where.endswith("['o']") else 1
    return contrib.MuonDimensionNumbers(tuple(range(1, 1 + inputs)), tuple(range(1 + inputs, x.ndim)))


def _as_large_as_adam(path: tuple[Any, ...], update: Any) -> Any:
    """An orthogonalised update scaled to the size of Adam's (Liu et al. 2025, section 2.2)."""
    matrix: Any = _matrix(path, update)
    sides = [math.prod(update.shape[axis] for axis in axes) for axes in matrix]
    return 0.2 * math.sqrt(max(sides)) * update


def moment_axes(
    path: Sequence[str], shape: Sequence[int], axes: Sequence[str | None], moment: Sequence[int]
) -> tuple[str | None, ...]:
    """The logical axes of an array that an optimiser keeps for a parameter.

    Args:
      path: the names of the fields that lead to the array in the optimiser's state.
      shape, axes: those of the parameter.
      moment: the shape of the array.
    """
    # An array of the parameter's shape has the parameter's axes.
    if tuple(moment) == tuple(shape):
        return tuple(axes)
    # Adafactor factors the two largest axes.
    second, first = np.argsort(shape)[-2:].tolist() if len(shape) > 1 else (0, 0)
    summed_axis = first if 'v_row' in path else second if 'v_col' in path else None
    # A placeholder has no axes.
    if summed_axis is None or tuple(moment) != (*shape[:summed_axis], *shape[summed_axis + 1 :]):
        return ()
    # A factored moment of Adafactor (Shazeer & Stern 2018, section 3) has those axes that it is not summed over.
    return (*axes[:summed_axis], *axes[summed_axis + 1 :])
