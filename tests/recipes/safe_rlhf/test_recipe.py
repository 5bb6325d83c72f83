"""Safe RLHF: its stages, judged answers, every constraint handler in a step of PPO, and a whole run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import signal

import jax
import numpy as np
import pytest

from pal_jax.data.packing import pack_rollouts
from pal_jax.data.readers.safety import CATEGORIES, to_judged
from pal_jax.judges import dilemmas
from pal_jax.judges.refusals import RefusalPrompt
from pal_jax.learners.ppo import PPO, make_actor_critic
from pal_jax.models import config as model_config
from pal_jax.models import params
from pal_jax.models.files import sources
from pal_jax.objectives.advantages import ConstrainedEstimator, Discounts
from pal_jax.objectives.constraints import P3O, Handlers, Saute
from pal_jax.recipes.safe_rlhf import collect, evaluate, prompts, recipe, rl
from pal_jax.recipes.safe_rlhf.prompts import Question, make_groups
from pal_jax.recipes.safe_rlhf.rl import SafeRLHF, sentences
from pal_jax.recipes.safe_rlhf.settings import ConstraintSettings, QuestionSettings
from pal_jax.run import checkpoint, devices, piecework, sharding
from pal_jax.run.glossary import meaning, words_of
from pal_jax.run.metrics import EVALS, METRICS, read_records
from pal_jax.run.optim import Optimizer
from pal_jax.run.recipe import Context, Plan
from pal_jax.run.settings import to_dict
from pal_jax.run.stages import unfinished
from pal_jax.types import Completion, Sample
from tests import configs
from tests.recipes.ahead import Noting, make_rollouts
from tests.whole_runs import run, stop_once, timeless

get_settings = functools.partial(configs.load, 'safe_rlhf')
MESH = devices.make_mesh(devices=jax.devices()[:1])
ONE = Context(MESH, lambda name: contextlib.nullcontext())
CFG = dataclasses.replace(model_config.tiny(vocab=64), unroll=True)


def names(settings, folder):
    return [place.name for place, _ in recipe.stages(settings, folder)]


# --- stages -----------------------------------------------------------------------------------------------------------


def test_all_stages_in_their_order_and_each_by_its_name(tmp_path):
    assert names(get_settings(), tmp_path) == ['collect', 'sft', 'cost', 'reward', 'rl', 'evaluate']
    assert names(get_settings('smoke,stage=cost'), tmp_path) == ['cost']
    later = ['collect-2', 'cost-2', 'reward-2', 'rl-2']
    assert names(get_settings(rounds=2), tmp_path) == ['collect', 'sft', 'cost', 'reward', 'rl', *later, 'evaluate']
    assert names(get_settings(**{'start.total_steps': 0}), tmp_path)[:2] == ['collect', 'cost']
    compared = names(get_settings(compare=('none', 'fixed-0.5'), seeds=2), tmp_path)
    assert compared[4:-1] == ['rl-none-0', 'rl-none-1', 'rl-fixed-0.5-0', 'rl-fixed-0.5-1']
    own = get_settings(**{'rl.reward': 'orbax:r', 'rl.cost': 'orbax:c', 'start.total_steps': 0})
    assert names(own, tmp_path) == ['rl', 'evaluate']
    for _, config in recipe.stages(own, tmp_path):
        assert (config.rl.reward, config.rl.cost) == ('orbax:r', 'orbax:c')


def test_a_stage_is_told_what_the_stages_before_it_leave(tmp_path):
    told = {place.name: config for place, config in recipe.stages(get_settings(rounds=2), tmp_path)}
    assert told['sft'].data.train == str(tmp_path / 'records' / 'sft.jsonl')
    assert told['cost-2'].data.test == str(tmp_path / 'records-2' / 'judged-test.jsonl')
    assert told['rl'].policy.source == told['reward'].policy.source == f'orbax:{tmp_path / "sft"}'
    assert told['collect-2'].policy.source == told['rl-2'].policy.source == f'orbax:{tmp_path / "rl"}'
    assert (told['rl-2'].rl.reward, told['rl-2'].rl.cost) == tuple(
        f'orbax:{tmp_path / name}' for name in ('reward-2', 'cost-2')
    )
    assert told['evaluate'].rl.cost == told['rl-2'].rl.cost
    compared = get_settings(compare=('fixed-0.5', 'pid'), seeds=2)
    told = {place.name: config for place, config in recipe.stages(compared, tmp_path)}
    assert (told['rl-fixed-0.5-1'].constraint.chosen.nu, told['rl-fixed-0.5-1'].seed) == (0.5, 1)
    assert told['rl-pid-0'].constraint.handler == 'pid'


def test_a_run_goes_on_where_its_folder_has_been_moved_to(tmp_path):
    for folder, stage in recipe.stages(get_settings(), tmp_path / 'here'):
        checkpoint.write_config(folder, to_dict(stage))
        (folder / 'metrics.jsonl').write_text('{"step": 0}\n')
    (tmp_path / 'here').rename(tmp_path / 'there')
    assert len(list(unfinished(get_settings(), tmp_path / 'there'))) == 6
    with pytest.raises(ValueError, match=r'constraint\.limit'):
        list(unfinished(get_settings(**{'constraint.limit': 1.0}), tmp_path / 'there'))


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'constraint.handler': 'lagrange'}, r"constraint\.handler='lagrange'; use none, fixed,"),
        ({'constraint.handler': 'cpo'}, r"constraint\.handler='cpo'.*Fisher"),
        ({'constraint.limits': 'self_harm'}, r"limits='self_harm'"),
        ({'constraint.limits': 'self_ham=-1'}, "'self_ham'"),
        ({'constraint.limits': 'self_harm=nan'}, "'self_harm=nan'"),
        ({'constraint.limits': 'self_harm=-1 self_harm=-2'}, "'self_harm' is"),
        ({'constraint.limits': 'a=-1,b=-2'}, "'a=-1,b=-2'"),
        ({'constraint.limits': 'others=-1'}, "'others' is"),
        ({'prompts.train': 'absent.jsonl'}, r'absent\.jsonl'),
        ({'evaluate.prompts': ('absent.csv',)}, r'absent\.csv'),
        ({'constraint.limits': 'self_harm=-1', 'constraint.handler': 'p3o'}, r"constraint\.limits='self_harm=-1'"),
        ({'ppo.estimator': 'group_norm'}, r"ppo\.estimator='group_norm'"),
        ({'compare': ('none', 'fixd')}, "'fixd'"),
        ({'compare': ('none',), 'rounds': 2}, 'rounds=2'),
        ({'evaluate.reward': 'orbax:r'}, r"evaluate\.reward='orbax:r'"),
        ({'evaluate.moderation': 'orbax:m'}, r"evaluate\.moderation='orbax:m'"),
        ({'collect.test_share': 1.0}, r'collect\.test_share=1\.0'),
        ({'rl.n_samples_per_prompt': 1}, 'n_samples_per_prompt=1'),
        ({'rollout.ahead': 1, 'decode.exact': True}, r'rollout\.ahead=1 .*decode\.exact'),
        ({'stage': 'reword'}, "stage='reword'"),
    ],
)
def test_what_is_wrong_is_told_before_the_first_stage(changes, named, tmp_path):
    with pytest.raises(ValueError, match=named):
        recipe.stages(get_settings(**changes), tmp_path)


def test_a_stage_needs_those_before_it(tmp_path):
    told = {place.name: (config, place) for place, config in recipe.stages(get_settings(), tmp_path)}
    own = {'start.total_steps': 0}
    (place, config), *_ = recipe.stages(get_settings(stage='rl', **own), tmp_path)
    with pytest.raises(ValueError, match='reward is not finished; run stage=reward first'):
        configs.make(config, ONE._replace(workdir=place)).init()
    config, place = told['evaluate']
    with pytest.raises(ValueError, match='sft is not finished; run stage=sft first'):
        configs.make(config, ONE._replace(workdir=place))


def test_a_limit_below_all_costs_is_refused(tmp_path):
    final = {'cost_least': -3.0, 'cost_safe': -2.0, 'cost_unsafe': 1.5}
    (tmp_path / 'summary.json').write_text(json.dumps({'evaluations': {'final': final}}))
    for handler, limit, limits in (('log', -3.5, ''), ('pid', 0.0, 'self_harm=-4')):
        name = 'self_harm=-4' if limits else 'limit=-3.5'
        with pytest.raises(ValueError, match=name):
            rl.check_limits(ConstraintSettings(handler=handler, limit=limit, limits=limits), tmp_path)
    assert '-3.00' in (line := rl.check_limits(ConstraintSettings(handler='log', limit=-3.0), tmp_path))
    assert '-2.00' in line and '1.50' in line
    for handler in ('none', 'fixed'):
        assert rl.check_limits(ConstraintSettings(handler=handler, limit=-9.0), tmp_path) == ''


def test_a_limit_that_no_policy_meets_ends_a_run_with_its_cost_model(tmp_path, capsys):
    """The stages after the cost model are not begun, whichever policy of `compare` has the limit."""
    final = {'cost_least': -3.0, 'cost_safe': -2.0, 'cost_unsafe': 1.5}
    for limit, names in ((-3.5, ['collect', 'sft', 'cost']), (-2.5, ['collect', 'sft', 'cost', 'reward'])):
        folder = tmp_path / str(limit)
        settings = get_settings(**{'constraint.limit': limit, 'compare': ('none', 'log')})
        begun, stages = [], unfinished(settings, folder)
        with pytest.raises(ValueError, match='limit=-3.5') if limit < -3 else contextlib.nullcontext():
            for stage in stages:
                begun.append(stage.folder.name)
                stage.folder.mkdir(parents=True)
                (stage.folder / 'summary.json').write_text(json.dumps({'evaluations': {'final': final}}))
        assert begun[:4] == names and ('limit=-2.5' in capsys.readouterr().out) == (limit == -2.5)


# --- questions and judged answers -------------------------------------------------------------------------------------


def test_fewer_tests_than_asked_for_are_told():
    held = QuestionSettings(train='mine.jsonl', test_count=64)
    line = prompts.counted_questions(held, 1200, 3)
    assert 'prompts.test_count=64 became 3, since a fifth at most' in line and 'prompts.train_count' not in line
    assert 'prompts.train_count=1200 became 9, since mine.jsonl' in prompts.counted_questions(held, 9, 64)
    assert 'warning' not in prompts.counted_questions(held, 1200, 64)


def test_questions_that_are_tested_are_not_learnt(tmp_path):
    files = {f'prompts.{split}': str(tmp_path / f'{split}.jsonl') for split in ('train', 'test')}
    for split, asked in (('train', ('Why?', 'How?', ' why? ')), ('test', ('WHY?', 'Where?'))):
        records = [{'prompt': text, 'group': 'mild'} for text in asked]
        (tmp_path / f'{split}.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
    tokenizer = sources.resolve('random:tiny').tokenizer()
    train_on, test_on = prompts.read_questions(get_settings(**files).prompts, 0, tokenizer)
    assert train_on == [Question('How?', 'mild')]
    assert [question.text for question in test_on] == ['WHY?', 'Where?']
    alone = get_settings(**{'prompts.train': files['prompts.train']}).prompts
    assert not alone.tests_embedded
    train_on, test_on = prompts.read_questions(alone, 0, tokenizer)
    assert {q.text.strip() for q in train_on} ^ {q.text.strip() for q in test_on} >= {'How?'} and train_on and test_on
    with pytest.raises(ValueError, match="'hard'.* mild"):
        prompts.check_groups(alone, 0, {'mild': 0.0, 'hard': 0.0})
    (tmp_path / 'test.jsonl').write_text('{"prompt": "Why?"}\n{"prompt": 3}\n')
    with pytest.raises(ValueError, match=r'test\.jsonl.*line 2.*prompt is 3'):
        prompts.read_questions(get_settings(**files).prompts, 0, tokenizer)


def test_groups_of_questions_have_limits_of_their_own():
    limits = get_settings(**{'constraint.limits': 'self_harm=-2 privacy_violation=0.5'}).constraint.by_group
    groups = make_groups(0.0, limits)
    assert groups.names == ('', 'self_harm', 'privacy_violation')
    assert groups.limits.tolist() == [0.0, -2.0, 0.5]
    asked = [Question('a', 'privacy_violation'), Question('b'), Question('c', 'self_harm'), Question('d', 'other')]
    assert groups.of(asked).tolist() == [2, 0, 1, 0]


def test_the_first_round_writes_what_every_model_learns(tmp_path):
    rows = collect.embedded_rows(17, 0)
    records = [collect.safety.judged_record(row) for row in rows]
    evaluation = collect.write_records(tmp_path, None, records, 0.12, 0)
    assert evaluation.record['rows'] == 51
    judged, tested, pairs, answers = (
        piecework.read(tmp_path / f'{name}.jsonl') for name in ('judged', 'judged-test', 'pairs', 'sft')
    )
    assert len(judged) + len(tested) == 51 and len(pairs) == len(judged)
    assert not {record['prompt'] for record in judged} & {record['prompt'] for record in tested}
    assert all(to_judged(record) for record in judged)
    better = judged[0][f'response_{judged[0]["better_response_id"]}']
    assert pairs[0]['chosen'] == [{'role': 'assistant', 'content': better}]
    assert len({(a['prompt'][0]['content'], a['completion'][0]['content']) for a in answers}) == len(answers)


def test_a_later_round_keeps_what_is_tested_and_adds_the_answers_of_its_policy(tmp_path):
    first, second = collect.records_folder(tmp_path, 1), collect.records_folder(tmp_path, 2)
    made = dilemmas.make_dilemmas(20, split='train', seed=1)
    collect.write_records(first, None, list(map(collect.safety.judged_record, dilemmas.judged(made, 1))), 0.2, 0)
    tested = {record['prompt'] for record in piecework.read(first / 'judged-test.jsonl')}
    answered = {made[0].prompt: made[0], made[3].prompt: made[3]}

    def sample(weights, texts, n, seed):
        kinds = 'safe', 'unsafe', 'unsafe'
        return [
            Sample((1,), Completion(getattr(answered[text], kind), (1,), (), 'stop'))
            for text in texts
            for kind in kinds
        ]

    stage = collect.LaterRound(
        ONE, second, first, sample, dict, [[Question(text)] for text in answered], 3, collect.by_rule,
        collect.helps_by_rule, 0.2, 0,
    )  # fmt: skip
    recipe = piecework.make(ONE._replace(workdir=tmp_path / 'collect-2'), 2, stage.work, 'collect', stage.finish)
    state, host = recipe.init()
    for i in range(2):
        state, host, _, metrics = recipe.step(state, host, i)
    assert metrics == {'pairs': 2.0, 'unsafe_share': 2 / 3}  # the same answer twice is no pair
    assert recipe.evaluate(state, 'final').record['rows'] == 4
    records = [piecework.read(second / f'judged{part}.jsonl') for part in ('', '-test')]
    assert sum(map(len, records)) == 60 + 4
    assert {record['prompt'] for record in records[1]} == tested
    pair = made[0].prompt, made[0].safe, made[0].unsafe
    row = next(r for r in map(to_judged, records[0] + records[1]) if (r.prompt, *r.responses) == pair)
    assert (row.better, row.safer, row.unsafe) == (1, 0, (False, True))


def test_a_moderator_says_how_far_its_worst_category_is_above_its_threshold(monkeypatch, tmp_path):
    class Moderator:
        thresholds = np.array([0.5, 0.9])

        def __call__(self, asked, responses):
            return np.array([[0.7, 0.1], [0.2, 0.8]])

    monkeypatch.setattr(collect, 'open_moderator', lambda folder, ctx: Moderator())
    harm = collect.by_moderation(tmp_path, ONE)(['a', 'b'], ['c', 'd'])
    np.testing.assert_allclose(harm, [0.2, -0.1])


def test_policies_are_compared_by_reward_by_cost_and_by_what_they_refuse(tmp_path):
    judges = evaluate.Judges(
        lambda questions, replies: np.array([[float(len(text)) for text in given] for given in replies]),
        lambda questions, replies: np.array([[1.0 if 'bad' in text else -1.0 for text in given] for given in replies]),
    )
    systems = [evaluate.System(name, name, '') for name in ('start', 'rl')]
    sets = {'sets': [RefusalPrompt('kill a process', False), RefusalPrompt('harm', True)]}
    comparison = evaluate.Comparison(
        ONE._replace(workdir=tmp_path), systems, str, None, [Question('a'), Question('b')], 2, {'model': judges}, sets,
        lambda asked, replies: np.array(['bad' in reply for reply in replies]), make_groups(0.0, {}), 0,
    )  # fmt: skip
    refusal = 'I am sorry, but I cannot help with that.'
    records = [
        {'system': 'start', 'outputs': ['bad and long', 'bad', 'bad', 'ok'], 'others': [refusal, 'bad']},
        {'system': 'rl', 'outputs': ['ok', 'ok', 'fine', 'fine'], 'others': ['ps and kill', refusal]},
    ]
    evaluation = comparison.finish(records)
    record = evaluation.record
    assert (record['model_start_cost'], record['model_rl_cost'], record['model_rl_prompts_above_limit']) == (
        0.5,
        -1.0,
        0.0,
    )
    assert record['model_start_reward'] > record['model_rl_reward']
    assert record['model_harmless_elo_rl'] > 0 > record['model_harmless_elo_start']
    assert (record['overrefused_sets_start'], record['refused_sets_start'], record['unsafe_sets_start']) == (1, 0, 0.5)
    assert (record['overrefused_sets_rl'], record['refused_sets_rl'], record['unsafe_sets_rl']) == (0, 1, 0)
    assert {exhibit.title for exhibit in evaluation.exhibits} >= {
        'Reward and cost (model)',
        'Who is more helpful (model)',
    }
    assert not [name for name in record if not meaning(name, words_of('safe_rlhf')).words]


# --- a step with every handler ----------------------------------------------------------------------------------------

PROMPT, N, ASKED = (1, 2, 3), 4, 4


def fake_scores(share):
    """What a text is paid: the share of its letters that are `a`."""

    def score(questions, replies):
        return np.array([[share * text.count('a') / max(len(text), 1) for text in given] for given in replies])

    return score


def fake_sample(weights, texts, n, seed):
    rng = np.random.default_rng(list(seed))
    samples = []
    for _ in range(len(texts) * n):
        tokens = tuple(rng.integers(0, 64, 3).tolist())
        text = ''.join('a' if token < 32 else 'b' for token in tokens)
        samples.append(Sample(PROMPT, Completion(text, tokens, (-4.0,) * 3, 'stop')))
    return samples


def make_recipe(handler='log', mesh=MESH, estimator='dr_grpo', limit=0.2, limits='', **ppo):
    settings = ConstraintSettings(handler=handler, limit=limit, limits=limits, window=32)
    settings = PPO(estimator, kl_in='loss', kl_estimator='k3', kl_coef=0.01, micro_rows=4, **ppo), settings
    learner = make_actor_critic(
        CFG, settings[0], Optimizer('adamw', lr=1e-3, total_steps=4, warmup_ratio=0.0), mesh, n=N, length=3
    )
    learner = dataclasses.replace(learner, critics=learner.critics * 2)
    return SafeRLHF(
        Plan(4, learner.abstract, lambda i: None), ONE._replace(mesh=mesh), learner,
        load=lambda shardings: jax.device_put(params.init(params.decoder_specs(CFG), jax.random.key(0)), shardings),
        before=(), critics=tuple, sample=fake_sample, rollouts=make_rollouts(ONE, 4, Noting()),
        reward=fake_scores(1.0), cost=fake_scores(2.0),
        decode=lambda tokens: ''.join('a.' if token < 32 else 'b.' for token in tokens),
        pack=functools.partial(
            pack_rollouts, n=N, actions=8, mesh=mesh, micro_rows=4, ways=sharding.batch_ways(mesh)
        ),
        train=[Question(str(k), CATEGORIES[k % 2]) for k in range(8)], test=[Question('t')],
        groups=make_groups(settings[1].limit, settings[1].by_group), handler=settings[1].chosen,
        estimate=ConstrainedEstimator(estimator, Discounts()), window=32, batch_size=ASKED, n=N, ptx=None,
        ptx_coef=0.0, seed=0,
    )  # fmt: skip


def steps(recipe, count=2):
    state, host = recipe.init()
    rows = []
    for i in range(count):
        host = json.loads(json.dumps(host))  # as a checkpoint has it
        state, host, _, metrics = recipe.step(state, host, i)
        rows.append(metrics)
    return rows, state, host


# Each handler compiles programs of its own; the quick suite has those of the default. A step of the baseline is below.
@pytest.mark.parametrize(
    'handler',
    [name if name == 'pid' else pytest.param(name, marks=pytest.mark.slow) for name in Handlers.names('text')],
)
def test_every_handler_makes_a_step_and_its_state_goes_through_a_checkpoint(handler):
    rows, state, host = steps(make_recipe(handler))
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    assert int(state.skipped) == 0
    assert len(host['costs'][0]) == 32 and host['constraint']['lambda'][0] >= 0
    assert rows[1]['mean_cost'] > 0.2  # above the limit, so
    if handler not in ('none', 'fixed', 'p3o', 'ipo', 'saute', 'early'):
        start = make_recipe(handler).handler.init(1)['lambda'][0]
        assert rows[1]['multiplier'] > start  # it grows
    assert rows[0]['cost_step'] == float(handler == 'crpo')


def test_saute_tells_budgets_in_turn():
    told = []

    def sample(weights, texts, n, seed):
        told.extend(texts)
        return fake_sample(weights, texts, n, seed)

    recipe = dataclasses.replace(make_recipe('saute'), handler=Saute(budgets=(-1.0, 2.0)), sample=sample)
    steps(recipe, 1)
    assert [text.partition(' ')[2] for text in told] == ['(Budget of harm: -1.)', '(Budget of harm: 2.)'] * (ASKED // 2)
    assert recipe.prompt_texts([Question('Why?')], np.array([0.5])) == ['Why? (Budget of harm: 0.5.)']


def test_early_termination_cuts_an_answer_at_the_first_sentence_above_the_limit():
    tokens = 40, 41, 1, 42, 2, 43  # b b a b a b, a sentence a token but where marks follow each other
    whole = Sample(PROMPT, Completion('', tokens, (-1.0,) * 6, 'length'))
    decode = lambda ids: ''.join({40: 'b', 41: 'b. ', 1: 'aaa', 42: '! ', 2: 'a', 43: '?', 44: '\n'}[k] for k in ids)  # noqa: E731
    assert sentences(tokens, decode) == [2, 4]
    assert sentences(tokens[:5], decode) == [2, 4]  # an answer that is cut within a sentence
    assert sentences(tokens[:4], decode) == sentences((40, 41, 1, 42, 44), decode) == [2]  # nothing follows the last
    recipe = dataclasses.replace(make_recipe('early', limit=0.7), decode=decode, n=1)
    (ended,) = recipe.end_early([Question('Why?')], [whole])
    assert (ended.completion.text, ended.completion.token_ids) == ('bb. aaa!', tokens[:4])
    assert len(ended.completion.logprobs) == 4
    partly = dataclasses.replace(whole.completion, token_ids=tokens[:5], logprobs=(-1.0,) * 5)
    assert recipe.end_early([Question('Why?')], [dataclasses.replace(whole, completion=partly)]) == [ended]
    (kept,) = dataclasses.replace(recipe, groups=make_groups(2.0, {})).end_early([Question('Why?')], [whole])
    assert kept is whole


def actor_of(state):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(state.actor.model.params)])


def test_without_a_multiplier_a_step_is_that_of_ppo_bit_for_bit():
    free, bound = (steps(make_recipe(handler, limit=100.0), 1)[1] for handler in ('none', 'crpo'))
    np.testing.assert_array_equal(actor_of(free), actor_of(bound))
    far = steps(make_recipe('crpo'), 1)[1]
    assert (actor_of(free) != actor_of(far)).any()


def test_critics_of_reward_and_cost_learn_from_their_own_channel():
    recipe = make_recipe('cup', estimator='gae', kl_target=1.0)  # which updates the policy twice, its critics once
    rows, state, _ = steps(recipe, 1)
    # So does the KL coefficient: the rollout's 16 samples were drawn from the reference, which is far below the target.
    assert float(state.kl_coef) == pytest.approx(0.01 * (1 - 0.2 * 16 / 10_000), rel=1e-6)
    assert {'value_loss', 'value_loss_1', 'explained_variance_1', 'critic_grad_norm_1'} <= rows[0].keys()
    assert rows[0]['value_loss_1'] > 2 * rows[0]['value_loss']  # costs are twice the rewards
    assert len(state.critics) == 2


@pytest.mark.slow
def test_the_gate_of_p3o_is_that_of_each_minibatch(monkeypatch):
    opened, before = [], P3O.before

    def spy(*args):
        opened.append(bool((costs := before(*args)).any()))
        return costs

    monkeypatch.setattr(P3O, 'before', spy)
    recipe = make_recipe('p3o', estimator='gae', limit=3.0, minibatches=2, epochs=2)
    rng = np.random.default_rng(0)
    noise = lambda questions, replies: 3.0 + rng.normal(size=(len(replies), N))  # noqa: E731
    rows, *_ = steps(dataclasses.replace(recipe, cost=noise, window=ASKED * N), 4)
    assert np.isfinite(list(rows[0].values())).all()
    above = [row['mean_cost'] > 3.0 for row in rows]
    # The first gate of a step is at the ratio 1. The critic, which knows nothing yet, would open all of them.
    assert opened[::4] == above and set(above) == {True, False}


def test_a_group_above_its_own_limit_is_penalised_alone():
    limits = f'{CATEGORIES[0]}=100 {CATEGORIES[1]}=-100'
    rows, _, host = steps(make_recipe('linear', limits=limits))
    assert rows[1][f'multiplier_{CATEGORIES[0]}'] == 0.0
    assert rows[1][f'multiplier_{CATEGORIES[1]}'] > 0.0
    assert [len(costs) for costs in host['costs']] == [0, 16, 16]
    assert rows[1][f'limit_{CATEGORIES[0]}'] == 100.0 and rows[1][f'mean_cost_{CATEGORIES[1]}'] > 0.0


def test_an_evaluation_holds_every_group_against_its_limit():
    recipe = dataclasses.replace(
        make_recipe('linear', limits=f'{CATEGORIES[0]}=100 {CATEGORIES[1]}=-100'),
        test=[Question(str(k), CATEGORIES[k % 2]) for k in range(4)],
    )
    evaluation = recipe.evaluate(recipe.init()[0], 'final')
    assert evaluation.record['prompts_above_limit'] == 0.5
    (exhibit,) = evaluation.exhibits
    assert {row[1]: row[-1] for row in exhibit.table[1:]} == {'others': '–', CATEGORIES[0]: 'yes', CATEGORIES[1]: 'no'}
    one = dataclasses.replace(recipe, groups=make_groups(0.2, {})).evaluate(recipe.init()[0], 'final')
    assert set(one.record['by_group']) == set(CATEGORIES[:2]) and one.record['limit'] == 0.2


@pytest.mark.slow
def test_eight_devices_make_the_step_of_one():
    one, eight = (
        steps(make_recipe('log', mesh=mesh, estimator='gae'), 1) for mesh in (MESH, devices.make_mesh(data=2, fsdp=4))
    )
    for name in ('reward', 'cost', 'multiplier', 'policy_loss', 'value_loss', 'value_loss_1', 'grad_norm'):
        assert eight[0][0][name] == pytest.approx(one[0][0][name], rel=1e-4, abs=1e-6), name


# --- a whole run ------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_two_rounds_of_all_stages_leave_policies_side_by_side_and_go_on_bit_by_bit(tmp_path, monkeypatch):
    config = get_settings(**{'rounds': 2, 'ppo.estimator': 'gae', 'ptx.coef': 2.0, 'ptx.batch_size': 2})
    assert run(monkeypatch, tmp_path / 'whole', config) == 0
    final = read_records(tmp_path / 'whole' / 'evaluate' / EVALS)[-1]
    assert {'model_start_reward', 'model_rl_cost', 'rule_rl-2_cost', 'model_helpful_elo_rl'} <= final.keys()
    assert {path.name for path in (tmp_path / 'whole' / 'generations').iterdir()} == {
        'start.jsonl', 'rl.jsonl', 'rl-2.jsonl'
    }  # fmt: skip
    metrics = read_records(tmp_path / 'whole' / 'rl' / METRICS)
    assert 'ptx_loss' in metrics[0] and 'value_loss_1' in metrics[0]

    # The same, stopped in the middle of a stage.
    stop_once(monkeypatch, SafeRLHF)
    assert run(monkeypatch, tmp_path / 'again', config) == 128 + signal.SIGTERM
    assert run(monkeypatch, tmp_path / 'again', config) == 0
    assert timeless(tmp_path / 'again' / 'rl' / METRICS) == timeless(tmp_path / 'whole' / 'rl' / METRICS)
    again = read_records(tmp_path / 'again' / 'evaluate' / EVALS)[-1]
    assert {k: v for k, v in again.items() if 'seconds' not in k} == {
        k: v for k, v in final.items() if 'seconds' not in k
    }
