"""Forward passes over a model, by rows: log-probabilities, values, and the loss of imitation. All are pure functions.

A row holds prompts and their `N` completions (`types.TokenBatch`). Shapes `[R, N, A]` are of their actions, `[R, M]` of
a row's actions side by side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from pal_jax.models import decoder
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.objectives import logprobs as lp
from pal_jax.objectives.masked import keep
from pal_jax.run.sharding import constrain
from pal_jax.types import BATCH, TokenBatch


def flat(x: Array) -> Array:
    """Actions `[R, N, A]` side by side in their row, `[R, M]`."""
    return x.reshape(x.shape[0], -1)


def hidden_states(params: Params, cfg: ModelConfig, batch: TokenBatch) -> Float[Array, 'R T D']:
    """The last hidden state of each column of a batch."""
    return decoder.forward(params, cfg, batch.tokens, batch.positions, batch.segments, batch.prefix)


class Order(NamedTuple):
    """A row's actions with the real ones first, so that no time is spent on padding (see `objectives.logprobs`)."""

    columns: Int[Array, 'R M']
    acts: Bool[Array, 'R M']

    def sort(self, x: Float[Array, 'R N A']) -> Float[Array, 'R M']:
        return jnp.take_along_axis(flat(x), self.columns, axis=1)

    def unsort(self, x: Float[Array, 'R M'], shape: tuple[int, ...]) -> Float[Array, 'R N A']:
        return jnp.take_along_axis(x, jnp.argsort(self.columns, axis=1), axis=1).reshape(shape)

    def states(self, hidden: Float[Array, 'R T D'], batch: TokenBatch) -> Float[Array, 'R M D']:
        """The hidden state that chose each action."""
        chosen = jnp.take_along_axis(hidden, self.sort(batch.states)[..., None], axis=1)
        return constrain(chosen, decoder.ROWS)


def real_first(batch: TokenBatch) -> Order:
    """The order of a batch's actions in which padding comes last."""
    acts = flat(batch.acts)
    columns = jnp.argsort(~acts, axis=1, stable=True)
    return Order(columns, jnp.take_along_axis(acts, columns, axis=1))


def by_rows(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(unembed, *rows)` on each device's rows, where a mesh is in context; leading axes are concatenated."""
    # The function loops over chunks of logits. Left to the compiler, every turn of the loop gathers the output matrix
    # and adds its gradient up over all devices; here both happen once.
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function

    def mapped(unembed: Array, *rows: Any) -> Any:
        spread = PartitionSpec(BATCH)
        specs = PartitionSpec(), *[spread] * len(rows)
        manual = jax.shard_map(function, in_specs=specs, out_specs=spread, axis_names=set(BATCH), check_vma=False)
        # jax 0.12 refuses to add to the Ref of `training.accumulate` what is still to be summed over devices. The
        # gradient of a copy, which compiles to nothing, is added after the sum.
        return manual(jnp.copy(unembed), *rows)

    return mapped


def logprobs(
    params: Params, cfg: ModelConfig, batch: TokenBatch, temperature: float = 1.0
) -> tuple[Float[Array, 'R N A'], Float[Array, 'R N A']]:
    """The log-probability of each action and the entropy of the distribution it was drawn from, in nats."""
    order = real_first(batch)
    states, unembed = decoder.output_layer(params, cfg, order.states(hidden_states(params, cfg, batch), batch))

    def score(unembed: Array, states: Array, actions: Array, acts: Array) -> tuple[Array, Array]:
        logprobs, entropy = lp.token_logprobs(
            states, unembed, actions,
            acts=acts, temperature=temperature, softcap=cfg.final_softcap, dtype=cfg.dtype, chunk=cfg.logit_states,
        )  # fmt: skip
        exact = _exact_logprobs(cfg, states, unembed, actions, temperature)
        return logprobs if exact is None else exact, entropy

    out = by_rows(score)(unembed, states, order.sort(batch.actions), order.acts)
    return jax.tree.map(lambda x: order.unsort(x, batch.acts.shape), out)


def _exact_logprobs(
    cfg: ModelConfig, states: Array, unembed: Array, actions: Array, temperature: float
) -> Float[Array, 'R M'] | None:
    """The log-probs that an exact sampler of an accelerator reports; None for other models."""
    if not cfg.tile:
        return None
    logits = functools.partial(decoder.logits_of, cfg)
    return lp.exact_logprobs(states, unembed, actions, logits, tile=cfg.tile, temperature=temperature, dtype=cfg.dtype)


def values(critic: Params, cfg: ModelConfig, batch: TokenBatch) -> Float[Array, 'R N A K']:
    """The values of the state before each action: a bias-free linear head of `K` numbers on a decoder."""
    hidden = hidden_states(critic['decoder'], cfg, batch)
    # The head is applied to all states and then picked from: K numbers a state are cheaper to move than D.
    everywhere = constrain(hidden.astype(jnp.float32) @ critic['head'], (*decoder.ROWS[:2], None))
    at = jnp.take_along_axis(everywhere, flat(batch.states)[..., None], axis=1)
    return at.reshape(*batch.acts.shape, -1)


def token_loss(
    params: Params, cfg: ModelConfig, batch: TokenBatch, aux: dict[str, Any],
    per_token: Callable[[Array, dict[str, Any]], Array], *, temperature: float = 1.0, max_z_coef: float = 0.0,
) -> tuple[Float[Array, ''], Float[Array, 'R N A']]:  # fmt: skip
    """The sum of `per_token(logprob, aux)` over the actions, and their log-probabilities.

    The max-z loss, weighted by `aux['weight']`, is added `max_z_coef` times.
    """
    order = real_first(batch)
    states, unembed = decoder.output_layer(params, cfg, order.states(hidden_states(params, cfg, batch), batch))

    def loss_of(unembed: Array, states: Array, actions: Array, acts: Array, aux: Any) -> tuple[Array, Array]:
        loss, new = lp.token_loss(
            states, unembed, actions, aux, per_token,
            acts=acts, temperature=temperature, softcap=cfg.final_softcap, dtype=cfg.dtype, chunk=cfg.logit_states,
            exact=_exact_logprobs(cfg, states, unembed, actions, temperature),
        )  # fmt: skip
        if max_z_coef:
            loss += max_z_coef * lp.max_z_loss(states, unembed, aux['weight'], dtype=cfg.dtype, chunk=cfg.logit_states)
        return loss[None], new

    # Real actions first: chunks of padding alone are skipped.
    rows = states, order.sort(batch.actions), order.acts, jax.tree.map(order.sort, aux)
    loss, new = by_rows(loss_of)(unembed, *rows)
    return loss.sum(), order.unsort(new, batch.acts.shape)


def imitation_loss(
    params: Params, cfg: ModelConfig, batch: TokenBatch, weight: Float[Array, 'R N A'], max_z_coef: float = 0.0
) -> tuple[Float[Array, ''], Float[Array, 'R N A']]:
    """The weighted cross-entropy of the actions (supervised fine-tuning, PTX, DPO) with the max-z loss, and the
    log-probabilities of the actions."""

    def per_token(logprob: Array, aux: dict[str, Array]) -> Array:
        # Tokens without weight may be undefined, and so would be their product with 0.
        return -aux['weight'] * keep(logprob, aux['weight'] != 0)

    return token_loss(params, cfg, batch, {'weight': weight}, per_token, max_z_coef=max_z_coef)
