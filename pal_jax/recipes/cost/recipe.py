"""Cost models (Safe RLHF, arXiv 2310.12773): a decoder with a head of one number, the cost of an answer.

A cost is above 0 where the answer is unsafe, and higher the less safe the answer is. A step scores both answers of
`batch_size` pairs and updates once on two losses (section 3.2): the less safe answer costs more, and the sign of a cost
is that of the answer's label. An evaluation measures, on held-out pairs, how often the order is right, how often the
sign is, and whether the model goes by length. The export is a classifier of one label for transformers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pal_jax.data import rows as data
from pal_jax.data.packing import PromptGroup
from pal_jax.data.rows import Rows
from pal_jax.data.safety import SafetyRows, judged_rows
from pal_jax.learners.labelled import CostLoss, pack_labelled
from pal_jax.learners.scorer import ReplyGroups, Scorer, ScorerState, gaps
from pal_jax.models.files.families import classifier_to_hf
from pal_jax.models.params import Params
from pal_jax.recipes.cost import evaluation as cost_model
from pal_jax.run import record_scorer, scorers, sharding
from pal_jax.run.language import RowRun
from pal_jax.run.models import keeping, make_policy
from pal_jax.run.planned import PlannedRun, reading
from pal_jax.run.recipe import Context, Evaluation, Host, Plan, check_finite, stage_before
from pal_jax.run.runs import read_settings
from pal_jax.run.scorers import OpenScores
from pal_jax.run.trained import TrainedModel
from pal_jax.types import Metrics

LABELS = ('cost',)  # the names of the export's outputs
SHOWN = 'loss', 'accuracy', 'sign_accuracy', 'sign_accuracy_of_commoner'  # on the console


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(RowRun):
    """The keys of a cost model's run; those that every supervised method has are in `run/language.py`."""

    data: SafetyRows
    cost: CostLoss = CostLoss()


@dataclasses.dataclass(frozen=True)
class CostModel:
    """A scorer that learns from pairs of answers with labels. `load` reads its decoder's weights before training."""

    plan: Plan
    ctx: Context
    scorer: Scorer
    rows: Rows
    micro_rows: int
    load: Callable[[Params], Params]

    def init(self) -> tuple[ScorerState, Host]:
        return self.scorer.init(self.load(self.scorer.param_shardings)), {}

    def step(self, state: ScorerState, host: Host, i: int) -> tuple[ScorerState, Host, str, Metrics]:
        # 1. Draw the pairs of the step.
        groups = self.rows.draw(i)
        with self.ctx.phase('update'):
            # 2. Score both answers of each, and descend the losses of their order and of their signs once.
            state, scores, figures = self.scorer.learn(state, self.pack(groups))
        check_finite(state)
        metrics = {name.removeprefix('reward_'): value for name, value in figures.items()}
        costs, unsafe = scores[..., 0], labels_of(groups)
        # Pairs of a plain preference set have an order and no labels.
        if (known := ~np.isnan(unsafe)).any():
            metrics['sign_accuracy'] = float(cost_model.signs(costs[known], unsafe[known]).mean())
        tokens = float(sum(group.length for group in groups))
        # A pair's less safe answer stands first, so a margin above 0 is the right order.
        margin = float(gaps(costs).mean())
        metrics |= {'margin': margin, 'tokens': tokens, 'left_out': float(self.rows.left_out)}
        return state, host, 'cost', metrics

    def evaluate(self, state: ScorerState, stage: str) -> Evaluation:
        """Figures of held-out pairs: how often their order and the signs of their answers' costs are right."""
        with self.ctx.phase('evaluate'):
            # Every process scores all pairs, so that all of them write the same record.
            scored = [self.scorer.scores(state, self.pack(groups))[..., 0] for groups in self.rows.test_groups()]
        test, unsafe = scorers.held_out(self.rows.test, np.concatenate(scored)), labels_of(self.rows.test)
        record = cost_model.measure(*test, unsafe)
        exhibits = cost_model.make_exhibits(test.scores, unsafe, record)
        return Evaluation(record | {'moved': self.rows.moved}, exhibits=exhibits)

    def pack(self, groups: Sequence[PromptGroup]) -> ReplyGroups:
        """Pairs of answers as a batch, the less safe answer of a pair first."""
        packed = pack_labelled(
            groups, self.ctx.mesh, ways=sharding.batch_ways(self.ctx.mesh), micro_rows=self.micro_rows,
            row_tokens=self.rows.row_tokens, n=self.rows.n,
        )  # fmt: skip
        return scorers.by_pair(packed, groups)


def make(settings: Settings, ctx: Context) -> CostModel:
    """Check the config, read the pairs and build the parts; weights are read by `init`.

    Raises:
      ValueError: a value or a line of a file is wrong, labels are missing, or transformers has no classifier for the
        export.
      RuntimeError: the model cannot be had.
    """
    data.check(settings)
    policy = make_policy(settings.policy, ctx, settings.seed)
    # A family without a classifier is refused here, and not when training is over.
    if settings.export:
        classifier_to_hf(policy.cfg, policy.tokenizer.padding_apart(), labels=LABELS)
    rows = judged_rows(settings, policy.tokenizer)
    ctx.log(f'{rows.told}; {check_labels(settings, rows)}')
    steps = data.steps_of(settings, rows)
    scorer = scorers.make_scorer(settings, policy.cfg, ctx, settings.cost, steps=steps)
    stage = functools.partial(stage_before, warmup=0, steps=steps, every=settings.eval.every, base=settings.eval.base)
    trained = scorers.trained_scorer(policy, scorer, LABELS)
    plan = Plan(steps, scorer.abstract, stage, trained, shown=SHOWN, keep=keeping(policy=policy))
    return CostModel(plan, ctx, scorer, rows, settings.data.micro_rows, policy.source.load)


def planned(settings: Settings, prompt: int) -> PlannedRun:
    """The part of a run that is planned, see `run/planned.py`."""
    return reading(settings, functools.partial(scorers.make_scorer, loss=settings.cost), n=2)


def make_trained(settings: Settings, ctx: Context) -> TrainedModel:
    """The model that a run trains, without its rows, which may be gone."""
    policy = make_policy(settings.policy, ctx, settings.seed)
    return scorers.trained_scorer(policy, scorers.make_scorer(settings, policy.cfg, ctx, settings.cost), LABELS)


def open_scores(folder: str | Path, ctx: Context) -> OpenScores:
    """Open the cost model of a run; its scores are costs, so the higher one belongs to the less safe answer.

    Raises:
      ValueError, RuntimeError: the model or its checkpoint cannot be read.
    """
    settings = read_settings(folder)
    if not isinstance(settings, Settings):
        raise ValueError(f'{folder} is a run of {settings.recipe}; give one of cost')
    return scorers.open_scores(folder, settings, ctx, settings.cost)


def open_scorer(workdir: str, person: str) -> record_scorer.RecordScorer:
    """Open the cost model of a run for records of prompts with responses. Raises as `record_scorer.of_replies`."""
    scorer = record_scorer.of_replies(workdir, person, 'a cost model', open_scores, record_scorer.to_turn)

    def details(groups: Sequence[PromptGroup]) -> list[dict[str, Any]]:
        return [{'score': score, 'unsafe': score > 0.0} for score in scorer.score(groups).tolist()]

    return scorer._replace(keys=('score', 'unsafe'), details=details)


def labels_of(groups: Sequence[PromptGroup]) -> np.ndarray:
    """The labels of the answers of all pairs `[pairs, 2]`, the less safe answer first.

    A label is 1 where the answer is unsafe and 0 where it is safe, or NaN where it has none.
    """
    pairs = scorers.compared(groups)
    return np.array([[groups[i].labels[k][0] for k in (pair.better, pair.worse)] for i, pair in pairs])


def check_labels(settings: Settings, rows: Rows) -> str:
    """A line that counts the answers to learn from by their labels.

    Raises:
      ValueError: no answer is safe, or none unsafe, so that the sign of a cost would mean nothing.
    """
    labels = labels_of(rows.train)
    unsafe, safe, unknown = (int(part.sum()) for part in (labels == 1.0, labels == 0.0, np.isnan(labels)))
    counted = f'answers: {unsafe} unsafe, {safe} safe, {unknown} without a label'
    if not unsafe or not safe:
        raise ValueError(
            f'data.train={settings.data.train}, {counted}; the sign of a cost is learnt from some of both, so give '
            'records of PKU-SafeRLHF, or rank these pairs by a reward model (configs/reward.py)'
        )
    return counted
