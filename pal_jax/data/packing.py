"""Host records as padded device batches. The shapes of all batches are decided here.

A group is a prompt and the branches that go on from it: the samples of one prompt, or examples that share a system
prompt. With four samples of a 200-token prompt and 60-token answers it has 440 tokens where four separate sequences
have 1,040. A row (`types.TokenBatch`) holds one group, or as many as fit into its tokens. The tokens that all its
prompts begin with stand in it once.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from pal_jax.data.passes import shuffled
from pal_jax.run import sharding
from pal_jax.types import OPENING, RolloutBatch, Sample, TokenBatch


class Branch(NamedTuple):
    """Tokens after a prompt. All of them are actions, or those that `acts` marks."""

    tokens: Sequence[int]
    acts: Sequence[bool] | None = None


class BranchPair(NamedTuple):
    """The indices of two branches of a group, the better and the worse one, and the margin that the rater stated; 0
    without one."""

    better: int
    worse: int
    margin: float = 0.0


class PromptGroup(NamedTuple):
    """One prompt, which is not empty, and its branches.

    Where the branches are replies, `compared` has the pairs that were compared, and `labels` the labels of each branch:
    1, 0, or NaN for a label that nobody gave. `source` is the prompt as a row of a file has it, a text or messages.
    """

    prompt: Sequence[int]
    branches: Sequence[Branch]
    compared: Sequence[BranchPair] = ()
    labels: Sequence[Sequence[float]] = ()
    source: str | list[dict[str, Any]] | None = None

    @property
    def length(self) -> int:
        """The number of tokens of the prompt and all branches."""
        return len(self.prompt) + sum(len(branch.tokens) for branch in self.branches)

    def length_apart(self, block: int) -> int:
        """The number of tokens where every branch follows a copy of the prompt, together in whole blocks."""
        return sum(round_up(len(self.prompt) + len(branch.tokens), block) for branch in self.branches)


class Example(NamedTuple):
    """A completion to imitate, after its prompt. Where `acts` is given, only the tokens that it marks are learnt."""

    prompt: Sequence[int]
    completion: Sequence[int]
    acts: Sequence[bool] | None = None


class Layout(NamedTuple):
    """The groups of each row, by index, and the shape of the batch.

    `height - len(rows)` empty rows follow `rows`. `groups` and `length` are the largest numbers of groups and of tokens
    in a row. `opening` is the number of tokens that all prompts begin with and that a row has once.
    """

    rows: Sequence[Sequence[int]]
    height: int
    groups: int
    length: int
    opening: int = 0


def lay_out(
    lengths: Sequence[int],
    *,
    ways: int = 1,
    micro_rows: int = 1,
    row_tokens: int = 0,
    multiple: int = 128,
    opening: int = 0,
) -> Layout:
    """Lay groups of these lengths out in rows, in whole micro-batches of `micro_rows` rows.

    The number of rows divides over `ways`, the devices times the minibatches, so that every device has whole
    micro-batches of every minibatch.

    With `row_tokens=0` a row has one group. Otherwise rows have up to `row_tokens` tokens, or the padded length of the
    longest group where that is more, and the first `opening` tokens of their groups once. The length is then about a
    half of `row_tokens`, or all of it, and `groups` is a power of two. In all cases the length is a multiple of
    `multiple`, or `row_tokens`.
    """
    # In order of length, micro-batches of neighbouring rows have little padding.
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    rows, groups, opening = [[i] for i in order], 1, opening if row_tokens else 0
    lengths = [length - opening for length in lengths]
    if row_tokens:
        longest = opening + max(lengths)
        budget = row_tokens if longest <= row_tokens else round_up(longest, multiple)
        # First-fit decreasing says how many rows there are, and the groups are then spread over them evenly.
        rows = _first_fit(lengths, order[::-1], budget - opening)
    height = _height(len(rows), ways, micro_rows)
    if row_tokens:
        rows = _evened(lengths, order[::-1], rows, height)
        # A power of two, and few lengths, keep the programs to compile few: one takes longer than a step.
        groups = 1 << (max(len(row) for row in rows) - 1).bit_length()
    longest = opening + max(sum(lengths[i] for i in row) for row in rows)
    if longest > row_tokens:
        return Layout(rows, height, groups, round_up(longest, multiple), opening)
    half = round_up(-(-row_tokens // 2), multiple)
    return Layout(rows, height, groups, min(round_up(longest, half), row_tokens), opening)


def lay_out_groups(groups: Sequence[PromptGroup], **shape: int) -> Layout:
    """The layout of these groups by `lay_out`, with an opening of the tokens that all their prompts begin with.

    Each group keeps at least one token of its prompt.
    """
    prompts = [tuple(group.prompt) for group in groups]
    # What the least and the greatest prompt in lexical order share is shared by all.
    alike = zip(min(prompts), max(prompts), strict=False)
    opening = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], alike))
    shortest = min(map(len, prompts))
    return lay_out([group.length for group in groups], **shape, opening=min(opening, shortest - 1))


def _first_fit(lengths: Sequence[int], order: Sequence[int], budget: int) -> list[list[int]]:
    """The rows where each group, in this order, is put in the first row with space for it."""
    rows: list[list[int]] = []
    space: list[int] = []
    for i in order:
        row = next((r for r, room in enumerate(space) if room >= lengths[i]), len(rows))
        if row == len(rows):
            rows.append([])
            space.append(budget)
        rows[row].append(i)
        space[row] -= lengths[i]
    return rows


def _evened(lengths: Sequence[int], order: Sequence[int], rows: list[list[int]], height: int) -> list[list[int]]:
    """The rows where each group is put in the shortest of `height` rows; the shortest row comes first.

    `rows` is returned, in order of length, where a row would otherwise become longer than all of them.
    """
    even: list[list[int]] = [[] for _ in range(min(height, len(order)))]

    def length(row: Sequence[int]) -> int:
        return sum(lengths[i] for i in row)

    for i in order:
        min(even, key=length).append(i)
    # A greedy spread may need a longer row than the packing, which then stays.
    best = even if max(map(length, even)) <= max(map(length, rows)) else rows
    return sorted(best, key=length)


def _height(rows: int, ways: int, micro_rows: int) -> int:
    """The number of rows, rounded up to whole micro-batches of each of `ways`."""
    # A way with fewer rows than a micro-batch has one smaller micro-batch.
    rows_of_way = -(-rows // ways)
    return ways * round_up(rows_of_way, min(rows_of_way, micro_rows))


def round_up(length: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `length`."""
    return -(-length // multiple) * multiple


def pack_groups(groups: Sequence[PromptGroup], layout: Layout, *, n: int, actions: int, apart: int = 0) -> TokenBatch:
    """Numpy arrays of `layout`'s shape, with room for `n` branches of `actions` actions in every group of a row.

    A group may have fewer than `n` branches; the missing ones have no actions. With `apart`, every branch and a copy of
    its prompt are one segment, which begins at a multiple of `apart` columns; the layout is of `length_apart`.
    """
    flat, acted = (layout.height, layout.length), (layout.height, layout.groups * n, actions)
    tokens, positions, segments, prefix = (_zeros(flat, np.int32) for _ in range(4))
    states, actions_, acts = _zeros(acted, np.int32), _zeros(acted, np.int32), _zeros(acted, bool)

    def write(r: int, start: int, ids: Sequence[int], first: int, segment: int, seen: int) -> int:
        """Write tokens, whose positions begin at `first`, and return the column after them."""
        end = start + len(ids)
        tokens[r, start:end], positions[r, start:end] = ids, first + np.arange(len(ids))
        segments[r, start:end], prefix[r, start:end] = segment, seen
        return end

    for r, row in enumerate(layout.rows):
        # The opening stands once at the head of a row; the row's first group has its tokens.
        start = write(r, 0, groups[row[0]].prompt[: layout.opening], 0, OPENING, OPENING) if row else 0
        for place, group in enumerate(groups[i] for i in row):
            # The segment of the prompt is `shared`, and branch k has the segment `shared + 1 + k`.
            shared = 1 + place * (n + 1)
            size = len(group.prompt)
            # A group's prompt goes on where the row's opening ends, and its positions go on, too.
            if not apart:
                start = write(r, start, group.prompt[layout.opening :], layout.opening, shared, shared)
            fork = start - 1
            for k, (branch, acting) in enumerate(group.branches):
                segment = shared + 1 + k
                if apart:
                    start = write(r, round_up(start, apart), group.prompt, 0, segment, segment)
                    fork = start - 1
                end = write(r, start, branch, size, segment, segment if apart else shared)
                # An action is predicted in the column before it; the first one of a branch in the prompt's last column.
                before = np.concatenate([[fork], np.arange(start, end - 1)])
                marked = np.arange(len(branch)) if acting is None else np.flatnonzero(acting)
                where = r, place * n + k, slice(0, len(marked))
                states[where], actions_[where], acts[where] = before[marked], np.asarray(branch)[marked], True
                start = end
    return TokenBatch(tokens, positions, segments, prefix, states, actions_, acts)


def pack_rollouts(
    samples: Sequence[Sample], *, n: int, actions: int, mesh: Mesh, ways: int = 1, micro_rows: int = 1,
    row_tokens: int = 0, multiple: int = 128, gathered: bool = False, apart: int = 0,
) -> RolloutBatch:  # fmt: skip
    """Samples as a global batch. `n` neighbours have the same prompt, and all processes pass the same samples.

    `ways` and the arguments up to `multiple` are those of `lay_out`. With `gathered` the samples come in any order:
    those that have the same prompt stand together, up to `n` of them, so a prompt that comes up often is read once.
    Missing rows and samples are padding, which has `ok` False and no actions. For `apart` see `pack_groups`.
    """
    sampled = by_prompt(samples, n) if gathered else [samples[i : i + n] for i in range(0, len(samples), n)]
    groups = [
        PromptGroup(group_samples[0].prompt_ids, [Branch(s.completion.token_ids) for s in group_samples])
        for group_samples in sampled
    ]
    shape = {'ways': ways, 'micro_rows': micro_rows, 'row_tokens': row_tokens, 'multiple': multiple}
    if apart:
        layout = lay_out([group.length_apart(apart) for group in groups], **shape)
    else:
        layout = lay_out_groups(groups, **shape)
    tokens = pack_groups(groups, layout, n=n, actions=actions, apart=apart)
    logprobs = _zeros(tokens.acts.shape, np.float32)
    place = tokens.acts.shape[:2]
    rewards = _zeros((*place, len(samples[0].rewards)), np.float32)
    ok, role = _zeros(place, bool), _zeros(place, np.int32)
    # Rewards and log-probabilities of samples stand where the layout put their actions.
    for r, row in enumerate(layout.rows):
        for k, sample in ((place * n + k, s) for place, i in enumerate(row) for k, s in enumerate(sampled[i])):
            rewards[r, k], ok[r, k], role[r, k] = sample.rewards, sample.ok, sample.role
            logprobs[r, k, : len(sample.completion.logprobs)] = sample.completion.logprobs
    return sharding.put_batch(RolloutBatch(tokens, rewards, ok, role, logprobs), mesh)


def by_prompt(samples: Sequence[Sample], n: int) -> list[list[Sample]]:
    """The samples of each prompt in their order, cut into groups of at most `n`."""
    alike: dict[tuple[int, ...], list[Sample]] = {}
    for sample in samples:
        alike.setdefault(tuple(sample.prompt_ids), []).append(sample)
    return [same[k : k + n] for same in alike.values() for k in range(0, len(same), n)]


def shared_prompt(examples: Sequence[Example]) -> PromptGroup:
    """Examples as one group, whose prompt is the tokens that all their prompts begin with.

    Raises:
      ValueError: the prompts do not even share a first token.
    """
    columns = zip(*(example.prompt for example in examples), strict=False)
    shared = [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]
    if not shared:
        raise ValueError('these examples have not even a first token in common; put them into groups of their own')
    cut = len(shared)
    return PromptGroup(shared, [_branch(example, cut) for example in examples])


def _branch(example: Example, cut: int) -> Branch:
    """The example after the first `cut` tokens of its prompt."""
    rest_of_prompt = example.prompt[cut:]
    acts = [True] * len(example.completion) if example.acts is None else example.acts
    return Branch([*rest_of_prompt, *example.completion], [*[False] * len(rest_of_prompt), *acts])


def pack_examples(
    examples: Sequence[Example], *, groups: int, n: int, i: int, seed: int, ways: int = 1, row_tokens: int = 0
) -> TokenBatch:
    """Batch `i` of endless shuffled passes over the examples, in `groups` groups of `n` examples, see `lay_out`.

    The examples of a batch follow from `i` and `seed`, so a run that resumes needs to remember no position.
    """
    size = groups * n
    batch = [examples[k] for k in shuffled(len(examples), start=i * size, size=size, seed=seed)]
    shared = [shared_prompt(batch[k : k + n]) for k in range(0, size, n)]
    actions = round_up(max(len(example.completion) for example in examples), 8)
    return pack_whole(shared, n=n, actions=actions, ways=ways, row_tokens=row_tokens)


def pack_whole(
    groups: Sequence[PromptGroup], *, n: int, actions: int, ways: int = 1, row_tokens: int = 0
) -> TokenBatch:
    """One batch of tokens with all groups."""
    layout = lay_out_groups(groups, ways=ways, row_tokens=row_tokens)
    return pack_groups(groups, layout, n=n, actions=actions)


def branch_places(layout: Layout, n: int) -> Int[np.ndarray, 'R K']:
    """The index of the group that has each branch of a packed batch, `-1` where there is none: `[rows, groups * n]`."""
    places = np.full((layout.height, layout.groups * n), -1)
    for r, row in enumerate(layout.rows):
        for place, i in enumerate(row):
            places[r, place * n : (place + 1) * n] = i
    return places


def most_actions(groups: Sequence[PromptGroup]) -> int:
    """The largest number of actions of a branch, rounded up to a multiple of 8."""
    branches = (branch for group in groups for branch in group.branches)
    return round_up(max(len(b.tokens) if b.acts is None else sum(b.acts) for b in branches), 8)


def _zeros(shape: tuple[int, ...], dtype: type) -> Any:
    """A host array of zeros that becomes a device array."""
    # The type of the result is `Any`, for host and device arrays have different types.
    return np.zeros(shape, dtype)
