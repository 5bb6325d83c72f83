"""Personalized Soups from its config: the stages, what each leaves for the next, and what pays."""

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

from pal_jax.decode.answers import ModelScores
from pal_jax.models.files import sources
from pal_jax.recipes.psoups import judges, policies, preferences, rl, rollout
from pal_jax.recipes.psoups import recipe as psoups
from pal_jax.recipes.psoups.prompts import Prompt
from pal_jax.recipes.scorer import reward
from pal_jax.run import checkpoint, devices, loop, piecework
from pal_jax.run.metrics import EVALS, read_records
from pal_jax.run.models import make_learner
from pal_jax.run.presets import parse_stage
from pal_jax.run.recipe import Context, Plan
from pal_jax.run.settings import changed, parse, to_dict
from pal_jax.run.stages import unfinished
from pal_jax.run.workdir import REPORT
from pal_jax.types import Completion, Sample
from tests import configs
from tests.recipes.ahead import make_rollouts
from tests.whole_runs import run

get_settings = functools.partial(configs.load, 'psoups')
ONE = Context(devices.make_mesh(devices=jax.devices()[:1]), lambda name: contextlib.nullcontext())
POLES = ['P2A', 'P2B']


def test_all_stages_in_their_order_and_each_by_its_name(tmp_path):
    folders = [folder.name for folder, _ in psoups.stages(get_settings(), tmp_path)]
    rewards, policies = ([f'{stage}-{pole}' for pole in POLES] for stage in ('reward', 'policy'))
    assert folders == ['rollout', 'annotate', 'reward-general', *rewards, 'reward-joint', 'rlhf', 'multitask', 'morl',
                       *policies, 'merge', 'evaluate']  # fmt: skip
    alone = psoups.stages(get_settings('smoke,stage=policy,preference=P2A'), tmp_path)
    assert [folder.name for folder, _ in alone] == ['policy-P2A']
    assert [folder.name for folder, _ in psoups.stages(get_settings('smoke,stage=merge'), tmp_path)] == ['merge']


def test_a_stage_is_told_what_it_reads_and_no_more(tmp_path):
    before, after = (
        {folder.name: to_dict(stage) for folder, stage in psoups.stages(get_settings(**changes), tmp_path)}
        for changes in ({}, {'evaluate.front': 'P2B,P2A', 'reward.total_steps': 3})
    )
    assert {name for name in before if before[name] != after[name]} == {
        'evaluate',
        *(n for n in before if 'reward' in n),
    }
    assert [*before['rollout']['rollout']] == ['prompts', 'answers', 'batch_size']
    assert [*before['rlhf']['rollout']] == ['ahead', 'lockstep']
    assert before['reward-P2A']['data']['train'] == str(tmp_path / 'pairs' / 'P2A.jsonl')
    assert before['multitask']['data']['test'] == str(tmp_path / 'pairs' / 'best-test.jsonl')


def test_stages_that_differ_in_their_preference_share_a_learner(tmp_path):
    (_, first), (_, second) = psoups.stages(get_settings(stage='policy'), tmp_path)
    cfg = sources.resolve('random:tiny').config

    def learner(config):
        return make_learner(config, cfg, ONE, n=2)

    assert learner(second) == learner(first)
    assert learner(parse(type(first), json.loads(json.dumps(to_dict(first))))) == learner(first)
    assert learner(changed(second, optimizer=dict(lr=2 * first.optimizer.lr))) != learner(first)


def test_policies_are_exported_where_reward_models_cannot_be(tmp_path):
    told = {folder.name: stage.export for folder, stage in psoups.stages(get_settings(export=True), tmp_path)}
    assert (told['policy-P2A'], told['multitask'], told['reward-P2A']) == (True, True, False)
    last = psoups.stages(get_settings(export=True, **{'reward.data.pooling': 'last'}), tmp_path)
    assert all(stage.export for _, stage in last)


def test_a_run_goes_on_where_its_folder_has_been_moved_to(tmp_path):
    for folder, stage in psoups.stages(get_settings(), tmp_path / 'here'):
        checkpoint.write_config(folder, to_dict(stage))
        (folder / 'metrics.jsonl').write_text('{"step": 0}\n')
    (tmp_path / 'here').rename(tmp_path / 'there')
    assert len(list(unfinished(get_settings(), tmp_path / 'there'))) == 13
    with pytest.raises(ValueError, match='made by another config'):
        list(unfinished(get_settings(**{'rollout.answers': 3}), tmp_path / 'there'))


def test_a_variant_and_a_stage():
    assert parse_stage('quick,stage=policy,preference=P2A', 'quick') == ('quick', 'policy-P2A')
    assert parse_stage('stage=policy-P2A') == ('', 'policy-P2A')
    assert parse_stage('') == ('', 'all')
    with pytest.raises(ValueError, match="preference='P2A' goes with a stage"):
        parse_stage('preference=P2A')
    with pytest.raises(ValueError, match="variant 'quik' is unknown"):
        parse_stage('quik,stage=merge', 'quick')
    with pytest.raises(ValueError, match='step= in variant'):
        parse_stage('step=merge', 'quick')


def test_a_policy_of_ones_own_is_its_reward_model_too_unless_that_is_named(tmp_path):
    def sources_of(**changes):
        return {part.policy.source for folder, part in psoups.stages(get_settings(**changes), tmp_path)
                if folder.name.startswith('reward')}  # fmt: skip

    assert sources_of(**{'policy.source': 'hf:mine'}) == {'hf:mine'}
    assert sources_of(**{'reward.policy.source': 'hf:judge'}) == {'hf:judge'}


def test_a_stage_needs_those_before_it(tmp_path):
    (folder, part), *_ = psoups.stages(get_settings(stage='annotate'), tmp_path)
    with pytest.raises(ValueError, match=r'rollouts.jsonl is missing; run the stage that writes it first'):
        configs.make(part, ONE._replace(workdir=folder))
    (folder, part), *_ = psoups.stages(get_settings(stage='rlhf'), tmp_path)
    with pytest.raises(ValueError, match='reward-general is not finished; run stage=reward-general first'):
        configs.make(part, ONE._replace(workdir=folder)).init()
    for stage, needed in (('merge', 'policy-P2A'), ('evaluate', 'rlhf')):
        (folder, part), *_ = psoups.stages(get_settings(stage=stage), tmp_path)
        with pytest.raises(ValueError, match=f'{needed} is not finished'):
            configs.make(part, ONE._replace(workdir=folder))


def test_adapters_of_another_base_or_kind_are_refused(tmp_path):
    (merge, part), *_ = psoups.stages(get_settings(stage='merge'), tmp_path)

    def make_merge(changed, value):
        for folder, trained in psoups.stages(get_settings(stage='policy', **{changed: value}), tmp_path):
            checkpoint.write_config(folder, to_dict(trained))
            (folder / REPORT).touch()
        return configs.make(part, ONE._replace(workdir=merge))

    with pytest.raises(ValueError, match=r'policy-P2A was trained with policy.source=hf:other, got random:tiny'):
        make_merge('policy.source', 'hf:other')
    with pytest.raises(ValueError, match=r"policy-P2A was trained with policy.lora=.*'rank': 8.*another --workdir"):
        make_merge('policy.lora.rank', 8)
    assert make_merge('policy.dtype', 'bfloat16').plan.total_steps == 2


def test_a_policy_is_opened_without_what_it_was_trained_with(tmp_path):
    (folder, part), *_ = psoups.stages(get_settings(stage='rlhf'), tmp_path)
    part = changed(part, prompts=dict(train='gone.jsonl'))
    assert rl.make_trained(part, ONE).model.layers > 0
    with pytest.raises(ValueError, match='gone.jsonl is no file'):
        configs.make(part, ONE._replace(workdir=folder))


def test_preferences_of_a_file_are_all_there_without_a_word_of_poles(tmp_path):
    path = tmp_path / 'mine.yaml'
    path.write_text(
        'dimensions: {length: {brief: {text: Be brief., judge: -words}, ample: {text: Say it all., judge: +words}}}'
    )
    folders = [folder.name for folder, _ in psoups.stages(get_settings(preferences=str(path), poles=''), tmp_path)]
    assert {'policy-brief', 'policy-ample'} <= set(folders)


def test_an_answer_without_text_is_paid_as_the_worst_of_its_step():
    scores = np.array([0.5, 3.0, -1.0, 2.0])
    np.testing.assert_array_equal(rl.paid(scores, ['a', '', 'b', ' \n']), [0.5, -1.0, -1.0, -1.0])
    np.testing.assert_array_equal(rl.paid(scores, ['a', 'b', 'c', 'd']), scores)


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

    def advantages(self, state, batch, estimate):
        return batch, {'advantage_std': 1.0}

    def update(self, state, batch, key, ptx):
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
    recipe = rl.RLPHF(
        plan, ONE, 'morl', Learner(), lambda shardings: 0.0, fake_sampler(asked),
        rollouts=make_rollouts(ONE, 4, None),
        score=lambda readings, replies: np.array([[-float(len(text)) for text in texts] for texts in replies]),
        judge=None, pack=list, train=[Prompt(str(k), f'question {k}') for k in range(4)],
        test=[Prompt('t', 'Why?')], wanted=[(brief,), (full,)], batch_size=3, n=2,
    )  # fmt: skip
    return dataclasses.replace(recipe, **changes)


def test_a_step_asks_for_preferences_in_turn_and_pays_by_the_scores():
    recipe = fake_rlphf(asked := [])
    brief, full = (poles[0].text for poles in recipe.wanted)
    state, host = recipe.init()
    assert state == State([0.0]) and host == {'moments': [0.0, 0.0, 0.0], 'rollouts': ()}
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
    stage = rollout.Rollouts(ctx, fake_sampler(asked := []), dict, parts, n=2, seed=3)
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
    original = loop.train

    def stopping(config, workdir):
        trained.append(workdir.name)
        return 128 + signal.SIGTERM if len(trained) == 4 else original(config, workdir)

    monkeypatch.setattr(loop, 'train', stopping)
    assert run(monkeypatch, tmp_path, get_settings('smoke')) == 128 + signal.SIGTERM
    assert run(monkeypatch, tmp_path, get_settings('smoke')) == 0
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
        judges.ReplyScorer(ModelScores(folder / 'reward-joint', ONE, reward.open_scores))(asked, replies)
        for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    assert first.shape == (8, 3)
    assert (first[:, 0] != first[:, 1]).all()
    score = judges.ReplyScorer(ModelScores(folder / 'reward-joint', ONE, reward.open_scores))
    apart = [score([each[k : k + 1] for each in asked], replies) for k in (0, 1)]
    np.testing.assert_allclose(first, np.mean(apart, axis=0), atol=1e-5)


def check_reloaded(folder):
    """Scores of the reward model in memory, when its stage ended, are those of the one read from its checkpoint."""
    pairs = piecework.read(folder / 'pairs' / 'P2A-test.jsonl')
    asked = [[each['prompt'][0]['content']] for each in pairs]
    replies = [[each[side][0]['content'] for side in ('chosen', 'rejected')] for each in pairs]
    record = read_records(folder / 'reward-P2A' / EVALS)[-1]
    scores = judges.ReplyScorer(ModelScores(folder / 'reward-P2A', ONE, reward.open_scores))(asked, replies)
    np.testing.assert_allclose([scores.mean(), scores.std()], [record['score_mean'], record['score_std']], rtol=1e-5)


def check_adapters(folder):
    trees = [policies.open_adapters(folder / f'policy-{name}', ONE) for name in ('P2A', 'P2B')]
    assert not all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, trees), strict=True))


def test_policies_of_another_base_do_not_merge(tmp_path):
    """A random base is made by the seed."""
    checkpoint.write_config(tmp_path, to_dict(get_settings()))
    (tmp_path / REPORT).write_text('')
    policies.check_trained(tmp_path, get_settings())
    for key, value, message in (
        ('seed', 1, 'seed='),
        ('policy.source', 'hf:other', r'policy\.source=random:tiny, got hf:other'),
        ('policy.lora.alpha', 99.0, r'policy\.lora='),
    ):
        with pytest.raises(ValueError, match=message):
            policies.check_trained(tmp_path, get_settings(**{key: value}))
