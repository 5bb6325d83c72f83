"""RLPA whose rollouts are ahead of its updates: which weights sample a step, and runs that are broken off."""

from __future__ import annotations

import collections
import dataclasses
import json
import zlib
from types import SimpleNamespace

import pytest

from pal_jax.recipes.rlpa import criteria, rollouts, turns, world
from pal_jax.recipes.rlpa import recipe as rlpa
from pal_jax.recipes.rlpa.profiles import ParsedCompletion
from pal_jax.run.ahead import Ahead
from pal_jax.run.recipe import Plan
from pal_jax.types import Verdict
from tests.recipes.broken_off import assert_it_goes_on_wherever_it_is_broken_off
from tests.recipes.rlpa.test_dialogues_of_models import Idle
from tests.recipes.rlpa.test_recipe import CONTEXT, Writing, from_fake_parts, small

STEPS = 7


class Counting(Idle):
    """A learner whose weights are the number of its updates."""

    def init(self, params):
        return SimpleNamespace(skipped=0, updates=0)

    def weights(self, state):
        return state.updates

    def update(self, state, batch, key, ptx):
        return SimpleNamespace(skipped=0, updates=state.updates + 1), {}


def ahead_by(steps, **changes):
    lines = {'rollouts': Ahead('rollouts', steps), 'replies': Ahead('replies', steps)}
    return from_fake_parts(people=20, plan=Plan(STEPS, None, lambda i: None), learner=Counting(), **lines, **changes)


@pytest.mark.parametrize('steps', [0, 1, 2, 4])
def test_a_step_is_sampled_with_the_weights_of_so_many_steps_before(steps):
    recipe, seen = ahead_by(steps)
    loaded, sampled = [], {}
    decoder = Writing()
    decoder.load = lambda params, version=0: loaded.append(params)

    def sample_turns(dialogues, n, seed, tell=None):
        sampled[seed[1]] = loaded[-1]
        return recipe.sample_turns(dialogues, n, seed, tell)

    recipe_seen = dataclasses.replace(recipe, decoder=decoder, sample_turns=sample_turns)
    state, host = recipe_seen.init()
    for i in range(STEPS):
        state, host, *_ = recipe_seen.step(state, host, i)
    assert sampled == {i: max(i - steps, 0) for i in range(STEPS)}
    assert len(seen.packed) == STEPS


@pytest.mark.parametrize('steps', [0, 1, 2, 4])
def test_a_run_that_stops_after_every_step_goes_on_as_the_unbroken_one_and_learns_every_turn_once(steps):
    plan = rlpa.make(small(), CONTEXT).plan

    def learnt(broken):
        recipe, seen = ahead_by(steps)
        state, host = recipe.init()
        for i in range(STEPS):
            state, host, *_ = recipe.step(state, host, i)
            if broken:
                host = plan.resume(json.loads(json.dumps(plan.pack(host))))
        return seen

    unbroken, broken = learnt(False), learnt(True)
    assert broken.packed == unbroken.packed
    assert sorted(broken.answered) == sorted(unbroken.answered)
    episodes = collections.Counter(
        (sample.source.person.id, sample.source.turns) for step in broken.packed for sample in step[::2]
    )
    # These steps have fewer turns than an episode of 20 people.
    assert set(episodes.values()) == {1}


def parse(text):
    return ParsedCompletion('- tea: green\n', ('tea: green',), text or 'Hm.')


def judge(dialogues, inferred, replies, seed):
    scores = [zlib.crc32(reply.encode('utf-8', 'backslashreplace')) % 97 / 97 for reply in replies]
    return [Verdict(dict.fromkeys(criteria.SCORES, score)) for score in scores]


@pytest.mark.slow
@pytest.mark.parametrize('steps', [1, 2, 4])
def test_a_policy_learns_the_same_bits_wherever_its_run_is_broken_off(steps, monkeypatch):
    for module, name, part in (
        (turns, 'parse_completion', parse), (rollouts, 'parse_completion', parse), (world, 'judge_by_rules', judge),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, part)
    recipe = rlpa.make(
        small(**{'rollout.ahead': steps, 'total_steps': 11, 'optimizer.lr': 1e-2, 'dialogue.max_rounds': 3}), CONTEXT
    )
    steps_of = assert_it_goes_on_wherever_it_is_broken_off(recipe, 11)
    assert len({metrics['reward'] for _, metrics in steps_of}) > 5


def test_whole_dialogues_within_a_step_are_not_ahead():
    with pytest.raises(ValueError, match=r'rollout\.ahead=1: .*dialogue\.turn_gamma=0\.5'):
        rlpa.make(small(**{'rollout.ahead': 1, 'dialogue.turn_gamma': 0.5}), CONTEXT)
