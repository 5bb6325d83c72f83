"""The tokens whose keys and values each slot has, by which the slot is found that a prompt can start from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Mixture = tuple[float, ...] | None  # weights of adapters; None: their base alone

# A prefix with fewer tokens is computed again.
WORTH = 16


class Prefixes:
    """A table of the tokens in the caches of `slots`, of the weights that computed them, and of each slot's last use.

    An entry is keyed by the mixture of adapters and by the weights, which are numbered as they are loaded. A prompt
    matches only entries of its own key.
    """

    def __init__(self, slots: int):
        self._tokens = np.full((slots, 0), -1, np.int32)
        self._keys: list[tuple[Mixture, int]] = [(None, 0)] * slots
        self._used = np.zeros(slots, np.int64)
        self._clock = 0

    def clear(self) -> None:
        """Forget everything, since the caches belong to old weights now, or are gone."""
        self._tokens = np.full((len(self._tokens), 0), -1, np.int32)

    def forget(self, slot: int, start: int = 0) -> None:
        """Forget the columns of a slot from `start` on."""
        self._tokens[slot, start:] = -1

    def write(self, slot: int, start: int, tokens: Sequence[int], mixture: Mixture = None, weights: int = 0) -> None:
        """Enter tokens into the columns of a slot from `start` on, and forget the columns after them.

        `weights` is the number of the weights that computed the slot's first column.
        """
        end = start + len(tokens)
        if end > self._tokens.shape[1]:
            # The table at least doubles, so it seldom grows.
            more = max(end, 2 * self._tokens.shape[1]) - self._tokens.shape[1]
            self._tokens = np.pad(self._tokens, ((0, 0), (0, more)), constant_values=-1)
        self._tokens[slot, start:] = -1
        self._tokens[slot, start:end] = tokens
        self._keys[slot] = mixture, weights
        # The clock counts writes, and so orders slots by their last use.
        self._clock += 1
        self._used[slot] = self._clock

    def longest(self, prompt: Sequence[int], mixture: Mixture = None, weights: int = 0) -> tuple[int, int]:
        """The slot with most of the prompt's first tokens under this mixture and these weights, and their number.

        The least recently used of equal slots is taken.
        """
        width = min(len(prompt), self._tokens.shape[1])
        # Columns that are not known hold -1, which is no token, so a slot with a gap at its beginning matches nothing.
        same = self._tokens[:, :width] == np.asarray(prompt[:width], np.int32)[None]
        counts = np.where(same.all(axis=1), width, np.argmin(same, axis=1)) if width else np.zeros(len(same), int)
        counts = np.where([key == (mixture, weights) for key in self._keys], counts, 0)
        slot = min(range(len(counts)), key=lambda slot: (-counts[slot], self._used[slot]))
        return slot, int(counts[slot])

    def held(self, slot: int) -> int:
        """The number of tokens in a slot."""
        return int((self._tokens[slot] >= 0).sum())

    def oldest(self, slots: Sequence[int]) -> int:
        """An empty slot among these, or else the least recently used one."""
        return min(slots, key=lambda slot: (self.held(slot) > 0, self._used[slot]))


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """The number of first tokens that two prompts share."""
    width = min(len(a), len(b))
    same = np.asarray(a[:width]) == np.asarray(b[:width])
    return width if same.all() else int(np.argmin(same))
