"""A contestant's process: gets ready, takes its first round, then one for each line that it reads.

Started by `contest.py`, under the interpreter that has what it needs. Its messages are lines of JSON: first what to
make, then what was made and the first round, then the rounds, and at the end of its input the peak memory.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import pkgutil
import sys
import time
from collections.abc import Callable
from typing import Any

from pal_jax.run import memory

Round = Callable[[], dict[str, float]]  # takes one round and returns what it has to tell; it is over when it returns


def play() -> None:
    pipe = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)  # what libraries print is no message

    def tell(**message: Any) -> None:
        pipe.write(json.dumps(message) + '\n')

    order = json.loads(sys.stdin.readline())
    start = time.perf_counter()
    try:
        take = pkgutil.resolve_name(order['make'])(**order['settings'])
    except ImportError as error:
        return tell(absent=str(error))
    init_s = time.perf_counter() - start
    tell(init_s=init_s, versions={name: importlib.metadata.version(name) for name in order['packages']}, **timed(take))
    for _ in sys.stdin:
        tell(**timed(take))
    return tell(peak_bytes={'jax': jax_peak, 'torch': torch_peak}[order['library']]() or memory.peak_bytes())


def timed(take: Round) -> dict[str, Any]:
    start = time.perf_counter()
    figures = take()
    return {'seconds': time.perf_counter() - start, 'figures': figures}


def jax_peak() -> int | None:
    """The peak bytes of the device's memory; None where that is the process's own."""
    import jax

    return (jax.local_devices()[0].memory_stats() or {}).get('peak_bytes_in_use')


def torch_peak() -> int | None:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


if __name__ == '__main__':
    play()
