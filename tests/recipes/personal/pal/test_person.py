"""A new person in a trained PAL: a mixture from few choices, what to ask next, and both commands on files."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.optimize import minimize

import pal_jax
from pal_jax import scoring
from pal_jax.commands import personalize, score
from pal_jax.recipes.personal import ideal_point
from pal_jax.recipes.personal.pal import person as pal_person
from pal_jax.recipes.personal.pal import reward as pal_reward
from pal_jax.recipes.personal.pal import scores as pal_scores
from tests import configs
from tests.recipes.personal.pal.test_kept import FEW, choices, on_texts, statements, two_tastes  # noqa: F401
from tests.recipes.personal.texts import finished


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return pal_reward.open_pal(str(two_tastes(tmp_path_factory.mktemp('person'))))


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
    mean, pull = np.asarray(run.prior)[0, 0], run.learner.new.pull

    @jax.jit
    def margins(z):
        w = ideal_point.weights(run.pal, z[None])[0]
        chosen, rejected = (pal_reward.rewards(run, w, x[0], None) for x in (own.batch.chosen, own.batch.rejected))
        return chosen - rejected

    def loss(z):
        of_choices = np.logaddexp(0, -np.asarray(margins(z.astype(np.float32)))).sum()
        return of_choices + pull / 2 * np.sum((z - mean) ** 2)

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
        (
            lambda rows: [
                {**row, 'chosen': row['chosen'] | {'colour': 1.0}, 'rejected': row['rejected'] | {'colour': 2.0}}
                for row in rows
            ],
            'colour',
        ),
        (lambda rows: [{**row, 'chosen': [1.0], 'rejected': [2.0]} for row in rows], 'price, years'),
    ],
    ids=['two people', 'other attributes', 'more attributes', 'other vectors'],
)
def test_choices_that_do_not_fit_the_run_are_refused_with_the_file(run, tmp_path, change, named):
    path = of_person(tmp_path / 'ana.jsonl', 0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text('\n'.join(map(json.dumps, change(rows))))
    with pytest.raises(ValueError, match=rf'ana\.jsonl.*{named}'):
        pal_person.read_choices(run, str(path))


def test_people_in_a_file_are_all_named_or_some_with_dots(run, tmp_path):
    path = tmp_path / 'ana.jsonl'
    for count, named in ((2, r'\(p0, p1\)'), (4, r'\(p0, p1, p2, \.\.\.\)')):
        with pytest.raises(ValueError, match=named):
            pal_person.read_choices(run, choices(path, [f'p{i}' for i in range(count)]))


def test_choices_of_vectors_are_those_of_objects(run, tmp_path):
    path = of_person(tmp_path / 'ana.jsonl', 0)
    vectors = tmp_path / 'vectors.jsonl'
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row |= {side: list(row[side].values()) for side in ('chosen', 'rejected')}
    vectors.write_text('\n'.join(map(json.dumps, rows)))
    objects, lists = (pal_person.read_choices(run, p) for p in (path, vectors))
    assert objects.shown == lists.shown
    np.testing.assert_array_equal(objects.batch.chosen, lists.batch.chosen)


@pytest.mark.parametrize(
    'mix',
    [np.ones(2), [0.5, 0.6], [1.0], [0.5, 0.25, 0.25], [[0.5, 0.5]], [[0.5], [0.2, 0.3]], [np.nan, 1.0], 'ab', 0.5,
     {'a': 1}, [None, 1.0], ['0.5', '0.5'], [1.5, -0.5]],
    ids=str,
)  # fmt: skip
def test_what_is_no_mixture_is_refused_wherever_it_comes_in(run, mix):
    vectors = pal_reward.item_vectors(run, [[100.0, 2.0]])
    for taken in (
        lambda: pal_reward.reward_of_items(run, mix),
        lambda: pal_reward.reward_of_replies(run, mix),
        lambda: pal_reward.rewards(run, mix, *vectors),
        lambda: run.mixture(mix=mix),
    ):
        with pytest.raises(ValueError, match='2 prototypes'):
            taken()


def test_a_mixture_may_be_a_list_and_an_item_an_object(run):
    reward = pal_reward.reward_of_items(run, [0.25, 0.75])
    expected = pal_reward.load_pal_reward_model(run.workdir, mix=np.array([0.25, 0.75])).reward([[100.0, 2.0]])
    np.testing.assert_array_equal(reward([{'years': 2.0, 'price': 100}]), expected)
    many = jax.vmap(lambda w: pal_reward.rewards(run, w, *pal_reward.item_vectors(run, [[100.0, 2.0]])))
    np.testing.assert_allclose(many(np.array([[0.25, 0.75], [1.0, 0.0]]))[0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ('items', 'named'),
    [
        ([{'price': 1.0}], "no 'years'"), ([{'price': 1.0, 'years': 2.0, 'colour': 3.0}], "'colour'"), (None, 'items'),
        ([{'price': 1.0, 'years': 'two'}], 'items'), ([[1.0, 2.0], {'price': 1.0, 'years': 2.0}], 'alike'),
        ({'price': 1.0, 'years': 2.0}, 'items'), ('ab', 'items'), ([[1.0], [1.0, 2.0]], 'items'), ([], 'items'),
    ],
)  # fmt: skip
def test_what_is_no_item_is_refused(run, items, named):
    with pytest.raises(ValueError, match=named):
        pal_reward.reward_of_items(run, [0.5, 0.5])(items)
    with pytest.raises(ValueError, match='variant A'):
        pal_reward.reward_of_items(run, [0.5, 0.5])([[1.0, 2.0]], [[1.0, 2.0]])
    with pytest.raises(ValueError, match='table'):
        pal_reward.reward_of_replies(run, [0.5, 0.5])([''], ['a'])


@pytest.mark.slow
def test_prompts_of_variant_b_are_as_many_vectors_as_items(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        {'user': f'p{i % 12}', **{side: rng.normal(size=2).tolist() for side in ('chosen', 'rejected', 'prompt')}}
        for i in range(72)
    ]
    (data := tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    config = configs.load('pal', **FEW | {'data': str(data), 'model.variant': 'B', 'model.projector': 'mlp1-gelu'})
    config = configs.changed(config, **{'baselines.majority': False, 'baselines.mixed_logit': False})
    finished(config, tmp_path / 'run')
    run = pal_reward.open_pal(tmp_path / 'run')
    reward = pal_reward.reward_of_items(run, [0.5, 0.5])
    assert reward([[1.0, 2.0]], [[1.0, 0.0]]).shape == (1,)
    for prompts in (None, [[1.0]], [[1.0, 0.0]] * 2, [[1e39, 0.0]], [['a', 'b']]):
        with pytest.raises(ValueError, match='prompts'):
            reward([[1.0, 2.0]], prompts)
    for prompt in (None, [1.0], [1.0, 'x']):
        with pytest.raises(ValueError, match="'prompt'"):
            pal_scores.to_item({'item': [1.0, 2.0], 'prompt': prompt}, run)
    (pairs := tmp_path / 'pairs.jsonl').write_text('{"left": [1, 2], "right": [2, 1], "prompt": [0]}')
    with pytest.raises(ValueError, match=r'pairs\.jsonl.*prompts of 2'):
        pal_person.read_choices(run, pairs, answered=False)


def test_replies_are_in_the_form_that_the_run_learnt_from(run):
    said = [{'role': 'user', 'content': 'a'}]
    texts, chats, alone = (
        run._replace(kept=run.kept._replace(prompted=prompted, chat=chat))
        for prompted, chat in ((True, False), (True, True), (False, False))
    )
    pal_reward.check_form(texts, 'a', 'b')
    pal_reward.check_form(chats, said, said)
    pal_reward.check_form(alone, '', 'b')
    for of, *sides in ((texts, said, said), (texts, 'a', said), (chats, 'a', 3), (alone, '', said), (alone, '', ' ')):
        with pytest.raises(ValueError, match='text'):
            pal_reward.check_form(of, *sides)


# --- the run and the person -------------------------------------------------------------------------------------------


def test_a_run_is_named_by_its_folder_or_as_orbax_and_opened_in_silence(run, caplog):
    with caplog.at_level('INFO'):
        for name in (run.workdir, f'orbax:{run.workdir}', Path(run.workdir)):
            assert pal_reward.open_pal(name).fingerprint == run.fingerprint
            assert scoring.open_scorer(name)([{'item': [1.0, 2.0]}]).shape == (1,)
    assert [record for record in caplog.records if record.name == 'absl' and record.levelname != 'ERROR'] == []
    for wrong in ('orbax:', '', 3, None, 'hf:x'):
        for opened in (pal_reward.open_pal, scoring.open_scorer):
            with pytest.raises(ValueError, match='is no run'):
                opened(wrong)


def test_a_person_is_a_file_an_id_or_nobody(run, tmp_path):
    source, known = f'orbax:{run.workdir}', next(iter(run.people))
    item = [{'item': [100.0, 2.0]}]
    line = json.dumps({'mixture': [0.25, 0.75]})
    expected = pal_reward.reward_of_items(run, [0.25, 0.75])([[100.0, 2.0]])
    for name in ('ana.json', 'ana.jsonl', 'ana', 'p0'):
        (path := tmp_path / name).write_text(line + '\n')
        for person in (path, str(path)):
            np.testing.assert_allclose(scoring.open_scorer(source, person)(item), expected, rtol=1e-5)
    mean = scoring.open_scorer(source)(item)
    np.testing.assert_array_equal(scoring.open_scorer(source, None)(item), mean)
    assert not np.array_equal(scoring.open_scorer(source, f' {known}')(item), mean)
    unknown = (17, "person='17'"), (tmp_path / 'bo', r'bo.*personalize'), ('bo.jsonl', r'bo\.jsonl is no file')
    nobody = [(each, 'person') for each in ({'mixture': [0.5, 0.5]}, ['p0'], True, 'None')]
    for person, named in (*unknown, *nobody):
        with pytest.raises(ValueError, match=named) as told:
            scoring.open_scorer(source, person)
        assert 'mix=' not in str(told.value)
    for text, named in ((f'{line}\n{line}', 'line 2'), ('{"mixture": [0.5, 0.25, 0.25]}', 'bo: .*2 prototypes')):
        (tmp_path / 'bo').write_text(text)
        with pytest.raises(ValueError, match=named):
            scoring.open_scorer(source, str(tmp_path / 'bo'))


def test_pairs_to_ask_need_neither_a_user_nor_a_choice(run, tmp_path, capsys):
    (lines := tmp_path / 'pairs.jsonl').write_text(
        '{"left": [100, 1], "right": [50, 2]}\n{"left": [9, 3], "right": [8, 1]}'
    )
    (table := tmp_path / 'pairs.csv').write_text('left_price,left_years,right_price,right_years\n100,1,50,2\n9,3,8,1\n')
    printed = []
    for path in (lines, table):
        personalize.personalize(run.workdir, '', str(path), None, 0)
        printed.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert printed[0] == printed[1]
    assert next(row for row in printed[0] if row['pair'] == 1)['left'] == {'price': 100.0, 'years': 1.0}


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


def test_people_of_one_file_get_a_line_each_as_if_they_had_files_of_their_own(run, tmp_path, capsys):
    names = 'cheap', 'dear'
    files = [of_person(tmp_path / f'{name}.jsonl', number) for number, name in enumerate(names)]
    both = tmp_path / 'both.jsonl'
    both.write_text(''.join(file.read_text() for file in files))
    personalize.personalize(run.workdir, str(both), '', None, 0)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert tuple(row['user'] for row in rows) == names
    for row, file in zip(rows, files, strict=True):
        alone = pal_person.fit(run, pal_person.read_choices(run, file))
        np.testing.assert_allclose(row['mixture'], alone.mixture, atol=1e-5)
    two = tmp_path / 'two.json'
    pal_person.save(two, *rows)
    for row in rows:
        _, mixture = pal_person.open_person(run.workdir, f'{two}:{row["user"]}')
        np.testing.assert_allclose(mixture, row['mixture'], atol=1e-6)
    with pytest.raises(ValueError, match=r'2 people \(cheap, dear\).*two\.json:cheap'):
        scoring.open_scorer(run.workdir, two)
    with pytest.raises(ValueError, match="'cherry'.*cheap, dear"):
        scoring.open_scorer(run.workdir, f'{two}:cherry')
    with pytest.raises(ValueError, match='2 people'):
        personalize.forget_file(two)
    with pytest.raises(ValueError, match='2 people'):
        personalize.personalize(run.workdir, str(both), str(files[0]), None, 0)


def test_two_lines_of_one_user_are_refused(tmp_path):
    (file := tmp_path / 'two.jsonl').write_text('{"user": "ana", "mixture": [1]}\n{"user": "ana", "mixture": [0]}\n')
    with pytest.raises(ValueError, match="two.jsonl, line 2: an earlier line has the user 'ana'"):
        pal_person.read_records(file)


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
    [({'item': [1.0]}, '2 numbers'), ({'item': {'price': 1.0}}, "no 'years'; .*price$"), ({'text': 'x'}, 'item'),
     ({'item': {'price': 1.0, 'years': 'x'}}, "'x'.*years"), ({'item': {'price': 1.0, 'years': 2.0, 'no': 1}}, "'no'"),
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
    scorer = scoring.open_scorer(tmp_path, next(iter(run.people)))
    scores = scorer([{'text': 'azam'}, {'text': 'zzzz'}])
    pair = {'text_A': 'azam', 'text_B': 'zzzz'}
    np.testing.assert_allclose(scorer([pair]), 1 / (1 + np.exp(scores[1:] - scores[:1])), rtol=1e-4)
    assert scorer.told(scorer.read_all([('', pair)]))[0].keys() == {'probability'}
    for wrong, place in (({**pair, 'text_B': ' '}, 'text_B is empty'), ({'text': 'azam'}, 'a text')):
        with pytest.raises(ValueError, match=f'record 2: .*{place}'):
            scorer([pair, wrong])
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


def test_a_table_of_pairs_has_probabilities_and_one_of_options_scores(run, tmp_path):
    person = tmp_path / 'ana.json'
    person.write_text('{"mixture": [0.5, 0.5]}')
    names = run.kept.attributes
    first, second = ([float(k + n) for k in range(len(names))] for n in (1, 3))
    scorer = scoring.open_scorer(run.workdir, str(person))
    options = [dict(zip(names, item, strict=True)) for item in (first, second)]
    scores, w = scorer(options), run.mixture(mix=[0.5, 0.5])
    rewards = pal_reward.rewards(run, w, *pal_reward.item_vectors(run, [first, second]))
    np.testing.assert_allclose(scores, run.factor * np.asarray(rewards), rtol=1e-5)
    np.testing.assert_allclose(scores, scorer([{'item': first}, {'item': second}]), rtol=1e-5)
    row = {f'{name}_{side}': value for side, item in zip('AB', options, strict=True) for name, value in item.items()}
    expected = 1 / (1 + np.exp(scores[1] - scores[0]))
    ((told, probability),) = scorer.told(scorer.read_all([('', row)]))[0].items()
    assert told == 'probability' and probability == pytest.approx(expected, rel=1e-4)
    of_people = [scoring.open_scorer(run.workdir, name)([row])[0] for name in list(run.people)[:3]]
    assert min(of_people) > 0 and scoring.open_scorer(run.workdir)([row]).shape == (1,)
    pandas = pytest.importorskip('pandas')
    np.testing.assert_allclose(pal_jax.score(run.workdir, pandas.DataFrame(options), person=person), scores, rtol=1e-5)
    assert pal_jax.score(run.workdir, pandas.DataFrame([row])).shape == (1,)
    with pytest.raises(ValueError, match='records is a int'):
        pal_jax.score(run.workdir, 3)
    with pytest.raises(ValueError, match='an option'):
        scorer([row, options[0]])
    (path := tmp_path / 'pairs.csv').write_text(
        ';'.join(row) + '\n' + ';'.join(str(x).replace('.', ',') for x in row.values())
    )
    score.score(run.workdir, str(person), str(path), tmp_path / 'out.csv')
    for file in (path, str(path)):
        assert pal_jax.score(run.workdir, file, person=person).tolist() == pytest.approx([expected], rel=1e-4)
    mixture = {'mixture': [0.5, 0.5]}
    assert pal_jax.score(run.workdir, path, person=mixture).tolist() == pytest.approx([expected], rel=1e-4)
    (wrong := tmp_path / 'wrong.jsonl').write_text(f'{json.dumps(options[0])}\n{{"x": 1}}\n')
    for file, message in ((wrong, r'wrong\.jsonl, line 2: '), (tmp_path / 'none.csv', r'none\.csv')):
        with pytest.raises(ValueError, match=message):
            pal_jax.score(run.workdir, file)
    head, line = (tmp_path / 'out.csv').read_text().splitlines()
    assert head == ','.join([*row, 'probability'])
    *cells, shown = line.split(',')
    assert cells == [str(x) for x in row.values()]
    assert float(shown) == pytest.approx(expected, rel=1e-4) and len(shown.lstrip('0.')) <= 6


def test_options_of_a_situation_are_chosen_by_the_mean_over_mixtures(run, tmp_path):
    names = run.kept.attributes
    items = [dict(zip(names, (float(k + n) for k in range(len(names))), strict=True)) for n in (1, 3, 8)]
    # Two people answer the same situation, and a person's situation is told apart from the other's.
    rows = [{'participant': who, 'task': 7, **item} for item in items for who in ('ana', 'bo')]
    scores = np.array([scoring.open_scorer(run.workdir, name)(items) for name in run.people])
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    expected = (odds / odds.sum(axis=1, keepdims=True)).mean(axis=0)
    scorer = scoring.open_scorer(run.workdir)
    np.testing.assert_allclose(scorer(rows), np.repeat(expected, 2), rtol=1e-4)
    (path := tmp_path / 'market.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    score.score(run.workdir, '', str(path), tmp_path / 'out.jsonl')
    written = [json.loads(line) for line in (tmp_path / 'out.jsonl').read_text().splitlines()]
    np.testing.assert_allclose([row['probability'] for row in written], np.repeat(expected, 2), rtol=1e-4)
    np.testing.assert_allclose([row['score'] for row in written[::2]], scorer(items), rtol=1e-4)


def test_an_attribute_that_is_missing_or_out_of_range_is_named(run, capsys):
    scorer = scoring.open_scorer(run.workdir)
    (low, high), _ = run.kept.ranges
    scorer([{'price': low, 'years': 2.0}, {'price': high, 'years': 2.0}])
    assert not capsys.readouterr().err
    scorer([{'price': low, 'years': 2.0}, {'price': 950.0, 'years': 2.0}, {'price': 951.0, 'years': 2.0}])
    (line,) = capsys.readouterr().err.splitlines()
    assert 'record 2' in line and 'price 950' in line and f'{low:.6g} to {high:.6g}' in line
    for row in ({'price': 1.0, 'yeers': 2.0}, {'item': {'price': 1.0, 'yeers': 2.0}},
                {'price_A': 1, 'price_B': 2, 'yeers_A': 1, 'yeers_B': 2}):  # fmt: skip
        with pytest.raises(ValueError, match="record 1: .*no 'years'.* it has price, yeers.*years where .* yeers"):
            scorer([row])


def test_the_name_of_a_person_may_be_almost_right(run):
    name = next(iter(run.people))
    with pytest.raises(ValueError, match=f'did you mean {name}'):
        scoring.open_scorer(run.workdir, f'{name[0]}0{name[1:]}')
