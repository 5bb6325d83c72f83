"""Rollouts ahead of updates: work that begins some steps before its result is needed, on a thread of its own.

A recipe keeps a line in its host item: a tuple of functions, the oldest first, each of which waits for the result of
one step's work. With `rollout.ahead=k` the rollout of step `i + k` begins before the update of step `i`, with the
weights after step `i - 1`. Which weights sample a rollout is fixed, so a run repeats bit by bit (lockstep). Without
lockstep a decode server gets the weights of every step while it samples, and no token is of earlier ones. Models on
the trainer's devices do not run on the thread: two threads could start the programs of several devices in different
orders, and each device would wait for the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

import numpy as np

from pal_jax.models.params import Params
from pal_jax.run import processes
from pal_jax.run.recipe import Context
from pal_jax.types import Metrics, Sample

T = TypeVar('T')
Line = tuple[Callable[[], T], ...]


class Ahead:
    """Begins work, and gives its result `steps` steps later. One thread does the work, in the order in which it began.

    Args:
      name: names the thread, and the values that it exchanges with those of other processes.
      phase: times the wait for a result, as `run.recipe.Context.phase`.
      here: the work needs this machine's devices, so the caller's thread does it when it begins.
      lockstep: the work is done with the weights that were there when it began.
    """

    def __init__(
        self, name: str, steps: int, *, phase: Callable[[str], AbstractContextManager[None]] = contextlib.nullcontext,
        here: bool = False, lockstep: bool = True,
    ):  # fmt: skip
        self.steps, self.lockstep, self._phase, self._here, self._pool = steps, lockstep, phase, here, None
        if steps and not here:
            self._pool = ThreadPoolExecutor(1, name, processes.exchange_as, (name,))

    def begin(self, line: Line[T], work: Callable[[], T]) -> Line[T]:
        """The line with work that begins now; with `steps=0` and not `here` it begins when its result is taken."""
        if self._pool:
            return (*line, self._pool.submit(work).result)
        if self._here:
            result = work()
            return (*line, lambda: result)
        return (*line, work)

    @property
    def apart(self) -> bool:
        """True where a thread of its own does the work."""
        return self._pool is not None

    def wait(self) -> None:
        """Wait until the thread has done all work that has begun."""
        if self._pool:
            with self._phase('wait'):
                self._pool.submit(lambda: None).result()

    def refresh(self, load: Callable[..., None], weights: Params, i: int) -> None:
        """Load the weights of step `i`: in lockstep once all work that has begun is done, and otherwise at once, with
        `i` as their version."""
        if self.lockstep:
            self.wait()
            load(weights)
        else:
            load(weights, i)

    def age(self, samples: Iterable[Sample], i: int) -> Metrics:
        """The mean number of updates between the weights of a token and those of step `i`, which learns it, as `age`;
        nothing in lockstep, where it is `steps`."""
        if self.lockstep:
            return {}
        return {'age': float(np.mean([i - version for one in samples for version in one.completion.versions]))}

    def close(self) -> None:
        """Do no work of those that have not started yet."""
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def due(self, i: int, line: Line[T], end: int) -> range:
        """The steps whose work begins in step `i` of a run of `end` steps.

        These are one step, in the first step of a run `steps` more, and none in its last `steps` steps.
        """
        return range(i + len(line), min(i + self.steps + 1, end))

    def take(self, line: Line[T]) -> tuple[T, Line[T]]:
        """The result of the oldest work, and the rest of the line."""
        if not self._pool:
            return line[0](), line[1:]
        with self._phase('wait'):
            return line[0](), line[1:]


def make_lines(ctx: Context, steps: int, lockstep: bool, here: Mapping[str, bool]) -> dict[str, Ahead]:
    """An `Ahead` for each kind of work, by its name. `here` says which work needs this machine's devices."""
    lines = {
        name: Ahead(name, steps, phase=ctx.phase, here=on_devices, lockstep=lockstep)
        for name, on_devices in here.items()
    }
    if steps and not any(line.apart for line in lines.values()):
        ctx.log(
            f'rollout.ahead={steps}: all of {", ".join(here)} needs the devices of this machine, so nothing is done '
            'beside updates, and samples are of earlier weights for no gain'
        )
    return lines


def check_ahead(ahead: int, lockstep: bool, *, driver: str, exact: bool) -> None:
    """Raises ValueError where a run cannot sample `ahead` steps ahead; `driver` and `exact` are those of `decode`."""
    if not lockstep and (not ahead or driver == 'local'):
        raise ValueError(
            f'rollout.lockstep=False with rollout.ahead={ahead} and decode.driver={driver!r}: only a decode server '
            "samples while its weights change; use decode.driver='jetstream' and an `ahead` of 1 or more"
        )
    if ahead < 0:
        raise ValueError(f'rollout.ahead={ahead} must be at least 0; 0 samples a step before its update')
    if ahead and exact:
        raise ValueError(
            f'rollout.ahead={ahead} samples with earlier weights, and decode.exact checks that the weights are '
            'those of the update; leave one of them off'
        )
