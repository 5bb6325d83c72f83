"""The benchmarks run and say what they promise to; what they say of speed is not tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import (
    ahead,
    card,
    card_programs,
    card_tasks,
    contest,
    decode,
    dialogues,
    judging,
    moderation,
    plan_memory,
    plus_step,
    preferences,
    reward_step,
    rlpa_step,
    rlpa_table,
    shapes,
    traffic,
    train_step,
)
from benchmarks.contest import Contestant, Outcome, Result
from benchmarks.shapes import SHAPES
from pal_jax.models.places import visible
from tests.commands.planning.test_cuda import needs_compiler

STARTUP = {'init_s', 'compile_s', 'peak_gib'}
LIMITS = {'float32_gflops': 400.0, 'bfloat16_gflops': 800.0, 'memory_gbytes_per_s': 40.0}


@pytest.fixture
def report(monkeypatch, capsys):
    """Runs a benchmark's `main` as a command would, its processes seeing one device and this session's cache."""
    monkeypatch.setenv('GLIBC_TUNABLES', '')
    monkeypatch.setenv('XLA_FLAGS', '')
    monkeypatch.delenv('PJRT_NPROC')
    monkeypatch.setenv('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
    if folder := jax.config.values['jax_compilation_cache_dir']:
        monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', folder)

    def run(module, *args):
        module.main(args)
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def known_machine(monkeypatch):
    monkeypatch.setattr(contest, 'surroundings', lambda *packages: {'machine': LIMITS, 'versions': packages})


def result(*seconds, first_s=9.0, **first):
    return Result(1.0, first_s, first, list(seconds), [first] * len(seconds), 3 * 2**30, {})


@pytest.mark.long
def test_decode_reports_the_engine_and_the_whole_call(report, known_machine, tmp_path):
    file = tmp_path / 'out.json'
    out = report(
        decode, '--model=tiny', '--batch=2,8', '--prompt=5', '--new=8', '--rounds=1', '--parts=calls', f'--json={file}'
    )
    assert out == json.loads(file.read_text())
    assert out['versions'] == ['jax']
    assert out['batch_2'].keys() == {'pal_jax', 'pal_jax_engine', 'absent'}  # JetStream is for the largest batch
    assert out['batch_8']['pal_jax'].keys() == STARTUP | {'tokens_per_s', 'median_tokens_per_s'}
    assert out['batch_8']['pal_jax_engine']['fraction_of_memory_bandwidth'] > 0


@pytest.mark.long
def test_decode_reports_the_crowd_the_dialogues_and_the_rollouts(report, known_machine):
    out = report(
        decode, '--model=tiny', '--parts=mixed,dialogue,rollout', '--rounds=1',
        '--slots=8', '--requests=9', '--people=2', '--variant=smoke', '--steps=2',
    )  # fmt: skip
    assert out['mixed']['mixed'].keys() >= {
        'tokens_per_s',
        'slots_occupied',
        'first_token_s_p99',
        'between_tokens_s_p50',
    }
    dialogue = out['dialogue']
    assert dialogue['reuse']['prompt_tokens'] == dialogue['once'] < dialogue['no_reuse']['prompt_tokens']
    assert out['rollout']['reuse']['prompt_tokens'] < out['rollout']['no_reuse']['prompt_tokens']


@pytest.mark.slow
def test_decode_runs_as_a_file_too():
    command = [sys.executable, 'benchmarks/decode.py', '--help']
    assert (
        'requirements-peers.txt'
        in subprocess.run(command, cwd=contest.ROOT, env=os.environ, capture_output=True, text=True, check=True).stdout
    )


@pytest.mark.slow
def test_judging_reports_both_parts_and_what_they_take_together(report):
    out = report(judging, '--samples=8', '--rate=100', '--latency=0.05', '--concurrency=4')
    assert out['samples'] == 8 and min(out['decode_s'], out['judge_s'], out['both_s'], out['over_larger']) > 0
    assert out['judge_s'] >= 0.1  # twice four at once


@pytest.mark.slow
def test_ahead_reports_steps_and_their_parts(report):
    out = report(ahead, '--user=0.1', '--judge=0.05', '--steps=2', '--tokens=4', '--ahead=1')
    parts = [out[f'{part}_s'] for part in ('decode', 'judge', 'user', 'update')]
    assert out['ahead'] == 1 and min(parts) > 0 and out['user_s'] >= 0.05
    assert out['over_longest'] == pytest.approx(out['step_s'] / max(parts), abs=0.05)


@pytest.mark.slow
def test_rlpa_step_reports_where_the_time_goes(report, known_machine):
    out = report(rlpa_step, '--variant=smoke', '--steps=1')
    assert out['config'] == 'rlpa:smoke'
    assert out.keys() >= {
        'machine',
        'versions',
        'peak_gib',
        'compile_s',
        'sampled_tokens_per_s',
        'trained_tokens_per_s',
    }
    assert out['seconds_per_step'].keys() == {'rollout', 'annotate', 'update', 'rest'}
    assert sum(out['seconds_per_step'].values()) == pytest.approx(out['step_s'], abs=1e-3)
    assert 0 < out['real_share'] <= 1


@pytest.mark.long
def test_plus_step_reports_a_step_and_its_parts(report, known_machine):
    out = report(plus_step, '--variant=smoke', '--steps=2')
    assert out['config'] == 'plus:smoke'
    assert out['parts_s'].keys() == {'decode', 'ppo', 'reward_model'}
    assert out['phases_s'].keys() >= {'rollout', 'read', 'annotate', 'update'}
    assert 0 < out['reward_real_share'] <= 1
    assert all(seconds > 0 for seconds in (out['step_s'], *out['parts_s'].values()))


@pytest.mark.slow
def test_reward_step_compares_two_learners_on_the_same_tokens(report, known_machine):
    out = report(reward_step, '--model=tiny', '--pairs=2', '--prompt=8', '--reply=8', '--steps=1')
    assert out['ratio'] > 0 and out['reward']['columns'] == out['language']['columns'] == 128
    assert all(out[kind].keys() >= STARTUP for kind in reward_step.KINDS)


def test_plus_step_summarises_by_medians():
    rounds = [
        {'step': step, 'decode': 1.0, 'ppo': 2.0, 'reward_model': 1.0, 'real_share': 0.5, 'phase_read': step / 2}
        for step in (4.0, 4.4, 9.0)
    ]
    out = plus_step.summary(rounds)
    assert (out['step_s'], out['sum_of_parts_s'], out['overhead']) == (4.4, 4.0, 1.1)
    assert out['phases_s'] == {'read': 2.2}


@pytest.mark.slow
def test_surroundings_are_the_machine_the_allocator_and_versions():
    out = contest.surroundings('jax')
    assert out.keys() == {'machine', 'malloc', 'versions'}
    assert out['machine'].keys() == LIMITS.keys() | {'device'}
    assert out['versions'] == {'jax': jax.__version__}


@pytest.mark.long
@pytest.mark.parametrize(
    ('module', 'args', 'fields'),
    [
        (decode, ('--batch=2', '--prompt=4', '--new=4', '--rounds=1', '--parts=calls'), lambda out: out['batch_2']),
        (train_step, ('--batch=1', '--seq=16', '--steps=1'), lambda out: out),
    ],
)
def test_torch_takes_part_in_both_precisions(report, known_machine, module, args, fields):
    out = fields(report(module, '--model=tiny', '--against=torch', *args))
    assert {'torch_bfloat16', 'torch_float32'} <= out.keys()
    ratios = [value for key, value in out.items() if key.startswith('pal_jax_over_torch')]
    assert ratios
    assert all(ratio.keys() == {'fastest', 'median'} for ratio in ratios)
    if module is train_step:
        assert out['pal_jax'].keys() == STARTUP | {
            'tokens_per_s', 'fraction_of_gemm_peak', 'median_step_s', 'first_loss'
        }  # fmt: skip
        assert out['pal_jax']['first_loss'] == pytest.approx(6.24, abs=0.1)  # log of a vocabulary of 512


def test_a_contest_without_rounds_is_refused():
    with pytest.raises(ValueError, match='contest of 0 rounds'):
        contest.race({}, 0)


@pytest.mark.slow
def test_a_contestant_without_its_packages_is_absent_and_one_that_fails_is_named():
    there = Contestant('benchmarks.machine:measure', {}, packages=('jax',))
    lost = Contestant('benchmarks.nowhere:make', {})
    assert contest.race({'lost': lost}, 1) == Outcome({}, {'lost': "No module named 'benchmarks.nowhere'"})
    with pytest.raises(RuntimeError, match='contestant odd failed'):
        contest.race({'odd': there._replace(settings={'no': 'such setting'})}, 1)


def test_ratios_and_startup_are_read_off_the_rounds():
    ours, theirs = result(2.0, 1.0, 2.0), result(4.0, 5.0, 6.0)
    assert contest.ratios(ours, theirs) == {'fastest': 4.0, 'median': 3.0}
    assert ours.startup() == {'init_s': 1.0, 'compile_s': 7.0, 'peak_gib': 3.0}


def test_decode_compares_whole_calls_with_the_better_precision_of_each_peer():
    results = {
        'pal_jax': result(2.0, tokens=80),
        'pal_jax_engine': result(1.0, tokens=80, step_bytes=2e9),
        'grpc': result(2.2, tokens=80),
        'torch_bfloat16': result(3.0, tokens=80),
        'torch_float32': result(4.0, tokens=80),
        'tunix_bfloat16': result(6.0, tokens=80),
        'tunix_float32': result(5.0, tokens=80),
    }
    out = decode.compare(results, new=10, memory_gbytes_per_s=40.0)
    assert out['pal_jax']['tokens_per_s'] == 40.0
    assert out['pal_jax_engine']['fraction_of_memory_bandwidth'] == 0.5
    assert {name: each['fastest'] for name, each in out.items() if 'over' in name} == {
        'pal_jax_over_torch_bfloat16': 1.5,
        'pal_jax_over_tunix_float32': 2.5,
        'pal_jax_over_grpc': 1.1,
    }


def test_peers_run_in_both_precisions_and_tunix_where_it_lives():
    args = decode._parse(['--batch=1,8', '--against=torch,tunix', '--tunix-python=/elsewhere/python'])
    raced = {peer: ['bfloat16', 'float32'] for peer in args.against}
    small, large = (decode.contestants(args, batch, raced) for batch in args.batch)
    assert large.keys() - small.keys() == {'grpc'}
    assert {name for name, each in large.items() if each.python == '/elsewhere/python'} == {
        'tunix_bfloat16', 'tunix_float32'
    }  # fmt: skip
    assert large['torch_float32'].settings == {
        'model': 'default', 'batch': 8, 'prompt': 128, 'new': 128, 'dtype': 'float32'
    }  # fmt: skip


def test_a_precision_whose_products_are_several_times_slower_is_left_out(monkeypatch):
    machine = {'float32_gflops': 100.0, 'bfloat16_gflops': 60.0}
    monkeypatch.setattr(contest, 'limits_by', lambda module: {'float32_gflops': 90.0, 'bfloat16_gflops': 15.0})
    assert contest.precisions(['tunix'], machine) == ({'tunix': ['bfloat16', 'float32']}, {})
    raced, slow = contest.precisions(['torch'], machine)  # by torch's own products
    assert (
        raced == {'torch': ['float32']} and slow.keys() == {'torch_bfloat16'} and '15 GFLOP/s' in slow['torch_bfloat16']
    )


def test_quick_is_one_small_contest():
    args = decode._parse(['--against=torch', '--quick'])
    assert (args.batch, args.new, args.rounds, args.parts) == ([8], 64, 2, ['calls'])


def test_an_unknown_name_in_a_list_is_refused(capsys):
    with pytest.raises(SystemExit):
        decode._parse(['--against=torch,vllm'])
    assert "'vllm' is unknown; choose from torch, tunix" in capsys.readouterr().err


def test_both_crowds_ask_for_as_much():
    mixed, equal = traffic.mixed(128), traffic.equal(128)
    assert mixed.prompt.min() >= 16 and mixed.prompt.max() <= 512 and mixed.new.min() >= 8 and mixed.new.max() <= 256
    assert abs(mixed.new.sum() - equal.new.sum()) <= 64 and abs(mixed.prompt.sum() - equal.prompt.sum()) <= 64
    assert (mixed.prompt + mixed.new).max() <= shapes.SHAPES['tiny'].max_len


def test_tokens_told_together_share_the_time_since_the_last():
    out = traffic.latency([[(1.0, 4), (3.0, 4)], [(2.0, 4), (3.0, 2)]])
    assert (out['first_token_s_p50'], out['between_tokens_s_p50']) == (1.5, 0.5)
    assert out['first_token_s_p99'] == pytest.approx(1.99)
    assert traffic.latency([[(1.0, 4)]]).keys() == {'first_token_s_p50', 'first_token_s_p99'}


def test_a_crowd_is_compared_by_tokens_not_by_time():
    out = traffic.compare({'mixed': result(2.0, tokens=90), 'equal': result(1.0, tokens=60)})
    assert out['mixed_over_equal'] == {'fastest': 0.75, 'median': 0.75}
    assert out['mixed']['tokens_per_s'] == 45.0


def test_reuse_is_compared_with_its_absence():
    out = dialogues.compare({'reuse': result(2.0, prompt_tokens=9), 'no_reuse': result(3.0, prompt_tokens=40)})
    assert out['reuse_over_no_reuse'] == {'fastest': 1.5, 'median': 1.5}
    assert (out['reuse']['prompt_tokens'], out['no_reuse']['prompt_tokens']) == (9, 40)


def test_flops_of_a_step_are_six_for_each_weight_and_token_and_some_for_attention():
    shape, batch, length = SHAPES['default'], 4, 256
    weights = 134_479_872  # in its matrices, of which the embedding counts once
    attention = 2 * length * shape.layers * shape.heads * shape.head_dim / 2
    assert train_step.flops(shape, batch, length) == 6.0 * batch * length * (weights + attention)


def test_the_rest_of_a_step_is_what_no_phase_claims():
    passed = {'real_share': 0.8, 'truncated': 0.5, 'sampled': 600.0, 'seconds_load': 3.0}
    seconds = {'seconds_rollout': 3.0, 'seconds_annotate': 1.0, 'seconds_update': 5.0, 'seconds_other': 1.0}
    first = passed | {name: 2 * value for name, value in seconds.items()}
    out = rlpa_step.summary(first, [first, passed | seconds], steps=2)
    assert out['step_s'] == 5.0
    assert out['rest_share'] == 0.1
    assert (out['sampled_tokens_per_s'], out['trained_tokens_per_s']) == (200.0, 100.0)
    assert (out['compile_s'], out['load_s']) == (10.0, 3.0)


@pytest.mark.long
def test_the_planner_agrees_with_the_memory_of_an_update_on_this_machine(report):
    out = report(plan_memory)
    assert out['planned']['process'] > 0.2
    assert out['planned_over_taken'] == pytest.approx(1, abs=0.15)


def test_a_figure_of_several_runs_has_the_larger_of_both_spreads():
    def record(f1, low, high):
        figures = dict.fromkeys(rlpa_table.FIGURES, f1)
        ranges = {name: [low, high] for name in rlpa_table.FIGURES} | {'f1_by_turn': [[0.0, low], [0.0, high]]}
        return figures | {'f1_by_turn': [0.0, f1], 'intervals': ranges}

    alike = rlpa_table.row([record(0.5, 0.304, 0.696), record(0.5, 0.304, 0.696)], '')
    apart = rlpa_table.row([record(0.3, 0.3, 0.3), record(0.7, 0.7, 0.7)], '')
    assert alike['profile'] == alike['F1, last turn'] == pytest.approx((0.5, 0.1 / 2**0.5))
    assert apart['reward'] == pytest.approx((0.5, 0.2))
    assert rlpa_table.as_markdown({'rlpa': apart}).splitlines()[-1].startswith('| rlpa | 0.500 ± 0.200 | ')


def test_an_unknown_method_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        rlpa_table.main([f'--folder={tmp_path}', '--methods=rlpa,grpo'])
    assert "'grpo' is unknown; choose from base, " in capsys.readouterr().err


@pytest.mark.long
def test_the_table_of_rlpa_is_made_and_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '')
    monkeypatch.delenv('PJRT_NPROC')
    methods = 'base,warm-up,shuffled'
    asked = [f'--folder={tmp_path}', f'--methods={methods}', '--seeds=1', '--variant=smoke', '--steps=2']
    rlpa_table.main(asked)
    table = capsys.readouterr().out
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob('*/comparison.json')}
    assert len(made) == 3 and all(f'| {method} | ' in table for method in methods.split(','))
    rlpa_table.main(asked)
    assert capsys.readouterr().out == table
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert (tmp_path / 'table.png').stat().st_size > 10_000
    with pytest.raises(SystemExit, match='take another --folder'):
        rlpa_table.main([*asked, '--steps=3'])


def test_moderation_compares_scores_with_peoples_by_prompt(monkeypatch, capsys, tmp_path):
    means = [0.0, 0.25, 0.75, 1.0] * 3
    rows = [{'prompt': f'{i // 2}?', 'response': 'a ' * (1 + i), 'human_scores': [m]} for i, m in enumerate(means)]
    (path := tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    found = np.stack([np.array(means) / 2, np.zeros(12)], axis=1)
    monkeypatch.setattr(moderation, 'score', lambda run, prompts, responses: (found, found[:, 0] > 0.4))
    moderation.main(['--run=x', f'--scores={path}'])
    out = json.loads(capsys.readouterr().out)
    assert (out['rows'], out['prompts'], out['harmful'], out['called_unsafe']) == (12, 6, 0.5, 0.25)
    assert out['moderator']['auc'] == 1.0 and out['moderator']['spearman'] == pytest.approx(1.0)
    low, high = out['length']['auc_interval']
    assert out['length']['auc'] == pytest.approx(24 / 36, abs=1e-3)
    assert 0 <= low < out['length']['auc'] < high <= 1
    assert out['words']['auc'] == 0.5  # all alike


def test_preferences_compares_scores_with_peoples_choices(monkeypatch, capsys, tmp_path):
    rows = [{'prompt': f'{i // 2}?', 'chosen': 'a' * (1 + i % 3), 'rejected': 'bb'} for i in range(12)]
    (path := tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    scores = np.array([[1.0, 0.0]] * 6 + [[0.0, 1.0]] * 4 + [[1.0, 1.0]] * 2)
    monkeypatch.setattr(preferences, 'scored', lambda run, rows: scores[: len(rows)])
    preferences.main(['--run=x', f'--pairs={path}'])
    out = json.loads(capsys.readouterr().out)
    assert (out['pairs'], out['prompts'], out['accuracy']) == (12, 6, pytest.approx(7 / 12, abs=1e-3))
    low, high = out['accuracy_interval']
    assert 0 <= low < out['accuracy'] < high <= 1
    assert out['accuracy_shorter'] == 0.5  # lengths 1, 2 and 3 beside 2


@pytest.mark.slow
def test_all_that_a_card_is_asked_runs_in_tiny_shapes(report, known_machine, tmp_path):
    # A task may take long where other tests run beside it.
    out = report(card, '--size=tiny', '--seconds=1800', f'--json={tmp_path / "card.json"}', f'--cache={tmp_path}')
    assert out == json.loads((tmp_path / 'card.json').read_text())
    assert list(card.PARTS) == [name for name in out if name in card.PARTS]  # in the order of their worth
    for part, tasks in card.PARTS.items():
        for task in tasks:
            assert out[part][task] and 'failed' not in out[part][task], (part, task, out[part][task])
    for figures in out['attention']['pal_jax'].values():
        assert max(value for name, value in figures.items() if name.startswith('error')) < 0.02  # of bfloat16
    assert out['equality']['pal_jax']['tiny, float32']['largest'] < 1e-5
    assert out['train']['ratios'].keys() == {'tiny: over torch (tokens_per_s)'}
    assert {'tiny, gradients', 'tiny, apply', 'tiny, score'} <= out['plan']['pal_jax'].keys()
    needs = [program['predicted_gib'] for program in out['plan']['pal_jax'].values()]
    assert needs == sorted(needs)  # a device tells the most that was taken since the process began


@pytest.mark.slow
@needs_compiler
def test_all_that_a_card_is_asked_is_compiled_for_one_that_is_not_there(report):
    out = report(card, '--size=tiny', '--compile=h100')
    for part in card_programs.PARTS:
        assert 'failed' not in out[part]['compile'], (part, out[part]['compile'])
        assert [name for name, program in out[part]['compile'].items() if program['refused']] == []
        assert out[part]['compile']


def test_every_part_of_a_card_has_programs_to_compile_without_one():
    assert card.PARTS.keys() - card_programs.PARTS.keys() == {'plan'}  # which runs those of `train`


def test_a_card_tells_of_a_task_that_fails(tmp_path):
    noted = {}
    args = card._parse(['--size=tiny', '--seconds=60', f'--cache={tmp_path}'])
    card.run('attention', 'nobody', args, noted.__setitem__)
    assert noted == {'failed': "KeyError: 'nobody'"}
    card.run('attention', 'pal_jax', card._parse(['--size=tiny', '--seconds=0']), noted.__setitem__)
    assert noted['failed'] == 'it took more than --seconds=0'


def test_pairs_of_tokens_that_see_each_other_are_those_of_the_mask():
    for heads in card_tasks.SIZES['tiny'].attention.values():
        places = card_tasks.places_of(heads)
        seen = np.asarray(visible(places, places, heads.window))
        assert card_tasks.pairs_of(heads) == int(np.sum(np.tril(seen)))
