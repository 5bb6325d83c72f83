"""The losses that a client names: sums over positions and data, without a mean.

With `lp` the log-probability of a target, `q` that of the sampler (`logprobs`), `A` the advantage (`advantages`) and
`r = exp(lp - q)`, the public documentation of the interface has the losses of the functions below. Lengths, names and
values of all inputs are checked first, so a fault in one datum spoils no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pal_jax.objectives import corrections
from pal_jax.objectives.corrections import SampledToken
from pal_jax.objectives.masked import keep
from pal_jax.objectives.policy import TokenLoss
from pal_jax.training_server.futures import UserFault

# The target of a position that has fewer than others.
NO_TARGET = -1


class Datum(NamedTuple):
    """A sequence of `T` tokens and the inputs of its loss by name, each with a row a position.

    A position has one target, or `K` of them with a weight each.
    """

    tokens: np.ndarray
    inputs: Mapping[str, np.ndarray]

    @property
    def targets(self) -> np.ndarray:
        """The targets, [T, K]."""
        return self.inputs['target_tokens'].reshape(len(self.tokens), -1)


class LossInputs(NamedTuple):
    """The inputs of a token loss, arrays of one shape; those that a loss does not read are None.

    `weight` is a token's weight or advantage, `old` the log-probability `q`. `low` and `high` are thresholds of a
    ratio, `beta` the weight of a penalty, and `sequence` the mean of `lp - q` over a sequence. `kind` is the place of
    the token's loss in `LOSSES`, -1 for a token without one.
    """

    weight: Any
    old: Any = None
    low: Any = None
    high: Any = None
    beta: Any = None
    sequence: Any = None
    kind: Any = None


def cross_entropy(lp: Float[Array, '*S'], x: LossInputs) -> Float[Array, '*S']:
    """`-w lp`."""
    return -x.weight * lp


def importance_sampling(lp: Float[Array, '*S'], x: LossInputs) -> Float[Array, '*S']:
    """`-r A`."""
    return -jnp.exp(lp - x.old) * x.weight


def ppo(lp: Float[Array, '*S'], x: LossInputs) -> Float[Array, '*S']:
    """`-min(r A, clip(r, low, high) A)`."""
    ratio = jnp.exp(lp - x.old)
    return -jnp.minimum(ratio * x.weight, jnp.clip(ratio, x.low, x.high) * x.weight)


def cispo(lp: Float[Array, '*S'], x: LossInputs) -> Float[Array, '*S']:
    """`-clip(r, low, high) lp A`, where no gradient flows through the ratio."""
    return corrections.cispo(lp, lp, _token(x), (x.low, x.high))


def gspo(lp: Float[Array, '*S'], x: LossInputs) -> Float[Array, '*S']:
    """The loss of `ppo`, with the geometric mean of a sequence's ratios as the ratio of each of its tokens."""
    return corrections.gspo(lp, lp, _token(x), (x.low, x.high))


def dro(lp: Float[Array, '*S'], x: LossInputs) -> Float[Array, '*S']:
    """`-(lp A - beta (lp - q)^2 / 2)`."""
    return -(lp * x.weight - 0.5 * x.beta * jnp.square(lp - x.old))


def _token(x: LossInputs) -> SampledToken:
    return SampledToken(x.old, x.old, x.weight, x.sequence)


class LossForm(NamedTuple):
    """A loss, the inputs that a datum must and may have beside `target_tokens`, and its settings with their defaults.

    A default of None stands for a setting that has to be given: the hosted default is not published.
    """

    loss: TokenLoss[LossInputs]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    settings: Mapping[str, float | None] = {}


def _clips(low: float | None, high: float | None) -> dict[str, float | None]:
    return {'clip_low_threshold': low, 'clip_high_threshold': high}


_SAMPLED = 'logprobs', 'advantages'
LOSSES = {
    'cross_entropy': LossForm(cross_entropy, takes=('weights',)),
    'importance_sampling': LossForm(importance_sampling, _SAMPLED),
    'ppo': LossForm(ppo, _SAMPLED, settings=_clips(0.8, 1.2)),
    'cispo': LossForm(cispo, _SAMPLED, settings=_clips(0.0, 4.0)),
    'gspo': LossForm(gspo, (*_SAMPLED, 'sequence_ratio_mask'), settings=_clips(None, None)),
    'dro': LossForm(dro, _SAMPLED, settings={'beta': None}),
}


def any_loss(lp: Float[Array, '*S'], x: LossInputs) -> Float[Array, '*S']:
    """The loss of each token by its own kind, 0 for a token without one."""
    total = jnp.zeros_like(lp)
    for kind, form in enumerate(LOSSES.values()):
        chosen = x.kind == kind
        # Another kind's ratio may overflow here, and its gradient would be NaN.
        kept_lp, kept = jax.tree.map(lambda y, chosen=chosen: keep(y, chosen), (lp, x._replace(kind=None)))
        total += keep(form.loss(kept_lp, kept), chosen)
    return total


def form_of(name: str, given: Mapping[str, float | str]) -> tuple[LossForm, dict[str, float]]:
    """The loss of that name and its settings.

    Raises:
      UserFault: there is no such loss, or a setting is unknown, missing or no finite number.
    """
    if name not in LOSSES:
        raise UserFault(f'loss_fn={name!r} is not published; pass one of {", ".join(LOSSES)}')
    form = LOSSES[name]
    if unknown := sorted(given.keys() - form.settings.keys()):
        known = ', '.join(form.settings) or 'none'
        raise UserFault(f'loss_fn_config of {name} has {unknown[0]!r}; its settings are: {known}')
    settings = dict(form.settings) | dict(given)
    for key, value in settings.items():
        if not isinstance(value, float) or not np.isfinite(value):
            raise UserFault(f'loss_fn_config of {name} has {key}={value!r}; give a finite number')
    return form, {key: float(value) for key, value in settings.items() if value is not None}


def check(data: Sequence[Datum], name: str, form: LossForm, vocab: int, max_len: int) -> None:
    """Raise UserFault where a datum does not fit the loss or the model. The message names the datum and the input."""
    if not data:
        raise UserFault('data is empty; send one or more data')
    for place, datum in enumerate(data):
        try:
            _check_datum(datum, name, form, vocab, max_len)
        except UserFault as fault:
            raise UserFault(f'data[{place}]: {fault}') from None
        # The interface has one shape for the log-probabilities of all data.
        if (shape := datum.inputs['target_tokens'].shape[1:]) != (first := data[0].inputs['target_tokens'].shape[1:]):
            raise UserFault(
                f'data[{place}]: target_tokens has {shape} targets a position, data[0] {first}; give as many'
            )


def _check_datum(datum: Datum, name: str, form: LossForm, vocab: int, max_len: int) -> None:
    needs, length = {'target_tokens', *form.needs}, len(datum.tokens)
    if missing := sorted(needs - datum.inputs.keys()):
        raise UserFault(f'loss_fn={name} needs the input {missing[0]!r}')
    if surplus := sorted(datum.inputs.keys() - needs - {*form.takes}):
        raise UserFault(f'loss_fn={name} takes no input {surplus[0]!r}; leave it out')
    if not 0 < length <= max_len:
        raise UserFault(f'model_input has {length} tokens; give 1 to {max_len}, the context of the model')
    _check_shapes(datum.inputs, name)
    for key, value in datum.inputs.items():
        if len(value) != length:
            raise UserFault(f'{key} has {len(value)} values, model_input {length} tokens; give one a position')
        # A comparison with NaN is False, so NaN is no finite number either.
        if not np.isfinite(value).all():
            raise UserFault(f'{key} has a value that is not finite at position {int(np.isfinite(value).argmin())}')
    least = NO_TARGET if datum.inputs['target_tokens'].ndim == 2 else 0
    for key, tokens, first in (('model_input', datum.tokens, 0), ('target_tokens', datum.targets, least)):
        if tokens.dtype.kind != 'i' or tokens.min() < first or tokens.max() >= vocab:
            raise UserFault(f'{key} has to have token ids from {first} to {vocab - 1}')


def _check_shapes(inputs: Mapping[str, np.ndarray], name: str) -> None:
    """Raise UserFault where inputs have another shape than one number a position, or one for each target."""
    shape = inputs['target_tokens'].shape
    for key, value in inputs.items():
        if len(shape) == 2 and name != 'cross_entropy':
            raise UserFault(f'target_tokens has shape {shape}; loss_fn={name} has one target a position')
        if value.ndim != len(shape) or value.shape[1:] != shape[1:] or value.ndim not in (1, 2) or 0 in shape[1:]:
            raise UserFault(f'{key} has shape {value.shape}, target_tokens {shape}; give a number for each target')
