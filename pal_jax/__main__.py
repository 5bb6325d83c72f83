"""The command `pal-jax`, which starts every command of the package.

pal-jax train --config=rlpa:smoke       the same as python -m pal_jax.train --config=rlpa:smoke
pal-jax train --help                    the options of a command
pal-jax train --config=rlpa --help      every key of a config: its value and its meaning
eval "$(pal-jax --completion)"          Tab completes commands and configs, in bash and in zsh after bashcompinit
"""

from __future__ import annotations

import ast
import difflib
import runpy
import sys
from pathlib import Path

import pal_jax
from pal_jax.run import interrupts, memory, named_files
from pal_jax.run.shipped import CONFIGS, LAUNCH, config_names

# The modules that are commands, in the order in which a newcomer meets them.
COMMANDS = {
    'train': 'pal_jax.train',
    'evaluate': 'pal_jax.commands.evaluate',
    'chat': 'pal_jax.commands.chat',
    'serve': 'pal_jax.commands.serve',
    'serve-training': 'pal_jax.commands.serve_training',
    'export': 'pal_jax.commands.export',
    'collect': 'pal_jax.commands.collect',
    'score': 'pal_jax.commands.score',
    'personalize': 'pal_jax.commands.personalize',
    'summarize': 'pal_jax.commands.summarize',
    'merge': 'pal_jax.commands.merge',
    'plan': 'pal_jax.commands.plan',
    'compare': 'pal_jax.commands.compare',
    'report': 'pal_jax.commands.report',
    'watch': 'pal_jax.commands.watch',
}
HELP = '-h', '--help', '-help', 'help'


def main() -> None:
    """Run the command that the first argument names with the other arguments."""
    interrupts.end_plainly()
    with interrupts.until_closed():
        _run()


def _run() -> None:
    # Without an argument the command shows its help.
    name, *arguments = sys.argv[1:] or ['--help']
    if name in HELP:
        show_help()
    elif name == '--version':
        print(pal_jax.__version__)
    elif name == '--completion':
        print(f'complete -o default -W "{" ".join([*COMMANDS, "--config=", "--workdir=", *config_names()])}" pal-jax')
    elif name in COMMANDS:
        if not set(arguments) & set(HELP) and (line := named_files.first_missing(arguments)):
            print(f'error: {line}', file=sys.stderr)
            sys.exit(2)
        # The allocator is set before the command imports jax.
        memory.keep_freed()
        sys.argv = [f'pal-jax {name}', *arguments]
        runpy.run_module(COMMANDS[name], run_name='__main__', alter_sys=True)
    elif name in config_names():
        print(f'error: {name} is a config, and no command; give pal-jax train --config={name}', file=sys.stderr)
        sys.exit(2)
    else:
        near = difflib.get_close_matches(name, COMMANDS, 1)
        hint = f'did you mean {near[0]}? ' if near else ''
        print(f'error: there is no command {name!r}; {hint}pal-jax --help lists them', file=sys.stderr)
        sys.exit(2)


def show_help() -> None:
    """Print the commands, the configs of the package and the folders that hold them."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False)
    console.print((__doc__ or '').strip(), soft_wrap=True)
    # Only the sources are read here: an import of every command would take seconds.
    package = Path(pal_jax.__file__).parents[1]
    files = {
        'command': {name: package / f'{module.replace(".", "/")}.py' for name, module in COMMANDS.items()},
        '--config=': {path.stem: path for path in sorted(CONFIGS.glob('[!_]*.py'))},
    }
    for head, paths in files.items():
        table = Table(head, '', box=box.SIMPLE_HEAD, pad_edge=False)
        for name, path in paths.items():
            table.add_row(name, first_sentence(path))
        console.print(table)
    console.print('A config of your own is a file: --config=my.py. Those above and launch scripts are in', end='\n\n')
    console.print(f'  {CONFIGS}\n  {LAUNCH}', soft_wrap=True)


def first_sentence(path: Path) -> str:
    """The first paragraph of a module's docstring, without importing the module."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
    return ' '.join(docstring.split('\n\n')[0].split())


if __name__ == '__main__':
    main()
