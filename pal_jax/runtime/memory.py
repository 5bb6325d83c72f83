"""What a process on a CPU does with memory that XLA frees: keeps it, in huge pages, until that is much.

XLA's temporaries are fresh memory in every program, gigabytes of it. Faulting in their pages took a quarter of an
update, and half on a machine that runs other programs too. From one heap that is not given back to the system, programs
of one kind fault in none. Those of the next phase want other sizes and would find the heap in pieces, so at the end of
a phase in which it has grown large, and around every long compilation, it gives back what is free.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

SETTING = 'GLIBC_TUNABLES'
ALLOCATOR = ':'.join((
    'glibc.malloc.hugetlb=1',
    'glibc.malloc.arena_max=1',
    'glibc.malloc.mmap_max=0',
    f'glibc.malloc.trim_threshold={1 << 40}',
))  # fmt: skip
STAGES = ('jaxpr_to_mlir_module_duration', 'backend_compile_duration')  # jax tells of the end of each
LARGE_PROGRAM = 0.2  # seconds of a stage
LARGE_HEAP = 8 << 30  # bytes that the process holds


def keep_freed() -> None:
    """Starts this command again under `ALLOCATOR`, unless the environment names another, and in Python's UTF-8 mode.

    glibc reads it when a process starts and never again. Names of files are UTF-8 below Python, whatever the locale.
    """
    if sys.platform == 'linux' and SETTING not in os.environ:
        os.environ[SETTING] = ALLOCATOR
        os.environ.setdefault('PYTHONUTF8', '1')
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def peak_bytes() -> int:
    """The most memory this process has used."""
    if sys.platform != 'linux':
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # `ru_maxrss` begins with what the parent had used when it started this process.
    lines = Path('/proc/self/status').read_text(encoding='utf-8').splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith('VmHWM:'))


def give_back(beyond: int = 0) -> None:
    """Returns the heap's free pages to the system, if the process holds more than so many bytes."""
    if os.environ.get(SETTING) == ALLOCATOR and resident_bytes() > beyond:
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """What this process holds now; on Linux alone."""
    return int(Path('/proc/self/statm').read_text(encoding='utf-8').split()[1]) * os.sysconf('SC_PAGE_SIZE')


def give_back_when_compiling() -> None:
    """From now on free pages are given back before and after a large program is compiled."""
    import jax  # a benchmark's peers have no need of it

    jax.monitoring.register_event_duration_secs_listener(_after_stage)


def _after_stage(event: str, duration_secs: float, **_: str | int) -> None:
    if event.endswith(STAGES) and duration_secs > LARGE_PROGRAM:
        give_back()
