"""Many users' mixtures of the same adapters in one batch, without a merged copy for each.

A soup is a tree with a `SoupWeight` where the plain one has an array; all adapters lie beside the base, and a row of
activations has the mixture of its user. Merging the same adapters with the same weights (`models.merging`) gives the
weights that a row is computed with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pal_jax.models.linear import SoupWeight
from pal_jax.models.lora import Adapter
from pal_jax.models.params import Params


def stack(base: Params, adapters: Sequence[Params], kind: Literal['factors', 'delta'] = 'factors') -> Params:
    """The soup of `K` adapters (see `lora.split`) on their plain base; for `kind` see `SoupWeight`.

    Raises:
      ValueError: the adapters are on different weights, of different ranks, or have factors of different scales.
    """
    kinds = [jax.tree.map(lambda x: x.shape, adapter) for adapter in adapters]
    alike = [jax.tree.map(lambda x: x.replace(scale=1.0), each, is_leaf=_is_adapter) for each in kinds]
    if any(each != alike[0] for each in alike) or (kind == 'factors' and any(each != kinds[0] for each in kinds)):
        raise ValueError('these adapters have different weights, ranks or scales; serve adapters of one configuration')

    def stacked(leaf: Any, *parts: Adapter | None) -> Any:
        own = [part for part in parts if part is not None]
        if not own:
            return leaf
        a, b = jnp.concatenate([x.a for x in own], axis=-1), jnp.concatenate([x.b for x in own], axis=-2)
        return SoupWeight(leaf, a, b, tuple(x.scale for x in own), kind)

    return jax.tree.map(stacked, base, *adapters)


def count(tree: Any) -> int:
    """How many adapters a soup mixes; 0 of other weights."""
    return max((len(w.scales) for w in jax.tree.leaves(tree, is_leaf=_is_soup) if _is_soup(w)), default=0)


def at_layer(tree: Any, i: Any) -> Any:
    """Layer `i` of stacked adapters, on weights that are of this layer already."""
    return _map(lambda w: w.replace(a=w.a[i], b=w.b[i]) if _is_soup(w) else w, tree)


def mixed(tree: Any, mixtures: Float[Array, 'B K'] | None) -> Any:
    """The soup with a mixture for each row of activations: what `linear` computes with."""
    if mixtures is None:
        return tree
    return _map(lambda w: w.replace(mixture=mixtures) if _is_soup(w) else w, tree)


def on_base(change: Callable[[Params], Params], tree: Params) -> Params:
    """`change` of the plain tree below the adapters, and the adapters on it."""
    plain = change(_map(lambda w: w.base if _is_soup(w) else w, tree))
    return _map(lambda w, base: w.replace(base=base) if _is_soup(w) else base, tree, plain)


def _map(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    return jax.tree.map(fn, tree, *rest, is_leaf=_is_soup)


def _is_soup(x: Any) -> bool:
    return isinstance(x, SoupWeight)


def _is_adapter(x: Any) -> bool:
    return isinstance(x, Adapter)
