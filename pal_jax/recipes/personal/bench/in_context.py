"""A person's choices as context: GPO (group preference optimisation, arXiv 2310.11523) for pairs.

    state = reading.begin(learner, key)
    state, metrics = reading.update(learner, state, x, index, exists, keys)     # a meta-batch of people for each key
    m = learner.margins(state.params, known, exists, asked)                     # a new person's known choices are read

A token is `[x_1 - x_2; y]`, the difference of two items' vectors and 1 or -1 for who won, with y = 0 on a question. The
margin is odd, `m(d) = (f(d) - f(-d)) / 2`, and its loss is that of Bradley and Terry. Each person of a meta-batch has
from 0 to `context` known choices.
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
from pal_jax.models.params import Params
from pal_jax.objectives.masked import masked_mean
from pal_jax.recipes.personal.bench import set_transformer
from pal_jax.recipes.personal.bench.reading import draw_choices
from pal_jax.recipes.personal.bench.set_transformer import SetTransformer


@dataclasses.dataclass(frozen=True)
class InContextLearner:
    """Updates on meta-batches of people, and margins given known choices.

    people: the number of people of a meta-batch. context: the most known choices. targets: questions of each person.
    steps: the length of the cosine from `lr` to 0. decay: of weights, beside it (AdamW).
    """

    net: SetTransformer
    people: int = 32
    context: int = 20
    targets: int = 20
    lr: float = 3e-4
    decay: float = 0.0
    steps: int = 1000
    person: int = 0  # nothing of a person is fitted

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam with gradients of norm at most 1, and a cosine in updates."""
        rate = optax.cosine_decay_schedule(self.lr, self.steps)
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=self.decay))

    @property
    def most(self) -> int:
        """The most known choices that are read, which is the most that there were in training."""
        return self.context

    def weights(self, key: PRNGKeyArray) -> Params:
        """The weights before the first update, by which all margins are 0."""
        return set_transformer.init(key, self.net)

    def inputs(self, choices: PairBatch, scale: np.ndarray) -> np.ndarray:
        """The differences of chosen and other items `[B, H]`."""
        return choices.difference / scale

    def draw(
        self, key: PRNGKeyArray, x: Float[Array, 'n H'], index: Int[Array, 'U T'], exists: Bool[Array, 'U T']
    ) -> tuple[Array, Array, Array, Array]:
        """A meta-batch: known choices `[B, N, H + 1]` and which exist, questions `[B, M, H]` by the chosen side, and
        which exist."""
        kept, turn = jax.random.split(key)
        context, known, asked, counted = draw_choices(kept, index, exists, self.people, self.context, self.targets)
        # The order of the two items of a known choice is drawn anew at every reading: with the chosen item first
        # throughout, the sign of a question would be its answer.
        signs = jnp.where(jax.random.bernoulli(turn, 0.5, context.shape), 1.0, -1.0)[..., None]
        tokens = jnp.concatenate([signs * x[context], signs], axis=-1)
        return tokens, known, x[asked], counted

    def loss(
        self, params: Params, key: Array, x: Float[Array, 'n H'], index: Int[Array, 'U T'], exists: Bool[Array, 'U T']
    ) -> tuple[Array, dict[str, Array]]:
        """The mean loss of the questions of a drawn meta-batch, and its metrics."""
        context, known, asked, counted = self.draw(key, x, index, exists)
        # Questions stand with the chosen item first, which an odd margin cannot tell.
        m = odd_margin(params, self.net, context, known, asked)
        total = masked_mean(jax.nn.softplus(-m), counted)
        return total, {'loss': total, 'accuracy': masked_mean((jnp.sign(m) + 1) / 2, counted)}

    @functools.partial(jax.jit, static_argnums=0)
    def margins(
        self, params: Params, known: Float[Array, 'B N H'], exists: Bool[Array, 'B N'], asked: Float[Array, 'B M H']
    ) -> Float[Array, 'B M']:
        """The margins of questions by the known choices, both as differences of the chosen item and the other."""
        # The sides of each pair are put into one order that does not depend on who won, so that a pair turned around
        # has exactly the negative margin.
        sign, sign_asked = canonical_sign(known), canonical_sign(asked)
        context = jnp.concatenate([sign[..., None] * known, sign[..., None]], axis=-1)
        return sign_asked * odd_margin(params, self.net, context, exists, sign_asked[..., None] * asked)


def odd_margin(
    params: Params, net: SetTransformer, context: Array, exists: Array, d: Float[Array, 'B M H']
) -> Float[Array, 'B M']:
    """`(f(d) - f(-d)) / 2` for differences `d`, given the tokens of a context."""
    # Both orders in one pass: a question's output depends on no other question.
    both = jnp.concatenate([d, -d], axis=1)
    questions = jnp.concatenate([both, jnp.zeros((*both.shape[:2], 1))], axis=-1)
    ahead, back = jnp.split(set_transformer.apply(params, net, context, exists, questions)[..., 0], 2, axis=1)
    return (ahead - back) / 2.0


def canonical_sign(d: Float[Array, '*S H']) -> Float[Array, '*S']:
    """The sign of the first coordinate that is not 0; 0 for a difference of equal items."""
    first = jnp.argmax(d != 0, axis=-1)
    return jnp.sign(jnp.take_along_axis(d, first[..., None], axis=-1)[..., 0])
