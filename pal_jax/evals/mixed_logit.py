"""The mixed logit of choice modelling (McFadden & Train 2000), estimated by the library xlogit.

A person's coefficients are drawn from a normal distribution; xlogit estimates its means and deviations. Given a
person's own choices, the distribution is a weighted set of draws (Train 2009, chapter 11).
"""

from __future__ import annotations

import importlib.util
from typing import Any, NamedTuple

import numpy as np

from pal_jax.learners.personal import Unfit

DRAWS = 200  # draws of the simulated likelihood
POSTERIOR_DRAWS = 1000
LEAST = 1e-12  # probability of a choice, whose log-odds stay finite
DIVERGED = (
    'the mixed logit diverges on these choices, which attributes may foretell without an error; leave mixed_logit out'
)


class MixedLogit(NamedTuple):
    """The mean and the standard deviation of each attribute's coefficient."""

    mean: np.ndarray
    deviation: np.ndarray


def require() -> None:
    """Raises ValueError if xlogit is not installed."""
    if importlib.util.find_spec('xlogit') is None:
        raise ValueError("baselines has 'mixed_logit', but xlogit is missing: pip install 'pal_jax[choice]'")


def fit(difference: np.ndarray, users: np.ndarray, seed: int) -> MixedLogit:
    """The model estimated from differences chosen - rejected `[n, H]` of a panel of users.

    Raises:
      Unfit: the estimate is not finite, as where attributes foretell all choices without an error.
    """
    from xlogit import MixedLogit as Estimator

    order = np.argsort(users, kind='stable')
    difference, users = difference[order].astype(float), users[order]
    n, names = len(users), [f'x{i}' for i in range(difference.shape[1])]
    long = np.stack([difference, np.zeros_like(difference)], axis=1).reshape(2 * n, -1)
    model: Any = Estimator()
    try:
        with np.errstate(over='ignore', invalid='ignore'):
            model.fit(
                X=long, y=np.tile([1, 0], n), varnames=names, alts=np.tile([1, 2], n), ids=np.repeat(np.arange(n), 2),
                panels=np.repeat(users, 2), randvars=dict.fromkeys(names, 'n'), n_draws=DRAWS, random_state=seed,
                verbose=0, skip_std_errs=True,
            )  # fmt: skip
    except np.linalg.LinAlgError as error:
        raise Unfit(f'{DIVERGED} ({error})') from None
    estimates = dict(zip(model.coeff_names, model.coeff_, strict=True))
    mean, deviation = (np.array([estimates[prefix + name] for name in names]) for prefix in ('', 'sd.'))
    if not np.isfinite([mean, deviation]).all():
        raise Unfit(DIVERGED)
    return MixedLogit(mean, np.abs(deviation))


def margins(
    model: MixedLogit, known: np.ndarray, known_users: np.ndarray, asked: np.ndarray, asked_users: np.ndarray
) -> np.ndarray:
    """The log-odds of each asked choice, given the user's known choices: P(choice) is averaged over the posterior.

    Args:
      known, asked: differences chosen - rejected `[n, H]`.
    """
    rng = np.random.default_rng(0)
    draws = model.mean + model.deviation * rng.standard_normal((POSTERIOR_DRAWS, len(model.mean)))
    people = int(max(known_users.max(initial=0), asked_users.max())) + 1
    evidence = np.zeros((people, POSTERIOR_DRAWS))
    np.add.at(evidence, known_users, _log_sigmoid(known @ draws.T))
    weight = np.exp(evidence - evidence.max(axis=1, keepdims=True))
    weight /= weight.sum(axis=1, keepdims=True)
    probability = np.sum(weight[asked_users] * np.exp(_log_sigmoid(asked @ draws.T)), axis=1)
    probability = np.clip(probability, LEAST, 1 - LEAST)
    return np.log(probability) - np.log1p(-probability)


def _log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0.0, -x)
