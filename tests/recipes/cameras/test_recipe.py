"""Flying cameras from their config: what a run leaves, what it refuses, and runs that are stopped."""

from __future__ import annotations

import json
import math

import jax
import numpy as np
import pytest

from pal_jax.recipes import cameras
from pal_jax.recipes.cameras.figures import TEAMS
from pal_jax.recipes.cameras.pictures import TeamResult, make_record
from pal_jax.recipes.cameras.recipe import Team
from pal_jax.run import devices
from pal_jax.run.glossary import words_of
from pal_jax.run.recipe import Context
from pal_jax.run.verdict import judge
from tests import configs, whole_runs

CONTEXT = Context(devices.make_mesh(devices=jax.devices()[:1]))


def make(variant='smoke', **changes):
    return cameras.make(configs.load('cameras', variant, **changes), CONTEXT)


@pytest.fixture(scope='module')
def run():
    recipe = make()
    state, host = recipe.init()
    kept = []
    for i in range(recipe.plan.total_steps):
        kept.append((jax.tree.map(np.asarray, state), json.dumps(recipe.plan.pack(host))))
        state, host, phase, metrics = recipe.step(state, host, i)
    return recipe, state, host, kept, phase, metrics


@pytest.mark.slow
def test_a_step_tells_of_every_method(run):
    *_, phase, metrics = run
    assert phase == 'cameras'
    assert {'ctcr_error', 'ctcr_success', 'shared_error', 'entropy', 'approx_kl', 'value_loss'} <= set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    assert 0 < metrics['ctcr_error'] <= 100


@pytest.mark.slow
def test_a_run_goes_on_bit_by_bit(run):
    recipe, state, _, kept, *_ = run
    middle, text = kept[2]
    shardings = jax.tree.map(lambda x: x.sharding, recipe.plan.abstract)
    again, other = jax.device_put(middle, shardings), recipe.plan.resume(json.loads(text))
    for i in range(2, recipe.plan.total_steps):
        again, other, *_ = recipe.step(again, other, i)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), jax.tree.map(np.asarray, again))


@pytest.mark.slow
def test_the_state_is_as_the_plan_says(run):
    recipe, state, *_ = run
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), recipe.plan.abstract
    )


@pytest.mark.long
def test_an_evaluation_has_tables_pictures_and_an_animation(run):
    recipe, state, *_ = run
    evaluation = recipe.evaluate(state, 'final')
    teams, others, scene, motion = evaluation.exhibits
    assert teams.picture.startswith(b'\x89PNG') and scene.picture.startswith(b'\x89PNG')
    assert motion.picture.startswith(b'GIF8')
    names = [TEAMS[team] for team in ('ctcr', 'shared', 'standing', 'tracking')]
    assert [row[0] for row in teams.table[1:]] == names
    assert [row[:2] for row in others.table[1:]] == [['2', '3']]
    record = evaluation.record
    assert record['error_to_tracking'] == pytest.approx(record['ctcr_error'] / record['tracking_error'])


def test_ratios_of_errors_are_by_seed():
    errors = {'ctcr': (1.0, 2.0), 'shared': (2.0, 2.5), 'tracking': (10.0,)}
    results = [
        TeamResult(team, seed, 4, 6, (error, 1.0)) for team, seeds in errors.items() for seed, error in enumerate(seeds)
    ]
    record = make_record(results)
    assert record['error_to_shared'] == pytest.approx((0.5 + 0.8) / 2)
    assert record['error_to_tracking'] == pytest.approx(0.15)
    assert record['error_to_shared_se'] == pytest.approx(0.15) and record['error_to_shared_interval'][1] > 1
    verdict = judge([], [{'step': 1, 'stage': 'final', **record}], words_of('cameras'))
    assert verdict and verdict.answer == 'Yes' and 'fixed' in verdict.question


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'methods': ('ctcr', 'ctcr')}, "methods has 'ctcr'"),
        ({'methods': ('qmix',)}, "methods has 'qmix'; use each once of ctcr, shared"),
        ({'methods': ()}, 'methods is empty'),
        ({'methods': ('ctcr_dynamics',), 'mixtures': 0}, 'mixtures=0'),
        ({'seeds': 0}, 'seeds=0'),
        ({'rollout': 3}, 'steps=3'),
        ({'eval.others': ('4',)}, "eval.others has '4'"),
        ({'eval.others': ('7,1',)}, 'cameras=7'),
        ({'memory': -1}, 'memory=-1'),
    ],
)
def test_wrong_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.long
def test_a_stopped_run_ends_as_an_unbroken_one(tmp_path, monkeypatch):
    config = configs.load('cameras', methods=('ctcr', 'ctcr_dynamics'), memory=8)
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    assert whole_runs.run(monkeypatch, whole, config) == 0
    whole_runs.stop_once(monkeypatch, Team)
    assert whole_runs.run(monkeypatch, broken, config) != 0
    assert whole_runs.run(monkeypatch, broken, config) == 0
    for name in ('metrics.jsonl', 'evals.jsonl', 'exhibits.jsonl'):
        assert whole_runs.timeless(broken / name) == whole_runs.timeless(whole / name)
    assert (whole / 'pictures' / 'the_scene_in_motion.gif').read_bytes().startswith(b'GIF8')


@pytest.mark.long
def test_contributions_beat_the_fixed_formation():
    recipe = make('', methods=('ctcr',), seeds=1, **{'eval.others': ()})
    state, host = recipe.init()
    for i in range(recipe.plan.total_steps):
        state, host, *_ = recipe.step(state, host, i)
    assert recipe.evaluate(state, 'final').record['error_to_tracking'] <= 0.9
