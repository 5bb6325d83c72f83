"""Flags and errors that the entry points share. An error is one line that a person can act on."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from jax.errors import JaxRuntimeError
from ml_collections import ConfigDict, config_flags
from rich.console import Console

from pal_jax.run import checkpoint, inputs, interrupts, processes
from pal_jax.run.files import at_home
from pal_jax.run.forecast import spoken
from pal_jax.run.keys import described
from pal_jax.run.outputs import check_file
from pal_jax.run.progress import print_anything
from pal_jax.run.runs import read_config, recipe_module
from pal_jax.run.settings import Run, parse
from pal_jax.run.shipped import config_names, with_config
from pal_jax.run.workdir import check_workdir

WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of the run; runs/<name of the config file> by default.')
OUTPUT = flags.DEFINE_string('output', None, 'What is written, of commands that write something.')
CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'Configuration file, with :variant behind it; --config.<key>=<value> changes one value.',
    lock_config=True,
)  # fmt: skip
COORDINATOR = flags.DEFINE_string(
    'coordinator', os.environ.get('JAX_COORDINATOR_ADDRESS', ''), 'host:port of process 0, or auto.'
)
PROCESSES = flags.DEFINE_integer('processes', os.environ.get('JAX_NUM_PROCESSES'), 'How many processes train together.')
PROCESS = flags.DEFINE_integer('process', os.environ.get('JAX_PROCESS_ID'), 'Which of them this is, from 0.')
HELP = '-h', '--help', '-help'
QUOTES = '\\\'" '
WIDE = 10_000  # characters of a line of a file: no table is cut
MAY_CHANGE = (  # keys of any run that may change when it goes on; a recipe has further ones in its `MAY_CHANGE`
    'total_steps', 'checkpoint.every', 'checkpoint.minutes', 'checkpoint.keep', 'mesh.data', 'mesh.fsdp', 'mesh.tensor',
    'decode.shares', 'decode.driver', 'decode.address', 'metrics.wandb', 'export', 'eval.every', 'answers',
    'endpoints.*.address', 'endpoints.*.key_env', 'endpoints.*.concurrency', 'endpoints.*.timeout',
    'endpoints.*.retries', 'endpoints.*_price',
)  # fmt: skip
SETTLE = 3.0  # seconds in which the roll call tells why a program of several processes failed, if one has died


class Fault(Exception):
    """A wrong input, or a failure outside the program such as a full disk. It is shown as one line.

    `code` is the exit status: 2 for a wrong input, 1 for a failure.
    """

    def __init__(self, message: str, code: int = 2):
        super().__init__(message)
        self.code = code


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
    logging.set_verbosity(logging.ERROR)  # Orbax tells of every file
    try:
        _parse([argv[0], *with_config(list(map(at_home, argv[1:])))])
        if needs_config or flags.FLAGS['config'].present:
            _find_config()
            _expand(CONFIG.value)
        _check_bits()
        app.run(lambda _: _together(main), argv=argv[:1])
    except Fault as fault:
        if isinstance(fault.__cause__, BrokenPipeError):
            raise fault.__cause__ from None
        if isinstance(fault.__cause__, JaxRuntimeError) and processes.joined():
            time.sleep(SETTLE)
        print(f'error: {fault}', file=sys.stderr)
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
        _find_config()
        print('\nKeys with their values and meanings:', *described(settings()), sep='\n')
    except Fault as fault:
        print(f'error: {fault}', file=sys.stderr)
        sys.exit(fault.code)


def _together(main: Callable[[], int | None]) -> int | None:
    """Call `main` and leave at the same time as the other processes. The result is that of `main`."""
    try:
        code = main()
    except Exception as error:
        _of_devices(error)
        if not isinstance(error, Fault):  # an error of the program, which Python shows where there is one process
            if processes.joined():
                traceback.print_exc()
            processes.leave(f'{type(error).__name__}: {_one_line(error)}', 1)
        raise
    processes.finish()
    return code


def _check_bits() -> None:
    """Raise Fault where jax is to compute in 64 bits, which no program of this package does."""
    if jax.config.read('jax_enable_x64'):
        raise Fault('JAX_ENABLE_X64 is set, and everything here computes in 32 bits or fewer; unset it')


def _of_devices(error: Exception) -> None:
    """Raise Fault where jax has not found the devices that it was to use. Its own error may be a bare assertion."""
    frames = traceback.extract_tb(error.__traceback__)
    if not any(frame.name == 'backends' and frame.filename.endswith('xla_bridge.py') for frame in frames):
        return
    platforms = os.environ.get('JAX_PLATFORMS', '')
    reason = f' ({_one_line(error)})' if str(error) else ''
    raise Fault(
        f'JAX_PLATFORMS={platforms}: there is no such device, or its plugin is not installed{reason}; unset it, or '
        "install the plugin, such as pip install 'pal_jax[cuda]'",
        1,
    ) from None


def _parse(argv: Sequence[str]) -> None:
    """Parse the flags. Raises Fault where a flag, its value or the config file is wrong."""
    try:
        positional = flags.FLAGS(argv)
    except Exception as error:  # a config file is a program, which may raise anything
        _of_config_file(argv, error)
        if not isinstance(error, flags.Error | AttributeError | KeyError | ValueError | TypeError):
            raise
        raise Fault(_one_line(error)) from None
    if positional[1:]:
        raise Fault(f'unexpected argument {positional[1]!r}; every option is written --name=value')


def _of_config_file(argv: Sequence[str], error: Exception) -> None:
    """Raise Fault where the config file itself failed, with its line, and where the file defines no get_config."""
    argument = next((arg.partition('=')[2] for arg in argv if re.match(r'--?config=', arg)), '')
    path = Path(argument.partition(':')[0])
    if not path.is_file():
        return
    if isinstance(error, AttributeError) and error.name == 'get_config':
        raise Fault(f'{path} must define get_config() in Python, as configs/rlpa.py does') from None
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).absolute() == path.absolute()]
    if isinstance(error, SyntaxError) and Path(error.filename or path).absolute() == path.absolute():
        lines = [error.lineno or 1]
    if lines and not isinstance(error, ValueError):  # a config file raises ValueError for a wrong variant
        kind = type(error).__name__
        raise Fault(f'{path}, line {lines[-1]}: {kind}, {_one_line(error)}; mend the config file') from None


def _find_config() -> None:
    """Raise Fault where --config names no file, or a file whose get_config() returns no config of a recipe."""
    flag = flags.FLAGS['config']
    if CONFIG.value is None and not flag.present:
        raise Fault('no configuration; give one, such as --config=rlpa or a file --config=my.py')
    path = config_flags.get_config_filename(flag).partition(':')[0]
    if not Path(path).is_file():
        raise Fault(f'there is no configuration file {path}; give one, or a name: {", ".join(config_names())}')
    if not isinstance(CONFIG.value, ConfigDict) or 'recipe' not in CONFIG.value:
        raise Fault(f'{path}: get_config() must return an ml_collections.ConfigDict that has a recipe; see configs/')


def _expand(config: ConfigDict) -> None:
    """Put the home folder in place of `~` in every path of a config, in all its sections and lists."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            _expand(value)
        elif isinstance(value, str) and at_home(value) != value:
            config[key] = at_home(value)
        elif isinstance(value, list | tuple):
            config[key] = type(value)(at_home(item) if isinstance(item, str) else item for item in value)


def _check_letters(flag: str, name: str) -> None:
    """Raise Fault where a name has bytes that are no UTF-8.

    Python keeps such bytes as half surrogate pairs, and the libraries that write files refuse or change these.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise Fault(f'--{flag}={name} is not UTF-8; rename the folder, or give another') from None


def config() -> ConfigDict:
    """The config that the command line names, with the values that it changes."""
    return CONFIG.value


def settings() -> Run:
    """The settings that the command line gives. A method with stages has one `Settings` for all of them."""
    return faults(parse, faults(recipe_module, config()).Settings, config())


def config_of(folder: Path) -> ConfigDict:
    """The config of the run in a folder: that of the stage which has this folder, or else the command line's."""
    stages = getattr(recipe_module(config()), 'stages', None)
    planned = stages(settings(), folder.parent) if stages else []
    return next((stage for stage, place in planned if place == folder), config())


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
    """Print a record as a line of JSON. Letters beyond ASCII are escaped where the terminal is not UTF-8."""
    print(json.dumps(record, ensure_ascii=(sys.stdout.encoding or 'utf-8').lower() != 'utf-8'))


def workdir() -> Path:
    """The folder that --workdir names, by default runs/<config>[-<variant>].

    Settings behind the variant, as in `:smoke,stage=policy`, are no part of the folder's name.
    """
    if WORKDIR.value == '':
        raise Fault('--workdir= names no folder; give one, or leave it out')
    _check_letters('workdir', WORKDIR.value or '')
    if '://' in (WORKDIR.value or ''):
        raise Fault(
            f'--workdir={WORKDIR.value} is not a folder of a file system; mount the bucket and name that folder'
        )
    if WORKDIR.value:
        if Path(WORKDIR.value).is_file():
            raise Fault(f'--workdir={WORKDIR.value} is a file; give a folder')
        return Path(WORKDIR.value)
    path, _, variant = config_flags.get_config_filename(flags.FLAGS['config']).partition(':')
    variant = ','.join(part for part in variant.split(',') if '=' not in part)
    name = Path(path).stem
    return Path('runs') / (f'{name}-{variant}' if variant else name)


def may_change(config: ConfigDict, place: Path) -> tuple[str, ...]:
    """The keys that may differ between two calls of the run in the folder `place`.

    They are the keys of `MAY_CHANGE` here and in the recipe. The run of a stage may also change the keys whose values
    name files of another stage: these lie beside the run, and both folders may have been moved together.
    """
    of_method = getattr(recipe_module(config), 'MAY_CHANGE', ())
    if 'stage' not in config:
        return *MAY_CHANGE, *of_method
    folder, values = f'{place.parent}/', checkpoint.flatten(config.to_dict())
    return *MAY_CHANGE, *of_method, *(key for key, value in values.items() if folder in str(value))


def runs() -> Iterator[tuple[ConfigDict, Path]]:
    """The config and the folder of each run to make: one run, or the unfinished stages of a recipe in their order.

    Each stage has a folder inside the run's.

    Raises:
      Fault: a stage began with another config or other input files, or a folder cannot be a run's.
    """
    config_of_all, folder = config(), workdir()
    stages = getattr(faults(recipe_module, config_of_all), 'stages', None)
    if stages is None:
        yield config_of_all, folder
        return
    planned = faults(stages, settings(), folder)
    for stage, place in planned:
        faults(check_workdir, place)
        faults(checkpoint.check_config, place, stage.to_dict(), faults(may_change, stage, place))
        faults(inputs.compare, inputs.look(stage.to_dict()), place)
    began = time.monotonic()
    for number, (stage, place) in enumerate(planned, 1):
        if finished(stage, place):
            print(f'{place} is finished')
        else:
            if len(planned) > 1:
                print(f'part {number} of {len(planned)}: {place}')
            yield stage, place
    if len(planned) > 1:
        print(f'all {len(planned)} parts are finished, after {spoken(time.monotonic() - began)} in this call')


def finished(config: ConfigDict, folder: Path) -> bool:
    """True where the run of this config is complete, that is, has its report. A run that goes on deletes its report."""
    from pal_jax.run.report import REPORT  # matplotlib takes a second to import

    return (folder / REPORT).exists() and read_config(str(folder)).total_steps == config.total_steps


def place() -> processes.Place | None:
    """The place of this process among several, by --coordinator, --processes and --process or by the environment.

    None where this is the only process.
    """
    return processes.locate(COORDINATOR.value, PROCESSES.value, PROCESS.value)


def faults(call: Callable, *args, **kwargs):
    """The result of `call(...)`, whose errors become faults.

    A ValueError ends the program with exit status 2, a RuntimeError or OSError with 1. PAL_JAX_TRACEBACK=1 in the
    environment lets the errors through, so that Python shows where they come from.
    """
    try:
        return call(*args, **kwargs)
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get('PAL_JAX_TRACEBACK'):
            raise
        wrong_input = isinstance(error, ValueError)
        hint = '' if wrong_input else ' (PAL_JAX_TRACEBACK=1 shows where)'
        raise Fault(_one_line(error) + hint, 2 if wrong_input else 1) from error


def console() -> Console:
    """A console on standard output. Where that is no terminal, its width is unknown, and tables are written whole."""
    width_known = sys.stdout.isatty() or 'COLUMNS' in os.environ
    return Console(width=None if width_known else WIDE)


def _one_line(error: Exception) -> str:
    """The message of an error on one line. Where a library has put a traceback into the message, its last line."""
    # An OSError's first argument is its number; of a KeyError, `str` is quoted.
    message = str(error.args[0] if error.args and not isinstance(error, OSError) else error)
    if 'Traceback (most recent call last)' in message:
        message = message.strip().splitlines()[-1].partition(': ')[2]
    lacks = isinstance(error, KeyError) or (error.args and isinstance(error.args[0], KeyError))
    if lacks:  # ml_collections quotes the key, and then its message
        name, *hint = re.split(r'\\n|\n', message)
        message = '; '.join([f'unknown key {name.strip(QUOTES)}', *(text.strip(QUOTES).lower() for text in hint)])
    return ' '.join(message.split())
