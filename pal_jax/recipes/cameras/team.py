"""PPO for a team on arrays (MAPPO, Yu et al. 2022): one policy that every member runs, and a critic that sees all.

    state = learner.init(seed)
    state, metrics = learner.iterate(state, credit)     # T steps of N environments, then the update

A member is paid `credit` times its own contribution and `1 - credit` times the team's value. Episodes are cut after
the task's horizon, at the end of a rollout. With `mixtures` heads predict the next places of members, target and
others, and the reward (world dynamics learning, arXiv 2303.03767 section 3.3).

Letters: `N` environments, `T` steps, `A` members of the team, `D` the width of an observation, `H` choices of an
action, `W` the width of what the critic reads, `F` figures of a step.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from flax.core import FrozenDict
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from pal_jax.learners import array_updates as updates
from pal_jax.learners.array_updates import ROLLOUT, START, UPDATE, key_of
from pal_jax.models.mlp import MLP
from pal_jax.objectives.advantages import gae
from pal_jax.objectives.distributions import mixture_nll
from pal_jax.objectives.policy import ppo_token_loss
from pal_jax.recipes.cameras.networks import Dynamics, Memory, TeamPolicy, Thought
from pal_jax.recipes.cameras.scene import Cameras
from pal_jax.run import sharding
from pal_jax.run.optim import Optimizer

# The weights of the losses of the dynamics heads.
WEIGHTS = {'own': 1.0, 'team': 1.0, 'target': 1.0, 'reward': 1.0, 'others': 0.1}


class TeamState(struct.PyTreeNode):
    """Networks, optimisers, and the episodes under way with the policy's memory of them."""

    seed: Int[Array, '']
    rollouts: Int[Array, '']
    policy: Any
    critic: Any
    policy_opt: optax.OptState
    critic_opt: optax.OptState
    running: Any


class TeamSteps(struct.PyTreeNode):
    """A rollout, by environment, member and step. `memory` is the one before the first step; `ahead` has the goals of
    the dynamics heads, if there are any."""

    memory: Memory
    observations: Float[Array, 'N A T D']
    actions: Int[Array, 'N A T H']
    logprobs: Float[Array, 'N A T']
    advantages: Float[Array, 'N A T']
    ahead: dict[str, tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class TeamPPO:
    """Functions over a `TeamState`.

    Attributes:
      optimizer, critic: those of the policy (with the dynamics heads) and of the critic.
      environments, steps: N and T of a rollout; the task's horizon is a multiple of T.
      hidden: widths of the hidden layers of policy and critic.
      memory: units of the policy's LSTM; 0: none.
      mixtures: Gaussians of each dynamics head; 0: no such heads.
      dynamics: weight of the heads' loss.
      epochs, minibatches, clip, lam, entropy: as in `array_ppo.ArrayPPO`.
      reward_scale: by which rewards are multiplied, so that returns are of the size of 1.
    Raises:
      ValueError: sizes do not divide as they have to.
    """

    env: Cameras
    mesh: Mesh
    optimizer: Optimizer
    critic: Optimizer
    environments: int = 64
    steps: int = 25
    hidden: tuple[int, ...] = (128, 128, 128)
    memory: int = 0
    mixtures: int = 0
    dynamics: float = 5.0
    epochs: int = 4
    minibatches: int = 2
    clip: float = 0.2
    lam: float = 0.95
    entropy: float = 0.0
    reward_scale: float = 0.05

    def __post_init__(self):
        ways = sharding.batch_ways(self.mesh)
        if self.environments % self.minibatches or self.environments % ways or self.env.horizon % self.steps:
            raise ValueError(
                f'environments={self.environments} does not divide into minibatches={self.minibatches} or over {ways} '
                f'devices, or horizon={self.env.horizon} into rollouts of steps={self.steps}'
            )

    # --- states -------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def policy_net(self) -> TeamPolicy:
        return TeamPolicy(self.env.actions.width, self.hidden, self.memory, self.mixtures)

    @functools.cached_property
    def critic_net(self) -> MLP:
        return MLP(self.hidden, 1)

    @functools.cached_property
    def heads(self) -> Dynamics:
        parts = {name: goal.shape[1:] for name, (goal, _) in self._outlook.items() if name != 'target'}
        return Dynamics(FrozenDict(parts | {'reward': (1, 1)}), self.mixtures)

    @property
    def _outlook(self) -> dict[str, tuple[Array, Array]]:
        scene = jax.eval_shape(self.env.reset, jax.random.key(0))
        return jax.eval_shape(self.env.outlook, scene, scene)

    def abstract(self) -> TeamState:
        """Shapes and shardings of a state: environments lie over the mesh, networks everywhere."""
        shapes = jax.eval_shape(self._new, jax.ShapeDtypeStruct((), jnp.int32))
        return updates.placed(shapes, self.mesh, ('batch',))

    def init(self, seed: int) -> TeamState:
        """The state before the first rollout."""
        shardings = jax.tree.map(lambda x: x.sharding, self.abstract())
        return jax.jit(self._new, out_shardings=shardings)(jnp.asarray(seed, jnp.int32))

    def _new(self, seed: Int[Array, '']) -> TeamState:
        to_policy, to_heads, to_critic, to_env = jax.random.split(key_of(seed, START, jnp.zeros((), jnp.int32)), 4)
        # Shapes of parameters do not depend on the numbers of environments and steps.
        seen = jnp.zeros((1, 1, self.env.width))
        params = {'policy': self.policy_net.init(to_policy, self.policy_net.start(1), seen)}
        if self.mixtures:
            _, thought = self._think(params, self.policy_net.start(1), seen)
            taken = jnp.zeros((1, 1, self.env.actions.width))
            params['dynamics'] = self.heads.init(to_heads, thought.features, taken)
        critic = self.critic_net.init(to_critic, jnp.zeros(self.env.central))
        scenes = jax.vmap(self.env.reset)(jax.random.split(to_env, self.environments))
        optimizers = self.optimizer.init(params), self.critic.init(critic)
        return TeamState(seed, jnp.zeros((), jnp.int32), params, critic, *optimizers, scenes)

    def _think(self, params: Any, memory: Memory, seen: Float[Array, 'B T D']) -> tuple[Memory, Thought]:
        # The types of flax do not tell the results of a module.
        return self.policy_net.apply(params['policy'], memory, seen)  # type: ignore[return-value]

    # --- acting -------------------------------------------------------------------------------------------------------

    def act(
        self, params: Any, memory: Memory, scenes: Any, key: Array
    ) -> tuple[Memory, Int[Array, 'N A H'], Float[Array, 'N A'], Float[Array, 'N A D']]:
        """The next memory, actions, their log-probabilities, and the observations that they are of."""
        seen = jax.vmap(self.env.observe)(scenes)
        # A member is a sequence of its own; the policy does not know which one it is.
        rows = seen.reshape(-1, 1, seen.shape[-1])
        memory, thought = self._think(params, memory, rows)
        output = thought.output.reshape(*seen.shape[:2], -1)
        legal = jnp.ones(output.shape, bool)
        action = self.env.actions.sample(key, output, legal)
        return memory, action, self.env.actions.logprob(output, legal, action), seen

    @functools.partial(jax.jit, static_argnums=(0, 4, 5, 6))
    def play(
        self, params: Any, memory: Memory, key: Array, environments: int, env: Any, rule: str = ''
    ) -> tuple[Any, Float[Array, 'T F']]:
        """Whole episodes by the policy, or by the method `rule` of the task: the first one's scenes, and the
        figures of every step, means over `environments`. `env` is the task, which may have another team."""
        learner = dataclasses.replace(self, env=env)
        to_start, to_go = jax.random.split(key)
        scenes = jax.vmap(env.reset)(jax.random.split(to_start, environments))

        # Figures are averaged within the program, since all scenes of all steps would be gigabytes.
        def step(carry: tuple[Memory, Any], key: Array) -> tuple[tuple[Memory, Any], Any]:
            memory, scenes = carry
            to_act, to_step = jax.random.split(key)
            if rule:
                action = jax.vmap(getattr(env, rule))(scenes)
            else:
                memory, action, *_ = learner.act(params, memory, scenes, to_act)
            after, outcome = jax.vmap(env.step)(scenes, action, jax.random.split(to_step, environments))
            return (memory, after), (jax.tree.map(lambda x: x[0], after), jnp.mean(outcome.figures, axis=0))

        _, (shown, figures) = jax.lax.scan(step, (memory, scenes), jax.random.split(to_go, env.horizon))
        return shown, figures

    # --- learning -----------------------------------------------------------------------------------------------------

    @functools.partial(jax.jit, static_argnums=0)
    def iterate(
        self, state: TeamState, credit: Float[Array, '']
    ) -> tuple[TeamState, dict[str, Array], Float[Array, ' F']]:
        """A rollout and its update; metrics, and the mean figures of the rollout."""
        state, memory, rows, last = self._rollout(state)
        scenes, seen, action, logprob, outcome, ahead = rows
        over = jax.vmap(jax.vmap(self.env.oversee))(scenes)  # [N, T, A, W]
        end = jax.vmap(self.env.oversee)(last)
        values = self.critic_net.apply(state.critic, over)[..., 0]  # type: ignore[index]
        # Episodes are cut and do not end, so the critic's value of the last state stands for the rewards after it.
        bootstrap = self.critic_net.apply(state.critic, end)[..., 0]  # type: ignore[index]
        # The credit is an array, so that one compiled program has both kinds of reward.
        paid = credit * outcome.contributions + (1.0 - credit) * outcome.shared[..., None]
        acts = jnp.ones(paid.shape[:2], bool)
        # `gae` takes the last axis for channels of rewards; here it is the members.
        advantages, returns = gae(
            self.reward_scale * paid, values, acts, gamma=self.env.gamma, lam=self.lam, bootstrap=bootstrap
        )
        spread = (advantages - jnp.mean(advantages)) / (jnp.std(advantages) + 1e-8)
        by_member = functools.partial(jnp.moveaxis, source=1, destination=2)  # [N, T, A, ...] to [N, A, T, ...]
        if ahead:
            team = outcome.shared[..., None, None, None]
            reward = jnp.broadcast_to(team, (*outcome.shared.shape, self.env.cameras, 1, 1))
            ahead = ahead | {'reward': (reward, jnp.ones(reward.shape[:-1]))}
        seen, action, logprob, spread = map(by_member, (seen, action, logprob, spread))
        steps = TeamSteps(memory, seen, action, logprob, spread, jax.tree.map(by_member, ahead))
        state, metrics = self._update(state, steps, (over, returns[..., None]))
        metrics['value_loss'] = jnp.mean(jnp.square(values - returns))
        return state, metrics, jnp.mean(outcome.figures, axis=(0, 1))

    def _rollout(self, state: TeamState) -> tuple[TeamState, Memory, Any, Any]:
        """T steps of all environments: the policy's memory before, rows `[N, T, ...]`, and the last scenes."""
        env, root = self.env, key_of(state.seed, ROLLOUT, state.rollouts)
        to_reset, to_go = jax.random.split(root)
        # Episodes begin with a rollout, not all of them with the same one.
        number = jnp.arange(self.environments)
        begins = (state.rollouts + number) % (env.horizon // self.steps) == 0
        fresh = jax.vmap(env.reset)(jax.random.split(to_reset, self.environments))
        scenes = jax.tree.map(
            lambda new, old: jnp.where(begins.reshape(-1, *[1] * (old.ndim - 1)), new, old), fresh, state.running
        )
        # The memory of a rollout starts empty, in the middle of an episode too, so that it need not be kept.
        memory = self.policy_net.start(self.environments * env.cameras)

        def step(carry: tuple[Memory, Any], key: Array) -> tuple[tuple[Memory, Any], Any]:
            memory, scenes = carry
            to_act, to_step = jax.random.split(key)
            memory, action, logprob, seen = self.act(state.policy, memory, scenes, to_act)
            after, outcome = jax.vmap(env.step)(scenes, action, jax.random.split(to_step, self.environments))
            ahead = jax.vmap(env.outlook)(scenes, after) if self.mixtures else {}
            return (memory, after), (scenes, seen, action, logprob, outcome, ahead)

        (_, last), rows = jax.lax.scan(step, (memory, scenes), jax.random.split(to_go, self.steps))
        rows = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), rows)
        by_environment = jax.tree.map(lambda x: x.reshape(self.environments, env.cameras, -1), memory)
        return state.replace(rollouts=state.rollouts + 1, running=last), by_environment, rows, last

    def _update(
        self, state: TeamState, steps: TeamSteps, judged: tuple[Array, Array]
    ) -> tuple[TeamState, dict[str, Array]]:
        for_policy, for_critic = jax.random.split(key_of(state.seed, UPDATE, state.rollouts))
        run = functools.partial(updates.epochs, passes=self.epochs, minibatches=self.minibatches)
        loss = lambda params, part: self.loss(params, part)[0]  # noqa: E731
        policy, policy_opt = run(loss, state.policy, state.policy_opt, self.optimizer, steps, for_policy)
        error = updates.value_error(self.critic_net)
        critic, critic_opt = run(error, state.critic, state.critic_opt, self.critic, judged, for_critic)
        _, metrics = self.loss(policy, steps)
        state = state.replace(policy=policy, policy_opt=policy_opt, critic=critic, critic_opt=critic_opt)
        return state, metrics

    def loss(self, params: Any, steps: TeamSteps) -> tuple[Float[Array, ''], dict[str, Array]]:
        """PPO's clipped loss, less the entropy, and the negative log-likelihoods of the dynamics heads."""
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), steps)  # a row for each member
        _, thought = self._think(params, rows.memory, rows.observations)
        legal = jnp.ones(thought.output.shape, bool)
        logprobs = self.env.actions.logprob(thought.output, legal, rows.actions)
        surrogate = jnp.mean(ppo_token_loss(logprobs, rows.logprobs, rows.advantages, clip=self.clip))
        entropy = jnp.mean(self.env.actions.entropy(thought.output, legal))
        # Schulman's k3 estimates the KL from the policy before the update, in nats; it is never negative.
        log_ratio = logprobs - rows.logprobs
        metrics = {'entropy': entropy, 'approx_kl': jnp.mean(jnp.exp(log_ratio) - 1.0 - log_ratio)}
        loss = surrogate - self.entropy * entropy
        # The heads read the action, for only with it can a camera's next pose be known.
        if self.mixtures:
            taken = self.env.actions.one_hot(rows.actions)
            predicted = self.heads.apply(params['dynamics'], thought.features, taken)
            predicted = predicted | {'target': thought.target[..., None, :]}  # type: ignore[operator]
            total = jnp.zeros(())
            for part, (goal, counts) in rows.ahead.items():
                nll = jnp.sum(mixture_nll(predicted[part], goal) * counts)
                total += WEIGHTS[part] * nll / jnp.maximum(jnp.sum(counts), 1.0)
            loss, metrics['dynamics_nll'] = loss + self.dynamics * total, total
        return loss, metrics
