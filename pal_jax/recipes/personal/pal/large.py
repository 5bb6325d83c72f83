"""PAL-Large (arXiv 2406.08469): the decoder that reads the texts is trained together with prototypes and people.

A step draws some statements (or prompts) and pairs of seen people about them. For every model that is compared

1. its decoder reads each of the texts once;
2. prototypes, projectors and the rows of the people in the batch make `updates` updates, as in `recipe.py`;
3. the gradient by each text's vector, of all these pairs and taken before 2, goes back through the decoder, which makes
   one update.

Each model has a decoder of its own, which begins as PAL-Tiny's frozen one and waits in the first `hold.steps` steps.
These steps are PAL-Tiny's, and its evaluation stands beside the last one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from pal_jax.data.comparisons import PairBatch
from pal_jax.data.texts import Text, TextPairs
from pal_jax.models.params import Params
from pal_jax.models.states import Frame
from pal_jax.recipes.personal.learner import IdealPointLearner, PALState, put
from pal_jax.recipes.personal.pal import kept as pal_kept
from pal_jax.recipes.personal.pal import recipe as pal
from pal_jax.recipes.personal.pal import text as pal_text
from pal_jax.recipes.personal.pal.batches import StepPairs, as_batch, by_texts, make_draw, make_text_draw
from pal_jax.recipes.personal.pal.reader import Batching, Reader, ReaderState
from pal_jax.recipes.personal.pal.settings import LargeSettings
from pal_jax.recipes.personal.pal.text import Decoder
from pal_jax.recipes.personal.population import Panel, evaluate
from pal_jax.run import sharding
from pal_jax.run.models import make_adapters
from pal_jax.run.recipe import Context, Evaluation, Host, Plan, check_at_least
from pal_jax.types import Metrics

TINY = 'tiny'  # the evaluation before decoders are trained


class LargeModel(struct.PyTreeNode):
    """One of the models that are compared, on all splits: PAL's state, and a decoder for each split."""

    pal: PALState
    readings: tuple[ReaderState, ...]


class LargeState(struct.PyTreeNode):
    """The state of all models; `frozen` are the parameters that no decoder trains and all decoders share."""

    frozen: Params
    models: dict[str, LargeModel]


@dataclasses.dataclass(frozen=True)
class PALLarge:
    """Trains prototypes, people and the decoders that read the texts.

    Attributes:
      tiny: the panel of an evaluation of PAL-Tiny: the pairs by the frozen decoder's vectors, the splits, and the
        learners by the names of their models.
      text: the pairs of texts.
      reader: reads texts with a decoder, and updates the decoder.
      load: reads the frozen decoder's weights.
      held: the pairs of a step in which decoders wait, by its number.
      draw: the texts and pairs of a split and a step, by their numbers.
      hold: the number of steps in which decoders wait.
      updates: the number of updates of prototypes and people in a step after the wait.
    """

    plan: Plan
    ctx: Context
    tiny: Panel
    text: TextPairs
    reader: Reader
    load: Callable[[], Params]
    held: Callable[[int], PairBatch]
    draw: Callable[[int, int], StepPairs]
    hold: int
    updates: int

    def init(self) -> tuple[LargeState, Host]:
        seeds, weights = [trial.seed for trial in self.tiny.trials], self.load()

        # Every model and split has its own trainable part of the decoder; the frozen part is there once.
        def new(name: str, learner: IdealPointLearner) -> LargeModel:
            people = pal.start(name, learner, self.tiny.data, jnp.array(seeds, jnp.int32))
            return LargeModel(people, tuple(self.reader.divide(weights, seed)[1] for seed in seeds))

        models = {name: new(name, learner) for name, learner in self.tiny.learners.items()}
        return LargeState(self.reader.divide(weights, 0)[0], models), {}

    def step(self, state: LargeState, host: Host, i: int) -> tuple[LargeState, Host, str, Metrics]:
        # At first decoders wait, since prototypes that have learnt nothing would teach a decoder noise.
        state, metrics = self.wait(state, i) if i < self.hold else self.improve(state, i)
        return state, host, 'hold' if i < self.hold else 'pal', metrics

    def wait(self, state: LargeState, i: int) -> tuple[LargeState, Metrics]:
        """A step of PAL-Tiny: prototypes and people learn, and decoders wait."""
        pairs, models, metrics = put(self.held(i), self.ctx.mesh), {}, {}
        for name, model in state.models.items():
            people, metrics[name] = self.tiny.learners[name].update(model.pal, pairs)
            models[name] = model.replace(pal=people)
        return LargeState(state.frozen, models), pal.summarize(metrics, self.tiny.trials)

    def improve(self, state: LargeState, i: int) -> tuple[LargeState, Metrics]:
        """A step of PAL-Large: prototypes, people and decoders learn.

        Raises:
          RuntimeError: three updates of a decoder in a row were not finite.
        """
        # 1. Draw, on every split, texts and pairs of these texts alone.
        drawn, models, metrics = [self.draw(trial, i) for trial in range(len(self.tiny.trials))], {}, {}
        texts = [[self.text.texts[s] for s in split.texts] for split in drawn]
        for name, model in state.models.items():
            learner = self.tiny.learners[name]
            # 2. The model's decoders read each text once, however many pairs it is in.
            with self.ctx.phase('read'):
                vectors = self.read(model, state.frozen, texts)
            # 3. Take the gradient by the vectors; then update prototypes, projectors and the rows of the people.
            with self.ctx.phase('update'):
                batch = as_batch(drawn, vectors)
                gradient = learner.item_gradients(model.pal, batch)
                # The gradient is of all pairs at once, and the updates take them in turn.
                in_turn = jax.tree.map(lambda x: x.reshape(x.shape[0], self.updates, -1, *x.shape[2:]), batch)
                people, metrics[name] = learner.update(model.pal, put(in_turn, self.ctx.mesh))
            # 4. Update the decoders by that gradient.
            with self.ctx.phase('learn'):
                splits = zip(model.readings, texts, by_texts(drawn, gradient, vectors), strict=True)
                learnt = tuple(
                    self.reader.learn(before, state.frozen, said, slope)[0] for before, said, slope in splits
                )
            # A single bad batch is skipped; three in a row do not pass by themselves.
            if any(int(reading.skipped) >= 3 for reading in learnt):
                raise RuntimeError('three updates of a decoder in a row were not finite; lower decoder.optimizer.lr')
            models[name] = LargeModel(people, learnt)
        return LargeState(state.frozen, models), pal.summarize(metrics, self.tiny.trials)

    def read(self, model: LargeModel, frozen: Params, texts: Sequence[Sequence[Text]]) -> list[np.ndarray]:
        """The vectors of each split's texts, by the split's decoder."""
        splits = zip(model.readings, texts, strict=True)
        return [self.reader.read(reading, frozen, of_split) for reading, of_split in splits]

    def evaluate(self, state: LargeState, stage: str) -> Evaluation:
        with self.ctx.phase('evaluate'):
            return evaluate(self.panel(state, stage), {name: model.pal for name, model in state.models.items()})

    def panel(self, state: LargeState, stage: str) -> Panel:
        """The panel of an evaluation: the pairs by the vectors that each model's decoders make of all texts."""
        if stage == TINY:
            return self.tiny
        # Each model's decoders have moved, so its pairs have vectors of their own.
        everything = [self.text.texts] * len(self.tiny.trials)
        tables = {name: np.stack(self.read(m, state.frozen, everything)) for name, m in state.models.items()}
        by_model = {name: self.text.in_states(table) for name, table in tables.items()}
        trained = sum(leaf.size for leaf in jax.tree.leaves(self.reader.abstract.model.params))
        return self.tiny._replace(by_model=by_model, decoder_parameters=trained)


def make(settings: LargeSettings, ctx: Context) -> PALLarge:
    """Check the settings, read the pairs and build the models.

    Raises:
      ValueError: a value or a row of the file is wrong.
      RuntimeError: the decoder cannot be had.
    """
    check(settings, sharding.batch_ways(ctx.mesh))
    parts, hold = pal.make_parts(settings, ctx), settings.hold
    (panel, kept, data, decoder), trials = parts, parts.panel.trials
    assert data and isinstance(decoder, Decoder)
    reader = make_reader(settings, decoder, kept.frame, ctx)
    steps = hold.steps + settings.total_steps
    stage = functools.partial(stage_before, hold=hold.steps, steps=steps, every=settings.eval.every)
    phases = {'PAL-Tiny': hold.steps, 'PAL-Large': settings.total_steps} if hold.steps else {}
    abstract, keep = abstract_state(panel.learners, reader, len(trials)), pal_kept.keeping(kept, decoder)
    return PALLarge(
        plan=Plan(steps, abstract, stage, shown=pal.SHOWN, keep=keep, phases=phases),
        ctx=ctx,
        tiny=panel,
        text=data.pairs,
        reader=reader,
        load=functools.partial(pal_text.load, decoder, ctx),
        held=make_draw(data.items, trials, hold.updates, settings.batch),
        draw=make_text_draw(data.pairs, trials, settings.decoder.statements, settings.updates * settings.batch),
        hold=hold.steps,
        updates=settings.updates,
    )


def abstract_state(learners: Mapping[str, IdealPointLearner], reader: Reader, replicas: int) -> LargeState:
    """The shapes and shardings of a state."""
    readings = (reader.abstract,) * replicas
    return LargeState(
        reader.frozen, {name: LargeModel(learner.abstract, readings) for name, learner in learners.items()}
    )


def stage_before(i: int, *, hold: int, steps: int, every: int) -> str | None:
    """The evaluation due before step `i`: PAL-Tiny's after the wait, the last one, and some in between."""
    if i == steps:
        return 'final'
    if i == hold:
        return TINY if hold else None
    return 'step' if every and i > hold and (i - hold) % every == 0 else None


def check(settings: LargeSettings, ways: int) -> None:
    """Raises ValueError for everything that can be wrong before a file is read."""
    if not settings.text.source:
        raise ValueError("text.source='': a decoder is needed to read texts; name one")
    if settings.text.source.startswith(pal_text.ENCODER):
        raise ValueError(f'text.source={settings.text.source!r} is an encoder, and a decoder learns here; name one')
    if settings.text.span:
        raise ValueError(f'text.span={settings.text.span!r} is of frozen states; PAL-Large learns from whole texts')
    if settings.new.ask:
        raise ValueError(f'new.ask={settings.new.ask}: PAL-Large chooses no questions; set it to 0')
    if settings.baselines.context:
        raise ValueError(f'baselines.context={settings.baselines.context}: PAL-Large has no such baseline; set it to 0')
    check_at_least(settings, 0, 'hold.steps')
    check_at_least(settings, 1, 'hold.updates', 'decoder.statements', 'decoder.micro_rows', 'decoder.row_tokens')
    pal.check(settings, ways)


def make_reader(settings: LargeSettings, decoder: Decoder, frame: Frame | None, ctx: Context) -> Reader:
    """The reader that trains the decoders, as the settings describe it."""
    trained, pool = settings.decoder, settings.text.pool
    cfg, optimizer = dataclasses.replace(decoder.cfg, remat=trained.remat), trained.optimizer.over(settings.total_steps)
    batching, adapters = Batching(trained.micro_rows, trained.row_tokens), make_adapters(trained.lora)
    return Reader(cfg, optimizer, ctx.mesh, pool=pool, frame=frame, adapters=adapters, batching=batching)
