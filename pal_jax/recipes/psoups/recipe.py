"""Personalized Soups (arXiv 2310.11564): a policy for each pole of a preference, merged for people with several wishes.

    rollout    answers of the base policy under every preference, several to a prompt
    annotate   a judge says which of two answers to a prompt suits the preference better
    reward     a reward model for each preference, one for all of them, and one for no preference in particular
    rlhf, morl, policy      PPO: on the general reward; on the mean over the preferences of a prompt by the joint reward
               model; on one preference, which makes a policy for each
    multitask  supervised: the best answers, under their preferences
    merge      the weighted mean of three policies' adapters
    evaluate   win rates of all of these against each other

Each stage is a run in a folder beside the others'. Reward models and multitask learning are those of
`recipes/scorer/` and `recipes/sft.py` on files that the annotations make. `rl.py` is PPO; each other stage has a file
of its name.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pal_jax.recipes import sft
from pal_jax.recipes.psoups import annotate, evaluate, merge, rl, rollout
from pal_jax.recipes.psoups.check import check, check_prompts, check_shared
from pal_jax.recipes.psoups.preferences import BEST, GENERAL, JOINT
from pal_jax.recipes.psoups.settings import PromptedKeys, RolloutSettings, Settings
from pal_jax.recipes.scorer import reward
from pal_jax.run import language
from pal_jax.run.planned import PlannedRun
from pal_jax.run.settings import Run, filled
from pal_jax.run.stages import Stage, chosen, make_stage, section_values


def stages(settings: Settings, workdir: Path) -> list[Stage]:
    """The stages that `stage` of the settings names, each with its own settings and folder, in their order.

    Raises:
      ValueError: there is no such stage, a value is wrong, or a file that a stage would write exists.
    """
    # Everything that later stages would fail at is checked before the first one.
    poles, pairs = [pole.id for pole in check(settings)], workdir / annotate.PAIRS

    def make(folder: str, kind: type[Run], **values: object) -> Stage:
        return make_stage(settings, workdir / folder, kind, **values)

    def policy(folder: str, preference: str) -> Stage:
        steps, ahead = settings.total_steps, filled(language.RolloutSettings, settings.rollout)
        return make(folder, rl.Settings, recipe='psoups.rl', preference=preference, total_steps=steps, rollout=ahead)

    listed = [
        make('rollout', rollout.Settings, recipe='psoups.rollout', rollout=filled(RolloutSettings, settings.rollout)),
        make('annotate', annotate.Settings, recipe='psoups.annotate'),
        *(
            make(f'reward-{name}', reward.Settings, recipe='scorer.reward', **reward_values(settings, pairs / name))
            for name in (GENERAL, *poles, JOINT)
        ),
        policy('rlhf', GENERAL),
        make('multitask', sft.Settings, recipe='sft', **section_values(settings.multitask, pairs / BEST)),
        policy('morl', JOINT),
        *(policy(f'policy-{pole}', pole) for pole in poles),
        make('merge', merge.Settings, recipe='psoups.merge'),
        make('evaluate', evaluate.Settings, recipe='psoups.evaluate'),
    ]
    picked = chosen(listed, settings.stage)
    # Files of prompts are read only where a picked stage reads them.
    if any(isinstance(stage.settings, PromptedKeys) for stage in picked):
        check_prompts(settings)
    check_shared([stage.folder.name for stage in picked], workdir)
    return picked


def reward_values(settings: Settings, rows: Path) -> dict[str, Any]:
    """The keys of a reward model that learns from the pairs of these files."""
    values = section_values(settings.reward, rows, settings.policy.source)
    replies = settings.reward.data.replies or settings.rollout.answers
    return values | {
        'data': dataclasses.replace(values['data'], replies=replies),
        # The library transformers has no other pooling.
        'export': settings.export and settings.reward.data.pooling == 'last',
    }


def planned(settings: Settings, prompt: int) -> PlannedRun:
    """The part of a run that is planned, see `run/planned.py`: the stage that trains the general policy."""
    return rl.planned(filled(rl.Settings, settings, preference=GENERAL), prompt)
