"""PPO on arrays: environments and networks in one compiled program, many replicas side by side.

    state = learner.init(seeds)                           # a replica a seed
    state, steps, episodes = learner.rollout(state)       # T steps of N environments of every replica, one scan
    state, metrics = learner.update(state, steps, mix)    # what rewards and costs count is told by `mix`

Between the two calls a constraint handler (`objectives/constraints.py`) reads the costs of `episodes` and makes `mix`.
The rollout is PureJaxRL's: one scan over time of environments that start anew by themselves. Objectives are discounted
sums from the first state of an episode, so step t of an episode counts gamma^t in every mean over steps.

Letters: `R` replicas, which lead all arrays outside of the programs, `N` environments, `T` steps, `C` channels.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from pal_jax.learners import array_updates as updates
from pal_jax.learners.array_updates import ROLLOUT, START, UPDATE, ArrayPolicy, ChosenActions, key_of
from pal_jax.models.mlp import MLP, PolicyMLP
from pal_jax.objectives.advantages import ChannelWeights, gae
from pal_jax.objectives.distributions import Distribution
from pal_jax.objectives.handler import Handler
from pal_jax.objectives.policy import ClippedSurrogate, TokenLoss
from pal_jax.run import sharding
from pal_jax.run.optim import Optimizer


class ArrayEnv(Protocol):
    """Rules of an environment (as `recipes/cmdp/finite.py`): a frozen dataclass of numbers whose functions are pure and
    of a single episode. `D` is the width of an observation, `K` that of a mask.

    Channel 0 of the rewards is the reward, the others are costs.
    """

    width: int  # the width `D` of an observation
    channels: int  # the number `C` of channels
    gamma: float  # the discount of all channels
    horizon: int  # an episode is cut after so many steps; the critic's value stands for later rewards
    actions: Distribution  # what actions are drawn from

    def reset(self, key: Array) -> Any:
        """The first state of an episode."""
        ...

    def observe(self, state: Any) -> Float[Array, ' D']:
        """The observation of a state, `[D]`, which the policy and the critic read."""
        ...

    def legal(self, state: Any) -> Bool[Array, ' K']:
        """A mask of the legal actions, head after head; continuous actions have a mask without entries."""
        ...

    def step(self, state: Any, action: Array, key: Array) -> tuple[Any, Float[Array, ' C'], Bool[Array, '']]:
        """The next state, the rewards of the step by channel, and whether the episode has ended."""
        ...


class Mix(NamedTuple):
    """A handler's words for an update, by replica: every number is `[R]`.

    first: the weights of rewards and costs.
    excess: mean cost of an episode less its limit, for handlers that read how much the limit is passed.
    second: the weights of a second update, of handlers that make one.
    """

    first: ChannelWeights
    excess: Float[Array, ' R']
    second: ChannelWeights


class Steps(struct.PyTreeNode):
    """The steps of a rollout, a row for each environment."""

    observations: Float[Array, 'N T D']
    legal: Bool[Array, 'N T K']
    actions: Array
    logprobs: Float[Array, 'N T']
    # The rewards, and what a cut episode would have got, by the critic.
    rewards: Float[Array, 'N T C']
    # The discount of the value after a step, which is 0 at the end of an episode.
    more: Float[Array, 'N T']
    # The weight of a step is gamma^t within its episode.
    weight: Float[Array, 'N T']
    values: Float[Array, 'N T C']
    bootstrap: Float[Array, 'N C']


class EpisodeMeans(NamedTuple):
    """Means over the episodes that ended in a rollout: discounted sums of the rewards by channel. Where no episode has
    ended, the means of the rollout before stay."""

    sums: Float[Array, ' C']
    ended: Int[Array, '']


class RunningEpisodes(struct.PyTreeNode):
    """Episodes under way: their states, ages in steps, and discounted sums so far of the channels and of 1 a step."""

    env: Any
    age: Int[Array, ' N']
    sums: Float[Array, 'N C+1']


class ArrayState(struct.PyTreeNode):
    """A replica: networks, optimisers, the episodes under way, and the last means of those that ended."""

    seed: Int[Array, '']
    rollouts: Int[Array, '']
    policy: Any
    critic: Any
    policy_opt: optax.OptState
    critic_opt: optax.OptState
    running: RunningEpisodes
    means: Float[Array, ' C+1']


@dataclasses.dataclass(frozen=True)
class ArrayPPO:
    """Functions over `ArrayState`s side by side.

    Attributes:
      handler: tells how the policy is updated; what rewards and costs count there is told by `Mix`.
      environments, steps: N and T of a rollout.
      hidden: widths of the hidden layers of policy and critic.
      optimizer, critic: those of the two networks.
      epochs, minibatches: passes over a rollout, and the parts that each is cut into by environments.
      clip: how far PPO's ratio may move before its gradient is 0.
      lam: of the advantage estimator.
      entropy: weight of the entropy in the policy's loss.
      reward_scale: by which rewards are multiplied before anything is learnt of them; multipliers are then of the
        scaled reward.
    Raises:
      ValueError: the environments do not divide into the minibatches, or over the devices.
    """

    env: ArrayEnv
    handler: Handler
    mesh: Mesh
    optimizer: Optimizer
    critic: Optimizer
    environments: int = 64
    steps: int = 32
    hidden: tuple[int, ...] = (64, 64)
    epochs: int = 4
    minibatches: int = 1
    clip: float = 0.2
    lam: float = 0.95
    entropy: float = 0.0
    reward_scale: float = 1.0

    def __post_init__(self):
        ways = sharding.batch_ways(self.mesh)
        if self.environments % self.minibatches or self.environments % ways:
            raise ValueError(
                f'environments={self.environments} does not divide into minibatches={self.minibatches} or over '
                f'{ways} devices'
            )

    # --- states -------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def policy_net(self) -> PolicyMLP:
        return PolicyMLP(self.env.actions, self.hidden)

    @functools.cached_property
    def critic_net(self) -> MLP:
        return MLP(self.hidden, self.env.channels)

    def abstract(self, replicas: int) -> ArrayState:
        """Shapes and shardings of a state of so many replicas: environments lie over the mesh, networks everywhere."""
        shapes = jax.eval_shape(jax.vmap(self._new), jax.ShapeDtypeStruct((replicas,), jnp.int32))
        return updates.placed(shapes, self.mesh, (None, 'batch'))

    def init(self, seeds: Int[Array, ' R']) -> ArrayState:
        """The states before the first rollout, one a seed."""
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract(len(seeds)))
        return jax.jit(jax.vmap(self._new), out_shardings=shardings)(seeds)

    def _new(self, seed: Int[Array, '']) -> ArrayState:
        for_policy, for_critic, for_env = jax.random.split(key_of(seed, START, jnp.zeros((), jnp.int32)), 3)
        seen = jnp.zeros(self.env.width)
        policy, critic = self.policy_net.init(for_policy, seen), self.critic_net.init(for_critic, seen)
        env = jax.vmap(self.env.reset)(jax.random.split(for_env, self.environments))
        channels = self.env.channels
        sums = jnp.zeros((self.environments, channels + 1))
        running = RunningEpisodes(env, jnp.zeros(self.environments, jnp.int32), sums)
        optimizers, none = (self.optimizer.init(policy), self.critic.init(critic)), jnp.zeros((), jnp.int32)
        means = jnp.zeros(channels + 1).at[-1].set(1.0)
        return ArrayState(seed, none, policy, critic, *optimizers, running, means)

    def outputs(self, state: ArrayState, observations: Float[Array, 'S D']) -> Float[Array, 'R S K']:
        """The policy's output for given observations, by replica."""
        return jax.vmap(self.policy_net.apply, (0, None))(state.policy, observations)  # type: ignore[return-value]

    # --- rollouts -----------------------------------------------------------------------------------------------------

    @functools.partial(jax.jit, static_argnums=0)
    def rollout(self, state: ArrayState) -> tuple[ArrayState, Steps, EpisodeMeans]:
        """T steps of all environments under the policy."""
        return jax.vmap(self._rollout)(state)

    def _rollout(self, state: ArrayState) -> tuple[ArrayState, Steps, EpisodeMeans]:
        env, actions = self.env, self.env.actions
        root = key_of(state.seed, ROLLOUT, state.rollouts)
        observe = jax.vmap(env.observe)

        def step(carry: tuple[RunningEpisodes, Array], key: Array) -> tuple[tuple[RunningEpisodes, Array], Any]:
            running, ended_sums = carry
            to_act, to_step, to_reset = jax.random.split(key, 3)
            seen, legal = observe(running.env), jax.vmap(env.legal)(running.env)
            output = self.policy_net.apply(state.policy, seen)
            action = actions.sample(to_act, output, legal)  # type: ignore[arg-type]
            logprob = actions.logprob(output, legal, action)  # type: ignore[arg-type]
            after, rewards, ended = jax.vmap(env.step)(
                running.env, action, jax.random.split(to_step, self.environments)
            )
            # An episode that ends by itself at its last step is not cut.
            cut = (running.age + 1 >= env.horizon) & ~ended
            over = ended | cut
            weight = env.gamma**running.age
            # The last column sums 1s: the discounted length of an episode, by which an excess becomes that of a step.
            sums = running.sums + weight[:, None] * jnp.pad(rewards, ((0, 0), (0, 1)), constant_values=1.0)
            # A compiled scan cannot start single environments anew, so all are reset and `_where` keeps those needed.
            fresh = jax.vmap(env.reset)(jax.random.split(to_reset, self.environments))
            ended_sums += jnp.sum(
                jnp.where(over[:, None], jnp.pad(sums, ((0, 0), (0, 1)), constant_values=1.0), 0.0), 0
            )
            following = RunningEpisodes(
                jax.tree.map(lambda new, old: _where(over, new, old), fresh, after),
                jnp.where(over, 0, running.age + 1),
                _where(over, jnp.zeros_like(sums), sums),
            )
            more = jnp.where(over, 0.0, env.gamma)
            return (following, ended_sums), (seen, legal, action, logprob, rewards, more, weight, observe(after), cut)

        start = state.running, jnp.zeros(env.channels + 2)
        (running, totals), rows = jax.lax.scan(step, start, jax.random.split(root, self.steps))
        rows = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), rows)
        seen, legal, action, logprob, rewards, more, weight, after, cut = rows
        value = functools.partial(self.critic_net.apply, state.critic)
        # A cut episode has not ended: the value of its last state stands for the rewards that would have followed.
        rewards = rewards.at[..., 0].multiply(self.reward_scale) + env.gamma * cut[..., None] * value(after)
        count = totals[-1]
        # Where no episode has ended, the means of the rollout before stay.
        means = jnp.where(count > 0, totals[:-1] / jnp.maximum(count, 1.0), state.means)
        values: Any = value(seen), value(observe(running.env))
        steps = Steps(seen, legal, action, logprob, rewards, more, weight, *values)
        state = state.replace(rollouts=state.rollouts + 1, running=running, means=means)
        return state, steps, EpisodeMeans(means[:-1], count.astype(jnp.int32))

    # --- updates ------------------------------------------------------------------------------------------------------

    @functools.partial(jax.jit, static_argnums=0)
    def update(self, state: ArrayState, steps: Steps, mix: Mix) -> tuple[ArrayState, dict[str, Float[Array, ' R']]]:
        """The policy's update by the handler, and the critic's; metrics by replica."""
        return jax.vmap(self._update)(state, steps, mix)

    def _update(self, state: ArrayState, steps: Steps, mix: Mix) -> tuple[ArrayState, dict[str, Array]]:
        acts = jnp.ones_like(steps.weight, bool)
        advantages, returns = gae(
            steps.rewards, steps.values, acts, gamma=steps.more, lam=self.lam, bootstrap=steps.bootstrap
        )
        # A critic's mean error would shift a gate of costs and the step within a trust region.
        share = steps.weight / jnp.sum(steps.weight)
        advantages = advantages - jnp.sum(share[..., None] * advantages, axis=(0, 1), keepdims=True)
        taken = steps.observations, steps.legal, steps.actions, steps.logprobs
        chosen = ChosenActions(*taken, share, advantages[..., 0], advantages[..., 1], steps.logprobs)
        # The excess of an episode becomes that of a step, as advantages are.
        excess = mix.excess / state.means[-1]
        for_policy, for_critic = jax.random.split(key_of(state.seed, UPDATE, state.rollouts))
        model = ArrayPolicy(self.policy_net.apply, self.env.actions)  # type: ignore[arg-type]
        run = functools.partial(updates.epochs, passes=self.epochs, minibatches=self.minibatches)
        policy, opt, more = state.policy, state.policy_opt, {}

        def descend(loss: TokenLoss, before: updates.Before | None, data: ChosenActions, key: Array) -> Any:
            loss_of = functools.partial(updates.policy_loss, model, loss, self.entropy, before)
            return run(loss_of, policy, opt, self.optimizer, data, key)

        if region := self.handler.trust_region:
            policy, more = updates.within_trust_region(model, region, policy, chosen, excess)
        else:
            for_first, for_second = jax.random.split(for_policy)
            before = functools.partial(self.handler.before, excess=excess) if self.handler.costs_apart else None
            loss = self.handler.token_loss(ClippedSurrogate(self.clip))
            policy, opt = descend(loss, before, chosen._replace(advantage=mix.first.mixed(advantages)), for_first)
            if second := self.handler.second_update(self.handler.init(1)):
                # Both updates are of one rollout, and the second one knows the policy that the first has made.
                moved = chosen._replace(
                    advantage=mix.second.mixed(advantages), reference=model.logprobs(policy, chosen)
                )
                policy, opt = descend(second.loss, None, moved, for_second)

        error, data = updates.value_error(self.critic_net), (steps.observations, returns)
        critic, critic_opt = run(error, state.critic, state.critic_opt, self.critic, data, for_critic)
        before, after = model.apply(state.policy, steps.observations), model.apply(policy, steps.observations)
        metrics: dict[str, Array] = {
            'approx_kl': jnp.sum(share * model.actions.kl(before, after, steps.legal)),
            'entropy': jnp.sum(share * model.actions.entropy(after, steps.legal)),
            'value_loss': jnp.mean(jnp.square(steps.values - returns)),
        }
        state = state.replace(policy=policy, policy_opt=opt, critic=critic, critic_opt=critic_opt)
        return state, metrics | more


def _where(over: Bool[Array, ' N'], new: Array, old: Array) -> Array:
    return jnp.where(over.reshape(-1, *[1] * (old.ndim - 1)), new, old)
