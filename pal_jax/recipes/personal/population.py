"""The results of PAL on a population: a table of methods, curves by K (the number of prototypes) and by n (the
number of a new person's known comparisons), people and prototypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pal_jax.data.comparisons import Comparisons, Lookup
from pal_jax.recipes.personal import groups, ideal_point
from pal_jax.recipes.personal import pictures as people
from pal_jax.recipes.personal.evaluation import Evaluate, MethodResult, picked
from pal_jax.recipes.personal.figures import MODELS
from pal_jax.recipes.personal.judged import JudgedPairs, by_person, judge, worst_tenth
from pal_jax.recipes.personal.learner import IdealPointLearner, PALState
from pal_jax.recipes.personal.panel import Newcomers, Trial, new_margins, newcomers, population, questions, seen_margins
from pal_jax.run import intervals
from pal_jax.run.recipe import Evaluation
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


class Results(NamedTuple):
    """The results of all methods.

    Attributes:
      by_prototypes: results by split, by the part of the data and by K.
      chosen: the chosen K of each trial.
      counts: numbers of known comparisons.
      groups: AUC by split for each model, see `groups.agreement`.
      by_group: for the shared model and PAL, by split, the accuracies `[groups]` on each known group.
    """

    methods: Mapping[str, MethodResult]
    by_prototypes: Mapping[str, Mapping[int, Sequence[JudgedPairs]]]
    chosen: Sequence[int]
    counts: tuple[int, ...]
    groups: Mapping[str, Sequence[float]]
    by_group: Mapping[str, Sequence[np.ndarray]]


def evaluate(panel: Panel, state: States, others: Mapping[str, Evaluate] = MappingProxyType({})) -> Evaluation:
    """The record and the exhibits of a panel, as `measure` has its results."""
    results = measure(panel, state, others)
    return Evaluation(make_record(results), exhibits=make_exhibits(panel, state, results))


def measure(panel: Panel, state: States, others: Mapping[str, Evaluate] = MappingProxyType({})) -> Results:
    """The results of all methods on every trial; `others` are methods without a learner of PAL's."""
    data, trials = panel.data, panel.trials
    new = newcomers(data, trials)
    counts = counts_of(panel, new)
    validation, chosen = choose_prototypes(panel, state)
    models = {}
    for name in panel.learners:
        theirs = panel.seen_by(name)
        models[name] = evaluate_model(panel, state, name, new if theirs is data else newcomers(theirs, trials), counts)
    by_split = [models[f'K={K}'] for K in chosen]
    if panel.ask:
        asked = {K: ask_people(panel, state, f'K={K}', new, models[f'K={K}'], counts) for K in set(chosen)}
        by_split = [models[f'K={K}']._replace(asked=asked[K]) for K in chosen]
    # The places of the splits with true user ids, and of the control's with shuffled ones, which come after them.
    true, false = ([r for r, trial in enumerate(trials) if trial.shuffled == shuffled] for shuffled in (False, True))
    alike = {name: picked([model] * len(true), true) for name, model in models.items()}
    pal = picked([by_split[r] for r in true], true)
    methods = {'shared': alike['K=1'], 'pal': pal}
    if panel.ask:
        methods['asked'] = pal._replace(new=pal.asked)
    if false:
        methods['shuffled'] = picked([by_split[r] for r in false], false)
    methods |= {name: model for name, model in alike.items() if not name.startswith('K=')}
    methods |= {name: other(data, [trials[r] for r in true], counts) for name, other in others.items()}
    by_prototypes = {
        'seen people, validation': {K: [row[r] for r in true] for K, row in validation.items()},
        'seen people, test': {K: alike[f'K={K}'].seen for K in panel.prototypes},
        'new people, all their comparisons': {K: alike[f'K={K}'].new[-1] for K in panel.prototypes},
    }
    if false:
        by_prototypes['seen people, shuffled ids'] = {
            K: [models[f'K={K}'].seen[r] for r in false] for K in panel.prototypes
        }
    by_group = {name: _by_group(panel.data, methods[name].seen) for name in ('shared', 'pal') if _grouped(panel.data)}
    return Results(methods, by_prototypes, chosen, counts, _groups(panel, state, true, false), by_group)


def choose_prototypes(panel: Panel, state: States) -> tuple[dict[int, list[JudgedPairs]], list[int]]:
    """Results by K and by split on the validation part, and the K of the highest accuracy on each; the smallest of
    equals."""
    validation = {
        K: [judge(*part) for part in seen_margins(panel.learners[name], state[name], panel.seen_by(name),
                                                  panel.trials, 'validation')]
        for K, name in ((K, f'K={K}') for K in panel.prototypes)
    }  # fmt: skip
    return validation, choose({K: [judged.accuracy for judged in row] for K, row in validation.items()})


def choose(validation: Mapping[int, Sequence[float]]) -> list[int]:
    """The number of prototypes with the highest accuracy on each split's validation part; the smallest of equals."""
    return [
        max(sorted(validation), key=lambda k: validation[k][split]) for split in range(len(validation[min(validation)]))
    ]


def counts_of(panel: Panel, new: Newcomers) -> tuple[int, ...]:
    """The numbers of known comparisons of new people, the last of which is all that anybody has."""
    return *(count for count in panel.counts if count < new.most), new.most


def evaluate_model(
    panel: Panel, state: States, name: str, new: Newcomers, counts: Sequence[int],
    factors: Sequence[float] | None = None,
) -> MethodResult:  # fmt: skip
    """A model of the panel on all trials; its margins are multiplied by the `factors` of the trials."""
    learner = panel.learners[name]
    seen = seen_margins(learner, state[name], panel.seen_by(name), panel.trials, 'test')
    size = panel.decoder_parameters + sum(leaf[0].size for leaf in jax.tree.leaves(state[name].params))
    person = 0 if name == 'K=1' else learner.pal.logits_per_user
    factors = factors or [1.0] * len(panel.trials)
    return MethodResult(
        _judged(seen, factors), new_people(panel, state, name, new, counts, factors), shared=size, person=person
    )


def new_people(
    panel: Panel, state: States, name: str, new: Newcomers, counts: Sequence[int],
    factors: Sequence[float] | None = None,
) -> list[list[JudgedPairs]]:  # fmt: skip
    """A model of the panel on new people, by number of known comparisons, then by trial."""
    by_count = new_margins(panel.learners[name], state[name], new, counts, prior(panel, state[name]))
    return [_judged(row, factors or [1.0] * len(row)) for row in by_count]


def ask_people(
    panel: Panel, state: States, name: str, new: Newcomers, model: MethodResult, counts: Sequence[int],
    factors: Sequence[float] | None = None,
) -> Sequence[Sequence[JudgedPairs]]:  # fmt: skip
    """A model on new people whose comparisons come in the order of the information expected of them; `model` is its
    result at random."""
    if name == 'K=1':  # with one prototype all people are alike, and no answer would tell anything
        return model.new
    mean, most = prior(panel, state[name]), min(panel.ask, new.most)
    ordered = questions(panel.learners[name], state[name], new, mean, most)
    return new_people(panel, state, name, ordered, counts, factors)


def _judged(row: Sequence[tuple[np.ndarray, np.ndarray]], factors: Sequence[float]) -> list[JudgedPairs]:
    return [judge(factor * margins, users) for (margins, users), factor in zip(row, factors, strict=True)]


def prior(panel: Panel, state: PALState) -> jax.Array:
    """The mean `[R, K]` of the prior of new people's logits."""
    mean = population(state)
    return mean if panel.toward == 'population' else jnp.zeros_like(mean)


def _grouped(data: Comparisons) -> bool:
    """True where the group of somebody is known."""
    return data.groups is not None and bool((data.groups >= 0).any())


def _by_group(data: Comparisons, seen: Sequence[JudgedPairs]) -> list[np.ndarray]:
    """Accuracies on seen people's new choices by group and split; NaN for a group of which a split tests nobody."""

    def of(judged: JudgedPairs) -> np.ndarray:
        assert data.groups is not None
        group = data.groups[judged.people]
        known, size = group >= 0, data.groups.max() + 1
        right, pairs = (np.bincount(group[known], x[known], size) for x in (judged.hits, judged.pairs))
        return right / np.where(pairs > 0, pairs, np.nan)

    return [of(judged) for judged in seen]


def _groups(panel: Panel, state: States, true: Sequence[int], false: Sequence[int]) -> dict[str, list[float]]:
    """The agreement of people's weights with their groups, where these are known, and that of the largest K with
    shuffled ids."""
    known, names = panel.data.groups, [name for name in panel.learners if name not in ('K=1', 'own', 'groups')]
    if known is None or not _grouped(panel.data):
        return {}

    def of(name: str, r: int) -> float:
        seen = np.unique(panel.data.users[panel.trials[r].split.train])
        mixtures = ideal_point.weights(panel.learners[name].pal, state[name].users.z[r][seen])
        return groups.agreement(np.asarray(mixtures), known[seen])

    by_model = {name: [of(name, r) for r in true] for name in names}
    last = f'K={panel.prototypes[-1]}'
    return by_model | ({f'{last}, shuffled ids': [of(last, r) for r in false]} if false and last in names else {})


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


def _pairs(row: Sequence[JudgedPairs]) -> np.ndarray:
    return np.array([judged.accuracy for judged in row])


def _mean(row: Sequence[JudgedPairs]) -> float:
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


def _curve(rows: Sequence[Sequence[JudgedPairs]]) -> people.Curve:
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
        by_split = [by_person(judged) for judged in method.seen]
        alike, worst = (_cell([float(of(shares)) for shares in by_split]) for of in (np.mean, worst_tenth))
        sizes = (f'{size:.3g}' for size in (method.shared, method.person))
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
