"""The portrait of a population by the model of one split: what people want, where they stand among the prototypes, and
what each prototype likes."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from pal_jax.data.comparisons import Comparisons, Lookup
from pal_jax.models.params import Params
from pal_jax.recipes.personal import ideal_point, logit, pictures
from pal_jax.recipes.personal.ideal_point import PAL
from pal_jax.recipes.personal.logit import Common, Units
from pal_jax.recipes.personal.mixed_logit import MixedLogit
from pal_jax.run import intervals
from pal_jax.run.forecast import counted
from pal_jax.run.intervals import Estimate
from pal_jax.types import Exhibit

PEOPLE = 'people.csv'  # the file with a row for each person, in the folder of a run
WANTS = (
    'The effect of one more unit of an attribute (for a yes or no: of having it) by one model for all people, a logit '
    'on all choices; ± is its standard error, clustered by person, and not below that of independent choices. An '
    'effect of 1 multiplies the odds of choosing an option by 2.7. "Chosen" is how often the option with one more unit '
    'is chosen from two that are alike otherwise.'
)
SPREAD = (
    'The columns on people have the effects of each person by PAL. They are usually further from 0 than those of one '
    'model for all, which averages over people who want different things. They are '
    'estimated from few choices, so they differ more than the people do: the effect of a single person may have the '
    'wrong sign.'
)
DOUBT = 'These prototypes predict no better than one model for all, and nothing should be read into them. '
WORTH = (
    ' The worth of a unit is the rise of {price} that people accept for it, with its 95 % interval by Fieller (1954). '
    'A worth below 0 is the fall of {price} that makes up for one more unit. A dash stands where the effect of {price} '
    'may be 0.'
)
DASH = (
    ' An effect is a dash where it has no estimate: nearly all choices go one way, the attribute never varies, or '
    'several attributes together say the same.'
)
MIXED = (
    'A mixed logit on all choices, in which each effect has a normal distribution over people, independent of others. '
    'The means are usually further from 0 than the effects by one model for all, which averages over people who want '
    'different things.'
)
ERRORS = (
    ' ± is a standard error. Where a standard deviation is less than two of its errors, it may be 0: people are not '
    'shown to differ in this effect, and no share of people is given.'
)
WITHOUT_ERRORS = ' There are no standard errors, as the choices cannot tell some of the figures.'
ALONE = (
    '\nOf all options, only the one that every choice has differs in {names}. The effect is the utility of that option '
    'beside an option whose numbers are all 0 and whose words are the first ones.'
)
UNCONVERGED = (
    ' The search for the largest likelihood ended before it had converged: compare these figures with those of other '
    'software.'
)
UNSHOWN = ', not shown to predict anybody'
NO_SPREAD = (
    'PAL is not shown to predict single people better than one model for all, so no spread of its effects is given.'
)
DEVIATIONS = (
    ' The last column has the effect of one standard deviation over the options of all pairs, to compare attributes by.'
)
ALIKE = 'On validation choices one model for all was as good as prototypes, so PAL shows no differences between people.'
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
    'A bar is the effect on the log-odds of one standard deviation of an attribute, or of one unit with '
    'standardize=False. '
)
OF_TEXTS = (
    'How much more a prototype likes a statement, or a reply than the other reply to its prompt, compared with the '
    'mean of the prototypes. '
)
SHOWN_TEXTS = 3  # the number of texts that a prototype likes most, and least
SHOWN_ITEMS = 2000  # the number of items whose rewards show what a prototype likes
SHOWN_PEOPLE = 5000  # the number of people in the pictures, and of those whose effects are computed
SHOWN_ATTRIBUTES = 30  # more rows could not be read
CHUNK = 256  # people whose rewards are computed at once


class SplitModel(NamedTuple):
    """The model that a split chose, and the people whom it was trained on.

    Attributes:
      split: the number of the split.
      chosen: the K of each split.
      factor: makes log-odds of the model's rewards.
      names: the P people.
      everybody: the number of all people, with the new ones.
      mixtures: the weights `[P, K]` of the P people.
      data: the pairs, as the model reads them.
      scale: `[H]`, by which the attributes of a table were divided; None: by nothing.
    """

    split: int
    chosen: Sequence[int]
    pal: PAL
    params: Params
    factor: float
    names: Sequence[str]
    everybody: int
    mixtures: np.ndarray
    data: Comparisons
    scale: np.ndarray | None

    @property
    def which(self) -> str:
        """A sentence on which split this is, and why it is shown."""
        listed = ', '.join(map(str, self.chosen))
        return (
            f'From the {len(self.names)} of {counted(self.everybody, "person")} whom split {self.split} was trained on '
            f'(--split={self.split}; the splits chose K = {listed}, and this split has their median).'
        )

    def rewards(self, mixtures: np.ndarray, items: np.ndarray, prompt: np.ndarray | None) -> np.ndarray:
        """The rewards `[M, n]` of items `[n, H]` to mixtures `[M, K]`, as log-odds."""
        x, c = jnp.asarray(items), None if prompt is None else jnp.asarray(prompt)

        def of(w: jax.Array) -> jax.Array:
            u = ideal_point.user_point(self.params, self.pal, jnp.broadcast_to(w, (len(x), *w.shape)), c)
            return ideal_point.item_reward(self.params, self.pal, u, x)

        return self.factor * np.asarray(jax.vmap(of)(jnp.asarray(mixtures)))


class Wants(NamedTuple):
    """The effects of attributes on the choices of people.

    Attributes:
      effects: `[E, H]`, on the log-odds of the first E people of the split that is shown.
      common: one model for all people.
      predicts: whether PAL is shown to predict single people better than one model for all.
      units: those of the survey.
      in_words: sentences on what people want.
      tied: the numbers of attributes that differ only together with another one (`offers.Tied`).
    """

    effects: np.ndarray
    common: Common
    predicts: bool
    units: Units
    in_words: str
    tied: Collection[int] = ()


def exhibit_wants(model: SplitModel, wants: Wants) -> Exhibit:
    """The exhibit of what people want."""
    spread, common, units = wants.predicts and model.pal.prototypes > 1, wants.common, wants.units
    attributes, price = units.attributes, units.price_name
    head = ['attribute', 'effect of one unit', '95 % interval', 'p', 'chosen']
    head += [f'worth in {price}'] if price else []
    head += ['middle half of the people', 'standard deviation over people'] if spread else []
    table = [head if model.scale is None else [*head, 'effect of one standard deviation']]
    of_people = (wants.effects / units.scale).T
    for h, (name, mean, unit) in enumerate(zip(attributes, common.estimates, of_people, strict=True)):
        effect = units.effect(common, h)
        p = logit.p_of_none(effect, common.people) if effect else None
        form = effect.form if effect else '.3g'
        cells = (
            [effect.with_error(f'+z{form}'), effect.ends(f'+z{form}'), intervals.p_in_words(p)] if effect else ['–'] * 3
        )
        # No two options are alike but for what only the constant option has, or for what is tied.
        alone = h in units.alone
        row = [name, *cells, '' if alone or h in wants.tied else f'{special.expit(mean.value / units.scale[h]):.0%}']
        if price:
            row.append('' if name == price or alone else in_cell(units.worth(common, h)))
        low, high = np.percentile(unit, (25, 75))
        row += [f'{low:+z{form}} to {high:+z{form}}', f'{unit.std():{form}}'] if spread else []
        table.append(row if model.scale is None else [*row, '' if alone else f'{mean.value:+.2f}'])
    # PAL may predict better over all splits, and the split that is shown have one model for all.
    text = (
        f'{wants.in_words}\n{WANTS} {f"{SPREAD} {model.which}" if spread else ALIKE if wants.predicts else NO_SPREAD}'
    )
    text += '' if model.scale is None else DEVIATIONS
    text += WORTH.format(price=price) if price else ''
    text += DASH if any(row[1] == '–' for row in table) else ''
    text += ALONE.format(names=' and '.join(attributes[h] for h in sorted(units.alone))) if units.alone else ''
    picture = pictures.plot_wants(wants.effects, attributes) if spread else b''
    return Exhibit('What people want', text, table, picture)


def exhibit_mixed_logit(model: MixedLogit, units: Units, people: int) -> Exhibit:
    """The exhibit of how much people differ, by a mixed logit of all choices."""
    known = model.errors is not None
    head = ['effect of one unit', 'mean over people', 'standard deviation over people']
    table = [[*head, 'people above 0'] if known else head]
    for h, (name, (mean, deviation)) in enumerate(
        zip(units.attributes, over_people(model, units, people), strict=True)
    ):
        # An option that every choice has is not beside an option of zeros, so nobody wants it more or less than that.
        above = None if h in units.alone else share_above(mean, deviation)
        table.append([name, mean.with_error(f'+z{mean.form}'), deviation.with_error(deviation.form)])
        table[-1] += ['–' if above is None else f'{above:.0%}'] if known else []
    text = f'{MIXED}{ERRORS if known else WITHOUT_ERRORS}{"" if model.converged else UNCONVERGED}'
    return Exhibit('How much people differ', text, table)


def over_people(model: MixedLogit, units: Units, people: int) -> list[tuple[Estimate, Estimate]]:
    """The mean and the standard deviation over people of the effect of one unit of each attribute."""
    figures = np.stack([model.mean, model.deviation]) / units.scale
    errors = np.full(figures.shape, np.nan) if model.errors is None else model.errors / units.scale

    def estimate(value: float, error: float) -> Estimate:
        # At a deviation of 0 the curvature may tell no error.
        return intervals.of_mean(float(value), float(error) if error > 0.0 else None, people)

    means, deviations = (list(map(estimate, *rows)) for rows in zip(figures, errors, strict=True))
    return list(zip(means, deviations, strict=True))


def share_above(mean: Estimate, deviation: Estimate) -> float | None:
    """The share of people whose effect is above 0; None where they are not shown to differ."""
    if deviation.error is None or deviation.value <= 2.0 * deviation.error:
        return None
    return float(special.ndtr(mean.value / deviation.value))


def in_cell(worth: Estimate | None) -> str:
    """The cell of a worth with its interval; None: choices cannot tell it."""
    return f'{worth.value:+z{worth.form}} ({worth.ends(f"+z{worth.form}")})' if worth else '–'


def exhibit_prototypes(model: SplitModel, *, predicts: bool = True) -> list[Exhibit]:
    """The people among the prototypes, and the attributes or texts that each prototype likes. `predicts` is that of
    `Wants`."""
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
    # A report folds exhibits with other titles than `figures.WORDS.unfolded` away.
    doubt = '' if predicts else UNSHOWN
    place, effect_of = MAPS.get(pal.prototypes, MAP), OF_TEXTS if words else OF_ATTRIBUTES
    return [
        Exhibit(f'The people{doubt}', f'{model.which} {place}', picture=pictures.plot_simplex(mixtures[:SHOWN_PEOPLE])),
        Exhibit(f'The prototypes{doubt}', f'{"" if predicts else DOUBT}{effect_of}{CORNERS}', table, picture),
    ]


def has_effects(data: Comparisons) -> bool:
    """True where the items are no texts, and have few enough attributes to be read."""
    return not data.texts and len(data.attributes) <= SHOWN_ATTRIBUTES


def effects_on_people(model: SplitModel) -> np.ndarray | None:
    """The effects `[E, H]` of attributes on the reward of each of the first people, as the model sees them; None where
    the items are texts, or have too many attributes to be read."""
    data = model.data
    if not has_effects(data):
        return None
    index, _ = shown_items(data)
    items, prompt = data.chosen[index], None if data.prompt is None else data.prompt[index]
    # People with the same mixture have the same effects.
    mixtures, person = np.unique(model.mixtures[:SHOWN_PEOPLE], axis=0, return_inverse=True)
    chunks = (mixtures[start : start + CHUNK] for start in range(0, len(mixtures), CHUNK))
    effects = [pictures.linear_effects(model.rewards(chunk, items, prompt), items) for chunk in chunks]
    return np.concatenate(effects)[person.reshape(-1)]


def table_of_people(model: SplitModel, kept_out: SplitModel, known: Mapping[str, np.ndarray] | None = None) -> str:
    """The people as CSV: `participant`, `kept_out` (1 for the people of `kept_out`, whom the model was not trained on),
    `group` where people have some, `weight_<prototype>`, and `effect_<attribute>` of one unit, which is empty for
    people without effects.

    `known` has the effects of each person and their standard deviations `[2, H]` by name, and these are
    `error_<attribute>`; without it the effects are those of the model.
    """
    data, rows = model.data, []
    group_of = {} if data.groups is None else dict(zip(data.names, data.groups, strict=True))
    head = ['participant', 'kept_out', *(['group'] if group_of else [])]
    head += [f'weight_{k + 1}' for k in range(model.mixtures.shape[1])]
    if has_effects(data):
        head += [f'{figure}_{name}' for figure in ('effect', *(['error'] if known else [])) for name in data.attributes]
    for number, part in enumerate((model, kept_out)):
        effects = effects_on_people(part) if len(part.names) and known is None else None
        effects = np.array([known[name] for name in part.names]) if len(part.names) and known else effects
        shown = () if effects is None else _in_own_units(part, effects).reshape(len(effects), -1)
        for name, weights, effect in itertools.zip_longest(part.names, part.mixtures, shown, fillvalue=()):
            place = group_of.get(str(name), -1)
            group = [data.group_names[place] if place >= 0 else ''] if group_of else []
            cells = [str(name), str(number), *group, *(f'{x:.6g}' for x in (*weights, *effect))]
            rows.append(cells + [''] * (len(head) - len(cells)))
    return as_csv([head, *rows])


def without_person(table: str, name: str) -> str:
    """The CSV of `table_of_people` without the row of a person."""
    head, *rows = csv.reader(io.StringIO(table))
    return as_csv([head, *(row for row in rows if row[:1] != [name])])


def as_csv(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as CSV."""
    file = io.StringIO()
    csv.writer(file, lineterminator='\n').writerows(rows)
    return file.getvalue()


def _in_own_units(model: SplitModel, effects: np.ndarray) -> np.ndarray:
    """Effects `[P, ..., H]` of one unit of the table's own."""
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
