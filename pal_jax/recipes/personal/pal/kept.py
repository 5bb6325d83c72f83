"""The record that a run of PAL keeps of its data, in its folder: the people of the table of users by row, the meaning
of an item's numbers, and how a text becomes a vector. With it the run can be opened after the data are gone.

    kept = load(Path(workdir) / KEPT)
    kept.rows['ana']                                           # the row of her mixture in the table of users
    items = kept.in_units(prices_and_times)                    # from the table's own units to those of the model
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from pal_jax.data import comparisons
from pal_jax.data.comparisons import Comparisons, Lookup
from pal_jax.data.holdouts import normal
from pal_jax.models.states import Frame
from pal_jax.recipes.personal import offers, panel
from pal_jax.recipes.personal.attributes import items_of, lacking, with_numbers
from pal_jax.recipes.personal.pal import text as pal_text
from pal_jax.recipes.personal.pal.settings import Settings
from pal_jax.recipes.personal.pal.text import TextData
from pal_jax.run import files, models
from pal_jax.run.files import write_whole

FILE = 'pal.json'


class Kept(NamedTuple):
    """The record that `Recipe.keep` writes for a run of PAL.

    Attributes:
      names: users, by their rows in the table of users.
      attributes: columns of an item's vector, in their order.
      scale: `[H]`, the divisor of each attribute before the model sees it.
      frame: the coordinates in which vectors of texts are given; None: the decoder's states as they are, or no texts.
      groups: the number of groups of people that are known.
      prompted: whether texts are replies to prompts.
      chat: whether prompts and replies are messages.
      ranges: the least and the largest value of each named attribute of a table; () in runs of earlier versions.
      constant: the values of an option that every choice of a table has, such as "none of these"; () without one.
      shared: the values, by name, that all options but the constant one share; an option may leave them out.
      first_split: the number of the first split; -1 in runs of earlier versions, whose numbers were others.
    """

    names: tuple[str, ...]
    attributes: tuple[str, ...]
    scale: np.ndarray
    frame: Frame | None = None
    groups: int = 0
    prompted: bool = False
    chat: bool = False
    ranges: tuple[tuple[float, float], ...] = ()
    constant: tuple[float, ...] = ()
    shared: Mapping[str, float] = MappingProxyType({})
    first_split: int = -1

    @property
    def width(self) -> int:
        return len(self.attributes)

    @property
    def rows(self) -> dict[str, int]:
        """The rows of users by name."""
        return {name: row for row, name in enumerate(self.names)}

    def items(self, record: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The items of a row of a table by their attributes, as `attributes.items_of`."""
        return items_of(record, self.attributes, self.shared, self.constant)

    def in_units(self, items: ArrayLike) -> np.ndarray:
        """Items `[..., H]` in the table's own units, as the model sees them."""
        return comparisons.in_units(np.asarray(items), self.scale)

    def vectors(self, items: Any, what: str = 'items') -> np.ndarray:
        """Items `[B, H]`, or B objects of attributes, in the table's own units, as the model sees them.

        Raises:
          ValueError: an item has other attributes than the run, or a value that is no finite number in float32; `what`
            names the items in the message.
        """
        if isinstance(items, Sequence) and any(isinstance(item, Mapping) for item in items):
            items = [self.numbers(item) for item in items]
        try:
            table = np.asarray(items)
        except ValueError:  # rows of several lengths
            table = np.empty(0)
        # Truth values and texts are no numbers, though numpy would make arrays of them.
        fits = table.dtype.kind in 'iuf' and table.ndim == 2 and table.shape[1:] == (self.width,)
        vectors = self.in_units(table.astype(np.float64)) if fits else np.empty(0)
        if not fits or not np.isfinite(vectors).all():
            raise ValueError(
                f'{what} {files.short_repr(items)} are not of finite numbers for the {self.width} attributes of the '
                f'run ({", ".join(self.attributes[:8])}); give [B, {self.width}]'
            )
        return vectors

    def numbers(self, item: Any) -> list[Any]:
        """The values of an item that is an object of attributes, in the run's order.

        Raises:
          ValueError: an attribute of the run is missing, or another one is there.
        """
        if not isinstance(item, Mapping):
            raise ValueError(f'an item is {files.short_repr(item)}, others are objects; give all alike')
        item = with_numbers(item, self.attributes)
        if missing := [name for name in self.attributes if name not in item]:
            raise ValueError(f'an item has {lacking(missing[0], item, self.attributes)}')
        if unknown := [name for name in item if name not in self.attributes]:
            raise ValueError(f'an item has {unknown[0]!r}, of which the run knows nothing; leave it out')
        return [item[name] for name in self.attributes]


def of(settings: Settings, data: Comparisons, text: TextData | None = None) -> Kept:
    """The record of a run on these pairs; `text` is their source, where they are pairs of texts.

    Raises:
      ValueError: two users have one name.
    """
    # Whoever names a person may spell the name in another way, so names are told apart in normal form.
    if len(counts := Counter(map(normal, data.names))) < len(data.names):
        name = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f'data={settings.data!r} has two users called {name!r}; give each a name of their own')
    # The scale is kept: a new person's items have to be divided by the same numbers.
    scale = offers.scales(data) if settings.standardize else np.ones(data.chosen.shape[1])
    groups, first = 0 if data.groups is None else int(data.groups.max()) + 1, panel.first_split(settings.seed)
    if text is None:
        # Numbers of vectors say nothing by themselves.
        unnamed = data.attributes == comparisons.default_names(len(data.attributes))
        without = unnamed or isinstance(data.chosen, Lookup)
        kept = Kept(data.names, data.attributes, scale, groups=groups, first_split=first)
        if without:
            return kept
        option = offers.constant_option(data)
        constant = () if option is None else tuple(option.tolist())
        offer = offers.varied(data)[0]
        shared = {data.attributes[h]: float(offer[h]) for h in sorted(offers.alone(data))}
        ranges = tuple(offers.ranges(data))
        return kept._replace(ranges=ranges, constant=constant, shared=MappingProxyType(shared))
    prompted, chat = text.pairs.prompt is not None, text.pairs.chat
    return Kept(data.names, data.attributes, scale, text.frame, groups, prompted, chat, first_split=first)


def keeping(kept: Kept, reader: pal_text.Decoder | pal_text.Encoder | None = None) -> Callable[[Path], None]:
    """A function that writes into a folder the record of a run, and of a decoder that reads its texts."""

    def keep(folder: Path) -> None:
        save(folder, kept)
        if isinstance(reader, pal_text.Decoder):
            models.keeping(text=reader)(folder)

    return keep


def save(folder: Path, kept: Kept) -> None:
    """Write the record into a run's folder, in one piece."""
    record = kept._asdict() | {'scale': kept.scale.tolist(), 'shared': dict(kept.shared)}
    record['frame'] = kept.frame and {name: x.tolist() for name, x in kept.frame._asdict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FILE, json.dumps(record) + '\n')


def load(folder: Path) -> Kept:
    """Read the record that a run has kept.

    Raises:
      ValueError: the file is missing or damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise ValueError(
            f'{path} is missing: the run is of an earlier version, which kept neither its people nor its coordinates; '
            'train it again in another --workdir'
        )
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
        frame = record['frame'] and Frame(**{name: np.array(x) for name, x in record['frame'].items()})
        columns: dict[str, Any] = {name: tuple(record[name]) for name in ('names', 'attributes')}
        columns['ranges'] = tuple((low, high) for low, high in record.get('ranges', ()))
        columns['constant'] = tuple(record.get('constant', ()))
        columns['shared'] = MappingProxyType(record.get('shared', {}))
        return Kept(**record | columns | {'scale': np.array(record['scale']), 'frame': frame})
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path} cannot be read ({error}); copy the folder of the run again') from None


def going_on(data: str, before: Kept | None, now: Kept) -> Kept:
    """The record from the beginning of a run, or the one of now where the run begins (`before` is None).

    Args:
      data: the name of the data.

    Raises:
      ValueError: the data have other people or attributes than when the run began.
    """
    if before is None:
        return now
    # Splits of seed 0 have the numbers that they had.
    if before.first_split < 0 < now.first_split:
        raise ValueError(
            'the run is of an earlier version, which divided people in another way for a seed other than 0; train it '
            'again in another --workdir'
        )
    # A file in another order has its people at other rows, so names are compared one by one.
    for part, old, new in (('users', before.names, now.names), ('attributes', before.attributes, now.attributes)):
        if old != new:
            number = next((i for i, (one, two) in enumerate(zip(old, new, strict=False)) if one != two), None)
            change = f'{len(old)} -> {len(new)}' if number is None else f'{number}: {old[number]!r} -> {new[number]!r}'
            raise ValueError(
                f'data={data!r} has other {part} than when the run began ({change}); give the data of then, or '
                'another --workdir'
            )
    # Principal axes have arbitrary signs and depend on the machine that computes them, so those of the beginning stay.
    return before
