"""The importance of attributes by one logit for all, and counts of how often their values were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from pal_jax.data.comparisons import Comparisons, choice_numbers
from pal_jax.recipes.personal import offers
from pal_jax.recipes.personal.logit import CERTAIN, Common, Units
from pal_jax.run import intervals
from pal_jax.run.intervals import Estimate
from pal_jax.types import Exhibit

MOST_VALUES = 8  # an attribute with more values has no rows in the table of values
IMPORTANCE = (
    'The importance of an attribute is the difference in utility between the best and the worst of its values that '
    'were offered, as a share of the sum over attributes, by one logit for all people. It depends on these values, and '
    'chance makes attributes that hardly count look more important than they are. p is that of the hypothesis that the '
    'attribute has no effect (Wald test with the errors of "What people want").'
)
UNKNOWN = ' A dash stands where choices do not tell an effect, or too few people tell its p.'
VALUES = (
    'Counts, without a model: how often options with a value were offered, and which share of them was chosen. Only if '
    'other attributes were drawn independently do two values differ by nothing but themselves.'
)


class Column(NamedTuple):
    """A column of a survey: the numbers of its attributes, of which each word but the first one has one, and the values
    `[V, W]` of these attributes that were offered, in the units of models; of a number the least and the largest."""

    places: list[int]
    values: np.ndarray

    @property
    def contrasts(self) -> np.ndarray:
        """The values `[V - 1, W]` less the first one."""
        return self.values[1:] - self.values[0]


def exhibits(data: Comparisons, common: Common, units: Units) -> list[Exhibit]:
    """The exhibits of what counts; `data` is in the units of models, and `common` is the logit of all its choices."""
    columns = columns_of(data, units)
    shares, rows = importances(common, columns), []
    for name in sorted(columns, key=lambda name: -shares.get(name, 0.0)):
        known = name in shares
        p = p_of_none(common, columns[name]) if known else None
        rows.append([name, f'{shares[name]:.0%}' if known else '–', intervals.p_in_words(p)])
    text = IMPORTANCE + (UNKNOWN if any('–' in row for row in rows) else '')
    important = Exhibit('How much each attribute matters', text, [['attribute', 'importance', 'p'], *rows])
    # One attribute alone has all of the importance.
    shown, table = [important] if len(columns) > 1 else [], of_values(data, units)
    return shown + ([Exhibit('How often each value was chosen', VALUES, table)] if len(table) > 1 else [])


def columns_of(data: Comparisons, units: Units) -> dict[str, Column]:
    """The columns of a survey by name; attributes that only the constant option has are left out."""
    columns: dict[str, Column] = {}
    offered = offers.varied(data)
    for name, index in _indices(units).items():
        values = np.unique(offered[:, index], axis=0)
        columns[name] = Column(index, values[[0, -1]] if len(index) == 1 and len(values) > 2 else values)
    return columns


def _indices(units: Units) -> dict[str, list[int]]:
    indices: dict[str, list[int]] = {}
    for h, name in enumerate(units.attributes):
        if h not in units.alone:
            indices.setdefault(name.partition(': ')[0] if ' over ' in name else name, []).append(h)
    return indices


def importances(common: Common, columns: Mapping[str, Column]) -> dict[str, float]:
    """The importance of each column whose effects choices tell."""
    spans = {}
    for name, column in columns.items():
        utilities = column.values @ common.weights[column.places]
        if _is_told(common, column):
            spans[name] = float(utilities.max() - utilities.min())
    total = sum(spans.values())
    return {name: span / total if total else 0.0 for name, span in spans.items()}


def _is_told(common: Common, column: Column) -> bool:
    """False where choices cannot tell the differences between values, as nearly all go one way."""
    contrasts = column.contrasts
    value, variance = contrasts @ common.weights[column.places], contrasts @ _covariance(common, column) @ contrasts.T
    # Of one word and another the difference may be known where their effects are not.
    most = CERTAIN * np.abs(contrasts).max(axis=1, initial=0.0)
    return bool(np.all(np.abs(value) <= most) and np.all(np.diag(variance) <= most**2))


def _covariance(common: Common, column: Column) -> np.ndarray:
    return common.covariance[np.ix_(column.places, column.places)]


def p_of_none(common: Common, column: Column) -> float | None:
    """The p-value of the hypothesis that all values of a column are worth the same, by Wald's test; None: there are too
    few people, or one value alone.

    A covariance that is clustered by G people makes the statistic of q differences Hotelling's, with the F distribution
    of q and G - q degrees of freedom.
    """
    contrasts = column.contrasts
    q, people = len(contrasts), common.people
    if not 0 < q < people:
        return None
    value, covariance = contrasts @ common.weights[column.places], contrasts @ _covariance(common, column) @ contrasts.T
    statistic = value @ np.linalg.solve(covariance, value) * (people - q) / (q * (people - 1))
    return float(special.fdtrc(q, people - q, statistic))


def wanted(data: Comparisons, common: Common, units: Units) -> str:
    """Sentences on what people want by one logit for all, the most important column first."""
    columns = columns_of(data, units)
    shares = importances(common, columns)
    shown, unclear, unknown = [], [], []
    for name in sorted(columns, key=lambda name: -shares.get(name, 0.0)):
        column = columns[name]
        if name not in shares:
            unknown.append(name)
        elif len(column.places) > 1 and column.values.any(axis=1).all():
            # The first word was never offered, so the effects of other words beside it say nothing of offers.
            p, best = p_of_none(common, column), int((column.values @ common.weights[column.places]).argmax())
            value = _value(column.values[best] * units.scale[column.places], units, column.places)
            shown += [f'{name}: {value}'] if p is not None and p <= 1.0 - intervals.LEVEL else []
            unclear += [] if p is not None and p <= 1.0 - intervals.LEVEL else [name]
        else:
            yes_or_no = len(column.places) == 1 and (column.values * units.scale[column.places]).ravel().tolist() == [
                0,
                1,
            ]
            for h in column.places:
                side = (units.effect(common, h) or Estimate(0.0, None, None, None)).place(0.0)
                shown += [_in_words(units.attributes[h], side, yes_or_no=yes_or_no)] if side else []
                unclear += [] if side else [units.attributes[h]]
    lists = {'People want, what counts most first': shown, 'Not shown to count': unclear, 'Not known': unknown}
    return ' '.join(f'{said}: {", ".join(names)}.' for said, names in lists.items() if names)


def _in_words(attribute: str, side: int, *, yes_or_no: bool) -> str:
    """The better end of an attribute, whose effect is above 0 where `side` is 1, and below 0 where it is -1."""
    column, colon, words = attribute.partition(': ')
    word, over, first = words.rpartition(' over ')
    if colon and over:
        return attribute if side == 1 else f'{column}: {first} over {word}'
    more, less = ('', 'no ') if yes_or_no else ('high ', 'low ')
    return f'{more if side == 1 else less}{attribute}'


def of_values(data: Comparisons, units: Units) -> list[list[str]]:
    """The table of how often each value of the columns with few values was offered and chosen."""
    _, first = np.unique(choice_numbers(data.situations, data.chosen, data.rejected), return_index=True)
    # The chosen option of a choice stands in several pairs, and was offered once.
    items = np.concatenate([data.chosen[first], data.rejected[:]])
    chosen = np.arange(len(items)) < len(first)
    if (option := offers.constant_option(data)) is not None:
        keep = (items != option).any(axis=1)
        items, chosen = items[keep], chosen[keep]
    table = [['attribute', 'value', 'offered', 'chosen']]
    for name, index in _indices(units).items():
        values, number = np.unique(items[:, index], axis=0, return_inverse=True)
        if len(values) > MOST_VALUES:
            continue
        offered, taken = np.bincount(number.reshape(-1)), np.bincount(number.reshape(-1), chosen)
        for value, n, k in zip(values, offered, taken, strict=True):
            table.append([name, _value(value * units.scale[index], units, index), str(n), f'{k / n:.0%}'])
            name = ''
    return table


def _value(value: np.ndarray, units: Units, index: Sequence[int]) -> str:
    """A value of a column in words: a number, or the word that its attributes stand for."""
    words = [units.attributes[h].partition(': ')[2].rpartition(' over ') for h in index]
    if not words[0][1]:
        return f'{value[0]:.6g}'
    # The first word has no attribute of its own: the attributes of all others are 0.
    return next((word for (word, _, _), x in zip(words, value, strict=True) if x > 0.5), words[0][2])
