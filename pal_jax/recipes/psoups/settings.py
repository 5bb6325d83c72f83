"""The settings of Personalized Soups: its sections, the keys that several stages read, and those of the whole method.

The settings of a stage stand in its module. Reward models and multitask learning are runs of `recipes/scorer/` and
`recipes/sft.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from pal_jax.learners.scorer import BradleyTerry
from pal_jax.recipes.scorer.reward import PairSettings
from pal_jax.run import language
from pal_jax.run.language import ANSWERS, DecodeSettings, EndpointSettings, ModelSettings, RolloutRun, RowSettings
from pal_jax.run.optim import Optimizer
from pal_jax.run.settings import Run, StageSettings
from pal_jax.types import Sampling

# --- sections -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class InstructionSettings:
    """The prompts to learn from and to test on."""

    train: str = 'embedded'  # or a JSONL file with `instruction` and, optionally, `input`
    test: str = 'embedded'  # likewise
    train_count: int = 0  # 0: all
    test_count: int = 50  # 0: all
    max_length: int = 512  # tokens with the texts of preferences; longer prompts are left out


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """The answers that are compared."""

    prompts: int = 48  # prompts drawn for each preference; 0: all
    answers: int = 4  # answers to each prompt; all pairs of them are compared
    batch_size: int = 32  # prompts of a step


@dataclasses.dataclass(frozen=True)
class AllRolloutSettings(RolloutSettings, language.RolloutSettings):
    """The answers that are compared, and the time between the samples of a step of PPO and its update."""


@dataclasses.dataclass(frozen=True)
class AnnotationSettings:
    """The judge that compares answers."""

    # The annotator: rule, endpoint:<name>, local:<source>, or a YAML file (pal_jax/recipes/psoups/annotators.py).
    annotator: str = 'rule'
    second: str = ''  # another annotator, to see how far the two agree
    batch_size: int = 100  # rows of a step
    max_failed: float = 0.1  # share of rows without a verdict at which the stage stops
    test_share: float = 0.12  # the share of prompts that test reward models


@dataclasses.dataclass(frozen=True)
class RLHFSettings:
    """The prompts of a step of PPO, and the reward."""

    rollout_batch_size: int = 6  # prompts a step
    n_samples_per_prompt: int = 4  # answers to each prompt
    # Scores are scaled by the mean and standard deviation of all scores so far; group_norm needs none.
    scale_scores: bool = False
    test_count: int = 8  # prompts of an evaluation
    # pal:<workdir> in place of the reward models of stage=reward (docs/methods/pal.md).
    reward: str = ''
    # With `reward`: a user of that run, a file of a mixture, or '': the population.
    person: str = ''


@dataclasses.dataclass(frozen=True)
class MergeSettings:
    """The weights by which policies are merged."""

    weights: tuple[float, ...] = ()  # weights of the dimensions in their order, with sum 1; (): equal weights


@dataclasses.dataclass(frozen=True)
class WinRateSettings:
    """The comparison of all systems."""

    # The judge: as annotate.annotator, or endpoint:evaluator; language models see pairs in both orders.
    judge: str = 'rule'
    # The share of comparisons without a verdict above which there is no result; below it they are ties.
    max_failed: float = 0.1
    draws: int = 2  # answers to each prompt where the policy of one pole is compared with the base
    # Two poles whose policies are merged by weights from 0 to 1, as P2A,P2B; '': two of each dimension.
    front: str = ''
    front_weights: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)  # weights of the second pole
    front_prompts: int = 16  # the number of prompts that each of these soups answers


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoleRewardSettings:
    """The keys of `reward.Settings` that reward models have for themselves."""

    total_steps: int  # steps of each reward model; 0: passes by `data.epochs`
    policy: ModelSettings = ModelSettings()
    optimizer: Optimizer
    data: PairSettings
    reward: BradleyTerry = BradleyTerry()


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultitaskSettings:
    """The keys of `sft.Settings` that multitask learning has for itself."""

    total_steps: int  # its steps; 0: passes by `data.epochs`
    optimizer: Optimizer
    data: RowSettings
    max_z_coef: float = 0.0  # the weight of the squares of the largest logits


ENDPOINTS = {
    'judge': EndpointSettings(temperature=1.0, max_tokens=250),
    'evaluator': EndpointSettings(temperature=0.1, max_tokens=512),
}

# --- keys of several stages, and of all ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceKeys(Run):
    """The keys of a stage that knows the preferences."""

    preferences: str = 'embedded'  # or a YAML or JSON file (pal_jax/recipes/psoups/preferences.py)
    poles: str = ''  # a list such as P1A,P1B; '': the first two of each dimension; all


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptedKeys(PreferenceKeys):
    """The keys of a stage in which policies answer prompts."""

    prompts: InstructionSettings = InstructionSettings()
    policy: ModelSettings = ModelSettings()
    sampling: Sampling
    decode: DecodeSettings = DecodeSettings()


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotatorKeys(PreferenceKeys):
    """The keys of a stage in which annotators compare answers."""

    endpoints: Mapping[str, EndpointSettings] = dataclasses.field(default_factory=lambda: ENDPOINTS)
    answers: str = ANSWERS  # '': endpoints are asked again


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(PromptedKeys, AnnotatorKeys, RolloutRun):
    """The keys of all stages; `total_steps` counts the steps of each PPO."""

    stage: str = 'all'  # all, a stage such as rollout or policy-P2A, or all of a kind, as policy
    rollout: AllRolloutSettings = AllRolloutSettings()
    annotate: AnnotationSettings = AnnotationSettings()
    rl: RLHFSettings = RLHFSettings()
    eval: StageSettings = StageSettings(base=False)  # stage evaluate measures the results of all stages
    merge: MergeSettings = MergeSettings()
    evaluate: WinRateSettings = WinRateSettings()
    reward: PoleRewardSettings
    multitask: MultitaskSettings
