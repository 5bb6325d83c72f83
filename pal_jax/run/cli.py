"""Flags and errors that the entry points share. An error is one line that a person can act on."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from jax.errors import JaxRuntimeError
from rich.console import Console

from pal_jax.run import habits, interrupts, processes, stores
from pal_jax.run.config_files import settings_of
from pal_jax.run.faults import Fault, faults, one_line
from pal_jax.run.files import at_home
from pal_jax.run.keys import described
from pal_jax.run.outputs import check_file
from pal_jax.run.progress import print_anything
from pal_jax.run.settings import Run
from pal_jax.run.shipped import config_path, with_config

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; runs/<name of the config file> by default.')
OUTPUT = flags.DEFINE_string('output', None, 'What is written, of commands that write something.')
CONFIG = flags.DEFINE_string(
    'config', None, 'Configuration file, with :variant behind it; --config.<key>=<value> changes one value.'
)
CHANGES = flags.DEFINE_multi_string('config_changes', [], 'KEY=VALUE of each --config.KEY=VALUE.')
COORDINATOR = flags.DEFINE_string(
    'coordinator', os.environ.get('JAX_COORDINATOR_ADDRESS', ''), 'host:port of process 0, or auto.'
)
PROCESSES = flags.DEFINE_integer('processes', os.environ.get('JAX_NUM_PROCESSES'), 'How many processes train together.')
PROCESS = flags.DEFINE_integer('process', os.environ.get('JAX_PROCESS_ID'), 'Which of them this is, from 0.')
HELP = '-h', '--help', '-help'
# Characters of a line of a file: no table is cut.
WIDE = 10_000
# Seconds in which the roll call tells why a program of several processes failed, if one has died.
SETTLE = 3.0


def run(main: Callable[[], int | None], usage: str, *, needs_config: bool = True) -> None:
    """Parse the command line and call `main`, whose result is the exit status.

    A `Fault` becomes one line on stderr and an exit status, and so does a Ctrl-C that `main` does not take. Where
    several processes train together, a fault of one process ends them all. `usage` is the text of --help.
    """
    with interrupts.until_closed():
        _run(main, usage, needs_config)


def _run(main: Callable[[], int | None], usage: str, needs_config: bool) -> None:
    argv = sys.argv
    interrupts.raise_again()
    print_anything()
    if any(arg in HELP for arg in argv[1:]):
        print(usage.strip())
        _print_keys([arg for arg in argv if arg not in HELP])
        sys.exit(0)
    # Orbax tells of every file.
    logging.set_verbosity(logging.ERROR)
    try:
        _parse([argv[0], *with_config(faults(lambda: list(map(at_home, argv[1:]))))])
        if needs_config or flags.FLAGS['config'].present:
            settings()
        _check_bits()
        app.run(lambda _: _together(main), argv=argv[:1])
    except Fault as fault:
        # A reader that has closed the pipe is no fault.
        if isinstance(fault.__cause__, BrokenPipeError):
            raise fault.__cause__ from None
        if isinstance(fault.__cause__, JaxRuntimeError) and processes.joined():
            time.sleep(SETTLE)
        print(f'error: {stores.shown(fault)}', file=sys.stderr)
        sys.stderr.flush()
        processes.leave(str(fault), fault.code)
        sys.exit(fault.code)
    except KeyboardInterrupt:
        print(interrupts.SAID, file=sys.stderr, flush=True)
        processes.leave(interrupts.SAID, interrupts.STATUS)
        sys.exit(interrupts.STATUS)


def _print_keys(argv: Sequence[str]) -> None:
    """Print every key of the config that the command line names, with its value and its meaning."""
    if not any(re.match(r'--?config([=.]|$)', arg) for arg in argv[1:]):
        return
    try:
        _parse(with_config(argv))
        print('\nKeys with their values and meanings:', *described(settings()), sep='\n')
    except Fault as fault:
        print(f'error: {fault}', file=sys.stderr)
        sys.exit(fault.code)


def _together(main: Callable[[], int | None]) -> int | None:
    """Call `main` and leave at the same time as the other processes. The result is that of `main`."""
    try:
        code = main()
        # A command that has named no store starts no device here.
        if stores.ROOT.exists() and jax.process_index() == 0:
            faults(stores.push_all)
    except Exception as error:
        _of_devices(error)
        # An error of the program, which Python shows where there is one process.
        if not isinstance(error, Fault):
            if processes.joined():
                traceback.print_exc()
            processes.leave(f'{type(error).__name__}: {one_line(error)}', 1)
        raise
    processes.finish()
    return code


def _check_bits() -> None:
    """Raise Fault where jax is to compute in 64 bits, which no program of this package does."""
    if jax.config.read('jax_enable_x64'):
        raise Fault('JAX_ENABLE_X64 is set, and everything here computes in 32 bits or fewer; unset it')


def _of_devices(error: Exception) -> None:
    """Raise Fault where jax has not found the devices that it was to use."""
    frames = traceback.extract_tb(error.__traceback__)
    if not any(frame.name == 'backends' and frame.filename.endswith('xla_bridge.py') for frame in frames):
        return
    platforms = os.environ.get('JAX_PLATFORMS', '')
    # The error of jax may be a bare assertion, without a text.
    reason = f' ({one_line(error)})' if str(error) else ''
    raise Fault(
        f'JAX_PLATFORMS={platforms}: there is no such device, or its plugin is not installed{reason}; unset it, or '
        "install the plugin, such as pip install 'pal_jax[cuda]'",
        1,
    ) from None


def _parse(argv: Sequence[str]) -> None:
    """Parse the flags. Raises Fault where a flag or its value is wrong."""
    try:
        positional = flags.FLAGS([_change_of(argument) for argument in argv])
    except flags.UnrecognizedFlagError as error:
        # `CONFIG.value` cannot be read before all flags are.
        line, hint, config = one_line(error), habits.hint(error.flagname), flags.FLAGS['config'].value
        if error.flagname == 'source' and not config:
            hint = '; here the run is --workdir=FOLDER'
        if not hint and config and 'Did you mean' not in line:
            hint = f'; a key of the config is written --config.{error.flagname}=VALUE'
        if hint:
            # A name that is known elsewhere leaves no need to guess.
            line = line.partition('. Did you mean')[0]
        raise Fault(line + hint) from None
    except (flags.Error, ValueError) as error:
        raise Fault(one_line(error)) from None
    if positional[1:]:
        word = positional[1]
        option = f'write --config={word}' if config_path(word) != word else 'every option is written --name=value'
        raise Fault(f'unexpected argument {word!r}; {option}')


def _change_of(argument: str) -> str:
    """An argument of the command line, with `--config.KEY=VALUE` as a value of the flag that keeps all of these."""
    if not (key := re.match(r'--?config\.([^=]*)', argument)):
        return argument
    if '=' not in argument:
        raise Fault(f'{argument} has no value; write {argument}=VALUE')
    return f'--config_changes={key[1]}{argument[key.end() :]}'


def settings() -> Run:
    """The settings that the command line gives. A method of stages has one `Settings` for all of them.

    Raises:
      Fault: the config cannot be had, or a value is wrong.
    """
    if CONFIG.value is None:
        raise Fault('no configuration; give one, such as --config=rlpa or a file --config=my.py')
    return settings_of(CONFIG.value, tuple(CHANGES.value))


def _check_letters(flag: str, name: str) -> None:
    """Raise Fault where a name has bytes that are no UTF-8."""
    try:
        # Python keeps such bytes as half surrogate pairs, and the libraries that write files refuse or change these.
        name.encode()
    except UnicodeEncodeError:
        raise Fault(f'--{flag}={name} is not UTF-8; rename the folder, or give another') from None


def output(default: str = '', *, file: bool = False) -> Path:
    """The place that --output names, or `default` without the flag.

    Raises:
      Fault: the name is empty, or `file` is True and the name is that of a folder.
    """
    name = default if OUTPUT.value is None else OUTPUT.value
    if not name:
        raise Fault('nothing to write to; give a place with --output=NAME')
    _check_letters('output', name)
    if file and name.endswith('/'):
        raise Fault(f'--output={name} is a folder; give the name of a file')
    return Path(name)


def output_file() -> Path | None:
    """The new file that --output names, None without the flag. Raises Fault as `output`, or where the file exists."""
    if OUTPUT.value is None:
        return None
    faults(check_file, path := output(file=True))
    return path


def print_json(record: Mapping[str, Any]) -> None:
    """Print a record as a line of JSON."""
    # Letters beyond ASCII are escaped where the terminal is not UTF-8.
    print(json.dumps(record, ensure_ascii=(sys.stdout.encoding or 'utf-8').lower() != 'utf-8'))


def workdir() -> Path:
    """The folder that --workdir names, by default runs/<config>[-<variant>]."""
    if WORKDIR.value == '':
        raise Fault('--workdir= names no folder; give one, or leave it out')
    _check_letters('workdir', WORKDIR.value or '')
    if '://' in (WORKDIR.value or ''):
        raise Fault(
            f'--workdir={WORKDIR.value} is neither in gs:// nor in a file system; mount the bucket and name that folder'
        )
    if WORKDIR.value:
        if Path(WORKDIR.value).is_file():
            raise Fault(f'--workdir={WORKDIR.value} is a file; give a folder')
        return Path(WORKDIR.value)
    return Path('runs') / name().replace(':', '-')


def name() -> str:
    """The config that the command line names, without folder and ending, with its variant: `pal:smoke`."""
    path, _, variant = (CONFIG.value or '').partition(':')
    # Settings behind the variant, as in `:smoke,stage=policy`, are no part of the name.
    variant = ','.join(part for part in variant.split(',') if '=' not in part)
    return Path(path).stem + (f':{variant}' if variant else '')


def place() -> processes.Place | None:
    """The place of this process among several, by --coordinator, --processes and --process or by the environment.

    None where this is the only process.
    """
    return processes.locate(COORDINATOR.value, PROCESSES.value, PROCESS.value)


def console() -> Console:
    """A console on standard output."""
    # Where the output is no terminal, its width is unknown, and tables are written whole.
    width_known = sys.stdout.isatty() or 'COLUMNS' in os.environ
    return Console(width=None if width_known else WIDE)
