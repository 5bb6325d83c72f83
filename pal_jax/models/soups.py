"""Many users' mixtures of the same adapters in one batch, without a merged copy for each.

A soup is a tree with a `SoupWeight` in place of an array. All adapters lie beside the base, and a row of activations
has the mixture of its user. A row is computed with the weights that `models.merging` makes of the same adapters and
mixture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Sharding
from jaxtyping import Array, Float

from pal_jax.models.linear import LoraWeight, SoupWeight
from pal_jax.models.lora import Adapter, is_adapter
from pal_jax.models.params import Params


def stack(base: Params, adapters: Sequence[Params], kind: Literal['factors', 'delta'] = 'factors') -> Params:
    """The soup of `K` adapters (see `lora.split`) on their plain base. `SoupWeight` explains `kind`.

    Raises:
      ValueError: the adapters differ in their weights or ranks, or, for 'factors', in their scales.
    """
    kinds = [jax.tree.map(lambda x: x.shape, adapter) for adapter in adapters]
    # 'delta' has a scale for each adapter, 'factors' one for all.
    alike = [jax.tree.map(lambda x: x.replace(scale=1.0), shapes, is_leaf=is_adapter) for shapes in kinds]
    if any(shapes != alike[0] for shapes in alike) or (
        kind == 'factors' and any(shapes != kinds[0] for shapes in kinds)
    ):
        raise ValueError('these adapters have different weights, ranks or scales; serve adapters of one configuration')

    def stacked(leaf: Any, *parts: Adapter | None) -> Any:
        # A weight without adapters stays plain.
        present = [part for part in parts if part is not None]
        if not present:
            return leaf
        a, b = jnp.concatenate([x.a for x in present], axis=-1), jnp.concatenate([x.b for x in present], axis=-2)
        return SoupWeight(leaf, a, b, tuple(x.scale for x in present), kind)

    return jax.tree.map(stacked, base, *adapters)


def bank(base: Params, specs: Params, size: int, rank: int, place: Sharding) -> Params:
    """The soup of `size` adapters of zeros on the weights that have one in `specs`, to be filled by `put`."""

    def empty(leaf: Any, adapter: Adapter | None) -> Any:
        if adapter is None:
            return leaf
        (*layers, inputs, _), (*_, outputs) = adapter.a.shape, adapter.b.shape
        a, b = (
            jnp.zeros((*layers, *x), leaf.dtype, device=place) for x in ((inputs, size * rank), (size * rank, outputs))
        )
        return SoupWeight(leaf, a, b, (1.0,) * size, 'delta')

    return jax.tree.map(empty, base, specs)


def put(weights: Params, adapters: Params, place: int) -> Params:
    """A bank in the form for decoding with other adapters at a place, whose scales are folded into their `b`.

    Weights without adapters get zeros there.
    """

    def replaced(w: Any, adapter: Adapter | None, i: int) -> Any:
        if not _is_soup(w):
            return w
        rank = w.a.shape[-1] // len(w.scales)
        changed = _put(w.a, w.b, adapter, i, place * rank, rank)
        # Another sharding would be another program for every step of the decoder.
        a, b = jax.device_put(changed, (w.a.sharding, w.b.sharding))
        return w.replace(a=a, b=b)

    outer = {name: w for name, w in weights.items() if name != 'layers'}
    outer = {name: replaced(w, adapters.get(name), 0) for name, w in outer.items()}
    layers = [
        jax.tree.map(lambda w, x, i=i: replaced(w, x, i), layer, adapters['layers'], is_leaf=_is_soup)
        for i, layer in enumerate(weights['layers'])
    ]
    return {**outer, 'layers': layers}


@functools.partial(jax.jit, static_argnums=5)
def _put(a: Array, b: Array, adapter: Adapter | None, i: int, start: int, rank: int) -> tuple[Array, Array]:
    """The factors `a [I, K * r]` and `b [K * r, O]` with those of layer `i` of an adapter from `start` on."""
    new_a, new_b = jnp.zeros((a.shape[0], rank), a.dtype), jnp.zeros((rank, b.shape[1]), b.dtype)
    if adapter is not None:
        of_layer = (x if x.ndim == 2 else x[i] for x in (adapter.a, adapter.scale * adapter.b))
        # Ranks below that of the bank are padded with zeros.
        new_a, new_b = (
            lax.dynamic_update_slice(new, x.astype(new.dtype), (0, 0))
            for new, x in zip((new_a, new_b), of_layer, strict=True)
        )
    return lax.dynamic_update_slice(a, new_a, (0, start)), lax.dynamic_update_slice(b, new_b, (start, 0))


def count(tree: Any) -> int:
    """The number of adapters that a soup mixes; 0 for other weights."""
    return max((len(w.scales) for w in jax.tree.leaves(tree, is_leaf=_is_soup) if _is_soup(w)), default=0)


def at_layer(tree: Any, i: Any) -> Any:
    """The tree with layer `i` of its stacked adapters."""
    # The base weights are of this layer already.
    return _on_adapters(lambda factor: factor[i], tree)


def mixed(tree: Any, mixtures: Float[Array, 'B K'] | None) -> Any:
    """The soup with a mixture for each row of activations, which `linear` applies."""
    if mixtures is None:
        return tree
    return _map(lambda w: w.replace(mixture=mixtures) if _is_soup(w) else w, tree)


def mixture_of(tree: Any) -> Float[Array, 'B K'] | None:
    """The mixture for each row of activations that `mixed` has given a soup."""
    return next((w.mixture for w in jax.tree.leaves(tree, is_leaf=_is_soup) if _is_soup(w)), None)


def with_precision(tree: Any, dtype: str) -> Any:
    """The soup, or the adapted tree, with its adapters in another precision."""
    return _on_adapters(lambda factor: factor.astype(dtype), tree)


def plain(tree: Any) -> Any:
    """The plain tree below the adapters."""
    return _map(lambda w: w.base if _is_adapted(w) else w, tree)


def on_base(change: Callable[[Any], Any], tree: Any) -> Any:
    """The soup, or the adapted tree, with `change` applied to the plain tree below its adapters."""
    changed = change(plain(tree))
    return _map(lambda w, base: w.replace(base=base) if _is_adapted(w) else base, tree, changed)


def placed(tree: Params, base: Params, adapters: Any) -> Params:
    """The tree with its plain weights in the shardings `base`, and all adapters in the sharding `adapters`."""
    spread = on_base(lambda plain: jax.device_put(plain, base), tree)
    return _on_adapters(lambda factor: jax.device_put(factor, adapters), spread)


def _on_adapters(change: Callable[[Array], Array], tree: Any) -> Any:
    """The tree with `change` applied to both factors of all adapters."""
    return _map(lambda w: w.replace(a=change(w.a), b=change(w.b)) if _is_adapted(w) else w, tree)


def _map(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    return jax.tree.map(fn, tree, *rest, is_leaf=_is_adapted)


def _is_soup(x: Any) -> bool:
    return isinstance(x, SoupWeight)


def _is_adapted(x: Any) -> bool:
    return isinstance(x, (LoraWeight, SoupWeight))
