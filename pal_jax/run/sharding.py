"""The mesh axis of each logical axis, in one table for parameters, optimiser states, batches and caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from pal_jax.models.params import Params, ParamSpec, is_spec
from pal_jax.types import BATCH

Rules = dict[str, str | tuple[str, ...] | None]

RULES: Rules = {
    'batch': BATCH,
    'width': 'fsdp',
    'vocab': 'tensor',
    'heads': 'tensor',
    'kv_heads': 'tensor',
    'mlp': 'tensor',
    'layers': None,
    'rank': None,
    'users': 'fsdp',
}

# Decoding reads every weight at every token, so gathering weights over fsdp each time would take most of its time.
DECODE_RULES: Rules = {**RULES, 'width': None}


def sharding(mesh: Mesh, axes: Sequence[str | None], rules: Rules = RULES) -> NamedSharding:
    """The sharding of an array with these logical axes.

    Raises:
      KeyError: a logical axis has no rule, so that no axis is replicated by accident.
    """
    return NamedSharding(mesh, PartitionSpec(*(rules[axis] if axis else None for axis in axes)))


def constrain(x: Array, axes: Sequence[str | None]) -> Array:
    """`x`, sharded by these logical axes within `jax.sharding.use_abstract_mesh`, and unchanged outside of it."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    # Without this the compiler may split the width of activations as that of the weights, and gather their rows.
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*(RULES[axis] if axis else None for axis in axes)))


def param_shardings(specs: Params, mesh: Mesh, rules: Rules = RULES) -> Params:
    """The shardings of a tree of `ParamSpec`s.

    Raises:
      ValueError: a dimension does not divide over its mesh axes.
    """
    return jax.tree.map(lambda spec: _checked(spec, mesh, rules), specs, is_leaf=is_spec)


def _checked(spec: ParamSpec, mesh: Mesh, rules: Rules) -> NamedSharding:
    for size, axis in zip(spec.shape, spec.axes, strict=True):
        over = rules[axis] if axis else None
        ways = int(np.prod([mesh.shape[name] for name in ((over,) if isinstance(over, str) else over or ())]))
        if size % ways:
            # The message names sizes of the axis that would do.
            divisors = [str(d) for d in range(1, size + 1) if size % d == 0 and d <= ways]
            raise ValueError(
                f'{axis}={size} does not divide over {over}={ways}; try --config.mesh.{over}={" or ".join(divisors)}'
            )
    return sharding(mesh, spec.axes, rules)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device has in full."""
    return NamedSharding(mesh, PartitionSpec())


def put_batch(tree: Any, mesh: Mesh, axes: Sequence[str | None] = ('batch',)) -> Any:
    """Arrays of rows as global arrays whose rows lie over `data` and `fsdp`.

    Rows are the leading axis, or the axis called 'batch' in `axes`.
    """
    place = sharding(mesh, axes)
    return put(tree, jax.tree.map(lambda _: place, tree))


def put(tree: Any, places: Any) -> Any:
    """Arrays that every process has on its host, as global arrays in the shardings `places`."""

    return jax.tree.map(
        lambda x, place: jax.make_array_from_callback(x.shape, place, lambda index: x[index]), tree, places
    )


def to_every_host(tree: Any, mesh: Mesh) -> Any:
    """Arrays of the mesh as arrays of numpy, whole in every process. All processes take part."""
    return jax.tree.map(np.asarray, jax.device_put(tree, replicated(mesh)))


def to_host(tree: Any) -> Any:
    """Arrays that process 0 can read: as they are, or gathered leaf by leaf to its memory where there are several."""
    if jax.process_count() == 1:
        return tree

    def gather(x: jax.Array) -> Any:
        assert isinstance(x.sharding, NamedSharding)
        gathered = jax.device_put(x, NamedSharding(x.sharding.mesh, PartitionSpec()))
        # The other processes take part and get shapes and dtypes in place of the arrays.
        return np.asarray(gathered) if jax.process_index() == 0 else jax.ShapeDtypeStruct(x.shape, x.dtype)

    return jax.tree.map(gather, tree)


def batch_ways(mesh: Mesh | AbstractMesh) -> int:
    """The number of devices that a batch is spread over. The number of its rows must be a multiple of it."""
    return mesh.shape['data'] * mesh.shape['fsdp']
