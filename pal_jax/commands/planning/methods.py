"""The part of a run that is planned: the learner that its config describes, and the sizes of a step.

Of a run of several stages it is the one that trains the policy; the others are runs of recipes that have configs of
their own (sft, reward, cost).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from jax.sharding import Mesh

from pal_jax.commands.planning.programs import Learner, Work
from pal_jax.data.readers.safety import CATEGORIES
from pal_jax.learners.labelled import Labels
from pal_jax.models.config import ModelConfig
from pal_jax.recipes import dpo, plus, reward, sft, spiral
from pal_jax.recipes.cost import recipe as cost
from pal_jax.recipes.moderation import recipe as moderation
from pal_jax.recipes.psoups import settings as psoups
from pal_jax.recipes.rlpa import recipe as rlpa
from pal_jax.recipes.safe_rlhf import settings as safe_rlhf
from pal_jax.recipes.safe_rlhf.pipeline import make_policy_learner
from pal_jax.recipes.spiral.recipe import make_learner as make_player
from pal_jax.run import models
from pal_jax.run.language import DecodeSettings, FromRows, ModelSettings, Reinforced
from pal_jax.run.recipe import Context
from pal_jax.run.scorers import make_scorer
from pal_jax.run.settings import Run


class Method(NamedTuple):
    """The part of a run that is planned.

    policy: the model that is trained. make_learner: its learner on a mesh, with so many rows in memory at once.
    work: the sizes of a step. micro_rows: those that the config names, `rows` the key that does.
    decode: the decoder that samples; None where the method does not sample.
    """

    policy: ModelSettings
    make_learner: Callable[[ModelConfig, Mesh, int], Learner]
    work: Work
    micro_rows: int
    rows: str
    decode: DecodeSettings | None = None


def method_of(settings: Run, prompt: int) -> Method:
    """The part of a run to plan, with prompts of `prompt` tokens where the method samples.

    Raises:
      ValueError: the method trains no language model, or one that is not planned.
    """
    match settings:
        case Reinforced():
            return sampling(settings, *of_samples(settings), prompt)
        case sft.Settings():
            return reading(settings, sft.make_actor, n=1)
        case dpo.Settings():
            return reading(settings, dpo.make_learner, n=2)
        case reward.Settings():
            return reading(settings, scoring(settings.reward), n=2)
        case cost.Settings():
            return reading(settings, scoring(settings.cost), n=2)
        case moderation.Settings():
            return reading(settings, scoring(Labels(), len(CATEGORIES)), n=2)
    raise unplanned(settings)


def of_samples(settings: Reinforced) -> tuple[Callable[..., Learner], int, int]:
    """The function that makes the learner of a policy, the prompts of a step and the samples of each."""
    match settings:
        case rlpa.Settings():
            dialogue = settings.dialogue
            return rlpa.make_learner, dialogue.rollout_batch_size, dialogue.n_samples_per_prompt
        case safe_rlhf.RL():
            return make_policy_learner, settings.rl.rollout_batch_size, settings.rl.n_samples_per_prompt
        case psoups.RL():
            n = settings.rl.n_samples_per_prompt
            return functools.partial(models.make_learner, n=n), settings.rl.rollout_batch_size, n
        case plus.Settings():
            n = settings.summary.n_samples
            return functools.partial(models.make_learner, n=n), settings.summary.people, n
        case spiral.Settings():
            return make_player, settings.play.max_turns, 1
    raise unplanned(settings)


def unplanned(settings: Run) -> ValueError:
    """The error of a method that is not planned."""
    return ValueError(
        f'recipe={settings.recipe!r} is not planned: it trains no language model (its arrays fit any device), or a '
        'table of users beside one; plan a config of rlpa, psoups, plus, safe_rlhf, spiral, sft, dpo, reward, cost or '
        'moderation'
    )


def sampling(settings: Any, make: Callable[..., Learner], prompts: int, n: int, prompt: int) -> Method:
    """A method that improves a policy by PPO on `n` samples of each of `prompts` prompts."""
    ppo, decode = settings.ppo, settings.decode
    work = Work(
        prompts, n, prompt, settings.sampling.max_tokens, ppo.minibatches, ppo.epochs, decode.slots, decode.shares
    )

    def make_learner(cfg: ModelConfig, mesh: Mesh, micro_rows: int) -> Learner:
        changed = dataclasses.replace(settings, ppo=dataclasses.replace(ppo, micro_rows=micro_rows))
        return make(changed, cfg, Context(mesh))

    return Method(settings.policy, make_learner, work, ppo.micro_rows, 'ppo.micro_rows', decode)


def reading(settings: Any, make: Callable[..., Learner], *, n: int) -> Method:
    """A method that learns from rows of a file: every row is as long as it may be, and has `n` answers."""
    rows = settings.data
    length = max(rows.max_length, rows.row_tokens)
    shared = length // rows.max_length  # rows of the file in a row of the batch
    work = Work(-(-rows.batch_size // shared), n, 0, length // n, 1, 1, slots=0)

    def make_learner(cfg: ModelConfig, mesh: Mesh, micro_rows: int) -> Learner:
        changed = dataclasses.replace(settings, data=dataclasses.replace(rows, micro_rows=micro_rows))
        return make(changed, cfg, Context(mesh))

    return Method(settings.policy, make_learner, work, rows.micro_rows, 'data.micro_rows')


def scoring(loss: Any, outputs: int = 1) -> Callable[[FromRows, ModelConfig, Context], Learner]:
    """A function that makes a scorer with this loss."""
    return lambda settings, cfg, ctx: make_scorer(settings, cfg, ctx, loss, outputs=outputs)
