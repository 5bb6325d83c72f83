"""A reward model that knows a person by a latent vector: variational preference learning (VPL, Poddar et al. 2024,
arXiv 2408.10075, section 4), on vectors that a frozen decoder makes of texts.

    params = init(key, width, latent)
    mean, log_std = encode(params, past)                # of people, from both sides of past choices
    scores = score(params, vectors, z)                  # of replies, for the people who have z
    state, metrics = update(state, past, pairs, key)    # update = make_update(optimizer, latent)

The loss is that of Bradley and Terry with a drawn z, plus `kl_coef` times the divergence of z's distribution from N(0,
1).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from pal_jax.models.params import Params
from pal_jax.run.optim import Optimizer


@dataclasses.dataclass(frozen=True)
class Latent:
    """Widths of the network, and the weight of the divergence."""

    dim: int = 512  # the length of a person's vector
    hidden: int = 512  # the width of the hidden layers
    kl_coef: float = 1e-4  # weight of the divergence of a vector's distribution from N(0, 1)


class LatentState(struct.PyTreeNode):
    """The weights of encoder and reward model, and the optimiser's state."""

    params: Params
    opt_state: optax.OptState


def init(key: PRNGKeyArray, width: int, latent: Latent) -> Params:
    """Weights of variance 1 / inputs; those of `log_std` and `score` begin at 0."""
    dim, hidden = latent.dim, latent.hidden
    shapes = {
        'pair': (2 * width, hidden),
        'person': (hidden, hidden),
        'mean': (hidden, dim),
        'log_std': (hidden, dim),
        'reply': (width + dim, hidden),
        'both': (hidden, hidden),
        'score': (hidden, 1),
    }
    params = {}
    for name, (inner, out) in shapes.items():
        key, layer_key = jax.random.split(key)
        # Zeros here: all scores begin equal, and all standard deviations at 1.
        scale = 0.0 if name in ('log_std', 'score') else inner**-0.5
        params[name] = {'w': scale * jax.random.normal(layer_key, (inner, out)), 'b': jnp.zeros(out)}
    return params


def encode(
    params: Params, past: Float[Array, 'B T 2 D'], exists: Bool[Array, 'B T'] | None = None, nothing: float = 0.0
) -> tuple[Float[Array, 'B Z'], Float[Array, 'B Z']]:
    """The mean and log standard deviation of z, from `T` past choices: the chosen reply and the other one.

    Choices that do not exist count nowhere; by default all do. `nothing` counts as so much of a choice that says
    nothing.
    """
    # Past choices have no order: each is read by itself, and z is made of their mean (the paper has attention there).
    read = jax.nn.gelu(_dense(params['pair'], past.reshape(*past.shape[:2], -1)))
    if exists is None:
        mean = read.mean(axis=1)
    else:
        kept = jnp.sum(jnp.where(exists[..., None], read, 0.0), axis=1)
        # The mean is shorter the fewer choices there are.
        mean = kept / jnp.maximum(jnp.sum(exists, axis=1, keepdims=True) + nothing, 1.0)
    person = jax.nn.gelu(_dense(params['person'], mean))
    return _dense(params['mean'], person), _dense(params['log_std'], person)


def score(params: Params, vectors: Float[Array, 'B *S D'], z: Float[Array, 'B Z']) -> Float[Array, 'B *S']:
    """The score of each reply for each person."""
    apart = z.reshape(len(z), *[1] * (vectors.ndim - 2), -1)
    known = jnp.concatenate([vectors, jnp.broadcast_to(apart, (*vectors.shape[:-1], z.shape[-1]))], axis=-1)
    hidden = jax.nn.gelu(_dense(params['both'], jax.nn.gelu(_dense(params['reply'], known))))
    return _dense(params['score'], hidden)[..., 0]


def draw(key: PRNGKeyArray, mean: Float[Array, 'B Z'], log_std: Float[Array, 'B Z']) -> Float[Array, 'B Z']:
    """A draw of each person's z, through which gradients reach its mean and deviation."""
    return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)


def divergence(mean: Float[Array, '*S Z'], log_std: Float[Array, '*S Z']) -> Float[Array, '*S']:
    """KL(N(mean, std) || N(0, 1)), summed over z."""
    return 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(2.0 * log_std) - 1.0 - 2.0 * log_std, axis=-1)


def loss(
    params: Params, past: Float[Array, 'B T 2 D'], pairs: Float[Array, 'B S 2 D'], key: PRNGKeyArray, kl_coef: float
) -> tuple[Array, dict[str, Array]]:
    """The loss of `S` choices of each person, the chosen reply first, with its metrics."""
    # 1. The distribution of each person's z, from past choices.
    mean, log_std = encode(params, past)
    # 2. The scores of further choices by one drawn z, through which gradients reach the encoder.
    scores = score(params, pairs, draw(key, mean, log_std))
    gaps, kl = scores[..., 0] - scores[..., 1], divergence(mean, log_std).mean()
    # 3. The negative lower bound of the evidence: the fit of the choices, and the divergence from the prior.
    fit = jax.nn.softplus(-gaps).mean()
    total = fit + kl_coef * kl
    return total, {'loss': total, 'reward': -fit, 'accuracy': (gaps > 0).mean(), 'kl': kl}


def make_update(optimizer: Optimizer, latent: Latent) -> Callable[..., tuple[LatentState, dict[str, Array]]]:
    """A compiled step of the optimiser on the loss; a batch without people or choices makes no step and has no
    figures."""

    @jax.jit
    def update(
        state: LatentState, past: Array, pairs: Array, key: PRNGKeyArray
    ) -> tuple[LatentState, dict[str, Array]]:
        # A step on nothing would still move the weights by the moments.
        if not pairs.shape[0] * pairs.shape[1]:
            return state, {}
        grads, metrics = jax.grad(loss, has_aux=True)(state.params, past, pairs, key, latent.kl_coef)
        moved, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, moved)
        return LatentState(params, opt_state), metrics

    return update


def _dense(layer: dict[str, Array], x: Float[Array, '*S I']) -> Float[Array, '*S O']:
    out = x @ layer['w']
    return out + jnp.broadcast_to(layer['b'], out.shape)
