"""Votes on statements as pairs. A statement that a person agreed with is preferred to one they disagreed with.

A conversation `folder/NAME` is three files (votes to pass are left out):

    NAME.votes.csv          participant, comment_id, vote (1 agree, -1 disagree, 0 pass), and optionally timestamp
    NAME.statements.jsonl   {"comment_id": 3, "text": "..."}
    NAME.people.csv         participant, group (may be empty); optional. No model reads the groups.

or what https://pol.is exports, as it is: `folder` with votes.csv (timestamp, comment-id, voter-id, vote) and
comments.csv (comment-id, comment-body, agrees, disagrees).

Of two votes of a person on a statement the last counts (`judgements.settled`). `records.identity` reads the ids of
participants, statements and groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pal_jax.data import records
from pal_jax.data.readers import judgements
from pal_jax.data.readers.judgements import Judgement
from pal_jax.types import Choice

PARTS = '.votes.csv', '.statements.jsonl', '.people.csv', '.comments.csv'
# The names that columns have in the forms that are read.
PERSON, STATEMENT = ('participant', 'voter-id', 'pid'), ('comment_id', 'comment-id', 'tid')
TEXT = 'text', 'comment-body', 'txt'


class Votes(NamedTuple):
    """`n` votes by column. `people` and `statements` are numbers into `names` and `texts`."""

    people: np.ndarray  # [n]
    statements: np.ndarray  # [n]
    agree: np.ndarray  # [n], bool
    names: tuple[str, ...]
    texts: tuple[str, ...]
    groups: np.ndarray  # [people], -1 where not known
    group_names: tuple[str, ...] = ()


def read(conversation: str | Path) -> Votes:
    """The agreements and disagreements of a conversation.

    Raises:
      ValueError: a file is missing, or a row is wrong. The message names file and row.
    """
    stem, who = str(conversation), records.first_spelling()
    named, agreed = _statements(stem)
    shown = [key for key, text in named.items() if text]
    number = {key: i for i, key in enumerate(shown)}
    said: list[Judgement] = []
    flipped = False
    for place, row in records.rows(str(_file(stem, 'votes.csv'))):
        person, statement = (records.identity(place, row, _column(place, row, names)) for names in (PERSON, STATEMENT))
        flipped = flipped or 'tid' in row
        vote = records.identity(place, row, 'vote')
        if vote not in ('1', '0', '-1'):
            raise ValueError(f'{place}: vote is {row["vote"]!r}; give 1 (agree), -1 (disagree) or 0 (pass)')
        # Votes on a statement without a text, which exports have, are left out.
        if statement in named and not named[statement]:
            continue
        if statement not in number:
            raise ValueError(f'{place}: {_column(place, row, STATEMENT)} {statement!r} is no statement of {stem}')
        said.append(Judgement(place, who(person), statement, int(vote), judgements.time_of(place, row)))
    # The counts of agreement in an export tell the sign of its votes. Where they tell nothing, 1 is agreement in
    # exports, and -1 is agreement in the tables of Polis' data base (pid, tid).
    balance = sum(vote.value * agreed.get(vote.thing, 0) for vote in said)
    sign = -1 if balance < 0 or (balance == 0 and flipped) else 1
    # Of two votes of a person on a statement the last counts, and it may be a pass.
    votes = judgements.settled(said)
    cast = [(vote.person, number[vote.thing], vote.value == sign) for vote in votes if vote.value]
    if not cast:
        raise ValueError(f'{_file(stem, "votes.csv")} holds no agreement and no disagreement')
    names = tuple(dict.fromkeys(name for name, *_ in cast))
    place_of = {name: i for i, name in enumerate(names)}
    people, statements, agree = zip(*((place_of[name], s, agreed) for name, s, agreed in cast), strict=True)
    group_of = _groups(_file(stem, 'people.csv'))
    group_of = {who(name): group for name, group in group_of.items()}
    groups = np.array([group_of.get(name, '') for name in names])
    group_names = tuple(str(group) for group in np.unique(groups) if group)
    return Votes(
        np.array(people, np.int32),
        np.array(statements, np.int32),
        np.array(agree),
        names,
        tuple(named[key] for key in shown),
        np.array([group_names.index(group) if group else -1 for group in groups], np.int32),
        group_names,
    )


def draw_pairs(votes: Votes, *, most: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Up to `most` pairs of each person, drawn at random.

    The result is three arrays `[pairs]`: numbers of people, of statements agreed with, and of statements disagreed
    with.

    Raises:
      ValueError: nobody agreed with one statement and disagreed with another.
    """
    order = np.argsort(votes.people, kind='stable')
    ends = np.searchsorted(votes.people[order], np.arange(len(votes.names) + 1))
    columns: list[tuple[np.ndarray, ...]] = []
    for person in range(len(votes.names)):
        own_votes = order[ends[person] : ends[person + 1]]
        agreed, not_agreed = (votes.statements[own_votes[votes.agree[own_votes] == way]] for way in (True, False))
        # A number below the product of both counts names a pair.
        total = len(agreed) * len(not_agreed)
        sampled = np.random.default_rng([seed, person]).choice(total, min(total, most), replace=False)
        pair = np.divmod(sampled, max(len(not_agreed), 1))
        columns.append((np.full(len(sampled), person), agreed[pair[0]], not_agreed[pair[1]]))
    users, chosen, rejected = (np.concatenate(column).astype(np.int32) for column in zip(*columns, strict=True))
    if not len(users):
        raise ValueError('nobody agreed with one statement and disagreed with another; there is nothing to learn from')
    return users, chosen, rejected


def to_choices(votes: Votes, prompt: str, *, disputed: float, seed: int) -> dict[str, list[Choice]]:
    """The choices of each person, by name, between a statement agreed with and one disagreed with, in random order.

    No statement is in two choices of a person.

    Args:
      prompt: the question that the statements answer.
      disputed: a statement counts where at least this share of its votes agree, and at least this share disagree.
    """
    texts = len(votes.texts)
    votes_of_statement = np.maximum(np.bincount(votes.statements, minlength=texts), 1)
    share = np.bincount(votes.statements, weights=votes.agree, minlength=texts) / votes_of_statement
    is_disputed = np.minimum(share, 1.0 - share)[votes.statements] >= disputed
    choices: dict[str, list[Choice]] = {}
    for person, name in enumerate(votes.names):
        counted, rng = (votes.people == person) & is_disputed, np.random.default_rng([seed, person])
        sides = [rng.permutation(votes.statements[counted & (votes.agree == way)]) for way in (True, False)]
        # There are as many pairs as the side with fewer statements has.
        pairs = zip(*sides, strict=False)
        choices[name] = [Choice(prompt, votes.texts[chosen], votes.texts[rejected]) for chosen, rejected in pairs]
    return choices


def is_export(path: str | Path) -> bool:
    """True for a folder of a conversation as Polis exports it."""
    return all((Path(path) / name).is_file() for name in ('votes.csv', 'comments.csv'))


def is_votes(stem: str | Path) -> bool:
    """True for a conversation of votes in either form."""
    return is_export(stem) or Path(f'{stem}{PARTS[0]}').is_file()


def _file(stem: str, part: str) -> Path:
    return Path(stem) / part if is_export(stem) else Path(f'{stem}.{part}')


def _column(place: str, row: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The one of some names that a row has. Raises ValueError where it has none of them."""
    if known := [name for name in names if name in row]:
        return known[0]
    raise ValueError(f'{place}: there is no column {" or ".join(names)}; there are {", ".join(map(str, row))}')


def _statements(stem: str) -> tuple[dict[str, str], dict[str, int]]:
    """The text of each statement, and how many more people agreed than disagreed, where a file tells that."""
    files = [path for path in (_file(stem, 'statements.jsonl'), _file(stem, 'comments.csv')) if path.is_file()]
    if not files:
        raise ValueError(
            f'there is no file {stem}.statements.jsonl; give a conversation as <folder>/<name> of its files, or the '
            'folder of an export with votes.csv and comments.csv'
        )
    texts, agreed = dict[str, str](), dict[str, int]()
    for place, record in records.rows(str(files[0])):
        key = records.identity(place, record, _column(place, record, STATEMENT))
        text = record[_column(place, record, TEXT)]
        text = text.strip() if isinstance(text, str) else records.text_of(place, record, _column(place, record, TEXT))
        # Exports have statements without a text, which nobody could read.
        if not text and files[0].suffix != '.csv':
            raise ValueError(f'{place}: the text is empty; delete the row and its votes')
        if key in texts:
            raise ValueError(f'{place}: statement {key!r} stood in a row before')
        texts[key] = text
        # Only exports count the people who agreed and disagreed.
        if records.known(place, record, 'agrees') and records.known(place, record, 'disagrees'):
            counts = (records.identity(place, record, name) for name in ('agrees', 'disagrees'))
            agreed[key] = int.__sub__(*map(int, counts))
    return texts, agreed


def _groups(path: Path) -> dict[str, str]:
    """The group of each participant; empty where there is no such file."""
    if not path.is_file():
        return {}
    return {
        records.identity(place, row, 'participant'): records.known(place, row, 'group')
        for place, row in records.table(path, ('participant', 'group'))
    }
