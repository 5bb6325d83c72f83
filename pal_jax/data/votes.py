"""Votes on statements as pairs. A statement that a person agreed with is preferred to one they disagreed with.

A conversation `folder/NAME` is three files, as in the open data of https://pol.is (votes to pass are left out):

    NAME.votes.csv          participant, comment_id, vote (1 agree, -1 disagree, 0 pass)
    NAME.statements.jsonl   {"comment_id": 3, "text": "..."}
    NAME.people.csv         participant, group (may be empty); optional. No model reads the groups.

`records.identity` reads the ids of participants, statements and groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pal_jax.data import records
from pal_jax.data.records import Row
from pal_jax.types import Choice

PARTS = '.votes.csv', '.statements.jsonl', '.people.csv'


class Votes(NamedTuple):
    """`n` votes by column. `people` and `statements` are numbers into `names` and `texts`."""

    people: np.ndarray  # [n]
    statements: np.ndarray  # [n]
    agree: np.ndarray  # [n], bool
    names: tuple[str, ...]
    texts: tuple[str, ...]
    groups: np.ndarray  # [people], -1 where not known


def read(conversation: str | Path) -> Votes:
    """The agreements and disagreements of a conversation.

    Raises:
      ValueError: a file is missing, or a row is wrong. The message names file and row.
    """
    stem = str(conversation)
    texts = dict(_statements(Path(f'{stem}.statements.jsonl')))
    number = {key: i for i, key in enumerate(texts)}
    who = records.first_spelling()
    cast: list[tuple[str, int, bool]] = []
    for place, row in _rows(Path(f'{stem}.votes.csv'), ('participant', 'comment_id', 'vote')):
        if row['vote'] not in ('1', '0', '-1'):
            raise ValueError(f'{place}: vote is {row["vote"]!r}; give 1 (agree), -1 (disagree) or 0 (pass)')
        person, statement = (records.identity(place, row, name) for name in ('participant', 'comment_id'))
        if statement not in number:
            raise ValueError(f'{place}: comment_id {statement!r} is not in {stem}.statements.jsonl')
        if row['vote'] != '0':
            cast.append((who(person), number[statement], row['vote'] == '1'))
    if not cast:
        raise ValueError(f'{stem}.votes.csv holds no agreement and no disagreement')
    names = tuple(dict.fromkeys(name for name, *_ in cast))
    place_of = {name: i for i, name in enumerate(names)}
    people, statements, agree = zip(*((place_of[name], s, agreed) for name, s, agreed in cast), strict=True)
    group_of = _groups(Path(f'{stem}.people.csv'))
    group_of = {who(name): group for name, group in group_of.items()}
    groups = np.array([group_of.get(name, '') for name in names])
    group_names = [group for group in np.unique(groups) if group]
    return Votes(
        np.array(people, np.int32), np.array(statements, np.int32), np.array(agree), names, tuple(texts.values()),
        np.array([group_names.index(group) if group else -1 for group in groups], np.int32),
    )  # fmt: skip


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
        pairs = zip(*sides, strict=False)  # as many as the fewer have
        choices[name] = [Choice(prompt, votes.texts[chosen], votes.texts[rejected]) for chosen, rejected in pairs]
    return choices


def _statements(path: Path) -> Iterator[tuple[str, str]]:
    if not path.is_file():
        raise ValueError(f'there is no file {path}; give a conversation as <folder>/<name> of its files')
    keys_before = set()
    for place, record in records.rows(str(path)):
        if 'comment_id' not in record or not isinstance(record.get('text'), str):
            raise ValueError(f'{place}: give comment_id and a text, got {str(record)[:60]}')
        key, text = records.identity(place, record, 'comment_id'), record['text'].strip()
        if not text:
            raise ValueError(f'{place}: the text is empty; delete the row and its votes')
        if key in keys_before:
            raise ValueError(f'{place}: comment_id {key!r} stood in a row before')
        keys_before.add(key)
        yield key, text


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row]:
    if not path.is_file():
        raise ValueError(f'there is no file {path}; give a conversation as <folder>/<name> of its files')
    return records.table(path, columns)


def _groups(path: Path) -> dict[str, str]:
    """The group of each participant; empty where there is no such file."""
    if not path.is_file():
        return {}
    return {
        records.identity(place, row, 'participant'): records.known(place, row, 'group')
        for place, row in _rows(path, ('participant', 'group'))
    }
