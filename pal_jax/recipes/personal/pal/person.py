"""A new person in a trained PAL: a mixture from a few choices, and the pair to ask about next.

    run = open_pal('runs/pal')
    choices = read_choices(run, 'ana.csv')                     # the run's own format, one person
    ana = fit(run, choices)                                    # ana.mixture is all that is kept of her
    reward = reward_of_items(run, ana.mixture)                 # or reward_of_replies
    pairs = read_choices(run, 'pairs.csv', answered=False)
    nats = information(run, pairs, choices)                    # of each open pair, given her choices

Prototypes and the map of items stay as they were trained: only the person's K logits are fitted (arXiv 2406.08469,
"generalisation to unseen users"), pulled to the population's mean as the run's evaluation of new people does.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pal_jax.data import comparisons, records
from pal_jax.data.comparisons import Comparisons, Lookup, PairBatch
from pal_jax.recipes.personal import ideal_point
from pal_jax.recipes.personal.attributes import in_words, lacking
from pal_jax.recipes.personal.pal import tables
from pal_jax.recipes.personal.pal import text as pal_text
from pal_jax.recipes.personal.pal.reward import TextVectors, TrainedPAL, open_pal
from pal_jax.recipes.personal.portrait import PEOPLE
from pal_jax.run import files, stores
from pal_jax.run.accuracy import hits
from pal_jax.run.forecast import few_of
from pal_jax.run.outputs import whole_file

DRAWS = 2000  # people drawn from what is known of a person


class PersonChoices(NamedTuple):
    """One person's pairs as a trained run sees them; `shown` has both sides of each pair in the file's own words, and
    `prompts` the texts that they answer, where they answer some."""

    user: str
    batch: PairBatch  # of one replica: `[1, n]`
    shown: tuple[tuple[Any, Any], ...]
    prompts: tuple[str, ...] = ()


class FittedPerson(NamedTuple):
    """A person's mixture `[K]`, and the share of the person's own choices that the mixture gives."""

    mixture: Array
    agreement: float


# --- choices ----------------------------------------------------------------------------------------------------------


def read_choices(run: TrainedPAL, path: str | Path, *, answered: bool = True) -> PersonChoices:
    """Read one person's choices from a file in the format that the run learnt from; no other file is read.

    Args:
      answered: whether somebody has chosen. Pairs that wait for an answer need no user, and no choice.

    Raises:
      ValueError: a row is wrong, the file has choices of several people, or other attributes than the run.
    """
    people = read_people(run, path, answered=answered)
    if answered and len(people) > 1:
        named = ', '.join([*(person.user for person in people[:3]), *(['...'] if len(people) > 3 else [])])
        raise ValueError(f'{path} has choices of {len(people)} people ({named}); give those of one person')
    return people[0]


def read_people(run: TrainedPAL, path: str | Path, *, answered: bool = True) -> list[PersonChoices]:
    """Read the choices of each person in a file, as `read_choices` reads one person's. Pairs that nobody has answered
    are those of one person."""
    path = os.fspath(path)
    data, shown = _of_texts(run, run.reading, path, answered) if run.reading else _of_table(run, path, answered)
    prompts = [data.texts[i] for i in data.prompt.numbers] if isinstance(data.prompt, Lookup) and data.texts else []
    people = []
    for number, user in enumerate(data.names if answered else data.names[:1]):
        index = np.flatnonzero(data.users == number) if answered else np.arange(len(data.users))
        nothing = np.zeros((1, len(index)), np.int32)
        batch = comparisons.take(data, index[None], nothing, nothing.astype(np.float32))
        texts = tuple(prompts[i] for i in index) if prompts else ()
        people.append(PersonChoices(user, batch, tuple(shown[i] for i in index), texts))
    return people


def _of_table(run: TrainedPAL, path: str, answered: bool) -> tuple[Comparisons, tuple[tuple[Any, Any], ...]]:
    kept = run.kept
    data = tables.load(path, answered=answered, attributes=kept.attributes)
    # Vectors have no names of their own: their numbers are taken in the run's order.
    if data.attributes == comparisons.default_names(kept.width):
        data = data._replace(attributes=kept.attributes)
    if data.attributes == comparisons.default_names(len(data.attributes)) and kept.attributes != data.attributes:
        raise ValueError(
            f'{path} has vectors of {len(data.attributes)} numbers, and {run.workdir} learnt from {kept.width}: '
            f'{", ".join(kept.attributes)}'
        )
    if missing := [name for name in kept.attributes if name not in data.attributes]:
        raise ValueError(f'{path} has {lacking(missing[0], data.attributes, kept.attributes)}')
    if unknown := [name for name in data.attributes if name not in kept.attributes]:
        raise ValueError(f'{path} has {unknown[0]!r}, of which {run.workdir} has learnt nothing; delete the attribute')
    if run.pal.variant == 'B' and (data.prompt is None or data.prompt.shape[1] != kept.width):
        raise ValueError(
            f'{path} has no prompts of {kept.width} numbers, and {run.workdir} makes prototypes of prompts; give them '
            'as vectors'
        )
    # A file may have its columns in another order.
    order = [data.attributes.index(name) for name in kept.attributes]
    sides = [side[:][:, order].tolist() for side in (data.chosen, data.rejected)]
    shown = tuple(
        tuple(in_words(dict(zip(kept.attributes, item, strict=True))) for item in pair)
        for pair in zip(*sides, strict=True)
    )
    chosen, rejected = (kept.in_units(side) for side in sides)
    return data._replace(chosen=chosen, rejected=rejected, attributes=kept.attributes), shown  # type: ignore[return-value]


def _of_texts(
    run: TrainedPAL, reading: TextVectors, path: str, answered: bool
) -> tuple[Comparisons, tuple[tuple[Any, Any], ...]]:
    tokenizer, template, kept = reading.model.tokenizer, run.settings.text.template, run.kept
    pairs = pal_text.choices_of(path, tokenizer, template, run.pal.variant == 'B', answered=answered)
    form, learnt = (pairs.prompt is not None, pairs.chat), (kept.prompted, kept.chat)
    if form != learnt:
        forms = {(False, False): 'statements without prompts', (True, False): 'texts with prompts'}
        has, knows = (forms.get(which, 'messages') for which in (form, learnt))
        raise ValueError(f'{path} has {has}, and {run.workdir} learnt from {knows}; give these')
    shown = tuple((pairs.words[a], pairs.words[b]) for a, b in zip(pairs.chosen, pairs.rejected, strict=True))
    return pairs.in_states(reading.read(pairs.texts)), shown


# --- the person -------------------------------------------------------------------------------------------------------


def fit(run: TrainedPAL, choices: PersonChoices, known: np.ndarray | None = None) -> FittedPerson:
    """Fit the mixture of a person to the person's choices, or to the `known` ones `[n]`; all else stays as trained."""
    batch, params = choices.batch, run.replica.params
    known = np.ones(batch.users.shape[1], bool) if known is None else known
    # The learner has an axis of replicas; a person is one user of one replica.
    z = run.learner.fit(params, batch, jnp.asarray(known[None], jnp.float32), run.prior)
    margins = np.asarray(run.learner.margins(params, z, batch))[0][known]
    return FittedPerson(ideal_point.weights(run.pal, z[0, 0]), float(np.mean(hits(margins))) if known.any() else 0.0)


def drawn_logits(run: TrainedPAL, choices: PersonChoices | None, known: np.ndarray | None = None) -> np.ndarray:
    """Logits `[DRAWS, K]` of people who could have made a person's choices, or the `known` ones `[n]`, drawn about the
    likeliest ones by Laplace's approximation. Without choices they are drawn from the prior of new people. The same
    choices give the same draws.

    Raises:
      ValueError: the run's `new.pull` is 0, so nobody can say who a new person could be.
    """
    if choices is None:
        # One pair of nothing, which was not answered.
        vector: Any = np.zeros((1, 1, run.kept.width), np.float32)
        number: Any = np.zeros((1, 1), np.int32)
        prompt = vector if run.pal.variant == 'B' else None
        batch, known = PairBatch(number, vector, vector, number.astype(np.float32), prompt), np.zeros(1, bool)
    else:
        batch, known = choices.batch, np.ones(choices.batch.users.shape[1], bool) if known is None else known
    likely = run.learner.posterior(run.replica.params, batch, jnp.asarray(known[None]), run.prior)
    mode, precision = (np.asarray(part, np.float64)[0, 0] for part in likely)
    spread = np.linalg.inv(np.linalg.cholesky(precision))
    return mode + np.random.default_rng(0).normal(size=(DRAWS, len(spread))) @ spread


def information(run: TrainedPAL, open_pairs: PersonChoices, choices: PersonChoices | None = None) -> np.ndarray:
    """The information in nats `[n]` that is expected of the answer to each open pair, given a person's choices.

    Which side of an open pair is called chosen does not matter.

    Raises:
      ValueError: the run's `new.pull` is 0, so nobody can say who a new person could be.
    """
    parts = [open_pairs.batch, choices.batch] if choices else [open_pairs.batch]
    # Open and answered pairs go through one program; a mask says which are answered.
    both = jax.tree.map(lambda *sides: np.concatenate(sides, axis=1), *parts)
    count = open_pairs.batch.users.shape[1]
    answered = jnp.arange(both.users.shape[1])[None] >= count
    expected = run.learner.expect(run.replica.params, both, answered, run.prior, 0)
    return np.asarray(expected)[0, :count]


# --- on disk ----------------------------------------------------------------------------------------------------------


class PersonRecord(NamedTuple):
    """The content of a person's file: a mixture, the split of the run whose prototypes it mixes, and that split's
    `TrainedPAL.fingerprint`. A file that was written by hand may have neither: its split is that of the report."""

    mixture: list[float]
    split: int | None = None
    fingerprint: str = ''


def to_record(run: TrainedPAL, choices: PersonChoices, person: FittedPerson) -> dict[str, Any]:
    """A person as JSON, with the run whose prototypes the mixture is of."""
    return {
        'user': choices.user,
        'mixture': np.asarray(person.mixture).tolist(),
        'run': stores.shown(Path(run.workdir).resolve()),
        'split': run.split,
        'fingerprint': run.fingerprint,
        'choices': len(choices.shown),
        'agreement': person.agreement,
    }


def save(path: str | Path, *records: Mapping[str, Any]) -> None:
    """Write a person's record as one line of JSON, or a line for each of several people.

    Raises:
      ValueError: the file exists.
    """
    with whole_file(Path(path)) as file:
        file.write_text(''.join(json.dumps(record, ensure_ascii=False) + '\n' for record in records), encoding='utf-8')


def read_person(path: str | Path, name: str = '') -> PersonRecord:
    """The person whom a file describes; in a file of several people, the one with this name.

    Raises:
      ValueError: the file holds no mixture, or nobody of this name, or several people and no name is given.
    """
    record = read_record(path, name)
    mixture, split, fingerprint = record.get('mixture'), record.get('split'), record.get('fingerprint', '')
    if (
        not isinstance(mixture, list)
        or not mixture
        or not all(type(w) in (int, float) and abs(w) < 1e30 for w in mixture)
    ):
        raise ValueError(f'{path} holds no mixture such as {{"mixture": [0.2, 0.8]}}, got {files.short_repr(mixture)}')
    if ('split' in record and (type(split) is not int or split < 0)) or not isinstance(fingerprint, str):
        raise ValueError(f'{path} has split={split!r} and fingerprint={fingerprint!r}; leave both as they were written')
    return PersonRecord([float(weight) for weight in mixture], split, fingerprint)


def read_record(path: str | Path, name: str = '') -> dict[str, Any]:
    """The record of the person in a file; in a file of several people, of the one with this name.

    Raises:
      ValueError: the file has nobody of this name, or several people and no name is given.
    """
    people = read_records(path)
    name = records.spelled(name, people)
    if not name and len(people) > 1:
        raise ValueError(
            f'{path} has {len(people)} people ({few_of(list(people))}); name one, as in '
            f'--person={path}:{next(iter(people))}'
        )
    if name and name not in people:
        raise ValueError(f'{path} has nobody called {name!r}; it has {few_of(list(people))}')
    return people[name] if name else next(iter(people.values()))


def read_records(path: str | Path) -> dict[str, dict[str, Any]]:
    """The records of the people in a file by their names, or by their lines where they have none.

    Raises:
      ValueError: a line is no record, or two have one name.
    """
    lines = [(k, line) for k, line in enumerate(files.read_text(path).split('\n'), 1) if line.strip()]
    # One record may also stand on several lines, where somebody wrote it by hand.
    if len(lines) > 1 and all(re.fullmatch(r'\s*\{.*\}\s*', line) for _, line in lines):
        placed = [(k, files.parse(line, path, k)) for k, line in lines]
    else:
        placed = [(1, files.read_object(path))]
    people: dict[str, dict[str, Any]] = {}
    for k, record in placed:
        if (user := str(record.get('user') or f'line {k}')) in people:
            raise ValueError(f'{path}, line {k}: an earlier line has the user {user!r}, too; delete one of the two')
        people[user] = record
    return people


def file_and_name(person: str) -> tuple[str, str]:
    """The file that `person` names, and the name of somebody in it, as in `two.json:anna`; '' for what is not given."""
    if files.is_file(person):
        return person, ''
    match = re.fullmatch(r'(.+?\.jsonl?):(.+)', person)
    return (match[1], match[2]) if match else ('', '')


def warn_of_one(run: TrainedPAL) -> None:
    """Say on stderr that a run has one prototype, or is not shown to predict people better than one model for all."""
    if run.pal.prototypes == 1:
        print(
            f'warning: split {run.split} of {run.workdir} chose K=1, one model for all: nothing is known of a person, '
            'and all are scored alike',
            file=sys.stderr,
        )
    elif not run.predicts:
        print(
            f'warning: {run.workdir} is not shown to predict single people better than one model for all: do not rely '
            'on what it says of a person',
            file=sys.stderr,
        )


def is_left_out(run: TrainedPAL, person: str) -> bool:
    """True where a run on texts had too few usable pairs of a person on whom no split was trained."""
    path = Path(run.workdir) / PEOPLE
    if run.reading is None or person not in run.kept.names or not path.is_file():
        return False
    # The file has the new people of the report's split, too.
    return all(row['participant'] != person for _, row in records.table(path, ('participant',)))


def open_person(workdir: str, person: str, run: TrainedPAL | None = None) -> tuple[TrainedPAL, Array]:
    """A run and a person's mixture `[K]` of its prototypes. A line on stderr says where the run knows less than that.

    Args:
      person: a file of a mixture, with a name behind it where it has several people (`two.json:anna`), the id of a
        person of the training, or '' for the population's mean. Of a person who was held out in the split of the
        report, the first split is taken that was trained on the person.
      run: the run, where it is open.

    Raises:
      ValueError: as `open_pal`; the person is unknown, or the file's mixture is of another run's prototypes.
    """
    file, name = file_and_name(person)
    if not file:
        run = run or open_pal(workdir)
        person = records.spelled(person, run.kept.names)
        splits = run.splits_of(person)
        if person and not splits and is_left_out(run, person):
            raise ValueError(
                f'person={person!r} was left out by {workdir}, with too few pairs whose texts are in one part; write '
                'more choices of this person in a file, of which pal-jax personalize makes a mixture'
            )
        if person and not splits:
            near = _near(person, run.kept.names)
            such = f'; did you mean {near}? Otherwise' if near else f', such as {", ".join(list(run.people)[:3])};'
            raise ValueError(
                f'person={person!r} is no file, and not among the {len(run.people)} people that {workdir} was trained '
                f'on{such} give a file that pal-jax personalize '
                'wrote, the id of one of these people, or leave person out for the mean over them'
            )
        if person and run.split not in splits:
            held_out, run = run.split, open_pal(workdir, splits[0])
            line = f'{person} was held out in split {held_out}, and trained on in split {", ".join(map(str, splits))}'
            print(f'{line}: split {run.split} is taken', file=sys.stderr)
        if person:
            warn_of_one(run)
        return run, run.mixture(user=person)
    known = read_person(file, name)
    try:
        run = open_pal(workdir, known.split)
    except ValueError as error:
        raise ValueError(f'{person}: {error}' if known.split else f'{error}') from None
    warn_of_one(run)
    # A file that was written by hand has no fingerprint, and its mixture is taken as it is.
    if known.fingerprint and known.fingerprint != run.fingerprint:
        raise ValueError(
            f'{person} is a mixture of the prototypes of another run than {workdir}, or of this run before it was '
            'trained on; make it again with pal-jax personalize'
        )
    try:
        return run, run.mixture(mix=known.mixture)
    except ValueError as error:
        raise ValueError(f'{person}: {error}') from None


def _near(person: str, names: Sequence[str]) -> str:
    """The name that is most like that of a person, or ''. Zeros before a number make no difference."""
    plain = functools.partial(re.sub, r'(?<!\d)0+(?=\d)', '')
    by_plain = {plain(name): name for name in names}
    return next((by_plain[near] for near in difflib.get_close_matches(plain(person), by_plain, 1, 0.7)), '')
