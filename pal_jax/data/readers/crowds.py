"""Sets of choices by person that people bring from the hub, as choices between texts (`types.Choice`).

    multipref:<source>     MultiPref (Miranda et al. 2024, arXiv 2410.19133): four workers a pair, without ties
    community:<source>     Community Alignment (arXiv 2507.09650): the reply that an annotator preferred, by turn
    tldr_workers:<folder>  Reddit TL;DR as the workers chose (Stiennon et al. 2020); `tldr:` labels by length
    dices:<source>         DICES (Aroyo et al. 2023, arXiv 2306.11247): a conversation rated safe and one rated unsafe
    personalllm:<source>   PersonalLLM (arXiv 2409.20296): made-up people who weigh ten reward models
    vpl:<source>           VPL's pairs relabelled for kinds of user (arXiv 2408.10075): made-up people of each kind
    uf_p:<source>          UltraFeedback-P, likewise (arXiv 2408.10075)
    alignx:<source>        AlignX's pairs of P-Soups' poles, likewise (Li et al. 2025, arXiv 2503.15463)

A source is a file, or `hf:owner/name/file` (`records.rows`). The forms are those of the sets as published, and a row
that lacks a field is refused by name. The people of the last four are made up: pairs of a kind are dealt to them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pal_jax.data.holdouts import normal
from pal_jax.data.readers import judgements
from pal_jax.data.readers.judgements import Judgement
from pal_jax.data.records import field, first_spelling, identity, listed, rows, text_of
from pal_jax.run import files
from pal_jax.types import Choice

# Pairs of a person, at most, where pairs are drawn or dealt.
PAIRS = 40
HOLDERS = 200  # made-up people
# The parameter of the Dirichlet distribution of people's weights on reward models.
ALPHA = 0.1
TURNS = 'first', 'second', 'third', 'fourth'
LETTERS = 'abcd'


def multipref(source: str) -> Iterator[Choice]:
    """The choices in MultiPref: text, completion_a, completion_b, and the annotations of two kinds of workers.

    An annotation has evaluator and overall_pref: A-is-clearly-better, A-is-slightly-better, Tie, or the same of B. The
    group is the kind of worker.

    Raises:
      ValueError: a field is missing, or a preference has another value. The message names the row.
    """
    for place, row in rows(source):
        prompt, *replies = (text_of(place, row, name) for name in ('text', 'completion_a', 'completion_b'))
        for group in ('normal', 'expert'):
            for entry in listed(place, row, f'{group}_worker_annotations'):
                if not isinstance(entry, Mapping):
                    raise ValueError(f'{place}: an annotation is {files.short_repr(entry)}; give an object')
                worker, preference = identity(place, entry, 'evaluator'), field(place, entry, 'overall_pref')
                match = re.fullmatch(r'([AB])-is-(?:clearly|slightly)-better', str(preference))
                if not match and preference != 'Tie':
                    raise ValueError(f'{place}: overall_pref is {files.short_repr(preference)}; give A-is-... or Tie')
                # A tie is no choice, and two equal replies leave none.
                if match and replies[0] != replies[1]:
                    chosen, rejected = replies if match[1] == 'A' else replies[::-1]
                    yield Choice(prompt, chosen, rejected, worker, group)


def community(source: str) -> Iterator[Choice]:
    """The choices in Community Alignment: the preferred reply of a turn against each other reply.

    A row has annotator_id and, for `first` to `fourth`, <turn>_turn_prompt, <turn>_turn_response_a to d and
    <turn>_turn_preferred_response (response_a to d). The prompt is the conversation before the replies, with the
    preferred earlier ones. A conversation ends at its first turn without a preference.

    Raises:
      ValueError: a preferred reply is none of the turn's. The message names the row.
    """

    def turns(place: str, row: Mapping[str, Any]) -> Iterator[tuple[str, str, Iterable[str]]]:
        for turn in TURNS:
            prompt, preferred = (_text(row, f'{turn}_turn_{name}') for name in ('prompt', 'preferred_response'))
            # A conversation may have fewer than four turns.
            if not prompt or not preferred:
                return
            replies = {f'response_{letter}': _text(row, f'{turn}_turn_response_{letter}') for letter in LETTERS}
            if not (chosen := replies.get(preferred, '')):
                raise ValueError(
                    f'{place}: {turn}_turn_preferred_response is {preferred!r}, and there is no such reply'
                )
            # A reply that two models gave makes one pair.
            yield prompt, chosen, dict.fromkeys(replies.values())

    for place, row in rows(source):
        yield from by_turn(identity(place, row, 'annotator_id'), turns(place, row))


def by_turn(user: str, turns: Iterable[tuple[str, str, Iterable[str]]]) -> Iterator[Choice]:
    """The choices of a conversation's turns, each of a question, the chosen reply and all replies. The prompt is the
    conversation before the replies, with the earlier chosen ones."""
    before = ''
    for question, chosen, replies in turns:
        for reply in replies:
            if reply not in ('', chosen):
                yield Choice(before + question, chosen, reply, user)
        before += f'{question}\n\n{chosen}\n\n'


def _text(row: Mapping[str, Any], name: str) -> str:
    """The text of an optional field, '' where it is missing."""
    value = row.get(name)
    return value.strip() if isinstance(value, str) else ''


def tldr_workers(folder: str) -> Iterator[Choice]:
    """The workers' own choices in `train.jsonl` and, where it is there, `validation.jsonl`.

    A row has worker, info.post (or info.article), two summaries with a text, and choice: 0 or 1.

    Raises:
      ValueError: a field is missing, or a choice has another value. The message names the row.
    """
    paths = [Path(folder) / f'{name}.jsonl' for name in ('train', 'validation')]
    # Only the first file has to be there.
    for path in (paths[0], *(path for path in paths[1:] if path.is_file())):
        for place, row in rows(str(path)):
            info, pair = two_summaries(place, row)
            choice, worker = row.get('choice'), identity(place, row, 'worker')
            if isinstance(choice, bool) or choice not in (0, 1):
                raise ValueError(f'{place}: choice is {files.short_repr(choice)}; give 0 or 1')
            # Posts and news articles have fields of their own.
            post = text_of(place, info, 'post' if info.get('post') else 'article')
            texts = [text_of(place, summary, 'text').strip() for summary in pair]
            if texts[0] != texts[1]:
                yield Choice(post, texts[int(choice)], texts[1 - int(choice)], worker)


def two_summaries(place: str, row: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """A post and its two summaries. Raises ValueError where one is no object."""
    pair, info = listed(place, row, 'summaries'), field(place, row, 'info')
    if len(pair) != 2 or not all(isinstance(entry, Mapping) for entry in (*pair, info)):
        raise ValueError(f'{place}: give two summaries and info as objects, got {str([*pair, info])[:60]}')
    return info, list(pair)


def dices(source: str) -> Iterator[Choice]:
    """Pairs of a conversation that a rater called safe and one that the same rater called unsafe, drawn at random.

    A row has rater_id, context, response and Q_overall, whether anything is unsafe: Yes, No or Unsure. The safe
    conversation is the chosen one; Unsure is left out.

    Raises:
      ValueError: a field is missing, or an answer has another value. The message names the row.
    """
    who, said = first_spelling(), list[Judgement]()
    for place, row in rows(source):
        answer, rater = field(place, row, 'Q_overall'), who(identity(place, row, 'rater_id'))
        if answer not in ('Yes', 'No', 'Unsure'):
            raise ValueError(f'{place}: Q_overall is {files.short_repr(answer)}; give Yes, No or Unsure')
        words = f'{_text(row, "context")}\n\n{text_of(place, row, "response")}'.strip()
        said.append(Judgement(place, rater, words, answer, judgements.time_of(place, row)))
    answers: dict[str, dict[str, list[str]]] = {}
    for one in judgements.settled(said):
        answers.setdefault(one.person, {'Yes': [], 'No': []}).setdefault(one.value, []).append(one.thing)
    for number, (rater, by_answer) in enumerate(answers.items()):
        safe, unsafe = by_answer['No'], by_answer['Yes']
        # A number below the product of both counts names a pair.
        for k in np.random.default_rng([0, number]).permutation(len(safe) * len(unsafe))[:PAIRS]:
            chosen, rejected = safe[int(k) // len(unsafe)], unsafe[int(k) % len(unsafe)]
            if chosen != rejected:
                yield Choice('', chosen, rejected, rater)


def personalllm(source: str) -> Iterator[Choice]:
    """The choices of `HOLDERS` made-up people between two of the eight replies to a prompt.

    A row has prompt, response_1 to response_8, and for each of them response_1_<model> and so on, the rewards of some
    reward models. A person weighs these by a draw from Dirichlet(.1). The two replies are drawn at random, not the best
    and the worst.

    Raises:
      ValueError: a field is missing, or a reward is no number. The message names the row.
    """
    table = list(rows(source))
    if not table:
        raise ValueError(f'{source} has no rows')
    pattern = re.compile(r'response_1_(.+)')
    models = [match[1] for name in table[0][1] if (match := pattern.fullmatch(name)) and match[1] != 'model']
    if not models:
        raise ValueError(
            f'{table[0][0]}: no reward such as response_1_gemma_2b; its fields are {", ".join(table[0][1])}'
        )
    # The first row tells how many replies there are.
    size = 1 + max(number for number in range(1, 9) if f'response_{number}' in table[0][1])
    rewards = np.array(
        [
            [[_number(place, row, f'response_{k}_{model}') for model in models] for k in range(1, size)]
            for place, row in table
        ]
    )
    # Rewards are in standard deviations of their model, so that no model decides by its scale.
    flat = rewards.reshape(-1, len(models))
    rewards = (rewards - flat.mean(axis=0)) / np.maximum(flat.std(axis=0), 1e-9)
    for person in range(HOLDERS):
        # Every person has a stream of random numbers, so more people leave the others as they are.
        rng = np.random.default_rng([0, person])
        taste = rng.dirichlet([ALPHA] * len(models))
        for i in rng.permutation(len(table))[:PAIRS]:
            place, row = table[int(i)]
            a, b = rng.choice(size - 1, 2, replace=False)
            a, b = (a, b) if rewards[i, a] @ taste > rewards[i, b] @ taste else (b, a)
            chosen, rejected = (text_of(place, row, f'response_{k + 1}') for k in (a, b))
            if chosen != rejected:
                yield Choice(text_of(place, row, 'prompt'), chosen, rejected, f'p{person}')


def _number(place: str, row: Mapping[str, Any], name: str) -> float:
    value = field(place, row, name)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f'{place}: {name} is {files.short_repr(value)}; give a number') from None


def vpl(source: str) -> Iterator[Choice]:
    """VPL's relabelled pairs, dealt to made-up people of each kind, `PAIRS` to each, in the order of the file.

    A row has objective (the kind of user), prompt, two responses and label, the number of the one this kind prefers.

    Raises:
      ValueError: a field is missing, or a label has another value. The message names the row.
    """
    deal = _dealer()
    for place, row in rows(source):
        kind, pair, label = identity(place, row, 'objective'), listed(place, row, 'responses'), row.get('label')
        if len(pair) != 2 or isinstance(label, bool) or label not in (0, 1):
            raise ValueError(
                f'{place}: give two responses and a label of 0 or 1, got {len(pair)} and {files.short_repr(label)}'
            )
        if not all(isinstance(text, str) for text in pair):
            raise ValueError(f'{place}: responses are {files.short_repr(pair)}; give two texts')
        # A pair with an empty reply, or with one reply twice, says nothing of the kind's taste.
        if pair[0] != pair[1] and all(pair):
            chosen, rejected = pair[int(label)], pair[1 - int(label)]
            yield Choice(text_of(place, row, 'prompt'), chosen, rejected, deal(kind), kind)


def uf_p(source: str) -> Iterator[Choice]:
    """The pairs of UltraFeedback-P, dealt to made-up people of each kind, `PAIRS` to each, in the order of the file.

    A row has data_subset (the kind of user), prompt, chosen and rejected. Of messages the last one is the reply.

    Raises:
      ValueError: a field is missing. The message names the row.
    """
    deal = _dealer()
    for place, row in rows(source):
        kind = identity(place, row, 'data_subset')
        chosen, rejected = (_last(place, row, name) for name in ('chosen', 'rejected'))
        if chosen != rejected:
            yield Choice(text_of(place, row, 'prompt'), chosen, rejected, deal(kind), kind)


def alignx(source: str) -> Iterator[Choice]:
    """The pairs of AlignX's benchmark of P-Soups, dealt to made-up people of each kind, `PAIRS` to each, in the order
    of the file.

    A row has ground_truth_persona (the kind of user, as an instruction), prompt, chosen and rejected. The user's
    profile and earlier pairs are not read.

    Raises:
      ValueError: a field is missing. The message names the row.
    """
    deal = _dealer()
    for place, row in rows(source):
        kind = identity(place, row, 'ground_truth_persona')
        prompt, chosen, rejected = (text_of(place, row, name) for name in ('prompt', 'chosen', 'rejected'))
        # Some readers have no capital letters, so replies that differ in these alone make no choice.
        if normal(chosen) != normal(rejected):
            yield Choice(prompt, chosen, rejected, deal(kind), kind)


def _dealer() -> Callable[[str], str]:
    """A function of a kind that gives the made-up person of this kind who has the next pair, `PAIRS` to each."""
    dealt: Counter[str] = Counter()

    def deal(kind: str) -> str:
        dealt[kind] += 1
        return f'{kind}-{(dealt[kind] - 1) // PAIRS}'

    return deal


def _last(place: str, row: Mapping[str, Any], name: str) -> str:
    """The text of a field, or of the last message of a list; a text that is a list in words is refused by its kind."""
    value = field(place, row, name)
    if isinstance(value, list | tuple) and value and isinstance(value[-1], Mapping):
        # A list that ends with a question has no reply to take.
        if value[-1].get('role', 'assistant') != 'assistant':
            raise ValueError(f'{place}: the last message of {name} is of {value[-1]["role"]!r}; end with the reply')
        return text_of(place, value[-1], 'content')
    return text_of(place, row, name)


SOURCES: Mapping[str, Callable[[str], Iterator[Choice]]] = {
    'multipref': multipref,
    'community': community,
    'tldr_workers': tldr_workers,
    'dices': dices,
    'personalllm': personalllm,
    'vpl': vpl,
    'uf_p': uf_p,
    'alignx': alignx,
}
