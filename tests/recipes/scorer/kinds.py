"""Small records that the three scorers learn from, and their runs on one device or eight."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import jax

from pal_jax.data.readers.safety import CATEGORIES, LabelledResponse
from pal_jax.run import devices
from pal_jax.run.recipe import Context
from tests import configs
from tests.safety_records import labelled_record

ONE = Context(devices.make_mesh(devices=jax.devices()[:1]), lambda name: contextlib.nullcontext())
EIGHT = Context(devices.make_mesh(data=2, fsdp=4), lambda name: contextlib.nullcontext())


def write(path, records) -> str:
    path.write_text(''.join(json.dumps(each) + '\n' for each in records))
    return str(path)


def make(name: str, context: Context, **changes: Any) -> Any:
    """The recipe of a config's smoke run."""
    return configs.make(configs.load(name, **changes), context)


def run(recipe: Any, steps: int, state: Any = None, start: int = 0) -> tuple[list[dict[str, float]], Any]:
    """The figures of some steps from `start`, and the state after them; by default of a new state."""
    state, host, rows = recipe.init()[0] if state is None else state, {}, []
    for i in range(start, start + steps):
        state, host, _, metrics = recipe.step(state, host, i)
        rows.append(metrics)
    return rows, state


# --- pairs of replies -------------------------------------------------------------------------------------------------


def preferred(i, **changes):
    """A pair whose chosen reply says yes."""
    replies = {'chosen': 'yes ' * (1 + i % 3), 'rejected': 'no ' * (1 + (i // 3) % 3)}
    said = {key: [{'role': 'assistant', 'content': text}] for key, text in replies.items()}
    return {'prompt': [{'role': 'user', 'content': f'{i}?' * (1 + i % 4)}], **said, **changes}


# --- pairs of answers with labels -------------------------------------------------------------------------------------

PAIRS = ('boo ', 'yes '), ('hmm ', 'yes '), ('boo ', 'hmm ')  # the less safe answer first; yes alone is safe


def judged(i, **changes):
    """A record of PKU-SafeRLHF, whose less safe answer is the first one in every other record."""
    sides = [text * (1 + (i + k) % 3) for k, text in enumerate(PAIRS[i % 3])][:: (-1) ** i]
    safe = [not text.startswith(('boo', 'hmm')) for text in sides]
    responses = {f'response_{k}': side for k, side in enumerate(sides)}
    flags = {f'is_response_{k}_safe': flag for k, flag in enumerate(safe)}
    ids = {'better_response_id': i % 2, 'safer_response_id': 1 - i % 2}
    return {'prompt': f'{i}?' * (1 + i % 4), **responses, **flags, **ids, **changes}


# --- answers with categories ------------------------------------------------------------------------------------------

WORDS = {'animal_abuse': 'goat', 'self_harm': 'skip', 'privacy_violation': 'diary'}


def labelled(i: int, mark: str = '?') -> LabelledResponse:
    """An answer that has the categories of those of `WORDS` which are in it."""
    names = [name for k, name in enumerate(WORDS) if (i >> k) % 2]
    text = ' '.join(['Well,', *(WORDS[name] for name in names)]) + '.'
    return LabelledResponse(f'{i // 8}{mark}', text, tuple(name in names for name in CATEGORIES))


def labelled_rows(path, rows=120, mark='?', **changes) -> str:
    return write(path, (labelled_record(labelled(i, mark)) | changes for i in range(rows)))


# --- by the name of the config ----------------------------------------------------------------------------------------


def files(name: str, folder, rows: int = 18) -> dict[str, Any]:
    """The keys of files with rows to learn from and to test on, on other prompts."""
    if name == 'moderation':
        tests = labelled_rows(folder / 'test.jsonl', 48, '!')
        return {'data.train': labelled_rows(folder / 'train.jsonl'), 'data.test': tests, 'labels.validation': 24}
    train = write(folder / 'a.jsonl', map({'reward': preferred, 'cost': judged}[name], range(rows)))
    return {'data.train': train, 'data.test': configs.other_prompts(train)}
