"""The settings of Safe RLHF: its sections, the keys that several stages read, and those of the whole method.

The settings of a stage stand in its module. The start policy, reward models and cost models are runs of
`recipes/sft.py` and `recipes/scorer/`.
"""

from __future__ import annotations

import dataclasses
import math

from pal_jax.data.safety import SafetyRows
from pal_jax.learners.scorer import BradleyTerry, CostLoss
from pal_jax.objectives.constraints import FixedPenalty, Handlers
from pal_jax.objectives.handler import Handler
from pal_jax.recipes.scorer.reward import PairSettings
from pal_jax.run.language import DecodeSettings, ModelSettings, RolloutRun, RowSettings
from pal_jax.run.optim import Optimizer
from pal_jax.run.settings import Run, StageSettings
from pal_jax.types import Sampling

OTHERS = 'others'  # the name, in tables, of the prompts of groups without a limit of their own

# --- sections -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class QuestionSettings:
    """The prompts of training and of tests."""

    train: str = 'embedded'  # or a source of records with `prompt` and, if limits are by group, `group`
    test: str = ''  # likewise, and not learnt; '': some of train, or other embedded ones
    train_count: int = 1200  # 0: all of a source
    test_count: int = 64  # 0: all
    max_length: int = 512  # tokens; longer prompts are left out

    @property
    def tests_embedded(self) -> bool:
        """True where the prompts of tests are of the embedded corpus, which a rule can judge."""
        return (self.test or self.train) == 'embedded'


@dataclasses.dataclass(frozen=True)
class CollectSettings:
    """The judged answers that reward and cost models learn from."""

    records: str = 'embedded'  # of the first round; or a source of records of PKU-SafeRLHF
    dilemmas: int = 600  # of the embedded corpus
    test_share: float = 0.12  # of the prompts, kept to test the models on
    prompts: int = 96  # of a later round, which the policy of the round before answers
    answers: int = 3  # to each of them, of which all pairs are judged
    batch_size: int = 32  # prompts of a step of a later round
    # The judge of what is unsafe in later rounds: rule, or orbax:<workdir> of --config=moderation.
    safety: str = 'rule'
    # The judge of what helps: rule, or orbax:<workdir> of --config=reward.
    helpfulness: str = 'rule'


@dataclasses.dataclass(frozen=True)
class RLSettings:
    """The prompts of a step of PPO, and what pays."""

    rollout_batch_size: int = 8  # prompts a step
    n_samples_per_prompt: int = 4  # answers to each prompt
    reward: str = ''  # orbax:<workdir> of a reward model for the first round; '': that of the stage
    cost: str = ''  # orbax:<workdir> of a cost model, likewise


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstraintSettings(Handlers):
    """The limit on costs, and how it is kept (`objectives/constraints.py`)."""

    handler: str = 'log'  # the constraint handler, by the name of its section; 'none' measures costs alone
    limit: float = 0.0  # of the mean cost; Safe RLHF's -d
    # Limits of groups of prompts by themselves, as 'privacy_violation=-1 self_harm=-2'; others have `limit`.
    limits: str = ''
    # The last so many costs of each group, whose mean is compared with its limit.
    window: int = 128

    def __post_init__(self):
        try:
            self.named(self.handler, 'text')
        except ValueError as error:
            raise ValueError(f'constraint.handler={error}') from None

    @property
    def chosen(self) -> Handler:
        """The handler with its hyper-parameters."""
        return self.named(self.handler, 'text')

    def compared(self, variant: str) -> ConstraintSettings:
        """The constraint of a handler that `compare` names, as log or, with its penalty, fixed-0.5.

        Raises:
          ValueError: there is no such handler.
        """
        name, _, penalty = variant.partition('-')
        if name not in (known := Handlers.names('text')) or (penalty and name != 'fixed'):
            raise ValueError(f'compare has {variant!r}; use {", ".join(known)}, or a penalty as fixed-0.5')
        fixed = FixedPenalty(float(penalty)) if penalty else self.fixed
        return dataclasses.replace(self, handler=name, fixed=fixed)

    @property
    def by_group(self) -> dict[str, float]:
        """The limits of groups. Raises ValueError where `limits` cannot be read."""
        limits: dict[str, float] = {}
        for part in self.limits.split():
            group, _, value = part.rpartition('=')
            try:
                limit = float(value)
            except ValueError:
                limit = math.nan
            if not group or '=' in group or not math.isfinite(limit):
                raise ValueError(
                    f'constraint.limits={self.limits!r}: {part!r} is no limit of a group; write group=number, with '
                    "spaces between groups and none in their names, as 'self_harm=-2 privacy_violation=-1'"
                )
            if group in limits or group == OTHERS:
                fault = 'twice' if group in limits else 'reserved for prompts of all other groups: set constraint.limit'
                raise ValueError(f'constraint.limits={self.limits!r}: {group!r} is {fault}')
            limits[group] = limit
        return limits


@dataclasses.dataclass(frozen=True)
class PtxSettings:
    """Supervised steps between the updates of PPO, on the answers that the start policy has learnt."""

    coef: float = 0.0  # times the cross-entropy; 0: none; Safe RLHF: 16
    batch_size: int = 8  # rows of such a step


@dataclasses.dataclass(frozen=True)
class TradeoffSettings:
    """The comparison of the start policy and the policies of all rounds."""

    draws: int = 2  # answers to each prompt
    reward: str = ''  # orbax:<workdir> of a reward model that nothing was trained on; '': none
    cost: str = ''  # likewise a cost model
    moderation: str = ''  # orbax:<workdir> of --config=moderation; with it answers to `prompts` are judged
    prompts: tuple[str, ...] = ()  # files of prompts that are harmful or only look so (docs/methods/safe_rlhf.md)
    prompts_count: int = 50  # of each file


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageModel:
    """The keys of a stage's `Settings` that the model has for itself."""

    # The steps of the model; 0: passes by `data.epochs`, and of the start policy none: it stays as it is.
    total_steps: int
    optimizer: Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartSettings(StageModel):
    """The start policy, by supervised learning."""

    data: RowSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardSettings(StageModel):
    """The reward model."""

    policy: ModelSettings = ModelSettings()
    data: PairSettings
    reward: BradleyTerry = BradleyTerry()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CostSettings(StageModel):
    """The cost model."""

    policy: ModelSettings = ModelSettings()
    data: SafetyRows
    cost: CostLoss = CostLoss()


# --- keys of several stages, and of all ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerKeys(Run):
    """The keys of a stage in which a policy answers prompts."""

    prompts: QuestionSettings = QuestionSettings()
    policy: ModelSettings = ModelSettings()
    sampling: Sampling
    decode: DecodeSettings = DecodeSettings()


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariantKeys(Run):
    """The keys that name the policies of PPO."""

    rounds: int = 1  # collect, cost, reward and rl so often
    # Handlers, as ('none','fixed-0.5','log'), each with a policy of PPO for every seed.
    compare: tuple[str, ...] = ()
    seeds: int = 1  # of PPO, with `compare`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(AnswerKeys, VariantKeys, RolloutRun):
    """The keys of all stages; `total_steps` is that of each PPO."""

    stage: str = 'all'  # all, a stage such as cost or rl-2, or all of a kind, as rl
    collect: CollectSettings = CollectSettings()
    rl: RLSettings = RLSettings()
    constraint: ConstraintSettings = ConstraintSettings()
    ptx: PtxSettings = PtxSettings()
    eval: StageSettings = StageSettings()
    evaluate: TradeoffSettings = TradeoffSettings()
    start: StartSettings
    reward: RewardSettings
    cost: CostSettings


def variants(settings: VariantKeys) -> list[str]:
    """The names of the policies of PPO that are compared: a handler and a seed; one without a name otherwise."""
    return [f'{handler}-{seed}' for handler in settings.compare for seed in range(settings.seeds)] or ['']


def groups_shown(constraint: ConstraintSettings) -> tuple[str, ...]:
    """The title of the table of groups that the console shows, where groups have limits of their own."""
    return ('Costs by group',) if constraint.by_group else ()
