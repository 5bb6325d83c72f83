"""The queue of open conversations of RLPA (appendix and published code), as pure functions over a frozen record.

Per step: `pop` the dialogues to be answered, sample and reward n completions of each, and `continue_best`: the best
reply of each goes on, the person answers it, and the dialogue queues up for its next round.

`round_batch_size` says when and where: once so many best replies wait, their people answer together, and the dialogues
join the queue at the front (> 0, depth-first: the same people go on) or at the end (< 0, breadth-first: everyone's
round t comes before t + 1). 0 stands for 128, depth-first. Order is always that of arrival.
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from pal_jax.feedback.profiles import plain_history, render_completion
from pal_jax.types import Dialogue, Person, Sample, Turn, UserSimulator

T = TypeVar('T')

_DEFAULT_ROUND_BATCH = 128


@dataclasses.dataclass(frozen=True)
class Queue:
    """`pending` dialogues end with the person's message; `waiting` ones with a best reply nobody has answered yet."""

    pending: tuple[Dialogue, ...]
    waiting: tuple[Dialogue, ...] = ()
    episode: int = 0


def open_queue(people: Sequence[Person], *, episode: int = 0, shuffle: int | None = None) -> Queue:
    """Every person's conversation at its first message, in the order of the data, or with `shuffle` as seed in another
    one in every episode."""
    if not people:
        raise ValueError('there are no people to talk to; give at least one')
    if shuffle is not None:
        people = random.Random(f'order {shuffle} {episode}').sample(people, len(people))
    return Queue(tuple(Dialogue(person, (Turn('user', person.opening),)) for person in people), episode=episode)


def pop(
    queue: Queue,
    n: int,
    *,
    people: Sequence[Person],
    user: UserSimulator,
    seed: int,
    shuffle: int | None = None,
) -> tuple[list[Dialogue], Queue]:
    """Up to `n` dialogues to answer, and the rest of the queue.

    When fewer than `n` are pending, the waiting ones are answered first; an episode may end with a short batch.
    Only when none is left does the next episode open with `people`, as `open_queue` does.
    """
    if n < 1:
        raise ValueError(f'cannot pop {n} dialogues; the rollout batch must be at least 1')
    if len(queue.pending) < n and queue.waiting:
        answered = _answer(queue.waiting, user, seed)
        queue = dataclasses.replace(queue, pending=queue.pending + answered, waiting=())
    if not queue.pending:
        queue = open_queue(people, episode=queue.episode + 1, shuffle=shuffle)
    return list(queue.pending[:n]), dataclasses.replace(queue, pending=queue.pending[n:])


def continue_best(
    queue: Queue,
    groups: Sequence[Sequence[Sample]],
    *,
    max_rounds: int,
    round_batch_size: int,
    user: UserSimulator,
    seed: int,
) -> Queue:
    """Take each group's dialogue on with its best reply, unless that was the last of `max_rounds`.

    `max_rounds=1` is ordinary single-turn training: nothing is continued and no user is asked.
    """
    if max_rounds < 1:
        raise ValueError(f'max_rounds={max_rounds} leaves nothing to say; use at least 1')
    replied = (with_best_reply(group) for group in groups)
    waiting = queue.waiting + tuple(dialogue for dialogue in replied if dialogue and dialogue.round < max_rounds)
    size = abs(round_batch_size) or _DEFAULT_ROUND_BATCH
    full = len(waiting) - len(waiting) % size
    answered = _answer(waiting[:full], user, seed)
    pending = answered + queue.pending if round_batch_size >= 0 else queue.pending + answered
    return dataclasses.replace(queue, pending=pending, waiting=waiting[full:])


def with_best_reply(group: Sequence[Sample]) -> Dialogue | None:
    """The dialogue of one group with its best reply, whose profile stays beside it; `None` if all are malformed.

    Best is the first maximum of the reward among well-formed completions; one that no judge could score wins only if
    there is no other. (The published code goes on with the text "None" where all are malformed.)
    """
    if not group:
        raise ValueError('a group has no samples; sample at least one completion of each dialogue')
    dialogue = group[0].source
    if any(sample.source != dialogue for sample in group):
        raise ValueError(f'a group mixes dialogues, one of them of {dialogue.person.id!r}; group samples by prompt')
    formed = [sample for sample in group if sample.parsed is not None]
    if not formed:
        return None
    best = max(formed, key=lambda sample: (sample.ok, sample.reward)).parsed
    return dataclasses.replace(dialogue, turns=(*dialogue.turns, Turn('assistant', best.reply, best.profile)))


def play(
    dialogues: Sequence[Dialogue],
    answer: Callable[[Sequence[Dialogue], int, int], list[list[Sample]]],
    *,
    turns: int,
    user: UserSimulator,
    seed: int,
) -> list[list[list[Sample]]]:
    """The groups of the next `turns` turns of these dialogues, each going on with its best reply until it ends.

    `answer(dialogues, seed, turn)` samples and rewards a group for each dialogue.
    """
    played = [answer(dialogues, seed, 0)]
    last = max(dialogue.round for dialogue in dialogues) + turns
    for turn in range(1, turns):
        live = continue_best(Queue(()), played[-1], max_rounds=last, round_batch_size=1, user=user, seed=seed)
        if not live.pending:
            break
        played.append(answer(live.pending, seed, turn))
    return played


def with_returns(turns: Sequence[Sequence[Sequence[Sample]]], *, gamma: float) -> list[Sample]:
    """Samples whose reward is their return `G = R + gamma V`, of dialogues that begin and end in `turns`.

    `turns` holds each turn's groups. V stands for what comes after a sample:
    - it went on: the mean return of the group that answers the next message;
    - it is malformed, or its turn the last: 0, for there the dialogue ends;
    - it is well-formed, but another went on: nobody knows. It is taken to go on as the dialogues of its turn did on
      average, so that a sample gains or loses by what followed it only where something did.

    Samples that nobody could judge count in no mean. With `gamma=0` nothing changes.
    """
    later: dict[Dialogue, float] = {}  # mean return of a group, by the dialogue it answers
    credited: list[list[Sample]] = []
    for groups in reversed(turns):
        average = sum(later.values()) / len(later) if later else 0.0
        follows = {before(dialogue): value for dialogue, value in later.items()}
        done = [_credit(group, follows, average, gamma) for group in groups]
        judged = {group[0].source: [sample.reward for sample in group if sample.ok] for group in done}
        later = {dialogue: sum(values) / len(values) for dialogue, values in judged.items() if values}
        credited.append([sample for group in done for sample in group])
    return [sample for samples in reversed(credited) for sample in samples]


def before(dialogue: Dialogue) -> Dialogue:
    """The dialogue through its last reply, which its last message answers."""
    return dataclasses.replace(dialogue, turns=dialogue.turns[:-1])


def _credit(group: Sequence[Sample], follows: Mapping[Dialogue, float], average: float, gamma: float) -> list[Sample]:
    replied = with_best_reply(group)
    reply = replied.turns[-1] if replied else None
    value = average if replied is None else follows.get(replied, average)
    credited, gone = [], False
    for sample in group:
        parsed = sample.parsed
        went_on = parsed is not None and not gone and Turn('assistant', parsed.reply, parsed.profile) == reply
        after = 0.0 if parsed is None else value if went_on else average
        gone |= went_on
        credited.append(dataclasses.replace(sample, rewards=(sample.reward + gamma * after, *sample.rewards[1:])))
    return credited


def _answer(dialogues: tuple[Dialogue, ...], user: UserSimulator, seed: int) -> tuple[Dialogue, ...]:
    if not dialogues:
        return ()
    lines = user([plain_history(dialogue) for dialogue in dialogues], seed)
    return tuple(
        dataclasses.replace(dialogue, turns=(*dialogue.turns, Turn('user', line)))
        for dialogue, line in zip(dialogues, lines, strict=True)
        if line is not None  # a dialogue that nobody answers ends
    )


# --- what the policy reads ------------------------------------------------------------------------------------------


def actor_prompt(topics: Sequence[str], profile: Literal['lines', 'json'] = 'lines') -> str:
    """A short system prompt: the topics of a profile, no value of any, and the layout of an answer.

    A profile is a line a fact (the published code), or a JSON object with a value or a list of values a topic (the
    paper), blank where nothing is known.
    """
    if profile == 'json':
        lines = ',\n'.join(f'  {json.dumps(topic)}: ""' for topic in topics or ('topic',))
        layout = render_completion(f'{{\n{lines}\n}}\n', '...')
    else:
        layout = render_completion('- topic: ...\n' if topics else '- ...\n', '...')
    return f'Note only what the user told about {", ".join(topics) or "themselves"}. Then reply. Format:\n{layout}'


def messages(dialogue: Dialogue, system: str = '') -> list[dict[str, str]]:
    """The dialogue as chat messages for the policy, after the `system` prompt if there is one.

    Of its own turns only the last shows the profile written with it; the older ones are bare replies.
    """
    last = max((i for i, turn in enumerate(dialogue.turns) if turn.role == 'assistant'), default=None)
    chat = [{'role': 'system', 'content': system}] if system else []
    for i, turn in enumerate(dialogue.turns):
        content = render_completion(turn.profile, turn.content) if i == last else turn.content
        chat.append({'role': turn.role, 'content': content})
    return chat


def recent(dialogue: Dialogue, fits: Callable[[Dialogue], bool]) -> Dialogue:
    """The dialogue without as many of its oldest exchanges as it takes to fit; of its last message nothing is cut.

    The published code cuts tokens off the end of a long prompt instead, the person's last words first.
    """

    def of(turns: Sequence[Turn]) -> Dialogue:
        return dataclasses.replace(dialogue, turns=tuple(turns))

    return of(newest(dialogue.turns, lambda turns: fits(of(turns))))


def newest(said: Sequence[T], fits: Callable[[Sequence[T]], bool]) -> Sequence[T]:
    """What was said, without as many of its oldest pairs as it takes to fit."""
    while len(said) > 2 and not fits(said):
        said = said[2:]
    return said


# --- what a checkpoint keeps ----------------------------------------------------------------------------------------


def to_json(queue: Queue) -> dict[str, Any]:
    """The queue as plain dicts, lists, strings and integers; inverse of `from_json`."""
    return dataclasses.asdict(queue)


def from_json(record: Mapping[str, Any]) -> Queue:
    """The queue that `to_json` gave, also after it went through JSON text. `ValueError` if a field is missing."""
    try:
        pending, waiting = (tuple(map(_dialogue, record[name])) for name in ('pending', 'waiting'))
        return Queue(pending, waiting, int(record['episode']))
    except (KeyError, TypeError) as error:
        raise ValueError(f'this is no saved queue ({error!r}); it must come from to_json') from None


def _dialogue(record: Mapping[str, Any]) -> Dialogue:
    person = record['person']
    return Dialogue(
        Person(person['id'], tuple(person['facts']), person['opening']),
        tuple(Turn(turn['role'], turn['content'], turn['profile']) for turn in record['turns']),
    )
