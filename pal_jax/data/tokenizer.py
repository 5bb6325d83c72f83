"""Tokenizers: a Hugging Face fast tokenizer with its chat template, built without torch.

`transformers` can read a tokenizer out of a GGUF file itself, but only with torch installed, so `from_gguf` builds it
with the `tokenizers` library. `AutoTokenizer` imports torch where it finds it, hence `PreTrainedTokenizerFast`.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from pal_jax.data import markup, thoughts, vocabularies
from pal_jax.run import files

if TYPE_CHECKING:
    from gguf import GGUFReader
    from transformers import PreTrainedTokenizerFast

Message = Mapping[str, Any]  # {'role': 'system' | 'user' | 'assistant', 'content': ...}, and calls of tools

# Tokens that end a turn or a text in the templates of the supported families, and a sentence of an encoder.
ENDS = ('<|im_end|>', '<|eot_id|>', '<|endoftext|>', '<|end_of_text|>', '<end_of_turn>', '</s>', '[SEP]')

_MARK_TOKENS = 32  # tokens at the end of a prompt that are read; the mark of a thought has fewer

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FILES = (
    'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json', 'chat_template.json',
    'chat_template.jinja',
)  # fmt: skip
PROBE = 'Heed these words.'  # a system prompt that shows whether a template takes any
_HELLO: tuple[Message, ...] = {'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hi'}
_FRAMES = [*_HELLO, _HELLO[0]], [{'role': 'system', 'content': PROBE}, *_HELLO]  # show what stands around messages

# Byte-level tokenizers write printable bytes as themselves, and the others as characters from U+0100 on.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = {chr(byte): byte for byte in PRINTABLE}
BYTES |= {chr(0x100 + i): byte for i, byte in enumerate(sorted({*range(256)} - {*PRINTABLE}))}


class Tokenizer:
    """A tokenizer that encodes and decodes texts and renders chats.

    `stop_ids` end a sampled turn: the tokenizer's end of sequence first, then the `ends` of the model's own files, then
    the other `ENDS` in its vocabulary.
    `pad_id` is its padding token, or its first stop where it has none. `vocab_size` counts added tokens; a model's
    vocabulary may be padded beyond it. `opening` has the ids that the tokenizer puts before a text: a
    beginning-of-sequence token, or nothing. `fast` is the wrapped tokenizer. `folded` is True once a system prompt was
    put into a user message, see `chat`. `rows` is the number of tokens that the model embeds, where the vocabulary has
    more.
    """

    def __init__(self, fast: PreTrainedTokenizerFast, ends: Sequence[int] = (), rows: int | None = None):
        self.fast = fast
        self.rows = rows
        self.folded = False
        self.vocab_size = len(fast)
        self.stop_ids = _stop_ids(fast, ends)
        special = {i: str(token) for i, token in fast.added_tokens_decoder.items() if token.special}
        self._silent = {i for i, token in special.items() if not thoughts.is_mark(token)}
        self._marked = len(self._silent) < len(special)
        self.pad_id = fast.get_vocab().get(str(fast.pad_token), self.stop_ids[0])
        self.opening, self._closing = _around(fast, self.stop_ids[0])
        self._added = {number: str(token) for number, token in fast.added_tokens_decoder.items()}
        decoder = fast.backend_tokenizer.decoder
        self._decoder = decoder.__getstate__().decode() if decoder else ''  # as JSON

    @property
    def _name(self) -> str:
        """The name of the tokenizer in messages."""
        return f'the tokenizer in {self.fast.name_or_path}' if self.fast.name_or_path else 'the tokenizer'

    def encode(self, text: str) -> list[int]:
        """The token ids of `text`, without any around them. Special tokens written out in `text` are recognised.

        Raises:
          ValueError: the text holds half a surrogate pair, or a token that the model does not embed.
        """
        try:
            ids = self.fast.encode(text, add_special_tokens=False)
        # The library raises TypeError for a str that is no UTF-8.
        except TypeError:
            half = next((character for character in text if '\ud800' <= character <= '\udfff'), '')
            if not half:
                raise
            raise ValueError(f'a text holds half of a surrogate pair, \\u{ord(half):04x}; delete it') from None
        if self.rows is not None and (last := max(ids, default=0)) >= self.rows:
            raise ValueError(
                f'a text has the token {self.fast.convert_ids_to_tokens(last)!r} of id {last}, and the model embeds '
                f'{self.rows} tokens, 0 to {self.rows - 1}; take it out of the text'
            )
        return ids

    def plain(self, text: str, role: str = 'assistant') -> list[int]:
        """The token ids of what somebody of this role says. Control tokens written out in it are plain text."""
        return self.ids_of(self.guarded(text, role))

    def guarded(self, text: str, role: str = 'assistant') -> str:
        """The text with shields in what somebody of this role says, as it stands in what `written` gives."""
        return self._shields[role == 'assistant'](text)

    @functools.cached_property
    def ends(self) -> re.Pattern[str]:
        """A pattern of the tokens that end a turn, in a text with shields."""
        return re.compile('|'.join(re.escape(end) for i in self.stop_ids if (end := self.decode([i]))))

    def statement(self, text: str, template: str = '{}') -> list[int]:
        """The token ids of somebody's text in a template, with those that the tokenizer puts around it.

        Control tokens are plain text in the text (`plain`), and live in the template.
        """
        return [*self.opening, *self.ids_of(template.format(self.guarded(text, 'user'))), *self._closing]

    def ids_of(self, written: str) -> list[int]:
        """The token ids of a text with shields (`data.markup`), such as `written` gives."""
        first, *others = markup.pieces(written)
        return [*self.encode(first), *(i for piece in others for i in self._following(piece))]

    def continued(self, tokens: Sequence[int], before: str, text: str) -> list[int]:
        """The token ids of a text with shields after `before`, whose ids are `tokens` and stay as they are.

        They are the ids of both together after those tokens.
        """
        together = self.ids_of(before + text)
        if together[: len(tokens)] == list(tokens):
            return together[len(tokens) :]
        # A token may span both, as of the last line end of a prompt and the first of an answer. The text is then
        # encoded apart, as a model samples it.
        return [i for piece in markup.pieces(text) for i in self._following(piece)]

    def _following(self, text: str) -> list[int]:
        """The token ids of a text by itself, without the space that some tokenizers put before it."""
        starts = ('\n', 'a') if self._spaces else ()
        return next((ids for start in starts if (ids := self._rest(start, text))), None) or self.encode(text)

    @functools.cached_property
    def _spaces(self) -> bool:
        """True where the tokenizer puts a space before a text."""
        return self.decode([*self.encode('a'), *self.encode('a')]) != 'aa'

    @functools.cached_property
    def _joins(self) -> bool:
        """True where even an answer that begins with a letter changes the last tokens of its prompt."""
        before = self._tried(_HELLO[:1]) or ''
        ids = self.encode(before)
        return before.endswith(' ') or self.encode(f'{before}a')[: len(ids)] != ids

    @functools.cached_property
    def _shields(self) -> tuple[markup.Shield, markup.Shield]:
        """Two functions that put shields into texts: into those of users, files and tools, and into the assistant's."""
        added = self.fast.added_tokens_decoder.values()
        frame = {i for text in map(self._tried, _FRAMES) if text for i in self.fast.encode(text)} | {*self.stop_ids}
        framed = {token for i in sorted(frame) if (token := self._added.get(i, '')) and not thoughts.is_mark(token)}
        plain = [str(token) for token in added if not token.special]
        special = [str(token) for token in added if token.special]
        silent = {token for token in special if not thoughts.is_mark(token)} | framed
        normal = self.fast.backend_tokenizer.normalizer
        normalized = {str(token) for token in added if token.normalized}
        # In the assistant's texts the marks of thoughts and of calls stay live, since models write them there.
        sets = silent | {*special, *markup.controls(plain, str(self.fast.chat_template))}, silent
        return tuple(
            markup.make_shield(tokens, tokens & normalized, normal and normal.normalize_str) for tokens in sets
        )  # type: ignore[return-value]

    def prompt(self, text: str) -> list[int]:
        """The token ids of a raw text that other tokens will follow.

        The tokens of `opening` stand before the text once, and no end-of-sequence token stands after it.
        """
        ids = self.encode(text)
        # A chat that is rendered already has the opening written out at its beginning, and needs no second one.
        return ids if self.opening and ids[: len(self.opening)] == self.opening else [*self.opening, *ids]

    def completion(self, prompt: str, text: str) -> list[int]:
        """The token ids of a text after its prompt, with an end-of-sequence token unless the text ends with a stop.

        They are the ids of prompt and text together, after those of the prompt.
        """
        alone = self.encode(text)
        # The ids after those of the prompt lack the space that some tokenizers put before a text. Where a token would
        # span both, the text is encoded by itself.
        rests = (self._rest(start, text) for start in (prompt, '\n'))
        same = (tail for tail in rests if self.decode(tail).lstrip() == self.decode(alone).lstrip())
        ids = next(same, alone)
        return ids if ids and ids[-1] in self.stop_ids else [*ids, self.stop_ids[0]]

    def _rest(self, start: str, text: str) -> list[int]:
        """The ids of `start + text` after those of `start`; empty where the former do not begin with the latter."""
        first = self.encode(start)
        try:
            together = self.encode(start + text)
        # The library raises a plain Exception where a vocabulary of words lacks a word.
        except Exception:
            return []
        return together[len(first) :] if first and together[: len(first)] == first else []

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for in a text, with the space before a word, maybe a part of a character."""
        word: Any = self.fast.convert_ids_to_tokens(token)
        if token in self._added or word is None:
            return self._added.get(token, '').encode()
        if '"ByteLevel"' in self._decoder and all(char in BYTES for char in word):
            return bytes(BYTES[char] for char in word)
        if '"ByteFallback"' in self._decoder and (byte := re.fullmatch('<0x([0-9A-F]{2})>', word)):
            return bytes.fromhex(byte[1])
        return (word.replace('▁', ' ') if '▁' in self._decoder else self.decode([token])).encode()

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        return self._text(ids, skip_special=False)

    def text_of(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens, except those that mark thoughts (`data.thoughts`)."""
        if self._marked:
            return self._text([i for i in ids if i not in self._silent], skip_special=False)
        return self._text(ids, skip_special=True)

    def last_text(self, ids: Sequence[int], count: int, before: Sequence[int] = ()) -> str:
        """The text of the last `count` of the `ids` that show in a text, as `text_of` has it."""
        known = self.fast.convert_ids_to_tokens
        showing = (i for i in reversed(ids) if i not in self._silent and known(i) is not None)
        last = [*itertools.islice(showing, count)][::-1]
        # Where fewer ids show, their text goes on with that of the ids `before`, and so keeps its first space.
        before = before if len(last) < count else ()
        return self.text_of([*before, *last])[len(self.text_of(before)) :]

    def thinking(self, prompt: Sequence[int], text: str) -> str:
        """The text of a completion, with the mark of a thought that `prompt` opens and the text does not end before it.

        See `thoughts.completion_after`.
        """
        return thoughts.completion_after(self.decode(prompt[-_MARK_TOKENS:]), text)

    def chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:  # fmt: skip
        """The token ids of a conversation in the model's own template, which gets `tools` as in transformers.

        With a ChatML template the ids of `messages[:k]` are a prefix of those of `messages[:k + 1]` if the added
        message is the assistant's.

        Control tokens written out in a message are plain text, so a user who types `<|im_end|>` ends no turn. Some
        templates put in a system message of their own (SmolLM2: 'You are a helpful AI assistant named SmolLM ...'); to
        avoid that pass one, if only `{'role': 'system', 'content': ''}`. A system prompt that the template does not
        take (`folds_system`) goes to the head of the first user message.

        Raises:
          ValueError: the tokenizer has no chat template, the template refuses the conversation, or a text holds half a
            surrogate pair.
        """
        text = self.written(messages, add_generation_prompt, tools)
        # Where a token might span the end of a prompt and the beginning of an answer, both are encoded apart, as the
        # answer was sampled or learnt.
        cuts = [0, len(text)]
        for k, message in enumerate(messages):
            if message['role'] == 'assistant' and (self._joins or (message.get('content') or '')[:1].isspace()):
                before = self.written(messages[:k], tools=tools)
                cuts[-1:-1] = [len(before)] if text.startswith(before) else []
        tokens: list[int] = []
        for start, end in itertools.pairwise(cuts):
            tokens += self.continued(tokens, text[:start], text[start:end])
        return tokens

    def written(
        self, messages: Sequence[Message], add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:  # fmt: skip
        """The text of a conversation in the template, with shields in what the messages say. See `chat`, `ids_of`."""
        if not self.fast.chat_template:
            raise ValueError(f'{self._name} has no chat template; use an instruct model or add chat_template.jinja')
        if self.folds_system and messages and messages[0]['role'] == 'system':
            self.folded |= bool(messages[0]['content'])
            messages = fold_system(messages)
        shield, assistants = self._shields
        guarded = [
            {
                key: markup.shielded(value, assistants if _is_said(message, key) else shield)
                for key, value in message.items()
            }
            | ({'role': message['role']} if message['role'].isalpha() else {})
            for message in messages
        ]
        return self._rendered(guarded, add_generation_prompt, markup.shielded(tools, shield))

    @functools.cached_property
    def folds_system(self) -> bool:
        """True where the chat template takes no system prompt: it refuses one (Gemma 2) or leaves it out."""
        if not self.fast.chat_template:
            return False
        probe = {'role': 'system', 'content': PROBE}, {'role': 'user', 'content': 'Hello'}
        with_system, without = map(self._tried, (probe, probe[1:]))
        return without is not None and PROBE not in (with_system or '')

    def _tried(self, messages: Sequence[Message]) -> str | None:
        """The text of a conversation in the template; None where the template refuses it."""
        try:
            return self._rendered(messages, add_generation_prompt=True)
        except ValueError:
            return None

    def _rendered(
        self, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        plain_messages: Any = [dict(message) for message in messages]
        plain_tools: Any = list(tools) if tools else None
        try:
            text = self.fast.apply_chat_template(
                plain_messages, tools=plain_tools, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        # A template is a program that comes with the model, and may raise anything.
        except Exception as error:
            roles = [message['role'] for message in plain_messages]
            roles = ', '.join(roles if len(roles) <= 8 else [*roles[:7], f'... ({len(roles)} messages)'])
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f'the chat template of {self._name} refuses messages of {roles or "nobody"}: {reason}; mend either'
            ) from None
        return str(text)

    def padding_apart(self) -> Tokenizer:
        """A copy of the tokenizer with a padding token that is no end of a turn.

        Raises:
          ValueError: all special tokens are ends.
        """
        # transformers' classifiers read the last token that is not padding. Where the end of a turn is padding, too
        # (SmolLM2, Qwen 2.5), they would read the token before the last.
        if self.pad_id not in self.stop_ids:
            return self
        special = (i for i, token in sorted(self.fast.added_tokens_decoder.items()) if token.special)
        pad_id = next((i for i in special if i not in self.stop_ids), None)
        if pad_id is None:
            raise ValueError('the tokenizer has no special token that ends nothing, to pad with; add one to it')
        fast = copy.deepcopy(self.fast)
        fast.pad_token = fast.convert_ids_to_tokens(pad_id)
        return Tokenizer(fast, self.stop_ids, self.rows)

    def with_template(self, template: str) -> Tokenizer:
        """A copy of the tokenizer with another chat template."""
        fast = copy.deepcopy(self.fast)
        fast.chat_template = template
        return Tokenizer(fast, self.stop_ids, self.rows)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and the chat template, for `from_folder` and `AutoTokenizer`."""
        self.fast.save_pretrained(str(folder))
        path = Path(folder) / 'tokenizer_config.json'
        # transformers 5 writes a class name that 4 (and libraries built on it) does not know; both know this one.
        config = json.loads(path.read_text('utf-8')) | {'tokenizer_class': 'PreTrainedTokenizerFast'}
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + '\n', 'utf-8')

    def _text(self, ids: Sequence[int], skip_special: bool) -> str:
        text = self.fast.decode(list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
        return str(text)


def fold_system(messages: Sequence[Message]) -> list[Message]:
    """The conversation without system messages at its head.

    Their text goes to the head of a user message that follows, with an empty line between, or becomes one of its own.
    """
    first = next((i for i, message in enumerate(messages) if message['role'] != 'system'), len(messages))
    system = '\n\n'.join(message['content'] for message in messages[:first] if message['content'])
    others = list(messages[first:])
    if not system:
        return others
    if others and others[0]['role'] == 'user':
        return [{**others[0], 'content': f'{system}\n\n{others[0]["content"]}'}, *others[1:]]
    return [{'role': 'user', 'content': system}, *others]


def _is_said(message: Message, key: str) -> bool:
    """True for a text of the assistant, in which a model writes marks of thoughts and of calls."""
    return message['role'] == 'assistant' and key in ('content', 'reasoning_content', 'thinking')


def _around(fast: PreTrainedTokenizerFast, token: int) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before a text and after it, found by encoding the text of one token."""
    probe: Any = fast(str(fast.convert_ids_to_tokens(token)), return_special_tokens_mask=True)
    ids, mask = probe['input_ids'], probe['special_tokens_mask']
    before, after = [*mask, 0].index(0), [*reversed(mask), 0].index(0)
    return ids[:before], ids[max(len(ids) - after, before) :]


def _stop_ids(fast: PreTrainedTokenizerFast, ends: Sequence[int]) -> tuple[int, ...]:
    vocab = fast.get_vocab()
    # Only special tokens count: Gemma's vocabulary has HTML's </s>.
    special = {str(token) for token in fast.added_tokens_decoder.values() if token.special}
    first = [vocab[token] for token in (fast.eos_token,) if token in vocab]
    stops = [*first, *ends, *(vocab[end] for end in ENDS if end in special)]
    if not stops:
        raise ValueError(f'the tokenizer has no eos_token and none of {", ".join(ENDS)}; set eos_token in its config')
    return tuple(dict.fromkeys(stops))


def from_folder(folder: str | Path, ends: Sequence[int] | None = None) -> Tokenizer:
    """The tokenizer of a Hugging Face model folder (or hub id).

    `ends` are the ids of tokens that end a turn, by default those of `end_ids`.

    Raises:
      ValueError: the folder has no tokenizer.json, or a file of the tokenizer cannot be read; or as `end_ids`.
    """
    if Path(folder).is_dir() and not (Path(folder) / 'tokenizer.json').exists():
        raise ValueError(f'no tokenizer.json in {folder}; save the tokenizer there with transformers first')
    try:
        fast = vocabularies.fast_tokenizer().from_pretrained(str(folder))
    # The library raises a plain Exception for a damaged tokenizer.json, so the files are read to find which it is.
    except Exception as error:
        for path in (Path(folder) / name for name in FILES):
            if path.exists():
                (files.read_object if path.suffix == '.json' else files.read_text)(path)
        reason = ' '.join(str(error).split())
        raise ValueError(f'the tokenizer in {folder} cannot be read: {reason}; save it there again') from None
    return Tokenizer(fast, end_ids(folder) if ends is None else ends)


def end_ids(folder: str | Path) -> tuple[int, ...]:
    """The ids of the tokens that end a model's texts.

    They are `eos_token_id` of its generation_config.json, or else of its config.json.

    Raises:
      ValueError: `eos_token_id` is neither an id nor a list of ids.
    """
    for path in (Path(folder) / 'generation_config.json', Path(folder) / 'config.json'):
        value = files.read_object(path).get('eos_token_id') if path.exists() else None
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(i) is not int or i < 0 for i in ids):
            raise ValueError(f'{path} has eos_token_id={value!r}; it has to be the id of a token, or a list of ids')
        if ids:
            return tuple(ids)
    return ()


def byte_tokenizer() -> Tokenizer:
    """A tokenizer for random models, with a token for each byte and 8 special tokens. Its chats are ChatML's."""
    specials = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|pad|>', *(f'<|reserved_{i}|>' for i in range(4))]
    alphabet = sorted(ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    fast = vocabularies.fast_tokenizer()(
        tokenizer_object=backend, eos_token='<|im_end|>', pad_token='<|pad|>', chat_template=CHATML
    )
    return Tokenizer(fast)


# --- from a GGUF file -----------------------------------------------------------------------------------------------


def from_gguf(reader: GGUFReader, template: str = '') -> Tokenizer:
    """The tokenizer and chat template (or else `template`) in a GGUF file: byte-level or SentencePiece's BPE.

    Raises:
      ValueError: the tokenizer is of another kind, or its pre-tokenizer is unknown.
    """
    tokens, types = _field(reader, 'ggml.tokens'), _field(reader, 'ggml.token_type')
    match _field(reader, 'ggml.model'):
        case 'gpt2':
            backend = vocabularies.byte_level_bpe(tokens, _field(reader, 'ggml.merges'), _field(reader, 'ggml.pre'))
        case 'llama':
            prefix = _field(reader, 'ggml.add_space_prefix') is not False
            backend = vocabularies.sentencepiece_bpe(tokens, _field(reader, 'ggml.scores'), types, prefix)
        case kind:
            supported = 'gpt2 (byte-level BPE) and llama (SentencePiece BPE)'
            raise ValueError(f'tokenizer.ggml.model={kind} is not supported, only {supported}; use hf:<folder>')
    vocabularies.mark_added(backend, tokens, types)
    keys = {'bos_token': 'bos', 'eos_token': 'eos', 'unk_token': 'unknown', 'pad_token': 'padding'}
    ids = {name: _field(reader, f'ggml.{key}_token_id') for name, key in keys.items()}
    fast = vocabularies.fast_tokenizer()(
        tokenizer_object=backend,
        chat_template=_field(reader, 'chat_template') or template or None,
        add_bos_token=bool(_field(reader, 'ggml.add_bos_token')),
        add_eos_token=bool(_field(reader, 'ggml.add_eos_token')),
        **{name: tokens[i] for name, i in ids.items() if i is not None},
    )
    ends = (_field(reader, f'ggml.{key}_token_id') for key in ('eot', 'eom'))  # ends of a turn and of a tool's message
    return Tokenizer(fast, [int(i) for i in ends if i is not None])


def _field(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(f'tokenizer.{key}')
    return None if field is None else field.contents()
