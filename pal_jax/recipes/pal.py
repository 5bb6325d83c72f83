"""PAL (arXiv 2406.08469): people's preferences as mixtures of K prototypes, new people from a few comparisons.

A step takes the next batches of seen people's pairs and makes `updates` updates of every model with them: of PAL for
each K of `prototypes` (K = 1 is the one model that all share), of the baselines that are trained, and of each of these
once for every split of people and choices. So all that the table at the end compares has met the same pairs.

An evaluation chooses K on each split's validation part, tests seen people on new choices, and fits new people's weights
from n of their comparisons, with everything else as it was.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pal_jax.data import choices, columns, comparisons, tables, votes
from pal_jax.data.comparisons import Comparisons
from pal_jax.data.passes import shuffled
from pal_jax.evals import mixed_logit, panel
from pal_jax.evals.panel import Trial
from pal_jax.evals.population import Panel, make_exhibits, make_record, measure
from pal_jax.learners.ideal_point import IdealPointLearner, Loss, NewUsers, PALState, Rates
from pal_jax.models import ideal_point, sources, states
from pal_jax.models.ideal_point import PAL
from pal_jax.models.params import decoder_specs
from pal_jax.objectives.preference import pair_loss
from pal_jax.recipes.recipe import Config, Context, Evaluation, Host, Recipe, open_run, read_config
from pal_jax.runtime import devices, sharding
from pal_jax.runtime.checkpoint import Checkpoints
from pal_jax.runtime.metrics import EVALS, read_records
from pal_jax.types import Metrics, PairBatch

SHOWN = 'seen_shared', 'seen_pal', 'new_shared', 'new_pal'
OPTIONS = {'logistic': ('margin', 'label_smoothing'), 'hinge': ('margin',), 'smooth_hinge': ('margin', 'gamma')}

States = dict[str, PALState]


def make(config: Config, ctx: Context) -> Recipe:
    """Checks the config, reads the choices and builds the models.

    Raises:
      ValueError: a value or a row of the file is wrong.
      RuntimeError: the wheel that holds the choices is not installed.
    """
    check(config, sharding.batch_ways(ctx.mesh))
    data = read(config, ctx)
    data = comparisons.standardized(data) if config.standardize else data
    parts = {name: config.split[name] for name in ('seen', 'train', 'validation')}
    split = functools.partial(comparisons.split_items if config.text.source else comparisons.split, data, **parts)
    trials = panel.make_trials(
        data, config.split.seeds, config.split.control, config.seed, lambda seed: split(seed=seed)
    )
    learners = make_learners(config, data, ctx, len(trials))
    draw = make_draw(config, data, trials)
    new = config.new
    compared = Panel(data, trials, learners, tuple(config.prototypes), tuple(new.counts), new.toward, new.ask)
    others = [name for name in ('majority', 'mixed_logit') if config.baselines[name]]

    def init() -> tuple[States, Host]:
        seeds = jnp.array([trial.seed for trial in trials], jnp.int32)
        return {name: learner.init(seeds) for name, learner in learners.items()}, {}

    def step(state: States, host: Host, i: int) -> tuple[States, Host, str, Metrics]:
        with ctx.phase('draw'):
            pairs = draw(i)
        with ctx.phase('update'):
            done = {name: learner.update(state[name], pairs) for name, learner in learners.items()}
            metrics = summarize({name: metrics for name, (_, metrics) in done.items()}, trials)
        return {name: new for name, (new, _) in done.items()}, host, 'pal', metrics

    def evaluate(state: States, stage: str) -> Evaluation:
        with ctx.phase('evaluate'):
            results = measure(compared, state, others)
            return Evaluation(make_record(results), exhibits=make_exhibits(compared, state, results))

    def stage(i: int) -> str | None:
        if i == config.total_steps:
            return 'final'
        return 'step' if config.eval.every and i and i % config.eval.every == 0 else None

    abstract = {name: learner.abstract for name, learner in learners.items()}
    return Recipe(config.total_steps, abstract, init, step, stage, evaluate, shown=SHOWN)


def check(config: Config, ways: int) -> None:
    """Everything that can be wrong before a file is read."""
    for key, value in {
        'total_steps': config.total_steps,
        'batch': config.batch,
        'updates': config.updates,
        'split.seeds': config.split.seeds,
        'new.steps': config.new.steps,
        'checkpoint.every': config.checkpoint.every,
    }.items():
        if value < 1:
            raise ValueError(f'{key}={value} must be at least 1')
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
    if config.text.source:
        check_text(config)


def check_new(config: Config) -> None:
    new = config.new
    if new.toward not in ('population', 'zero'):
        raise ValueError(f'new.toward={new.toward!r} is unknown; use population or zero')
    if new.ask < 0 or (new.ask and new.pull <= 0):
        raise ValueError(
            f'new.ask={new.ask} questions need new.pull={new.pull} above 0, which says who new people could be; '
            'new.ask=0 chooses none'
        )


def check_text(config: Config) -> None:
    text = config.text
    if text.pool not in get_args(states.Pool) or '{}' not in text.template or text.pairs < 1:
        raise ValueError(
            f'text.pool={text.pool!r} must be mean or last, text.pairs={text.pairs} at least 1, and '
            f'text.template={text.template!r} needs {{}} where a statement goes'
        )
    if config.standardize or config.baselines.majority or config.baselines.mixed_logit:
        raise ValueError(
            'standardize, baselines.majority and baselines.mixed_logit are for attributes; where text.source is given '
            'set them to False'
        )
    if config.model.variant == 'B':
        raise ValueError("model.variant='B' needs prompts, and statements have none; use variant A")


def read(config: Config, ctx: Context) -> Comparisons:
    """The choices, in their own units, if the model can use them."""
    if config.text.source:
        return read_votes(config, ctx)
    known = config.data in choices.TABLES
    path = Path(config.data)
    on_disk = not known and path.is_dir()
    data = columns.load(path) if on_disk else choices.load(config.data) if known else tables.load(path)
    if on_disk and (config.standardize or config.baselines.majority or config.baselines.mixed_logit):
        raise ValueError(
            'standardize, baselines.majority and baselines.mixed_logit need all items in memory; for a folder of pairs '
            'set them to False, or take --config=configs/pal.py:large'
        )
    if config.model.variant == 'B' and data.prompt is None:
        raise ValueError(f"model.variant='B' needs the vectors of prompts, and {config.data} has none")
    return data


def read_votes(config: Config, ctx: Context) -> Comparisons:
    """Pairs of statements, by what a frozen decoder makes of their texts (computed once, and kept in `text.folder`)."""
    text, found = config.text, votes.read(config.data)
    source = sources.resolve(text.source, seed=config.seed, open_run=lambda run: open_run(run, ctx))
    cfg = states.first_layers(devices.for_platform(source.config, text.dtype), text.layers)
    said = [text.template.format(each) for each in found.texts]

    def compute():
        encode = source.tokenizer().fast.encode  # with a beginning-of-sequence token where the model has one
        shardings = sharding.param_shardings(decoder_specs(source.config), ctx.mesh)
        return states.hidden_states(source.load(shardings), cfg, ctx.mesh, list(map(encode, said)), pool=text.pool)

    settings = {'source': text.source, 'layers': cfg.layers, 'pool': text.pool, 'dtype': cfg.dtype}
    table = states.stored(text.folder, said, settings, compute, cfg.width)
    table = votes.principal(table, text.width) if text.width else table
    return votes.to_pairs(found, table, most=text.pairs, seed=config.seed)


def make_learners(config: Config, data: Comparisons, ctx: Context, replicas: int) -> dict[str, IdealPointLearner]:
    """PAL for each K, named `K=...`, and the baselines that are trained as it is."""
    model, baselines = config.model.to_dict(), config.baselines
    z_std, width = model.pop('z_std'), data.chosen.shape[1]
    model |= devices.precision(model['dtype'])
    options = tuple((name, config.loss[name]) for name in OPTIONS[config.loss.name])

    def learner(pull: float, new_pull: float, **changes: Any) -> IdealPointLearner:
        return IdealPointLearner(
            PAL(width, **model | changes),
            Loss(config.loss.name, options, pull, config.loss.bound, config.loss.bound_coef),
            Rates(**config.optimizer),
            ctx.mesh,
            users=len(data.names),
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
    return learners


def make_draw(config: Config, data: Comparisons, trials: Sequence[Trial]):
    """The batches `[trials, updates, batch]` of a step: a function of its number."""
    shares = [comparisons.shares(trial.users, trial.split.train) for trial in trials]
    count = config.updates * config.batch

    def draw(i: int) -> PairBatch:
        index, users, share = [], [], []
        for trial, its_shares in zip(trials, shares, strict=True):
            place = shuffled(len(trial.split.train), start=i * count, size=count, seed=trial.seed)
            index.append(trial.split.train[place])
            users.append(trial.users[index[-1]])
            share.append(its_shares[place])
        form = (len(trials), config.updates, config.batch)
        stacked = (np.stack(rows).reshape(form) for rows in (index, users, share))
        return comparisons.take(data, *stacked, read=False)

    return draw


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


# --- one person's reward ----------------------------------------------------------------------------------------------


class PersonalReward(NamedTuple):
    """`reward(items, prompts)` gives the `[B]` rewards of items `[B, H]`, in the table's own units, to one person.

    `mixture` is all there is of the person: it can be kept as JSON, and given back as `mix`.
    """

    reward: Callable[..., Array]
    mixture: list[float]


def load_pal_reward_model(
    workdir: str, *, user: str = '', mix: Sequence[float] | None = None, split: int = 0
) -> PersonalReward:
    """The reward of a trained run's `split`, with the K that was chosen on it: of a seen user, of a mixture, or of the
    population's mean where neither is given.

    Raises:
      ValueError: the run is not finished, the user is unknown or new in this split, or the mixture is none.
    """
    config = read_config(workdir)
    ctx = Context(devices.make_mesh(devices=jax.local_devices()[:1]), lambda _: contextlib.nullcontext())
    restored = Checkpoints(workdir, make(config, ctx).abstract, read_only=True).restore()
    finals = [record for record in read_records(Path(workdir) / EVALS) if record['stage'] == 'final']
    if restored is None or not finals:
        raise ValueError(f'{workdir} is not finished: K is chosen at its end; run the same command again')
    K, data = finals[-1]['chosen_prototypes'][split], read(config, ctx)
    pal = make_learners(config, data, ctx, 1)[f'K={K}'].pal
    state = jax.tree.map(lambda x: x[split], restored[0][f'K={K}'])
    trained = np.flatnonzero(state.users.updates)
    if user and user not in {data.names[i] for i in trained}:
        raise ValueError(
            f'user {user!r} is not among the {len(trained)} that split {split} of {workdir} was trained on; leave user '
            "out for the population's mixture, or give mix=[...]"
        )
    mixtures = ideal_point.weights(pal, state.users.z)
    theirs = mixtures[data.names.index(user)] if user else jnp.mean(mixtures[trained], axis=0)
    w = ideal_point.checked_mixture(mix, K) if mix is not None else theirs
    scale = comparisons.scales(data) if config.standardize else np.ones(pal.width, np.float32)

    @jax.jit
    def reward(items: Array, prompts: Array | None = None) -> Array:
        u = ideal_point.user_point(state.params, pal, jnp.broadcast_to(w, (items.shape[0], K)), prompts)
        return ideal_point.item_reward(state.params, pal, u, items / scale[None])

    return PersonalReward(reward, np.asarray(w).tolist())
