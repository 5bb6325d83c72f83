"""Plain words, read off the source: docstrings that name their subject, locals that say what they hold, comments."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'pal_jax'

# Openings of a sentence that leaves its noun out, or names it late.
OPENINGS = re.compile(
    r'(What|Of|How|Where|Who|Those|By|Whether|As|These|Nothing|Their|That|The same|For each|At least|At most)\b'
)
EMPTY = {'each', 'found', 'told', 'own'}  # names that do not say what they hold
EMPTY_VARIABLES = EMPTY | {'few', 'ones', 'wanted', 'what'}
DENSITY = 4  # comment lines per 100 lines of code
COMMENTED = ('recipes/**/recipe.py', 'learners/*.py')

FILES = sorted(path for folder in ('pal_jax', 'benchmarks', 'configs') for path in (ROOT / folder).rglob('*.py'))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


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
        if opening := OPENINGS.match(str(docstring.value).strip()):
            yield f'{name(path)}:{docstring.lineno}: a docstring begins with {opening[0]}'


def empty_names(path: Path) -> Iterator[str]:
    """Parameters and variables, attributes of classes aside, whose names do not say what they hold."""
    attributes: set[ast.AST] = set()
    for node in ast.walk(tree(path)):  # a class comes before its body
        if isinstance(node, ast.ClassDef):
            attributes |= {statement.target for statement in node.body if isinstance(statement, ast.AnnAssign)}
        if isinstance(node, ast.arg) and node.arg in EMPTY:
            yield f'{name(path)}:{node.lineno}: a parameter is called {node.arg}'
        stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node not in attributes
        if stored and node.id in EMPTY_VARIABLES:
            yield f'{name(path)}:{node.lineno}: a variable is called {node.id}'


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


@pytest.mark.parametrize('files', COMMENTED)
def test_methods_and_learners_say_why(files):
    counts = [comments_and_code(path) for path in PACKAGE.glob(files)]
    comments, code = map(sum, zip(*counts, strict=True))
    assert 100 * comments >= DENSITY * code, f'{files}: {comments} comment lines on {code} lines of code'
