"""Estimators that turn one reward per sample into an advantage per action.

The actions of a sample start at place 0; `acts` is True for those that are no padding. The axes `*S` are those of the
samples, as a rule rows and the samples of a row; in their order the samples of a prompt stand side by side. Rewards and
values have a last axis of channels: channel 0 is the reward, the others are costs or further objectives.

Nothing here is differentiated: rewards, values and advantages are constants of the update. Results are 0 on padding,
whose inputs are ignored.

An estimator is a function of `EstimatorInputs` and of `Discounts`; it returns advantages and returns. A method may pass
a function of its own in its place, made of the same pieces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pal_jax.objectives import masked
from pal_jax.objectives.masked import keep, masked_mean, masked_sum


class EstimatorInputs(NamedTuple):
    """The inputs of an estimator: samples `*S` of up to `A` actions with `C` channels.

    Attributes:
      rewards: the reward of each sample, by channel.
      penalty: the penalty of an action for its distance from the reference policy, in units of the reward; never
        clipped.
      values: the critics' values of the states before each action, by channel; None without critics.
      acts: True for the actions of samples that are `ok`; False for padding and for samples without a reward.
      ok: True for samples that have a reward.
      role: a number for each sample: the seat of its player in a game, or with constraints the group of samples that
        share a limit.
      n: the number of samples of a prompt, which stand side by side.
    """

    rewards: Float[Array, '*S C']
    penalty: Float[Array, '*S A']
    values: Float[Array, '*S A C'] | None
    acts: Bool[Array, '*S A']
    ok: Bool[Array, '*S']
    role: Int[Array, '*S']
    n: int


class Discounts(NamedTuple):
    """Constants of the estimators under the papers' names. A group's rewards are divided by its deviation plus
    `std_floor`."""

    gamma: float = 1.0
    lam: float = 0.95
    reward_clip: tuple[float, float] = (-10.0, 10.0)
    std_floor: float = 0.0


# The update's advantages, and returns by channel.
Estimates = tuple[Float[Array, '*S A'], Float[Array, '*S A C']]
Estimator = Callable[[EstimatorInputs, Discounts], Estimates]


# --- estimators -----------------------------------------------------------------------------------------------------


def actor_critic(rollout: EstimatorInputs, constants: Discounts) -> Estimates:
    """Generalised advantage estimation with a critic (PPO, Schulman et al. 2017), whitened over the buffer.

    Raises:
      ValueError: the rollout has no values.
    """
    if rollout.values is None:
        raise ValueError("estimator 'gae' needs values, got None; train a critic or use reinforce")
    rewards = action_rewards(rollout, rollout.rewards, constants)
    advantages, returns = gae(rewards, rollout.values, rollout.acts, gamma=constants.gamma, lam=constants.lam)
    return whiten(advantages[..., 0], rollout), returns


def reinforce(rollout: EstimatorInputs, constants: Discounts) -> Estimates:
    """Returns as advantages, whitened over the buffer (Williams 1992)."""
    returns = returns_of(rollout, rollout.rewards, constants)
    return whiten(returns[..., 0], rollout), returns


def rloo(rollout: EstimatorInputs, constants: Discounts) -> Estimates:
    """Rewards less the mean of the prompt's other samples, with returns as `reinforce` (RLOO, Ahmadian et al. 2024)."""
    returns = returns_of(rollout, less_others(rollout.rewards, rollout.ok, rollout.n), constants)
    return whiten(returns[..., 0], rollout), returns


def reinforce_baseline(rollout: EstimatorInputs, constants: Discounts) -> Estimates:
    """Rewards less the prompt's mean, with returns as `reinforce` (REINFORCE++ with a baseline, Hu 2025)."""
    returns = returns_of(rollout, less_mean(rollout.rewards, rollout.ok, rollout.n), constants)
    return whiten(returns[..., 0], rollout), returns


def group_norm(rollout: EstimatorInputs, constants: Discounts) -> Estimates:
    """Rewards standardised within the prompt; advantages are not whitened (GRPO, Shao et al. 2024)."""
    standard = standardised(rollout.rewards, rollout.ok, rollout.n, constants.std_floor)
    returns = returns_of(rollout, standard, constants)
    return returns[..., 0], returns


def dr_grpo(rollout: EstimatorInputs, constants: Discounts) -> Estimates:
    """Rewards less the prompt's mean; advantages are not whitened (Dr. GRPO, Liu et al. 2025)."""
    returns = returns_of(rollout, less_mean(rollout.rewards, rollout.ok, rollout.n), constants)
    return returns[..., 0], returns


class GDPO(NamedTuple):
    """Several rewards, each standardised by itself (GDPO, arXiv 2601.05242): an estimator by `estimate`.

    z_k = (r_k - mean_group) / (max(std_group, floor) + 1e-4);  a = sum_k w_k z_k;
    A = (a - mean_batch) / (max(std_batch, floor) + 1e-4), with unbiased deviations.

    Channel 0 of the rewards is their sum, which does not count here; the others are the parts. A part that is NaN is
    missing: it is left out of its group's statistics and gets the group's lowest z. The KL penalty is taken off A.

    Attributes:
      weights: w_k of the parts.
      floor: the least divisor; a group whose deviation is smaller is divided by it.
    """

    weights: tuple[float, ...]
    floor: float = 0.0

    def estimate(self, rollout: EstimatorInputs, constants: Discounts) -> Estimates:
        """Advantages, and returns of one channel.

        Raises:
          ValueError: the rewards have other parts than there are weights.
        """
        parts = rollout.rewards[..., 1:]
        if parts.shape[-1] != len(self.weights):
            raise ValueError(f'rewards have {parts.shape[-1]} parts, and there are {len(self.weights)} weights')
        z = jnp.stack([self._standard(parts[..., k], rollout) for k in range(len(self.weights))], axis=-1)
        a = z @ jnp.asarray(self.weights)
        # The batch is one group of all samples that have a reward.
        whole = self._divided(a[..., None], rollout.ok, a.size)
        # The KL penalty is taken off afterwards, and so is not standardised.
        returns = returns_of(rollout, whole, constants)
        return returns[..., 0], returns

    def _standard(self, part: Float[Array, '*S'], rollout: EstimatorInputs) -> Float[Array, '*S']:
        """The z of a part. A sample without it gets the lowest of its group, which is at most 0; 0 where nobody has
        it."""
        given = rollout.ok & ~jnp.isnan(part)
        z = self._divided(keep(part, given)[..., None], given, rollout.n)[..., 0]
        groups, mask = z.reshape(-1, rollout.n), given.reshape(-1, rollout.n)
        # A missing part must not be worth more than the worst one of its group, or than the mean.
        lowest = jnp.min(groups, axis=1, keepdims=True, initial=0.0, where=mask)
        return keep(jnp.where(mask, groups, lowest).reshape(part.shape), rollout.ok)

    def _divided(self, rewards: Float[Array, '*S 1'], ok: Bool[Array, '*S'], n: int) -> Float[Array, '*S 1']:
        centred, mask, count = _centred(rewards, ok, n)
        variance = masked_sum(jnp.square(centred), mask, axis=1)[:, None] / jnp.maximum(count - 1.0, 1.0)
        return (centred / (jnp.maximum(jnp.sqrt(variance), self.floor) + 1e-4)).reshape(rewards.shape)


# The estimators by their names in configs.
ESTIMATORS: dict[str, Estimator] = {
    'gae': actor_critic,
    'reinforce': reinforce,
    'rloo': rloo,
    'reinforce_baseline': reinforce_baseline,
    'group_norm': group_norm,
    'dr_grpo': dr_grpo,
}


def action_rewards(
    rollout: EstimatorInputs, rewards: Float[Array, '*S C'], constants: Discounts
) -> Float[Array, '*S A C']:
    """The rewards of actions."""
    # The KL penalty is taken off channel 0, the reward; costs have no penalty.
    signs = [-1.0, *[0.0] * (rewards.shape[-1] - 1)]
    return token_rewards(rewards, rollout.penalty, rollout.acts, clip=constants.reward_clip, signs=signs)


def returns_of(rollout: EstimatorInputs, rewards: Float[Array, '*S C'], constants: Discounts) -> Float[Array, '*S A C']:
    """The discounted sum of the rewards of actions, from each action on."""
    return reward_to_go(action_rewards(rollout, rewards, constants), rollout.acts, gamma=constants.gamma)


# --- rewards of samples ---------------------------------------------------------------------------------------------


def less_others(rewards: Float[Array, '*S C'], ok: Bool[Array, '*S'], n: int) -> Float[Array, '*S C']:
    """`r_i - mean of the others` among the `n` samples of a prompt.

    Samples with `ok=False` get 0 and are left out of the statistics; a sample that is alone in its group gets 0, too.

    Raises:
      ValueError: fewer than two samples a prompt, or rewards that do not form whole groups.
    """
    # The formula is r_i - (sum - r_i) / (n - 1) = (r_i - mean) * n / (n - 1).
    centred, _, count = _centred(rewards, ok, n)
    return (centred * count / jnp.maximum(count - 1.0, 1.0)).reshape(rewards.shape)


def less_mean(rewards: Float[Array, '*S C'], ok: Bool[Array, '*S'], n: int) -> Float[Array, '*S C']:
    """`r_i - mean` among the `n` samples of a prompt; see `less_others`."""
    return _centred(rewards, ok, n)[0].reshape(rewards.shape)


def standardised(
    rewards: Float[Array, '*S C'], ok: Bool[Array, '*S'], n: int, std_floor: float = 0.0
) -> Float[Array, '*S C']:
    """`(r_i - mean) / (std + std_floor + 1e-9)` among a prompt's `n` samples, `std` unbiased; see `less_others`."""
    centred, mask, count = _centred(rewards, ok, n)
    variance = masked_sum(jnp.square(centred), mask, axis=1)[:, None] / jnp.maximum(count - 1.0, 1.0)
    # Without a floor a group whose rewards differ by noise alone counts as much as any other.
    return (centred / (jnp.sqrt(variance) + std_floor + 1e-9)).reshape(rewards.shape)


def _centred(
    rewards: Float[Array, '*S C'], ok: Bool[Array, '*S'], n: int
) -> tuple[Float[Array, 'P n C'], Bool[Array, 'P n C'], Float[Array, 'P 1 C']]:
    """Rewards less their group's mean, a mask of those that count, and the number of them in each group."""
    if n < 2:
        raise ValueError(f'samples of a prompt are compared, got n={n}; use n >= 2, or the estimator gae or reinforce')
    if ok.size % n:
        raise ValueError(f'{ok.size} rewards do not form groups of n={n}; pass whole groups')
    r = rewards.reshape(-1, n, rewards.shape[-1])
    mask = jnp.broadcast_to(ok.reshape(-1, n, 1), r.shape)
    # Rewards are taken from the group's minimum, so that a constant group is exactly 0. Its mean would be rounded, and
    # the division by the group's own standard deviation would blow that error up to 1.
    r = keep(r - jnp.min(r, axis=1, keepdims=True, initial=jnp.inf, where=mask), mask)
    centred = keep(r - masked_mean(r, mask, axis=1)[:, None], mask)
    return centred, mask, jnp.sum(mask, axis=1, keepdims=True).astype(r.dtype)


# --- rewards of actions ---------------------------------------------------------------------------------------------


def token_rewards(
    rewards: Float[Array, '*S C'],
    penalty: Float[Array, '*S A'],
    acts: Bool[Array, '*S A'],
    *,
    clip: tuple[float, float] = (-10.0, 10.0),
    signs: Sequence[float] = (-1.0,),
) -> Float[Array, '*S A C']:
    """`sign * penalty` for every action, and for the last action of a sample its clipped reward on top.

    `signs` has a number by channel: -1 takes the penalty off a reward, 1 adds it to a cost, 0 leaves it out.
    """
    # An action is the last one where no action follows it.
    last = acts & ~jnp.concatenate([acts[..., 1:], jnp.zeros_like(acts[..., :1])], axis=-1)
    distance = jnp.stack([keep(sign * penalty, acts) for sign in signs], axis=-1)
    return distance + jnp.where(last[..., None], jnp.clip(rewards, *clip)[..., None, :], 0.0)


def gae(
    rewards: Float[Array, '*T'],
    values: Float[Array, '*T'],
    acts: Bool[Array, '*S A'],
    *,
    gamma: float | Float[Array, '*S A'],
    lam: float,
    bootstrap: Float[Array, '*U'] | None = None,
) -> tuple[Float[Array, '*T'], Float[Array, '*T']]:
    """Generalised advantage estimation (Schulman et al. 2016): advantages and returns.

    δₜ = rₜ + γₜ Vₜ₊₁ - Vₜ,  Aₜ = δₜ + γₜλ Aₜ₊₁,  Gₜ = Aₜ + Vₜ.

    Rewards and values are `[*S, A]`, or by channel `[*S, A, C]`. The value after the last action is `bootstrap`, or 0.
    A γₜ of 0 ends an episode after action t.
    """
    time = acts.ndim - 1
    acts, gamma = _beside(acts, rewards), _beside(jnp.broadcast_to(gamma, acts.shape), rewards)
    rewards, values = keep(rewards, acts), keep(values, acts)
    # It is 0 after the last action of a row that ends earlier, too: an answer that is cut at the length limit counts as
    # finished.
    first, later = jnp.split(values, [1], axis=time)
    after = jnp.zeros_like(first) if bootstrap is None else jnp.expand_dims(bootstrap, time)
    next_values = jnp.concatenate([later, after], axis=time)
    advantages = discounted_sum(rewards + gamma * next_values - values, gamma * lam, time)
    return advantages, advantages + values


def reward_to_go(rewards: Float[Array, '*T'], acts: Bool[Array, '*S A'], *, gamma: float) -> Float[Array, '*T']:
    """The discounted rewards from each action on, Gₜ = rₜ + γ Gₜ₊₁, `[*S, A]` or by channel `[*S, A, C]`."""
    return discounted_sum(keep(rewards, _beside(acts, rewards)), gamma, acts.ndim - 1)


def discounted_sum(x: Float[Array, '*T'], discount: float | Float[Array, '*T'], axis: int) -> Float[Array, '*T']:
    """The sums yₜ = xₜ + discountₜ · yₜ₊₁ along an axis, from its end to its start."""

    def step(later: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        x_t, discount_t = now
        y_t = x_t + discount_t * later
        return y_t, y_t

    places = jax.tree.map(lambda array: jnp.moveaxis(array, axis, 0), (x, jnp.broadcast_to(discount, x.shape)))
    _, y = jax.lax.scan(step, jnp.zeros_like(places[0][0]), places, reverse=True)
    return jnp.moveaxis(y, 0, axis)


def _beside(x: Array, like: Array) -> Array:
    """`x` with an axis of 1 for each further axis of `like`."""
    return x.reshape(*x.shape, *[1] * (like.ndim - x.ndim))


# --- a reward and a cost --------------------------------------------------------------------------------------------


class ChannelWeights(NamedTuple):
    """The weights of advantages: `(reward * A_r - cost[g] * A_c) / divisor` in group `g`."""

    reward: Any
    cost: Any
    divisor: Any = 1.0

    def mixed(self, advantages: Float[Array, '*S 2']) -> Float[Array, '*S']:
        """The advantages of reward and cost as one, where the weights have a number for each, or one for all."""
        return (self.reward * advantages[..., 0] - self.cost * advantages[..., 1]) / self.divisor


@dataclasses.dataclass(frozen=True)
class ConstrainedEstimator:
    """The estimate of a rollout whose channels are a reward and a cost.

    Advantages are not whitened.

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
        # Advantages are not whitened: a multiplier compares the scales of reward and cost, so both have to stand.
        of_sample = weights._replace(cost=jnp.asarray(weights.cost, jnp.float32)[rollout.role][..., None])
        return of_sample.mixed(advantages), returns

    def by_channel(self, rollout: EstimatorInputs) -> tuple[Float[Array, '*S A 2'], Float[Array, '*S A 2']]:
        """Advantages and returns of reward and cost. The KL is taken off the reward, and `kl_of_cost` of it is added to
        the cost (3.3)."""
        gamma, lam, clip, _ = self.constants
        critic = self.estimator == 'gae'
        rewards = rollout.rewards if critic else less_mean(rollout.rewards, rollout.ok, rollout.n)
        paid = token_rewards(rewards, rollout.penalty, rollout.acts, clip=clip, signs=(-1.0, self.kl_of_cost))
        if critic:
            assert rollout.values is not None
            return gae(paid, rollout.values, rollout.acts, gamma=gamma, lam=lam)
        returns = reward_to_go(paid, rollout.acts, gamma=gamma)
        return returns, returns

    def of_cost(self, rollout: EstimatorInputs, weight: Float[Array, '*S A']) -> Estimates:
        """Advantages of the cost less their mean by `weight`, the weights of actions in the loss, and all returns."""
        advantages, returns = self.by_channel(rollout)
        cost = advantages[..., 1]
        # A mean that an estimator or a critic leaves says nothing of the limit, and would open or shut P3O's gate.
        return jnp.where(rollout.acts, cost - mean_by(weight, cost), 0.0), returns


def mean_by(weight: Float[Array, '*S'], values: Float[Array, '*S']) -> Float[Array, '']:
    """The mean by the weights of actions in the loss, which are 0 where a value may be undefined."""
    return jnp.sum(weight * jnp.where(weight > 0, values, 0.0)) / jnp.maximum(jnp.sum(weight), 1e-9)


# --- advantages -----------------------------------------------------------------------------------------------------


def whiten(advantages: Float[Array, '*S A'], rollout: EstimatorInputs, *, roles: int = 1) -> Float[Array, '*S A']:
    """Advantages with mean 0 and variance 1 over the actions that count.

    With `roles` above 1 each role has statistics of its own.
    """
    if roles == 1:
        return masked.whiten(advantages, rollout.acts)
    # The rewards of one role must not shift the advantages of another.
    speaks = [rollout.acts & (rollout.role == role)[..., None] for role in range(roles)]
    return sum((masked.whiten(advantages, acts) for acts in speaks), jnp.zeros_like(advantages))


def scale_negative(advantages: Float[Array, '*S'], scale: float) -> Float[Array, '*S']:
    """Negative advantages times `scale`; 1 changes nothing, 0 learns from good samples only."""
    # A scale below 1 weakens the push away from bad samples, which on small models flattens the policy faster than good
    # samples sharpen it.
    return jnp.where(advantages < 0.0, scale * advantages, advantages)
