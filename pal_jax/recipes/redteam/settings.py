"""The settings of Self-RedTeam: its sections, the keys that several stages read, and those of the whole method.

The settings of a stage stand in its module. The start policy is a run of `recipes/sft.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from pal_jax.recipes.redteam.attack import Payment
from pal_jax.run.language import ANSWERS, DecodeSettings, EndpointSettings, ModelSettings, RolloutRun, RowSettings
from pal_jax.run.optim import Optimizer
from pal_jax.run.settings import Run, StageSettings
from pal_jax.types import Sampling

EMBEDDED = 'embedded'

Roles = Literal['shared', 'adapters', 'attacker', 'defender']
POLICIES: dict[str, tuple[int | None, int | None]] = {  # who plays attacker and defender; None: the start, which rests
    'shared': (0, 0),  # one policy plays both (arXiv 2506.07468)
    'adapters': (0, 1),  # an adapter for each role on one frozen base (arXiv 2605.08427)
    'attacker': (0, None),  # against a frozen defender
    'defender': (None, 0),  # on seeds as they are
}

ENDPOINTS = {'judge': EndpointSettings(temperature=0.0, max_tokens=128)}


@dataclasses.dataclass(frozen=True)
class SeedSettings:
    """The seeds of games."""

    # The seeds to learn from: embedded, or a source of records with `vanilla`, `data_type` and maybe `completion`
    # (WildJailbreak).
    train: str = EMBEDDED
    test: str = EMBEDDED  # likewise; seeds of train that it has are left out
    train_count: int = 400  # harmful seeds, and as many harmless ones; 0: all of a source
    test_count: int = 24  # likewise
    max_length: int = 256  # tokens; longer seeds are left out


@dataclasses.dataclass(frozen=True)
class ExampleSettings:
    """The examples of both roles that the start policy learns from."""

    count: int = 640  # moves to learn from, a third of them the attacker's
    test_count: int = 48  # of other dilemmas


@dataclasses.dataclass(frozen=True)
class PlaySettings:
    """The games of a step."""

    roles: Roles = 'shared'  # who learns, see `POLICIES`
    # A quarter each of harmful and harmless seeds, rewritten by the attacker or not.
    games: int = 24
    hidden: bool = True  # moves think in private before they answer
    # The table of the paper; 'all_one': equal weights; 'zero_sum': unsafe answers alone.
    payment: Payment = 'general'
    # The judge: rule, orbax:<workdir> of --config=moderation, endpoint:judge, local:<source>.
    judge: str = 'rule'
    # The share of the games of a step without a verdict above which the run ends.
    max_failed: float = 0.1
    shown: int = 4  # games of a step that are written to rollouts.jsonl


@dataclasses.dataclass(frozen=True)
class StreamSettings:
    """Supervised batches beside the games, of finished answers to harmless seeds; `ppo.ptx_coef` weighs their loss."""

    every: int = 1  # a batch at every so many steps
    batch_size: int = 4  # finished answers of such a batch


@dataclasses.dataclass(frozen=True)
class CrossPlaySettings:
    """The play of attackers and defenders of all runs against each other."""

    # Earlier checkpoints that play, too; `checkpoint.keep` has to keep them.
    steps: tuple[int, ...] = ()
    # A second judge, which nothing was trained on, as `play.judge`; '': none.
    judge: str = ''
    # 'minilm', 'mpnet', or a folder of a BERT or MPNet: attacks are also compared by embeddings.
    encoder: str = ''
    shown: int = 6  # attacks of each policy that a report shows


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartPolicySettings:
    """The keys of `sft.Settings` that the start policy has for itself; `total_steps=0` leaves the policy as it is."""

    total_steps: int  # its steps of supervised learning
    optimizer: Optimizer
    data: RowSettings


# --- keys of several stages, and of all ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayKeys(Run):
    """The keys of a stage in which policies play."""

    seeds: SeedSettings = SeedSettings()
    examples: ExampleSettings = ExampleSettings()
    policy: ModelSettings = ModelSettings()
    sampling: Sampling
    decode: DecodeSettings = DecodeSettings()
    play: PlaySettings = PlaySettings()
    endpoints: Mapping[str, EndpointSettings] = dataclasses.field(default_factory=lambda: ENDPOINTS)
    answers: str = ANSWERS  # '': endpoints are asked again


@dataclasses.dataclass(frozen=True, kw_only=True)
class RosterKeys(Run):
    """The keys that name the runs of self-play."""

    compare: tuple[str, ...] = ()  # names of `POLICIES`, each a run for every seed
    repeats: int = 1  # seeds of each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(PlayKeys, RosterKeys, RolloutRun):
    """The keys of all stages; `total_steps` is that of each self-play."""

    stage: str = 'all'  # all, a stage such as sft or play-shared-0, or all of a kind, as play
    stream: StreamSettings = StreamSettings()
    eval: StageSettings = StageSettings()
    evaluate: CrossPlaySettings = CrossPlaySettings()
    start: StartPolicySettings


def variants(settings: RosterKeys, roles: Roles) -> list[str]:
    """The names of the runs of self-play: who learns (`roles`, unless runs are compared), and the seed."""
    return [f'{name}-{settings.seed + k}' for name in settings.compare or (roles,) for k in range(settings.repeats)]
