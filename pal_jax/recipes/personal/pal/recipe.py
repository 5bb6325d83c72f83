"""PAL (arXiv 2406.08469): people's preferences as mixtures of K prototypes, new people from a few comparisons.

A step takes the next batches of seen people's pairs and makes `updates` updates of every model with them: of PAL for
each K of `prototypes` (K = 1 is the one model that all share), of the baselines that are trained, and of each of these
once for every split of people and choices. So all that the table at the end compares has met the same pairs.

An evaluation chooses K on each split's validation part, tests seen people on new choices, and fits new people's weights
from n of their comparisons, with everything else as it was.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pal_jax.data import comparisons, records, shards
from pal_jax.data.comparisons import Comparisons, Lookup, PairBatch
from pal_jax.data.readers import choices, columns, opinions, votes
from pal_jax.recipes.personal import baselines, ideal_point, mixed_logit, offers, panel, portrait
from pal_jax.recipes.personal.attributes import known_words
from pal_jax.recipes.personal.evaluation import Evaluate, evaluate_each
from pal_jax.recipes.personal.learner import IdealPointLearner, Loss, NewUsers, PALState, Rates, put
from pal_jax.recipes.personal.pal import context as pal_context
from pal_jax.recipes.personal.pal import kept as pal_kept
from pal_jax.recipes.personal.pal import tables
from pal_jax.recipes.personal.pal import text as pal_text
from pal_jax.recipes.personal.pal.batches import make_draw
from pal_jax.recipes.personal.pal.kept import Kept
from pal_jax.recipes.personal.pal.settings import PALSettings, Settings
from pal_jax.recipes.personal.pal.text import TextData
from pal_jax.recipes.personal.panel import Trial, in_words
from pal_jax.recipes.personal.population import Panel, evaluate
from pal_jax.run import devices, files, sharding
from pal_jax.run.forecast import counted
from pal_jax.run.recipe import Context, Evaluation, Host, Plan, check_at_least, stage_before
from pal_jax.types import Metrics

FEW = 15  # people, below which a survey shows hardly anything
CERTAIN = 20.0  # a logit beside which the other prototypes have no weight
SHOWN = 'seen_shared', 'seen_pal', 'new_shared', 'new_pal'
OPTIONS = {'logistic': ('margin', 'label_smoothing'), 'hinge': ('margin',), 'smooth_hinge': ('margin', 'gamma')}

States = dict[str, PALState]


@dataclasses.dataclass(frozen=True)
class PALRecipe:
    """Updates all models that a panel compares, on the same pairs.

    Attributes:
      panel: the data, its splits, and the learners by the names of their models.
      draw: the pairs of a step, by its number.
      others: methods without a learner, which the evaluation compares too.
    """

    plan: Plan
    ctx: Context
    panel: Panel
    draw: Callable[[int], PairBatch]
    others: Mapping[str, Evaluate] = dataclasses.field(default_factory=dict)

    def init(self) -> tuple[States, Host]:
        seeds = jnp.array([trial.seed for trial in self.panel.trials], jnp.int32)
        return {name: start(name, learner, self.panel.data, seeds) for name, learner in self.panel.learners.items()}, {}

    def step(self, state: States, host: Host, i: int) -> tuple[States, Host, str, Metrics]:
        # 1. Draw `updates` batches of the seen people's training pairs, on every split.
        with self.ctx.phase('draw'):
            pairs = self.draw(i)
        # 2. Update prototypes, projectors and the rows of the people in a batch, of every model on the same batches.
        with self.ctx.phase('update'):
            pairs = put(pairs, self.ctx.mesh)
            done = {name: learner.update(state[name], pairs) for name, learner in self.panel.learners.items()}
            metrics = summarize({name: metrics for name, (_, metrics) in done.items()}, self.panel.trials)
        return {name: new for name, (new, _) in done.items()}, host, 'pal', metrics

    def evaluate(self, state: States, stage: str) -> Evaluation:
        with self.ctx.phase('evaluate'):
            return evaluate(self.panel, state, self.others, self.ctx.log)


def make(settings: Settings, ctx: Context) -> PALRecipe:
    """Check the settings, read the choices and build the models.

    Raises:
      ValueError: a value or a row of the file is wrong.
      RuntimeError: the wheel that holds the choices is not installed.
    """
    check(settings, sharding.batch_ways(ctx.mesh))
    parts = make_parts(settings, ctx)
    panel, text, reader = parts.panel, parts.text, parts.reader
    if repeats := comparisons.repeats(panel.data):
        unit = 'text' if panel.data.texts else 'question'
        ctx.log(f'{counted(repeats, f"repeated {unit}")}: repeats are all in one part, training, validation or test')
    ctx.log(in_words(panel.data, panel.trials[0]))
    # Methods without a learner are fitted in the evaluation, from the same training pairs.
    others: dict[str, Evaluate] = {
        name: functools.partial(evaluate_each, method)
        for name, method in baselines.METHODS.items()
        if getattr(settings.baselines, name)
    }
    if isinstance(reader, pal_text.Decoder) and text and settings.baselines.context:
        others['context'] = pal_context.make_method(settings.text, ctx, reader, text.pairs, settings.baselines.context)
    abstract = {name: learner.abstract for name, learner in panel.learners.items()}
    stage = functools.partial(stage_before, warmup=0, steps=settings.total_steps, every=settings.eval.every, base=False)
    plan = Plan(settings.total_steps, abstract, stage, shown=SHOWN, keep=pal_kept.keeping(parts.kept, reader))
    draw = make_draw(panel.data, panel.trials, settings.updates, settings.batch, text)
    return PALRecipe(plan, ctx, panel._replace(ask=settings.new.ask), draw, others)


class RunParts(NamedTuple):
    """The parts that PAL and PAL-Large begin with: the panel that a run compares, and what it keeps of its data; `text`
    and the `reader` of texts are None for a table."""

    panel: Panel
    kept: Kept
    text: TextData | None
    reader: pal_text.Decoder | pal_text.Encoder | None


def make_parts(settings: Settings, ctx: Context) -> RunParts:
    """Read the choices and build the models that are compared; new people are asked nothing.

    Raises:
      ValueError: a value or a row is wrong; where rows are, the message names the key that leaves them out.
    """
    try:
        return read_parts(settings, ctx)
    except records.WrongRows as error:
        raise ValueError(f'{error}; mend the file, or leave such rows out by --config.wrong_rows=drop') from None


def read_parts(settings: Settings, ctx: Context) -> RunParts:
    """The parts of `make_parts`. Raises as it does, with `records.WrongRows` where rows are wrong."""
    # A run that goes on keeps its people, scales and axes: computed again they could differ.
    before = pal_kept.load(ctx.kept) if ctx.kept else None
    reader = pal_text.open_reader(settings.text, ctx, settings.seed) if settings.text.source else None
    text = pal_text.read(settings, ctx, reader, before and before.frame) if reader else None
    data = text.items if text else read(settings, ctx.log)
    ctx.log(f'{settings.data}: {offers.described(data)}')
    for doubt in offers.doubts(data) if portrait.has_effects(data) and not isinstance(data.chosen, Lookup) else ():
        ctx.log(doubt)
    if len(data.names) < FEW:
        ctx.log(
            f'warning: with {counted(len(data.names), "person")} the intervals over people are wide, and hardly '
            'any difference between people can be shown; ask tens of people'
        )
    kept = pal_kept.going_on(settings.data, before, pal_kept.of(settings, data, text))
    data = comparisons.standardized(data, kept.scale) if settings.standardize else data
    trials = make_trials(settings, data)
    learners = make_learners(settings, kept, ctx, len(trials))
    panel = Panel(data, trials, learners, settings.prototypes, settings.new.counts, settings.new.toward)
    scale = kept.scale if settings.standardize else None
    panel = panel._replace(scale=scale, price=settings.price)
    return RunParts(panel, kept, text, reader)


def check(settings: Settings, ways: int) -> None:
    """Raises ValueError for everything that can be wrong before a file is read."""
    check_at_least(settings, 1, 'total_steps', 'batch', 'updates', 'split.seeds', 'new.steps', 'checkpoint.every')
    check_at_least(settings, 0, 'baselines.context', 'new.ask')
    split, new = settings.split, settings.new
    if not (split.train > 0 and split.validation > 0 and split.train + split.validation < 1):
        raise ValueError(
            f'split.train={split.train} and split.validation={split.validation} leave nothing for the test'
        )
    if settings.batch % ways:
        raise ValueError(f'batch={settings.batch} does not divide over {ways} devices')
    if 1 not in settings.prototypes or len(set(settings.prototypes)) != len(settings.prototypes):
        raise ValueError(
            f'prototypes={settings.prototypes} lacks 1, the shared model, or has a number twice; give such as (1,2,3)'
        )
    _check_model(settings.model, settings.loss.prototype_pull)
    if new.ask and new.pull <= 0:
        raise ValueError(
            f'new.ask={new.ask} questions need new.pull={new.pull} above 0, which says who new people could be; '
            'new.ask=0 chooses none'
        )
    if settings.baselines.mixed_logit:
        mixed_logit.require_xlogit()
    if settings.text.source and (settings.price or settings.group != 'group'):
        raise ValueError('price and group are of tables: texts have no attributes, and name their groups themselves')
    if settings.text.source:
        pal_text.check(settings)
    elif count := settings.baselines.context:
        raise ValueError(f'baselines.context={count} is of texts; take --config=pal:text')


def _check_model(model: PALSettings, pull: float) -> None:
    if model.mixture in ('free', 'linear', 'own'):
        raise ValueError(
            f'model.mixture={model.mixture!r} has no model that all people share; use softmax, gumbel or partition'
        )
    if model.temperature <= 0 or (model.scaled and model.temperature != 1):
        raise ValueError(
            f'model.temperature={model.temperature} must be above 0, and 1 with model.scaled, which has a scale of its '
            'own'
        )
    if pull < 0 or (pull and model.variant == 'B'):
        raise ValueError(
            f'loss.prototype_pull={pull} must be at least 0, and 0 with model.variant=B, whose prototypes are functions'
        )


def read(settings: Settings, log: records.Drop = lambda line: None) -> Comparisons:
    """The choices of a table in their own units. `log` takes lines about what is not read, and what is left out.

    Raises:
      ValueError: a row is wrong, or the model cannot use the choices.
    """
    if opinions.is_source(settings.data) or votes.is_votes(settings.data):
        raise ValueError(f'data={settings.data!r} are texts; take --config=pal:text')
    if not settings.data:
        raise ValueError(f'data is empty; give a file, or the name of a table: {", ".join(choices.TABLES)}')
    known, path = settings.data in choices.TABLES, Path(settings.data)
    pictures, on_disk = path.suffix == '.npz', not known and path.is_dir()
    drop = log if settings.wrong_rows == 'drop' else None
    if settings.group != 'group' and (known or pictures or on_disk):
        raise ValueError(f'group={settings.group!r} is for a table of your own, and data={settings.data!r} is none')
    if drop and (known or pictures or on_disk):
        raise ValueError(f"wrong_rows='drop' is for a table of your own, and data={settings.data!r} is none")
    if known:
        data = choices.load(settings.data)
    elif pictures:
        data = opinions.pictures(path)
    elif on_disk:
        data = columns.load(path)
    elif not any(file.exists() for file in shards.files_of(settings.data)):
        near = difflib.get_close_matches(settings.data, choices.TABLES, 1)
        hint = (
            f'did you mean {near[0]}?' if near else f'give a file, or the name of a table: {", ".join(choices.TABLES)}'
        )
        raise ValueError(f'data={settings.data!r} is no file; {hint}')
    else:
        data = tables.load(path, group=settings.group, drop=drop, log=log)
        data = comparisons.without_few(data, drop) if drop else data
    _check_data(settings, data, in_memory=not (on_disk or pictures))
    return data


def _check_data(settings: Settings, data: Comparisons, *, in_memory: bool) -> None:
    """Raises ValueError where the settings cannot be those of a table of choices."""
    baselines = settings.baselines
    if not in_memory and (settings.standardize or baselines.majority or baselines.mixed_logit):
        raise ValueError(
            'standardize, baselines.majority and baselines.mixed_logit need all items in memory; for a folder of pairs '
            'and for embeddings set them to False, or take --config=pal:large'
        )
    prices = [name for name in data.attributes if ' over ' not in name] if portrait.has_effects(data) else []
    if settings.price and settings.price not in prices:
        near, words = difflib.get_close_matches(settings.price, prices, 1), known_words(settings.price, data.attributes)
        hint = f'did you mean {near[0]}?' if near else f'its attributes of numbers are {", ".join(prices) or "none"}'
        hint = f'it has words such as {files.short_repr(words[0])}; write numbers without a unit' if words else hint
        raise ValueError(f'price={settings.price!r} is no attribute of numbers of {settings.data}; {hint}')
    if settings.model.variant == 'B' and data.prompt is None:
        raise ValueError(f"model.variant='B' needs the vectors of prompts, and {settings.data} has none")


def make_trials(settings: Settings, data: Comparisons) -> list[Trial]:
    """The random splits of the run: by statements and prompts where there is text, else by choice situations."""
    parts, cut = settings.split, comparisons.split_items if settings.text.source else comparisons.split
    # A statement of the test must stand in no training pair, or the test would measure memory.
    split = functools.partial(cut, data, seen=parts.seen, train=parts.train, validation=parts.validation)
    return panel.make_trials(data, parts.seeds, parts.control, settings.seed, lambda seed: split(seed=seed))


def make_learners(settings: Settings, kept: Kept, ctx: Context, replicas: int) -> dict[str, IdealPointLearner]:
    """The learners: PAL for each K, named `K=...`, and the baselines that are trained in the same way.

    Raises:
      ValueError: a model has more prototypes than there are people, or two options do not fit each other.
    """
    _check_people(settings, len(kept.names))
    baselines, loss, rates = settings.baselines, settings.loss, settings.optimizer
    model: dict[str, Any] = dataclasses.asdict(settings.model) | devices.precision(settings.model.dtype)
    z_std = model.pop('z_std')
    options = tuple((name, getattr(loss, name)) for name in OPTIONS[loss.name])

    def learner(pull: float, new_pull: float, rates: Rates = rates, **changes: Any) -> IdealPointLearner:
        shape = ideal_point.PAL(kept.width, **model | changes)
        # Users who are points of their own have no prototypes.
        prototype_pull = 0.0 if shape.mixture == 'own' else loss.prototype_pull
        penalties = Loss(loss.name, options, pull, loss.bound, loss.bound_coef, loss.by, prototype_pull=prototype_pull)
        new = NewUsers(settings.new.steps, settings.new.lr, new_pull, question=settings.new.question)
        size: Any = {'users': len(kept.names), 'replicas': replicas, 'z_std': z_std}
        return IdealPointLearner(shape, penalties, rates, ctx.mesh, new=new, **size)

    learners = {f'K={K}': learner(loss.pull, settings.new.pull, prototypes=K) for K in settings.prototypes}
    # A free vector for each user: the weights of prototypes are 1 and the vector, without bounds.
    if baselines.embedding:
        pull = baselines.embedding_pull
        learners['embedding'] = learner(pull, pull, prototypes=baselines.embedding + 1, mixture='free')
    if baselines.own and model['variant'] == 'A' and model['point'] == 'Pw':
        learners['own'] = learner(baselines.own_pull, baselines.own_pull, prototypes=1, mixture='own')
    if baselines.groups and kept.groups > 1:
        known_groups = dataclasses.replace(rates, users=0.0)  # people stay where `start` puts them
        learners['groups'] = learner(0.0, settings.new.pull, known_groups, prototypes=kept.groups)
    return learners


def _check_people(settings: Settings, people: int) -> None:
    """Raises ValueError, with all keys at once, where a model has more prototypes than there are people."""
    embedding, data = settings.baselines.embedding, f'the {counted(people, "person")} of {settings.data}'
    wrong = []
    if (largest := max(settings.prototypes)) > people:
        wrong.append(
            f'prototypes={settings.prototypes} has {largest}, which is more than {data}; give numbers of at most '
            f'{people}, or more people'
        )
    # The user embedding has a prototype more than its vectors have numbers.
    if embedding and embedding + 1 > people:
        wrong.append(
            f'baselines.embedding={embedding}, a method to compare with, takes {embedding + 1} people, which is more '
            f'than {data}; leave it out by baselines.embedding=0, or give more people'
        )
    if wrong:
        raise ValueError('; '.join(wrong))


def start(name: str, learner: IdealPointLearner, data: Comparisons, seeds: Array) -> PALState:
    """The state before the first step."""
    state = learner.init(seeds)
    # All models but the one with known groups begin with people in the middle, or near it.
    if name != 'groups':
        return state
    assert data.groups is not None
    # With known groups people stand at the prototype of their group, and in the middle without a known group.
    z = np.zeros(state.users.z.shape, np.float32)
    z[:, : len(data.groups)] = CERTAIN * (data.groups[:, None] == np.arange(learner.pal.prototypes))
    place = learner.abstract.users.z.sharding
    return state.replace(users=state.users.replace(z=jax.make_array_from_callback(z.shape, place, lambda i: z[i])))


def summarize(metrics: dict[str, dict[str, Any]], trials: Sequence[Trial]) -> Metrics:
    """Means over the splits with true users; `loss` and `training_accuracy` are of PAL with the most prototypes.

    Raises:
      RuntimeError: a loss is not finite.
    """
    # Splits with shuffled users are the control: their figures say nothing about people.
    true = [r for r, trial in enumerate(trials) if not trial.shuffled]
    means = {
        name: {key: float(np.mean(np.asarray(x)[true])) for key, x in row.items()} for name, row in metrics.items()
    }
    if bad := [name for name, row in means.items() if not np.isfinite(row['loss'])]:
        raise RuntimeError(f'the loss of {bad[0]} is not finite; lower the rates in optimizer')
    # The most prototypes: the loss of the model that can fit best shows whether training works.
    largest = [name for name in means if name.startswith('K=')][-1]
    named = {f'{key} {name}': value for name, row in means.items() for key, value in row.items()}
    first = {'training_accuracy' if key == 'accuracy' else key: value for key, value in means[largest].items()}
    return first | named
