"""Plain words, read off the source: docstrings that name their subject, locals that say what they hold, comments."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'pal_jax'

OPENINGS = {'What', 'Of', 'How', 'Where', 'Who', 'Those', 'By'}  # of a sentence that leaves its noun out
EMPTY = {'each', 'found', 'told', 'own'}  # names that do not say what they hold
LONG = 15  # lines of a function, above which its locals are held, too
DENSITY = 4  # comment lines per 100 lines of code
COMMENTED = ('recipes', 'learners')

FILES = sorted(PACKAGE.rglob('*.py'))


def name(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def under(path: Path, entry: str) -> bool:
    return name(path) == entry or name(path).startswith(f'{entry}/')


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding='utf-8'))


def docstrings(path: Path) -> Iterator[ast.Constant]:
    """The docstrings of a module, of its classes and of its functions, as nodes."""
    for node in ast.walk(tree(path)):
        body = getattr(node, 'body', None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            first = body[0].value if isinstance(body[0], ast.Expr) else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first


def nameless_openings(path: Path) -> Iterator[str]:
    for docstring in docstrings(path):
        first = str(docstring.value).split()[:1]
        if first and first[0].strip(',.:;') in OPENINGS:
            yield f'{name(path)}:{docstring.lineno}: a docstring begins with {first[0]}'


def empty_names(path: Path) -> Iterator[str]:
    """Parameters of all functions, and locals of long ones, whose names do not say what they hold."""
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        for child in ast.walk(node.args):
            if isinstance(child, ast.arg) and child.arg in EMPTY:
                yield f'{name(path)}:{child.lineno}: a parameter is called {child.arg}'
        if (node.end_lineno or node.lineno) - node.lineno + 1 > LONG:
            for child in ast.walk(node):
                if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store) and child.id in EMPTY:
                    yield f'{name(path)}:{child.lineno}: a local is called {child.id}'


def comments_and_code(path: Path) -> tuple[int, int]:
    """Lines that are comments alone, banners aside, and lines of code, docstrings aside."""
    inside = {line for node in docstrings(path) for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    lines = [line.strip() for i, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1) if i not in inside]
    comments = [line for line in lines if line.startswith('#')]
    return sum(not line.startswith('# ---') for line in comments), sum(map(bool, lines)) - len(comments)


def test_a_docstring_begins_with_its_subject():
    assert [line for path in FILES for line in nameless_openings(path)] == []


def test_a_name_says_what_it_holds():
    assert [line for path in FILES for line in empty_names(path)] == []


@pytest.mark.parametrize('room', COMMENTED)
def test_methods_and_learners_say_why(room):
    comments, code = map(sum, zip(*(comments_and_code(path) for path in FILES if under(path, room)), strict=True))
    assert 100 * comments >= DENSITY * code, f'{room}/ has {comments} comment lines on {code} lines of code'
