"""PAL's in-context baseline on texts: a person's earlier choices stand in front of a pair, a frozen decoder reads both,
and one linear reward of its states is learnt for all people. Only the text says who somebody is.

A seen person has two contexts, each of `count` training pairs at random. A training pair is read after the first
context that has none of its texts, or after nothing: the answer to a pair never stands in front of it. All other pairs
of seen people are read after the first context. A new person's context is of known choices, `count` at most.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pal_jax.data.comparisons import Comparisons, choices_at, rank_within
from pal_jax.data.histories import context_of
from pal_jax.data.texts import Text, TextPairs
from pal_jax.models import states
from pal_jax.recipes.personal import logit
from pal_jax.recipes.personal.evaluation import Evaluate, MethodResult
from pal_jax.recipes.personal.judged import judge
from pal_jax.recipes.personal.pal import text as pal_text
from pal_jax.recipes.personal.pal.reader import Batching, frozen_reader
from pal_jax.recipes.personal.pal.settings import TextSettings
from pal_jax.recipes.personal.pal.text import Decoder
from pal_jax.recipes.personal.panel import Trial, newcomers
from pal_jax.run.accuracy import hits
from pal_jax.run.recipe import Context
from pal_jax.types import Choice

PULLS = 1e-3, 1e-2, 1e-1, 1.0  # pulls of the reward's weights to 0, beside a mean loss; the validation part chooses
LEARNT = 1024  # training pairs at most, and as many that choose the pull: reading is the cost
CHUNK = 2048  # texts read at once

Vectors = Callable[[Sequence[Text]], np.ndarray]  # the state of each text's last token


class ContextPairs(NamedTuple):
    """Pairs by their numbers, and the context of each: numbers of pairs of the same person."""

    pairs: np.ndarray
    context: list[tuple[int, ...]]


def make_method(text: TextSettings, ctx: Context, decoder: Decoder, pairs: TextPairs, count: int) -> Evaluate:
    """The method as PAL's table compares it, with contexts of `count` choices."""
    vectors, opening = make_vectors(text, ctx, decoder), tuple(decoder.tokenizer.opening)

    def differences(asked: ContextPairs) -> np.ndarray:
        texts: dict[Text, int] = {}
        starts = {numbers: tell(decoder, pairs, numbers) for numbers in set(asked.context)}
        sides = [
            [texts.setdefault(text, len(texts)) for text in after(pairs, pair, starts[context], opening)]
            for pair, context in zip(asked.pairs, asked.context, strict=True)
        ]
        chosen, rejected = np.array(sides).T
        table = vectors(tuple(texts))
        return table[chosen] - table[rejected]

    def method(data: Comparisons, trials: Sequence[Trial], counts: Sequence[int]) -> MethodResult:
        # New people answer in one order; with more known choices a context only grows.
        new = newcomers(data, trials)
        seen, rows = [], [[] for _ in counts]
        for r, trial in enumerate(trials):
            parts = {name: differences(part) for name, part in seen_people(pairs, trial, count).items()}
            # The reward is fitted on training pairs, its pull chosen on the validation part.
            reward = fit(parts['train'], parts['validation'])
            test = trial.split.test
            seen.append(judge(parts['test'] @ reward, trial.users[test], choices_at(data, test)))
            rank, margins_of = new.rank[r, : len(trial.split.fit)], {}
            for row, known in zip(rows, counts, strict=True):
                # Contexts hold `count` choices at most, so larger counts have the same margins.
                if (shown := min(known, count)) not in margins_of:
                    margins_of[shown] = differences(new_people(trial, rank, shown)) @ reward
                row.append(judge(margins_of[shown], trial.users[trial.split.new_test], new.choices[r]))
        return MethodResult(seen, rows, shared=decoder.cfg.width)

    return method


def seen_people(pairs: TextPairs, trial: Trial, count: int) -> dict[str, ContextPairs]:
    """The parts of the seen people's choices, with the context of each choice."""
    split, users, rng = trial.split, trial.users, np.random.default_rng([trial.seed, 3])
    rank = rank_within(users[split.train], rng.permutation(len(split.train)))
    # Two contexts without a common pair, so that most training pairs find one that does not have their texts.
    first, second = (first_of(split.train, users, rank - start, count) for start in (0, count))

    def apart(pair: int) -> tuple[int, ...]:
        texts_of_pair = sides(pairs, [pair])
        return next((c for c in (first[users[pair]], second[users[pair]]) if not texts_of_pair & sides(pairs, c)), ())

    # A part of the pairs, drawn at random: reading them is what costs.
    learnt, validation = (np.sort(rng.permutation(part)[:LEARNT]) for part in (split.train, split.validation))
    parts = {'train': ContextPairs(learnt, [apart(pair) for pair in learnt])}
    for name, part in (('validation', validation), ('test', split.test)):
        parts[name] = ContextPairs(part, [first[users[pair]] for pair in part])
    return parts


def new_people(trial: Trial, rank: np.ndarray, known: int) -> ContextPairs:
    """The pairs that new people are tested on, each after the person's first `known` known choices."""
    split, users = trial.split, trial.users
    first = first_of(split.fit, users, rank, known)
    return ContextPairs(split.new_test, [first[users[pair]] for pair in split.new_test])


def first_of(index: np.ndarray, users: np.ndarray, rank: np.ndarray, count: int) -> list[tuple[int, ...]]:
    """The pairs of ranks 0 to `count` - 1, by user."""
    by_user: list[tuple[int, ...]] = [()] * (int(users.max()) + 1)
    for pair in index[(rank >= 0) & (rank < count)]:
        by_user[users[pair]] += (int(pair),)
    return by_user


def sides(pairs: TextPairs, numbers: Sequence[int]) -> set[int]:
    """The texts that a context must not share with a pair that is learnt: its statements, or else its prompt.

    Replies may be the same for many prompts, so prompts stand for them.
    """
    columns = (pairs.chosen, pairs.rejected) if pairs.prompt is None else (pairs.prompt,)
    return {int(column[k]) for column in columns for k in numbers}


def tell(decoder: Decoder, pairs: TextPairs, context: Sequence[int]) -> tuple[int, ...]:
    """The tokens of a context: the choices that were made, in words."""
    if not context:
        return ()

    def words_of(numbers: np.ndarray | None, pair: int) -> str:
        return '' if numbers is None else pairs.words[numbers[pair]]

    past = [Choice(words_of(pairs.prompt, k), words_of(pairs.chosen, k), words_of(pairs.rejected, k)) for k in context]
    words = context_of(past, random.Random(str(context)), 'labelled', asked=pairs.prompt is not None)
    return (*decoder.tokenizer.opening, *decoder.tokenizer.plain(f'{words}\n\n', 'user'))


def after(pairs: TextPairs, pair: int, start: tuple[int, ...], opening: tuple[int, ...] = ()) -> Iterator[Text]:
    """Both texts of a pair, with its prompt before them, after the tokens of a context, which begins with the
    opening."""
    prompt = () if pairs.prompt is None else pairs.texts[pairs.prompt[pair]].tokens
    for number in (pairs.chosen[pair], pairs.rejected[pair]):
        tokens = (*prompt, *pairs.texts[number].tokens)
        # A chat template's opening stands at the start of the whole text alone.
        opened = bool(start) and tokens[: len(opening)] == opening
        yield Text(tokens[len(opening) :] if opened else tokens, start)


def make_vectors(text: TextSettings, ctx: Context, decoder: Decoder) -> Vectors:
    """A function that gives the vectors of texts by the frozen decoder.

    Vectors are computed once, and kept in `text.folder`. Texts with the same context share its states.
    """
    cfg, batching = decoder.cfg, Batching(micro_rows=2, row_tokens=256, together=16)
    made_by = {'source': text.source, 'in context': True, 'layers': cfg.layers, 'dtype': cfg.dtype}

    @functools.cache  # weights are read where a text is new
    def reader() -> Vectors:
        return frozen_reader(cfg, pal_text.load(decoder, ctx), ctx.mesh, 'last', batching=batching)

    def vectors(texts: Sequence[Text]) -> np.ndarray:
        def compute() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            # Neighbours in this order have the same context: the reader computes its states once.
            order = sorted(range(len(texts)), key=lambda i: texts[i].before)
            for start in range(0, len(texts), CHUNK):
                numbers = np.array(order[start : start + CHUNK])
                yield numbers, reader()([texts[i] for i in numbers])

        return states.stored(text.folder, texts, made_by, compute, (len(texts), cfg.width))

    return vectors


def fit(train: np.ndarray, validation: np.ndarray) -> np.ndarray:
    """Weights `[H]` of the Bradley-Terry model whose margins are `differences @ weights`.

    The pull to 0 is the one that does best on the validation part.
    """
    # In units of the differences' deviation one grid of pulls suits every decoder.
    scale = train.std() or 1.0
    fits = [logit.logistic(train / scale, pull * len(train)) / scale for pull in PULLS]
    return max(fits, key=lambda weights: hits(validation @ weights).mean())
