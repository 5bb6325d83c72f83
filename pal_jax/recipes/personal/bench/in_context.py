"""A person's choices as context: GPO (group preference optimisation, arXiv 2310.11523) for pairs.

    state = learner.init(key)
    state, metrics = learner.update(state, x, index, exists, key)     # a meta-batch of people; nothing else is theirs
    m = learner.margins(state.params, known, exists, asked)           # a new person's known choices are read

A token is `[x_1 - x_2; y]`, the difference of two items' vectors and 1 or -1 for who won, with y = 0 on a question. The
order of each pair is drawn anew at every reading of the training: with the chosen item first throughout, the sign of a
question would be its answer. The margin is odd, `m(d) = (f(d) - f(-d)) / 2`, and its loss is that of Bradley and Terry.
Each person of a meta-batch has from 0 to `context` known choices. The paper's own form, groups with shares of answers,
stands at the end; no recipe trains on it.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pal_jax.models.params import Params
from pal_jax.objectives.masked import masked_mean
from pal_jax.recipes.personal.bench import set_transformer
from pal_jax.recipes.personal.bench.set_transformer import SetTransformer


class InContextState(struct.PyTreeNode):
    """Weights, the optimiser's state, and the number of updates."""

    params: Params
    opt_state: optax.OptState
    step: Int[Array, '']


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

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Adam with gradients of norm at most 1, and a cosine in updates."""
        rate = optax.cosine_decay_schedule(self.lr, self.steps)
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=self.decay))

    def init(self, key: PRNGKeyArray) -> InContextState:
        """The state before the first update, in which all margins are 0."""
        params = set_transformer.init(key, self.net)
        return InContextState(params, self.optimizer.init(params), jnp.zeros((), jnp.int32))

    @functools.partial(jax.jit, static_argnums=(0, 6), donate_argnums=1)
    def update(
        self, state: InContextState, x: Float[Array, 'n H'], index: Int[Array, 'U T'], exists: Bool[Array, 'U T'],
        key: PRNGKeyArray, updates: int = 1,
    ) -> tuple[InContextState, dict[str, Array]]:  # fmt: skip
        """`updates` updates on differences `x` of pairs, the chosen less the other, of which `index` has each person's.

        A step's draws follow from the key and the number of the step. Metrics are means over the updates.
        """

        def one(state: InContextState, _) -> tuple[InContextState, dict[str, Array]]:
            drawn = self.draw(jax.random.fold_in(key, state.step), x, index, exists)
            grads, metrics = jax.grad(self.loss, has_aux=True)(state.params, *drawn)
            moved, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, moved)
            return InContextState(params, opt_state, state.step + 1), metrics  # type: ignore[arg-type]

        state, metrics = jax.lax.scan(one, state, length=updates)
        return state, jax.tree.map(jnp.mean, metrics)

    def draw(
        self, key: PRNGKeyArray, x: Float[Array, 'n H'], index: Int[Array, 'U T'], exists: Bool[Array, 'U T']
    ) -> tuple[Array, Array, Array, Array]:
        """A meta-batch: known choices `[B, N, H + 1]` and which exist, questions `[B, M, H]` by the chosen side, and
        which exist."""
        kept, turn = jax.random.split(key)
        context, known, asked, counted = draw_choices(kept, index, exists, self.people, self.context, self.targets)
        # The order of the two items of a known choice.
        signs = jnp.where(jax.random.bernoulli(turn, 0.5, context.shape), 1.0, -1.0)[..., None]
        tokens = jnp.concatenate([signs * x[context], signs], axis=-1)
        return tokens, known, x[asked], counted

    def loss(
        self, params: Params, context: Array, known: Array, asked: Array, counted: Array
    ) -> tuple[Array, dict[str, Array]]:
        """The mean loss of the questions, and its metrics."""
        # Questions stand with the chosen item first, which an odd margin cannot tell.
        m = odd_margin(params, self.net, context, known, asked)
        total = masked_mean(jax.nn.softplus(-m), counted)
        return total, {'loss': total, 'accuracy': masked_mean((jnp.sign(m) + 1) / 2, counted)}

    @functools.partial(jax.jit, static_argnums=0)
    def margins(
        self, params: Params, known: Float[Array, 'B N H'], exists: Bool[Array, 'B N'], asked: Float[Array, 'B M H']
    ) -> Float[Array, 'B M']:
        """The margins of questions by the known choices, both as differences of the chosen item and the other.

        The sides of each pair are put into one order that does not depend on who won, so that a pair turned around has
        exactly the negative margin.
        """
        sign, sign_asked = canonical_sign(known), canonical_sign(asked)
        context = jnp.concatenate([sign[..., None] * known, sign[..., None]], axis=-1)
        return sign_asked * odd_margin(params, self.net, context, exists, sign_asked[..., None] * asked)


def draw_choices(
    key: PRNGKeyArray, index: Int[Array, 'U T'], exists: Bool[Array, 'U T'], people: int, context: int, targets: int
) -> tuple[Int[Array, 'B N'], Bool[Array, 'B N'], Int[Array, 'B M'], Bool[Array, 'B M']]:
    """A meta-batch: the numbers of known choices and which of these exist, the same of questions."""
    who, order, number = jax.random.split(key, 3)
    # 1. People, each with as good a chance, and a random order of their choices.
    drawn = jax.random.randint(who, (people,), 0, index.shape[0])
    counts = jnp.sum(exists[drawn], axis=1)
    ranks = jnp.where(exists[drawn], jax.random.uniform(order, (people, index.shape[1])), 2.0)
    shuffled = jnp.take_along_axis(index[drawn], jnp.argsort(ranks, axis=1), axis=1)
    # 2. From none to `context` of them are known; at least one is asked.
    most = jnp.clip(counts - 1, 0, context)
    known = jnp.floor(jax.random.uniform(number, most.shape) * (most + 1)).astype(jnp.int32)
    places = known[:, None] + jnp.arange(targets)[None]
    asked = jnp.take_along_axis(shuffled, jnp.minimum(places, index.shape[1] - 1), axis=1)
    shown = shuffled[:, :context]
    return shown, jnp.arange(shown.shape[1])[None] < known[:, None], asked, places < counts[:, None]


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


def scale_of(x: np.ndarray) -> np.ndarray:
    """The root mean square of each coordinate of differences `[n, H]`, by which a network's inputs are divided."""
    return np.sqrt(np.maximum(np.mean(np.square(x), axis=0), 1e-12)).astype(np.float32)


# --- shares of answers, the paper's own form --------------------------------------------------------------------------


def share_nll(
    mean: Float[Array, ' n'], log_std: Float[Array, ' n'], shares: Float[Array, ' n'], question: Int[Array, ' n'],
    questions: int,
) -> Float[Array, ' n']:  # fmt: skip
    """GPO's loss: the negative log likelihood of each option's share, a normal one about the softmax of its question.

    A question has several options; the model gives each a mean and a log standard deviation.
    """
    mean = mean - jax.lax.stop_gradient(jax.ops.segment_max(mean, question, questions))[question]
    weight = jnp.exp(mean)
    foretold = weight / jax.ops.segment_sum(weight, question, questions)[question]
    apart = (shares - foretold) * jnp.exp(-log_std)
    return jnp.square(apart) / 2.0 + log_std + math.log(2.0 * math.pi) / 2.0


def share_score(p: Float[Array, '*S A'], q: Float[Array, '*S A']) -> Float[Array, '*S']:
    """GPO's score: 1 less the Wasserstein distance of two distributions over options, as a share of the largest.

    Options stand 1 apart, so the largest distance is their number less 1.
    """
    return 1.0 - jnp.sum(jnp.abs(jnp.cumsum(p - q, axis=-1))[..., :-1], axis=-1) / (p.shape[-1] - 1)
