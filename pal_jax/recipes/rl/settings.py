"""The keys of a run of plain reinforcement learning."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from pal_jax.run.language import ANSWERS, EndpointSettings, RolloutRun
from pal_jax.run.settings import StageSettings
from pal_jax.types import Sampling

# The prompts of runs without prompts of their own, with the rule that pays the answers.
EMBEDDED = 'sums'


@dataclasses.dataclass(frozen=True)
class PromptSettings:
    """The rows to learn from and to test on, each with a prompt; their further columns go to the reward functions."""

    # made-up sums, or rows: a file (.jsonl, .json, .csv, .parquet), hf:owner/name/file or tfds:<name>.
    train: str = EMBEDDED
    test: str = ''  # rows to test on, as for train; '': a part of train, at most a fifth of its prompts
    key: str = 'prompt'  # the column of the prompt, a text or a list of messages
    chat: bool = True  # a prompt that is a text is asked as a chat; False: it stands as it is
    test_count: int = 64  # the largest number of prompts of an evaluation
    max_length: int = 512  # tokens; rows of longer prompts are left out


@dataclasses.dataclass(frozen=True)
class RewardSources:
    """The sources of rewards, which are added."""

    function: str = ''  # functions of your own: FILE.py:NAME, several with commas between
    # orbax:<folder>: a run whose model scores answers, such as one of --config=reward.
    scorer: str = ''
    person: str = ''  # with a scorer that knows people: the person who pays
    judge: str = ''  # a language model that gives 0 to 10 points: endpoint:<name> or local:<source>
    rubric: str = 'It answers what was asked, it is right, and it is no longer than needed.'  # what the judge looks for
    # The weights of the functions, the scorer and the judge, in this order; (): 1 for each.
    weights: tuple[float, ...] = ()
    max_failed: float = 0.1  # the share of answers without a reward at which a run stops
    shuffled: bool = False  # the control: the rewards of a step go to its answers at random


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """The samples of a step."""

    rollout_batch_size: int = 8  # prompts, or starts of a game
    n_samples_per_prompt: int = 8  # answers to each prompt, or games from each start
    # A game of your own in place of prompts: FILE.py:NAME, see docs/howto/own_parts.md.
    game: str = ''
    shown: int = 4  # samples of a step that the report keeps


ENDPOINTS = {'judge': EndpointSettings(temperature=0.0, max_tokens=256)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(RolloutRun):
    """The keys of a run; those of every run that samples are in `run/language.py`."""

    prompts: PromptSettings = PromptSettings()
    reward: RewardSources = RewardSources()
    rl: StepSettings = StepSettings()
    # The config's 12 tokens are enough for the sums of the default prompts; give more for prompts of your own.
    sampling: Sampling
    endpoints: Mapping[str, EndpointSettings] = dataclasses.field(default_factory=lambda: ENDPOINTS)
    answers: str = ANSWERS  # the file that keeps answers of endpoints, which are not asked twice; '': no file
    eval: StageSettings = StageSettings()
