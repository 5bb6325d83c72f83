"""Past selves of a policy: copies of what it trains, which stay as they are and can be played against.

The first one is the policy before self-play, and stays. The others are replaced in turn, the oldest by the policy of
now.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array

from pal_jax.learners.ppo import PolicyLearner, PolicyState
from pal_jax.models.params import Params
from pal_jax.run.trained import TrainedModel


class Selves(struct.PyTreeNode):
    """A policy and its past selves, each as the parameters that the policy trains."""

    policy: PolicyState
    past: tuple[Params, ...] = ()

    @property
    def skipped(self) -> Array:
        return self.policy.skipped


@dataclasses.dataclass(frozen=True)
class Keeper:
    """Keeps past selves in the state of a run."""

    learner: PolicyLearner
    # Past selves that are kept.
    count: int
    # Steps of self-play between two of them.
    every: int
    # Steps before self-play.
    warmup: int

    def new(self, policy: PolicyState) -> Selves:
        """A state whose past selves are all the policy as it is."""
        return Selves(policy, tuple(copy_params(policy) for _ in range(self.count)))

    @functools.cached_property
    def abstract(self) -> Selves:
        """The shapes and shardings of a state."""
        policy = self.learner.abstract
        return Selves(policy, (policy.actor.model.params,) * self.count)

    def kept(self, state: Selves, i: int) -> Selves:
        """The state before step `i` of the run, where the policy of now has taken its place among past selves."""
        done = i - self.warmup
        if not self.count or done < 0 or done % self.every:
            return state
        # Self-play begins: the policy of the warm-up stands in every place until others have come.
        if done == 0:
            return self.new(state.policy)
        if self.count == 1:
            return state
        # Place 0 keeps the policy from before self-play; the others are filled in turn, the oldest first.
        # The place follows from the number of the step, so a resumed run keeps the same past selves.
        place = 1 + (done // self.every - 1) % (self.count - 1)
        past = tuple(copy_params(state.policy) if k == place else self_ for k, self_ in enumerate(state.past))
        return state.replace(past=past)

    def steps(self, i: int) -> list[int]:
        """The step of self-play that each past self is of, before step `i` of the run is made."""
        of = [0] * self.count
        for done in range(self.every, i - self.warmup, self.every):
            if self.count > 1:
                # Places are filled as in `kept`.
                of[1 + (done // self.every - 1) % (self.count - 1)] = done
        return of

    def weights(self, state: Selves, k: int) -> Params:
        """A past self as plain decoder weights."""
        actor = state.policy.actor
        then = actor.replace(model=actor.model.replace(params=state.past[k]))
        return self.learner.weights(state.policy.replace(actor=then))

    def trained(self, trained: TrainedModel) -> TrainedModel:
        """The export of the policy, out of a state with past selves."""
        nothing = jax.tree.map(lambda _: ..., self.abstract)
        return trained._replace(
            exports=lambda state: trained.exports(state.policy),
            exported=nothing.replace(policy=trained.exported),
            actor=lambda state: state.policy.actor,
        )


def copy_params(policy: PolicyState) -> Params:
    """The parameters that the policy trains, as arrays that an update of the policy leaves alone."""
    return jax.tree.map(jnp.copy, policy.actor.model.params)
