"""Policies merged by their parameters."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from pal_jax.models.params import Params


def linear(trees: Sequence[Params], weights: Sequence[float]) -> Params:
    """`sum_i w_i theta_i` in float32, leaf by leaf; of LoRA adapters the factors are averaged (P-Soups, step 5).

    Raises:
      ValueError: the weights are not as many as the trees, or do not sum to 1.
    """
    if len(trees) != len(weights) or abs(sum(weights) - 1.0) > 1e-6:
        raise ValueError(f'weights {list(weights)} must be {len(trees)} numbers with sum 1')
    return jax.tree.map(
        lambda *leaves: sum(w * x.astype(jnp.float32) for w, x in zip(weights, leaves, strict=True)), *trees
    )
