"""Cost models (Safe RLHF, arXiv 2310.12773): a decoder with a head of one number, the cost of an answer.

A cost is above 0 where the answer is unsafe, and higher the less safe the answer is. A step scores both answers of
`batch_size` pairs and updates once on two losses (section 3.2): the less safe answer costs more, and the sign of a cost
is that of the answer's label. An evaluation measures, on held-out pairs, how often the order is right, how often the
sign is, and whether the model goes by length. The export is a classifier of one label for transformers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from pal_jax.data.packing import PromptGroup
from pal_jax.data.rows import Rows
from pal_jax.data.safety import SafetyRows, judged_rows
from pal_jax.learners.scorer import CostLoss, gaps
from pal_jax.recipes.scorer import pairs, recipe
from pal_jax.recipes.scorer.recipe import Kind, ScorerRecipe, Scores
from pal_jax.run import record_scorer
from pal_jax.run.language import RowRun
from pal_jax.run.recipe import Context
from pal_jax.types import Exhibit, Metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(RowRun):
    """The keys of a cost model's run; those that every supervised method has are in `run/language.py`."""

    data: SafetyRows
    cost: CostLoss = CostLoss()


def figures(groups: Sequence[PromptGroup], scores: Scores) -> Metrics:
    """The mean margin, which is above 0 in the right order, and the share of signs that are right."""
    costs, unsafe = scores[..., 0], labels_of(groups)
    margin = {'margin': float(gaps(costs).mean())}
    # Pairs of a plain preference set have an order and no labels.
    if not (known := ~np.isnan(unsafe)).any():
        return margin
    return margin | {'sign_accuracy': float(pairs.signs(costs[known], unsafe[known]).mean())}


def measure(groups: Sequence[PromptGroup], scores: Scores) -> tuple[dict[str, Any], list[Exhibit]]:
    """Figures of held-out pairs: how often their order and the signs of their answers' costs are right."""
    costs, unsafe = scores[..., 0], labels_of(groups)
    # Pairs of one prompt are not independent, so figures come with the numbers of their prompts.
    record = pairs.measure_costs(costs, *recipe.lengths_and_prompts(groups), unsafe)
    return record, pairs.make_cost_exhibits(costs, unsafe, record)


KIND = Kind(
    name='cost',
    settings=Settings,
    loss=lambda settings: settings.cost,
    outputs=('cost',),
    shown=('loss', 'accuracy', 'sign_accuracy', 'sign_accuracy_of_commoner'),
    pick=recipe.by_pair,
    figures=figures,
    measure=measure,
)


def make(settings: Settings, ctx: Context) -> ScorerRecipe:
    """Check the config, read the pairs and build the parts; weights are read by `init`.

    Raises:
      ValueError: a value or a line of a file is wrong, labels are missing, or transformers has no classifier for the
        export.
      RuntimeError: the model cannot be had.
    """
    policy = recipe.begin(KIND, settings, ctx)
    rows = judged_rows(settings, policy.tokenizer)
    ctx.log(f'{check_labels(settings, rows)}; {rows.told}')
    return recipe.assemble(KIND, settings, ctx, policy, rows)


planned = functools.partial(recipe.planned, KIND)
make_trained = functools.partial(recipe.make_trained, KIND)
# Scores are costs: the higher one is of the less safe answer.
open_scores = functools.partial(recipe.open_scores, KIND)


def open_scorer(workdir: str, person: str) -> record_scorer.RecordScorer:
    """Open the cost model of a run for records of prompts with responses. Raises as `recipe.open_scorer`."""
    scorer = recipe.open_scorer(KIND, record_scorer.to_turn, workdir, person)

    def details(groups: Sequence[PromptGroup]) -> list[dict[str, Any]]:
        # The sign of a cost is the verdict.
        return [{'score': score, 'unsafe': score > 0.0} for score in scorer.score(groups).tolist()]

    return scorer._replace(keys=('score', 'unsafe'), details=details)


def labels_of(groups: Sequence[PromptGroup]) -> np.ndarray:
    """The labels of the answers of all pairs `[pairs, 2]`, the less safe answer first.

    A label is 1 where the answer is unsafe and 0 where it is safe, or NaN where it has none.
    """
    pairs = recipe.compared(groups)
    return np.array([[groups[i].labels[k][0] for k in (pair.better, pair.worse)] for i, pair in pairs])


def check_labels(settings: Settings, rows: Rows) -> str:
    """A line that counts the answers to learn from by their labels.

    Raises:
      ValueError: no answer is safe, or none unsafe, so that the sign of a cost would mean nothing.
    """
    labels = labels_of(rows.train)
    unsafe, safe, unknown = (int(part.sum()) for part in (labels == 1.0, labels == 0.0, np.isnan(labels)))
    counted = f'answers: {unsafe} unsafe, {safe} safe, {unknown} without a label'
    # From labels of one kind alone the model would learn to give every cost the same sign.
    if not unsafe or not safe:
        raise ValueError(
            f'data.train={settings.data.train}, {counted}; the sign of a cost is learnt from some of both, so give '
            'records of PKU-SafeRLHF, or rank these pairs by a reward model (--config=reward)'
        )
    return counted
