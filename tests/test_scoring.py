"""Scores of records by trained runs: a reward model, a cost model, PLUS, against the same models read otherwise."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from pal_jax import scoring
from pal_jax.commands import score
from pal_jax.data.readers.safety import CATEGORIES
from pal_jax.decode.answers import ModelScores
from pal_jax.judges.dilemmas import judged, make_dilemmas
from pal_jax.recipes.plus import parts as plus_parts
from pal_jax.recipes.plus import recipe as plus
from pal_jax.recipes.psoups import judges
from pal_jax.recipes.scorer import cost, moderation, reward
from pal_jax.run import checkpoint, devices
from pal_jax.run.recipe import Context
from pal_jax.run.settings import to_dict
from pal_jax.types import Choice
from tests import configs

ONE = Context(devices.make_mesh(devices=jax.devices()[:1]))
QUESTIONS, REPLIES = ['Hello?', 'How are you?'], ['Yes.', 'No, not at all.']


def saved(config, recipe, workdir):
    """A run's folder with the state before its first step, which is returned."""
    state, host = recipe.init()
    checkpoint.write_config(workdir, to_dict(config))
    checkpoints = checkpoint.Checkpoints(workdir, recipe.plan.abstract)
    checkpoints.save(1, state, host)
    checkpoints.close()
    return state


def as_chat(question, reply):
    return {
        'prompt': [{'role': 'user', 'content': question}],
        'completion': [{'role': 'assistant', 'content': reply}],
    }


@pytest.fixture(scope='module')
def reward_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('reward')
    rows = [{**as_chat(f'{i}?', 'yes'), 'chosen': [{'role': 'assistant', 'content': 'yes'}],
             'rejected': [{'role': 'assistant', 'content': 'no'}]} for i in range(8)]  # fmt: skip
    (folder / 'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    (folder / 'b.jsonl').write_text(
        '\n'.join(json.dumps({**row, **as_chat(f'{i}!', 'yes')}) for i, row in enumerate(rows))
    )
    data = {'data.train': str(folder / 'a.jsonl'), 'data.test': str(folder / 'b.jsonl')}
    config = configs.load('reward', **data)
    saved(config, reward.make(config, ONE), folder / 'run')
    return folder / 'run'


def test_a_reward_model_scores_records_as_replies_to_questions(reward_run):
    scorer = scoring.open_scorer(f'orbax:{reward_run}')
    records = [as_chat(question, reply) for question in QUESTIONS for reply in REPLIES]
    judge = judges.ReplyScorer(ModelScores(reward_run, ONE, reward.open_scores))
    expected = judge([[question] for question in QUESTIONS], [REPLIES] * 2)
    np.testing.assert_allclose(scorer(records), expected.ravel(), atol=1e-5)
    messages = [{'messages': [*record['prompt'], *record['completion']]} for record in records]
    np.testing.assert_allclose(scorer(messages), expected.ravel(), atol=1e-5)


@pytest.mark.parametrize(
    'record',
    [{}, 3, {'messages': []}, {'messages': [{'role': 'user', 'content': 'x'}]}, {'prompt': 'x', 'completion': 3}],
)
def test_a_record_that_cannot_be_scored_is_named_by_its_number(reward_run, record):
    scorer = scoring.open_scorer(f'orbax:{reward_run}')
    with pytest.raises(ValueError, match='record 2: '):
        scorer([as_chat('a', 'b'), record])


def test_texts_and_messages_of_one_reply_are_not_scored_side_by_side(reward_run, tmp_path):
    scorer, said = scoring.open_scorer(str(reward_run)), as_chat('a', 'b')
    texts, messages = {'prompt': 'a', 'completion': 'b'}, {'messages': [*said['prompt'], *said['completion']]}
    assert scorer([said, messages]).shape == scorer([texts, texts]).shape == (2,)
    with pytest.raises(ValueError, match=r'record 3: .*messages.*record 1.*texts'):
        scorer([texts, texts, messages])
    (path := tmp_path / 'mixed.jsonl').write_text('\n'.join(map(json.dumps, (said, texts))))
    with pytest.raises(ValueError, match=r'mixed\.jsonl, line 2: .*texts'):
        score.score(f'orbax:{reward_run}', '', str(path), None)


def test_a_reward_model_knows_nobody(reward_run):
    with pytest.raises(ValueError, match=r'person=ana'):
        scoring.open_scorer(f'orbax:{reward_run}', 'ana')


def test_a_cost_model_gives_costs_and_knows_nobody(tmp_path):
    config = configs.load('cost')
    recipe = cost.make(config, ONE)
    state = saved(config, recipe, tmp_path / 'run')
    groups = next(recipe.rows.test_groups())
    dilemmas = make_dilemmas(1, split='test', seed=0)
    records = [as_chat(row.prompt, row.responses[k]) for row in judged(dilemmas, 0) for k in (1 - row.safer, row.safer)]
    expected = recipe.scorer.scores(state, recipe.pack(groups))[..., 0]
    scorer = scoring.open_scorer(f'orbax:{tmp_path / "run"}')
    np.testing.assert_allclose(scorer(records), expected.ravel(), atol=1e-5)
    row = judged(dilemmas, 0)[0]
    texts = [{'prompt': row.prompt, 'response': text} for text in row.responses]
    # Texts are a chat of one turn, which is all that the model has learnt.
    scores = scorer(texts)
    told = scorer.told(scorer.read_all(enumerate(texts)))
    assert [record['unsafe'] for record in told] == (scores > 0).tolist()
    np.testing.assert_array_equal(scores, scorer([as_chat(row.prompt, text) for text in row.responses]))
    with pytest.raises(ValueError, match='response'):
        scorer([{'prompt': row.prompt}])
    with pytest.raises(ValueError, match=r'person=ana'):
        scoring.open_scorer(str(tmp_path / 'run'), 'ana')
    with pytest.raises(ValueError, match='a run of scorer.cost'):
        reward.open_scores(tmp_path / 'run', ONE)


def test_what_is_no_run_that_scores_is_refused(tmp_path):
    with pytest.raises(ValueError, match='hf:x'):
        scoring.open_scorer('hf:x')
    checkpoint.write_config(tmp_path, to_dict(configs.load('rlpa')))
    with pytest.raises(ValueError, match='rlpa'):
        scoring.open_scorer(f'orbax:{tmp_path}')


@pytest.mark.slow
def test_plus_scores_replies_after_a_persons_summary(tmp_path):
    config = configs.load('plus')
    settings = config
    recipe = plus.make(settings, ONE)
    state = saved(config, recipe, tmp_path / 'run')
    person = tmp_path / 'ana.json'
    person.write_text(json.dumps({'user': 'ana', 'summary': 'Likes cats.'}))
    scores = scoring.open_scorer(f'orbax:{tmp_path / "run"}', str(person))(
        [{'prompt': 'Talk.', 'completion': text} for text in ('Cats purr.', 'Dogs dig.')]
    )
    parts = plus_parts.make_parts(settings, ONE)
    pair = parts.pair_up.compare(['Likes cats.'], [[Choice('Talk.', 'Cats purr.', 'Dogs dig.')]])
    np.testing.assert_allclose(scores[0] - scores[1], parts.reader.gaps(state['reward'], pair).item(), atol=1e-5)


@pytest.mark.parametrize('person', ['', 'ana', 'nobody.json', 'nobody.jsonl'])
def test_plus_needs_a_persons_summary(tmp_path, person):
    checkpoint.write_config(tmp_path, to_dict(configs.load('plus')))
    with pytest.raises(ValueError, match=r'summary|nobody\.json'):
        scoring.open_scorer(f'orbax:{tmp_path}', person)


# --- moderators -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def moderation_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('moderation')
    config = configs.load('moderation')
    saved(config, moderation.make(config, ONE), folder / 'run')
    return folder / 'run'


def test_a_moderator_tells_what_it_finds_and_scores_the_worst_of_it(moderation_run, tmp_path, capsys):
    moderator = moderation.open_moderator(moderation_run, ONE)
    expected = moderator(QUESTIONS, REPLIES)
    said = as_chat(QUESTIONS[0], REPLIES[0])
    records = [
        {'prompt': QUESTIONS[0], 'response': REPLIES[0], 'is_safe': True},
        {'prompt': QUESTIONS[1], 'completion': REPLIES[1]},
        said,
        {'messages': [*said['prompt'], *said['completion']]},
    ]
    scores = scoring.open_scorer(moderation_run)(records)
    np.testing.assert_allclose(scores, expected.max(axis=1)[[0, 1, 0, 0]], atol=1e-6)
    (path := tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, records)))
    score.score(f'orbax:{moderation_run}', '', str(path), tmp_path / 'out.jsonl')
    told = [json.loads(line) for line in (tmp_path / 'out.jsonl').read_text().splitlines()]
    assert told[0].keys() == {*records[0], 'score', 'categories', 'unsafe'}
    assert list(told[0]['categories']) == list(CATEGORIES)
    np.testing.assert_allclose(list(told[1]['categories'].values()), expected[1], atol=5.1e-5)
    assert [each['unsafe'] for each in told[:2]] == moderator.unsafe(QUESTIONS, REPLIES).tolist()
    assert [each['score'] for each in told] == pytest.approx(scores)
    (path := tmp_path / 'b.jsonl').write_text(json.dumps(records[0] | {'unsafe': 1}))
    with pytest.raises(ValueError, match='line 1: .*unsafe'):
        score.score(f'orbax:{moderation_run}', '', str(path), None)


@pytest.mark.parametrize(
    'record',
    [
        {}, 3, {'prompt': 'x'}, {'prompt': 'x', 'response': 3}, {'messages': []}, {'prompt': '', 'response': 'x'},
        {'prompt': 'x', 'response': 'y', 'completion': 'z'}, {'messages': [{'role': 'user', 'content': 'x'}] * 2},
    ],
)  # fmt: skip
def test_a_record_without_an_answer_is_not_moderated(moderation_run, record):
    with pytest.raises(ValueError, match='record 2: '):
        scoring.open_scorer(moderation_run)([{'prompt': 'a', 'response': 'b'}, record])


def test_a_moderator_knows_no_people(moderation_run):
    with pytest.raises(ValueError, match=r'person=7: .*leave person out'):
        scoring.open_scorer(moderation_run, '7')
