"""The order of questions to a new person: the next pair is the one whose answer tells most about who they are.

The information expected of an answer is its mutual information with the person's logits, given the answers so far,

    I = h(E_z p) - E_z h(p),        p = sigmoid(margin(z)),  h(p) = -p log p - (1 - p) log(1 - p)

It measures how far people who could have given these answers disagree about the next one (BALD: Houlsby, Huszár,
Ghahramani & Lengyel 2011, "Bayesian active learning for classification and preference learning"). The people who could
have given them are drawn from Laplace's approximation. It is a normal distribution about the likeliest logits, under a
Bradley-Terry model of answers and the Gaussian prior of new users. Its precision is that of Gauss-Newton, `sum p (1 -
p) J J' + pull`.

The other rule has no draws: it is the gain in the logarithm of that determinant by one more answer
(`ellipsoid`), after PReF (arXiv 2503.06358), whose code has its own forms of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt32

DRAWS = 64  # draws of a person's logits, to average over
NEWTON = 50  # damped steps to the likeliest logits, at most
NEAR = 1e-5  # nats from the likeliest logits, by the quadratic about them, from which one more step is enough
ROUNDING = 1e-6  # of a loss in float32, by which it may seem to grow
UNASKED = 2**30

Question = Literal['information', 'ellipsoid']


class People(NamedTuple):
    """New users with their pairs: the margins of pairs by logits of pairs, the users of the pairs, and their prior."""

    margins: Callable[[Float[Array, 'B K']], Float[Array, ' B']]
    users: Int[Array, ' B']
    prior: Float[Array, 'U K']  # the mean
    pull: float  # the precision

    def with_slopes(self, z: Float[Array, 'U K']) -> tuple[Float[Array, ' B'], Float[Array, 'B K']]:
        """The margins, and the derivative of each by the logits of its user."""
        margin, pull_back = jax.vjp(self.margins, z[self.users])
        return margin, pull_back(jnp.ones_like(margin))[0]


class Posterior(NamedTuple):
    """The negative logarithm of users' posteriors, but for a constant, its gradient and its Gauss-Newton matrix."""

    loss: Float[Array, ' U']
    gradient: Float[Array, 'U K']
    precision: Float[Array, 'U K K']


Carry = tuple[Array, Array, Posterior, Array, Array]  # steps, logits, posteriors, dampings, the farthest one's nats


def order(
    people: People, exists: Bool[Array, ' B'], questions: int, key: UInt32[Array, '2'], rule: Question
) -> Int[Array, ' B']:
    """Number the pairs of each user from 0 in the order in which they are asked.

    A pair past `questions`, or one that does not exist, gets the number `UNASKED`. The margins are those of the
    recorded answers, but the next question depends only on answers to earlier questions. Every user is asked one
    question at a time.
    """
    users, count = people.users, people.prior.shape[0]

    def step(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        z, turn = carry
        answered = turn < UNASKED
        # 1. The likeliest logits after the answers so far, and what is expected of each pair.
        z, expected = expect(people, answered, jax.random.fold_in(key, i), z, rule)
        # 2. The best pair of each user that was not asked before; the first one of equals.
        expected = jnp.where(exists & ~answered, expected, -1.0)
        best = jax.ops.segment_max(expected, users, count)[users]
        rows = jnp.where((expected == best) & (expected >= 0), jnp.arange(users.shape[0]), UNASKED)
        # 3. Its answer is known from the next turn on.
        return (z, turn.at[jax.ops.segment_min(rows, users, count)].set(i, mode='drop')), None

    start = people.prior, jnp.full(users.shape, UNASKED, jnp.int32)
    (_, turn), _ = jax.lax.scan(step, start, jnp.arange(questions, dtype=jnp.int32))
    return turn


def expect(
    people: People, answered: Bool[Array, ' B'], key: UInt32[Array, '2'], start: Float[Array, 'U K'], rule: Question
) -> tuple[Float[Array, 'U K'], Float[Array, ' B']]:
    """Each user's likeliest logits given the answered pairs, and the information in nats expected of each pair.

    Newton's method begins at `start`.
    """
    # The posterior's mode, by Newton's method.
    z, precision = mode(people, answered, start)
    if rule == 'ellipsoid':
        margin, slopes = people.with_slopes(z)
        return z, ellipsoid(margin, slopes, jnp.linalg.inv(precision)[people.users])
    # Laplace's approximation: normal draws about the mode, with the inverse of the precision as covariance.
    spread = jnp.linalg.inv(jnp.linalg.cholesky(precision))  # its transpose times noise has the covariance
    noise = jax.random.normal(key, (DRAWS, *z.shape))
    drawn = z[None] + jnp.einsum('ujk,suj->suk', spread, noise)
    return z, information(jax.lax.map(lambda logits: people.margins(logits[people.users]), drawn))


def mode(
    people: People, answered: Array, start: Float[Array, 'U K'], steps: int = NEWTON
) -> tuple[Float[Array, 'U K'], Float[Array, 'U K K']]:
    """Each user's likeliest logits given the pairs that are answered, or by weights `[B]` of pairs, and the precision
    there.

    The steps are Newton's, with a damping by user that grows where a step would not be downhill and shrinks where one
    was (Levenberg 1944, Marquardt 1963). There are at most `steps` of them.
    """
    known, pull = answered.astype(jnp.float32), people.pull

    def newton(now: Posterior, damping: Array) -> Array:
        # Without a damping a surprising answer throws a person far away: where the sigmoid is flat, only the weak prior
        # bounds a step.
        curved = now.precision + damping[:, None, None] * jnp.eye(start.shape[1])[None]
        return jnp.linalg.solve(curved, now.gradient[..., None])[..., 0]

    def step(carry: Carry) -> Carry:
        i, z, now, damping, _ = carry
        far = jnp.max(jnp.sum(now.gradient * newton(now, jnp.zeros_like(damping)), axis=1)) / 2
        tried = z - newton(now, damping)
        then = posterior(people, tried, known)
        # 1. A step that is not downhill is not taken, and the next one is shorter.
        lower = then.loss <= now.loss * (1 + ROUNDING)
        z, now = jax.tree.map(
            lambda new, old: jnp.where(lower.reshape(-1, *(1,) * (old.ndim - 1)), new, old), (tried, then), (z, now)
        )
        # 2. Near the mode there is no damping, so the steps converge as Newton's do.
        damping = jnp.where(lower, damping / 8, jnp.maximum(4 * damping, pull))
        return i + 1, z, now, jnp.where(damping < pull / 8, 0.0, damping), far

    first = posterior(people, start, known)
    carry = jnp.zeros((), jnp.int32), start, first, jnp.zeros(start.shape[0]), jnp.array(jnp.inf)
    # The steps end with the first before which nobody was farther away than `NEAR`.
    _, z, now, _, _ = jax.lax.while_loop(lambda carry: (carry[0] < steps) & (carry[4] > NEAR), step, carry)
    return z, now.precision


def posterior(people: People, z: Float[Array, 'U K'], known: Float[Array, ' B']) -> Posterior:
    """Users' posteriors at `z`, given pairs of these weights."""
    (margin, slopes), apart, count = people.with_slopes(z), z - people.prior, z.shape[0]
    wrong = jax.nn.sigmoid(-margin)  # the probability of the other answer
    loss = jax.ops.segment_sum(known * jax.nn.softplus(-margin), people.users, count)
    gradient = jax.ops.segment_sum((-known * wrong)[:, None] * slopes, people.users, count) + people.pull * apart
    weight = known * wrong * (1.0 - wrong)
    squares = jax.ops.segment_sum(weight[:, None, None] * slopes[:, :, None] * slopes[:, None], people.users, count)
    prior = people.pull / 2 * jnp.sum(jnp.square(apart), axis=1)
    return Posterior(loss + prior, gradient, squares + people.pull * jnp.eye(z.shape[1])[None])


def ellipsoid(
    margin: Float[Array, ' B'], slopes: Float[Array, 'B K'], inverse: Float[Array, 'B K K']
) -> Float[Array, ' B']:
    """The amount by which an answer to each pair shrinks the ellipsoid of a person's likely logits.

    With `v = x' H^-1 x` for a margin's slopes `x` by the logits and `s' = p (1 - p)` it is `log(1 + s' v)`, the gain in
    log det H by the answer. `inverse` is the inverse `H^-1` of each pair's own person.
    """
    variance = jnp.einsum('bi,bij,bj->b', slopes, inverse, slopes)
    return jnp.log1p(jax.nn.sigmoid(margin) * jax.nn.sigmoid(-margin) * variance)


def information(margins: Float[Array, 'S B']) -> Float[Array, ' B']:
    """The nats that an answer is expected to tell of which draw of logits is the person's."""

    def entropy(p: Array) -> Array:
        return jax.scipy.special.entr(p) + jax.scipy.special.entr(1.0 - p)

    probability = jax.nn.sigmoid(margins)
    return jnp.maximum(entropy(jnp.mean(probability, axis=0)) - jnp.mean(entropy(probability), axis=0), 0.0)
