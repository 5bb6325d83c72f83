"""The answers that a report of SFT or DPO shows: to the same prompts, beside the replies of the rows."""

from __future__ import annotations

from typing import Any

import pytest

from pal_jax.data import tokenizer
from pal_jax.data.packing import Branch, PromptGroup
from pal_jax.decode.shown_answers import LONGEST, ShownAnswers
from pal_jax.run.language import SampleSettings
from pal_jax.types import Completion, Sampling

BYTES = tokenizer.byte_tokenizer()


class Parrot:
    """A decoder that answers with the prompt, in the order of the requests, and counts what is loaded."""

    def __init__(self):
        self.events: list[str] = []

    def load(self, weights):
        self.events.append(f'load {weights}')

    def release(self):
        self.events.append('release')

    def __call__(self, requests, on_completion=None):
        assert all(request.sampling == Sampling(temperature=0.0, max_tokens=8) for request in requests)
        return [
            Completion(BYTES.text_of(request.prompt_ids), request.prompt_ids, (0.0,) * len(request.prompt_ids), 'stop')
            for request in requests
        ]


def shown(groups, kinds=('chosen', 'rejected')):
    decoder: Any = Parrot()
    return ShownAnswers(decoder, BYTES, groups, kinds, Sampling(temperature=0.0, max_tokens=8)), decoder


def group(prompt, *replies):
    return PromptGroup(BYTES.encode(prompt), [Branch(BYTES.encode(reply)) for reply in replies])


def test_an_answer_stands_beside_the_replies_of_its_row():
    answers, decoder = shown([group('one?', 'good', 'bad'), group('two?', 'x' * 700, 'y')])
    first, second = answers('w')
    assert first == {
        'person': 'test row 1',
        'facts': ['chosen: good', 'rejected: bad'],
        'turns': [{'role': 'user', 'content': 'one?'}, {'role': 'assistant', 'content': 'one?'}],
    }
    assert second['person'] == 'test row 2'
    assert second['facts'][0] == f'chosen: {"x" * LONGEST} …'
    assert decoder.events == ['load w', 'release']


def test_of_a_conversation_the_first_reply_is_shown():
    tokens = BYTES.encode('hi') + BYTES.encode(' user: and?') + BYTES.encode('more')
    acts = [True] * 2 + [False] * 11 + [True] * 4
    answers, _ = shown([PromptGroup(BYTES.encode('p'), [Branch(tokens, acts)])], ['reply'])
    assert answers('w')[0]['facts'] == ['reply: hi']


def test_no_answers_load_no_weights():
    answers, decoder = shown([])
    assert answers('w') == []
    assert decoder.events == []


@pytest.mark.parametrize('values', [{'count': -1}, {'max_tokens': 0}])
def test_numbers_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match=r'count=.* max_tokens='):
        SampleSettings(**values)
