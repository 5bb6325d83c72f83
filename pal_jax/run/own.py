"""Functions and classes of a user's own files, which a config names as `FILE.py:NAME`.

  --config.reward.function=my_rewards.py:score

The file's folder is searched for what the file imports. A run remembers hashes of functions (`run/inputs.py`).

A Python program may give a function itself (`given`). The config then has `python:NAME`, and the run goes on where the
same function is given again.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib.util
import inspect
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import CodeType, MappingProxyType, ModuleType, SimpleNamespace
from typing import Any

from pal_jax.run.files import short_repr
from pal_jax.run.forecast import counted
from pal_jax.run.settings import Run

NAMED = re.compile(r'(?P<file>[^,:]+\.py):(?P<name>[A-Za-z_]\w*)')
# This text stands before the name of a function that the Python program gives.
PYTHON = 'python:'
_GIVEN: ContextVar[Mapping[str, Callable[..., Any]]] = ContextVar('given', default=MappingProxyType({}))


@contextlib.contextmanager
def given(functions: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """A block in which `python:NAME` names these functions, by their names."""
    token = _GIVEN.set(functions)
    try:
        yield
    finally:
        _GIVEN.reset(token)


def is_own(text: Any) -> bool:
    """True for a text `FILE.py:NAME` or `python:NAME`."""
    return isinstance(text, str) and bool(NAMED.fullmatch(text.strip()) or text.startswith(PYTHON))


def split(key: str, text: str) -> list[str]:
    """The parts of `FILE.py:NAME,FILE.py:NAME,...`.

    Raises:
      ValueError: a part has another form; `key` is the config's key that has the text.
    """
    parts = [part.strip() for part in text.split(',')]
    for part in parts:
        if not is_own(part):
            raise ValueError(
                f'{key}={text!r}: {part!r} is no function; write FILE.py:NAME, with commas between{_functions_in(part)}'
            )
    return parts


def _functions_in(file: str) -> str:
    """The words for the functions and classes in a Python file; '' where there is no such file or it has none."""
    path = Path(file)
    if path.suffix != '.py' or not path.is_file():
        return ''
    try:
        body = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError):
        return ''
    names = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != '_']
    return f'; {file} has {", ".join(names)}' if names else ''


def parts_of(value: Any) -> list[str]:
    """The texts FILE.py:NAME and python:NAME in a config's value."""
    return [text for text in _texts(value) if is_own(text)]


def named_in(value: Any) -> list[tuple[str, Path]]:
    """The texts FILE.py:NAME in a config's value and the files that they name, of those that exist."""
    matches = map(NAMED.fullmatch, _texts(value))
    return [(match[0], Path(match['file'])) for match in matches if match and Path(match['file']).is_file()]


DEFINITIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
# Names and attributes by which a function may use any name of a file, or its docstrings.
DYNAMIC = {'globals', 'vars', 'locals', 'eval', 'exec', 'getattr', 'modules', '__name__', '__doc__', '__subclasses__'}
MAIN = "__name__ == '__main__'"


def digest(path: Path, name: str) -> str:
    """The hash of a function or a class of a file, with all that it uses of the file. Comments and docstrings do not
    count. What the file imports is not read.

    It is the hash of the whole file where that cannot be parsed, or uses names that only its run tells.
    """
    try:
        body = ast.parse(path.read_bytes()).body
    except (SyntaxError, ValueError):
        body = []
    # What stands below `if __name__ == '__main__'` is not run where the file is imported.
    body = [s for s in body if not (isinstance(s, ast.If) and ast.unparse(s.test) == MAIN and not s.orelse)]
    attributes = {node.attr for s in body for node in ast.walk(s) if isinstance(node, ast.Attribute)}
    # Each statement with the names that it binds and those that it reads.
    parts = [(s, _bound(s), {node.id for node in ast.walk(s) if isinstance(node, ast.Name)}) for s in body]
    if not parts or DYNAMIC & attributes.union(*(read for *_, read in parts)):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    needed: set[str] = set()
    more = {name}
    while more != needed:
        needed = more
        # A statement that does more than to bind names may change what every function reads.
        more = needed.union(*(read for _, bound, read in parts if not bound or bound & needed))
    code = [_without_docstrings(statement) for statement, bound, _ in parts if not bound or bound & needed]
    return hashlib.sha256('\n'.join(filter(None, code)).encode()).hexdigest()


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement of a file binds; none where it may do more than that, such as to call a function."""
    # A decorator, and the class that another one is made from, may keep what is defined.
    if isinstance(statement, DEFINITIONS):
        does_more = statement.decorator_list or (isinstance(statement, ast.ClassDef) and statement.bases)
        return set() if does_more else {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name.partition('.')[0] for alias in statement.names} - {'*'}
    targets = statement.targets if isinstance(statement, ast.Assign) else getattr(statement, 'target', None)
    targets = targets if isinstance(targets, list) else [targets]
    calls = any(isinstance(node, ast.Call | ast.NamedExpr) for node in ast.walk(statement))
    is_plain = isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign) and not calls
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return set(names) if is_plain and len(names) == len(targets) else set()


def _without_docstrings(statement: ast.stmt) -> str:
    """The code of a statement without its docstrings and comments, in one layout."""
    for node in ast.walk(statement):
        if isinstance(node, DEFINITIONS) and ast.get_docstring(node) is not None:
            del node.body[0]
    is_text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return '' if is_text else ast.unparse(statement)


def given_in(value: Any) -> list[tuple[str, str]]:
    """The texts `python:NAME` in a config's value, of functions that are given, with the digests of the functions."""
    names = [text for text in _texts(value) if text.startswith(PYTHON)]
    calls = {name: _GIVEN.get().get(name.removeprefix(PYTHON)) for name in names}
    return [(name, hashlib.sha256(_source(call).encode()).hexdigest()) for name, call in calls.items() if call]


def _texts(value: Any) -> list[str]:
    """The texts in a config's value, which is a list or has commas between them."""
    texts = value if isinstance(value, list | tuple) else value.split(',') if isinstance(value, str) else ()
    return [text.strip() for text in texts if isinstance(text, str)]


def name_of(call: Callable[..., Any]) -> str:
    """The name of a function or a class, and for another callable that of its class or of the function in a partial."""
    if isinstance(call, functools.partial):
        return name_of(call.func)
    return getattr(call, '__name__', type(call).__name__)


def _source(call: Any) -> str:
    """The text that a function or a class was written as, with the values that it was made with; else its byte code."""
    if isinstance(call, functools.partial):
        return f'{_source(call.func)}{_plain((*call.args, *call.keywords.values()))}'
    if not inspect.isroutine(call) and not inspect.isclass(call):
        # The fields of an object that can be called may change with every call.
        return _source(type(call))
    plain = _plain([cell.cell_contents for cell in getattr(call, '__closure__', None) or ()])
    try:
        return f'{inspect.getsource(call)}{plain}'
    except (OSError, TypeError):
        code = getattr(call, '__code__', None)
        return f'{_byte_code(code)}{plain}' if code else name_of(call)


def _byte_code(code: CodeType) -> str:
    """The instructions of a function, with its names and constants, and those of the functions in it."""
    inner = [_byte_code(value) for value in code.co_consts if isinstance(value, CodeType)]
    return f'{code.co_code.hex()}{code.co_names}{_plain(code.co_consts)}{inner}'


def _plain(values: Iterable[Any]) -> list[int | float | str]:
    """The numbers and texts among values; the texts of others have addresses, which differ in every process."""
    return [value for value in values if isinstance(value, int | float | str)]


def load(key: str, text: str, *asked: str, may: Sequence[str] = ()) -> Callable[..., Any]:
    """The function or class that `FILE.py:NAME` names.

    Its errors, and those of the methods of an object that the class makes, become a RuntimeError of one line with the
    place in the file.

    Args:
      key: the config's key that names it, for messages.
      asked: names of the parameters that it is called with; it must take them all.
      may: names of further parameters, of which it may take some.
    Raises:
      ValueError: the file or the name is missing, the file fails, or the function takes other parameters.
    """
    path, name, call = _found(key, text)
    try:
        inspect.signature(call).bind(**dict.fromkeys([*asked, *(extra for extra in may if takes(call, extra))]))
    except TypeError as error:
        also = f', and may take {", ".join(may)}' if may else ''
        reason = _unmet(call, [*asked, *may]) or error
        raise ValueError(f'{key}={text!r}: {reason}; {name} is called with {", ".join(asked)}{also}') from None

    guard = _guard(key, text, path)
    make = guard(call)
    return (lambda *args, **kwargs: _Guarded(make(*args, **kwargs), guard)) if inspect.isclass(call) else make


def _guard(key: str, text: str, path: Path) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator for functions of a file, whose errors become a RuntimeError of one line."""

    def guard(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                raise RuntimeError(f'{key}={text!r} failed: {_where_it_failed(error, path)}') from error

        return guarded

    return guard


class _Guarded:
    """An object with its methods guarded, as `load` guards functions, or replaced by others."""

    def __init__(self, inner: Any, guard: Callable[[Callable[..., Any]], Callable[..., Any]], **replaced: Any):
        self._inner, self._guard = inner, guard
        vars(self).update(replaced)

    def __getattr__(self, name: str) -> Any:
        # Copying and pickling look for methods before the fields are there.
        if name in ('_inner', '_guard') or name.startswith('__'):
            raise AttributeError(name)
        value = getattr(self._inner, name)
        return self._guard(value) if callable(value) else value


def load_game(key: str, text: str, parts: Sequence[str], roles: int | None = None) -> Any:
    """The game that a class or a function of a file makes without arguments, guarded as `load` guards functions.

    Its `rewards` raises RuntimeError where it gives anything but a number for each role.

    Args:
      parts: names of the fields and methods that it must have.
      roles: the number of roles; None: that of its own `roles`.
    Raises:
      ValueError: it cannot be had, or lacks a part.
    """
    game = load(key, text)()
    if missing := [part for part in parts if not hasattr(game, part)]:
        raise ValueError(f'{key}={text!r} has no {", ".join(missing)}; see docs/howto/own_parts.md')
    guarded = game if isinstance(game, _Guarded) else _Guarded(game, _guard(key, text, _found(key, text)[0]))
    count, rewards = roles or len(guarded.roles), guarded.rewards

    def checked(state: Any) -> tuple[float, ...]:
        paid: Any = rewards(state)
        try:
            is_wrong = isinstance(paid, Mapping) or any(isinstance(number, str | bytes) for number in paid)
            numbers = () if is_wrong else tuple(map(float, paid))
        except (TypeError, ValueError):
            numbers = ()
        if len(numbers) != count or not all(map(math.isfinite, numbers)):
            raise RuntimeError(
                f'{key}={text!r}: rewards() must return {counted(count, "number")}, one for each role, such as '
                f'{(1.0, *[0.0] * (count - 1))}, got {short_repr(paid)}'
            )
        return numbers

    return _Guarded(guarded._inner, guarded._guard, rewards=checked)


def load_method(key: str, text: str) -> SimpleNamespace:
    """The names of a file with a method, whose `make(settings, ctx)` the text names; `Settings` is beside it.

    Raises:
      ValueError: the function cannot be had, has another name or takes other parameters, or there are no `Settings`.
    """
    path, name, _ = _found(key, text)
    if name != 'make':
        raise ValueError(f'{key}={text!r}: the function of a method is called make; see docs/howto/own_method.md')
    make, names = load(key, text, 'settings', 'ctx'), vars(_module(path.absolute(), path.stat().st_mtime_ns))
    settings = names.get('Settings')
    if not (dataclasses.is_dataclass(settings) and isinstance(settings, type) and issubclass(settings, Run)):
        raise ValueError(f'{key}={text!r} has no dataclass Settings of a Run beside it; see docs/howto/own_method.md')
    return SimpleNamespace(**{**names, 'make': make})


def _unmet(call: Callable[..., Any], given: Sequence[str]) -> str:
    """The words for the parameters that a function must get and that it is not given; '' where it gets them all."""
    parameters = inspect.signature(call).parameters.values()
    missing = [
        repr(p.name)
        for p in parameters
        if p.name not in given and p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    return f'it wants {" and ".join(missing)}, which it does not get' if missing else ''


def _found(key: str, text: str) -> tuple[Path, str, Callable[..., Any]]:
    """The file, the name and the function or class that a text names. Raises ValueError where there is none."""
    if text.startswith(PYTHON):
        name = text.removeprefix(PYTHON)
        if name not in _GIVEN.get():
            raise ValueError(
                f'{key}={text!r} is a function of the Python program that began this run; give it again, as '
                f'reward={name} or, to pal_jax.train, as {{{key!r}: {name}}}'
            )
        call = _GIVEN.get()[name]
        return _file_of(call), name, call
    match = NAMED.fullmatch(text.strip())
    assert match, text
    path, name = Path(match['file']), match['name']
    if not path.is_file():
        raise ValueError(f'{key}={text!r}: there is no file {path}')
    # A file that has changed is read anew.
    try:
        module = _module(path.absolute(), path.stat().st_mtime_ns)
    except Exception as error:
        raise ValueError(f'{key}={text!r} cannot be read: {_where_it_failed(error, path)}') from None
    call = getattr(module, name, None)
    if not callable(call):
        public = [n for n, value in vars(module).items() if callable(value) and value.__module__ == module.__name__]
        raise ValueError(f'{key}={text!r}: {path} has no function {name}; it has {", ".join(public) or "none"}')
    return path, name, call


def _file_of(call: Callable[..., Any]) -> Path:
    """The file of a function, a class or the class of an object; '-' where Python knows none, as in a notebook."""
    if inspect.isfunction(call):
        return Path(call.__code__.co_filename)
    try:
        return Path(inspect.getfile(call if inspect.isclass(call) else type(call)))
    except (OSError, TypeError):
        return Path('-')


def takes(call: Callable[..., Any], name: str) -> bool:
    """True where a function has a parameter of this name, or takes any."""
    parameters = inspect.signature(call).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


@functools.cache
def _module(path: Path, changed: int) -> ModuleType:
    """The module of a file, read once. Raises whatever the file raises."""
    # Files of one name in two folders are two modules.
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    spec = importlib.util.spec_from_file_location(f'own_{path.stem}_{digest}', path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # What the file imports may lie beside it.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    # Dataclasses look their module up by its name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _where_it_failed(error: Exception, path: Path) -> str:
    """The line of the file in which an error arose, the error's kind and its message."""
    frames = traceback.extract_tb(error.__traceback__)
    # The last line of the file itself is where the error arose.
    lines = [frame.lineno for frame in frames if Path(frame.filename).absolute() == path.absolute()]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    place = f'{path}, line {lines[-1]}' if lines else str(path)
    return f'{place}: {type(error).__name__}: {" ".join(str(error).split())}'
