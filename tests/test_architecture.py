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
# Two files of models/ lie lower than their room: they only describe, for all that comes above. runtime/memory.py is of
# the standard library, for it starts a command again before jax is imported.
FLOORS = (
    {'runtime/memory'},
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


def imports(node: ast.AST) -> Iterator[str]:
    """Dotted names of all modules imported in a tree. Of `from a.b import c`, `a.b.c`, for `c` may be a module."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, f'line {child.lineno}: imports are absolute'
            yield from (f'{child.module}.{alias.name}' for alias in child.names)


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding='utf-8'))


def rooms_imported(path: Path) -> set[str]:
    names = [imported.split('.')[1:3] for imported in imports(tree(path)) if imported.split('.')[0] == 'pal_jax']
    return {room('/'.join(parts)) if parts and is_module(parts[0]) else '__init__' for parts in names}


def is_module(part: str) -> bool:
    return (PACKAGE / part).is_dir() or (PACKAGE / f'{part}.py').exists()


def test_what_starts_a_command_again_is_of_the_standard_library():
    first = [node for node in tree(PACKAGE / 'runtime/memory.py').body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {imported.split('.')[0] for node in first for imported in imports(node)} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize('path', FILES, ids=name)
def test_imports_go_down(path):
    here, home = room(name(path)), name(path).split('/')[0]
    bad = {other for other in rooms_imported(path) if floor(other) + (other.split('/')[0] != home) > floor(here)}
    assert not bad, f'{name(path)} imports {sorted(bad)}, which lie no lower than {here}'


@pytest.mark.parametrize('path', [path for path in FILES if room(name(path)) == 'objectives'], ids=name)
def test_objectives_are_pure_maths(path):
    allowed = PURE | set(sys.stdlib_module_names)
    assert {imported.split('.')[0] for imported in imports(tree(path))} <= allowed
    assert rooms_imported(path) <= {'types', 'objectives'}


@pytest.mark.parametrize('path', FILES, ids=name)
def test_heavy_packages_stay_in_the_one_file_that_needs_them(path):
    heavy = {imported.split('.')[0] for imported in imports(tree(path))} & LAZY.keys()
    assert {package for package in heavy if name(path) not in LAZY[package]} == set()


@pytest.mark.parametrize('path', FILES, ids=name)
def test_configs_stop_at_the_recipe(path):
    if floor(room(name(path))) < floor('parts'):
        assert not any(imported.split('.')[0] == 'ml_collections' for imported in imports(tree(path)))


@pytest.mark.parametrize('path', FILES, ids=name)
def test_files_and_functions_are_short(path):
    limit = {'train.py': 200}.get(name(path), 300 if room(name(path)) in ('parts', 'recipes') else 500)
    lines = len(path.read_text(encoding='utf-8').splitlines())
    assert lines <= limit, f'{name(path)} has {lines} lines'
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not makes_closures(node):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 80, f'{name(path)}: {node.name} has {length} lines'


def makes_closures(node: ast.AST) -> bool:
    """A builder such as `make`: it is as long as the functions defined in it, and those are measured themselves."""
    return any(isinstance(child, ast.FunctionDef) for child in ast.iter_child_nodes(node))


@pytest.mark.parametrize('path', FILES, ids=name)
def test_names_say_what_is_inside(path):
    assert not any(word in part for part in name(path).removesuffix('.py').split('/') for word in BANNED)


@pytest.mark.parametrize('path', FILES, ids=name)
def test_modules_say_what_they_are(path):
    if path.name != '__init__.py':
        assert ast.get_docstring(tree(path)), f'{name(path)} has no docstring'


@pytest.mark.parametrize('config', CONFIGS, ids=lambda path: path.stem)
def test_a_method_opens_four_doors(config):
    method = config.stem
    recipe = f'recipes/{method}.py' if (PACKAGE / f'recipes/{method}.py').exists() else f'recipes/{method}/recipe.py'
    doors = (f'pal_jax/{recipe}', f'tests/recipes/test_{method}.py', f'docs/methods/{method}.md')
    assert [door for door in doors if not (ROOT / door).exists()] == []


@pytest.mark.parametrize('recipe', sorted((PACKAGE / 'recipes').glob('[!_]*')), ids=lambda path: path.stem)
def test_a_recipe_is_a_method_that_a_config_names(recipe):
    assert recipe.stem in {named for config in CONFIGS for named in recipes_named(tree(config))}


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
