"""Records that several methods score: which of their forms are the same, and which are refused."""

from __future__ import annotations

import pytest

from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.run import record_scorer


def test_what_stands_beside_messages_counts_or_is_refused():
    tokenizer, said = byte_tokenizer(), [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': 'b'}]
    kind = [{'role': 'system', 'content': 'be kind'}, *said]
    alike = [
        record_scorer.to_group(record, tokenizer, 'last')
        for record in ({'messages': kind}, {'messages': said, 'system': 'be kind'})
    ]
    assert alike[0] == alike[1] != record_scorer.to_group({'messages': said, 'note': 1}, tokenizer, 'last')
    texts = {'prompt': 'a', 'completion': 'b'}
    unwanted = record_scorer.to_group(texts | {'label': False}, tokenizer, 'last')
    assert unwanted == record_scorer.to_group(texts, tokenizer, 'last')
    masked = record_scorer.to_group({'messages': [said[0], said[1] | {'weight': 0}]}, tokenizer, 'last')
    assert masked == record_scorer.to_group({'messages': said}, tokenizer, 'last')
    for key, beside in {'tools': {'tools': [{'type': 'f'}]}, 'images': {'images': ['x']}, 'ambiguous': texts}.items():
        with pytest.raises(ValueError, match=key):
            record_scorer.to_group({'messages': said, **beside}, tokenizer, 'last')
    for other in ({'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}, {'text': 'b'}, None):
        with pytest.raises(ValueError, match="'completion'"):
            record_scorer.to_group(other, tokenizer, 'last')
