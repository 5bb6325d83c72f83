"""Rollouts ahead of updates: work that begins some steps before its result is needed, on a thread of its own.

A recipe keeps a line in its host item: a tuple of functions, the oldest first, each of which waits for the result of
one step's work. `RolloutsAhead` keeps a line of rollouts. With `rollout.ahead=k` the rollout of step `i + k` begins
before the update of step `i`, with the weights after step `i - 1`. Which weights sample a rollout is fixed, so a run
repeats bit by bit (lockstep). Without lockstep a decode server gets the weights of every step while it samples, and
no token is of earlier ones. Models on the trainer's devices do not run on the thread: two threads could start the
programs of several devices in different orders, and each device would wait for the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import numpy as np

from pal_jax.decode.choose import Decoder
from pal_jax.judges.chat_models import ChatModels
from pal_jax.models.params import Params
from pal_jax.run import processes
from pal_jax.run.language import DecodeSettings, RolloutRun, RolloutSettings
from pal_jax.run.recipe import Context, Host
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


def check_ahead(rollout: RolloutSettings, decode: DecodeSettings) -> None:
    """Raises ValueError where a run cannot sample so far ahead."""
    ahead = rollout.ahead
    if not rollout.lockstep and (not ahead or decode.driver == 'local'):
        raise ValueError(
            f'rollout.lockstep=False with rollout.ahead={ahead} and decode.driver={decode.driver!r}: only a decode '
            "server samples while its weights change; use decode.driver='jetstream' and an `ahead` of 1 or more"
        )
    if ahead < 0:
        raise ValueError(f'rollout.ahead={ahead} must be at least 0; 0 samples a step before its update')
    if ahead and decode.exact:
        raise ValueError(
            f'rollout.ahead={ahead} samples with earlier weights, and decode.exact checks that the weights are '
            'those of the update; leave one of them off'
        )


# --- rollouts ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RolloutsAhead(Generic[T]):
    """The rollouts of a run, which begin `rollout.ahead` steps before they are learnt.

    The host item has those that have begun as `rollouts`, the oldest first.
    """

    ctx: Context
    # The number of steps of the run.
    end: int
    sampling: Ahead
    # The decoder that gets the weights of a step; None: the function that samples loads them.
    decoder: Decoder | None
    # A checkpoint keeps rollouts as JSON.
    to_json: Callable[[T], Any]
    from_json: Callable[[Any], T]
    # The work of judges beside updates; None: a rollout is paid when it is learnt.
    paid: Ahead | None = None
    # The judges among language models, whose requests are counted.
    models: ChatModels | None = None

    def __call__(
        self, host: Host, i: int, weights: Callable[[], Params], sample: Callable[[int], Any],
        pay: Callable[[Any, int], T] | None = None,
    ) -> tuple[T, Line[T]]:  # fmt: skip
        """The rollout of step `i`, and the line of those that have begun. The rollouts that are due begin now.

        Args:
          weights: gives the weights before the update of step `i`.
          sample: samples for a step with the weights that `decoder` has loaded.
          pay: makes a rollout of what was sampled for a step; None: samples are rollouts.
        """
        line, sampled = host['rollouts'], ()
        due = self.sampling.due(i, line, self.end)
        with self.ctx.phase('rollout'):
            if due and self.decoder:
                self.sampling.refresh(self.decoder.load, weights(), i)
            for later in due:
                sampled = self.sampling.begin(sampled, functools.partial(sample, later))
            # An update needs the memory that a decoder on this machine has taken.
            if self.decoder and not self.sampling.apart:
                self.decoder.release()
            if pay is None:
                return self.sampling.take((*line, *sampled))
        with self.ctx.phase('reward'):
            for later, samples in zip(due, sampled, strict=True):
                # A checkpoint may ask for a rollout before the step that learns it.
                work = functools.cache(functools.partial(self._pay, pay, samples, later))
                line = self.paid.begin(line, work) if self.paid else (*line, work)
            return self.paid.take(line) if self.paid else (line[0](), line[1:])

    def _pay(self, pay: Callable[[Any, int], T], samples: Callable[[], Any], i: int) -> T:
        # Where no thread pays, the step waits here for the samples of a decode server.
        waits = self.sampling.apart and self.paid is None
        with self.ctx.phase('wait') if waits else contextlib.nullcontext():
            sampled = samples()
        return pay(sampled, i)

    def pack(self, host: Host) -> Host:
        """The host item of a checkpoint, once all work that has begun is done."""
        packed = host | {'rollouts': [self.to_json(rollout()) for rollout in host['rollouts']]}
        # Work that was under way has asked endpoints since the step.
        return packed | ({'usage': self.models.usage} if self.models and host['rollouts'] else {})

    def resume(self, host: Host) -> Host:
        """The inverse of `pack`."""
        rollouts = tuple(functools.partial(self.from_json, packed) for packed in host.get('rollouts', ()))
        return (self.models.count_on(host) if self.models else host) | {'rollouts': rollouts}

    def close(self) -> None:
        """Do no work of those that have not started yet."""
        for work in (self.sampling, self.paid):
            if work:
                work.close()


def make_rollouts(
    settings: RolloutRun, ctx: Context, end: int, decoder: Decoder | None, to_json: Callable[[T], Any],
    from_json: Callable[[Any], T], *, judged: bool = False, models: ChatModels | None = None,
) -> RolloutsAhead[T]:  # fmt: skip
    """The rollouts of a run of `end` steps. `judged`: judges need none of this machine's devices."""
    rollout = settings.rollout
    here = {'sampling': not settings.served_ahead} | ({'paid': False} if judged else {})
    lines = make_lines(ctx, rollout.ahead, rollout.lockstep, here)
    return RolloutsAhead(ctx, end, **lines, decoder=decoder, to_json=to_json, from_json=from_json, models=models)
