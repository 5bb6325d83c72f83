"""Figures of choices against numbers by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pal_jax.data.comparisons import Lookup
from pal_jax.recipes.personal import heterogeneity, ideal_point, judged, panel, population, portrait
from pal_jax.recipes.personal import pictures as people
from pal_jax.recipes.personal.evaluation import MethodResult
from pal_jax.recipes.personal.figures import MODELS
from pal_jax.recipes.personal.interface import Unfit
from pal_jax.recipes.personal.logit import Common, units_of
from pal_jax.recipes.personal.mixed_logit import MixedLogit
from pal_jax.run import intervals


def test_accuracy_by_pair_and_by_person():
    margins = np.array([1.0, 2.0, -1.0, 0.0, -3.0, 0.5])
    found = judged.judge(margins, np.array([4, 4, 4, 9, 9, 7]))
    shares = judged.by_person(found)
    assert (found.accuracy, shares.mean()) == (3.5 / 6, pytest.approx((2 / 3 + 1 / 4 + 1) / 3))
    assert judged.worst_tenth(shares) == 0.25


def test_k_is_chosen_by_split_and_the_smallest_of_equals():
    assert population.choose({1: [0.5, 0.7], 4: [0.6, 0.7], 2: [0.6, 0.65]}) == [2, 1]


@pytest.mark.parametrize(('chosen', 'split'), [([3], 0), ([1, 3, 8, 1, 3], 1), ([1, 4], 1), ([1, 8, 1], 0)])
def test_the_split_that_is_shown_has_the_median_k(chosen, split):
    assert panel.shown_split(chosen) == split


def split_model(mixtures, scale=None):
    """A model with the rule dot, whose two prototypes want one more, or one less, of the first attribute `a`."""
    data = SimpleNamespace(
        chosen=np.random.default_rng(0).normal(size=(30, 2)), prompt=None, texts=(), attributes=('a', 'b'),
        users=np.zeros(30), groups=None,
    )  # fmt: skip
    K = mixtures.shape[1]
    params = {'P': np.array([[1.0, 0.5], [-1.0, 0.5]], np.float32)[:K]}
    pal = ideal_point.PAL(2, K, rule='dot', point='Pw')
    names = [f'p{i}' for i in range(len(mixtures))]
    return portrait.SplitModel(1, [K, K], pal, params, 1.0, names, 2 * len(names), mixtures, data, scale)


def test_what_people_want_is_told_in_the_units_of_the_table():
    model = split_model(np.array([[1.0, 0.0], [0.75, 0.25], [0.0, 1.0]], np.float32), np.array([2.0, 1.0]))
    effects = portrait.effects_on_people(model)
    np.testing.assert_allclose(effects, [[1.0, 0.5], [0.5, 0.5], [-1.0, 0.5]], atol=1e-5)
    np.testing.assert_allclose(portrait.effects_on_people(model._replace(factor=0.5)), effects / 2, atol=1e-5)
    common = Common(np.array([0.2, 0.5]), np.diag([0.01, 0.01]), 1000)
    units = units_of(('a', 'b'), model.scale)
    shown = portrait.exhibit_wants(model, portrait.Wants(effects, common, True, units, 'Bus.'))
    head, a, b = shown.table
    assert a == [
        'a',
        '+0.100 ± 0.050',
        '+0.002 to +0.198',
        '0.046',
        '52%',
        '-0.125 to +0.375',
        '0.425',
        '+0.20',
    ] and len(head) == len(a)
    assert (
        b[1:3] == ['+0.50 ± 0.10', '+0.30 to +0.70']
        and portrait.SPREAD in shown.text
        and shown.picture
        and shown.text.startswith('Bus.')
    )
    assert 'From the 3 of 6 people whom split 1 was trained on (--split=1; the splits chose K = 2, 2' in shown.text
    # An effect of thousands is a chance of 0, too.
    certain = portrait.exhibit_wants(
        model, portrait.Wants(effects, Common(np.full(2, -9e3), np.eye(2), 9), True, units, '')
    )
    assert (
        certain.table[1][1:5] == ['–', '–', '–', '0%']
        and portrait.DASH in certain.text
        and portrait.DASH not in shown.text
    )
    shown = portrait.exhibit_wants(model, portrait.Wants(effects, common, False, units, ''))
    assert (
        shown.table[1] == ['a', '+0.100 ± 0.050', '+0.002 to +0.198', '0.046', '52%', '+0.20']
        and portrait.NO_SPREAD in shown.text
        and not shown.picture
    )
    table = portrait.table_of_people(model, model._replace(names=['q'], mixtures=model.mixtures[:1]))
    head, first, *_, last = table.splitlines()
    assert head == 'participant,kept_out,weight_1,weight_2,effect_a,effect_b'
    assert (first, last) == ('p0,0,1,0,0.5,0.5', 'q,1,1,0,0.5,0.5')
    assert portrait.without_person(table, 'p1').count('p') == table.count('p') - 1


def test_people_have_their_group_and_the_errors_of_effects_that_are_known():
    model = split_model(np.array([[1.0, 0.0], [0.5, 0.5]], np.float32), np.array([2.0, 4.0]))
    groups = {'names': ('p0', 'p1'), 'groups': np.array([1, -1]), 'group_names': ('north', 'south')}
    model = model._replace(data=SimpleNamespace(**vars(model.data) | groups))
    known = {name: np.array([[1.0, -2.0], [0.5, 0.25]]) for name in ('p0', 'p1')}
    table = portrait.table_of_people(model, model._replace(names=[], mixtures=model.mixtures[:0]), known)
    assert table.splitlines() == [
        'participant,kept_out,group,weight_1,weight_2,effect_a,effect_b,error_a,error_b',
        'p0,0,south,1,0,0.5,-0.5,0.25,0.0625',
        'p1,0,,0.5,0.5,0.5,-0.5,0.25,0.0625',
    ]


def test_the_worth_of_attributes_is_told_in_units_of_the_price():
    model = split_model(np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), np.array([2.0, 4.0]))
    effects = portrait.effects_on_people(model)
    common = Common(np.array([-0.8, 0.4]), np.diag([1e-4, 1e-4]), 1000)
    units = units_of(('a', 'b'), model.scale, 'a')
    shown = portrait.exhibit_wants(model, portrait.Wants(effects, common, False, units, ''))
    # Of b, a unit has the effect .4 / 4, and a unit of the price a has -.8 / 2.
    place = shown.table[0].index('worth in a')
    assert shown.table[1][place] == '' and shown.table[2][place].startswith('+0.250 (') and 'Fieller' in shown.text
    unknown = Common(np.array([-0.8, 0.4]), np.diag([1.0, 1e-4]), 1000)
    shown = portrait.exhibit_wants(model, portrait.Wants(effects, unknown, False, units, ''))
    assert shown.table[2][place] == '+0.25 (–)'
    # Nothing is alike but for what only an option has that is in every choice.
    alone = units._replace(alone=frozenset({1}))
    shown = portrait.exhibit_wants(model, portrait.Wants(effects, common, False, alone, ''))
    cells = dict(zip(*(shown.table[k] for k in (0, 2)), strict=True))
    assert [cells[name] for name in ('chosen', 'worth in a', 'effect of one standard deviation')] == ['', '', '']
    assert 'the one that every choice has differs in b' in shown.text and cells['effect of one unit']


def test_how_much_people_differ_is_told_in_the_units_of_the_table():
    model = MixedLogit(np.array([1.0, -0.5]), np.array([0.5, 0.0]), np.array([[0.2, 0.1], [0.2, np.nan]]))
    shown = portrait.exhibit_mixed_logit(model, units_of(('a', 'b'), np.array([2.0, 1.0])), 30)
    assert shown.table[1] == ['a', '+0.50 ± 0.10', '0.25 ± 0.10', '98%']
    # A deviation that may be 0 says nothing about the share of people.
    assert shown.table[2] == ['b', '-0.50 ± 0.10', '0', '–'] and portrait.ERRORS in shown.text
    shown = portrait.exhibit_mixed_logit(model._replace(errors=None), units_of(('a', 'b'), None), 30)
    assert shown.table[1][1:] == ['+1', '0.5'] and portrait.ERRORS not in shown.text


def test_a_mixed_logit_that_has_not_converged_says_so():
    model = MixedLogit(np.array([1.0]), np.array([0.5]), np.array([[0.2], [0.2]]))
    shown = [
        portrait.exhibit_mixed_logit(model._replace(converged=is_so), units_of(('a',), None), 30).text
        for is_so in (True, False)
    ]
    assert [portrait.UNCONVERGED in text for text in shown] == [False, True]


@pytest.mark.parametrize('chosen', [(1, 1), (1, 2)])
def test_pal_of_one_prototype_gains_exactly_nothing(chosen):
    rng = np.random.default_rng(0)
    parts = [judged.judge(rng.normal(size=60), np.repeat(np.arange(20), 3)) for _ in chosen]
    method: Any = SimpleNamespace(seen=parts, new=[parts])
    shown = population.Shown({'pal': method, 'shared': method}, {}, [*chosen, 3, 3], (0,), {}, {}, {})
    record = population.make_record(shown)
    assert record['seen_gain'] == 0.0 and (record['seen_gain_interval'] == [0.0, 0.0]) == (chosen == (1, 1))
    assert (record['new_gain_interval'] == [0.0, 0.0]) == (chosen == (1, 1))


def test_of_very_many_people_the_first_have_effects(monkeypatch):
    monkeypatch.setattr(portrait, 'SHOWN_PEOPLE', 2)
    model = split_model(np.array([[1.0, 0.0], [0.75, 0.25], [0.0, 1.0]], np.float32))
    table = portrait.table_of_people(model, model._replace(names=[], mixtures=model.mixtures[:0]))
    assert table.splitlines()[1:] == ['p0,0,1,0,1,0.5', 'p1,0,0.75,0.25,0.5,0.5', 'p2,0,0,1,,']


def test_one_model_for_all_shows_no_differences_and_says_so():
    model = split_model(np.ones((3, 1), np.float32))
    effects = portrait.effects_on_people(model)
    common = Common(np.ones(2), 0.01 * np.eye(2), 1000)
    _, a, _ = portrait.exhibit_wants(model, portrait.Wants(effects, common, True, units_of(('a', 'b'), None), '')).table
    assert a == ['a', '+1.00 ± 0.10', '+0.80 to +1.20', '< .001', '73%']
    (people_exhibit,) = portrait.exhibit_prototypes(model)
    assert 'no differences between people' in people_exhibit.text and '--split=1' in people_exhibit.text


def test_a_reply_is_shown_by_what_it_has_above_the_other_reply():
    replies, numbers = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), np.array([0, 1])
    model = split_model(np.array([[0.5, 0.5]], np.float32))
    sides = {'chosen': Lookup(replies, numbers), 'rejected': Lookup(replies, numbers[::-1])}
    data = {**vars(model.data), **sides, 'prompt': Lookup(replies, numbers), 'texts': ('yes', 'no'), 'users': numbers}
    model = model._replace(data=SimpleNamespace(**data))
    assert portrait.effects_on_people(model) is None
    *_, prototypes = portrait.exhibit_prototypes(model)
    # The prototypes differ in the first coordinate alone, which is that of yes.
    assert [row[3] for row in prototypes.table[1:]] == ['yes / yes +1.00', 'no / no +1.00']


def test_effects_of_a_linear_reward_are_its_coefficients():
    items = np.random.default_rng(0).normal(3.0, 1.0, (50, 3))
    coefficients = np.array([[1.0, -2.0, 0.0], [0.5, 0.0, 4.0]])
    effects = people.linear_effects(coefficients @ items.T + 7.0, items)
    np.testing.assert_allclose(effects, coefficients, atol=1e-9)
    assert people.in_words(effects[0].round(9), ('price', 'time', 'comfort')) == ('price +1.00', 'time -2.00')


@pytest.mark.parametrize('K', [1, 2, 3, 5])
def test_a_picture_of_the_people_for_any_number_of_prototypes(K):
    mixtures = np.random.default_rng(0).dirichlet(np.ones(K), 30)
    assert people.plot_simplex(mixtures).startswith(b'\x89PNG')


def test_the_direction_people_differ_in_is_compared_whichever_way_it_points():
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 400)
    share = np.where(kind == 1, 0.8, 0.2) + 0.05 * rng.normal(size=400)
    mixtures = np.stack([share, 1 - share], axis=1)
    unknown = np.where(np.arange(400) < 50, -1, kind)
    unknown[50:53] = 2  # a third group, of three
    for turned, groups in ((mixtures, kind), (mixtures[:, ::-1], 1 - kind), (mixtures, unknown)):
        assert heterogeneity.agreement(turned, groups) == pytest.approx(1.0)
    assert heterogeneity.agreement(mixtures, rng.permutation(kind)) < 0.6
    assert np.isnan(heterogeneity.agreement(mixtures, np.zeros(400, int)))


def test_every_method_has_a_line_of_its_own(monkeypatch):
    drawn, draw = {}, people._draw

    def noted(ax, places, curve, name, line):
        drawn[name] = line
        draw(ax, places, curve, name, line)

    monkeypatch.setattr(people, '_draw', noted)
    people.plot_by_comparisons({name: [intervals.of_mean(0.5, 0.1, 3)] for name in MODELS.values()}, [0])
    assert list(drawn) == list(MODELS.values())
    assert len(set(drawn.values())) == len(drawn)


def test_a_method_that_cannot_be_fitted_has_no_row_and_says_why(monkeypatch):
    def diverges(*arguments):
        raise Unfit('it diverges')

    row = judged.judge(np.array([1.0, -1.0]), np.array([0, 1]))
    result = MethodResult([row], [[row]])
    trials = [SimpleNamespace(shuffled=False)]
    compared = population.Panel(SimpleNamespace(groups=None), trials, {}, (1,), (0,), 0.0)
    results = population.Results({'K=1': result}, {1: [row]}, [1], [1.0], (0,), None)
    shown = population.compare(compared, {}, results, {'mixed_logit': diverges, 'majority': lambda *arguments: result})
    assert list(shown.methods) == ['shared', 'pal', 'majority']
    assert 'mixed logit (xlogit), since it diverges' in population._accuracies(shown)
    assert 'seen_mixed_logit' not in population.make_record(shown)
