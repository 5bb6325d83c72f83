"""Several models merged into one by their weighted mean, parameter by parameter, on the host.

`linear` takes trees of one shape and returns a tree of arrays. A tree may be a single tensor, in memory or in a
file. Tensors are cut into blocks of rows, which are computed in float64 and rounded once, to the precision of the first
model. Beside the result and the inputs, memory never holds more than about one tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from pal_jax.models.files.tensors import TensorLike
from pal_jax.models.lora import Adapter

# The number of a tensor's numbers that are computed at once.
BLOCK = 1 << 20
TOLERANCE = 1e-6


def checked(weights: Sequence[float], count: int) -> tuple[float, ...]:
    """The weights of `count` models as floats.

    Raises:
      ValueError: there are not `count` weights, or their sum is further than 1e-6 from 1.
    """
    if len(weights) != count or not abs(sum(weights) - 1) <= TOLERANCE:
        raise ValueError(
            f'{len(weights)} weights with sum {sum(weights):g} for {count} models; give one each, with sum 1'
        )
    return tuple(map(float, weights))


def linear(trees: Sequence[Any], weights: Sequence[float]) -> Any:
    """The weighted mean `sum_i w_i theta_i`, a soup of models (Wortsman et al. 2022).

    Weights [1, 0, 0] give the first model bit for bit. For trees of adapters (see `lora.split`) it is the mean of their
    factors, which P-Soups takes (Jang et al. 2023) and which differs from the mean of their updates (`Updated`).

    Raises:
      ValueError: the weights do not sum to 1, or the trees or their shapes differ.
    """
    used = _used(checked(weights, len(trees)))
    return _over(lambda *xs: _weighted(xs, used), trees)


class UpdatedMatrix:
    """The matrix `base + sum_i c_i left_i @ right_i`. Indexing computes the rows that are asked for.

    An adapter on a weight [in, out] has `left` A and `right` B. peft's, on [out, in], has `left` B and `right` A.
    """

    def __init__(self, base: TensorLike, updates: Sequence[tuple[float, Any, Any]]):
        self._base, self._updates = base, updates
        self.shape, self.dtype = base.shape, base.dtype

    def __getitem__(self, rows: Any) -> np.ndarray:
        return _sum(
            [
                np.asarray(self._base[rows], np.float64),
                *(
                    np.asarray(left[rows], np.float64) @ np.asarray(right, np.float64)
                    for _, left, right in self._updates
                ),
            ],
            [1.0, *(c for c, _, _ in self._updates)],
        )


# --- trees ----------------------------------------------------------------------------------------------------------


def _over(merge: Callable[..., np.ndarray], trees: Sequence[Any]) -> Any:
    """The tree of `merge(*tensors)` over the tensors in each place of the trees.

    Raises:
      ValueError: the trees or the shapes of their tensors differ.
    """
    for i, tree in enumerate(trees[1:], 2):
        if _built(tree) != _built(trees[0]):
            raise ValueError(
                f'the models are built differently: {_difference(trees[0], tree, i)}; merge models of one kind, '
                'adapters of one base and scale'
            )

    def leaf(path: Any, *xs: Any) -> np.ndarray:
        if len(shapes := dict.fromkeys(tuple(x.shape) for x in xs)) > 1:
            where = jax.tree_util.keystr(path) or 'a tensor'
            listed = ' and '.join(map(str, shapes))
            raise ValueError(f'{where} has shapes {listed}; merge models of one shape, adapters of one rank')
        return merge(*(np.asarray(x) if isinstance(x, jax.Array) else x for x in xs))

    return jax.tree.map_with_path(leaf, *trees)


def _built(tree: Any) -> Any:
    return jax.tree.structure(tree)


def _difference(first: Any, other: Any, number: int) -> str:
    """The first difference in structure between the first tree and the tree with this number, as a text."""
    ours, theirs = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree, is_leaf=_is_adapter)}
        for tree in (first, other)
    )
    for key in (*ours, *theirs):
        if (key in ours) != (key in theirs):
            having, lacking = (1, number) if key in ours else (number, 1)
            return f'number {having} has {key}, number {lacking} has not'
        scales = [x.scale if _is_adapter(x) else None for x in (ours[key], theirs[key])]
        if scales[0] != scales[1]:
            return f'{key or "the adapter"} has scale {scales[0]} in number 1 and {scales[1]} in number {number}'
    return f'numbers 1 and {number} are of different types'


def _is_adapter(x: Any) -> bool:
    return isinstance(x, Adapter)


# --- tensors --------------------------------------------------------------------------------------------------------


def _used(weights: Sequence[float]) -> list[tuple[int, float]]:
    """The places and weights of the models whose weight is not 0. The other models are not read."""
    return [(i, w) for i, w in enumerate(weights) if w]


def _sum(xs: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """The sum `sum_i w_i x_i`."""
    # The sum starts with the first term, since 0 added to -0 is not -0.
    total = xs[0] * weights[0]
    for x, w in zip(xs[1:], weights[1:], strict=True):
        total = total + x * w
    return total


def _weighted(xs: Sequence[Any], used: Sequence[tuple[int, float]]) -> np.ndarray:
    """The weighted sum of the tensors whose places and weights `used` has."""
    weights = [w for _, w in used]
    return _by_rows([xs[i] for i, _ in used], lambda *ys: _sum(ys, weights), xs[0].dtype)


def _by_rows(xs: Sequence[Any], kernel: Callable[..., np.ndarray], dtype: Any = None) -> np.ndarray:
    """The result of `kernel` on tensors of one shape, block by block, in `dtype` or else that of the first tensor."""
    out = np.empty(xs[0].shape, dtype or xs[0].dtype)
    for rows in _blocks(out.shape, len(xs)):
        out[rows] = kernel(*(np.asarray(x[rows], np.float64) for x in xs))
    return out


def _blocks(shape: tuple[int, ...], count: int) -> Iterator[Any]:
    """Slices of the first axis, for work on blocks."""
    if not shape:
        yield ()
        return
    # `count` tensors in float64 and three times as many intermediate results together have no more bytes than one whole
    # tensor in float32.
    size = max(1, min(shape[0] // (8 * count + 8), BLOCK // max(1, math.prod(shape[1:]))))
    for start in range(0, shape[0], size):
        # The library safetensors takes no slice past the end.
        yield slice(start, min(start + size, shape[0]))
