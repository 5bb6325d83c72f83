"""Commands as a shell runs them, without the seconds in which every one of them imports the same libraries."""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess

ROOT = Path(__file__).parents[1]
# How XLA compiles in this session; a user's command has one device, not the eight that `conftest.py` adds.
FLAGS = os.environ.get('XLA_FLAGS', '').partition(' --xla_force_host_platform_device_count')[0]
PLAIN = {'JAX_PLATFORMS': 'cpu', 'GLIBC_TUNABLES': '', 'XLA_FLAGS': FLAGS}  # what a command's environment has

# A process that has imported what all commands import and forks for every one. No device is started before the fork.
PARENT = """
import json, os, runpy, signal, sys, traceback, warnings
import pal_jax.run.cli, pal_jax.decode.serve.http, pal_jax.recipes.rlpa.recipe, pal_jax.run.report, pal_jax.run.verdict

def child(module, flags, environment, folder):
    signal.alarm(300)  # ends a command that hangs
    os.environ.clear()
    os.environ.update(environment)
    for number, name, mode in ((0, 'in', 'r'), (1, 'out', 'w'), (2, 'err', 'w')):
        with open(f'{folder}/{name}', mode) as file:
            os.dup2(file.fileno(), number)
    sys.argv = [module, *flags]
    code = 0
    try:
        runpy.run_module(module, run_name='__main__', alter_sys=True)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

for line in sys.stdin:
    order = json.loads(line)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # jax warns of forks, which do harm where its devices are started
        pid = os.fork()
    if not pid:
        child(*order)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@functools.cache
def parent() -> subprocess.Popen[str]:
    """The process that forks; it ends with this one."""
    environment = os.environ | {'JAX_PLATFORMS': 'cpu', 'GLIBC_TUNABLES': ''}
    line, pipe = [sys.executable, '-c', PARENT], subprocess.PIPE
    process = subprocess.Popen(line, cwd=ROOT, env=environment, text=True, stdin=pipe, stdout=pipe)
    atexit.register(process.communicate)
    return process


def run(module: str, *flags: str, text: str = '', environment: Mapping[str, str] = os.environ) -> CompletedProcess[str]:
    """`python -m <module> <flags>` from the root of the checkout, with `text` on its standard input."""
    process = parent()
    assert process.stdin is not None and process.stdout is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / 'in').write_text(text, encoding='utf-8')
        process.stdin.write(json.dumps([module, flags, {**environment, **PLAIN}, name]) + '\n')
        process.stdin.flush()
        code = int(process.stdout.readline())
        out, err = ((folder / part).read_text(encoding='utf-8') for part in ('out', 'err'))
    return CompletedProcess([module, *flags], code, out, err)


def refusal(module: str, *flags: str) -> str:
    """The one line with which a command refuses what it is given."""
    done = run(module, *flags)
    assert (done.returncode, done.stderr.count('\n')) == (2, 1), done.stderr
    assert done.stderr.startswith('error: ')
    return done.stderr
