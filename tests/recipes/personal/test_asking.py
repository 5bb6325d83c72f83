"""Which pair to ask next: against mutual information by enumeration, the likeliest logits, and people made up."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from pal_jax.data.comparisons import PairBatch
from pal_jax.recipes.personal import asking
from pal_jax.recipes.personal.ideal_point import PAL
from pal_jax.recipes.personal.learner import IdealPointLearner, Loss, NewUsers, Rates
from pal_jax.run import devices

ONE = devices.make_mesh(devices=jax.devices()[:1])


def make_learner(pull=1.0):
    pal = PAL(2, 3, rule='dot', point='Pw', mixture='free')  # linear: u = P_0 + z_1 P_1 + z_2 P_2
    return IdealPointLearner(pal, Loss(), Rates(), ONE, users=4, new=NewUsers(400, 0.05, pull))


PARAMS = {'P': jnp.array([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])}  # so a person's point is z


def pairs_of(differences, users):
    chosen = np.asarray(differences, np.float32)[None]
    share = np.ones(chosen.shape[:2], np.float32)
    return PairBatch(np.asarray(users, np.int32)[None], chosen, np.zeros_like(chosen), share)  # type: ignore[arg-type]


def test_information_is_that_of_the_joint_distribution():
    """Of a few draws, each as likely: `sum p(z, y) log p(y | z) / p(y)`."""
    margins = np.random.default_rng(0).normal(0, 2, (7, 5))
    yes = 1 / (1 + np.exp(-margins))
    joint = np.stack([yes, 1 - yes]) / 7
    marginal = joint.sum(axis=1, keepdims=True)
    expected = (joint * np.log(joint * 7 / marginal)).sum(axis=(0, 1))
    np.testing.assert_allclose(asking.information(jnp.asarray(margins)), expected, atol=1e-6)


def test_the_first_question_is_about_what_differs_most_and_the_second_about_something_else():
    far, near, other = [3.0, 0.0], [0.3, 0.0], [0.0, 2.0]
    pairs = pairs_of([near, far, other, far], [0, 0, 0, 0])
    exists = jnp.array([[True, True, True, False]])
    rank = make_learner().ask(PARAMS, pairs, exists, jnp.zeros((1, 1, 2)), 0, questions=3)
    np.testing.assert_array_equal(rank[0, :3], [2, 0, 1])
    assert rank[0, 3] == asking.UNASKED  # it does not exist


def test_everybody_is_asked_one_question_at_a_time_as_long_as_there_are_some():
    rng = np.random.default_rng(0)
    users = np.repeat([0, 1, 2], [5, 2, 0])
    rank = make_learner().ask(
        PARAMS, pairs_of(rng.normal(size=(7, 2)), users), jnp.ones((1, 7), bool), jnp.zeros((1, 3, 2)), 0, questions=4
    )
    rank = np.asarray(rank[0])
    assert sorted(rank[:5]) == [0, 1, 2, 3, asking.UNASKED]
    assert sorted(rank[5:]) == [0, 1]


def test_what_is_asked_depends_on_no_answer_that_was_not_given_yet():
    """Turned around, a pair says the opposite; what was asked before it stays the same."""
    rng = np.random.default_rng(1)
    differences = rng.normal(size=(12, 2))
    ask = make_learner().ask
    args = jnp.ones((1, 12), bool), jnp.zeros((1, 1, 2)), 0
    rank = np.asarray(ask(PARAMS, pairs_of(differences, [0] * 12), *args, questions=12)[0])
    last = rank == rank.max()
    turned = np.where((rank >= 6)[:, None], -differences, differences)
    again = np.asarray(ask(PARAMS, pairs_of(turned, [0] * 12), *args, questions=12)[0])
    assert last.sum() == 1
    np.testing.assert_array_equal(np.argsort(rank)[:7], np.argsort(again)[:7])


def softmax(z):
    return np.exp(z - z.max(-1, keepdims=True)) / np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True)


@pytest.mark.parametrize('mixture', ['linear', 'softmax'])
def test_the_likeliest_logits_are_those_of_a_general_optimiser(mixture):
    """People of strong tastes and a weak prior: without damping 40 % of steps end hundreds of nats away."""
    rng = np.random.default_rng(0)
    point, pull, scale = (softmax, 2.0, 10.0) if mixture == 'softmax' else (np.asarray, 0.1, 4.0)
    users, tastes, prior = np.repeat(np.arange(20), 12), 1.5 * rng.normal(size=(20, 3)), np.zeros(3)
    x = scale * rng.normal(size=(240, 3))
    x *= np.sign(rng.random(240) - 1 / (1 + np.exp(np.sum(x * point(tastes)[users], axis=1))))[:, None]

    def margins(z):
        return jnp.sum(jnp.asarray(x, jnp.float32) * (jax.nn.softmax(z) if mixture == 'softmax' else z), axis=1)

    everybody = jnp.tile(jnp.asarray(prior, jnp.float32), (20, 1))
    new = asking.People(margins, jnp.asarray(users), everybody, pull)
    z, _ = jax.jit(lambda answered: asking.mode(new, answered, everybody))(jnp.asarray(np.arange(240) % 12 < 10))
    for user in range(20):
        pairs = x[(users == user) & (np.arange(240) % 12 < 10)]

        def loss(z, pairs=pairs):
            return np.logaddexp(0, -pairs @ point(z)).sum() + pull / 2 * np.sum((z - prior) ** 2)

        best = min(minimize(loss, start).fun for start in (prior, tastes[user]))
        assert loss(np.asarray(z[user], float)) < best + 0.01


def test_the_fit_of_pref_is_the_mode_of_the_answers_that_weigh():
    """Strong attributes under a ridge of .1, where 300 steps of Adam at .05 end up to .15 nats above."""
    rng = np.random.default_rng(0)
    x, weight, prior = 30 * rng.normal(size=(12, 2)), np.arange(12) < 9, np.array([0.5, -0.2])
    pal = PAL(2, 3, rule='dot', point='Pw', mixture='free')
    learner = IdealPointLearner(pal, Loss(), Rates(), ONE, users=4, new=NewUsers(pull=0.1, optimizer='newton'))
    rows = jnp.asarray(weight, jnp.float32)[None], jnp.asarray(prior, jnp.float32)[None, None]
    z = np.asarray(learner.fit(PARAMS, pairs_of(x, [0] * 12), *rows), float)[0, 0]

    def loss(z):
        return np.logaddexp(0, -x[weight] @ z).sum() + 0.05 * np.sum((z - prior) ** 2)

    assert loss(z) < minimize(loss, prior, method='Nelder-Mead', options={'xatol': 1e-6}).fun + 1e-3


def test_no_question_without_a_prior():
    with pytest.raises(ValueError, match=r'new.pull=0.0 must be above 0'):
        make_learner(pull=0.0).ask(
            PARAMS, pairs_of([[1.0, 0.0]], [0]), jnp.ones((1, 1), bool), jnp.zeros((1, 1, 2)), 0, questions=1
        )


def test_the_pair_of_which_most_is_expected_is_the_one_that_is_asked_next():
    """Given the answers to the first `k` questions, the most informative pair is question `k`: one draw of noise a step
    makes near ties, so pairs differ clearly here."""
    differences = [[0.3, 0.0], [3.0, 0.0], [0.0, 2.0], [0.1, 0.1]]
    pairs, learner = pairs_of(differences, [0] * 4), make_learner()
    prior = jnp.zeros((1, 1, 2))
    rank = np.asarray(learner.ask(PARAMS, pairs, jnp.ones((1, 4), bool), prior, 0, questions=4)[0])
    for k in range(3):
        answered = rank < k
        expected = np.where(answered, -1, learner.expect(PARAMS, pairs, jnp.asarray(answered)[None], prior, 0)[0])
        assert int(np.argmax(expected)) == int(np.flatnonzero(rank == k)[0])


def test_an_answer_lowers_what_its_own_repetition_tells():
    pairs, prior = pairs_of([[1.5, 0.0], [1.5, 0.0]], [0, 0]), jnp.zeros((1, 1, 2))
    before, after = (
        make_learner().expect(PARAMS, pairs, jnp.array([[answered, False]]), prior, 0)[0, 1]
        for answered in (False, True)
    )
    assert 0 < after < before < np.log(2)
