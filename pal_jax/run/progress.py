"""The progress of a run: a bar in a terminal, plain lines in a log, and the wall seconds of each phase.

The time that is left comes from the first step of each phase and then from the last steps (`run/forecast.py`).
"""

from __future__ import annotations

import collections
import contextlib
import io
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from pal_jax.run import memory, stores
from pal_jax.run.forecast import Forecast, once, seconds_of, spoken
from pal_jax.run.glossary import OWN, Words, figure_line
from pal_jax.types import Exhibit, Metrics

OTHER = 'other'  # the phase of all time outside the named phases
# The figures of a step that the console shows.
DESCRIBED = (
    'loss', 'accuracy', 'likelier', 'training_accuracy', 'reward', 'format', 'legal', 'attack_success', 'plain_success',
    'overrefusal', 'cost', 'mean_cost', 'limit', 'multiplier', 'margin', 'kl', 'grad_norm',
)  # fmt: skip
SILENCE = 60.0  # seconds without a line, after which a log says that work goes on
PATIENCE = 10.0  # seconds of a first step, after which a log says what it does
CUT = 0.2  # the console shows the share of cut answers where it is larger
NEARLY_ALL = 0.9  # the console warns once of a share of cut answers from here on
OF_ALIKE = 'of the prompts have answers that were all paid the same, so nothing is learnt from this step'
OF_CUT = 'of the answers are cut at their largest number of tokens; raise --config.sampling.max_tokens for longer ones'


class Stopwatch:
    """A timer that splits wall time into named phases; the package has no other."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._seconds: dict[str, float] = collections.defaultdict(float)
        self._current, self._since = OTHER, clock()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside the `with` block as `name`, less that of phases opened within it."""
        outer = self._switch(name)
        try:
            yield
        finally:
            self._switch(outer)

    def claim(self, name: str, seconds: float) -> None:
        """Count the last `seconds` of the current phase as `name` instead."""
        self._seconds[name] += seconds
        # Seconds that are claimed are not counted twice.
        self._seconds[self._current] -= seconds

    def take_seconds(self) -> Metrics:
        """Wall time by phase since the last call, as metrics `seconds_<phase>`."""
        self._switch(self._current)
        seconds_by_phase, self._seconds = self._seconds, collections.defaultdict(float)
        return {f'seconds_{name}': seconds for name, seconds in seconds_by_phase.items()}

    def _switch(self, name: str) -> str:
        now, outer = self._clock(), self._current
        # Every moment belongs to exactly one phase, the innermost open one, so the seconds add up to the time that
        # passed.
        self._seconds[outer] += now - self._since
        self._current, self._since = name, now
        return outer


def print_anything() -> None:
    """Print letters that the terminal does not have, and halves of surrogate pairs in texts of models, as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors='backslashreplace')


def describe(metrics: Metrics) -> str:
    """A short text with the latest values of a step: `reward 0.412  format 0.98`."""
    # Several functions of a user that pay the answers are shown beside their sum.
    parts = [key for key in metrics if key.startswith(OWN)]
    shown = (*DESCRIBED, *parts) if len(parts) > 1 else DESCRIBED
    figures = [f'{key.removeprefix(OWN)} {metrics[key]:.3g}' for key in shown if key in metrics]
    if (cut := metrics.get('truncated', 0.0)) > CUT:
        figures.append(f'answers cut {cut:.0%}')
    return '  '.join(figures)


def evaluation_text(
    stage: str, record: Mapping[str, Any], exhibits: Iterable[Exhibit], shown: Sequence[str], words: Words
) -> str:
    """An evaluation as lines of the console, in the words of the run's method.

    `shown` has the names of its figures and the titles of its exhibits whose tables belong there; others are left to
    the report.
    """
    lines = [figure_line(key, value, words, record.get(f'{key}_se')) for key, value in record.items() if key in shown]
    for exhibit in exhibits:
        if exhibit.title in shown:
            lines += [exhibit.title, *_columns(exhibit.table)]
    return '\n  '.join([f'evaluation ({stage}):', *lines])


def _columns(table: Sequence[Sequence[str]]) -> list[str]:
    """The rows of a table with cells of equal width in a column."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


class Progress:
    """A display of how far a run is. It is silent on every process but the first.

    Phases are timed from the beginning; the bar appears inside `with progress.start(total, first):`. No device is
    touched before the first line or bar is shown, so that the processes of a pod can still find each other.

    Args:
      describe: the text shown for the latest metrics.
      console: where to write; a bar if it is a terminal, else a line per step.
      clock: seconds, from any origin.
    """

    def __init__(
        self,
        describe: Callable[[Metrics], str] = describe,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._describe, self._console, self._stopwatch = describe, console or Console(), Stopwatch(clock)
        self._title, self._forecast, self._total, self._clock = '', Forecast({}), 0, clock
        self._bar: Bar | None = None
        self._warned: set[str] = set()
        self._task = TaskID(0)

    def announce(
        self, title: str, phases: Mapping[str, int], evaluations: Sequence[int] = (), notes: Iterable[str] = ()
    ) -> None:
        """Log the steps of a run by phase and its evaluations, which come before the given steps; then `notes`, lines.

        The time that the run takes is logged when the first step of a phase has been made, and after every step.
        """
        self._title, self._forecast = title, Forecast(phases, evaluations)
        for line in (
            f'{title}: {self._forecast}. The time left is known after the first one of each. The first steps compile, '
            'and are the slowest.',
            *notes,
        ):
            self.log(line)

    @contextlib.contextmanager
    def start(self, total: int, first: int = 0) -> Iterator[Self]:
        """Show a run of `total` steps that starts or resumes at step `first`, for as long as the block lasts."""
        self._total = total
        if not self._title:
            self._forecast = Forecast({'': total})
        if self._console.is_terminal and jax.process_index() == 0:
            self._bar = _make_bar(self._console)
            self._task = self._bar.add_task('', total=total, completed=first, phase='', latest='', eta='')
        try:
            with self._bar or contextlib.nullcontext():
                yield self
        finally:
            self._bar = None

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show and time a part of the work: rollout, annotate, update, evaluate, save."""
        if self._bar:
            self._bar.update(self._task, phase=name)
        with self._stopwatch.phase(name):
            yield
            # At the end of a part a large heap gives back its free pages, since the next part wants other sizes.
            memory.give_back(beyond=memory.LARGE_HEAP)

    def time_compilation(self) -> None:
        """Count the seconds of compiling, from now on, as a phase of their own, `compile`."""
        jax.monitoring.register_event_duration_secs_listener(self._after_stage)

    def _after_stage(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.endswith(memory.STAGES):
            self._stopwatch.claim('compile', duration_secs)

    def take_seconds(self) -> Metrics:
        """Wall time by phase since the last call, as metrics `seconds_<phase>`."""
        return self._stopwatch.take_seconds()

    def evaluated(self, metrics: Metrics) -> None:
        """Note how long an evaluation took, by its `seconds_` metrics."""
        self._forecast.evaluated(metrics)

    def done(self, step: int, stage: str, metrics: Metrics) -> None:
        """Show that step number `step` (from 0) of part `stage` is done. Its `seconds_` metrics have its time."""
        began = self._forecast.stepped(step, metrics)
        left, seconds = self._forecast.left(step), sum(seconds_of(metrics))
        if began is not None and self._title:
            paid = f', of which {spoken(once(metrics))} compiling' if once(metrics) >= 0.5 else ''
            self.log(f'the first step{f" of {began}" if began else ""} took {spoken(seconds)}{paid}; {left}')
        latest = self._describe(metrics)
        if self._bar:
            self._bar.update(self._task, completed=step + 1, description=stage, latest=latest, eta=left.brief)
        else:
            # The first step of a phase has said so already.
            again = f' ({once(metrics):.1f} s compiling)' if began is None and once(metrics) >= 1.0 else ''
            self.log(f'{stage} {step + 1}/{self._total}  {latest}  {seconds:.1f} s{again}  {left.brief}')
        for name, least, said in (('truncated', NEARLY_ALL, OF_CUT), ('alike', 1.0, OF_ALIKE)):
            if metrics.get(name, 0.0) >= least and name not in self._warned:
                self._warned.add(name)
                self.log(f'warning: {metrics[name]:.0%} {said}')

    def step(self, step: int, after: float = PATIENCE) -> AbstractContextManager[None]:
        """A block of step number `step`, from 0. The first of its phase is logged if it lasts `after` seconds."""
        if self._forecast.is_measured(step):
            return contextlib.nullcontext()
        return self.silent(f'compiling and making step {step + 1} of {self._total}, the first of its kind', after=after)

    @contextlib.contextmanager
    def silent(self, work: str, every: float = SILENCE, after: float = 0.0) -> Iterator[None]:
        """Log `work`, which says nothing before its end, once it has gone on for `after` seconds.

        After each `every` further seconds a line says for how long it has gone on.
        """
        if not after:
            self.log(work)
        ended, began = threading.Event(), self._clock()

        def tell() -> None:
            if after:
                if ended.wait(after):
                    return
                self.log(work)
            while not ended.wait(every):
                self.log(f'{work}: {spoken(self._clock() - began)} so far')

        thread = threading.Thread(target=tell, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def log(self, text: str) -> None:
        """Write a line, above the bar if there is one."""
        if jax.process_index() == 0:
            # The text is printed as it is, without markup.
            self._console.print(stores.shown(text), markup=False, highlight=False, soft_wrap=True)


def _make_bar(console: Console) -> Bar:
    return Bar(
        SpinnerColumn(),
        TextColumn('{task.description} {task.fields[phase]}', markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn('{task.fields[latest]}', markup=False),
        TextColumn('{task.fields[eta]}', markup=False),
        console=console,
    )
