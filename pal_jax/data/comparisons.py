"""People's choices as columns: people are split into seen and new, their choices into parts, and parts into batches.

A situation is one decision of a person: a choice of one among four tariffs is one situation of three pairs. A situation
is never cut, and a question that a person was asked twice counts as one. So a model is tested on other questions than
it was trained on. Texts that differ in case and white space alone are the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from pal_jax.data.holdouts import normal
from pal_jax.data.records import Drop, WrongRows, first_spelling
from pal_jax.run import forecast

LEAST = 3  # questions of a person: one for training, one for validation and one for the test


@dataclasses.dataclass(frozen=True)
class PreferencePair:
    """One person's choice between two items, given by their numbers.

    Pairs of one `situation` were chosen at once. `group` is the person's, '' where it is not known.
    """

    user: str
    chosen: tuple[float, ...]
    rejected: tuple[float, ...]
    situation: str
    prompt: tuple[float, ...] = ()
    group: str = ''


class PairBatch(struct.PyTreeNode):
    """Pairs of items by their vectors, `H` wide. Axes of replicas and of updates may stand before `B` pairs.

    The two sides may have a vector for each of `T` tokens. `weight` then has the weight of the pair's loss at each
    token.
    """

    users: Int[Array, '*S B']
    chosen: Float[Array, '*S B *T H']
    rejected: Float[Array, '*S B *T H']
    # 1 / the number of pairs of the pair's user, or 0. A pair without a share is padding, or is not known yet, and has
    # no influence.
    share: Float[Array, '*S B']
    prompt: Float[Array, '*S B H'] | None = None
    weight: Float[Array, '*S B T'] | None = None
    # The situation of each pair, see `choice_numbers`; None: each pair is a choice of its own.
    situation: Int[Array, '*S B'] | None = None
    # The number of people, where it matters; some may have no pair.
    people: int = struct.field(pytree_node=False, default=0)

    @property
    def counts(self) -> Any:
        """True `[*S, B]` for the pairs that count."""
        return self.share > 0

    @property
    def difference(self) -> Any:
        """The vectors `[*S, B, H]` of the chosen items less those of the others."""
        return self.chosen - self.rejected

    def swapped(self) -> PairBatch:
        """The pairs with the other item as the chosen one."""
        return self.replace(chosen=self.rejected, rejected=self.chosen)

    def where(self, known: np.ndarray) -> PairBatch:
        """The pairs `[B]` of the host, of which those that are not `known` count no more."""
        counts = np.asarray(self.counts) & known
        # The pairs that are left share their user's weight anew.
        share = np.zeros(counts.shape, np.float32)
        share[counts] = shares(np.asarray(self.users)[counts])
        return self.replace(share=share)


@dataclasses.dataclass(frozen=True, eq=False)
class Lookup:
    """An array `[n, H]` whose rows are looked up in a table, which may lie on disk. Indexing reads the rows."""

    table: np.ndarray  # [S, H]
    numbers: np.ndarray  # [n], or of any number of axes

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape `[n, H]` of the array."""
        return *self.numbers.shape, self.table.shape[1]

    def at(self, index: np.ndarray) -> Lookup:
        """The `Lookup` of the rows at `index`, without reading them."""
        return dataclasses.replace(self, numbers=self.numbers[index])

    def of(self, replica: int) -> Lookup:
        """The `Lookup` in the table of one replica. All replicas share this table."""
        return self

    def __getitem__(self, where: Any) -> np.ndarray:
        if isinstance(where, tuple) and len(where) > self.numbers.ndim:
            return self.table[self.numbers[where[:-1]]][..., where[-1]]
        return self.table[self.numbers[where]]


class Comparisons(NamedTuple):
    """`n` pairs by column. `users` and `situations` are numbers; `names` are the users', `attributes` the items'.

    Where many pairs share few items (statements), the sides are a `Lookup` in the table of all items, and `texts` has
    the items' words. `groups` has the users' groups, numbers of `group_names`, -1 where a group is not known.
    """

    users: np.ndarray  # [n]
    situations: np.ndarray  # [n]
    chosen: np.ndarray | Lookup  # [n, H]
    rejected: np.ndarray | Lookup  # [n, H]
    prompt: np.ndarray | Lookup | None  # [n, H]
    names: tuple[str, ...]
    attributes: tuple[str, ...]
    texts: tuple[str, ...] = ()
    groups: np.ndarray | None = None
    group_names: tuple[str, ...] = ()

    @property
    def difference(self) -> np.ndarray:
        """The vectors `[n, H]` of the chosen items less those of the others."""
        return self.chosen[:] - self.rejected[:]

    @property
    def items(self) -> np.ndarray:
        """All items, chosen ones first."""
        return np.concatenate([self.chosen[:], self.rejected[:]])


class Split(NamedTuple):
    """The numbers of the pairs in each part: three parts of seen people's pairs, two of new people's."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    fit: np.ndarray
    new_test: np.ndarray


def from_pairs(pairs: Sequence[PreferencePair], attributes: Sequence[str] = ()) -> Comparisons:
    """The columns of these pairs. Users are numbered in the order in which they come, and called as written first.

    Raises:
      ValueError: a user is in two groups.
    """
    who = first_spelling()
    users = [who(pair.user) for pair in pairs]
    names = tuple(dict.fromkeys(users))
    number = {name: i for i, name in enumerate(names)}
    keys = [(user, pair.situation) for user, pair in zip(users, pairs, strict=True)]
    situations = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    chosen, rejected = (
        np.array([getattr(pair, side) for pair in pairs], np.float32) for side in ('chosen', 'rejected')
    )
    group_of: dict[str, str] = {}
    spelled: dict[str, str] = {}
    for user, pair in zip(users, pairs, strict=True):
        # Groups that differ in capitals alone are the same.
        group = spelled.setdefault(pair.group.casefold(), pair.group)
        # A person's group need not stand in every row of theirs.
        if group and group_of.setdefault(user, group) != group:
            raise ValueError(
                f'user {user!r} is in group {group_of[user]!r} and in group {group!r}, and a person has one: if one is '
                "misspelt, mend it; else name another column by --config.group, or none by --config.group=''"
            )
    group_names = tuple(sorted(set(group_of.values())))
    groups = [group_names.index(group_of[name]) if name in group_of else -1 for name in names]
    return Comparisons(
        users=np.array([number[user] for user in users], np.int32),
        situations=np.array([situations[key] for key in keys], np.int32),
        chosen=chosen,
        rejected=rejected,
        prompt=np.array([pair.prompt for pair in pairs], np.float32) if pairs[0].prompt else None,
        names=names,
        attributes=tuple(attributes) or default_names(chosen.shape[1]),
        groups=np.array(groups, np.int32) if group_of else None,
        group_names=group_names,
    )


def default_names(width: int) -> tuple[str, ...]:
    """Names for the attributes of items that are vectors: x0, x1, ..."""
    return tuple(f'x{i}' for i in range(width))


def in_units(items: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Items `[..., H]`, each attribute divided by its scale `[H]`; infinite where float32 has no such number."""
    # A value that overflows becomes infinite, and the caller decides what that means.
    with np.errstate(over='ignore'):
        return (items / scale).astype(np.float32)


def standardized(data: Comparisons, scale: np.ndarray) -> Comparisons:
    """The pairs with each attribute in units of `scale` `[H]`, its standard deviation.

    Raises:
      ValueError: the two items of a pair are equal in these units in float32.
    """
    chosen, rejected = (in_units(side[:], scale) for side in (data.chosen, data.rejected))
    if (same := (chosen == rejected).all(axis=1)).any():
        pair = int(same.argmax())
        raise ValueError(
            f'pair {pair + 1}, of user {data.names[data.users[pair]]!r}: the items {data.chosen[pair].tolist()} and '
            f'{data.rejected[pair].tolist()} are the same in units of standard deviations in float32; subtract from '
            'each attribute what all items have in common, or delete the row'
        )
    return data._replace(chosen=chosen, rejected=rejected)


def row_keys(table: np.ndarray) -> np.ndarray:
    """A number for each row of a table `[S, H]` of float32. Equal rows have equal numbers, and others hardly ever."""
    factors = np.random.default_rng(0).integers(1, 2**63, table.shape[1], np.uint64, endpoint=True)
    # The table may lie on disk, so it is read a chunk at a time.
    chunk = max((1 << 22) // max(table.shape[1], 1), 1)
    starts = range(0, max(len(table), 1), chunk)
    # The sum with 0 makes -0 the same as 0, since the bits of the rows are hashed.
    parts = (np.asarray(table[s : s + chunk], np.float32) + np.float32(0) for s in starts)
    return np.concatenate([np.sum(part.view(np.uint32) * factors, axis=1, dtype=np.uint64) for part in parts])


def alike(table: np.ndarray, keys: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """An array of bools, True where a table's rows at `left` and at `right` are equal. `keys` are its `row_keys`."""
    same = keys[left] == keys[right]
    # Only rows with equal keys are read and compared, since other rows cannot be equal.
    at = np.flatnonzero(same)
    same[at] = (table[left[at]] == table[right[at]]).all(axis=1)
    return same


def split(data: Comparisons, *, seed: int, seen: float, train: float, validation: float) -> Split:
    """Split people into seen and new, then each person's situations into parts, all at random by `seed`.

    A seen person's situations are for training, for validation and for the test. A new person's are for fitting (as
    many as for training) and for the test. Situations of a person with the same items are in the same part.

    Args:
      seen: the share of people who are seen.
      train, validation: the shares of a person's situations; all others are for the test.

    Raises:
      ValueError: there is nobody seen or nobody new.
      WrongRows: people have fewer than three questions; ValueError where no two others are left.
    """
    rng, people = np.random.default_rng(seed), len(data.names)
    count = round(seen * people)
    if not 0 < count < people:
        raise ValueError(f'split.seen={seen} of {forecast.counted(people, "person")} leaves nobody seen or nobody new')
    # People are drawn first, so that the questions make no difference to who is new.
    is_seen = np.zeros(people, bool)
    is_seen[rng.permutation(people)[:count]] = True
    # Situations of a person with the same items are one question, and are drawn as one.
    number = questions(data)
    _, first = np.unique(number, return_index=True)
    question_of_pair, owner = number[data.situations], _owners(data, number)
    place = rank_within(owner, rng.permutation(len(number))[first])
    count_of_user = np.bincount(owner, minlength=people)
    if (users := np.flatnonzero(count_of_user < LEAST)).size:
        listed = forecast.few_of([f'{data.names[user]} ({count_of_user[user]})' for user in users])
        kind, advice = (WrongRows, '') if people - len(users) > 1 else (ValueError, '; give each person more questions')
        raise kind(
            f'{forecast.counted(len(users), "person")} with fewer than the {LEAST} different questions that training, '
            f'validation and test need: {listed}{advice}'
        )
    # Training and validation have one question at least, and training leaves two.
    cuts = np.maximum(np.round(count_of_user * train), 1), np.maximum(np.round(count_of_user * validation), 1)
    first = np.minimum(cuts[0], count_of_user - 2)
    part = (place >= first[owner]).astype(int) + (place >= (first + cuts[1])[owner])
    of_pair, of_seen = part[question_of_pair], is_seen[data.users]
    seen_parts = [np.flatnonzero(of_seen & (of_pair == k)) for k in range(3)]
    new_parts = [np.flatnonzero(~of_seen & (of_pair == 0)), np.flatnonzero(~of_seen & (of_pair > 0))]
    return Split._make([*seen_parts, *new_parts])


def without_few(data: Comparisons, drop: Drop) -> Comparisons:
    """The choices of the people who have as many questions as `split` needs; `drop` takes a line about the others."""
    enough = np.bincount(_owners(data, questions(data)), minlength=len(data.names)) >= LEAST
    if enough.all():
        return data
    names = [name for name, has in zip(data.names, enough, strict=True) if not has]
    if not enough.any():
        raise ValueError(f'nobody has {LEAST} different questions, which training, validation and test need')
    drop(
        f'left out {forecast.counted(len(names), "person")} with fewer than {LEAST} questions: {forecast.few_of(names)}'
    )
    keep, people = enough[data.users], np.flatnonzero(enough)
    groups = None if data.groups is None else data.groups[people]
    # A group that nobody is left in is none.
    left = [] if groups is None else sorted({*groups.tolist()} - {-1})
    return data._replace(
        users=np.searchsorted(people, data.users[keep]).astype(np.int32),
        situations=np.unique(data.situations[keep], return_inverse=True)[1].astype(np.int32),
        chosen=data.chosen[keep],
        rejected=data.rejected[keep],
        prompt=None if data.prompt is None else data.prompt[keep],
        names=tuple(data.names[person] for person in people),
        groups=None if groups is None else np.array([left.index(g) if g >= 0 else -1 for g in groups], np.int32),
        group_names=tuple(data.group_names[g] for g in left),
    )


def split_items(data: Comparisons, *, seed: int, seen: float, train: float, validation: float) -> Split:
    """Split people into seen and new, and items into parts, all at random by `seed`.

    A pair belongs to the part that both its items are in, and to no part where they are in two.

    Raises:
      ValueError: there is nobody seen, nobody new, or no pair to validate with.
    """
    assert isinstance(data.chosen, Lookup) and isinstance(data.rejected, Lookup)
    rng, people = np.random.default_rng(seed), len(data.names)
    is_seen = rng.permutation(people) < round(seen * people)
    same = same_texts(data)
    # Where there are prompts, the prompts are split into parts in place of the items, and replies may occur in several.
    if isinstance(data.prompt, Lookup):
        distinct_prompts, of_pair = np.unique(same[data.prompt.numbers], return_inverse=True)
        items, sides = len(distinct_prompts), [of_pair]
        if items < 3:
            raise ValueError(
                f'all choices answer {forecast.counted(items, "prompt")}, and training, validation and test have '
                'prompts of their own; without the column of the prompt, the statements are split'
            )
    else:
        distinct, item = np.unique(same, return_inverse=True)
        items, sides = len(distinct), [item[data.chosen.numbers], item[data.rejected.numbers]]
    place = rng.permutation(items)
    part = (place >= round(train * items)).astype(int) + (place >= round((train + validation) * items))
    of_pair = part[sides[0]]
    # Without the pairs of two parts, nobody was asked in training about an item of the test.
    of_pair[of_pair != part[sides[-1]]] = -1
    # People who have no pair in training or none in the test are left out.
    has = [np.bincount(data.users[of_pair == k], minlength=people) > 0 for k in (0, 2)]
    counted = (has[0] & has[1])[data.users]
    of_seen = is_seen[data.users]
    if not (counted & of_seen).any() or not (counted & ~of_seen).any():
        raise ValueError(
            f'of {people} people with choices among {items} different texts or prompts, nobody has choices in all '
            f'parts at split.seen={seen}, split.train={train} and split.validation={validation}; the test is on new '
            'texts, so ask each person about many more'
        )
    seen_parts = [np.flatnonzero(counted & of_seen & (of_pair == k)) for k in range(3)]
    if not len(seen_parts[1]):
        raise ValueError(
            f'no known person has a choice between the {round(validation * items)} of {items} different texts that '
            f'split.validation={validation} sets apart; the test is on new texts, so ask each person about many more; '
            'with few texts take --config=pal, where each text is an attribute'
        )
    new_parts = [np.flatnonzero(counted & ~of_seen & (of_pair == k)) for k in (0, 2)]
    return Split._make([*seen_parts, *new_parts])


def same_texts(data: Comparisons) -> np.ndarray:
    """The number `[items]` of the first item with the same text (`holdouts.normal`), for each item of a table.

    An item without words keeps its own number.
    """
    assert isinstance(data.chosen, Lookup)
    first: dict[str, int] = {}
    words = map(normal, data.texts)
    numbers = [first.setdefault(text, i) if text else i for i, text in enumerate(words)]
    return np.array(numbers, np.int64) if numbers else np.arange(len(data.chosen.table))


def repeats(data: Comparisons) -> int:
    """The number of texts that equal an earlier text, or of situations, where there are no texts."""
    numbers = same_texts(data) if data.texts else questions(data)
    return len(numbers) - len(np.unique(numbers))


def questions(data: Comparisons) -> np.ndarray:
    """The number of each situation's question, in the order in which questions come first.

    Situations have the same question where the user, the prompt and the set of items are the same.
    """
    keys = np.zeros(int(data.situations.max()) + 1, np.uint64)
    # A sum does not depend on the order of the rejected items.
    np.add.at(keys, data.situations, _hashes(data.rejected))
    with np.errstate(over='ignore'):
        key = _hashes(data.chosen) + _mixed(data.users.astype(np.uint64) + np.uint64(1))
        key += _hashes(data.prompt) * np.uint64(3) if data.prompt is not None else np.uint64(0)
        # A situation without pairs keeps its own number, so it is a question of its own.
        others = np.arange(len(keys), dtype=np.uint64)
        # All pairs of a situation have the same chosen item, user and prompt.
        others[data.situations] = key
        keys += others
    # `np.unique` numbers by key, and the ranks of first places number by occurrence.
    _, first, number = np.unique(keys, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number]


def choices_at(data: Comparisons, index: np.ndarray) -> np.ndarray:
    """The number of the choice `[n]` of each pair at `index`, see `choice_numbers`."""
    chosen, rejected = (
        side.at(index) if isinstance(side, Lookup) else side[index] for side in (data.chosen, data.rejected)
    )
    return choice_numbers(data.situations[index], chosen, rejected)


def choice_numbers(situations: np.ndarray, chosen: np.ndarray | Lookup, rejected: np.ndarray | Lookup) -> np.ndarray:
    """The number of each pair's choice `[n]`: pairs of a situation with the same chosen item `[n, H]` are one choice.

    A pair that comes again in its situation is of another choice, as of a question that was asked twice.
    """
    winner, loser = (_hashes(side).view(np.int64) for side in (chosen, rejected))

    def numbered(*columns: np.ndarray) -> np.ndarray:
        return np.unique(np.stack(columns), axis=1, return_inverse=True)[1].reshape(-1)

    again = rank_within(numbered(situations, winner, loser), np.arange(len(situations)))
    return numbered(situations, winner, again)


def _owners(data: Comparisons, number: np.ndarray) -> np.ndarray:
    """The user `[Q]` of each question, by the `number` of each situation's question."""
    owner = np.zeros(int(number.max()) + 1, np.int64)
    owner[number[data.situations]] = data.users
    return owner


def _hashes(items: np.ndarray | Lookup) -> np.ndarray:
    """A number of 64 bits for each item. Equal items have equal numbers."""
    return _mixed(items.numbers.astype(np.uint64) if isinstance(items, Lookup) else row_keys(items))


def _mixed(x: np.ndarray) -> np.ndarray:
    """The bits of 64-bit numbers, mixed (the finaliser of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over='ignore'):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def rank_within(groups: ArrayLike, keys: ArrayLike) -> np.ndarray:
    """The rank of each entry within its group, by `keys`, from 0."""
    groups = np.asarray(groups)
    order = np.lexsort((np.asarray(keys), groups))
    starts = np.searchsorted(groups[order], groups[order])
    ranks = np.empty(len(groups), np.int64)
    ranks[order] = np.arange(len(groups)) - starts
    return ranks


def shares(users: np.ndarray) -> np.ndarray:
    """1 / the number of pairs `[n]` that have the same user, for each pair."""
    return (1.0 / np.bincount(users)[users]).astype(np.float32)


def take(
    data: Comparisons, index: np.ndarray, users: np.ndarray, share: np.ndarray, *, read: bool = True, people: int = 0
) -> PairBatch:
    """The batch of the pairs at `index`, an array of any number of axes. `users` and `share` have the same shape.

    Without `read`, a side that is a `Lookup` stays one.
    """

    def rows(column: np.ndarray | Lookup | None) -> Any:
        # A `Lookup` that is not read lets a process read only its own devices' rows from disk.
        return (
            column.at(index) if isinstance(column, Lookup) and not read else None if column is None else column[index]
        )

    columns: Any = {'users': users, 'share': share, 'situation': data.situations[index], 'people': people}
    return PairBatch(**columns, chosen=rows(data.chosen), rejected=rows(data.rejected), prompt=rows(data.prompt))
