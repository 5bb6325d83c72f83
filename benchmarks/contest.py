"""A contest of programs on one machine: each in a process of its own, all taking rounds in turn.

A busy machine is then as busy for one as for the other: read the ratios.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pal_jax.run.memory import ALLOCATOR, SETTING

ROOT = Path(__file__).parents[1]
# A precision whose products are slower than the other's by this factor is not raced: its rounds would take minutes.
SLOWER = 3.0


class Contestant(NamedTuple):
    """`make`, the `module:name` of a function, gets ready from `settings` and returns a `Round`.

    `library` counts its device's memory, its versions are those of `packages`, and `python` is the interpreter that has
    them.
    """

    make: str
    settings: dict[str, Any]
    library: str = 'jax'
    packages: tuple[str, ...] = ()
    python: str = sys.executable


class Result(NamedTuple):
    """`first` has the figures of the first round, which compiles; `seconds` and `figures` are those of later rounds."""

    init_s: float
    first_s: float
    first: dict[str, float]
    seconds: list[float]
    figures: list[dict[str, float]]
    peak_bytes: int
    versions: dict[str, str]

    def startup(self) -> dict[str, Any]:
        """The costs that come once: to get ready, to compile (what the first round takes longer), and memory."""
        return {
            'init_s': round(self.init_s, 1),
            'compile_s': round(self.first_s - statistics.median(self.seconds), 1),
            'peak_gib': round(self.peak_bytes / 2**30, 2),
            **({'versions': self.versions} if self.versions else {}),
        }

    def best(self) -> dict[str, float]:
        """The figures of the fastest round."""
        return self.figures[self.seconds.index(min(self.seconds))]


class Outcome(NamedTuple):
    """Results by contestant; `absent` are those whose packages are not installed, and what they missed."""

    results: dict[str, Result]
    absent: dict[str, str]


def race(contestants: dict[str, Contestant], rounds: int) -> Outcome:
    """Rounds in turn; one process at a time is awake. All run under the allocator that our commands start with:
    without it either side spends a part of its rounds on page faults, and a different one each time.

    Raises:
      ValueError: no rounds to time.
      RuntimeError: a contestant failed.
    """
    if rounds < 1:
        raise ValueError(f'a contest of {rounds} rounds has no times; ask for 1 or more')
    with contextlib.ExitStack() as stack:
        players, starts, absent = {}, {}, {}
        for name, contestant in contestants.items():
            player = Player(name, contestant, stack)
            started = player.hear()
            if 'absent' in started:
                absent[name] = started['absent']
            else:
                players[name], starts[name] = player, started
                say(f'{name}: ready in {started["init_s"]:.0f} s, first round {started["seconds"]:.1f} s')
        taken = {name: [] for name in players}
        for _ in range(rounds):
            for name, player in players.items():
                player.say('')
                taken[name].append(player.hear())
                say(f'{name}: {taken[name][-1]["seconds"]:.2f} s')
        peaks = {name: player.end() for name, player in players.items()}
    return Outcome({name: _result(starts[name], taken[name], peaks[name]) for name in players}, absent)


class Player:
    """A contestant's process. It ends with its input: when it is told to, or this process is gone."""

    def __init__(self, name: str, contestant: Contestant, stack: contextlib.ExitStack):
        self.name = name
        self._process = stack.enter_context(
            subprocess.Popen(
                [contestant.python, '-m', 'benchmarks.contestant'],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=environment(),
            )
        )
        stack.callback(self._process.kill)  # before the process is waited for; no news to one that ended
        self.say(json.dumps(contestant._asdict()))

    def say(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line + '\n')
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f'the contestant {self.name} failed; what it wrote above says why')
        return json.loads(line)

    def end(self) -> int:
        """The peak of its memory; what is measured next has the machine to itself."""
        assert self._process.stdin
        self._process.stdin.close()
        peak = self.hear()['peak_bytes']
        self._process.wait()
        return peak


def _result(start: dict[str, Any], rounds: list[dict[str, Any]], peak: int) -> Result:
    seconds, figures = ([message[key] for message in rounds] for key in ('seconds', 'figures'))
    return Result(start['init_s'], start['seconds'], start['figures'], seconds, figures, peak, start['versions'])


def environment() -> dict[str, str]:
    """The environment of processes under our allocator: the C library reads its setting as they start. On a GPU jax
    takes memory as it needs it: the others have theirs on the same card."""
    return os.environ | {SETTING: ALLOCATOR, 'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}


def ratios(ours: Result, theirs: Result) -> dict[str, float]:
    """The ratios of their time over ours: by the fastest rounds, and by the median over rounds. The two agree where the
    machine is quiet; where they do not, neither is to be quoted."""
    rounds = [them / us for us, them in zip(ours.seconds, theirs.seconds, strict=True)]
    fastest = min(theirs.seconds) / min(ours.seconds)
    return {'fastest': round(fastest, 2), 'median': round(statistics.median(rounds), 2)}


def surroundings(*packages: str) -> dict[str, Any]:
    """The surroundings that a number depends on: the machine's own limits, the allocator, our versions."""
    limits = limits_by('machine')
    say(f'this machine: {json.dumps(limits)}')
    return {
        'machine': limits,
        'malloc': ALLOCATOR,
        'versions': {name: importlib.metadata.version(name) for name in packages},
    }


def limits_by(module: str) -> dict[str, Any]:
    """The figures that a module of the benchmarks prints about the machine, such as `machine`."""
    command = [sys.executable, '-m', f'benchmarks.{module}']
    run = subprocess.run(command, capture_output=True, check=True, text=True, cwd=ROOT, env=environment())
    return json.loads(run.stdout)


def precisions(peers: Sequence[str], machine: dict[str, Any]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The precisions in which each peer is raced, and why another is not: its products are several times slower."""
    raced, slow = {}, {}
    for peer in peers:
        limits = machine
        if peer == 'torch':
            # Torch multiplies by a library of its own. Without torch, the race names both precisions as absent.
            with contextlib.suppress(subprocess.CalledProcessError):
                limits = limits_by('torch_machine')
        rates = {dtype: float(limits[f'{dtype}_gflops']) for dtype in ('bfloat16', 'float32')}
        best = max(rates.values())
        raced[peer] = [dtype for dtype, rate in rates.items() if SLOWER * rate >= best]
        slow |= {
            f'{peer}_{dtype}': f'left out: its products have {rate:.0f} GFLOP/s here, the other precision {best:.0f}'
            for dtype, rate in rates.items()
            if dtype not in raced[peer]
        }
    return raced, slow


def say(line: str) -> None:
    """A line of progress, beside the report on standard output."""
    print(line, file=sys.stderr, flush=True)
