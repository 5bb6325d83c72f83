"""The majority and the mixed logit: votes by hand, quadrature, and people made up of twelve strong tastes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import special

from pal_jax.data.comparisons import PairBatch
from pal_jax.recipes.personal import baselines, logit, logit_people, mixed_logit
from pal_jax.recipes.personal.interface import Fitted, Unfit
from pal_jax.recipes.personal.mixed_logit import MixedLogit
from tests.recipes.personal.people import apart, choices_among


def fitted(choices):
    model = mixed_logit.fit_all(choices, pytest.fail)
    assert model and model.converged
    return model


def test_the_vote_is_about_the_same_two_items_in_either_order():
    a, b, c = np.array([1.0, 0.0]), np.array([0.0, 1.0]), np.array([2.0, 2.0])
    known = np.array([a - b, a - b, b - a, c - a])
    asked = np.array([b - a, a - b, a - c, b - c])
    np.testing.assert_array_equal(baselines.majority(known, asked), [-1.0, 1.0, -1.0, 0.0])


def test_one_attribute_is_as_quadrature_has_it():
    model, known, asked = (
        MixedLogit(np.array([0.5]), np.array([2.0])),
        np.array([[1.5], [2.0], [-0.3]]),
        np.array([[0.7]]),
    )
    z = np.linspace(-15, 15, 20001)
    weight = np.exp(-(((z - 0.5) / 2) ** 2) / 2) / np.prod(1 + np.exp(-known * z), axis=0)
    expected = np.sum(weight / (1 + np.exp(-0.7 * z))) / weight.sum()
    margin = mixed_logit.posterior_margins(model, apart(known, np.zeros(3, int)), asked, np.zeros(1, int))
    np.testing.assert_allclose(1 / (1 + np.exp(-margin)), expected, atol=0.01)


@pytest.mark.parametrize('deviation', [2.0, 0.3, 1e-3])
def test_the_likelihood_and_its_derivatives_are_as_quadrature_has_them(deviation):
    known = np.array([[[1.5, 0.3]], [[2.0, -1.0]], [[-0.3, 0.5]]]).transpose(0, 2, 1)  # choices among three options
    choices, z = apart(known[..., 0, :], np.zeros(3, int)), np.linspace(-12, 12, 8001)
    choices = choices._replace(x=known, exists=np.ones((3, 2), bool))

    def likelihood(mean, deviation):
        others = np.exp(-known[:, :, 0, None] * (mean + deviation * z)).sum(axis=1)
        return np.log(np.trapezoid(np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) / np.prod(1 + others, axis=0), z))

    at = mixed_logit.derivatives(MixedLogit(np.array([0.5]), np.array([deviation])), choices)
    h, steps = 1e-3, np.eye(2) * 1e-3
    here, centre = likelihood(0.5, deviation), np.array([0.5, deviation])
    above, below = ([likelihood(*(centre + sign * step)) for step in steps] for sign in (1, -1))
    corners = [likelihood(*(centre + h * np.array(signs))) for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
    second = np.diag((2 * here - np.add(above, below)) / h**2)
    second[0, 1] = second[1, 0] = -np.dot([1, -1, -1, 1], corners) / (4 * h**2)
    assert at.log_likelihood == pytest.approx(here, abs=0.01)
    np.testing.assert_allclose(at.gradient, np.subtract(above, below) / (2 * h), atol=0.01)
    np.testing.assert_allclose(at.information, second, atol=0.02)


@pytest.mark.slow
def test_the_fit_does_not_depend_on_where_it_begins():
    """Of 200 draws of everybody's distribution, other ones moved means by a standard error."""
    rng = np.random.default_rng(0)
    choices = choices_among(rng, rng.normal([1.0, -2.0, 0.5], [1.0, 0.5, 0.0], (60, 3)), 3, 8)
    starts = [([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]), ([1.0, -1.0, 1.0], [0.1, 2.0, 0.5])]
    fits = [mixed_logit.improved(MixedLogit(np.array(mean), np.array(dev)), choices) for mean, dev in starts]
    assert all(fit.converged and fit.errors is not None for fit in fits)
    first, second = (np.stack([fit.mean, fit.deviation]) for fit in fits)
    assert (np.abs(first - second) < 0.1 * fits[0].errors).all()
    assert abs(fits[0].log_likelihood - fits[1].log_likelihood) < 0.05


@pytest.mark.slow
def test_no_draw_has_all_weight_on_twelve_attributes():
    """Of 1,000 draws of everybody's distribution one had weight: accuracy .754 and log loss .744, for .843 and .323."""
    rng = np.random.default_rng(0)
    model, people = MixedLogit(rng.normal(size=12), np.full(12, 2.0)), np.repeat(np.arange(20), 36)
    tastes, x = model.mean + 2 * rng.normal(size=(20, 12)), 1.2 * rng.normal(size=(2, 720, 12))
    m = np.sum(x * tastes[people], axis=2)
    known, asked = np.where((rng.random(m.shape) < 1 / (1 + np.exp(-m)))[..., None], x, -x)
    known = apart(known, people)
    for user in range(20):
        weight = mixed_logit.posterior(model, known.at(people == user)).weight
        assert 1 / np.sum(weight**2) > 150
    margins = mixed_logit.posterior_margins(model, known, asked, people)
    # A forecast that is right of itself loses its own entropy.
    p = 1 / (1 + np.exp(-margins))
    entropy = -np.mean(p * np.log(p) + (1 - p) * np.log(1 - p))
    assert abs(np.mean(-np.log(p)) - entropy) < 0.05
    assert np.mean(margins > 0) > 0.8


@pytest.mark.slow
@pytest.mark.parametrize('options', [2, 4, [2, 3, 4] * 1000])
def test_the_fit_finds_the_distribution_that_made_the_choices(options):
    pytest.importorskip('xlogit', reason="pip install 'pal_jax[choice]'")
    rng = np.random.default_rng(0)
    choices = choices_among(rng, rng.normal([1.0, -2.0], [1.0, 0.5], (300, 2)), options, 10)
    model = fitted(choices)
    np.testing.assert_allclose(model.mean, [1.0, -2.0], atol=0.25)
    np.testing.assert_allclose(model.deviation, [1.0, 0.5], atol=0.35)
    assert (np.abs(model.mean - [1.0, -2.0]) < 3 * model.errors[0]).all() and (model.errors < 0.25).all()
    assert (np.abs(model.deviation - [1.0, 0.5]) < 3 * model.errors[1]).all()


def test_a_mixed_logit_that_diverges_has_no_fit(monkeypatch):
    xlogit = pytest.importorskip('xlogit')

    def diverge(*args, **options):
        raise np.linalg.LinAlgError('SVD did not converge')

    monkeypatch.setattr(xlogit.MixedLogit, 'fit', diverge)
    with pytest.raises(Unfit, match=r'diverges.*SVD'):
        mixed_logit.fit_xlogit(apart(np.ones((4, 2)), np.arange(4)), 0)


def test_an_attribute_that_never_varies_leaves_the_others_their_estimates_without_errors():
    pytest.importorskip('xlogit', reason="pip install 'pal_jax[choice]'")
    rng, users = np.random.default_rng(0), np.repeat(np.arange(30), 6)
    x = np.stack([rng.normal(size=180), np.zeros(180)], axis=1)
    x *= np.sign(rng.random(180) - 0.2)[:, None] * np.sign(x[:, :1])
    model = fitted(apart(x, users))
    assert model.mean[0] > 0.5 and model.errors is None


def test_log_odds_of_a_mixed_logit_stay_finite_and_odd():
    model = MixedLogit(np.array([1e4]), np.array([1.0]))
    x, users = np.array([[3.0], [-3.0]]), np.zeros(2, int)
    margins = mixed_logit.posterior_margins(model, apart(x[:0], users[:0]), x, users)
    assert margins[0] > 20
    assert margins[1] == pytest.approx(-margins[0], rel=1e-4)


def test_somebody_of_whom_no_choice_is_known_is_predicted_by_everybody():
    """As the bench asks for: pairs with situations, none of which counts yet."""
    users, x = np.zeros(4, np.int32), np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    pairs = PairBatch(users, x, np.zeros_like(x), np.zeros(4, np.float32), situation=users, people=1)  # type: ignore
    model = MixedLogit(np.array([1.0, -1.0]), np.array([0.5, 0.5]))
    margins = mixed_logit.margins(Fitted(mixed_logit.LogitPeople(model, pairs), 4, 0), pairs, pairs)
    assert (np.sign(margins) == np.sign(x @ model.mean)).all()


# --- people as normal distributions -----------------------------------------------------------------------------------


def test_a_persons_effects_are_the_mean_and_the_variance_of_the_posterior():
    model, known = MixedLogit(np.array([0.5]), np.array([2.0])), np.array([[1.5], [2.0], [-0.3]])
    z = np.linspace(-15, 15, 20001)
    weight = np.exp(-(((z - 0.5) / 2) ** 2) / 2) / np.prod(1 + np.exp(-known * z), axis=0)
    mean = np.sum(weight * z) / weight.sum()
    person = logit_people.given_choices(model, apart(known, np.zeros(3, int)))
    np.testing.assert_allclose(person.mean, mean, atol=0.1)
    np.testing.assert_allclose(person.covariance, np.sum(weight * (z - mean) ** 2) / weight.sum(), rtol=0.1)


def test_a_choice_among_three_options_and_one_between_two_are_as_quadrature_has_them():
    model, a, b, c = MixedLogit(np.array([0.5]), np.array([2.0])), 1.5, 2.0, -0.3
    chosen, rejected = np.array([[a], [a], [b]]), np.array([[b], [c], [c]])
    known = logit.choice_sets(chosen, rejected, np.zeros(3, int), np.array([0, 0, 1]))
    assert known.exists.tolist() == [[True, True], [True, False]]
    z = np.linspace(-15, 15, 20001)
    chance = 1 / (1 + np.exp((b - a) * z) + np.exp((c - a) * z)) / (1 + np.exp((c - b) * z))
    weight = np.exp(-(((z - 0.5) / 2) ** 2) / 2) * chance
    person = logit_people.given_choices(model, known)
    np.testing.assert_allclose(person.mean, np.sum(weight * z) / weight.sum(), atol=0.1)


def test_the_effects_of_people_who_chose_among_four_options_are_as_uncertain_as_the_model_says():
    """By pairs of the chosen option with each other one, .90 of the effects were in intervals of .95."""
    rng, model = np.random.default_rng(0), MixedLogit(np.array([1.0, -1.0, 0.5]), np.array([1.0, 0.7, 1.5]))
    effects = model.mean + model.deviation * rng.normal(size=(100, 3))
    choices, inside = choices_among(rng, effects, 4, 12), []
    for user, true in enumerate(effects):
        person = logit_people.given_choices(model, choices.at(choices.users == user))
        inside.append(np.abs(person.mean - true) < 1.96 * np.sqrt(np.diag(person.covariance)))
    assert 0.92 <= np.mean(inside) <= 0.98


def test_the_normal_distribution_has_nearly_the_chances_of_the_draws():
    """At most .0085 off for 2,000 choices of 40 people."""
    rng, model = np.random.default_rng(0), MixedLogit(np.array([1.0, -1.0, 0.5]), np.ones(3))
    known, asked = apart(rng.normal(size=(10, 3)), np.zeros(10, int)), rng.normal(size=(50, 3))
    margins = mixed_logit.posterior_margins(model, known, asked, np.zeros(50, int))
    chances = logit_people.probability(logit_people.given_choices(model, known), asked)
    np.testing.assert_allclose(chances, 1 / (1 + np.exp(-margins)), atol=0.01)


@pytest.mark.parametrize('deviation', [0.0, 0.1, 2.0, 10.0])
def test_chances_and_information_are_integrals_over_the_effects(deviation):
    person = logit_people.Effects(np.array([0.4, -0.2]), np.diag([deviation**2, 0.0]))
    x = np.array([[1.0, 1.0], [-1.0, -1.0], [0.0, 3.0]])
    z = 0.4 + deviation * np.linspace(-8, 8, 100001)
    weight = np.exp(-(np.linspace(-8, 8, 100001) ** 2) / 2)
    p = 1 / (1 + np.exp(-(x[:, :1] * z - 0.2 * x[:, 1:])))
    expected = p @ weight / weight.sum()
    np.testing.assert_allclose(logit_people.probability(person, x), expected, atol=1e-3)

    def entropy(p):
        return -p * np.log(p) - (1 - p) * np.log1p(-p)

    nats = entropy(expected) - entropy(np.clip(p, 1e-12, 1 - 1e-12)) @ weight / weight.sum()
    got = logit_people.information(person, x)
    np.testing.assert_allclose(got, nats, atol=5e-3)
    # Both sides of a pair have a chance of 1 together, and a pair without the uncertain attribute tells nothing.
    assert sum(logit_people.probability(person, x)[:2]) == pytest.approx(1.0) and got[2] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize('deviation', [0.0, 0.5, 3.0])
def test_a_choice_among_options_has_the_probabilities_of_a_pair_and_of_independent_draws(deviation):
    covariance = deviation**2 * np.array([[1.0, 0.3, 0.0], [0.3, 0.5, 0.0], [0.0, 0.0, 0.0]])
    person = logit_people.Effects(np.array([0.4, -0.2, 0.7]), covariance)
    items = np.random.default_rng(0).normal(size=(4, 3))
    pair = logit_people.chances_of_options(person, items[:2]).mean(axis=0)
    np.testing.assert_allclose(pair[0], logit_people.probability(person, items[:1] - items[1:2])[0], atol=2e-3)
    draws = np.random.default_rng(1).multivariate_normal(person.mean, covariance, 400_000, method='eigh')
    odds = np.exp(draws @ items.T)
    expected = (odds / odds.sum(axis=1, keepdims=True)).mean(axis=0)
    of_four = logit_people.chances_of_options(person, items).mean(axis=0)
    np.testing.assert_allclose(of_four, expected, atol=3e-3)
    assert of_four.sum() == pytest.approx(1.0)
    # A choice between two options tells what the answer to a pair does.
    nats = logit_people.information_of_choice(logit_people.chances_of_options(person, items[:2]))
    assert nats == pytest.approx(logit_people.information(person, items[:1] - items[1:2])[0], abs=2e-3)


def test_probabilities_of_options_with_many_attributes_are_those_of_pairs():
    rng = np.random.default_rng(0)
    person = logit_people.Effects(rng.normal(size=30), 0.25 * np.eye(30))
    items = rng.normal(size=(2, 30))
    chance = logit_people.chances_of_options(person, items).mean(axis=0)[0]
    assert chance == pytest.approx(logit_people.probability(person, items[:1] - items[1:])[0], abs=2e-3)


def test_the_interval_of_a_share_is_that_of_the_estimates():
    rng, items = np.random.default_rng(0), np.array([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])
    root = 0.05 * rng.normal(size=(4, 4))
    model = MixedLogit(np.array([-1.0, 0.5]), np.array([0.7, 0.4]), covariance=root @ root.T)
    shares = logit_people.shares_of_options(model, items)
    effects = logit_people.Effects(model.mean, np.diag(model.deviation**2))
    np.testing.assert_allclose(shares.share, logit_people.chances_of_options(effects, items).mean(axis=0), atol=1e-3)
    # Krinsky & Robb (1986): the shares of estimates that are drawn from their distribution.
    drawn = []
    for estimate in rng.multivariate_normal(np.concatenate([model.mean, model.deviation]), model.covariance, 1000):
        other = model._replace(mean=estimate[:2], deviation=estimate[2:])
        drawn.append(logit_people.shares_of_options(other, items).share)
    deviation = np.std(special.logit(drawn), axis=0)
    width = special.logit(shares.high) - special.logit(shares.low)
    np.testing.assert_allclose(width, 2 * 1.96 * deviation, rtol=0.07)
    alone = logit_people.shares_of_options(model, items[:1])
    np.testing.assert_allclose(np.concatenate(alone), [1.0, 1.0, 1.0])


def test_a_population_comes_back_from_the_file_in_the_units_of_the_survey(tmp_path):
    names, scale = ('price', 'minutes'), np.array([2.0, 4.0])
    ana = logit_people.Effects(np.array([1.0, -2.0]), np.array([[4.0, 1.0], [1.0, 8.0]]))
    covariance = np.diag([1.0, 2.0, 3.0, 4.0])
    covariance[0, 3] = covariance[3, 0] = 0.5
    model = MixedLogit(np.array([-1.0, 4.0]), np.array([0.5, 2.0]), covariance=covariance)
    before = logit_people.Population(model, {'ana': ana})
    text = logit_people.to_json(before, names, scale)
    (tmp_path / logit_people.FILE).write_text(text)
    # One unit of the survey is half a unit of the model's price.
    assert json.loads(text)['mean'] == {'price': -0.5, 'minutes': 1.0}
    assert json.loads(text)['people']['ana']['covariance'] == [[1.0, 0.125], [0.125, 0.5]]
    after = logit_people.load(tmp_path, names, scale)
    np.testing.assert_array_equal(
        [after.model.mean, after.model.deviation], [before.model.mean, before.model.deviation]
    )
    np.testing.assert_allclose(after.model.covariance, covariance)
    other = logit_people.load(tmp_path, names[::-1], scale[::-1])
    np.testing.assert_allclose(other.model.covariance, covariance[np.ix_([1, 0, 3, 2], [1, 0, 3, 2])])
    turned = other.people['ana']
    np.testing.assert_array_equal(turned.mean, ana.mean[::-1])
    np.testing.assert_array_equal(turned.covariance, ana.covariance[::-1, ::-1])
    assert logit_people.load(tmp_path / 'nowhere', names, scale) is None
    assert logit_people.without_person(after, 'ana').people == {}
    record = json.loads(text)
    for wrong in ([[1.0]], [[None] * 4] * 4):
        (tmp_path / logit_people.FILE).write_text(json.dumps(record | {'covariance': wrong}))
        with pytest.raises(ValueError, match='covariance|cannot be read'):
            logit_people.load(tmp_path, names, scale)
    (tmp_path / logit_people.FILE).write_text('{}')
    with pytest.raises(ValueError, match='cannot be read'):
        logit_people.load(tmp_path, names, scale)


@pytest.mark.parametrize(
    'change',
    [{'effects': {'price': 1.0}}, {'effects': None}, {'covariance': [[1.0]]}, {'covariance': 'ab'},
     {'effects': {'price': 1.0, 'minutes': None}}, {'covariance': [[1.0, 0.0], [0.0, float('inf')]]}],
    ids=str,
)  # fmt: skip
def test_a_record_that_is_no_person_is_refused(change):
    record = {'effects': {'price': 1.0, 'minutes': 2.0}, 'covariance': [[1.0, 0.0], [0.0, 1.0]]}
    assert logit_people.from_record(record, ('price', 'minutes'), np.ones(2))
    with pytest.raises(ValueError, match='expected'):
        logit_people.from_record(record | change, ('price', 'minutes'), np.ones(2))
