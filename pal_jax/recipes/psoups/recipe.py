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
`recipes/reward.py` and `recipes/sft.py` on files that the annotations make. `rl.py` is PPO; each other stage has a file
of its name.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pal_jax.recipes import reward, sft
from pal_jax.recipes.psoups import annotate, evaluate, merge, rl, rollout
from pal_jax.recipes.psoups.check import check, check_prompts, check_shared
from pal_jax.recipes.psoups.preferences import BEST, GENERAL, JOINT
from pal_jax.recipes.psoups.settings import PromptedKeys, Settings
from pal_jax.run.planned import PlannedRun
from pal_jax.run.settings import Run, filled
from pal_jax.run.stages import Stage, chosen


def stages(settings: Settings, workdir: Path) -> list[Stage]:
    """The stages that `stage` of the settings names, each with its own settings and folder, in their order.

    Raises:
      ValueError: there is no such stage, a value is wrong, or a file that a stage would write exists.
    """
    poles = [pole.id for pole in check(settings)]

    def make(folder: str, kind: type[Run], **values: object) -> Stage:
        # Steps count those of PPO alone; other stages have theirs in their sections, or none.
        shared = {'part_of': 'psoups', 'total_steps': settings.total_steps if kind is rl.Settings else 0}
        return Stage(workdir / folder, filled(kind, settings, **shared | values))

    def policy(folder: str, preference: str) -> Stage:
        return make(folder, rl.Settings, recipe='psoups.rl', preference=preference)

    listed = [
        make('rollout', rollout.Settings, recipe='psoups.rollout'),
        make('annotate', annotate.Settings, recipe='psoups.annotate'),
        *(make(f'reward-{name}', reward.Settings, **reward_values(settings, name, workdir))
          for name in (GENERAL, *poles, JOINT)),
        policy('rlhf', GENERAL),
        make('multitask', sft.Settings, **multitask_values(settings, workdir)),
        policy('morl', JOINT),
        *(policy(f'policy-{pole}', pole) for pole in poles),
        make('merge', merge.Settings, recipe='psoups.merge'),
        make('evaluate', evaluate.Settings, recipe='psoups.evaluate'),
    ]  # fmt: skip
    picked = chosen(listed, settings.stage)
    if any(isinstance(stage.settings, PromptedKeys) for stage in picked):
        check_prompts(settings)
    check_shared([stage.folder.name for stage in picked], workdir)
    return picked


def reward_values(settings: Settings, name: str, workdir: Path) -> dict[str, object]:
    """The keys of a reward model: those of its section, and the pairs of the preference of this name."""
    section, pairs = settings.reward, workdir / annotate.PAIRS / name
    replies = section.data.replies or settings.rollout.answers
    data = dataclasses.replace(section.data, train=f'{pairs}.jsonl', test=f'{pairs}-test.jsonl', replies=replies)
    return vars(section) | {
        'recipe': 'reward',
        'policy': dataclasses.replace(section.policy, source=section.policy.source or settings.policy.source),
        'data': data,
        'export': settings.export and section.data.pooling == 'last',  # transformers has no other
    }


def multitask_values(settings: Settings, workdir: Path) -> dict[str, object]:
    """The keys of multitask learning: those of its section, and the best answers of the annotations."""
    section, best = settings.multitask, workdir / annotate.PAIRS / BEST
    data = dataclasses.replace(section.data, train=f'{best}.jsonl', test=f'{best}-test.jsonl')
    return vars(section) | {'recipe': 'sft', 'data': data}


def planned(settings: Settings, prompt: int) -> PlannedRun:
    """The part of a run that is planned, see `run/planned.py`: the stage that trains the general policy."""
    return rl.planned(filled(rl.Settings, settings, preference=GENERAL), prompt)
