"""The summary of a run in numbers: the rise of the reward, the seconds that it took, and the machine."""

from __future__ import annotations

import collections
import datetime
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pal_jax.run import memory
from pal_jax.run.files import read_object, write_whole
from pal_jax.run.metrics import EVALS, METRICS, plain, read_records

SUMMARY = 'summary.json'
PACKAGES = ('pal_jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'transformers', 'numpy', 'scipy', 'xlogit')

Record = Mapping[str, Any]


def summarize(workdir: str | os.PathLike[str], extra: Record | None = None) -> dict[str, Any]:
    """Write `summary.json` of a run, and return it. The process that trained calls it, for devices and peak memory.

    Args:
      workdir: the run's folder.
      extra: further entries, such as `{'config': ...}`; they replace entries of the same names.
    """
    rows, evals = read_records(Path(workdir, METRICS)), read_records(Path(workdir, EVALS))
    day = {'day': datetime.date.today().isoformat()}
    summary = headline(rows, evals) | day | machine() | dict(extra or {})
    write_whole(Path(workdir, SUMMARY), json.dumps(plain(summary), indent=2) + '\n')
    return summary


def read_summary(workdir: Path) -> Record:
    """The summary that a run has written; empty before its end."""
    return read_object(path) if (path := workdir / SUMMARY).exists() else {}


def headline(rows: Sequence[Record], evals: Sequence[Record] = ()) -> dict[str, Any]:
    """The main figures of a run's files: the reward's rise in its main part, evaluations by stage, and wall seconds."""
    main = main_part(rows)
    seconds = seconds_by_phase([*rows, *evals])
    return {
        'steps': len(rows),
        'phase': main[-1]['phase'] if main else None,
        'reward': fifths(main, 'reward') if finite_values(main, 'reward') else None,
        'format': fifths(main, 'format') if finite_values(main, 'format') else None,
        'evaluations': {stage: figures(record) for stage, record in by_stage(evals).items()},
        'seconds': seconds,
        'seconds_total': sum(seconds.values()),
    }


def main_part(rows: Sequence[Record]) -> list[Record]:
    """The records of the phase that a run ends in, without those of a warm-up before it."""
    return [row for row in rows if row['phase'] == rows[-1]['phase']]


def by_stage(evals: Iterable[Record]) -> dict[str, Record]:
    """The evaluations by name: base, warm-up, step 10, ..., final."""
    # The last of several with one name counts.
    return {f'step {record["step"]}' if record['stage'] == 'step' else record['stage']: record for record in evals}


def finite_values(rows: Iterable[Record], key: str) -> list[float]:
    """The finite values of a metric, in the order of the records."""
    return [float(row[key]) for row in rows if isinstance(row.get(key), int | float) and math.isfinite(row[key])]


def fifths(rows: Sequence[Record], key: str) -> dict[str, Any]:
    """The mean of a metric over the first and over the last fifth of the steps, and the gain from one to the other.

    Neither has a standard error: steps of one run resemble those before them, as their policy, users and conversations
    go on. Errors are over people, in an evaluation, or over seeds (`commands/compare.py`).

    Raises:
      ValueError: no row has a finite value.
    """
    values = finite_values(rows, key)
    if not values:
        raise ValueError(f'{key}: none of {len(rows)} rows has a finite value; has the run made a step of this phase?')
    size = max(1, len(values) // 5)
    first, last = float(np.mean(values[:size])), float(np.mean(values[-size:]))
    return {'first': first, 'last': last, 'gain': last - first, 'steps_each': size}


def seconds_by_phase(records: Iterable[Record]) -> dict[str, float]:
    """Wall seconds by phase over all steps and evaluations, longest first, those before a restart included."""
    total = collections.Counter[str]()
    for record in records:
        for key, value in record.items():
            if key.startswith('seconds_') and value is not None:
                total[key.removeprefix('seconds_')] += value
    return dict(total.most_common())


def figures(record: Record) -> dict[str, Any]:
    """The numbers and lists of numbers of a record, without its step and timings."""
    lists = {key: value for key, value in record.items() if isinstance(value, list)}
    return scalars(record) | lists


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a record, without its step and timings."""
    return {
        key: value
        for key, value in record.items()
        if isinstance(value, int | float) and key != 'step' and not key.startswith('seconds_')
    }


def machine() -> dict[str, Any]:
    """The devices, the versions of packages, and the peak memory of this process in bytes."""
    devices = jax.devices()
    return {
        'devices': {'platform': devices[0].platform, 'kind': devices[0].device_kind, 'count': len(devices)},
        'processes': jax.process_count(),
        'host': {'system': platform.platform(terse=True), 'machine': platform.machine(), 'cores': os.cpu_count()},
        'versions': {'python': platform.python_version()} | {name: _version(name) for name in PACKAGES},
        'peak_memory_bytes': {'host': memory.peak_bytes(), 'device': _peak_device_bytes()},
    }


def _version(package: str) -> str | None:
    if package == 'pal_jax':
        # The repository also runs without being installed.
        from pal_jax import __version__

        return __version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _peak_device_bytes() -> int | None:
    """The most bytes used on any device of this process; None where a platform (the CPU) does not count them."""
    counts = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((count['peak_bytes_in_use'] for count in counts if 'peak_bytes_in_use' in count), default=None)
