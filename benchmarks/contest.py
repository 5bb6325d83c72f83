"""A contest of programs on one machine: each in a process of its own, all taking rounds in turn.

A busy machine is then as busy for one as for the other: read the ratios.
"""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from typing import Any, NamedTuple

from benchmarks import machine
from pal_jax.runtime.memory import ALLOCATOR, SETTING

Round = Callable[[], dict[str, float]]  # takes one round and returns what it has to tell; it is over when it returns


class Contestant(NamedTuple):
    """`make()` gets ready; `device_peak()` is the peak memory of its device, None where that is the process's own."""

    make: Callable[[], Round]
    device_peak: Callable[[], int | None]


class Result(NamedTuple):
    """`first` is what the first round told, the one that compiles; `seconds` and `told` are of the rounds after it."""

    init_s: float
    first_s: float
    first: dict[str, float]
    seconds: list[float]
    told: list[dict[str, float]]
    peak_bytes: int

    def startup(self) -> dict[str, float]:
        """What is spent once: to get ready, to compile (what the first round takes longer), and memory."""
        return {
            'init_s': round(self.init_s, 1),
            'compile_s': round(self.first_s - statistics.median(self.seconds), 1),
            'peak_gib': round(self.peak_bytes / 2**30, 2),
        }


def race(contestants: dict[str, Contestant], rounds: int) -> dict[str, Result]:
    """Rounds in turn; one process at a time is awake. All run under the allocator that our commands start with:
    without it either side spends a part of its rounds on page faults, and a different one each time.

    Raises:
      ValueError: no rounds to time.
    """
    if rounds < 1:
        raise ValueError(f'a contest of {rounds} rounds has no times; ask for 1 or more')
    context = _processes()
    pipes: dict[str, Connection] = {}
    processes = []
    starts, rest = {}, {name: [] for name in contestants}
    for name, contestant in contestants.items():
        pipes[name], end = context.Pipe()
        processes.append(context.Process(target=_serve, args=(end, contestant), daemon=True))
        processes[-1].start()
        end.close()
        starts[name] = pipes[name].recv()
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            rest[name].append(pipe.recv())
    results = {}
    for name, pipe in pipes.items():
        pipe.send(False)
        init_s, first_s, first = starts[name]
        seconds, told = zip(*rest[name], strict=True)
        results[name] = Result(init_s, first_s, first, list(seconds), list(told), pipe.recv())
    for process in processes:
        process.join()  # what is measured next has the machine to itself
    return results


def _processes() -> SpawnContext:
    """Where processes come from that run under our allocator: the C library reads its setting as they start."""
    os.environ[SETTING] = ALLOCATOR
    return multiprocessing.get_context('spawn')


def _serve(pipe: Connection, contestant: Contestant) -> None:
    """The life of a contestant's process: the first round, then one for each message, then its peak memory."""
    start = time.perf_counter()
    play = contestant.make()
    init_s = time.perf_counter() - start
    pipe.send((init_s, *_timed(play)))
    while pipe.recv():
        pipe.send(_timed(play))
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    pipe.send(contestant.device_peak() or own)


def _timed(play: Round) -> tuple[float, dict[str, float]]:
    start = time.perf_counter()
    told = play()
    return time.perf_counter() - start, told


def jax_peak() -> int | None:
    import jax

    return (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')


def torch_peak() -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


def ratios(ours: Result, theirs: Result) -> dict[str, float]:
    """How many times faster we are: by the fastest rounds, and by the median over rounds. They agree where the machine
    is quiet; where they do not, neither is to be quoted."""
    rounds = [them / us for us, them in zip(ours.seconds, theirs.seconds, strict=True)]
    fastest = min(theirs.seconds) / min(ours.seconds)
    return {'fastest': round(fastest, 2), 'median': round(statistics.median(rounds), 2)}


def surroundings(*packages: str) -> dict[str, Any]:
    """What a number depends on besides the program: the machine's own limits, the allocator, versions."""
    with _processes().Pool(1) as pool:
        limits = pool.apply(machine.measure)
    return {
        'machine': limits,
        'malloc': ALLOCATOR,
        'versions': {name: importlib.metadata.version(name) for name in packages},
    }
