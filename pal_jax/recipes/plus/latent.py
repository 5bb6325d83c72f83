"""PLUS's baseline without words: the reward model knows a person by a latent vector (VPL, `learners/latent.py`).

A frozen decoder reads every reply after its prompt once; its state at the reply's last token is all that is known of
it. A step is a pass over the people: from the choices that are told of a person comes z, by which the others are
judged: all but those that test, where PLUS's reward model is not taught the one that pays its summariser.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pal_jax.data.histories import History
from pal_jax.data.passes import shuffled
from pal_jax.data.texts import Text
from pal_jax.evals import conditioning
from pal_jax.feedback import summaries
from pal_jax.learners import latent
from pal_jax.learners.latent import Latent, LatentState
from pal_jax.models import params as model_params
from pal_jax.models import states
from pal_jax.parts.recipe import (
    EVALUATION,
    Closures,
    Config,
    Context,
    Evaluation,
    Host,
    Plan,
    Policy,
    Recipe,
    keeping,
    make_policy,
    stage_before,
)
from pal_jax.recipes.plus.context import of_whom
from pal_jax.runtime import sharding
from pal_jax.runtime.checkpoint import KEPT
from pal_jax.runtime.files import write_whole
from pal_jax.runtime.optim import Optimizer
from pal_jax.runtime.processes import exchange
from pal_jax.types import Choice, Metrics

UNITS = 'latent.json'


def make(config: Config, ctx: Context, train: Sequence[History], tests: Mapping[str, Sequence[History]]) -> Recipe:
    """Raises ValueError where a value is wrong."""
    settings, policy = config.latent, make_policy(config, ctx, of='reward_model')
    options = Latent(settings.dim, settings.hidden, settings.kl_coef)
    everyone = [*train, *itertools.chain(*tests.values())]
    updates = -(-len(train) // settings.people)
    optimizer = Optimizer(**settings.optimizer, total_steps=settings.passes * updates)
    update = latent.make_update(optimizer, options)
    vectors = functools.cache(lambda: make_vectors(policy, ctx, train, everyone))
    everywhere = sharding.replicated(ctx.mesh)

    def new() -> LatentState:
        params = latent.init(jax.random.key(config.seed), policy.cfg.width, options)
        return LatentState(params, optimizer.init(params))

    def init() -> tuple[LatentState, Host]:
        return jax.jit(new, out_shardings=everywhere)(), {}

    def told(people: Sequence[History]) -> np.ndarray:
        return vectors()([person.past for person in people])

    def step(state: LatentState, host: Host, i: int) -> tuple[LatentState, Host, str, Metrics]:
        found: list[Metrics] = []
        order = shuffled(len(train), start=i * len(train), size=len(train), seed=config.seed)
        for k, part in enumerate(np.array_split(order, updates)):
            people, key = [train[j] for j in part], jax.random.fold_in(jax.random.key(config.seed), i * updates + k)
            asked = vectors()([(person.reward, *person.train) for person in of_whom(config, people, train, (i, k))])
            with ctx.phase('update'):
                state, metrics = update(state, told(people), asked, key)
                found.append(jax.device_get(metrics))
        means = {name: float(np.mean([each[name] for each in found])) for name in found[0]}
        if not np.isfinite(means['loss']):
            raise RuntimeError(f'the loss is {means["loss"]}; lower latent.optimizer.lr')
        return state, host, 'latent', means

    def describe(state: LatentState, people: Sequence[History], temperatures: Sequence[float]) -> list[np.ndarray]:
        """For each temperature the mean of a person's z, or, above 0, a draw."""
        found, count = latent.encode(state.params, jnp.asarray(told(people))), len(temperatures)
        mean, log_std = (jnp.repeat(x, count, axis=0) for x in found)
        drawn = latent.draw(jax.random.fold_in(jax.random.key(config.seed), EVALUATION), mean, log_std)
        return list(np.where(np.tile(temperatures, len(people))[:, None] > 0, drawn, mean))

    def gaps(state: LatentState, z: Sequence[np.ndarray], choices: Sequence[Sequence[Choice]]) -> np.ndarray:
        scores = np.asarray(latent.score(state.params, jnp.asarray(vectors()(choices)), jnp.stack(z)))
        return scores[..., 0] - scores[..., 1]

    def evaluate(state: LatentState, stage: str) -> Evaluation:
        with ctx.phase('evaluate'):
            record, people = conditioning.evaluate(
                functools.partial(describe, state), functools.partial(gaps, state), tests, temperature=1.0,
                samples=config.eval.samples, shown=config.eval.shown, nothing=np.zeros(settings.dim, np.float32),
                whole=stage != 'base',
            )  # fmt: skip
        record['learnt_from'] = len({person.user for person in train})
        return Evaluation(record, people, conditioning.make_exhibits(record, list(tests)))

    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), jax.eval_shape(new))
    stages = {'every': config.eval.every, 'base': config.eval.base}
    stage = functools.partial(stage_before, warmup=0, steps=settings.passes, **stages)
    keep, shown = keeping(reward_model=policy), ('accuracy', 'reward')
    return Closures(Plan(settings.passes, abstract, stage, shown=shown, keep=keep), init, step, evaluate)


def check(people: Sequence[History]) -> None:
    """Raises ValueError where it is not known of somebody which choices are told."""
    counts = {len(person.past): person.user for person in people}
    if len(counts) > 1 or 0 in counts:
        few = counts[min(counts)]
        raise ValueError(f'reads=latent: {few} has fewer choices told apart than others, or none; read something else')


def make_vectors(policy: Policy, ctx: Context, train: Sequence[History], everyone: Sequence[History]):
    """What the frozen decoder makes of replies, kept in the run's folder: `[people, choices, 2, D]` of as many choices
    of each, the chosen reply first. A coordinate has mean 0 and variance 1 over the replies of those to learn from."""

    @functools.cache
    def text(prompt: str, reply: str) -> Text:
        asked = policy.tokenizer.chat([dict(message) for message in summaries.question('', prompt)])
        return Text(tuple(policy.tokenizer.encode(reply)), tuple(asked))

    def sides(choices: Sequence[Choice]) -> Iterator[Text]:
        for choice in choices:
            yield from (text(choice.prompt, reply) for reply in (choice.chosen, choice.rejected))

    def all_of(people: Sequence[History]) -> dict[Text, int]:
        of = (sides((*p.past, p.reward, *p.train, *p.held)) for p in people)
        return {each: i for i, each in enumerate(dict.fromkeys(each for own in of for each in own))}

    numbers, learnt = all_of(everyone), all_of(train)  # those to learn from stand first in both

    def compute() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        params = policy.source.load(sharding.param_shardings(model_params.decoder_specs(policy.cfg), ctx.mesh))
        yield from states.hidden_states(params, policy.cfg, ctx.mesh, tuple(numbers), pool='last')

    settings = {'dtype': policy.cfg.dtype, 'layers': policy.cfg.layers}
    with ctx.phase('read'):
        shape = len(numbers), policy.cfg.width
        table = np.asarray(states.stored(ctx.workdir / 'states', tuple(numbers), settings, compute, shape))
    mean, spread = units(ctx, table[: len(learnt)])
    table = (table - mean) / spread

    def vectors(choices: Sequence[Sequence[Choice]]) -> np.ndarray:
        rows = [[numbers[each] for each in sides(own)] for own in choices]
        return table[np.array(rows)].reshape(len(choices), -1, 2, table.shape[1])

    return vectors


def units(ctx: Context, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread `[D]` of the states of those to learn from, as they were when the run began.

    Raises:
      ValueError: a run that goes on has not kept them.
    """
    path = (ctx.kept or ctx.workdir / KEPT) / UNITS
    if ctx.kept is None:
        found = [own.mean(axis=0).tolist(), np.maximum(own.std(axis=0), 1e-6).tolist()]
        said = dict(zip(('mean', 'spread'), exchange('units', found)[0], strict=True))
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(said) + '\n')
    elif path.is_file():
        said = json.loads(path.read_text(encoding='utf-8'))
    else:
        raise ValueError(f'{path} is missing: the run is of an earlier version; train it again in another --workdir')
    return np.array(said['mean'], np.float32), np.array(said['spread'], np.float32)
