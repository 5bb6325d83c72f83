"""Distance from a reference policy: estimators per token (Schulman 2020), and the controller of their coefficient."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

KLEstimator = Literal['k1', 'k2', 'k3']


def token_kl(
    logprob: Float[Array, '*S'], ref_logprob: Float[Array, '*S'], estimator: KLEstimator = 'k1'
) -> Float[Array, '*S']:
    """An estimate of KL(policy || reference) in nats, from tokens drawn from the policy, one number per token.

    With `d = logprob - ref_logprob`: k1 is `d` (unbiased, signed), k2 is `d^2 / 2` (biased, but its gradient is that of
    the KL), k3 is `exp(-d) - 1 + d` (unbiased, never negative).

    Raises:
      ValueError: the estimator is unknown.
    """
    d = logprob - ref_logprob
    match estimator:
        case 'k1':
            return d
        case 'k2':
            return jnp.square(d) / 2.0
        case 'k3':
            # `expm1` keeps the digits where the policies are close.
            return jnp.expm1(-d) + d
    raise ValueError(f'unknown KL estimator {estimator!r}; use one of k1, k2, k3')


def adapt_kl(
    coef: float | Float[Array, ''], kl: Float[Array, ''], *, target: float, n: int | Array, horizon: int = 10_000
) -> Float[Array, '']:
    """The KL coefficient after a rollout of `n` samples with mean KL `kl`, per token or per sample as the target is.

    `coef * (1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon)`: proportional control (Ziegler et al. 2019, sec. 2.2).
    A fixed coefficient needs no controller.

    Raises:
      ValueError: the target is not positive.
    """
    if target <= 0:
        raise ValueError(f'the KL target must be positive, got {target}; for a fixed coefficient do not adapt it')
    # The clip keeps one odd rollout from moving the coefficient far.
    return coef * (1.0 + jnp.clip(kl / target - 1.0, -0.2, 0.2) * (n / horizon))
