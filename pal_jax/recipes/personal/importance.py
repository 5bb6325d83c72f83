"""The importance of attributes by one logit for all, and counts of how often their values were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special

from pal_jax.data.comparisons import Comparisons, choice_numbers
from pal_jax.recipes.personal import offers
from pal_jax.recipes.personal.logit import Common, Units, is_known
from pal_jax.run import intervals
from pal_jax.types import Exhibit

MOST_VALUES = 8  # an attribute with more values has no rows in the table of values
IMPORTANCE = (
    'The importance of an attribute is the difference in utility between its best and its worst value in the survey, '
    'as a share of the sum over attributes, by one logit for all people. It depends on the values that were offered, '
    'and chance makes attributes that hardly count look more important than they are. p is that of the hypothesis that '
    'the attribute has no effect (Wald test with the errors of "What people want").'
)
UNKNOWN = ' A dash stands where choices do not tell an effect; the other attributes share the sum without it.'
VALUES = (
    'Counts, without a model: how often options with a value were offered, and in how many of these cases the option '
    'was chosen. Only if other attributes were drawn independently do two values differ by nothing but themselves.'
)


def exhibits(data: Comparisons, common: Common, units: Units) -> list[Exhibit]:
    """The exhibits of what counts; `data` is in the units of models, and `common` is the logit of all its choices."""
    (low, high), by_column = np.array(offers.ranges(data)).T, columns_of(units)
    rows = importances(common, by_column, high - low)
    table = [['attribute', 'importance', 'p']]
    for name, share in sorted(rows.items(), key=lambda row: -row[1]):
        table.append([name, f'{share:.0%}', intervals.p_in_words(p_of_none(common, by_column[name]))])
    unknown = [name for name in by_column if name not in rows]
    table += [[name, '–', '–'] for name in unknown]
    # One attribute alone has all of the importance.
    text = IMPORTANCE + (UNKNOWN if unknown else '')
    important = Exhibit('How much each attribute matters', text, table)
    counts = Exhibit('How often each value was chosen', VALUES, of_values(data, units))
    return [important, counts] if len(by_column) > 1 else [counts]


def columns_of(units: Units) -> dict[str, list[int]]:
    """The numbers of the attributes that stand in one column of a survey, by its name; the words of a column are
    attributes of their own. Attributes that only the constant option has are left out."""
    columns: dict[str, list[int]] = {}
    for h, name in enumerate(units.attributes):
        if h not in units.alone:
            columns.setdefault(name.partition(': ')[0] if ' over ' in name else name, []).append(h)
    return columns


def importances(common: Common, columns: Mapping[str, Sequence[int]], width: np.ndarray) -> dict[str, float]:
    """The importance of each column whose effects choices tell; `width` `[H]` is the range of each attribute."""
    known = [is_known(estimate) for estimate in common.estimates]
    worth = {
        name: common.weights[index] * width[index] for name, index in columns.items() if all(known[h] for h in index)
    }
    # The first word of a column is worth 0, and so is the least value of a number.
    spans = {name: max(of.max(), 0.0) - min(of.min(), 0.0) for name, of in worth.items()}
    total = sum(spans.values())
    return {name: float(span / total) if total else 0.0 for name, span in spans.items()}


def p_of_none(common: Common, index: Sequence[int]) -> float:
    """The p-value of the hypothesis that some effects are all 0, by Wald's test with the F distribution."""
    w, q = common.weights[index], len(index)
    statistic = w @ np.linalg.solve(common.covariance[np.ix_(index, index)], w) / q
    return float(special.fdtrc(q, common.people - 1, statistic)) if common.people > 1 else 1.0


def wanted(common: Common, units: Units, width: np.ndarray) -> str:
    """Sentences on what people want by one logit for all, the largest effect over the range of an attribute first."""
    effects = {h: units.effect(common, h) for h in range(len(width)) if h not in units.alone}
    sides = {h: effect.place(0.0) for h, effect in effects.items() if effect and effect.error}
    order = sorted(sides, key=lambda h: -abs(common.weights[h]) * width[h])
    shown = [_in_words(units.attributes[h], side) for h in order if (side := sides[h])]
    unclear = [units.attributes[h] for h in order if not sides[h]]
    unknown = [units.attributes[h] for h, effect in effects.items() if not effect]
    lists = {'People want, what counts most first': shown, 'Not shown to count': unclear, 'Not known': unknown}
    return ' '.join(f'{said}: {", ".join(names)}.' for said, names in lists.items() if names)


def _in_words(attribute: str, side: int) -> str:
    """The better end of an attribute, whose effect is above 0 where `side` is 1, and below 0 where it is -1."""
    column, colon, words = attribute.partition(': ')
    word, over, first = words.rpartition(' over ')
    if colon and over:
        return attribute if side == 1 else f'{column}: {first} over {word}'
    return f'{"high" if side == 1 else "low"} {attribute}'


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
    for name, index in columns_of(units).items():
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
