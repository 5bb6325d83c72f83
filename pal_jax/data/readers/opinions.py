"""Public sets of real people's opinions as choices between texts (`types.Choice`), or between vectors.

    arguments     which of two arguments convinces more: UKPConvArg1 (Habernal & Gurevych 2016), crowd workers
    rated         ratings as pairs: Jester's jokes (Goldberg et al. 2001), MovieLens-100K (Harper & Konstan 2015)
    conversations PRISM (Kirk et al. 2024): which of two to four models' replies people went on with
    personas      model-written statements (Perez et al. 2022), by made-up people who each hold one persona
    summaries     Reddit TL;DR comparisons by worker (Stiennon et al. 2020), labelled by length as PAL has them
    pictures      Pick-a-Pic by embeddings (Kirstain et al. 2023): vectors, as PAL has them

`read` opens the sets of choices between texts by the names that `config.data` has, and those of `crowds.py` and
`profiles.py`. `votes.py` reads votes (Polis), and `choices.py` reads stated choices. Nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pal_jax.data import records
from pal_jax.data.comparisons import Comparisons, Lookup, alike, default_names, row_keys
from pal_jax.data.readers import crowds, judgements, profiles
from pal_jax.data.readers.columns import read_arrays
from pal_jax.data.readers.judgements import Judgement
from pal_jax.data.records import Row, field, first_spelling, identity, listed, rows, text_of
from pal_jax.run import files
from pal_jax.types import Choice

# Pairs of a person, at most, where pairs are drawn.
PAIRS = 40
HOLDERS = 200  # made-up people, each with one persona


def is_source(data: str) -> bool:
    """True where `read` opens `data`."""
    name, colon, _ = data.partition(':')
    return bool(colon) and name in SOURCES


def read(data: str) -> Iterator[Choice]:
    """The choices of a named set.

    `data` is `ukp:<folder>`, `jester:<folder>`, `movielens:<folder>`, `prism:<folder>`, `personas:<file>`,
    `tldr:<folder>` of train.jsonl and validation.jsonl, `choices:<source>` (see `records.read`), or one of `crowds.py`
    or `profiles.py`. Two ratings make a pair where they are at least a quarter of their scale apart. Pairs of equal
    texts are left out.

    Raises:
      ValueError: a file is missing, or a row is wrong.
    """
    name, _, where = data.partition(':')
    who = first_spelling()
    return (dataclasses.replace(choice, user=who(choice.user)) for choice in SOURCES[name](where))


# --- arguments --------------------------------------------------------------------------------------------------------


def arguments(folder: str | Path) -> Iterator[Choice]:
    """The choices between arguments in a folder. The prompt is debate and stance.

    `judgements.jsonl` has topic, arg1, arg2, worker and choice (a1, a2 or equal), and `arguments.jsonl` has id, debate,
    stance and text. A judgement `equal` is no choice.

    Raises:
      ValueError: a choice has another value, or an argument is missing. The message names file and row.
    """
    # The debate and stance of each argument, and its text.
    argument_of: dict[str, tuple[str, str]] = {}
    for place, row in rows(str(Path(folder) / 'arguments.jsonl')):
        debate, stance, text = (text_of(place, row, name) for name in ('debate', 'stance', 'text'))
        argument_of[identity(place, row, 'id')] = f'{debate}: {stance}\n', text
    said, pair_of = list[Judgement](), dict[str, list[str]]()
    for place, row in rows(str(Path(folder) / 'judgements.jsonl')):
        choice, worker = field(place, row, 'choice'), identity(place, row, 'worker')
        if choice not in ('a1', 'a2', 'equal'):
            raise ValueError(f'{place}: choice is {choice!r}; give a1, a2 or equal')
        pair = [identity(place, row, name) for name in ('arg1', 'arg2')]
        if unknown := [argument for argument in pair if argument not in argument_of]:
            raise ValueError(f'{place}: argument {unknown[0]!r} is not in arguments.jsonl')
        # A judgement of two arguments is one thing, whichever stands first.
        chosen, thing = '' if choice == 'equal' else pair[choice == 'a2'], ' and '.join(sorted(pair))
        pair_of.setdefault(thing, pair)
        said.append(Judgement(place, worker, thing, chosen, judgements.time_of(place, row)))
    for one in judgements.settled(said):
        (topic, left), (_, right) = (argument_of[argument] for argument in pair_of[one.thing])
        # A judgement that both are equal may replace an earlier choice, and is no choice itself.
        if one.value and left != right:
            chosen, rejected = (left, right) if one.value == pair_of[one.thing][0] else (right, left)
            yield Choice(topic, chosen, rejected, one.person)


# --- ratings ----------------------------------------------------------------------------------------------------------


class Rating(NamedTuple):
    """A person's rating of an item."""

    user: str
    item: str
    value: float


def rated(ratings: Sequence[Rating], texts: Mapping[str, str], *, gap: float, most: int, seed: int) -> Iterator[Choice]:
    """Up to `most` pairs of each person, drawn at random, whose ratings differ by `gap` or more.

    The item with the higher rating is the chosen one.

    Raises:
      ValueError: an item has no text.
    """
    ratings_of: dict[str, list[Rating]] = {}
    who = first_spelling()
    for rating in ratings:
        if rating.item not in texts:
            raise ValueError(f'item {rating.item!r}, rated by {rating.user!r}, has no text')
        ratings_of.setdefault(who(rating.user), []).append(rating)
    for number, (user, user_ratings) in enumerate(ratings_of.items()):
        values = np.array([rating.value for rating in user_ratings])
        # All pairs of the person's ratings with the gap are there to draw from.
        above, below = np.nonzero(values[:, None] - values[None] >= gap)
        sampled = np.random.default_rng([seed, number]).permutation(len(above))[:most]
        for i, j in zip(above[sampled], below[sampled], strict=True):
            chosen, rejected = texts[user_ratings[i].item], texts[user_ratings[j].item]
            # Some films are listed twice.
            if chosen != rejected:
                yield Choice('', chosen, rejected, user)


def jester(folder: str | Path) -> tuple[list[Rating], dict[str, str]]:
    """The ratings in `ratings.csv` (user, joke, rating), and the jokes in `jokes.jsonl` (joke, text) by id."""
    folder = Path(folder)
    ratings = _ratings(rows(str(folder / 'ratings.csv')), ('user', 'joke', 'rating'), (-10, 10))
    return ratings, {identity(p, row, 'joke'): text_of(p, row, 'text') for p, row in rows(str(folder / 'jokes.jsonl'))}


def movielens(folder: str | Path) -> tuple[list[Rating], dict[str, str]]:
    """The ratings of MovieLens-100K, and its films by id. The text of a film is its title and genres.

    The folder has GroupLens's `u.data` and `u.item`, or RecBole's `ml-100k.inter` and `ml-100k.item`.
    """
    folder = Path(folder)
    # RecBole's files have headers and genres in words; GroupLens's have neither.
    if (folder / 'ml-100k.inter').is_file():
        ratings = _ratings(_columns(folder / 'ml-100k.inter'), ('user_id', 'item_id', 'rating'), (0.5, 5))
        films = {
            identity(place, row, 'item_id'): (field(place, row, 'movie_title'), row.get('class'))
            for place, row in _columns(folder / 'ml-100k.item')
        }
        return ratings, {key: f'{title} ({genres})' if genres else title for key, (title, genres) in films.items()}
    names = 'user', 'item', 'rating', 'time'
    ratings = _ratings(_lines(folder / 'u.data', '\t', names), names[:3], (0.5, 5))
    texts = {}
    for place, row in _lines(folder / 'u.item', '|', ('item', 'title')):
        if len(row['rest']) < len(GENRES):
            raise ValueError(f'{place}: {len(row["rest"])} of the {len(GENRES)} flags of genres')
        genres = [name for name, flag in zip(GENRES, row['rest'][-len(GENRES) :], strict=True) if flag == '1']
        texts[identity(place, row, 'item')] = f'{field(place, row, "title")} ({", ".join(genres)})'
    return ratings, texts


def _columns(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a file of RecBole, with their places. Cells stand between tabs, under a header of `name:type`."""
    with files.open_text(path) as file:
        names = [name.partition(':')[0] for name in file.readline().rstrip('\r\n').split('\t')]
        for number, line in enumerate(file, 2):
            cells = line.rstrip('\r\n').split('\t')
            if len(cells) != len(names):
                raise ValueError(f'{path}, row {number}: it has {len(cells)} cells, the header {len(names)}')
            yield f'{path}, row {number}', dict(zip(names, cells, strict=True))


def _lines(path: Path, between: str, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise ValueError(f'there is no file {path}; a folder of MovieLens-100K has u.data and u.item')
    text = files.read_bytes(path).decode('latin-1').rstrip('\r\n')
    # `splitlines` would also cut at further characters that latin-1 has.
    for number, line in enumerate(text.split('\n'), 1):
        cells = line.rstrip('\r').split(between)
        if len(cells) < len(names):
            raise ValueError(f'{path}, row {number}: it has {len(cells)} cells of {len(names)}')
        yield f'{path}, row {number}', {**dict(zip(names, cells, strict=False)), 'rest': cells[len(names) :]}


def _ratings(placed: Iterable[Row], names: Sequence[str], scale: tuple[float, float]) -> list[Rating]:
    """The last rating of each item by each user, from rows with these three fields. An empty one is left out.

    Raises:
      ValueError: a rating is no number on the scale, or as `judgements.settled`.
    """
    said = (_rating(place, row, names, scale) for place, row in placed if row.get(names[2]) not in (None, ''))
    return [Rating(one.person, one.thing, one.value) for one in judgements.settled(said)]


def _rating(place: str, row: Mapping[str, Any], names: Sequence[str], scale: tuple[float, float]) -> Judgement:
    (user, item), value = (identity(place, row, name) for name in names[:2]), field(place, row, names[2])
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f'{place}: the rating is {files.short_repr(value)}; give a number') from None
    if not scale[0] <= number <= scale[1]:
        raise ValueError(
            f'{place}: the rating is {value!r}, which is not from {scale[0]:g} to {scale[1]:g}; where it stands for a '
            'missing rating, leave it empty or delete the row'
        )
    return Judgement(place, user, item, number, judgements.time_of(place, row))


GENRES = (
    'unknown', 'Action', 'Adventure', 'Animation', "Children's", 'Comedy', 'Crime', 'Documentary', 'Drama', 'Fantasy',
    'Film-Noir', 'Horror', 'Musical', 'Mystery', 'Romance', 'Sci-Fi', 'Thriller', 'War', 'Western',
)  # fmt: skip


# --- conversations ----------------------------------------------------------------------------------------------------


def conversations(path: str | Path) -> Iterator[Choice]:
    """The choices in PRISM's `conversations.jsonl`: the chosen reply of a turn against each other reply.

    A row has user_id and conversation_history, a list of messages with turn, role (user or model), content and, for
    models, if_chosen. The prompt is the conversation before the replies, with the earlier chosen replies.

    Raises:
      ValueError: a field is missing, or a turn has no message of the user. The message names the row.
    """
    for place, row in rows(str(path)):
        user, turns = identity(place, row, 'user_id'), {}
        for message in listed(place, row, 'conversation_history'):
            if not isinstance(message, Mapping):
                raise ValueError(f'{place}: a message is {str(message)[:40]!r}; give an object')
            turn = identity(place, message, 'turn')
            # The turns are put in order by number, so a turn has to be one.
            if not turn.isdecimal() or len(turn) > 9:
                raise ValueError(f'{place}: turn is {files.short_repr(turn)}; give the number of the turn')
            turns.setdefault(int(turn), []).append(message)
        yield from crowds.by_turn(user, _turns(place, turns))


def _turns(place: str, turns: Mapping[int, Sequence[Mapping[str, Any]]]) -> Iterator[tuple[str, str, list[str]]]:
    for number, messages in sorted(turns.items()):
        questions = [text_of(place, entry, 'content') for entry in messages if entry.get('role') == 'user']
        if not questions:
            raise ValueError(f'{place}: turn {number} has no message of the user')
        replies = [
            (text_of(place, entry, 'content') if entry.get('content') else '', _was_chosen(place, entry))
            for entry in messages
            if entry.get('role') != 'user'
        ]
        chosen = [text for text, was_chosen in replies if was_chosen and text]
        if not chosen:
            # The conversation ended without a choice.
            return
        yield questions[0], chosen[0], [text for text, was_chosen in replies if not was_chosen]


def _was_chosen(place: str, message: Mapping[str, Any]) -> bool:
    """True for a message that was chosen. Raises ValueError where `if_chosen` is neither true, false nor missing."""
    said = str(message.get('if_chosen')).strip().lower()
    if said not in ('true', 'false', '1', '0', '1.0', '0.0', 'none', 'nan', '', '<na>'):
        raise ValueError(f'{place}: if_chosen is {files.short_repr(message["if_chosen"])}; give true or false')
    return said in ('true', '1', '1.0')


# --- personas ---------------------------------------------------------------------------------------------------------


def personas(path: str | Path, behaviours: Sequence[str], *, users: int, pairs: int, seed: int) -> Iterator[Choice]:
    """The choices of `users` made-up people, who hold the `behaviours` in turn, by default all behaviours of the file.

    A person answers `pairs` statements, and chooses the answer that the persona gives. The group is the persona.

    Raises:
      ValueError: a behaviour has too few statements or none.
    """
    statements_of: dict[str, list[tuple[str, str, str]]] = {name: [] for name in behaviours}
    for place, row in rows(str(path)):
        name = text_of(place, row, 'behavior')
        if name in statements_of or not behaviours:
            names = 'question', 'answer_matching_behavior', 'answer_not_matching_behavior'
            question, chosen, rejected = (text_of(place, row, name_of_field) for name_of_field in names)
            statements_of.setdefault(name, []).append((question, chosen, rejected))
    if not statements_of:
        raise ValueError(f'{path} has no statements')
    for name, statements in statements_of.items():
        if len(statements) < pairs:
            raise ValueError(f'{path}: {name!r} has {len(statements)} statements of {pairs}; ask for fewer pairs')
    # People hold the personas in turn, so each persona has nearly as many people.
    for user, name in zip(range(users), itertools.cycle(statements_of), strict=False):
        for i in np.random.default_rng([seed, user]).permutation(len(statements_of[name]))[:pairs]:
            question, chosen, rejected = statements_of[name][i]
            yield Choice(question, chosen, rejected, f'p{user}', name)


# --- summaries --------------------------------------------------------------------------------------------------------

TOP, MINORITY, ENOUGH = 10, (3, 4, 5), 100  # busiest workers; ranks of those who like it short; rows of unseen workers
SHORT = ('7FbjqRA8', 'ISkqTUKf', 'r3rJgaEN', '7rETShtx', '9HS4pwiJ', 'JwYQFRg7', '44Z8ttpK', 'aCMzb5a4', 'sC4a4UNR')


class Summaries(NamedTuple):
    """The choices of the busiest workers in `train` and `test`, and of other workers with enough rows in `unseen`.

    The group of a choice is short or long.
    """

    train: list[Choice]
    test: list[Choice]
    unseen: list[Choice]


def summaries(train: str | Path, validation: str | Path) -> Summaries:
    """PAL's heterogeneous TL;DR from the comparisons of `openai/summarize_from_feedback`.

    A row has worker, info.post and two summaries with text and policy. Rows count where both policies contain 'sup' and
    neither contains 'ppo'. Of two summaries of equal length the second counts as chosen, even where both are the same
    text.
    """
    parts = [list(_supervised(str(path))) for path in (train, validation)]
    busiest = [worker for worker, _ in Counter(worker for worker, *_ in parts[0]).most_common(TOP)]
    # Three of the ten busiest workers are taken to like the shorter summary, the others the longer one.
    short = {busiest[i] for i in MINORITY if i < len(busiest)}
    counts = Counter(worker for worker, *_ in parts[1])
    # Unseen workers have enough rows of their own for a test, and those known to like it short are listed.
    others = {worker for worker, count in counts.items() if count >= ENOUGH and worker not in busiest}
    short |= {worker for worker in others if worker.startswith(SHORT)}

    def labelled(part: list[tuple[str, str, str, str]], workers: set[str]) -> list[Choice]:
        return [by_length(*row, short=row[0] in short) for row in part if row[0] in workers]

    known = set(busiest)
    return Summaries(labelled(parts[0], known), labelled(parts[1], known), labelled(parts[1], others))


def by_length(worker: str, post: str, left: str, right: str, *, short: bool) -> Choice:
    """The choice of a worker who likes summaries `short`, or long. The second is chosen where both are equally long."""
    first = len(left) < len(right) if short else len(left) > len(right)
    chosen, rejected = (left, right) if first else (right, left)
    return Choice(f'Human: {post} Assistant:', f' {chosen}', f' {rejected}', worker, 'short' if short else 'long')


def _supervised(source: str) -> Iterator[tuple[str, str, str, str]]:
    for place, row in rows(source):
        info, pair = crowds.two_summaries(place, row)
        policies = [str(summary.get('policy')) for summary in pair]
        if all('sup' in policy and 'ppo' not in policy for policy in policies):
            left, right = (text_of(place, summary, 'text') for summary in pair)
            yield identity(place, row, 'worker'), text_of(place, info, 'post'), left, right


# --- pictures ---------------------------------------------------------------------------------------------------------


def pictures(path: str | Path) -> Comparisons:
    """The choices between pictures in an `.npz` file.

    `images` [I, H] and `prompts` [P, H] are embeddings of a frozen encoder. `users`, `prompt`, `chosen` and `rejected`
    have a number, from 0, for each pair. `names` of the users are optional.

    Raises:
      ValueError: an array is missing, a number is out of range, or an embedding is not finite. The message names the
        row.
    """
    arrays = read_arrays(path)
    tables, columns = ('images', 'prompts'), ('users', 'prompt', 'chosen', 'rejected')
    if missing := [name for name in (*tables, *columns) if name not in arrays]:
        raise ValueError(f'{path} has no array {", ".join(missing)}')
    images, prompts = (_checked(path, name, arrays[name], 2, np.float32) for name in tables)
    users, prompt, chosen, rejected = numbers = [_checked(path, name, arrays[name], 1, np.int32) for name in columns]
    if len({len(users), len(prompt), len(chosen), len(rejected)}) > 1 or not len(users):
        sizes = f'{len(users)} users, {len(prompt)} prompts, {len(chosen)} chosen and {len(rejected)} rejected images'
        raise ValueError(f'{path} has pairs of {sizes}; give as many of each, and one or more')
    for name, table in (('images', images), ('prompts', prompts)):
        if (wrong := ~np.isfinite(table).all(axis=1)).any():
            raise ValueError(f'{path}: {name}, row {wrong.argmax()} is not finite')
    name_array = arrays['names'] if 'names' in arrays else np.arange(int(users.max()) + 1)
    names = [identity(f'{path}: names, row {i}', {'name': name}, 'name') for i, name in enumerate(name_array.tolist())]
    sizes = len(names), len(prompts), len(images), len(images)
    for name, column, size in zip(columns, numbers, sizes, strict=True):
        if (wrong := (column < 0) | (column >= size)).any():
            raise ValueError(f'{path}: {name}, row {wrong.argmax()} is {column[wrong.argmax()]}, there are {size}')
    if (same := alike(images, row_keys(images), chosen, rejected)).any():
        raise ValueError(f'{path}: row {same.argmax()} has one image twice, so the choice says nothing; delete it')
    sides, attributes = (Lookup(images, chosen), Lookup(images, rejected)), default_names(images.shape[1])
    return Comparisons(users, np.arange(len(users)), *sides, prompts[prompt], tuple(names), attributes)


def _checked(path: str | Path, name: str, array: np.ndarray, axes: int, dtype: type) -> np.ndarray:
    """The array as `dtype`. Raises ValueError where its axes, its kind or a whole number does not fit `dtype`."""
    # Whole numbers are also fine where floats are asked for.
    kind = np.integer if dtype == np.int32 else np.floating
    if array.ndim != axes or not (np.issubdtype(array.dtype, kind) or np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f'{path}: {name} has {array.ndim} axes of {array.dtype}; give {axes} of {np.dtype(dtype)}')
    if kind is np.integer and array.size and max(-int(array.min()), int(array.max())) > np.iinfo(dtype).max:
        raise ValueError(f'{path}: {name} holds a number that {np.dtype(dtype)} has no room for')
    # The caller refuses numbers that become infinite.
    with np.errstate(over='ignore'):
        return array.astype(dtype)


# --- by name ----------------------------------------------------------------------------------------------------------


def _rated(read: Callable[[str], tuple[list[Rating], dict[str, str]]], folder: str) -> Iterator[Choice]:
    ratings, items = read(folder)
    values = [rating.value for rating in ratings]
    if len(set(values)) < 2:
        raise ValueError(f'{folder}: {len(values)} ratings that are all alike say nothing')
    try:
        # Two ratings make a pair where they are at least a quarter of their scale apart.
        yield from rated(ratings, items, gap=(max(values) - min(values)) / 4, most=PAIRS, seed=0)
    except ValueError as error:
        raise ValueError(f'{folder}: {error}') from None


def _summaries(folder: str) -> Iterator[Choice]:
    for part in summaries(*(Path(folder) / f'{name}.jsonl' for name in ('train', 'validation'))):
        # PAL labels a pair of one text, too; nobody can learn from it.
        yield from (choice for choice in part if choice.chosen.strip() != choice.rejected.strip())


SOURCES: Mapping[str, Callable[[str], Iterator[Choice]]] = {
    'ukp': arguments,
    'jester': lambda folder: _rated(jester, folder),
    'movielens': lambda folder: _rated(movielens, folder),
    'prism': lambda folder: conversations(Path(folder) / 'conversations.jsonl'),
    'personas': lambda file: personas(file, (), users=HOLDERS, pairs=PAIRS, seed=0),
    'tldr': _summaries,
    'choices': records.read,
    **crowds.SOURCES,
    **profiles.SOURCES,
}
