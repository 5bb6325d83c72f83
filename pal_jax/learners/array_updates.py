"""Updates of a policy by a rollout on arrays, by the constraint handler's rule: epochs of a loss, or a trust region.

Everything here is of a single replica; `array_ppo.py` makes many with `vmap`. `share` are weights of steps that sum to
1, and every mean over steps is by them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from pal_jax.objectives import trust_region
from pal_jax.objectives.constraints import (
    CUP,
    FOCOPS,
    P3O,
    CUPLoss,
    FOCOPSLoss,
    P3OLoss,
    Unconstrained,
    gated,
    mean_by,
)
from pal_jax.objectives.distributions import Distribution
from pal_jax.objectives.policy import ClippedSurrogate, TokenInputs, TokenLoss
from pal_jax.objectives.trust_region import TrustRegion
from pal_jax.run.optim import Optimizer

Params = Any
Rule = Unconstrained | FOCOPS | P3O | CUP | TrustRegion  # the handlers whose updates differ; others have the first's


class ChosenActions(NamedTuple):
    """The actions of a rollout, by environment and step, with the arrays that an update needs of each action.

    cost: advantages of the cost, of a rule that reads them beside the mixed ones.
    reference: log-probabilities after CUP's first update.
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


def policy_loss(
    model: ArrayPolicy,
    token_loss: TokenLoss,
    entropy: float,
    kappa: float,
    params: Params,
    chosen: ChosenActions,
    excess: Array,
) -> Float[Array, '']:
    """The mean loss of a minibatch. With `kappa` above 0 the gate of P3O is that of this minibatch as a whole."""
    output = model.apply(params, chosen.observations)
    logprobs = model.actions.logprob(output, chosen.legal, chosen.actions)
    cost = chosen.cost
    # The gate of P3O only weighs the costs, so no gradient goes through its ratio.
    if kappa:
        ratio = jax.lax.stop_gradient(jnp.exp(logprobs - chosen.logprobs))
        # A part of the rollout has a mean of its own before the update has changed anything, which is chance.
        cost = gated(cost, ratio, chosen.share, excess - mean_by(chosen.share, cost), kappa)
    tokens = TokenInputs(chosen.logprobs, chosen.advantage, chosen.reference, jnp.zeros_like(logprobs), cost)
    share = chosen.share / jnp.sum(chosen.share)
    loss = token_loss(logprobs, tokens) - entropy * model.actions.entropy(output, chosen.legal)
    return jnp.sum(share * loss)


def first_order(
    model: ArrayPolicy, rule: Unconstrained | FOCOPS | P3O | CUP, run: Callable[..., tuple[Params, optax.OptState]],
    state: tuple[Params, optax.OptState], chosen: ChosenActions, mix: Any, excess: Array, key: Array, *, clip: float,
    entropy: float,
) -> tuple[Params, optax.OptState]:  # fmt: skip
    """The update of a handler that descends losses. A step of CUP makes both of its updates.

    Args:
      run: `epochs` with the optimiser and the numbers of passes and minibatches.
      mix: see `array_ppo.Mix`.
      excess: the mean cost less its limit, of a step.
    """
    token_loss: TokenLoss = ClippedSurrogate(clip)
    kappa = 0.0
    match rule:
        case FOCOPS():
            token_loss = FOCOPSLoss(rule.temperature, rule.eta)
        case P3O():
            token_loss, kappa = P3OLoss(clip), rule.kappa
    reward, cost = chosen.advantage, chosen.cost
    first = chosen._replace(advantage=(mix.reward * reward - mix.cost * cost) / mix.divisor)
    loss = functools.partial(policy_loss, model, token_loss, entropy, kappa)
    for_first, for_second = jax.random.split(key)
    params, opt_state = run(lambda p, data: loss(p, data, excess), *state, data=first, key=for_first)
    if not isinstance(rule, CUP):
        return params, opt_state
    # The second update of CUP lowers the cost alone, held near the policy that the first update has made.
    anchored = chosen._replace(advantage=-mix.projection * cost, reference=model.logprobs(params, chosen))
    loss = functools.partial(policy_loss, model, CUPLoss(), entropy, 0.0)
    return run(lambda p, data: loss(p, data, excess), params, opt_state, data=anchored, key=for_second)


def within_trust_region(
    model: ArrayPolicy, rule: TrustRegion, params: Params, chosen: ChosenActions, excess: Array
) -> tuple[Params, dict[str, Array]]:
    """CPO's or PCPO's update, and the scale that the line search has left of its step.

    The search takes a step whose KL is at most `delta`, whose cost rises by no more than the limit leaves, and whose
    reward does not fall. Above the limit the reward may fall if the cost does.
    """
    flat, unravel = ravel_pytree(params)
    old = model.apply(params, chosen.observations)

    def surrogate(x: Array, advantage: Array) -> Array:
        ratio = jnp.exp(model.logprobs(unravel(x), chosen) - chosen.logprobs)
        return jnp.sum(chosen.share * ratio * advantage)

    def distance(x: Array) -> Array:
        new = model.apply(unravel(x), chosen.observations)
        return jnp.sum(chosen.share * model.actions.kl(old, new, chosen.legal))

    def fisher(vector: Array) -> Array:
        return jax.jvp(jax.grad(distance), (flat,), (vector,))[1] + rule.damping * vector

    # Conjugate gradients read the Fisher matrix by its products with vectors alone, so the matrix is never made.
    g, b = jax.grad(surrogate)(flat, chosen.advantage), jax.grad(surrogate)(flat, chosen.cost)
    natural_g = trust_region.conjugate_gradient(fisher, g, rule.iterations)
    natural_b = trust_region.conjugate_gradient(fisher, b, rule.iterations)
    step = trust_region.RULES[rule.rule](g, b, excess, natural_g, natural_b, rule.delta)
    # PCPO's projection onto a limit that is far away leaves the region; the step is cut to its border.
    size = 0.5 * jnp.vdot(step.x, fisher(step.x))
    x_step = step.x * jnp.sqrt(rule.delta / jnp.maximum(size, rule.delta))
    reward, cost = surrogate(flat, chosen.advantage), surrogate(flat, chosen.cost)

    def accept(scale: Array) -> Array:
        x = flat + scale * x_step
        rise = surrogate(x, chosen.cost) - cost
        better = (surrogate(x, chosen.advantage) >= reward) | ((excess > 0.0) & (rise < 0.0))
        return (distance(x) <= rule.delta) & (rise <= jnp.maximum(-excess, 0.0)) & better

    scale, _ = trust_region.line_search(accept, rule.decay, rule.tries)
    return unravel(flat + scale * x_step), {'step_scale': scale}
