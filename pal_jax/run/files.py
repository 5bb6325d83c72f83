"""Paths as people write them, files that appear in one piece, and readers that name the place of a fault."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import lzma
import os
import re
import secrets
import sys
import zlib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import yaml

from pal_jax.run import stores

Name = str | os.PathLike[str]

HEAD = 1024  # bytes at a file's beginning by which its kind is recognised
# Files with these suffixes are unpacked as they are read.
PACKED = {'.gz': gzip.open, '.xz': lzma.open}
MARKS = {  # the first bytes of files of other kinds
    b'\x1f\x8b': 'compressed by gzip; let its name end in .gz, or unpack it',
    b'BZh': 'compressed by bzip2; unpack it',
    b'\xfd7zXZ': 'compressed by xz; let its name end in .xz, or unpack it',
    b'\x28\xb5\x2f\xfd': 'compressed by zstd; unpack it',
    b'PK\x03\x04': 'a ZIP archive or a spreadsheet; unpack it, or save it as text',
    b'PAR1': 'a Parquet file; call it .parquet where one can be read',
    b'\xff\xfe': 'in UTF-16 or UTF-32; save it as UTF-8',
    b'\xfe\xff': 'in UTF-16; save it as UTF-8',
    b'\0\0\xfe\xff': 'in UTF-32; save it as UTF-8',
}
# JSON's escape of half a surrogate pair.
HALF = re.compile(r'\\u[dD][89a-fA-F]')

HOME = re.compile(r'(?:(?<=[,=:])|^)~[\w.-]*(?=[/,:]|$)')


def beside(module: str) -> Any:
    """The content of the JSON file that stands beside a module of the package under its name: for
    `pal_jax.judges.dilemmas` that of `judges/dilemmas.json`."""
    package, _, name = module.rpartition('.')
    return json.loads(resources.files(package).joinpath(f'{name}.json').read_text(encoding='utf-8'))


def at_home(text: str) -> str:
    """A text with home folders in the place of `~` and `~name`, and folders of this machine in that of URLs of a store.

    They are replaced also where shells leave them: behind `--name=` or the kind of a source (`hf:~/model`), and in a
    list with commas.

    Raises:
      ValueError, RuntimeError: as `stores.local`.
    """
    # A `~name` that is no user's name stays.
    return stores.local(HOME.sub(lambda match: os.path.expanduser(match[0]), text))


def arguments_at_home(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments of the command line, each as `at_home` has it. Its errors are those of the parser."""
    try:
        return parser.parse_args(list(map(at_home, sys.argv[1:])))
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))


def is_file(name: str) -> bool:
    """True where a text names a file of JSON: one that exists, or by a name that ends as such a file's does."""
    return name.endswith(('.json', '.jsonl')) or (os.path.exists(name) and not os.path.isdir(name))


def write_whole(path: Path, text: str, errors: str = 'strict') -> Path:
    """Write a text as UTF-8 and return its path. Paths of a store's mirror in it become URLs.

    A reader finds the whole text or the file that was there before, even where the writer is killed. `errors` is as in
    `str.encode`.
    """
    temporary = fresh_beside(path, 'partial')
    try:
        temporary.write_text(stores.shown(text), encoding='utf-8', errors=errors)
        return temporary.replace(path)
    finally:
        # Where writing has failed, no part of the file stays behind.
        temporary.unlink(missing_ok=True)


def fresh_beside(path: Path, what: str) -> Path:
    """A hidden path that does not exist, in the folder of `path`: `.<name>.<what>-<8 digits>`."""
    return path.with_name(f'.{path.name}.{what}-{secrets.token_hex(4)}')


# --- text ------------------------------------------------------------------------------------------------------------


def read_text(path: Name) -> str:
    """The text of a file in UTF-8, without a byte order mark, and with the line ends that it has.

    Raises:
      ValueError: there is no such file, it may not be read, or it is no text in UTF-8. The message names line and byte.
    """
    return decoded(read_bytes(path), path)


def read_bytes(path: Name) -> bytes:
    """The bytes of a file, unpacked. Raises ValueError where there is no such file, or it may not or cannot be read."""
    with _opened(path) as file:
        return file.read()


def format_of(path: Path) -> str:
    """The suffix that names a file's format, without that of its compression: `.jsonl` of `Train.JSONL.gz`."""
    return (path.with_suffix('') if path.suffix.lower() in PACKED else path).suffix.lower()


def decoded(data: bytes, path: Name) -> str:
    """The bytes of the file `path` as text. Raises ValueError, with line and byte, where they are no UTF-8."""
    _check_kind(data, path)
    try:
        return data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise _misencoded(path, data.count(b'\n', 0, error.start) + 1, data, error) from None


@contextlib.contextmanager
def open_text(path: Name) -> Iterator[TextIO]:
    """An open file of text, read a line at a time and otherwise as `read_text` does.

    Raises:
      ValueError: as `read_text`. Bytes that are no UTF-8 raise it when their line is read.
    """
    with _opened(path) as file:
        _check_kind(file.read(HEAD), path)
        file.seek(0)
        try:
            # Line ends stay as they are in the file.
            yield io.TextIOWrapper(file, encoding='utf-8-sig', newline='')
        except UnicodeDecodeError:
            raise _first_misencoded(path) from None


@contextlib.contextmanager
def _opened(path: Name) -> Iterator[BinaryIO]:
    unpack = PACKED.get(Path(path).suffix.lower())
    try:
        with _file(path) as file:
            yield cast(BinaryIO, unpack(file)) if unpack else file
    except (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError) as error:
        raise ValueError(f'{path} cannot be unpacked, {error}; get the whole file again') from None


def _file(path: Name) -> BinaryIO:
    try:
        return Path(path).open('rb')
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f'{path} is no file; check the path') from None
    except IsADirectoryError:
        raise ValueError(f'{path} is a folder; name a file') from None
    except PermissionError:
        raise ValueError(f'{path} may not be read; ask its owner for permission to read it') from None


def _check_kind(head: bytes, path: Name) -> None:
    for mark, kind in MARKS.items():
        if head.startswith(mark):
            raise ValueError(f'{path} is {kind}')
    # Binary files and UTF-16 without a mark show by their NUL bytes.
    if (at := head.find(b'\0')) >= 0:
        line = head.count(b'\n', 0, at) + 1
        raise ValueError(f'{path}, line {line}: byte {at + 1} of the file is NUL, which no text has; save it as UTF-8')


def _first_misencoded(path: Name) -> ValueError:
    """The error for the first line of a file that is no UTF-8."""
    # The file is read again, since a reader of text knows the place in its buffer alone.
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return _misencoded(path, number, line, error)
    return ValueError(f'{path} was changed while it was read; read it again')


def _misencoded(path: Name, number: int, data: bytes, error: UnicodeDecodeError) -> ValueError:
    byte = error.start - data.rfind(b'\n', 0, error.start)
    hint = 'save the file as UTF-8, such as by iconv -f latin1 -t utf-8'
    return ValueError(f'{path}, line {number}: byte {byte} of it, 0x{data[error.start]:02x}, is no UTF-8; {hint}')


# --- JSON and YAML ---------------------------------------------------------------------------------------------------


def read_object(path: Name) -> dict[str, Any]:
    """The object in a file of JSON.

    Raises:
      ValueError: as `read_text` and `parse`, or the file holds a value of another type.
    """
    value = parse(read_text(path), path)
    if not isinstance(value, dict):
        raise ValueError(f'{path} must hold a JSON object, got {short_repr(value)}')
    return value


def parse(text: str, path: Name, line: int = 1, *, halves: bool = False) -> Any:
    """The value of a text of JSON, which begins at line `line` of the file `path`.

    NaN and Infinity are numbers, as Python writes them; the caller checks that a number is finite. `halves` allows
    halves of surrogate pairs, in texts that are only shown.

    Raises:
      ValueError: the text is no JSON, a key of an object has two values, or a string holds half a surrogate pair. The
        message names file and line.
    """
    place = f'{path}, line {line}'
    try:
        value = json.loads(text, object_pairs_hook=_object)
        # No tokenizer takes halves of surrogate pairs, and UTF-8 has none.
        if not halves and HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        place = f'{path}, line {line + error.lineno - 1}'
        fault = f'not valid JSON, {error.msg} at column {error.colno}'
        hint = 'keep one value' if error.msg == 'Extra data' else 'mend it, or get the whole file again'
        raise ValueError(f'{place}: {fault}; {hint}') from None
    except UnicodeEncodeError as error:
        half = f'\\u{ord(error.object[error.start]):04x}'
        raise ValueError(f'{place}: {half} is half of a surrogate pair, so no text; delete it or write both') from None
    except RecursionError:
        raise ValueError(f'{place}: lists or objects lie too deep within each other; is it the right file?') from None
    # A key stands twice, or a number has thousands of digits.
    except ValueError as error:
        raise ValueError(f'{place}: not valid JSON, {error}') from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of keys and values. Raises ValueError where a key has two values."""
    value_of = dict(pairs)
    # Python itself would take the last of several values.
    if len(value_of) < len(pairs):
        for key, value in pairs:
            if value_of[key] != value:
                raise ValueError(f'the key {key!r} has two values in one object; delete one')
    return value_of


def read_yaml(path: Name) -> Any:
    """The value in a file of YAML.

    Raises:
      ValueError: as `read_text`, or the file is no YAML, or a key stands twice. The message names file and line.
    """
    text = read_text(path)
    try:
        _check_nodes(yaml.compose(text, yaml.SafeLoader), set())
        value = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f' in line {mark.line + 1}, column {mark.column + 1}' if mark else ''
        raise ValueError(f'{path}: not valid YAML, {error.problem or error.context}{place}') from None
    except RecursionError:
        raise ValueError(f'{path}: lists or mappings lie too deep within each other; is it the right file?') from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, OverflowError) as error:
        # A scalar with a tag raises whatever Python raises for it: `!!int ""` is an IndexError.
        raise ValueError(f'{path}: not valid YAML, {" ".join(str(error).split())}') from None
    return value


def _check_nodes(node: yaml.Node | None, checked: set[int]) -> None:
    """Raise MarkedYAMLError where a key of a mapping stands twice, or where a text holds half a surrogate pair.

    `checked` has the ids of the nodes that were checked.
    """
    # An alias may name a node that contains the alias.
    if node is None or id(node) in checked:
        return
    checked.add(id(node))
    if isinstance(node, yaml.ScalarNode) and not node.value.isascii():
        try:
            node.value.encode()
        except UnicodeEncodeError:
            problem = 'a text holds half of a surrogate pair'
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark) from None
    names: set[str] = set()
    for part in node.value if isinstance(node, yaml.CollectionNode) else ():
        for child in part if isinstance(part, tuple) else (part,):
            _check_nodes(child, checked)
        if isinstance(part, tuple) and isinstance(part[0], yaml.ScalarNode):
            key = part[0]
            # PyYAML itself would take the last of two equal keys; a merge key may stand several times.
            if key.value in names and key.tag != 'tag:yaml.org,2002:merge':
                raise yaml.MarkedYAMLError(problem=f'the key {key.value} stands twice', problem_mark=key.start_mark)
            names.add(key.value)


def short_repr(value: Any, size: int = 60) -> str:
    """A value as a message shows it: the first `size` characters of its `repr`."""
    text = repr(value)
    return text if len(text) <= size else f'{text[: size - 3]}...'
