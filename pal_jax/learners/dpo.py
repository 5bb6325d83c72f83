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
from typing import get_args

import jax
from jaxtyping import Array, Float

from pal_jax.learners.actor import Actor, ActorState
from pal_jax.learners.training import any_of, floats
from pal_jax.objectives.dpo import PairLoss, preference, real_pairs
from pal_jax.types import Metrics, TokenBatch


@dataclasses.dataclass(frozen=True)
class DPO:
    """Hyper-parameters under the papers' names.

    Raises:
      ValueError: a value is unknown or out of its range.
    """

    loss: PairLoss = 'sigmoid'  # the loss of a pair
    beta: float = 0.1  # the strength of the pull towards the reference
    label_smoothing: float = 0.0  # the chance that a pair is the wrong way round; with 'sigmoid' alone
    reference_free: bool = False  # True: a reference that likes all answers alike

    def __post_init__(self):
        if self.loss not in get_args(PairLoss):
            raise ValueError(f'dpo.loss={self.loss!r}; use one of {", ".join(get_args(PairLoss))}')
        if self.beta <= 0:
            raise ValueError(f'dpo.beta={self.beta} must be above 0')
        if not 0 <= self.label_smoothing < 0.5 or (self.label_smoothing and self.loss != 'sigmoid'):
            raise ValueError(f"dpo.label_smoothing={self.label_smoothing} must be in [0, 0.5), and 0 unless 'sigmoid'")


@dataclasses.dataclass(frozen=True)
class PreferenceLearner:
    """Steps of an actor on batches whose neighbouring completions are pairs, the chosen one first.

    The actor keeps a reference unless the loss is free of one.
    """

    actor: Actor
    dpo: DPO

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
        return preference(logprobs, reference, acts, loss=dpo.loss, beta=dpo.beta, label_smoothing=dpo.label_smoothing)
