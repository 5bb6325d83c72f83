"""Whole runs within the process of a test: as `python -m pal_jax.train` makes them, but for the set-up of devices."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pal_jax.run import devices, loop
from pal_jax.run.metrics import read_records
from pal_jax.run.settings import Run


def run(monkeypatch, workdir: Path, settings: Run) -> int:
    """Train by settings and return the exit status."""
    monkeypatch.setattr(devices, 'initialize', lambda *_: None)  # the suite's own cache of programs
    return loop.train_all(settings, workdir)


def stop_once(monkeypatch, recipe: type) -> None:
    """Let SIGTERM arrive in the first step that a recipe of this class makes from now on."""
    original, wishes = recipe.step, [signal.SIGTERM]

    def step(self, state, host, i):
        monkeypatch.setattr(loop, 'agree', lambda stop, late: (wishes.pop() if wishes else 0, late))
        return original(self, state, host, i)

    monkeypatch.setattr(recipe, 'step', step)


def timeless(path: Path) -> list[Mapping[str, Any]]:
    """The records of a file of a run, without the times that two equal runs differ in."""
    return [{key: value for key, value in row.items() if not key.startswith('seconds_')} for row in read_records(path)]
