"""Reward models (Ouyang et al. 2022): a decoder with a head of one number that scores a reply.

The head is read at the last token of a reply, or with `data.pooling='mean'` over all of it, from the token before it. A
step scores both replies of `batch_size` pairs and updates once on the Bradley-Terry loss of their differences. With
`data.replies` above 2 the pairs of one prompt are a group, which reads a reply once for all its pairs (section 3.5). An
evaluation measures, on held-out pairs, how often the model is right, whether it is as right as it is sure, and whether
it goes by length. The export is a classifier of one label for transformers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pal_jax.data import chats
from pal_jax.data import rows as data
from pal_jax.data.packing import BranchPair, PromptGroup, shared_prompt
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.learners.scorer import BradleyTerry, Scorer, ScorerState, gaps, to_score
from pal_jax.recipes.scorer import pairs, recipe
from pal_jax.recipes.scorer.recipe import Kind, OpenScores, ScorerRecipe, Scores
from pal_jax.run import record_scorer
from pal_jax.run.language import RowSettings, SupervisedRun
from pal_jax.run.models import Policy, make_policy
from pal_jax.run.planned import PlannedRun, reading
from pal_jax.run.recipe import Context, check_at_least
from pal_jax.run.trained import Export, TrainedModel
from pal_jax.types import Exhibit, Metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairSettings(RowSettings):
    """Pairs of replies, and the part of a reply that is scored."""

    replies: int = 2  # above 2: pairs of one prompt are a group, in which each of so many replies is read once
    pooling: str = 'last'  # the token of a reply whose state is scored; 'mean': the mean of all scores


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(SupervisedRun):
    """The keys of a reward model's run; those that every supervised method has are in `run/language.py`."""

    data: PairSettings
    reward: BradleyTerry = BradleyTerry()


def figures(groups: Sequence[PromptGroup], scores: Scores) -> Metrics:
    """The mean margin: the better reply of a pair stands first, so a margin above 0 is the right order."""
    return {'margin': float(gaps(scores[..., 0]).mean())}


def measure(groups: Sequence[PromptGroup], scores: Scores) -> tuple[dict[str, Any], list[Exhibit]]:
    """Figures of held-out pairs: how often they are the right way round, and whether the model is as right as it is
    sure."""
    test = recipe.held_out(groups, scores[..., 0])
    record = pairs.measure(*test)
    return record, pairs.make_exhibits(test.scores, test.lengths, record)


KIND = Kind('reward', ('reward',), ('loss', 'accuracy'), recipe.by_pair, figures, measure)


def make(settings: Settings, ctx: Context) -> ScorerRecipe:
    """Check the config, read the pairs and build the parts; weights are read by `init`.

    Raises:
      ValueError: a value or a line of a file is wrong, or transformers has no classifier for the export.
      RuntimeError: the model cannot be had.
    """
    check_at_least(settings, 2, 'data.replies')
    if settings.export:
        check_classifier(settings)
    policy = recipe.begin(settings, ctx, KIND.outputs)
    n, convert = settings.data.replies, functools.partial(to_group, policy.tokenizer, pooling=settings.data.pooling)
    gathered = functools.partial(gather, replies=n, length=settings.data.max_length)
    rows = data.make_rows(settings, convert, 'chosen', n, gathered)
    ctx.log(rows.told)
    made = recipe.assemble(settings, ctx, KIND, policy, rows, settings.reward)
    return dataclasses.replace(made, plan=made.plan._replace(trained=trained_by(settings, policy, made.scorer)))


def planned(settings: Settings, prompt: int) -> PlannedRun:
    """The part of a run that is planned, see `run/planned.py`."""
    return reading(settings, functools.partial(recipe.make_scorer, loss=settings.reward), n=2)


def make_trained(settings: Settings, ctx: Context) -> TrainedModel:
    """The model that a run trains, without its rows, which may be gone."""
    policy = make_policy(settings.policy, ctx, settings.seed)
    return trained_by(settings, policy, recipe.make_scorer(settings, policy.cfg, ctx, settings.reward))


def trained_by(settings: Settings, policy: Policy, scorer: Scorer) -> TrainedModel:
    """The export of a reward model. Raises ValueError, when it is made, for a pooling that no classifier has."""
    trained = recipe.trained_scorer(policy, scorer, KIND.outputs)

    def exports(state: ScorerState) -> dict[str, Export]:
        check_classifier(settings)
        return trained.exports(state)

    return trained._replace(exports=exports)


def open_scores(folder: str | Path, ctx: Context) -> OpenScores:
    """Open the reward model of a run.

    Raises:
      ValueError, RuntimeError: the model or its checkpoint cannot be read.
    """
    settings = recipe.settings_of(folder, Settings, 'reward')
    return recipe.open_scores(folder, settings, ctx, settings.reward, settings.data.pooling)


def open_scorer(workdir: str, person: str) -> record_scorer.RecordScorer:
    """Open the reward model of a run for records of prompts with completions. Raises as `recipe.of_replies`."""
    scorer = recipe.of_replies(workdir, person, 'a reward model', open_scores, record_scorer.to_group)
    return scorer._replace(form=record_scorer.form_of)


def check_classifier(settings: Settings) -> None:
    """Raises ValueError where transformers has no classifier with the pooling of the run."""
    if settings.data.pooling != 'last':
        raise ValueError(
            f"data.pooling={settings.data.pooling!r}: transformers' classifiers read the last token; take 'last', or "
            'train with --config.export=False and keep the run'
        )


def to_group(tokenizer: Tokenizer, record: object, pooling: str = 'last') -> PromptGroup:
    """A pair as a group: the prompt once, then the chosen and the rejected reply; the margin is the record's `margin`.

    Raises:
      ValueError: the record is no pair, its margin is no number, or its replies are the same.
    """
    pair = chats.to_prefer(record, tokenizer)
    margin = record.get('margin', 0.0) if isinstance(record, dict) else 0.0
    if not isinstance(margin, int | float) or not np.isfinite(margin):
        raise ValueError(f"'margin' must be a number, got {margin!r}")
    group = shared_prompt([to_score(example.prompt, example.completion, pooling) for example in pair])
    return group._replace(compared=[BranchPair(0, 1, float(margin))])


def gather(pairs: Sequence[PromptGroup], *, replies: int, length: int) -> list[list[PromptGroup]]:
    """Groups by prompt, of up to `replies` replies and `length` tokens.

    A pair joins the first group that has room for it and has not compared its two replies. With two replies every pair
    is a group.
    """
    by_prompt: dict[tuple[int, ...], list[PromptGroup]] = {}
    for pair in pairs:
        groups = by_prompt.setdefault(tuple(pair.prompt), [])
        # First fit: the first group that has room takes the pair.
        for k, group in enumerate(groups):
            # A group in which every two replies are compared takes no further pair.
            whole = len(group.compared) == replies * (replies - 1) // 2
            if not whole and fits(both := joined(group, pair), replies, length):
                groups[k] = both
                break
        else:
            groups.append(pair)
    return list(by_prompt.values())


def fits(group: PromptGroup, replies: int, length: int) -> bool:
    """True where a group is within these limits and compares no two replies twice."""
    sides = {frozenset((pair.better, pair.worse)) for pair in group.compared}
    return len(group.branches) <= replies and group.length <= length and len(sides) == len(group.compared)


def joined(group: PromptGroup, pair: PromptGroup) -> PromptGroup:
    """A group with one more pair of its prompt; each reply is in it once."""
    # Replies are the same where their tokens are: each is read once, whatever pairs it is in.
    replies = {tuple(branch.tokens): branch for branch in (*group.branches, *pair.branches)}
    number = {tokens: k for k, tokens in enumerate(replies)}
    better, worse = (number[tuple(branch.tokens)] for branch in pair.branches)
    compared = BranchPair(better, worse, pair.compared[0].margin)
    return PromptGroup(group.prompt, list(replies.values()), [*group.compared, compared])
