"""How long a run still takes, by what has been measured of it: nothing is guessed.

A step that is to come takes what the last steps of its phase took, an evaluation what the last one took. What was
paid once, compiling and loading, is counted where it happened and not again. Of a phase without a step so far nothing
is known; the time that is left is then a lower bound and says so.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pal_jax.types import Metrics

ONCE = 'seconds_compile', 'seconds_load'  # which the next step does not pay again
RECENT = 20  # steps whose mean is the pace


class Left(NamedTuple):
    """Seconds of what is left and has been measured, and the names of what has not been."""

    seconds: float
    unmeasured: tuple[str, ...] = ()

    def __str__(self) -> str:
        """`about 14 min left`, `at least 2 min left` where not all has been measured, or `done`."""
        if not self.seconds and not self.unmeasured:
            return 'done'
        return f'{"at least" if self.unmeasured else "about"} {spoken(self.seconds)} left'


class Forecast:
    """What a run will do, and how much of its time is left.

    Args:
      phases: steps by phase, in their order.
      evaluations: the steps before which the run is evaluated.
    """

    def __init__(self, phases: Mapping[str, int], evaluations: Sequence[int] = ()):
        ends = list(itertools.accumulate(phases.values()))
        self._spans = {name: range(end - count, end) for (name, count), end in zip(phases.items(), ends, strict=True)}
        self._evaluations = evaluations
        self._paces: dict[str, collections.deque[float]] = {}
        self._evaluated: float | None = None

    def __str__(self) -> str:
        """`24 steps of warm-up, 48 steps of PPO, 3 evaluations`."""
        steps = [f'{counted(len(span), "step")}{f" of {name}" if name else ""}' for name, span in self._spans.items()]
        return ', '.join([*steps, *([counted(len(self._evaluations), 'evaluation')] if self._evaluations else ())])

    def stepped(self, step: int, metrics: Metrics) -> str | None:
        """Takes a step's `seconds_` metrics. Returns the name of its phase where it is the first measured one of it."""
        name = next((name for name, span in self._spans.items() if step in span), '')
        seconds = sum(seconds_of(metrics)) - once(metrics)
        pace = self._paces.setdefault(name, collections.deque(maxlen=RECENT))
        if len(pace) == 1:
            pace.clear()  # the first step warms up more than programs, so the second one stands for both
            pace.extend((seconds, seconds))
            return None
        pace.append(seconds)
        return name if len(pace) == 1 else None

    def evaluated(self, metrics: Metrics) -> None:
        """Takes an evaluation's `seconds_` metrics."""
        self._evaluated = sum(seconds_of(metrics)) - once(metrics)

    def left(self, step: int) -> Left:
        """What is left after step number `step`, from 0."""
        seconds, unmeasured = 0.0, []
        for name, span in self._spans.items():
            if count := len(range(max(span.start, step + 1), span.stop)):
                if pace := self._paces.get(name):
                    seconds += count * sum(pace) / len(pace)
                else:
                    unmeasured.append(name or 'steps')
        if due := sum(i > step for i in self._evaluations):
            if self._evaluated is None:
                unmeasured.append('evaluations')
            else:
                seconds += due * self._evaluated
        return Left(seconds, tuple(unmeasured))


def seconds_of(metrics: Metrics) -> list[float]:
    """All seconds of a step or an evaluation, by whatever name."""
    return [value for key, value in metrics.items() if key.startswith('seconds_')]


def once(metrics: Metrics) -> float:
    """Those that are not paid again."""
    return sum(metrics.get(key, 0.0) for key in ONCE)


def counted(count: int, noun: str) -> str:
    return f'{count:,} {noun}' if count == 1 else f'{count:,} {noun}s'


def spoken(seconds: float) -> str:
    """A time as one says it: `8 s`, `45 s`, `14 min`, `2.5 h`."""
    if seconds < 100:
        return f'{round(seconds) if seconds < 20 else 5 * round(seconds / 5)} s'
    return f'{seconds / 60:.0f} min' if seconds < 90 * 60 else f'{seconds / 3600:.1f} h'
