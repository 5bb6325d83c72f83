"""Many users' mixtures of the same adapters in one batch, without a merged copy for each.

A soup is a tree with a `SoupWeight` in place of an array. All adapters lie beside the base, and a row of activations
has the mixture of its user. A row is computed with the weights that `models.merging` makes of the same adapters and
mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pal_jax.models.linear import LoraWeight, SoupWeight
from pal_jax.models.lora import HEAD, Adapter
from pal_jax.models.params import Params


def stack(base: Params, adapters: Sequence[Params], kind: Literal['factors', 'delta'] = 'factors') -> Params:
    """The soup of `K` adapters (see `lora.split`) on their plain base. `SoupWeight` explains `kind`.

    Raises:
      ValueError: the adapters differ in their weights or ranks, or, for 'factors', in their scales, or one of them is
        on the output matrix.
    """
    if any(adapter.get(HEAD) for adapter in adapters):
        raise ValueError('an adapter on the output matrix (lm_head) cannot be mixed; train without it, or merge it')
    kinds = [jax.tree.map(lambda x: x.shape, adapter) for adapter in adapters]
    # 'delta' has a scale for each adapter, 'factors' one for all.
    alike = [jax.tree.map(lambda x: x.replace(scale=1.0), shapes, is_leaf=_is_adapter) for shapes in kinds]
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


def count(tree: Any) -> int:
    """The number of adapters that a soup mixes; 0 for other weights."""
    return max((len(w.scales) for w in jax.tree.leaves(tree, is_leaf=_is_soup) if _is_soup(w)), default=0)


def at_layer(tree: Any, i: Any) -> Any:
    """The tree with layer `i` of its stacked adapters."""
    # The base weights are of this layer already.
    return _map(lambda w: w.replace(a=w.a[i], b=w.b[i]) if _is_adapted(w) else w, tree)


def mixed(tree: Any, mixtures: Float[Array, 'B K'] | None) -> Any:
    """The soup with a mixture for each row of activations, which `linear` applies."""
    if mixtures is None:
        return tree
    return _map(lambda w: w.replace(mixture=mixtures) if _is_soup(w) else w, tree)


def on_base(change: Callable[[Params], Params], tree: Params) -> Params:
    """The soup, or the adapted tree, with `change` applied to the plain tree below its adapters."""
    plain = change(_map(lambda w: w.base if _is_adapted(w) else w, tree))
    return _map(lambda w, base: w.replace(base=base) if _is_adapted(w) else base, tree, plain)


def placed(tree: Params, base: Params, adapters: Any) -> Params:
    """The tree with its plain weights in the shardings `base`, and all adapters in the sharding `adapters`."""
    spread = on_base(lambda plain: jax.device_put(plain, base), tree)
    return _map(
        lambda w: w.replace(a=jax.device_put(w.a, adapters), b=jax.device_put(w.b, adapters)) if _is_adapted(w) else w,
        spread,
    )


def _map(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    return jax.tree.map(fn, tree, *rest, is_leaf=_is_adapted)


def _is_soup(x: Any) -> bool:
    return isinstance(x, SoupWeight)


def _is_adapted(x: Any) -> bool:
    return isinstance(x, (LoraWeight, SoupWeight))


def _is_adapter(x: Any) -> bool:
    return isinstance(x, Adapter)
