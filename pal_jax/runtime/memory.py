"""What a process on a CPU does with memory that XLA frees: keeps it, in huge pages, until a new program is compiled.

XLA's temporaries are fresh memory at every step, gigabytes of it. Faulting in their pages took a quarter of a training
step, and half on a machine that runs other programs too. From one heap that is not given back to the system between
steps, a step faults in none. A new program wants other sizes and would find the heap in pieces, so around every long
compilation the heap gives back what is free.
"""

from __future__ import annotations

import ctypes
import os
import sys

import jax

SETTING = 'GLIBC_TUNABLES'
ALLOCATOR = ':'.join((
    'glibc.malloc.hugetlb=1',
    'glibc.malloc.arena_max=1',
    'glibc.malloc.mmap_max=0',
    f'glibc.malloc.trim_threshold={1 << 40}',
))  # fmt: skip
STAGES = ('jaxpr_to_mlir_module_duration', 'backend_compile_duration')  # jax tells of the end of each
LARGE_PROGRAM = 0.2  # seconds of a stage


def keep_freed() -> None:
    """Starts this command again under `ALLOCATOR`, unless the environment names another.

    glibc reads it when a process starts and never again.
    """
    if sys.platform == 'linux' and SETTING not in os.environ:
        os.environ[SETTING] = ALLOCATOR
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def give_back_when_compiling() -> None:
    """From now on the heap's free pages are given back before and after a large program is compiled."""
    if os.environ.get(SETTING) == ALLOCATOR:
        jax.monitoring.register_event_duration_secs_listener(_give_back)


def _give_back(event: str, duration_secs: float, **_: str | int) -> None:
    if event.endswith(STAGES) and duration_secs > LARGE_PROGRAM:
        ctypes.CDLL(None).malloc_trim(0)
