"""The prompts of a run: rows with a prompt, which is a text or messages, and any further columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pal_jax.data import chats, records
from pal_jax.data.holdouts import ONE_PROMPT, held_out
from pal_jax.data.readers.formats import PromptedReplies, TextOrMessages, messages_of
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.recipes.rl import sums
from pal_jax.recipes.rl.settings import EMBEDDED, PromptSettings
from pal_jax.run import files
from pal_jax.types import Chat


class PromptRow(NamedTuple):
    """A row: its prompt, the tokens that the policy reads, and its further columns."""

    prompt: TextOrMessages
    ids: tuple[int, ...]
    columns: Mapping[str, Any]

    @property
    def chat(self) -> Chat:
        """The prompt as messages."""
        return chats.as_chat(self.prompt) if isinstance(self.prompt, str) else self.prompt

    @property
    def content(self) -> str:
        """The text by which prompts are compared."""
        return PromptedReplies(self.prompt, ()).content


class Prompts(NamedTuple):
    """The prompts to learn from and those to test on, and the number of rows that were too long."""

    train: list[PromptRow]
    test: list[PromptRow]
    left_out: int

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the further columns of any row."""
        return tuple(dict.fromkeys(name for prompt in (*self.train, *self.test) for name in prompt.columns))


def read_prompts(settings: PromptSettings, tokenizer: Tokenizer, seed: int) -> Prompts:
    """The prompts that the settings name.

    Raises:
      ValueError: a source or a row of it is wrong, or there is nothing to learn from or to test on.
    """
    train, test = (
        [to_prompt(place, row, settings, tokenizer) for place, row in rows_of(source)] if source else []
        for source in (settings.train, settings.test)
    )
    if len(train) < (1 if settings.test else 2):
        short = ' has 1 row; one prompt at least is kept for testing: give 2, or prompts.test'
        raise ValueError(f'prompts.train={settings.train}{short if train else " has no rows"}')
    if len({isinstance(prompt.prompt, str) for prompt in (*train, *test)}) > 1:
        raise ValueError(
            f'prompts.train={settings.train}: some prompts are texts and others messages, and reward functions get '
            'their answers in two forms; give all alike'
        )
    if not settings.test:
        try:
            # Whole prompts are held out, so no row of a tested prompt is learnt.
            held = held_out([prompt.content for prompt in train], settings.test_count, seed=seed)
        except ValueError:
            raise ValueError(f'prompts.train={settings.train}{ONE_PROMPT}, or give prompts.test=FILE') from None
        test = [prompt for prompt, is_held in zip(train, held, strict=True) if is_held]
    tested, rows = {prompt.content for prompt in test}, len(train)
    # A prompt of both sources is tested on and not learnt.
    fits = {'train': [prompt for prompt in train if prompt.content not in tested], 'test': test[: settings.test_count]}
    fits = {split: [p for p in prompts if len(p.ids) <= settings.max_length] for split, prompts in fits.items()}
    for split, prompts in fits.items():
        if not prompts:
            raise ValueError(
                f'none of the {rows} rows of prompts.train={settings.train} is left for prompts.{split}, for '
                f'prompts.max_length={settings.max_length} and without prompts of the test; give others, or raise it'
            )
    return Prompts(fits['train'], fits['test'], sum(len(p.ids) > settings.max_length for p in train))


def rows_of(source: str) -> Iterable[tuple[str, Mapping[str, Any]]]:
    """The rows of a source with their places. Raises ValueError where it is none."""
    if source == EMBEDDED:
        return ((f'{EMBEDDED}, row {number}', row) for number, row in enumerate(sums.make_rows(), 1))
    return records.rows(source)


def to_prompt(place: str, row: Mapping[str, Any], settings: PromptSettings, tokenizer: Tokenizer) -> PromptRow:
    """The prompt of a row. Raises ValueError, with the place, where the row has none."""
    prompt, key = row.get(settings.key), settings.key
    if key not in row:
        raise ValueError(
            f'{place}: there is no {key!r}, but {", ".join(row)}; name the column of prompts by prompts.key'
        )
    if not isinstance(prompt, str | list) or not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise ValueError(f'{place}: {key!r} is {files.short_repr(prompt)}; give a text or a list of messages')
    try:
        prompt = messages_of(row, key) if isinstance(prompt, list) else prompt
        # A text is asked as a chat, unless the settings have it stand as it is.
        ids = tokenizer.prompt(prompt) if isinstance(prompt, str) and not settings.chat else None
        ids = ids or tokenizer.chat(chats.as_chat(prompt) if isinstance(prompt, str) else prompt)
    except ValueError as error:
        raise ValueError(f'{place}: {error}') from None
    return PromptRow(prompt, tuple(ids), {name: value for name, value in row.items() if name != key})
