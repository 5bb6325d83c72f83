"""A forecast of the time that a run still takes, from measured times alone."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pal_jax.types import Metrics

LISTED = 10  # things of one kind that a message lists

ONCE = 'seconds_compile', 'seconds_load'  # seconds that the next step does not need again
EVALUATIONS = 'evaluations'
RECENT = 20  # steps whose mean is the pace


class Left(NamedTuple):
    """The seconds left for the phases in `measured`, and the names of those that have not been measured.

    With `early` a phase is measured by its first step alone, which is slow even without its compiling.
    """

    seconds: float
    unmeasured: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    early: bool = False

    @property
    def _time(self) -> str:
        # After the last step an evaluation is all that is left.
        of = ' for the evaluation' if self.measured == (EVALUATIONS,) and not self.unmeasured else ''
        return f'{"up to" if self.early else "about"} {spoken(self.seconds)} left{of}'

    def __str__(self) -> str:
        """The time as a text: `about 14 min left`, `up to 14 min left`, or `done`.

        Where a phase is not measured: `warm-up: about 2 min left; not known yet: PPO, evaluations`.
        """
        if not self.unmeasured:
            return self._time if self.seconds else 'done'
        unknown = f'not known yet: {", ".join(self.unmeasured)}'
        known = f'{", ".join(self.measured)}: {self._time}; '
        return f'{known if self.measured else ""}{unknown}'

    @property
    def brief(self) -> str:
        """The time for a line of every step, which says that phases are not measured and leaves their names out."""
        if not self.unmeasured:
            return str(self)
        if not self.measured:
            return 'time left: not known yet'
        return f'{", ".join(self.measured)}: {self._time}; the time of other phases is not known yet'


class Forecast:
    """The steps and evaluations of a run, and the time that is left for them.

    Args:
      phases: steps by phase, in their order.
      evaluations: the steps before which the run is evaluated.
    """

    def __init__(self, phases: Mapping[str, int], evaluations: Sequence[int] = ()):
        ends = list(itertools.accumulate(phases.values()))
        self._spans = {name: range(end - count, end) for (name, count), end in zip(phases.items(), ends, strict=True)}
        self._evaluations = evaluations
        self._paces: dict[str, collections.deque[float]] = {}
        self._compiled = collections.defaultdict[str, list[float]](list)
        self._evaluated: float | None = None

    def __str__(self) -> str:
        """The plan of a run as a text: `24 steps of warm-up, 48 steps of PPO, 3 evaluations`."""
        steps = [f'{counted(len(span), "step")}{f" of {name}" if name else ""}' for name, span in self._spans.items()]
        return ', '.join([*steps, *([counted(len(self._evaluations), 'evaluation')] if self._evaluations else ())])

    def stepped(self, step: int, metrics: Metrics) -> str | None:
        """Take the `seconds_` metrics of a step. The result is the name of its phase if no step of it came before."""
        name = self._phase_of(step)
        # The seconds of compiling and loading are no part of the pace, see `_of_new_shapes`.
        seconds = sum(seconds_of(metrics)) - once(metrics)
        pace = self._paces.setdefault(name, collections.deque(maxlen=RECENT))
        if pace:
            self._compiled[name].append(metrics.get('seconds_compile', 0.0))
        if len(pace) == 1:
            # The first step is slow even without its compiling, so the second one stands for both.
            pace.clear()
            pace.extend((seconds, seconds))
            return None
        pace.append(seconds)
        return name if len(pace) == 1 else None

    def is_measured(self, step: int) -> bool:
        """True for a step of a phase of which a step has been made."""
        return self._phase_of(step) in self._paces

    def _phase_of(self, step: int) -> str:
        return next((name for name, span in self._spans.items() if step in span), '')

    def evaluated(self, metrics: Metrics) -> None:
        """Take the `seconds_` metrics of an evaluation."""
        self._evaluated = sum(seconds_of(metrics)) - once(metrics)

    def left(self, step: int) -> Left:
        """The time that is left after step number `step`, counted from 0."""
        seconds, unmeasured, measured, early = 0.0, [], [], False
        for name, span in self._spans.items():
            if count := len(range(max(span.start, step + 1), span.stop)):
                if pace := self._paces.get(name):
                    # A coming step is taken to last as long as the last steps of its phase, and an evaluation as long
                    # as the last one.
                    seconds += count * sum(pace) / len(pace) + self._of_new_shapes(name, count)
                    measured.append(name or 'steps')
                    early = early or len(pace) == 1
                else:
                    # A phase without a step so far has no measured time. The time that is left is then that of the
                    # other phases, and names them.
                    unmeasured.append(name or 'steps')
        if due := sum(i > step for i in self._evaluations):
            if self._evaluated is None:
                unmeasured.append(EVALUATIONS)
            else:
                seconds += due * self._evaluated
                measured.append(EVALUATIONS)
        return Left(seconds, tuple(unmeasured), tuple(measured), early)

    def _of_new_shapes(self, name: str, count: int) -> float:
        """The seconds of compiling that `count` coming steps of a phase may take, for shapes that are new to them.

        As many steps as the later half of those so far are taken to compile as much as that half; further ones nothing.
        """
        # What the first step compiles comes once, and is not in the list.
        later = self._compiled[name][len(self._compiled[name]) // 2 :]
        return sum(later) * min(count, len(later)) / len(later) if later else 0.0


def seconds_of(metrics: Metrics) -> list[float]:
    """The values of all `seconds_` metrics of a step or an evaluation."""
    return [value for key, value in metrics.items() if key.startswith('seconds_')]


def once(metrics: Metrics) -> float:
    """The seconds of a step or an evaluation that the next one does not need again."""
    return sum(metrics.get(key, 0.0) for key in ONCE)


def counted(count: int, noun: str) -> str:
    """A number with its noun, as in `1 step`, `2,000 steps` or `3 people`."""
    return f'{count:,} {noun}' if count == 1 else f'{count:,} {"people" if noun == "person" else f"{noun}s"}'


def few_of(names: Sequence[str]) -> str:
    """The first names with commas between, and the number of the others."""
    return ', '.join(names[:LISTED]) + (f' and {len(names) - LISTED} more' if len(names) > LISTED else '')


def spoken(seconds: float) -> str:
    """A rounded time in words: `8 s`, `45 s`, `14 min`, `2.5 h`."""
    if seconds < 100:
        return f'{round(seconds) if seconds < 20 else 5 * round(seconds / 5)} s'
    return f'{seconds / 60:.0f} min' if seconds < 90 * 60 else f'{seconds / 3600:.1f} h'
