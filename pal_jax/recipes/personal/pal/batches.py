"""The pairs of a step: PAL draws batches in shuffled passes; PAL-Large draws texts, and pairs of these texts alone.

A draw is a function of the step's number and the seeds of the trials.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pal_jax.data.comparisons import Comparisons, PairBatch, shares, take
from pal_jax.data.passes import shuffled
from pal_jax.data.texts import TextPairs
from pal_jax.recipes.personal.pal.text import TextData
from pal_jax.recipes.personal.panel import Trial


def make_draw(
    data: Comparisons, trials: Sequence[Trial], updates: int, batch: int, text: TextData | None = None
) -> Callable[[int], PairBatch]:
    """A function that draws the batches `[trials, updates, batch]` of a step, in shuffled passes over the training
    pairs of each trial. `text` has the texts that the pairs were made of."""
    count, form = updates * batch, (len(trials), updates, batch)
    share_of_pairs = [shares(trial.users[trial.split.train]) for trial in trials]

    def draw(i: int) -> PairBatch:
        columns = []
        for trial, share in zip(trials, share_of_pairs, strict=True):
            # The place in the pass follows from the step's number: a resumed run draws the same pairs.
            place = shuffled(len(trial.split.train), start=i * count, size=count, seed=trial.seed)
            index = trial.split.train[place]
            columns.append((index, trial.users[index], share[place]))
        where, users, share = (np.stack(rows).reshape(form) for rows in zip(*columns, strict=True))
        pairs = take(data, where, users, share, read=text is not None)
        # A loss at every token needs the states of all tokens, which are read for the drawn pairs alone.
        return text.by_token(pairs, where) if text and text.spans else pairs

    return draw


class StepPairs(NamedTuple):
    """The draw of a step on one split: `texts` are the numbers of its texts, and sides of pairs are places in
    `texts`."""

    texts: np.ndarray  # [S]
    users: np.ndarray  # [B]
    share: np.ndarray  # [B]
    chosen: np.ndarray  # [B]
    rejected: np.ndarray  # [B]
    prompt: np.ndarray | None  # [B]


def make_text_draw(
    pairs: TextPairs, trials: Sequence[Trial], statements: int, count: int
) -> Callable[[int, int], StepPairs]:
    """A function that draws the texts and `count` pairs of a split in a step, by their numbers.

    Passes are over prompts, or over statements without prompts: a step has `statements` of them, and random pairs of
    the drawn ones alone. The function raises ValueError where no pair is of these alone.
    """
    share_of_pairs = [np.zeros(len(pairs.users), np.float32) for _ in trials]
    for share, trial in zip(share_of_pairs, trials, strict=True):
        share[trial.split.train] = shares(trial.users[trial.split.train])

    def draw(trial: int, i: int) -> StepPairs:
        train, users, seed = trials[trial].split.train, trials[trial].users, trials[trial].seed
        sides = [pairs.chosen, pairs.rejected] if pairs.prompt is None else [pairs.prompt]
        keys = np.unique([side[train] for side in sides])
        # 1. The statements of the step; a decoder then reads few texts for many pairs.
        drawn = keys[shuffled(len(keys), start=i * statements, size=min(statements, len(keys)), seed=seed)]
        # 2. The pairs whose texts are all drawn.
        within = train[np.all([np.isin(side[train], drawn) for side in sides], axis=0)]
        if not len(within):
            raise ValueError(f'decoder.statements={statements}: nobody was asked about two of those drawn; raise it')
        # 3. As many of them as the updates need, with repetitions where they are too few.
        index = np.random.default_rng([seed, i]).choice(within, count, replace=len(within) < count)
        # 4. Each text once: sides of pairs become places among the drawn texts.
        columns = [pairs.chosen[index], pairs.rejected[index]]
        columns += [] if pairs.prompt is None else [pairs.prompt[index]]
        numbers, places = np.unique(columns, return_inverse=True)
        chosen, rejected, *prompt = places.reshape(len(columns), -1)
        share = share_of_pairs[trial][index]
        return StepPairs(numbers, users[index], share, chosen, rejected, prompt[0] if prompt else None)

    return draw


def as_batch(drawn: Sequence[StepPairs], vectors: Sequence[np.ndarray]) -> PairBatch:
    """The pairs `[splits, B]` by the vectors of their texts."""

    def side(name: str) -> Any:
        rows = zip(drawn, vectors, strict=True)
        return (
            None if drawn[0].prompt is None and name == 'prompt' else np.stack([v[getattr(d, name)] for d, v in rows])
        )

    users, share = (np.stack([getattr(split, name) for split in drawn]) for name in ('users', 'share'))
    columns: Any = {name: side(name) for name in ('chosen', 'rejected', 'prompt')}
    return PairBatch(users, share=share, **columns)  # type: ignore[arg-type]


def by_texts(drawn: Sequence[StepPairs], gradient: PairBatch, vectors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The gradient by the vector of each text `[S, W]`, on each split: the sum over all pairs that have the text."""
    totals = [np.zeros_like(table) for table in vectors]
    for name in ('chosen', 'rejected', 'prompt'):
        if (by_pair := getattr(gradient, name)) is not None:
            for total, split, rows in zip(totals, drawn, np.asarray(by_pair), strict=True):
                np.add.at(total, getattr(split, name), rows)
    return totals
