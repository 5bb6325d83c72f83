"""Host records to padded device batches: the only place where shapes are born.

A group is a prompt and the branches that go on from it: the samples of one prompt, or examples that share a system
prompt. With four samples of a 200-token prompt and 60-token answers it has 440 tokens where four separate sequences
have 1,040. A row (`types.TokenBatch`) holds one group, or as many as fit into its tokens, and what the prompts of all
begin with once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from pal_jax.data.passes import shuffled
from pal_jax.runtime import sharding
from pal_jax.types import OPENING, RolloutBatch, Sample, TokenBatch


class Branch(NamedTuple):
    """Tokens after a prompt, and which of them are actions: all, or those that `acts` marks."""

    tokens: Sequence[int]
    acts: Sequence[bool] | None = None


class Compared(NamedTuple):
    """Two branches of a group, of which one was preferred, and by how much it is said to be the better one."""

    better: int
    worse: int
    margin: float = 0.0


class Group(NamedTuple):
    """One prompt, which is not empty, what follows it, and, of replies, which were compared and the labels of each: 1,
    0, or NaN where nobody gave it."""

    prompt: Sequence[int]
    branches: Sequence[Branch]
    compared: Sequence[Compared] = ()
    labels: Sequence[Sequence[float]] = ()

    @property
    def length(self) -> int:
        return len(self.prompt) + sum(len(branch.tokens) for branch in self.branches)


class Example(NamedTuple):
    """What to learn by imitation: the completion, after the prompt; of it what `acts` marks, if that is given."""

    prompt: Sequence[int]
    completion: Sequence[int]
    acts: Sequence[bool] | None = None


class Layout(NamedTuple):
    """Which groups stand in which row, and the shape of the batch: rows, groups and tokens of a row at most.

    `rows` has the indices of groups; there are `height - len(rows)` empty ones after them. So many tokens that all
    prompts begin with are a row's `opening`.
    """

    rows: Sequence[Sequence[int]]
    height: int
    groups: int
    length: int
    opening: int = 0


def lay_out(
    lengths: Sequence[int], *, ways: int = 1, micro_rows: int = 1, row_tokens: int = 0, multiple: int = 128,
    opening: int = 0,
) -> Layout:  # fmt: skip
    """Groups of these lengths in rows for each of `ways` (devices times minibatches), in whole micro-batches.

    With `row_tokens=0` a row has one group, and rows stand in order of length, so that micro-batches of neighbours have
    little padding. Otherwise rows have up to `row_tokens` tokens, or, where a group has more, what it is padded to: as
    few rows as first-fit decreasing finds, as equal in length as they can be, each with the first `opening` tokens of
    its groups once. Length is then a `multiple`, or `row_tokens`, and `groups` a power of two, so that the programs to
    compile stay few.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    rows, groups, opening = [[i] for i in order], 1, opening if row_tokens else 0
    lengths = [length - opening for length in lengths]
    if row_tokens:
        longest = opening + max(lengths)
        budget = row_tokens if longest <= row_tokens else round_up(longest, multiple)
        rows = _first_fit(lengths, order[::-1], budget - opening)
    height = _height(len(rows), ways, micro_rows)
    if row_tokens:
        rows = _evened(lengths, order[::-1], rows, height)
        groups = 1 << (max(len(row) for row in rows) - 1).bit_length()
    longest = opening + max(sum(lengths[i] for i in row) for row in rows)
    length = round_up(longest, multiple)
    return Layout(rows, height, groups, min(length, row_tokens) if longest <= row_tokens else length, opening)


def lay_out_groups(groups: Sequence[Group], **shape: int) -> Layout:
    """`lay_out` of these groups, with what all their prompts begin with; a token of each is left to its group."""
    prompts = [tuple(group.prompt) for group in groups]
    alike = zip(min(prompts), max(prompts), strict=False)
    opening = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], alike))
    shortest = min(map(len, prompts))
    return lay_out([group.length for group in groups], **shape, opening=min(opening, shortest - 1))


def _first_fit(lengths: Sequence[int], order: Sequence[int], budget: int) -> list[list[int]]:
    """Each group in the first row with space for it."""
    rows: list[list[int]] = []
    space: list[int] = []
    for i in order:
        row = next((r for r, left in enumerate(space) if left >= lengths[i]), len(rows))
        if row == len(rows):
            rows.append([])
            space.append(budget)
        rows[row].append(i)
        space[row] -= lengths[i]
    return rows


def _evened(lengths: Sequence[int], order: Sequence[int], rows: list[list[int]], height: int) -> list[list[int]]:
    """Each group in the shortest of `height` rows, unless one becomes longer than all of `rows` are; shortest first."""
    even: list[list[int]] = [[] for _ in range(min(height, len(order)))]

    def length(row: Sequence[int]) -> int:
        return sum(lengths[i] for i in row)

    for i in order:
        min(even, key=length).append(i)
    best = even if max(map(length, even)) <= max(map(length, rows)) else rows
    return sorted(best, key=length)


def _height(rows: int, ways: int, micro_rows: int) -> int:
    each = -(-rows // ways)
    return ways * round_up(each, min(each, micro_rows))


def round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def pack_groups(groups: Sequence[Group], layout: Layout, *, n: int, actions: int) -> TokenBatch:
    """Numpy arrays of `layout`'s shape, with `n` times `actions` actions for every group that a row may have.

    A group may have fewer than `n` branches; what is missing has no actions.
    """
    flat, acted = (layout.height, layout.length), (layout.height, layout.groups * n, actions)
    tokens, positions, segments, prefix = (_zeros(flat, np.int32) for _ in range(4))
    states, chosen, acts = _zeros(acted, np.int32), _zeros(acted, np.int32), _zeros(acted, bool)
    for r, row in enumerate(layout.rows):
        start = layout.opening
        if row and start:
            tokens[r, :start], positions[r, :start] = groups[row[0]].prompt[:start], np.arange(start)
            segments[r, :start] = prefix[r, :start] = OPENING
        for place, group in enumerate(groups[i] for i in row):
            shared = 1 + place * (n + 1)  # the segment of the prompt; branch k has `shared + 1 + k`
            size = len(group.prompt)
            own = np.arange(layout.opening, size)
            fork, end = start + len(own) - 1, start + len(own)
            tokens[r, start:end], positions[r, start:end] = group.prompt[layout.opening :], own
            segments[r, start:end] = prefix[r, start:end] = shared
            start = end
            for k, (branch, acting) in enumerate(group.branches):
                end = start + len(branch)
                tokens[r, start:end], positions[r, start:end] = branch, size + np.arange(len(branch))
                segments[r, start:end], prefix[r, start:end] = shared + 1 + k, shared
                before = np.concatenate([[fork], np.arange(start, end - 1)])
                marked = np.arange(len(branch)) if acting is None else np.flatnonzero(acting)
                where = r, place * n + k, slice(0, len(marked))
                states[where], chosen[where], acts[where] = before[marked], np.asarray(branch)[marked], True
                start = end
    return TokenBatch(tokens, positions, segments, prefix, states, chosen, acts)


def pack_rollouts(
    samples: Sequence[Sample], *, n: int, actions: int, mesh: Mesh, ways: int = 1, micro_rows: int = 1,
    row_tokens: int = 0, multiple: int = 128,
) -> RolloutBatch:  # fmt: skip
    """Samples, `n` neighbours to a prompt and the same in every process, as a global batch.

    `ways` and what follows are `lay_out`'s.

    Rows and samples that are missing are padding: `ok` is False and nothing acts.
    """
    sampled = [samples[i : i + n] for i in range(0, len(samples), n)]
    groups = [Group(each[0].prompt_ids, [Branch(s.completion.token_ids) for s in each]) for each in sampled]
    layout = lay_out_groups(groups, ways=ways, micro_rows=micro_rows, row_tokens=row_tokens, multiple=multiple)
    tokens = pack_groups(groups, layout, n=n, actions=actions)
    logprobs = _zeros(tokens.acts.shape, np.float32)
    place = tokens.acts.shape[:2]
    rewards = _zeros((*place, len(samples[0].rewards)), np.float32)
    ok, role = _zeros(place, bool), _zeros(place, np.int32)
    for r, row in enumerate(layout.rows):
        for k, sample in enumerate(sample for i in row for sample in sampled[i]):
            rewards[r, k], ok[r, k], role[r, k] = sample.rewards, sample.ok, sample.role
            logprobs[r, k, : len(sample.completion.logprobs)] = sample.completion.logprobs
    return sharding.put_batch(RolloutBatch(tokens, rewards, ok, role, logprobs), mesh)


def shared_prompt(examples: Sequence[Example]) -> Group:
    """Examples as one group: what all their prompts begin with is its prompt."""
    columns = zip(*(example.prompt for example in examples), strict=False)
    shared = [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]
    if not shared:
        raise ValueError('these examples have not even a first token in common; put them into groups of their own')
    cut = len(shared)
    return Group(shared, [_branch(example, cut) for example in examples])


def _branch(example: Example, cut: int) -> Branch:
    """The example after the first `cut` tokens of its prompt."""
    rest = example.prompt[cut:]
    acts = [True] * len(example.completion) if example.acts is None else example.acts
    return Branch([*rest, *example.completion], [*[False] * len(rest), *acts])


def pack_examples(
    examples: Sequence[Example], *, groups: int, n: int, i: int, seed: int, ways: int = 1, row_tokens: int = 0
) -> TokenBatch:
    """Batch `i` of an endless shuffled pass over the examples: `groups` of `n` that share a prompt, see `lay_out`.

    Which examples these are follows from `i` and `seed`, so a run that resumes needs to remember no position.
    """
    size = groups * n
    chosen = [examples[k] for k in shuffled(len(examples), start=i * size, size=size, seed=seed)]
    shared = [shared_prompt(chosen[k : k + n]) for k in range(0, size, n)]
    actions = round_up(max(len(example.completion) for example in examples), 8)
    return pack_whole(shared, n=n, actions=actions, ways=ways, row_tokens=row_tokens)


def pack_whole(groups: Sequence[Group], *, n: int, actions: int, ways: int = 1, row_tokens: int = 0) -> TokenBatch:
    """These groups as one batch."""
    layout = lay_out_groups(groups, ways=ways, row_tokens=row_tokens)
    return pack_groups(groups, layout, n=n, actions=actions)


def most_actions(groups: Sequence[Group]) -> int:
    """The largest number of actions of a branch, rounded up."""
    branches = (branch for group in groups for branch in group.branches)
    return round_up(max(len(b.tokens) if b.acts is None else sum(b.acts) for b in branches), 8)


def _zeros(shape: tuple[int, ...], dtype: type) -> Any:
    """A host array that becomes a device array; to a type checker the two are not the same."""
    return np.zeros(shape, dtype)
