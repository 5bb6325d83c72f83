"""Host records to padded device batches: the only place where shapes are born.

A row is a prompt and the branches that go on from it (`types.TokenBatch`): the samples of one prompt, or examples that
share a system prompt. With four samples of a 200-token prompt and 60-token answers a row has 440 tokens where four
separate sequences have 1,040.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from pal_jax.runtime import sharding
from pal_jax.types import RolloutBatch, Sample, TokenBatch

PROMPT = 1  # its segment; branch n has segment n + 2


class Branch(NamedTuple):
    """Tokens after a prompt, of which those from `acted` on are actions."""

    tokens: Sequence[int]
    acted: int = 0


class Row(NamedTuple):
    """One prompt, which is not empty, and what follows it."""

    prompt: Sequence[int]
    branches: Sequence[Branch]

    @property
    def length(self) -> int:
        return len(self.prompt) + sum(len(branch.tokens) for branch in self.branches)


class Example(NamedTuple):
    """What to learn by imitation: the completion, after the prompt."""

    prompt: Sequence[int]
    completion: Sequence[int]


def shared_row(examples: Sequence[Example]) -> Row:
    """Examples as one row: what all their prompts begin with is its prompt."""
    columns = zip(*(example.prompt for example in examples), strict=False)
    shared = [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]
    if not shared:
        raise ValueError('these examples have not even a first token in common; put them into rows of their own')
    cut = len(shared)
    return Row(shared, [Branch([*e.prompt[cut:], *e.completion], acted=len(e.prompt) - cut) for e in examples])


def pack_examples(examples: Sequence[Example], *, rows: int, samples: int, i: int, seed: int) -> TokenBatch:
    """Batch `i` of an endless shuffled pass over the examples: `rows` rows of `samples` each."""
    size = rows * samples
    passes = range(i * size // len(examples), ((i + 1) * size - 1) // len(examples) + 1)
    order = np.concatenate([np.random.default_rng((seed, each)).permutation(len(examples)) for each in passes])
    start = i * size - passes[0] * len(examples)
    chosen = [examples[k] for k in order[start : start + size]]
    packed = [shared_row(chosen[k : k + samples]) for k in range(0, size, samples)]
    actions = round_up(max(len(example.completion) for example in examples), 8)
    return pack_rows(packed, samples=samples, length=round_up(max(row.length for row in packed), 128), actions=actions)


def round_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def pack_rows(rows: Sequence[Row], *, samples: int, length: int, actions: int, height: int | None = None) -> TokenBatch:
    """Numpy arrays of `height` rows (all by default) of `length` tokens and `samples` times `actions` actions.

    A row may have fewer than `samples` branches; the missing ones have no actions.
    """
    height = height or len(rows)
    tokens, positions, segments, prefix = (_zeros((height, length), np.int32) for _ in range(4))
    states, chosen = (_zeros((height, samples, actions), np.int32) for _ in range(2))
    acts = _zeros((height, samples, actions), bool)
    for r, row in enumerate(rows):
        start = len(row.prompt)
        tokens[r, :start], positions[r, :start] = row.prompt, np.arange(start)
        segments[r, :start] = prefix[r, :start] = PROMPT
        for n, (branch, acted) in enumerate(row.branches):
            size, where = len(branch), slice(start, start + len(branch))
            tokens[r, where], positions[r, where] = branch, len(row.prompt) + np.arange(size)
            segments[r, where], prefix[r, where] = n + 2, PROMPT
            before = np.concatenate([[len(row.prompt) - 1], np.arange(start, start + size - 1)])
            count = size - acted
            states[r, n, :count], chosen[r, n, :count] = before[acted:], branch[acted:]
            acts[r, n, :count] = True
            start += size
    return TokenBatch(tokens, positions, segments, prefix, states, chosen, acts)


def pack_rollouts(
    samples: Sequence[Sample], *, n: int, height: int, actions: int, mesh: Mesh, multiple: int = 128
) -> RolloutBatch:
    """Samples, `n` neighbours to a prompt, as a global batch of `height` rows a process.

    Rows are padded to a `multiple` of tokens, which bounds the number of programs to compile, and stand in order of
    length, so that micro-batches of neighbours have little padding.

    Rows that are missing (a short last batch) are padding: `ok` is False and nothing acts.
    """
    groups = [samples[i : i + n] for i in range(0, len(samples), n)]
    groups.sort(key=lambda group: _row(group).length)
    rows = [_row(group) for group in groups]
    length = round_up(max(row.length for row in rows), multiple)
    tokens = pack_rows(rows, samples=n, length=length, actions=actions, height=height)
    reward, ok = _zeros((height, n), np.float32), _zeros((height, n), bool)
    logprobs = _zeros(tokens.acts.shape, np.float32)
    for r, group in enumerate(groups):
        for i, sample in enumerate(group):
            reward[r, i], ok[r, i] = sample.reward, sample.ok
            logprobs[r, i, : len(sample.completion.logprobs)] = sample.completion.logprobs
    return sharding.put_batch(RolloutBatch(tokens, reward, ok, logprobs), mesh)


def _row(group: Sequence[Sample]) -> Row:
    return Row(group[0].prompt_ids, [Branch(sample.completion.token_ids) for sample in group])


def _zeros(shape: tuple[int, ...], dtype: type) -> Any:
    """A host array that becomes a device array; to a type checker the two are not the same."""
    return np.zeros(shape, dtype)
