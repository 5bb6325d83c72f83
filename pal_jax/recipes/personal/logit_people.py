"""People as normal distributions of effects, by a mixed logit: what a run keeps of them, and what a person chooses.

    population = load(folder, attributes, scale)     # of a run; None: it has fitted no mixed logit
    ana = given_choices(population.model, choices)    # her effects given her choices among options
    probability(ana, other_differences)              # of her next choices

A person's posterior (Train 2009, section 11.2) is taken as the normal distribution of the same mean and covariance, so
that a choice, whose utility has one dimension then, needs no draws. In memory effects are of one unit of an attribute
as models see it, and on disk of one unit of the survey's own: the `scale` `[H]` is the quotient.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from pal_jax.recipes.personal import mixed_logit
from pal_jax.recipes.personal.logit import ChoiceSets
from pal_jax.recipes.personal.mixed_logit import LEAST, MixedLogit
from pal_jax.run import files, intervals

FILE = 'mixed_logit.json'  # in the folder of a run
# Gauss-Hermite quadrature: nodes and weights of a standard normal distribution.
NODES, WEIGHTS = special.roots_hermitenorm(100)
WEIGHTS = WEIGHTS / np.sqrt(2 * np.pi)
NORMAL = float(special.ndtri((1.0 + intervals.LEVEL) / 2.0))  # a normal interval's half width in standard errors
DRAWS = 4096  # of a person's effects; a power of 2, for which Sobol's sequence is balanced


class Effects(NamedTuple):
    """A normal distribution of effects on the log-odds: the mean `[H]` and the covariance `[H, H]`."""

    mean: np.ndarray
    covariance: np.ndarray

    @property
    def deviation(self) -> np.ndarray:
        """The standard deviations `[H]`."""
        return np.sqrt(np.diag(self.covariance))


class Population(NamedTuple):
    """The mixed logit of a run, and the effects of each person of the survey by name, given the person's choices."""

    model: MixedLogit
    people: dict[str, Effects]

    @property
    def everybody(self) -> Effects:
        """The distribution over people."""
        return Effects(self.model.mean, np.diag(self.model.deviation**2))


def given_choices(model: MixedLogit, choices: ChoiceSets) -> Effects:
    """The mean and the covariance of a person's effects, given the person's choices."""
    posterior = mixed_logit.posterior(model, choices)
    return Effects(posterior.weight @ posterior.draws, posterior.covariance)


def population_of(model: MixedLogit, choices: ChoiceSets, names: Sequence[str]) -> Population:
    """The population of a survey, whose mixed logit is `model`; `names` are those of its people."""
    of_people = (given_choices(model, choices.at(choices.users == user)) for user in range(len(names)))
    return Population(model, dict(zip(names, of_people, strict=True)))


# --- choices ----------------------------------------------------------------------------------------------------------


def probability(person: Effects, difference: np.ndarray) -> np.ndarray:
    """The chances `[n]` that a person takes the first option of pairs with differences first - second `[n, H]`."""
    return special.expit(_utilities(person, difference)) @ WEIGHTS


def chances_of_options(person: Effects, items: np.ndarray) -> np.ndarray:
    """The probabilities `[DRAWS, J]` with which a person chooses each of J options `[J, H]`, by draws of the person's
    effects. The draws are those of Sobol's sequence, the same in every call."""
    if len(items) == 1:
        return np.ones((DRAWS, 1))
    # Only the differences of utility to the last option count, and they are fewer than effects.
    x = items[:-1] - items[-1]
    # A covariance may have no inverse, but it always has this root.
    root = np.linalg.svd(x @ person.covariance @ x.T, hermitian=True)
    draws = x @ person.mean + _normal_draws(len(x)) * np.sqrt(root.S) @ root.Vh
    return special.softmax(np.column_stack([draws, np.zeros(DRAWS)]), axis=1)


class MarketShares(NamedTuple):
    """The shares `[J]` of people who choose each of J options, and the ends of their 95 % intervals `[J]`."""

    share: np.ndarray
    low: np.ndarray
    high: np.ndarray


def shares_of_options(model: MixedLogit, items: np.ndarray) -> MarketShares:
    """The shares of J options `[J, H]` by a mixed logit whose estimates have a covariance.

    The intervals are those of the log-odds of a share, by the delta method: they hold the error of the estimates, and
    none of what the model leaves out.
    """
    assert model.covariance is not None
    draws = _normal_draws(len(model.mean))
    chances = special.softmax((model.mean + model.deviation * draws) @ items.T, axis=1)
    # The derivative of a chance by a coefficient is the chance times the option's value less the mean value, which is a
    # mean over options; by a deviation it is that times the draw.
    expected, weights = chances @ items, chances.T / len(chances)
    by_mean = weights.sum(axis=1)[:, None] * items - weights @ expected
    by_deviation = (weights @ draws) * items - weights @ (expected * draws)
    gradient = np.concatenate([by_mean, by_deviation], axis=1)
    share = np.clip(chances.mean(axis=0), LEAST, 1.0 - LEAST)
    variance = np.einsum('jh,hk,jk->j', gradient, model.covariance, gradient)
    log_odds, width = special.logit(share), NORMAL * np.sqrt(np.maximum(variance, 0.0)) / (share * (1.0 - share))
    return MarketShares(share, special.expit(log_odds - width), special.expit(log_odds + width))


@functools.lru_cache(maxsize=32)
def _normal_draws(width: int) -> np.ndarray:
    """Draws `[DRAWS, width]` of independent standard normal numbers."""
    # This import is late for the reason in `mixed_logit.student_draws`.
    from scipy.stats import qmc

    # The shift keeps the first point of the sequence, 0, from being infinite.
    return special.ndtri(qmc.Sobol(width, scramble=False).random(DRAWS) + 0.5 / DRAWS)


def information_of_choice(chances: np.ndarray) -> float:
    """The information in nats that is expected of a choice among options, by the chances `[D, J]` that each of D people
    gives them who could be the person: the entropy of their mean less their mean entropy."""
    return float(special.entr(chances.mean(axis=0)).sum() - special.entr(chances).sum(axis=1).mean())


def information(person: Effects, difference: np.ndarray) -> np.ndarray:
    """The information in nats `[n]` that is expected of the answer to each pair: its entropy less the mean entropy of
    somebody whose effects are known."""
    chances = special.expit(_utilities(person, difference))
    return _entropy(chances @ WEIGHTS) - _entropy(chances) @ WEIGHTS


def _utilities(person: Effects, difference: np.ndarray) -> np.ndarray:
    """The differences of utility `[n, nodes]` at the nodes of the quadrature."""
    variance = np.sum(difference @ person.covariance * difference, axis=1)
    return (difference @ person.mean)[:, None] + np.sqrt(np.maximum(variance, 0.0))[:, None] * NODES


def _entropy(chance: np.ndarray) -> np.ndarray:
    return special.entr(chance) + special.entr(1.0 - chance)


# --- on disk ----------------------------------------------------------------------------------------------------------


def to_json(population: Population, attributes: Sequence[str], scale: np.ndarray) -> str:
    """The text of a run's `FILE`."""
    model = population.model
    record = {
        'mean': _by_name(attributes, model.mean / scale),
        'deviation': _by_name(attributes, model.deviation / scale),
        'converged': model.converged,
        'covariance': None if model.covariance is None else (model.covariance / _products(scale)).tolist(),
        'people': {name: to_record(person, attributes, scale) for name, person in population.people.items()},
    }
    return json.dumps(record, ensure_ascii=False) + '\n'


def load(folder: Path, attributes: Sequence[str], scale: np.ndarray) -> Population | None:
    """The population that a run keeps; None: it keeps none. Raises ValueError where the file is damaged."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        record = files.read_object(path)
        mean, deviation = (
            np.array([record[part][name] for name in attributes], float) * scale for part in ('mean', 'deviation')
        )
        people = {name: from_record(person, attributes, scale) for name, person in record['people'].items()}
        covariance = _covariance_of(record, attributes, scale)
        model = MixedLogit(mean, deviation, converged=record['converged'], covariance=covariance)
        return Population(model, people)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f'{path} cannot be read ({error!r}); copy the folder of the run again') from None


def _covariance_of(record: dict[str, Any], attributes: Sequence[str], scale: np.ndarray) -> np.ndarray | None:
    """The covariance of a run's estimates; None where they have none, or the run is of an earlier version.

    Raises:
      ValueError: it is no square of finite numbers for these attributes.
    """
    if record.get('covariance') is None:
        return None
    order = [list(record['mean']).index(name) for name in attributes]
    order += [len(order) + h for h in order]
    covariance = np.array(record['covariance'], float)
    if covariance.shape != (len(order),) * 2 or not np.isfinite(covariance).all():
        raise ValueError(f'expected a covariance of {len(order)} rows of {len(order)} finite numbers')
    return covariance[np.ix_(order, order)] * _products(scale)


def _products(scale: np.ndarray) -> np.ndarray:
    """The products `[2 H, 2 H]` of scales by which covariances of means and deviations change."""
    twice = np.tile(scale, 2)
    return np.outer(twice, twice)


def without_person(population: Population, name: str) -> Population:
    """The population without a person."""
    return population._replace(people={known: x for known, x in population.people.items() if known != name})


def to_record(person: Effects, attributes: Sequence[str], scale: np.ndarray) -> dict[str, Any]:
    """The effects of a person as JSON."""
    covariance = person.covariance / scale[:, None] / scale
    return {
        'effects': _by_name(attributes, person.mean / scale),
        'covariance': [[float(f'{x:.6g}') for x in row] for row in covariance],
    }


def from_record(record: Any, attributes: Sequence[str], scale: np.ndarray) -> Effects:
    """The effects in a record of `to_record`; its attributes may stand in another order.

    Raises:
      ValueError: the record has other attributes, or values that are no effects.
    """
    effects = record.get('effects') if isinstance(record, dict) else None
    if not isinstance(effects, dict) or effects.keys() != set(attributes):
        raise ValueError(f'expected effects of {", ".join(attributes)}, got {files.short_repr(effects)}')
    order = [list(effects).index(name) for name in attributes]
    try:
        mean, covariance = np.array([*effects.values()], float), np.array(record.get('covariance'), float)
    except (TypeError, ValueError):
        mean, covariance = np.empty(0), np.empty(0)
    if covariance.shape != (len(order),) * 2 or not np.isfinite(mean).all() or not np.isfinite(covariance).all():
        raise ValueError(f'expected finite effects and their covariance, {len(order)} rows of {len(order)} numbers')
    return Effects(mean[order] * scale, covariance[np.ix_(order, order)] * scale[:, None] * scale)


def _by_name(attributes: Sequence[str], values: np.ndarray) -> dict[str, float]:
    # Six digits are more than choices tell.
    return {name: float(f'{value:.6g}') for name, value in zip(attributes, values, strict=True)}
