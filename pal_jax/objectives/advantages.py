"""From one reward per sample to an advantage per action.

A sample is a row of actions that starts in column 0; `acts` marks the real ones. Nothing here is differentiated:
rewards, values and advantages are constants of the update. Results are 0 on padding, whose inputs are ignored.
"""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from pal_jax.objectives.masked import keep, masked_mean, masked_sum, whiten

Estimator = Literal['gae', 'reinforce', 'rloo', 'reinforce_baseline', 'group_norm', 'dr_grpo']

CRITIC = ('gae',)  # estimators that need values
UNGROUPED = ('gae', 'reinforce')  # those that do not compare the samples of a prompt
UNWHITENED = ('group_norm', 'dr_grpo')  # those whose advantages keep their scale


def advantages_and_returns(
    reward: Float[Array, ' B'],
    kl: Float[Array, 'B A'],
    values: Float[Array, 'B A'] | None,
    acts: Bool[Array, 'B A'],
    ok: Bool[Array, ' B'],
    *,
    estimator: Estimator,
    n: int,
    kl_coef: float | Float[Array, ''],
    gamma: float = 1.0,
    lam: float = 0.95,
    clip_range: tuple[float, float] = (-10.0, 10.0),
    negative_scale: float = 1.0,
    std_floor: float = 0.0,
) -> tuple[Float[Array, 'B A'], Float[Array, 'B A']]:
    """Advantages and returns of a whole rollout buffer.

    1. The reward is compared within the group of `n` samples of one prompt (`shape_rewards`).
    2. It is clipped and paid at the last action; every action pays its KL penalty (`token_rewards`).
    3. GAE with a critic, else the return is the advantage.
    4. Advantages are whitened over the buffer, unless the estimator keeps their scale. Returns never are.
    5. Negative advantages are multiplied by `negative_scale`. Below 1 it weakens the push away from bad samples,
       which on small models flattens the policy faster than good samples sharpen it.

    Samples with `ok=False` (no reward could be had) get zeros and take no part in any statistic.
    """
    used = acts & ok[:, None]
    rewards = token_rewards(shape_rewards(reward, n, estimator, ok, std_floor), kl, used, kl_coef, clip_range)
    if estimator in CRITIC:
        if values is None:
            raise ValueError(f'estimator {estimator!r} needs values, got None; train a critic or use reinforce')
        advantages, returns = gae(rewards, values, used, gamma=gamma, lam=lam)
    else:
        advantages = returns = reward_to_go(rewards, used, gamma=gamma)
    if estimator not in UNWHITENED:
        advantages = whiten(advantages, used)
    return scale_negative(advantages, negative_scale), returns


def shape_rewards(
    reward: Float[Array, ' B'],
    n: int,
    estimator: Estimator,
    ok: Bool[Array, ' B'] | None = None,
    std_floor: float = 0.0,
) -> Float[Array, ' B']:
    """Rewards relative to the group: the `n` samples of one prompt, which stand side by side.

    - gae, reinforce: unchanged.
    - rloo: `r_i - mean of the others` (Ahmadian et al. 2024).
    - reinforce_baseline, dr_grpo: `r_i - mean` (Hu 2025; Liu et al. 2025).
    - group_norm: `(r_i - mean) / (std + std_floor + 1e-9)`, `std` unbiased (GRPO, Shao et al. 2024). Without a floor
      a group whose rewards differ by noise alone counts as much as any.

    Samples with `ok=False` get 0 and are left out of their group's statistics; so does a sample that is alone in it.
    """
    ok = jnp.ones(reward.shape, bool) if ok is None else ok
    _check_groups(reward.shape[0], n, estimator)
    if estimator in UNGROUPED:
        return keep(reward, ok)
    r, mask = reward.reshape(-1, n), ok.reshape(-1, n)
    # Counted from the group's minimum, a constant group is exactly 0: its mean rounded would leave an error, which
    # the division by its own standard deviation would blow up to 1.
    r = keep(r - jnp.min(r, axis=1, keepdims=True, initial=jnp.inf, where=mask), mask)
    centred = keep(r - masked_mean(r, mask, axis=1)[:, None], mask)
    return _rescale(centred, mask, estimator, std_floor).reshape(-1)


def _rescale(
    centred: Float[Array, 'P n'], mask: Bool[Array, 'P n'], estimator: Estimator, std_floor: float
) -> Float[Array, 'P n']:
    count = jnp.sum(mask, axis=1, keepdims=True).astype(centred.dtype)
    others = jnp.maximum(count - 1.0, 1.0)
    if estimator == 'rloo':  # r_i - (sum - r_i) / (n - 1) = (r_i - mean) * n / (n - 1)
        return centred * count / others
    if estimator == 'group_norm':
        std = jnp.sqrt(masked_sum(jnp.square(centred), mask, axis=1)[:, None] / others)
        return centred / (std + std_floor + 1e-9)
    return centred


def _check_groups(samples: int, n: int, estimator: Estimator) -> None:
    if estimator not in get_args(Estimator):
        raise ValueError(f'unknown advantage estimator {estimator!r}; use one of {", ".join(get_args(Estimator))}')
    if estimator in UNGROUPED:
        return
    if n < 2:
        raise ValueError(
            f'estimator {estimator!r} compares samples of a prompt, got n={n}; use n >= 2 or gae, reinforce'
        )
    if samples % n:
        raise ValueError(f'{samples} rewards do not form groups of n={n}; pass whole groups')


def token_rewards(
    reward: Float[Array, ' B'],
    kl: Float[Array, 'B A'],
    acts: Bool[Array, 'B A'],
    kl_coef: float | Float[Array, ''],
    clip_range: tuple[float, float] = (-10.0, 10.0),
) -> Float[Array, 'B A']:
    """`-max(kl_coef, 0) * kl` for every action; the last action of a sample is paid its clipped reward on top."""
    last = acts & ~jnp.pad(acts[:, 1:], ((0, 0), (0, 1)))
    penalty = keep(-jnp.maximum(kl_coef, 0.0) * kl, acts)
    return penalty + jnp.where(last, jnp.clip(reward, *clip_range)[:, None], 0.0)


def gae(
    rewards: Float[Array, 'B A'], values: Float[Array, 'B A'], acts: Bool[Array, 'B A'], *, gamma: float, lam: float
) -> tuple[Float[Array, 'B A'], Float[Array, 'B A']]:
    """Generalised advantage estimation (Schulman et al. 2016): advantages and returns.

    δₜ = rₜ + γ Vₜ₊₁ - Vₜ,  Aₜ = δₜ + γλ Aₜ₊₁,  Gₜ = Aₜ + Vₜ. The value after the last action is 0: an answer cut at
    the length limit counts as finished.
    """
    rewards, values = keep(rewards, acts), keep(values, acts)
    next_values = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
    advantages = discounted_sum(rewards + gamma * next_values - values, gamma * lam)
    return advantages, advantages + values


def reward_to_go(rewards: Float[Array, 'B A'], acts: Bool[Array, 'B A'], *, gamma: float) -> Float[Array, 'B A']:
    """Gₜ = rₜ + γ Gₜ₊₁."""
    return discounted_sum(keep(rewards, acts), gamma)


def discounted_sum(x: Float[Array, 'B A'], discount: float) -> Float[Array, 'B A']:
    """yₜ = xₜ + discount · yₜ₊₁, from the last column to the first."""

    def step(later: Array, x_t: Array) -> tuple[Array, Array]:
        y_t = x_t + discount * later
        return y_t, y_t

    _, y = jax.lax.scan(step, jnp.zeros_like(x[:, 0]), x.T, reverse=True)
    return y.T


def scale_negative(advantages: Float[Array, '*S'], scale: float) -> Float[Array, '*S']:
    """Negative advantages times `scale`; 1 changes nothing, 0 learns from good samples only."""
    return jnp.where(advantages < 0.0, scale * advantages, advantages)
