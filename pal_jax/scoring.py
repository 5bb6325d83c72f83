"""Scores of texts, or of items in numbers, by a trained model of preferences.

    scorer = open_scorer('orbax:runs/reward')                              # a reward model
    scorer = open_scorer('orbax:runs/cost')                                # a cost model
    scorer = open_scorer('orbax:runs/moderation')                          # a moderator: a higher score is less safe
    scorer = open_scorer('orbax:runs/plus', person='ana.json')             # PLUS, after the person's summary
    scorer = open_scorer('orbax:runs/pal', person='ana.json')              # PAL, by the person's mixture
    scorer([{'prompt': 'Hello', 'completion': 'Good day.'}])               # [records] float

`scorer.read` turns a record into the model's input, and raises an error for a wrong record. `scorer.score` scores many.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pal_jax.data import chats, marks, records
from pal_jax.data.packing import Group, shared_prompt
from pal_jax.data.readers.safety import CATEGORIES
from pal_jax.data.readers.tables import LARGEST
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.learners.scorer import pack_replies, to_score
from pal_jax.recipes import plus, reward
from pal_jax.recipes.cost import recipe as cost
from pal_jax.recipes.moderation import recipe as moderation
from pal_jax.recipes.moderation.evaluation import harm, unsafe_by
from pal_jax.recipes.personal.pal import person as pal_person
from pal_jax.recipes.personal.pal import reward as pal_reward
from pal_jax.recipes.personal.pal.reward import TrainedPAL
from pal_jax.recipes.plus import context as plus_context
from pal_jax.recipes.plus import parts as plus_parts
from pal_jax.recipes.plus.settings import WRITTEN
from pal_jax.run import devices, files, sharding
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.recipe import Context
from pal_jax.run.runs import read_config, read_settings
from pal_jax.run.scorers import OpenScores
from pal_jax.run.settings import Run
from pal_jax.run.workdir import run_folder

KINDS = (
    'a reward model (configs/reward.py), a cost model (configs/cost.py), a moderator (configs/moderation.py), PLUS '
    '(configs/plus.py) or PAL (configs/pal.py)'
)


class Scorer(NamedTuple):
    """A trained model as two functions.

    read: turns a record into the model's input. Raises ValueError, without a place, where the record is wrong.
    score: turns the results of `read` for several records into their scores `[records]`.
    form: the form that a record has, where scores of the same reply in several forms differ.
    keys: the names of the fields that `told` gives a record.
    details: turns the results of `read` for several records into their fields; None where the score is the only one.
    """

    read: Callable[[Any], Any]
    score: Callable[[Sequence[Any]], np.ndarray]
    form: Callable[[Any], str] = lambda record: ''
    keys: tuple[str, ...] = ('score',)
    details: Callable[[Sequence[Any]], list[dict[str, Any]]] | None = None

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The scores `[records]` of records. Raises ValueError, with the record's number, where one is wrong."""
        read = self.read_all((f'record {number}', record) for number, record in enumerate(records, 1))
        return self.score(read) if read else np.zeros(0, np.float32)

    def told(self, read: Sequence[Any]) -> list[dict[str, Any]]:
        """The fields of each record that was read: its `score`, and what `details` adds."""
        return self.details(read) if self.details else [{'score': float(score)} for score in self.score(read)]

    def read_all(self, placed: Iterable[tuple[str, Any]]) -> list[Any]:
        """The model's inputs of records, which come with their places in a file.

        Raises:
          ValueError: a record is wrong, or of another form than the records before it. The message names its place.
        """
        read, forms = [], {}
        for place, record in placed:
            try:
                read.append(self.read(record))
            except ValueError as error:
                raise ValueError(f'{place}: {error}') from None
            forms.setdefault(self.form(record), place)
            if len(forms) > 1:
                (form, first), (form_here, _) = forms.items()
                raise ValueError(
                    f'{place}: it has {form_here}, and {first} has {form}, whose scores cannot be compared; '
                    'give all alike'
                )
        return read


def open_scorer(source: str | os.PathLike[str], person: str | int | os.PathLike[str] | None = '') -> Scorer:
    """Open the model of a finished run, on one device.

    Args:
      source: `orbax:<workdir>` of a run of a reward model, a cost model, a moderator, PLUS or PAL, or its folder.
      person: the person who prefers. For PAL a file that `pal_jax.personalize` wrote, the id of a person of the
        training, or nothing for the mean over them. For PLUS a file with the person's `summary`. Reward models, cost
        models and moderators know no people.

    Raises:
      ValueError: the source is no such run, or the person does not fit it.
      RuntimeError: a model or checkpoint cannot be read.
    """
    workdir, person = run_folder(source), to_name(person)
    try:
        config = read_config(workdir)
    except ValueError as error:
        raise ValueError(f'{error}, of {KINDS}') from None
    match config.recipe:
        case 'reward':
            return _open_model(workdir, person, reward.open_scores, 'reward model', to_group, form_of)
        case 'cost':
            return _open_cost(workdir, person)
        case 'moderation':
            return _open_moderator(workdir, person)
        case 'plus':
            return _open_plus(read_settings(config), workdir, person)
        case 'personal.pal' | 'personal.pal_large':
            return _open_pal(workdir, person)
    raise ValueError(f'{source} is a run of {config.recipe}, which scores nothing; give one of {KINDS}')


def to_name(person: str | int | os.PathLike[str] | None) -> str:
    """A person as the name of a file or an id, '' for nobody. Raises ValueError where `person` is neither."""
    if person is None or person == '':
        return ''
    name = os.fspath(person) if isinstance(person, os.PathLike) else person
    is_file = isinstance(name, str) and pal_person.is_file(name)
    return str(name) if is_file else records.identity('', {'person': name}, 'person')


# --- reward and cost models -------------------------------------------------------------------------------------------


def _open_model(
    workdir: str, person: str, opened: Callable[[str, Context], OpenScores], kind: str,
    read: Callable[[Any, Tokenizer, str], Group], form: Callable[[Any], str] = lambda record: '',
) -> Scorer:  # fmt: skip
    _check_nobody(workdir, person, f'a {kind}')
    tokenizer, pooling, scores = opened(workdir, _one_device(workdir))
    return Scorer(lambda record: read(record, tokenizer, pooling), lambda groups: scores(groups)[:, 0], form)


def _open_cost(workdir: str, person: str) -> Scorer:
    scorer = _open_model(workdir, person, cost.open_scores, 'cost model', to_turn)

    def details(groups: Sequence[Group]) -> list[dict[str, Any]]:
        return [{'score': score, 'unsafe': score > 0.0} for score in scorer.score(groups).tolist()]

    return scorer._replace(keys=('score', 'unsafe'), details=details)


def _check_nobody(workdir: str, person: str, kind: str) -> None:
    if person:
        raise ValueError(f'person={person}: {workdir} is {kind}, which knows no people; leave person out')


def form_of(record: Mapping[str, Any]) -> str:
    """The form of a record: 'messages', which go through the chat template, or 'texts'."""
    return 'messages' if isinstance(record.get('messages') or record.get('completion'), list) else 'texts'


def to_group(record: Any, tokenizer: Tokenizer, pooling: str) -> Group:
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


def to_turn(record: Any, tokenizer: Tokenizer, pooling: str) -> Group:
    """A record as a group of one reply, in the form of a chat, which is all that cost models learn.

    A prompt and a response that are texts are a chat of one turn, so their cost is that of the same messages.

    Raises:
      ValueError: as `to_pair`.
    """
    prompt, response = to_pair(record)
    messages = chats.as_chat(prompt) if isinstance(prompt, str) else prompt
    reply = [{'role': 'assistant', 'content': response}]
    context = {key: record[key] for key in ('system', 'tools') if key in record}
    return to_group(context | {'prompt': messages, 'completion': reply}, tokenizer, pooling)


# --- moderators -------------------------------------------------------------------------------------------------------


def _open_moderator(workdir: str, person: str) -> Scorer:
    _check_nobody(workdir, person, 'a moderator')
    moderator = moderation.open_moderator(workdir, _one_device(workdir))

    def read(record: Any) -> Group:
        return moderator.read(*to_pair(record))

    def score(groups: Sequence[Group]) -> np.ndarray:
        return harm(moderator.probabilities(groups))

    def details(groups: Sequence[Group]) -> list[dict[str, Any]]:
        probabilities = moderator.probabilities(groups)
        verdicts = zip(
            harm(probabilities).tolist(),
            probabilities.tolist(),
            unsafe_by(probabilities, moderator.thresholds),
            strict=True,
        )
        return [
            {
                'score': score,
                'categories': {name: round(p, 4) for name, p in zip(CATEGORIES, row, strict=True)},
                'unsafe': bool(unsafe),
            }
            for score, row, unsafe in verdicts
        ]

    return Scorer(read, score, keys=('score', 'categories', 'unsafe'), details=details)


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
    last = response[-1] if isinstance(response, list) and len(response) == 1 else response
    if isinstance(last, Mapping) and last.get('role') == 'assistant':
        last = last.get('content')
    if not isinstance(last, str):
        raise ValueError('the response must be a text, or one message of the assistant')
    return prompt, last


# --- PLUS -------------------------------------------------------------------------------------------------------------


def _open_plus(settings: Run, workdir: str, person: str) -> Scorer:
    if not isinstance(settings, plus.Settings) or settings.reads not in WRITTEN:
        reads = ' or '.join(WRITTEN)
        raise ValueError(f'{workdir} is no run of PLUS that reads summaries; give one with reads={reads}')
    summary = read_summary(person)
    ctx = _one_device(workdir)
    _, learner, judge, reader = plus_parts.make_models(settings, ctx)
    trees = {'reward': reader.abstract_weights, 'policy': jax.tree.map(lambda _: ..., learner.abstract)}
    state = Checkpoints(workdir, trees, read_only=True).read()[0]['reward']
    model = settings.reward_model
    packing: dict[str, Any] = {
        'ways': sharding.batch_ways(ctx.mesh), 'micro_rows': model.micro_rows, 'row_tokens': model.row_tokens,
    }  # fmt: skip

    def read(record: Any) -> Group:
        prompt, reply = map(record.get, ('prompt', 'completion')) if isinstance(record, Mapping) else (None, None)
        if not isinstance(prompt, str) or not isinstance(reply, str) or not prompt or not reply:
            raise ValueError("expected an object with 'prompt' and 'completion', both texts")
        return plus_context.to_group(judge.tokenizer, summary, [(prompt, reply)])

    def score(groups: Sequence[Group]) -> np.ndarray:
        return reader.scores(state, pack_replies(groups, ctx.mesh, **packing))[:, 0]

    return Scorer(read, score)


def read_summary(path: str) -> str:
    """The summary in a person's file. Raises ValueError where the file has none."""
    advice = 'a JSON object with "summary", such as a line that python -m pal_jax.summarize prints'
    if not pal_person.is_file(path):
        raise ValueError(f'person={path!r}: PLUS knows a person by a file, {advice}')
    summary = files.read_object(path).get('summary')
    if not isinstance(summary, str) or not summary.strip():
        raise ValueError(f'{path} has summary={files.shown(summary)}; give {advice}')
    return summary


# --- PAL --------------------------------------------------------------------------------------------------------------


def _open_pal(workdir: str, person: str) -> Scorer:
    run, w = pal_person.open_person(workdir, person)
    if run.reading is None:
        return Scorer(lambda record: to_item(record, run), _score_items(run, w))
    reward_of = pal_reward.reward_of_replies(run, w)

    def score(pairs: Sequence[tuple[Any, Any]]) -> np.ndarray:
        return reward_of(*zip(*pairs, strict=True))

    return Scorer(lambda record: to_reply(record, run), score)


def to_reply(record: Any, run: TrainedPAL) -> tuple[Any, Any]:
    """A record's prompt and reply, as the run reads them. A run on statements reads `text` alone, with an empty prompt.

    Raises:
      ValueError: the record does not have the keys that the run reads.
    """
    record = record if isinstance(record, Mapping) else {}
    if not run.kept.prompted:
        if not record.get('text'):
            raise ValueError(
                f"expected an object with 'text', which is not empty: {run.workdir} learnt from statements"
            )
        pal_reward.check_form(run, '', record['text'])
        return '', record['text']
    talk = record.get('messages')
    prompt, reply = (talk[:-1], talk[-1:]) if isinstance(talk, list) else map(record.get, ('prompt', 'completion'))
    if not prompt or not reply or not all(isinstance(side, str | list) for side in (prompt, reply)):
        raise ValueError("expected an object with 'prompt' and 'completion', or with 'messages'")
    pal_reward.check_form(run, prompt, reply)
    return prompt, reply


def to_item(record: Any, run: TrainedPAL) -> tuple[np.ndarray, np.ndarray | None]:
    """A record's item `[1, H]`, and its prompt `[1, H]` in variant B, as the run sees them.

    Raises:
      ValueError: the record has other attributes than the run, or no prompt.
    """
    item: Any = record.get('item') if isinstance(record, Mapping) else None
    names = run.kept.attributes
    item = run.kept.numbers(item) if isinstance(item, Mapping) else item
    prompt = record.get('prompt') if run.pal.variant == 'B' else None
    for key, numbers in {'item': item, **({'prompt': prompt} if run.pal.variant == 'B' else {})}.items():
        if not isinstance(numbers, list) or len(numbers) != len(names):
            raise ValueError(f'expected an object with {key!r}: {len(names)} numbers, for {", ".join(names)}')
        if wrong := [name for name, x in zip(names, numbers, strict=True) if not _is_number(x)]:
            value = files.shown(numbers[names.index(wrong[0])])
            raise ValueError(f'{key!r} has {value} for {wrong[0]!r}; give a number that is finite in float32')
    return pal_reward.item_vectors(run, [item], None if prompt is None else [prompt])


def _is_number(x: Any) -> bool:
    """True for a number, and no truth value, that float32 can have."""
    return isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= LARGEST


def _score_items(run: TrainedPAL, w: jax.Array) -> Callable[[Sequence[Any]], np.ndarray]:
    def score(vectors: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> np.ndarray:
        items, prompts = zip(*vectors, strict=True)
        prompts = np.concatenate(prompts) if run.pal.variant == 'B' else None
        return np.asarray(pal_reward.rewards(run, w, np.concatenate(items), prompts))

    return score


def _one_device(workdir: str) -> Context:
    """The context of the run in a folder, on the first device of this process."""
    return Context(devices.make_mesh(devices=jax.local_devices()[:1])).of(workdir)
