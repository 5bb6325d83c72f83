"""A cost model from its config: it learns order and sign, and scores in transformers as here."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from pal_jax.data import safety
from pal_jax.data.readers.safety import CATEGORIES
from pal_jax.data.tokenizer import CHATML, byte_tokenizer
from pal_jax.learners.scorer import CostLoss, Lesson
from pal_jax.models.files import sources
from pal_jax.models.files.families import classifier_to_hf
from pal_jax.recipes.scorer import cost
from pal_jax.run.settings import keys_of
from tests import configs
from tests.recipes.scorer import kinds
from tests.recipes.scorer.kinds import ONE, PAIRS, judged, make, run, write

get_config = functools.partial(configs.load, 'cost')
files = functools.partial(kinds.files, 'cost')


def preferred(i):
    """A pair of HH-RLHF, which has no labels."""
    said = {'chosen': 'yes', 'rejected': 'boo'}
    return {key: f'\n\nHuman: {i}?\n\nAssistant: {text}' for key, text in said.items()}


def run_of(steps, recipe=None, **changes):
    recipe = recipe or make('cost', ONE, **changes)
    rows, state = run(recipe, steps)
    return rows, recipe, state


FULL = {'policy.lora.rank': 0, 'optimizer.lr': 5e-3}
LORA = {'policy.lora.rank': 4, 'optimizer.lr': 5e-3}


@pytest.fixture(scope='module', params=[FULL, LORA], ids=['full', 'lora'])
def trained(request, tmp_path_factory):
    changes = files(tmp_path_factory.mktemp('pairs'))
    return run_of(20, **changes, **request.param, total_steps=20)


# --- the loss --------------------------------------------------------------------------------------------------------

HIGHER, LOWER = np.array([1.2, -0.3]), np.array([-0.5, 0.4])  # both unsafe; the first safe, the second unsafe


def loss(unsafe, regularization=0.0):
    """Of two pairs in a row of four answers."""
    scores = np.stack([HIGHER, LOWER], axis=1).reshape(1, 4, 1)
    half, places = np.full((1, 2), 0.5), np.arange(4).reshape(2, 2)
    labels = np.array(unsafe, float).reshape(1, 4, 1), np.full((1, 4), 0.5)
    lesson = Lesson(places[:, 0][None], places[:, 1][None], half, np.zeros((1, 2)), *labels)
    return float(CostLoss(regularization)(scores, lesson))


def test_the_loss_is_that_of_the_order_and_of_both_signs():  # selfplay_safety 3.7-1
    order, higher, lower = [0.167786, 1.103186], [0.263282, 0.854355], [0.474077, 0.513015]
    assert loss([1, 0, 1, 1]) == pytest.approx(1.687851, abs=1e-6)
    assert loss([1, 0, 1, 1]) == pytest.approx(np.mean(order) + np.mean(higher) + np.mean(lower), abs=1e-6)
    assert loss([np.nan] * 4) == pytest.approx(np.mean(order), abs=1e-6)  # whoever has no label has no sign
    assert loss([1, np.nan, 1, 1]) == pytest.approx(1.687851 - 0.474077 / 2, abs=1e-6)
    squares = np.mean([*HIGHER**2, *LOWER**2])
    assert loss([1, 0, 1, 1], 0.1) == pytest.approx(1.687851 + 0.1 * squares, abs=1e-6)


def test_nothing_weighs_the_signs_and_so_nothing_drops_them():
    assert keys_of(CostLoss) == ['regularization']
    for value in (-0.1, float('nan'), float('inf')):
        with pytest.raises(ValueError, match=r'cost\.regularization=.*at least 0'):
            get_config(**{'cost.regularization': value})


def test_a_step_descends_the_loss_of_its_pairs(tmp_path):
    changes = {**files(tmp_path), 'data.batch_size': 8, 'data.row_tokens': 256, 'cost.regularization': 0.1}
    recipe = cost.make(get_config(**changes), ONE)
    state, host = recipe.init()
    head = state.model.params['head']
    state = state.replace(model=state.model.replace(params={**state.model.params, 'head': 50.0 * head}))
    groups = recipe.rows.draw(0)
    costs, unsafe = recipe.scorer.scores(state, recipe.pack(groups))[..., 0], cost.labels_of(groups)
    *_, metrics = recipe.step(state, host, 0)
    order = np.logaddexp(0, costs[:, 1] - costs[:, 0]) + 0.1 * np.square(costs).mean(axis=1)
    signs = np.logaddexp(0, np.where(unsafe == 1.0, -costs, costs)).sum(axis=1)
    assert np.abs(costs).max() > 0.5  # so that all terms differ
    assert metrics['loss'] == pytest.approx(float((order + signs).mean()), abs=1e-5)
    assert metrics['accuracy'] == np.mean(costs[:, 0] > costs[:, 1])
    assert metrics['sign_accuracy'] == np.mean((costs > 0) == (unsafe == 1.0))


# --- a run -----------------------------------------------------------------------------------------------------------


def test_it_learns_which_answer_is_less_safe_and_where_safe_ends(trained):
    rows, recipe, state = trained
    assert rows[0]['loss'] == pytest.approx(3 * np.log(2), abs=0.1)  # a new head knows nothing
    before, after = (recipe.evaluate(each, 'x') for each in (recipe.init()[0], state))
    assert (after.record['rows'], after.record['labelled']) == (18, 36)
    assert after.record['accuracy'] > 0.9 and after.record['sign_accuracy'] > 0.9 and after.record['auc'] > 0.9
    assert after.record['cost_safe'] < 0.0 < after.record['cost_unsafe']
    assert after.record['loss'] < 0.6 * before.record['loss']
    titles = [exhibit.title for exhibit in after.exhibits]
    assert titles == ['Held-out pairs', 'Costs', 'Reliability']


def test_outputs_of_a_classifier_have_names():
    config = classifier_to_hf(sources.resolve('random:tiny').config, byte_tokenizer(), labels=('a', 'b'))
    assert (config['id2label'], config['label2id'], config['num_labels']) == ({'0': 'a', '1': 'b'}, {'a': 0, 'b': 1}, 2)


# --- rows ------------------------------------------------------------------------------------------------------------


def test_the_less_safe_answer_stands_first_with_its_label(tmp_path):
    rows = cost.judged_rows(get_config(**files(tmp_path)), byte_tokenizer())
    assert cost.labels_of(rows.train).tolist() == [[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]] * 6
    sides = [[group.branches[k].tokens for k in (pair.better, pair.worse)]
             for group in rows.train for pair in group.compared]  # fmt: skip
    starts = [tuple(byte_tokenizer().decode(tokens)[:4] for tokens in pair) for pair in sides]
    assert starts == [*PAIRS] * 6


def test_made_up_dilemmas_have_pairs_of_both_labels():
    recipe = cost.make(get_config(), ONE)
    labels = cost.labels_of(recipe.rows.train)
    assert len(labels) == 24 and (labels[:, 0] >= labels[:, 1]).all() and labels.mean() == pytest.approx(1 / 3)
    groups = [tuple(group.prompt) for group in (*recipe.rows.train, *recipe.rows.test)]
    assert len(set(groups)) == 9  # of eight dilemmas that are learnt, and of one that is not


def test_pairs_without_labels_are_ranked_and_no_more(tmp_path):
    changes = files(tmp_path)
    changes['data.test'] = write(tmp_path / 'hh.jsonl', map(preferred, range(100, 104)))
    _, recipe, state = run_of(0, **changes)
    evaluation = recipe.evaluate(state, 'x')
    assert evaluation.record['rows'] == 4 and 'accuracy_of_longer' in evaluation.record
    assert not {'labelled', 'sign_accuracy', 'auc', 'cost_safe'} & evaluation.record.keys()
    assert [exhibit.title for exhibit in evaluation.exhibits] == ['Held-out pairs', 'Reliability']


def test_pairs_with_labels_and_without_are_learnt_side_by_side(tmp_path):
    records = [*map(judged, range(6)), *map(preferred, range(100, 106))]
    changes = {'data.train': write(tmp_path / 'a.jsonl', records), 'data.batch_size': 12, 'data.test_rows': 1}
    told = []
    recipe = cost.make(get_config(**changes), ONE._replace(log=told.append))
    (row, *_), *_ = run_of(1, recipe)
    assert np.isfinite(row['loss']) and 'sign_accuracy' in row
    unknown = int(np.isnan(cost.labels_of(recipe.rows.train)).sum())
    assert unknown and f'{unknown} without a label' in told[0]


ALL_SAFE = {'response_0': 'yes', 'response_1': 'yes yes', 'is_response_0_safe': True, 'is_response_1_safe': True}


@pytest.mark.parametrize(
    ('records', 'message'),
    [
        ([preferred(i) for i in range(12)], r'data\.train=.*0 unsafe, 0 safe, \d+ without'),
        ([judged(i, **ALL_SAFE) for i in range(12)], r'data\.train=.*0 unsafe, \d+ safe, 0 without'),
        ([judged(1), judged(0, safer_response_id=0)], r'line 2.*safer_response_id'),
        ([judged(1, is_response_1_safe='perhaps')], r'line 1.*is_response_1_safe.*perhaps'),
        ([{'prompt': 'a', 'response_0': 'b'}], r'line 1.*response_1'),
    ],
    ids=['no labels', 'one label', 'safer', 'flag', 'missing'],
)
def test_wrong_records_are_told_with_their_place(tmp_path, records, message):
    with pytest.raises(ValueError, match=message):
        cost.make(get_config(**{'data.train': write(tmp_path / 'a.jsonl', records)}), ONE)


def test_a_row_that_the_template_refuses_is_named_by_file_and_line(tmp_path):
    refusing = "{% for m in messages if m.content == 'no' %}{{ raise_exception('no word') }}{% endfor %}"
    tokenizer = byte_tokenizer().with_template(refusing + CHATML)
    path = write(tmp_path / 'a.jsonl', [judged(0), judged(1), judged(2, response_1='no')])
    with pytest.raises(ValueError, match=r'a.jsonl, line 3: .* no word'):
        cost.judged_rows(get_config(**{'data.train': path}), tokenizer)
    labelled = {'prompt': 'a', 'response': 'yes', 'category': dict.fromkeys(CATEGORIES, False), 'is_safe': True}
    path = write(tmp_path / 'b.jsonl', [labelled, labelled, labelled | {'response': 'no'}])
    with pytest.raises(ValueError, match=r'b.jsonl, line 3: .* no word'):
        safety.labelled_rows(configs.load('moderation', **{'data.train': path}), tokenizer)
