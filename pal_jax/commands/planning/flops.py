"""The arithmetic of a traced program: operations of its matrix products, with loops and recomputation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any


def flops(jaxpr: Any) -> float:
    """Floating-point operations of all matrix products of a jaxpr, on all devices together."""
    return sum(_cost(equation) for equation in jaxpr.eqns)


def _cost(equation: Any) -> float:
    """Floating-point operations of one equation of a jaxpr."""
    params = equation.params
    match equation.primitive.name:
        case 'dot_general':
            (contracted, _), _ = params['dimension_numbers']
            inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            # Each product is followed by an addition, hence the 2.
            return 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
        case 'pallas_call':
            # A Pallas kernel counts as its own estimate says.
            return float(params['cost_estimate'].flops) if params['cost_estimate'] else 0.0
        case 'cond':
            # A condition counts as its dearer branch.
            return max(flops(branch.jaxpr) for branch in params['branches'])
        case 'scan':
            return params['length'] * flops(params['jaxpr'].jaxpr)
        case 'shard_map':
            # The inner program is that of one device.
            return params['mesh'].size * flops(params['jaxpr'])
    # A loop without a known length counts as one turn.
    return sum(flops(inner) for inner in _inner(params))


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation."""
    for value in params.values():
        closed = getattr(value, 'jaxpr', value)
        if hasattr(closed, 'eqns'):
            yield closed
