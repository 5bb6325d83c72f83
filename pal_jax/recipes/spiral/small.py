"""SPIRAL with a small network in place of a language model, on Kuhn poker or tic-tac-toe as arrays.

The games, the role-conditioned advantages and the loss are those of `recipes/spiral/`; an action is one token. So what
theory says of self-play can be checked in a minute: a table of twelve logits comes near an equilibrium of Kuhn poker,
and a network with one hidden layer learns tic-tac-toe. Several seeds are trained at once, each beside players with
other baselines.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int

from pal_jax.objectives.policy import loss_weights, ppo_token_loss
from pal_jax.objectives.selfplay import Baseline, role_conditioned
from pal_jax.recipes.spiral import exploitability
from pal_jax.recipes.spiral.vector import ArrayGame, KuhnArrays, Plies, TicTacToeArrays, masked, play_arrays
from pal_jax.run import intervals, sharding
from pal_jax.run.optim import Optimizer
from pal_jax.run.recipe import EVALUATION, Context, Evaluation, Host, Plan, check_at_least, stage_before
from pal_jax.run.settings import Run, StageSettings
from pal_jax.types import Exhibit, Metrics

GAMES: Mapping[str, ArrayGame] = {'kuhn': KuhnArrays(), 'tictactoe': TicTacToeArrays()}
# A single update of a batch never meets this clip.
CLIP = 0.2
SHOWN = 'nashconv', 'winrate', 'none_winrate'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(Run):
    """The keys of a run; a step of `total_steps` makes `updates` updates."""

    game: Literal['kuhn', 'tictactoe'] = 'kuhn'
    hidden: int = 0  # units of the hidden layer; 0: a table of Kuhn's information sets
    batch: int = 64  # matches of an update
    updates: int = 125
    seeds: int = 3
    alpha: float = 0.95  # decay of baselines
    # The weight of a move's entropy (nats) in the loss; above 0 a network goes on trying all moves.
    entropy: float = 0.0
    # The baselines that are compared; 'shared' is another; the first is the method.
    baselines: tuple[str, ...] = ('role', 'none')
    optimizer: Optimizer
    eval: StageSettings = StageSettings()
    eval_games: int = 4000  # against a random player, in each seat


class PlayerState(struct.PyTreeNode):
    """A player in training. `average` is the mean over its updates of the chances to bet of a table."""

    params: Any
    opt_state: Any
    baselines: Float[Array, '1 2']
    average: Float[Array, ' F']
    updates: Int[Array, '']


@dataclasses.dataclass(frozen=True)
class Player:
    """A network that plays both seats and learns from what it plays."""

    game: ArrayGame
    hidden: int
    batch: int
    alpha: float
    optimizer: Optimizer
    baseline: Baseline
    entropy: float = 0.0

    def init(self, key: Array) -> PlayerState:
        params: Any = {'table': jnp.zeros(self.game.features)}
        if self.hidden:
            shapes = (self.game.features, self.hidden), (self.hidden, self.game.actions)
            keys = jax.random.split(key)
            params = {
                f'layer{k}': {
                    'kernel': jax.random.normal(keys[k], shape) / np.sqrt(shape[0]),
                    'bias': jnp.zeros(shape[1]),
                }
                for k, shape in enumerate(shapes)
            }
        nothing = jnp.zeros((), jnp.int32)
        return PlayerState(
            params, self.optimizer.init(params), jnp.zeros((1, 2)), jnp.zeros(self.game.features), nothing
        )

    def logits(self, params: Any, observed: Float[Array, 'n F']) -> Float[Array, 'n A']:
        """Logits of each action; a table has the log-odds of betting."""
        if not self.hidden:
            bet = observed @ params['table']
            return jnp.stack([jnp.zeros_like(bet), bet], axis=1)
        first, second = params['layer0'], params['layer1']
        return jnp.tanh(observed @ first['kernel'] + first['bias'][None]) @ second['kernel'] + second['bias'][None]

    def update(self, state: PlayerState, key: Array) -> tuple[PlayerState, Metrics]:
        # 1. Play a batch of matches with the current player in both seats.
        policy = lambda seen, seat: self.logits(state.params, seen)  # noqa: E731
        plies, returns = play_arrays(self.game, policy, key, self.batch)
        moved = jnp.stack([jnp.any(plies.live & (plies.seat == seat), axis=0) for seat in (0, 1)], axis=1)
        # 2. Advantages by the baseline of the seat, which every move of the seat gets.
        advantages, baselines = role_conditioned(
            state.baselines,
            jnp.zeros(self.batch, jnp.int32),
            returns,
            moved,
            alpha=self.alpha,
            baseline=self.baseline,
        )
        # 3. One step down the loss of all moves.
        grads, entropy = jax.grad(self.loss, has_aux=True)(state.params, plies, advantages)
        updates, opt_state = self.optimizer.update(grads, state.opt_state, state.params)
        params, count = optax.apply_updates(state.params, updates), state.updates + 1
        # Self-play may circle around an equilibrium; the mean of the tables that have played comes nearer to it.
        table = jax.nn.sigmoid(state.params['table']) if not self.hidden else state.average
        average = state.average + (table - state.average) / count
        figures = {
            'return_first': jnp.mean(returns[:, 0]),
            'moves': jnp.mean(jnp.sum(plies.live, axis=0)),
            'entropy': entropy,
        }
        return PlayerState(params, opt_state, baselines, average, count), figures

    def loss(self, params: Any, plies: Plies, advantages: Float[Array, 'n 2']) -> tuple[Array, Array]:
        """The clipped loss of the moves of matches, a token each, less their weighted entropy; and that entropy."""
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), plies)
        # The plies stand one after the other, each with all matches.
        match = jnp.tile(jnp.arange(advantages.shape[0]), plies.live.shape[0])
        logprobs = jax.nn.log_softmax(masked(self.logits(params, flat.observed), flat.legal))
        # A batch is learnt from once, so these log-probabilities are also those that its moves were drawn by.
        chosen = jnp.take_along_axis(logprobs, flat.action[:, None], axis=1)
        acts = flat.live[:, None]
        weights = loss_weights(acts, jnp.ones(len(acts), bool), 'constant', length=1)
        token = ppo_token_loss(chosen, jax.lax.stop_gradient(chosen), advantages[match, flat.seat][:, None], clip=CLIP)
        entropy = -jnp.sum(jnp.exp(logprobs) * jnp.where(flat.legal, logprobs, 0.0), axis=1)
        mean = jnp.sum(weights[:, 0] * entropy)
        return jnp.sum(weights * token) - self.entropy * mean, mean

    @functools.partial(jax.jit, static_argnums=0)
    def train(self, states: PlayerState, keys: Array) -> tuple[PlayerState, dict[str, Array]]:
        """Updates of all seeds, by keys `[seeds, updates]`, and the means of their figures."""
        states, figures = jax.vmap(lambda state, keys: jax.lax.scan(self.update, state, keys))(states, keys)
        return states, jax.tree.map(jnp.mean, figures)

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def against_random(self, states: PlayerState, key: Array, matches: int) -> Float[Array, 'seeds 2']:
        """The share of matches that each seed wins in either seat against a player that moves at random."""

        def wins(params: Any, mine: int) -> Array:
            def policy(seen: Array, seat: Array) -> Array:
                # Logits of 0 draw any legal move alike.
                return jnp.where((seat == mine)[:, None], self.logits(params, seen), 0.0)

            _, returns = play_arrays(self.game, policy, jax.random.fold_in(key, mine), matches)
            return jnp.mean(returns[:, mine] > 0)

        return jax.vmap(lambda params: jnp.stack([wins(params, seat) for seat in (0, 1)]))(states.params)


@dataclasses.dataclass(frozen=True)
class SmallSpiral:
    """Players by the name of their baseline; the first is the method, others are there to compare with."""

    plan: Plan
    ctx: Context
    players: Mapping[str, Player]
    seeds: int
    updates: int
    eval_games: int
    seed: int

    def init(self) -> tuple[dict[str, PlayerState], Host]:
        keys = jax.vmap(jax.random.key)(self.seed + jnp.arange(self.seeds))
        return {name: jax.vmap(player.init)(keys) for name, player in self.players.items()}, {}

    def step(self, state: dict[str, PlayerState], host: Host, i: int) -> tuple[Any, Host, str, Metrics]:
        # Players with other baselines get the same keys, so that they differ by the baseline alone.
        keys = jax.vmap(lambda seed: jax.random.split(jax.random.fold_in(jax.random.key(seed), i + 1), self.updates))(
            self.seed + jnp.arange(self.seeds)
        )
        with self.ctx.phase('learn'):
            done = {name: player.train(state[name], keys) for name, player in self.players.items()}
            # The figures of a step are those of the method, which is the first player.
            metrics = {key: float(value) for key, value in next(iter(done.values()))[1].items()}
        states = {name: new for name, (new, _) in done.items()}
        matches = self.seeds * self.updates * next(iter(self.players.values())).batch
        return states, host, 'spiral', metrics | {'samples': float(matches)}

    def evaluate(self, state: dict[str, PlayerState], stage: str) -> Evaluation:
        """NashConv of tables, of their mean over training and as they are, or win rates of networks."""
        record: dict[str, Any] = {}
        rows: list[Sequence[str]] = []
        with self.ctx.phase('evaluate'):
            for place, (name, player) in enumerate(self.players.items()):
                figures = self.of_networks(player, state[name]) if player.hidden else of_tables(state[name])
                # Figures of the method have plain names; those of the others begin with their baseline.
                before = f'{name}_' if place else ''
                for key, values in figures.items():
                    record |= intervals.mean(values).named(before + key)
                    rows.append([name, key, *(f'{value:.3f}' for value in values)])
        head = ['baseline', 'figure', *(f'seed {self.seed + k}' for k in range(self.seeds))]
        return Evaluation(record, exhibits=[Exhibit('Every seed by itself', table=[head, *rows])])

    def of_networks(self, player: Player, states: PlayerState) -> dict[str, np.ndarray]:
        key = jax.random.fold_in(jax.random.key(self.seed), EVALUATION)
        first, second = np.asarray(player.against_random(states, key, self.eval_games)).T
        return {'winrate': (first + second) / 2, 'winrate_first': first, 'winrate_second': second}


def of_tables(states: PlayerState) -> dict[str, np.ndarray]:
    """NashConv of each seed's mean table and of its last one, and the value of the last one for seat 1."""
    last = np.asarray(jax.nn.sigmoid(states.params['table']))
    # Before the first update there is no mean, and the table itself stands for it.
    mean = np.where(np.asarray(states.updates)[:, None] > 0, np.asarray(states.average), last)
    return {
        'nashconv': np.array([exploitability.nashconv(table) for table in mean]),
        'nashconv_last': np.array([exploitability.nashconv(table) for table in last]),
        'value': np.asarray(exploitability.value(last)),
    }


def make(settings: Settings, ctx: Context) -> SmallSpiral:
    """Checks the settings and builds the players.

    Raises:
      ValueError: a value is wrong, or two do not fit together.
    """
    check(settings)
    optimizer = settings.optimizer.over(settings.total_steps * settings.updates)
    players = {
        name: Player(
            GAMES[settings.game],
            settings.hidden,
            settings.batch,
            settings.alpha,
            optimizer,
            name,  # pyright: ignore[reportArgumentType]
            settings.entropy,
        )
        for name in settings.baselines
    }
    stage = functools.partial(
        stage_before, warmup=0, steps=settings.total_steps, every=settings.eval.every, base=settings.eval.base
    )
    recipe = SmallSpiral(
        Plan(settings.total_steps, None, stage, shown=SHOWN),
        ctx,
        players,
        settings.seeds,
        settings.updates,
        settings.eval_games,
        settings.seed,
    )
    place = sharding.replicated(ctx.mesh)
    # Shapes are read off `init`, which is the one place that knows them; nothing is computed here.
    shapes = jax.eval_shape(lambda: recipe.init()[0])
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    return dataclasses.replace(recipe, plan=recipe.plan._replace(abstract=abstract))


def check(settings: Settings) -> None:
    """Raises ValueError where a value is wrong."""
    check_at_least(settings, 1, 'total_steps', 'batch', 'updates', 'eval_games', 'checkpoint.every')
    check_at_least(settings, 2, 'seeds')
    check_at_least(settings, 0, 'hidden', 'entropy')
    if not settings.hidden and settings.game != 'kuhn':
        raise ValueError(f'hidden=0 is a table of Kuhn poker, not of game={settings.game!r}; set hidden=128')
    if not 0 <= settings.alpha < 1:
        raise ValueError(f'alpha={settings.alpha} must be at least 0 and below 1')
    known = get_args(Baseline)
    if not settings.baselines or set(settings.baselines) - set(known):
        raise ValueError(f'baselines={settings.baselines} must be one or more of {", ".join(known)}')
