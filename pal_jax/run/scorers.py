"""The parts that methods with a scorer share: its export, and its scores of texts and of held-out pairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pal_jax.data.packing import BranchPair, PromptGroup
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.learners.scorer import ReplyGroups, ScoreLoss, Scorer, ScorerState, pack_replies
from pal_jax.models.config import ModelConfig
from pal_jax.run import sharding
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.language import RowRun
from pal_jax.run.models import Policy, make_adapters, make_policy
from pal_jax.run.recipe import Context
from pal_jax.run.trained import Export, TrainedModel

ScoreGroups = Callable[[Sequence[PromptGroup]], Float[np.ndarray, 'G n']]


class OpenScores(NamedTuple):
    """A trained scorer of one output: its tokenizer, the pooling that `to_score` needs, and the scores of groups."""

    tokenizer: Tokenizer
    pooling: str
    scores: ScoreGroups


class HeldOutPairs(NamedTuple):
    """Pairs that were not learnt, the side that should score higher first.

    `lengths` are in tokens, and `prompts` are numbers, equal where prompts are equal.
    """

    scores: Float[np.ndarray, 'P 2']
    lengths: Int[np.ndarray, 'P 2']
    prompts: Int[np.ndarray, ' P']


def make_scorer(
    settings: RowRun, cfg: ModelConfig, ctx: Context, loss: ScoreLoss, *, outputs: int = 1, steps: int = 1
) -> Scorer:
    """The scorer that the settings describe, for so many steps."""
    return Scorer(
        cfg, settings.optimizer.over(steps), ctx.mesh, micro_rows=settings.data.micro_rows,
        adapters=make_adapters(settings.policy.lora), loss=loss, outputs=outputs, seed=settings.seed,
    )  # fmt: skip


def trained_scorer(policy: Policy, scorer: Scorer, labels: Sequence[str]) -> TrainedModel:
    """The export of a method whose state is a scorer's: a classifier, whose outputs have the names `labels`."""

    def exports(state: ScorerState) -> dict[str, Export]:
        params, head = scorer.weights(state)
        return {'export': Export(params, policy.cfg, policy.tokenizer, head=head, labels=labels)}

    return TrainedModel(exports, scorer.abstract_weights, policy.cfg, policy.tokenizer)


def open_scores(
    folder: str | Path, settings: RowRun, ctx: Context, loss: ScoreLoss, pooling: str = 'last'
) -> OpenScores:
    """Open the scorer of a run that has these settings, to score on this machine.

    Raises:
      ValueError, RuntimeError: the model or its checkpoint cannot be read.
    """
    model = make_policy(settings.policy, ctx.of(folder), settings.seed)
    scorer = make_scorer(settings, model.cfg, ctx, loss)
    state, *_ = Checkpoints(folder, scorer.abstract_weights, read_only=True).read()
    ways, micro_rows, row_tokens = sharding.batch_ways(ctx.mesh), settings.data.micro_rows, settings.data.row_tokens

    def scores(groups: Sequence[PromptGroup]) -> np.ndarray:
        pairs = pack_replies(groups, ctx.mesh, ways=ways, micro_rows=micro_rows, row_tokens=row_tokens)
        return scorer.scores(state, pairs)[..., 0]

    return OpenScores(model.tokenizer, pooling, scores)


def compared(groups: Sequence[PromptGroup]) -> list[tuple[int, BranchPair]]:
    """All pairs of groups, each with its group's number."""
    return [(i, pair) for i, group in enumerate(groups) for pair in group.compared]


def by_pair(packed: ReplyGroups, groups: Sequence[PromptGroup]) -> ReplyGroups:
    """The packed groups with all pairs that were compared picked, the better reply first."""
    of, *sides = np.array([(i, pair.better, pair.worse) for i, pair in compared(groups)]).T
    return packed.pick(of[:, None], np.stack(sides, axis=1))


def held_out(groups: Sequence[PromptGroup], scores: Float[np.ndarray, 'P 2']) -> HeldOutPairs:
    """The pairs that were compared in groups, with their scores."""
    pairs = compared(groups)
    replies = [[groups[i].branches[k] for k in (pair.better, pair.worse)] for i, pair in pairs]
    lengths = np.array([[len(reply.tokens) - 1 for reply in sides] for sides in replies])
    number: dict[tuple[int, ...], int] = {}
    prompts = [number.setdefault(tuple(groups[i].prompt), len(number)) for i, _ in pairs]
    return HeldOutPairs(scores, lengths, np.array(prompts))
