"""PLUS's baseline without words: the reward model knows a person by a latent vector (VPL, `learners/latent.py`).

A frozen decoder reads every reply after its prompt once; its state at the reply's last token stands for the reply. A
step is a pass over the people: an encoder makes z of a person's past choices, and z judges the person's other choices,
except those that test. The choice that pays PLUS's summariser is among them; PLUS's reward model is not taught it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pal_jax.data.histories import History
from pal_jax.data.passes import shuffled
from pal_jax.data.texts import Text
from pal_jax.learners import latent
from pal_jax.learners.latent import Latent, LatentState
from pal_jax.models import params as model_params
from pal_jax.models import states
from pal_jax.recipes.plus import conditioning, summaries
from pal_jax.recipes.plus.people import of_whom
from pal_jax.recipes.plus.settings import Settings
from pal_jax.run import sharding
from pal_jax.run.files import write_whole
from pal_jax.run.models import Policy, keeping, make_policy
from pal_jax.run.optim import Optimizer
from pal_jax.run.processes import exchange
from pal_jax.run.recipe import EVALUATION, KEPT, Context, Evaluation, Host, Plan, stage_before
from pal_jax.types import Choice, Metrics

UNITS = 'latent.json'


@dataclasses.dataclass(frozen=True)
class LatentBaseline:
    """Trains a reward model that knows a person by a latent vector z.

    Attributes:
      new: makes a state before training.
      vectors: the states of the replies of choices, `[people, choices, 2, D]`.
      update: one step on people's past choices, their other choices and a key, see `learners.latent.make_update`.
      updates: the number of updates of a step, which is a pass over the people to learn from.
      tests: people to test on, by the name of their split.
      measure: figures of such people, see `recipes.plus.conditioning.evaluate`.
      shuffled: whether, for the control, somebody else's choices go with each person.
    """

    plan: Plan
    ctx: Context
    new: Callable[[], LatentState]
    vectors: Callable[[Sequence[Sequence[Choice]]], np.ndarray]
    update: Callable[..., tuple[LatentState, dict[str, Array]]]
    updates: int
    train: Sequence[History]
    tests: Mapping[str, Sequence[History]]
    measure: Callable[..., tuple[dict[str, Any], list[Any]]]
    shuffled: bool = False
    seed: int = 0

    def init(self) -> tuple[LatentState, Host]:
        return jax.jit(self.new, out_shardings=sharding.replicated(self.ctx.mesh))(), {}

    def step(self, state: LatentState, host: Host, i: int) -> tuple[LatentState, Host, str, Metrics]:
        rows: list[Metrics] = []
        count = len(self.train)
        # 1. Shuffle the people, and cut them into batches.
        order = shuffled(count, start=i * count, size=count, seed=self.seed)
        for k, part in enumerate(np.array_split(order, self.updates)):
            people = [self.train[j] for j in part]
            key = jax.random.fold_in(jax.random.key(self.seed), i * self.updates + k)
            # 2. Past choices are what is known of a person; all others but those that test are to be judged by it.
            # In the control the choosers are other people, so z can tell nothing about the choices.
            choosers = of_whom(people, self.train, (self.seed, i, k), shuffled=self.shuffled)
            judged = self.vectors([(person.reward, *person.train) for person in choosers])
            # 3. Update encoder and reward model, on the choices' loss by a drawn z and the divergence of its
            #    distribution.
            with self.ctx.phase('update'):
                state, metrics = self.update(state, self.known(people), judged, key)
                rows.append(jax.device_get(metrics))
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        if not np.isfinite(means['loss']):
            raise RuntimeError(f'the loss is {means["loss"]}; lower latent.optimizer.lr')
        return state, host, 'latent', means

    def known(self, people: Sequence[History]) -> np.ndarray:
        """The states of the replies of past choices."""
        return self.vectors([person.past for person in people])

    def describe(
        self, state: LatentState, people: Sequence[History], temperatures: Sequence[float]
    ) -> list[np.ndarray]:
        """The vectors z, one for each person and temperature: the mean of z or, above temperature 0, a draw."""
        known, count = latent.encode(state.params, jnp.asarray(self.known(people))), len(temperatures)
        mean, log_std = (jnp.repeat(x, count, axis=0) for x in known)
        # Draws follow from the seed alone: an evaluation repeated gives the same figures.
        drawn = latent.draw(jax.random.fold_in(jax.random.key(self.seed), EVALUATION), mean, log_std)
        return list(np.where(np.tile(temperatures, len(people))[:, None] > 0, drawn, mean))

    def gaps(self, state: LatentState, z: Sequence[np.ndarray], choices: Sequence[Sequence[Choice]]) -> np.ndarray:
        """The score of the chosen reply of each choice minus that of the other one, by each z."""
        scores = np.asarray(latent.score(state.params, jnp.asarray(self.vectors(choices)), jnp.stack(z)))
        return scores[..., 0] - scores[..., 1]

    def evaluate(self, state: LatentState, stage: str) -> Evaluation:
        describe, gaps = functools.partial(self.describe, state), functools.partial(self.gaps, state)
        with self.ctx.phase('evaluate'):
            record, people = self.measure(describe, gaps, self.tests, whole=stage != 'base')
        record['learnt_from'] = len({person.user for person in self.train})
        return Evaluation(record, people, conditioning.make_exhibits(record, list(self.tests)))


def make(
    settings: Settings, ctx: Context, train: Sequence[History], tests: Mapping[str, Sequence[History]]
) -> LatentBaseline:
    """Build the parts; states of replies are read when a step or an evaluation first asks for them.

    Raises:
      ValueError: a value is wrong.
      RuntimeError: the model cannot be had.
    """
    options, seed, evaluated = settings.latent, settings.seed, settings.eval
    policy = make_policy(settings.reward_model, ctx, seed, of='reward_model')
    # The network is small: every device has all of it.
    everywhere = sharding.replicated(ctx.mesh)
    updates = -(-len(train) // options.people)
    optimizer = options.optimizer.over(options.passes * updates)
    new = functools.partial(new_state, seed, policy.cfg.width, options, optimizer)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), jax.eval_shape(new))
    measure = functools.partial(
        conditioning.evaluate,
        temperature=1.0,
        samples=evaluated.samples,
        shown=evaluated.shown,
        nothing=np.zeros(options.dim, np.float32),
    )
    stage = functools.partial(stage_before, warmup=0, steps=options.passes, every=evaluated.every, base=evaluated.base)
    plan = Plan(options.passes, abstract, stage, shown=('accuracy', 'reward'), keep=keeping(reward_model=policy))
    vectors = Vectors(policy, ctx, train, [*train, *itertools.chain(*tests.values())])
    return LatentBaseline(
        plan, ctx, new, vectors, latent.make_update(optimizer, options), updates, train, tests, measure,
        settings.shuffled, seed,
    )  # fmt: skip


def new_state(seed: int, width: int, options: Latent, optimizer: Optimizer) -> LatentState:
    """The state before training, with weights drawn by `seed`."""
    params = latent.init(jax.random.key(seed), width, options)
    return LatentState(params, optimizer.init(params))


@dataclasses.dataclass(frozen=True)
class Vectors:
    """The states that the frozen decoder makes of the replies of choices; they are kept in the run's folder.

    `everyone` begins with the people to learn from, `train`.
    """

    policy: Policy
    ctx: Context
    train: Sequence[History]
    everyone: Sequence[History]

    def __call__(self, choices: Sequence[Sequence[Choice]]) -> np.ndarray:
        """The states `[people, choices, 2, D]` of the replies of people's choices, as many of each person, the chosen
        reply first."""
        rows = [[self._numbers[text] for text in self._sides(row)] for row in choices]
        return self._table[np.array(rows)].reshape(len(choices), -1, 2, self._table.shape[1])

    @functools.cached_property
    def _text(self) -> Callable[[str, str], Text]:
        """A function that gives the tokens of a reply and of the prompt before it; each text is made once."""
        tokenizer = self.policy.tokenizer

        @functools.cache
        def text(prompt: str, reply: str) -> Text:
            question = tokenizer.chat([dict(message) for message in summaries.question('', prompt)])
            return Text(tuple(tokenizer.plain(reply)), tuple(question))

        return text

    def _sides(self, choices: Sequence[Choice]) -> Iterator[Text]:
        for choice in choices:
            yield from (self._text(choice.prompt, reply) for reply in (choice.chosen, choice.rejected))

    def _numbered(self, people: Sequence[History]) -> dict[Text, int]:
        rows = (self._sides((*p.past, p.reward, *p.train, *p.held)) for p in people)
        return {text: i for i, text in enumerate(dict.fromkeys(text for row in rows for text in row))}

    @functools.cached_property
    def _numbers(self) -> dict[Text, int]:
        """The rows of `_table` by their texts."""
        return self._numbered(self.everyone)

    def _states(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        # The weights are let go after the reading: training needs only the states.
        cfg, mesh = self.policy.cfg, self.ctx.mesh
        params = self.policy.source.load(sharding.param_shardings(model_params.decoder_specs(cfg), mesh))
        yield from states.hidden_states(params, cfg, mesh, tuple(self._numbers), pool='last')

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """The states `[texts, D]`, in the units of the run."""
        cfg = self.policy.cfg
        settings, shape = {'dtype': cfg.dtype, 'layers': cfg.layers}, (len(self._numbers), cfg.width)
        with self.ctx.phase('read'):
            folder = self.ctx.workdir / 'states'
            table = np.asarray(states.stored(folder, tuple(self._numbers), settings, self._states, shape))
        mean, spread = units(self.ctx, table[: len(self._numbered(self.train))])
        # A coordinate has mean 0 and variance 1 over the replies of the people to learn from.
        return (table - mean) / spread


def units(ctx: Context, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and spread `[D]` of the states of the people to learn from, as they were when the run began.

    Raises:
      ValueError: a run that goes on has not kept them.
    """
    path = (ctx.kept or ctx.workdir / KEPT) / UNITS
    if ctx.kept is None:
        # One process's numbers count for all: sums differ between machines in the last digits.
        computed = [table.mean(axis=0).tolist(), np.maximum(table.std(axis=0), 1e-6).tolist()]
        record = dict(zip(('mean', 'spread'), exchange('units', computed)[0], strict=True))
        if jax.process_index() == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, json.dumps(record) + '\n')
    elif path.is_file():
        record = json.loads(path.read_text(encoding='utf-8'))
    else:
        raise ValueError(f'{path} is missing: the run is of an earlier version; train it again in another --workdir')
    return np.array(record['mean'], np.float32), np.array(record['spread'], np.float32)
