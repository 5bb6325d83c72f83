"""Constraint handlers: how a limit on the cost of answers changes what a policy learns from their rewards.

A handler is a frozen dataclass of its hyper-parameters under the names of its paper, or of OmniSafe (arXiv 2305.09304),
and answers what `objectives/handler.py` asks. A new handler is a class here and a field of `Handlers`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pal_jax.objectives.advantages import ChannelWeights, mean_by
from pal_jax.objectives.handler import ByGroup, Handler, SecondUpdate, State
from pal_jax.objectives.kl import KLEstimator
from pal_jax.objectives.policy import ClippedSurrogate, TokenInputs, TokenLoss, kl_token_loss
from pal_jax.objectives.trust_region import Gradients, TrustRegionStep, cpo, pcpo

Place = Literal['text', 'arrays']


@dataclasses.dataclass(frozen=True)
class Unconstrained(Handler):
    """Costs are measured, and change nothing."""

    reads_limit = False


@dataclasses.dataclass(frozen=True)
class FixedPenalty(Handler):
    """`r - nu c`: the baseline of Safe RLHF (arXiv 2310.12773, section 4.3), which knows no limit."""

    reads_limit = False
    nu: float = 1.0  # a unit of cost takes so much of the reward

    def init(self, groups: int) -> State:
        return {'lambda': [self.nu] * groups}


@dataclasses.dataclass(frozen=True)
class LinearLagrangian(Handler):
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
            # Adam's moments begin at 0 and are corrected for it.
            slope = mean / (1 - 0.9**steps) / (np.sqrt(square / (1 - 0.999**steps)) + 1e-8)
        return state | _lists(mean=mean, square=square, steps=steps) | _ascended(self, lam, slope)


@dataclasses.dataclass(frozen=True)
class LogLagrangian(Handler):
    """Safe RLHF's (section 3.3): plain ascent on the logarithm of lambda, which never is 0."""

    lam_init: float = 1.0  # lambda before the first rollout
    lam_lr: float = 0.1  # the rate of the ascent on lambda
    lam_max: float = 5.0  # the largest lambda

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        lam = np.array(state['lambda'])
        # The exponent is bounded before the exponential, which could overflow.
        exponent = np.minimum(self.lam_lr * (costs - limits) * lam, np.log(self.lam_max / lam))
        return state | {'lambda': np.minimum(lam * np.exp(exponent), self.lam_max).tolist()}


@dataclasses.dataclass(frozen=True)
class PIDLagrangian(Handler):
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
        # Smoothed costs of the last rollouts, oldest first.
        past = np.array(state['past']).reshape(-1, len(limits))
        # The sum is bounded, so that it does not wind up while the limit cannot be met.
        total = np.clip(total + self.ki * (costs - limits), 0.0, self.lam_max)
        violation = self.smoothing * violation + (1 - self.smoothing) * (costs - limits)
        cost = self.smoothing * cost + (1 - self.smoothing) * costs
        # Only a rise of the cost counts, so the last term never lowers lambda.
        lam = self.kp * violation + total + self.kd * np.maximum(cost - past[0], 0.0)
        past = np.concatenate([past, cost[None]])[-self.delay :].ravel()
        lam = np.clip(lam, 0.0, self.lam_max)
        return state | _lists(**{'lambda': lam}, sum=total, violation=violation, cost=cost, past=past)


@dataclasses.dataclass(frozen=True)
class IPO(Handler):
    """The weight of a logarithmic barrier (Liu et al. 2020, arXiv 1910.09615): `kappa / (limit - J)`, and `penalty_max`
    wherever that is above it or the limit is passed."""

    kappa: float = 0.01  # the weight is kappa / (limit - cost)
    penalty_max: float = 1.0  # the largest weight

    def init(self, groups: int) -> State:
        return {'lambda': [self.penalty_max] * groups}

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        slack = limits - costs
        # The inner choice keeps a division by 0 out of the branch that is not taken.
        weight = np.where(slack > 0, self.kappa / np.where(slack > 0, slack, 1.0), self.penalty_max)
        return state | {'lambda': np.minimum(weight, self.penalty_max).tolist()}


@dataclasses.dataclass(frozen=True)
class CRPO(Handler):
    """Either rewards or costs (Xu et al. 2021, arXiv 2011.05869): rewards while every group is within `tolerance` of
    its limit, else the costs of the group that is furthest above it. It needs no multiplier."""

    tolerance: float = 0.05  # costs so far above the limit count as within it

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        above = costs - limits
        # Only the group that is furthest above its limit is learnt from.
        worst = above == np.max(above)
        return state | {'lambda': (worst & (above > self.tolerance)).astype(float).tolist()}

    def weigh(self, state: State, shares: ByGroup | Sequence[float] = (1.0,)) -> ChannelWeights:
        # A group without samples keeps its choice of an earlier step, which has nothing to learn from now.
        chosen = np.array(state['lambda'], float) * (np.asarray(shares) > 0)
        return ChannelWeights(float(not chosen.any()), chosen)


@dataclasses.dataclass(frozen=True)
class FOCOPS(Handler):
    """First order constrained optimisation in policy space (Zhang et al. 2020, arXiv 2002.06506): tokens pull towards
    the best policy within `eta` nats of the old one, and stop to count beyond; see `FOCOPSLoss`."""

    lam_init: float = 0.0  # lambda before the first rollout
    lam_lr: float = 0.035  # the rate of the ascent on lambda
    lam_max: float = 2.0  # the largest lambda
    temperature: float = 1.5  # of the best policy; lower pulls harder
    eta: float = 0.02  # nats from the old policy beyond which a token does not count

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        return state | _ascended(self, np.array(state['lambda']), costs - limits)

    def token_loss(self, surrogate: ClippedSurrogate) -> TokenLoss:
        return FOCOPSLoss(self.temperature, self.eta, surrogate.kl)


@dataclasses.dataclass(frozen=True)
class P3O(Handler):
    """An exact penalty (Zhang et al. 2022, arXiv 2205.11814): PPO on rewards, and `kappa` times the cost of the update
    as far as it passes the limit: `kappa * relu(mean(ratio * A_c) + (J - limit) / length)`.
    """

    refused_with_groups = 'p3o has one gate'
    costs_apart = True
    kappa: float = 20.0  # weight of the cost above the limit

    def token_loss(self, surrogate: ClippedSurrogate) -> TokenLoss:
        return P3OLoss(surrogate)

    def before(self, cost: Array, ratio: Array, weight: Array, excess: float | Array) -> Array:
        """`kappa` times the costs where the gate is open, `mean(ratio * cost) - mean(cost) + excess > 0`, else 0."""
        # Of a part of the rollout the mean at the ratio 1 is chance: the gate reads how much the update has moved it.
        change = excess - mean_by(weight, cost)
        # The gate is of a whole minibatch; a mean of gates would be another.
        return jnp.where(mean_by(weight, ratio * cost) + change > 0, self.kappa * cost, 0.0)


@dataclasses.dataclass(frozen=True)
class CUP(Handler):
    """Two updates (Yang et al. 2022, arXiv 2209.07089): PPO on rewards, then a projection that lowers costs near the
    policy of the first; see `CUPLoss`.

    coefficient: of the costs; the paper's is (1 - gamma lam) / (1 - gamma), which has no value at gamma 1.
    """

    lam_init: float = 0.001  # lambda before the first rollout
    lam_lr: float = 0.035  # the rate of the ascent on lambda
    lam_max: float = 2.0  # the largest lambda
    coefficient: float = 1.0

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        return state | _ascended(self, np.array(state['lambda']), costs - limits)

    def weigh(self, state: State, shares: ByGroup | Sequence[float] = (1.0,)) -> ChannelWeights:
        # The first update learns from rewards alone.
        return ChannelWeights(1.0, np.zeros(len(state['lambda'])))

    def second_update(self, state: State) -> SecondUpdate:
        # Minus the costs, by lambda and the coefficient.
        return SecondUpdate(ChannelWeights(0.0, self.coefficient * np.array(state['lambda'])), CUPLoss())


@dataclasses.dataclass(frozen=True)
class RePO(Handler):
    """Rectified penalties (arXiv 2410.19933): only what is above the limit costs, so that very safe answers do not pay
    for unsafe ones. Its weights and its multiplier's rule could not be read; this is the linear Lagrangian on
    rectified costs, whose mean is to be at most `slack`. Without a slack lambda never falls: `lam_max` ends its rise.

    by: 'answer' rectifies every cost, 'prompt' the mean cost of the answers to a prompt.
    """

    refused_on_arrays = 'it rectifies the cost of a whole answer, and the excess of an episode is no sum over its steps'
    lam_init: float = 1.0  # lambda before the first rollout
    lam_lr: float = 0.5  # the rate of the ascent on lambda
    lam_max: float = 5.0  # the largest lambda
    slack: float = 0.0  # the largest mean of rectified costs
    by: Literal['answer', 'prompt'] = 'answer'

    def update(self, state: State, costs: ByGroup, limits: ByGroup) -> State:
        return state | _ascended(self, np.array(state['lambda']), costs - self.slack)

    def count(self, costs: np.ndarray, limits: np.ndarray, n: int) -> np.ndarray:
        """Rectified costs: by answer what is above the limit; by prompt the costs less the limit where the mean of the
        `n` answers to the prompt is above it, else 0."""
        above = np.asarray(costs, float) - limits
        if self.by == 'answer':
            return np.maximum(above, 0.0)
        return np.where(np.repeat(above.reshape(-1, n).mean(axis=1) > 0, n), above, 0.0)


@dataclasses.dataclass(frozen=True)
class Saute(Handler):
    """A budget that the policy is told (Sootla et al. 2022, arXiv 2202.06558): an answer whose cost is above it earns
    `unsafe_reward` and nothing else. An answer of one turn has all of its budget until it is said.

    budgets: of the prompts of a step, in turn; (): the limit alone.
    """

    refused_on_arrays = 'it bounds the cost of every episode and not the mean, so it has another optimum'
    tells_budget = True
    unsafe_reward: float = -5.0  # the reward of an answer above its budget
    budgets: tuple[float, ...] = ()

    def budget(self, limits: np.ndarray) -> np.ndarray:
        # The budgets are taken in turn, so that the policy learns to go by them.
        return np.resize(self.budgets, len(limits)) if self.budgets else limits

    def pay(self, rewards: np.ndarray, costs: np.ndarray, budgets: np.ndarray) -> np.ndarray:
        return np.where(costs <= budgets, rewards, self.unsafe_reward)


@dataclasses.dataclass(frozen=True)
class EarlyTermination(Handler):
    """An answer ends with the first sentence at which its cost is above the limit, and earns what it has said so far
    (Sun et al. 2021, arXiv 2107.04200, as OmniSafe has it for episodes)."""

    refused_on_arrays = 'it ends every episode at the limit and bounds no mean, so it has another optimum'
    cuts_answers = True


@dataclasses.dataclass(frozen=True)
class TrustRegion(Handler):
    """CPO or PCPO (`objectives/trust_region.py`): the step sees how far the mean cost is above its limit, and needs no
    multiplier."""

    refused_on_text = 'it needs products of the Fisher matrix with vectors, which are made on arrays alone'
    rule: Literal['cpo', 'pcpo'] = 'cpo'  # whose step is taken
    delta: float = 0.01  # the largest mean KL of an update, in nats
    iterations: int = 15  # of the conjugate gradient
    damping: float = 0.1  # is added to the diagonal of the Fisher matrix
    decay: float = 0.8  # by which the line search shrinks a step that fails its tests
    tries: int = 15  # of the line search; after the last one the policy stays as it was

    @property
    def trust_region(self) -> TrustRegion:
        return self

    def step(self, gradients: Gradients, excess: Array) -> TrustRegionStep:
        return (cpo if self.rule == 'cpo' else pcpo)(gradients, excess, self.delta)


@dataclasses.dataclass(frozen=True)
class Handlers:
    """The hyper-parameters of every handler, in a section by the name that the handler has in configs."""

    none: Unconstrained = Unconstrained()
    fixed: FixedPenalty = FixedPenalty()
    linear: LinearLagrangian = LinearLagrangian()
    log: LogLagrangian = LogLagrangian()
    pid: PIDLagrangian = PIDLagrangian()
    ipo: IPO = IPO()
    crpo: CRPO = CRPO()
    focops: FOCOPS = FOCOPS()
    p3o: P3O = P3O()
    cup: CUP = CUP()
    repo: RePO = RePO()
    saute: Saute = Saute()
    early: EarlyTermination = EarlyTermination()
    cpo: TrustRegion = TrustRegion('cpo')
    pcpo: TrustRegion = TrustRegion('pcpo')

    def named(self, name: str, place: Place) -> Handler:
        """The handler of a name. Raises ValueError where there is none, or it has no place there."""
        if name not in (known := self.names(place)):
            reason = getattr(getattr(self, name, None), f'refused_on_{place}', '')
            reason = f', which is refused here: {reason}' if reason else f'; use {", ".join(known)}'
            raise ValueError(f'{name!r}{reason}')
        return getattr(self, name)

    @staticmethod
    def names(place: Place) -> tuple[str, ...]:
        """The names of the handlers that have a place there."""
        return tuple(f.name for f in dataclasses.fields(Handlers) if not getattr(f.default, f'refused_on_{place}'))


def _lists(**arrays: np.ndarray) -> State:
    return {name: array.tolist() for name, array in arrays.items()}


def _ascended(handler: LinearLagrangian | FOCOPS | CUP | RePO, lam: ByGroup, slope: ByGroup) -> State:
    """The multipliers after a step up the slope, which stay within 0 and `lam_max`."""
    return {'lambda': np.clip(lam + handler.lam_lr * slope, 0.0, handler.lam_max).tolist()}


# --- losses ---------------------------------------------------------------------------------------------------------


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
        # The gate is a constant, so no gradient pulls a token towards it.
        near = jax.lax.stop_gradient(moved) <= self.eta
        loss = jnp.where(near, moved - ratio * tokens.advantage / self.temperature, 0.0)
        if self.kl is None or tokens.reference is None:
            return loss
        return loss + tokens.kl_coef * kl_token_loss(logprob, tokens.reference, self.kl)


@dataclasses.dataclass(frozen=True)
class P3OLoss:
    """PPO's clipped loss of the reward, and `ratio * cost` with the costs that `P3O.before` has made."""

    surrogate: ClippedSurrogate

    def __call__(self, logprob: Float[Array, '*S'], tokens: TokenInputs) -> Float[Array, '*S']:
        assert tokens.cost is not None
        return self.surrogate(logprob, tokens) + jnp.exp(logprob - tokens.old) * tokens.cost


@dataclasses.dataclass(frozen=True)
class CUPLoss:
    """The projection's loss of a token: `-ratio * A` with the advantage of the second update, and the KL of the new
    policy to that after the first, whose log-probabilities are `tokens.reference`, estimated from the old policy's
    tokens: `ratio * (logprob - reference) - (ratio - ratio of the reference)`."""

    def __call__(self, logprob: Float[Array, '*S'], tokens: TokenInputs) -> Float[Array, '*S']:
        assert tokens.reference is not None
        ratio, anchored = jnp.exp(logprob - tokens.old), jnp.exp(tokens.reference - tokens.old)
        return -ratio * tokens.advantage + ratio * (logprob - tokens.reference) - (ratio - anchored)
