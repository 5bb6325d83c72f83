"""People's choices between two texts, and the texts as tokens. Each text is there once, and pairs have its number.

A file of pairs has records in the formats of `data/readers/formats.py`, with a user beside; texts may also be messages:

    {"user": "ana", "prompt": "...", "chosen": "...", "rejected": "..."}                  replies to a prompt
    {"user": "ana", "chosen": "...", "rejected": "...", "group": "north"}                 statements, without a prompt

`records.identity` reads `user` and `group`. `group` is a known opinion group, which no model reads. PAL-A reads a
prompt with its reply, and the states of the reply count. PAL-B reads replies alone and the prompt alone (psoups_pal
II.2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from pal_jax.data import chats, records, surveys
from pal_jax.data.comparisons import Comparisons, Lookup
from pal_jax.data.packing import Example, Layout, PromptGroup, lay_out, pack_groups, round_up, shared_prompt
from pal_jax.data.readers import formats
from pal_jax.data.readers.votes import Votes, draw_pairs
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.objectives.preference import TokenWeighting, differing_span, token_weights
from pal_jax.run import files
from pal_jax.types import Choice, TokenBatch

Pool = Literal['mean', 'last']


class Text(NamedTuple):
    """Tokens whose states count, and the tokens that are read before them."""

    tokens: tuple[int, ...]
    before: tuple[int, ...] = ()


class TextPairs(NamedTuple):
    """`n` pairs by column. `prompt`, `chosen` and `rejected` are numbers of `texts`, and `words` are the texts' words.

    `names` are the users', and `groups` are the users' groups, numbers of `group_names`, -1 where a group is not known.
    With `chat` prompts and replies are messages.
    """

    users: np.ndarray  # [n]
    chosen: np.ndarray  # [n]
    rejected: np.ndarray  # [n]
    prompt: np.ndarray | None  # [n]
    texts: tuple[Text, ...]
    words: tuple[str, ...]
    names: tuple[str, ...]
    groups: np.ndarray  # [users]
    chat: bool = False
    group_names: tuple[str, ...] = ()

    def in_states(self, table: np.ndarray) -> Comparisons:
        """The pairs with the vectors of their texts, from a table `[texts, H]` or, for replicas, `[R, texts, H]`."""
        kind = Lookup if table.ndim == 2 else Replicas
        chosen, rejected = kind(table, self.chosen), kind(table, self.rejected)
        prompt = None if self.prompt is None else kind(table, self.prompt)
        attributes = tuple(f'x{i}' for i in range(table.shape[-1]))
        situations = np.arange(len(self.users))
        return Comparisons(
            self.users,
            situations,
            chosen,
            rejected,
            prompt,
            self.names,
            attributes,
            self.words,
            self.groups,
            self.group_names,
        )


# --- from files -------------------------------------------------------------------------------------------------------


class RecordTexts(NamedTuple):
    """The texts of one record as tokens and as words."""

    user: str
    group: str
    prompt: tuple[Text, str] | None
    chosen: tuple[Text, str]
    rejected: tuple[Text, str]
    chat: bool


def read(
    path: str | Path,
    tokenizer: Tokenizer,
    *,
    alone: bool,
    template: str = '{}',
    answered: bool = True,
    drop: records.Drop | None = None,
) -> TextPairs:
    """The pairs of a file.

    Args:
      alone: replies are read alone, and not after their prompts.
      template: a text with `{}` in which a statement is put.
      answered: False where nobody has chosen yet. The first side then counts as chosen, see `records.unanswered`.
      drop: takes a line about wrong records, which are left out (`records.converted`); None: they are refused.

    Raises:
      ValueError: a record is wrong, and the message names file and line; or some records have a prompt and others none.
    """
    table = files.format_of(Path(path)) == '.csv'

    def convert(record: Any) -> RecordTexts:
        record = surveys.named(record) if answered and isinstance(record, dict) else record
        # An empty cell of a table is no field.
        record = {name: cell for name, cell in record.items() if cell} if table else record
        return to_said(record if answered else records.unanswered(record), tokenizer, alone=alone, template=template)

    return to_pairs(records.read_all(path, convert, drop=drop), path)


def from_choices(
    choices: Iterable[Choice], tokenizer: Tokenizer, *, alone: bool, template: str, name: str
) -> TextPairs:
    """The pairs of choices from another reader, such as `opinions.read`. `name` is for messages; see `read`.

    Raises:
      ValueError: there is no choice, or the two texts of one have the same tokens.
    """
    converted, read_before = [], dict[tuple[str, str, str], RecordTexts]()
    for number, choice in enumerate(choices, 1):
        record = {key: value for key, value in vars(choice).items() if value}
        texts = choice.prompt, choice.chosen, choice.rejected
        try:
            # Many people may choose between the same texts, which are then tokens already.
            if texts in read_before and 'user' in record:
                user, group = records.identity('', record, 'user'), records.known('', record, 'group')
                converted.append(read_before[texts]._replace(user=user, group=group))
                continue
            converted.append(to_said(record, tokenizer, alone=alone, template=template))
            read_before[texts] = converted[-1]
        except ValueError as error:
            raise ValueError(f'{name}, choice {number}: {error}') from None
    if not converted:
        raise ValueError(f'{name} has no choices')
    return to_pairs(converted, name)


def to_pairs(converted: Sequence[RecordTexts], name: str | Path) -> TextPairs:
    """The pairs of converted records, with each text and user once. Raises ValueError where only some have a prompt."""
    # Two spellings of an id are one person.
    who = records.first_spelling()
    converted = [pair._replace(user=who(pair.user)) for pair in converted]
    prompted = [pair.prompt is not None for pair in converted]
    if any(prompted) and not all(prompted):
        raise ValueError(f'{name}: row {prompted.index(False) + 1} has no prompt, others have one; give all or none')
    number: dict[Text, int] = {}
    words: list[str] = []

    def numbered(text: Text, word: str) -> int:
        if text not in number:
            number[text] = len(number)
            words.append(word)
        return number[text]

    chosen = np.array([numbered(*pair.chosen) for pair in converted], np.int32)
    rejected = np.array([numbered(*pair.rejected) for pair in converted], np.int32)
    prompt = (
        np.array([numbered(*pair.prompt) for pair in converted if pair.prompt], np.int32) if any(prompted) else None
    )
    # A person's group need not stand in every row of theirs.
    group_of = dict.fromkeys((pair.user for pair in converted), '') | {
        pair.user: pair.group for pair in converted if pair.group
    }
    names, group_names = tuple(group_of), tuple(sorted({group for group in group_of.values() if group}))
    place = {name: i for i, name in enumerate(names)}
    users = np.array([place[pair.user] for pair in converted], np.int32)
    groups = np.array([group_names.index(group) if group else -1 for group in group_of.values()], np.int32)
    chat = converted[0].chat
    return TextPairs(users, chosen, rejected, prompt, tuple(number), tuple(words), names, groups, chat, group_names)


def to_said(record: Any, tokenizer: Tokenizer, *, alone: bool, template: str = '{}') -> RecordTexts:
    """The texts of a record. Raises ValueError where the record is wrong, or its two sides have the same tokens."""
    record = surveys.named(record) if isinstance(record, dict) else record
    if not isinstance(record, dict):
        raise ValueError(f"expected an object with 'user', 'chosen' and 'rejected', got {files.short_repr(record)}")
    if 'user' not in record:
        raise ValueError(
            f'the person is missing or empty; give {", ".join(surveys.PEOPLE)}; got keys {", ".join(map(str, record))}'
        )
    user, group = records.identity('', record, 'user'), records.known('', record, 'group')
    # Statements answer nothing, so their sides are texts by themselves.
    if is_of_statements(record):
        sides: Sequence[formats.TextOrMessages] = [record[side] for side in formats.SIDES]
        texts, prompt = [to_text(tokenizer, side, template) for side in sides], None
    else:
        pair, read = chats.to_prefer(record, tokenizer), formats.preferred(record)
        texts, before = replies(tokenizer, pair.chosen.prompt, [side.completion for side in pair], alone=alone)
        sides, prompt = read.replies, (before, in_words(read.prompt))
    if texts[0] == texts[1]:
        raise ValueError("'chosen' and 'rejected' are the same; delete the row")
    chosen, rejected = zip(texts, map(in_words, sides), strict=True)
    return RecordTexts(user, group, prompt, chosen, rejected, isinstance(sides[0], list))


def is_of_statements(record: Mapping[str, Any]) -> bool:
    """True where both sides of a record are texts, and no key has a prompt that they answer."""
    answered = any(record.get(key) is not None for key in ('prompt', 'instruction', 'conversations'))
    return not answered and all(isinstance(record.get(side), str) for side in formats.SIDES)


def replies(
    tokenizer: Tokenizer, prompt: Sequence[int], completions: Sequence[Sequence[int]], *, alone: bool
) -> tuple[list[Text], Text]:
    """Replies and their prompt as texts. Replies `alone` follow the tokenizer's opening, others follow the prompt."""
    start = tuple(tokenizer.opening) if alone else ()
    before = () if alone else tuple(prompt)
    return [Text((*start, *completion), before) for completion in completions], Text(tuple(prompt))


def to_reply(tokenizer: Tokenizer, prompt: Any, reply: Any, *, chat: bool, alone: bool) -> tuple[Text, Text]:
    """A reply and its prompt as tokens. Both may be texts or messages, and with `chat` texts become messages."""
    if chat:
        prompt = [{'role': 'user', 'content': prompt}] if isinstance(prompt, str) else prompt
        reply = [{'role': 'assistant', 'content': reply}] if isinstance(reply, str) else reply
    example = chats.to_imitate({'prompt': prompt, 'completion': reply}, tokenizer)
    (text,), prompt_text = replies(tokenizer, example.prompt, [example.completion], alone=alone)
    return text, prompt_text


def to_text(tokenizer: Tokenizer, words: str, template: str = '{}') -> Text:
    """A statement by itself, put in the template. Raises ValueError where both are empty."""
    tokens = tuple(tokenizer.statement(words, template))
    if not template.format(words).strip() or not tokens:
        raise ValueError('a text is empty; delete the row')
    return Text(tokens)


def in_words(content: formats.TextOrMessages | None) -> str:
    """A text as it is, or the content of the last message of a list; '' where there is neither."""
    return (
        content[-1]['content'] if isinstance(content, list) and content else content if isinstance(content, str) else ''
    )


def from_votes(votes: Votes, tokenizer: Tokenizer, *, template: str, most: int, seed: int) -> TextPairs:
    """Up to `most` pairs of each person, drawn at random: a statement agreed with and one disagreed with."""
    statements = tuple(to_text(tokenizer, text, template) for text in votes.texts)
    # Statements with the same tokens have the number of the first of them, and make no pair.
    first = {text: s for s, text in reversed([*enumerate(statements)])}
    number = np.array([first[text] for text in statements], np.int32)
    users, *sides = draw_pairs(votes, most=most, seed=seed)
    chosen, rejected = (number[side] for side in sides)
    users, chosen, rejected = (column[chosen != rejected] for column in (users, chosen, rejected))
    columns = users, chosen, rejected, None, statements, votes.texts, votes.names, votes.groups
    return TextPairs(*columns, group_names=votes.group_names)


# --- as batches -------------------------------------------------------------------------------------------------------


class PackedTexts(NamedTuple):
    """Texts in the rows of a batch, texts with the same beginning together.

    `rows` and `places` are the row of each text and its place among the row's samples.
    """

    batch: TokenBatch
    rows: np.ndarray  # [texts]
    places: np.ndarray  # [texts]


def pack(
    texts: Sequence[Text], pool: Pool, *, ways: int = 1, micro_rows: int = 1, row_tokens: int = 256, together: int = 0
) -> PackedTexts:
    """Pack each text once into a batch. The actions of a text are the tokens whose states count: all, or the last.

    `together` is the largest number of texts with the same beginning in one group (0: no limit). Rows have `row_tokens`
    tokens or a multiple.
    """
    by_start: dict[tuple[int, ...], list[int]] = {}
    for i, text in enumerate(texts):
        # A text without a beginning shares its first tokens with no other one.
        by_start.setdefault(text.before or (i, -1), []).append(i)
    most = together or len(texts)
    members = [same_start[k : k + most] for same_start in by_start.values() for k in range(0, len(same_start), most)]
    groups = [shared(tuple(texts[i] for i in same_start), pool) for same_start in members]
    # Sizes are powers of two, so that the programs to compile stay few.
    n = 1 << (max(map(len, members)) - 1).bit_length()
    actions = 1 if pool == 'last' else 1 << max(5, (max(len(text.tokens) for text in texts) - 1).bit_length())
    layout: Layout = lay_out(
        [group.length for group in groups], ways=ways, micro_rows=micro_rows, row_tokens=row_tokens, multiple=row_tokens
    )
    rows, places = np.zeros((2, len(texts)), np.int64)
    for r, row in enumerate(layout.rows):
        for place, g in enumerate(row):
            for k, i in enumerate(members[g]):
                rows[i], places[i] = r, place * n + k
    return PackedTexts(pack_groups(groups, layout, n=n, actions=actions), rows, places)


def shared(texts: Sequence[Text], pool: Pool) -> PromptGroup:
    """Texts with the same beginning as a prompt and its branches."""
    return shared_prompt([_example(text, pool) for text in texts])


def _example(text: Text, pool: Pool) -> Example:
    tokens = text.tokens
    # A group has a prompt, so a text by itself gives its first token.
    before, following = (text.before, tokens) if text.before else (tokens[:1], tokens[1:])
    counted = len(tokens) if pool == 'mean' else 1
    # A state is named by the action after it, so each text ends with one more token, whose state is not read.
    completion = [*following, tokens[-1]]
    return Example(before, completion, [False] * (len(completion) - counted) + [True] * counted)


# --- by the tokens of a pair's span -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Replicas(Lookup):
    """A `Lookup` with a table for each replica, `[R, S, H]`, for indices `[R, ...]`. Indices `[n]` read the first."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array, whose last axis is a vector's width."""
        return *self.numbers.shape, self.table.shape[2]

    def of(self, replica: int) -> Lookup:
        """The `Lookup` in the table of one replica."""
        return Lookup(self.table[replica], self.numbers)

    def __getitem__(self, where: Any) -> np.ndarray:
        if isinstance(where, tuple) and len(where) > self.numbers.ndim:
            return self[where[:-1]][..., where[-1]]
        numbers = self.numbers[where]
        # Indices without an axis of replicas read the first table.
        if numbers.ndim < 2:
            return self.table[0][numbers]
        return np.stack([table[row] for table, row in zip(self.table, numbers, strict=True)])


class Spans(NamedTuple):
    """The states of every token, `[tokens, H]`, which may lie on disk. Those of text `s` begin at `starts[s]`."""

    table: np.ndarray
    starts: np.ndarray
    texts: tuple[Text, ...]
    weighting: TokenWeighting

    @property
    def ends(self) -> np.ndarray:
        """The index of the last token of each text, `[texts]`."""
        return self.starts + np.array([len(text.tokens) for text in self.texts]) - 1

    def take(self, chosen: np.ndarray, rejected: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The states `[..., T, H]` of both sides of pairs, and the weights `[..., T]` of the tokens in their span.

        `chosen` and `rejected` are the numbers of texts, `[...]`. The span has the tokens in which the sides differ.
        """
        T = max(len(self.texts[s].tokens) for s in np.unique([chosen, rejected]))
        # Few lengths keep the programs to compile few.
        T = round_up(T, 16)
        place = np.arange(T)
        last = self.ends - self.starts
        # After the end of a text, its last state is repeated.
        left, right = (
            self.table[self.starts[side][..., None] + np.minimum(place, last[side][..., None])]
            for side in (chosen, rejected)
        )
        # No token is -1, so the places after a text's end are never equal to a token.
        tokens = np.full((len(self.texts), T), -1, np.int32)
        for row, text in zip(tokens, self.texts, strict=True):
            row[: len(text.tokens[:T])] = text.tokens[:T]
        a, b = (tokens[side].reshape(-1, T) for side in (chosen, rejected))
        span = differing_span(jnp.asarray(a), jnp.asarray(b), jnp.asarray((a >= 0) | (b >= 0)))
        weights = np.asarray(token_weights(span, self.weighting))
        return left, right, weights.reshape(*chosen.shape, T)
