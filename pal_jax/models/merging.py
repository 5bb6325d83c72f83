"""Several models merged into one, parameter by parameter, on the host.

Each function takes trees of one shape and returns a tree of arrays. A tree may be a single tensor, in memory or in a
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
from pal_jax.models.params import Params

BLOCK = 1 << 20  # numbers of a tensor that are computed at once
TOLERANCE = 1e-6
PARALLEL = 1e-6  # where the sine of an angle is below it, the arc counts as a line


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
    factors, which P-Soups takes (Jang et al. 2023) and which differs from the mean of their updates (`delta`).

    Raises:
      ValueError: the weights do not sum to 1, or the trees or their shapes differ.
    """
    used = _used(checked(weights, len(trees)))
    return _over(lambda *xs: _weighted(xs, used), trees)


def delta(base: Params, adapters: Sequence[Params], weights: Sequence[float]) -> Params:
    """The base with the mean of the updates by adapters (see `lora.split`): `W + sum_i w_i s_i A_i B_i`.

    Raises:
      ValueError: the weights do not sum to 1, or the adapters are not of this base.
    """
    weights = checked(weights, len(adapters))

    def merged(leaf: Any, *parts: Adapter | None) -> Any:
        if any(part is None for part in parts):
            return np.asarray(leaf)
        pairs = zip(weights, parts, strict=True)
        arrays = [(w * part.scale, np.asarray(part.a), np.asarray(part.b)) for w, part in pairs if part]
        x, rows = np.asarray(leaf), arrays[0][1].shape[1]
        layers = [
            materialized(UpdatedMatrix(layer, [(c, a[i], b[i]) for c, a, b in arrays]))
            for i, layer in enumerate(x.reshape(len(x), rows, -1))
        ]
        return np.stack(layers).reshape(x.shape)

    for adapter in adapters[1:]:
        if _places(adapter) != _places(adapters[0]):
            raise ValueError('adapters of other weights than those of the first; merge adapters with equal targets')
    return jax.tree.map(merged, base, *adapters)


def task_arithmetic(trees: Sequence[Any], weights: Sequence[float], base: Any, lambda_: float = 1.0) -> Any:
    """The base with a sum of task vectors (Ilharco et al. 2023): `theta_0 + lambda sum_i w_i (theta_i - theta_0)`.

    Raises:
      ValueError: as `linear`.
    """
    weights = checked(weights, len(trees))

    def moved(origin: np.ndarray, *xs: np.ndarray) -> np.ndarray:
        return origin + lambda_ * _sum([x - origin for x in xs], weights)

    return _over(lambda *xs: _by_rows(xs, moved), [base, *trees])


def ties(trees: Sequence[Any], weights: Sequence[float], base: Any, k: float = 0.2, lambda_: float = 1.0) -> Any:
    """The base changed by TIES (Yadav et al. 2023, algorithm 1).

    The share `k` of each task vector with the largest magnitudes is kept, here tensor by tensor. The weighted sum
    elects a sign for every parameter. `theta_0` moves by `lambda` times the weighted mean of the values with this sign.

    Raises:
      ValueError: as `linear`, or a weight is below 0, or `k` is out of (0, 1].
    """
    weights = checked(weights, len(trees))
    if min(weights) < 0 or not 0 < k <= 1:
        raise ValueError(f'TIES takes weights of at least 0 and k in (0, 1], got {min(weights)} and k={k}')

    def merged(origin: TensorLike, *xs: TensorLike) -> np.ndarray:
        least = [_least_kept(origin, x, k) for x in xs]

        def moved(origin: np.ndarray, *xs: np.ndarray) -> np.ndarray:
            tasks = [x - origin for x in xs]
            tasks = [
                np.where(np.abs(task).astype(np.float32) >= at, task, 0.0)
                for task, at in zip(tasks, least, strict=True)
            ]
            sign = np.sign(_sum(tasks, weights))
            same_sign = [np.sign(task) == sign for task in tasks]
            mass = _sum(same_sign, weights)
            total = _sum(
                [np.where(has_sign, task, 0.0) for has_sign, task in zip(same_sign, tasks, strict=True)], weights
            )
            return origin + lambda_ * np.divide(total, mass, out=np.zeros_like(total), where=mass > 0)

        return _by_rows([origin, *xs], moved)

    return _over(merged, [base, *trees])


def slerp(trees: Sequence[Any], weights: Sequence[float]) -> Any:
    """A point on the great circle between two models (Shoemake 1985), tensor by tensor.

    Weights `[1 - t, t]` go the share `t` of the angle. Tensors that are 0 or parallel are merged by `linear`.

    Raises:
      ValueError: as `linear`, or there are not two models.
    """
    weights = checked(weights, len(trees))
    if len(trees) != 2:
        raise ValueError(f'slerp goes from one model to another, got {len(trees)}; give two, or take method linear')

    def merged(x: TensorLike, y: TensorLike) -> np.ndarray:
        return _weighted((x, y), _used(_on_arc(weights, _angle(x, y))))

    return _over(merged, trees)


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


def materialized(x: UpdatedMatrix) -> np.ndarray:
    """The whole matrix, in the precision of its base."""
    return _by_rows([x], lambda rows: rows)


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


def _places(adapters: Params) -> Any:
    """The structure of a tree of adapters without their scales, so that it says which weights have one."""
    return _built(jax.tree.map(lambda adapter: 0, adapters, is_leaf=_is_adapter))


# --- tensors --------------------------------------------------------------------------------------------------------


def _used(weights: Sequence[float]) -> list[tuple[int, float]]:
    """The places and weights of the models whose weight is not 0. The other models are not read."""
    return [(i, w) for i, w in enumerate(weights) if w]


def _sum(xs: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """The sum `sum_i w_i x_i`. It starts with the first term, since 0 added to -0 is not -0."""
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
    """Slices of the first axis, for work on blocks.

    They are so small that `count` tensors in float64 and three times as many intermediate results together have no more
    bytes than one whole tensor in float32.
    """
    if not shape:
        yield ()
        return
    size = max(1, min(shape[0] // (8 * count + 8), BLOCK // max(1, math.prod(shape[1:]))))
    for start in range(0, shape[0], size):
        yield slice(start, min(start + size, shape[0]))  # safetensors takes no slice past the end


def _least_kept(origin: TensorLike, x: TensorLike, k: float) -> float:
    """The smallest magnitude among the share `k` of a task vector's values that is kept."""
    magnitudes = np.empty(x.shape, np.float32)
    for rows in _blocks(magnitudes.shape, 2):
        magnitudes[rows] = np.abs(np.asarray(x[rows], np.float64) - np.asarray(origin[rows], np.float64))
    flat = magnitudes.reshape(-1)
    place = flat.size - max(1, int(k * flat.size))
    flat.partition(place)
    return float(flat[place])


def _angle(x: TensorLike, y: TensorLike) -> float:
    """The angle in radians between two tensors as vectors; 0 where one of them is 0."""
    dot = squares_x = squares_y = 0.0
    for rows in _blocks(x.shape, 2):
        a, b = (np.asarray(tensor[rows], np.float64).ravel() for tensor in (x, y))
        dot, squares_x, squares_y = dot + a @ b, squares_x + a @ a, squares_y + b @ b
    norms = math.sqrt(squares_x * squares_y)
    return math.acos(min(1.0, max(-1.0, dot / norms))) if norms else 0.0


def _on_arc(weights: Sequence[float], angle: float) -> Sequence[float]:
    """The factors of two vectors at this angle whose sum lies on the arc between them."""
    if math.sin(angle) < PARALLEL:
        return weights
    return [math.sin(w * angle) / math.sin(angle) for w in weights]
