"""Constrained MDPs from their config: what a run leaves, what it refuses, and runs that are stopped."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from pal_jax.learners.array_ppo import EpisodeMeans
from pal_jax.objectives import constraints as c
from pal_jax.recipes import cmdp
from pal_jax.recipes.cmdp import optimum as evals
from pal_jax.recipes.cmdp.groups import Member, MemberGroup
from pal_jax.run import devices
from pal_jax.run.recipe import Context
from tests import configs, shell

ROOT = Path(__file__).parents[3]
CONTEXT = Context(devices.make_mesh(devices=jax.devices()[:1]))


def make(variant='smoke', **changes):
    return cmdp.make(configs.load('cmdp', variant, **changes), CONTEXT)


FEW = {'tasks': ('bandit',), 'handlers': ('none', 'linear', 'pid')}


@pytest.fixture(scope='module')
def run():
    recipe = make(**FEW)
    state, host = recipe.init()
    kept = []
    for i in range(recipe.plan.total_steps):
        kept.append((jax.tree.map(np.asarray, state), json.dumps(recipe.plan.pack(host))))
        state, host, phase, metrics = recipe.step(state, host, i)
    return recipe, state, host, kept, phase, metrics


def test_a_step_tells_of_every_handler(run):
    *_, phase, metrics = run
    assert phase == 'cmdp'
    assert {'bandit_none_reward', 'bandit_linear_share', 'bandit_linear_over', 'bandit_pid_share', 'solved'} <= set(
        metrics
    )
    assert all(math.isfinite(value) for value in metrics.values())


def test_a_rollout_in_which_no_episode_has_ended_moves_no_handler():
    sums, ended = np.array([[0.0, 5.0], [0.0, 5.0]]), np.array([0, 3])
    learner: Any = types.SimpleNamespace(
        mesh=CONTEXT.mesh,
        update=lambda state, steps, mix: (state, {}),
        rollout=lambda state: (state, None, EpisodeMeans(sums, ended)),
    )
    handlers = (c.LinearLagrangian(),) * 2
    group = MemberGroup('point', learner, tuple(Member('linear', 3.0, seed) for seed in (0, 1)), handlers, None)
    start = [handler.init(1) for handler in handlers]
    _, (still, moved), _, _ = group.iterate(None, start)
    assert still == start[0] and moved['lambda'][0] > start[1]['lambda'][0]


def test_a_run_goes_on_bit_by_bit(run):
    recipe, state, host, kept, *_ = run
    middle, text = kept[2]
    shardings = jax.tree.map(lambda x: x.sharding, recipe.plan.abstract)
    again, other = jax.device_put(middle, shardings), recipe.plan.resume(json.loads(text))
    for i in range(2, recipe.plan.total_steps):
        again, other, *_ = recipe.step(again, other, i)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), jax.tree.map(np.asarray, again))
    assert other == host


def test_the_state_is_as_the_plan_says(run):
    recipe, state, *_ = run
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), recipe.plan.abstract
    )


def test_an_evaluation_has_a_table_and_a_picture(run):
    recipe, state, *_ = run
    evaluation = recipe.evaluate(state, 'final')
    (exhibit,) = evaluation.exhibits
    assert exhibit.picture.startswith(b'\x89PNG')
    head, *rows = exhibit.table
    assert [row[0] for row in rows] == ['no constraint', 'Lagrangian (PPO-Lag)', 'PID Lagrangian (CPPO-PID)']
    assert rows[1][head.index('optimum')] == '0.800'
    assert rows[0][head.index('limit')] == ''
    assert evaluation.record['bandit_linear_share'] > 0


def test_the_policy_before_training_is_the_control():
    recipe = make(handlers=('linear',), tasks=('bandit',), **{'bandit.limits': (0.4, 0.7)})
    assert recipe.plan.stage(0) == 'base'
    record = recipe.evaluate(recipe.init()[0], 'base').record
    # All arms alike are worth .6 and cost .467, within .1 of the lower limit, whose optimum is .6 too.
    assert record['bandit_linear_share'] == pytest.approx(0.6 / 0.8, abs=0.01)
    assert record['solved'] == 0.5


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'handlers': ('linear', 'repo')}, "'repo'.*episode"),
        ({'handlers': ('saute',)}, "'saute'.*every episode"),
        ({'handlers': ('early',)}, "'early'.*every episode"),
        ({'handlers': ('linear', 'linear')}, "handlers has 'linear'"),
        ({'handlers': ()}, 'handlers is empty'),
        ({'tasks': ('maze',)}, "tasks has 'maze'; use each once of bandit, grid, point"),
        ({'tail': 0.0}, r'tail=0\.0'),
        ({'grid.limits': (-1.0,)}, 'no policy keeps a cost of -1'),
        ({'bandit.environments': 0}, 'bandit: environments=0'),
        ({'minibatches': 3}, 'minibatches=3'),
        ({'seeds': 0}, 'seeds=0'),
    ],
)
def test_wrong_values_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_a_mixture_of_policies_solves_what_no_single_one_does():
    optima = {('grid', 1.0): evals.ConstrainedOptimum(0.75, 1.0, 0.08)}
    results = [
        evals.HandlerResult('grid', 'linear', 1.0, seed, 0.74 + 0.01 * seed, 1.0 + 0.1 * seed) for seed in range(2)
    ]
    (cell,) = evals.summarize(results, optima).values()
    assert cell.share == pytest.approx(0.745 / 0.75)
    assert cell.solved
    assert not evals.summarize([results[1]._replace(cost=1.2)], optima)['grid', 'linear', 1.0].solved
    record = evals.make_record(results, optima)
    assert record['grid_linear_over'] == pytest.approx(0.05)


@pytest.mark.long
def test_lagrangian_handlers_come_near_the_exact_optimum():
    recipe = make('', handlers=('linear', 'log', 'pid'), seeds=2)
    state, host = recipe.init()
    for i in range(recipe.plan.total_steps):
        state, host, *_ = recipe.step(state, host, i)
    assert recipe.evaluate(state, 'final').record['solved'] == 1.0


# --- the command ------------------------------------------------------------------------------------------------------

KILLER = """
import os, signal
from pal_jax.recipes.cmdp.groups import MemberGroup
original, calls = MemberGroup.iterate, []
def deadly(*args, **kwargs):
    calls.append(1)
    if len(calls) == 35:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
MemberGroup.iterate = deadly
from pal_jax.run import cli
from pal_jax.train import main
cli.run(main, '')
"""


def python(*args):
    env = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': shell.FLAGS}
    return subprocess.run([sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)


def records(workdir, name):
    lines = (workdir / name).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith('seconds_')} for line in lines]


@pytest.mark.long
def test_a_killed_run_ends_as_an_unbroken_one(tmp_path):
    flags = ['--config=configs/cmdp.py:smoke', "--config.tasks=('bandit',)"]
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    result = python('-m', 'pal_jax.train', *flags, f'--workdir={whole}')
    assert result.returncode == 0, result.stderr
    killed = python('-c', KILLER, *flags, f'--workdir={broken}')
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = python('-m', 'pal_jax.train', *flags, f'--workdir={broken}')
    assert resumed.returncode == 0, resumed.stderr
    assert 'resuming' in resumed.stdout
    for name in ('metrics.jsonl', 'evals.jsonl', 'exhibits.jsonl'):
        assert records(broken, name) == records(whole, name)
    last = Path('checkpoints') / '4' / 'host' / 'metadata'  # with the sum of every leaf's bits
    assert json.loads((broken / last).read_text()) == json.loads((whole / last).read_text())
    assert 'Handlers on the bandit' in (whole / 'report.html').read_text()
