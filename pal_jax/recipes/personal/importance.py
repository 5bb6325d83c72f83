"""The importance of attributes by one logit for all, and counts of how often their values were chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from pal_jax.data.comparisons import Comparisons, choice_numbers
from pal_jax.recipes.personal import attributes, offers
from pal_jax.recipes.personal.attributes import column_of
from pal_jax.recipes.personal.logit import CERTAIN, Common, Units
from pal_jax.recipes.personal.offers import Tied
from pal_jax.run import intervals
from pal_jax.types import Exhibit

MOST_VALUES, PARTS = 8, 4  # a number with more values is shown in so many parts
IMPORTANCE = (
    'The importance of an attribute is the difference in utility between the best and the worst of its values that '
    'were offered, as a share of the sum over attributes, by one logit for all people. It depends on these values, and '
    'chance makes attributes that hardly count look more important than they are. p is that of the hypothesis that the '
    'attribute has no effect (Wald test with the errors of "What people want").'
)
UNKNOWN = ' A dash stands where choices do not tell an effect, or too few people tell its p.'
ONLY_TOGETHER = (
    ' So it does for attributes that differ only together with another one (see "What people want"), of which the '
    'values of all other options count.'
)
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


def exhibits(
    data: Comparisons, columns: Mapping[str, Column], common: Common, units: Units, tied: Sequence[Tied] = ()
) -> list[Exhibit]:
    """The exhibits of what counts; `data` is in the units of models, and `common` is the logit of all its choices."""
    shares, rows = importances(common, untied(columns, tied)), []
    for name in by_share(columns, shares):
        known = name in shares
        p = p_of_none(common, columns[name]) if known else None
        rows.append([name, f'{shares[name]:.0%}' if known else '–', intervals.p_in_words(p)])
    text = IMPORTANCE + (UNKNOWN if any('–' in row for row in rows) else '') + (ONLY_TOGETHER if tied else '')
    important = Exhibit('How much each attribute matters', text, [['attribute', 'importance', 'p'], *rows])
    # One attribute alone has all of the importance.
    shown, table = [important] if len(columns) > 1 else [], of_values(data, columns, units)
    return shown + ([Exhibit('How often each value was chosen', VALUES, table)] if len(table) > 1 else [])


def columns_of(data: Comparisons, units: Units, tied: Sequence[Tied] = ()) -> dict[str, Column]:
    """The columns of a survey by name; attributes that only the constant option has are left out, and of the partners
    of `tied` ones the value that these come with."""
    places: dict[str, list[int]] = {}
    for h, name in enumerate(units.attributes):
        if h not in units.alone:
            places.setdefault(column_of(name), []).append(h)
    offered = offers.varied(data)
    columns = {}
    for name, index in places.items():
        with_tied = [x.value for x in tied if [x.partner] == index]
        values = np.unique(offered[~np.isin(offered[:, index[0]], with_tied)][:, index], axis=0)
        columns[name] = Column(index, values[[0, -1]] if len(index) == 1 and len(values) > 2 else values)
    return columns


def untied(columns: Mapping[str, Column], tied: Sequence[Tied]) -> dict[str, Column]:
    """The columns without `tied` attributes."""
    numbers = {h for x in tied for h, _, _ in x.ends}
    return {name: column for name, column in columns.items() if not numbers & {*column.places}}


def by_share(columns: Mapping[str, Column], shares: Mapping[str, float]) -> list[str]:
    """The names of columns, that with the largest importance first, and those without one last."""
    return sorted(columns, key=lambda name: -shares.get(name, 0.0))


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
    value, covariance = _differences(common, column)
    # Of one word and another the difference may be known where their effects are not.
    most = CERTAIN * np.abs(column.contrasts).max(axis=1, initial=0.0)
    return bool(np.all(np.abs(value) <= most) and np.all(np.diag(covariance) <= most**2))


def _differences(common: Common, column: Column) -> tuple[np.ndarray, np.ndarray]:
    """The utilities of a column's values less that of the first one `[V - 1]`, and their covariance."""
    contrasts = column.contrasts
    covariance = common.covariance[np.ix_(column.places, column.places)]
    return contrasts @ common.weights[column.places], contrasts @ covariance @ contrasts.T


def p_of_none(common: Common, column: Column) -> float | None:
    """The p-value of the hypothesis that all values of a column are worth the same, by Wald's test; None: there are too
    few people, or one value alone.

    A covariance that is clustered by G people makes the statistic of q differences Hotelling's, with the F distribution
    of q and G - q degrees of freedom.
    """
    value, covariance = _differences(common, column)
    q, people = len(value), common.people
    if not 0 < q < people:
        return None
    statistic = value @ np.linalg.solve(covariance, value) * (people - q) / (q * (people - 1))
    return float(special.fdtrc(q, people - q, statistic))


def wanted(columns: Mapping[str, Column], common: Common, units: Units, tied: Sequence[Tied] = ()) -> str:
    """Sentences on what people want by one logit for all, the most important column first."""
    columns = untied(columns, tied)
    shares = importances(common, columns)
    shown: list[str] = []
    unclear: list[str] = []
    for name in by_share(columns, shares):
        for words, counts in _ends(name, columns[name], common, units) if name in shares else ():
            (shown if counts else unclear).append(words)
    unknown = [name for name in columns if name not in shares]
    lists = {'People want, what counts most first': shown, 'Not shown to count': unclear, 'Not known': unknown}
    said = [f'{heading}: {", ".join(names)}.' for heading, names in lists.items() if names]
    return ' '.join([*said, *(_with_partner(x, common, units) for x in tied)])


def _with_partner(tied: Tied, common: Common, units: Units) -> str:
    """A sentence on `tied` attributes, with the utility of each together with the difference of its partner."""
    partner, names, utilities = tied.partner, [], []
    for h, end, other in tied.ends:
        names.append(_in_words(units.attributes[h], 1 if end > other else -1, yes_or_no=True))
        of_both, places = np.array([end - other, tied.value - tied.mean]), [h, partner]
        error = float(np.sqrt(of_both @ common.covariance[np.ix_(places, places)] @ of_both))
        utility = intervals.of_mean(float(of_both @ common.weights[places]), error, common.people)
        utilities.append(f'{names[-1]} {utility.value:+z.2f} ({utility.ends("+z.2f")})')
    name = units.attributes[partner]
    value, mean = (f'{x * units.scale[partner]:.3g}' for x in (tied.value, tied.mean))
    return (
        f'Every option with {" or ".join(names)} has the {name} {value}, and no other option has, so the effect in the '
        f'table is beside an option that nobody was offered. Beside the mean {name} of the other options, {mean}, the '
        f'utility is (95 % intervals): {", ".join(utilities)}.'
    )


def _ends(name: str, column: Column, common: Common, units: Units) -> Iterator[tuple[str, bool]]:
    """The better ends of a column in words, each with whether it is shown to count; what is not has the words of its
    attribute."""
    if len(column.places) > 1 and column.values.any(axis=1).all():
        # The first word was never offered, so the effects of other words beside it say nothing of offers.
        p, best = p_of_none(common, column), int((column.values @ common.weights[column.places]).argmax())
        counts = p is not None and p <= 1.0 - intervals.LEVEL
        yield f'{name}: {_value(name, column.values[best], column, units)}' if counts else name, counts
        return
    yes_or_no = [_value(name, value, column, units) for value in column.values] == ['0', '1']
    for h in column.places:
        effect = units.effect(common, h)
        side = effect.place(0.0) if effect else None
        yield _in_words(units.attributes[h], side, yes_or_no=yes_or_no) if side else units.attributes[h], bool(side)


def _in_words(attribute: str, side: int, *, yes_or_no: bool) -> str:
    """The better end of an attribute, whose effect is above 0 where `side` is 1, and below 0 where it is -1."""
    column, colon, words = attribute.partition(': ')
    word, over, first = words.rpartition(' over ')
    if colon and over:
        return attribute if side == 1 else f'{column}: {first} over {word}'
    more, less = ('', 'no ') if yes_or_no else ('high ', 'low ')
    return f'{more if side == 1 else less}{attribute}'


def of_values(data: Comparisons, columns: Mapping[str, Column], units: Units) -> list[list[str]]:
    """The table of how often each value of the columns was offered and chosen, or each part of many numbers."""
    _, first = np.unique(choice_numbers(data.situations, data.chosen, data.rejected), return_index=True)
    # The chosen option of a choice stands in several pairs, and was offered once.
    items = np.concatenate([data.chosen[first], data.rejected[:]])
    offered = offers.others(items, offers.constant_option(data))
    items, chosen = items[offered], (np.arange(len(items)) < len(first))[offered]
    table = [['attribute', 'value', 'offered', 'chosen']]
    for name, column in columns.items():
        values, number, counts = np.unique(items[:, column.places], axis=0, return_inverse=True, return_counts=True)
        # A number with many values is shown by its quarters.
        in_parts = len(values) > MOST_VALUES and len(column.places) == 1
        part = _parts_of(counts) if in_parts else np.arange(len(values))
        taken, offered = np.bincount(part[number.reshape(-1)], chosen), np.bincount(part, counts)
        for k in range(len(taken)):
            group = values[part == k]
            # A part of one value has that alone.
            ends = dict.fromkeys(_value(name, end, column, units) for end in (group[0], group[-1]))
            table.append(['' if k else name, ' to '.join(ends), f'{offered[k]:.0f}', f'{taken[k] / offered[k]:.0%}'])
    return table


def _parts_of(counts: np.ndarray) -> np.ndarray:
    """The part `[V]`, from 0, of each of V values in their order, by their counts `[V]`: about `PARTS` equal parts."""
    middle = np.cumsum(counts) - counts / 2
    part = (PARTS * middle / counts.sum()).astype(int)
    # A value of many options may leave a part empty.
    return np.unique(part, return_inverse=True)[1]


def _value(name: str, value: np.ndarray, column: Column, units: Units) -> str:
    """A value `[W]` of a column, in the units of models, as the table has it: a number or a word."""
    numbers = value * units.scale[column.places]
    # Scales and float32 change the last digits of a number.
    item = {units.attributes[h]: float(f'{x:.6g}') for h, x in zip(column.places, numbers, strict=True)}
    return str(attributes.in_words(item)[name])
