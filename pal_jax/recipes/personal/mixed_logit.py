"""The mixed logit of choice modelling, and people as normal distributions of effects by it.

The mixed logit (McFadden & Train 2000) is estimated by the library xlogit. A person's coefficients are drawn from a
normal distribution, whose means and deviations are estimated. Given a person's own choices (Train 2009, chapter 11),
the distribution is a weighted set of draws about the person's mode: draws of everybody's distribution would leave one
of weight, where a person's choices say much.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pal_jax.data.comparisons import PairBatch
from pal_jax.recipes.personal import logit
from pal_jax.recipes.personal.interface import Fitted, Unfit, choices_of
from pal_jax.recipes.personal.logit import ChoiceSets

DRAWS = 200  # draws of the simulated likelihood
POSTERIOR_DRAWS, ROUNDS = 2000, 2
FREEDOM = 8  # degrees of freedom of the draws, whose tails are above those of any person's distribution
NARROW = 1e-6  # the least deviation of a coefficient
LEAST = 1e-12  # probability of a choice, whose log-odds stay finite
DIVERGED = 'the mixed logit diverges on these choices, which attributes may predict without an error'


class MixedLogit(NamedTuple):
    """The mean and the standard deviation of each attribute's coefficient, and standard errors of both `[2, H]`.

    `converged` is False where the search for the largest likelihood ended early, and `log_likelihood` is what it found.
    `covariance` `[2 H, 2 H]` is that of the estimates, the means before the deviations.
    """

    mean: np.ndarray
    deviation: np.ndarray
    errors: np.ndarray | None = None
    converged: bool = True
    log_likelihood: float = float('nan')
    covariance: np.ndarray | None = None


def require_xlogit() -> None:
    """Raises ValueError if xlogit is not installed."""
    if importlib.util.find_spec('xlogit') is None:
        raise ValueError("baselines has 'mixed_logit', but xlogit is missing: pip install 'pal_jax[choice]'")


def fit_xlogit(choices: ChoiceSets, seed: int, *, errors: bool = False, draws: int = DRAWS) -> MixedLogit:
    """The model estimated from a panel's choices; those of a person must stand together, as in `choice_sets`.

    Standard errors are by the curvature of the log likelihood. There are none where the curvature has no inverse.

    Raises:
      Unfit: the estimate is not finite, as where attributes predict all choices without an error.
    """
    from xlogit import MixedLogit as Estimator

    # Where an attribute follows from others, the curvature of the likelihood tells no errors.
    errors = errors and logit.rank(choices.x) == choices.x.shape[2]
    (n, others, width), names = choices.x.shape, [f'x{i}' for i in range(choices.x.shape[2])]
    options = others + 1
    # xlogit has a row for each option: zeros stand for the chosen one, and minus the differences for the others.
    long = np.concatenate([np.zeros((n, 1, width)), -choices.x], axis=1).reshape(n * options, width)
    available = np.concatenate([np.ones((n, 1), bool), choices.exists], axis=1).ravel()
    model: Any = Estimator()
    try:
        with np.errstate(over='ignore', invalid='ignore'):
            model.fit(
                X=long, y=np.tile([1] + [0] * others, n), varnames=names, alts=np.tile(np.arange(options), n),
                ids=np.repeat(np.arange(n), options), panels=np.repeat(choices.users, options), avail=available,
                randvars=dict.fromkeys(names, 'n'), n_draws=draws, random_state=seed, verbose=0,
                skip_std_errs=not errors, num_hess=errors,
            )  # fmt: skip
    except np.linalg.LinAlgError as error:
        if errors:
            # An attribute that never varies has no errors, and all others have their estimates.
            return fit_xlogit(choices, seed, draws=draws)
        raise Unfit(f'{DIVERGED} ({error})') from None
    estimates = dict(zip(model.coeff_names, model.coeff_, strict=True))
    mean, deviation = (np.array([estimates[prefix + name] for name in names]) for prefix in ('', 'sd.'))
    if not np.isfinite([mean, deviation]).all():
        raise Unfit(DIVERGED)
    fit = MixedLogit(mean, np.abs(deviation), None, bool(model.convergence), float(model.loglikelihood))
    if not errors:
        return fit
    order = [list(model.coeff_names).index(prefix + name) for prefix in ('', 'sd.') for name in names]
    # The sign of a deviation is arbitrary, and with it those of its covariances.
    signs = np.sign(np.concatenate([np.ones(width), deviation]))
    covariance = model.covariance[np.ix_(order, order)] * signs[:, None] * signs
    with np.errstate(invalid='ignore'):
        both = np.sqrt(np.diag(covariance)).reshape(2, width)
    # Otherwise the curvature tells the errors of no combination of estimates.
    is_definite = np.isfinite(covariance).all() and np.linalg.eigvalsh(covariance).min() > 0.0
    return fit._replace(errors=both, covariance=covariance if is_definite else None)


def posterior_margins(model: MixedLogit, known: ChoiceSets, asked: np.ndarray, asked_users: np.ndarray) -> np.ndarray:
    """The log-odds of each asked pair, given the user's known choices: P(choice) is averaged over the posterior.

    Args:
      asked: differences chosen - rejected `[n, H]`, of these users `[n]`.
    """
    log_odds = np.zeros(len(asked))
    for user in np.unique(asked_users):
        draws, weight, _ = posterior(model, known.at(known.users == user))
        mine = asked_users == user
        # Neither side's probability is a rest of the other's, so that swapped sides have the negative log-odds.
        m = np.asarray(asked[mine], float) @ draws.T
        yes, no = (np.maximum(np.exp(logit.log_chances(sign * m[..., None])) @ weight, LEAST) for sign in (1, -1))
        log_odds[mine] = np.log(yes) - np.log(no)
    return log_odds


def fit_all(choices: ChoiceSets, draws: int, log: Callable[[str], None]) -> MixedLogit | None:
    """The model of all choices, by so many draws; None where it has no fit, of which `log` takes the reason."""
    try:
        return fit_xlogit(choices, seed=0, errors=True, draws=draws)
    except Unfit as reason:
        log(f'without a mixed logit of all choices: {reason}')
        return None


class Posterior(NamedTuple):
    """Draws `[D, H]` of a person's coefficients, their weights `[D]`, which sum to 1, and the covariance `[H, H]`."""

    draws: np.ndarray
    weight: np.ndarray
    covariance: np.ndarray


def posterior(model: MixedLogit, known: ChoiceSets) -> Posterior:
    """A person's coefficients given the person's choices.

    They are drawn from Student's t, and weigh by the ratio of the densities (importance sampling; Geweke 1989).
    """
    # In units of the prior's deviations, from the prior's mean.
    deviation, width = np.maximum(model.deviation, NARROW), len(model.mean)
    x, at_mean, rng = known.x * deviation, known.x @ model.mean, np.random.default_rng(0)
    mode, hessian = logit.fit(known.x[None], np.ones((1, len(x))), deviation**-2.0, model.mean, known.exists[None])

    def drawn(centre: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        t = rng.standard_normal((POSTERIOR_DRAWS, width))
        t /= np.sqrt(rng.chisquare(FREEDOM, (POSTERIOR_DRAWS, 1)) / FREEDOM)
        draws = centre + t @ np.linalg.cholesky(covariance).T
        margins = at_mean + np.tensordot(draws, x, (1, 2))
        density = np.sum(logit.log_chances(margins, known.exists), axis=1) - np.sum(draws**2, axis=1) / 2
        ratio = density + (FREEDOM + width) / 2 * np.log1p(np.sum(t**2, axis=1) / FREEDOM)
        weight = np.exp(ratio - ratio.max())
        return draws, weight / weight.sum()

    # The first draws are about the mode, with the curvature there.
    covariance = np.linalg.inv(hessian[0] * deviation[:, None] * deviation)
    draws, weight = drawn((mode[0] - model.mean) / deviation, covariance)
    # A person's distribution leans to the side where choices are certain, so the draws move to the mean and covariance
    # of the first ones (Cappé et al. 2004).
    for last in range(ROUNDS + 1):
        centre = weight @ draws
        spread = ((draws - centre) * weight[:, None]).T @ (draws - centre)
        # As much of the covariance before as draws of little weight leave unknown.
        unknown = min(width * float(np.sum(weight**2)), 1.0)
        covariance = (1 - unknown) * spread + unknown * covariance
        if last < ROUNDS:
            draws, weight = drawn(centre, covariance)
    return Posterior(model.mean + deviation * draws, weight, covariance * deviation[:, None] * deviation)


# --- as a method of the bench ----------------------------------------------------------------------------------------


class LogitPeople(NamedTuple):
    """A mixed logit and the choices of the people it was fitted on."""

    model: MixedLogit
    seen: PairBatch


def fit(train: PairBatch, seed: int) -> Fitted:
    """The mixed logit of xlogit, a normal distribution of coefficients."""
    choices = choices_of(train)
    return Fitted(LogitPeople(fit_xlogit(choices, seed), train), 2 * choices.x.shape[2], 0)


def margins(fitted: Fitted, known: PairBatch | None, asked: PairBatch) -> np.ndarray:
    """The log-odds given a person's known choices; those of seen people are their training choices."""
    model, seen = fitted.params
    # Padding has differences, too, and its margins are read by nobody.
    return posterior_margins(
        model, choices_of(seen if known is None else known), asked.difference, np.asarray(asked.users)
    )
