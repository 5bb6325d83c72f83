"""Reward functions of a user's own file, from the section `reward`, and rewards that are standardised apart."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

from pal_jax.judges.functions import RewardFunction, open_functions
from pal_jax.learners.ppo import Estimate
from pal_jax.objectives.advantages import GDPO, Discounts, Estimates, EstimatorInputs
from pal_jax.recipes.rlpa import dialogue as env
from pal_jax.recipes.rlpa.own import EXTRA, part_weights, with_functions
from pal_jax.recipes.rlpa.settings import Dialogues
from pal_jax.types import RewardFn

EACH = 'each'  # of reward.normalise


def with_own(settings: Dialogues, system: str) -> Callable[[RewardFn], RewardFn]:
    """A wrapper that adds `reward.function` to a reward. Raises ValueError where a function cannot be had."""
    return functools.partial(
        with_functions,
        functions=_functions(settings),
        messages=functools.partial(env.messages, system=system),
        weights=_weights(settings),
        apart=settings.reward.normalise == EACH,
    )


def make_estimate(settings: Dialogues) -> Estimate | None:
    """The estimator of rewards that are standardised apart (GDPO); None: that of `ppo.estimator`.

    Raises:
      ValueError: another setting contradicts it.
    """
    rewards, ppo = settings.reward, settings.ppo
    if rewards.normalise != EACH:
        return None
    if ppo.estimator != 'group_norm':
        raise ValueError(
            f"reward.normalise='each' standardises rewards within a prompt, ppo.estimator={ppo.estimator!r} does not; "
            "set ppo.estimator='group_norm'"
        )
    if rewards.profile != 'f1':
        raise ValueError(
            f"reward.normalise='each' standardises the F1, reward.profile={rewards.profile!r} pays something else; set "
            "reward.profile='f1'"
        )
    if ppo.std_floor:
        raise ValueError(f"ppo.std_floor={ppo.std_floor} has no say with reward.normalise='each'; set reward.floor")
    if settings.dialogue.turn_gamma:
        raise ValueError("reward.normalise='each' knows no later turns; set dialogue.turn_gamma=0, or normalise='sum'")
    if rewards.floor < 0:
        raise ValueError(f'reward.floor={rewards.floor} must be at least 0')
    weights = part_weights(_functions(settings), _weights(settings))
    return GDPOEstimator(GDPO(weights, rewards.floor), Discounts(ppo.gamma, ppo.lam, ppo.reward_clip))


@dataclasses.dataclass(frozen=True)
class GDPOEstimator:
    """An estimator with its constants, in the form that the learner takes; equal ones share compiled programs."""

    apart: GDPO
    constants: Discounts

    def __call__(self, rollout: EstimatorInputs) -> Estimates:
        return self.apart.estimate(rollout, self.constants)


def _functions(settings: Dialogues) -> tuple[RewardFunction, ...]:
    return open_functions('reward.function', settings.reward.function, settings.reward.weights, EXTRA)


def _weights(settings: Dialogues) -> dict[str, float]:
    rewards = settings.reward
    return {'profile': rewards.profile_weight, 'response': rewards.response_weight, 'format': 1.0}
