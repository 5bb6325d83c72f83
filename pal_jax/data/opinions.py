"""Public sets of real people's opinions as choices between texts (`records.TextChoice`), or between vectors.

    arguments     which of two arguments convinces more: UKPConvArg1 (Habernal & Gurevych 2016), crowd workers
    rated         ratings as pairs: Jester's jokes (Goldberg et al. 2001), MovieLens-100K (Harper & Konstan 2015)
    conversations PRISM (Kirk et al. 2024): which of two to four models' replies people went on with
    personas      model-written statements (Perez et al. 2022), by made-up people who each hold one persona
    summaries     Reddit TL;DR comparisons by worker (Stiennon et al. 2020), labelled by length as PAL has them
    pictures      Pick-a-Pic by embeddings (Kirstain et al. 2023): vectors, as PAL has them

`read` opens those between texts by name, as `config.data` does. Votes (Polis) are read by `votes.py`, stated choices by
`choices.py`. Nothing is downloaded.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pal_jax.data import records
from pal_jax.data.columns import read_arrays
from pal_jax.data.comparisons import Comparisons, Lookup, alike, row_keys
from pal_jax.data.records import TextChoice, identity, rows
from pal_jax.runtime import files

PAIRS = 40  # of a person, at most, where pairs are drawn
HOLDERS = 200  # made-up people, who hold a persona each


def is_source(data: str) -> bool:
    """Whether `read` opens it."""
    name, colon, _ = data.partition(':')
    return bool(colon) and name in SOURCES


def read(data: str) -> Iterator[TextChoice]:
    """`ukp:<folder>`, `jester:<folder>`, `movielens:<folder>`, `prism:<folder>`, `personas:<file>`, `tldr:<folder>` of
    train.jsonl and validation.jsonl, or `choices:<source>` as `records.read` has it. Ratings count from a quarter of
    their scale apart; two texts that are the same are left out.

    Raises:
      ValueError: a file is missing, or a row is wrong.
    """
    name, _, where = data.partition(':')
    return SOURCES[name](where)


def field(place: str, row: Mapping[str, Any], name: str) -> Any:
    value = row.get(name)
    if value is None or value == '' or value != value:  # NaN is how tables write that there is none
        raise ValueError(f'{place}: no {name}; its fields are {", ".join(map(str, row))}')
    return value


def _listed(place: str, row: Mapping[str, Any], name: str) -> list[Any]:
    value = field(place, row, name)
    if not isinstance(value, list | tuple):
        raise ValueError(f'{place}: {name} is {files.shown(value)}; give a list')
    return list(value)


# --- arguments --------------------------------------------------------------------------------------------------------


class Argument(NamedTuple):
    topic: str
    text: str


def arguments(folder: str | Path) -> Iterator[TextChoice]:
    """Of `judgements.jsonl` (topic, arg1, arg2, worker, choice: a1, a2 or equal) and `arguments.jsonl` (id, debate,
    stance, text); those who found both equal made no choice. The prompt is debate and stance.

    Raises:
      ValueError: a choice is none of these, or of an argument that is not there; with file and row.
    """
    said: dict[str, Argument] = {}
    for place, row in rows(str(Path(folder) / 'arguments.jsonl')):
        debate, stance, text = (str(field(place, row, name)) for name in ('debate', 'stance', 'text'))
        said[identity(place, row, 'id')] = Argument(f'{debate}: {stance}\n', text)
    for place, row in rows(str(Path(folder) / 'judgements.jsonl')):
        choice, worker = field(place, row, 'choice'), identity(place, row, 'worker')
        if choice not in ('a1', 'a2', 'equal'):
            raise ValueError(f'{place}: choice is {choice!r}; give a1, a2 or equal')
        both = [identity(place, row, name) for name in ('arg1', 'arg2')]
        if unknown := [each for each in both if each not in said]:
            raise ValueError(f'{place}: argument {unknown[0]!r} is not in arguments.jsonl')
        left, right = (said[each] for each in both)
        if choice != 'equal' and left.text != right.text:
            chosen, rejected = (left, right) if choice == 'a1' else (right, left)
            yield TextChoice(worker, left.topic, chosen.text, rejected.text)


# --- ratings ----------------------------------------------------------------------------------------------------------


class Rating(NamedTuple):
    user: str
    item: str
    value: float


def rated(
    ratings: Sequence[Rating], texts: Mapping[str, str], *, gap: float, most: int, seed: int
) -> Iterator[TextChoice]:
    """Of each person up to `most` pairs at random whose ratings differ by `gap` or more: the higher one is chosen.

    Raises:
      ValueError: an item has no text.
    """
    of: dict[str, list[Rating]] = {}
    for each in ratings:
        if each.item not in texts:
            raise ValueError(f'item {each.item!r}, rated by {each.user!r}, has no text')
        of.setdefault(each.user, []).append(each)
    for number, (user, theirs) in enumerate(of.items()):
        values = np.array([each.value for each in theirs])
        above, below = np.nonzero(values[:, None] - values[None] >= gap)
        drawn = np.random.default_rng([seed, number]).permutation(len(above))[:most]
        for i, j in zip(above[drawn], below[drawn], strict=True):
            chosen, rejected = texts[theirs[i].item], texts[theirs[j].item]
            if chosen != rejected:  # some films are listed twice
                yield TextChoice(user, '', chosen, rejected)


def jester(folder: str | Path) -> tuple[list[Rating], dict[str, str]]:
    """Of `ratings.csv` (user, joke, rating) and `jokes.jsonl` (joke, text)."""
    folder = Path(folder)
    found = [_rating(place, row, ('user', 'joke', 'rating')) for place, row in rows(str(folder / 'ratings.csv'))]
    return found, {identity(p, row, 'joke'): str(field(p, row, 'text')) for p, row in rows(str(folder / 'jokes.jsonl'))}


def movielens(folder: str | Path) -> tuple[list[Rating], dict[str, str]]:
    """MovieLens-100K: `u.data` and `u.item` as GroupLens has them, or `ml-100k.inter` and `ml-100k.item` as RecBole.
    A film is its title and genres."""
    folder = Path(folder)
    if (folder / 'ml-100k.inter').is_file():
        found = [_rating(*row, ('user_id', 'item_id', 'rating')) for row in _columns(folder / 'ml-100k.inter')]
        films = {
            identity(place, row, 'item_id'): (field(place, row, 'movie_title'), row.get('class'))
            for place, row in _columns(folder / 'ml-100k.item')
        }
        return found, {key: f'{title} ({genres})' if genres else title for key, (title, genres) in films.items()}
    names = 'user', 'item', 'rating', 'time'
    found = [_rating(*row, names[:3]) for row in _lines(folder / 'u.data', '\t', names)]
    texts = {}
    for place, row in _lines(folder / 'u.item', '|', ('item', 'title')):
        if len(row['rest']) < len(GENRES):
            raise ValueError(f'{place}: {len(row["rest"])} of the {len(GENRES)} flags of genres')
        genres = [name for name, flag in zip(GENRES, row['rest'][-len(GENRES) :], strict=True) if flag == '1']
        texts[identity(place, row, 'item')] = f'{field(place, row, "title")} ({", ".join(genres)})'
    return found, texts


def _columns(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """RecBole's files: tabs, and a header of `name:type`."""
    with files.opened(path) as file:
        names = [name.partition(':')[0] for name in file.readline().rstrip('\r\n').split('\t')]
        for number, line in enumerate(file, 2):
            cells = line.rstrip('\r\n').split('\t')
            if len(cells) != len(names):
                raise ValueError(f'{path}, row {number}: it has {len(cells)} cells, the header {len(names)}')
            yield f'{path}, row {number}', dict(zip(names, cells, strict=True))


def _lines(path: Path, between: str, names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise ValueError(f'there is no file {path}; a folder of MovieLens-100K has u.data and u.item')
    said = files.read_bytes(path).decode('latin-1').rstrip('\r\n')
    for number, line in enumerate(said.split('\n'), 1):  # latin-1 has further characters that `splitlines` cuts at
        cells = line.rstrip('\r').split(between)
        if len(cells) < len(names):
            raise ValueError(f'{path}, row {number}: it has {len(cells)} cells of {len(names)}')
        yield f'{path}, row {number}', {**dict(zip(names, cells, strict=False)), 'rest': cells[len(names) :]}


def _rating(place: str, row: Mapping[str, Any], names: Sequence[str]) -> Rating:
    (user, item), value = (identity(place, row, name) for name in names[:2]), field(place, row, names[2])
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f'{place}: the rating is {files.shown(value)}; give a number') from None
    if not np.isfinite(number):
        raise ValueError(f'{place}: the rating is {value!r}; give a finite number')
    return Rating(user, item, number)


GENRES = (
    'unknown', 'Action', 'Adventure', 'Animation', "Children's", 'Comedy', 'Crime', 'Documentary', 'Drama', 'Fantasy',
    'Film-Noir', 'Horror', 'Musical', 'Mystery', 'Romance', 'Sci-Fi', 'Thriller', 'War', 'Western',
)  # fmt: skip


# --- conversations ----------------------------------------------------------------------------------------------------


def conversations(path: str | Path) -> Iterator[TextChoice]:
    """Of PRISM's `conversations.jsonl` (user_id, conversation_history: messages with turn, role user or model, content,
    and of models if_chosen): the reply of a turn that was chosen against each other one. The prompt is all that was
    said before, with the replies that were chosen.

    Raises:
      ValueError: a field is missing, or a turn has no message of the user; with the row.
    """
    for place, row in rows(str(path)):
        user, turns, before = identity(place, row, 'user_id'), {}, ''
        for message in _listed(place, row, 'conversation_history'):
            if not isinstance(message, Mapping):
                raise ValueError(f'{place}: a message is {str(message)[:40]!r}; give an object')
            turn = identity(place, message, 'turn')
            if not turn.isdecimal() or len(turn) > 9:
                raise ValueError(f'{place}: turn is {files.shown(turn)}; give the number of the turn')
            turns.setdefault(int(turn), []).append(message)
        for number, said in sorted(turns.items()):
            asked = [str(field(place, each, 'content')) for each in said if each.get('role') == 'user']
            if not asked:
                raise ValueError(f'{place}: turn {number} has no message of the user')
            models = (each for each in said if each.get('role') != 'user')
            replies = [(str(each.get('content') or ''), each.get('if_chosen')) for each in models]
            chosen = [text for text, taken in replies if taken and text]
            if not chosen:
                break  # it ended without a choice
            for other, taken in replies:
                if not taken and other not in ('', chosen[0]):
                    yield TextChoice(user, before + asked[0], chosen[0], other)
            before += f'{asked[0]}\n\n{chosen[0]}\n\n'


# --- personas ---------------------------------------------------------------------------------------------------------


def personas(path: str | Path, behaviours: Sequence[str], *, users: int, pairs: int, seed: int) -> Iterator[TextChoice]:
    """`users` made-up people, who hold one of `behaviours` each in turn (none given: of all in the file), and `pairs`
    statements of each: a person chooses the answer that the persona gives. The group is the persona.

    Raises:
      ValueError: a behaviour has too few statements, or the file has none of it.
    """
    of: dict[str, list[tuple[str, str, str]]] = {name: [] for name in behaviours}
    for place, row in rows(str(path)):
        name = str(field(place, row, 'behavior'))
        if name in of or not behaviours:
            names = 'question', 'answer_matching_behavior', 'answer_not_matching_behavior'
            question, chosen, rejected = (str(field(place, row, each)) for each in names)
            of.setdefault(name, []).append((question, chosen, rejected))
    if not of:
        raise ValueError(f'{path} has no statements')
    for name, asked in of.items():
        if len(asked) < pairs:
            raise ValueError(f'{path}: {name!r} has {len(asked)} statements of {pairs}; ask for fewer pairs')
    for user, name in zip(range(users), itertools.cycle(of), strict=False):
        for i in np.random.default_rng([seed, user]).permutation(len(of[name]))[:pairs]:
            question, chosen, rejected = of[name][i]
            yield TextChoice(f'p{user}', question, chosen, rejected, name)


# --- summaries --------------------------------------------------------------------------------------------------------

TOP, MINORITY, ENOUGH = 10, (3, 4, 5), 100  # workers by their number of rows; which of them like it short
SHORT = ('7FbjqRA8', 'ISkqTUKf', 'r3rJgaEN', '7rETShtx', '9HS4pwiJ', 'JwYQFRg7', '44Z8ttpK', 'aCMzb5a4', 'sC4a4UNR')


class Summaries(NamedTuple):
    """Of the workers with most rows `train` and `test`, of others with enough rows `unseen`; group short or long."""

    train: list[TextChoice]
    test: list[TextChoice]
    unseen: list[TextChoice]


def summaries(train: str | Path, validation: str | Path) -> Summaries:
    """PAL's heterogeneous TL;DR from the rows of `openai/summarize_from_feedback`, comparisons: worker, info.post and
    two summaries with text and policy. Rows count whose policies both contain 'sup' and neither 'ppo'. Three of the ten
    most busy workers are taken to like the shorter summary, the others the longer one; equally long ones count as a
    choice of the second, even where both are the same text.
    """
    parts = [list(_supervised(str(path))) for path in (train, validation)]
    busiest = [worker for worker, _ in Counter(worker for worker, *_ in parts[0]).most_common(TOP)]
    short = {busiest[i] for i in MINORITY if i < len(busiest)}
    counts = Counter(worker for worker, *_ in parts[1])
    others = {worker for worker, count in counts.items() if count >= ENOUGH and worker not in busiest}
    short |= {worker for worker in others if worker.startswith(SHORT)}

    def labelled(part: list[tuple[str, str, str, str]], workers: set[str]) -> list[TextChoice]:
        return [by_length(*row, short=row[0] in short) for row in part if row[0] in workers]

    return Summaries(
        labelled(parts[0], set(busiest)), labelled(parts[1], set(busiest)), labelled(parts[1], others)
    )  # fmt: skip


def by_length(worker: str, post: str, left: str, right: str, *, short: bool) -> TextChoice:
    """The choice of somebody who likes it short, or long; of equally long ones the second."""
    first = len(left) < len(right) if short else len(left) > len(right)
    chosen, rejected = (left, right) if first else (right, left)
    return TextChoice(worker, f'Human: {post} Assistant:', f' {chosen}', f' {rejected}', 'short' if short else 'long')


def _supervised(source: str) -> Iterator[tuple[str, str, str, str]]:
    for place, row in rows(source):
        both, info = _listed(place, row, 'summaries'), field(place, row, 'info')
        if len(both) != 2 or not all(isinstance(each, Mapping) for each in (*both, info)):
            raise ValueError(f'{place}: give two summaries and info as objects, got {str([*both, info])[:60]}')
        policies = [str(each.get('policy')) for each in both]
        if all('sup' in policy and 'ppo' not in policy for policy in policies):
            left, right = (str(field(place, each, 'text')) for each in both)
            yield identity(place, row, 'worker'), str(field(place, info, 'post')), left, right


# --- pictures ---------------------------------------------------------------------------------------------------------


def pictures(path: str | Path) -> Comparisons:
    """An `.npz` of `images` [I, H] and `prompts` [P, H], embeddings of a frozen encoder, and by pair `users`, `prompt`,
    `chosen` and `rejected`, numbers from 0; `names` of the users if they are known.

    Raises:
      ValueError: an array is missing, a number is out of range, or an embedding is not finite; with the row.
    """
    arrays = read_arrays(path)
    if missing := [
        name for name in ('images', 'prompts', 'users', 'prompt', 'chosen', 'rejected') if name not in arrays
    ]:
        raise ValueError(f'{path} has no array {", ".join(missing)}')
    images, prompts = (_checked(path, name, arrays[name], 2, np.float32) for name in ('images', 'prompts'))
    users, prompt, chosen, rejected = (
        _checked(path, name, arrays[name], 1, np.int32) for name in ('users', 'prompt', 'chosen', 'rejected')
    )
    if len({len(users), len(prompt), len(chosen), len(rejected)}) > 1 or not len(users):
        sizes = f'{len(users)} users, {len(prompt)} prompts, {len(chosen)} chosen and {len(rejected)} rejected images'
        raise ValueError(f'{path} has pairs of {sizes}; give as many of each, and one or more')
    for name, table in (('images', images), ('prompts', prompts)):
        if (wrong := ~np.isfinite(table).all(axis=1)).any():
            raise ValueError(f'{path}: {name}, row {wrong.argmax()} is not finite')
    named = arrays['names'] if 'names' in arrays else np.arange(int(users.max()) + 1)
    names = [identity(f'{path}: names, row {i}', {'name': name}, 'name') for i, name in enumerate(named.tolist())]
    for name, numbers, size in (
        ('users', users, len(names)), ('prompt', prompt, len(prompts)),
        ('chosen', chosen, len(images)), ('rejected', rejected, len(images)),
    ):  # fmt: skip
        if (wrong := (numbers < 0) | (numbers >= size)).any():
            raise ValueError(f'{path}: {name}, row {wrong.argmax()} is {numbers[wrong.argmax()]}, there are {size}')
    if (same := alike(images, row_keys(images), chosen, rejected)).any():
        raise ValueError(f'{path}: row {same.argmax()} has one image twice, so the choice says nothing; delete it')
    return Comparisons(
        users=users, situations=np.arange(len(users)), chosen=Lookup(images, chosen), rejected=Lookup(images, rejected),
        prompt=prompts[prompt], names=tuple(names), attributes=tuple(f'x{i}' for i in range(images.shape[1])),
    )  # fmt: skip


def _checked(path: str | Path, name: str, array: np.ndarray, axes: int, dtype: type) -> np.ndarray:
    """The array as `dtype`, all whose values that has room for."""
    kind = np.integer if dtype == np.int32 else np.floating
    if array.ndim != axes or not (np.issubdtype(array.dtype, kind) or np.issubdtype(array.dtype, np.integer)):
        raise ValueError(f'{path}: {name} has {array.ndim} axes of {array.dtype}; give {axes} of {np.dtype(dtype)}')
    if kind is np.integer and array.size and max(-int(array.min()), int(array.max())) > np.iinfo(dtype).max:
        raise ValueError(f'{path}: {name} holds a number that {np.dtype(dtype)} has no room for')
    with np.errstate(over='ignore'):  # what becomes infinite is refused as such
        return array.astype(dtype)


# --- by name ----------------------------------------------------------------------------------------------------------


def _rated(read: Callable[[str], tuple[list[Rating], dict[str, str]]], folder: str) -> Iterator[TextChoice]:
    ratings, items = read(folder)
    values = [each.value for each in ratings]
    if len(set(values)) < 2:
        raise ValueError(f'{folder}: {len(values)} ratings that are all alike say nothing')
    try:
        yield from rated(ratings, items, gap=(max(values) - min(values)) / 4, most=PAIRS, seed=0)
    except ValueError as error:
        raise ValueError(f'{folder}: {error}') from None


def _summaries(folder: str) -> Iterator[TextChoice]:
    for part in summaries(*(Path(folder) / f'{name}.jsonl' for name in ('train', 'validation'))):
        yield from (each for each in part if each.chosen.strip() != each.rejected.strip())


SOURCES: Mapping[str, Callable[[str], Iterator[TextChoice]]] = {
    'ukp': arguments,
    'jester': lambda folder: _rated(jester, folder),
    'movielens': lambda folder: _rated(movielens, folder),
    'prism': lambda folder: conversations(Path(folder) / 'conversations.jsonl'),
    'personas': lambda file: personas(file, (), users=HOLDERS, pairs=PAIRS, seed=0),
    'tldr': _summaries,
    'choices': records.read,
}
