"""A packed row says the same as its sequences."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from pal_jax.data.packing import Row, pack_rollouts, pack_rows, real_share
from pal_jax.runtime import devices
from pal_jax.types import Completion, Dialogue, Person, Sample

ROWS = [Row([1, 2, 3], [[4, 5], [6, 7, 8]]), Row([9], [[10], [11, 12]])]


@pytest.fixture(scope='module')
def batch():
    return pack_rows(ROWS, samples=2, length=16, actions=8, height=3)


def test_every_action_follows_its_own_sequence(batch):
    for r, row in enumerate(ROWS):
        for n, completion in enumerate(row.completions):
            size = len(completion)
            assert batch.actions[r, n, :size].tolist() == completion
            assert batch.acts[r, n].sum() == size
            sequence = [*row.prompt, *completion]
            before = batch.tokens[r, batch.states[r, n, :size]].tolist()
            assert before == sequence[len(row.prompt) - 1 : -1]
            assert batch.positions[r, batch.states[r, n, :size]].tolist() == list(
                range(len(row.prompt) - 1, len(sequence) - 1)
            )


def test_segments_keep_completions_apart_and_share_the_prompt(batch):
    assert batch.segments[0].tolist() == [1, 1, 1, 2, 2, 3, 3, 3] + [0] * 8
    assert batch.prefix[0, :8].tolist() == [1] * 8


def test_missing_rows_and_padding_do_not_act(batch):
    assert not batch.acts[2].any()
    assert not batch.segments[2].any()
    assert real_share(batch) == pytest.approx((8 + 4) / 48)


def test_rollouts_keep_rewards_and_logprobs_beside_their_tokens():
    dialogue = Dialogue(Person('a', ('x: y',)), ())
    samples = [
        Sample(dialogue, (1, 2), Completion('', (3, 4), (-0.5, -1.5), 'stop'), group=0, reward=0.25),
        Sample(dialogue, (1, 2), Completion('', (5,), (-2.0,), 'stop'), group=0, reward=1.0, ok=False),
    ]
    batch = pack_rollouts(samples, n=2, height=8, actions=8, mesh=devices.make_mesh(devices=jax.devices()[:1]))
    assert np.asarray(batch.reward)[0].tolist() == [0.25, 1.0]
    assert np.asarray(batch.ok)[:2].tolist() == [[True, False], [False, False]]
    assert np.asarray(batch.sampler_logprobs)[0, 0, :3].tolist() == [-0.5, -1.5, 0.0]
    assert batch.tokens.tokens.shape == (8, 128)
