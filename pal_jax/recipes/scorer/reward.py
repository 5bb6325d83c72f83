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
from typing import Any

import numpy as np

from pal_jax.data import chats
from pal_jax.data import rows as data
from pal_jax.data.packing import BranchPair, PromptGroup, shared_prompt
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.learners.scorer import BradleyTerry, gaps, to_score
from pal_jax.recipes.scorer import pairs, recipe
from pal_jax.recipes.scorer.recipe import Kind, ScorerRecipe, Scores
from pal_jax.run import record_scorer
from pal_jax.run.language import RowSettings, SupervisedRun
from pal_jax.run.recipe import Context, check_at_least
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
    """The mean margin of the step's pairs."""
    # The better reply of a pair stands first, so a margin above 0 is the right order.
    return {'margin': float(gaps(scores[..., 0]).mean())}


def measure(groups: Sequence[PromptGroup], scores: Scores) -> tuple[dict[str, Any], list[Exhibit]]:
    """Figures of held-out pairs: how often they are the right way round, and whether the model is as right as it is
    sure."""
    lengths, prompts = recipe.lengths_and_prompts(groups)
    record = pairs.measure(scores[..., 0], lengths, prompts)
    return record, pairs.make_exhibits(scores[..., 0], lengths, record)


def check_classifier(settings: Settings) -> None:
    """Raises ValueError where transformers has no classifier with the pooling of the run."""
    if settings.data.pooling != 'last':
        raise ValueError(
            f"data.pooling={settings.data.pooling!r}: transformers' classifiers read the last token; take 'last', or "
            'train with --config.export=False and keep the run'
        )


KIND = Kind(
    name='reward',
    settings=Settings,
    loss=lambda settings: settings.reward,
    outputs=('reward',),
    shown=('loss', 'accuracy'),
    pick=recipe.by_pair,
    figures=figures,
    measure=measure,
    check=check_classifier,
    pooling=lambda settings: settings.data.pooling,
)


def make(settings: Settings, ctx: Context) -> ScorerRecipe:
    """Check the config, read the pairs and build the parts; weights are read by `init`.

    Raises:
      ValueError: a value or a line of a file is wrong, or transformers has no classifier for the export.
      RuntimeError: the model cannot be had.
    """
    check_at_least(settings, 2, 'data.replies')
    policy = recipe.begin(KIND, settings, ctx)
    n, convert = settings.data.replies, functools.partial(to_group, pooling=settings.data.pooling)
    gathered = functools.partial(gather, replies=n, length=settings.data.max_length)
    rows = data.make_rows(settings, policy.tokenizer, convert, 'chosen', n, gathered)
    ctx.log(rows.told)
    return recipe.assemble(KIND, settings, ctx, policy, rows)


planned = functools.partial(recipe.planned, KIND)
make_trained = functools.partial(recipe.make_trained, KIND)
open_scores = functools.partial(recipe.open_scores, KIND)


def open_scorer(workdir: str, person: str) -> record_scorer.RecordScorer:
    """Open the reward model of a run for records of prompts with completions. Raises as `recipe.open_scorer`."""
    chat = recipe.settings_of(KIND, workdir).chat

    def read(record: object, tokenizer: Tokenizer, pooling: str) -> PromptGroup:
        return record_scorer.to_group(chats.of_texts(record, tokenizer) if chat else record, tokenizer, pooling)

    scorer = recipe.open_scorer(KIND, read, workdir, person)
    # A model that has learnt texts as chats reads both forms alike.
    return scorer if chat else scorer._replace(form=record_scorer.form_of)


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

    With two replies every pair is a group.
    """
    by_prompt: dict[tuple[int, ...], list[PromptGroup]] = {}
    for pair in pairs:
        groups = by_prompt.setdefault(tuple(pair.prompt), [])
        # First fit: a pair joins the first group that has room for it and has not compared its two replies.
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
    # Two pairs of the same replies are one set here, whichever is the better one.
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
