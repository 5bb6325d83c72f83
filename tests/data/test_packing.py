"""A packed row says the same as its sequences."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from pal_jax.data.packing import Branch, Example, Row, pack_examples, pack_rollouts, pack_rows, shared_row
from pal_jax.runtime import devices
from pal_jax.types import Completion, Dialogue, Person, Sample

ROWS = [Row([1, 2, 3], [Branch([4, 5]), Branch([6, 7, 8])]), Row([9], [Branch([10]), Branch([11, 12])])]


@pytest.fixture(scope='module')
def batch():
    return pack_rows(ROWS, samples=2, length=16, actions=8, height=3)


def test_every_action_follows_its_own_sequence(batch):
    for r, row in enumerate(ROWS):
        for n, (completion, _) in enumerate(row.branches):
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


def test_examples_with_one_system_prompt_share_it_and_only_completions_act():
    examples = [Example([7, 7, 1], [2, 3]), Example([7, 7, 4, 5], [6])]
    row = shared_row(examples)
    assert row == Row([7, 7], [Branch([1, 2, 3], acted=1), Branch([4, 5, 6], acted=2)])
    batch = pack_rows([row], samples=2, length=16, actions=8)
    assert batch.actions[0, :, :2].tolist() == [[2, 3], [6, 0]]
    assert batch.acts[0].sum(-1).tolist() == [2, 1]
    assert batch.tokens[0, batch.states[0, 0, :2]].tolist() == [1, 2]
    assert batch.tokens[0, batch.states[0, 1, 0]] == 5
    with pytest.raises(ValueError, match='not even a first token'):
        shared_row([Example([1], [2]), Example([3], [4])])


def test_batches_pass_over_all_examples_and_depend_on_their_number_alone():
    examples = [Example([1], [10 + k]) for k in range(6)]

    def chosen(i):
        return pack_examples(examples, rows=2, samples=2, i=i, seed=3).actions[..., 0].reshape(-1).tolist()

    assert sorted(chosen(0) + chosen(1)[:2]) == [10, 11, 12, 13, 14, 15]
    assert sorted(chosen(1)[2:] + chosen(2)) == [10, 11, 12, 13, 14, 15]
    assert chosen(5) == chosen(5)


def test_rows_of_rollouts_stand_in_order_of_length():
    dialogue = Dialogue(Person('a', ('x: y',)), ())
    samples = [Sample(dialogue, (1,) * k, Completion('', (2,), (0.0,), 'stop'), 0, reward=k) for k in (5, 2, 9)]
    batch = pack_rollouts(samples, n=1, height=3, actions=8, mesh=devices.make_mesh(devices=jax.devices()[:1]))
    assert np.asarray(batch.reward)[:, 0].tolist() == [2, 5, 9]
