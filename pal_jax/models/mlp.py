"""Small networks on flat observations: a policy and a critic of several channels, on flax.linen.

Without hidden layers a network is one affine map; on one-hot observations that is a table.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from pal_jax.objectives.distributions import Categorical, Distribution


class MLP(nn.Module):
    """Layers of `hidden` widths with tanh between them, and `outputs` numbers at the end.

    Weights start orthogonal; `scale` is that of the last layer's, so a small one starts near 0.
    """

    hidden: tuple[int, ...]
    outputs: int
    scale: float = 1.0

    @nn.compact
    def __call__(self, x: Float[Array, '*S D']) -> Float[Array, '*S K']:
        for width in self.hidden:
            x = nn.tanh(nn.Dense(width, kernel_init=nn.initializers.orthogonal(2.0**0.5))(x))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.orthogonal(self.scale))(x)


class PolicyMLP(nn.Module):
    """The output that a distribution of actions needs. A Gaussian's deviations are the same in every state."""

    actions: Distribution
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, '*S D']) -> Float[Array, '*S K']:
        if isinstance(self.actions, Categorical):
            # A small last layer starts near the uniform policy.
            return MLP(self.hidden, self.actions.width, scale=0.01)(x)
        mean = MLP(self.hidden, self.actions.dimensions, scale=0.01)(x)
        # The deviations are parameters and no outputs, so they are the same in every state.
        log_std = self.param('log_std', nn.initializers.constant(-0.5), (self.actions.dimensions,))
        return jnp.concatenate([mean, jnp.broadcast_to(log_std, mean.shape)], axis=-1)
