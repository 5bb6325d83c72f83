"""PAL (arXiv 2406.08469): people's preferences as mixtures of K prototypes, new people from a few comparisons.

A step takes the next batches of seen people's pairs and makes `updates` updates of every model with them: of PAL for
each K of `prototypes` (K = 1 is the one model that all share), of the baselines that are trained, and of each of these
once for every split of people and choices. So all that the table at the end compares has met the same pairs.

An evaluation chooses K on each split's validation part, tests seen people on new choices, and fits new people's weights
from n of their comparisons, with everything else as it was.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pal_jax.data import choices, columns, comparisons, opinions, tables
from pal_jax.data.comparisons import Comparisons, PairBatch
from pal_jax.evals import mixed_logit, panel
from pal_jax.evals.panel import Trial
from pal_jax.evals.population import OTHERS, Other, Panel, make_exhibits, make_record, measure
from pal_jax.learners.ideal_point import IdealPointLearner, Loss, NewUsers, PALState, Rates, put
from pal_jax.models import ideal_point
from pal_jax.objectives.preference import pair_loss
from pal_jax.parts.recipe import Config, Context, Evaluation, Host, Plan, check_at_least, stage_before
from pal_jax.recipes.pal import context as pal_context
from pal_jax.recipes.pal import kept as pal_kept
from pal_jax.recipes.pal import text as pal_text
from pal_jax.recipes.pal.batches import make_draw
from pal_jax.recipes.pal.kept import Kept
from pal_jax.runtime import devices, sharding
from pal_jax.types import Metrics

CERTAIN = 20.0  # a logit that leaves the other prototypes nothing
SHOWN = 'seen_shared', 'seen_pal', 'new_shared', 'new_pal'
OPTIONS = {'logistic': ('margin', 'label_smoothing'), 'hinge': ('margin',), 'smooth_hinge': ('margin', 'gamma')}

States = dict[str, PALState]


@dataclasses.dataclass(frozen=True)
class PAL:
    """Updates all models that a panel compares on the same pairs.

    Attributes:
      panel: the data, its splits, and the learners by the names of their models.
      draw: the pairs of a step, by its number.
      others: methods without a learner, which the evaluation compares too.
    """

    plan: Plan
    ctx: Context
    panel: Panel
    draw: Callable[[int], PairBatch]
    others: Mapping[str, Other] = dataclasses.field(default_factory=dict)

    def init(self) -> tuple[States, Host]:
        seeds = jnp.array([trial.seed for trial in self.panel.trials], jnp.int32)
        return {name: start(name, each, self.panel.data, seeds) for name, each in self.panel.learners.items()}, {}

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
            results = measure(self.panel, state, self.others)
            return Evaluation(make_record(results), exhibits=make_exhibits(self.panel, state, results))


def make(config: Config, ctx: Context) -> PAL:
    """Checks the config, reads the choices and builds the models.

    Raises:
      ValueError: a value or a row of the file is wrong.
      RuntimeError: the wheel that holds the choices is not installed.
    """
    check(config, sharding.batch_ways(ctx.mesh))
    before = pal_kept.load(ctx.kept) if ctx.kept else None
    decoder = pal_text.open_decoder(config, ctx) if config.text.source else None
    text = pal_text.read(config, ctx, decoder, before and before.frame) if decoder else None
    data = text.items if text else read(config, ctx)
    kept = pal_kept.going_on(config, before, pal_kept.of(config, data, text))
    data = comparisons.standardized(data, kept.scale) if config.standardize else data
    ctx.log(
        f'{comparisons.repeats(data)} {"texts" if data.texts else "situations"} stay with the same ones in every split'
    )
    trials = make_trials(config, data)
    learners = make_learners(config, kept, ctx, len(trials))
    others = {name: other for name, other in OTHERS.items() if config.baselines[name]}
    if decoder and text and config.baselines.context:
        others['context'] = pal_context.make_method(config, ctx, decoder, text.pairs)
    abstract = {name: learner.abstract for name, learner in learners.items()}
    stage = functools.partial(stage_before, warmup=0, steps=config.total_steps, every=config.eval.every, base=False)
    return PAL(
        Plan(config.total_steps, abstract, stage, shown=SHOWN, keep=pal_kept.keeping(kept, decoder)), ctx,
        make_panel(config, data, trials, learners)._replace(ask=config.new.ask),
        make_draw(config, data, trials, text), others,
    )  # fmt: skip


def check(config: Config, ways: int) -> None:
    """Everything that can be wrong before a file is read."""
    check_at_least(
        config, 1, 'total_steps', 'batch', 'updates', 'split.seeds', 'new.steps', 'checkpoint.every',
    )  # fmt: skip
    split = config.split
    if not (split.train > 0 and split.validation > 0 and split.train + split.validation < 1):
        raise ValueError(
            f'split.train={split.train} and split.validation={split.validation} leave nothing for the test'
        )
    if config.batch % ways:
        raise ValueError(f'batch={config.batch} does not divide over {ways} devices')
    if 1 not in config.prototypes or len(set(config.prototypes)) != len(config.prototypes):
        raise ValueError(f'prototypes={tuple(config.prototypes)} needs 1, the shared model, and each K once')
    if config.model.mixture in ('free', 'own'):
        raise ValueError(f'model.mixture={config.model.mixture!r} is a baseline; use softmax, gumbel or partition')
    check_new(config)
    pair_loss(jnp.zeros(1), config.loss.name)
    if config.baselines.mixed_logit:
        mixed_logit.require()
    check_at_least(config, 0, 'baselines.context')
    if config.text.source:
        pal_text.check(config)
    elif config.baselines.context:
        raise ValueError(f'baselines.context={config.baselines.context} is of texts; take --config=configs/pal.py:text')


def check_new(config: Config) -> None:
    new = config.new
    if new.toward not in ('population', 'zero'):
        raise ValueError(f'new.toward={new.toward!r} is unknown; use population or zero')
    if new.ask < 0 or (new.ask and new.pull <= 0):
        raise ValueError(
            f'new.ask={new.ask} questions need new.pull={new.pull} above 0, which says who new people could be; '
            'new.ask=0 chooses none'
        )


def read(config: Config, ctx: Context) -> Comparisons:
    """The choices, in their own units, if the model can use them."""
    if config.text.source:
        return pal_text.read(config, ctx, pal_text.open_decoder(config, ctx)).items
    if opinions.is_source(config.data):
        raise ValueError(f'data={config.data!r} are texts; take --config=configs/pal.py:text')
    known, path = config.data in choices.TABLES, Path(config.data)
    pictures, on_disk = path.suffix == '.npz', not known and path.is_dir()
    if known:
        data = choices.load(config.data)
    elif pictures:
        data = opinions.pictures(path)
    elif on_disk:
        data = columns.load(path)
    elif not path.exists():
        raise ValueError(f'there is no file {path}; give one of choices, or one of {", ".join(choices.TABLES)}')
    else:
        data = tables.load(path)
    if (on_disk or pictures) and (config.standardize or config.baselines.majority or config.baselines.mixed_logit):
        raise ValueError(
            'standardize, baselines.majority and baselines.mixed_logit need all items in memory; for a folder of pairs '
            'and for embeddings set them to False, or take --config=configs/pal.py:large'
        )
    if config.model.variant == 'B' and data.prompt is None:
        raise ValueError(f"model.variant='B' needs the vectors of prompts, and {config.data} has none")
    return data


def make_trials(config: Config, data: Comparisons) -> list[Trial]:
    """Splits at random, by statements and prompts where there is text, else by choice situations."""
    parts = {name: config.split[name] for name in ('seen', 'train', 'validation')}
    split = functools.partial(comparisons.split_items if config.text.source else comparisons.split, data, **parts)
    seeds, control = config.split.seeds, config.split.control
    return panel.make_trials(data, seeds, control, config.seed, lambda seed: split(seed=seed))


def make_learners(config: Config, kept: Kept, ctx: Context, replicas: int) -> dict[str, IdealPointLearner]:
    """PAL for each K, named `K=...`, and the baselines that are trained as it is."""
    model, baselines = config.model.to_dict(), config.baselines
    z_std, width, rates = model.pop('z_std'), kept.width, Rates(**config.optimizer)
    model |= devices.precision(model['dtype'])
    options = tuple((name, config.loss[name]) for name in OPTIONS[config.loss.name])

    def learner(pull: float, new_pull: float, rates: Rates = rates, **changes: Any) -> IdealPointLearner:
        return IdealPointLearner(
            ideal_point.PAL(width, **model | changes),
            Loss(config.loss.name, options, pull, config.loss.bound, config.loss.bound_coef),
            rates,
            ctx.mesh,
            users=len(kept.names),
            replicas=replicas,
            z_std=z_std,
            new=NewUsers(config.new.steps, config.new.lr, new_pull),
        )

    learners = {f'K={K}': learner(config.loss.pull, config.new.pull, prototypes=K) for K in config.prototypes}
    if baselines.embedding:
        pull = baselines.embedding_pull
        learners['embedding'] = learner(pull, pull, prototypes=baselines.embedding + 1, mixture='free')
    if baselines.own and model['variant'] == 'A' and model['point'] == 'Pw':
        learners['own'] = learner(baselines.own_pull, baselines.own_pull, prototypes=1, mixture='own')
    if baselines.groups and kept.groups > 1:
        told = rates._replace(users=0.0)  # people stay where `start` puts them
        learners['groups'] = learner(0.0, config.new.pull, told, prototypes=kept.groups)
    return learners


def start(name: str, learner: IdealPointLearner, data: Comparisons, seeds: Array) -> PALState:
    """The state before the first step. Of the model that is told the groups, people stand at the prototype of theirs,
    and in the middle where it is not known."""
    state = learner.init(seeds)
    if name != 'groups':
        return state
    assert data.groups is not None
    z = np.zeros(state.users.z.shape, np.float32)
    z[:, : len(data.groups)] = CERTAIN * (data.groups[:, None] == np.arange(learner.pal.prototypes))
    place = learner.abstract.users.z.sharding
    return state.replace(users=state.users.replace(z=jax.make_array_from_callback(z.shape, place, lambda i: z[i])))


def make_panel(
    config: Config, data: Comparisons, trials: Sequence[Trial], learners: Mapping[str, IdealPointLearner]
) -> Panel:
    """What an evaluation compares; new people are asked nothing."""
    return Panel(data, trials, learners, tuple(config.prototypes), tuple(config.new.counts), config.new.toward)


def summarize(metrics: dict[str, dict[str, Any]], trials: Sequence[Trial]) -> Metrics:
    """Means over the splits with true users; `loss` and `accuracy` are of PAL with the most prototypes.

    Raises:
      RuntimeError: a loss is not finite.
    """
    true = [r for r, trial in enumerate(trials) if not trial.shuffled]
    means = {
        name: {key: float(np.mean(np.asarray(x)[true])) for key, x in each.items()} for name, each in metrics.items()
    }
    if bad := [name for name, each in means.items() if not np.isfinite(each['loss'])]:
        raise RuntimeError(f'the loss of {bad[0]} is not finite; lower the rates in optimizer')
    largest = [name for name in means if name.startswith('K=')][-1]
    spread = float(np.std(np.asarray(metrics[largest]['accuracy'])[true]))
    named = {f'{key} {name}': value for name, each in means.items() for key, value in each.items()}
    return means[largest] | {'accuracy_std': spread, 'samples': float(len(true))} | named
