"""The settings of PLUS: those of a run, and those of the stage that makes the table of methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from pal_jax.learners.latent import Latent
from pal_jax.recipes.plus.histories import HistoryOptions
from pal_jax.run.language import ANSWERS, EndpointSettings, ModelSettings, ReinforcedRun
from pal_jax.run.optim import Optimizer
from pal_jax.run.settings import StageSettings

WRITTEN = 'summary', 'untrained'  # values of `reads` with which a model writes the text
READS = *WRITTEN, 'context', 'kind', 'nothing', 'latent'


@dataclasses.dataclass(frozen=True)
class RewardModelSettings(ModelSettings):
    """The reward model. It may be of another family than the summariser, with another tokenizer."""

    optimizer: Optimizer = Optimizer(lr=1e-4, warmup_ratio=0.0)  # the rate falls while the summariser learns
    train: bool = True  # False: the reward model stays as it begins
    std: float = 1.0  # the standard deviation of its scores: a gap that pays is divided by it (the mean cancels out)
    row_tokens: int = 384  # summaries share rows of so many tokens; 0: a row for each summary
    micro_rows: int = 1  # rows in a device's memory at once


@dataclasses.dataclass(frozen=True)
class SummarySettings:
    """The summaries of a step in which the summariser is paid."""

    people: int = 8  # people of a step
    n_samples: int = 8  # summaries of each person, all of which are paid; equal ones are read once
    taught: int = 2  # the number of a person's summaries that the reward model learns from
    prefill: str = '##Summary\nLiked:'  # the words that every summary begins with
    train: bool = True  # False: the summariser stays as it begins


@dataclasses.dataclass(frozen=True)
class ReaderHoldSettings:
    """The steps in which the summariser waits for a reward model that can read: many people, and one cooler summary of
    each."""

    steps: int = 16  # the largest number of such steps
    reward: float = -0.62  # the wait ends when the mean reward of two steps is above it; 0: after all of them
    people: int = 32  # people of a step
    temperature: float = 0.3  # of these summaries


@dataclasses.dataclass(frozen=True)
class LatentSettings(Latent):
    """The baseline `reads=latent`, which trains in passes over all people in place of steps.

    It knows replies only by frozen states of the reward model's source.
    """

    passes: int = 40  # the number of passes
    people: int = 32  # people of an update
    optimizer: Optimizer = Optimizer(lr=3e-4)


@dataclasses.dataclass(frozen=True)
class EvalSettings(StageSettings):
    """The people of an evaluation.

    The evaluation before the first step has the people of the first split alone, without the texts that they are
    compared with.
    """

    people: int = 64  # people of a split
    samples: int = 1  # drawn summaries of a person, beside the likeliest
    shown: int = 3  # people of a split whom the report shows with their summaries


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(ReinforcedRun):
    """The keys of a run of PLUS, or of one run for each of several methods; `policy` is the summariser.

    `total_steps` counts the steps in which both models learn; the steps of `hold` come before.
    """

    # pets; or a JSONL file of people (pal_jax/data/histories.py); or choices that histories are made of:
    # votes:<folder>/<name>, or a public set as ukp:<folder> or choices:<source> (pal_jax/data/readers/opinions.py); or
    # rated:<file>, replies rated by attributes that made-up people want (pal_jax/recipes/plus/attributes.py)
    data: str = 'pets'
    people: int = 200  # the number of people to learn from, or its limit where the data name the people
    form: str = 'labelled'  # labelled: both sides of past choices; chosen: those they liked; guide: 'I prefer dogs.'
    # Of people who are made of their choices; `taught` counts for pets and `rated:` as well.
    history: HistoryOptions = HistoryOptions()
    shuffled: bool = False  # the control: everyone's summary is of another person
    # The text that the reward model reads of a person: a summary, or, for baselines, the summary of the frozen model,
    # the whole context, the true kind, nothing, or no words but a vector (VPL). Only `summary` trains a summariser.
    reads: str = 'summary'  # or untrained, context, kind, nothing, latent
    # Several methods (pal_jax/recipes/plus/table.py) are runs beside each other, with `seeds` seeds, and a table of
    # all.
    methods: str = ''  # as plus,untrained,context,nothing,latent,kind,shuffled,static-summariser,static-reward-model
    seeds: int = 1  # runs of each method, with seeds from 0
    reward_model: RewardModelSettings = RewardModelSettings()
    summary: SummarySettings = SummarySettings()
    hold: ReaderHoldSettings = ReaderHoldSettings()
    latent: LatentSettings = LatentSettings()
    eval: EvalSettings = EvalSettings()
    # The model that writes replies after a summary, and without, for the last evaluation: local:<source>, such as
    # local:orbax:runs/rlpa, or endpoint:condition. It is not trained on summaries. '': there is none.
    condition: str = ''
    endpoints: Mapping[str, EndpointSettings]
    answers: str = ANSWERS  # '': endpoints are asked again
