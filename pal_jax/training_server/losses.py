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


class Datum(NamedTuple):
    """A sequence of `T` tokens and the inputs of its loss by name, each with a row a position."""

    tokens: np.ndarray
    inputs: Mapping[str, np.ndarray]


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


def _check_datum(datum: Datum, name: str, form: LossForm, vocab: int, max_len: int) -> None:
    needs, length = {'target_tokens', *form.needs}, len(datum.tokens)
    if missing := sorted(needs - datum.inputs.keys()):
        raise UserFault(f'loss_fn={name} needs the input {missing[0]!r}')
    if surplus := sorted(datum.inputs.keys() - needs - {*form.takes}):
        raise UserFault(f'loss_fn={name} takes no input {surplus[0]!r}; leave it out')
    if not 0 < length <= max_len:
        raise UserFault(f'model_input has {length} tokens; give 1 to {max_len}, the context of the model')
    for key, value in datum.inputs.items():
        if value.ndim != 1:
            raise UserFault(f'{key} has shape {value.shape}; several targets a position are not supported yet')
        if len(value) != length:
            raise UserFault(f'{key} has {len(value)} values, model_input {length} tokens; give one a position')
        # A comparison with NaN is False, so NaN is no finite number either.
        if not np.isfinite(value).all():
            raise UserFault(f'{key} has a value that is not finite at position {int(np.isfinite(value).argmin())}')
    for key, tokens in (('model_input', datum.tokens), ('target_tokens', datum.inputs['target_tokens'])):
        if tokens.dtype.kind != 'i' or tokens.min() < 0 or tokens.max() >= vocab:
            raise UserFault(f'{key} has to have token ids from 0 to {vocab - 1}')
