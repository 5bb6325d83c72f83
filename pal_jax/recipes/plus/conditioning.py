"""The evaluation of a reward model that reads about a person: is it right about that person's choices?

The accuracy on choices that were not taught of this person stands next to its controls: the accuracy by the text about
a person of another kind, about somebody at random, and by no text. A gain over these controls is about the person.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pal_jax.data import holdouts
from pal_jax.data.histories import History, content
from pal_jax.data.thoughts import spoken_reply
from pal_jax.recipes.plus.summaries import question
from pal_jax.run import intervals
from pal_jax.types import ChatModel, Choice, Exhibit

# Texts of people, those of a person together, written at these temperatures; or vectors, for models without words.
Describe = Callable[[Sequence[History], Sequence[float]], list[Any]]
TOLD = {  # the summaries that are read, by the prefix of their figures
    '': 'their own, the likeliest',
    'sampled_': 'their own, drawn',
    'other_': 'that of a person of another kind',
    'random_': 'that of somebody at random',
    'none_': 'none',
}
Gaps = Callable[[Sequence[Any], Sequence[Sequence[Choice]]], np.ndarray]  # [texts, choices of a text]


def evaluate(
    describe: Describe,
    gaps: Gaps,
    splits: Mapping[str, Sequence[History]],
    *,
    temperature: float,
    samples: int = 1,
    shown: int,
    nothing: Any = '',
    whole: bool = True,
) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    """Figures of every split of people, and some people of each split with their summaries.

    The first split's figures go by their own names and stand beside their controls. `nothing` is the text about nobody.
    Without `whole` only the first split is evaluated, by the likeliest summaries.
    """
    record: dict[str, Any] = {}
    people: list[Mapping[str, Any]] = []
    if not whole:
        splits, samples = dict(itertools.islice(splits.items(), 1)), 0
    for number, (name, tested) in enumerate(splits.items()):
        controls = whole and number == 0
        settings: Any = {'temperature': temperature, 'samples': samples, 'controls': controls, 'nothing': nothing}
        figures, texts, margins = table(describe, gaps, tested, **settings)
        record |= figures if number == 0 else {f'{name}_{key}': value for key, value in figures.items()}
        people += [show(*parts) for parts in zip(tested[:shown], texts, margins, strict=False)]
    return record, people


def table(
    describe: Describe,
    gaps: Gaps,
    people: Sequence[History],
    *,
    temperature: float,
    samples: int = 1,
    controls: bool,
    nothing: Any = '',
) -> tuple[dict[str, Any], list[Any], np.ndarray]:
    """Figures of some people, with the likeliest summary of each and its gaps.

    `accuracy` and `reward` (mean log sigmoid of the gap) are by the likeliest summary, `sampled_...` are means over
    `samples` summaries drawn at `temperature`; the controls are by somebody else's summary, or by none. Standard errors
    and intervals are over people, whose accuracies are `accuracy_by_person`. `words` is the mean length of texts. Where
    kinds are known, `named` is the share of texts that name the person's kind and no other, `misnamed` the share that
    name another kind alone.
    """
    kinds = [person.kind for person in people]
    # The texts of a person stand together, and the likeliest is the first.
    texts = describe(people, [0.0, *[temperature] * samples])
    likeliest, drawn = texts[:: 1 + samples], [text for k, text in enumerate(texts) if k % (1 + samples)]
    by_person = {'': likeliest} | ({'sampled_': drawn} if drawn else {})
    texts_of = dict(by_person)
    if controls:
        texts_of['none_'] = [nothing] * len(people)
    if controls and (random := of_somebody(likeliest, people)):
        texts_of['random_'] = random
    if controls and len(set(kinds)) > 1:
        texts_of['other_'] = [likeliest[i] for i in of_another_kind(kinds)]
    held = [[person.held for person in people for _ in range(len(of) // len(people))] for of in texts_of.values()]
    # All gaps are asked for at once: much of the reading is the same, and is then done once.
    margins = gaps(list(itertools.chain(*texts_of.values())), list(itertools.chain(*held)))
    cuts = np.cumsum([len(of) for of in texts_of.values()])[:-1]
    figures: dict[str, Any] = {'people': len(people)}
    for name, gaps_of_text in zip(texts_of, np.split(margins, cuts), strict=True):
        # A tie is wrong.
        right = (gaps_of_text > 0).reshape(len(people), -1).mean(axis=1)
        figures |= intervals.share(right).named(f'{name}accuracy')
        figures[f'{name}reward'] = float(-np.logaddexp(0.0, -gaps_of_text).mean())
    plain = margins[: len(people)]
    # Accuracies are kept by person, so that methods can be compared on the same people.
    figures['accuracy_by_person'] = (plain > 0).mean(axis=1).tolist()
    for name, texts in by_person.items() if isinstance(nothing, str) else ():
        figures[f'{name}words'] = float(np.mean([len(text.split()) for text in texts]))
        kind_of_text = [kind for kind in kinds for _ in range(len(texts) // len(people))]
        figures |= {f'{name}{key}': value for key, value in shares_naming_kind(texts, kind_of_text).items()}
    return figures, likeliest, plain


def of_somebody(texts: Sequence[Any], people: Sequence[History] = ()) -> list[Any] | None:
    """The text of somebody else for each person, drawn at random but alike in every evaluation; None where there is
    nobody else.

    People of the same content are one person; without `people`, each text has a person of its own.
    """
    order = np.random.default_rng(0).permutation(len(texts))[::-1].tolist()
    others = holdouts.strangers(list(map(content, people)) or list(map(str, order)), order)
    return others and [texts[i] for i in others]


def of_another_kind(kinds: Sequence[str]) -> list[int]:
    """The number of another person for each person: the next one, round and round, of another kind."""
    count = len(kinds)
    return [next(j % count for j in range(i + 1, i + count) if kinds[j % count] != kinds[i]) for i in range(count)]


def shares_naming_kind(texts: Sequence[str], kinds: Sequence[str]) -> dict[str, float]:
    """The shares of texts that name the kind of their person, where it is known.

    `named` is the share that name it and no other kind, `misnamed` the share that name another kind alone. The record
    is empty where nobody's kind is known.
    """
    # A kind may stand in singular or plural and in any case.
    words = {kind: re.compile(rf'\b{re.escape(kind.rstrip("s"))}s*\b', re.IGNORECASE) for kind in set(kinds) if kind}
    kinds_named = [
        (kind, {other for other, word in words.items() if word.search(text)})
        for text, kind in zip(texts, kinds, strict=True)
        if kind
    ]
    if not kinds_named:
        return {}
    return {
        'named': float(np.mean([named == {kind} for kind, named in kinds_named])),
        'misnamed': float(np.mean([bool(named) and kind not in named for kind, named in kinds_named])),
    }


def show(person: History, text: Any, gaps: np.ndarray) -> Mapping[str, Any]:
    """A person as a report shows one."""
    text = text if isinstance(text, str) else f'a vector of length {np.linalg.norm(text):.2f}'
    scores = {'accuracy': float((gaps > 0).mean()), 'gap': float(gaps.mean())}
    turns = [
        {'role': 'user', 'content': person.context},
        {'role': 'assistant', 'content': text, 'rewards': scores},
    ]
    return {'person': person.user, 'facts': [person.kind] if person.kind else [], 'turns': turns}


def make_exhibits(record: Mapping[str, Any], splits: Sequence[str]) -> list[Exhibit]:
    """A table of the figures of `evaluate`, for each split's people by the summary that is read."""
    head = ['people', 'the summary that is read', 'accuracy', 'mean reward', 'words', 'names the kind', 'names another']
    rows = [head]
    for split in ['', *(f'{name}_' for name in splits[1:])]:
        for name, title in TOLD.items():
            if f'{split}{name}accuracy' in record:
                keys = ('reward', 'words', 'named', 'misnamed')
                figures = [record.get(f'{split}{name}{key}') for key in keys]
                cells = ['' if value is None else f'{value:.3f}' for value in figures]
                accuracy, error = (record[f'{split}{name}accuracy{end}'] for end in ('', '_se'))
                right = f'{accuracy:.3f}' if error is None else f'{accuracy:.3f} ± {error:.3f}'
                people = f'{split.rstrip("_") or splits[0]}, {record[f"{split}people"]}'
                rows.append([people, title, right, *cells])
    # A column in which no row has a figure is left out.
    known = [column for column in zip(*rows, strict=True) if any(column[1:])]
    return [Exhibit('Whose summary is read', table=[list(row) for row in zip(*known, strict=True)])]


def personalise(
    model: ChatModel, gaps: Gaps, people: Sequence[History], texts: Sequence[str], *, seed: int
) -> tuple[dict[str, Any], Exhibit]:
    """The evaluation of replies: does a reply written after a person's summary suit the person better than one without?

    `written_better` is the share of replies after the person's summary that the reward model prefers to replies after
    none. `written_for_somebody_better` is the same for replies after a summary of somebody at random, the gain of any
    summary; it is absent where there is nobody else. `written` counts the people for whom all replies could be had.
    """
    # Every reply answers the first prompt that tests the person, and the reward model compares by the person's own
    # summary (rlpa_plus III.5, eval_inference).
    prompts = [person.held[0].prompt for person in people]
    random = of_somebody(texts, people)
    sources = [texts, [''] * len(people), *([random] if random else [])]
    chats = [[question(t, p) for t, p in zip(source, prompts, strict=True)] for source in sources]
    replies = [[text and spoken_reply(text) for text in model(messages, seed)] for messages in chats]
    kept = [i for i in range(len(people)) if all(row[i] and str(row[i]).strip() for row in replies)]
    record: dict[str, Any] = {'written': len(kept)}
    after_own, plain, *somebody = ([str(row[i]).strip() for i in kept] for row in replies)

    def compare(written: Sequence[str]) -> np.ndarray:
        choices = [[Choice(prompts[i], ours, none)] for i, ours, none in zip(kept, written, plain, strict=True)]
        return gaps([texts[i] for i in kept], choices)[:, 0]

    named = {'written': after_own} | ({'written_for_somebody': somebody[0]} if somebody else {})
    gaps_by_name = {name: compare(written) for name, written in named.items()} if kept else {}
    for name, differences in gaps_by_name.items():
        # A tie is a half.
        better = (np.sign(differences) + 1.0) / 2.0
        record |= intervals.share(better).named(f'{name}_better')
        record[f'{name}_gap'] = float(differences.mean())
    head = ['person', 'summary', 'prompt', 'reply after it', 'reply without', 'gap']
    rows = [
        [people[i].user, texts[i], prompts[i], mine, none, f'{gap:+.2f}']
        for i, mine, none, gap in zip(kept, after_own, plain, gaps_by_name.get('written', ()), strict=True)
    ]
    return record, Exhibit('Replies with and without a summary', table=[head, *rows[:8]])
