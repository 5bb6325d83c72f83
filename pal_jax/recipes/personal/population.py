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
from pal_jax.recipes.personal import groups, ideal_point, mixed_logit
from pal_jax.recipes.personal import pictures as people
from pal_jax.recipes.personal.figures import MODELS
from pal_jax.recipes.personal.learner import IdealPointLearner, PALState
from pal_jax.recipes.personal.panel import (
    Newcomers,
    Trial,
    new_accuracy,
    newcomers,
    population,
    questions,
    seen_accuracy,
    seen_margins,
)
from pal_jax.run import intervals
from pal_jax.run.accuracy import Accuracy, accuracy, choose, hits, majority
from pal_jax.types import Exhibit

GROUPS = (
    'The direction in which people differ most, by a model that was not told the groups: the chance that it puts '
    'somebody of the one group before somebody of the other (AUC; 1/2 is chance).'
)
BY_GROUP = "Accuracy on seen people's new choices, of each group alone; no model was told who is in which."
PROTOTYPES = {
    False: 'Effects on the reward of one standard deviation of an attribute.',
    True: 'Rewards of statements, or of replies less those of the other reply; less their mean over the prototypes.',
}
SHOWN_TEXTS = 3  # the number of texts that a prototype likes most, and least
SHOWN_ITEMS = 2000  # the number of items whose rewards show what a prototype likes
SHOWN_PEOPLE = 5000  # the number of people in the picture

States = Mapping[str, PALState]


class Panel(NamedTuple):
    """The models and data that are compared: PAL's models are named `K=...`, others as in `figures.MODELS`.

    Where models have decoders of their own, `by_model` is the data as each decoder reads them, and `decoder_parameters`
    is the number of a decoder's trained parameters. `prototypes` has the values of K, `counts` the numbers of known
    comparisons of new people, and `toward` the mean of the prior on their logits.
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

    def seen_by(self, model: str) -> Comparisons:
        """The data as this model reads them."""
        return self.by_model.get(model, self.data)


class Method(NamedTuple):
    """Accuracies by split: on seen people's new choices, and on new people by number of their known comparisons."""

    seen: Sequence[Accuracy]
    new: Sequence[Sequence[Accuracy]]
    shared_parameters: float
    parameters_a_user: float


# A method without a learner takes all pairs, the splits, and numbers of known comparisons of new people.
Other = Callable[[Comparisons, Sequence[Trial], Sequence[int]], Method]


class Results(NamedTuple):
    """The results of all methods.

    Attributes:
      by_prototypes: accuracies by split, by the part of the data and by K.
      chosen: the chosen K of each trial.
      counts: numbers of known comparisons.
      groups: AUC by split for each model, see `groups.agreement`.
      by_group: for the shared model and PAL, by split, the accuracies `[groups]` on each known group.
    """

    methods: Mapping[str, Method]
    by_prototypes: Mapping[str, Mapping[int, Sequence[Accuracy]]]
    chosen: Sequence[int]
    counts: tuple[int, ...]
    groups: Mapping[str, Sequence[float]]
    by_group: Mapping[str, Sequence[np.ndarray]]


def measure(panel: Panel, state: States, others: Mapping[str, Other] = MappingProxyType({})) -> Results:
    """The results of all methods on every trial; `others` are methods without a learner, such as `OTHERS`."""
    data, trials, learners = panel.data, panel.trials, panel.learners
    new = newcomers(data, trials)
    counts = (*(count for count in panel.counts if count < new.most), new.most)
    measured: dict[str, Method] = {}
    for name, learner in learners.items():
        theirs = panel.seen_by(name)
        people = new if theirs is data else newcomers(theirs, trials)
        measured[name] = Method(
            seen_accuracy(learner, state[name], theirs, trials, 'test'),
            new_accuracy(learner, state[name], people, counts, prior(panel, state[name])),
            panel.decoder_parameters + sum(leaf[0].size for leaf in jax.tree.leaves(state[name].params)),
            0 if name == 'K=1' else learner.pal.logits_per_user,
        )
    names = {K: f'K={K}' for K in panel.prototypes}
    validation = {
        K: seen_accuracy(learners[name], state[name], panel.seen_by(name), trials, 'validation')
        for K, name in names.items()
    }
    chosen = choose({K: [value.pairs for value in row] for K, row in validation.items()})
    # The places of the splits with true user ids, and of the control's with shuffled ones, which come after them.
    true, false = ([r for r, trial in enumerate(trials) if trial.shuffled == shuffled] for shuffled in (False, True))
    methods = {'shared': _of(measured['K=1'], true), 'pal': _chosen(measured, chosen, true)}
    if panel.ask:
        methods['asked'] = _chosen(_asked(panel, state, new, counts, measured, chosen), chosen, true)
    if false:
        methods['shuffled'] = _chosen(measured, chosen, false)
    methods |= {name: _of(method, true) for name, method in measured.items() if not name.startswith('K=')}
    methods |= {name: other(data, [trials[r] for r in true], counts) for name, other in others.items()}
    parts = {
        'seen people, validation': validation,
        'seen people, test': {K: measured[f'K={K}'].seen for K in panel.prototypes},
        'new people, all their comparisons': {K: measured[f'K={K}'].new[-1] for K in panel.prototypes},
    }
    by_prototypes = {part: {K: [row[r] for r in true] for K, row in rows.items()} for part, rows in parts.items()}
    if false:
        by_prototypes['seen people, shuffled ids'] = {
            K: [measured[f'K={K}'].seen[r] for r in false] for K in panel.prototypes
        }
    agreed = _groups(panel, state, true, false)
    return Results(methods, by_prototypes, chosen, counts, agreed, _by_group(panel, state, chosen, true))


def _by_group(
    panel: Panel, state: States, chosen: Sequence[int], true: Sequence[int]
) -> dict[str, list[np.ndarray]]:  # fmt: skip
    """Accuracies on seen people's new choices by group.

    They are NaN for a group of which a split tests nobody. The result is empty where groups are not known.
    """
    known = panel.data.groups
    if known is None or not (known >= 0).any():
        return {}

    def of(margins: np.ndarray, users: np.ndarray) -> np.ndarray:
        groups = known[users]
        right, pairs = (
            np.bincount(groups[groups >= 0], weights=w[groups >= 0], minlength=known.max() + 1)
            for w in (hits(margins), np.ones(len(margins)))
        )
        return right / np.where(pairs > 0, pairs, np.nan)

    margins_by_k = {
        K: seen_margins(panel.learners[f'K={K}'], state[f'K={K}'], panel.seen_by(f'K={K}'), panel.trials, 'test')
        for K in {1, *(chosen[r] for r in true)}
    }
    return {
        'shared': [of(*margins_by_k[1][r]) for r in true],
        'pal': [of(*margins_by_k[chosen[r]][r]) for r in true],
    }


def prior(panel: Panel, state: PALState) -> jax.Array:
    """The mean `[R, K]` of the prior of new people's logits."""
    mean = population(state)
    return mean if panel.toward == 'population' else jnp.zeros_like(mean)


def _asked(
    panel: Panel, state: States, new: Newcomers, counts: tuple[int, ...], measured: Mapping[str, Method],
    chosen: Sequence[int],
) -> dict[str, Method]:  # fmt: skip
    """The models, of which those chosen have new accuracies on new people: what is known of a person comes in the order
    of the information expected of it."""
    by_model = dict(measured)
    for K in set(chosen) - {1}:  # with one prototype all people are alike, and no answer would tell anything
        name, most = f'K={K}', min(panel.ask, new.most)
        learner, mean = panel.learners[name], prior(panel, state[name])
        ordered = questions(learner, state[name], new, mean, most)
        by_model[name] = measured[name]._replace(new=new_accuracy(learner, state[name], ordered, counts, mean))
    return by_model


def _groups(panel: Panel, state: States, true: Sequence[int], false: Sequence[int]) -> dict[str, list[float]]:
    """The agreement of people's weights with their groups, where these are known, and that of the largest K with
    shuffled ids."""
    known, names = panel.data.groups, [name for name in panel.learners if name not in ('K=1', 'own', 'groups')]
    if known is None or not (known >= 0).any():
        return {}

    def of(name: str, r: int) -> float:
        seen = np.unique(panel.data.users[panel.trials[r].split.train])
        mixtures = ideal_point.weights(panel.learners[name].pal, state[name].users.z[r][seen])
        return groups.agreement(np.asarray(mixtures), known[seen])

    by_model = {name: [of(name, r) for r in true] for name in names}
    last = f'K={panel.prototypes[-1]}'
    return by_model | ({f'{last}, shuffled ids': [of(last, r) for r in false]} if false and last in names else {})


def _of(method: Method, trials: Sequence[int]) -> Method:
    return method._replace(seen=[method.seen[r] for r in trials], new=[[row[r] for r in trials] for row in method.new])


def _chosen(measured: Mapping[str, Method], chosen: Sequence[int], trials: Sequence[int]) -> Method:
    """PAL's results with the K chosen on each trial."""
    models = [measured[f'K={chosen[r]}'] for r in trials]
    return Method(
        [method.seen[r] for method, r in zip(models, trials, strict=True)],
        [[method.new[n][r] for method, r in zip(models, trials, strict=True)] for n in range(len(models[0].new))],
        float(np.mean([method.shared_parameters for method in models])),
        float(np.mean([method.parameters_a_user for method in models])),
    )


# --- methods without a learner ----------------------------------------------------------------------------------------


def _by_vote(data: Comparisons, trials: Sequence[Trial], counts: Sequence[int]) -> Method:
    """The method that predicts by the choices of seen people between the same two items; it ignores a
    person's own choices."""
    differences = data.chosen[:] - data.rejected[:]

    def of(trial: Trial, index: np.ndarray) -> Accuracy:
        return accuracy(majority(differences[trial.split.train], differences[index]), data.users[index])

    new = [of(trial, trial.split.new_test) for trial in trials]
    return Method([of(trial, trial.split.test) for trial in trials], [new for _ in counts], 0, 0)


def _by_mixed_logit(data: Comparisons, trials: Sequence[Trial], counts: Sequence[int]) -> Method:
    """The mixed logit. A person's coefficients have a posterior given the known comparisons: those of the training part
    for seen people, the first n for new ones."""
    differences, users = data.chosen[:] - data.rejected[:], data.users
    new = newcomers(data, trials)
    seen, rows = [], [[] for _ in counts]
    for r, trial in enumerate(trials):
        train, test, asked = trial.split.train, trial.split.test, trial.split.new_test
        model = mixed_logit.fit(differences[train], users[train], trial.seed)
        margins = mixed_logit.margins(model, differences[train], users[train], differences[test], users[test])
        seen.append(accuracy(margins, users[test]))
        for row, count in zip(rows, counts, strict=True):
            known = trial.split.fit[new.rank[r, : len(trial.split.fit)] < count]
            margins = mixed_logit.margins(model, differences[known], users[known], differences[asked], users[asked])
            row.append(accuracy(margins, users[asked]))
    return Method(seen, rows, 2 * differences.shape[1], 0)


OTHERS: dict[str, Other] = {'majority': _by_vote, 'mixed_logit': _by_mixed_logit}


# --- what is shown ----------------------------------------------------------------------------------------------------


def make_record(results: Results) -> dict[str, Any]:
    """The record of an evaluation: numbers with standard errors over splits, and lists by K and by number of
    comparisons."""
    record: dict[str, Any] = {}
    for name, method in results.methods.items():
        for key, values in (('seen', method.seen), ('new', method.new[-1])):
            record |= intervals.mean(_pairs(values)).named(f'{key}_{name}')
    pal, shared = results.methods['pal'], results.methods['shared']
    record |= intervals.mean(_pairs(pal.seen) - _pairs(shared.seen)).named('seen_gain')
    record |= intervals.mean(_pairs(pal.new[-1]) - _pairs(shared.new[-1])).named('new_gain')
    if 'asked' in results.methods:
        rows = zip(results.methods['asked'].new, pal.new, strict=True)
        gains = [intervals.mean(_pairs(chosen) - _pairs(random)) for chosen, random in rows]
        record['asked_gain_by_known'] = [figure.value for figure in gains]
        record['asked_gain_by_known_se'] = [figure.error for figure in gains]
    for name, row in results.by_group.items():
        record[f'seen_{name}_by_group'] = [None if np.isnan(x) else float(x) for x in np.nanmean(row, axis=0)]
    record['chosen_prototypes'] = list(results.chosen)
    for part, rows in results.by_prototypes.items():
        record[f'{part.replace(",", "").replace(" ", "_")}_by_prototypes'] = [_mean(row) for row in rows.values()]
    for name, row in results.groups.items():
        record |= intervals.mean(np.array(row)).named(f'group_auc {name}')
    record['known_comparisons'] = list(results.counts)
    record |= {f'new_{name}_by_known': [_mean(row) for row in method.new] for name, method in results.methods.items()}
    return record


def _pairs(row: Sequence[Accuracy]) -> np.ndarray:
    return np.array([value.pairs for value in row])


def _mean(row: Sequence[Accuracy]) -> float:
    return float(np.mean(_pairs(row)))


def make_exhibits(panel: Panel, state: States, results: Results) -> list[Exhibit]:
    """The exhibits of a report; its people and prototypes are those of the first split."""
    curves = {MODELS[name]: _curve(method.new) for name, method in results.methods.items()}
    by_prototypes = {part: _curve(list(rows.values())) for part, rows in results.by_prototypes.items()}
    K = results.chosen[0]
    return [
        Exhibit('Who is foretold how well', _verdict(results), table=_table(results)),
        Exhibit('New people', picture=people.plot_by_comparisons(curves, results.counts)),
        Exhibit('By prototypes', picture=people.plot_by_prototypes(by_prototypes, panel.prototypes)),
        *([Exhibit('Opinion groups', GROUPS, _group_table(results))] if results.groups else ()),
        *([Exhibit('Each group', BY_GROUP, _table_by_group(results, panel.data))] if results.by_group else ()),
        *(_portrait(panel, f'K={K}', state) if K > 1 else ()),
    ]


def _curve(rows: Sequence[Sequence[Accuracy]]) -> people.Curve:
    return [intervals.mean(_pairs(row)) for row in rows]


def _verdict(results: Results) -> str:
    parts, (pal, shared) = [], (results.methods[name] for name in ('pal', 'shared'))
    for who, ours, theirs in (
        ("seen people's new choices", pal.seen, shared.seen),
        ('new people', pal.new[-1], shared.new[-1]),
    ):
        gain = intervals.mean(_pairs(ours) - _pairs(theirs))
        parts.append(f'{who}: PAL {gain.value:+.3f} over the shared model, 95 % over splits {gain.ends("+.3f")}')
    count = len(pal.seen)
    true, false = (', '.join(map(str, part)) for part in (results.chosen[:count], results.chosen[count:]))
    control = f'; with shuffled ids: {false}' if false else ''
    return f'{"; ".join(parts)}. K by split: {true}{control}.'


def _table(results: Results) -> list[list[str]]:
    """A table of accuracy ± standard error over splits.

    The columns in which each person counts the same, and of the worst tenth of people, are of seen people.
    """
    middle = len(results.counts) // 2
    head = ['', 'seen people', 'each person alike', 'worst tenth', 'new, none known']
    head += [f'{results.counts[middle]} known', 'all known', 'parameters', 'a user']
    rows = [head]
    for name, method in results.methods.items():
        cells = [method.seen, method.new[0], method.new[middle], method.new[-1]]
        seen, none, some, known = (_cell(_pairs(row)) for row in cells)
        alike, worst = (_cell([getattr(value, key) for value in method.seen]) for key in ('people', 'worst'))
        sizes = (f'{size:.3g}' for size in (method.shared_parameters, method.parameters_a_user))
        rows.append([MODELS[name], seen, alike, worst, none, some, known, *sizes])
    return rows


def _group_table(results: Results) -> list[list[str]]:
    return [['model', 'AUC'], *([name, _cell(row)] for name, row in results.groups.items())]


def _table_by_group(results: Results, data: Comparisons) -> list[list[str]]:
    assert data.groups is not None
    rows = [['group', 'people', *(MODELS[name] for name in results.by_group)]]
    for group in range(data.groups.max() + 1):
        values = [[float(values_of_split[group]) for values_of_split in row] for row in results.by_group.values()]
        cells = [_cell([x for x in row if np.isfinite(x)]) if np.isfinite(row).any() else '–' for row in values]
        rows.append([str(group), str(int((data.groups == group).sum())), *cells])
    return rows


def _cell(values: Sequence[float] | np.ndarray) -> str:
    return intervals.mean(np.asarray(values)).with_error()


def _portrait(panel: Panel, name: str, states: States) -> list[Exhibit]:
    """The people of the first split among its prototypes, and the attributes or texts that each prototype likes."""
    data, state, pal = panel.seen_by(name), states[name], panel.learners[name].pal
    seen = np.unique(data.users[panel.trials[0].split.train])
    mixtures = np.asarray(ideal_point.weights(pal, state.users.z[0][seen]))
    order = np.argsort(-mixtures.mean(axis=0))
    params = jax.tree.map(lambda x: x[0], state.params)
    index, words = shown_items(data)
    items, prompt = jnp.asarray(data.chosen[index]), None if data.prompt is None else jnp.asarray(data.prompt[index])

    def rewards(k: int) -> np.ndarray:
        w = jnp.zeros((len(items), pal.prototypes)).at[:, k].set(1.0)
        u = ideal_point.user_point(params, pal, w, prompt)
        values = np.asarray(ideal_point.item_reward(params, pal, u, items))
        if not words or prompt is None:
            return values
        return values - np.asarray(ideal_point.item_reward(params, pal, u, jnp.asarray(data.rejected[index])))

    liked = np.stack([rewards(int(k)) for k in order])
    effects = people.linear_effects(liked, np.asarray(items)) if not words else liked - liked.mean(axis=0)
    attributes, shown = (words, SHOWN_TEXTS) if words else (data.attributes, 2)
    table = [['prototype', 'mean weight', 'largest for', 'likes most', 'likes least']]
    for number, k in enumerate(order):
        mostly = np.mean(mixtures.argmax(axis=1) == k)
        liked_most = people.in_words(effects[number], attributes, shown)
        table.append([str(number + 1), f'{mixtures[:, k].mean():.2f}', f'{mostly:.0%}', *liked_most])
    return [
        Exhibit('The people', picture=people.plot_simplex(mixtures[:SHOWN_PEOPLE, order])),
        Exhibit(
            'The prototypes', PROTOTYPES[bool(words)], table,
            people.plot_effects(effects, attributes) if len(attributes) <= 30 else b'',
        ),
    ]  # fmt: skip


def shown_items(data: Comparisons) -> tuple[np.ndarray, list[str]]:
    """The numbers of pairs whose chosen items show the likes of a prototype, and the items in words if they are texts.

    Each text is there once, or each reply to each prompt.
    """
    index = np.random.default_rng(0).permutation(len(data.users))
    if not data.texts:
        return index[:SHOWN_ITEMS], []
    columns = [lookup.numbers[index] for lookup in (data.prompt, data.chosen) if isinstance(lookup, Lookup)]
    different = np.unique(np.stack(columns), axis=1, return_index=True)[1][:SHOWN_ITEMS]
    words = [' / '.join(data.texts[int(column[i])] for column in columns) for i in different]
    return index[different], words
