"""Runs from Python: what the commands do, as functions.

    import pal_jax
    run = pal_jax.train('rl', {'prompts.train': 'prompts.jsonl', 'total_steps': 20}, reward=my_function)
    run.metrics[-1]['reward'], run.folder
    run.model(['What is 3 + 4?'])                                       # answers of the trained model
    pal_jax.evaluate('runs/rl', reward=my_function)                     # a record of figures
    pal_jax.score('runs/reward', [{'prompt': 'Hi', 'completion': 'Hello.'}])    # numpy [records]
    pal_jax.score('runs/pal', 'pairs.csv', person='ana.json')           # of the records of a file
    pal_jax.personalize('runs/pal', 'ana.csv')                          # {'effects': ...} or {'mixture': ...}

Errors that a command shows as one line are ValueError (a wrong input) and RuntimeError here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from pal_jax.data import chats
from pal_jax.judges.local_model import LocalModel
from pal_jax.models.files import sources
from pal_jax.recipes.personal.attributes import with_points
from pal_jax.recipes.personal.pal import by_logit
from pal_jax.recipes.personal.pal import person as pal_person
from pal_jax.recipes.personal.pal.reward import open_pal
from pal_jax.run import devices, loop, named_files, own, trained, verdict
from pal_jax.run.config_files import settings_of
from pal_jax.run.faults import Fault, faults
from pal_jax.run.files import at_home, short_repr, write_whole
from pal_jax.run.metrics import EVALS, EXHIBITS, METRICS, plain, read_records
from pal_jax.run.recipe import Context
from pal_jax.run.runs import read_settings
from pal_jax.run.settings import Run
from pal_jax.run.shipped import config_path
from pal_jax.run.workdir import REPORT, read_run, run_folder
from pal_jax.scoring import open_scorer, read_file
from pal_jax.types import Chat, Sampling

# A reward takes prompts, completions and further columns, and gives a number for each answer.
Reward = Callable[..., Sequence[float | None]]
# A callback takes the number of a step and its figures.
Callback = Callable[[int, dict[str, Any]], Any]
SLOTS = 16  # answers that a trained model decodes at once


@dataclasses.dataclass(frozen=True)
class CompletedRun:
    """A run that is finished, or was stopped by a signal, in its folder."""

    folder: Path

    def __repr__(self) -> str:
        recipe, steps = read_run(self.folder)['recipe'], len(self.metrics)
        # The words before the first colon are the question and the short answer.
        answer = self.verdict.partition(':')[0] or None
        return f'<CompletedRun of {recipe}, steps: {steps}, folder: {self.folder}, verdict: {answer}>'

    @property
    def report(self) -> Path:
        """The page with all figures of the run."""
        return self.folder / REPORT

    @property
    def verdict(self) -> str:
        """The sentence of the console on whether the run learnt; '' where it has no figure that tells of learning."""
        return verdict.verdict_line(self.folder).strip()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The figures of each step."""
        return read_records(self.folder / METRICS)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The figures of each evaluation, the last one at the end."""
        return read_records(self.folder / EVALS)

    @property
    def tables(self) -> dict[str, list[dict[str, str]]]:
        """The tables of the report after the last evaluation, by their titles: a dictionary for each row, by the heads
        of the columns. `pandas.DataFrame(run.tables['What people want'])` is one of them. Methods whose evaluations
        have figures alone have no tables: see `metrics` and `evaluations`."""
        exhibits = read_records(self.folder / EXHIBITS)
        last = [exhibit for exhibit in exhibits if exhibit['step'] == exhibits[-1]['step'] and exhibit['table']]
        return {
            exhibit['title']: [dict(zip(exhibit['table'][0], row, strict=True)) for row in exhibit['table'][1:]]
            for exhibit in last
        }

    @functools.cached_property
    def model(self) -> Callable[..., list[str | None]]:
        """The trained language model: a function that answers texts or chats, with None where one is too long.

        `model(prompts, seed=0, max_tokens=None, temperature=None)` samples as the run did where these are None.

        Raises:
          ValueError: the run trains no language model.
        """
        mesh = devices.make_mesh()
        source = sources.resolve(f'orbax:{self.folder}', open_run=lambda run: trained.open_run(run, Context(mesh)))
        sampling = getattr(read_settings(self.folder), 'sampling', Sampling(max_tokens=256))
        model = LocalModel(source, mesh, sampling, slots=SLOTS)

        def answer(
            prompts: Sequence[str | Chat],
            seed: int = 0,
            max_tokens: int | None = None,
            temperature: float | None = None,
        ) -> list[str | None]:
            """The answers to texts or chats, None where one is too long.

            Raises:
              ValueError: `prompts` is a single text, or `max_tokens` leaves no room for a prompt.
            """
            if isinstance(prompts, str):
                raise ValueError(f'prompts is a text; give a list of prompts, such as [{prompts[:40]!r}]')
            if max_tokens and max_tokens > model.longest:
                raise ValueError(f'max_tokens={max_tokens} leaves no room for a prompt; give {model.longest} or fewer')
            given = {'max_tokens': max_tokens, 'temperature': temperature}
            changed = dataclasses.replace(sampling, **{key: value for key, value in given.items() if value is not None})
            questions = [chats.as_chat(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
            return model(questions, seed, changed)

        return answer


def open_run(workdir: str | os.PathLike[str]) -> CompletedRun:
    """The run in a folder. Raises ValueError where the folder is not that of one run."""
    folder = Path(run_folder(workdir))
    read_run(folder)
    return CompletedRun(folder)


def train(
    config: str,
    changes: Mapping[str, Any] | None = None,
    *,
    reward: Reward | Sequence[Reward] = (),
    callback: Callback | None = None,
    workdir: str | os.PathLike[str] | None = None,
    changed: str | Sequence[str] = (),
) -> CompletedRun:
    """Train, or go on where the run stopped.

    Args:
      config: the name of a config of the package or a config file, with `:variant` behind it, such as 'rl:smoke'.
      changes: values by the keys of the config, with dots, such as `{'ppo.kl_coef': 0.1}`. A key that takes
        FILE.py:NAME takes a function or a class of this program as well, as in `{'rl.game': MyGame}`. A key that takes
        a file of rows takes the rows, as dictionaries, a pandas table or a `datasets.Dataset`; the run's folder keeps
        them. The keys of a section may stand in a dictionary, as in `{'ppo': {'kl_coef': 0.1}}`.
      reward: functions of this program that pay answers, for methods with `reward.function`.
      callback: a function that is called after each step with its number and its figures, those of metrics.jsonl. An
        exception in it ends the run after a checkpoint, and `train` raises it.
      workdir: the folder of the run, by default runs/<config>.
      changed: a key of an own function that has changed since the run began, such as 'reward.function', or several; the
        run goes on with what they are now.

    Raises:
      ValueError: an input is wrong.
      RuntimeError: a model or a file cannot be had, or an own function fails.
      KeyboardInterrupt: a signal stopped the run; its checkpoint is saved.
    """
    paying = _by_name(reward)
    if changes is not None and not isinstance(changes, Mapping):
        raise ValueError(f"changes is a {type(changes).__name__}; give a dictionary of keys, such as {{'data': rows}}")
    with _errors({}):
        path = config_path(config)
        defaults = settings_of(path, ())
    changes, failures = _flat(changes or {}, defaults), list[Exception]()
    functions = _by_name([*paying.values(), *(part for value in changes.values() for part in _callables(value))])
    # The folder is named after config and variant.
    name = config.replace(':', '-').rpartition('/')[2].replace('.py', '')
    # A file of rows is named after its content, so that other rows have another file.
    files: dict[str, Path] = {}
    with _errors(files), own.given(functions):
        _check_callback(callback)
        folder = Path(at_home(os.fspath(workdir or Path('runs') / name)))
        if paying and not hasattr(getattr(defaults, 'reward', None), 'function'):
            raise ValueError(f'reward=: {config.partition(":")[0]} takes no reward; use rl or rlpa')
        rows = {key: lines for key, value in changes.items() if (lines := _lines(key, value, _default(defaults, key)))}
        for key, lines in rows.items():
            files[key] = folder / 'rows' / f'{key}-{hashlib.sha256(lines.encode()).hexdigest()[:12]}.jsonl'
        settings = settings_of(path, _changes_of(changes, paying, defaults, files))
        for key, file in files.items():
            faults(_write, file, rows[key])
        keys = [changed] if isinstance(changed, str) else changed
        stopped = loop.train_all(settings, folder, name=config, changed=keys, stops=_stops(callback, failures))
    if failures:
        raise failures[0]
    if stopped:
        raise KeyboardInterrupt(f'{folder} was stopped; the same call goes on')
    return CompletedRun(folder)


def evaluate(
    workdir: str | os.PathLike[str], *, step: int | None = None, reward: Reward | Sequence[Reward] = ()
) -> dict[str, Any]:
    """The figures of a checkpoint of a run, by default the last one. A run that has functions or classes of a Python
    program (rewards, a judge, a game) needs them again, all of them as `reward`.

    Raises:
      ValueError: the folder is not that of a run, or has no such checkpoint.
    """
    with _errors({}), own.given(_by_name(reward)):
        workdir = run_folder(workdir)
        at, evaluation = loop.evaluate_checkpoint(read_settings(workdir), Path(workdir), step)
    return {'step': at, **evaluation.record}


def score(
    source: str | os.PathLike[str],
    records: Any,
    *,
    person: str | int | os.PathLike[str] | Mapping[str, Any] = '',
) -> np.ndarray:
    """The scores `[records]` of records by the model of a run, see `scoring.open_scorer`, which opens it once for many
    calls.

    The records are the path of a file as `pal-jax score --texts` takes it, dictionaries, a pandas table or a
    `datasets.Dataset`. For a PAL of a table each is an option or a pair in columns of its own. Pairs have the
    probability of the first side, and options in a table with a column of situations have the probability with which
    each is chosen from its situation: without a person, its share of all people. `person` may also be a record of
    `personalize`.

    Raises:
      ValueError: the run scores nothing, or a record or the person is wrong.
    """
    path = at_home(os.fspath(records)) if isinstance(records, str | os.PathLike) else ''
    placed = read_file(path) if path else _placed(records)
    if isinstance(person, Mapping):
        with _file_of(json.dumps(plain(person))) as file, _errors({'person': file}):
            scorer = open_scorer(source, file)
    else:
        scorer = open_scorer(source, person)
    return scorer.of_placed(with_points(path, placed, scorer.attributes) if path else placed)


def _placed(records: Any) -> list[tuple[str, Any]]:
    """Records of this program with their numbers. Raises ValueError where they are none."""
    rows = records if isinstance(records, list | tuple) else _rows('records', records, True)
    if rows is None:
        raise ValueError(
            f'records is a {type(records).__name__}; give a file, a list of dictionaries or a pandas table'
        )
    return [(f'record {number}', plain(row)) for number, row in enumerate(rows, 1)]


def personalize(source: str | os.PathLike[str], choices: Any, *, split: int | None = None) -> dict[str, Any]:
    """A new person by the choices in a file (docs/howto/choices.md), a list of dictionaries or a pandas table: the
    `effects` of attributes by the run's mixed logit, or the `mixture` of PAL's prototypes, whichever describes people
    better (docs/howto/new_people.md).

    With `split` the record is the mixture of this split of the run.

    `pal_jax.score(..., person=...)` takes the record, or a file of it.

    Raises:
      ValueError: the run is none of PAL, or a row of the file is wrong.
    """
    run = open_pal(run_folder(source), split)
    by_logit.warn(run)
    rows = _lines('choices', choices)
    if not rows and not isinstance(choices, str | os.PathLike):
        raise ValueError(
            f'choices is a {type(choices).__name__}; give a file, a list of dictionaries or a pandas table'
        )
    if not rows:
        choices_of_person = pal_person.read_choices(run, os.fspath(choices))
    else:
        with _file_of(rows) as file, _errors({'choices': file}):
            choices_of_person = pal_person.read_choices(run, str(file))
    return by_logit.learn(run, choices_of_person)


def _by_name(reward: Reward | Sequence[Reward]) -> dict[str, Reward]:
    """Functions and classes by the names that a config has for them. Raises ValueError where two have one."""
    functions = [reward] if callable(reward) else list(reward)
    if not all(map(callable, functions)):
        raise ValueError(f"reward={reward!r} is no function; a file goes into {{'reward.function': 'FILE.py:NAME'}}")
    by_name = {own.name_of(function): function for function in functions}
    if len(by_name) < len(functions):
        raise ValueError('two functions have one name; rename one, configs and figures call them by it')
    return by_name


def _flat(changes: Mapping[str, Any], defaults: Run, at: str = '') -> dict[str, Any]:
    """Changes by keys with dots, where the keys of a section may stand in a dictionary."""
    flat: dict[str, Any] = {}
    for key, value in changes.items():
        # Where the config has a text, a dictionary is wrong data, which `_rows` refuses.
        is_section = isinstance(value, Mapping) and not isinstance(_default(defaults, f'{at}{key}'), str)
        flat |= _flat(value, defaults, f'{at}{key}.') if is_section else {f'{at}{key}': value}
    return flat


def _lines(key: str, value: Any, default: Any = '') -> str:
    """The rows of data that a value of a change is, as lines of JSON; '' where the value is something else.

    `default` is the value of the key in the config.

    Raises:
      ValueError: as `_rows`, a row is no dictionary, or JSON does not hold a value of it.
    """
    # A list for another text, such as addresses, has commas between its parts.
    is_text = isinstance(default, str) and (not isinstance(value, list | tuple) or _takes_rows(key, default))
    lines = []
    for number, row in enumerate(_rows(key, value, is_text) or (), 1):
        if not isinstance(row, Mapping):
            raise ValueError(
                f"{key}, row {number}: {short_repr(row)} is no row; give a dictionary, such as {{'prompt': 'Hello'}}"
            )
        try:
            lines.append(json.dumps(plain(row)) + '\n')
        except TypeError as error:
            raise ValueError(f'{key}, row {number}: {error}; rows are written as JSON') from None
    return ''.join(lines)


def _takes_rows(key: str, default: str) -> bool:
    """True for a key whose text names data."""
    patterns = (*named_files.KEYS, *named_files.OTHERS)
    names_data = named_files.NAME.fullmatch(default) or default.startswith(named_files.ELSEWHERE)
    return bool(names_data) or any(fnmatch(key, pattern) for pattern in patterns)


def _rows(key: str, value: Any, is_text: bool) -> Sequence[Any] | None:
    """The rows that a value of a change is, None where the value is something else.

    With `is_text` the key's value is a text in the config, so that a list or a mapping is of rows or wrong.

    Raises:
      ValueError: there are no rows, or the value holds rows in another way.
    """
    rows = None
    if hasattr(value, 'iterrows'):
        if not value.columns.is_unique:
            raise ValueError(f'{key}: two columns of the table have one name; rename or drop one')
        # A table of pandas has several values for what is missing, which JSON lacks.
        rows = value.astype(object).where(value.notna(), None).to_dict('records')
    elif hasattr(value, 'to_list'):
        rows = value.to_list()
    elif isinstance(value, list | tuple):
        is_rows = not _are_functions(value) if is_text else bool(value) and isinstance(value[0], Mapping)
        rows = value if is_rows else None
    elif is_text and isinstance(value, Mapping):
        names = [repr(name) for name in value]
        advice = f'give one of them, such as [{names[0]}]' if hasattr(value, 'num_rows') else 'give a list of rows'
        raise ValueError(f'{key} is a {type(value).__name__} of {", ".join(names[:5]) or "nothing"}; {advice}')
    elif is_text and isinstance(value, Iterable) and not isinstance(value, str) and not callable(value):
        # A generator and a data set that streams give their rows once.
        rows = list(value)
    if rows is not None and not rows:
        raise ValueError(f'{key}: there are no rows in it')
    return rows


def _are_functions(value: Sequence[Any]) -> bool:
    return bool(value) and all(callable(part) or own.is_own(part) for part in value)


def _changes_of(
    changes: Mapping[str, Any], paying: Mapping[str, Reward], defaults: Run, files: Mapping[str, Path]
) -> tuple[str, ...]:
    """The changes of a config as texts KEY=VALUE. Raises ValueError where a value is None or a file is not there."""
    texts = {key: str(files.get(key) or _text(key, value, _default(defaults, key))) for key, value in changes.items()}
    # The files of rows are not written yet.
    if line := named_files.first_missing([f'--config.{key}={text}' for key, text in texts.items() if key not in files]):
        raise ValueError(line)
    if paying:
        texts['reward.function'] = _text('reward.function', [*paying.values()], '')
    return tuple(f'{key}={text}' for key, text in texts.items())


def _default(settings: Run, key: str) -> Any:
    """The value of a key with dots in settings, None where they have no such key."""
    value: Any = settings
    for part in key.split('.'):
        value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
    return value


def _stops(callback: Callback | None, failures: list[Exception]) -> loop.Stops:
    """A function of a step and its figures that calls the callback and is True where that fails. `failures` takes its
    exception, which waits until the loop has saved a checkpoint."""

    def stops(step: int, figures: Mapping[str, Any]) -> bool:
        try:
            if callback:
                callback(step, plain(figures))
        except Exception as error:
            failures.append(error)
        return bool(failures)

    return stops


def _check_callback(callback: Any) -> None:
    """Raise ValueError where a callback cannot be called with a step and its figures."""
    if callback is None:
        return
    try:
        # Python knows no signature of some builtins, which may take anything.
        with contextlib.suppress(ValueError):
            inspect.signature(callback).bind(0, {})
    except TypeError as error:
        raise ValueError(f'callback={short_repr(callback)}: {error}; it is called with step, metrics') from None


@contextlib.contextmanager
def _file_of(lines: str) -> Iterator[Path]:
    """A file of JSON lines for as long as the block lasts."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'choices.jsonl'
        file.write_text(lines, encoding='utf-8')
        yield file


def _write(file: Path, lines: str) -> None:
    """Write the lines of a file, and the folder that it lies in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Other processes of the run may read the file meanwhile.
    write_whole(file, lines)


def _callables(value: Any) -> list[Any]:
    """The functions and classes in a value of a change."""
    return [part for part in (value if isinstance(value, list | tuple) else [value]) if callable(part)]


def _text(key: str, value: Any, default: Any) -> str:
    """A value of a change as the text of a config, in which functions and classes have their names.

    `default` is the value of the key in the config; where it is a text, several functions have commas between them.
    """
    if value is None:
        raise ValueError(f'{key} is None; leave it out, or give a value')
    if isinstance(value, list | tuple):
        parts = tuple(_text(key, part, default) if callable(part) else part for part in value)
        return ','.join(parts) if isinstance(default, str) else str(parts)
    return f'{own.PYTHON}{own.name_of(value)}' if callable(value) else str(value)


@contextlib.contextmanager
def _errors(files: Mapping[str, Path]) -> Iterator[None]:
    """A block whose faults are errors of Python again, in the words of Python.

    `files` has the files that rows of this program stand in, by the key or argument that the rows were given for.
    """
    try:
        yield
    except (Fault, ValueError, RuntimeError) as error:
        # A fault of code 2 is a wrong input.
        wrong = error.code == 2 if isinstance(error, Fault) else isinstance(error, ValueError)
        line = _in_python(str(error), files)
        if line == str(error) and not isinstance(error, Fault):
            raise
        raise (ValueError if wrong else RuntimeError)(line) from error.__cause__


def _in_python(line: str, files: Mapping[str, Path]) -> str:
    """An error of a command in the words of Python: arguments in place of flags, and rows in place of their files."""
    for key, file in files.items():
        rows = re.escape(str(file.parent / key)) + r'-\w{12}\.jsonl'
        line = re.sub(f"'{rows}' -> '{rows}'", 'it has other rows', line)
        name = rf"(?:{re.escape(key)}=)?'?(?:{re.escape(str(file.absolute()))}|{re.escape(str(file))})'?"
        line = re.sub(rf'{name}, (?:line|record) (\d+)', rf'{key}, row \1', line)
        line = re.sub(r'\(also line(s?) ', r'(also row\1 ', re.sub(name, key, line))
    line = re.sub(r"'python:(\w+)'", r'\1', line)
    return re.sub(r'--(?:config\.|(?=workdir\b|config\b|changed\b))', '', line)
