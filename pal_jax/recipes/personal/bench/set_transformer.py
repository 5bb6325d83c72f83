"""A transformer that reads a set of answered questions and predicts others: GPO (arXiv 2310.11523, section 3).

    params = init(key, net)
    out = apply(params, net, context, exists, targets)      # [B, N, I], [B, N], [B, M, I] -> [B, M, outputs]

There are no positions, so the order of the context is nothing, and a target's output depends on no other target.

Letters: `B` people, `N` places of the context, `M` targets, `T` = N + M, `I` numbers of a token.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from pal_jax.models.params import Params

EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class SetTransformer:
    """The widths of the network; the published ones are 4 maps to 128, 6 layers of 4 heads, and 128 between.

    Raises:
      ValueError: the width does not divide over the heads, or a number is below 1.
    """

    inputs: int  # numbers of a token
    outputs: int = 1
    width: int = 128
    maps: int = 4  # affine maps from a token to the width
    layers: int = 6
    heads: int = 4
    hidden: int = 128  # the width between the two maps of a layer

    def __post_init__(self):
        if min(dataclasses.astuple(self)) < 1 or self.width % self.heads:
            raise ValueError(f'width={self.width} must divide over heads={self.heads}, and all numbers be at least 1')


def init(key: PRNGKeyArray, net: SetTransformer) -> Params:
    """Weights of variance 1 / inputs, by which all outputs are 0."""
    keys = iter(jax.random.split(key, net.maps + 6 * net.layers + 2))

    def dense(rows: int, out: int) -> Params:
        return {'w': jax.random.normal(next(keys), (rows, out)) * rows**-0.5, 'b': jnp.zeros(out)}

    def norm() -> Params:
        return {'scale': jnp.ones(net.width), 'shift': jnp.zeros(net.width)}

    def layer() -> Params:
        names = 'query', 'key', 'value', 'out'
        maps = {name: dense(net.width, net.width) for name in names}
        perceptron = {'up': dense(net.width, net.hidden), 'down': dense(net.hidden, net.width)}
        return maps | perceptron | {'first': norm(), 'second': norm()}

    return {
        'embed': [dense(net.width if i else net.inputs, net.width) for i in range(net.maps)],
        'layers': [layer() for _ in range(net.layers)],
        # The last map begins at 0, so that all outputs do.
        'head': [dense(net.width, net.width), jax.tree.map(jnp.zeros_like, dense(net.width, net.outputs))],
    }


def attend(
    q: Float[Array, 'B T Y D'], k: Float[Array, 'B N Y D'], v: Float[Array, 'B N Y D'], seen: Bool[Array, 'B N']
) -> Float[Array, 'B T Y D']:
    """Attention of `Y` heads from `T` places to those of `N` places that are seen; 0 where there are none."""
    scores = jnp.einsum('bqyd,bkyd->byqk', q, k) * q.shape[-1] ** -0.5
    mask = jnp.broadcast_to(seen[:, None, None], scores.shape)
    weights = jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), axis=-1, where=mask)
    # A set without members has NaN for weights.
    weights = jnp.where(mask, weights, 0.0)
    return jnp.einsum('byqk,bkyd->bqyd', weights, v)


def apply(
    params: Params,
    net: SetTransformer,
    context: Float[Array, 'B N I'],
    exists: Bool[Array, 'B N'],
    targets: Float[Array, 'B M I'],
) -> Float[Array, 'B M O']:
    """The outputs of targets given the context; places that do not exist change nothing."""
    # Padding becomes 0, as it may hold anything, and NaN times 0 is no 0.
    tokens = jnp.concatenate([jnp.where(exists[..., None], context, 0.0), targets], axis=1)
    size, h = exists.shape[1], tokens
    for i, layer in enumerate(params['embed']):
        h = _dense(layer, jax.nn.relu(h) if i else h)
    for layer in params['layers']:
        # Everybody sees the context, and nobody a target, not even itself: keys and values are those of the context.
        sides = (('query', h), ('key', h[:, :size]), ('value', h[:, :size]))
        q, k, v = (_dense(layer[name], x).reshape(*x.shape[:2], net.heads, -1) for name, x in sides)
        h = _norm(layer['first'], h + _dense(layer['out'], attend(q, k, v, exists).reshape(h.shape)))
        h = _norm(layer['second'], h + _dense(layer['down'], jax.nn.relu(_dense(layer['up'], h))))
    first, last = params['head']
    return _dense(last, jax.nn.relu(_dense(first, h[:, size:])))


def _dense(layer: Params, x: Array) -> Array:
    out = x @ layer['w']
    return out + jnp.broadcast_to(layer['b'], out.shape)


def _norm(layer: Params, x: Array) -> Array:
    apart = x - jnp.mean(x, axis=-1, keepdims=True)
    unit = apart * jax.lax.rsqrt(jnp.mean(jnp.square(apart), axis=-1, keepdims=True) + EPS)
    return unit * jnp.broadcast_to(layer['scale'], x.shape) + jnp.broadcast_to(layer['shift'], x.shape)
