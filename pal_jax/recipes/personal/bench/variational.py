"""People as normal distributions, and bases that are distributions, too: a form of variational reward factorisation.

[own]; no method section could be read. VRF (arXiv 2604.00997) is known by its abstract: an encoder gives each person a
distribution in a shared space, weights come from Wasserstein distances to shared bases, and uncertain margins count
less. All formulas below are this project's own, and no run of them is a run of VRF.

    mean, std = encode(past choices)                         # of a person, learners/latent.py
    w_k = softmax_k(-W2²((mean, std), (M_k, S_k)) / tau)     # bases N(M_k, diag S_k²) are learnt
    m = x . V w
    v = the variance of m over points drawn from N(mean, std²) in the distribution's place
    loss = softplus(-probit(m, v)) + kl_coef KL(N(mean, std²) || N(0, 1))    # uncertain margins count less

A new person is one pass of the encoder.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pal_jax.data.comparisons import PairBatch
from pal_jax.learners import latent
from pal_jax.learners.latent import Latent
from pal_jax.models.params import Params
from pal_jax.objectives.masked import masked_mean
from pal_jax.recipes.personal.bench.reading import draw_choices

ENCODER = 'pair', 'person', 'mean', 'log_std'  # the parts of VPL's network that encode


def probit(m: Float[Array, '*S'], variance: Float[Array, '*S']) -> Float[Array, '*S']:
    """The log-odds of the mean probability over a margin's variance, approximately: `m / sqrt(1 + pi v / 8)`."""
    return m / jnp.sqrt(1.0 + jnp.pi * variance / 8.0)


def w2_squared(
    mean: Float[Array, '*S 1 Z'], std: Float[Array, '*S 1 Z'], M: Float[Array, '*S K Z'], S: Float[Array, '*S K Z']
) -> Float[Array, '*S K']:
    """The squared Wasserstein distance of normal distributions with diagonal covariances."""
    return jnp.sum(jnp.square(mean - M) + jnp.square(std - S), axis=-1)


def weights(params: Params, mean: Float[Array, '*S Z'], std: Float[Array, '*S Z'], tau: float) -> Float[Array, '*S K']:
    """The weights of the bases, by their distances."""
    apart = (1,) * (mean.ndim - 1)
    M, S = (x.reshape(*apart, *x.shape) for x in (params['M'], jnp.exp(params['log_S'])))
    # The nearer a basis is, the more it weighs.
    return jax.nn.softmax(-w2_squared(mean[..., None, :], std[..., None, :], M, S) / tau, axis=-1)


@dataclasses.dataclass(frozen=True)
class VariationalLearner:
    """Updates on meta-batches of people, and margins with their variances.

    width: of an item's vector. bases: K. dim, hidden: widths of the encoder. draws: points of a person, for `v`.
    people, context, targets: a meta-batch, as `InContextLearner` has it.
    """

    width: int
    bases: int = 4
    dim: int = 4
    hidden: int = 32
    tau: float = 1.0
    kl_coef: float = 1e-4
    draws: int = 8
    people: int = 32
    context: int = 20
    targets: int = 20
    lr: float = 3e-3
    most: None = None  # all known choices are read

    @property
    def optimizer(self) -> optax.GradientTransformation:
        return optax.adam(self.lr)

    @property
    def person(self) -> int:
        """A mean and a deviation for each number."""
        return 2 * self.dim

    def weights(self, key: PRNGKeyArray) -> Params:
        """The weights before the first update."""
        encoder, places, rewards = jax.random.split(key, 3)
        whole = latent.init(encoder, self.width, Latent(self.dim, self.hidden))
        return {name: whole[name] for name in ENCODER} | {
            'M': jax.random.normal(places, (self.bases, self.dim)),
            'log_S': jnp.zeros((self.bases, self.dim)),
            'V': jax.random.normal(rewards, (self.bases, self.width)) * self.width**-0.5,
        }

    def inputs(self, choices: PairBatch, scale: np.ndarray) -> np.ndarray:
        """The differences of chosen and other items `[B, H]`."""
        return choices.difference / scale

    def read(self, params: Params, known: Float[Array, 'B N H'], exists: Bool[Array, 'B N']) -> tuple[Array, Array]:
        """The mean and standard deviation `[B, Z]` of people, from differences of their known choices."""
        # The encoder reads two sides of a choice, here the difference and its negative. One choice that says nothing
        # goes with them, so that a person of few choices is near the middle.
        mean, log_std = latent.encode(params, jnp.stack([known, -known], axis=2), exists, nothing=1.0)
        return mean, jnp.exp(log_std)

    def judge(
        self, params: Params, mean: Array, std: Array, asked: Float[Array, 'B M H'], key: PRNGKeyArray
    ) -> tuple[Float[Array, 'B M'], Float[Array, 'B M']]:
        """The margins of questions and their variances over points of the person."""
        by_base = asked @ params['V'].T
        m = jnp.einsum('bmk,bk->bm', by_base, weights(params, mean, std, self.tau))
        # A point is a distribution without spread, so the same distance serves.
        points = mean[None] + std[None] * jax.random.normal(key, (self.draws, *mean.shape))
        drawn = weights(params, points, jnp.zeros_like(points), self.tau)
        return m, jnp.var(jnp.einsum('bmk,sbk->sbm', by_base, drawn), axis=0)

    def loss(
        self, params: Params, key: Array, x: Float[Array, 'n H'], index: Int[Array, 'U T'], exists: Bool[Array, 'U T']
    ) -> tuple[Array, dict[str, Array]]:
        """The mean loss of the questions of a drawn meta-batch and the divergence from the prior, with metrics."""
        people, points = jax.random.split(key)
        known, there, asked, counted = draw_choices(people, index, exists, self.people, self.context, self.targets)
        mean, std = self.read(params, x[known], there)
        m, v = self.judge(params, mean, std, x[asked], points)
        kl = latent.divergence(mean, jnp.log(std)).mean()
        # Margins that are uncertain are shortened by `probit`, so they count less.
        total = masked_mean(jax.nn.softplus(-probit(m, v)), counted) + self.kl_coef * kl
        right = masked_mean((jnp.sign(m) + 1) / 2, counted)
        return total, {'loss': total, 'accuracy': right, 'variance': masked_mean(v, counted), 'kl': kl}

    @functools.partial(jax.jit, static_argnums=0)
    def margins(
        self, params: Params, known: Float[Array, 'B N H'], exists: Bool[Array, 'B N'], asked: Float[Array, 'B M H']
    ) -> Float[Array, 'B M']:
        """The log-odds of the mean probability over who the person could be, as in the loss."""
        return probit(*self.predict(params, known, exists, asked))

    def predict(
        self, params: Params, known: Float[Array, 'B N H'], exists: Bool[Array, 'B N'], asked: Float[Array, 'B M H']
    ) -> tuple[Float[Array, 'B M'], Float[Array, 'B M']]:
        """The margins of questions given known choices, and their variances."""
        mean, std = self.read(params, known, exists)
        # The points are the same at every call, so that margins are.
        return self.judge(params, mean, std, asked, jax.random.key(0))
