"""The benchmarks run and say what they promise to; what they say of speed is not tested."""

from __future__ import annotations

import json

import jax
import pytest

from benchmarks import contest, decode, rlpa_step, train_step
from benchmarks.contest import Result
from benchmarks.shapes import SHAPES

STARTUP = {'init_s', 'compile_s', 'peak_gib'}
LIMITS = {'float32_gflops': 400.0, 'bfloat16_gflops': 800.0, 'memory_gbytes_per_s': 40.0}


@pytest.fixture
def report(monkeypatch, capsys):
    """Runs a benchmark's `main` as a command would, its processes seeing one device and this session's cache."""
    monkeypatch.setenv('GLIBC_TUNABLES', '')
    monkeypatch.setenv('XLA_FLAGS', '')
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
    return Result(1.0, first_s, first, list(seconds), [first] * len(seconds), 3 * 2**30)


@pytest.mark.slow
def test_decode_reports_the_engine_and_the_whole_call(report, known_machine):
    out = report(decode, '--shape=tiny', '--batch', '8', '--prompt=5', '--new=8', '--rounds=1')
    assert out['versions'] == ['jax']
    assert out['batch_8'].keys() == {'pal_jax', 'pal_jax_engine'}
    assert out['batch_8']['pal_jax'].keys() == STARTUP | {'tokens_per_s', 'median_tokens_per_s'}
    assert out['batch_8']['pal_jax_engine']['fraction_of_memory_bandwidth'] > 0


@pytest.mark.slow
def test_decode_compares_the_drivers(report, known_machine):
    out = report(
        decode, '--shape=tiny', '--batch', '8', '--prompt=5', '--new=8', '--rounds=1', '--through', 'jetstream', 'grpc'
    )
    assert out['batch_8']['pal_jax_over_jetstream'].keys() == out['batch_8']['pal_jax_over_grpc'].keys()


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


@pytest.mark.slow
def test_train_step_reports_its_share_of_the_peak(report, known_machine):
    out = report(train_step, '--shape=tiny', '--batch=1', '--seq=16', '--steps=1')
    assert out['pal_jax'].keys() == STARTUP | {
        'tokens_per_s', 'fraction_of_gemm_peak', 'median_step_s', 'first_loss'
    }  # fmt: skip
    assert out['pal_jax']['first_loss'] == pytest.approx(6.24, abs=0.1)  # log of a vocabulary of 512


@pytest.mark.slow
def test_surroundings_are_the_machine_the_allocator_and_versions():
    out = contest.surroundings('jax')
    assert out.keys() == {'machine', 'malloc', 'versions'}
    assert out['machine'].keys() == LIMITS.keys() | {'device'}
    assert out['versions'] == {'jax': jax.__version__}


@pytest.mark.slow
@pytest.mark.parametrize(
    ('module', 'args', 'fields'),
    [
        (decode, ('--batch', '2', '--prompt=4', '--new=4', '--rounds=1'), lambda out: out['batch_2']),
        (train_step, ('--batch=1', '--seq=16', '--steps=1'), lambda out: out),
    ],
)
def test_torch_takes_part_in_both_precisions(report, known_machine, module, args, fields):
    out = fields(report(module, '--shape=tiny', '--against=torch', *args))
    assert {'torch_bfloat16', 'torch_float32'} <= out.keys()
    ratios = [value for key, value in out.items() if key.startswith('pal_jax_over_torch')]
    assert ratios
    assert all(ratio.keys() == {'fastest', 'median'} for ratio in ratios)


def test_a_contest_without_rounds_is_refused():
    with pytest.raises(ValueError, match='contest of 0 rounds'):
        contest.race({}, 0)


def test_ratios_and_startup_are_read_off_the_rounds():
    ours, theirs = result(2.0, 1.0, 2.0), result(4.0, 5.0, 6.0)
    assert contest.ratios(ours, theirs) == {'fastest': 4.0, 'median': 3.0}
    assert ours.startup() == {'init_s': 1.0, 'compile_s': 7.0, 'peak_gib': 3.0}


def test_decode_compares_whole_calls_with_the_better_precision_of_the_peer():
    task = decode.Task(SHAPES['tiny'], batch=8, prompt=4, new=10)
    results = {
        'pal_jax': result(2.0, tokens=80),
        'pal_jax_engine': result(1.0, tokens=80, step_bytes=2e9),
        'torch_bfloat16': result(3.0, tokens=80),
        'torch_float32': result(4.0, tokens=80),
    }
    out = decode.compare(results, task, memory_gbytes_per_s=40.0)
    assert out['pal_jax']['tokens_per_s'] == 40.0
    assert out['pal_jax_engine']['fraction_of_memory_bandwidth'] == 0.5
    assert out['pal_jax_over_torch_bfloat16'] == {'fastest': 1.5, 'median': 1.5}
    assert 'pal_jax_over_torch_float32' not in out


def test_flops_of_a_step_are_six_for_each_weight_and_token_and_some_for_attention():
    shape, batch, length = SHAPES['smollm2-135m'], 4, 256
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
