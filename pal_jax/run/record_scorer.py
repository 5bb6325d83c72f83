"""A trained model as a function of records: what a method's `open_scorer` makes, and the records that several read."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pal_jax.data import chats, marks
from pal_jax.data.packing import PromptGroup, shared_prompt
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.learners.scorer import to_score
from pal_jax.run import devices
from pal_jax.run.recipe import Context


class RecordScorer(NamedTuple):
    """A trained model as two functions."""

    # `read` turns a record into the model's input. It raises ValueError, without a place, where the record is wrong.
    read: Callable[[Any], Any]
    # `score` turns the results of `read` for several records into their scores `[records]`.
    score: Callable[[Sequence[Any]], np.ndarray]
    # `form` gives the form that a record has, where scores of the same reply in several forms differ.
    form: Callable[[Any], str] = lambda record: ''
    # The names of the fields that `told` gives a record.
    keys: tuple[str, ...] = ('score',)
    # `details` turns the results of `read` for several records into their fields; None where the score is the only one.
    details: Callable[[Sequence[Any]], list[dict[str, Any]]] | None = None
    # `doubt` gives words on a result of `read` that the model has learnt little about, '' where there is no doubt.
    doubt: Callable[[Any], str] = lambda read: ''
    # The attributes of a table by which the model scores.
    attributes: tuple[str, ...] = ()
    # The number of records that are scored at once; None: all of them.
    chunk: int | None = 64

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The scores `[records]` of records. Raises ValueError, with the record's number, where one is wrong."""
        return self.of_placed((f'record {number}', record) for number, record in enumerate(records, 1))

    def of_placed(self, placed: Iterable[tuple[str, Any]]) -> np.ndarray:
        """The scores `[records]` of records with places. Raises ValueError, with the place, where a record is wrong."""
        read = self.read_all(placed)
        return self.score(read) if read else np.zeros(0, np.float32)

    def told(self, read: Sequence[Any]) -> list[dict[str, Any]]:
        """The fields of each record that was read: its `score`, and what `details` adds."""
        return self.details(read) if self.details else [{'score': float(score)} for score in self.score(read)]

    def read_all(self, placed: Iterable[tuple[str, Any]]) -> list[Any]:
        """The model's inputs of records, which come with their places in a file. The first doubt is told on stderr.

        Raises:
          ValueError: a record is wrong, or of another form than the records before it. The message names its place.
        """
        read, forms, doubt = [], {}, ''
        for place, record in placed:
            try:
                read.append(self.read(record))
            except ValueError as error:
                raise ValueError(f'{place}: {error}') from None
            if not doubt and (doubt := self.doubt(read[-1])):
                print(f'warning: {place}: {doubt}', file=sys.stderr)
            forms.setdefault(self.form(record), place)
            if len(forms) > 1:
                (form, first), (form_here, _) = forms.items()
                raise ValueError(
                    f'{place}: it has {form_here}, and {first} has {form}, whose scores cannot be compared; '
                    'give all alike'
                )
        return read


def check_nobody(workdir: str, person: str, kind: str) -> None:
    """Raises ValueError where a person is given to a run of a kind that knows none."""
    if person:
        raise ValueError(f'person={person}: {workdir} is {kind}, which knows no people; leave person out')


def one_device(workdir: str) -> Context:
    """The context of the run in a folder, on the first device of this process."""
    return Context(devices.make_mesh(devices=jax.local_devices()[:1])).of(workdir)


# --- records --------------------------------------------------------------------------------------------------------


def form_of(record: Mapping[str, Any]) -> str:
    """The form of a record: 'messages', which go through the chat template, or 'texts'."""
    return 'messages' if isinstance(record.get('messages') or record.get('completion'), list) else 'texts'


def to_group(record: Any, tokenizer: Tokenizer, pooling: str) -> PromptGroup:
    """A record as a group of one reply.

    The record has `prompt` and `completion`, or `messages` of which the last is scored. Its `tools` and `system` are
    read as in training.

    Raises:
      ValueError: the record has neither or both, or the last message is not the assistant's.
    """
    fields = {key: value for key, value in record.items() if value is not None} if isinstance(record, Mapping) else {}
    replied = fields.keys() >= {'prompt', 'completion'}
    if 'messages' not in fields and not replied:
        raise ValueError("expected an object with 'prompt' and 'completion', or with 'messages'")
    if isinstance(fields.get('messages'), list) and not replied:
        *prompt, reply = fields.pop('messages') or [None]
        if not prompt or not isinstance(reply, dict) or reply.get('role') != 'assistant':
            raise ValueError("'messages' must end with an assistant message after another; that is what is scored")
        fields |= {'prompt': prompt, 'completion': [reply]}
    # What is not to be learnt, such as an unwanted completion of KTO, has a score, too.
    if isinstance(fields.get('completion'), list):
        fields['completion'] = [
            {key: value for key, value in reply.items() if key not in marks.OF_ROWS}
            if isinstance(reply, dict)
            else reply
            for reply in fields['completion']
        ]
    fields = {key: value for key, value in fields.items() if key not in marks.OF_ROWS}
    example = chats.to_imitate(fields, tokenizer)
    return shared_prompt([to_score(example.prompt, example.completion, pooling)])


def to_turn(record: Any, tokenizer: Tokenizer, pooling: str) -> PromptGroup:
    """A record as a group of one reply, in the form of a chat, which is all that cost models learn.

    Raises:
      ValueError: as `to_pair`.
    """
    prompt, response = to_pair(record)
    # A prompt and a response that are texts are a chat of one turn, so their cost is that of the same messages.
    messages = chats.as_chat(prompt) if isinstance(prompt, str) else prompt
    reply = [{'role': 'assistant', 'content': response}]
    context = {key: record[key] for key in ('system', 'tools') if key in record}
    return to_group(context | {'prompt': messages, 'completion': reply}, tokenizer, pooling)


def to_pair(record: Any) -> tuple[str | list[dict[str, str]], str]:
    """A record's prompt, a text or messages, and its response, a text.

    The key of the response is `response` or `completion`. In place of both the record may have `messages`, of which the
    last is the response.

    Raises:
      ValueError: the record has neither, or both.
    """
    fields = {key: value for key, value in record.items() if value is not None} if isinstance(record, Mapping) else {}
    prompt, responses = fields.get('prompt'), [fields[key] for key in ('response', 'completion') if key in fields]
    if isinstance(talk := fields.get('messages'), list) and talk and not responses:
        prompt, responses = talk[:-1], talk[-1:]
    if len(responses) != 1 or not prompt or not isinstance(prompt, str | list):
        raise ValueError("expected an object with 'prompt' and 'response' (or 'completion'), or with 'messages'")
    response: Any = responses[0]
    # A list of one message stands for that message.
    last = response[-1] if isinstance(response, list) and len(response) == 1 else response
    if isinstance(last, Mapping) and last.get('role') == 'assistant':
        last = last.get('content')
    if not isinstance(last, str):
        raise ValueError('the response must be a text, or one message of the assistant')
    return prompt, last
