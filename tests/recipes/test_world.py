"""Users and judges are asked for a share each, and the control for all people of a call together."""

from __future__ import annotations

import dataclasses

import pytest

from pal_jax.recipes.world import share_reward, share_user
from pal_jax.runtime.processes import Shares
from pal_jax.types import Completion, Dialogue, Person, Sample

SAMPLES = [Sample(Dialogue(Person(str(i), ()), ()), (1,), Completion(f'text {i}', (), (), 'stop'), i) for i in range(5)]


@pytest.mark.parametrize(('together', 'calls'), [(False, [2, 3]), (True, [5])])
def test_a_reward_is_asked_by_share_or_for_all_together(together, calls):
    asked = []

    def reward(samples, seed):
        asked.append(len(samples))
        return [dataclasses.replace(s, reward=float(s.group + seed), info={'x': 1.0}, ok=s.group > 0) for s in samples]

    shared = share_reward(reward, Shares(2), together=together)(SAMPLES, 7)
    assert asked == calls
    assert shared == reward(SAMPLES, 7)


def test_users_are_asked_by_share():
    user = share_user(
        lambda dialogues, seed: [f'{each.person.id} {seed} {len(dialogues)}' for each in dialogues], Shares(2)
    )
    assert user([s.dialogue for s in SAMPLES], 3) == ['0 3 2', '1 3 2', '2 3 3', '3 3 3', '4 3 3']
