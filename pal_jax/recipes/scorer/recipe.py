"""The run of a scorer: a decoder with a head of some numbers for a reply, each read at the reply's last token.

A reward model, a cost model and a moderator are scorers of three losses. `reward.py`, `cost.py` and `moderation.py` say
which rows they read, what they descend and how they are measured; what they do is the same and stands here. A step
scores the replies of `batch_size` groups and updates once. The export is a classifier for transformers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pal_jax.data import rows as data
from pal_jax.data.packing import BranchPair, PromptGroup
from pal_jax.data.rows import Rows
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.learners.scorer import ReplyGroups, ScoreLoss, Scorer, ScorerState, pack_replies
from pal_jax.models.config import ModelConfig
from pal_jax.models.files.families import classifier_to_hf
from pal_jax.models.params import Params
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.language import RowRun
from pal_jax.run.models import Policy, make_adapters, make_policy
from pal_jax.run.planned import PlannedRun, reading
from pal_jax.run.recipe import Context, Evaluation, Host, Plan, check_finite
from pal_jax.run.record_scorer import RecordScorer, check_nobody, one_device
from pal_jax.run.runs import read_settings
from pal_jax.run.trained import Export, TrainedModel
from pal_jax.types import Exhibit, Metrics

Scores = Float[np.ndarray, 'G n K']  # of `n` replies of each group or pair, by output
ScoreGroups = Callable[[Sequence[PromptGroup]], Float[np.ndarray, 'G n']]


class Kind(NamedTuple):
    """A kind of scorer, by what sets it apart from the others.

    Attributes:
      name: the phase of its steps. settings: the class of its settings, and loss: the loss that they describe.
      outputs: the names of the numbers of its head, which the export has, too.
      shown: figures of an evaluation that the console shows.
      pick: picks the replies of packed groups whose scores are asked for; by default all.
      figures: the figures of a step beside the loss, by the groups and their scores; by default none.
      measure: the record and the exhibits of held-out groups, by their scores; by default none.
      check: raises ValueError where settings describe no classifier of transformers.
      pooling: the pooling of settings, as `to_score` needs it.
    """

    name: str
    settings: type[RowRun]
    loss: Callable[[Any], ScoreLoss]
    outputs: tuple[str, ...]
    shown: tuple[str, ...]
    pick: Callable[[ReplyGroups, Sequence[PromptGroup]], ReplyGroups] = lambda packed, groups: packed
    figures: Callable[[Sequence[PromptGroup], Scores], Metrics] = lambda groups, scores: {}
    measure: Callable[[Sequence[PromptGroup], Scores], tuple[dict[str, Any], list[Exhibit]]] = lambda *_: ({}, [])
    check: Callable[[Any], None] = lambda settings: None
    pooling: Callable[[Any], str] = lambda settings: 'last'

    def scorer(self, settings: RowRun, cfg: ModelConfig, ctx: Context, steps: int = 1, **changes: Any) -> Scorer:
        """The scorer that the settings describe, for so many steps."""
        options: dict[str, Any] = {
            'micro_rows': settings.data.micro_rows,
            'adapters': make_adapters(settings.policy.lora),
            'loss': self.loss(settings),
            'outputs': len(self.outputs),
            'seed': settings.seed,
        }
        return Scorer(cfg, settings.optimizer.over(steps), ctx.mesh, **options | changes)

    def trained(self, settings: RowRun, policy: Policy, scorer: Scorer) -> TrainedModel:
        """The export of a run: a classifier. Raises ValueError, when it is made, where there is none of this kind."""

        def exports(state: ScorerState) -> dict[str, Export]:
            self.check(settings)
            params, head = scorer.weights(state)
            return {'export': Export(params, policy.cfg, policy.tokenizer, head=head, labels=self.outputs)}

        return TrainedModel(exports, scorer.abstract_weights, policy.cfg, policy.tokenizer)


@dataclasses.dataclass(frozen=True)
class ScorerRecipe:
    """A scorer that learns from groups of replies. `load` reads its decoder's weights before training."""

    plan: Plan
    ctx: Context
    kind: Kind
    scorer: Scorer
    rows: Rows
    load: Callable[[Params], Params]

    def init(self) -> tuple[ScorerState, Host]:
        return self.scorer.init(self.load(self.scorer.param_shardings)), {}

    def step(self, state: ScorerState, host: Host, i: int) -> tuple[ScorerState, Host, str, Metrics]:
        # 1. Draw the groups of the step.
        groups = self.rows.draw(i)
        with self.ctx.phase('update'):
            # 2. Score their replies, and descend the loss of what the groups teach once.
            state, scores, figures = self.scorer.learn(state, self.pack(groups))
        check_finite(state)
        # The learner names its figures after a reward model; the phase already tells the kind.
        metrics = {name.removeprefix('reward_'): value for name, value in figures.items()}
        metrics |= self.kind.figures(groups, scores)
        tokens = float(sum(group.length for group in groups))
        return state, host, self.kind.name, metrics | {'tokens': tokens, 'left_out': float(self.rows.left_out)}

    def evaluate(self, state: ScorerState, stage: str) -> Evaluation:
        """The figures of held-out groups."""
        # Every process scores all groups, so that all write the same record.
        record, exhibits = self.kind.measure(self.rows.test, self.scores(state, self.rows.test))
        return Evaluation(record | {'moved': self.rows.moved}, exhibits=exhibits)

    def scores(self, state: ScorerState, groups: Sequence[PromptGroup]) -> Scores:
        """The scores of groups that are not learnt."""
        size = self.rows.batch_size
        with self.ctx.phase('evaluate'):
            # Groups are scored as many at once as a step has, so that they fit where a step does.
            parts = (groups[start : start + size] for start in range(0, len(groups), size))
            return np.concatenate([self.scorer.scores(state, self.pack(part)) for part in parts])

    def pack(self, groups: Sequence[PromptGroup]) -> ReplyGroups:
        """Groups of replies as a batch with what they teach."""
        rows, scorer = self.rows, self.scorer
        packed = pack_replies(groups, scorer.mesh, micro_rows=scorer.micro_rows, row_tokens=rows.row_tokens, n=rows.n)
        return self.kind.pick(packed, groups)


def begin(kind: Kind, settings: RowRun, ctx: Context) -> Policy:
    """The decoder of a run whose sizes are right.

    Raises:
      ValueError: a value is wrong, or transformers has no classifier for the export.
      RuntimeError: the model cannot be had.
    """
    data.check(settings)
    policy = make_policy(settings.policy, ctx, settings.seed)
    # A family without a classifier is refused here, and not when training is over.
    if settings.export:
        kind.check(settings)
        classifier_to_hf(policy.cfg, policy.tokenizer.padding_apart(), labels=kind.outputs)
    return policy


def assemble(kind: Kind, settings: RowRun, ctx: Context, policy: Policy, rows: Rows, **changes: Any) -> ScorerRecipe:
    """The recipe of a run of these rows; weights are read by `init`."""
    scorer = kind.scorer(settings, policy.cfg, ctx, data.steps_of(settings, rows), **changes)
    plan = data.make_plan(settings, rows, policy, scorer.abstract, kind.trained(settings, policy, scorer))
    return ScorerRecipe(plan._replace(shown=kind.shown), ctx, kind, scorer, rows, policy.source.load)


# --- doors: each kind gives itself as the first argument --------------------------------------------------------------


def planned(kind: Kind, settings: RowRun, prompt: int) -> PlannedRun:
    """The part of a run that is planned, see `run/planned.py`."""
    return reading(settings, kind.scorer, n=2)


def make_trained(kind: Kind, settings: RowRun, ctx: Context) -> TrainedModel:
    """The model that a run trains, without its rows, which may be gone."""
    policy = make_policy(settings.policy, ctx, settings.seed)
    return kind.trained(settings, policy, kind.scorer(settings, policy.cfg, ctx))


class OpenScores(NamedTuple):
    """A trained scorer of one output: its tokenizer, the pooling that `to_score` needs, and the scores of groups."""

    tokenizer: Tokenizer
    pooling: str
    scores: ScoreGroups


def open_scores(kind: Kind, folder: str | Path, ctx: Context) -> OpenScores:
    """Open the scorer of a run, to score on this machine.

    Raises:
      ValueError, RuntimeError: the run is of another kind, or its model or checkpoint cannot be read.
    """
    settings = settings_of(kind, folder)
    model = make_policy(settings.policy, ctx.of(folder), settings.seed)
    scorer = kind.scorer(settings, model.cfg, ctx)
    # Scoring needs the weights alone, so the optimiser stays on disk.
    state, *_ = Checkpoints(folder, scorer.abstract_weights, read_only=True).read()

    def scores(groups: Sequence[PromptGroup]) -> np.ndarray:
        packed = pack_replies(groups, ctx.mesh, micro_rows=scorer.micro_rows, row_tokens=settings.data.row_tokens)
        return scorer.scores(state, packed)[..., 0]

    return OpenScores(model.tokenizer, kind.pooling(settings), scores)


def settings_of(kind: Kind, folder: str | Path) -> Any:
    """The settings of the run in a folder. Raises ValueError where it is of another kind."""
    settings = read_settings(folder)
    if not isinstance(settings, kind.settings):
        raise ValueError(f'{folder} is a run of {settings.recipe}; give one of {kind.name}')
    return settings


def open_scorer(
    kind: Kind, read: Callable[[Any, Tokenizer, str], PromptGroup], workdir: str, person: str
) -> RecordScorer:
    """The scorer of a run that scores single replies and knows no people; `read` makes groups of its records.

    Raises:
      ValueError, RuntimeError: there is a person, or as `open_scores`.
    """
    check_nobody(workdir, person, f'a {kind.name} model')
    tokenizer, pooling, scores = open_scores(kind, workdir, one_device(workdir))
    return RecordScorer(lambda record: read(record, tokenizer, pooling), lambda groups: scores(groups)[:, 0])


# --- pairs ------------------------------------------------------------------------------------------------------------


def compared(groups: Sequence[PromptGroup]) -> list[tuple[int, BranchPair]]:
    """All pairs of groups, each with its group's number."""
    return [(i, pair) for i, group in enumerate(groups) for pair in group.compared]


def by_pair(packed: ReplyGroups, groups: Sequence[PromptGroup]) -> ReplyGroups:
    """The packed groups with all pairs that were compared picked, the better reply first."""
    of, *sides = np.array([(i, pair.better, pair.worse) for i, pair in compared(groups)]).T
    return packed.pick(of[:, None], np.stack(sides, axis=1))


def lengths_and_prompts(groups: Sequence[PromptGroup]) -> tuple[Int[np.ndarray, 'P 2'], Int[np.ndarray, ' P']]:
    """The lengths in tokens of both replies of each pair that was compared, and the number of its prompt."""
    pairs = compared(groups)
    replies = [[groups[i].branches[k] for k in (pair.better, pair.worse)] for i, pair in pairs]
    # The last token of a reply to be scored is one that nobody reads (`to_score`).
    lengths = np.array([[len(reply.tokens) - 1 for reply in sides] for sides in replies])
    return lengths, prompt_numbers([groups[i] for i, _ in pairs])


def prompt_numbers(groups: Sequence[PromptGroup]) -> Int[np.ndarray, ' G']:
    """A number for the prompt of each group, equal where prompts are equal."""
    number: dict[tuple[int, ...], int] = {}
    return np.array([number.setdefault(tuple(group.prompt), len(number)) for group in groups])
