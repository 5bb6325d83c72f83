"""The house rules of docs/architecture.md, read off the source: who imports whom, sizes, names, doors."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'pal_jax'

# Down only: a room may import from floors below its own, and from itself. Rooms of one floor do not see each other.
# Two files of models/ lie lower than their room: they only describe, for all that comes above. runtime/memory.py and
# runtime/interrupts.py are of the standard library, for a command imports them before jax.
FLOORS = (
    {'runtime/memory', 'runtime/interrupts'},
    {'__init__'},
    {'types', 'models/config', 'models/params'},
    {'objectives', 'runtime'},
    {'data'},
    {'models'},
    {'decode'},
    {'feedback'},
    {'learners', 'envs'},
    {'evals'},
    {'parts'},
    {'recipes'},
    {'presets', 'cli', 'planning'},
    {'talking', 'scoring'},
    {'train'},
    {
        'evaluate',
        'export',
        'serve',
        'chat',
        'collect',
        'summarize',
        'personalize',
        'score',
        'plan',
        'merge',
        '__main__',
    },
)
PURE = {
    'jax',
    'jaxtyping',
    'optax',
    'flax',
    'numpy',
    'pal_jax',
}  # all that objectives/ may import, and the standard library
LAZY = {
    'jetstream': {'decode/jetstream/engine.py'},
    'tensorflow': set(),
    'tensorflow_datasets': {'data/records.py'},
    'pyarrow': {'data/records.py'},
    'gguf': {'models/gguf.py', 'models/sources.py', 'data/tokenizer.py'},
    'openai': {'feedback/endpoint.py'},
    'textstat': {'feedback/rules.py'},
    'wandb': set(),
    'torch': {'models/modeling_pal.py'},  # which is read by transformers alone
}
BANNED = ('util', 'helper', 'common', 'misc', 'manager')
FILES = sorted(PACKAGE.rglob('*.py'))
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room(module: str) -> str:
    """The part of the house a file such as `models/hf.py` is in, as named in FLOORS."""
    module = module.removesuffix('.py')
    return module if any(module in rooms for rooms in FLOORS) else module.split('/')[0]


def floor(room: str) -> int:
    found = [level for level, rooms in enumerate(FLOORS) if room in rooms]
    assert found, f'pal_jax/{room} is on no floor; add it to FLOORS and to docs/architecture.md'
    return found[0]


@functools.cache
def imports(node: ast.AST) -> tuple[str, ...]:
    """Dotted names of all modules imported in a tree. Of `from a.b import c`, `a.b.c`, for `c` may be a module."""
    names = []
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            names += [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f'line {child.lineno}: imports are absolute'
            names += [f'{child.module}.{alias.name}' for alias in child.names]
    return tuple(names)


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding='utf-8'))


def rooms_imported(path: Path) -> set[str]:
    names = [imported.split('.')[1:3] for imported in imports(tree(path)) if imported.split('.')[0] == 'pal_jax']
    return {room('/'.join(parts)) if parts and is_module(parts[0]) else '__init__' for parts in names}


def is_module(part: str) -> bool:
    return (PACKAGE / part).is_dir() or (PACKAGE / f'{part}.py').exists()


@pytest.mark.parametrize('file', ['memory', 'interrupts'])
def test_what_a_command_imports_first_is_of_the_standard_library(file):
    body = tree(PACKAGE / f'runtime/{file}.py').body
    first = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {imported.split('.')[0] for node in first for imported in imports(node)} <= set(sys.stdlib_module_names)


def wrong_imports(path: Path) -> Iterator[str]:
    here, home = room(name(path)), name(path).split('/')[0]
    for other in sorted(rooms_imported(path)):
        if floor(other) + (other.split('/')[0] != home) > floor(here):
            yield f'{name(path)} imports {other}, which lies no lower than {here}'


def test_imports_go_down():
    assert [line for path in FILES for line in wrong_imports(path)] == []


def test_objectives_are_pure_maths():
    allowed = PURE | set(sys.stdlib_module_names)
    for path in FILES:
        if room(name(path)) == 'objectives':
            assert {imported.split('.')[0] for imported in imports(tree(path))} <= allowed, name(path)
            assert rooms_imported(path) <= {'types', 'objectives'}, name(path)


def test_heavy_packages_stay_in_the_one_file_that_needs_them():
    bad = [
        f'{name(path)} imports {package}'
        for path in FILES
        for package in {imported.split('.')[0] for imported in imports(tree(path))} & LAZY.keys()
        if name(path) not in LAZY[package]
    ]
    assert bad == []


def test_configs_stop_at_the_recipe():
    low = [path for path in FILES if floor(room(name(path))) < floor('parts')]
    named = {name(path) for path in low for imported in imports(tree(path)) if imported.startswith('ml_collections')}
    assert named == set()


def long_files_and_functions(path: Path) -> Iterator[str]:
    limit = {'train.py': 200}.get(name(path), 300 if room(name(path)) in ('parts', 'recipes') else 500)
    lines = len(path.read_text(encoding='utf-8').splitlines())
    if lines > limit:
        yield f'{name(path)} has {lines} lines'
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not makes_closures(node):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > 80:
                yield f'{name(path)}: {node.name} has {length} lines'


def makes_closures(node: ast.AST) -> bool:
    """A builder such as `make`: it is as long as the functions defined in it, and those are measured themselves."""
    return any(isinstance(child, ast.FunctionDef) for child in ast.iter_child_nodes(node))


def test_files_and_functions_are_short():
    assert [line for path in FILES for line in long_files_and_functions(path)] == []


def test_names_say_what_is_inside():
    parts = {(name(path), part) for path in FILES for part in name(path).removesuffix('.py').split('/')}
    assert [path for path, part in parts if any(word in part for word in BANNED)] == []


def test_modules_say_what_they_are():
    bare = [name(path) for path in FILES if path.name != '__init__.py' and not ast.get_docstring(tree(path))]
    assert bare == []


def doors(method: str) -> tuple[str, ...]:
    recipe = f'recipes/{method}.py' if (PACKAGE / f'recipes/{method}.py').exists() else f'recipes/{method}/recipe.py'
    return f'pal_jax/{recipe}', f'tests/recipes/test_{method}.py', f'docs/methods/{method}.md'


def test_a_method_opens_four_doors():
    assert [door for config in CONFIGS for door in doors(config.stem) if not (ROOT / door).exists()] == []


def test_a_recipe_is_a_method_that_a_config_names():
    named = {recipe for config in CONFIGS for recipe in recipes_named(tree(config))}
    assert [path.stem for path in (PACKAGE / 'recipes').glob('[!_]*') if path.stem not in named] == []


def recipes_named(config: ast.AST) -> Iterator[str]:
    """The values that a config file gives to `recipe`, as a keyword or as an attribute."""
    for node in ast.walk(config):
        given = isinstance(node, ast.keyword) and node.arg == 'recipe'
        given |= isinstance(node, ast.Assign) and any(ast.unparse(x) == 'config.recipe' for x in node.targets)
        if given and isinstance(node.value, ast.Constant):
            yield node.value.value


@pytest.mark.slow
def test_importing_the_package_touches_no_device_and_nothing_heavy():
    # These are imported when JetStream or an endpoint is asked for.
    alone = {f'decode/jetstream/{file}.py' for file in ('engine', 'decoder', 'driver', 'rpc')}
    alone |= {'feedback/endpoint.py', *LAZY['torch']}
    files = [path for path in FILES if floor(room(name(path))) < len(FLOORS) - 1 and name(path) not in alone]
    modules = [path.relative_to(ROOT).with_suffix('').as_posix().replace('/', '.') for path in files]
    code = (
        f'import importlib, json, sys\nfor module in {modules!r}: importlib.import_module(module)\n'
        'from jax._src import xla_bridge\n'
        f'print(json.dumps([xla_bridge.backends_are_initialized(), sorted(set({sorted(LAZY)!r}) & set(sys.modules))]))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True)
    started, heavy = json.loads(done.stdout)
    assert not started
    assert heavy in ([], ['gguf'])  # gguf is light; the others take seconds
