"""PReF (arXiv 2503.06358): its start and its questions by golden numbers, and its weights on a population of rank 3."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.recipes.personal import asking
from pal_jax.recipes.personal.bench import low_rank
from tests.recipes.personal import people

A = np.array([[1, 1, 0], [1, np.nan, 0], [0, 0, 1], [np.nan, 0, 1]])  # pairs x people
MISSING = np.isnan(A)


def close(values, expected, atol=2e-6):
    np.testing.assert_allclose(values, expected, atol=atol)


def published(rank, rounds):
    return low_rank.refill(np.where(MISSING, 0.5, A), MISSING, rank=rank, rounds=rounds, low=0.0, high=1.0)


@pytest.mark.parametrize(
    ('rank', 'rounds', 'cells'),
    [(1, 1, (0.577615, 0.533278)), (1, 10, (0.737760, 0.405447)), (2, 10, (0.976426, 0.040441))],
)
def test_missing_cells_by_rank_and_rounds(rank, rounds, cells):
    close(published(rank, rounds).filled[MISSING], cells)


def test_a_full_rank_fills_nothing_in():
    with pytest.raises(ValueError, match='rank=3'):
        published(3, 10)


def test_singular_values_of_the_last_round():
    close(published(1, 10).values, 1.916294)
    close(published(2, 10).values, [1.984963, 1.414197])


def test_half_is_no_indifference_among_logits():
    parts = published(2, 10)
    product, known = parts.items @ parts.people.T, ~MISSING
    right = [
        np.mean(np.where(A[known] > 0.5, values > 0, values < 0)) for values in (product[known], product[known] - 0.5)
    ]
    close(right, [0.7, 1.0])


def test_the_centred_start():
    Y = np.where(MISSING, 0.0, 2 * A - 1)
    parts = low_rank.refill(Y, MISSING, rank=1, rounds=10, low=-1.0, high=1.0)
    flipped = -parts.people if parts.people[0, 0] < 0 else parts.people
    items = parts.items * np.sign(parts.people[0, 0])
    close(parts.values, 3.463920)
    close(items[:, 0], [0.930629, 0.930532, -0.930629, -0.930532])
    close(flipped[:, 0], [1.074514, 1.074514, -1.074598])
    close(parts.filled[MISSING], [0.999869, -0.999869])


def test_a_pair_is_one_whichever_side_was_chosen():
    """Two people and two pairs: the second person has turned the first pair around."""
    x = np.array([[1.0, -2.0], [0.5, 1.0], [-1.0, 2.0], [0.5, 1.0]])
    Y, missing, different = low_rank.judgements(x, np.array([0, 0, 1, 1]), 3)
    np.testing.assert_array_equal(different, [[0.5, 1.0], [1.0, -2.0]])
    np.testing.assert_array_equal(Y, [[1, 1, 0], [1, -1, 0]])
    np.testing.assert_array_equal(missing, [[False, False, True]] * 2)


def test_the_start_knows_camps_before_an_update():
    """Thirty people of two tastes judge the same pairs."""
    rng = np.random.default_rng(0)
    tastes, x = rng.normal(size=(2, people.WIDTH)), rng.normal(size=(40, people.WIDTH))
    signs = np.sign(x @ tastes[np.arange(30) % 2].T)  # [pairs, people]
    chosen, users = (signs.T[:, :, None] * x[None]).reshape(-1, people.WIDTH), np.repeat(np.arange(30), 40)
    assert low_rank.can_start(chosen, users, 30, 2) and not low_rank.can_start(chosen, users, 30, 30)
    P, z = low_rank.start(*low_rank.judgements(chosen, users, 30), rank=2)
    learner = people.make_learner(2, 'linear', users=30)
    state = low_rank.placed(learner, learner.init(jnp.zeros(1, jnp.int32)), P, z)
    assert people.accuracy(learner, state, state.users.z, chosen.reshape(30, 40, -1).astype(np.float32)) > 0.9
    apart = rng.normal(size=chosen.shape)
    assert not low_rank.can_start(apart, users, 30, 2)
    with pytest.raises(ValueError, match='several people'):
        low_rank.start(*low_rank.judgements(apart, users, 30), rank=2)


# --- questions --------------------------------------------------------------------------------------------------------

ASKED = jnp.array([[1.0, 0.0], [1.0, 0.5]])
CANDIDATES = jnp.array([[2.0, 0.0], [0.0, 1.0], [1.0, 0.9], [0.5, -1.2]])


def precision(z, ridge):
    def margins(z):
        return jnp.sum(ASKED * z, axis=1)

    users, known = jnp.zeros(2, jnp.int32), jnp.ones(2)
    return asking._posterior(margins, z, users, known, jnp.zeros((1, 2)), ridge).precision[0]


@pytest.mark.parametrize(
    ('form', 'ridge', 'expected'),
    [
        ('variance', 1.0, [3.313173, 0.976590, 1.543065, 1.664208]),
        ('slope', 1.0, [0.058520, 0.244148, 0.162012, 0.327203]),
        ('squared_slope', 1.0, [0.001034, 0.061037, 0.017010, 0.064332]),
        ('determinant', 1.0, [0.056871, 0.218451, 0.150153, 0.283074]),
        ('variance', 0.001, [36.414356, 70.490037, 34.630346, 124.828333]),
    ],
)
def test_what_an_answer_takes_from_the_ellipsoid(form, ridge, expected):
    z = jnp.array([[2.0, 0.0]])
    H = precision(z, ridge)
    if ridge == 1.0:
        close(H, [[1.209987, 0.052497], [0.052497, 1.026248]], atol=1e-5)
        close(np.linalg.eigvalsh(np.linalg.inv(H))[-1], 0.987843, atol=1e-5)
    inverse = jnp.broadcast_to(jnp.linalg.inv(H), (4, 2, 2))
    values = asking.ellipsoid(CANDIDATES @ z[0], CANDIDATES, inverse, form)
    np.testing.assert_allclose(values, expected, rtol=1e-4 if ridge < 1 else 1e-5, atol=1e-6)


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match='unknown form'):
        asking.ellipsoid(jnp.zeros(1), jnp.ones((1, 2)), jnp.eye(2)[None], 'trace')  # type: ignore[arg-type]


def test_the_likeliest_weights_under_a_ridge():
    x, labels = np.array([[1, 0], [1, 0.5], [0, 1], [0.5, -1.2]]), np.array([1, 1, 0, 1])
    chosen = jnp.asarray(np.where(labels[:, None], x, -x), jnp.float32)
    users, answered, zero = jnp.zeros(4, jnp.int32), jnp.ones(4, bool), jnp.zeros((1, 2))

    def mode(ridge, steps):
        return asking.mode(
            lambda z: jnp.sum(chosen * z, axis=1), users, answered, zero, pull=ridge, start=zero, steps=steps
        )[0][0]

    weights = mode(1.0, 8)
    close(weights, [0.806921, -0.511004], atol=1e-5)
    close(np.logaddexp(0, -np.asarray(chosen @ weights)).sum(), 1.602677, atol=1e-5)
    close(mode(1.0, 1), [0.792058, -0.496382], atol=1e-5)
    close(mode(0.1, 12), [2.493205, -1.536451], atol=1e-4)


def test_a_threshold_that_was_chosen_on_the_test_is_worth_much_on_coins():
    """So accuracy counts margins above 0, and no other threshold is offered."""
    scores, labels = np.array([0.2, 0.4, 0.5, 0.6, 0.9, 1.1]), np.array([0, 1, 0, 1, 0, 1])
    by_threshold = [np.mean((scores > at) == labels) for at in (-np.inf, *scores)]
    close([np.mean((scores > 0) == labels), max(by_threshold)], [0.5, 2 / 3])


# --- a population -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_free_weights_on_a_population_of_rank_three():
    """Means over three seeds: within .03 of figures computed apart; questions by the ellipsoid beat the given order."""
    learner, rows, orders = people.make_learner(3, 'linear'), [], []
    asked = {
        rule: people.make_learner(3, 'linear', new=learner.new._replace(question=rule))
        for rule in ('ellipsoid', 'information')
    }
    for seed in range(3):
        population = people.draw(seed)
        state = people.train(learner, population.train, seed=seed)
        rows.append(people.row(learner, state, population))
        pool, prior = people.pairs_of(population.new[:, : people.KNOWN]), people.prior_of(state)
        everywhere, accuracies = jnp.ones(pool.users.shape, bool), [rows[-1][2]]
        for asking_learner in asked.values():
            rank = asking_learner.ask(state.params, pool, everywhere, prior, seed, questions=5)
            z = learner.fit(state.params, pool, (rank < 5).astype(np.float32), prior)
            accuracies.append(people.accuracy(learner, state, z, population.new[:, people.KNOWN :]))
        orders.append(accuracies)
    np.testing.assert_allclose(np.mean(rows, axis=0), [0.736, 0.658, 0.658, 0.717], atol=0.03)
    given, ellipsoid, information = np.mean(orders, axis=0)
    assert ellipsoid > given and information > given
