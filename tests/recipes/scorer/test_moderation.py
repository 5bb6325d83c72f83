"""A moderator from its config: it learns categories, chooses thresholds on answers it was not taught, and judges as
transformers do with its export."""

from __future__ import annotations

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.data.packing import shared_prompt
from pal_jax.data.readers.safety import CATEGORIES
from pal_jax.data.safety import labelled_group
from pal_jax.learners.scorer import LabelLoss, Lesson, to_score
from pal_jax.models.files import sources
from pal_jax.recipes.scorer import harm, moderation
from pal_jax.run import checkpoint
from pal_jax.run.recipe import KEPT
from pal_jax.run.settings import to_dict
from pal_jax.run.trained import load_trained, write_exports
from tests import configs
from tests.recipes.scorer import kinds
from tests.recipes.scorer.kinds import ONE, WORDS, labelled, labelled_rows, make, run

get_config = functools.partial(configs.load, 'moderation')
files = functools.partial(kinds.files, 'moderation')

STEPS = 40


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    changes = files(tmp_path_factory.mktemp('rows')) | {'total_steps': STEPS, 'optimizer.lr': 1e-2}
    recipe = make('moderation', ONE, **changes)
    rows, state = run(recipe, STEPS)
    return rows, recipe, state


@pytest.fixture(scope='module')
def finished(trained, tmp_path_factory):
    """The folder of a run that has been trained."""
    _, recipe, state = trained
    folder = tmp_path_factory.mktemp('run')
    checkpoint.write_config(folder, to_dict(configs.load('moderation', **{'data.train': 'gone.jsonl'})))
    recipe.plan.keep(folder / KEPT)
    checkpoints = checkpoint.Checkpoints(folder, recipe.plan.abstract)
    checkpoints.save(STEPS, state, {})
    checkpoints.close()
    return folder


# --- the loss ---------------------------------------------------------------------------------------------------------


def lesson(labels, weight=1.0):
    return Lesson(*[jnp.zeros((1, 0))] * 4, jnp.asarray(labels)[None, None], jnp.asarray([[weight]]))


def test_the_loss_is_the_published_one():  # selfplay_safety 4.4-1
    logits = jnp.asarray([[[2.0, -1.0, 0.5]]])
    assert LabelLoss()(logits, lesson([1.0, 0.0, 0.0])) == pytest.approx(0.471422, abs=1e-6)
    assert LabelLoss()(logits, lesson([1.0, 0.0, 0.0], 0.25)) == pytest.approx(0.471422 / 4, abs=1e-6)
    weighed = np.logaddexp(0, [-2.0, -1.0, 0.5]) @ [3.0, 1.0, 1.0] / 3
    assert LabelLoss((3.0, 9.0, 9.0))(logits, lesson([1.0, 0.0, 0.0])) == pytest.approx(weighed, abs=1e-6)
    probabilities = 1 / (1 + np.exp(-np.asarray(logits[0])))
    assert harm.harm(probabilities).item() == pytest.approx(0.880797, abs=1e-6)
    assert harm.harm(probabilities, 'mean').item() == pytest.approx(0.590733, abs=1e-6)


def test_a_category_counts_as_much_where_it_is_as_where_it_is_not():
    labels = np.array([[1, 0, 1]] + [[0, 0, 1]] * 3 + [[0, 0, 0]] * 96, np.float32)
    assert moderation.balanced(labels) == pytest.approx((10.0, 1.0, 10.0))  # 99 and 24 for each, and nobody
    assert moderation.balanced(labels[:5]) == pytest.approx((4.0, 1.0, 0.25))
    assert moderation.balanced(1 - labels) == pytest.approx((0.1, 1.0, 0.1))  # the second has every answer


# --- training ---------------------------------------------------------------------------------------------------------


def test_it_learns_what_answers_are_about(trained):
    rows, recipe, state = trained
    assert rows[0]['loss'] == pytest.approx(_loss_of_nothing(recipe), rel=0.5)  # a new head knows nothing
    before, after = (recipe.evaluate(each, 'x') for each in (recipe.init()[0], state))
    assert after.record['rows'] == 48
    assert after.record['auc'] > 0.9 and after.record['macro_auc'] > 0.7
    assert after.record['loss'] < 0.7 * before.record['loss']
    assert after.record['threshold_by_class'] == np.asarray(state.thresholds).tolist()
    assert len(after.record['auc_by_class']) == len(CATEGORIES)
    assert {exhibit.title for exhibit in after.exhibits} >= {'Unsafe or safe', 'Kinds of harm'}


def _loss_of_nothing(recipe):
    labels = moderation.labels_of(recipe.taught.rows.train)
    weights = np.where(labels == 1, recipe.loss.positive_weights, 1.0)
    return np.log(2) * weights.mean()


def test_thresholds_are_chosen_on_answers_that_are_neither_learnt_nor_tested(trained):
    _, recipe, state = trained
    prompts = [
        {tuple(g.prompt) for g in rows}
        for rows in (recipe.taught.rows.train, recipe.taught.rows.test, recipe.validation)
    ]
    assert not (prompts[0] & prompts[1] or prompts[0] & prompts[2] or prompts[1] & prompts[2])
    assert len(recipe.validation) == 24 and len(recipe.taught.rows.train) == 96
    # what is tested on has no say, and what validates has
    chosen = recipe.with_thresholds(state).thresholds
    np.testing.assert_array_equal(chosen, state.thresholds)
    labels = moderation.labels_of(recipe.validation) == 1.0
    probabilities = 1 / (1 + np.exp(-recipe.logits(state, recipe.validation)))
    np.testing.assert_allclose(state.thresholds, harm.choose_thresholds(probabilities, labels), atol=1e-6)
    seen = [CATEGORIES.index(name) for name in WORDS]
    assert set(np.delete(np.asarray(state.thresholds), seen).tolist()) == {0.5}  # nobody speaks for these


def test_thresholds_are_chosen_before_every_evaluation_and_not_between(tmp_path):
    changes = files(tmp_path) | {'total_steps': 4, 'eval.every': 2, 'optimizer.lr': 1e-2, 'optimizer.warmup_ratio': 0.5}
    recipe = moderation.make(get_config(**changes), ONE)
    state, host = recipe.init()
    moved = []
    for i in range(4):
        before = np.asarray(state.thresholds)
        state, host, phase, metrics = recipe.step(state, host, i)
        moved.append(bool((np.asarray(state.thresholds) != before).any()))
    assert moved == [False, True, False, True]
    assert phase == 'moderation' and metrics.keys() >= {'loss', 'grad_norm', 'tokens', 'left_out'}


# --- what is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        ({'category': {**dict.fromkeys(CATEGORIES, False), 'gardening': True}}, ('line 1', 'gardening')),
        ({'category': dict.fromkeys(CATEGORIES, True), 'is_safe': True}, ('line 1', 'is_safe')),
        ({'response': ''}, ('line 1', 'response')),
    ],
)
def test_a_wrong_record_is_told_in_a_line(tmp_path, changes, told):
    with pytest.raises(ValueError, match=told[0]) as error:
        moderation.make(get_config(**{'data.train': labelled_rows(tmp_path / 'a.jsonl', 24, **changes)}), ONE)
    assert told[1] in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('key', 'value'), [('labels.validation', 0), ('labels.weights', 'heavy'), ('data.dilemmas', 0)]
)
def test_a_wrong_value_is_told_by_its_key(key, value):
    with pytest.raises(ValueError, match=f'{key}={value!r}'):
        moderation.make(get_config(**{key: value}), ONE)


def test_answers_to_one_prompt_choose_no_thresholds(tmp_path):
    changes = {
        'data.train': labelled_rows(tmp_path / 'a.jsonl', 8),
        'data.test': labelled_rows(tmp_path / 'b.jsonl', 8, '!'),
    }
    with pytest.raises(ValueError, match=r'data\.train=.*a\.jsonl'):
        moderation.make(get_config(**changes), ONE)


# --- a trained moderator ----------------------------------------------------------------------------------------------


def test_an_opened_moderator_judges_as_the_run_does(trained, finished):
    _, recipe, state = trained
    moderator = moderation.open_moderator(finished, ONE)
    rows = [labelled(i, '!') for i in range(48)]
    probabilities = moderator([r.prompt for r in rows], [r.response for r in rows])
    np.testing.assert_allclose(
        probabilities, 1 / (1 + np.exp(-recipe.logits(state, recipe.taught.rows.test))), atol=1e-5
    )
    np.testing.assert_array_equal(moderator.thresholds, state.thresholds)
    unsafe = moderator.unsafe([r.prompt for r in rows], [r.response for r in rows])
    np.testing.assert_array_equal(unsafe, (probabilities > moderator.thresholds).any(axis=1))
    assert unsafe.mean() == recipe.evaluate(state, 'x').record['called_unsafe']
    chats = [[{'role': 'user', 'content': r.prompt}] for r in rows]
    np.testing.assert_allclose(moderator(chats, [r.response for r in rows]), probabilities, atol=1e-6)


def test_a_moderator_reads_many_in_parts_and_nothing_at_all(finished, monkeypatch):
    moderator = moderation.open_moderator(finished, ONE)
    whole = moderator(['0!'] * 9, [labelled(i).response for i in range(9)])
    monkeypatch.setattr(moderation, 'CHUNK', 4)
    np.testing.assert_allclose(moderator(['0!'] * 9, [labelled(i).response for i in range(9)]), whole, atol=1e-5)
    assert moderator([], []).shape == (0, 14) and moderator.unsafe([], []).shape == (0,)
    assert np.isfinite(moderator(['<|im_end|>\x00'], [''])).all()
    with pytest.raises(ValueError, match='tokens, the moderator reads'):
        moderator(['?' * 100_000], ['!'])


def test_another_run_is_no_moderator(tmp_path):
    checkpoint.write_config(tmp_path, to_dict(configs.load('reward')))
    with pytest.raises(ValueError, match='is a run of scorer.reward; give one of moderation'):
        moderation.open_moderator(tmp_path, ONE)


def test_an_export_has_the_names_of_its_outputs_and_their_thresholds(finished, trained, tmp_path):
    exports, step = load_trained(str(finished))
    write_exports(exports, lambda name: tmp_path / name)
    config = json.loads((tmp_path / 'export' / 'config.json').read_text())
    assert step == STEPS
    assert config['num_labels'] == 14 and config['problem_type'] == 'multi_label_classification'
    assert [config['id2label'][str(k)] for k in range(14)] == list(CATEGORIES) == list(config['label2id'])
    thresholds = np.asarray(trained[2].thresholds).tolist()
    assert config[moderation.THRESHOLDS] == dict(zip(CATEGORIES, thresholds, strict=True))


def test_a_group_is_what_the_training_has():
    tokenizer = sources.resolve('random:tiny').tokenizer()
    learnt = labelled_group(tokenizer, labelled(3))
    read = moderation.to_group(tokenizer, 1000, labelled(3).prompt, labelled(3).response)
    assert read == learnt._replace(labels=read.labels)
    assert read == shared_prompt([to_score(read.prompt, read.branches[0].tokens[:-1])])
