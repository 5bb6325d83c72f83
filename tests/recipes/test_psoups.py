"""Personalized Soups from its config: the stages, what each leaves for the next, what pays, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import signal
import types
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from pal_jax import cli, train
from pal_jax.data import chats
from pal_jax.data.holdouts import normal
from pal_jax.feedback import preferences
from pal_jax.models import sources
from pal_jax.parts import piecework
from pal_jax.parts.answers import ModelScores
from pal_jax.parts.chat_models import ChatModels
from pal_jax.parts.models import make_learner
from pal_jax.parts.recipe import Context, Plan
from pal_jax.parts.rows import scored_replies
from pal_jax.presets import parse_stage
from pal_jax.recipes import reward
from pal_jax.recipes.psoups import data as psoups_data
from pal_jax.recipes.psoups import evaluate as psoups_evaluate
from pal_jax.recipes.psoups import judges, policies
from pal_jax.recipes.psoups import recipe as psoups
from pal_jax.recipes.psoups.jobs import make_fronts, make_jobs
from pal_jax.recipes.psoups.prompts import Asked, Prompt, known_prompts, prompts_moved, read_prompts
from pal_jax.runtime import checkpoint, devices
from pal_jax.runtime.metrics import EVALS, read_records
from pal_jax.runtime.report import REPORT
from pal_jax.types import Completion, Sample
from tests import configs
from tests.whole_runs import run

get_config, get_settings = (functools.partial(load, 'psoups') for load in (configs.load, configs.settings))
ONE = Context(devices.make_mesh(devices=jax.devices()[:1]), lambda name: contextlib.nullcontext())
POLES = ['P2A', 'P2B']


def rows(count, *, judged=1, text='Be brief.'):
    return [
        {'id': f'P2A-{i}', 'preference_id': 'P2A', 'instruction': f'question {i}', 'input': '', 'preference': judged,
         'output_1': f'one {i}', 'output_2': f'two words {i}', 'preference_prompt': text}
        for i in range(count)
    ]  # fmt: skip


def test_all_stages_in_their_order_and_each_by_its_name(tmp_path):
    folders = [folder.name for _, folder in psoups.stages(get_settings(), tmp_path)]
    rewards, policies = ([f'{stage}-{pole}' for pole in POLES] for stage in ('reward', 'policy'))
    assert folders == ['rollout', 'annotate', 'reward-general', *rewards, 'reward-joint', 'rlhf', 'multitask', 'morl',
                       *policies, 'merge', 'evaluate']  # fmt: skip
    alone = psoups.stages(get_settings('smoke,stage=policy,preference=P2A'), tmp_path)
    assert [folder.name for _, folder in alone] == ['policy-P2A']
    assert [folder.name for _, folder in psoups.stages(get_settings('smoke,stage=merge'), tmp_path)] == ['merge']


def test_a_stage_is_told_what_it_reads_and_no_more(tmp_path):
    before, after = (
        {folder.name: stage.to_dict() for stage, folder in psoups.stages(get_settings(**changes), tmp_path)}
        for changes in ({}, {'evaluate.front': 'P2B,P2A', 'reward.total_steps': 3})
    )
    assert {name for name in before if before[name] != after[name]} == {
        'evaluate',
        *(n for n in before if 'reward' in n),
    }
    assert before['reward-P2A']['data']['train'] == str(tmp_path / 'pairs' / 'P2A.jsonl')
    assert before['multitask']['data']['test'] == str(tmp_path / 'pairs' / 'best-test.jsonl')


def test_stages_that_differ_in_their_preference_share_a_learner(tmp_path):
    (first, _), (second, _) = psoups.stages(get_settings(stage='policy'), tmp_path)
    cfg = sources.resolve('random:tiny').config

    def learner(config):
        return make_learner(configs.parsed(config), cfg, ONE, n=2)

    assert learner(second) == learner(first)
    assert learner(ConfigDict(json.loads(json.dumps(first.to_dict())))) == learner(first)
    second.optimizer.lr *= 2
    assert learner(second) != learner(first)


def test_policies_are_exported_where_reward_models_cannot_be(tmp_path):
    told = {folder.name: stage.export for stage, folder in psoups.stages(get_settings(export=True), tmp_path)}
    assert (told['policy-P2A'], told['multitask'], told['reward-P2A']) == (True, True, False)
    last = psoups.stages(get_settings(export=True, **{'reward.data.pooling': 'last'}), tmp_path)
    assert all(stage.export for stage, _ in last)


def test_a_run_goes_on_where_its_folder_has_been_moved_to(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, 'config', get_config)
    for stage, folder in psoups.stages(get_settings(), tmp_path / 'here'):
        checkpoint.write_config(folder, stage.to_dict())
    (tmp_path / 'here').rename(tmp_path / 'there')
    monkeypatch.setattr(cli, 'workdir', lambda: tmp_path / 'there')
    assert len(list(cli.runs())) == 13
    monkeypatch.setattr(cli, 'config', lambda: get_config(**{'rollout.answers': 3}))
    with pytest.raises(cli.Fault, match='made by another config'):
        list(cli.runs())


def test_a_variant_and_a_stage():
    told = {'stage': 'policy', 'preference': 'P2A'}
    assert parse_stage('quick,stage=policy,preference=P2A', 'quick') == ('quick', told)
    assert parse_stage('') == ('', {})
    with pytest.raises(ValueError, match="variant 'quik' is unknown"):
        parse_stage('quik,stage=merge', 'quick')
    with pytest.raises(ValueError, match='step= in variant'):
        parse_stage('step=merge', 'quick')


def test_a_policy_of_ones_own_is_its_reward_model_too_unless_that_is_named(tmp_path):
    def sources_of(**changes):
        return {part.policy.source for part, folder in psoups.stages(get_settings(**changes), tmp_path)
                if folder.name.startswith('reward')}  # fmt: skip

    assert sources_of(**{'policy.source': 'hf:mine'}) == {'hf:mine'}
    assert sources_of(**{'reward.policy.source': 'hf:judge'}) == {'hf:judge'}


def test_a_stage_needs_those_before_it(tmp_path):
    (part, folder), *_ = psoups.stages(get_settings(stage='annotate'), tmp_path)
    with pytest.raises(ValueError, match=r'rollouts.jsonl is missing; run the stage that writes it first'):
        psoups.make(configs.parsed(part), ONE._replace(workdir=folder))
    (part, folder), *_ = psoups.stages(get_settings(stage='rlhf'), tmp_path)
    with pytest.raises(ValueError, match='reward-general is not finished; run stage=reward,preference=general first'):
        psoups.make(configs.parsed(part), ONE._replace(workdir=folder)).init()
    for stage, needed in (('merge', 'policy-P2A'), ('evaluate', 'rlhf')):
        (part, folder), *_ = psoups.stages(get_settings(stage=stage), tmp_path)
        with pytest.raises(ValueError, match=f'{needed} is not finished'):
            psoups.make(configs.parsed(part), ONE._replace(workdir=folder))


def test_adapters_of_another_base_or_kind_are_refused(tmp_path):
    (part, merge), *_ = psoups.stages(get_settings(stage='merge'), tmp_path)

    def make_merge(changed, value):
        for trained, folder in psoups.stages(get_settings(stage='policy', **{changed: value}), tmp_path):
            checkpoint.write_config(folder, trained.to_dict())
            (folder / REPORT).touch()
        return psoups.make(configs.parsed(part), ONE._replace(workdir=merge))

    with pytest.raises(ValueError, match=r'policy-P2A was trained with policy.source=hf:other, got random:tiny'):
        make_merge('policy.source', 'hf:other')
    with pytest.raises(ValueError, match=r"policy-P2A was trained with policy.lora=.*'rank': 8.*another --workdir"):
        make_merge('policy.lora.rank', 8)
    assert make_merge('policy.dtype', 'bfloat16').plan.total_steps == 2


def test_a_policy_is_opened_without_what_it_was_trained_with(tmp_path):
    (part, folder), *_ = psoups.stages(get_settings(stage='rlhf'), tmp_path)
    part.prompts.train = 'gone.jsonl'
    assert psoups.make_trained(configs.parsed(part), ONE).model.layers > 0
    with pytest.raises(ValueError, match='gone.jsonl is no file'):
        psoups.make(configs.parsed(part), ONE._replace(workdir=folder))
    (part, _), *_ = psoups.stages(get_settings(stage='merge'), tmp_path)
    assert psoups.make_trained(configs.parsed(part), ONE) is None


def annotate(tmp_path, written, **changes):
    piecework.write(tmp_path / 'rollouts.jsonl', written)
    (part, folder), *_ = psoups.stages(get_settings(stage='annotate', **changes), tmp_path)
    return psoups.make(configs.parsed(part), ONE._replace(workdir=folder))


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
        with pytest.raises(RuntimeError, match=r'4 of 4 rows have no verdict, .* check annotate.second .* asked anew'):
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


def test_preferences_of_a_file_are_all_there_without_a_word_of_poles(tmp_path):
    path = tmp_path / 'mine.yaml'
    path.write_text(
        'dimensions: {length: {brief: {text: Be brief., judge: -words}, ample: {text: Say it all., judge: +words}}}'
    )
    folders = [folder.name for _, folder in psoups.stages(get_settings(preferences=str(path), poles=''), tmp_path)]
    assert {'policy-brief', 'policy-ample'} <= set(folders)


def test_prompts_that_test_a_reward_model_teach_none(tmp_path):
    judged = [{**row, 'preference_id': name} for name in ('general', 'P2A') for row in rows(10, judged=2)]
    judged = [{**row, 'preference_prompt': ''} if row['preference_id'] == 'general' else row for row in judged]
    psoups_data.write_pairs(tmp_path, judged, ['general', 'P2A'], 0.2)
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
        psoups_data.write_pairs(tmp_path, judged, ['P2B'], 0.2)


def test_a_prompt_in_other_clothes_tests_no_reward_model_that_learnt_it(tmp_path):
    judged = [{**row, 'preference_id': 'P2A'} for row in rows(10, judged=2)]
    judged += [{**row, 'instruction': row['instruction'].upper() + ' '} for row in judged[:5]]
    psoups_data.write_pairs(tmp_path, judged, ['P2A'], 0.2)
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
        psoups.check(get_settings(**files | {'prompts.test': files['prompts.train']}))
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
    found = psoups_data.best(pairs)
    assert [(each['prompt'][0]['content'], each['completion'][0]['content']) for each in found] == [
        ('Why? Be brief.', 'c'), ('How? Be brief.', 'e'),
    ]  # fmt: skip


def test_every_preference_is_asked_of_as_many_prompts_drawn_for_it():
    prompts, poles = [Prompt(str(i), f'question {i}') for i in range(20)], preferences.embedded()[:3]
    asked = psoups_data.draw(poles, prompts, 12, 0)
    own = [[prompt for p, prompt in asked if p is pole] for pole in poles]
    assert [len(set(each)) for each in own] == [12] * 3
    assert len({frozenset(each) for each in own}) == 3
    assert [int(prompt.id) for _, prompt in asked] == sorted(int(prompt.id) for _, prompt in asked)
    whole = [(pole, prompt) for prompt in prompts for pole in poles]
    assert psoups_data.draw(poles, prompts, 0, 0) == psoups_data.draw(poles, prompts, 99, 0) == whole


def test_all_answers_to_a_prompt_are_compared_two_by_two():
    row = {'id': 'P2A-7', 'preference_id': 'P2A', 'instruction': 'Why?', 'input': '', 'preference_prompt': 'Be brief.'}
    pairs = psoups_data.pairs_of({**row, 'output_1': 'a', 'output_2': 'b', 'output_3': 'c'})
    assert [(each['id'], each['output_1'], each['output_2']) for each in pairs] == [
        ('P2A-7-1-2', 'a', 'b'), ('P2A-7-1-3', 'a', 'c'), ('P2A-7-2-3', 'b', 'c'),
    ]  # fmt: skip
    assert {key: value for key, value in pairs[2].items() if key in row} == {**row, 'id': 'P2A-7-2-3'}
    alike = psoups_data.pairs_of({**row, 'output_1': 'a', 'output_2': 'b', 'output_3': 'a'})
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
    asked = Asked(Prompt('a', 'Why?'), two)
    assert asked.text == f'Why? {two[0].text} {two[1].text}'
    assert asked.readings == [f'Why? {two[0].text}', f'Why? {two[1].text}']
    assert Asked(Prompt('a', 'Why?')).readings == ['Why?']


def test_an_answer_without_text_is_paid_as_the_worst_of_its_step():
    scores = np.array([0.5, 3.0, -1.0, 2.0])
    np.testing.assert_array_equal(psoups.paid(scores, ['a', '', 'b', ' \n']), [0.5, -1.0, -1.0, -1.0])
    np.testing.assert_array_equal(psoups.paid(scores, ['a', 'b', 'c', 'd']), scores)


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
    names = [name for job in make_jobs(get_settings(**{'evaluate.draws': 3}), poles) for name in job.names]
    assert len(set(names)) == len(names) == 1 + 4 * 4 + 3 * 4 * 2 + 2 * 3


def test_a_tasting_compares_by_criterion_and_counts_what_was_not_answered():
    poles = preferences.choose(preferences.embedded(), 'P2A,P2B,P3A,P3B')
    prompts = [Prompt(str(i), f'question {i}') for i in range(4)]
    settings = get_settings()
    jobs = make_jobs(settings, poles)
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
    judges.check_verdicts(0, 8, 0.1, 'evaluate.judge', '')
    with pytest.raises(
        RuntimeError, match=r'8 of 8 rows have no verdict, more than evaluate.max_failed=0.1; check eval'
    ):
        judges.check_verdicts(silent.failed, silent.asked, 0.1, 'evaluate.judge', '')


# --- from fake parts --------------------------------------------------------------------------------------------------


class Learner(NamedTuple):
    """A learner whose state is the rewards of the last step; it takes the numbers of samples for advantages."""

    actor: Any = types.SimpleNamespace(param_shardings=None)

    def init(self, weights):
        return State([weights])

    def weights(self, state):
        return state

    def score(self, state, batch):
        return batch, {'kl': 0.5}

    def advantages(self, state, batch):
        return batch, {'advantage_std': 1.0}

    def update(self, state, batch, key):
        return State([sample.reward for sample in batch]), {'policy_loss': 0.25}


class State(NamedTuple):
    rewards: list
    skipped: int = 0


def fake_sampler(asked):
    """Answers question `k` by as many words, each sample with one more; keeps what it is asked in `asked`."""

    def sample(weights, questions, n, seed):
        asked.append((questions, seed))
        texts = ['word ' * (k + j) for k in range(len(questions)) for j in range(n)]
        return [Sample((1,), Completion(text, (1,) * len(text.split()), (), 'stop')) for text in texts]

    return sample


def fake_rlphf(asked, **changes):
    brief, full = preferences.choose(preferences.embedded(), 'P2A,P2B')
    plan = Plan(4, None, lambda i: None)
    recipe = psoups.RLPHF(
        plan, ONE, 'morl', Learner(), lambda shardings: 0.0, fake_sampler(asked),
        score=lambda readings, replies: np.array([[-float(len(text)) for text in texts] for texts in replies]),
        judge=None, pack=list, train=[Prompt(str(k), f'question {k}') for k in range(4)],
        test=[Prompt('t', 'Why?')], wanted=[(brief,), (full,)], batch_size=3, n=2,
    )  # fmt: skip
    return dataclasses.replace(recipe, **changes)


def test_a_step_asks_for_preferences_in_turn_and_pays_by_the_scores():
    recipe = fake_rlphf(asked := [])
    brief, full = (poles[0].text for poles in recipe.wanted)
    state, host = recipe.init()
    assert state == State([0.0]) and host == {'moments': [0.0, 0.0, 0.0]}
    state, host, phase, metrics = recipe.step(state, host, 0)
    assert state.rewards == [-14.0, -4.0, -4.0, -9.0, -9.0, -14.0]  # the first has no text, so it is paid as the worst
    assert (phase, metrics['reward'], metrics['words']) == ('morl', -9, 1.5)
    assert {'kl', 'advantage_std', 'policy_loss'} <= set(metrics)
    assert host['moments'][:2] == [6, -9]
    recipe.step(state, host, 1)
    (first, seed), (second, _) = asked
    assert seed == (0, 0)
    assert [text.split(' ', 2)[2] for text in (*first, *second)] == [brief, full] * 3
    assert {text[: len('question 0')] for text in (*first, *second[:1])} == {f'question {k}' for k in range(4)}


def test_scores_of_all_steps_are_one_scale():
    recipe = fake_rlphf([], scale_scores=True)
    state, host, *_ = recipe.step(*recipe.init(), 0)
    assert np.mean(state.rewards) == pytest.approx(0, abs=1e-6) and np.std(state.rewards, ddof=1) == pytest.approx(1)
    _, after, *_ = recipe.step(state, host, 1)
    assert after['moments'][0] == 12


def test_an_evaluation_has_the_rule_of_the_one_preference():
    recipe = fake_rlphf([])
    assert not any(name.startswith('rule') for name in recipe.evaluate(State([]), 'final').record)
    evaluation = dataclasses.replace(recipe, wanted=recipe.wanted[:1]).evaluate(State([]), 'final')
    assert evaluation.record['rule_P2A'] == 0 and evaluation.record['samples'] == 1
    assert evaluation.dialogues[0]['turns'][0]['content'].startswith('Why? ')


def test_rollouts_are_made_in_parts(tmp_path):
    ctx, poles = ONE._replace(workdir=tmp_path / 'rollout'), preferences.choose(preferences.embedded(), 'P2A,P2B')
    parts = [[(poles[0], Prompt('a', 'Why?'))], [(poles[1], Prompt('b', 'How?')), (poles[0], Prompt('b', 'How?'))]]
    stage = psoups_data.Rollouts(ctx, fake_sampler(asked := []), dict, parts, n=2, seed=3)
    recipe = piecework.make(ctx, len(parts), stage.work, 'rollout', stage.finish)
    state, host = recipe.init()
    for i in range(2):
        state, host, name, _ = recipe.step(state, host, i)
    assert (name, int(state['parts']), [seed for _, seed in asked]) == ('rollout', 2, [(3, 0), (3, 1)])
    assert recipe.evaluate(state, 'final').record == {'rows': 3, 'prompts_moved': 0}
    written = piecework.read(tmp_path / 'rollouts.jsonl')
    assert [(row['id'], row['output_1'], row['output_2']) for row in written] == [
        ('P2A-a', '', 'word'), ('P2B-b', '', 'word'), ('P2A-b', 'word', 'word word'),
    ]  # fmt: skip


# --- a whole run ------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_run_that_is_stopped_between_stages_goes_on_and_leaves_everything(tmp_path, monkeypatch, capsys):
    trained = []
    original = train.train

    def stopping(config, workdir):
        trained.append(workdir.name)
        return 128 + signal.SIGTERM if len(trained) == 4 else original(config, workdir)

    monkeypatch.setattr(train, 'train', stopping)
    assert run(monkeypatch, tmp_path, get_config('smoke')) == 128 + signal.SIGTERM
    assert run(monkeypatch, tmp_path, get_config('smoke')) == 0
    assert trained[3] == trained[4]
    assert len(trained) - 1 == len(set(trained)) == 13
    assert 'reward-general is finished' in capsys.readouterr().out
    written = {path.name for path in tmp_path.iterdir()}
    assert {'rollouts.jsonl', 'annotations.jsonl', 'pairs', 'merged', 'generations', 'evaluate'} <= written
    rollouts = piecework.read(tmp_path / 'rollouts.jsonl')
    assert len(rollouts) == 3 * 16
    keys = {'id', 'preference_id', 'instruction', 'input', 'preference_prompt', 'output_1', 'output_2'}
    assert set(rollouts[0]) == keys
    summary = json.loads((tmp_path / 'evaluate' / 'summary.json').read_text())
    assert 0 <= summary['evaluations']['final']['winrate_psoups'] <= 1
    assert (tmp_path / 'merged' / 'P2A' / 'adapter_model.safetensors').exists()
    assert (tmp_path / 'evaluate' / 'report.html').stat().st_size > 0
    check_scores(tmp_path)
    check_reloaded(tmp_path)
    check_adapters(tmp_path)


def check_scores(folder):
    """The joint reward model reads the reply (I.7-10), and scores are the same whenever it is opened (I.7-9)."""
    asked = [[f'question {i} Be brief.', f'question {i} Be witty.'] for i in range(8)]
    replies = [[f'one answer {i}', f'quite another {i}', 'a third'] for i in range(8)]
    first, second = (
        judges.RewardModel(ModelScores(folder / 'reward-joint', ONE, reward.open_scores))(asked, replies)
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    assert first.shape == (8, 3)
    assert (first[:, 0] != first[:, 1]).all()
    score = judges.RewardModel(ModelScores(folder / 'reward-joint', ONE, reward.open_scores))
    apart = [score([each[k : k + 1] for each in asked], replies) for k in (0, 1)]
    np.testing.assert_allclose(first, np.mean(apart, axis=0), atol=1e-5)


def check_reloaded(folder):
    """Scores of the reward model in memory, when its stage ended, are those of the one read from its checkpoint."""
    pairs = piecework.read(folder / 'pairs' / 'P2A-test.jsonl')
    asked = [[each['prompt'][0]['content']] for each in pairs]
    replies = [[each[side][0]['content'] for side in ('chosen', 'rejected')] for each in pairs]
    record = read_records(folder / 'reward-P2A' / EVALS)[-1]
    scores = judges.RewardModel(ModelScores(folder / 'reward-P2A', ONE, reward.open_scores))(asked, replies)
    np.testing.assert_allclose([scores.mean(), scores.std()], [record['score_mean'], record['score_std']], rtol=1e-5)


def check_adapters(folder):
    trees = [policies.open_adapters(folder / f'policy-{name}', ONE) for name in ('P2A', 'P2B')]
    assert not all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, trees), strict=True))


def test_policies_of_another_base_do_not_merge(tmp_path):
    """A random base is made by the seed."""
    checkpoint.write_config(tmp_path, get_config().to_dict())
    (tmp_path / REPORT).write_text('')
    policies.check_trained(tmp_path, get_settings())
    for key, value, message in (
        ('seed', 1, 'seed='),
        ('policy.source', 'hf:other', r'policy\.source=random:tiny, got hf:other'),
        ('policy.lora.alpha', 99.0, r'policy\.lora='),
    ):
        with pytest.raises(ValueError, match=message):
            policies.check_trained(tmp_path, get_settings(**{key: value}))
