"""A person by the mixed logit of a run: which model a run takes, scores, what to ask, and forgetting."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

import pal_jax
from pal_jax.commands import personalize
from pal_jax.recipes.personal.pal import forget as pal_forget
from pal_jax.recipes.personal.pal import kept as pal_kept
from pal_jax.recipes.personal.pal import reward as pal_reward
from pal_jax.recipes.personal.pal import scores as pal_scores
from tests import configs
from tests.recipes.personal.pal.test_kept import two_tastes
from tests.recipes.personal.pal.test_person import of_person
from tests.recipes.personal.test_offers import survey


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return pal_reward.open_pal(str(two_tastes(tmp_path_factory.mktemp('by_logit'))))


def with_logit(run, folder, **changes):
    """A copy of a run whose mixed logit has people who like cheap tariffs, and dear `p1`; its last record has
    `changes`."""
    shutil.copytree(run.workdir, folder)
    effects = {'price': -0.05, 'years': 0.0}
    ana, people = {'effects': effects, 'covariance': [[1e-4, 0.0], [0.0, 1e-4]]}, {}
    for name, price in (('p0', -0.05), ('p1', 0.05)):
        people[name] = ana | {'effects': effects | {'price': price}}
    logit = {'mean': effects, 'deviation': {'price': 0.05, 'years': 0.1}, 'converged': True, 'people': people}
    (folder / 'mixed_logit.json').write_text(json.dumps(logit))
    *_, last = (folder / 'evals.jsonl').read_text().splitlines()
    record = {'seen_gain': 0.2, 'seen_gain_interval': [0.1, 0.3], 'seen_lead_mixed_logit': -0.01}
    (folder / 'evals.jsonl').write_text(json.dumps(json.loads(last) | record | changes) + '\n')
    return str(folder)


@pytest.mark.parametrize(
    ('changes', 'takes'),
    [
        ({}, False),
        ({'seen_lead_mixed_logit': 0.01}, True),
        ({'seen_gain_interval': [-0.1, 0.3]}, True),
        ({'chosen_prototypes': [1]}, True),
    ],
    ids=['PAL predicts', 'the logit is ahead', 'PAL is not shown to predict', 'one prototype'],
)
def test_a_run_takes_the_model_that_describes_people_better(run, tmp_path, changes, takes):
    source = with_logit(run, tmp_path / 'run', **changes)
    assert (pal_reward.open_pal(source).logit is not None) == takes
    assert pal_reward.open_pal(source, 0).logit is None
    record = pal_jax.personalize(source, str(of_person(tmp_path / 'ana.jsonl', 1)))
    assert ('effects' in record, 'mixture' in record) == (takes, not takes)


def test_a_person_by_the_mixed_logit_scores_asks_and_is_forgotten(run, tmp_path, capsys):
    source = with_logit(run, tmp_path / 'run', seen_lead_mixed_logit=0.01, differ_p=0.5)
    record = pal_jax.personalize(source, str(of_person(tmp_path / 'ana.jsonl', 0)))
    assert 'p = 0.500' in capsys.readouterr().err
    assert record['effects']['price'] > 0.0 and record['agreement'] > 0.8
    dear, cheap = {'item': {'price': 120.0, 'years': 3.0}}, {'item': [80.0, 3.0]}
    pair = [{'price_A': 120.0, 'years_A': 3.0, 'price_B': 80.0, 'years_B': 3.0}]
    for person, likes_dear in ((record, True), ('p0', False), ('p1', True), ('', False)):
        scores = pal_jax.score(source, [dear, cheap], person=person)
        chance = pal_jax.score(source, pair, person=person)
        assert (scores[0] > scores[1], chance[0] > 0.5) == (likes_dear, likes_dear)
    np.testing.assert_allclose(pal_jax.score(source, [dear, cheap], person='p0'), [-6.0, -4.0], rtol=1e-5)
    # The least informative of two pairs has nearly equal prices.
    rows = [{'left': [100, 1], 'right': [100.1, 1]}, {'left': [100, 1], 'right': [60, 1]}]
    (pairs := tmp_path / 'pairs.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    personalize.personalize(source, '', str(pairs), None, None)
    assert [json.loads(line)['pair'] for line in capsys.readouterr().out.splitlines()] == [2, 1]
    wrong = record | {'effects': {'price': 1.0}}
    with pytest.raises(ValueError, match='years'):
        pal_jax.score(source, [dear], person=wrong)
    # The file of a person who has effects is deleted like any other one.
    (kept := tmp_path / 'kept.json').write_text(json.dumps(record))
    assert 'No shared parameter' in personalize.forget_file(kept) and not kept.exists()
    said = pal_forget.forget(source, 'p0').in_words(source, 'p0')
    assert 'mixed logit' in said
    assert '"p0"' not in (tmp_path / 'run' / 'mixed_logit.json').read_text()
    with pytest.raises(ValueError, match='p0'):
        pal_jax.score(source, [dear], person='p0')


def test_options_of_a_situation_have_shares_of_all_people_and_probabilities_of_one(run, tmp_path, capsys):
    source = with_logit(run, tmp_path / 'run', seen_lead_mixed_logit=0.01)
    cheap, middle, dear = ({'price': price, 'years': 3.0} for price in (60.0, 90.0, 120.0))
    rows = [{'scenario': 1, **cheap}, {'scenario': 2, **dear}, {'scenario': 1, **dear}, {'scenario': 2, **middle}]
    shares = pal_jax.score(source, [*rows, {'scenario': 1, **middle}])
    assert shares[[0, 2, 4]].sum() == pytest.approx(1.0) and shares[[1, 3]].sum() == pytest.approx(1.0)
    # Of two options the share is the probability of the pair.
    pair = {f'{name}_{side}': x for side, item in (('A', dear), ('B', middle)) for name, x in item.items()}
    assert shares[1] == pytest.approx(pal_jax.score(source, [pair])[0], abs=2e-3)
    # People who like dear tariffs are fewer than those who like cheap ones, of whom `p0` is one.
    assert shares[0] > shares[4] > shares[2]
    odds = np.exp([-0.05 * 60, -0.05 * 120, -0.05 * 90])
    of_p0 = pal_jax.score(source, [rows[0], rows[2], {'scenario': '1', **middle}], person='p0')
    np.testing.assert_allclose(of_p0, odds / odds.sum(), atol=0.05)
    assert 'the same scenario' in capsys.readouterr().err
    # Shares of all people have intervals where the estimates have a covariance, and one person's probability has none.
    logit = json.loads((tmp_path / 'run' / 'mixed_logit.json').read_text())
    errors = np.diag([0.01, 0.01, 0.01, 0.01]) ** 2
    (tmp_path / 'run' / 'mixed_logit.json').write_text(json.dumps(logit | {'covariance': errors.tolist()}))
    for person, keys in (('', 4), ('p0', 2)):
        scorer = pal_scores.open_scorer(source, person)
        fields = scorer.told([scorer.read(row) for row in [*rows, {'scenario': 1, **middle}]])
        assert [len(row) for row in fields] == [keys] * 5
        assert all(row['probability_low'] < row['probability'] < row['probability_high'] for row in fields if keys > 2)
    with pytest.raises(ValueError, match='record 2: .*an option'):
        pal_jax.score(source, [rows[0], dear])
    # A column that numbers each option apart is no situation, and options have their scores.
    numbered = pal_jax.score(source, rows[:2])
    np.testing.assert_allclose(numbered, pal_jax.score(source, [cheap, dear]))


def test_an_option_may_leave_out_what_all_offers_share(run):
    kept = run.kept._replace(shared={'years': 3.0})
    (item,) = pal_scores.to_items(run._replace(kept=kept), {'price': 80.0})
    (whole,) = pal_scores.to_items(run, {'price': 80.0, 'years': 3.0})
    np.testing.assert_array_equal(item[0], whole[0])
    with pytest.raises(ValueError, match='years'):
        pal_scores.to_items(run, {'price': 80.0})
    # A column that may be meant is told, and a pair leaves the attribute out on both sides.
    with pytest.raises(ValueError, match='no .years.*Years'):
        pal_scores.to_items(run._replace(kept=kept), {'price': 80.0, 'Years': 3.0})
    first, second = pal_scores.to_items(run._replace(kept=kept), {'price_A': 80.0, 'price_B': 90.0})
    np.testing.assert_array_equal(first[0], whole[0])
    assert second[0][0, 1] == whole[0][0, 1] and second[0][0, 0] > whole[0][0, 0]
    rows = [{'situation': 1, 'price': price} for price in (80.0, 90.0)]
    scorer = pal_scores._scorer_of(run._replace(kept=kept), lambda read: np.arange(2.0), lambda read, situations: [])
    assert len(scorer.read_all(enumerate(rows))) == 2
    (item,) = pal_scores.to_items(run._replace(kept=kept), {'price': 80.0, 'years': ''})
    np.testing.assert_array_equal(item[0], whole[0])
    assert pal_kept.of(configs.load('pal', standardize=False), survey()).shared == {'neither': 0.0}


def test_an_option_without_values_is_none_of_these():
    attributes = 'option: B over A', 'option: none over A', 'price'
    kept = pal_kept.Kept(('ana',), attributes, np.ones(3), constant=(0.0, 1.0, 0.0))
    none = {'option': 'none', 'price': 0}
    assert kept.items({'option': 'None', 'price': ''}) == kept.items({'option': '', 'price': None}) == [none]
    # An option of another name lacks its price, as does one of a run without such an option.
    for known, option in ((kept, 'B'), (kept._replace(constant=()), 'none')):
        with pytest.raises(ValueError, match='price is empty'):
            known.items({'option': option, 'price': ''})


QUESTIONS = """situation;price;years
near;90,0;3
near;90,1;3
far;60;3
far;120;3
three;60;3
three;90;3
three;120;3
"""


@pytest.mark.parametrize('by_logit', [False, True], ids=['PAL', 'mixed logit'])
def test_situations_are_asked_in_the_order_of_what_a_choice_tells(run, tmp_path, capsys, by_logit):
    source = with_logit(run, tmp_path / 'run', seen_lead_mixed_logit=0.01) if by_logit else run.workdir
    (path := tmp_path / 'questions.csv').write_text(QUESTIONS)
    personalize.personalize(source, '', str(path), None, None)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert rows[-1]['situation'] == 'near' and rows[-1]['information'] < 1e-3
    assert rows[-1]['options'] == [{'price': 90.0, 'years': 3.0}, {'price': 90.1, 'years': 3.0}]
    nats = {row['situation']: row['information'] for row in rows}
    # A situation of two options tells what the pair of them does.
    (pairs := tmp_path / 'pairs.jsonl').write_text(json.dumps({'left': [60, 3], 'right': [120, 3]}))
    personalize.personalize(source, '', str(pairs), None, None)
    # PAL takes 64 draws for a pair.
    assert nats['far'] == pytest.approx(json.loads(capsys.readouterr().out)['information'], abs=0.05)
    assert rows[0]['information'] == max(nats['far'], nats['three']) > 0.05
    # After somebody's choices a further answer tells less.
    personalize.personalize(source, str(of_person(tmp_path / 'ana.jsonl', 1)), str(path), None, None)
    after = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert after[0]['information'] < rows[0]['information']
    for wrong, named in (
        (QUESTIONS.replace('60;3', 'x;3'), r'questions\.csv, row 4.*price'),
        (QUESTIONS.replace('near;90,1;3\n', ''), 'situation near has one option'),
    ):
        path.write_text(wrong)
        with pytest.raises(ValueError, match=named):
            personalize.personalize(source, '', str(path), None, None)


def test_the_pairs_of_a_situation_are_one_choice(run, tmp_path):
    """One choice among three tariffs says less about a person than two choices between two of them."""
    source, variance = with_logit(run, tmp_path / 'run', seen_lead_mixed_logit=0.01), {}
    for name, situations in (('one', ('s', 's')), ('two', ('s', 't'))):
        rows = [
            {'user': 'ana', 'situation': situation, 'chosen': [60.0, 3.0], 'rejected': [price, 3.0]}
            for situation, price in zip(situations, (80.0, 90.0), strict=True)
        ]
        (path := tmp_path / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
        variance[name] = pal_jax.personalize(source, str(path))['covariance'][0][0]
    assert variance['one'] > 1.02 * variance['two']


def test_an_option_that_every_choice_has_is_not_out_of_range():
    ranges, scale = ((2.0, 6.0), (0.0, 1.0)), np.array([2.0, 1.0])
    kept = pal_kept.Kept(('ana',), ('price', 'neither'), scale, ranges=ranges, constant=(0.0, 1.0))
    for item, doubt in (([0.0, 1.0], False), ([0.0, 0.0], True), ([9.0, 1.0], True), ([4.0, 0.0], False)):
        row = pal_scores.TableRow(((kept.in_units([item]), None),))
        assert bool(pal_scores._doubt(kept, row)) == doubt
