"""Runs that are broken off between two steps and go on from what a checkpoint keeps."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np

from pal_jax.run.recipe import Host
from pal_jax.types import Metrics


def assert_it_goes_on_wherever_it_is_broken_off(recipe: Any, steps: int) -> list[tuple[Host, Metrics]]:
    """The host item before each step of the unbroken run, and the step's figures.

    The run is broken off before every step but the first, and its last state has to be that of the unbroken run, bit
    for bit.
    """
    state, host = recipe.init()
    kept, seen = [], []
    for i in range(steps):
        kept.append((jax.tree.map(np.asarray, state), json.dumps(recipe.plan.pack(host))))
        before = host
        state, host, _, metrics = recipe.step(state, host, i)
        seen.append((before, metrics))
    last = jax.tree.map(np.asarray, state)
    for point in range(1, steps):
        arrays, text = kept[point]
        state = jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), arrays, recipe.plan.abstract)
        host = recipe.plan.resume(json.loads(text))
        for i in range(point, steps):
            state, host, *_ = recipe.step(state, host, i)
        jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, state), last)
    return seen
