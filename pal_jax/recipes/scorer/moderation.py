"""Moderation of questions with their answers (BeaverTails, arXiv 2307.04657): a decoder with a head of 14 numbers, one
for each kind of harm, read at the last token of an answer.

A step scores `batch_size` answers and updates once on the mean binary cross-entropy over the categories. An answer is
called unsafe where a probability is above its category's threshold. Thresholds are chosen anew before an evaluation, on
answers to training prompts that are not learnt.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import scipy
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Float

from pal_jax.data import chats, holdouts
from pal_jax.data import rows as data
from pal_jax.data.packing import PromptGroup, shared_prompt
from pal_jax.data.readers.safety import CATEGORIES
from pal_jax.data.rows import Rows
from pal_jax.data.safety import SafetyRows, labelled_rows
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.learners.scorer import LabelLoss, ScorerState, pack_replies, to_score
from pal_jax.recipes.scorer import harm, recipe
from pal_jax.recipes.scorer.recipe import Kind, ScorerRecipe
from pal_jax.run import record_scorer, sharding
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.forecast import counted
from pal_jax.run.language import RowRun
from pal_jax.run.models import make_policy
from pal_jax.run.moderator import Moderator, unsafe_by
from pal_jax.run.recipe import Context, Evaluation, Host, Plan, check_at_least
from pal_jax.run.trained import Export, TrainedModel
from pal_jax.types import Chat, Metrics

HEAVIEST = 10.0  # the largest weight of an answer in a category that it has; 1 / HEAVIEST is the least
THRESHOLDS = 'pal_jax_thresholds'  # the key of an export's config.json
CHUNK = 64  # answers packed at once


@dataclasses.dataclass(frozen=True)
class LabelSettings:
    """The weights of labels in the loss, and the answers by which thresholds are chosen."""

    # A category's positive and negative answers weigh alike, up to HEAVIEST.
    weights: Literal['balanced', 'none'] = 'balanced'
    validation: int = 192  # answers to prompts of train that choose thresholds, a fifth at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(RowRun):
    """The keys of a moderator's run."""

    data: SafetyRows
    labels: LabelSettings = LabelSettings()


class ModeratorState(struct.PyTreeNode):
    """A scorer and the thresholds that were last chosen; before the first choice they are 1/2."""

    scorer: ScorerState
    thresholds: Float[Array, ' K']


@dataclasses.dataclass(frozen=True)
class Moderation:
    """A scorer that learns labels, and its thresholds, which `validation` answers choose."""

    plan: Plan
    taught: ScorerRecipe
    validation: list[PromptGroup]
    loss: LabelLoss

    def init(self) -> tuple[ModeratorState, Host]:
        scorer, host = self.taught.init()
        return ModeratorState(scorer, everywhere(np.full(len(CATEGORIES), harm.MIDDLE), self.taught.ctx.mesh)), host

    def step(self, state: ModeratorState, host: Host, i: int) -> tuple[ModeratorState, Host, str, Metrics]:
        # 1. A step of the scorer on the cross-entropy over the categories.
        scorer, host, phase, metrics = self.taught.step(state.scorer, host, i)
        state = state.replace(scorer=scorer)
        # 2. Choose thresholds for the evaluation that follows, on answers that are neither learnt nor tested.
        return self.with_thresholds(state) if self.plan.stage(i + 1) else state, host, phase, metrics

    def with_thresholds(self, state: ModeratorState) -> ModeratorState:
        """The state with the thresholds by which its scorer does best on the validation answers."""
        probabilities = scipy.special.expit(self.logits(state, self.validation))
        chosen = harm.choose_thresholds(probabilities, labels_of(self.validation) == 1.0)
        return state.replace(thresholds=everywhere(chosen, self.taught.ctx.mesh))

    def evaluate(self, state: ModeratorState, stage: str) -> Evaluation:
        """Figures of held-out answers: which are called unsafe by the thresholds, and how well probabilities rank
        them."""
        rows = self.taught.rows
        logits, labels = self.logits(state, rows.test), labels_of(rows.test)
        probabilities, has = scipy.special.expit(logits), labels == 1.0
        # Answers to one prompt are not independent: intervals are over prompts.
        record = harm.measure(probabilities, has, recipe.prompt_numbers(rows.test), np.asarray(state.thresholds))
        exhibits = harm.make_exhibits(probabilities, has, record, CATEGORIES)
        loss = float(self.loss.of_labels(jnp.asarray(logits), jnp.asarray(labels)).mean())
        return Evaluation({'loss': loss} | record | {'moved': rows.moved}, exhibits=exhibits)

    def logits(self, state: ModeratorState, groups: Sequence[PromptGroup]) -> Float[np.ndarray, 'rows K']:
        return self.taught.scores(state.scorer, groups)[:, 0]


KIND = Kind(
    name='moderation',
    settings=Settings,
    loss=lambda settings: LabelLoss(),  # `make` weighs the labels by the rows
    outputs=CATEGORIES,
    shown=('loss', 'auc', 'f1', 'recall', 'precision'),
)


def make(settings: Settings, ctx: Context) -> Moderation:
    """Check the config, read the answers and build the parts; weights are read by `init`.

    Raises:
      ValueError: a value or a record is wrong, or transformers has no classifier for the export.
      RuntimeError: the model cannot be had.
    """
    check_at_least(settings, 1, 'labels.validation', 'data.dilemmas')
    policy = recipe.begin(KIND, settings, ctx)
    rows, validation = hold_back(labelled_rows(settings, policy.tokenizer), policy.tokenizer, settings)
    fewer = holdouts.fewer('labels.validation', settings.labels.validation, len(validation))
    ctx.log(f'{counted(len(validation), "answer")} to choose thresholds, {rows.told}{fewer}')
    loss = LabelLoss(balanced(labels_of(rows.train)) if settings.labels.weights == 'balanced' else ())
    taught = recipe.assemble(KIND, settings, ctx, policy, rows, loss=loss)
    # Thresholds are part of the state, so a checkpoint and an export have them.
    abstract = ModeratorState(taught.plan.abstract, abstract_thresholds(ctx.mesh))
    plan = taught.plan._replace(abstract=abstract, trained=with_state(taught.plan.trained, ctx.mesh))
    return Moderation(plan, taught, validation, loss)


planned = functools.partial(recipe.planned, KIND)


def make_trained(settings: Settings, ctx: Context) -> TrainedModel:
    """The model that a run trains, without its rows, which may be gone."""
    return with_state(recipe.make_trained(KIND, settings, ctx), ctx.mesh)


def with_state(trained: Any, mesh: Mesh) -> TrainedModel:
    """The export of a moderator: that of its scorer, with the thresholds."""

    def exports(state: ModeratorState) -> dict[str, Export]:
        more = {THRESHOLDS: dict(zip(CATEGORIES, np.asarray(state.thresholds).tolist(), strict=True))}
        return {'export': trained.exports(state.scorer)['export']._replace(more=more)}

    return trained._replace(exports=exports, exported=ModeratorState(trained.exported, abstract_thresholds(mesh)))


# --- what is learnt ---------------------------------------------------------------------------------------------------


def hold_back(rows: Rows, tokenizer: Tokenizer, settings: Settings) -> tuple[Rows, list[PromptGroup]]:
    """The rows without the answers to some of their training prompts, and these answers.

    Raises:
      ValueError: all answers to learn from are to one prompt.
    """
    prompts = [holdouts.normal(tokenizer.text_of(group.prompt)) for group in rows.train]
    try:
        # All answers to a prompt are held back together, so thresholds are chosen on prompts that are not learnt.
        held = holdouts.held_out(prompts, settings.labels.validation, seed=settings.seed)
    except ValueError as error:
        raise ValueError(f'data.train={settings.data.train}: {error}; give answers to other prompts, too') from None
    learnt, validation = data.parted(rows.train, held)
    return rows._replace(train=learnt), validation


def balanced(labels: Float[np.ndarray, 'rows K']) -> tuple[float, ...]:
    """The weight of a positive answer by category: the number of negative answers for each positive one, between
    1 / `HEAVIEST` and `HEAVIEST`."""
    has, lacks = (labels == 1.0).sum(axis=0), (labels == 0.0).sum(axis=0)
    # In a category that no answer has or every one, there is nothing to balance.
    weights = np.where((has > 0) & (lacks > 0), lacks / np.maximum(has, 1), 1.0)
    return tuple(np.clip(weights, 1.0 / HEAVIEST, HEAVIEST).tolist())


def labels_of(groups: Sequence[PromptGroup]) -> Float[np.ndarray, 'rows K']:
    return np.array([group.labels[0] for group in groups], np.float32)


def everywhere(thresholds: Float[np.ndarray, ' K'], mesh: Mesh) -> Any:
    """Thresholds as an array that every device has."""
    return sharding.put_batch(thresholds.astype(np.float32), mesh, axes=())


def abstract_thresholds(mesh: Mesh) -> Any:
    return jax.ShapeDtypeStruct((len(CATEGORIES),), jnp.float32, sharding=sharding.replicated(mesh))


# --- a trained moderator ----------------------------------------------------------------------------------------------


def open_moderator(folder: str | Path, ctx: Context) -> Moderator:
    """Open the moderator of a run.

    Raises:
      ValueError, RuntimeError: the folder is no such run, or its model or checkpoint cannot be read.
    """
    settings = recipe.settings_of(KIND, folder)
    model = make_policy(settings.policy, ctx.of(folder), settings.seed)
    scorer = KIND.scorer(settings, model.cfg, ctx)
    exported = ModeratorState(scorer.abstract_weights, abstract_thresholds(ctx.mesh))
    state, *_ = Checkpoints(folder, exported, read_only=True).read()

    def probabilities(groups: Sequence[PromptGroup]) -> np.ndarray:
        # Without any group the result still has a column for each category.
        parts = [np.zeros((0, len(CATEGORIES)))]
        # Answers are read a chunk at once, so the memory is bounded by the longest of them.
        for start in range(0, len(groups), CHUNK):
            chunk = groups[start : start + CHUNK]
            row_tokens = settings.data.row_tokens
            packed = pack_replies(chunk, ctx.mesh, micro_rows=scorer.micro_rows, row_tokens=row_tokens)
            parts.append(scipy.special.expit(scorer.scores(state.scorer, packed)[:, 0]))
        return np.concatenate(parts)

    read = functools.partial(to_group, model.tokenizer, model.cfg.max_len)
    return Moderator(np.asarray(state.thresholds), read, probabilities)


def open_scorer(workdir: str, person: str) -> record_scorer.RecordScorer:
    """Open the moderator of a run for records of prompts with responses, whose scores are the largest probabilities.

    Raises:
      ValueError, RuntimeError: there is a person, or as `open_moderator`.
    """
    record_scorer.check_nobody(workdir, person, 'a moderator')
    moderator = open_moderator(workdir, record_scorer.one_device(workdir))

    def read(record: Any) -> PromptGroup:
        return moderator.read(*record_scorer.to_pair(record))

    def score(groups: Sequence[PromptGroup]) -> np.ndarray:
        return harm.harm(moderator.probabilities(groups))

    def details(groups: Sequence[PromptGroup]) -> list[dict[str, Any]]:
        probabilities = moderator.probabilities(groups)
        verdicts = zip(
            harm.harm(probabilities).tolist(),
            probabilities.tolist(),
            unsafe_by(probabilities, moderator.thresholds),
            strict=True,
        )
        return [
            {
                'score': score,
                'categories': {name: round(p, 4) for name, p in zip(CATEGORIES, row, strict=True)},
                'unsafe': bool(unsafe),
            }
            for score, row, unsafe in verdicts
        ]

    return record_scorer.RecordScorer(read, score, keys=('score', 'categories', 'unsafe'), details=details)


def to_group(tokenizer: Tokenizer, longest: int, prompt: str | Chat, response: str) -> PromptGroup:
    """A prompt and a response as a group of one reply, as they are learnt.

    Raises:
      ValueError: they have more than `longest` tokens, or the model's chat template refuses them.
    """
    messages = chats.as_chat(prompt) if isinstance(prompt, str) else [dict(message) for message in prompt]
    answer = [{'role': 'assistant', 'content': response}]
    example = chats.to_imitate({'prompt': messages, 'completion': answer}, tokenizer)
    group = shared_prompt([to_score(example.prompt, example.completion)])
    if group.length > longest:
        raise ValueError(f'a prompt with its response has {group.length} tokens, the moderator reads {longest} at most')
    return group
