"""PPO for plans: a scorer of candidates that picks them one after the other, round by round, until the work is done.

The scorer sees one candidate at a time and shares its weights over all of them, so that it can be used on any network.
All episodes of a batch begin alike, or a group of them does, so the mean return of the rest of its group is a
baseline without a critic. Every pick is an action of PPO's.

Letters: `B` episodes, `T` rounds, `P` picks of a round, `C` candidates, `F` features.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from pal_jax.learners import array_updates as updates
from pal_jax.objectives.policy import ppo_token_loss
from pal_jax.recipes.allreduce.rounds import TransferTask, TreeTask, logprobs_of, pick
from pal_jax.run.optim import Optimizer


class CandidateScorer(nn.Module):
    """A score for each candidate, from its features; 0 for all at the start."""

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, '*S F']) -> Float[Array, '*S']:
        for width in self.hidden:
            x = nn.tanh(nn.Dense(width, kernel_init=nn.initializers.orthogonal(2.0**0.5))(x))
        # Choices are by differences of scores, which a bias would not change: only rounding would move it.
        return nn.Dense(1, use_bias=False, kernel_init=nn.initializers.zeros)(x)[..., 0]


class PlanState(struct.PyTreeNode):
    """The scorer and its optimiser, and the number of updates."""

    updates: Int[Array, '']
    params: Any
    opt: optax.OptState


class PlanEpisodes(NamedTuple):
    """Episodes in full. `rounds` are those of each; `cost` is the same with the last round counted by the share of a
    full one that it sends, which tells more of how good a plan is."""

    features: Float[Array, 'B T C F']
    picks: Int[Array, 'B T P']
    masks: Bool[Array, 'B T P C']
    logprobs: Float[Array, 'B T P']
    rounds: Int[Array, ' B']
    cost: Float[Array, ' B']


@dataclasses.dataclass(frozen=True)
class PlanPPO:
    """Functions over a `PlanState`, for a task that compiled programs are kept for by identity.

    Attributes:
      hidden: widths of the scorer's hidden layers.
      epochs, clip: passes over a batch, and PPO's clip of a pick's ratio.
    """

    task: TreeTask | TransferTask
    optimizer: Optimizer
    hidden: tuple[int, ...] = (32,)
    epochs: int = 2
    clip: float = 0.2

    @property
    def scorer(self) -> CandidateScorer:
        return CandidateScorer(self.hidden)

    def init(self, seed: int) -> PlanState:
        """The state before the first update."""
        params = self.scorer.init(jax.random.key(seed), jnp.zeros(self.task.features))
        return PlanState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params))

    @functools.partial(jax.jit, static_argnums=(0, 4))
    def play(self, params: Any, starts: Any, key: Array, sharp: bool = False) -> tuple[Any, PlanEpisodes]:
        """Episodes from given states `[B, ...]` until all are done or cut: their last states and all that they did.

        `sharp` picks by scores times 20, so nearly always the best, and ties at random.
        """
        task: Any = self.task  # of whose states the compiled program has one kind
        batch, most = jax.tree.leaves(starts)[0].shape[0], task.wires.most
        sizes = jax.eval_shape(jax.vmap(task.candidates), starts).features.shape
        scores = functools.partial(self.scorer.apply, params)

        def one_round(carry: Any) -> Any:
            t, state, rows, _ = carry
            # Scores are made once a round; what picks forbid each other is masked, not scored again.
            seen = jax.vmap(task.candidates)(state)
            value: Any = scores(seen.features)
            keys = jax.random.split(jax.random.fold_in(key, t), batch)
            take = jax.vmap(lambda key, score, options: pick(key, score, options, task.wires.clash, most))
            picks, masks = take(keys, 20.0 * value if sharp else value, seen)
            row = (seen.features, picks, masks, logprobs_of(value, picks, masks))
            rows = jax.tree.map(lambda whole, now: whole.at[t].set(now), rows, row)
            state = jax.vmap(task.advance)(state, picks)
            return t + 1, state, rows, jax.vmap(task.left)(state)

        # Buffers have room for a cut episode, so that episodes of any length are one program.
        shape = task.cap, batch, most
        rows = jnp.zeros((task.cap, *sizes)), jnp.full(shape, -1), jnp.zeros((*shape, sizes[1]), bool), jnp.zeros(shape)
        start = jnp.zeros((), jnp.int32), starts, rows, jnp.ones(batch)
        # A batch is as long as its longest episode; rounds of those that are done have no candidates.
        _, state, rows, left = jax.lax.while_loop(
            lambda carry: (carry[0] < task.cap) & jnp.any(carry[3] > 0), one_round, start
        )
        features, picks, masks, logprobs = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), rows)
        # A round without a pick comes after the end of an episode and counts nothing.
        made = jnp.sum(picks >= 0, axis=-1)
        rounds = jnp.where(left > 0, task.cap + 1, jnp.sum(made > 0, axis=-1))
        last = jnp.take_along_axis(made, jnp.minimum(rounds, task.cap)[:, None] - 1, axis=1)[:, 0]
        # A plan whose last round is nearly empty is nearly a round shorter.
        cost = rounds - 1.0 + last / most + left
        return state, PlanEpisodes(features, picks, masks, logprobs, rounds, cost)

    @functools.partial(jax.jit, static_argnums=(0, 4))
    def update(
        self, state: PlanState, episodes: PlanEpisodes, cost: Float[Array, ' B'], groups: int
    ) -> tuple[PlanState, dict[str, Array]]:
        """PPO's update. The first episodes are one group of equal starts, the next ones another, `groups` in all.

        Args:
          cost: to be made small; it may be another one than the episodes' own.
        """
        grouped = cost.reshape(groups, -1)
        size = grouped.shape[1]
        # The mean of the others is a baseline that does not depend on the episode itself.
        others = (jnp.sum(grouped, axis=1, keepdims=True) - grouped) / (size - 1)
        advantage = (others - grouped).reshape(-1)
        advantage = advantage / (jnp.std(advantage) + 1e-6)
        made = episodes.picks >= 0

        def loss(params: Any, part: tuple[PlanEpisodes, Array]) -> Array:
            rows, advantage = part
            value: Any = self.scorer.apply(params, rows.features)
            new = logprobs_of(value, rows.picks, rows.masks)
            # Every pick is an action with a ratio of its own; a whole round's would leave the clip at once.
            counts = rows.picks >= 0
            tokens = ppo_token_loss(new, rows.logprobs, advantage[:, None, None], clip=self.clip)
            return jnp.sum(tokens * counts) / jnp.maximum(jnp.sum(counts), 1)

        run = functools.partial(updates.epochs, passes=self.epochs, minibatches=1)
        data = episodes, advantage
        params, opt = run(loss, state.params, state.opt, self.optimizer, data, jax.random.key(0))
        spread = -jnp.sum(episodes.logprobs * made) / jnp.sum(made)
        state = state.replace(updates=state.updates + 1, params=params, opt=opt)
        return state, {'rounds_mean': jnp.mean(episodes.rounds), 'cost_mean': jnp.mean(cost), 'entropy': spread}
