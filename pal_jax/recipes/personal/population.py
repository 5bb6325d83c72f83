"""The results of PAL on a population: a table of methods, curves by K (the number of prototypes) and by n (the
number of a new person's known comparisons), people and prototypes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pal_jax.data.comparisons import Comparisons, Lookup
from pal_jax.recipes.personal import (
    effects,
    heterogeneity,
    ideal_point,
    logit,
    logit_people,
    mixed_logit,
    offers,
    portrait,
)
from pal_jax.recipes.personal import pictures as people
from pal_jax.recipes.personal.evaluation import Evaluate, MethodResult, median_seconds, picked
from pal_jax.recipes.personal.figures import BASELINES, CURVES, MODELS
from pal_jax.recipes.personal.interface import Unfit, without_rows
from pal_jax.recipes.personal.judged import (
    JudgedPairs,
    alike,
    by_person,
    figures,
    gain,
    judge,
    put_first,
    temperature,
    together,
)
from pal_jax.recipes.personal.learner import IdealPointLearner, PALState
from pal_jax.recipes.personal.panel import (
    PADDING,
    Judged,
    Newcomers,
    Trial,
    for_everybody,
    new_margins,
    newcomers,
    population,
    questions,
    seen_margins,
    shown_split,
)
from pal_jax.run import intervals
from pal_jax.run.intervals import Estimate
from pal_jax.run.recipe import Evaluation
from pal_jax.types import Exhibit

COLUMNS = (
    'A choice among several options counts as pairs of the chosen option with each other one. Each person counts '
    'alike, except in a column "by pairs". A column "first of all" has the share of choices whose chosen option is put '
    'before all others. The worst tenth are the known people who are predicted worst. New people were not in the '
    'training; the head of a column says how many of their choices are known. The gain is the accuracy on known people '
    'less that of one model for all, with its 95 % interval over people.'
)
SAME = 'Validation chose one model for all (K = 1) in each split, so PAL is this model and gains nothing.'
GROUPS = (
    'The direction in which people differ most, by a model that was not told the groups: the chance that it puts '
    'somebody of the one group before somebody of the other (AUC; 1/2 is chance).'
)
BY_GROUP = "Accuracy on known people's new choices, of each group alone; no model was told who is in which."
States = Mapping[str, PALState]


class Panel(NamedTuple):
    """The models and data that are compared: PAL's models are named `K=...`, others as in `figures.MODELS`.

    Where models have decoders of their own, `by_model` is the data as each decoder reads them, and `decoder_parameters`
    is the number of a decoder's trained parameters. `prototypes` has the values of K, `counts` the numbers of known
    comparisons of new people, and `toward` the mean of the prior on their logits. `scale` `[H]` is what the attributes
    of a table were divided by; None: by nothing. `price` is the attribute that is a price; '': none is.
    """

    data: Comparisons
    trials: Sequence[Trial]
    learners: Mapping[str, IdealPointLearner]
    prototypes: tuple[int, ...]
    counts: tuple[int, ...]
    toward: Literal['population', 'zero']
    by_model: Mapping[str, Comparisons] = {}
    decoder_parameters: int = 0
    ask: int = 0  # questions to new people, chosen one by one; 0: none
    scale: np.ndarray | None = None
    price: str = ''

    def seen_by(self, model: str) -> Comparisons:
        """The data as this model reads them."""
        return self.by_model.get(model, self.data)

    def prior(self, state: PALState) -> jax.Array:
        """The mean `[R, K]` of the prior of new people's logits."""
        mean = population(state)
        return mean if self.toward == 'population' else jnp.zeros_like(mean)


class Results(NamedTuple):
    """The results of all models with a learner.

    Attributes:
      models: by name, on all trials; only a K that some split chose has results of asked people and of strangers.
      validation: of PAL by K, on the validation part by split.
      chosen: the K of the highest accuracy on each trial's validation part, the smallest of equals.
      factor: makes log-odds of the margins of the chosen K, on all splits with true user ids (`judged.temperature`).
      counts: numbers of known comparisons of new people, the last of which is all that anybody has.
    """

    models: Mapping[str, MethodResult]
    validation: Mapping[int, Sequence[JudgedPairs]]
    chosen: Sequence[int]
    factor: float
    counts: tuple[int, ...]
    new: Newcomers

    @property
    def chosen_models(self) -> list[MethodResult]:
        """The model of the chosen K, by trial."""
        return [self.models[f'K={K}'] for K in self.chosen]


class Shown(NamedTuple):
    """The results that a report shows, on the splits with true user ids.

    Attributes:
      by_prototypes: results by split, by the part of the data and by K.
      groups: AUC by split for each model, see `heterogeneity.agreement`.
      by_group: for the shared model and PAL, the accuracy on each known group.
      unfit: the methods that these choices do not allow to fit, with the reasons.
    """

    methods: Mapping[str, MethodResult]
    by_prototypes: Mapping[str, Mapping[int, Sequence[JudgedPairs]]]
    chosen: Sequence[int]
    counts: tuple[int, ...]
    groups: Mapping[str, Sequence[float]]
    by_group: Mapping[str, Sequence[intervals.Estimate | None]]
    unfit: Mapping[str, str]

    @property
    def true_chosen(self) -> Sequence[int]:
        """The K that each split with true user ids chose."""
        # They come first, and those of the control after them.
        return self.chosen[: len(self.methods['pal'].seen)]

    @property
    def is_one_model(self) -> bool:
        """True where every split chose K = 1, so that PAL is the one model for all."""
        return {*self.true_chosen} == {1}


def measure(panel: Panel, state: States, *, calibrated: bool = False) -> Results:
    """The results of all models of the panel.

    With `calibrated` margins are made log-odds on validation choices, as `evaluation.run` does, and the chosen models
    also know new people by the choices of strangers.
    """
    data, trials = panel.data, panel.trials
    new = newcomers(data, trials)
    counts = counts_of(panel, new.most)
    valid = {
        name: seen_margins(learner, state[name], panel.seen_by(name), trials, 'validation')
        for name, learner in panel.learners.items()
    }
    validation = {K: [judge(*part) for part in valid[f'K={K}']] for K in panel.prototypes}
    chosen = choose({K: [judged.accuracy for judged in row] for K, row in validation.items()})
    chosen_names = {f'K={K}' for K in chosen}
    log_odds = {name: [temperature(margins) for margins, *_ in parts] for name, parts in valid.items()}

    def of(name: str) -> MethodResult:
        learner, theirs, mean = panel.learners[name], panel.seen_by(name), panel.prior(state[name])
        factors = log_odds[name] if calibrated else [1.0] * len(trials)

        def judged(row: Judged) -> list[JudgedPairs]:
            return [judge(factor * margins, *of) for (margins, *of), factor in zip(row, factors, strict=True)]

        def on(who: Newcomers, counts: Sequence[int]) -> list[list[JudgedPairs]]:
            return [judged(row) for row in new_margins(learner, state[name], who, counts, mean)]

        asked, strangers = (), ()
        # A model with a decoder of its own reads the same new people by its own vectors.
        by_count = on(new if theirs is data else newcomers(theirs, trials), counts)
        # With one prototype all people are alike, and no answer would tell anything.
        if panel.ask and name == 'K=1':
            asked = by_count
        elif panel.ask and name in chosen_names:
            # Questions are chosen for models that some split takes for PAL, as choosing costs a pass for each question.
            asked = on(questions(learner, state[name], new, mean, min(panel.ask, new.most)), counts)
        if calibrated and name in chosen_names:
            strangers = on(_strangers(trials, new), counts[-1:])
        size = panel.decoder_parameters + sum(leaf[0].size for leaf in jax.tree.leaves(state[name].params))
        seen, person = seen_margins(learner, state[name], theirs, trials, 'test'), learner.pal.logits_per_user
        return MethodResult(judged(seen), by_count, asked, strangers, size, 0 if name == 'K=1' else person)

    # A split alone has too few validation choices: its factor would be far from that of the others.
    pooled = [valid[f'K={K}'][r][0] for r, K in enumerate(chosen) if not trials[r].shuffled]
    factor = temperature(np.concatenate(pooled))
    return Results({name: of(name) for name in panel.learners}, validation, chosen, factor, counts, new)


def counts_of(panel: Panel, most: int) -> tuple[int, ...]:
    """The numbers of known comparisons of new people, of whom nobody has more than `most`; the last is all."""
    return *(count for count in panel.counts if count < most), most


def seconds_a_person(panel: Panel, state: States, name: str, new: Newcomers) -> float:
    """The median time in seconds to fit one new person by as many choices as anybody has."""
    # The first pairs count as those of one person, whoever they are of: only their number costs time.
    first = np.zeros((len(panel.trials), new.most), np.int32)
    pairs = jax.tree.map(lambda x: x[:, : new.most], new.fit).replace(users=first, people=1)
    weight, mean = np.ones(first.shape, np.float32), panel.prior(state[name])[:, None]
    fit = panel.learners[name].fit
    seconds = median_seconds(lambda: jax.block_until_ready(fit(state[name].params, pairs, weight, mean)))
    # The splits are fitted side by side, so each has its share of the time.
    return seconds / len(panel.trials)


def choose(validation: Mapping[int, Sequence[float]]) -> list[int]:
    """The number of prototypes with the highest accuracy on each split's validation part; the smallest of equals."""
    # Of equals `max` keeps the first, which is the smallest.
    return [max(sorted(validation), key=lambda k: validation[k][r]) for r in range(len(validation[min(validation)]))]


def _strangers(trials: Sequence[Trial], new: Newcomers) -> Newcomers:
    """The new people, whose known choices are shuffled among them."""
    users = np.array(new.fit.users)
    for row, trial in zip(users, trials, strict=True):
        n = len(trial.split.fit)
        # Padding behind the pairs stays where it is.
        row[:n] = np.random.default_rng([trial.seed, 5]).permutation(row[:n])
    return new._replace(fit=new.fit.replace(users=users))


def evaluate(
    panel: Panel,
    state: States,
    others: Mapping[str, Evaluate] = MappingProxyType({}),
    log: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """The record, the exhibits and the table of people of a panel; `others` are methods without a learner of PAL's.

    `log` takes a line on those of them that cannot be fitted.
    """
    results = measure(panel, state)
    shown = compare(panel, state, results, others)
    if shown.unfit:
        log(without_rows(shown.unfit).strip())
    record, chosen = make_record(shown), shown.true_chosen
    record['log_odds_factor'] = results.factor
    split = shown_split(chosen)
    model = _split_model(panel, state, chosen, split, results.factor)
    predicts = intervals.from_record(record, 'seen_gain').place(0.0) == 1
    wants, files, by_logit = [], {}, None
    if portrait.has_effects(panel.data):
        record['differ_p'] = heterogeneity.p_of_same_wants(panel.data)
        if panel.data.groups is not None and len(panel.data.group_names) > 1:
            record['groups_differ_p'] = heterogeneity.p_of_same_groups(panel.data)
        choices = logit.choices_in(panel.data)
        mixed = mixed_logit.fit_all(choices, log) if 'mixed_logit' in others else None
        units = logit.units_of(panel.data.attributes, panel.scale, panel.price, offers.alone(panel.data))
        wants, files = effects.describe(model, choices, units, record, predicts=predicts, mixed=mixed)
        if mixed and len(panel.data.names) <= portrait.SHOWN_PEOPLE:
            by_logit = logit_people.population_of(mixed, choices, panel.data.names)
            files[logit_people.FILE] = logit_people.to_json(by_logit, panel.data.attributes, units.scale)
    known = by_logit and {name: np.stack([x.mean, x.deviation]) for name, x in by_logit.people.items()}
    kept_out = _kept_out(panel, state, model, results.new)
    files |= {portrait.PEOPLE: portrait.table_of_people(model, kept_out, known)}
    return Evaluation(record, exhibits=make_exhibits(panel, shown, model, wants, predicts=predicts), files=files)


def compare(panel: Panel, state: States, results: Results, others: Mapping[str, Evaluate]) -> Shown:
    """The results of all methods on the splits with true user ids, and of the control with shuffled ones."""
    data, trials, models, counts = panel.data, panel.trials, results.models, results.counts
    # The places of the splits with true user ids, and of the control's, which come after them.
    true, false = ([r for r, trial in enumerate(trials) if trial.shuffled == shuffled] for shuffled in (False, True))
    on_true = {name: picked([model] * len(true), true) for name, model in models.items()}
    pal = picked([results.chosen_models[r] for r in true], true)
    methods = {'shared': on_true['K=1'], 'pal': pal}
    if panel.ask:
        methods['asked'] = pal._replace(new=pal.asked)
    if false:
        methods['shuffled'] = picked([results.chosen_models[r] for r in false], false)
    methods |= {name: model for name, model in on_true.items() if not name.startswith('K=')}
    unfit: dict[str, str] = {}
    for name, other in others.items():
        try:
            methods[name] = other(data, [trials[r] for r in true], counts)
        except Unfit as reason:  # a method may have no row
            unfit[name] = str(reason)
    by_prototypes = {
        'known people, validation': {K: [row[r] for r in true] for K, row in results.validation.items()},
        'known people, test': {K: on_true[f'K={K}'].seen for K in panel.prototypes},
        'new people, all their comparisons': {K: on_true[f'K={K}'].new[-1] for K in panel.prototypes},
    }
    if false:
        by_prototypes['known people, shuffled ids'] = {
            K: [models[f'K={K}'].seen[r] for r in false] for K in panel.prototypes
        }
    groups, by_group = {}, {}
    if data.groups is not None and (data.groups >= 0).any():
        groups = _groups(panel, state, data.groups, true, false) if data.texts else {}
        by_group = {name: _by_group(data.groups, methods[name].seen) for name in ('shared', 'pal')}
    return Shown(methods, by_prototypes, results.chosen, counts, groups, by_group, unfit)


# --- known groups, which no model was told ----------------------------------------------------------------------------


def _by_group(groups: np.ndarray, parts: Sequence[JudgedPairs]) -> list[intervals.Estimate | None]:
    """The accuracy on known people's new choices with each person of a group alike; None where nobody is tested."""
    judged = together(parts)
    shares, group = by_person(judged), groups[judged.people]
    return [intervals.share(shares[group == g]) if (group == g).any() else None for g in range(groups.max() + 1)]


def _groups(
    panel: Panel, state: States, known: np.ndarray, true: Sequence[int], false: Sequence[int]
) -> dict[str, list[float]]:
    """The agreement of people's weights with their groups, and that of the largest K with shuffled ids."""

    def of(name: str, r: int) -> float:
        seen = np.unique(panel.data.users[panel.trials[r].split.train])
        mixtures = ideal_point.weights(panel.learners[name].pal, state[name].users.z[r][seen])
        return heterogeneity.agreement(np.asarray(mixtures), known[seen])

    # One prototype has no directions, a model for each user no shared ones, and a model that is told groups finds none.
    names = [name for name in panel.learners if name not in ('K=1', 'own', 'groups')]
    by_model = {name: [of(name, r) for r in true] for name in names}
    last = f'K={panel.prototypes[-1]}'
    return by_model | ({f'{last}, shuffled ids': [of(last, r) for r in false]} if false and last in names else {})


# --- what is shown ----------------------------------------------------------------------------------------------------


def _cell(values: Sequence[float] | np.ndarray) -> str:
    return intervals.mean(np.asarray(values)).with_error()


def make_record(shown: Shown) -> dict[str, Any]:
    """The record of an evaluation: accuracies with each person alike, with intervals over people who are in all splits
    together, paired differences to PAL, and lists by K and by number of comparisons."""

    def values(rows: Sequence[Sequence[JudgedPairs]]) -> list[float]:
        return [alike(row).value for row in rows]

    pal, shared = shown.methods['pal'], shown.methods['shared']
    record: dict[str, Any] = {'people': len(together(pal.seen).people)}
    for name, method in shown.methods.items():
        record |= alike(method.seen).named(f'seen_{name}') | alike(method.new[-1]).named(f'new_{name}')
        if first := put_first(method.seen):
            record |= first.named(f'seen_first_{name}')
        if name in BASELINES:
            record |= gain(method.seen, pal.seen).mean.named(f'seen_lead_{name}')
            record |= gain(method.seen, shared.seen).mean.named(f'seen_gain_{name}')
    seen, new = _gains(shown)
    record |= seen.named('seen_gain') | new.named('new_gain')
    if 'asked' in shown.methods:
        gains = [gain(*rows).mean for rows in zip(shown.methods['asked'].new, pal.new, strict=True)]
        record['asked_gain_by_known'] = [figure.value for figure in gains]
        record['asked_gain_by_known_se'] = [figure.error for figure in gains]
    for name, row in shown.by_group.items():
        record[f'seen_{name}_by_group'] = [figure and figure.value for figure in row]
    record |= {'chosen_prototypes': list(shown.chosen), 'shown_split': shown_split(shown.true_chosen)}
    for part, rows in shown.by_prototypes.items():
        record[f'{part.replace(",", "").replace(" ", "_")}_by_prototypes'] = values([*rows.values()])
    for name, row in shown.groups.items():
        record |= intervals.mean(np.array(row)).named(f'group_auc {name}')
    record['known_comparisons'] = list(shown.counts)
    return record | {f'new_{name}_by_known': values(method.new) for name, method in shown.methods.items()}


def make_exhibits(
    panel: Panel, shown: Shown, model: portrait.SplitModel, wants: Sequence[Exhibit], *, predicts: bool
) -> list[Exhibit]:
    """The exhibits of a report; its people and prototypes are those of the `model` of the split that is shown. `wants`
    are those of what people want, and `predicts` is that of `Wants`."""

    def curve(rows: Sequence[Sequence[JudgedPairs]]) -> people.Curve:
        return [alike(row) for row in rows]

    curves = {MODELS[name]: curve(method.new) for name, method in shown.methods.items() if name in CURVES}
    by_prototypes = {part: curve(list(rows.values())) for part, rows in shown.by_prototypes.items()}
    exhibits = [
        Exhibit('Who is predicted how well', _accuracies(shown), table=_table(shown)),
        *wants,
        Exhibit('New people', picture=people.plot_by_comparisons(curves, shown.counts)),
        Exhibit('By prototypes', picture=people.plot_by_prototypes(by_prototypes, panel.prototypes)),
    ]
    if shown.groups:
        table = [['model', 'AUC'], *([name, _cell(row)] for name, row in shown.groups.items())]
        exhibits.append(Exhibit('Opinion groups', GROUPS, table))
    if shown.by_group and panel.data.groups is not None:
        exhibits.append(
            Exhibit('Each group', BY_GROUP, _table_by_group(shown, panel.data.groups, panel.data.group_names))
        )
    return [*exhibits, *portrait.exhibit_prototypes(model, predicts=predicts)]


def _accuracies(shown: Shown) -> str:
    """The sentences above the table of accuracies."""
    seen, new = _gains(shown)
    true, false = (', '.join(map(str, part)) for part in (shown.true_chosen, shown.chosen[len(shown.true_chosen) :]))
    control = f'; with shuffled people, a control, {false}' if false else ''
    gained = (
        f"PAL's accuracy less that of one model for all is {seen.value:+z.3f} (95 % interval {seen.ends('+.3f')}) on "
        f'new choices of known people, and {new.value:+z.3f} ({new.ends("+.3f")}) on those of new people.'
    )
    return (
        f'The share of choices that are predicted right, ± its standard error over people. {COLUMNS} '
        f'{SAME if shown.is_one_model else gained} The splits chose K = {true}{control}.{without_rows(shown.unfit)}'
    )


def _gains(shown: Shown) -> tuple[Estimate, Estimate]:
    """The gains of PAL over one model for all: on new choices of known people, and on those of new people of whom all
    other choices are known."""
    pal, shared = (shown.methods[name] for name in ('pal', 'shared'))
    if shown.is_one_model:
        return intervals.constant(0.0), intervals.constant(0.0)
    return gain(pal.seen, shared.seen).mean, gain(pal.new[-1], shared.new[-1]).mean


def _table(shown: Shown) -> list[list[str]]:
    """A table of accuracy with each person alike ± standard error over people, who are in all splits together.

    The column by pairs and that of the worst tenth of people are of known people.
    """
    middle = len(shown.counts) // 2
    several = put_first(shown.methods['pal'].seen) is not None
    rows = [['', 'known people', 'gain over one model', 'first of all' if several else 'by pairs', 'worst tenth']]
    rows[0] += ['new, none known']
    rows[0] += [f'new, {shown.counts[middle]} known', 'new, all known']
    shared = shown.methods['shared']
    for name, method in shown.methods.items():
        seen, new = figures(method.seen), [alike(method.new[i]).with_error() for i in (0, middle, -1)]
        above = gain(method.seen, shared.seen).mean
        # PAL with K = 1 in every split is the model for all, and so is the control.
        control = {*shown.chosen[len(shown.true_chosen) :]} == {1}
        same = name == 'shared' or (name == 'pal' and shown.is_one_model) or (name == 'shuffled' and control)
        over = '–' if same else f'{above.value:+z.3f} ({above.ends("+.3f")})'
        first = put_first(method.seen) if several else None
        further = first.with_error() if first else f'{seen.pairs.value:.3f}', f'{seen.worst:.3f}', *new
        rows.append([MODELS[name], seen.people.with_error(), over, *further])
    return rows


def _table_by_group(shown: Shown, groups: np.ndarray, names: Sequence[str]) -> list[list[str]]:
    rows = [['group', 'people', *(MODELS[name] for name in shown.by_group)]]
    for group in range(groups.max() + 1):
        cells = [figure.with_error() if (figure := row[group]) else '–' for row in shown.by_group.values()]
        rows.append([names[group], str(int((groups == group).sum())), *cells])
    return rows


def _split_model(panel: Panel, states: States, chosen: Sequence[int], r: int, factor: float) -> portrait.SplitModel:
    """The model and the people of split `r`, by the K that each split chose; `factor` makes log-odds of its rewards."""
    name = f'K={chosen[r]}'
    data, state, pal = panel.seen_by(name), states[name], panel.learners[name].pal
    seen = np.unique(data.users[panel.trials[r].split.train])
    mixtures = np.asarray(ideal_point.weights(pal, state.users.z[r][seen]))
    sides = {
        part: side.of(r) for part in ('chosen', 'rejected', 'prompt') if isinstance(side := getattr(data, part), Lookup)
    }
    params, names = jax.tree.map(lambda x: x[r], state.params), [data.names[u] for u in seen]
    everybody, data = len(np.unique(data.users)), data._replace(**sides)
    return portrait.SplitModel(r, chosen, pal, params, factor, names, everybody, mixtures, data, panel.scale)


def _kept_out(panel: Panel, states: States, model: portrait.SplitModel, new: Newcomers) -> portrait.SplitModel:
    """The model with the new people of its split in place of those whom it was trained on, each by all known choices of
    the person."""
    name, r = f'K={model.chosen[model.split]}', model.split
    data, state, learner = panel.seen_by(name), states[name], panel.learners[name]
    # A model with a decoder of its own reads the same new people by its own vectors.
    new = new if data is panel.data else newcomers(data, panel.trials)
    known = (new.rank < PADDING).astype(np.float32)
    z = learner.fit(state.params, new.fit, known, for_everybody(panel.prior(state), new.fit.people))
    people = new.people[r]
    mixtures = np.asarray(ideal_point.weights(learner.pal, z[r][: len(people)]))
    return model._replace(names=[data.names[u] for u in people], mixtures=mixtures)
