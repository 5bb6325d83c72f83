"""Memory that XLA frees on a CPU: the process keeps it, in huge pages, until it has grown large.

XLA's temporaries are fresh memory in every program, gigabytes of it. Faulting in their pages took a quarter of an
update, and half on a machine that runs other programs too. Programs of one kind fault in no pages where one heap is
never given back to the system. The programs of the next phase want other sizes and would find the heap in pieces. So
the process gives back the free pages at the end of a phase with a large heap, and around every long compilation.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from pathlib import Path

SETTING = 'GLIBC_TUNABLES'
ALLOCATOR = ':'.join(
    (
        'glibc.malloc.hugetlb=1',
        'glibc.malloc.arena_max=1',
        'glibc.malloc.mmap_max=0',
        f'glibc.malloc.trim_threshold={1 << 40}',
    )
)
# JAX reports the end of each of these stages.
STAGES = ('jaxpr_to_mlir_module_duration', 'backend_compile_duration')
LARGE_PROGRAM = 0.2  # seconds of a stage
LARGE_HEAP = 8 << 30  # bytes that the process holds


def keep_freed() -> None:
    """Start this command again under `ALLOCATOR`, unless the environment names another, and in Python's UTF-8 mode."""
    if sys.platform == 'linux' and SETTING not in os.environ:
        os.environ[SETTING] = ALLOCATOR
        # The libraries below Python take names of files to be UTF-8, whatever the locale.
        os.environ.setdefault('PYTHONUTF8', '1')
        # glibc reads the setting when a process starts and never again, so the command starts anew.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def peak_bytes() -> int:
    """The largest number of bytes that this process has had in memory."""
    if sys.platform != 'linux':
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # `ru_maxrss` begins with what the parent had used when it started this process.
    lines = Path('/proc/self/status').read_text(encoding='utf-8').splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith('VmHWM:'))


def give_back(beyond: int = 0) -> None:
    """Return the heap's free pages to the system, if the process holds more than `beyond` bytes."""
    if os.environ.get(SETTING) == ALLOCATOR and resident_bytes() > beyond:
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """The number of bytes that this process has in memory now. It is known on Linux alone."""
    return int(Path('/proc/self/statm').read_text(encoding='utf-8').split()[1]) * os.sysconf('SC_PAGE_SIZE')


def give_back_when_compiling() -> None:
    """Give free pages back, from now on, before and after a large program is compiled."""
    # A benchmark's peers have no need of JAX.
    import jax

    jax.monitoring.register_event_duration_secs_listener(_after_stage)


def _after_stage(event: str, duration_secs: float, **_: str | int) -> None:
    if event.endswith(STAGES) and duration_secs > LARGE_PROGRAM:
        give_back()
