"""An actor that learns from pairs of completions (DPO and its relatives, see `objectives.dpo`).

    state, metrics = learner.prefer(state, batch)    # one step
    metrics = learner.compare(state, batch)[1]       # the same figures, and nothing learnt

A loss of whole completions needs their log-probs before any gradient can be made. They are computed first, by
micro-batches; the gradient by each log-prob is then a constant, and the update a weighted imitation with the
machinery of that.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pal_jax.learners.actor import Actor, ActorState
from pal_jax.learners.training import any_of, floats
from pal_jax.objectives.dpo import CompletionLoss, PairLoss, preference, real_pairs
from pal_jax.run import own
from pal_jax.types import Metrics, TokenBatch

# The parameters of a loss in a user's file: those that it has, and those that it may have.
LOSS_READS, LOSS_MAY_READ = ('chosen', 'rejected'), ('chosen_tokens', 'rejected_tokens', 'beta')


@dataclasses.dataclass(frozen=True)
class DPO:
    """Hyper-parameters under the papers' names.

    Raises:
      ValueError: a value is unknown or out of its range.
    """

    # The loss of a pair: sigmoid, hinge, ipo, or FILE.py:NAME, a function of yours (docs/howto/own_method.md).
    loss: str = 'sigmoid'
    beta: float = 0.1  # the strength of the pull towards the reference
    label_smoothing: float = 0.0  # the chance that a pair is the wrong way round; with 'sigmoid' alone
    reference_free: bool = False  # True: a reference that likes all answers alike

    def __post_init__(self):
        if self.loss not in get_args(PairLoss) and not own.is_own(self.loss):
            raise ValueError(f'dpo.loss={self.loss!r}; use one of {", ".join(get_args(PairLoss))}, or FILE.py:NAME')
        if self.beta <= 0:
            raise ValueError(f'dpo.beta={self.beta} must be above 0')
        if not 0 <= self.label_smoothing < 0.5 or (self.label_smoothing and self.loss != 'sigmoid'):
            raise ValueError(f"dpo.label_smoothing={self.label_smoothing} must be in [0, 0.5), and 0 unless 'sigmoid'")


def open_loss(dpo: DPO) -> PairLoss | CompletionLoss:
    """The loss that `dpo.loss` names: one of `PairLoss`, or a function of a user's file.

    Raises:
      ValueError: there is no such function, it takes other parameters, or it gives anything but a number a pair.
      RuntimeError: the function fails.
    """
    if not own.is_own(dpo.loss):
        return typing.cast(PairLoss, dpo.loss)
    call = own.load('dpo.loss', dpo.loss, *LOSS_READS, may=LOSS_MAY_READ)
    read = [name for name in (*LOSS_READS, *LOSS_MAY_READ) if own.takes(call, name)]

    def loss(*arrays: Array) -> Array:
        values = dict(zip((*LOSS_READS, *LOSS_MAY_READ), (*arrays, dpo.beta), strict=True))
        return call(**{name: values[name] for name in read})

    try:
        given = jax.eval_shape(loss, *[jax.ShapeDtypeStruct((3,), jnp.float32)] * 4)
    except RuntimeError as error:
        if isinstance(error.__cause__, jax.errors.TracerArrayConversionError | jax.errors.ConcretizationTypeError):
            raise ValueError(
                f'dpo.loss={dpo.loss!r} reads values while it is compiled: take functions of jax.numpy in place of '
                "numpy's, and jnp.where in place of `if`"
            ) from None
        raise
    if getattr(given, 'shape', None) != (3,) or given.dtype != jnp.float32:
        got = f'an array of {given.dtype}{list(given.shape)}' if hasattr(given, 'shape') else type(given).__name__
        mean = ': leave out the mean over pairs' if getattr(given, 'shape', None) == () else ''
        raise ValueError(f'dpo.loss={dpo.loss!r} must return a float for each pair, got {got} for 3 pairs{mean}')
    return loss


@dataclasses.dataclass(frozen=True)
class PreferenceLearner:
    """Steps of an actor on batches whose neighbouring completions are pairs, the chosen one first.

    The actor keeps a reference unless the loss is free of one. `loss` is that of `open_loss`.
    """

    actor: Actor
    dpo: DPO
    loss: PairLoss | CompletionLoss

    def prefer(self, state: ActorState, batch: TokenBatch) -> tuple[ActorState, Metrics]:
        """One step on the mean loss of the pairs; a batch without pairs makes no step and has no figures."""
        if not any_of(real_pairs(batch.acts)):
            return state, {}
        # 1. The loss and its gradient by each log-probability, a constant from here on.
        gradient, metrics = self.compare(state, batch)
        # 2. A weighted imitation has the same gradient by the weights: d loss / d logprob, times d logprob / d weights.
        state, _, norm = self.actor.imitate_weighted(state, batch, -gradient)
        return state, metrics | floats({'grad_norm': norm}) | {'lr': self.actor.rate(state, self.actor.imitation)}

    def compare(self, state: ActorState, batch: TokenBatch) -> tuple[Float[Array, 'R N A'], Metrics]:
        """The gradient of the mean loss by each log-probability, and the figures of `objectives.dpo.preference`."""
        # 1. The log-probabilities of chosen and rejected completions under the actor.
        logprobs = self.actor.logprobs(state.whole, batch)
        free = self.dpo.reference_free
        # 2. The same under the reference, which an adapted actor has in its own base.
        reference = None if free else self.actor.logprobs(self.actor.reference(state), batch)
        # 3. The loss of the pairs by the two margins, differentiated by the actor's log-probabilities.
        gradient, metrics = self._preference(logprobs, reference, batch.acts)
        return gradient, floats(metrics)

    @functools.partial(jax.jit, static_argnums=0)
    def _preference(self, logprobs: Array, reference: Array | None, acts: Array) -> tuple[Array, dict[str, Array]]:
        dpo = self.dpo
        return preference(logprobs, reference, acts, loss=self.loss, beta=dpo.beta, label_smoothing=dpo.label_smoothing)
