"""Text to token ids and back: a Hugging Face fast tokenizer with its chat template, built without torch.

`transformers` can read a tokenizer out of a GGUF file itself, but only with torch installed, so `from_gguf` builds it
with the `tokenizers` library. `AutoTokenizer` imports torch where it finds it, hence `PreTrainedTokenizerFast`.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Split
from transformers import PreTrainedTokenizerFast

from pal_jax.data import thoughts
from pal_jax.runtime import files

if TYPE_CHECKING:
    from gguf import GGUFReader

Message = Mapping[str, Any]  # {'role': 'system' | 'user' | 'assistant', 'content': ...}, and calls of tools

# Tokens that end a turn or a text in the templates of the supported families, where the vocabulary has them.
ENDS = ('<|im_end|>', '<|eot_id|>', '<|endoftext|>', '<|end_of_text|>', '<end_of_turn>', '</s>')

_MARK_TOKENS = 32  # of the end of a prompt: more than the mark of a thought has

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
FILES = (
    'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json', 'chat_template.json',
    'chat_template.jinja',
)  # fmt: skip
PROBE = 'Heed these words.'  # a system prompt that shows whether a template takes any

# How byte-level tokenizers write bytes: those that are printable as themselves, the others from U+0100 on.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTES = {chr(byte): byte for byte in PRINTABLE}
BYTES |= {chr(0x100 + i): byte for i, byte in enumerate(sorted({*range(256)} - {*PRINTABLE}))}


class Tokenizer:
    """Encodes, decodes and renders chats.

    `stop_ids` end a sampled turn: the tokenizer's end of sequence first, then the `ends` of the model's own files, then
    the other `ENDS` in its vocabulary.
    `pad_id` is its padding token, or its first stop where it has none. `vocab_size` counts added tokens; a model's
    vocabulary may be padded beyond it. `opening` is what the tokenizer puts before a text: a beginning-of-sequence
    token, or nothing. `fast` is the wrapped tokenizer. `folded` says that a system prompt stood in a user message, see
    `chat`.
    """

    def __init__(self, fast: PreTrainedTokenizerFast, ends: Sequence[int] = ()):
        self.fast = fast
        self.folded = False
        self.vocab_size = len(fast)
        self.stop_ids = _stop_ids(fast, ends)
        special = {i: str(token) for i, token in fast.added_tokens_decoder.items() if token.special}
        self._silent = {i for i, token in special.items() if not thoughts.is_mark(token)}
        self._marked = len(self._silent) < len(special)
        self.pad_id = fast.get_vocab().get(str(fast.pad_token), self.stop_ids[0])
        self.opening = _opening(fast, self.stop_ids[0])
        self._added = {number: str(token) for number, token in fast.added_tokens_decoder.items()}
        decoder = fast.backend_tokenizer.decoder
        self._decoder = decoder.__getstate__().decode() if decoder else ''  # as JSON

    @property
    def _name(self) -> str:
        """What a message calls it."""
        return f'the tokenizer in {self.fast.name_or_path}' if self.fast.name_or_path else 'the tokenizer'

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` and nothing around them. Special tokens written out in `text` are recognised.

        Raises:
          ValueError: the text holds half a surrogate pair.
        """
        try:
            return self.fast.encode(text, add_special_tokens=False)
        except TypeError:  # what the library makes of a str that is no UTF-8
            half = next((character for character in text if '\ud800' <= character <= '\udfff'), '')
            if not half:
                raise
            raise ValueError(f'a text holds half of a surrogate pair, \\u{ord(half):04x}; delete it') from None

    def prompt(self, text: str) -> list[int]:
        """Token ids of a raw text that something is to follow: as transformers makes them, but for an end.

        The tokens of `opening` stand before it, once: also where they are written out at its beginning, as in a chat
        that is rendered already. A token that the tokenizer appends to a text (end of sequence) is left out: what
        follows would follow an end.
        """
        ids = self.encode(text)
        return ids if self.opening and ids[: len(self.opening)] == self.opening else [*self.opening, *ids]

    def completion(self, prompt: str, text: str) -> list[int]:
        """Token ids of a text as it follows its prompt, with an end-of-sequence token unless it ends with a stop.

        They are the rest of the ids of both together, without the space that some tokenizers put before a text. Where
        a token would span both, the text is encoded by itself.
        """
        alone = self.encode(text)
        rests = (self._rest(start, text) for start in (prompt, '\n'))
        same = (rest for rest in rests if self.decode(rest).lstrip() == self.decode(alone).lstrip())
        ids = next(same, alone)
        return ids if ids and ids[-1] in self.stop_ids else [*ids, self.stop_ids[0]]

    def _rest(self, start: str, text: str) -> list[int]:
        """The ids of `start + text` after those of `start`; none where it does not begin with those."""
        first = self.encode(start)
        try:
            both = self.encode(start + text)
        except Exception:  # what tokenizers raises where a vocabulary of words has not got this one
            return []
        return both[len(first) :] if first and both[: len(first)] == first else []

    def bytes_of(self, token: int) -> bytes:
        """The bytes that a token stands for in a text, with its space before a word; maybe half of a character."""
        word: Any = self.fast.convert_ids_to_tokens(token)
        if token in self._added or word is None:
            return self._added.get(token, '').encode()
        if '"ByteLevel"' in self._decoder and all(char in BYTES for char in word):
            return bytes(BYTES[char] for char in word)
        if '"ByteFallback"' in self._decoder and (byte := re.fullmatch('<0x([0-9A-F]{2})>', word)):
            return bytes.fromhex(byte[1])
        return (word.replace('▁', ' ') if '▁' in self._decoder else self.decode([token])).encode()

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens included."""
        return self._text(ids, skip_special=False)

    def text_of(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens, but with those that mark thoughts (`data.thoughts`)."""
        if self._marked:
            return self._text([i for i in ids if i not in self._silent], skip_special=False)
        return self._text(ids, skip_special=True)

    def thinking(self, prompt: Sequence[int], text: str) -> str:
        """The text of a completion of `prompt`, with the opening of a thought that stands in the prompt and that the
        text does not end."""
        return thoughts.after(self.decode(prompt[-_MARK_TOKENS:]), text)

    def chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:  # fmt: skip
        """Token ids of a conversation in the model's own template, which is told of `tools` as transformers does it.

        With a ChatML template the ids of `messages[:k]` are a prefix of those of `messages[:k + 1]` if the added
        message is the assistant's and does not begin with white space: a sampled turn continues what it followed.

        Some templates put in a system message when the first message is not one (SmolLM2: 'You are a helpful AI
        assistant named SmolLM ...'). To avoid that always pass one, if only `{'role': 'system', 'content': ''}`.

        Special tokens written out in a message are left out: a user who types `<|im_end|>` ends no turn.

        A system prompt that the template does not take (`folds_system`) stands at the head of the first user message.

        Raises:
          ValueError: the tokenizer has no chat template, it refuses the conversation, or a text holds half a surrogate
            pair.
        """
        if not self.fast.chat_template:
            raise ValueError(f'{self._name} has no chat template; use an instruct model or add chat_template.jinja')
        if self.folds_system and messages and messages[0]['role'] == 'system':
            self.folded |= bool(messages[0]['content'])
            messages = folded(messages)
        return self.encode(self._rendered(messages, add_generation_prompt, tools))

    @functools.cached_property
    def folds_system(self) -> bool:
        """Whether there is a chat template that takes no system prompt: it refuses one (Gemma 2) or leaves it out."""
        if not self.fast.chat_template:
            return False
        said = {'role': 'system', 'content': PROBE}, {'role': 'user', 'content': 'Hello'}
        with_system, without = map(self._tried, (said, said[1:]))
        return without is not None and PROBE not in (with_system or '')

    def _tried(self, messages: Sequence[Message]) -> str | None:
        """The conversation in the template; None where it is refused."""
        try:
            return self._rendered(messages, add_generation_prompt=True)
        except ValueError:
            return None

    def _rendered(
        self, messages: Sequence[Message], add_generation_prompt: bool, tools: Sequence[Mapping[str, Any]] | None = None
    ) -> str:
        said: Any = self._without_special([dict(message) for message in messages])
        known: Any = self._without_special(list(tools)) if tools else None
        try:
            text = self.fast.apply_chat_template(
                said, tools=known, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template is a program that comes with the model, and may raise anything
            roles = [message['role'] for message in said]
            roles = ', '.join(roles if len(roles) <= 8 else [*roles[:7], f'... ({len(roles)} messages)'])
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f'the chat template of {self._name} refuses messages of {roles or "nobody"}: {reason}; mend either'
            ) from None
        return str(text)

    def padding_apart(self) -> Tokenizer:
        """The same with a padding token that ends nothing. transformers' classifiers read the last token that is not
        padding: where the end of a turn is padding too (SmolLM2, Qwen 2.5), that is one token before the last.

        Raises:
          ValueError: all special tokens are ends.
        """
        if self.pad_id not in self.stop_ids:
            return self
        special = (i for i, token in sorted(self.fast.added_tokens_decoder.items()) if token.special)
        pad_id = next((i for i in special if i not in self.stop_ids), None)
        if pad_id is None:
            raise ValueError('the tokenizer has no special token that ends nothing, to pad with; add one to it')
        fast = copy.deepcopy(self.fast)
        fast.pad_token = fast.convert_ids_to_tokens(pad_id)
        return Tokenizer(fast, self.stop_ids)

    def with_template(self, template: str) -> Tokenizer:
        """The same with another chat template."""
        fast = copy.deepcopy(self.fast)
        fast.chat_template = template
        return Tokenizer(fast, self.stop_ids)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and the chat template, for `from_folder` and `AutoTokenizer`."""
        self.fast.save_pretrained(str(folder))
        path = Path(folder) / 'tokenizer_config.json'
        # transformers 5 writes a class name that 4 (and what is built on it) does not know; both know this one.
        config = json.loads(path.read_text('utf-8')) | {'tokenizer_class': 'PreTrainedTokenizerFast'}
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + '\n', 'utf-8')

    def _without_special(self, said: Any) -> Any:
        """The same with `_defused` texts, however deep they lie, as those of a tool call do."""
        if isinstance(said, str):
            return self._defused(said)
        if isinstance(said, Mapping):
            return {key: self._without_special(value) for key, value in said.items()}
        return [self._without_special(each) for each in said] if isinstance(said, list) else said

    def _defused(self, content: str) -> str:
        while found := [token for token in self.fast.all_special_tokens if token in content]:
            for token in found:  # again until none is left: taking one out may put another together
                content = content.replace(token, '')
        return content

    def _text(self, ids: Sequence[int], skip_special: bool) -> str:
        text = self.fast.decode(list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)
        return str(text)


def folded(messages: Sequence[Message]) -> list[Message]:
    """The conversation without system messages at its head: what they say stands at the head of the first user message,
    an empty line between, or is one by itself where somebody else goes on."""
    first = next((i for i, message in enumerate(messages) if message['role'] != 'system'), len(messages))
    system = '\n\n'.join(message['content'] for message in messages[:first] if message['content'])
    rest = list(messages[first:])
    if not system:
        return rest
    if rest and rest[0]['role'] == 'user':
        return [{**rest[0], 'content': f'{system}\n\n{rest[0]["content"]}'}, *rest[1:]]
    return [{'role': 'user', 'content': system}, *rest]


def _opening(fast: PreTrainedTokenizerFast, token: int) -> list[int]:
    """What the tokenizer puts before a text, seen at the text of a token: it may put something behind one, too."""
    probe: Any = fast(str(fast.convert_ids_to_tokens(token)), return_special_tokens_mask=True)
    return probe['input_ids'][: [*probe['special_tokens_mask'], 0].index(0)]


def _stop_ids(fast: PreTrainedTokenizerFast, ends: Sequence[int]) -> tuple[int, ...]:
    vocab = fast.get_vocab()
    special = {str(token) for token in fast.added_tokens_decoder.values() if token.special}  # Gemma has HTML's </s>
    first = [vocab[token] for token in (fast.eos_token,) if token in vocab]
    known = [*first, *ends, *(vocab[end] for end in ENDS if end in special)]
    if not known:
        raise ValueError(f'the tokenizer has no eos_token and none of {", ".join(ENDS)}; set eos_token in its config')
    return tuple(dict.fromkeys(known))


def from_folder(folder: str | Path, ends: Sequence[int] | None = None) -> Tokenizer:
    """The tokenizer of a Hugging Face model folder (or hub id). `ends`: ids of tokens that end a turn; those of
    `end_ids` by default.

    Raises:
      ValueError: the folder has no tokenizer.json, or a file of the tokenizer cannot be read; or as `end_ids`.
    """
    if Path(folder).is_dir() and not (Path(folder) / 'tokenizer.json').exists():
        raise ValueError(f'no tokenizer.json in {folder}; save the tokenizer there with transformers first')
    try:
        fast = PreTrainedTokenizerFast.from_pretrained(str(folder))
    except Exception as error:  # the library has a plain one for a tokenizer.json that is none
        for path in (Path(folder) / name for name in FILES):
            if path.exists():
                (files.read_object if path.suffix == '.json' else files.read_text)(path)
        reason = ' '.join(str(error).split())
        raise ValueError(f'the tokenizer in {folder} cannot be read: {reason}; save it there again') from None
    return Tokenizer(fast, end_ids(folder) if ends is None else ends)


def end_ids(folder: str | Path) -> tuple[int, ...]:
    """Where a model's texts end: `eos_token_id` of its generation_config.json, or else of its config.json.

    Raises:
      ValueError: it is neither an id nor a list of ids.
    """
    for path in (Path(folder) / 'generation_config.json', Path(folder) / 'config.json'):
        found = files.read_object(path).get('eos_token_id') if path.exists() else None
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if any(type(i) is not int or i < 0 for i in ids):
            raise ValueError(f'{path} has eos_token_id={found!r}; it has to be the id of a token, or a list of ids')
        if ids:
            return tuple(ids)
    return ()


def byte_tokenizer() -> Tokenizer:
    """One token per byte and a few special ones in ChatML: for random models, in milliseconds. 264 tokens."""
    specials = ['<|endoftext|>', '<|im_start|>', '<|im_end|>', '<|pad|>', *(f'<|reserved_{i}|>' for i in range(4))]
    alphabet = sorted(ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token='<|im_end|>', pad_token='<|pad|>', chat_template=CHATML
    )
    return Tokenizer(fast)


# --- from a GGUF file -----------------------------------------------------------------------------------------------

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # values of tokenizer.ggml.token_type


def from_gguf(reader: GGUFReader) -> Tokenizer:
    """The tokenizer and chat template that a GGUF file carries: byte-level BPE, or SentencePiece's BPE.

    Raises:
      ValueError: another kind of tokenizer, or a pre-tokenizer that is not in `_pre_tokenizer`.
    """
    tokens, types = _field(reader, 'ggml.tokens'), _field(reader, 'ggml.token_type')
    match _field(reader, 'ggml.model'):
        case 'gpt2':
            backend = _byte_level_bpe(tokens, _field(reader, 'ggml.merges'), _field(reader, 'ggml.pre'))
        case 'llama':
            prefix = _field(reader, 'ggml.add_space_prefix') is not False
            backend = _sentencepiece_bpe(tokens, _field(reader, 'ggml.scores'), types, prefix)
        case kind:
            known = 'gpt2 (byte-level BPE) and llama (SentencePiece BPE)'
            raise ValueError(f'tokenizer.ggml.model={kind} is not supported, only {known}; use hf:<folder>')
    _mark_added(backend, tokens, types)
    named = {'bos_token': 'bos', 'eos_token': 'eos', 'unk_token': 'unknown', 'pad_token': 'padding'}
    ids = {name: _field(reader, f'ggml.{key}_token_id') for name, key in named.items()}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=_field(reader, 'chat_template'),
        add_bos_token=bool(_field(reader, 'ggml.add_bos_token')),
        add_eos_token=bool(_field(reader, 'ggml.add_eos_token')),
        **{name: tokens[i] for name, i in ids.items() if i is not None},
    )
    ends = (_field(reader, f'ggml.{key}_token_id') for key in ('eot', 'eom'))  # of a turn, of a message to a tool
    return Tokenizer(fast, [int(i) for i in ends if i is not None])


def _field(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(f'tokenizer.{key}')
    return None if field is None else field.contents()


def _byte_level_bpe(tokens: Sequence[str], merges: Sequence[str], pre: str) -> tokenizers.Tokenizer:
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [(left, right) for left, right in (merge.split(' ') for merge in merges)]
    # Llama 3 takes a word that is a token as it is, even where no chain of merges leads to it.
    backend = tokenizers.Tokenizer(BPE(vocab=vocab, merges=pairs, ignore_merges=pre == 'llama-bpe'))
    backend.pre_tokenizer = _pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    if pre == 'qwen2':
        backend.normalizer = normalizers.NFC()
    return backend


def _sentencepiece_bpe(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], prefix: bool
) -> tokenizers.Tokenizer:
    """SentencePiece joins the neighbours that make the piece of the highest score; as a list of merges that is every
    way to cut a piece in two, best pieces first. What has no piece falls back to bytes."""
    vocab = {token: i for i, token in enumerate(tokens)}
    best = {token: 0.0 for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED}
    best |= {token: score for token, score, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
    merges = [
        (token[:cut], token[cut:])
        for token in sorted(best, key=lambda token: (-best[token], vocab[token]))
        for cut in range(1, len(token))
        if token[:cut] in best and token[cut:] in best
    ]
    backend = tokenizers.Tokenizer(BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True))
    spaces: list[Any] = [normalizers.Replace(' ', '▁')]
    joined: list[Any] = [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:  # the first word has a space before it, too
        spaces.insert(0, normalizers.Prepend('▁'))
        joined.append(decoders.Strip(' ', 1, 0))
    backend.normalizer = normalizers.Sequence(spaces)
    backend.decoder = decoders.Sequence(joined)
    return backend


def _pre_tokenizer(pre: str) -> PreTokenizer:
    """How text is cut into words before merging, by the name that `tokenizer.ggml.pre` gives it."""
    gpt2 = ByteLevel(add_prefix_space=False, use_regex=True)
    match pre:
        case 'gpt-2':
            return gpt2
        case 'smollm':
            return pre_tokenizers.Sequence([Digits(individual_digits=True), gpt2])
        case 'llama-bpe':
            return _split(digits=r'\p{N}{1,3}')
        case 'qwen2':
            return _split(digits=r'\p{N}')
    raise ValueError(
        f'tokenizer.ggml.pre={pre} is not supported, only gpt-2, smollm, llama-bpe, qwen2; use hf:<folder>'
    )


def _split(digits: str) -> PreTokenizer:
    """The GPT-4 way: contractions, words with one leading mark, digits, punctuation with its line ends, white space."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    rest = r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
    cut = Split(Regex(f'{words}|{digits}|{rest}'), behavior='isolated')
    return pre_tokenizers.Sequence([cut, ByteLevel(add_prefix_space=False, use_regex=False)])


def _mark_added(backend: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Tokens that are matched whole before any splitting: control tokens are special, user-defined ones are text."""
    for kind, add in ((CONTROL, backend.add_special_tokens), (USER_DEFINED, backend.add_tokens)):
        special = kind == CONTROL
        chosen = (token for token, type_ in zip(tokens, types, strict=True) if type_ == kind)
        add([AddedToken(token, special=special, normalized=False) for token in chosen])
