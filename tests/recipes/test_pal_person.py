"""A new person in a trained PAL: a mixture from few choices, what to ask next, and both commands on files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import minimize

from pal_jax import personalize, score, scoring
from pal_jax.models import ideal_point
from pal_jax.recipes.pal import person as pal_person
from pal_jax.recipes.pal import reward as pal_reward
from tests import configs
from tests.recipes.test_pal_kept import FEW, choices, finished, on_texts, statements  # noqa: F401


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run on a table whose two prototypes disagree: odd people like their tariffs dear."""
    folder = tmp_path_factory.mktemp('person')
    data = choices(folder / 'choices.jsonl', [f'p{i}' for i in range(12)])
    changes = {'data': str(data), 'baselines.majority': False, 'baselines.mixed_logit': False, 'updates': 40}
    finished(configs.load('pal', **FEW | changes), folder / 'run')
    return pal_reward.open_pal(str(folder / 'run'))


def of_person(path, number, count=6):
    """The choices of one new person, who likes tariffs cheap (0) or dear (1)."""
    everyone = choices(path, ['cheap', 'dear']).read_text().splitlines()
    own = [line for line in everyone if json.loads(line)['user'] == ('cheap', 'dear')[number]]
    path.write_text('\n'.join(own[:count]) + '\n')
    return path


def test_a_mixture_is_where_the_persons_posterior_is_highest(run, tmp_path):
    """Against a general optimiser on the loss written with numpy's functions and the run's own margins."""
    own = pal_person.read_choices(run, str(of_person(tmp_path / 'ana.jsonl', 1)))
    fitted = pal_person.fit(run, own)
    mean, pull = np.asarray(pal_person.prior(run))[0, 0], run.learner.new.pull

    def loss(z):
        w = ideal_point.weights(run.pal, np.asarray(z, np.float32)[None])[0]
        sides = [pal_reward.rewards(run, w, side[0], None) for side in (own.batch.chosen, own.batch.rejected)]
        return np.logaddexp(0, -np.asarray(sides[0] - sides[1])).sum() + pull / 2 * np.sum((z - mean) ** 2)

    best = minimize(loss, mean, method='Nelder-Mead', options={'xatol': 1e-4, 'fatol': 1e-6}).x
    expected = np.exp(best - best.max()) / np.exp(best - best.max()).sum()
    np.testing.assert_allclose(fitted.mixture, expected, atol=5e-3)


def test_opposite_people_get_opposite_mixtures_and_their_own_choices_back(run, tmp_path):
    people = [
        pal_person.fit(run, pal_person.read_choices(run, str(of_person(tmp_path / f'{k}.jsonl', k)))) for k in (0, 1)
    ]
    assert abs(float(people[0].mixture[0]) - float(people[1].mixture[0])) > 0.1
    assert all(person.agreement > 0.8 for person in people)


def test_attributes_in_another_order_are_the_same_choices(run, tmp_path):
    path = of_person(tmp_path / 'ana.jsonl', 0)
    turned = tmp_path / 'turned.jsonl'
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row |= {side: dict(reversed(row[side].items())) for side in ('chosen', 'rejected')}
    turned.write_text('\n'.join(map(json.dumps, rows)))
    first, second = (pal_person.fit(run, pal_person.read_choices(run, str(p))).mixture for p in (path, turned))
    np.testing.assert_array_equal(first, second)


def test_the_next_question_is_not_one_that_was_answered(run, tmp_path):
    """A pair that all people decide alike tells less than one on which they differ; answers lower what is left."""
    path = of_person(tmp_path / 'ana.jsonl', 0)
    own = pal_person.read_choices(run, str(path))
    pairs = tmp_path / 'pairs.jsonl'
    rows = [json.loads(path.read_text().splitlines()[0]) for _ in range(2)]
    rows[1]['rejected'] = dict.fromkeys(rows[1]['chosen'], 0.0) | rows[1]['chosen']  # nearly the same item twice
    rows[1]['rejected']['years'] += 1e-3
    pairs.write_text('\n'.join(map(json.dumps, rows)))
    asked = pal_person.read_choices(run, str(pairs))
    before, after = pal_person.information(run, asked), pal_person.information(run, asked, own)
    assert before[0] > before[1] >= 0
    assert after[0] < before[0]


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        (lambda rows: [{**rows[0], 'user': 'bob'}, *rows[1:]], 'bob'),
        (lambda rows: [{**row, 'chosen': {'price': 1.0}, 'rejected': {'price': 2.0}} for row in rows], 'years'),
    ],
    ids=['two people', 'other attributes'],
)
def test_choices_that_do_not_fit_the_run_are_refused_with_the_file(run, tmp_path, change, named):
    path = of_person(tmp_path / 'ana.jsonl', 0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text('\n'.join(map(json.dumps, change(rows))))
    with pytest.raises(ValueError, match=rf'ana\.jsonl.*{named}'):
        pal_person.read_choices(run, str(path))


# --- the commands -----------------------------------------------------------------------------------------------------


def test_a_person_is_written_and_scores_with_it(run, tmp_path, capsys):
    ana, out = of_person(tmp_path / 'ana.jsonl', 1), tmp_path / 'ana.json'
    personalize.personalize(run.workdir, str(ana), '', out, 0)
    assert 'ana.json' in capsys.readouterr().out
    told = json.loads(out.read_text())
    assert told['user'] == 'dear' and told['choices'] == 6 and sum(told['mixture']) == pytest.approx(1)
    items = tmp_path / 'items.jsonl'
    values = [{'price': 150.0, 'years': 2.0}, [60.0, 4.0]]
    items.write_text('\n'.join(json.dumps({'id': k, 'item': item}) for k, item in enumerate(values)))
    scored = tmp_path / 'scored.jsonl'
    source = f'orbax:{run.workdir}'
    score.score(source, str(out), str(items), scored)
    rows = [json.loads(line) for line in scored.read_text().splitlines()]
    table = np.array([[150.0, 2.0], [60.0, 4.0]])
    expected = pal_reward.load_pal_reward_model(run.workdir, mix=told['mixture']).reward(table)
    np.testing.assert_allclose([row['score'] for row in rows], expected, rtol=1e-5)
    assert [row['id'] for row in rows] == [0, 1]
    for person in ('p0', ''):  # somebody of the training, and the population
        score.score(source, person if person in run.people else next(iter(run.people)), str(items), None)
    with pytest.raises(ValueError, match=r'scored\.jsonl'):
        score.score(source, str(out), str(items), scored)


def test_open_pairs_are_printed_the_most_informative_first(run, tmp_path, capsys):
    ana = of_person(tmp_path / 'ana.jsonl', 1)
    personalize.personalize(run.workdir, '', str(ana), None, 0)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    nats = [row['information'] for row in rows]
    assert nats == sorted(nats, reverse=True) and sorted(row['pair'] for row in rows) == [1, 2, 3, 4, 5, 6]
    assert set(rows[0]['left']) == {'price', 'years'}


def test_a_mixture_of_another_run_is_refused(run, tmp_path):
    path = tmp_path / 'ana.json'
    path.write_text(json.dumps({'mixture': [0.5, 0.5], 'fingerprint': 'ffffffffffffffff'}))
    with pytest.raises(ValueError, match=r'ana\.json.*another run'):
        pal_person.open_person(run.workdir, str(path))
    path.write_text(json.dumps({'mixture': [0.5, 0.5]}))  # by hand
    _, mixture = pal_person.open_person(run.workdir, str(path))
    np.testing.assert_allclose(mixture, [0.5, 0.5])


@pytest.mark.parametrize(
    ('record', 'key'),
    [({'item': [1.0]}, 'price'), ({'item': {'price': 1.0}}, 'years'), ({'text': 'x'}, 'item'),
     ({'item': [1.0, True]}, 'item'), ({'item': [1.0, 2.0], 'score': 1}, 'score')],
)  # fmt: skip
def test_a_wrong_record_is_named_by_its_line(run, tmp_path, record, key):
    path = tmp_path / 'items.jsonl'
    path.write_text(json.dumps({'item': [1.0, 2.0]}) + '\n' + json.dumps(record))
    with pytest.raises(ValueError, match=rf'items\.jsonl, line 2.*{key}'):
        score.score(f'orbax:{run.workdir}', '', str(path), None)


# --- texts ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_choices_between_statements_make_a_person_who_prefers_them(tmp_path, statements):  # noqa: F811
    finished(on_texts(statements, updates=20), tmp_path)
    run = pal_reward.open_pal(str(tmp_path))
    ana = tmp_path / 'ana.jsonl'
    rows = [json.loads(line) for line in statements.read_text().splitlines()]
    ana.write_text('\n'.join(json.dumps({**row, 'user': 'ana'}) for row in rows if row['user'] == 'p1'))
    choices = pal_person.read_choices(run, str(ana))
    person = pal_person.fit(run, choices)
    reward = pal_reward.reward_of_replies(run, person.mixture)
    gaps = [np.subtract(*reward(['', ''], pair)) for pair in choices.shown]
    assert person.agreement == pytest.approx(np.mean(np.array(gaps) > 0), abs=1e-9)
    assert choices.shown[0] == tuple(
        next(row[side] for row in rows if row['user'] == 'p1') for side in ('chosen', 'rejected')
    )
    ana.write_text(json.dumps({'user': 'ana', 'prompt': 'Say', 'chosen': 'a', 'rejected': 'z'}))
    with pytest.raises(ValueError, match=r'ana\.jsonl has texts with prompts.*statements'):
        pal_person.read_choices(run, str(ana))
    texts, scored = tmp_path / 'texts.jsonl', tmp_path / 'scored.jsonl'
    texts.write_text('\n'.join(json.dumps({'text': text}) for text in ('azam', 'zzzz')))
    score.score(f'orbax:{tmp_path}', 'p1' if 'p1' in run.people else '', str(texts), scored)
    assert len(scored.read_text().splitlines()) == 2
    texts.write_text(json.dumps({'prompt': 'Say', 'completion': 'a'}))
    with pytest.raises(ValueError, match=r'texts\.jsonl, line 1.*text'):
        score.score(f'orbax:{tmp_path}', '', str(texts), None)


@pytest.mark.parametrize('edit', [{'split': -1}, {'split': []}, {'split': None}, {'split': True}, {'fingerprint': []}])
def test_a_persons_file_with_a_wrong_split_or_fingerprint_is_refused(tmp_path, edit):
    path = tmp_path / 'ana.json'
    path.write_text(json.dumps({'mixture': [0.5, 0.5], **edit}))
    with pytest.raises(ValueError, match=rf'ana.json.*{next(iter(edit))}'):
        pal_person.read_person(path)


def test_scores_of_no_records_are_none_and_a_number_too_large_is_named(run, tmp_path):
    scorer = scoring.open_scorer(f'orbax:{run.workdir}')
    assert scorer([]).shape == (0,)
    with pytest.raises(ValueError, match="record 1: .*'item'"):
        scorer([{'item': [10**400] * len(run.kept.attributes)}])
    (path := tmp_path / 'ana.json').write_text('{"mixture": [0.5, 0.6]}')
    with pytest.raises(ValueError, match='ana.json: a mixture'):
        scoring.open_scorer(f'orbax:{run.workdir}', str(path))
