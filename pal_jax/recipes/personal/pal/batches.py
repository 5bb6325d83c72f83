"""The pairs of a step: PAL draws batches in shuffled passes; PAL-Large draws texts, and pairs of these texts alone.

A draw is a function of the step's number and the seeds of the trials.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pal_jax.data.comparisons import Comparisons, PairBatch, shares, take
from pal_jax.data.passes import shuffled
from pal_jax.data.texts import TextPairs
from pal_jax.recipes.personal.pal.settings import LargeSettings, Settings
from pal_jax.recipes.personal.pal.text import TextData
from pal_jax.recipes.personal.panel import Trial


@dataclasses.dataclass(frozen=True)
class PassDraw:
    """The batches `[trials, updates, batch]` of a step, in shuffled passes over the training pairs of each trial.

    Attributes:
      shares: for each trial, 1 / the number of training pairs of a pair's user, by training pair.
      text: the texts that the pairs were made of; None for a table.
    """

    data: Comparisons
    trials: Sequence[Trial]
    shares: Sequence[np.ndarray]
    updates: int
    batch: int
    text: TextData | None = None

    def __call__(self, i: int) -> PairBatch:
        index, users, share = [], [], []
        count = self.updates * self.batch
        for trial, of_pair in zip(self.trials, self.shares, strict=True):
            # The place in the pass follows from the step's number: a resumed run draws the same pairs.
            place = shuffled(len(trial.split.train), start=i * count, size=count, seed=trial.seed)
            index.append(trial.split.train[place])
            users.append(trial.users[index[-1]])
            share.append(of_pair[place])
        form = (len(self.trials), self.updates, self.batch)
        where, *columns = (np.stack(rows).reshape(form) for rows in (index, users, share))
        batch = take(self.data, where, *columns, read=self.text is not None)
        # A loss at every token needs the states of all tokens, which are read for the drawn pairs alone.
        return batch if self.text is None or self.text.spans is None else self.text.by_token(batch, where)


def make_draw(
    settings: Settings, data: Comparisons, trials: Sequence[Trial], text: TextData | None = None, updates: int = 0
) -> PassDraw:
    """A draw of `updates` batches a step; 0: as many as the settings say."""
    share_of_pairs = [shares(trial.users[trial.split.train]) for trial in trials]
    return PassDraw(data, trials, share_of_pairs, updates or settings.updates, settings.batch, text)


class StepPairs(NamedTuple):
    """The draw of a step on one split: `texts` are the numbers of its texts, and sides of pairs are places in
    `texts`."""

    texts: np.ndarray  # [S]
    users: np.ndarray  # [B]
    share: np.ndarray  # [B]
    chosen: np.ndarray  # [B]
    rejected: np.ndarray  # [B]
    prompt: np.ndarray | None  # [B]


@dataclasses.dataclass(frozen=True)
class TextDraw:
    """Shuffled passes over prompts, or over statements without prompts, and random pairs of the drawn ones alone.

    Attributes:
      statements: the number of prompts or statements of a step.
      count: the number of pairs of a step.
      shares: for each trial, 1 / the number of training pairs of a pair's user, by training pair.
    """

    pairs: TextPairs
    trials: Sequence[Trial]
    shares: Sequence[np.ndarray]
    statements: int
    count: int

    def __call__(self, trial: int, i: int) -> StepPairs:
        """The texts and pairs of a split in step `i`.

        Raises:
          ValueError: no pair is of the drawn texts alone.
        """
        pairs, split, users = self.pairs, self.trials[trial].split, self.trials[trial].users
        train, size, seed = split.train, self.statements, self.trials[trial].seed
        sides = [pairs.chosen, pairs.rejected] if pairs.prompt is None else [pairs.prompt]
        keys = np.unique([side[train] for side in sides])
        # 1. The statements of the step; a decoder then reads few texts for many pairs.
        drawn = keys[shuffled(len(keys), start=i * size, size=min(size, len(keys)), seed=seed)]
        # 2. The pairs whose texts are all drawn.
        within = train[np.all([np.isin(side[train], drawn) for side in sides], axis=0)]
        if not len(within):
            raise ValueError(f'decoder.statements={size}: nobody was asked about two of those drawn; raise it')
        rng = np.random.default_rng([seed, i])
        # 3. As many of them as the updates need, with repetitions where they are too few.
        index = rng.choice(within, self.count, replace=len(within) < self.count)
        share = np.zeros(len(users), np.float32)
        share[train] = self.shares[trial]
        # 4. Each text once: pairs name it by its place.
        # 5. Sides of pairs become places among the drawn texts.
        columns = [pairs.chosen[index], pairs.rejected[index]]
        columns += [] if pairs.prompt is None else [pairs.prompt[index]]
        numbers, places = np.unique(columns, return_inverse=True)
        chosen, rejected, *prompt = places.reshape(len(columns), -1)
        return StepPairs(numbers, users[index], share[index], chosen, rejected, prompt[0] if prompt else None)


def make_text_draw(settings: LargeSettings, pairs: TextPairs, trials: Sequence[Trial]) -> TextDraw:
    """A draw of `decoder.statements` prompts or statements and of `updates` times `batch` pairs a step."""
    share_of_pairs = [shares(trial.users[trial.split.train]) for trial in trials]
    return TextDraw(pairs, trials, share_of_pairs, settings.decoder.statements, settings.updates * settings.batch)


def as_batch(drawn: Sequence[StepPairs], vectors: Sequence[np.ndarray]) -> PairBatch:
    """The pairs `[splits, B]` by the vectors of their texts."""

    def side(name: str) -> np.ndarray:
        return np.stack([table[getattr(split, name)] for split, table in zip(drawn, vectors, strict=True)])

    prompt = None if drawn[0].prompt is None else side('prompt')
    users, share = (np.stack([getattr(split, name) for split in drawn]) for name in ('users', 'share'))
    columns: Any = {'users': users, 'share': share, 'prompt': prompt}
    columns |= {name: side(name) for name in ('chosen', 'rejected')}
    return PairBatch(**columns)


def in_turn(batch: PairBatch, updates: int) -> PairBatch:
    """The pairs `[splits, updates * B]` as `[splits, updates, B]`."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0], updates, -1, *x.shape[2:]), batch)


def by_texts(drawn: Sequence[StepPairs], gradient: PairBatch, vectors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The gradient by the vector of each text `[S, W]`, on each split: the sum over all pairs that have the text."""
    totals = [np.zeros_like(table) for table in vectors]
    for name in ('chosen', 'rejected', 'prompt'):
        if (by_pair := getattr(gradient, name)) is not None:
            for total, split, rows in zip(totals, drawn, np.asarray(by_pair), strict=True):
                np.add.at(total, getattr(split, name), rows)
    return totals
