"""Networks that every member of a team shares: a policy with or without memory, and heads that predict what comes next.

After Chen et al. 2023 (arXiv 2303.03767): layers of tanh, an LSTM on them, and mixtures of Gaussians for the dynamics.
Letters: `B` sequences, `T` steps, `D` the width of an observation, `F` that of features, `M` units of memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pal_jax.objectives import distributions

Memory = Any  # an LSTM's two arrays [B, M]; () without one


class Thought(NamedTuple):
    """A policy's output for its actions, the features behind it, and the mixture of the target's next place."""

    output: Float[Array, 'B T K']
    features: Float[Array, 'B T F']
    target: Float[Array, 'B T X'] | None


class TeamPolicy(nn.Module):
    """A policy on sequences of observations.

    Attributes:
      outputs: numbers that the distribution of actions needs.
      hidden: widths of the layers before the memory.
      memory: units of the LSTM; 0: none.
      mixtures: Gaussians of a mixture that predicts the target's next place, whose mean the policy reads; 0: none.
    """

    outputs: int
    hidden: tuple[int, ...]
    memory: int = 0
    mixtures: int = 0

    @nn.compact
    def __call__(self, memory: Memory, x: Float[Array, 'B T D']) -> tuple[Memory, Thought]:
        for width in self.hidden:
            x = nn.tanh(nn.Dense(width, kernel_init=nn.initializers.orthogonal(2.0**0.5))(x))
        if self.memory:
            # One cell reads all steps of a sequence, so its weights are shared over time.
            over_time = nn.scan(
                nn.OptimizedLSTMCell, variable_broadcast='params', split_rngs={'params': False}, in_axes=1, out_axes=1
            )
            memory, x = over_time(self.memory)(memory, x)
        target, read = None, x
        if self.mixtures:
            target = Mixtures(1, 3, self.mixtures, (128, 128), name='target')(x)[..., 0, :]
            # The policy reads the predicted mean without giving it a gradient ("merge back").
            mean = distributions.mixture_mean(target, 3)
            read = jnp.concatenate([x, jax.lax.stop_gradient(mean)], axis=-1)
        # Small weights make the first policy nearly uniform.
        output = nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(0.01))(read)
        return memory, Thought(output, x, target)

    def start(self, sequences: int) -> Memory:
        """The memory before the first step."""
        zeros = jnp.zeros((sequences, self.memory))
        return (zeros, zeros) if self.memory else ()


class Mixtures(nn.Module):
    """A mixture of `mixtures` Gaussians of `dimensions` for each of `slots` things."""

    slots: int
    dimensions: int
    mixtures: int
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, '*S F']) -> Float[Array, '*S slots X']:
        for width in self.hidden:
            x = nn.tanh(nn.Dense(width)(x))
        # A Gaussian has a weight, and a mean and a width in each dimension.
        size = self.mixtures * (1 + 2 * self.dimensions)
        return nn.Dense(self.slots * size)(x).reshape(*x.shape[:-1], self.slots, size)


class Dynamics(nn.Module):
    """Mixtures for each of `parts`, such as teammates' poses, by features and the action taken.

    Attributes:
      parts: the number of slots and of dimensions of each part.
    """

    parts: Mapping[str, tuple[int, int]]
    mixtures: int
    hidden: tuple[int, ...] = (128, 128)

    @nn.compact
    def __call__(self, features: Float[Array, '*S F'], action: Float[Array, '*S K']) -> dict[str, Array]:
        x = jnp.concatenate([features, action], axis=-1)
        return {
            part: Mixtures(slots, dimensions, self.mixtures, self.hidden, name=part)(x)
            for part, (slots, dimensions) in self.parts.items()
        }
