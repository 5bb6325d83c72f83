"""Lessons and losses of replies with labels: 14 outputs of categories, or one cost with the sign of safety.

pairs = pack_labelled(groups, mesh, ways=1, micro_rows=4)             # groups with `labels`
state, _, metrics = Scorer(..., loss=LabelLoss(), outputs=14).learn(state, pairs)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from pal_jax.data.packing import PromptGroup
from pal_jax.learners.scorer import BradleyTerry, Lesson, ReplyGroups, pack_replies
from pal_jax.objectives.labels import label_loss, sign_loss
from pal_jax.run import sharding


class LabelLesson(NamedTuple):
    """The labels of the replies in each row, the weight of each reply in the loss, and the pairs that were compared.

    A label is NaN where a place of a row has no reply.
    """

    labels: Float[Array, 'R N K']
    weight: Float[Array, 'R N']
    pairs: Lesson


@dataclasses.dataclass(frozen=True)
class LabelLoss:
    """The loss of a moderator (BeaverTails): the mean binary cross-entropy over categories.

    Attributes:
      positive_weights: the weight of a reply in a category that it has, a number by category; (): 1 for all.
    """

    positive_weights: tuple[float, ...] = ()

    def __call__(self, scores: Float[Array, 'R N K'], lesson: LabelLesson) -> Float[Array, '']:
        weights = jnp.asarray(self.positive_weights) if self.positive_weights else 1.0
        losses = label_loss(scores, lesson.labels, weights)
        return jnp.sum(lesson.weight * losses.mean(axis=-1))


@dataclasses.dataclass(frozen=True)
class CostLoss:
    """The loss of a cost model (Safe RLHF, section 3.2).

    A pair has the loss `-log sigmoid(C_hi - C_lo)`, where `hi` is the less safe reply. Both its replies have the loss
    `-log sigmoid(s C)`, where `s` is the sign of their label. The two terms have no weights, as published: without the
    signs a cost is a ranking without a zero.

    Attributes:
      regularization: the weight of the mean square of a pair's two costs.
    Raises:
      ValueError: a value is out of its range.
    """

    regularization: float = 1e-3

    def __post_init__(self):
        if not 0.0 <= self.regularization < math.inf:
            raise ValueError(f'cost.regularization={self.regularization} must be a number of at least 0')

    def __call__(self, scores: Float[Array, 'R N 1'], lesson: LabelLesson) -> Float[Array, '']:
        ranking = BradleyTerry(regularization=self.regularization)(scores, lesson.pairs)
        signs = sign_loss(scores[..., 0], lesson.labels[..., 0])
        return ranking + jnp.sum(lesson.weight * signs)


def pack_labelled(
    groups: Sequence[PromptGroup], mesh: Mesh, *, ways: int, micro_rows: int, row_tokens: int = 0, n: int | None = None
) -> ReplyGroups:
    """Groups of replies with labels in rows, as `pack_replies` has them.

    The loss is a mean over groups. A group without comparisons counts as the mean over its replies. Another counts as
    the sum over the two replies of each pair, as in the paper's loss.
    """
    pairs = pack_replies(groups, mesh, ways=ways, micro_rows=micro_rows, row_tokens=row_tokens, n=n)
    rows, samples = pairs.where
    shape = pairs.batch.acts.shape[:2]
    labels = np.full((*shape, len(groups[0].labels[0])), np.nan, np.float32)
    weight = np.zeros(shape, np.float32)
    for group, row, places in zip(groups, rows, samples, strict=True):
        replies = range(len(group.branches))
        counts = [(pair.better, pair.worse) for pair in group.compared]
        for k in replies:
            labels[row[k], places[k]] = group.labels[k]
            # A reply counts once for each pair that it is in: the paper's signs are summed over pairs.
            times = sum(k in sides for sides in counts) / len(counts) if counts else 1.0 / len(group.branches)
            weight[row[k], places[k]] = times / len(groups)
    labels_of, counts_of = sharding.put_batch((labels, weight), mesh)
    return pairs._replace(lesson=LabelLesson(labels_of, counts_of, pairs.lesson))
