"""The house rules of docs/architecture.md, read off the source: who imports whom, sizes, names, doors."""

from __future__ import annotations

import ast
import collections
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'pal_jax'

# Files in which settings and language models meet. They lie above the rooms that they stand in, and see each other.
MEETING = {
    'data/rows',
    'data/safety',
    'decode/answers',
    'decode/sampler',
    'decode/shown_answers',
    'judges/chat_models',
    'run/ahead',
    'run/inputs',
    'run/language',
    'run/loop',
    'run/models',
    'run/moderator',
    'run/planned',
    'run/presets',
    'run/record_scorer',
    'run/stages',
    'run/trained',
}
# Down only: a room may import from floors below its own, and from itself. Rooms of one floor do not see each other.
# Two files of models/ lie lower than their room: they only describe, for all that comes above. run/memory.py and
# run/interrupts.py are of the standard library, for a command imports them before jax.
FLOORS = (
    {'run/memory', 'run/interrupts'},
    {'__init__'},
    {'types', 'models/config', 'models/params'},
    {'objectives', 'run'},
    {'data'},
    {'models'},
    {'decode'},
    {'games'},
    {'judges', 'learners'},
    MEETING,
    {'scoring', 'training_server'},
    {'recipes'},
    {'commands/planning'},
    {'commands/talking'},
    {'train'},
    {'commands', '__main__'},
)
# A method imports another one only where it stands here. The goal is eight at most.
PAIRS = {
    'psoups': {'personal', 'scorer', 'sft'},
    'redteam': {'sft'},
    'safe_rlhf': {'scorer', 'sft'},
}
WORDS = {'scorer'}  # names of methods that are words of the field as well
PURE = {
    'jax',
    'jaxtyping',
    'optax',
    'flax',
    'numpy',
    'pal_jax',
}  # all that objectives/ may import, and the standard library
LAZY = {
    'jetstream': {'decode/serve/jetstream/engine.py'},
    'tensorflow': set(),
    'tensorflow_datasets': {'data/tfds_rows.py'},
    'pyarrow': {'data/records.py'},
    'gguf': {'models/files/gguf.py', 'models/files/sources.py', 'data/tokenizer.py'},
    'openai': {'judges/endpoint.py'},
    'textstat': {'recipes/psoups/rules.py'},
    'tinker': {'training_server/wire.py'},
    'wandb': set(),
    'torch': {'recipes/personal/pal/modeling_pal.py'},  # which is read by transformers alone
}
BANNED = ('util', 'helper', 'common', 'misc', 'manager')
FILES = sorted(PACKAGE.rglob('*.py'))
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def room(module: str) -> str:
    """The part of the house a file such as `models/files/hf.py` is in: the longest name in FLOORS that leads to it."""
    parts = module.removesuffix('.py').split('/')
    names = ['/'.join(parts[:k]) for k in range(len(parts), 0, -1)]
    return next((part for part in names if any(part in rooms for rooms in FLOORS)), parts[0])


def floor(room: str) -> int:
    found = [level for level, rooms in enumerate(FLOORS) if room in rooms]
    assert found, f'pal_jax/{room} is on no floor; add it to FLOORS and to docs/architecture.md'
    return found[0]


def home(room: str) -> str:
    """The rooms of a home see each other."""
    return 'meeting' if room in MEETING else room.split('/')[0]


def method(module: str) -> str | None:
    """The method that a file is of, if it is of one."""
    parts = module.removesuffix('.py').split('/')
    return parts[1] if parts[0] == 'recipes' and parts[1] != '__init__' else None


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


@functools.cache
def read_by(path: Path) -> frozenset[str]:
    """The files of the package that a file imports, such as `models/files/hf.py`."""
    found = set()
    for imported in imports(tree(path)):
        if imported.split('.')[0] == 'pal_jax':
            parts = imported.split('.')[1:]
            found |= next(({file} for k in range(len(parts), -1, -1) if (file := file_of(parts[:k]))), set())
    return frozenset(found - {name(path) if path.is_relative_to(PACKAGE) else ''})


def file_of(parts: list[str]) -> str | None:
    """The file of a module, or None where there is no such module."""
    stem = '/'.join(parts)
    files = [f'{stem}.py', f'{stem}/__init__.py'] if stem else ['__init__.py']
    return next((file for file in files if (PACKAGE / file).exists()), None)


def rooms_imported(path: Path) -> set[str]:
    return {room(file.removesuffix('/__init__.py')) for file in read_by(path)}


@pytest.mark.parametrize('file', ['memory', 'interrupts'])
def test_what_a_command_imports_first_is_of_the_standard_library(file):
    body = tree(PACKAGE / f'run/{file}.py').body
    first = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert {imported.split('.')[0] for node in first for imported in imports(node)} <= set(sys.stdlib_module_names)


def wrong_imports(path: Path) -> Iterator[str]:
    here = room(name(path))
    for other in sorted(rooms_imported(path)):
        if floor(other) + (home(other) != home(here)) > floor(here):
            yield f'{name(path)} imports {other}, which lies no lower than {here}'


def test_imports_go_down():
    assert [line for path in FILES for line in wrong_imports(path)] == []


# --- methods ----------------------------------------------------------------------------------------------------------


def test_a_method_imports_another_only_where_the_list_says_so():
    pairs = collections.defaultdict(set)
    for path in FILES:
        for other in read_by(path):
            here, there = method(name(path)), method(other)
            if here and there and here != there:
                pairs[here].add(there)
    assert pairs == PAIRS


def test_the_core_names_no_method():
    methods = {found for path in FILES if (found := method(name(path)))} - WORDS
    named = collections.defaultdict(set)
    for path in FILES:
        if room(name(path)) not in ('recipes', 'commands', 'commands/planning', 'commands/talking'):
            text = path.read_text(encoding='utf-8')
            for found in methods:
                if re.search(rf"""['"]{found}['"/:]|recipes\.{found}\b|recipes import {found}\b""", text):
                    named[name(path).removesuffix('.py')].add(found)
    assert named == {}


def test_the_words_of_a_methods_figures_are_data():
    for path in PACKAGE.glob('recipes/*/figures.py'):
        assert read_by(path) == {'run/glossary.py'}, name(path)
        kinds = {type(node) for node in tree(path).body[1:]}
        assert kinds <= {ast.ImportFrom, ast.Assign}, name(path)


def test_what_one_method_alone_needs_lies_with_it():
    users = collections.defaultdict(set)
    for path in FILES:
        for other in read_by(path):
            users[other].add(name(path))
    for folder in ('configs', 'benchmarks'):
        for path in (ROOT / folder).rglob('*.py'):
            for other in read_by(path):
                users[other].add(f'{folder}/{path.stem}')
    owner = {name(path): method(name(path)) for path in FILES if method(name(path))}
    changed = True
    while changed:  # a file that files of one method alone read is that method's, too
        changed = False
        for file in {name(path) for path in FILES} - owner.keys():
            owners = {owner.get(user) for user in users[file]}
            if len(owners) == 1 and None not in owners:
                owner[file], changed = owners.pop(), True
    assert [f'{file} serves {of} alone' for file, of in sorted(owner.items()) if method(file) != of] == []


def parts_of(recipe: str) -> tuple[str, str]:
    """The file of a recipe that configs name, and that of its test."""
    path = recipe.replace('.', '/')
    if (PACKAGE / f'recipes/{path}.py').exists():
        folder, _, file = path.rpartition('/')
        return f'pal_jax/recipes/{path}.py', f'tests/recipes/{folder + "/" if folder else ""}test_{file}.py'
    return f'pal_jax/recipes/{path}/recipe.py', f'tests/recipes/{path}/test_recipe.py'


def test_a_method_opens_four_doors():
    doors = []
    for config in CONFIGS:
        (recipe,) = {recipe for recipe in recipes_named(tree(config)) if recipe.split('.')[-1] == config.stem}
        doors += [*parts_of(recipe), f'docs/methods/{config.stem}.md']
    assert [door for door in doors if not (ROOT / door).exists()] == []


def test_a_recipe_is_a_method_that_a_config_names():
    named = {recipe.split('.')[0] for config in CONFIGS for recipe in recipes_named(tree(config))}
    assert {found for path in FILES if (found := method(name(path)))} == named


def recipes_named(config: ast.AST) -> Iterator[str]:
    """The values that a config file gives to `recipe`."""
    for node in ast.walk(config):
        if isinstance(node, ast.keyword) and node.arg == 'recipe' and isinstance(node.value, ast.Constant):
            yield node.value.value


def defined(path: Path) -> set[str]:
    """The names that the top level of a file defines or imports."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split('.')[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


@pytest.mark.parametrize('folder', ['benchmarks', 'configs', 'tests'])
def test_what_is_imported_is_there(folder):
    missing = []
    for path in sorted((ROOT / folder).rglob('*.py')):
        for imported in imports(tree(path)):
            top, *parts = imported.split('.')
            if top != 'pal_jax' or file_of(parts):
                continue
            module = file_of(parts[:-1])
            if module is None or parts[-1] not in defined(PACKAGE / module):
                missing.append(f'{path.relative_to(ROOT)}: {imported}')
    assert missing == []


# --- files ------------------------------------------------------------------------------------------------------------


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


def long_files_and_functions(path: Path) -> Iterator[str]:
    limit = {'train.py': 200}.get(name(path), 500)
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


@pytest.mark.slow
def test_importing_the_package_touches_no_device_and_nothing_heavy():
    # These are imported when JetStream, an endpoint or the training server is asked for.
    alone = {f'decode/serve/jetstream/{file}.py' for file in ('engine', 'decoder', 'driver', 'rpc')}
    alone |= {'judges/endpoint.py', *LAZY['torch']}
    serving = 'app', 'executor', 'sampler', 'service', 'start', 'wire', 'worker'
    alone |= {f'training_server/{file}.py' for file in serving}
    files = [path for path in FILES if floor(room(name(path))) < len(FLOORS) - 1 and name(path) not in alone]
    modules = ['.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__') for path in files]
    code = (
        f'import importlib, json, sys\nfor module in {modules!r}: importlib.import_module(module)\n'
        'from jax._src import xla_bridge\n'
        f'print(json.dumps([xla_bridge.backends_are_initialized(), sorted(set({sorted(LAZY)!r}) & set(sys.modules))]))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True)
    started, heavy = json.loads(done.stdout)
    assert not started
    assert heavy in ([], ['gguf'])  # gguf is light; the others take seconds
