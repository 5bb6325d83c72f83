"""The meanings of a config's keys, read from the source of the settings: the one place where they are written.

A key's meaning is the comment behind its field, the comment lines above it, or its entry in the docstring of the
class (`clip: ...` under `Attributes:`). `--help` and the site's page of keys show it.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import io
import re
import textwrap
import tokenize
import typing
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from typing import Any, NamedTuple

from pal_jax.run.settings import choices, keys_of

# In --help, meanings begin at this column, and lines end at this width.
COLUMN, WIDTH = 44, 120
# The keys that most runs change, the first ones first: the model, the data, the steps, a batch, and the evaluations.
FIRST = (
    'policy.source', 'policy.lora.rank', 'data.train', 'data.test', 'chat', 'prompts.train', 'prompts.test',
    'reward.function', 'total_steps', 'data.epochs', 'data.batch_size', '*.rollout_batch_size',
    '*.n_samples_per_prompt', 'optimizer.lr', 'data.max_length', 'sampling.max_tokens', 'ppo.kl_coef', 'eval.every',
    'checkpoint.every', 'metrics.wandb',
)  # fmt: skip
ENTRY = re.compile(r'^ *([a-z_]\w*(?:, [a-z_]\w*)*): (.+(?:\n(?! *[a-z_][\w, ]*: ).*\S.*)*)', re.MULTILINE)


class Key(NamedTuple):
    """A key of a config: its dotted name, its value, its meaning, and the values that it may have if they are few."""

    name: str
    value: Any
    meaning: str
    choices: tuple[Any, ...] = ()


class Section(NamedTuple):
    """A section of a config: the class that explains it, its dotted name ('' for the run's own keys), and its keys.

    `use` is what is written of the section itself where one class explains several: which of them this one is.
    """

    kind: type
    name: str
    keys: tuple[Key, ...]
    use: str = ''

    @property
    def place(self) -> str:
        """The file and the class of the section."""
        return f'{self.kind.__module__.replace(".", "/")}.py, class {self.kind.__name__}'


def sections(settings: Any, at: str = '', use: str = '') -> Iterator[Section]:
    """The sections of settings, in the order of their fields; a section's own keys come before its sections."""
    kind = type(settings)
    values = {key: getattr(settings, key) for key in keys_of(kind)}
    inner = {key: value for key, value in values.items() if dataclasses.is_dataclass(value)}
    for key, value in values.items():
        # A mapping, such as `endpoints`, has a section for each of its names.
        if isinstance(value, Mapping):
            inner |= {f'{key}.{name}': section for name, section in value.items()}
    hints, texts = typing.get_type_hints(kind), meanings(kind)
    plain = (key for key, value in values.items() if key not in inner and not isinstance(value, Mapping))
    yield Section(
        kind, at, tuple(Key(f'{at}{key}', values[key], texts[key], tuple(choices(hints[key]))) for key in plain), use
    )
    for key, section in inner.items():
        yield from sections(section, f'{at}{key}.', texts.get(key, ''))


def described(settings: Any) -> Iterator[str]:
    """Lines for `--help`: the keys that most runs change, then all keys by section."""
    parts = list(sections(settings))
    every = [key for section in parts for key in section.keys]
    if first := [key for pattern in FIRST for key in every if fnmatch(key.name, pattern)]:
        yield from ('', 'keys that most runs change', *_lines(first))
    for section in parts:
        yield from ('', f'{section.name[:-1] or "run"}: {title_of(section)}')
        yield from _lines(section.keys)


def _lines(keys: Iterable[Key]) -> Iterator[str]:
    """Keys as options, with their values and meanings."""
    for key in keys:
        option = f'  --config.{key.name}={plain_text(key.value)}'
        lines = textwrap.wrap(with_choices(key), WIDTH - COLUMN)
        # A long option has its meaning below, and not beside it.
        beside = lines[:1] if len(option) < COLUMN else []
        yield f'{option:{COLUMN}}{beside[0]}' if beside else option
        yield from (' ' * COLUMN + line for line in lines[len(beside) :])


def title_of(section: Section) -> str:
    """The first sentence on a section's class, and the use of this one."""
    return f'{first_sentence(section.kind)}{f"; {section.use}" if section.use else ""}'


def with_choices(key: Key) -> str:
    """The meaning of a key, with the values that it may have where they are few."""
    known = ', '.join(str(choice) or "''" for choice in key.choices)
    return f'{key.meaning} ({known})' if known else key.meaning


def plain_text(value: Any) -> str:
    """A value as it stands behind `--config.key=`, without line breaks."""
    return repr(value)[1:-1] if isinstance(value, str) else str(value)


def first_sentence(kind: type) -> str:
    """The first sentence of a class's docstring, without its full stop."""
    paragraph = ' '.join(inspect.cleandoc(kind.__doc__ or '').split('\n\n')[0].split())
    # The full stop of "et al." ends no sentence.
    return re.split(r'(?<! al)\.(?: |$)', paragraph)[0]


def meanings(kind: type) -> dict[str, str]:
    """The meaning of each field of a dataclass, by name; '' where nothing is written."""
    texts: dict[str, str] = dict.fromkeys((field.name for field in dataclasses.fields(kind)), '')  # type: ignore[arg-type]
    # A class comes after those that it builds on, so its own texts count.
    for base in reversed(kind.__mro__):
        if dataclasses.is_dataclass(base):
            texts |= {name: text for name, text in _written(base).items() if text}
    return texts


@functools.cache
def _written(kind: type) -> dict[str, str]:
    """The meanings that the source of a class itself has."""
    source = textwrap.dedent(inspect.getsource(kind))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token for token in tokens if token.type == tokenize.COMMENT}
    alone = {line for line, token in comments.items() if token.line.strip().startswith('#')}
    entries = {
        name: ' '.join(match[2].split())
        for match in ENTRY.finditer(inspect.cleandoc(kind.__doc__ or ''))
        for name in match[1].split(', ')
    }
    texts = {}
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.ClassDef)
    for field in definition.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            name, first, last = field.target.id, field.lineno, field.end_lineno or field.lineno
            # Comment lines directly above a field belong to it.
            while first - 1 in alone:
                first -= 1
            lines = [comments[line].string.lstrip('# ') for line in range(first, last + 1) if line in comments]
            texts[name] = ' '.join(lines) or entries.get(name, '')
    return texts
