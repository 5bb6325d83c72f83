"""Host records to padded device batches: the only place where shapes are born.

A row is a prompt and the branches that go on from it (`types.TokenBatch`): the samples of one prompt, or examples that
share a system prompt. With four samples of a 200-token prompt and 60-token answers a row has 440 tokens where four
separate sequences have 1,040.
"""

from __future__ import annotations

import os
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


def shared_row(examples: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Row:
    """Examples (prompt, completion) as one row: what all prompts begin with is its prompt."""
    prompts = [prompt for prompt, _ in examples]
    shared = min(len(os.path.commonprefix(prompts)), *(len(prompt) for prompt in prompts))
    if not shared:
        raise ValueError('these examples have not even a first token in common; put them into rows of their own')
    branches = [Branch([*p[shared:], *completion], acted=len(p) - shared) for p, completion in examples]
    return Row(prompts[0][:shared], branches)


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

    Rows are padded to a `multiple` of tokens, which bounds the number of programs to compile.

    Rows that are missing (a short last batch) are padding: `ok` is False and nothing acts.
    """
    groups = [samples[i : i + n] for i in range(0, len(samples), n)]
    rows = [Row(group[0].prompt_ids, [Branch(s.completion.token_ids) for s in group]) for group in groups]
    length = round_up(max(row.length for row in rows), multiple)
    tokens = pack_rows(rows, samples=n, length=length, actions=actions, height=height)
    reward, ok = _zeros((height, n), np.float32), _zeros((height, n), bool)
    logprobs = _zeros(tokens.acts.shape, np.float32)
    for r, group in enumerate(groups):
        for i, sample in enumerate(group):
            reward[r, i], ok[r, i] = sample.reward, sample.ok
            logprobs[r, i, : len(sample.completion.logprobs)] = sample.completion.logprobs
    return sharding.put_batch(RolloutBatch(tokens, reward, ok, logprobs), mesh)


def real_share(tokens: TokenBatch) -> float:
    """Share of a batch's tokens that are not padding."""
    return float((np.asarray(tokens.segments) > 0).mean())


def _zeros(shape: tuple[int, ...], dtype: type) -> Any:
    """A host array that becomes a device array; to a type checker the two are not the same."""
    return np.zeros(shape, dtype)
