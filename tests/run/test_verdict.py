"""Whether a run has learnt, by figures whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import signal, stats

from pal_jax.run import verdict
from pal_jax.run.glossary import words_of
from pal_jax.run.verdict import TRIAL, estimate, verdict_line


def judge(rows, evals, recipe='sft', name=''):
    return verdict.judge(rows, evals, words_of(recipe), name)


def steps(values, key='reward', phase='rlpa', first=0):
    return [{'step': first + i, 'phase': phase, key: value} for i, value in enumerate(values)]


def evaluation(step, stage, **figures):
    return {'step': step, 'stage': stage, 'people': 64, **figures}


WARMED = [*steps([0.0] * 4, 'loss', 'warm-up'), *steps([0.7] * 4, first=4)]


@pytest.mark.parametrize(
    ('final', 'error', 'answer'),
    [
        (1.0, 0.03, 'Yes'),
        (0.7, 0.03, 'Not beyond noise'),
        (0.3, 0.03, 'No, it became worse'),
        (1.0, None, 'Too little to tell'),
    ],
)
def test_the_main_part_is_held_against_the_evaluation_before_it(final, error, answer):
    evals = [evaluation(0, 'base', reward=0.0, reward_se=0.0), evaluation(4, 'warm-up', reward=0.65, reward_se=0.04)]
    found = judge(WARMED, [*evals, evaluation(8, 'final', reward=final, reward_se=error)])
    assert found and found.answer == answer
    assert '0.650' in found.sentence and f'{final:.3f}' in found.sentence and '64 people' in found.basis
    if answer == 'Yes':
        assert '+0.350 (95 % interval 0.250 to 0.450)' in found.sentence  # 1.998 x the root of .03^2 + .04^2 = .05


@pytest.mark.parametrize(('people', 'answer'), [(1, 'Too little to tell'), (3, 'Not beyond noise'), (12, 'Yes')])
def test_few_people_decide_little(people, answer):
    evals = [evaluation(4, 'warm-up', reward=0.1, reward_se=0.1), evaluation(8, 'final', reward=0.6, reward_se=0.1)]
    found = judge(WARMED, [record | {'people': people} for record in evals])
    assert found and found.answer == answer


@pytest.mark.parametrize('key', ['accuracy', 'auc', 'sign_accuracy'])
def test_a_share_of_one_is_no_proof(key):
    """All of a few rows right, with an error of 0, though guessing the commoner sign is nearly as good."""
    figures = {key: 1.0, f'{key}_se': 0.0, 'sign_accuracy_of_commoner': 23 / 24, 'rows': 12}
    floor = 23 / 24 if key == 'sign_accuracy' else 0.5
    found = judge([], [{'step': 5, 'stage': 'final', **figures}], 'scorer.cost')
    assert found and found.answer == ('Not beyond noise' if floor > 0.9 else 'Yes')
    assert '0.735 to 1.000' in found.sentence  # .025 ** (1 / 12)
    found = judge([], [{'step': 5, 'stage': 'final', **figures, 'rows': 4}], 'scorer.cost')
    assert found and found.answer == 'Not beyond noise'


@pytest.mark.parametrize(
    ('before', 'after', 'answer'),
    [
        (0.4, 0.9, 'Yes'),
        (0.4, 0.55, 'Not beyond noise'),
        (0.85, 0.9, 'Not beyond noise'),
        (0.4, 0.2, 'No, it became worse'),
    ],
)
def test_a_share_of_choices_must_beat_chance_and_what_it_was(before, after, answer):
    evals = [evaluation(0, 'base', accuracy=before, accuracy_se=0.04), evaluation(4, 'final', accuracy=after)]
    evals[1]['accuracy_se'] = 0.04
    found = judge(steps([0.5] * 4, 'accuracy'), evals)
    assert found and found.answer == answer


def test_a_share_without_an_error_has_that_of_its_pairs():
    half, shares = stats.binomtest(50, 100).proportion_ci(), ('accuracy',)
    found = estimate({'rows': 100, 'accuracy': 0.5}, 'accuracy', shares)
    assert found.interval == pytest.approx([half.low, half.high])
    all_right = estimate({'rows': 100, 'accuracy': 1.0, 'accuracy_se': 0.0}, 'accuracy', shares)
    assert all_right.interval == pytest.approx([0.025**0.01, 1.0])


def test_steps_alone_are_told_without_a_word_on_chance():
    """Steps resemble those before them: as independent ones they would call noise learning, see the test below."""
    falling = steps([2.0 - 0.05 * i for i in range(20)], 'loss', 'sft')
    found = judge(falling, [])
    assert found and found.answer == 'Not tested' and '1.925 to 1.125: -0.800' in found.sentence
    found = judge(falling, [evaluation(0, 'base', loss=2.1), evaluation(20, 'final', loss=2.2)])
    assert found and found.answer == 'Not tested' and 'rose from 2.100 to 2.200' in found.sentence


def test_noise_like_that_of_steps_would_look_like_learning():
    rng = np.random.default_rng(0)
    noise = signal.lfilter([1.0], [1.0, -0.9], rng.normal(size=(400, 240)), axis=1)[:, -40:]
    ends = stats.ttest_ind(noise[:, -8:], noise[:, :8], axis=1).pvalue  # as if steps were independent
    assert np.mean(ends < 0.05) > 0.5
    assert {judge(steps(row.tolist(), 'loss', 'sft'), []).answer for row in noise[:40]} == {'Not tested'}


@pytest.mark.parametrize(
    ('final', 'learner', 'answer'),
    [(0.125, None, 'Yes'), (0.125, 'attacker', 'No, it became worse'), (0.97, 'attacker', 'Yes'),
     (0.9, 'attacker', 'Not beyond noise'),
     (0.6, None, 'Not beyond noise'), (0.0, None, 'Yes')],
)  # fmt: skip
def test_attacks_that_succeed_less_often_are_a_better_defender(final, learner, answer):
    rows = steps([0.5] * 12, 'attack_success', 'redteam')
    who = {'learner': learner} if learner else {}
    evals = [
        {'step': 0, 'stage': 'base', 'seeds': 32, 'attack_success': 0.6875, 'overrefusal': 0.03},
        {'step': 12, 'stage': 'final', 'seeds': 32, 'attack_success': final, 'overrefusal': 0.09, **who},
    ]
    found = judge(rows, evals, 'redteam')
    assert found and found.answer == answer
    assert f'{final:.3f}' in found.sentence and '0.090' in found.sentence and '32 seeds' in found.basis


def test_methods_that_compare_in_one_evaluation():
    steps_of_pal = steps([0.5] * 4, 'accuracy', 'pal')
    gained = evaluation(4, 'final', seen_gain=0.04, seen_gain_se=0.03)
    found = judge(steps_of_pal, [gained], 'personal.pal')
    assert found and (found.question, found.answer) == ('Do people differ?', 'Not shown')
    found = judge(steps_of_pal, [gained | {'seen_gain': -0.09}], 'personal.pal')
    assert found and found.answer == 'No' and found.sentence.startswith('these data do not show that people differ')
    won = evaluation(4, 'final', winrate_psoups=0.63, winrate_psoups_se=0.015)
    found = judge([{'step': 0, 'phase': 'evaluate', 'answers': 3.0}], [won], 'psoups')
    assert found and found.answer == 'Yes'


def test_rows_of_one_prompt_are_not_independent():
    alone, shared = (
        judge([], [evaluation(4, 'final', accuracy=1.0, people=None, rows=20, **more)], 'dpo')
        for more in ({}, {'prompts': 7})
    )
    assert (
        f'{0.025 ** (1 / 20):.3f} to 1.000' in alone.sentence and f'{0.025 ** (1 / 7):.3f} to 1.000' in shared.sentence
    )


@pytest.mark.parametrize(('p', 'interval', 'answer', 'not_better'), [
    (0.001, [0.02, 0.2], 'Yes', False), (0.05, [-0.02, 0.2], 'Yes', True), (0.04, [-0.2, -0.1], 'Yes', True),
    (0.051, [-0.02, 0.2], 'Not shown', False), (0.3, [-0.2, -0.1], 'Not shown', False),
    (0.3, [0.02, 0.1], 'Not shown', False),
])  # fmt: skip
def test_whether_people_differ_is_answered_by_a_test_and_not_by_a_prediction(p, interval, answer, not_better):
    figures = {'seen_gain': sum(interval) / 2, 'seen_gain_interval': interval, 'people': 30, 'differ_p': p}
    verdict = judge([], [evaluation(4, 'final', **figures)], 'personal.pal')
    assert verdict and verdict.answer == answer and f'p = {p:.3f}' in verdict.sentence
    is_worse = p <= 0.05 and interval[1] < 0
    assert ('not shown to predict' in verdict.details[0]) == (not_better and not is_worse)
    assert ('shown to predict single people worse' in verdict.details[0]) == is_worse
    assert ('all the same' in verdict.details[0]) == (p > 0.05 and interval[0] > 0)
    assert f'{interval[0]:.3f} to {interval[1]:.3f}' in verdict.details[0]
    assert 'groups' not in verdict.sentence
    grouped = evaluation(4, 'final', **figures, groups_differ_p=0.007)
    assert (
        'The groups choose differently (permutation test, p = 0.007).' in judge([], [grouped], 'personal.pal').sentence
    )


@pytest.mark.parametrize(('gain', 'lead', 'answer'), [
    (0.1, (-0.05, -0.01), 'Yes'), (0.1, (-0.05, 0.01), 'Yes'),
    (0.1, (0.01, 0.05), 'Yes, but another method is ahead of PAL'), (0.0, (0.01, 0.05), 'Not shown'),
])  # fmt: skip
def test_baselines_that_do_as_well_are_part_of_the_verdict(gain, lead, answer):
    figures = {'seen_gain': gain, 'seen_gain_interval': [gain, gain], 'people': 30}
    figures |= {'seen_lead_mixed_logit': sum(lead) / 2, 'seen_lead_mixed_logit_interval': list(lead)}
    figures |= {'seen_pal': 0.75, 'seen_mixed_logit': 0.75 + sum(lead) / 2}
    found = judge([], [evaluation(4, 'final', **figures)], 'personal.pal')
    assert found and found.answer == answer
    assert ('mixed logit' in found.sentence) == (lead[1] > 0) and '30 people' in found.basis


def test_two_models_that_are_the_same_have_no_interval():
    figures = {'seen_gain': 0.0, 'seen_gain_interval': [0.0, 0.0], 'seen_pal': 0.7, 'seen_shared': 0.7, 'differ_p': 0.5}
    verdict = judge([], [evaluation(4, 'final', **figures)], 'personal.pal')
    assert verdict.answer == 'Not shown' and verdict.details[-1].endswith(
        '+0.000, as validation chose one model for all in each split.'
    )


def test_methods_that_do_as_well_stand_with_their_difference():
    figures = {'seen_gain': 0.0, 'seen_gain_interval': [-0.1, 0.1], 'people': 30, 'seen_pal': 0.74, 'seen_own': 0.695}
    figures |= {'seen_lead_own': -0.045, 'seen_lead_own_interval': [-0.098, 0.008], 'seen_mixed_logit': 0.79}
    figures |= {'seen_lead_mixed_logit': 0.05, 'seen_lead_mixed_logit_interval': [0.01, 0.09]}
    found = judge([], [evaluation(4, 'final', **figures)], 'personal.pal')
    assert found.question == 'Do people differ?' and found.sentence.endswith(
        'Better than PAL: mixed logit (xlogit) 79.0% (+0.050 over PAL, 95 % interval +0.010 to +0.090). Not shown to '
        'be better or worse than PAL: a separate model for each person 69.5% (-0.045 over PAL, 95 % interval -0.098 '
        'to +0.008).'
    )


def test_a_scorer_is_held_against_rules_of_length():
    figures = {'accuracy': 0.8, 'accuracy_interval': [0.7, 0.9], 'rows': 100, 'accuracy_of_longer': 0.5}
    figures |= {'lead_of_longer': -0.3, 'lead_of_longer_interval': [-0.4, -0.2]}
    figures |= {'accuracy_of_shorter': 0.78, 'lead_of_shorter': -0.02, 'lead_of_shorter_interval': [-0.1, 0.1]}
    sentence = judge([], [evaluation(4, 'final', **figures)], 'scorer.reward').sentence
    near, behind = (
        sentence.index('Not shown to be better'),
        sentence.index('Worse than the model'),
    )
    assert near < sentence.index('shorter reply 78.0%') < behind < sentence.index('longer reply 50.0%')


def test_figures_of_an_own_function_that_has_changed_are_not_compared():
    rows = steps([0.5] * 4, 'reward')
    before, after = (
        evaluation(i, stage, reward=x, reward_se=0.01) for i, stage, x in ((0, 'base', 0.1), (4, 'final', 0.2))
    )
    assert judge(rows, [before, after]).answer == 'Yes'
    found = judge(rows, [before, after | {'mended': {'reward.function': 1}}])
    assert found.answer == 'Not comparable' and 'reward.function' in found.sentence.lower()
    assert not verdict.claims(rows, [before, after | {'mended': {'reward.function': 1}}], words_of('rl'))
    # A cost above its limit is told all the same.
    limited = after | {'mended': {'reward.function': 1}, 'cost': 1.0, 'cost_se': 0.1, 'limit': -1.0}
    assert judge(rows, [before, limited]).answer == 'Not comparable, above its limit'
    assert judge(rows, [after | {'mended': {'reward.function': 1}}]).answer == 'Not comparable'
    again = {'mended': {'reward.function': 2}}
    assert judge(rows, [before | again, after | again]).answer == 'Yes'


@pytest.mark.parametrize(('cost', 'answer'), [
    (-2.0, 'Yes, within its limit'), (-0.9, 'Yes, at its limit within noise'), (0.0, 'Yes, above its limit')
])  # fmt: skip
def test_a_limit_on_costs_is_part_of_the_verdict(cost, answer):
    rewards = {'reward_se': 0.1, 'cost_se': 0.2}
    evals = [evaluation(0, 'base', reward=0.0, cost=-3.0, limit=-1.0, **rewards)]
    evals.append(evaluation(4, 'final', reward=2.0, cost=cost, limit=-1.0, **rewards))
    verdict = judge(steps([0.5] * 4, 'reward'), evals)
    assert verdict and verdict.answer == answer and f'{cost:.3f}' in verdict.sentence
    groups = {
        'mild': {'cost': -2.0, 'cost_se': 0.1, 'limit': -1.0, 'prompts': 40},
        'hard': {'cost': cost, 'cost_se': 0.2, 'limit': -1, 'prompts': 40},
        'rare': {'cost': 9.0, 'cost_se': None, 'limit': -1.0, 'prompts': 1},
    }
    grouped = [{k: v for k, v in record.items() if k != 'limit'} | {'by_group': groups} for record in evals]
    verdict = judge(steps([0.5] * 4, 'reward'), grouped)
    within = 'too few prompts to tell if within its limit'  # of one group nothing is known
    answer = answer.replace('within its limit', within).replace('limit', 'limits')
    assert verdict and verdict.answer == answer
    assert ('hard' in verdict.sentence) == (cost > -1.0) and 'mild' not in verdict.sentence
    assert 'rare' in verdict.sentence


def listed(rows, evals, recipe):
    claims = verdict.claims(rows, evals, words_of(recipe))
    return [(claim.key, claim.value.value, claim.control.value, claim.better, claim.against) for claim in claims]


def test_claims_are_figures_with_the_control_that_they_have_to_beat():
    rewards = {'reward_se': 0.1, 'profile': 0.3, 'cost': 1.0, 'limit': -1.0}
    evals = [evaluation(0, 'base', reward=0.0, **rewards), evaluation(4, 'final', reward=2.0, **rewards)]
    changes = [('reward', 2.0, 0.0, 1.0, 'before training'), ('profile', 0.3, 0.3, 1.0, 'before training')]
    assert listed(steps([0.5] * 4), evals, 'rlpa') == [*changes, ('cost', 1.0, -1.0, -1.0, 'the limit')]
    figures = {'seen_gain': 0.1, 'seen_lead_mixed_logit': 0.02}
    leads = [('seen_gain', 0.1, 0.0, 1.0, 'without learning'), ('seen_lead_mixed_logit', 0.02, 0.0, -1.0, 'no lead')]
    assert listed([], [evaluation(4, 'final', **figures)], 'personal.pal') == leads


@pytest.mark.parametrize(('key', 'before', 'floor', 'better', 'recipe'), [
    ('accuracy', 0.7, 0.5, 1.0, 'scorer.reward'), ('error_to_tracking', 0.9, 1.0, -1.0, 'cameras'),
])  # fmt: skip
def test_a_level_is_held_against_the_start_where_that_is_better_than_no_learning(key, before, floor, better, recipe):
    last = evaluation(4, 'final', **{key: 0.6})
    for first, control, against in (
        (before, before, 'before training'),
        (2 * floor - before, floor, 'without learning'),
    ):
        assert listed([], [evaluation(0, 'base', **{key: first}), last], recipe) == [
            (key, 0.6, control, better, against)
        ]


def test_limits_that_no_group_tests_are_not_kept():
    """Two groups of one prompt each, both far above their limits."""
    groups = {name: {'cost': 4.0, 'cost_se': None, 'limit': -1.0, 'prompts': 1} for name in 'ab'}
    evals = [
        evaluation(step, stage, reward=2.0, reward_se=0.1, by_group=groups) for step, stage in ((0, 'base'), (4, 'end'))
    ]
    verdict = judge(steps([0.5] * 4, 'reward'), evals)
    assert verdict and verdict.answer == 'Not beyond noise, too few prompts to tell if within its limits'
    assert 'too few prompts test a and b' in verdict.sentence.lower()


@pytest.mark.parametrize('name', ['sft:smoke', 'pal:text-smoke'])
def test_a_trial_tells_nothing_of_learning(name):
    evals = [
        evaluation(step, stage, loss=loss, loss_se=0.01) for step, stage, loss in ((0, 'base', 5.0), (6, 'x', 4.0))
    ]
    assert judge(steps([5.0, 4.0], 'loss'), evals).answer == 'Yes'
    verdict = judge(steps([5.0, 4.0], 'loss'), evals, name=name)
    assert verdict.answer == TRIAL and 'fell from 5.000 to 4.000' in verdict.sentence
    # A test of the data does not need a model that has learnt.
    tested = evaluation(4, 'final', seen_gain=0.0, seen_gain_interval=[-0.1, 0.1], differ_p=0.001)
    assert judge([], [tested], 'personal.pal', name).answer == 'Yes'


def test_what_learns_nothing_has_no_verdict(tmp_path):
    assert judge([], []) is None
    assert judge([{'step': 0, 'phase': 'annotate', 'failed': 0.0}], [evaluation(1, 'final', rows=3)]) is None
    (tmp_path / 'config.json').write_text('{"recipe": "sft"}')
    assert verdict_line(tmp_path) == ''
    (tmp_path / 'metrics.jsonl').write_text('{"step": 0, "phase": "sft", "loss": 2.0}\n')
    assert verdict_line(tmp_path).startswith('Did it learn? Not tested') and verdict_line(tmp_path).endswith('.\n')
