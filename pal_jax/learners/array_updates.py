"""Updates of a policy by a rollout on arrays: epochs of a loss, or a step within a trust region.

Everything here is of a single replica; `array_ppo.py` makes many with `vmap`. `share` are weights of steps that sum to
1, and every mean over steps is by them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from pal_jax.models.mlp import MLP
from pal_jax.objectives import trust_region
from pal_jax.objectives.constraints import TrustRegion
from pal_jax.objectives.distributions import Distribution
from pal_jax.objectives.policy import TokenInputs, TokenLoss, value_token_loss
from pal_jax.objectives.trust_region import Gradients
from pal_jax.run import sharding
from pal_jax.run.optim import Optimizer

# The uses of a replica's randomness.
START, ROLLOUT, UPDATE = range(3)
Params = Any
Before = Callable[[Array, Array, Array], Array]  # see `constraints.Handler.before`, which knows the excess


def key_of(seed: Int[Array, ''], use: int, number: Int[Array, '']) -> Array:
    """The random key of a use in a replica, such as its rollouts, and the number of that use."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), use), number)


def placed(state: Any, mesh: Mesh, running: tuple[str | None, ...]) -> Any:
    """The shapes of a state with shardings: the episodes in `running` lie over these axes, all else everywhere."""

    def place(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = running if getattr(path[0], 'name', '') == 'running' else ()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding.sharding(mesh, axes))

    return jax.tree_util.tree_map_with_path(place, state)


class ChosenActions(NamedTuple):
    """The actions of a rollout, by environment and step, with the arrays that an update needs of each action.

    cost: advantages of the cost, for handlers that read them beside the mixed ones.
    reference: log-probabilities after the first update of a handler that has two.
    """

    observations: Float[Array, 'N T D']
    legal: Bool[Array, 'N T K']
    actions: Array
    logprobs: Float[Array, 'N T']
    share: Float[Array, 'N T']
    advantage: Float[Array, 'N T']
    cost: Float[Array, 'N T']
    reference: Float[Array, 'N T']


class ArrayPolicy(NamedTuple):
    """A policy's network and the distribution of its actions."""

    apply: Callable[[Params, Array], Array]
    actions: Distribution

    def logprobs(self, params: Params, chosen: ChosenActions) -> Float[Array, 'N T']:
        output = self.apply(params, chosen.observations)
        return self.actions.logprob(output, chosen.legal, chosen.actions)


def epochs(
    loss: Callable[[Params, Any], Array], params: Params, opt_state: optax.OptState, optimizer: Optimizer, data: Any,
    key: Array, *, passes: int, minibatches: int,
) -> tuple[Params, optax.OptState]:  # fmt: skip
    """Descend a loss of parts of `data`, whose leading axis is cut at random into `minibatches` in every pass."""
    rows = jax.tree.leaves(data)[0].shape[0]

    def part(carry: tuple[Params, optax.OptState], index: Array | None) -> tuple[tuple[Params, optax.OptState], None]:
        params, opt_state = carry
        taken = data if index is None else jax.tree.map(lambda x: x[index], data)
        updates, opt_state = optimizer.update(jax.grad(loss)(params, taken), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    def once(carry: tuple[Params, optax.OptState], key: Array) -> tuple[tuple[Params, optax.OptState], None]:
        # A minibatch of all rows is the same in any order, so nothing is shuffled.
        if minibatches == 1:
            return part(carry, None)
        return jax.lax.scan(part, carry, jax.random.permutation(key, rows).reshape(minibatches, -1))

    carry, _ = jax.lax.scan(once, (params, opt_state), jax.random.split(key, passes))
    return carry


def value_error(critic: MLP) -> Callable[[Params, tuple[Array, Array]], Array]:
    """The loss of a critic by what it reads and the returns `[*S, C]`: half the squared error, summed over channels."""

    def error(params: Params, data: tuple[Array, Array]) -> Array:
        seen, goal = data
        values: Any = critic.apply(params, seen)
        # Without a clip the values before the update do not count.
        return jnp.mean(jnp.sum(value_token_loss(values, values, goal, clip=jnp.inf), axis=-1))

    return error


def policy_loss(
    model: ArrayPolicy, loss: TokenLoss, entropy: float, before: Before | None, params: Params, chosen: ChosenActions
) -> Float[Array, '']:
    """The mean loss of a minibatch, less `entropy` times the entropy; `before` makes the costs that the loss reads."""
    output = model.apply(params, chosen.observations)
    logprobs = model.actions.logprob(output, chosen.legal, chosen.actions)
    cost = chosen.cost
    if before:
        # A gate of costs only weighs them, so no gradient goes through its ratio.
        ratio = jax.lax.stop_gradient(jnp.exp(logprobs - chosen.logprobs))
        cost = before(cost, ratio, chosen.share)
    tokens = TokenInputs(chosen.logprobs, chosen.advantage, chosen.reference, jnp.zeros_like(logprobs), cost)
    share = chosen.share / jnp.sum(chosen.share)
    return jnp.sum(share * (loss(logprobs, tokens) - entropy * model.actions.entropy(output, chosen.legal)))


def within_trust_region(
    model: ArrayPolicy, region: TrustRegion, params: Params, chosen: ChosenActions, excess: Array
) -> tuple[Params, dict[str, Array]]:
    """CPO's or PCPO's update, and the scale that the line search has left of its step.

    The search takes a step whose KL is at most `delta`, whose cost rises by no more than the limit leaves, and whose
    reward does not fall.
    """
    flat, unravel = ravel_pytree(params)
    old = model.apply(params, chosen.observations)

    def surrogate(x: Array, advantage: Array) -> Array:
        # Near the old policy the mean of ratio times advantage is the change of the objective.
        ratio = jnp.exp(model.logprobs(unravel(x), chosen) - chosen.logprobs)
        return jnp.sum(chosen.share * ratio * advantage)

    def distance(x: Array) -> Array:
        new = model.apply(unravel(x), chosen.observations)
        return jnp.sum(chosen.share * model.actions.kl(old, new, chosen.legal))

    def fisher(vector: Array) -> Array:
        return jax.jvp(jax.grad(distance), (flat,), (vector,))[1] + region.damping * vector

    # Conjugate gradients read the Fisher matrix by its products with vectors alone, so the matrix is never made.
    g, b = jax.grad(surrogate)(flat, chosen.advantage), jax.grad(surrogate)(flat, chosen.cost)
    natural_g = trust_region.conjugate_gradient(fisher, g, region.iterations)
    natural_b = trust_region.conjugate_gradient(fisher, b, region.iterations)
    step = region.step(Gradients(g, b, natural_g, natural_b), excess)
    # PCPO's projection onto a limit that is far away leaves the region; the step is cut to its border.
    size = 0.5 * jnp.vdot(step.x, fisher(step.x))
    x_step = step.x * jnp.sqrt(region.delta / jnp.maximum(size, region.delta))
    reward, cost = surrogate(flat, chosen.advantage), surrogate(flat, chosen.cost)

    def accept(scale: Array) -> Array:
        x = flat + scale * x_step
        rise = surrogate(x, chosen.cost) - cost
        # Above the limit the reward may fall if the cost does.
        better = (surrogate(x, chosen.advantage) >= reward) | ((excess > 0.0) & (rise < 0.0))
        return (distance(x) <= region.delta) & (rise <= jnp.maximum(-excess, 0.0)) & better

    scale, _ = trust_region.line_search(accept, region.decay, region.tries)
    return unravel(flat + scale * x_step), {'step_scale': scale}
