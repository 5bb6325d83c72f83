"""The protocol of the bench on people whose tastes are known, by methods of a few lines."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from pal_jax.data import comparisons
from pal_jax.data.comparisons import Comparisons, PairBatch
from pal_jax.recipes.personal import evaluation as bench
from pal_jax.recipes.personal import judged, logit, panel
from pal_jax.recipes.personal.bench import report as bench_report
from pal_jax.recipes.personal.bench.leakage import ASYMMETRY
from pal_jax.recipes.personal.interface import Fitted, Method, by_person
from pal_jax.recipes.personal.logit import logistic
from pal_jax.run.glossary import words_of
from pal_jax.run.verdict import judge

COUNTS = 0, 3, 9


def people(seed=0, count=40, choices=15):
    """Two kinds of people who want opposite things of one attribute and the same of another."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(count), choices)
    taste = np.stack([np.where(users % 2, 3.0, -3.0), np.full(len(users), 1.0)], axis=1)
    pairs = rng.normal(size=(len(users), 2, 2)).astype(np.float32)
    better, rows = np.einsum('bih,bh->bi', pairs, taste).argmax(axis=1), np.arange(len(users))
    return Comparisons(
        users.astype(np.int32), rows.astype(np.int32), pairs[rows, better], pairs[rows, 1 - better], None,
        tuple(f'p{i}' for i in range(count)), ('x', 'y'),
    )  # fmt: skip


@pytest.fixture(scope='module')
def tasks():
    data = people()
    split = functools.partial(comparisons.split, data, seen=0.75, train=0.6, validation=0.2)
    return bench.make_tasks(data, panel.make_trials(data, 2, True, 0, lambda seed: split(seed=seed)))


def test_runs_with_different_seeds_have_no_split_in_common():
    data = people()
    split = functools.partial(comparisons.split, data, seen=0.75, train=0.6, validation=0.2)
    zero, one = (
        [trial.seed for trial in panel.make_trials(data, 5, True, seed, lambda number: split(seed=number))]
        for seed in (0, 1)
    )
    assert zero == [*range(5)] * 2 and not set(zero) & set(one)


def weights(choices: PairBatch, shared, pull):
    """A model for each person by the choices that count."""
    index, exists = by_person(choices)
    if not index.size:
        return np.tile(shared, (choices.people, 1))
    x = choices.difference[index].astype(float)[:, :, None]
    return logit.fit(x, exists.astype(float), pull, shared).weights


def fit(train, seed, pull=1.0):
    x = train.difference[train.counts].astype(float)
    shared = logistic(x)
    return Fitted((shared, pull, weights(train, shared, pull)), 2, 2)


def margins(fitted, known, asked):
    shared, pull, w = fitted.params
    w = w if known is None else weights(known, shared, pull)
    return np.sum(asked.difference * w[asked.users], axis=1)


def rows_of(method, tasks, counts):
    """The rows of a method on all splits, of which the first is measured."""
    return [row for r, task in enumerate(tasks) for row in bench.run(method, task, counts, measured=not r)]


def figures_of(rows, part, known, shuffled=False):
    chosen = [
        row for row in rows if (row.get('part'), row.get('known'), row.get('shuffled')) == (part, known, shuffled)
    ]
    return judged.figures([judged.from_json(row) for row in chosen])


def test_a_personal_method_gains_and_shuffled_people_do_not(tasks):
    rows = rows_of(Method(fit, margins), tasks, COUNTS)
    assert figures_of(rows, 'seen', -1).people.value > 0.85
    assert figures_of(rows, 'seen', -1, shuffled=True).people.value < 0.7
    none, some, everything = (figures_of(rows, 'new', count).people.value for count in COUNTS)
    assert none < 0.7 < some < everything + 0.02
    assert everything > 0.85
    assert figures_of(rows, 'strangers', COUNTS[-1]).people.value < everything - 0.1
    first, *others = [row['about'] for row in rows if 'about' in row]
    assert [sorted(about) for about in others] == [['factor', 'looks', 'option']] * (len(tasks) - 1)
    about = bench_report.by_set([{'data': 'toys', 'method': 'own', **row} for row in rows])[0].about['own']
    assert (about['shared_parameters'], about['parameters_a_person'], about['asymmetry']) == (2, 2, pytest.approx(0))
    assert about['looks'] == len(rows) - len(tasks) > first['looks']
    assert about['seconds_a_person'] == first['seconds_a_person'] > 0


def test_margins_that_are_too_sure_become_log_odds_by_validation_choices(tasks):
    """Five times too large margins are .1 more sure than right, and after the factor as sure as the model's own."""
    plain, sure = (
        figures_of(rows_of(Method(fit, lambda *args, by=by: by * margins(*args)), tasks[:1], (9,)), 'seen', -1)
        for by in (1.0, 5.0)
    )
    assert abs(sure.overconfidence) < 0.05
    np.testing.assert_allclose([sure.log_loss, sure.people.value], [plain.log_loss, plain.people.value], rtol=1e-3)
    right = np.random.default_rng(0).random(20000) < 1 / (1 + np.exp(-0.7))
    assert judged.temperature(np.where(right, 2.0, -2.0)) == pytest.approx(0.35, abs=0.01)


def test_tests_have_true_people_where_training_has_shuffled_ones(tasks):
    data = people()
    for task in tasks:
        index = task.trial.split.test
        np.testing.assert_array_equal(task.seen[task.test.users[: len(index)]], data.users[index])
        np.testing.assert_array_equal(task.test.chosen[: len(index)], data.chosen[index])
        same = task.seen[task.train.users[: len(task.trial.split.train)]] == data.users[task.trial.split.train]
        assert same.all() != task.trial.shuffled
    assert len({task.known.users.shape for task in tasks}) == 1


def test_padding_moves_nothing(tasks):
    fills = {'users': 0, 'chosen': 5, 'rejected': -5, 'share': 0}
    for task in tasks:
        columns = {name: getattr(task.train, name) for name in fills}
        wide = {name: np.concatenate([x, np.full_like(x[:3], fills[name])]) for name, x in columns.items()}
        padded = task._replace(train=task.train.replace(**wide))
        a, b = (bench.run(Method(fit, margins), side, (9,))[1:] for side in (task, padded))
        assert a == b


def test_the_option_is_chosen_on_people_who_were_left_out(tasks):
    seen = []

    def spy(train, seed, pull):
        seen.append((pull, np.unique(train.users[train.counts]).size))
        return fit(train, seed, pull)

    method = Method(spy, margins, options=({'pull': 1e6}, {'pull': 1.0}))
    assert bench.choose(method, tasks[0]) == {'pull': 1.0}
    assert seen == [(1e6, 24), (1.0, 24)]  # a fifth of 30 seen people is left out


def test_a_method_that_looks_which_side_won_is_caught(tasks):
    def cheats(fitted, known, asked):
        return np.ones(len(asked.users))

    assert bench.run(Method(fit, cheats), tasks[0], (9,))[0]['about']['asymmetry'] > ASYMMETRY


def test_margins_that_are_not_finite_are_refused(tasks):
    with pytest.raises(ValueError, match='not finite'):
        bench.run(Method(fit, lambda fitted, known, asked: np.full(len(asked.users), np.nan)), tasks[0], (9,))


def test_questions_come_first_and_the_others_after_them(tasks):
    task = tasks[0]

    def ask(fitted, pool, questions):
        """The second choice of each person, then the first one, and nothing else."""
        index, exists = by_person(pool)
        rank = np.full(len(pool.users), 2**30)
        rank[index[exists[:, 1], 1]], rank[index[exists[:, 0], 0]] = 0, 1
        return rank

    rank = panel.asked_first(task.known.users, ask(None, task.known, 2), task.rank, 2)
    index, _ = by_person(task.known)
    assert rank[index[0, :2]].tolist() == [1, 0]
    assert sorted(rank[index[0]].tolist()) == list(range(index.shape[1]))
    rows = rows_of(Method(fit, margins, ask=ask), tasks, COUNTS)
    assert figures_of(rows, 'asked', 9).people == figures_of(rows, 'new', 9).people
    assert {row['known'] for row in rows if row.get('part') == 'asked'} == set(COUNTS)


def test_the_report_marks_a_data_set_that_fails_and_a_gain_of_shuffled_people(tasks):
    def shared_margins(fitted, known, asked):
        return asked.difference @ fitted.params[0]

    lines = [
        {'method': name} | row
        for name, m, personal in (('shared', shared_margins, True), ('own', margins, True))
        for row in rows_of(Method(fit, m, personal=personal), tasks, COUNTS)
    ]
    flag = {'test': 'T6', 'name': 'string artefacts', 'figure': 1e-5, 'low': np.nan, 'high': np.nan, 'chance': 1.0,
            'verdict': 'flag', 'words': 'a bracket'}  # fmt: skip
    unfit = {'method': 'mixed_logit', 'unfit': 'it diverges'}
    records = [{'data': 'toys'} | line for line in ({'findings': [flag]}, *lines, unfit)]
    exhibits = {exhibit.title: exhibit for exhibit in bench_report.make_exhibits(records, ['texts'])}
    assert [title for title in exhibits if 'toys' in title and 'FAILS T6' not in title] == ['Audit: toys']
    seen = exhibits['Seen people: toys (FAILS T6)'].table
    assert seen[1][0] == 'one model for all (K = 1)'
    assert seen[2][seen[0].index('counts')] == 'yes'
    assert 'mixed logit (xlogit), since it diverges' in exhibits['Seen people: toys (FAILS T6)'].text
    assert exhibits['Data and their audit'].table[1][-2].startswith('a separate model for each person: +')
    assert 'Not given: texts' in exhibits['Data and their audit'].text
    record = bench_report.make_record(records)
    assert record['failed_data_sets'] == 1
    gain = bench_report.by_set(records)[0].gain('own', 'seen').mean  # the best one that counts
    assert (record['best_gain'], record['best_gain_interval']) == (gain.value, pytest.approx(gain.interval))
    verdict = judge([], [{'step': 1, 'stage': 'final', **record}], words_of('personal.bench'))
    assert verdict.answer == 'Yes' and 'person' in verdict.question
    # A method that fits some splits only is compared on none.
    partly = bench_report.by_set([*records, {'data': 'toys', 'method': 'own', 'unfit': 'too few people'}])[0]
    assert partly.methods == ['shared']
    assert partly.unfit == {'mixed_logit': 'it diverges', 'own': 'too few people'}
    assert record['new_gain_own'] > 0.2
    page = bench_report.markdown(list(exhibits.values()), 'Bench', ['a.png', 'b.png'])
    assert page.count('![') == 2
    assert '| one model for all (K = 1) |' in page
