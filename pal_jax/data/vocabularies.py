"""Tokenizers of the vocabularies in GGUF files, built with the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Split

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Values of tokenizer.ggml.token_type.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4


def fast_tokenizer() -> type[PreTrainedTokenizerFast]:
    """The class of tokenizers, imported when one is made, since its library takes a second."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast


def byte_level_bpe(tokens: Sequence[str], merges: Sequence[str], pre: str) -> tokenizers.Tokenizer:
    vocab = {token: i for i, token in enumerate(tokens)}
    pairs = [(left, right) for left, right in (merge.split(' ') for merge in merges)]
    # Llama 3 encodes a word that is a token as this token, even where no chain of merges leads to it.
    backend = tokenizers.Tokenizer(BPE(vocab=vocab, merges=pairs, ignore_merges=pre == 'llama-bpe'))
    backend.pre_tokenizer = _pre_tokenizer(pre)
    backend.decoder = decoders.ByteLevel()
    # Qwen 2 alone of these normalises a text before it is cut.
    if pre == 'qwen2':
        backend.normalizer = normalizers.NFC()
    return backend


def sentencepiece_bpe(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], prefix: bool
) -> tokenizers.Tokenizer:
    """The tokenizer of a SentencePiece model.

    SentencePiece joins the two neighbours that make the piece with the highest score.
    """
    vocab = {token: i for i, token in enumerate(tokens)}
    best = {token: 0.0 for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED}
    best |= {token: score for token, score, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
    # As a list of merges this rule is every way to cut a piece in two, best pieces first.
    merges = [
        (token[:cut], token[cut:])
        for token in sorted(best, key=lambda token: (-best[token], vocab[token]))
        for cut in range(1, len(token))
        if token[:cut] in best and token[cut:] in best
    ]
    # Characters without a piece become bytes.
    backend = tokenizers.Tokenizer(BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True))
    spaces: list[Any] = [normalizers.Replace(' ', '▁')]
    joined: list[Any] = [decoders.Replace('▁', ' '), decoders.ByteFallback(), decoders.Fuse()]
    # The first word has a space before it, too.
    if prefix:
        spaces.insert(0, normalizers.Prepend('▁'))
        joined.append(decoders.Strip(' ', 1, 0))
    backend.normalizer = normalizers.Sequence(spaces)
    backend.decoder = decoders.Sequence(joined)
    return backend


def _pre_tokenizer(pre: str) -> PreTokenizer:
    """The pre-tokenizer, which cuts text into words before merging, by its name in `tokenizer.ggml.pre`."""
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
    """GPT-4's pre-tokenizer: contractions, words with one leading mark, digits, punctuation with line ends, spaces."""
    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
    other_runs = r' ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
    cut = Split(Regex(f'{words}|{digits}|{other_runs}'), behavior='isolated')
    return pre_tokenizers.Sequence([cut, ByteLevel(add_prefix_space=False, use_regex=False)])


def mark_added(backend: tokenizers.Tokenizer, tokens: Sequence[str], types: Sequence[int]) -> None:
    """Add the tokens that are matched whole before any splitting. Control tokens are special, user-defined ones not."""
    for kind, add in ((CONTROL, backend.add_special_tokens), (USER_DEFINED, backend.add_tokens)):
        special = kind == CONTROL
        of_kind = (token for token, type_ in zip(tokens, types, strict=True) if type_ == kind)
        add([AddedToken(token, special=special, normalized=False) for token in of_kind])
