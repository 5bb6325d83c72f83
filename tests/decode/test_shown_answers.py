"""The answers that a report of SFT or DPO shows: to the same prompts, beside the replies of the rows."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from pal_jax.data import tokenizer
from pal_jax.data.packing import Branch, PromptGroup
from pal_jax.decode.shown_answers import LONGEST, ShownAnswers, make_shown_answers
from pal_jax.models import config
from pal_jax.run import devices
from pal_jax.run.language import SampleSettings
from pal_jax.run.models import Policy
from pal_jax.run.recipe import Context
from pal_jax.types import Completion, Sampling

BYTES = tokenizer.byte_tokenizer()
ONE = Context(devices.make_mesh(devices=jax.devices()[:1]))


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


def test_a_prompt_of_messages_is_shown_without_the_marks_of_its_template():
    asked = [{'role': 'system', 'content': 'Be kind.'}, {'role': 'user', 'content': 'Hi'}]
    written = BYTES.decode(BYTES.chat(asked))
    answers, _ = shown([group(written, 'good', 'bad')._replace(source=asked)])
    (shown_row,) = answers('w')
    assert shown_row['turns'][0] == {'role': 'user', 'content': 'Hi'} and len(shown_row['turns']) == 2
    assert shown_row['facts'][-1] == 'system: Be kind.'


def test_of_a_conversation_the_first_reply_is_shown():
    tokens = BYTES.encode('hi') + BYTES.encode(' user: and?') + BYTES.encode('more')
    acts = [True] * 2 + [False] * 11 + [True] * 4
    answers, _ = shown([PromptGroup(BYTES.encode('p'), [Branch(tokens, acts)])], ['reply'])
    assert answers('w')[0]['facts'] == ['reply: hi']


@pytest.mark.parametrize(('prompts', 'count', 'shown'), [
    (['one?', 'two?', 'three?'], 2, ['one?', 'two?']),
    (['x' * 40, 'two?', 'T'], 3, ['two?']),  # no room for an answer, and a whole text behind its first token
    (['one?'], 0, []),
])  # fmt: skip
def test_prompts_that_leave_room_are_answered(prompts, count, shown):
    rows: Any = SimpleNamespace(test=[group(prompt, 'reply') for prompt in prompts])
    source: Any = None
    cfg = dataclasses.replace(config.tiny(BYTES.vocab_size), max_len=40)
    policy = Policy(cfg, BYTES, source)
    answers = make_shown_answers(SampleSettings(count=count, max_tokens=8), rows, ['reply'], policy, ONE)
    assert [BYTES.decode(of.prompt) for of in answers.groups] == shown
    assert shown or answers({}) == []


@pytest.mark.parametrize('values', [{'count': -1}, {'max_tokens': 0}])
def test_numbers_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match=r'count=.* max_tokens='):
        SampleSettings(**values)
