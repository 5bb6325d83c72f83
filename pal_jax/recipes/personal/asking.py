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
Form = Literal['determinant', 'variance', 'slope', 'squared_slope']

Margins = Callable[[Float[Array, 'B K']], Float[Array, ' B']]  # logits by pair to margins by pair


class Posterior(NamedTuple):
    """The negative logarithm of users' posteriors, but for a constant, its gradient and its Gauss-Newton matrix."""

    loss: Float[Array, ' U']
    gradient: Float[Array, 'U K']
    precision: Float[Array, 'U K K']


Carry = tuple[Array, Array, Posterior, Array, Array]  # steps, logits, posteriors, dampings, the farthest one's nats


def order(
    margins: Margins, users: Int[Array, ' B'], exists: Bool[Array, ' B'], prior: Float[Array, 'U K'], *, pull: float,
    questions: int, key: UInt32[Array, '2'], rule: Question = 'information',
) -> Int[Array, ' B']:  # fmt: skip
    """Number the pairs of each user from 0 in the order in which they are asked.

    A pair past `questions`, or one that does not exist, gets the number `UNASKED`. The margins are those of the
    recorded answers, but the next question depends only on answers to earlier questions. Every user is asked one
    question at a time.
    """
    rows, people = jnp.arange(users.shape[0]), prior.shape[0]

    def step(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        z, turn = carry
        answered = turn < UNASKED
        # 1. The likeliest logits after the answers so far, and what is expected of each pair.
        z, expected = expect(
            margins, users, answered, prior, pull=pull, key=jax.random.fold_in(key, i), start=z, rule=rule
        )
        # 2. The best pair of each user that was not asked before; the first one of equals.
        expected = jnp.where(exists & ~answered, expected, -1.0)
        best = jax.ops.segment_max(expected, users, people)[users]
        first = jax.ops.segment_min(jnp.where((expected == best) & (expected >= 0), rows, UNASKED), users, people)
        # 3. Its answer is known from the next turn on.
        return (z, turn.at[first].set(i, mode='drop')), None

    start = prior, jnp.full(users.shape, UNASKED, jnp.int32)
    (_, turn), _ = jax.lax.scan(step, start, jnp.arange(questions, dtype=jnp.int32))
    return turn


def expect(
    margins: Margins, users: Int[Array, ' B'], answered: Bool[Array, ' B'], prior: Float[Array, 'U K'], *, pull: float,
    key: UInt32[Array, '2'], start: Float[Array, 'U K'], rule: Question = 'information',
) -> tuple[Float[Array, 'U K'], Float[Array, ' B']]:  # fmt: skip
    """Each user's likeliest logits given the answered pairs, and the information in nats expected of each pair.

    Newton's method begins at `start`.
    """
    # The posterior's mode, by Newton's method.
    z, precision = mode(margins, users, answered, prior, pull=pull, start=start)
    if rule == 'ellipsoid':
        margin, slopes = _with_slopes(margins, z[users])
        return z, ellipsoid(margin, slopes, jnp.linalg.inv(precision)[users], 'determinant')
    # Laplace's approximation: normal draws about the mode, with the inverse of the precision as covariance.
    spread = jnp.linalg.inv(jnp.linalg.cholesky(precision))  # its transpose times noise has the covariance
    noise = jax.random.normal(key, (DRAWS, *z.shape))
    drawn = z[None] + jnp.einsum('ujk,suj->suk', spread, noise)
    return z, information(jax.lax.map(lambda logits: margins(logits[users]), drawn))


def mode(
    margins: Margins, users: Int[Array, ' B'], answered: Array, prior: Float[Array, 'U K'], *, pull: float,
    start: Float[Array, 'U K'], steps: int = NEWTON,
) -> tuple[Float[Array, 'U K'], Float[Array, 'U K K']]:  # fmt: skip
    """Each user's likeliest logits given the pairs that are answered, or by weights `[B]` of pairs, and the precision
    there.

    The steps are Newton's, with a damping by user that grows where a step would not be downhill and shrinks where one
    was (Levenberg 1944, Marquardt 1963). Without it a surprising answer throws a person far away: where the sigmoid is
    flat, only the weak prior bounds a step. The steps end with the first before which nobody was `NEAR` away, or after
    `steps` of them.
    """
    known = answered.astype(jnp.float32)

    def newton(now: Posterior, damping: Array) -> Array:
        curved = now.precision + damping[:, None, None] * jnp.eye(prior.shape[1])[None]
        return jnp.linalg.solve(curved, now.gradient[..., None])[..., 0]

    def step(carry: Carry) -> Carry:
        i, z, now, damping, _ = carry
        far = jnp.max(jnp.sum(now.gradient * newton(now, jnp.zeros_like(damping)), axis=1)) / 2
        tried = z - newton(now, damping)
        then = _posterior(margins, tried, users, known, prior, pull)
        # 1. A step that is not downhill is not taken, and the next one is shorter.
        lower = then.loss <= now.loss * (1 + ROUNDING)
        z, now = jax.tree.map(
            lambda new, old: jnp.where(lower.reshape(-1, *(1,) * (old.ndim - 1)), new, old), (tried, then), (z, now)
        )
        # 2. Near the mode there is no damping, so the steps converge as Newton's do.
        damping = jnp.where(lower, damping / 8, jnp.maximum(4 * damping, pull))
        return i + 1, z, now, jnp.where(damping < pull / 8, 0.0, damping), far

    first = _posterior(margins, start, users, known, prior, pull)
    carry = jnp.zeros((), jnp.int32), start, first, jnp.zeros(prior.shape[0]), jnp.array(jnp.inf)
    _, z, now, _, _ = jax.lax.while_loop(lambda carry: (carry[0] < steps) & (carry[4] > NEAR), step, carry)
    return z, now.precision


def ellipsoid(
    margin: Float[Array, ' B'], slopes: Float[Array, 'B K'], inverse: Float[Array, 'B K K'], form: Form
) -> Float[Array, ' B']:
    """The amount by which an answer to each pair shrinks the ellipsoid of a person's likely logits.

    With `v = x' H^-1 x` for a margin's slopes `x` by the logits, and `s' = p (1 - p)`, it is by `form`

    - determinant: `log(1 + s' v)`, the gain in log det H by the answer.
    - variance: `v`. slope: `s' v`. squared_slope: `s'^2 v`, as PReF's code has it.

    Args:
      inverse: the inverse `H^-1` of each pair's own person.

    Raises:
      ValueError: `form` is none of these.
    """
    variance = jnp.einsum('bi,bij,bj->b', slopes, inverse, slopes)
    slope = jax.nn.sigmoid(margin) * jax.nn.sigmoid(-margin)
    match form:
        case 'determinant':
            return jnp.log1p(slope * variance)
        case 'variance':
            return variance
        case 'slope':
            return slope * variance
        case 'squared_slope':
            return jnp.square(slope) * variance
    raise ValueError(f'unknown form {form!r}; use one of determinant, variance, slope, squared_slope')


def information(margins: Float[Array, 'S B']) -> Float[Array, ' B']:
    """The nats that an answer is expected to tell of which draw of logits is the person's."""
    probability = jax.nn.sigmoid(margins)
    entropy = jnp.mean(_entropy(probability), axis=0)
    return jnp.maximum(_entropy(jnp.mean(probability, axis=0)) - entropy, 0.0)


def _entropy(p: Array) -> Array:
    return jax.scipy.special.entr(p) + jax.scipy.special.entr(1.0 - p)


def _posterior(margins: Margins, z: Array, users: Array, known: Array, prior: Array, pull: float) -> Posterior:
    """Users' posteriors at `z`."""
    people = z.shape[0]
    margin, slopes = _with_slopes(margins, z[users])
    wrong = jax.nn.sigmoid(-margin)  # the probability of the other answer
    loss = jax.ops.segment_sum(known * jax.nn.softplus(-margin), users, people)
    gradient = jax.ops.segment_sum((-known * wrong)[:, None] * slopes, users, people) + pull * (z - prior)
    weight = known * wrong * (1.0 - wrong)
    squares = jax.ops.segment_sum(weight[:, None, None] * slopes[:, :, None] * slopes[:, None], users, people)
    apart = pull / 2 * jnp.sum(jnp.square(z - prior), axis=1)
    return Posterior(loss + apart, gradient, squares + pull * jnp.eye(z.shape[1])[None])


def _with_slopes(margins: Margins, z: Float[Array, 'B K']) -> tuple[Float[Array, ' B'], Float[Array, 'B K']]:
    """The margins, and the derivative of each by its own logits."""
    margin, pull_back = jax.vjp(margins, z)
    (slopes,) = pull_back(jnp.ones_like(margin))
    return margin, slopes
