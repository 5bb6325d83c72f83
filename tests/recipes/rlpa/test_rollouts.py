"""What a step's samples come to."""

from __future__ import annotations

import pytest

from pal_jax.recipes.rlpa.rollouts import summarize
from pal_jax.types import Completion, Dialogue, Person, Sample


def sample(reward=None):
    info = {} if reward is None else {'profile': reward, 'response': 0.0, 'format': 1.0}
    dialogue = Dialogue(Person('a', ('x: y',)), ())
    completion = Completion('', (1, 2), (-1.0, -1.0), 'stop')
    return Sample((1,), completion, rewards=(reward or 0.0,), source=dialogue, ok=reward is not None, info=info)


def test_samples_without_a_reward_are_in_no_mean_of_rewards():
    found = summarize([sample(0.25), sample(), sample(0.75)])
    assert (found['reward'], found['reward_std'], found['profile']) == (0.5, 0.25, pytest.approx(0.5))
    assert (found['samples'], found['failed'], found['length']) == (2.0, 1.0, 2.0)
    none = summarize([sample(), sample()])
    assert (none['samples'], none['failed'], none['length']) == (0.0, 2.0, 2.0)
    assert not [name for name in none if name.startswith(('reward', 'profile', 'format'))]
