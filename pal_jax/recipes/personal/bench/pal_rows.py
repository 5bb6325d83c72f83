"""PAL and all models that its run trains, as rows of the bench: the run of `configs/pal.py`, step by step, and the same
functions that evaluate it, so that PAL's row is the one of `make pal`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from pal_jax.recipes.personal.bench.evaluation import TIMES, Row, row_of
from pal_jax.recipes.personal.bench.protocol import judge, temperature
from pal_jax.recipes.personal.pal.recipe import PAL
from pal_jax.recipes.personal.panel import Newcomers, new_margins, newcomers, questions, seen_accuracy, seen_margins
from pal_jax.recipes.personal.population import Panel, States, prior
from pal_jax.run.accuracy import choose

BASELINES = 'embedding', 'own', 'groups'  # PAL's baselines with a learner

Margins = list[
    list[tuple[np.ndarray, np.ndarray]]
]  # by count, then by trial: margins, and people's numbers in the data


def train(recipe: PAL) -> States:
    """The states after all steps of PAL's run."""
    state, host = recipe.init()
    for i in range(recipe.plan.total_steps):
        state, host, _, _ = recipe.step(state, host, i)
    return state


def rows(recipe: PAL, state: States) -> dict[str, list[Row]]:
    """The rows of the shared model, of PAL with the K that the validation part chose on each split, and of the
    baselines.

    PAL has further rows: of new people who are asked what tells most, and by the known choices of strangers.
    """
    panel = recipe.panel
    new, trials = newcomers(panel.data, panel.trials), panel.trials
    counts = *(count for count in panel.counts if count < new.most), new.most
    # 1. The models of each method, by split.
    models = {'shared': ['K=1'] * len(trials), 'pal': [f'K={K}' for K in chosen(panel, state)]}
    models |= {name: [name] * len(trials) for name in BASELINES if name in panel.learners}
    used = list(dict.fromkeys(name for names in models.values() for name in names))
    # 2. Margins on new choices of seen people, and on new people.
    seen = {name: seen_margins(panel.learners[name], state[name], panel.data, trials, 'test') for name in used}
    by_model = {name: _new(panel, state, name, new, counts) for name in used}
    # As `bench.run` does, margins are made log-odds on validation choices.
    valid = {name: seen_margins(panel.learners[name], state[name], panel.data, trials, 'validation') for name in used}
    factors = {name: [temperature(m) for m, _ in row] for name, row in valid.items()}
    lines = {method: _rows(panel, 'seen', [-1], names, factors, {name: [seen[name]] for name in used})
             + _rows(panel, 'new', counts, names, factors, by_model) for method, names in models.items()}  # fmt: skip
    # 3. New people who are asked, and those by strangers' choices.
    of_pal = sorted(set(models['pal']))
    if panel.ask:
        asked = {name: _new(panel, state, name, _asked(panel, state, name, new), counts) for name in of_pal}
        lines['pal'] += _rows(panel, 'asked', counts, models['pal'], factors, asked, shuffled=False)
    strangers = {name: _new(panel, state, name, _strangers(panel, new), counts[-1:]) for name in of_pal}
    lines['pal'] += _rows(panel, 'strangers', counts[-1:], models['pal'], factors, strangers, shuffled=False)
    return {method: [_about(panel, state, names, new, len(lines[method])), *lines[method]]
            for method, names in models.items()}  # fmt: skip


def chosen(panel: Panel, state: States) -> list[int]:
    """The K of each split, as an evaluation of PAL chooses it."""
    validation = {
        K: seen_accuracy(panel.learners[f'K={K}'], state[f'K={K}'], panel.data, panel.trials, 'validation')
        for K in panel.prototypes
    }
    return choose({K: [value.pairs for value in row] for K, row in validation.items()})


def _new(panel: Panel, state: States, name: str, new: Newcomers, counts: Sequence[int]) -> Margins:
    """The margins of a model on new people, whose people have the data's numbers."""
    mean, data = prior(panel, state[name]), panel.data
    people = [np.unique(data.users[trial.split.new_test]) for trial in panel.trials]
    by_count = new_margins(panel.learners[name], state[name], new, counts, mean)
    return [[(m, people[r][users]) for r, (m, users) in enumerate(row)] for row in by_count]


def _rows(
    panel: Panel, part: str, counts: Iterable[int], names: Sequence[str], factors: Mapping[str, Sequence[float]],
    margins: Mapping[str, Any], *, shuffled: bool = True,
) -> list[Row]:  # fmt: skip
    """The rows of a method whose model on split `r` is `names[r]`, by margins times its `factors`.

    Without `shuffled` they are those of the true people alone.
    """
    return [
        row_of(trial, part, count, judge(factors[names[r]][r] * m, users).to_json())
        for k, count in enumerate(counts)
        for r, trial in enumerate(panel.trials)
        if shuffled or not trial.shuffled
        for m, users in [margins[names[r]][k][r]]
    ]


def _asked(panel: Panel, state: States, name: str, new: Newcomers) -> Newcomers:
    if name == 'K=1':  # all people are alike, and no answer would tell anything
        return new
    return questions(panel.learners[name], state[name], new, prior(panel, state[name]), min(panel.ask, new.most))


def _strangers(panel: Panel, new: Newcomers) -> Newcomers:
    """The new people, whose known choices are shuffled among them."""
    users = np.array(new.fit.users)
    for r, trial in enumerate(panel.trials):
        n = len(trial.split.fit)
        users[r, :n] = np.random.default_rng([trial.seed, 5]).permutation(users[r, :n])
    return new._replace(fit=new.fit.replace(users=users))


def _about(panel: Panel, state: States, names: Sequence[str], new: Newcomers, looks: int) -> Row:
    """The sizes of a method's models, the time to fit a person, and the K of each split."""
    true = [name for name, trial in zip(names, panel.trials, strict=True) if not trial.shuffled]
    sizes = [sum(leaf[0].size for leaf in jax.tree.leaves(state[name].params)) for name in true]
    logits = [0 if name == 'K=1' else panel.learners[name].pal.logits_per_user for name in true]
    about = {
        'shared_parameters': float(np.mean(sizes)), 'parameters_a_person': float(np.mean(logits)), 'looks': looks,
        'seconds_a_person': _seconds(panel, state, true[0], new), 'options': [{'model': name} for name in names],
    }  # fmt: skip
    return {'about': about}


def _seconds(panel: Panel, state: States, name: str, new: Newcomers) -> float:
    """The median time in seconds to fit one new person by as many choices as anybody has, after a first fit."""
    pairs = jax.tree.map(lambda x: x[:, : new.most], new.fit).replace(
        users=np.zeros((len(panel.trials), new.most), int)
    )
    weight, mean = np.ones((len(panel.trials), new.most), np.float32), prior(panel, state[name])[:, None]
    seconds = []
    for _ in range(TIMES + 1):
        start = time.perf_counter()
        jax.block_until_ready(panel.learners[name].fit(state[name].params, pairs, weight, mean))
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[1:])) / len(panel.trials)
