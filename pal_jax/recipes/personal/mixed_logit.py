"""The mixed logit of choice modelling, and people as normal distributions of effects by it.

The mixed logit (McFadden & Train 2000) is estimated by the library xlogit. A person's coefficients are drawn from a
normal distribution, whose means and deviations are estimated. Given a person's own choices (Train 2009, chapter 11),
the distribution is a weighted set of draws about the person's mode: draws of everybody's distribution would leave one
of weight, where a person's choices say much.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from pal_jax.data.comparisons import PairBatch
from pal_jax.recipes.personal import logit
from pal_jax.recipes.personal.interface import Fitted, Unfit, choices_of
from pal_jax.recipes.personal.logit import ChoiceSets

DRAWS = 200  # of xlogit's simulated likelihood, for each person
POSTERIOR_DRAWS, ROUNDS = 2048, 2
STEPS, ENOUGH = 30, 0.01  # the most steps to the largest likelihood, and the rise of its logarithm that is too small
PARTS = 1.0, 0.3, 0.1, 0.03  # of a step that are tried
NARROW = 0.1  # the least deviation that the search begins with, of attributes in units of their standard deviation
FREEDOM = 8  # degrees of freedom of the draws, whose tails are above those of any person's distribution
LEAST_DEVIATION = 1e-6  # of a coefficient
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


def fit_xlogit(choices: ChoiceSets, seed: int) -> MixedLogit:
    """The model that xlogit estimates from a panel's choices, with `DRAWS` draws of everybody's distribution for each
    person; the choices of a person must stand together, as in `choice_sets`.

    Raises:
      Unfit: the estimate is not finite, as where attributes predict all choices without an error.
    """
    from xlogit import MixedLogit as Estimator

    (n, others, width), names = choices.x.shape, [f'x{i}' for i in range(choices.x.shape[2])]
    options = others + 1
    # xlogit has a row for each option: zeros stand for the chosen one, and minus the differences for the others.
    long = np.concatenate([np.zeros((n, 1, width)), -choices.x], axis=1).reshape(n * options, width)
    available = np.concatenate([np.ones((n, 1), bool), choices.exists], axis=1).ravel()
    model: Any = Estimator()
    try:
        with np.errstate(over='ignore', invalid='ignore', divide='ignore'):
            model.fit(
                X=long, y=np.tile([1] + [0] * others, n), varnames=names, alts=np.tile(np.arange(options), n),
                ids=np.repeat(np.arange(n), options), panels=np.repeat(choices.users, options), avail=available,
                randvars=dict.fromkeys(names, 'n'), n_draws=DRAWS, random_state=seed, verbose=0,
                skip_std_errs=True,
            )  # fmt: skip
    except np.linalg.LinAlgError as error:
        raise Unfit(f'{DIVERGED} ({error})') from None
    estimates = dict(zip(model.coeff_names, model.coeff_, strict=True))
    mean, deviation = (np.array([estimates[prefix + name] for name in names]) for prefix in ('', 'sd.'))
    if not np.isfinite([mean, deviation]).all():
        raise Unfit(DIVERGED)
    return MixedLogit(mean, np.abs(deviation), None, bool(model.convergence), float(model.loglikelihood))


def posterior_margins(model: MixedLogit, known: ChoiceSets, asked: np.ndarray, asked_users: np.ndarray) -> np.ndarray:
    """The log-odds of each asked pair, given the user's known choices: P(choice) is averaged over the posterior.

    Args:
      asked: differences chosen - rejected `[n, H]`, of these users `[n]`.
    """
    log_odds = np.zeros(len(asked))
    for user in np.unique(asked_users):
        draws, weight, *_ = posterior(model, known.at(known.users == user))
        mine = asked_users == user
        # Neither side's probability is a rest of the other's, so that swapped sides have the negative log-odds.
        m = np.asarray(asked[mine], float) @ draws.T
        yes, no = (np.maximum(np.exp(logit.log_chances(sign * m[..., None])) @ weight, LEAST) for sign in (1, -1))
        log_odds[mine] = np.log(yes) - np.log(no)
    return log_odds


def fit_all(choices: ChoiceSets, log: Callable[[str], None]) -> MixedLogit | None:
    """The model of all choices; None where it has no fit, of which `log` takes the reason."""
    try:
        return improved(fit_xlogit(choices, seed=0), choices)
    except Unfit as reason:
        log(f'without a mixed logit of all choices: {reason}')
        return None


class Derivatives(NamedTuple):
    """The log likelihood of a model's choices, its gradient `[2 H]` by means and deviations, and minus its second
    derivatives `[2 H, 2 H]`."""

    log_likelihood: float
    gradient: np.ndarray
    information: np.ndarray


def improved(model: MixedLogit, choices: ChoiceSets) -> MixedLogit:
    """The model of the largest likelihood near `model`, with standard errors where the curvature there tells any.

    xlogit draws from everybody's distribution, and few of these draws are near a person's coefficients. The draws here
    are those of `posterior`. A step is Newton's, or as much of it as climbs.
    """
    # Where an attribute follows from others, many estimates have the largest likelihood, and none has errors.
    if logit.rank(choices.x) < choices.x.shape[2]:
        return model
    # At a deviation of 0 the likelihood is level, so one that is to widen would not.
    model = MixedLogit(model.mean, np.maximum(model.deviation, NARROW))
    at, converged = derivatives(model, choices), False
    for _ in range(STEPS):
        values, vectors = np.linalg.eigh(at.information)
        # Where the likelihood is not concave, the step goes up as far as it would have gone down.
        step = vectors @ ((vectors.T @ at.gradient) / np.maximum(np.abs(values), LEAST))
        parts = PARTS if at.gradient @ step / 2.0 > ENOUGH else ()
        tried = ((there, derivatives(there, choices)) for part in parts for there in [_moved(model, part * step)])
        risen = next((pair for pair in tried if pair[1].log_likelihood > at.log_likelihood + ENOUGH), None)
        if risen is None:
            converged = True
            break
        model, at = risen
    model = model._replace(converged=converged, log_likelihood=at.log_likelihood)
    # Otherwise the curvature tells the errors of no combination of estimates.
    if np.linalg.eigvalsh(at.information).min() <= 0.0:
        return model
    covariance = np.linalg.inv(at.information)
    return model._replace(errors=np.sqrt(np.diag(covariance)).reshape(2, -1), covariance=covariance)


def _moved(model: MixedLogit, step: np.ndarray) -> MixedLogit:
    """The model after a step `[2 H]` of its means and deviations; the sign of a deviation is arbitrary."""
    of_means, of_deviations = np.split(step, 2)
    return MixedLogit(model.mean + of_means, np.maximum(np.abs(model.deviation + of_deviations), LEAST_DEVIATION))


def derivatives(model: MixedLogit, choices: ChoiceSets) -> Derivatives:
    """The log likelihood of choices by a model, and its derivatives: means over people's draws, each of which stays at
    its place in units of the deviations."""
    width = len(model.mean)
    likelihood, gradient, information = 0.0, np.zeros(2 * width), np.zeros((2 * width, 2 * width))
    for user in np.unique(choices.users):
        mine = choices.at(choices.users == user)
        draws, weight, _, log_likelihood = posterior(model, mine)
        # The derivative of a coefficient by its mean is 1, and by its deviation the draw.
        z = (draws - model.mean) / model.deviation
        slope = np.concatenate([np.ones_like(z), z], axis=1)
        # Differences of utility by mean and deviation are `[D, n, J, 2 H]`, and their expectations `[D, n, 2 H]`.
        x = np.concatenate([mine.x, mine.x], axis=2) * slope[:, None, None]
        others = logit.other_chances(np.tensordot(draws, mine.x, (1, 2)), mine.exists)
        expectation = np.einsum('dnj,dnjk->dnk', others, x)
        score = expectation.sum(axis=1)
        of_person = weight @ score
        likelihood += log_likelihood
        gradient += of_person
        # The mean of minus the second derivatives of a draw, less the covariance of the first ones (Louis 1982).
        information += _squares(x, weight[:, None, None] * others)
        information -= _squares(expectation, np.broadcast_to(weight[:, None], expectation.shape[:2]))
        information -= _squares(score, weight) - np.outer(of_person, of_person)
    return Derivatives(likelihood, gradient, information)


def _squares(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The sum `[K, K]` of the weighted products of vectors `[..., K]` with themselves."""
    rows = (x * np.sqrt(weight)[..., None]).reshape(-1, x.shape[-1])
    return rows.T @ rows


class Posterior(NamedTuple):
    """Draws `[D, H]` of a person's coefficients, their weights `[D]`, which sum to 1, and the covariance `[H, H]`.

    `log_likelihood` is that of the person's choices by the model.
    """

    draws: np.ndarray
    weight: np.ndarray
    covariance: np.ndarray
    log_likelihood: float


def posterior(model: MixedLogit, known: ChoiceSets) -> Posterior:
    """A person's coefficients given the person's choices.

    They are drawn from Student's t, and weigh by the ratio of the densities (importance sampling; Geweke 1989).
    """
    # In units of the prior's deviations, from the prior's mean.
    deviation, width = np.maximum(model.deviation, LEAST_DEVIATION), len(model.mean)
    x, at_mean, t = known.x * deviation, known.x @ model.mean, student_draws(width)
    mode, hessian = logit.fit(known.x[None], np.ones((1, len(x))), deviation**-2.0, model.mean, known.exists[None])

    def drawn(centre: np.ndarray, covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        root = np.linalg.cholesky(covariance)
        draws = centre + t @ root.T
        margins = at_mean + np.tensordot(draws, x, (1, 2))
        density = np.sum(logit.log_chances(margins, known.exists), axis=1) - np.sum(draws**2, axis=1) / 2
        ratio = density + (FREEDOM + width) / 2 * np.log1p(np.sum(t**2, axis=1) / FREEDOM)
        weight = np.exp(ratio - ratio.max())
        # The mean ratio of the densities, whose constants are added, is the likelihood.
        likelihood = ratio.max() + np.log(weight.mean()) + np.log(np.diag(root)).sum() + constant
        return draws, weight / weight.sum(), float(likelihood)

    # That of Student's t by that of the normal distribution, with their determinants of 1.
    constant = (special.gammaln(FREEDOM / 2) - special.gammaln((FREEDOM + width) / 2)) + width / 2 * np.log(FREEDOM / 2)
    # The first draws are about the mode, with the curvature there.
    covariance = np.linalg.inv(hessian[0] * deviation[:, None] * deviation)
    draws, weight, likelihood = drawn((mode[0] - model.mean) / deviation, covariance)
    # A person's distribution leans to the side where choices are certain, so the draws move to the mean and covariance
    # of the first ones (Cappé et al. 2004).
    for last in range(ROUNDS + 1):
        centre = weight @ draws
        spread = ((draws - centre) * weight[:, None]).T @ (draws - centre)
        # As much of the covariance before as draws of little weight leave unknown.
        unknown = min(width * float(np.sum(weight**2)), 1.0)
        covariance = (1 - unknown) * spread + unknown * covariance
        if last < ROUNDS:
            draws, weight, likelihood = drawn(centre, covariance)
    covariance = covariance * deviation[:, None] * deviation
    return Posterior(model.mean + deviation * draws, weight, covariance, likelihood)


@functools.lru_cache(maxsize=8)
def student_draws(width: int) -> np.ndarray:
    """Draws `[POSTERIOR_DRAWS, width]` of Student's t with `FREEDOM` degrees of freedom, by Sobol's sequence.

    They are the same for everybody, and their moments are far nearer to the distribution's than those of random ones.
    """
    # An error in the data is told before scipy.stats is imported, which takes as long as half of jax.
    from scipy.stats import qmc

    points = qmc.Sobol(width + 1, rng=0).random(POSTERIOR_DRAWS)
    return special.ndtri(points[:, 1:]) / np.sqrt(special.chdtri(FREEDOM, points[:, :1]) / FREEDOM)


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
