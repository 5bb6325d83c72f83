"""PAL and all models that its run trains, as rows of the bench: the run of `configs/pal.py`, step by step, and the same
functions that evaluate it, so that PAL's row is the one of `make pal`."""

from __future__ import annotations

import jax
import numpy as np

from pal_jax.recipes.personal.evaluation import MethodResult, Row, median_seconds, picked, rows
from pal_jax.recipes.personal.judged import temperature
from pal_jax.recipes.personal.pal.recipe import PALRecipe
from pal_jax.recipes.personal.panel import Newcomers, newcomers, seen_margins
from pal_jax.recipes.personal.population import (
    Panel,
    States,
    ask_people,
    choose_prototypes,
    counts_of,
    evaluate_model,
    new_people,
    prior,
)

BASELINES = 'embedding', 'own', 'groups'  # PAL's baselines with a learner


def train(recipe: PALRecipe) -> States:
    """The states after all steps of PAL's run."""
    state, host = recipe.init()
    for i in range(recipe.plan.total_steps):
        state, host, _, _ = recipe.step(state, host, i)
    return state


def all_rows(recipe: PALRecipe, state: States) -> dict[str, list[Row]]:
    """The rows of the shared model, of PAL with the K that the validation part chose on each split, and of the
    baselines.

    PAL has further rows: of new people who are asked what tells most, and by the known choices of strangers.
    """
    panel, trials = recipe.panel, recipe.panel.trials
    new = newcomers(panel.data, trials)
    counts = counts_of(panel, new)
    # 1. The models of each method, by split.
    names = {'shared': ['K=1'] * len(trials), 'pal': [f'K={K}' for K in choose_prototypes(panel, state)[1]]}
    names |= {name: [name] * len(trials) for name in BASELINES if name in panel.learners}
    # 2. Their results; those of PAL also with questions and with strangers' choices.
    models: dict[str, MethodResult] = {}
    for name in dict.fromkeys(name for by_split in names.values() for name in by_split):
        # As `evaluation.run` does, margins are made log-odds on validation choices.
        valid = seen_margins(panel.learners[name], state[name], panel.data, trials, 'validation')
        factors = [temperature(margins) for margins, _ in valid]
        models[name] = evaluate_model(panel, state, name, new, counts, factors)
        if name in names['pal']:
            asked = ask_people(panel, state, name, new, models[name], counts, factors) if panel.ask else ()
            strangers = new_people(panel, state, name, _strangers(panel, new), counts[-1:], factors)
            models[name] = models[name]._replace(asked=asked, strangers=strangers)
    results = {method: [models[name] for name in by_split] for method, by_split in names.items()}
    results = {method: picked(of_splits, range(len(trials))) for method, of_splits in results.items()}
    results['shared'] = results['shared']._replace(asked=(), strangers=())
    lines = {method: rows(trials, result, counts) for method, result in results.items()}
    return {
        method: [{'about': _about(panel, state, names[method], new, [models[name] for name in names[method]])
                  | {'looks': len(of_method)}}, *of_method]
        for method, of_method in lines.items()
    }  # fmt: skip


def _strangers(panel: Panel, new: Newcomers) -> Newcomers:
    """The new people, whose known choices are shuffled among them."""
    users = np.array(new.fit.users)
    for r, trial in enumerate(panel.trials):
        n = len(trial.split.fit)
        users[r, :n] = np.random.default_rng([trial.seed, 5]).permutation(users[r, :n])
    return new._replace(fit=new.fit.replace(users=users))


def _about(panel: Panel, state: States, names: list[str], new: Newcomers, models: list[MethodResult]) -> Row:
    """The sizes of a method's models, the time to fit a person, and the K of each split."""
    true = [r for r, trial in enumerate(panel.trials) if not trial.shuffled]
    sizes = picked([models[r] for r in true], true)
    return {
        'shared_parameters': sizes.shared, 'parameters_a_person': sizes.person,
        'seconds_a_person': _seconds(panel, state, names[true[0]], new), 'options': [{'model': name} for name in names],
    }  # fmt: skip


def _seconds(panel: Panel, state: States, name: str, new: Newcomers) -> float:
    """The median time in seconds to fit one new person by as many choices as anybody has."""
    pairs = jax.tree.map(lambda x: x[:, : new.most], new.fit).replace(
        users=np.zeros((len(panel.trials), new.most), int)
    )
    weight, mean = np.ones((len(panel.trials), new.most), np.float32), prior(panel, state[name])[:, None]
    fit = panel.learners[name].fit
    seconds = median_seconds(lambda: jax.block_until_ready(fit(state[name].params, pairs, weight, mean)))
    return seconds / len(panel.trials)
