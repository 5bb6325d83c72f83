"""A packed row says the same as its sequences."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pal_jax.data.packing import (
    Branch,
    Example,
    Layout,
    PromptGroup,
    lay_out,
    lay_out_groups,
    pack_examples,
    pack_groups,
    pack_rollouts,
    shared_prompt,
)  # fmt: skip
from pal_jax.run import devices
from pal_jax.types import OPENING, Completion, Sample

GROUPS = [
    PromptGroup([1, 2, 3], [Branch([4, 5]), Branch([6, 7, 8])]),
    PromptGroup([9], [Branch([10]), Branch([11, 12])]),
    PromptGroup([13, 14], [Branch([15, 16])]),
]
LAYOUT = Layout([[0, 1], [2]], height=3, groups=2, length=16)


@pytest.fixture(scope='module')
def batch():
    return pack_groups(GROUPS, LAYOUT, n=2, actions=8)


@pytest.mark.parametrize(('group', 'row', 'place'), [(0, 0, 0), (1, 0, 1), (2, 1, 0)])
def test_every_action_follows_its_own_sequence(batch, group, row, place):
    prompt, branches, *_ = GROUPS[group]
    for n, (completion, _) in enumerate(branches):
        size, where = len(completion), (row, 2 * place + n)
        assert batch.actions[where][:size].tolist() == completion
        assert batch.acts[where].sum() == size
        sequence, before = [*prompt, *completion], batch.states[where][:size]
        assert batch.tokens[row, before].tolist() == sequence[len(prompt) - 1 : -1]
        assert batch.positions[row, before].tolist() == list(range(len(prompt) - 1, len(sequence) - 1))


def test_segments_keep_completions_apart_and_share_their_own_prompt(batch):
    assert batch.segments[0].tolist() == [1, 1, 1, 2, 2, 3, 3, 3, 4, 5, 6, 6] + [0] * 4
    assert batch.prefix[0].tolist() == [1] * 8 + [4] * 4 + [0] * 4


def test_branches_apart_follow_their_own_copy_of_the_prompt_in_whole_blocks():
    lengths = [group.length_apart(8) for group in GROUPS]
    assert lengths == [16, 16, 8]
    layout = lay_out(lengths, row_tokens=32, multiple=8)
    batch = pack_groups(GROUPS, layout, n=2, actions=8, apart=8)
    for r, row in enumerate(layout.rows):
        for place, i in enumerate(row):
            prompt, branches, *_ = GROUPS[i]
            for k, (completion, _) in enumerate(branches):
                where, sequence = (r, 2 * place + k), [*prompt, *completion]
                before = batch.states[where][batch.acts[where]]
                start = before[0] - len(prompt) + 1
                columns = slice(start, start + len(sequence))
                assert start % 8 == 0
                assert batch.tokens[r, columns].tolist() == sequence
                assert batch.positions[r, columns].tolist() == list(range(len(sequence)))
                assert len(set(batch.segments[r, columns])) == 1
                assert (batch.segments[r, columns] == batch.prefix[r, columns]).all()
                assert before.tolist() == list(range(start + len(prompt) - 1, start + len(sequence) - 1))
                assert batch.actions[where][: len(completion)].tolist() == completion
    assert batch.acts.sum() == sum(len(branch.tokens) for group in GROUPS for branch in group.branches)
    # No two branches share a segment.
    assert len({(r, s) for r in range(len(batch.segments)) for s in set(batch.segments[r]) - {0}}) == 5


def test_what_is_missing_does_not_act(batch):
    assert not batch.acts[2].any()
    assert not batch.segments[2].any()
    assert not batch.acts[1, 1:].any()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=30),
    row_tokens=st.integers(0, 700),
    ways=st.integers(1, 4),
    micro_rows=st.integers(1, 4),
)
def test_every_group_has_its_place_in_rows_within_the_budget(lengths, row_tokens, ways, micro_rows):
    out = lay_out(lengths, ways=ways, micro_rows=micro_rows, row_tokens=row_tokens, multiple=32)
    assert sorted(i for row in out.rows for i in row) == list(range(len(lengths)))
    filled = [sum(lengths[i] for i in row) for row in out.rows]
    assert filled == sorted(filled)
    budget = row_tokens if max(lengths) <= row_tokens else -(-max(lengths) // 32) * 32
    # Shared rows have one of two lengths, so that there are few programs.
    half = -(-row_tokens // 2 // 32) * 32 if max(filled) <= row_tokens else 32
    assert max(filled) <= budget and max(filled) <= out.length < max(filled) + half
    assert max(len(row) for row in out.rows) <= out.groups
    each = out.height // ways
    assert len(out.rows) <= out.height == each * ways and each % min(each, micro_rows) == 0
    if not row_tokens:
        assert out.groups == 1
    elif max(lengths) <= row_tokens:
        assert out.length <= row_tokens


def test_rows_are_few_and_even():
    lengths = [60, 50, 40, 30, 20]
    assert [sum(lengths[i] for i in row) for row in lay_out(lengths, row_tokens=100).rows] == [100, 100]
    assert [sum(lengths[i] for i in row) for row in lay_out(lengths, row_tokens=100, ways=3).rows] == [60, 70, 70]
    tight = [50, 50, 40, 40, 20]  # longest first into the shortest row would end at 110
    assert [sum(tight[i] for i in row) for row in lay_out(tight, row_tokens=100).rows] == [100, 100]


def test_rollouts_keep_rewards_and_logprobs_beside_their_tokens():
    samples = [
        Sample((1, 2), Completion('', (3, 4), (-0.5, -1.5), 'stop'), rewards=(0.25, 2.0), role=1),
        Sample((1, 2), Completion('', (5,), (-2.0,), 'stop'), rewards=(1.0, 3.0), ok=False),
    ]
    batch = pack_rollouts(samples, n=2, ways=8, actions=8, mesh=devices.make_mesh(devices=jax.devices()[:1]))
    assert np.asarray(batch.rewards)[0].tolist() == [[0.25, 2.0], [1.0, 3.0]]
    assert np.asarray(batch.role)[0].tolist() == [1, 0]
    assert np.asarray(batch.ok)[:2].tolist() == [[True, False], [False, False]]
    assert np.asarray(batch.sampler_logprobs)[0, 0, :3].tolist() == [-0.5, -1.5, 0.0]
    assert batch.tokens.tokens.shape == (8, 128)


def test_packed_rollouts_keep_the_samples_of_a_prompt_together():
    samples = [
        Sample((size,) * size, Completion('', (2, 3), (0.0, k), 'stop'), rewards=(10 * size + k,))
        for size in (30, 6, 20)
        for k in range(2)
    ]
    mesh = devices.make_mesh(devices=jax.devices()[:1])
    batch = pack_rollouts(samples, n=2, actions=8, mesh=mesh, row_tokens=64, multiple=32)
    assert np.asarray(batch.rewards[..., 0]).tolist() == [[300, 301, 0, 0], [200, 201, 60, 61]]
    assert np.asarray(batch.ok).sum(1).tolist() == [2, 4]
    assert np.asarray(batch.sampler_logprobs)[1, :, 1].tolist() == [0, 1, 0, 1]


def test_what_all_prompts_begin_with_stands_in_a_row_once():
    groups = [
        PromptGroup([7, 7, 1, 2], [Branch([3])]),
        PromptGroup([7, 7, 1], [Branch([4, 5])]),
        PromptGroup([7, 7, 8], [Branch([6])]),
    ]
    layout = lay_out_groups(groups, row_tokens=9, multiple=4)
    assert (layout.opening, len(layout.rows)) == (2, 2)
    batch = pack_groups(groups, layout, n=1, actions=2)
    for row, places in enumerate(layout.rows):
        assert batch.tokens[row, :2].tolist() == [7, 7]
        assert (batch.segments[row, :2] == OPENING).all()
        for place, i in enumerate(places):
            prompt, ((completion, _),), *_ = groups[i]
            sequence, before = [*prompt, *completion], batch.states[row, place, : len(completion)]
            assert batch.tokens[row, before].tolist() == sequence[len(prompt) - 1 : -1]
            assert batch.positions[row, before].tolist() == list(range(len(prompt) - 1, len(sequence) - 1))
            seen = (batch.segments[row] == OPENING) | (batch.segments[row] == batch.prefix[row, before[-1]])
            assert batch.tokens[row, seen & (batch.positions[row] < len(prompt))].tolist() == prompt
    # a prompt keeps a token of its own, and rows that are not shared have no opening
    assert lay_out_groups([PromptGroup([7, 7], [Branch([3])])] * 2, row_tokens=9).opening == 1
    assert lay_out_groups(groups).opening == 0


def test_examples_with_one_system_prompt_share_it_and_only_completions_act():
    examples = [Example([7, 7, 1], [2, 3]), Example([7, 7, 4, 5], [6])]
    group = shared_prompt(examples)
    assert group == PromptGroup(
        [7, 7], [Branch([1, 2, 3], [False, True, True]), Branch([4, 5, 6], [False, False, True])]
    )
    batch = pack_groups([group], Layout([[0]], height=1, groups=1, length=16), n=2, actions=8)
    assert batch.actions[0, :, :2].tolist() == [[2, 3], [6, 0]]
    assert batch.acts[0].sum(-1).tolist() == [2, 1]
    assert batch.tokens[0, batch.states[0, 0, :2]].tolist() == [1, 2]
    assert batch.tokens[0, batch.states[0, 1, 0]] == 5
    with pytest.raises(ValueError, match='not even a first token'):
        shared_prompt([Example([1], [2]), Example([3], [4])])


def test_batches_pass_over_all_examples_and_depend_on_their_number_alone():
    examples = [Example([1], [10 + k]) for k in range(6)]

    def chosen(i):
        return pack_examples(examples, groups=2, n=2, i=i, seed=3).actions[..., 0].reshape(-1).tolist()

    assert sorted(chosen(0) + chosen(1)[:2]) == [10, 11, 12, 13, 14, 15]
    assert sorted(chosen(1)[2:] + chosen(2)) == [10, 11, 12, 13, 14, 15]
    assert chosen(5) == chosen(5)


def test_rows_of_rollouts_stand_in_order_of_length():
    samples = [Sample((1,) * k, Completion('', (2,), (0.0,), 'stop'), rewards=(k,)) for k in (5, 2, 9)]
    batch = pack_rollouts(samples, n=1, actions=8, mesh=devices.make_mesh(devices=jax.devices()[:1]))
    assert np.asarray(batch.rewards)[:, 0, 0].tolist() == [2, 5, 9]
