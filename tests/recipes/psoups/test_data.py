"""The data of Personalized Soups: prompts, verdicts of judges, pairs to learn from, and comparisons by criterion."""

from __future__ import annotations

import contextlib
import functools
import json

import jax
import pytest

from pal_jax.data import chats
from pal_jax.data.holdouts import normal
from pal_jax.data.rows import scored_replies
from pal_jax.judges.chat_models import ChatModels
from pal_jax.judges.functions import check_failed
from pal_jax.models.files import sources
from pal_jax.recipes.psoups import annotate as annotate_stage
from pal_jax.recipes.psoups import evaluate as psoups_evaluate
from pal_jax.recipes.psoups import judges, preferences, rollout
from pal_jax.recipes.psoups import recipe as psoups
from pal_jax.recipes.psoups.jobs import make_fronts, make_jobs
from pal_jax.recipes.psoups.prompts import PreferencePrompt, Prompt, known_prompts, prompts_moved, read_prompts
from pal_jax.recipes.scorer import reward
from pal_jax.run import devices, piecework
from pal_jax.run.recipe import Context
from tests import configs

get_settings = functools.partial(configs.load, 'psoups')
ONE = Context(devices.make_mesh(devices=jax.devices()[:1]), lambda name: contextlib.nullcontext())


def rows(count, *, judged=1, text='Be brief.'):
    return [
        {'id': f'P2A-{i}', 'preference_id': 'P2A', 'instruction': f'question {i}', 'input': '', 'preference': judged,
         'output_1': f'one {i}', 'output_2': f'two words {i}', 'preference_prompt': text}
        for i in range(count)
    ]  # fmt: skip


def annotate(tmp_path, written, **changes):
    piecework.write(tmp_path / 'rollouts.jsonl', written)
    (folder, part), *_ = psoups.stages(get_settings(stage='annotate', **changes), tmp_path)
    return configs.make(part, ONE._replace(workdir=folder))


def test_a_judge_that_answers_nonsense_stops_the_stage(tmp_path, chat_server):
    written = [{key: value for key, value in row.items() if key != 'preference'} for row in rows(10)]
    with chat_server(lambda text: 'Both are fine.') as server:
        changes = {'annotate.annotator': 'endpoint:judge', 'answers': '', 'endpoints.judge.address': server.address,
                   'endpoints.judge.model': 'm'}  # fmt: skip
        recipe = annotate(tmp_path, written, **changes)
        with pytest.raises(RuntimeError, match=r'10 of 10 rows have no verdict, more than annotate.max_failed=0.1'):
            recipe.step(*recipe.init(), 0)
        recipe = annotate(tmp_path, written, **changes, **{'annotate.max_failed': 1.0})
        _, host, _, metrics = recipe.step(*recipe.init(), 0)
    assert (host['asked'], host['failed']) == (10, [10])
    assert metrics['judge_requests'] == 6  # two batches of five, three times


JUDGES = """
{name}:
  prompt_templates: {{with_inputs: '', without_inputs: ''}}
  fn_decoder: {decoder}
  decoder_kwargs: {settings}
  outputs_to_match: {{1: '{first}', 2: 'Output \\(b\\)'}}
  batch_size: 1
"""


def test_two_annotators_of_one_server_are_two_models(tmp_path, chat_server):
    for model, first in (('one', 'Output'), ('two', 'never')):
        settings = f'{{model_name: {model}}}'
        text = JUDGES.format(name='judge', decoder='openai_completions', settings=settings, first=first)
        (tmp_path / f'{model}.yaml').write_text(text)
    written = [{key: value for key, value in row.items() if key != 'preference'} for row in rows(4)]
    with chat_server(lambda text: 'Output (a)') as server:
        changes = {'annotate.annotator': str(tmp_path / 'one.yaml'), 'annotate.second': str(tmp_path / 'two.yaml'),
                   'answers': '', 'endpoints.judge.address': server.address}  # fmt: skip
        recipe = annotate(tmp_path, written, **changes, **{'annotate.max_failed': 1.0})
        _, host, _, metrics = recipe.step(*recipe.init(), 0)
        assert {body['model'] for body in server.asked} == {'one', 'two'}
        assert (host['failed'], metrics['judge-one_requests'], metrics['judge-two_requests']) == ([0, 4], 4, 12)
        recipe = annotate(tmp_path, written, **changes)
        with pytest.raises(RuntimeError, match=r'4 of 4 rows have no verdict, .* check annotate.second, .* asked anew'):
            recipe.step(*recipe.init(), 0)


@pytest.mark.slow
def test_a_local_model_may_judge(tmp_path):
    specs = judges.read_annotators('local:random:tiny', 'embedded')
    (tmp_path / 'judge.yaml').write_text(
        JUDGES.format(name='short', decoder='local:random:tiny', settings='{max_tokens: 2, temperature: 0}', first='x')
    )
    specs |= judges.read_annotators(str(tmp_path / 'judge.yaml'), 'embedded')
    settings = get_settings(**{'endpoints.judge.max_tokens': 4})
    judge = judges.open_annotators(ChatModels(settings.endpoints, settings.answers, 0), specs)
    brief = preferences.embedded()[2]
    for name in ('local:random:tiny', 'short'):
        assert judge(name)(brief, rows(2), 0) == [None, None]  # it babbles


def test_prompts_that_test_a_reward_model_teach_none(tmp_path):
    judged = [{**row, 'preference_id': name} for name in ('general', 'P2A') for row in rows(10, judged=2)]
    judged = [{**row, 'preference_prompt': ''} if row['preference_id'] == 'general' else row for row in judged]
    annotate_stage.write_pairs(tmp_path, judged, ['general', 'P2A'], 0.2)
    train, test, joint = (piecework.read(tmp_path / f'{name}.jsonl') for name in ('P2A', 'P2A-test', 'joint'))
    assert (len(train), len(test)) == (8, 2)
    assert joint == train
    assert train[0]['prompt'][0]['content'] == 'question 0 Be brief.'
    assert train[0]['chosen'] == [{'role': 'assistant', 'content': 'two words 0'}]
    assert piecework.read(tmp_path / 'best.jsonl')[0] == {
        'prompt': train[0]['prompt'],
        'completion': train[0]['chosen'],
    }
    assert not {pair['prompt'][0]['content'] for pair in train} & {pair['prompt'][0]['content'] for pair in test}
    with pytest.raises(RuntimeError, match='P2B: 0 pairs to learn from and 0 to test on, the others are ties'):
        annotate_stage.write_pairs(tmp_path, judged, ['P2B'], 0.2)


def test_a_prompt_in_other_clothes_tests_no_reward_model_that_learnt_it(tmp_path):
    judged = [{**row, 'preference_id': 'P2A'} for row in rows(10, judged=2)]
    judged += [{**row, 'instruction': row['instruction'].upper() + ' '} for row in judged[:5]]
    annotate_stage.write_pairs(tmp_path, judged, ['P2A'], 0.2)
    train, test = (
        {normal(pair['prompt'][0]['content']) for pair in piecework.read(tmp_path / f'{name}.jsonl')}
        for name in ('P2A', 'P2A-test')
    )
    assert (len(train), len(test)) == (8, 2) and not train & test


def test_prompts_of_the_test_are_not_learnt_from(tmp_path):
    files = {'prompts.train': str(tmp_path / 'train.jsonl'), 'prompts.test': str(tmp_path / 'test.jsonl')}
    settings = get_settings(**files).prompts
    for name, asked in (('train', ('Why?', 'How?', ' why? ', 'When?')), ('test', ('WHY?', 'Where?'))):
        (tmp_path / f'{name}.jsonl').write_text(''.join(json.dumps({'prompt': text}) + '\n' for text in asked))
    found = {split: [prompt.question for prompt in known_prompts(settings, split)] for split in ('train', 'test')}
    assert found == {'train': ['How?', 'When?'], 'test': ['WHY?', 'Where?']}
    assert [prompt.id for prompt in known_prompts(settings, 'train')] == ['train-1', 'train-3']
    assert prompts_moved(settings) == 2
    with pytest.raises(ValueError, match='all prompts of prompts.train=.* are in prompts.test'):
        psoups.stages(get_settings(**files | {'prompts.test': files['prompts.train']}), tmp_path)
    assert prompts_moved(get_settings().prompts) == 0


def test_the_best_answer_is_the_one_preferred_most_often():
    told = [
        ('Why?', 'a', 'b', 1),
        ('Why?', 'c', 'a', 1),
        ('Why?', 'c', 'b', 1),
        ('How?', 'd', 'e', 2),
        ('How?', 'f', 'e', 1),
    ]
    pairs = [
        {'preference_id': 'P2A', 'preference_prompt': 'Be brief.', 'instruction': question, 'input': '',
         'output_1': one, 'output_2': other, 'preference': verdict}
        for question, one, other, verdict in told
    ]  # fmt: skip
    found = annotate_stage.best(pairs)
    assert [(each['prompt'][0]['content'], each['completion'][0]['content']) for each in found] == [
        ('Why? Be brief.', 'c'), ('How? Be brief.', 'e'),
    ]  # fmt: skip


def test_every_preference_is_asked_of_as_many_prompts_drawn_for_it():
    prompts, poles = [Prompt(str(i), f'question {i}') for i in range(20)], preferences.embedded()[:3]
    asked = rollout.draw(poles, prompts, 12, 0)
    own = [[prompt for p, prompt in asked if p is pole] for pole in poles]
    assert [len(set(each)) for each in own] == [12] * 3
    assert len({frozenset(each) for each in own}) == 3
    assert [int(prompt.id) for _, prompt in asked] == sorted(int(prompt.id) for _, prompt in asked)
    whole = [(pole, prompt) for prompt in prompts for pole in poles]
    assert rollout.draw(poles, prompts, 0, 0) == rollout.draw(poles, prompts, 99, 0) == whole


def test_all_answers_to_a_prompt_are_compared_two_by_two():
    row = {'id': 'P2A-7', 'preference_id': 'P2A', 'instruction': 'Why?', 'input': '', 'preference_prompt': 'Be brief.'}
    pairs = annotate_stage.pairs_of({**row, 'output_1': 'a', 'output_2': 'b', 'output_3': 'c'})
    assert [(each['id'], each['output_1'], each['output_2']) for each in pairs] == [
        ('P2A-7-1-2', 'a', 'b'), ('P2A-7-1-3', 'a', 'c'), ('P2A-7-2-3', 'b', 'c'),
    ]  # fmt: skip
    assert {key: value for key, value in pairs[2].items() if key in row} == {**row, 'id': 'P2A-7-2-3'}
    alike = annotate_stage.pairs_of({**row, 'output_1': 'a', 'output_2': 'b', 'output_3': 'a'})
    assert [{each['output_1'], each['output_2']} for each in alike] == [{'a', 'b'}]


def test_prompts_of_a_file_that_are_too_long_are_left_out(tmp_path):
    path = tmp_path / 'prompts.jsonl'
    path.write_text(
        '{"instruction": "Say:\\n- it", "input": "twice"}\n{"prompt": "Why?"}\n{"prompt": "' + 'x' * 900 + '"}\n'
    )
    tokenizer = sources.resolve('random:tiny').tokenizer()
    found = read_prompts(get_settings(**{'prompts.train': str(path)}), 'train', tokenizer)
    assert [prompt.question for prompt in found] == ['Say:\n- it twice', 'Why?']
    path.write_text('{"text": "Why?"}')
    with pytest.raises(ValueError, match="line 1: expected an object with 'instruction'"):
        read_prompts(get_settings(**{'prompts.train': str(path)}), 'train', tokenizer)


def test_rewards_of_a_combination_are_read_one_preference_at_a_time():
    two = preferences.embedded()[:2]
    asked = PreferencePrompt(Prompt('a', 'Why?'), two)
    assert asked.text == f'Why? {two[0].text} {two[1].text}'
    assert asked.readings == [f'Why? {two[0].text}', f'Why? {two[1].text}']
    assert PreferencePrompt(Prompt('a', 'Why?')).readings == ['Why?']


def test_replies_are_scored_by_the_tokens_that_reward_models_learn_from():
    tokenizer = sources.resolve('random:tiny').tokenizer()
    replies = 'one answer', '<|im_end|> another', ''
    asked, *said = chats.as_chat('Why?'), *([{'role': 'assistant', 'content': each}] for each in replies)
    for pooling in ('last', 'mean'):
        group = scored_replies(tokenizer, 'Why?', replies, pooling)
        for k in (1, 2):
            learnt = reward.to_group(tokenizer, {'prompt': asked, 'chosen': said[0], 'rejected': said[k]}, pooling)
            assert [group.branches[i] for i in (0, k)] == learnt.branches


def test_draws_and_combinations_have_names_of_their_own():
    named = [('tone', 'a'), ('tone', 'b'), ('level', '1'), ('level', '2')]
    poles = [preferences.Preference(name, dimension, name, None) for dimension, name in named]
    settings = get_settings(**{'evaluate.draws': 3})
    names = [name for job in make_jobs(settings.merge, settings.evaluate, poles) for name in job.names]
    assert len(set(names)) == len(names) == 1 + 4 * 4 + 3 * 4 * 2 + 2 * 3


def test_a_tasting_compares_by_criterion_and_counts_what_was_not_answered():
    poles = preferences.choose(preferences.embedded(), 'P2A,P2B,P3A,P3B')
    prompts = [Prompt(str(i), f'question {i}') for i in range(4)]
    settings = get_settings()
    jobs = make_jobs(settings.merge, settings.evaluate, poles)
    assert len(jobs) == 1 + 4 * 4 + 4 * 2 + 2 * 3  # as :quick has
    written = {job.name: ['some words of an answer'] * 4 for job in jobs}
    written |= {name: ['short'] * 4 for name in written if name.startswith('psoups-P2A') or name == 'policy-P2A'}
    written |= {'policy-P2A.2': ['brief', *['two words'] * 3], 'base-P2A.2': ['also two'] * 4}
    written['front-P2A-P2B-0'] = ['short'] * 2  # of as many prompts as it was asked
    alike = ('P2B', 'P3A', 'P3B')
    written |= {f'{who}-{pole}.2': ['same'] * 4 for pole in alike for who in ('policy', 'base')}
    judge = judges.open_annotators(ChatModels({}, '', 0), judges.read_annotators('rule', 'embedded'))
    contest = psoups_evaluate.Contest(prompts, written, judge, False, 0)
    evaluation = contest.evaluate(poles, make_fronts(settings.evaluate, poles), draws=2)
    record = evaluation.record
    assert record['base_psoups_half'] == pytest.approx(0.25)  # loses P2A's two combinations, ties in P2B's
    assert record['winrate_psoups'] == pytest.approx(0.75)
    assert record['P2A_policy_beats_base'] == pytest.approx((4 + 1 + 3 / 2) / 8)  # of two draws
    assert record['P2B_policy_beats_base'] == 0.5
    assert (record['P2A_rule_base'], record['P2A_rule_policy']) == (-(5 + 2) / 2, -(1 + 7 / 4) / 2)
    fronts = ('P2A_P2B', 'P2B_P2A', 'P3A_P3B', 'P3B_P3A')
    assert {f'front_{poles}_spearman' for poles in fronts} <= set(record)
    assert [weight for weight, *_ in record['front_P2A_P2B']] == [0.0, 0.5, 1.0]
    assert [brief for _, brief, _ in record['front_P2A_P2B']] == [-1.0, -5.0, -5.0]
    assert {exhibit.title for exhibit in evaluation.exhibits} >= {'Win rates by pair', 'Soups between two poles'}
    silent = psoups_evaluate.Contest(
        prompts, written, lambda _: lambda p, rows, seed, switched: [None] * len(rows), True, 0
    )
    assert silent.compare(poles[0], 'policy-P2A', 'base-P2A').tolist() == [0] * 4
    assert (silent.failed, silent.asked) == (8, 8)
    check_failed(0, 8, 'rows have no verdict', 'evaluate.judge', 0.1, section='evaluate')
    with pytest.raises(
        RuntimeError,
        match=r'8 of 8 rows have no verdict, more than evaluate.max_failed=0.1 \(no answer could be read\); check eval',
    ):
        check_failed(silent.failed, silent.asked, 'rows have no verdict', 'evaluate.judge', 0.1, section='evaluate')
