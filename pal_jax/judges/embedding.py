"""Sentences as vectors, by a small BERT that runs here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tokenizers import Tokenizer

from pal_jax.models import bert

# Sentences at once; a step in tokens of their padding; tokens of a sentence at most.
_BATCH, _MULTIPLE, _LONGEST = 64, 16, 128


class SentenceEncoder:
    """Vectors of length 1 of texts, by a BERT from a folder; an embedded text is remembered."""

    def __init__(self, folder: Path):
        self._cfg, self._weights = bert.load(folder)
        self._tokenizer = Tokenizer.from_file(str(folder / 'tokenizer.json'))
        # A special token that somebody writes out is read as plain text.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(min(_LONGEST, self._cfg.max_len))
        self._known: dict[str, np.ndarray] = {}

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, 'B D']:
        # Texts of like length share a batch, which then has little padding.
        new = sorted(set(texts) - self._known.keys(), key=len)
        for start in range(0, len(new), _BATCH):
            batch = new[start : start + _BATCH]
            self._known |= zip(batch, self._embed(batch), strict=True)
        return np.stack([self._known[text] for text in texts])

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of new texts."""
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]
        # Batches have few shapes, so that few programs are compiled.
        length = -(-max(map(len, ids)) // _MULTIPLE) * _MULTIPLE
        tokens, ends = np.zeros((_BATCH, length), np.int32), np.ones(_BATCH, np.int32)
        for row, sequence in enumerate(ids):
            tokens[row, : len(sequence)], ends[row] = sequence, len(sequence)
        return np.asarray(bert.embed(self._weights, self._cfg, tokens, np.zeros_like(ends), ends))[: len(ids)]
