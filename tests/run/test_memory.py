"""Memory that a process on a CPU keeps, seen from outside: glibc reads its settings once, so each case is a process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pal_jax.run.memory import ALLOCATOR, SETTING

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='glibc is of Linux')

FREED = """
import ctypes, sys
import jax
from pal_jax.run import memory

def resident():
    return int(open('/proc/self/statm').read().split()[1]) * 4096 >> 20

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
blocks = [libc.malloc(64 << 20) for _ in range(4)]
fence = libc.malloc(64)  # what keeps the blocks below from being the heap's end
for block in blocks:
    ctypes.memset(ctypes.c_void_p(block), 1, 64 << 20)
full = resident()
for block in blocks:
    libc.free(ctypes.c_void_p(block))
memory.give_back_when_compiling()
memory.give_back(beyond=1 << 40)
figures = [full - resident()]
for seconds in (0.1, 10.0):
    jax.monitoring.record_event_duration_secs('/jax/core/compile/backend_compile_duration', seconds)
    figures.append(full - resident())
print(*figures)
"""


def python(code: str, **env: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != SETTING} | env
    return subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True, timeout=120
    ).stdout


@pytest.mark.parametrize(('env', 'told'), [({}, ALLOCATOR), ({SETTING: 'glibc.malloc.perturb=0'}, None)])
def test_a_command_starts_again_under_the_allocator_unless_told_of_another(env, told):
    code = f'import os; from pal_jax.run import memory; memory.keep_freed(); print(os.environ[{SETTING!r}])'
    assert python(code, **env).strip() == (told or env[SETTING])


@pytest.mark.slow
def test_a_command_starts_again_before_anything_slow_is_imported():
    environment = {k: v for k, v in os.environ.items() if k != SETTING} | {'PYTHONPROFILEIMPORTTIME': '1'}
    command = [sys.executable, '-m', 'pal_jax.train', '--help']
    imports = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120).stderr
    names = [line.split('|')[-1].strip() for line in imports.splitlines()]
    assert (names.count('pal_jax.run.memory'), names.count('jax')) == (2, 1), 'not started again, or too late'


def test_freed_memory_is_kept_until_a_large_program_is_compiled():
    kept, after_a_small_program, after_a_large_one = map(int, python(FREED, **{SETTING: ALLOCATOR}).split())
    assert kept < 64 and after_a_small_program < 64, 'freed memory went back to the system'
    assert after_a_large_one > 192, 'freed memory was kept'


def test_the_peak_is_of_the_process_and_not_of_the_one_that_started_it():
    child = 'from pal_jax.run import memory; print(memory.peak_bytes())'
    parent = f'import subprocess, sys; kept = b"1" * (1 << 30); subprocess.run([sys.executable, "-c", {child!r}])'
    assert 1 << 20 < int(python(parent)) < 1 << 28
