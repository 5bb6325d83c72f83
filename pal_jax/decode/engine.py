"""Prefill, insert, generate: continuous batching as three pure functions over a fixed set of slots.

A slot holds one request: its cache, its position, its sampling settings and its random key. All slots advance together,
each at its own position. The layers are straight-line code with one cache array each. The step updates every cache in
place (the state is donated) and reads each weight once. Keys have their columns last, in which order the product with
the queries reads them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt32

from pal_jax.decode import sampling
from pal_jax.models import attention, decoder, places, soups
from pal_jax.models.config import LayerKind, ModelConfig
from pal_jax.models.linear import LoraWeight, SoupWeight, output_major, quantize
from pal_jax.models.params import Params
from pal_jax.objectives.rounding import exponential
from pal_jax.run import sharding

# Letters: `B` slots, `N` prompts, `M` entries of an admission, `T` tokens, `S` columns of a cache, `H` query heads, `G`
# heads of keys and values, `K` the width of a head, `D` that of the model, `V` the size of the vocabulary.

# The columns of a prompt whose logits exist at once while the prompt is scored.
SCORED = 64

Keys = tuple[Float[Array, 'B G K S'], ...]  # an array for each layer
Values = tuple[Float[Array, 'B G S K'], ...]


class DecodeState(struct.PyTreeNode):
    """The state of `B` slots. `token` is a slot's last token, not yet in the cache; `length` counts those in it."""

    keys: Keys
    values: Values
    length: Int[Array, ' B']
    token: Int[Array, ' B']
    rng: UInt32[Array, 'B 2']
    temperature: Float[Array, ' B']
    top_k: Int[Array, ' B']
    top_p: Float[Array, ' B']

    @property
    def capacity(self) -> int:
        """The number of tokens that a slot has room for."""
        return self.values[0].shape[2]


class PrefixCaches(struct.PyTreeNode):
    """The caches of `N` prompts. `length` does not count the last token of a prompt, which is `token`."""

    keys: Keys
    values: Values
    length: Int[Array, ' N']
    token: Int[Array, ' N']


class Admission(NamedTuple):
    """Prompts on their way into slots. Entry `m` of the first `size` ones copies prompt `row[m]` into `slot[m]`."""

    size: Int[Array, '']
    row: Int[Array, ' M']
    slot: Int[Array, ' M']
    rng: UInt32[Array, 'M 2']
    temperature: Float[Array, ' M']
    top_k: Int[Array, ' M']
    top_p: Float[Array, ' M']


def layer_of(stack: Params, i: Int[Array, ''], dtype: str | None) -> Params:
    """Layer `i` of stacked plain layers, its matrices in `dtype` if one is given, as it is sent to the decoder."""
    layer = jax.tree.map(lambda w: lax.dynamic_index_in_dim(w, i, keepdims=False), stack)
    return jax.tree.map(lambda w: w.astype(dtype) if dtype and w.ndim > 1 else w, layer)


def decode_layer(layer: Params, i: Int[Array, ''], cfg: ModelConfig, *, slots: int, int8: bool = False) -> Params:
    """A layer in the form for decoding in `slots` slots, with matrix products in `cfg.dtype`.

    `int8` rounds the matrices to eight bits, which halves the bytes that a step reads and changes the policy slightly.
    """
    # With `cfg.exact` the matrices stay as they are in training.
    cpu, single = jax.default_backend() == 'cpu' and not cfg.exact, slots == 1
    # Layers are separate arrays because a slice of a stacked array is a copy before every product. The adapters of a
    # soup are stacked over layers, and those of layer `i` are taken.
    layer = soups.at_layer(layer, i)
    # On a CPU, a single slot reads few large matrices, each in order.
    layer = decoder.fuse(layer, cfg) if cpu and single and not soups.count(layer) else dict(layer)
    # There the output axis of a matrix comes first for a single slot and for products in float32.
    turned = cpu and (single or cfg.dtype == 'float32')
    for part in ('attn', 'mlp'):
        layer[part] = {name: _laid_out(name, w, cfg, turned, int8) for name, w in layer[part].items()}
    return layer


def decode_outer(outer: Params, cfg: ModelConfig) -> Params:
    """The weights outside the layers in the form for decoding: embedding, final norm and output matrix."""
    # Training reads the embeddings of tokens as they are, and so does an exact decoder.
    embed = outer['embed'] if _keeps_embed(cfg) else outer['embed'].astype(cfg.dtype)
    weights = {'embed': embed, 'final_norm': outer['final_norm']}
    if has_own_output(outer, cfg):
        # The rows of a unit head are divided once here, and not at every step.
        weights['unembed'] = decoder.unembed_weight(outer, cfg).astype(cfg.dtype)
    return weights


def has_own_output(outer: Params, cfg: ModelConfig) -> bool:
    """True where a decoder has an output matrix beside the embedding."""
    return 'unembed' in outer or cfg.unit_head or _keeps_embed(cfg)


def _keeps_embed(cfg: ModelConfig) -> bool:
    """True where an exact decoder keeps embeddings as training reads them, beside an output matrix in `cfg.dtype`."""
    return cfg.exact and cfg.dtype != cfg.act_dtype


def _laid_out(name: str, w: Any, cfg: ModelConfig, turned: bool, int8: bool) -> Any:
    if isinstance(w, (LoraWeight, SoupWeight)):
        base = _laid_out(name, w.base, cfg, turned, int8)
        return soups.with_precision(w.replace(base=base), cfg.dtype)
    # The output of attention has heads and their width as inputs.
    in_dims = 2 if name == 'o' else 1
    if name.endswith(('_bias', '_norm')):
        return w.astype(cfg.dtype) if name.endswith('_bias') else w
    if int8:
        return quantize(w, in_dims)
    w = w.astype(cfg.dtype)
    return output_major(w, in_dims) if turned else w


def init_state(cfg: ModelConfig, slots: int, length: int) -> DecodeState:
    """Empty slots with room for `length` tokens each."""
    heads, size, dtype = cfg.kv_heads, cfg.head_dim, cfg.act_dtype
    ints = jnp.zeros(slots, jnp.int32)
    return DecodeState(
        keys=tuple(jnp.zeros((slots, heads, size, length), dtype) for _ in range(cfg.layers)),
        values=tuple(jnp.zeros((slots, heads, length, size), dtype) for _ in range(cfg.layers)),
        length=ints,
        token=jnp.copy(ints),
        rng=jnp.zeros((slots, 2), jnp.uint32),
        temperature=jnp.zeros(slots),
        top_k=jnp.copy(ints),
        top_p=jnp.ones(slots),
    )


def empty_caches(cfg: ModelConfig, rows: int, length: int) -> PrefixCaches:
    """The empty caches of `rows` prompts, with room for `length` tokens each."""
    state = init_state(cfg, rows, length)
    return PrefixCaches(keys=state.keys, values=state.values, length=state.length, token=state.token)


def state_shardings(mesh: Mesh) -> DecodeState:
    """The shardings of a state, in the places of its arrays: kv heads over `tensor`, slots over the other axes."""
    cache, row = (sharding.sharding(mesh, axes) for axes in (('batch', 'kv_heads', None, None), ('batch',)))
    parts: list[Any] = [cache, cache, *[row] * 6]
    return DecodeState(*parts)


def grow(state: DecodeState, length: int) -> DecodeState:
    """A copy of the slots with room for `length` tokens each."""
    more = length - state.capacity
    return state.replace(
        keys=jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more))), state.keys),
        values=jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))), state.values),
    )


def prefill(
    weights: Params,
    cfg: ModelConfig,
    tokens: Int[Array, 'N T'],
    length: Int[Array, ' N'],
    cached: PrefixCaches | None = None,
) -> PrefixCaches:
    """The cache of right-padded prompts of `length` tokens each. With `cached`, the tokens follow those of that cache.

    `cached` must have room for its length and `T` more tokens.
    """
    return states(weights, cfg, tokens, length, cached)[1]


def states(
    weights: Params,
    cfg: ModelConfig,
    tokens: Int[Array, 'N T'],
    length: Int[Array, ' N'],
    cached: PrefixCaches | None = None,
) -> tuple[Float[Array, 'N T D'], PrefixCaches]:
    """The states of all tokens before the final norm, and the cache that `prefill` returns."""
    start = cached.length if cached else jnp.zeros_like(length)
    positions = start[:, None] + jnp.arange(tokens.shape[1])[None]
    # Positions go on after the cached tokens.
    queries = places.one_sequence(positions)
    x = decoder.embed(weights, cfg, tokens)
    cache = []
    for i, (layer, kind) in enumerate(zip(weights['layers'], cfg.kinds, strict=True)):

        def attend(q, k, v, i=i, kind=kind):
            new = k.transpose(0, 2, 3, 1), v.swapaxes(1, 2)
            if cached is None:
                return attention.attention(q, k, v, queries, queries, cfg, kind, causal=True), new
            keys = _write(cached.keys[i], new[0], start, axis=2)
            values = _write(cached.values[i], new[1], start, axis=1)
            k, v = keys.transpose(0, 3, 1, 2), values.swapaxes(1, 2)
            # A column of the cache is the position of its token, and columns after a query are hidden by it.
            columns = places.one_sequence(jnp.broadcast_to(jnp.arange(k.shape[1]), k.shape[:2]))
            return attention.attention(q, k, v, queries, columns, cfg, kind), (keys, values)

        x, keys_values = decoder.block(layer, cfg, kind, x, positions, attend)
        cache.append(keys_values)
    keys, values = zip(*cache, strict=True)
    last = jnp.take_along_axis(tokens, length[:, None] - 1, axis=1)[:, 0]
    # The last token is not counted: the first `generate` computes it again and writes over its own column.
    return x, PrefixCaches(keys=keys, values=values, length=start + length - 1, token=last)


def _write(rows: Array, new: Array, start: Int[Array, ' N'], axis: int) -> Array:
    """The rows with `new[n]` written into `rows[n]`, from `start[n]` on along `axis` of a row, which has no batch
    axis."""
    ways = {'cpu': write_by_slices, 'default': write_by_scatter}
    return lax.platform_dependent(
        rows, new.astype(rows.dtype), start, **{name: functools.partial(way, axis=axis) for name, way in ways.items()}
    )


def write_by_slices(rows: Array, new: Array, start: Int[Array, ' N'], *, axis: int) -> Array:
    """Write as `_write` does, by a loop of slices."""

    # A CPU scatters element by element.
    def write(n: Array, rows: Array) -> Array:
        where = [n, *[0] * (rows.ndim - 1)]
        where[1 + axis] = start[n]
        return lax.dynamic_update_slice(rows, lax.dynamic_slice_in_dim(new, n, 1), where)

    return lax.fori_loop(0, len(rows), write, rows)


def write_by_scatter(rows: Array, new: Array, start: Int[Array, ' N'], *, axis: int) -> Array:
    """Write as `_write` does, by a scatter."""
    # The TPU's compiler fails at the loop of slices where heads are sharded.
    return jax.vmap(lambda row, part, at: lax.dynamic_update_slice_in_dim(row, part, at, axis))(rows, new, start)


def read(state: DecodeState, slots: Int[Array, ' N'], length: Int[Array, ' N']) -> PrefixCaches:
    """The caches of the first `length` tokens in these slots, from which `prefill` can continue."""
    return PrefixCaches(
        keys=tuple(x[slots] for x in state.keys),
        values=tuple(x[slots] for x in state.values),
        length=length,
        token=jnp.zeros_like(length),
    )


def insert(state: DecodeState, prefix: PrefixCaches, entry: Admission) -> DecodeState:
    """The state with prompts copied into slots."""

    # Only the entries in use are copied, one after the other, so an admission costs what it admits.
    def place(m: Array, caches: tuple[Keys, Values]) -> tuple[Keys, Values]:
        def copy(cache: Array, new: Array) -> Array:
            row = lax.dynamic_slice_in_dim(new, entry.row[m], 1).astype(cache.dtype)
            return lax.dynamic_update_slice(cache, row, (entry.slot[m], 0, 0, 0))

        return jax.tree.map(copy, caches, (prefix.keys, prefix.values))

    keys, values = lax.fori_loop(0, entry.size, place, (state.keys, state.values))
    # Entries that are not used point behind the last slot, where `mode='drop'` ignores them.
    slot = jnp.where(jnp.arange(len(entry.slot)) < entry.size, entry.slot, len(state.token))

    def put(old: Array, new: Array) -> Array:
        return old.at[slot].set(new, mode='drop')

    return DecodeState(
        keys=keys,
        values=values,
        length=put(state.length, prefix.length[entry.row]),
        token=put(state.token, prefix.token[entry.row]),
        rng=put(state.rng, entry.rng),
        temperature=put(state.temperature, entry.temperature),
        top_k=put(state.top_k, entry.top_k),
        top_p=put(state.top_p, entry.top_p),
    )


def generate(weights: Params, cfg: ModelConfig, state: DecodeState) -> tuple[DecodeState, sampling.SampledTokens]:
    """The next state, and one token for every slot. The driver ignores tokens of finished and empty slots."""
    return _step(weights, cfg, state)[:2]


def generate_telling(
    weights: Params, cfg: ModelConfig, state: DecodeState, alternatives: int
) -> tuple[DecodeState, sampling.SampledTokens, sampling.LikeliestTokens]:
    """The result of `generate`, and the `alternatives` likeliest tokens of the distribution of each drawn token."""
    after, sampled, logits = _step(weights, cfg, state)
    # The barrier makes the drawn tokens the same with alternatives and without.
    drawn_logits = sampling.drawn_from(lax.optimization_barrier(logits), state.temperature, state.top_k, state.top_p)
    return after, sampled, sampling.likeliest(drawn_logits, alternatives)


def _step(
    weights: Params, cfg: ModelConfig, state: DecodeState
) -> tuple[DecodeState, sampling.SampledTokens, Float[Array, 'B V']]:
    rows = jnp.arange(state.token.shape[0])
    position = state.length[:, None]
    x = decoder.embed(weights, cfg, state.token[:, None])
    keys, values = [], []
    for layer, kind, old_keys, old_values in zip(weights['layers'], cfg.kinds, state.keys, state.values, strict=True):

        def attend(q, k, v, kind=kind, old_keys=old_keys, old_values=old_values):
            # An empty slot may have counted beyond its cache, and such a write is dropped.
            new_keys = old_keys.at[rows, :, :, state.length].set(k[:, 0].astype(old_keys.dtype), mode='drop')
            new_values = old_values.at[rows, :, state.length].set(v[:, 0].astype(old_values.dtype), mode='drop')
            return attend_cache(q, new_keys, new_values, position, cfg, kind), (new_keys, new_values)

        x, (new_keys, new_values) = decoder.block(layer, cfg, kind, x, position, attend)
        keys.append(new_keys)
        values.append(new_values)
    logits = unembed(weights, cfg, x)[:, 0]
    # The key of a draw depends on the request and the position, not on the slot or the other requests.
    step_keys = jax.vmap(jax.random.fold_in)(state.rng, state.length)
    sampled = sampling.sample(logits, step_keys, state.temperature, state.top_k, state.top_p, cfg.tile)
    state = state.replace(keys=tuple(keys), values=tuple(values), length=state.length + 1, token=sampled.token)
    return state, sampled, logits


def unembed(weights: Params, cfg: ModelConfig, x: Float[Array, 'R T D']) -> Float[Array, 'R T V']:
    """The logits of states before the final norm."""
    # `decode_outer` has divided the rows of a unit head.
    head = dataclasses.replace(cfg, unit_head=False)
    return decoder.unembed(weights, head, decoder.final_norm(weights, cfg, x))


class TokenScores(NamedTuple):
    """The log-prob of the next token at each token of a prompt, and the `K` likeliest next tokens."""

    logprob: Float[Array, 'N T']
    likeliest: sampling.LikeliestTokens  # [N, T, K]


def score(
    weights: Params,
    cfg: ModelConfig,
    cached: PrefixCaches,
    tokens: Int[Array, 'N T'],
    targets: Int[Array, 'N T'],
    length: Int[Array, ' N'],
    alternatives: int,
) -> tuple[PrefixCaches, TokenScores]:
    """The cache after these tokens, and the log-probs, under softmax(logits), of the `targets` that follow them.

    The tokens follow those in `cached`, as in `prefill`, and `targets[n, t]` follows `tokens[n, t]`. `T` is a multiple
    of `SCORED`.
    """
    x, prefix = states(weights, cfg, tokens, length, cached)
    rows, columns = tokens.shape

    def some(part: tuple[Array, Array]) -> Any:
        logits = unembed(weights, cfg, part[0]).reshape(rows * SCORED, -1)
        chosen = sampling.token_logprob(logits, part[1].reshape(-1), tile=cfg.tile)
        scores = chosen, sampling.likeliest(logits, alternatives)
        return jax.tree.map(lambda array: array.reshape(rows, SCORED, *array.shape[1:]), scores)

    # Logits of `SCORED` columns exist at a time.
    parts = jax.tree.map(
        lambda array: jnp.moveaxis(array.reshape(rows, columns // SCORED, SCORED, *array.shape[2:]), 1, 0), (x, targets)
    )
    scores = jax.tree.map(
        lambda array: jnp.moveaxis(array, 0, 1).reshape(rows, columns, *array.shape[3:]), lax.map(some, parts)
    )
    # All tokens have been read, so that the last one counts as cached, unlike in `prefill`.
    return prefix.replace(length=prefix.length + 1), TokenScores(*scores)


def attend_cache(
    q: Float[Array, 'B 1 H K'],
    keys: Float[Array, 'B G K S'],
    values: Float[Array, 'B G S K'],
    position: Int[Array, 'B 1'],
    cfg: ModelConfig,
    kind: LayerKind,
) -> Float[Array, 'B 1 H K']:
    """Attention of one query in each slot over the slot's cache, whose column `s` has position `s`.

    Windows, caps and slopes are those of `models.attention`.
    """
    B, _, H, K = q.shape
    if cfg.exact and cfg.attention != 'blocks':
        columns = places.one_sequence(jnp.broadcast_to(jnp.arange(keys.shape[3]), (B, keys.shape[3])))
        rows = keys.transpose(0, 3, 1, 2), values.swapaxes(1, 2)
        return attention.attention(q, *rows, places.one_sequence(position), columns, cfg, kind)
    # The queries of a group share its keys.
    q = q.reshape(B, keys.shape[1], -1, K)
    size = keys.shape[3]
    width = attention.columns_of_scores(q.shape[2], size, cfg)
    parts = [
        jnp.einsum('bghk,bgks->bghs', q, keys[..., i : i + width], preferred_element_type=jnp.float32)
        for i in range(0, size, width)
    ]
    scores = jnp.concatenate(parts, -1) * attention.score_scale(cfg)
    if cfg.attn_softcap is not None:
        scores = cfg.attn_softcap * jnp.tanh(scores / cfg.attn_softcap)
    distance = position - jnp.arange(size)[None]
    if cfg.alibi:
        slopes = places.alibi_slopes(H).reshape(1, keys.shape[1], -1, 1)
        scores -= slopes * distance[:, None, None].astype(jnp.float32)
    visible = distance >= 0 if kind.window is None else (distance >= 0) & (distance < kind.window)
    scores = jnp.where(visible[:, None, None, :], scores, -jnp.inf)
    mass = exponential(scores - scores.max(-1, keepdims=True))
    # The outputs are divided by the sum, since they are fewer than the weights.
    if cfg.exact:
        out = attention.in_order(mass, values)
    else:
        out = jnp.einsum('bghs,bgsk->bghk', mass.astype(values.dtype), values, preferred_element_type=jnp.float32)
    return (out / attention.total_of(mass, cfg)).reshape(B, 1, H, K).astype(q.dtype)


def pad_prompts(prompts: Sequence[Sequence[int]], rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded tokens [rows, length] and lengths [rows]. Rows after the prompts have one padding token."""
    tokens, lengths = np.zeros((rows, length), np.int32), np.ones(rows, np.int32)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
        lengths[row] = len(prompt)
    return tokens, lengths
