"""The keys of a run of PAL and of PAL-Large; those of every run are in `parts/settings.py`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pal_jax.data.texts import Pool
from pal_jax.learners.ideal_point import Rates
from pal_jax.learners.training import Lora
from pal_jax.models.ideal_point import Mixture, Point, Rule
from pal_jax.objectives.preference import PairLoss, TokenWeighting
from pal_jax.parts.settings import Run
from pal_jax.runtime.optim import Optimizer


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """The decoder that makes vectors of texts, which people voted on (`data/votes.py`) or chose among."""

    source: str = ''  # of the decoder, see `models/sources.py`; '': there is no text
    dtype: str = 'auto'
    layers: int = 0  # the first so many of the decoder's; 0: all
    pool: Pool = 'mean'  # over the tokens of a text, or last
    span: TokenWeighting | Literal[''] = ''  # with pool=last: a loss at every token of where a pair differs
    template: str = '{}'  # what stands around a statement
    width: int = 32  # principal coordinates of the states; 0: the states as they are
    pairs: int = 200  # of votes: at most so many of a person's
    folder: str = 'runs/states'  # keeps the states


@dataclasses.dataclass(frozen=True)
class SplitSettings:
    """The splits at random, which are trained side by side."""

    seeds: int = 5
    seen: float = 0.8  # share of people; the others are new
    train: float = 0.6  # share of each person's choice situations; of the statements or prompts where there is text
    validation: float = 0.2  # the rest is the test
    control: bool = True  # as many splits again with shuffled user ids


@dataclasses.dataclass(frozen=True)
class PALSettings:
    """The model, whose values `models.ideal_point.PAL` describes. How many prototypes it has is `prototypes`."""

    variant: Literal['A', 'B'] = 'A'  # B mixes functions of a prompt's vector
    rule: Rule = 'dot'
    scaled: bool = False  # rewards times a learnt scale
    point: Point = 'Pw'
    projector: str = 'identity'  # or such as mlp2-gelu-dropout0
    dim: int = 0  # of the space of preferences; 0: the items'
    mixture: Mixture = 'softmax'  # or gumbel, partition
    tau: float = 1.0
    prototype_init: Literal['unit', 'expected'] = 'unit'
    z_std: float = 0.0  # of users' first logits
    dtype: str = 'auto'  # of a projector's products: bfloat16 where the platform has instructions for it


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """The loss of a pair (`objectives/preference.py`), and what is added to it."""

    name: PairLoss = 'logistic'
    margin: float = 0.0
    label_smoothing: float = 0.0  # of logistic
    gamma: float = 5.0  # of smooth_hinge
    pull: float = 2.0  # precision of a Gaussian prior on users' logits
    bound: float = 0.0  # on the length of users' points; 0: none
    bound_coef: float = 1.0


@dataclasses.dataclass(frozen=True)
class NewSettings:
    """How new people are fitted, and after how many of their comparisons."""

    counts: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50, 100)  # of known comparisons
    steps: int = 300
    lr: float = 5e-2
    pull: float = 2.0  # precision of a Gaussian prior on their logits
    toward: Literal['population', 'zero'] = 'population'  # the mean of that prior
    ask: int = 20  # so many questions are also chosen by what each is expected to tell; 0: none


@dataclasses.dataclass(frozen=True)
class BaselineSettings:
    """What stands beside PAL in the table."""

    embedding: int = 4  # width of a free vector a user; 0: none
    embedding_pull: float = 1.0
    own: bool = True  # a model a user
    own_pull: float = 0.1
    groups: bool = False  # a prototype for each known group, and seen people at that of theirs
    majority: bool = True
    mixed_logit: bool = True
    context: int = 0  # of texts: so many earlier choices in front of each pair, read by the decoder; 0: none


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """When the models are evaluated beside the end."""

    every: int = 0  # steps; 0: none in between


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Run):
    """The keys of a run of PAL."""

    # A table of choices: electricity, train, swissmetro (1,191 people), or a file or folder of your own. With
    # `text.source` votes or choices between texts, such as a public set: jester:, movielens:, ukp:, prism:,
    # tldr:<folder>, personas:<file>, choices:<source> (data/opinions.py).
    data: str = 'electricity'
    text: TextSettings = TextSettings()
    standardize: bool = True  # attributes in units of their standard deviation
    split: SplitSettings = SplitSettings()
    prototypes: tuple[int, ...] = (1, 2, 3, 4, 6, 8)  # K is chosen on the validation part
    model: PALSettings = PALSettings()
    loss: LossSettings = LossSettings()
    optimizer: Rates = Rates()
    batch: int = 512
    updates: int = 100  # of every model in a step
    new: NewSettings = NewSettings()
    baselines: BaselineSettings = BaselineSettings()
    eval: EvalSettings = EvalSettings()


# --- PAL-Large --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class HoldSettings:
    """The steps before those of `total_steps`, in which decoders wait."""

    steps: int = 20
    updates: int = 20  # in each of these, as `updates` is in the others


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """How the decoder of `text` is trained, by each model its own."""

    optimizer: Optimizer
    lora: Lora = Lora()
    remat: str = 'none'
    statements: int = 48  # or prompts, of a step; its pairs are of these alone
    micro_rows: int = 4  # in a device's memory at once
    row_tokens: int = 256  # several texts share rows of so many tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class LargeSettings(Settings):
    """The keys of a run of PAL-Large. `total_steps` are those in which everything learns, and `updates` are of
    prototypes and people, for one of the decoders."""

    hold: HoldSettings = HoldSettings()
    decoder: DecoderSettings
