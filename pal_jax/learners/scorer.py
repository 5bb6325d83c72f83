"""A scorer: a decoder with a linear head of `outputs` numbers that scores replies, trained by a loss that is passed in.

    state = scorer.init(params)                           # plain decoder weights on the mesh, and a new head
    scores = scorer.scores(state, pairs)                  # of every reply, by output
    gaps = scorer.gaps(state, pairs)                      # the score of the first of two neighbours minus the other's
    state, scores, metrics = scorer.learn(state, pairs)   # the scores before the step, and one step

A reward model is a scorer with one output and the loss of Bradley and Terry. A row holds the text that replies share (a
question, or the summary of a person with it) once, then the replies; several such groups may share a row. The pairs to
learn from are those that a group names as compared, or else neighbours, the chosen reply first. Replies may have
labels, too: the categories of a moderator, or the sign of a cost.

A reply ends with a token that nobody reads. Its score is the head's value of the state before that token, the last
state that has read the whole reply. So a scorer is a critic that is asked once a reply, and a critic may start from its
weights.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from pal_jax.data.packing import BranchPair, Example, PromptGroup, lay_out_groups, pack_groups, round_up
from pal_jax.learners import forward
from pal_jax.learners.training import (
    MULTIPLE,
    Lora,
    TrainState,
    accumulate,
    any_of,
    apply,
    divided,
    floats,
    jit_to,
    join,
    laid_out,
    micro_batches,
    new_head,
    skipped,
    zeros,
)
from pal_jax.models import decoder, lora
from pal_jax.models import params as model_params
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.objectives.preference import centring, label_loss, logistic
from pal_jax.run import sharding
from pal_jax.run.optim import Optimizer
from pal_jax.types import Metrics, TokenBatch

# The tokens of short replies: rows that groups share have places for so many, so that one program reads all.
SHORT = 4


@dataclasses.dataclass(frozen=True)
class BradleyTerry:
    """Hyper-parameters of the loss of a pair, under the names of `objectives.preference`.

    Attributes:
      margin: the margin by which a chosen reply has to be better, beside the margin of the pair's own record.
      label_smoothing: the share of pairs taken to be the wrong way round.
      centring: the weight of the squared sum of a pair's two scores, which keeps scores about zero.
      regularization: the weight of the mean square of a pair's two scores (Safe RLHF, arXiv 2310.12773, has 1e-3).
    Raises:
      ValueError: a value is out of its range.
    """

    margin: float = 0.0
    label_smoothing: float = 0.0
    centring: float = 0.0
    regularization: float = 0.0

    def __post_init__(self):
        if min(self.margin, self.centring, self.regularization) < 0 or not 0 <= self.label_smoothing < 0.5:
            raise ValueError(
                f'reward.margin={self.margin}, reward.centring={self.centring} and reward.regularization='
                f'{self.regularization} must be at least 0, reward.label_smoothing={self.label_smoothing} in [0, 0.5)'
            )

    def __call__(self, scores: Float[Array, 'R N K'], lesson: Lesson) -> Float[Array, '']:
        """The weighted sum of the losses of all pairs, by the first output."""
        sides = lesson.better, lesson.worse
        chosen, rejected = (jnp.take_along_axis(scores[..., 0], side, axis=1) for side in sides)
        return jnp.sum(lesson.weight * self.of_pairs(chosen, rejected, lesson.margin))

    def of_pairs(
        self, chosen: Float[Array, '*S'], rejected: Float[Array, '*S'], margin: Float[Array, '*S']
    ) -> Float[Array, '*S']:
        """The loss of each pair by its two scores."""
        loss = logistic(chosen - rejected, margin=self.margin + margin, label_smoothing=self.label_smoothing)
        if self.centring:
            loss += self.centring * centring(chosen, rejected)
        if self.regularization:
            loss += self.regularization * (jnp.square(chosen) + jnp.square(rejected)) / 2.0
        return loss


@dataclasses.dataclass(frozen=True)
class CostLoss:
    """The loss of a cost model (Safe RLHF, arXiv 2310.12773, section 3.2).

    A pair has the loss `-log sigmoid(C_hi - C_lo)`, where `hi` is the less safe reply. Both its replies have the loss
    `-log sigmoid(s C)`, where `s` is the sign of their label: 1 for an unsafe reply, -1 for a safe one.

    Attributes:
      regularization: the weight of the mean square of a pair's two costs.
    Raises:
      ValueError: a value is out of its range.
    """

    regularization: float = 1e-3

    def __post_init__(self):
        if not 0.0 <= self.regularization < math.inf:
            raise ValueError(f'cost.regularization={self.regularization} must be a number of at least 0')

    def __call__(self, scores: Float[Array, 'R N 1'], lesson: Lesson) -> Float[Array, '']:
        assert lesson.labels is not None and lesson.counts is not None
        ranking = BradleyTerry(regularization=self.regularization)(scores, lesson)
        signs = label_loss(scores[..., 0], lesson.labels[..., 0])
        # The two terms have no weights, as published. Without the signs a cost is a ranking without a zero.
        return ranking + jnp.sum(lesson.counts * signs)


@dataclasses.dataclass(frozen=True)
class LabelLoss:
    """The loss of a moderator (BeaverTails, arXiv 2307.04657): the mean binary cross-entropy over categories.

    Attributes:
      positive_weights: the weight of a reply in a category that it has, a number by category; (): 1 for all.
    """

    positive_weights: tuple[float, ...] = ()

    def __call__(self, scores: Float[Array, 'R N K'], lesson: Lesson) -> Float[Array, '']:
        assert lesson.labels is not None and lesson.counts is not None
        return jnp.sum(lesson.counts * self.of_labels(scores, lesson.labels).mean(axis=-1))

    def of_labels(self, logits: Float[Array, '*S K'], labels: Float[Array, '*S K']) -> Float[Array, '*S K']:
        """The loss of each label."""
        return label_loss(logits, labels, jnp.asarray(self.positive_weights) if self.positive_weights else 1.0)


class Lesson(NamedTuple):
    """The pairs in each row that were compared and, where groups have labels, the labels of each reply.

    A pair has the numbers of its two samples, its weight in the loss (0: no such pair) and its margin. A reply has a
    label for each output, NaN where there is none, and `counts`, the weight of its labels.
    """

    better: Int[Array, 'R P']
    worse: Int[Array, 'R P']
    weight: Float[Array, 'R P']
    margin: Float[Array, 'R P']
    labels: Float[Array, 'R N K'] | None = None
    counts: Float[Array, 'R N'] | None = None


class ReplyGroups(NamedTuple):
    """Groups of `n` replies in rows, and the lesson that they teach.

    `where` has the row and the sample of each reply of a group, and `exists` is True for replies that are there. Rows
    are cut to `multiple`s of tokens.
    """

    batch: TokenBatch
    lesson: Lesson
    where: tuple[Int[np.ndarray, 'G n'], Int[np.ndarray, 'G n']]
    exists: Bool[np.ndarray, 'G n']
    multiple: int = MULTIPLE

    def pick(self, groups: Int[np.ndarray, '...'], branches: Int[np.ndarray, '...']) -> ReplyGroups:
        """A copy of the rows with other replies asked for: `branches` of `groups`, broadcast together to [G, n]."""
        where = self.where[0][groups, branches], self.where[1][groups, branches]
        return self._replace(where=where, exists=self.exists[groups, branches])


ScoreLoss = Callable[[Float[Array, 'R N K'], Lesson], Float[Array, '']]  # of scores and a lesson; static under `jit`


class ScorerState(struct.PyTreeNode):
    """A scorer and the count of its skipped updates.

    `model.params` has the parameters that train: `decoder`, without its embedding or with its adapters alone, and
    `head`.
    """

    model: TrainState
    skipped: Int[Array, '']  # updates in a row, up to the last, that were left out since their gradient was not finite


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Functions over `ScorerState`; two scorers that are equal share their compiled programs.

    Embeddings are frozen.

    Attributes:
      loss: a loss of a micro-batch's scores and its lesson, a weighted sum, so that micro-batches add up.
      outputs: the number of scores that the head gives.
      micro_rows: the number of rows in a device's memory at once.
    Raises:
      ValueError: a dimension does not divide over the mesh, or adapters have dropout.
    """

    cfg: ModelConfig
    optimizer: Optimizer
    mesh: Mesh
    loss: ScoreLoss = BradleyTerry()
    outputs: int = 1
    micro_rows: int = 4
    adapters: Lora | None = None
    seed: int = 0

    def __post_init__(self):
        decoder.saved(self.cfg.remat)
        check_dropout(self.adapters)
        _ = self.param_shardings

    @functools.cached_property
    def param_shardings(self) -> Params:
        """The shardings of plain decoder weights on the mesh."""
        return sharding.param_shardings(model_params.decoder_specs(self.cfg), self.mesh)

    @functools.cached_property
    def abstract(self) -> ScorerState:
        """The shapes and shardings of a state."""
        return laid_out(self.new, self.cfg, self.adapters, self.mesh)

    @functools.cached_property
    def init(self):
        """`init(params) -> ScorerState`: decoder weights, which are used up, under a new head."""
        return jit_to(self.abstract, self.new)

    def new(self, params: Params) -> ScorerState:
        # Few rows of an embedding are in a batch, and the moments of all rows would be a third of the memory of a small
        # model.
        trainable, frozen = divided(params, self.adapters, self.seed)
        trained = {'decoder': trainable, 'head': new_head(self.cfg.width, self.outputs, self.seed + 1)}
        return ScorerState(TrainState(trained, frozen, self.optimizer.init(trained)), jnp.zeros((), jnp.int32))

    @property
    def abstract_weights(self) -> ScorerState:
        """A state for a checkpoint's reader: shapes and shardings of the parts that `scores` reads, and `...` for parts
        to be left out."""
        nothing: ScorerState = jax.tree.map(lambda _: ..., self.abstract)
        return nothing.replace(model=self.abstract.model.replace(opt_state=nothing.model.opt_state))

    def scores(self, state: ScorerState, pairs: ReplyGroups) -> Float[np.ndarray, 'G n K']:
        """The scores of every reply of every group, by output."""
        model = state.model
        parts = micro_batches(pairs.batch, self.mesh, self.micro_rows, pairs.multiple)
        scores = jnp.concatenate([self._scores(model.params, model.frozen, micro) for micro in parts])
        return np.asarray(scores)[pairs.where]

    def gaps(self, state: ScorerState, pairs: ReplyGroups) -> Float[np.ndarray, 'G P']:
        """The score of the first of two neighbours minus the second's, by the first output."""
        return gaps(self.scores(state, pairs)[..., 0])

    def learn(
        self, state: ScorerState, pairs: ReplyGroups, rate: float | Array = 1.0
    ) -> tuple[ScorerState, Float[np.ndarray, 'G n K'], Metrics]:
        """One step on the loss of the lesson, and the scores of the model before the step, in one pass.

        A lesson without pairs or labels makes no step and has no figures.

        Args:
          rate: a factor of the optimiser's step, for schedules that do not follow the number of updates.
        """
        # 1. Scores and gradient in one pass over the micro-batches.
        before, grads, figures = self.read(state, pairs)
        if not grads:
            return state, before, {}
        # 2. One step of the optimiser.
        model, norm = apply(self.optimizer, state.model, grads, rate)
        figures |= floats({'reward_grad_norm': norm})
        return ScorerState(model, skipped(state.skipped, norm)), before, figures

    def read(self, state: ScorerState, pairs: ReplyGroups) -> tuple[Float[np.ndarray, 'G n K'], Params, Metrics]:
        """The scores, the gradient of the lesson's loss and its figures, in one pass.

        A lesson without pairs or labels has the gradient `{}` and no figures.
        """
        weight, counts = pairs.lesson.weight, pairs.lesson.counts
        if not any_of(weight if counts is None else counts):
            return self.scores(state, pairs), {}, {}
        grads, parts, losses = zeros(state.model.params), [], []
        for micro, lesson in micro_batches((pairs.batch, pairs.lesson), self.mesh, self.micro_rows, pairs.multiple):
            (loss, scores), grads = self._gradients(grads, state.model, micro, lesson)
            losses.append(loss)
            parts.append(scores)
        # The gradient's pass has the scores at hand, so nothing is computed twice.
        before = np.asarray(jnp.concatenate(parts))[pairs.where]
        # Weights sum to 1 over the whole batch, so the micro-batches' losses add up to its mean.
        figures = {'reward_loss': float(sum(jax.device_get(losses)))}
        if (both := pairs.exists[:, 0::2] & pairs.exists[:, 1::2]).any():
            figures['reward_accuracy'] = float(np.mean(gaps(before[..., 0])[both] > 0))
        return before, grads, figures

    @functools.partial(jax.jit, static_argnums=0)
    def _scores(self, trained: Params, frozen: Params, batch: TokenBatch) -> Array:
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return self._everywhere(scores(trained, frozen, self.cfg, batch))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
    def _gradients(self, grads: Params, model: TrainState, batch: TokenBatch, lesson: Lesson):
        def loss(trained: Params) -> tuple[Array, Array]:
            of_replies = scores(trained, model.frozen, self.cfg, batch)
            return self.loss(of_replies, lesson), self._everywhere(of_replies)

        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            return accumulate(loss, model.params, grads)

    def weights(self, state: ScorerState) -> tuple[Params, Float[Array, 'D K']]:
        """Plain decoder weights that compute the same as the state's, and the head."""
        params = state.model.params
        return lora.merge(decoder_params(params['decoder'], state.model.frozen)), params['head']

    def _everywhere(self, x: Array) -> Array:
        """An array on every device, so that every process can read it."""
        return jax.lax.with_sharding_constraint(x, sharding.replicated(self.mesh))


def scores(trained: Params, frozen: Params, cfg: ModelConfig, batch: TokenBatch) -> Float[Array, 'R N K']:
    """The score of each reply by output, the mean of the head's values over the states that act in the batch."""
    values = forward.values(
        {'decoder': decoder_params(trained['decoder'], frozen), 'head': trained['head']}, cfg, batch
    )
    # With the pooling 'last' the one state counts that has read the whole reply, with 'mean' all states along it.
    acts = batch.acts[..., None]
    return jnp.where(acts, values, 0.0).sum(2) / jnp.maximum(acts.sum(2), 1)


def gaps(scores: Float[np.ndarray, 'G n']) -> Float[np.ndarray, 'G P']:
    """The score of the first of two neighbours minus the score of the second."""
    return scores[:, 0::2] - scores[:, 1::2]


def decoder_params(trainable: Params, frozen: Params) -> Params:
    """All parameters of the decoder."""
    return join(trainable, frozen) if 'layers' in frozen else {**frozen, **trainable}


def check_dropout(adapters: Lora | None) -> None:
    """Raises ValueError where the adapters of a reward model have dropout."""
    if adapters and adapters.dropout:
        raise ValueError(f'lora.dropout={adapters.dropout}: a reward model is read and taught in one pass; set it to 0')


def check_pooling(pooling: str) -> None:
    """Raises ValueError where the pooling is unknown."""
    if pooling not in ('last', 'mean'):
        raise ValueError(f"data.pooling={pooling!r} is unknown; use 'last' or 'mean'")


def to_score(prompt: Sequence[int], reply: Sequence[int], pooling: str = 'last') -> Example:
    """A reply to be scored, as an example.

    With the pooling 'last' its one action is a token after its last one, which nobody reads. With 'mean' all its tokens
    are actions, too.

    Raises:
      ValueError: the pooling is unknown, or prompt and reply have no token.
    """
    check_pooling(pooling)
    if not (sequence := [*prompt, *reply]):
        raise ValueError('a reply to be scored has no tokens, and its prompt none; give it one that ends its turn')
    # A reply of no tokens, without even one that ends its turn, is scored at the last token of its prompt, where
    # transformers' classifiers read such a sequence.
    return Example(prompt, [*reply, sequence[-1]], [*[pooling == 'mean'] * len(reply), True])


def pack_replies(
    groups: Sequence[PromptGroup],
    mesh: Mesh,
    *,
    micro_rows: int,
    row_tokens: int = 0,
    multiple: int = MULTIPLE,
    n: int | None = None,
    times: Sequence[int] | np.ndarray | None = None,
) -> ReplyGroups:
    """Groups of replies, all made by `to_score`, in rows as `packing.lay_out` has it.

    The pairs that a group names as compared are learnt, with one weight for the group as a whole. Where no group names
    any, neighbours are the pairs, of groups with `n` replies. Labels are learnt where groups have them.

    Args:
      n: the largest number of replies of a group; by default that of the largest group.
      times: how often each group counts.
    """
    n = n or max(len(group.branches) for group in groups)
    times = np.ones(len(groups)) if times is None else np.asarray(times)
    compares = any(group.compared for group in groups)
    # The largest number of pairs of a group.
    size = n * (n - 1) // 2 if compares else n // 2
    acts = max(sum(branch.acts or ()) for group in groups for branch in group.branches)
    actions = 1 if acts == 1 else round_up(acts, MULTIPLE)
    neighbours = [BranchPair(k, k + 1) for k in range(0, n - 1, 2)]
    ways = sharding.batch_ways(mesh)
    layout = lay_out_groups(groups, ways=ways, micro_rows=micro_rows, row_tokens=row_tokens, multiple=multiple)
    # Rows have places for many short groups, so that batches of few and of many groups share a program.
    layout = layout._replace(groups=max(layout.groups, 1 << max(row_tokens // (SHORT * n) - 1, 0).bit_length()))
    packed = pack_groups(groups, layout, n=n, actions=actions)
    places = {i: (r, place * n) for r, row in enumerate(layout.rows) for place, i in enumerate(row)}
    # Each group's row, and the place of its first reply in that row.
    rows, starts = np.array([places[i] for i in range(len(groups))]).T
    shape = packed.acts.shape[0], packed.acts.shape[1] // n * size
    better, worse, weight, margin = (np.zeros(shape, dtype) for dtype in (np.int32, np.int32, np.float32, np.float32))
    # Lessons of one batch are all of one kind, so that no group's neighbours stand in for pairs that nobody compared.
    lessons = [group.compared if compares else neighbours if len(group.branches) == n else () for group in groups]
    # Groups that teach nothing have no weight.
    times = times * [len(compared) > 0 for compared in lessons]
    # Pairs are named by the places of their two replies in the row that their group stands in.
    for compared, row, start, count in zip(lessons, rows, starts, times / max(times.sum(), 1), strict=True):
        for k, pair in enumerate(compared, start // n * size):
            better[row, k], worse[row, k], margin[row, k] = start + pair.better, start + pair.worse, pair.margin
            weight[row, k] = count / len(compared)
    labelled = _labels(groups, rows, starts, packed.acts.shape[:2]) if groups[0].labels else (None, None)
    taught: Any = better, worse, weight, margin, *labelled
    batch, lesson = sharding.put_batch((packed, Lesson(*taught)), mesh)
    where = np.repeat(rows[:, None], n, axis=1), starts[:, None] + np.arange(n)
    exists = np.arange(n)[None] < np.array([len(group.branches) for group in groups])[:, None]
    return ReplyGroups(batch, lesson, where, exists, multiple)


def _labels(groups: Sequence[PromptGroup], rows: np.ndarray, starts: np.ndarray, shape: tuple[int, ...]) -> Any:
    """The labels `[R, N, K]` of groups in rows, NaN where no reply is, and the weight `[R, N]` of each reply's.

    The loss is a mean over groups.
    """
    labels = np.full((*shape, len(groups[0].labels[0])), np.nan, np.float32)
    counts = np.zeros(shape, np.float32)
    for group, row, start in zip(groups, rows, starts, strict=True):
        for k, of_reply in enumerate(group.labels):
            labels[row, start + k] = of_reply
            # A reply counts once for each pair that it is in.
            pairs = [k in (pair.better, pair.worse) for pair in group.compared]
            # A group without comparisons counts as the mean over its replies. Another counts as the sum over the two
            # replies of each pair, as in Safe RLHF's loss.
            times = sum(pairs) / len(pairs) if pairs else 1.0 / len(group.branches)
            counts[row, start + k] = times / len(groups)
    return labels, counts
