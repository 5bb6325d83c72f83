"""Distributions of actions, as pure functions of a network's output.

A distribution is a frozen dataclass of its sizes. `width` is the number of outputs that it needs of a network. All
functions broadcast over leading axes `*S`, so a batch of any shape will do. An action is an array with one entry for
each head or dimension, whose log-probabilities add up.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# The logit of an action that is masked; its gradient is exactly 0.
NEVER = -1e30


@dataclasses.dataclass(frozen=True)
class Categorical:
    """One choice for each head, independent given the state. Head `i` has `heads[i]` actions.

    A mask `[*S, K]` has False for actions that are not allowed, head after head; every head needs an allowed action.
    """

    heads: tuple[int, ...]

    @property
    def width(self) -> int:
        return sum(self.heads)

    def sample(self, key: Array, output: Float[Array, '*S K'], mask: Bool[Array, '*S K']) -> Int[Array, '*S H']:
        """Draw an action of each head."""
        # Every head draws with a key of its own, since heads are independent.
        keys = jax.random.split(key, len(self.heads))
        drawn = [jax.random.categorical(keys[i], part) for i, part in enumerate(self._logprobs(output, mask))]
        return jnp.stack(drawn, axis=-1)

    def mode(self, output: Float[Array, '*S K'], mask: Bool[Array, '*S K']) -> Int[Array, '*S H']:
        """The most probable action of each head."""
        return jnp.stack([jnp.argmax(part, axis=-1) for part in self._logprobs(output, mask)], axis=-1)

    def logprob(
        self, output: Float[Array, '*S K'], mask: Bool[Array, '*S K'], action: Int[Array, '*S H']
    ) -> Float[Array, '*S']:
        """The log-probability of an action, over all heads."""
        heads = self._logprobs(output, mask)
        parts = [jnp.take_along_axis(part, action[..., i, None], axis=-1)[..., 0] for i, part in enumerate(heads)]
        return sum(parts, jnp.zeros(action.shape[:-1]))

    def one_hot(self, action: Int[Array, '*S H']) -> Float[Array, '*S K']:
        """An action as a 1 for the choice of each head, head after head."""
        return jnp.concatenate([jax.nn.one_hot(action[..., i], size) for i, size in enumerate(self.heads)], axis=-1)

    def entropy(self, output: Float[Array, '*S K'], mask: Bool[Array, '*S K']) -> Float[Array, '*S']:
        """The entropy in nats, over all heads."""
        parts = [-jnp.sum(jnp.exp(part) * part, axis=-1) for part in self._logprobs(output, mask)]
        return sum(parts, jnp.zeros(output.shape[:-1]))

    def kl(
        self, output: Float[Array, '*S K'], other: Float[Array, '*S K'], mask: Bool[Array, '*S K']
    ) -> Float[Array, '*S']:
        """KL(output || other) in nats, over all heads."""
        pairs = zip(self._logprobs(output, mask), self._logprobs(other, mask), strict=True)
        return sum((jnp.sum(jnp.exp(p) * (p - q), axis=-1) for p, q in pairs), jnp.zeros(output.shape[:-1]))

    def _logprobs(self, output: Array, mask: Array) -> list[Array]:
        cuts = np.cumsum(self.heads)[:-1].tolist()
        logits = jnp.where(mask, output, NEVER)
        return [jax.nn.log_softmax(part, axis=-1) for part in jnp.split(logits, cuts, axis=-1)]


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """`dimensions` independent normal numbers. The output has the means, then the logarithms of the deviations.

    The mask of discrete actions stands in the signatures for one interface, and is not read.
    """

    dimensions: int

    @property
    def width(self) -> int:
        return 2 * self.dimensions

    def sample(self, key: Array, output: Float[Array, '*S K'], mask: Array) -> Float[Array, '*S D']:
        """Draw an action."""
        mean, log_std = jnp.split(output, 2, axis=-1)
        return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)

    def mode(self, output: Float[Array, '*S K'], mask: Array) -> Float[Array, '*S D']:
        """The mean."""
        return output[..., : self.dimensions]

    def logprob(self, output: Float[Array, '*S K'], mask: Array, action: Float[Array, '*S D']) -> Float[Array, '*S']:
        """The logarithm of the density at an action."""
        mean, log_std = jnp.split(output, 2, axis=-1)
        distance = (action - mean) * jnp.exp(-log_std)
        return jnp.sum(-0.5 * jnp.square(distance) - log_std - 0.5 * jnp.log(2.0 * jnp.pi), axis=-1)

    def entropy(self, output: Float[Array, '*S K'], mask: Array) -> Float[Array, '*S']:
        """The differential entropy in nats."""
        log_std = output[..., self.dimensions :]
        return jnp.sum(log_std + 0.5 * jnp.log(2.0 * jnp.pi * jnp.e), axis=-1)

    def kl(self, output: Float[Array, '*S K'], other: Float[Array, '*S K'], mask: Array) -> Float[Array, '*S']:
        """KL(output || other) in nats."""
        (mean, log_std), (mean_o, log_std_o) = jnp.split(output, 2, axis=-1), jnp.split(other, 2, axis=-1)
        square = jnp.exp(2.0 * (log_std - log_std_o)) + jnp.square((mean - mean_o) * jnp.exp(-log_std_o))
        return jnp.sum(log_std_o - log_std + 0.5 * (square - 1.0), axis=-1)


Distribution = Categorical | Gaussian


# --- mixtures ---------------------------------------------------------------------------------------------------------

# The bounds of the logarithms of deviations in a mixture: a certain prediction would have no bound.
LEAST, MOST = -5.0, 3.0


def mixture_nll(output: Float[Array, '*S X'], goal: Float[Array, '*S D']) -> Float[Array, '*S']:
    """The negative log-density in nats of a point under a mixture of `m` diagonal Gaussians (Bishop 1994).

    The output has `m` logits, then `m` means and `m` logarithms of deviations of `D` numbers each, `X = m (1 + 2 D)`.
    """
    logits, mean, log_std = _mixture(output, goal.shape[-1])
    log_std = jnp.clip(log_std, LEAST, MOST)
    away = (goal[..., None, :] - mean) * jnp.exp(-log_std)
    parts = jnp.sum(-0.5 * jnp.square(away) - log_std - 0.5 * jnp.log(2.0 * jnp.pi), axis=-1)
    # The sum over components is taken of logarithms, so far points do not underflow.
    return -jax.nn.logsumexp(jax.nn.log_softmax(logits, axis=-1) + parts, axis=-1)


def mixture_mean(output: Float[Array, '*S X'], dimensions: int) -> Float[Array, '*S D']:
    """The mean of a mixture, see `mixture_nll`."""
    logits, mean, _ = _mixture(output, dimensions)
    return jnp.sum(jax.nn.softmax(logits, axis=-1)[..., None] * mean, axis=-2)


def _mixture(output: Array, dimensions: int) -> tuple[Array, Array, Array]:
    count = output.shape[-1] // (1 + 2 * dimensions)
    logits, components = output[..., :count], output[..., count:]
    mean, log_std = jnp.split(components.reshape(*components.shape[:-1], 2 * count, dimensions), 2, axis=-2)
    return logits, mean, log_std
