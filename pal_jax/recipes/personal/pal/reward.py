"""One person's reward by a trained PAL, for items or for replies to prompts. Only the run's folder is read and, where
the run is on texts, the model that its `text.source` names: the data that the run learnt from may be gone.

    model = load_pal_reward_model('runs/pal', user='17')       # or mix=[.2, .8], or the population's
    model.reward(items)                                        # a run on a table: items [B, H] -> [B]
    model.reward(prompts, replies)                             # a run on texts -> [B]

A mixture is all that describes a person: it fits on a line, and whoever has it and the run has the person's reward
model (`person.py` writes and reads such lines). These are the parts, for fits and scores of people by the thousand:

    run = open_pal('runs/pal')                                 # parameters, people, scales, coordinates, the decoder
    w = run.mixture(user='17')                                 # [K]; also mix=[.2, .8], or the population's
    items, prompts = item_vectors(run, table)                  # or reply_vectors(run, prompts, replies)
    rewards(run, w, items, prompts)                            # [B]; or `run.learner`, which fits new people
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array
from numpy.typing import ArrayLike

from pal_jax.data import records, texts
from pal_jax.data.texts import Text
from pal_jax.models.params import Params
from pal_jax.recipes.personal import ideal_point, logit_people
from pal_jax.recipes.personal.ideal_point import PAL
from pal_jax.recipes.personal.learner import IdealPointLearner, PALState
from pal_jax.recipes.personal.logit_people import Population
from pal_jax.recipes.personal.pal import kept as pal_kept
from pal_jax.recipes.personal.pal import large as pal_large
from pal_jax.recipes.personal.pal import recipe as pal
from pal_jax.recipes.personal.pal import text as pal_text
from pal_jax.recipes.personal.pal.kept import Kept
from pal_jax.recipes.personal.pal.reader import Batching, Reader, frozen_reader
from pal_jax.recipes.personal.pal.settings import LargeSettings, Settings
from pal_jax.recipes.personal.panel import population
from pal_jax.run import files, intervals
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.metrics import EVALS, read_records
from pal_jax.run.recipe import KEPT, Context
from pal_jax.run.record_scorer import one_device
from pal_jax.run.runs import read_settings
from pal_jax.run.workdir import run_folder

Read = Callable[[Sequence[Text]], np.ndarray]  # texts to vectors


class PersonalReward(NamedTuple):
    """One person's reward function and mixture.

    `reward(items, prompts)` gives the rewards `[B]` of items `[B, H]` in the table's own units. In a run on texts
    `reward(prompts, replies)` gives those of replies, each a text or messages as its file has them. `mixture` can be
    kept as JSON, and given back as `mix`.
    """

    reward: Callable[..., Any]
    mixture: list[float]


class TextVectors(NamedTuple):
    """The decoder of a run on texts as it was trained, or its encoder, and the function that makes vectors of texts."""

    model: pal_text.Decoder | pal_text.Encoder
    weights: Params
    read: Read


class TrainedPAL(NamedTuple):
    """A finished run's model on one split, with the K that was chosen there.

    Attributes:
      learner: the learner of one replica; `fit` gives the logits of new people.
      state: parameters and the table of users, without an axis of replicas.
      updates: `[splits, U]`, the updates of each user's row in each split of the run.
      factor: makes log-odds of rewards, fitted to validation choices; 1 in runs of earlier versions.
      predicts: whether the run has shown that it predicts known people better than one model for all.
      kept: users by their rows, attributes, scales, coordinates.
      reading: None in a run on a table.
      logit: the mixed logit of the run's choices, where it describes people better than their mixtures do; None: it
        does not, or a split was asked for.
      record: the last evaluation.
    """

    workdir: str
    split: int
    settings: Settings
    learner: IdealPointLearner
    state: PALState
    updates: np.ndarray
    factor: float
    predicts: bool
    kept: Kept
    reading: TextVectors | None
    logit: Population | None = None
    record: Mapping[str, Any] = {}

    @property
    def pal(self) -> PAL:
        return self.learner.pal

    @property
    def fingerprint(self) -> str:
        """A hash of this split's parameters, in 16 hexadecimal digits: a mixture belongs to these parameters alone."""
        leaves = jax.tree.leaves(self.state.params)
        return hashlib.sha256(b''.join(np.asarray(leaf).tobytes() for leaf in leaves)).hexdigest()[:16]

    @property
    def replica(self) -> PALState:
        """The state with an axis of one replica, as the learner takes it."""
        return jax.tree.map(lambda x: x[None], self.state)

    @property
    def prior(self) -> Array:
        """The logits `[1, 1, K]` that a new person is pulled to: the population's mean, or zero, as `new.toward`
        says."""
        mean = population(self.replica)[:, None]
        return mean if self.settings.new.toward == 'population' else jnp.zeros_like(mean)

    @property
    def people(self) -> dict[str, int]:
        """Rows by name of the users that this split was trained on; other users are new, and their rows are empty."""
        # A user without an update is new in this split.
        trained = set(np.flatnonzero(self.updates[self.split]).tolist())
        return {name: row for name, row in self.kept.rows.items() if row in trained}

    def splits_of(self, name: str) -> list[int]:
        """The splits of the run that were trained on a user; none where the run does not know the name."""
        row = self.kept.rows.get(name)
        return [] if row is None else np.flatnonzero(self.updates[:, row]).tolist()

    @property
    def mixtures(self) -> Array:
        """The mixtures `[P, K]` of the people whom this split was trained on."""
        # Rows of other people are empty.
        return ideal_point.weights(self.pal, self.state.users.z)[np.array(list(self.people.values()))]

    def mixture(self, *, user: str | int | None = None, mix: ArrayLike | None = None) -> Array:
        """The mixture `[K]` of a seen user, or `mix`, or without either the population's mean.

        Raises:
          ValueError: the user was not trained, or `mix` is no mixture.
        """
        if mix is not None:
            return ideal_point.checked_mixture(mix, self.pal.prototypes)
        if user in (None, ''):
            return jnp.mean(self.mixtures, axis=0)
        people = self.people
        user = records.spelled(str(user), self.kept.names)
        if user not in people:
            others = ', '.join(map(str, self.splits_of(user)))
            raise ValueError(
                f'user {user!r} is not among the {len(people)} that split {self.split} of {self.workdir} was trained '
                f'on; {f"give split=N of one that was ({others}), or " if others else ""}leave user out for the '
                "population's mixture, or give mix=[...]"
            )
        return self.mixtures[list(people).index(user)]


def load_pal_reward_model(
    workdir: str, *, user: str | int | None = None, mix: ArrayLike | None = None, split: int | None = None
) -> PersonalReward:
    """The reward of a trained run's `split` (by default that of the report), with the K chosen there, for a seen user,
    a mixture, or without either the population's mean.

    Raises:
      ValueError: the run is not finished, the user is unknown or new in this split, or `mix` is no mixture.
    """
    run = open_pal(workdir, split)
    w = run.mixture(user=user, mix=mix)
    return PersonalReward(reward_of_items(run, w) if run.reading is None else reward_of_replies(run, w), w.tolist())


# --- the run ----------------------------------------------------------------------------------------------------------


def open_pal(workdir: str, split: int | None = None) -> TrainedPAL:
    """The model that a run chose on `split`, from its last checkpoint and the record that it keeps of its data.

    Args:
      workdir: the folder of the run, or `orbax:<workdir>`.
      split: one of the run's `split.seeds`; splits with shuffled user ids are no model of anybody. None: the split
        whose people and prototypes the report shows.

    Raises:
      ValueError: the folder is of no run of PAL or of an earlier version, the run is not finished, or it has no such
        split.
    """
    workdir = run_folder(workdir)
    settings = settings_of(workdir)
    # K was chosen by the last evaluation, which has the choice on record.
    finals = [record for record in read_records(Path(workdir) / EVALS) if record['stage'] == 'final']
    if not finals:
        raise ValueError(f'{workdir} is not finished: K is chosen at its end; go on with its pal-jax train command')
    chosen, seeds = finals[-1]['chosen_prototypes'], settings.split.seeds
    # Runs of earlier versions, which lack the entry, showed the first split.
    of_report = split is None
    split = finals[-1].get('shown_split', 0) if split is None else split
    if not isinstance(split, int | np.integer) or not 0 <= split < seeds:
        control = isinstance(split, int | np.integer) and seeds <= split < len(chosen)
        why = ', whose user ids were shuffled for comparison' if control else ''
        raise ValueError(f'split={split}{why}: {workdir} has the splits 0 to {seeds - 1}; give one of these')
    run, name = open_parts(workdir, settings), f'K={chosen[split]}'
    kept, ctx, model, reader = run.kept, run.ctx, run.model, run.reader
    # Models of another K and the decoders of other splits stay on disk.
    state, *_ = Checkpoints(workdir, needed(run.abstract, name, split), read_only=True).read()
    people: PALState = state.models[name].pal if reader else state[name]
    reading = None
    if isinstance(model, pal_text.Encoder):
        reading = TextVectors(model, model.weights, pal_text.sentence_reader(model, ctx.mesh, kept.frame))
    elif model:
        # A decoder of PAL-Large has learnt; one of PAL-Tiny is read from its source.
        trained = reader.weights(state.models[name].readings[split], state.frozen) if reader else None
        weights, how = trained or pal_text.load(model, ctx), {'frame': kept.frame, 'batching': Batching()}
        reading = TextVectors(model, weights, frozen_reader(model.cfg, weights, ctx.mesh, settings.text.pool, **how))
    learner, updates = pal.make_learners(settings, kept, ctx, 1)[name], np.asarray(people.users.updates)[:seeds]
    replica, factor = jax.tree.map(lambda x: x[split], people), finals[-1].get('log_odds_factor')
    # Earlier versions had a factor for each split, or none.
    factor = finals[-1].get('log_odds_factors', [1.0] * seeds)[split] if factor is None else factor
    predicts = 'seen_gain' in finals[-1] and intervals.from_record(finals[-1], 'seen_gain').place(0.0) == 1
    # PAL describes people where it is shown to predict them, and is not behind the mixed logit.
    lead = finals[-1].get('seen_lead_mixed_logit') or 0.0
    by_pal = predicts and learner.pal.prototypes > 1 and lead <= 0.0
    logit = logit_people.load(Path(workdir), kept.attributes, kept.scale) if of_report and not by_pal else None
    described = logit, finals[-1]
    return TrainedPAL(workdir, split, settings, learner, replica, updates, factor, predicts, kept, reading, *described)


class OpenParts(NamedTuple):
    """The parts that a checkpoint is read with: what the run has kept, the model that reads texts, PAL-Large's reader
    of them, and the shapes and shardings of the whole state."""

    kept: Kept
    ctx: Context
    model: pal_text.Decoder | pal_text.Encoder | None
    reader: Reader | None
    abstract: Any


def settings_of(workdir: str) -> Settings:
    """The settings of a run. Raises ValueError where the folder is of no run of PAL."""
    settings = read_settings(workdir)
    if not isinstance(settings, Settings):
        raise ValueError(f'{workdir} is a run of {settings.recipe}; give one of pal or pal_large')
    return settings


def open_parts(workdir: str, settings: Settings) -> OpenParts:
    """The parts of a run on one device."""
    kept, ctx, reader = pal_kept.load(Path(workdir) / KEPT), one_device(workdir), None
    model = pal_text.open_reader(settings.text, ctx, settings.seed) if settings.text.source else None
    # A checkpoint has the control's splits, too, so its shapes have them.
    replicas = settings.split.seeds * (1 + settings.split.control)
    learners = pal.make_learners(settings, kept, ctx, replicas)
    abstract: Any = {name: learner.abstract for name, learner in learners.items()}
    if isinstance(model, pal_text.Decoder) and isinstance(settings, LargeSettings):
        reader = pal_large.make_reader(settings, model, kept.frame, ctx)
        abstract = pal_large.abstract_state(learners, reader, replicas)
    return OpenParts(kept, ctx, model, reader, abstract)


def needed(abstract: Any, name: str, split: int) -> Any:
    """A state for a checkpoint's reader: the parts that are read, and `...` for parts to be left out."""
    nothing = jax.tree.map(lambda _: ..., abstract)
    if not isinstance(abstract, pal_large.LargeState):
        return {**nothing, name: abstract[name]}
    model, without = abstract.models[name], nothing.models[name]
    readings = list(without.readings)
    # Of a decoder only the parameters are read, and no moments.
    trained = without.readings[split].model.replace(params=model.readings[split].model.params)
    readings[split] = without.readings[split].replace(model=trained)
    kept = without.replace(pal=model.pal, readings=tuple(readings))
    return nothing.replace(frozen=abstract.frozen, models={**nothing.models, name: kept})


# --- its reward -------------------------------------------------------------------------------------------------------


def item_vectors(run: TrainedPAL, items: Any, prompts: ArrayLike | None = None) -> tuple[np.ndarray, Any]:
    """Items `[B, H]` in the table's own units, as the model sees them, and the vectors of prompts as they are.

    Raises:
      ValueError: an item has other attributes than the run, or a number that is not finite; or prompts and variant do
        not fit together: B needs a prompt for each item, A reads none.
    """
    vectors = run.kept.vectors(items)
    if run.pal.variant == 'A' and prompts is not None:
        raise ValueError(f'{run.workdir} is of variant A, which reads no prompts; leave them out')
    if run.pal.variant == 'A':
        return vectors, None
    # Prompts are vectors as they are: no attribute has a scale for them.
    prompt_vectors = run.kept._replace(scale=np.ones(1)).vectors(prompts, 'prompts')
    if len(prompt_vectors) != len(vectors):
        raise ValueError(f'{len(prompt_vectors)} prompts and {len(vectors)} items; give a prompt for each item')
    return vectors, prompt_vectors


def reply_vectors(
    run: TrainedPAL, prompts: Sequence[Any], replies: Sequence[Any]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The vectors `[B, H]` of replies and, in variant B, of prompts, in the forms that `texts.read` reads.

    A run on statements reads the reply alone.

    Raises:
      ValueError: the run is on a table; the numbers of prompts and replies differ or are 0; or a text is empty, or in
        another form than the run's.
    """
    if run.reading is None:
        raise ValueError(f'{run.workdir} learnt from a table, and not from texts; give items')
    read, tokenizer, alone = run.reading.read, run.reading.model.tokenizer, run.pal.variant == 'B'
    if any(isinstance(side, str) or not isinstance(side, Sequence | np.ndarray) for side in (prompts, replies)):
        raise ValueError(
            f'{files.short_repr(prompts)} and {files.short_repr(replies)} are no two lists; give both as lists'
        )
    if len(prompts) != len(replies) or not len(replies):
        raise ValueError(f'{len(prompts)} prompts and {len(replies)} replies; give a prompt for each reply')
    for prompt, reply in zip(prompts, replies, strict=True):
        check_form(run, prompt, reply)
    if not run.kept.prompted:
        return read([texts.to_text(tokenizer, reply, run.settings.text.template) for reply in replies]), None
    how = {'chat': run.kept.chat, 'alone': alone}
    pairs = [texts.to_reply(tokenizer, *pair, **how) for pair in zip(prompts, replies, strict=True)]
    answers, questions = zip(*pairs, strict=True)
    # Each text is read once, in however many pairs it is.
    number = {text: i for i, text in enumerate(dict.fromkeys([*answers, *questions] if alone else answers))}
    table = read(list(number))
    return table[[number[text] for text in answers]], table[[number[text] for text in questions]] if alone else None


def check_form(run: TrainedPAL, prompt: Any, reply: Any) -> None:
    """Raises ValueError where a prompt and a reply are not in the form of the data that the run learnt from."""
    if not run.kept.prompted:
        if not isinstance(reply, str) or not reply.strip():
            raise ValueError(
                f'a text is {files.short_repr(reply)}; {run.workdir} learnt from statements, which are texts'
            )
    elif not all(isinstance(side, str | list) for side in (prompt, reply)):
        raise ValueError(
            f'prompt {files.short_repr(prompt)} and reply {files.short_repr(reply)} are no texts and no messages'
        )
    elif not run.kept.chat and not (isinstance(prompt, str) and isinstance(reply, str)):
        raise ValueError(f'prompt and reply are messages, and {run.workdir} learnt from texts; give these')


def reward_of_items(run: TrainedPAL, w: ArrayLike) -> Callable[..., Array]:
    """The reward of items to a mixture `[K]`, see `item_vectors`. Raises ValueError where `w` is no mixture."""
    w = run.mixture(mix=w)
    # The compiled program has the mixture as a constant.
    judge = jax.jit(lambda items, prompts: rewards(run, w, items, prompts))
    return lambda items, prompts=None: judge(*item_vectors(run, items, prompts))


def reward_of_replies(run: TrainedPAL, w: ArrayLike) -> Callable[[Sequence[Any], Sequence[Any]], np.ndarray]:
    """The reward of texts to a mixture `[K]`, see `reply_vectors`. Raises ValueError where `w` is no mixture."""
    w = run.mixture(mix=w)
    return lambda prompts, replies: np.asarray(rewards(run, w, *reply_vectors(run, prompts, replies)))


def rewards(run: TrainedPAL, w: Any, items: Any, prompts: Any) -> Array:
    """The rewards `[B]` to a mixture, of vectors as the model sees them. Raises ValueError where `w` is no mixture."""
    # A mixture that is traced has no numbers that could be checked.
    w = w if isinstance(w, Tracer) else run.mixture(mix=w)
    u = ideal_point.user_point(run.state.params, run.pal, jnp.broadcast_to(w, (len(items), w.shape[0])), prompts)
    return ideal_point.item_reward(run.state.params, run.pal, u, items)
