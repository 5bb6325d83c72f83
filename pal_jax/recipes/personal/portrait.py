"""The portrait of a population by the model of one split: what people want, where they stand among the prototypes, and
what each prototype likes."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pal_jax.data.comparisons import Comparisons, Lookup
from pal_jax.models.params import Params
from pal_jax.recipes.personal import ideal_point, pictures
from pal_jax.recipes.personal.ideal_point import PAL
from pal_jax.run.forecast import counted
from pal_jax.types import Exhibit

PEOPLE = 'people.csv'  # the file with a row for each person, in the folder of a run
WANTS = (
    'The effect of one more unit of an attribute (for a yes or no: of having it) on the reward, whose differences are '
    'the log-odds of a choice: the mean over people, the standard deviation over people, and the share of people who '
    'want more of it. The effects are estimates, which are pulled towards each other, so people may differ by more. '
    f'{PEOPLE} in the folder of the run has those of each person.'
)
DEVIATIONS = ' The last column and the picture have the effect of one standard deviation, to compare attributes by.'
ALIKE = (
    'On validation choices one model for all was as good as prototypes, so this run shows no differences between '
    'people.'
)
MAPS = {
    2: 'The number of people by their weight of the second prototype; that of the first is the rest to 1.',
    3: 'A corner of the triangle is a prototype, and a point a person: the nearer the corner, the larger the weight.',
}
MAP = (
    'A point is a person, a triangle a prototype, seen along the two directions in which the weights of people differ '
    'most. People who are near each other have similar weights; the place on an axis means nothing by itself.'
)
CORNERS = (
    'A person is a mixture of the prototypes, so a prototype is often more extreme than anybody. The numbers of a '
    'mixture (pal-jax personalize) stand in the order of the prototypes.'
)
OF_ATTRIBUTES = (
    'Effects on the reward of one standard deviation of an attribute, or of one unit with standardize=False. '
)
OF_TEXTS = (
    'How much more a prototype likes a statement, or a reply than the other reply to its prompt, compared with the '
    'mean of the prototypes. '
)
SHOWN_TEXTS = 3  # the number of texts that a prototype likes most, and least
SHOWN_ITEMS = 2000  # the number of items whose rewards show what a prototype likes
SHOWN_PEOPLE = 5000  # the number of people in the picture
SHOWN_ATTRIBUTES = 30  # more rows could not be read
CHUNK = 256  # people whose rewards are computed at once


class SplitModel(NamedTuple):
    """The model that a split chose, and the people whom it was trained on.

    Attributes:
      split: the number of the split.
      chosen: the K of each split.
      names: the P people.
      mixtures: their weights `[P, K]`.
      data: the pairs, as the model reads them.
      scale: `[H]`, by which the attributes of a table were divided; None: by nothing.
    """

    split: int
    chosen: Sequence[int]
    pal: PAL
    params: Params
    names: Sequence[str]
    mixtures: np.ndarray
    data: Comparisons
    scale: np.ndarray | None

    @property
    def which(self) -> str:
        """A sentence on which split this is, and why it is shown."""
        listed = ', '.join(map(str, self.chosen))
        return (
            f'By split {self.split} (--split={self.split}), the first whose K={self.pal.prototypes} is the median of '
            f'those that the splits chose ({listed}), and the {counted(len(self.names), "person")} of its training.'
        )

    def rewards(self, mixtures: np.ndarray, items: np.ndarray, prompt: np.ndarray | None) -> np.ndarray:
        """The rewards `[M, n]` of items `[n, H]` to mixtures `[M, K]`."""
        x, c = jnp.asarray(items), None if prompt is None else jnp.asarray(prompt)

        def of(w: jax.Array) -> jax.Array:
            u = ideal_point.user_point(self.params, self.pal, jnp.broadcast_to(w, (len(x), *w.shape)), c)
            return ideal_point.item_reward(self.params, self.pal, u, x)

        return np.asarray(jax.vmap(of)(jnp.asarray(mixtures)))


def exhibit_wants(model: SplitModel, effects: np.ndarray) -> Exhibit:
    """The exhibit of what people want, by the effects `[P, H]` of attributes as the model sees them."""
    attributes = model.data.attributes
    head = ['attribute', 'mean effect of one unit', 'standard deviation over people', 'people above 0']
    table = [head if model.scale is None else [*head, 'mean effect of one standard deviation']]
    for name, unit, seen in zip(attributes, _in_own_units(model, effects).T, effects.T, strict=True):
        # Equal effects have no spread, and none of rounding either.
        row = [name, f'{unit.mean():+.3g}', f'{unit.std() if np.ptp(unit) else 0.0:.3g}', f'{(unit > 0).mean():.0%}']
        table.append(row if model.scale is None else [*row, f'{seen.mean():+.2f}'])
    text = f'{model.which} {WANTS}{"" if model.scale is None else DEVIATIONS}'
    return Exhibit('What people want', text, table, pictures.plot_wants(effects, attributes))


def exhibit_prototypes(model: SplitModel) -> list[Exhibit]:
    """The people among the prototypes, and the attributes or texts that each prototype likes."""
    pal, mixtures, data = model.pal, model.mixtures, model.data
    if pal.prototypes == 1:
        return [Exhibit('The people', f'{model.which} {ALIKE}')]
    index, words = shown_items(data)
    items, prompt = data.chosen[index], None if data.prompt is None else data.prompt[index]
    liked = model.rewards(np.eye(pal.prototypes, dtype=np.float32), items, prompt)
    if words and prompt is not None:
        # A prompt moves the rewards of both replies, so a reply is shown by what it has above the other.
        liked = liked - model.rewards(np.eye(pal.prototypes, dtype=np.float32), data.rejected[index], prompt)
    effects = pictures.linear_effects(liked, items) if not words else liked - liked.mean(axis=0)
    attributes, shown = (words, SHOWN_TEXTS) if words else (data.attributes, 2)
    table = [['prototype', 'mean weight', 'largest for', 'likes most', 'likes least']]
    for k, effect in enumerate(effects):
        mostly = np.mean(mixtures.argmax(axis=1) == k)
        liked_most = pictures.in_words(effect, attributes, shown)
        table.append([str(k + 1), f'{mixtures[:, k].mean():.2f}', f'{mostly:.0%}', *liked_most])
    picture = pictures.plot_effects(effects, attributes) if len(attributes) <= SHOWN_ATTRIBUTES else b''
    place, effect_of = MAPS.get(pal.prototypes, MAP), OF_TEXTS if words else OF_ATTRIBUTES
    return [
        Exhibit('The people', f'{model.which} {place}', picture=pictures.plot_simplex(mixtures[:SHOWN_PEOPLE])),
        Exhibit('The prototypes', f'{effect_of}{CORNERS}', table, picture),
    ]


def effects_on_people(model: SplitModel) -> np.ndarray | None:
    """The effects `[P, H]` of attributes on each person's reward, as the model sees them; None where the items are
    texts, or have too many attributes to be read."""
    data = model.data
    if data.texts or len(data.attributes) > SHOWN_ATTRIBUTES:
        return None
    index, _ = shown_items(data)
    items, prompt = data.chosen[index], None if data.prompt is None else data.prompt[index]
    # People with the same mixture have the same effects.
    mixtures, person = np.unique(model.mixtures, axis=0, return_inverse=True)
    chunks = (mixtures[start : start + CHUNK] for start in range(0, len(mixtures), CHUNK))
    effects = [pictures.linear_effects(model.rewards(chunk, items, prompt), items) for chunk in chunks]
    return np.concatenate(effects)[person.reshape(-1)]


def table_of_people(model: SplitModel, effects: np.ndarray | None) -> str:
    """The people as CSV: `participant`, `weight_<prototype>`, and `effect_<attribute>` of one unit where there are
    `effects` `[P, H]`."""
    columns = {f'weight_{k + 1}': weights for k, weights in enumerate(model.mixtures.T)}
    if effects is not None:
        by_attribute = zip(model.data.attributes, _in_own_units(model, effects).T, strict=True)
        columns |= {f'effect_{name}': effect for name, effect in by_attribute}
    rows = zip(model.names, *([f'{x:.6g}' for x in column] for column in columns.values()), strict=True)
    file = io.StringIO()
    csv.writer(file, lineterminator='\n').writerows([['participant', *columns], *rows])
    return file.getvalue()


def without_person(table: str, name: str) -> str:
    """The CSV of `table_of_people` without the row of a person."""
    (head, *rows), file = csv.reader(io.StringIO(table)), io.StringIO()
    csv.writer(file, lineterminator='\n').writerows([head, *(row for row in rows if row[:1] != [name])])
    return file.getvalue()


def _in_own_units(model: SplitModel, effects: np.ndarray) -> np.ndarray:
    """Effects `[P, H]` of one unit of the table's own."""
    return effects if model.scale is None else effects / model.scale


def shown_items(data: Comparisons) -> tuple[np.ndarray, list[str]]:
    """The numbers of pairs whose chosen items show what a prototype likes, and the items in words if they are texts."""
    # A random order gives every part of the data a chance to be among the first.
    index = np.random.default_rng(0).permutation(len(data.users))
    if not data.texts:
        return index[:SHOWN_ITEMS], []
    columns = [lookup.numbers[index] for lookup in (data.prompt, data.chosen) if isinstance(lookup, Lookup)]
    # Each text is there once, or each reply to each prompt.
    different = np.unique(np.stack(columns), axis=1, return_index=True)[1][:SHOWN_ITEMS]
    words = [' / '.join(data.texts[int(column[i])] for column in columns) for i in different]
    return index[different], words
