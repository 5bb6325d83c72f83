"""The questions of a policy's step to its constraint handler, on a language model (`recipes/safe_rlhf/rl.py`) and on
arrays (`learners/array_ppo.py`). The handlers are in `objectives/constraints.py`.

    state = handler.init(groups)                             # before the first rollout
    state = updated(handler, state, costs, limits, present)  # once a rollout, before the policy's step
    weights = handler.weigh(state, shares)                   # what rewards and costs count in the advantages

`costs` and `limits` are numbers by group of prompts: the mean cost of a sample, and what it may be. Without groups
there is one. A state is a dict of lists of floats, which a checkpoint keeps; `lambda` is the multiplier of each group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float

from pal_jax.objectives.advantages import ChannelWeights
from pal_jax.objectives.policy import ClippedSurrogate, TokenLoss

State = dict[str, list[float]]
ByGroup = Float[np.ndarray, ' G']


class SecondUpdate(NamedTuple):
    """An update of the policy after the first one: the weights of its advantages, and the loss of a token, whose
    `reference` is the policy that the first update has made."""

    weights: ChannelWeights
    loss: TokenLoss


@dataclasses.dataclass(frozen=True)
class Handler:
    """The answers of a handler to a step. By default costs are measured, and weigh what `lambda` says."""

    # Why the handler has no place: on a language model, on arrays, or where groups of prompts have limits of their own.
    refused_on_text: ClassVar[str] = ''
    refused_on_arrays: ClassVar[str] = ''
    refused_with_groups: ClassVar[str] = ''
    # True where the handler does something else at another limit.
    reads_limit: ClassVar[bool] = True
    # `token_loss` reads the costs' advantages beside the mixed ones, as `before` makes them of a minibatch. Their mean
    # is 0, and no KL is added to them.
    costs_apart: ClassVar[bool] = False
    # True where the policy reads its budget behind the prompt.
    tells_budget: ClassVar[bool] = False
    # True where an answer ends with the first sentence at which it costs more than the limit.
    cuts_answers: ClassVar[bool] = False

    def init(self, groups: int) -> State:
        """The state before the first rollout: `lambda` is `lam_init` where the handler has one, else 0."""
        return {'lambda': [getattr(self, 'lam_init', 0.0)] * groups}

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        """The state after a rollout in which every group had costs."""
        return state

    def weigh(self, state: State, shares: ByGroup | Sequence[float] = (1.0,)) -> ChannelWeights:
        """The weights of the next update, of which each group has such a share of samples.

        A Lagrangian's are `(A_r - lambda_g A_c) / (1 + sum of shares_g lambda_g)`.
        """
        # The divisor keeps the weight of a KL term that is taken off rewards and added to costs independent of lambda
        # (Safe RLHF, arXiv 2310.12773). It is the same in all groups, which share the policy: with one of its own a
        # constrained group would learn less of its rewards.
        multipliers = np.array(state['lambda'], float)
        return ChannelWeights(1.0, multipliers, 1.0 + float(np.dot(multipliers, shares)))

    def count(self, costs: np.ndarray, limits: np.ndarray, n: int) -> np.ndarray:
        """The costs of samples as they count, `[B]`; the `n` samples of a prompt stand side by side."""
        return costs

    def budget(self, limits: np.ndarray) -> np.ndarray:
        """The budget of each prompt of a step, from their limits."""
        return limits

    def pay(self, rewards: np.ndarray, costs: np.ndarray, budgets: np.ndarray) -> np.ndarray:
        """The rewards that the policy learns from, of samples with such costs and budgets."""
        return rewards

    def token_loss(self, surrogate: ClippedSurrogate) -> TokenLoss:
        """The loss of a token in the first update, in place of PPO's."""
        return surrogate

    def before(self, cost: Array, ratio: Array, weight: Array, excess: float | Array) -> Array:
        """The costs of a minibatch before its step, where `costs_apart`: arrays by action, of any one shape.

        `cost` are advantages of the cost, `ratio` is the new policy's probability over the old one's, `weight` what an
        action counts in the loss. `excess` is the mean cost less its limit, over the mean length.
        """
        return cost

    def second_update(self, state: State) -> SecondUpdate | None:
        """A second update of the policy by the same rollout, if there is one; its loss is the same in every state."""
        return None

    @property
    def trust_region(self) -> Any:
        """A `constraints.TrustRegion` within which the policy makes a step of second order, in place of both updates;
        None: there is none."""
        return None

    @property
    def reads_excess(self) -> bool:
        """True where the update reads `excess` of the state, the mean cost less its limit, which `updated` keeps."""
        return self.costs_apart or self.trust_region is not None

    @property
    def own_update(self) -> bool:
        """True where the update of the policy is another one than PPO's of the advantages that `weigh` mixes."""
        plain, second = ClippedSurrogate(), self.second_update(self.init(1))
        return self.token_loss(plain) != plain or second is not None or self.reads_excess


def updated(handler: Handler, state: State, costs: ByGroup, limits: ByGroup, present: Bool[np.ndarray, ' G']) -> State:
    """The handler's state after a rollout in which the groups `present` had costs.

    Of the others everything stays as it was, sums and rises included.
    """
    if not present.any():
        return state
    table = {key: np.reshape(values, (-1, len(present))) for key, values in state.items()}
    # A multiplier that moves on old costs is wound up by the time that its group comes back, and one without any costs
    # has no reason to move.
    had = {key: rows[:, present].ravel().tolist() for key, rows in table.items()}
    after = {}
    new = handler.update(had, costs[present], limits[present])
    # How far the limit is passed is kept for the rollouts in which no group has costs.
    new |= {'excess': (costs - limits)[present].tolist()} if handler.reads_excess else {}
    for key, values in new.items():
        rows = np.reshape(values, (-1, present.sum()))
        old = table.get(key, np.zeros((0, len(present)))).astype(float)
        # A record of past rollouts gets longer at first; 0 stands there for those before the first.
        after[key] = np.pad(old, ((len(rows) - len(old), 0), (0, 0)))
        after[key][:, present] = rows
    return {key: rows.ravel().tolist() for key, rows in after.items()}
