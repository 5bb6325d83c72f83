"""PAL-Large (arXiv 2406.08469): the decoder that reads the texts is trained together with prototypes and people.

A step draws some statements (or prompts) and pairs of seen people about them. For every model that is compared

1. its decoder reads each of the texts once;
2. prototypes, projectors and the rows of the people in the batch make `updates` updates, as in `recipes/pal/recipe.py`;
3. the gradient by each text's vector, of all these pairs and taken before 2, goes back through the decoder, which makes
   one update.

Each model has a decoder of its own, which begins as the frozen one of PAL-Tiny, and in the first `hold.steps` it waits:
these are PAL-Tiny's, whose evaluation stands beside the last one. What unlearnt prototypes say is noise to a decoder.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pal_jax.data.comparisons import PairBatch, shares
from pal_jax.data.passes import shuffled
from pal_jax.data.texts import Text, TextPairs
from pal_jax.evals.panel import Trial
from pal_jax.evals.population import Panel, make_exhibits, make_record, measure
from pal_jax.learners.ideal_point import IdealPointLearner, PALState
from pal_jax.learners.reader import Batching, Reader, Reading
from pal_jax.models.params import Params
from pal_jax.models.states import Frame
from pal_jax.parts.recipe import (
    Closures,
    Config,
    Context,
    Evaluation,
    Host,
    Plan,
    Recipe,
    check_at_least,
    make_adapters,
)
from pal_jax.recipes.pal import kept as pal_kept
from pal_jax.recipes.pal import recipe as pal
from pal_jax.recipes.pal import text as pal_text
from pal_jax.recipes.pal.text import Decoder, TextData
from pal_jax.runtime import sharding
from pal_jax.runtime.optim import Optimizer
from pal_jax.types import Metrics

TINY = 'tiny'  # the evaluation before decoders are trained


class Model(struct.PyTreeNode):
    """One of the models that are compared, on all splits: a decoder for each."""

    pal: PALState
    readings: tuple[Reading, ...]


class LargeState(struct.PyTreeNode):
    """`frozen` is what no decoder trains, and all share."""

    frozen: Params
    models: dict[str, Model]


class Drawn(NamedTuple):
    """Of one split: the numbers of the texts of a step, and its pairs by their places among these."""

    texts: np.ndarray  # [S]
    users: np.ndarray  # [B]
    share: np.ndarray  # [B]
    chosen: np.ndarray  # [B]
    rejected: np.ndarray  # [B]
    prompt: np.ndarray | None  # [B]


class Large(NamedTuple):
    """What all models share: the texts, who says what on which split, PAL by model, and how decoders read."""

    data: TextData
    trials: Sequence[Trial]
    learners: Mapping[str, IdealPointLearner]
    reader: Reader

    def init(self, weights: Params) -> LargeState:
        seeds = [trial.seed for trial in self.trials]

        def new(name: str, learner: IdealPointLearner) -> Model:
            people = pal.start(name, learner, self.data.items, jnp.array(seeds, jnp.int32))
            return Model(people, tuple(self.reader.divide(weights, seed)[1] for seed in seeds))

        models = {name: new(name, learner) for name, learner in self.learners.items()}
        return LargeState(self.reader.divide(weights, 0)[0], models)

    def read(self, model: Model, frozen: Params, texts: Sequence[Sequence[Text]]) -> list[np.ndarray]:
        """Vectors of texts, of each split by its own decoder."""
        return [self.reader.read(own, frozen, each) for own, each in zip(model.readings, texts, strict=True)]

    def learn(
        self, model: Model, frozen: Params, texts: Sequence[Sequence[Text]], gradients: Sequence[np.ndarray]
    ) -> tuple[Reading, ...]:
        """An update of each split's decoder, by the gradients of these vectors."""
        todo = zip(model.readings, texts, gradients, strict=True)
        learnt = tuple(self.reader.learn(own, frozen, each, gradient)[0] for own, each, gradient in todo)
        if any(int(reading.skipped) >= 3 for reading in learnt):
            raise RuntimeError('three updates of a decoder in a row were not finite; lower decoder.optimizer.lr')
        return learnt

    def panel(self, config: Config, state: LargeState, stage: str) -> Panel:
        """What an evaluation compares: the pairs by what each model's decoders make of all texts."""
        rest = tuple(config.prototypes), tuple(config.new.counts), config.new.toward
        tiny = Panel(self.data.items, self.trials, self.learners, *rest)
        if stage == TINY:
            return tiny
        everything = [self.data.pairs.texts] * len(self.trials)
        tables = {name: np.stack(self.read(m, state.frozen, everything)) for name, m in state.models.items()}
        by_model = {name: self.data.pairs.in_states(table) for name, table in tables.items()}
        trained = sum(leaf.size for leaf in jax.tree.leaves(self.reader.abstract.model.params))
        return tiny._replace(by_model=by_model, decoder_parameters=trained)


def abstract_state(learners: Mapping[str, IdealPointLearner], reader: Reader, replicas: int) -> LargeState:
    """Shapes and shardings of a state."""
    readings = (reader.abstract,) * replicas
    return LargeState(reader.frozen, {name: Model(each.abstract, readings) for name, each in learners.items()})


def make(config: Config, ctx: Context) -> Recipe:
    """Checks the config, reads the pairs and builds the models.

    Raises:
      ValueError: a value or a row of the file is wrong.
      RuntimeError: the decoder cannot be had.
    """
    check(config, sharding.batch_ways(ctx.mesh))
    before = pal_kept.load(ctx.kept) if ctx.kept else None
    decoder = pal_text.open_decoder(config, ctx)
    data = pal_text.read(config, ctx, decoder, before and before.frame)
    kept = pal_kept.going_on(config, before, pal_kept.of(config, data.items, data))
    trials = pal.make_trials(config, data.items)
    learners = pal.make_learners(config, kept, ctx, len(trials))
    large = Large(data, trials, learners, make_reader(config, decoder, kept.frame, ctx))
    hold, held = config.hold.steps, pal.make_draw(config, data.items, trials, updates=config.hold.updates)
    draw = make_draw(config, data.pairs, trials)

    def init() -> tuple[LargeState, Host]:
        return large.init(pal_text.load(decoder, ctx)), {}

    def wait(state: LargeState, i: int) -> tuple[LargeState, Metrics]:
        """A step of PAL-Tiny."""
        pairs, models, metrics = held(i), {}, {}
        for name, model in state.models.items():
            people, metrics[name] = learners[name].update(model.pal, pairs)
            models[name] = model.replace(pal=people)
        return LargeState(state.frozen, models), pal.summarize(metrics, trials)

    def improve(state: LargeState, i: int) -> tuple[LargeState, Metrics]:
        """A step of PAL-Large."""
        drawn, models, metrics = [draw(trial, i) for trial in range(len(trials))], {}, {}
        texts = [[data.pairs.texts[s] for s in each.texts] for each in drawn]
        for name, model in state.models.items():
            with ctx.phase('read'):
                vectors = large.read(model, state.frozen, texts)
            with ctx.phase('update'):
                batch = as_batch(drawn, vectors)
                gradient = learners[name].item_gradients(model.pal, batch)
                people, metrics[name] = learners[name].update(model.pal, in_turn(batch, config.updates))
            with ctx.phase('learn'):
                readings = large.learn(model, state.frozen, texts, by_texts(drawn, gradient, vectors))
            models[name] = Model(people, readings)
        return LargeState(state.frozen, models), pal.summarize(metrics, trials)

    def step(state: LargeState, host: Host, i: int) -> tuple[LargeState, Host, str, Metrics]:
        state, metrics = wait(state, i) if i < hold else improve(state, i)
        return state, host, 'hold' if i < hold else 'pal', metrics

    def evaluate(state: LargeState, stage: str) -> Evaluation:
        with ctx.phase('evaluate'):
            compared, people = large.panel(config, state, stage), {name: m.pal for name, m in state.models.items()}
            results = measure(compared, people)
            return Evaluation(make_record(results), exhibits=make_exhibits(compared, people, results))

    steps = hold + config.total_steps
    stage = functools.partial(stage_before, hold=hold, steps=steps, every=config.eval.every)
    abstract, keep = abstract_state(learners, large.reader, len(trials)), pal_kept.keeping(kept, decoder)
    return Closures(Plan(steps, abstract, stage, shown=pal.SHOWN, keep=keep), init, step, evaluate)


def stage_before(i: int, *, hold: int, steps: int, every: int) -> str | None:
    """The evaluation due before step `i`: of PAL-Tiny, where decoders have waited, the last, and some in between."""
    if i == steps:
        return 'final'
    if i == hold:
        return TINY if hold else None
    return 'step' if every and i > hold and (i - hold) % every == 0 else None


def check(config: Config, ways: int) -> None:
    """Everything that can be wrong before a file is read."""
    if not config.text.source:
        raise ValueError("text.source='': a decoder is needed to read texts; name one")
    if config.text.span:
        raise ValueError(f'text.span={config.text.span!r} is of frozen states; PAL-Large learns from whole texts')
    if config.new.ask:
        raise ValueError(f'new.ask={config.new.ask}: PAL-Large chooses no questions; set it to 0')
    if config.baselines.context:
        raise ValueError(f'baselines.context={config.baselines.context}: PAL-Large has no such baseline; set it to 0')
    check_at_least(config, 0, 'hold.steps')
    check_at_least(config, 1, 'hold.updates', 'decoder.statements', 'decoder.micro_rows', 'decoder.row_tokens')
    pal.check(config, ways)


def make_reader(config: Config, decoder: Decoder, frame: Frame | None, ctx: Context) -> Reader:
    settings = config.decoder
    return Reader(
        dataclasses.replace(decoder.cfg, remat=settings.remat),
        Optimizer(**settings.optimizer, total_steps=config.total_steps), ctx.mesh, pool=config.text.pool,
        frame=frame, adapters=make_adapters(config, of='decoder'),
        batching=Batching(settings.micro_rows, settings.row_tokens),
    )  # fmt: skip


def make_draw(config: Config, pairs: TextPairs, trials: Sequence[Trial]):
    """Of a split and a step's number: `decoder.statements` prompts or, where there are none, statements, in shuffled
    passes, and `updates` times `batch` pairs that are of these alone, at random."""
    all_shares, count = [shares(trial.users, trial.split.train) for trial in trials], config.updates * config.batch

    def draw(trial: int, i: int) -> Drawn:
        split, users = trials[trial].split, trials[trial].users
        train, size, seed = split.train, config.decoder.statements, trials[trial].seed
        sides = [pairs.chosen, pairs.rejected] if pairs.prompt is None else [pairs.prompt]
        keys = np.unique([side[train] for side in sides])
        asked = keys[shuffled(len(keys), start=i * size, size=min(size, len(keys)), seed=seed)]
        within = train[np.all([np.isin(side[train], asked) for side in sides], axis=0)]
        if not len(within):
            raise ValueError(f'decoder.statements={size}: nobody was asked about two of those drawn; raise it')
        rng = np.random.default_rng([seed, i])
        index = rng.choice(within, count, replace=len(within) < count)
        share = np.zeros(len(users), np.float32)
        share[train] = all_shares[trial]
        columns = [pairs.chosen[index], pairs.rejected[index]]
        columns += [] if pairs.prompt is None else [pairs.prompt[index]]
        numbers, places = np.unique(columns, return_inverse=True)
        chosen, rejected, *prompt = places.reshape(len(columns), -1)
        return Drawn(numbers, users[index], share[index], chosen, rejected, prompt[0] if prompt else None)

    return draw


def as_batch(drawn: Sequence[Drawn], vectors: Sequence[np.ndarray]) -> PairBatch:
    """The pairs `[splits, B]` by the vectors of their texts."""

    def side(name: str) -> np.ndarray:
        return np.stack([table[getattr(each, name)] for each, table in zip(drawn, vectors, strict=True)])

    prompt = None if drawn[0].prompt is None else side('prompt')
    users, share = (np.stack([getattr(each, name) for each in drawn]) for name in ('users', 'share'))
    columns: Any = {'users': users, 'share': share, 'prompt': prompt}
    columns |= {name: side(name) for name in ('chosen', 'rejected')}
    return PairBatch(**columns)


def in_turn(batch: PairBatch, updates: int) -> PairBatch:
    """The pairs `[splits, updates * B]` as `[splits, updates, B]`."""
    return jax.tree.map(lambda x: x.reshape(x.shape[0], updates, -1, *x.shape[2:]), batch)


def by_texts(drawn: Sequence[Drawn], gradient: PairBatch, vectors: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The gradient by each text's vector, of all pairs it is in, for each split."""
    found = [np.zeros_like(table) for table in vectors]
    for name in ('chosen', 'rejected', 'prompt'):
        if (by_pair := getattr(gradient, name)) is not None:
            for out, each, rows in zip(found, drawn, np.asarray(by_pair), strict=True):
                np.add.at(out, getattr(each, name), rows)
    return found
