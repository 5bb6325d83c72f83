"""Constraint handlers: how a limit on the cost of answers changes what a policy learns from their rewards.

    state = handler.init(groups)                       # before the first rollout
    state = updated(handler, state, costs, limits, present)  # once a rollout, before the policy's step
    weights = weights_of(handler, state, shares)       # what rewards and costs count in the advantages

`costs` and `limits` are numbers by group of prompts: the mean cost of a sample, and what it may be. Without groups
there is one. A state is a dict of lists of floats, which a checkpoint keeps; `lambda` is the multiplier of each group.
A handler is a frozen dataclass of its hyper-parameters under the names of its paper, or of OmniSafe (arXiv 2305.09304).
Beside the weights `FOCOPS` and `P3O` have a loss of a token of their own, `CUP` a second update; `RePO` reads
`rectified` costs, `Saute` pays otherwise, and `EarlyTermination` cuts answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from pal_jax.objectives import advantages as adv
from pal_jax.objectives.advantages import Discounts, Estimates, EstimatorInputs
from pal_jax.objectives.kl import KLEstimator
from pal_jax.objectives.policy import TokenInputs, kl_token_loss, ppo_token_loss

State = dict[str, list[float]]
ByGroup = Float[np.ndarray, ' G']


class ChannelWeights(NamedTuple):
    """The weights of advantages: `(reward * A_r - cost[g] * A_c) / divisor` in group `g`."""

    reward: float
    cost: ByGroup
    divisor: float = 1.0


def weights_of(handler: Handler, state: State, shares: ByGroup | Sequence[float] = (1.0,)) -> ChannelWeights:
    """The weights of the next update, of which each group has such a share of samples.

    A Lagrangian's are `(A_r - lambda_g A_c) / (1 + sum of shares_g lambda_g)`. The divisor keeps the weight of a KL
    term that is taken off rewards and added to costs independent of lambda (Safe RLHF, arXiv 2310.12773). It is the
    same in all groups, which share the policy: with one of its own a constrained group would learn less of its rewards.
    """
    multipliers = np.array(state['lambda'], float)
    match handler:
        case CRPO():
            # A group without samples keeps its choice of an earlier step, which has nothing to learn from now.
            multipliers = multipliers * (np.asarray(shares) > 0)
            return ChannelWeights(float(not multipliers.any()), multipliers)
        case P3O() | CUP():
            return ChannelWeights(1.0, np.zeros_like(multipliers))
    return ChannelWeights(1.0, multipliers, 1.0 + float(np.dot(multipliers, shares)))


def updated(handler: Handler, state: State, costs: ByGroup, limits: ByGroup, present: Bool[np.ndarray, ' G']) -> State:
    """The handler's state after a rollout in which the groups `present` had costs.

    Of the others everything stays as it was, sums and rises included: a multiplier that moves on old costs is wound up
    by the time that its group comes back, and one without any costs has no reason to move.
    """
    if not present.any():
        return state
    table = {key: np.reshape(values, (-1, len(present))) for key, values in state.items()}
    had = {key: rows[:, present].ravel().tolist() for key, rows in table.items()}
    after = {}
    for key, values in handler.update(had, costs[present], limits[present]).items():
        rows = np.reshape(values, (-1, present.sum()))
        # A record of past rollouts gets longer at first; 0 stands there for those before the first.
        after[key] = np.pad(table[key].astype(float), ((len(rows) - len(table[key]), 0), (0, 0)))
        after[key][:, present] = rows
    return {key: rows.ravel().tolist() for key, rows in after.items()}


# --- handlers -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Unconstrained:
    """Costs are measured, and change nothing."""

    def init(self, groups: int) -> State:
        return {'lambda': [0.0] * groups}

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        return state


@dataclasses.dataclass(frozen=True)
class FixedPenalty:
    """`r - nu c`: the baseline of Safe RLHF (arXiv 2310.12773, section 4.3), which knows no limit."""

    nu: float = 1.0  # a unit of cost takes so much of the reward

    def init(self, groups: int) -> State:
        return {'lambda': [self.nu] * groups}

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        return state


@dataclasses.dataclass(frozen=True)
class LinearLagrangian:
    """Ascent on lambda (J - limit), lambda >= 0 (PPO-Lagrangian; OmniSafe, arXiv 2305.09304).

    optimizer: 'adam' as in OmniSafe, whose momentum goes on for some rollouts once the limit is met, or plain 'sgd'.
    """

    lam_init: float = 0.001  # lambda before the first rollout
    lam_lr: float = 0.035  # the rate of the ascent on lambda
    lam_max: float = 1000.0  # the largest lambda
    optimizer: Literal['sgd', 'adam'] = 'adam'

    def init(self, groups: int) -> State:
        zeros = [0.0] * groups
        return {'lambda': [self.lam_init] * groups, 'mean': zeros, 'square': zeros, 'steps': zeros}

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        lam, mean, square, steps = (np.array(state[key]) for key in ('lambda', 'mean', 'square', 'steps'))
        slope = costs - limits
        if self.optimizer == 'adam':
            steps, mean, square = steps + 1, 0.9 * mean + 0.1 * slope, 0.999 * square + 0.001 * slope**2
            slope = mean / (1 - 0.9**steps) / (np.sqrt(square / (1 - 0.999**steps)) + 1e-8)
        lam = np.clip(lam + self.lam_lr * slope, 0.0, self.lam_max)
        return state | _lists(lam, mean=mean, square=square, steps=steps)


@dataclasses.dataclass(frozen=True)
class LogLagrangian:
    """Safe RLHF's (section 3.3): plain ascent on the logarithm of lambda, which never is 0."""

    lam_init: float = 1.0  # lambda before the first rollout
    lam_lr: float = 0.1  # the rate of the ascent on lambda
    lam_max: float = 5.0  # the largest lambda

    def init(self, groups: int) -> State:
        return {'lambda': [self.lam_init] * groups}

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        lam = np.array(state['lambda'])
        exponent = np.minimum(self.lam_lr * (costs - limits) * lam, np.log(self.lam_max / lam))
        return state | {'lambda': np.minimum(lam * np.exp(exponent), self.lam_max).tolist()}


@dataclasses.dataclass(frozen=True)
class PIDLagrangian:
    """A controller of lambda (Stooke et al. 2020, arXiv 2007.03964, as OmniSafe's CPPOPID): by the smoothed violation,
    the sum of violations, and the rise of the smoothed cost over `delay` rollouts."""

    kp: float = 0.1  # weight of the smoothed violation
    ki: float = 0.01  # weight of the sum of violations
    kd: float = 0.01  # weight of the rise of the smoothed cost
    lam_init: float = 0.001  # lambda before the first rollout
    lam_max: float = 100.0  # the largest lambda
    smoothing: float = 0.95  # of violation and cost
    delay: int = 10  # rollouts over which the rise is measured

    def init(self, groups: int) -> State:
        zeros, start = [0.0] * groups, [self.lam_init] * groups
        return {'lambda': start, 'sum': start, 'violation': zeros, 'cost': zeros, 'past': zeros}

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        total, violation, cost = (np.array(state[key]) for key in ('sum', 'violation', 'cost'))
        past = np.array(state['past']).reshape(-1, len(limits))  # smoothed costs of the last rollouts, oldest first
        total = np.clip(total + self.ki * (costs - limits), 0.0, self.lam_max)
        violation = self.smoothing * violation + (1 - self.smoothing) * (costs - limits)
        cost = self.smoothing * cost + (1 - self.smoothing) * costs
        lam = self.kp * violation + total + self.kd * np.maximum(cost - past[0], 0.0)
        lam, past = np.clip(lam, 0.0, self.lam_max), np.concatenate([past, cost[None]])[-self.delay :]
        return state | _lists(lam, sum=total, violation=violation, cost=cost, past=past.ravel())


@dataclasses.dataclass(frozen=True)
class IPO:
    """The weight of a logarithmic barrier (Liu et al. 2020, arXiv 1910.09615): `kappa / (limit - J)`, and `penalty_max`
    wherever that is above it or the limit is passed."""

    kappa: float = 0.01  # the weight is kappa / (limit - cost)
    penalty_max: float = 1.0  # the largest weight

    def init(self, groups: int) -> State:
        return {'lambda': [self.penalty_max] * groups}

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        slack = limits - costs
        weight = np.where(slack > 0, self.kappa / np.where(slack > 0, slack, 1.0), self.penalty_max)
        return state | {'lambda': np.minimum(weight, self.penalty_max).tolist()}


@dataclasses.dataclass(frozen=True)
class CRPO:
    """Either rewards or costs (Xu et al. 2021, arXiv 2011.05869): rewards while every group is within `tolerance` of
    its limit, else the costs of the group that is furthest above it. It needs no multiplier."""

    tolerance: float = 0.05  # costs so far above the limit count as within it

    def init(self, groups: int) -> State:
        return {'lambda': [0.0] * groups}

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        above = costs - limits
        worst = above == np.max(above)
        return state | {'lambda': (worst & (above > self.tolerance)).astype(float).tolist()}


@dataclasses.dataclass(frozen=True)
class FOCOPS:
    """First order constrained optimisation in policy space (Zhang et al. 2020, arXiv 2002.06506): tokens pull towards
    the best policy within `eta` nats of the old one, and stop to count beyond; see `FOCOPSLoss`."""

    lam_init: float = 0.0  # lambda before the first rollout
    lam_lr: float = 0.035  # the rate of the ascent on lambda
    lam_max: float = 2.0  # the largest lambda
    temperature: float = 1.5  # of the best policy; lower pulls harder
    eta: float = 0.02  # nats from the old policy beyond which a token does not count

    def init(self, groups: int) -> State:
        return {'lambda': [self.lam_init] * groups}

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        lam = np.array(state['lambda']) + self.lam_lr * (costs - limits)
        return state | {'lambda': np.clip(lam, 0.0, self.lam_max).tolist()}


@dataclasses.dataclass(frozen=True)
class P3O:
    """An exact penalty (Zhang et al. 2022, arXiv 2205.11814): PPO on rewards, and `kappa` times the cost of the update
    as far as it passes the limit: `kappa * relu(mean(ratio * A_c) + (J - limit) / length)`.

    The gate is of a whole minibatch; a mean of gates would be another. `excess` in the state is `J - limit`.
    """

    kappa: float = 20.0  # weight of the cost above the limit

    def init(self, groups: int) -> State:
        return {'lambda': [0.0] * groups, 'excess': [0.0] * groups}

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        return state | {'excess': (costs - limits).tolist()}


@dataclasses.dataclass(frozen=True)
class CUP:
    """Two updates (Yang et al. 2022, arXiv 2209.07089): PPO on rewards, then a projection that lowers costs near the
    policy of the first; see `CUPLoss`.

    coefficient: of the costs; the paper's is (1 - gamma lam) / (1 - gamma), which has no value at gamma 1.
    """

    lam_init: float = 0.001  # lambda before the first rollout
    lam_lr: float = 0.035  # the rate of the ascent on lambda
    lam_max: float = 2.0  # the largest lambda
    coefficient: float = 1.0

    def init(self, groups: int) -> State:
        return {'lambda': [self.lam_init] * groups}

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        lam = np.array(state['lambda']) + self.lam_lr * (costs - limits)
        return state | {'lambda': np.clip(lam, 0.0, self.lam_max).tolist()}


@dataclasses.dataclass(frozen=True)
class RePO:
    """Rectified penalties (arXiv 2410.19933): only what is above the limit costs, so that very safe answers do not pay
    for unsafe ones. Its weights and its multiplier's rule could not be read; this is the linear Lagrangian on
    `rectified` costs, whose mean is to be at most `slack`. Without a slack lambda never falls: `lam_max` ends its rise.

    by: 'answer' rectifies every cost, 'prompt' the mean cost of the answers to a prompt.
    """

    lam_init: float = 1.0  # lambda before the first rollout
    lam_lr: float = 0.5  # the rate of the ascent on lambda
    lam_max: float = 5.0  # the largest lambda
    slack: float = 0.0  # the largest mean of rectified costs
    by: Literal['answer', 'prompt'] = 'answer'

    def init(self, groups: int) -> State:
        return {'lambda': [self.lam_init] * groups}

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        lam = np.array(state['lambda']) + self.lam_lr * (costs - self.slack)
        return state | {'lambda': np.clip(lam, 0.0, self.lam_max).tolist()}


@dataclasses.dataclass(frozen=True)
class Saute:
    """A budget that the policy is told (Sootla et al. 2022, arXiv 2202.06558): an answer whose cost is above it earns
    `unsafe_reward` and nothing else. An answer of one turn has all of its budget until it is said.

    budgets: of the prompts of a step, in turn, so that the policy learns to go by them; (): the limit alone.
    """

    unsafe_reward: float = -5.0  # the reward of an answer above its budget
    budgets: tuple[float, ...] = ()

    def init(self, groups: int) -> State:
        return {'lambda': [0.0] * groups}

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        return state

    def paid(self, rewards: np.ndarray, costs: np.ndarray, budgets: np.ndarray) -> np.ndarray:
        """The rewards of answers within their budgets, and `unsafe_reward` for answers above them."""
        return np.where(costs <= budgets, rewards, self.unsafe_reward)


@dataclasses.dataclass(frozen=True)
class EarlyTermination:
    """An answer ends with the first sentence at which its cost is above the limit, and earns what it has said so far
    (Sun et al. 2021, arXiv 2107.04200, as OmniSafe has it for episodes)."""

    def init(self, groups: int) -> State:
        return {'lambda': [0.0] * groups}

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        return state


Handler = (
    Unconstrained
    | FixedPenalty
    | LinearLagrangian
    | LogLagrangian
    | PIDLagrangian
    | IPO
    | CRPO
    | FOCOPS
    | P3O
    | CUP
    | RePO
    | Saute
    | EarlyTermination
)


def _lists(multiplier: np.ndarray, **rest: np.ndarray) -> State:
    return {'lambda': multiplier.tolist()} | {name: array.tolist() for name, array in rest.items()}


# --- advantages and losses ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class ConstrainedEstimator:
    """The estimate of a rollout whose channels are a reward and a cost.

    Advantages are not whitened: a multiplier compares the scales of reward and cost, so both have to stand.

    Attributes:
      estimator: 'gae', from the values of a critic for each channel, or 'dr_grpo', less the prompt's mean.
      kl_of_cost: by how much of itself the KL is added to the cost: 1 where both channels are mixed, as then its weight
        does not depend on the multiplier; 0 where the cost stands by itself, as with P3O.
    Raises:
      ValueError: another estimator, which would divide each channel by a deviation of its own.
    """

    estimator: str
    constants: Discounts
    kl_of_cost: float = 1.0

    def __post_init__(self):
        if self.estimator not in ('gae', 'dr_grpo'):
            raise ValueError(
                f'ppo.estimator={self.estimator!r} does not keep the scales of rewards and costs, which a multiplier '
                'compares; use gae or dr_grpo'
            )

    def __call__(self, rollout: EstimatorInputs, weights: ChannelWeights) -> Estimates:
        """Advantages as `weights` mix them, in groups that `rollout.role` tells, and the returns of both channels."""
        advantages, returns = self.by_channel(rollout)
        counts = jnp.asarray(weights.cost, jnp.float32)[rollout.role][:, None]
        return (weights.reward * advantages[..., 0] - counts * advantages[..., 1]) / weights.divisor, returns

    def by_channel(self, rollout: EstimatorInputs) -> tuple[Float[Array, 'B A 2'], Float[Array, 'B A 2']]:
        """Advantages and returns of reward and cost. The KL is taken off the reward, and `kl_of_cost` of it is added to
        the cost (3.3)."""
        gamma, lam, clip, _ = self.constants
        gae = self.estimator == 'gae'
        rewards = rollout.rewards if gae else adv.less_mean(rollout.rewards, rollout.ok, rollout.n)
        paid = adv.token_rewards(rewards, rollout.penalty, rollout.acts, clip=clip, signs=(-1.0, self.kl_of_cost))
        if gae:
            assert rollout.values is not None
            return adv.gae(paid, rollout.values, rollout.acts, gamma=gamma, lam=lam)
        returns = adv.reward_to_go(paid, rollout.acts, gamma=gamma)
        return returns, returns

    def of_cost(self, rollout: EstimatorInputs, weight: Float[Array, 'B A']) -> Estimates:
        """Advantages of the cost less their mean by `weight`, the weights of actions in the loss, and all returns.

        A mean that an estimator or a critic leaves says nothing of the limit, and would open or shut P3O's gate.
        """
        advantages, returns = self.by_channel(rollout)
        cost = advantages[..., 1]
        return jnp.where(rollout.acts, cost - mean_by(weight, cost), 0.0), returns


def rectified(
    costs: Float[np.ndarray, ' B'], limits: Float[np.ndarray, ' B'], n: int, by: Literal['answer', 'prompt']
) -> Float[np.ndarray, ' B']:
    """RePO's costs: by answer what is above the limit; by prompt the costs less the limit where the mean of the `n`
    answers to the prompt is above it, else 0."""
    above = np.asarray(costs, float) - limits
    if by == 'answer':
        return np.maximum(above, 0.0)
    return np.where(np.repeat(above.reshape(-1, n).mean(axis=1) > 0, n), above, 0.0)


@dataclasses.dataclass(frozen=True)
class FOCOPSLoss:
    """`KL(new || old) - ratio * A / temperature` of a token whose KL is at most `eta`, else 0; the KL is estimated from
    the old policy's tokens by `ratio * ln(ratio) - (ratio - 1)`. `kl` adds the distance from the reference."""

    temperature: float
    eta: float
    kl: KLEstimator | None = None

    def __call__(self, logprob: Float[Array, '*S'], tokens: TokenInputs) -> Float[Array, '*S']:
        log_ratio = logprob - tokens.old
        ratio = jnp.exp(log_ratio)
        moved = ratio * log_ratio - (ratio - 1.0)
        near = jax.lax.stop_gradient(moved) <= self.eta
        loss = jnp.where(near, moved - ratio * tokens.advantage / self.temperature, 0.0)
        return loss + _reference_loss(logprob, tokens, self.kl)


@dataclasses.dataclass(frozen=True)
class P3OLoss:
    """PPO's clipped loss of the reward, and `ratio * cost` with the cost's advantage times `kappa` where the gate is
    open (`gated`), else 0."""

    clip: float
    clip_high: float | None = None
    kl: KLEstimator | None = None

    def __call__(self, logprob: Float[Array, '*S'], tokens: TokenInputs) -> Float[Array, '*S']:
        assert tokens.cost is not None
        loss = ppo_token_loss(logprob, tokens.old, tokens.advantage, clip=self.clip, clip_high=self.clip_high)
        return loss + jnp.exp(logprob - tokens.old) * tokens.cost + _reference_loss(logprob, tokens, self.kl)


@dataclasses.dataclass(frozen=True)
class CUPLoss:
    """The projection's loss of a token: `-ratio * A` with the advantage of `projection`, and the KL of the new policy
    to that after the first update, whose log-probabilities are `tokens.reference`, estimated from the old policy's
    tokens: `ratio * (logprob - reference) - (ratio - ratio of the reference)`."""

    def __call__(self, logprob: Float[Array, '*S'], tokens: TokenInputs) -> Float[Array, '*S']:
        assert tokens.reference is not None
        ratio, anchored = jnp.exp(logprob - tokens.old), jnp.exp(tokens.reference - tokens.old)
        return -ratio * tokens.advantage + ratio * (logprob - tokens.reference) - (ratio - anchored)


def projection(handler: CUP, state: State) -> ChannelWeights:
    """The weights of CUP's second update: minus the costs, by lambda and the coefficient."""
    return ChannelWeights(0.0, handler.coefficient * np.array(state['lambda']))


def gated(
    cost: Float[Array, 'R N A'], ratio: Float[Array, 'R N A'], weight: Float[Array, 'R N A'], excess: float | Array,
    kappa: float,
) -> Float[Array, 'R N A']:  # fmt: skip
    """P3O's costs of a minibatch: `kappa` times the cost's advantages where the gate is open, else 0.

    It is open where `mean(ratio * A_c) + excess > 0`, the mean by the weights that tokens have in the loss. The gate is
    of the minibatch as a whole: a mean over gates of its parts is another loss.

    Args:
      excess: mean cost less its limit, over the mean length of answers, since A_c is of a token.
    """
    return jnp.where(mean_by(weight, ratio * cost) + excess > 0, kappa * cost, 0.0)


def mean_by(weight: Float[Array, '*S'], values: Float[Array, '*S']) -> Float[Array, '']:
    """The mean by the weights of actions in the loss, which are 0 where a value may be undefined."""
    return jnp.sum(weight * jnp.where(weight > 0, values, 0.0)) / jnp.maximum(jnp.sum(weight), 1e-9)


def _reference_loss(logprob: Array, tokens: TokenInputs, kl: KLEstimator | None) -> Array | float:
    if kl is None or tokens.reference is None:
        return 0.0
    return tokens.kl_coef * kl_token_loss(logprob, tokens.reference, kl)
