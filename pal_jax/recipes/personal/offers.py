"""The ranges and scales of what a table's options offer, and an option that everybody always has.

An option that every situation has, such as "none of these", offers nothing: its zeros would widen the ranges and the
standard deviations of attributes, by which effects are compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pal_jax.data.comparisons import Comparisons, Lookup, row_keys
from pal_jax.recipes.personal import attributes
from pal_jax.recipes.personal.logit import SINGULAR, mean_products
from pal_jax.run import forecast

NEARLY = 0.9  # share of situations that an option is in by intention
LEAST = 10  # situations; an option may be in fewer ones by chance


def constant_option(data: Comparisons) -> np.ndarray | None:
    """The only option `[H]` that every situation has; None: there is none, or all options are of this kind."""
    options, counts, total = _options_in(data)
    everywhere = counts == total
    if everywhere.sum() != 1 or len(options) < 3 or total < LEAST:
        return None
    return options[everywhere.argmax()]


def _options_in(data: Comparisons) -> tuple[np.ndarray, np.ndarray, int]:
    """The different options `[n, H]` of a table, the number of situations `[n]` that have each, and that of all."""
    items, situations = data.items, np.tile(data.situations, 2)
    keys, first, number = np.unique(row_keys(items), return_index=True, return_inverse=True)
    _, once = np.unique(np.stack([situations, number.reshape(-1)]), axis=1, return_index=True)
    counts = np.bincount(number.reshape(-1)[once], minlength=len(keys))
    return items[first], counts, len(np.unique(data.situations))


def _nearly_constant(data: Comparisons) -> str:
    """The words for the only option that nearly every situation has, and the situations without it; '' for none."""
    options, counts, total = _options_in(data)
    nearly = (counts >= NEARLY * total) & (counts < total)
    if nearly.sum() != 1 or (counts == total).any() or total < LEAST:
        return ''
    option = options[nearly.argmax()]
    is_it = ~others(data.items, option)
    with_it = np.tile(data.situations, 2)[is_it]
    lacking = np.flatnonzero(~np.isin(data.situations, with_it))
    who = data.names[data.users[lacking[0]]]
    count = forecast.counted(total - int(counts[nearly.argmax()]), 'choice')
    return (
        f'warning: one option ({_in_words(data, option)}) is in all but {count}, of which the first one is of {who}: '
        'if it is "none of these", mend its rows there'
    )


def varied(data: Comparisons) -> np.ndarray:
    """All items of a table `[2 n, H]`, chosen ones first, without a constant option."""
    return data.items[others(data.items, constant_option(data))]


def others(items: np.ndarray, option: np.ndarray | None) -> np.ndarray:
    """False `[n]` for the items `[n, H]` that are the constant option."""
    return np.ones(len(items), bool) if option is None else (items != option).any(axis=1)


def scales(data: Comparisons) -> np.ndarray:
    """The standard deviation of each attribute `[H]` over the items, in float64; 1 for an attribute that is constant
    but for the constant option."""
    items = varied(data).astype(np.float64)
    return np.where(np.ptp(items, axis=0) > 0, items.std(axis=0), 1.0)


def alone(data: Comparisons) -> frozenset[int]:
    """The numbers of the attributes that tell the constant option from the others, and do not differ between these."""
    option = constant_option(data)
    if option is None:
        return frozenset()
    items = data.items[others(data.items, option)]
    return frozenset(np.flatnonzero((np.ptp(items, axis=0) == 0.0) & (items[0] != option)).tolist())


class Tied(NamedTuple):
    """Attributes of two values, one of which comes with a value of another attribute that no other option has, as some
    rates of a tariff have a fixed price of 0.

    Attributes:
      ends: the number of each attribute, with its value that is so, and its other one.
      partner: the number of the other attribute.
      value: the value of the partner.
      mean: the mean of the partner over the other options.
    """

    ends: tuple[tuple[int, float, float], ...]
    partner: int
    value: float
    mean: float


def tied(data: Comparisons) -> list[Tied]:
    """The attributes of a table whose effects are beside options that nobody was offered."""
    items = varied(data).astype(np.float64)
    values = [np.unique(column) for column in items.T]
    result = []
    for g, of_partner in enumerate(values):
        together: dict[float, list[tuple[int, float, float]]] = {}
        for h in (h for h, x in enumerate(values) if len(x) == 2 < len(of_partner)):
            for end, other in (values[h], values[h][::-1]):
                with_end = np.unique(items[items[:, h] == end, g])
                if len(with_end) == 1:
                    together.setdefault(float(with_end[0]), []).append((h, float(end), float(other)))
        for value, ends in together.items():
            free = items[np.all([items[:, h] != end for h, end, _ in ends], axis=0), g]
            if len(free) and not free.min() <= value <= free.max():
                result.append(Tied(tuple(ends), g, value, float(free.mean())))
    return result


def ranges(data: Comparisons) -> list[tuple[float, float]]:
    """The least and the largest value of each attribute; with the constant option where other items do not vary."""
    (low, high), everywhere = ([x.min(axis=0), x.max(axis=0)] for x in (varied(data), data.items))
    ends = (np.where(low == high, end, of_items) for end, of_items in zip(everywhere, (low, high), strict=True))
    return list(zip(*(end.tolist() for end in ends), strict=True))


def doubts(data: Comparisons) -> list[str]:
    """Warnings on options and attributes of a table whose effects choices cannot tell, or tell wrongly."""
    said, tangled = [nearly] if (nearly := _nearly_constant(data)) else [], _tangled(data)
    if (option := constant_option(data)) is not None and not _is_told_apart(data, option):
        said.append(
            'warning: the option that is in every choice has no column of its own. If it is "none of these", all '
            'effects are wrong without one: add a column such as neither, which is 1 for this option and else 0'
        )
    if tangled:
        said.append(
            f'warning: {" and ".join(tangled)} cannot be told apart, as one of them follows from the others in all '
            f'choices: leave a column out, or give an option such as "none of these" a word that offers have, '
            f'{_word_of_offers(tangled)}'
        )
    return said


def _word_of_offers(tangled: Sequence[str]) -> str:
    """An example of a word that is the reference of an attribute, in words."""
    first = next((name.rpartition(' over ')[2] for name in tangled if ' over ' in name), '')
    return f'such as {first}, in place of its own' if first else 'too'


def _is_told_apart(data: Comparisons, option: np.ndarray) -> bool:
    """True where attributes, or their sums, are the same for all other options, and not for this one."""
    of_others = others(data.items, option).astype(float)
    difference = np.subtract(*np.split(of_others, 2))
    x = data.difference.astype(np.float64)
    residual = difference - x @ np.linalg.lstsq(x, difference, rcond=None)[0]
    return bool(np.sum(residual**2) <= 1e-6 * np.sum(difference**2))


def _tangled(data: Comparisons) -> list[str]:
    """The attributes of which one follows from the others in all differences of options."""
    varies, products = mean_products(data.difference)
    values, vectors = np.linalg.eigh(products)
    nothing = vectors[:, values < SINGULAR]
    return [data.attributes[h] for h, row in zip(varies, nothing, strict=True) if np.abs(row).max(initial=0.0) > 0.01]


def described(data: Comparisons) -> str:
    """The numbers of choices and people in words, the attributes with the range of their values, and how often a
    constant option is chosen."""
    pairs = np.unique(data.situations, return_index=True)[1]
    counts = np.bincount(data.users[pairs])
    words = (
        f'{forecast.counted(len(pairs), "choice")} of {forecast.counted(len(data.names), "person")}, '
        f'{counts.min()} to {counts.max()} of each'
    )
    # Items that are looked up are texts or lie on disk, so their attributes say nothing or cost a pass.
    if isinstance(data.chosen, Lookup):
        return words + (f'; {forecast.counted(len(data.texts), "text")}' if data.texts else '')
    # A word of an attribute is 0 or 1, see `attributes.py`.
    listed = [
        name if ' over ' in name else f'{name} {low:.4g} to {high:.4g}'
        for name, (low, high) in zip(data.attributes, ranges(data), strict=True)
    ]
    words += f'; {", ".join(listed[: forecast.LISTED])}' + (', ...' if len(listed) > forecast.LISTED else '')
    option = constant_option(data)
    if option is None:
        return words
    share = float(np.mean((data.chosen[pairs] == option).all(axis=1)))
    return f'{words}; one option is in every choice ({_in_words(data, option)}), and was chosen in {share:.0%} of them'


def _in_words(data: Comparisons, option: np.ndarray) -> str:
    """The columns of an option `[H]` with their values."""
    columns = attributes.in_words(dict(zip(data.attributes, option.tolist(), strict=True)))
    return ', '.join(f'{name} {value}' for name, value in columns.items())
