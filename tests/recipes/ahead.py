"""Rollouts of recipes of fake parts, which begin ahead of their updates and depend on the weights that sample them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pal_jax.decode import sampler
from pal_jax.run.ahead import Ahead, RolloutsAhead
from pal_jax.run.recipe import Context


def fingerprint(weights: Any) -> int:
    """A number that other weights do not have."""
    return zlib.crc32(b''.join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(weights)))


class Noting:
    """A decoder that keeps the fingerprint of the weights which it has loaded."""

    loaded: int | None = None

    def load(self, params, version=0):
        self.loaded = fingerprint(params)

    def release(self):
        self.loaded = None


def make_rollouts(
    ctx: Context, end: int, decoder: Any, steps: int = 0, to_json=sampler.samples_to_json, from_json=sampler.samples_of,
    **more: Any,
) -> RolloutsAhead:  # fmt: skip
    """Rollouts on this machine, `steps` steps ahead of their updates."""
    return RolloutsAhead(ctx, end, Ahead('sampling', steps, here=True), decoder, to_json, from_json, **more)


def assert_it_goes_on_with_the_weights_of_its_steps(
    recipe: Any, steps: int, weights: Callable[[Any], Any], sampled: dict[int, int | None], ahead: int
) -> None:
    """A run whose host item goes through a checkpoint after every step ends as the unbroken one, and step `i` is
    sampled with the weights before step `i - ahead`. The recipe notes these in `sampled`."""
    last, befores = [], []
    for broken in (False, True):
        state, host = recipe.init()
        before = []
        for i in range(steps):
            before.append(fingerprint(weights(state)))
            state, host, *_ = recipe.step(state, host, i)
            if broken:
                host = recipe.rollouts.resume(json.loads(json.dumps(recipe.rollouts.pack(host))))
        assert sampled == {i: before[max(i - ahead, 0)] for i in range(steps)}
        sampled.clear()
        last.append(jax.tree.map(np.asarray, (state, host)))
        befores.append(before)
    jax.tree.map(np.testing.assert_array_equal, *last)
    assert len({*befores[0]}) == steps
