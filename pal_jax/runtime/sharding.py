"""Which mesh axis each logical axis lies on: one table for parameters, optimiser states, batches and caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pal_jax.models.params import Params, ParamSpec, is_spec

Rules = dict[str, str | tuple[str, ...] | None]

RULES: Rules = {
    'batch': ('data', 'fsdp'),
    'width': 'fsdp',
    'vocab': 'tensor',
    'heads': 'tensor',
    'kv_heads': 'tensor',
    'mlp': 'tensor',
    'layers': None,
    'rank': None,
}

# Decoding reads every weight at every token: gathering them over fsdp each time would be all it does.
DECODE_RULES: Rules = {**RULES, 'width': None}


def sharding(mesh: Mesh, axes: Sequence[str | None], rules: Rules = RULES) -> NamedSharding:
    """The sharding of an array with these logical axes.

    Raises:
      KeyError: a logical axis has no rule; nothing is replicated by accident.
    """
    return NamedSharding(mesh, PartitionSpec(*(rules[axis] if axis else None for axis in axes)))


def param_shardings(specs: Params, mesh: Mesh, rules: Rules = RULES) -> Params:
    """Shardings for a tree of `ParamSpec`s.

    Raises:
      ValueError: a dimension does not divide over its mesh axes.
    """
    return jax.tree.map(lambda spec: _checked(spec, mesh, rules), specs, is_leaf=is_spec)


def _checked(spec: ParamSpec, mesh: Mesh, rules: Rules) -> NamedSharding:
    for size, axis in zip(spec.shape, spec.axes, strict=True):
        over = rules[axis] if axis else None
        ways = int(np.prod([mesh.shape[name] for name in ((over,) if isinstance(over, str) else over or ())]))
        if size % ways:
            divisors = [str(d) for d in range(1, size + 1) if size % d == 0 and d <= ways]
            raise ValueError(
                f'{axis}={size} does not divide over {over}={ways}; try --config.mesh.{over}={" or ".join(divisors)}'
            )
    return sharding(mesh, spec.axes, rules)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def put_batch(tree: Any, mesh: Mesh) -> Any:
    """This process's rows (leading axis) as its share of global arrays, spread over `data` and `fsdp`."""
    place = sharding(mesh, ('batch',))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(place, np.asarray(x)), tree)


def batch_ways(mesh: Mesh) -> int:
    """Over how many devices a batch is spread; the number of rows must be a multiple."""
    return mesh.shape['data'] * mesh.shape['fsdp']
