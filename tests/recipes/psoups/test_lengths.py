"""Personalized Soups learns: lengths are what is preferred, of small random models (psoups I.7-8, -11 and -12)."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest

from pal_jax.judges.winrates import spearman
from pal_jax.models import merging
from pal_jax.recipes.psoups import recipe as psoups
from pal_jax.recipes.scorer import reward
from pal_jax.run import devices
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.recipe import Context
from tests import configs

pytestmark = pytest.mark.slow
ONE = Context(devices.make_mesh(devices=jax.devices()[:1]), lambda name: contextlib.nullcontext())
WORDS = 'river stone bread candle window garden letter winter silver market forest bridge'.split()
STEPS = 24


def advance(recipe, state, host, steps):
    rows = []
    for i in steps:
        state, host, _, metrics = recipe.step(state, host, i)
        rows.append(metrics)
    return state, host, rows


def write_pairs(path, count, sign):
    """Two answers to each of `count` questions; the longer is preferred, or with -1 the shorter."""
    rng, lines = np.random.default_rng(count), []
    for i in range(count):
        lengths = np.sort(rng.choice(np.arange(1, 13), 2, replace=False))[::sign]
        rejected, chosen = ([{'role': 'assistant', 'content': ' '.join(rng.choice(WORDS, n))}] for n in lengths)
        prompt = [{'role': 'user', 'content': f'Question {i} of {count}?'}]
        lines.append(json.dumps({'prompt': prompt, 'chosen': chosen, 'rejected': rejected}) + '\n')
    path.write_text(''.join(lines))
    return str(path)


def test_reward_models_of_brief_and_of_long_answers_are_right_and_disagree(tmp_path):
    correlations = []
    for sign in (-1, 1):
        train, test = (write_pairs(tmp_path / f'{count}{sign}', count, sign) for count in (1000, 200))
        settings = configs.load('reward', **{'data.train': train, 'data.test': test, 'optimizer.lr': 3e-3,
                                           'total_steps': 125, 'data.batch_size': 8})  # fmt: skip
        recipe = reward.make(settings, ONE)
        state, *_ = advance(recipe, *recipe.init(), range(125))
        record = recipe.evaluate(state, 'final').record
        assert record['accuracy'] >= 0.95
        correlations.append(record['length_correlation'])
    assert correlations[0] < -0.9 and correlations[1] > 0.9


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """PPO paid by the letter, for few and for many, and for nothing: of each what it measured, and what it made."""
    return {sign: train(tmp_path_factory.mktemp('policy'), sign) for sign in (-1, 0, 1)}


def make(folder, sign, **changes):
    """The recipe of a policy that is paid `sign` times the letters of its answers."""

    def letters(readings, replies):
        return sign * np.array([[len(text) for text in own] for own in replies], float)

    prompts = folder / 'prompts.jsonl'
    prompts.write_text(''.join(json.dumps({'instruction': f'Question {i}?'}) + '\n' for i in range(400)))
    settings = configs.load('psoups', stage='policy-P2A', **{
        'sampling.max_tokens': 48, 'sampling.stop': tuple('abcdefghijklm'), 'decode.slots': 64,
        'prompts.test': str(prompts), 'prompts.test_count': 400, 'rl.test_count': 400, 'prompts.train_count': 64,
        'total_steps': STEPS, 'optimizer.lr': 1e-2 if sign else 3e-4, 'policy.lora.rank': 8, 'ppo.kl_coef': 0.001,
        'ppo.negative_scale': 1.0, 'rl.rollout_batch_size': 16, 'rl.n_samples_per_prompt': 4,
    } | changes)  # fmt: skip
    (folder, part), *_ = psoups.stages(settings, folder)
    made = configs.make(part, ONE._replace(workdir=folder))
    recipe = dataclasses.replace(made, score=letters, judge=None)
    return recipe, *recipe.init()


def train(folder, sign):
    recipe, *start = make(folder, sign)
    state, _, rows = advance(recipe, *start, range(STEPS))
    return recipe, state, rows


def test_a_resumed_policy_is_the_unbroken_one(tmp_path):
    recipe, state, host = make(tmp_path, 1, **{'rl.scale_scores': True, 'rl.rollout_batch_size': 4})
    half, seen, _ = advance(recipe, state, host, range(2))
    checkpoints = Checkpoints(tmp_path / 'run', recipe.plan.abstract)
    checkpoints.save(2, half, seen, None)
    checkpoints.close()
    unbroken, counted, _ = advance(recipe, half, seen, range(2, 4))
    restored = Checkpoints(tmp_path / 'run', recipe.plan.abstract).restore()
    assert restored
    again, recounted, _ = advance(recipe, restored[0], restored[1], range(2, 4))
    jax.tree.map(np.testing.assert_array_equal, again, unbroken)
    assert recounted == counted and counted['moments'] != seen['moments']


@pytest.mark.long
def test_lengths_follow_what_is_paid_and_nothing_moves_without(trained):
    unpaid = np.mean([row['length'] for row in trained[0][2]])
    for sign, (*_, rows) in trained.items():
        farthest = max(row['kl'] * row['length'] for row in rows)
        assert farthest < (10 if sign else 0.05)
        if sign:
            assert sign * (np.mean([row['length'] for row in rows[-8:]]) - unpaid) >= 0.25 * unpaid


@pytest.mark.long
def test_soups_of_a_brief_and_a_long_policy_are_as_long_as_they_are_mixed(trained):
    (recipe, brief, _), (_, long, _) = trained[-1], trained[1]
    weights, lengths = (0.0, 0.25, 0.5, 0.75, 1.0), []
    for w in weights:
        soup = merging.linear([brief.actor.model.params, long.actor.model.params], (1.0 - w, w))
        mixed = brief.replace(actor=brief.actor.replace(model=brief.actor.model.replace(params=soup)))
        lengths.append(recipe.evaluate(mixed, 'final').record['length'])
    assert round(spearman(weights, lengths), 6) >= 0.9
