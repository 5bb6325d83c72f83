"""A schedule of sends run on devices: an AllReduce made of `jax.lax.ppermute` steps, one or more for each round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Int

from pal_jax.recipes.allreduce.schedules import Schedule, Send


class PermutationRound(NamedTuple):
    """A permutation of devices, and by device the chunk that it sends, the chunk that it receives (-1: none), and
    whether it adds what comes."""

    pairs: tuple[tuple[int, int], ...]
    sent: Int[np.ndarray, ' N']
    received: Int[np.ndarray, ' N']
    adds: np.ndarray


def steps_of(sends: Sequence[Send], devices: int) -> list[PermutationRound]:
    """The permutations of a round."""
    parts: list[list[Send]] = []
    for send in sends:
        # A step of `ppermute` has every device send to one other at most and receive from one, so each send goes into
        # the first permutation in which its two devices are free.
        free = (part for part in parts if all(send.src != other.src and send.dst != other.dst for other in part))
        part = next(free, None)
        if part is None:
            parts.append([send])
        else:
            part.append(send)
    steps = []
    for part in parts:
        sent, received, adds = np.zeros(devices, int), np.full(devices, -1), np.zeros(devices, bool)
        for send in part:
            sent[send.src], received[send.dst], adds[send.dst] = send.chunk, send.chunk, send.op == 'reduce'
        steps.append(PermutationRound(tuple((send.src, send.dst) for send in part), sent, received, adds))
    return steps


def all_reduce(rounds: Schedule, mesh: Mesh, axis: str) -> Callable[[Array], Array]:
    """A jitted function of an array whose leading axis is cut over the devices of a mesh axis: it gives every device
    the sum of all their parts, as `psum` does, by the sends of a schedule.

    Args:
      rounds: sends among as many devices as the axis has, with as many chunks; device i is server i.

    Raises:
      ValueError: a send is of a device or a chunk that there is not.
    """
    size = mesh.shape[axis]
    for sends in rounds:
        for send in sends:
            if not (0 <= send.src < size and 0 <= send.dst < size and 0 <= send.chunk < size):
                raise ValueError(f'{send} is not of the {size} devices of the mesh axis {axis!r}')
    plan = [steps_of(sends, size) for sends in rounds]

    def local(part: Array) -> Array:
        me, length = jax.lax.axis_index(axis), part.size
        # Padding makes the chunks equally long, and is cut off from the result.
        chunks = jnp.pad(part.reshape(-1), (0, -length % size)).reshape(size, -1)
        for steps in plan:
            # All steps of a round send what was there before the round.
            before = chunks
            for step in steps:
                coming = jax.lax.ppermute(before[jnp.asarray(step.sent)[me]], axis, step.pairs)
                place, adds = jnp.asarray(step.received)[me], jnp.asarray(step.adds)[me]
                old = chunks[place]
                new = jnp.where(adds, old + coming, coming)
                # A device that receives nothing writes the chunk that it has back.
                chunks = chunks.at[place].set(jnp.where(place >= 0, new, old))
        return chunks.reshape(-1)[:length].reshape(part.shape)

    spec = PartitionSpec(axis)
    return jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec))
