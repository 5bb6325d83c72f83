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
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pal_jax.data import chats
from pal_jax.data import rows as data
from pal_jax.data.packing import BranchPair, PromptGroup, shared_prompt
from pal_jax.data.rows import Rows
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.learners.scorer import BradleyTerry, ReplyGroups, Scorer, ScorerState, gaps, pack_replies, to_score
from pal_jax.models.files.families import classifier_to_hf
from pal_jax.models.params import Params
from pal_jax.run import record_scorer, reward_model, scorers, sharding
from pal_jax.run.language import RowSettings, SupervisedRun
from pal_jax.run.models import Policy, keeping, make_policy
from pal_jax.run.planned import PlannedRun, reading
from pal_jax.run.recipe import Context, Evaluation, Host, Plan, check_at_least, check_finite, stage_before
from pal_jax.run.runs import read_settings
from pal_jax.run.scorers import OpenScores
from pal_jax.run.trained import Export, TrainedModel
from pal_jax.types import Metrics


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


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A scorer that learns from pairs of replies. `load` reads its decoder's weights before training."""

    plan: Plan
    ctx: Context
    scorer: Scorer
    rows: Rows
    micro_rows: int
    load: Callable[[Params], Params]

    def init(self) -> tuple[ScorerState, Host]:
        return self.scorer.init(self.load(self.scorer.param_shardings)), {}

    def step(self, state: ScorerState, host: Host, i: int) -> tuple[ScorerState, Host, str, Metrics]:
        # 1. Draw the groups of replies of the step.
        groups = self.rows.draw(i)
        with self.ctx.phase('update'):
            # 2. Score their replies, and descend the loss of the pairs' differences once.
            state, scores, figures = self.scorer.learn(state, self.pack(groups))
        check_finite(state)
        metrics = {name.removeprefix('reward_'): value for name, value in figures.items()}
        tokens = float(sum(group.length for group in groups))
        # The better reply of a pair stands first, so a margin above 0 is the right order.
        margin = float(gaps(scores[..., 0]).mean())
        metrics |= {'margin': margin, 'tokens': tokens, 'left_out': float(self.rows.left_out)}
        return state, host, 'reward', metrics

    def evaluate(self, state: ScorerState, stage: str) -> Evaluation:
        """Figures of held-out pairs: how often they are the right way round, and whether the model is as right as it is
        sure."""
        with self.ctx.phase('evaluate'):
            scored = [self.scorer.scores(state, self.pack(groups))[..., 0] for groups in self.rows.test_groups()]
        test = scorers.held_out(self.rows.test, np.concatenate(scored))
        record = reward_model.measure(*test)
        exhibits = reward_model.make_exhibits(test.scores, test.lengths, record)
        return Evaluation(record | {'moved': self.rows.moved}, exhibits=exhibits)

    def pack(self, groups: Sequence[PromptGroup]) -> ReplyGroups:
        """Groups of replies as a batch, from which all pairs that were compared are picked, the better reply first."""
        mesh, row_tokens = self.ctx.mesh, self.rows.row_tokens
        packed = pack_replies(
            groups, mesh, ways=sharding.batch_ways(mesh), micro_rows=self.micro_rows, row_tokens=row_tokens,
            n=self.rows.n,
        )  # fmt: skip
        return scorers.by_pair(packed, groups)


def make(settings: Settings, ctx: Context) -> RewardModel:
    """Check the config, read the pairs and build the parts; weights are read by `init`.

    Raises:
      ValueError: a value or a line of a file is wrong, or transformers has no classifier for the export.
      RuntimeError: the model cannot be had.
    """
    data.check(settings)
    check_at_least(settings, 2, 'data.replies')
    policy = make_policy(settings.policy, ctx, settings.seed)
    # A family without a classifier is refused here, and not when training is over.
    if settings.export:
        check_classifier(settings)
        classifier_to_hf(policy.cfg, policy.tokenizer.padding_apart())
    n, convert = settings.data.replies, functools.partial(to_group, policy.tokenizer, pooling=settings.data.pooling)
    gathered = functools.partial(gather, replies=n, length=settings.data.max_length)
    rows = data.make_rows(settings, convert, 'chosen', n, gathered)
    ctx.log(rows.told)
    steps = data.steps_of(settings, rows)
    scorer = scorers.make_scorer(settings, policy.cfg, ctx, settings.reward, steps=steps)
    stage = functools.partial(stage_before, warmup=0, steps=steps, every=settings.eval.every, base=settings.eval.base)
    trained = trained_by(settings, policy, scorer)
    plan = Plan(steps, scorer.abstract, stage, trained, keep=keeping(policy=policy))
    return RewardModel(plan, ctx, scorer, rows, settings.data.micro_rows, policy.source.load)


def planned(settings: Settings, prompt: int) -> PlannedRun:
    """The part of a run that is planned, see `run/planned.py`."""
    return reading(settings, functools.partial(scorers.make_scorer, loss=settings.reward), n=2)


def make_trained(settings: Settings, ctx: Context) -> TrainedModel:
    """The model that a run trains, without its rows, which may be gone."""
    policy = make_policy(settings.policy, ctx, settings.seed)
    return trained_by(settings, policy, scorers.make_scorer(settings, policy.cfg, ctx, settings.reward))


def trained_by(settings: Settings, policy: Policy, scorer: Scorer) -> TrainedModel:
    """The export of a reward model. Raises ValueError, when it is made, for a pooling that no classifier has."""
    trained = scorers.trained_scorer(policy, scorer, labels=('reward',))

    def exports(state: ScorerState) -> dict[str, Export]:
        check_classifier(settings)
        return trained.exports(state)

    return trained._replace(exports=exports)


def open_scores(folder: str | Path, ctx: Context) -> OpenScores:
    """Open the reward model of a run.

    Raises:
      ValueError, RuntimeError: the model or its checkpoint cannot be read.
    """
    settings = read_settings(folder)
    if not isinstance(settings, Settings):
        raise ValueError(f'{folder} is a run of {settings.recipe}; give one of reward')
    return scorers.open_scores(folder, settings, ctx, settings.reward, settings.data.pooling)


def open_scorer(workdir: str, person: str) -> record_scorer.RecordScorer:
    """Open the reward model of a run for records of prompts with completions. Raises as `record_scorer.of_replies`."""
    read, form = record_scorer.to_group, record_scorer.form_of
    return record_scorer.of_replies(workdir, person, 'a reward model', open_scores, read, form)


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
