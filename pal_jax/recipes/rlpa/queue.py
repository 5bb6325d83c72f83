"""RLPA's queue of open conversations (appendix and published code), as pure functions over a frozen record.

A step calls `pop` for the dialogues to be answered, samples and rewards n completions of each dialogue, and calls
`continue_best`: each dialogue goes on with its best reply (`best_replies`), the person answers it (`answer`), and the
dialogue queues up for its next round (`join`).

`round_batch_size` is the number of best replies that are collected before their people answer together. The dialogues
then join the queue at the front (> 0, depth-first: the same people go on) or at the end (< 0, breadth-first: everyone's
round t comes before t + 1). 0 stands for 128, depth-first.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pal_jax.recipes.rlpa.dialogue import add_message, hear_people, open_dialogue, with_best_reply
from pal_jax.types import Dialogue, Person, Sample, Turn, UserSimulator

_DEFAULT_ROUND_BATCH = 128
# Dialogues that end with their persons' messages, and None for each that nobody has answered.
Answered = tuple[Dialogue | None, ...]


@dataclasses.dataclass(frozen=True)
class Queue:
    """Open conversations: `pending` ones end with the person's message, `waiting` ones with a best reply that nobody
    has answered yet. `episode` counts the passes over all people before this one."""

    pending: tuple[Dialogue, ...]
    waiting: tuple[Dialogue, ...] = ()
    episode: int = 0


def open_queue(people: Sequence[Person], *, episode: int = 0, shuffle: int | None = None) -> Queue:
    """Every person's conversation at its first message, in the order of the data.

    With `shuffle`, a seed, every episode has another order.

    Raises:
      ValueError: there are no people.
    """
    if not people:
        raise ValueError('there are no people to talk to; give at least one')
    if shuffle is not None:
        people = random.Random(f'order {shuffle} {episode}').sample(people, len(people))
    return Queue(tuple(map(open_dialogue, people)), episode=episode)


def pop(
    queue: Queue,
    n: int,
    *,
    people: Sequence[Person],
    user: UserSimulator,
    seed: int,
    shuffle: int | None = None,
    share_alike: bool = False,
) -> tuple[list[Dialogue], Queue]:
    """Up to `n` dialogues to answer, and the rest of the queue.

    An episode may end with a short batch. With `share_alike`, where dialogues that read the same get the same answers,
    the dialogues have up to `n` different texts, and up to `n` of them have the same one.

    Raises:
      ValueError: `n` is below 1.
    """
    if n < 1:
        raise ValueError(f'cannot pop {n} dialogues; the rollout batch must be at least 1')
    # Where fewer than `n` are pending, the waiting ones are answered first.
    if len(queue.pending) < n and queue.waiting:
        waiting, queue = queue.waiting, dataclasses.replace(queue, waiting=())
        queue = join(queue, answer(waiting, user, seed), at_front=False)
    # The next episode opens only where no dialogue is left.
    if not queue.pending:
        queue = open_queue(people, episode=queue.episode + 1, shuffle=shuffle)
    taken = _different(queue.pending, n) if share_alike else n
    return list(queue.pending[:taken]), dataclasses.replace(queue, pending=queue.pending[taken:])


def _different(pending: Sequence[Dialogue], n: int) -> int:
    """The number of dialogues at the head that have up to `n` different texts, each of them up to `n` times."""
    times = Counter[tuple[Turn, ...]]()
    for k, dialogue in enumerate(pending):
        times[dialogue.turns] += 1
        if len(times) > n or times[dialogue.turns] > n:
            return k
    return len(pending)


def continue_best(
    queue: Queue,
    groups: Sequence[Sequence[Sample]],
    *,
    max_rounds: int,
    round_batch_size: int,
    user: UserSimulator,
    seed: int,
) -> Queue:
    """Take each group's dialogue on with its best reply, and have its person answer; see `best_replies`."""
    asked, queue = best_replies(queue, groups, max_rounds=max_rounds, round_batch_size=round_batch_size)
    return join(queue, answer(asked, user, seed), at_front=round_batch_size >= 0)


def best_replies(
    queue: Queue, groups: Sequence[Sequence[Sample]], *, max_rounds: int, round_batch_size: int
) -> tuple[tuple[Dialogue, ...], Queue]:
    """The dialogues whose people are to answer now, each with its best reply, and the rest of the queue.

    A dialogue whose best reply was the last of `max_rounds` has ended. `max_rounds=1` is ordinary single-turn training:
    nothing is continued and no user is asked.

    Raises:
      ValueError: `max_rounds` is below 1.
    """
    if max_rounds < 1:
        raise ValueError(f'max_rounds={max_rounds} leaves nothing to say; use at least 1')
    replied = (with_best_reply(group) for group in groups)
    waiting = queue.waiting + tuple(dialogue for dialogue in replied if dialogue and dialogue.round < max_rounds)
    size = abs(round_batch_size) or _DEFAULT_ROUND_BATCH
    # The rest waits until a whole batch of people can answer together.
    full = len(waiting) - len(waiting) % size
    return waiting[:full], dataclasses.replace(queue, waiting=waiting[full:])


def answer(dialogues: Sequence[Dialogue], user: UserSimulator, seed: int) -> Answered:
    """The dialogues with their people's next messages; None for a dialogue that nobody answers."""
    lines = hear_people(dialogues, user, seed)
    return tuple(
        None if line is None else add_message(dialogue, line) for dialogue, line in zip(dialogues, lines, strict=True)
    )


def join(queue: Queue, answered: Answered, *, at_front: bool) -> Queue:
    """The queue with answered dialogues in the order of their arrival; a dialogue that nobody answers has ended."""
    arrived = tuple(dialogue for dialogue in answered if dialogue)
    pending = arrived + queue.pending if at_front else queue.pending + arrived
    return dataclasses.replace(queue, pending=pending)


# --- what a checkpoint keeps ----------------------------------------------------------------------------------------


def to_json(queue: Queue) -> dict[str, Any]:
    """The queue as plain dicts, lists, strings and integers; the inverse of `from_json`."""
    return dataclasses.asdict(queue)


def from_json(record: Mapping[str, Any]) -> Queue:
    """The queue that `to_json` gave, also after it went through JSON text. Raises ValueError where a field is
    missing."""
    try:
        pending, waiting = (tuple(map(dialogue_of, record[name])) for name in ('pending', 'waiting'))
        return Queue(pending, waiting, int(record['episode']))
    except (KeyError, TypeError) as error:
        raise ValueError(f'this is no saved queue ({error!r}); it must come from to_json') from None


def answered_to_json(answered: Answered) -> list[dict[str, Any] | None]:
    """Answered dialogues as plain dicts, lists, strings and integers; the inverse of `answered_of`."""
    return [None if dialogue is None else dataclasses.asdict(dialogue) for dialogue in answered]


def answered_of(records: Sequence[Mapping[str, Any] | None]) -> Answered:
    """The dialogues that `answered_to_json` gave, also after they went through JSON text."""
    return tuple(None if record is None else dialogue_of(record) for record in records)


def dialogue_of(record: Mapping[str, Any]) -> Dialogue:
    """The dialogue of its `dataclasses.asdict`, also after that went through JSON text."""
    person = record['person']
    return Dialogue(
        Person(person['id'], tuple(person['facts']), person['opening']),
        tuple(Turn(turn['role'], turn['content'], turn['profile']) for turn in record['turns']),
    )
