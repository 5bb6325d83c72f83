"""The keys of a run of PAL and of PAL-Large; those of every run are in `run/settings.py`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from pal_jax.data.texts import Pool
from pal_jax.learners.training import Lora
from pal_jax.objectives.preference import PairLoss, TokenWeighting
from pal_jax.recipes.personal.asking import Question
from pal_jax.recipes.personal.ideal_point import Mixture, Point, Rule
from pal_jax.recipes.personal.learner import Rates
from pal_jax.run.optim import Optimizer
from pal_jax.run.settings import Run


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """The model that makes vectors of texts, which people voted on (`data/readers/votes.py`) or chose among."""

    # A decoder's source, see `models/files/sources.py`; or an encoder of sentences, encoder:minilm, encoder:mpnet or
    # encoder:<folder>; '': there is no text.
    source: str = ''
    dtype: str = 'auto'  # the type of the decoder's matrix products: bfloat16 where the machine has it
    layers: int = 0  # the number of the decoder's first layers that read; 0: all
    pool: Pool = 'mean'  # over the tokens of a text, or last
    span: TokenWeighting | Literal[''] = ''  # with pool=last: a loss at every token at which the texts of a pair differ
    template: str = '{}'  # the words around a statement
    width: int = 32  # principal coordinates of the states; 0: the states as they are
    pairs: int = 200  # of votes: the largest number of a person's pairs
    folder: str = 'runs/states'  # the folder that keeps the states


@dataclasses.dataclass(frozen=True)
class SplitSettings:
    """The random splits, which are trained side by side."""

    seeds: int = 5  # the number of splits; runs with different seeds have none in common
    seen: float = 0.8  # the share of people who are seen; the others are new
    train: float = 0.6  # share of each person's choice situations; of the statements or prompts where there is text
    validation: float = 0.2  # the rest is the test
    control: bool = True  # as many splits again with shuffled user ids


@dataclasses.dataclass(frozen=True)
class PALSettings:
    """The model; `models.ideal_point.PAL` describes its values. The key `prototypes` has the numbers of prototypes."""

    variant: Literal['A', 'B'] = 'A'  # B mixes functions of a prompt's vector
    rule: Rule = 'dot'  # the reward of an item for a user's point
    scaled: bool = False  # rewards times a learnt scale
    temperature: float = 1.0  # rewards are divided by it, a constant; not with a learnt scale
    point: Point = 'Pw'  # a user's point: f is the projector, P the prototypes, w the user's weights
    projector: str = 'identity'  # or such as mlp2-gelu-dropout0
    dim: int = 0  # the dimension of the space of preferences; 0: that of the items
    mixture: Mixture = 'softmax'  # or gumbel, partition
    tau: float = 1.0  # temperature of the mixture
    prototype_init: Literal['unit', 'expected'] = 'unit'  # first prototypes of norm 1, or from N(0, 1/width)
    z_std: float = 0.0  # the standard deviation of users' first logits
    dtype: str = 'auto'  # of a projector's products: bfloat16 where the platform has instructions for it


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """The loss of a pair (`objectives/preference.py`) and its penalties."""

    name: PairLoss = 'logistic'  # the loss of the difference of two rewards
    margin: float = 0.0  # of the hinge: differences above it cost nothing
    label_smoothing: float = 0.0  # with logistic alone
    gamma: float = 5.0  # with smooth_hinge alone
    pull: float = 2.0  # precision of a Gaussian prior on users' logits
    bound: float = 0.0  # a limit on the length of users' points; 0: none
    bound_coef: float = 1.0  # weight of the length above the bound
    by: Literal['pairs', 'people'] = 'pairs'  # a batch's mean over pairs, or over people, each of whom counts alike
    prototype_pull: float = 0.0  # weight of the prototypes' squared length, beside a batch's mean loss


@dataclasses.dataclass(frozen=True)
class NewSettings:
    """The fit of new people, and the numbers of known comparisons after which they are tested."""

    counts: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 50, 100)  # numbers of known comparisons
    steps: int = 300  # steps of Adam on a new person's logits
    lr: float = 5e-2  # their rate
    pull: float = 2.0  # precision of a Gaussian prior on their logits
    toward: Literal['population', 'zero'] = 'population'  # the mean of that prior
    ask: int = 20  # the number of questions that are also chosen by what their answers would tell; 0: none
    # The rule that chooses them: the information expected of an answer, or how much it shrinks the ellipsoid of the
    # person's likely logits.
    question: Question = 'information'


@dataclasses.dataclass(frozen=True)
class BaselineSettings:
    """The methods that stand beside PAL in the table."""

    embedding: int = 4  # the width of a free vector for each user; 0: no such model
    embedding_pull: float = 1.0  # precision of the prior on these vectors
    own: bool = True  # a model for each user
    own_pull: float = 0.1  # precision of the prior on these models
    groups: bool = False  # a prototype for each known group; seen people stand at their group's
    majority: bool = True  # what most people choose
    mixed_logit: bool = True  # the mixed logit of xlogit, for tables
    context: int = 0  # with texts: the number of earlier choices in front of each pair; 0: none


@dataclasses.dataclass(frozen=True)
class PALEvalSettings:
    """The evaluations during training."""

    every: int = 0  # an evaluation every so many steps; 0: at the end alone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Run):
    """The keys of a run of PAL."""

    # A table of choices: electricity, train, swissmetro (1,191 people), or a file or folder of your own. With
    # `text.source` votes or choices between texts, such as a public set: jester:, movielens:, ukp:, prism:,
    # tldr:<folder>, personas:<file>, choices:<source> (data/readers/opinions.py, data/readers/crowds.py).
    data: str = 'electricity'
    price: str = ''  # of a table: the attribute that is a price, in which the report says what others are worth
    group: str = 'group'  # of a table: the column with the group of each person, which the report compares; '': none
    wrong_rows: Literal['refuse', 'drop'] = 'refuse'  # of a file of your own; drop leaves them out, and counts them
    text: TextSettings = TextSettings()
    standardize: bool = True  # attributes in units of their standard deviation
    split: SplitSettings = SplitSettings()
    prototypes: tuple[int, ...] = (1, 2, 3, 4, 6, 8)  # K is chosen on the validation part
    model: PALSettings = PALSettings()
    loss: LossSettings = LossSettings()
    optimizer: Rates = Rates()
    batch: int = 512  # pairs of an update
    updates: int = 100  # updates of every model in a step
    new: NewSettings = NewSettings()
    baselines: BaselineSettings = BaselineSettings()
    eval: PALEvalSettings = PALEvalSettings()


# --- PAL-Large --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class HoldSettings:
    """The steps before those of `total_steps`, in which decoders wait."""

    steps: int = 20
    updates: int = 20  # the number of updates in each of these steps, as `updates` for the others


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderSettings:
    """The training of the decoders that begin as the decoder of `text`, one for each model."""

    optimizer: Optimizer
    lora: Lora = Lora()
    remat: str = 'none'
    statements: int = 48  # the number of statements, or prompts, of a step; its pairs are of these alone
    micro_rows: int = 4  # rows in a device's memory at once
    row_tokens: int = 256  # several texts share rows of so many tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class LargeSettings(Settings):
    """The keys of a run of PAL-Large.

    `total_steps` counts the steps in which everything learns. `updates` counts the updates of prototypes and people for
    one update of the decoders.
    """

    hold: HoldSettings = HoldSettings()
    decoder: DecoderSettings
