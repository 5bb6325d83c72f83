"""The effects of attributes in each group of people, and all effects as numbers for other programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from pal_jax.data.comparisons import Comparisons
from pal_jax.recipes.personal import importance, logit, offers, pictures, portrait
from pal_jax.recipes.personal.logit import ChoiceSets, Common, Units
from pal_jax.recipes.personal.mixed_logit import MixedLogit
from pal_jax.run import intervals
from pal_jax.run.forecast import counted
from pal_jax.run.intervals import Estimate
from pal_jax.types import Exhibit

# Files in the folder of a run: a row for each effect, and the covariance of the effects by one logit for all people.
EFFECTS, COVARIANCE = 'effects.csv', 'covariance.csv'
EVERYBODY = 'all people'  # the name of the group of everybody
PLOTTED = 20  # attributes of a picture
SHOWN_GROUPS, LEAST_PEOPLE = 6, 5  # groups of fewer people have no errors over people
LEVEL = 1.0 - intervals.LEVEL
BY_GROUP = (
    'The effect of one more unit by one logit for each group, ± its standard error over people. {test} The comparison '
    'needs groups that were asked the same questions, or questions drawn at random. Where the people in a group choose '
    'more at random, all effects of the group are nearer to 0; worths (--config.price) are not.'
)
SINGLE = (
    ' The last columns compare single effects. They are not corrected for their number: one in twenty differs by '
    'chance.'
)
WORTHS = (
    'The rise of {price} that people accept for one more unit, by one logit for each group, with its 95 % interval by '
    'Fieller (1954). A worth below 0 is the fall of {price} that makes up for one more unit. A dash stands where the '
    'effect of {price} may be 0. A worth does not depend on how much at random the people in a group choose.'
)
FIT = (
    "All models are fitted to all choices. Chance takes all options alike. McFadden's R² is 1 less the log likelihood "
    'as a share of that of chance. The model with the lowest AIC or BIC fits best for its number of parameters.'
)
HEAD = (
    'model', 'group', 'people', 'attribute', 'effect', 'error', 'low', 'high', 'p', 'worth', 'worth_low', 'worth_high',
)  # fmt: skip


class GroupModel(NamedTuple):
    """One logit for a group: its name, the number of its people, and the model."""

    name: str
    people: int
    common: Common


def describe(
    model: portrait.SplitModel,
    choices: ChoiceSets,
    units: Units,
    record: Mapping[str, Any],
    *,
    predicts: bool,
    mixed: MixedLogit | None,
) -> tuple[list[Exhibit], dict[str, str]]:
    """The exhibits of what people want, and each group, and the file of all effects.

    `model` and `predicts` are as `portrait.Wants` has them, `choices` are all of the survey, and `record` is of the
    evaluation.
    """
    data, of_people = model.data, portrait.effects_on_people(model)
    assert of_people is not None  # the items are no texts
    common, groups = logit.of_all(choices), group_models(data, choices)
    tied = offers.tied(data)
    columns = importance.columns_of(data, units, tied)
    in_words = importance.wanted(columns, common, units, tied)
    wants = portrait.Wants(of_people, common, predicts, units, in_words, {h for x in tied for h, _, _ in x.ends})
    exhibits = [portrait.exhibit_wants(model, wants)]
    if mixed:
        exhibits.append(portrait.exhibit_mixed_logit(mixed, units, len(data.names)))
    if groups:
        hidden = len(data.group_names) - len(groups)
        exhibits.append(exhibit_by_group(groups, units, record['groups_differ_p'], hidden))
        exhibits += [exhibit_worths(groups, units)] if units.price is not None else []
    everybody = GroupModel(EVERYBODY, len(data.names), common)
    if len(units.attributes) <= PLOTTED:
        exhibits.insert(1, exhibit_intervals([everybody, *groups], units))
    exhibits += [*importance.exhibits(data, columns, common, units, tied), exhibit_fit(choices, common, mixed)]
    effects = table_of_effects([everybody, *groups], units, mixed)
    return exhibits, {EFFECTS: effects, COVARIANCE: table_of_covariance(common, units)}


def group_models(data: Comparisons, choices: ChoiceSets) -> list[GroupModel]:
    """The models of the largest groups that have `LEAST_PEOPLE`, in the order of their names; none of a single one."""
    if data.groups is None:
        return []
    of_choice = data.groups[choices.users]
    sizes = np.bincount(data.groups[data.groups >= 0], minlength=len(data.group_names))
    largest = sorted(g for g in np.argsort(-sizes, kind='stable')[:SHOWN_GROUPS] if sizes[g] >= LEAST_PEOPLE)
    if len(largest) < 2:
        return []
    return [GroupModel(data.group_names[g], int(sizes[g]), logit.of_all(choices.at(of_choice == g))) for g in largest]


def exhibit_by_group(models: Sequence[GroupModel], units: Units, p: float, hidden: int = 0) -> Exhibit:
    """The effects of attributes in each of the largest groups.

    `p` is that of the hypothesis that all groups choose alike, and `hidden` the number of further groups.
    """
    two = len(models) == 2
    table = [['effect of one unit', *map(_head, models), *(_gap_head(models) if two else ['p'])]]
    for h, name in enumerate(units.attributes):
        effects = [units.effect(model.common, h) for model in models]
        known = [effect for effect in effects if effect]
        table.append([name, *(effect.with_error(f'+z{effect.form}') if effect else '–' for effect in effects)])
        if two:
            table[-1] += _gap(*effects)
        elif len(known) < 2:
            table[-1].append('–')
        else:
            people = [model.people for model, effect in zip(models, effects, strict=True) if effect]
            table[-1].append(f'{p_of_equal(known, people):.3f}')
    shown = 'are shown to differ' if p <= LEVEL else 'are not shown to differ'
    test = f'Taken together, the effects of the groups {shown} (permutation test of people over groups, p = {p:.3f}).'
    text = BY_GROUP.format(test=test) + SINGLE + (portrait.DASH if any('–' in row for row in table) else '')
    return Exhibit(
        'What each group wants', text + (f' {counted(hidden, "smaller group")} not shown.' if hidden else ''), table
    )


def exhibit_intervals(models: Sequence[GroupModel], units: Units) -> Exhibit:
    """A picture of the effects of everybody and of each group, in standard deviations, so that attributes compare."""
    shown = [h for h in range(len(units.attributes)) if h not in units.alone]

    def row(model: GroupModel) -> list[Estimate | None]:
        effects = model.common.estimates
        return [effects[h] if logit.is_known(effects[h]) else None for h in shown]

    rows, names = {model.name: row(model) for model in models}, [units.attributes[h] for h in shown]
    label = 'effect of one standard deviation on the log-odds'
    return Exhibit('Effects in a picture', picture=pictures.plot_intervals(rows, names, label))


def exhibit_worths(models: Sequence[GroupModel], units: Units) -> Exhibit:
    """The worth of each attribute in each of the largest groups; `units` has a price."""
    assert units.price is not None
    price, two = units.attributes[units.price], len(models) == 2
    table = [[f'worth in {price}', *map(_head, models), *(_gap_head(models) if two else [])]]
    for h, name in enumerate(units.attributes):
        if h != units.price and h not in units.alone:
            worths = [units.worth(model.common, h) for model in models]
            table.append([name, *map(portrait.in_cell, worths), *(_gap(*worths) if two else [])])
    return Exhibit('What an attribute is worth in each group', WORTHS.format(price=price), table)


def _head(model: GroupModel) -> str:
    return f'{model.name} ({counted(model.people, "person")})'


def _gap_head(models: Sequence[GroupModel]) -> list[str]:
    first, second = models
    return [f'{second.name} less {first.name}', '95 % interval']


def _gap(first: Estimate | None, second: Estimate | None) -> list[str]:
    """The cells of the second less the first, and of its interval."""
    gap = _difference(second, first)
    return [f'{gap.value:+z{gap.form}}', gap.ends(f'+z{gap.form}')] if gap else ['–', '–']


def p_of_equal(effects: Sequence[Estimate], people: Sequence[int]) -> float:
    """The p-value of the hypothesis that the effects of all groups are equal, by their errors and the number of people
    in each group (Welch 1951)."""
    value, error = (np.array([getattr(effect, part) for effect in effects], float) for part in ('value', 'error'))
    k, weight = len(effects), 1.0 / error**2
    spread = np.sum(weight * (value - np.sum(weight * value) / np.sum(weight)) ** 2) / (k - 1)
    # The errors are estimated, the more roughly the fewer people there are.
    rough = np.sum((1.0 - weight / np.sum(weight)) ** 2 / (np.array(people) - 1.0)) / (k**2 - 1)
    return float(special.fdtrc(k - 1, 1.0 / (3.0 * rough), spread / (1.0 + 2.0 * (k - 2) * rough)))


def table_of_effects(models: Sequence[GroupModel], units: Units, mixed: MixedLogit | None = None) -> str:
    """All effects as CSV with the columns of `HEAD`, in the units of the survey; a cell is empty where there is no
    estimate.

    The models are `logit` and, where there is one, the `mean` and the `deviation` over people of the mixed logit, and
    the share of people `above 0`. Two groups have their difference, too: the second less the first.
    """
    rows: list[list[str]] = []

    def add(model: str, group: str, people: int, attribute: int, *figures: Any) -> None:
        rows.append([model, group, str(people), units.attributes[attribute], *_cells(*figures)])

    for name, size, common in models:
        for h in range(len(units.attributes)):
            effect = units.effect(common, h)
            p = logit.p_of_none(effect, size) if effect else None
            add('logit', name, size, h, effect, p, units.worth(common, h))
    _, *groups = models
    if len(groups) == 2:
        (first, n, common), (second, m, other) = groups
        for h in range(len(units.attributes)):
            effects, worths = ([of(model, h) for model in (other, common)] for of in (units.effect, units.worth))
            known = [effect for effect in effects if effect]
            p = p_of_equal(known, [m, n]) if len(known) == 2 else None
            add('logit', f'{second} less {first}', n + m, h, _difference(*effects), p, _difference(*worths))
    everybody = models[0].people
    for h, (mean, deviation) in enumerate(portrait.over_people(mixed, units, everybody) if mixed else ()):
        add('mixed logit mean', EVERYBODY, everybody, h, mean, logit.p_of_none(mean, everybody))
        # A standard deviation cannot be below 0.
        low = None if deviation.low is None else max(deviation.low, 0.0)
        add('mixed logit deviation', EVERYBODY, everybody, h, deviation._replace(low=low))
        if (above := portrait.share_above(mean, deviation)) is not None:
            add('mixed logit above 0', EVERYBODY, everybody, h, Estimate(above, None, None, None))
    return portrait.as_csv([HEAD, *rows])


def _cells(effect: Estimate | None, p: float | None = None, worth: Estimate | None = None) -> list[str]:
    """The cells of a row of `table_of_effects` from the effect on."""
    numbers = [*_parts(effect, 'value', 'error', 'low', 'high'), p, *_parts(worth, 'value', 'low', 'high')]
    return ['' if x is None or not np.isfinite(x) else f'{x:.6g}' for x in numbers]


def _parts(estimate: Estimate | None, *names: str) -> list[float | None]:
    return [getattr(estimate, name) if estimate else None for name in names]


def exhibit_fit(choices: ChoiceSets, common: Common, mixed: MixedLogit | None) -> Exhibit:
    """The fit of the models to all choices."""
    n, width = len(choices.users), logit.rank(choices.x)
    chance = logit.log_likelihood(choices, np.zeros(len(common.weights)))
    fits = [('chance', 0, chance), ('one logit for all', width, logit.log_likelihood(choices, common.weights))]
    fits += [('mixed logit', 2 * width, mixed.log_likelihood)] if mixed else []
    table = [['model', 'parameters', 'log likelihood', 'McFadden R²', 'AIC', 'BIC']]
    for name, k, fit in fits:
        criteria = 2.0 * (k - fit), k * math.log(n) - 2.0 * fit
        table.append([name, str(k), f'{fit:.2f}', f'{1.0 - fit / chance:.3f}', *(f'{x:.1f}' for x in criteria)])
    doubt = '' if mixed is None or mixed.converged else portrait.UNCONVERGED
    text = f'{FIT}{doubt} n = {counted(n, "choice")} of {counted(common.people, "person")}.'
    return Exhibit('How well the models fit', text, table)


def table_of_covariance(common: Common, units: Units) -> str:
    """The covariance of the effects of one unit by one logit for all people, as CSV; cells of effects that choices
    cannot tell are empty."""
    known = np.array([units.effect(common, h) is not None for h in range(len(units.attributes))])
    covariance = np.where(known[:, None] & known, common.covariance / units.scale[:, None] / units.scale, np.nan)
    cells = [['' if np.isnan(x) else f'{x:.6g}' for x in row] for row in covariance]
    rows = [[name, *row] for name, row in zip(units.attributes, cells, strict=True)]
    return portrait.as_csv([['attribute', *units.attributes], *rows])


def _difference(first: Estimate | None, second: Estimate | None) -> Estimate | None:
    return intervals.difference(first, second) if first and second else None
