"""Methods of the bench: sides, padding, people who are unknown, people who are all alike, and MaxMin-RLHF's groups."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pal_jax.recipes.personal.bench import methods as personal_methods
from pal_jax.recipes.personal.bench.methods import METHODS
from tests.recipes.personal.people import of_people

SHORT = {  # so few updates that only the form is tested
    'lore': {'updates': 20}, 'pref': {'updates': 20}, 'mrm': {'updates': 20}, 'maxmin': {'updates': 10, 'rounds': 2},
    'gpo': {'steps': 50, 'width': 8, 'layers': 1, 'people': 8}, 'variational': {'updates': 20},
}  # fmt: skip


LEARNT = 'lore', 'pref', 'mrm', 'maxmin', 'gpo', 'variational'  # on this population


def choices(people, count, seed):
    """People of two tastes."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(people), count).astype(np.int32)
    x = rng.normal(size=(people * count, 3)).astype(np.float32)
    right = x[:, :1] * np.where(users % 2, 1, -1)[:, None] + x[:, 1:2] > 0
    base = rng.normal(size=x.shape).astype(np.float32)
    return of_people(users, base + np.where(right, x, 0), base + np.where(right, 0, x), people)


QUICK = 'pref', 'maxmin'  # the others have their own tests


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in LEARNT]
)
def test_a_method_keeps_the_rules_of_the_bench(name):
    method, train, asked = METHODS[name], choices(12, 6, 0), choices(4, 5, 1)
    pool = choices(4, 6, 2)
    known = pool.where((np.arange(6) < np.array([[0], [2], [6], [6]])).ravel())
    fitted = method.fit(train, 0, **SHORT[name])
    seen, new = method.margins(fitted, None, train), method.margins(fitted, known, asked)
    assert seen.shape == train.users.shape and new.shape == asked.users.shape and np.isfinite(new).all()
    # Sides swapped give the negative margins.
    np.testing.assert_allclose(method.margins(fitted, known, asked.swapped()), -new, atol=1e-5)
    # A choice that is not known changes nothing.
    noise = np.where(known.counts[:, None], known.chosen, 7.0).astype(np.float32)
    np.testing.assert_allclose(method.margins(fitted, known.replace(chosen=noise), asked), new, atol=1e-5)
    # The same seed gives the same method.
    again = method.fit(train, 0, **SHORT[name])
    np.testing.assert_array_equal(method.margins(again, None, train), seen)
    if method.ask:
        rank = method.ask(fitted, pool, 2)
        assert all(sorted(rank[pool.users == user])[:2] == [0, 1] for user in range(4))


def test_batches_are_of_choices_that_count():
    train = choices(12, 6, 0)
    train = train.where(np.arange(72) % 5 > 0)
    for whole in (False, True):
        (batch,) = personal_methods.ChoiceBatches(train, 0, whole).programs(3)
        assert batch.users.shape == (1, 3, int(train.counts.sum()))
        there = {row.tobytes() for row in train.chosen[train.counts]}
        assert {row.tobytes() for row in batch.chosen.reshape(-1, 3)} == there
        shares = np.bincount(batch.users[0, 0], batch.share[0, 0], 12)
        np.testing.assert_allclose(shares, 1, rtol=1e-6)


def test_one_basis_or_one_group_is_bradley_and_terrys_model():
    """Against Adam on the logistic loss of all people's choices."""
    train = choices(12, 6, 0)
    x = jnp.asarray(train.difference)
    for fit, option in ((personal_methods.fit_lore, {'K': 1}), (personal_methods.fit_maxmin, {'groups': 1})):
        rounds = {'rounds': 1} if 'groups' in option else {}
        fitted = fit(train, 3, updates=50, **option, **rounds)
        learner = fitted.params.learner
        start = learner.init(jnp.array([3])).params['P'][0, 0]
        ridge, adam = learner.loss.prototype_pull, optax.adam(0.05)

        def step(carry, _, ridge=ridge, adam=adam):
            theta, moments = carry
            slope = jax.grad(lambda t: jnp.mean(jax.nn.softplus(-(x @ t))) + ridge * jnp.sum(t**2))(theta)
            moved, moments = adam.update(slope, moments)
            return (theta + moved, moments), None

        (theta, _), _ = jax.lax.scan(step, (start, adam.init(start)), length=50)
        np.testing.assert_allclose(fitted.params.params['P'][0, 0], theta, atol=1e-4)
        for known in (None, train):
            margins = METHODS['lore' if 'K' in option else 'maxmin'].margins(fitted, known, train)
            np.testing.assert_allclose(margins, x @ theta, atol=1e-3)


@pytest.mark.long
def test_people_who_are_all_alike_need_one_reward():
    """With one of its options every method is within .04 of one model for all, PReF within .08."""
    rng = np.random.default_rng(0)
    theta = rng.normal(size=6)

    def alike(people, count):
        users = np.repeat(np.arange(people), count).astype(np.int32)
        x = rng.normal(size=(len(users), 6)).astype(np.float32)
        won = rng.random(len(x)) < 1 / (1 + np.exp(-(x @ theta)))
        x = np.where(won[:, None], x, -x)
        return of_people(users, x, np.zeros_like(x), people)

    train, known, asked = alike(40, 30), alike(30, 10), alike(30, 40)
    shared = METHODS['lore'].fit(train, 0, K=1)
    expected = np.mean(METHODS['lore'].margins(shared, known, asked) > 0)
    for name in LEARNT:
        method = METHODS[name]
        # Ten choices say little about a free vector, which costs PReF .06.
        right = [np.mean(method.margins(method.fit(train, 0, **option), known, asked) > 0) for option in method.options]
        assert max(right) > expected - (0.08 if name == 'pref' else 0.04), name


# --- MaxMin-RLHF's groups (arXiv 2402.08925) --------------------------------------------------------------------------

MARGINS = np.array([[1, -0.2], [0.5, 0.1], [-0.3, 0.6], [0.4, 0.2], [0.1, 0.1], [0.1, 0.1]])  # by pair and group
USERS = np.array([0, 0, 1, 1, 2, 2])


def test_people_go_where_their_choices_are_likely():
    pairs = of_people(USERS, MARGINS, MARGINS, 3)
    likelihood = personal_methods.likelihoods(MARGINS, pairs)
    expected = [[-0.787339, -1.442536], [-1.367370, -1.035627], [-1.288793, -1.288793]]
    np.testing.assert_allclose(likelihood, expected, atol=2e-6)
    np.testing.assert_array_equal(personal_methods.assign(likelihood).argmax(axis=1), [0, 1, 0])
    soft = personal_methods.weights_of(likelihood, np.array([0.7, 0.3]))
    np.testing.assert_allclose(soft[:, 0], [0.817946, 0.626108, 0.7], atol=2e-6)
    nobody = personal_methods.likelihoods(MARGINS, pairs.where(np.zeros(6, bool)))
    np.testing.assert_allclose(personal_methods.weights_of(nobody, np.array([0.7, 0.3])), [[0.7, 0.3]] * 3)


def test_no_group_is_empty():
    likelihood = np.array([[-1.0, -2.0, -9.0], [-3.0, -4.0, -9.0], [-1.5, -1.0, -9.0]])
    np.testing.assert_array_equal(personal_methods.assign(likelihood).argmax(axis=1), [0, 2, 1])


def test_probabilities_are_mixed_and_swapped_sides_are_the_negative():
    weights = np.array([[0.25, 0.75]])
    margin = personal_methods.mixed_margin(np.array([[2.0, -1.0]]), weights)
    probability = 0.25 / (1 + np.exp(-2)) + 0.75 / (1 + np.exp(1))
    np.testing.assert_allclose(1 / (1 + np.exp(-margin)), [probability])
    np.testing.assert_allclose(personal_methods.mixed_margin(np.array([[-2.0, 1.0]]), weights), -margin)


def test_prototypes_find_two_camps():
    """Twelve people of one taste and eight of its opposite."""
    rng = np.random.default_rng(0)
    theta, x = rng.normal(size=8), rng.normal(size=(20, 20, 8))
    camp = np.where(np.arange(20) < 12, 1, -1)
    m = 3 * x @ theta / np.sqrt(8) * camp[:, None]
    x = (np.where(rng.random(m.shape) < 1 / (1 + np.exp(-m)), 1, -1)[..., None] * x).reshape(400, 8).astype(np.float32)
    train = of_people(np.repeat(np.arange(20), 20), x, np.zeros_like(x), 20)
    fitted = personal_methods.fit_maxmin(train, 0, rounds=6, updates=40)
    same = np.mean((fitted.params.belonging[:, 0] > 0.5) == (camp > 0))
    assert max(same, 1 - same) >= 0.95
    assert np.mean(personal_methods.maxmin_margins(fitted, None, train) > 0) > 0.75
