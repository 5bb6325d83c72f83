"""A dialogue of a policy with a simulated person, as a game of two roles, and the messages that the policy reads.

The policy may give several samples a turn. The dialogue then goes on with the best of them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from pal_jax.games.game import Group, play
from pal_jax.recipes.rlpa.profiles import ParsedCompletion, plain_history, render_completion
from pal_jax.types import Completion, Dialogue, Person, Sample, Turn

T = TypeVar('T')

POLICY, PERSON = range(2)  # the roles


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A dialogue and whether somebody has ended it early."""

    dialogue: Dialogue
    ended: bool = False


@dataclasses.dataclass(frozen=True)
class DialogueGame:
    """Dialogues of at most `rounds` replies with `people`, one person in each; `system` is the policy's system
    prompt."""

    people: Sequence[Person]
    rounds: int
    system: str = ''
    roles: tuple[str, ...] = ('policy', 'person')

    def start(self, seed: int) -> Conversation:
        """The conversation at the first message of the person with this number."""
        return Conversation(open_dialogue(self.people[seed % len(self.people)]))

    def turn(self, state: Conversation) -> int | None:
        """The role that moves next: the policy answers a message and the person a reply, until the last round."""
        if state.ended or state.dialogue.round >= self.rounds:
            return None
        return POLICY if state.dialogue.turns[-1].role == 'user' else PERSON

    def prompt(self, state: Conversation, role: int) -> list[dict[str, str]]:
        """The messages that a role reads.

        The policy reads its last profile.
        """
        if role == POLICY:
            return messages(state.dialogue, self.system)
        # The person reads no profile, and its own messages have the assistant's role.
        names = {'user': 'assistant', 'assistant': 'user'}
        return [{'role': names[turn.role], 'content': turn.content} for turn in state.dialogue.turns]

    def apply(self, state: Conversation, sample: Sample) -> Conversation:
        """The dialogue with the policy's parsed reply, or with the person's line."""
        role = self.turn(state)
        if role == PERSON and sample.ok:
            return Conversation(add_message(state.dialogue, sample.completion.text))
        if role == POLICY and sample.parsed is not None:
            return Conversation(add_reply(state.dialogue, sample.parsed))
        # A malformed reply ends the dialogue, and so does a person who has no answer.
        return dataclasses.replace(state, ended=True)

    def rewards(self, state: Conversation) -> tuple[float, ...]:
        """No rewards at the end of the game: judges reward each reply by itself."""
        return ()


def converse(
    game: DialogueGame,
    states: Sequence[Conversation],
    answer: Callable[[Sequence[Dialogue], int], Sequence[Group]],
    user: Callable[[Sequence[Dialogue], int], Sequence[str | None]],
) -> list[list[list[Sample]]]:
    """The policy's groups of each dialogue by turn; each dialogue goes on with the best reply until it ends.

    Args:
      answer: samples and rewards a group for each dialogue, given the number of turns that have been played.
      user: answers for the persons, given the same number.
    """

    def policy(states: Sequence[Conversation], moves: int) -> Sequence[Group]:
        # A turn of the dialogue has a move of each role.
        return answer([state.dialogue for state in states], moves // len(game.roles))

    def person(states: Sequence[Conversation], moves: int) -> list[list[Sample]]:
        dialogues = [state.dialogue for state in states]
        return [[spoken(line)] for line in hear_people(dialogues, user, moves // len(game.roles))]

    def spoken(line: str | None) -> Sample:
        return Sample((), Completion(line or '', (), (), 'stop'), ok=line is not None)

    played = play(game, (policy, person), states, choose=best_sample)
    return [[group for group in groups if group[0].role == POLICY] for groups in played]


def open_dialogue(person: Person) -> Dialogue:
    """A dialogue at the person's first message."""
    return Dialogue(person, (Turn('user', person.opening),))


def hear_people(
    dialogues: Sequence[Dialogue], user: Callable[[Sequence[Dialogue], int], Sequence[str | None]], seed: int
) -> Sequence[str | None]:
    """The next message of each dialogue's person, who does not see the policy's profile."""
    return user([plain_history(dialogue) for dialogue in dialogues], seed) if dialogues else ()


def add_message(dialogue: Dialogue, line: str) -> Dialogue:
    """The dialogue with the person's next message."""
    return dataclasses.replace(dialogue, turns=(*dialogue.turns, Turn('user', line)))


def add_reply(dialogue: Dialogue, parsed: ParsedCompletion) -> Dialogue:
    """The dialogue with the policy's reply, whose profile stays beside it."""
    return dataclasses.replace(dialogue, turns=(*dialogue.turns, Turn('assistant', parsed.reply, parsed.profile)))


# --- best of n ------------------------------------------------------------------------------------------------------


def best_sample(group: Group) -> Sample:
    """The first maximum of the reward among well-formed samples, or a malformed sample if all are."""
    # A sample that no judge could score wins only if there is no other.
    return max(group, key=lambda sample: (sample.parsed is not None, sample.ok, sample.reward))


def with_best_reply(group: Group) -> Dialogue | None:
    """The dialogue of a group with its best reply; None if all replies are malformed.

    Raises:
      ValueError: the group is empty, or mixes dialogues.
    """
    if not group:
        raise ValueError('a group has no samples; sample at least one completion of each dialogue')
    dialogue = group[0].source
    if any(sample.source != dialogue for sample in group):
        raise ValueError(f'a group mixes dialogues, one of them of {dialogue.person.id!r}; group samples by prompt')
    chosen = best_sample(group)
    # The published code goes on with the text "None" where all are malformed.
    return None if chosen.parsed is None else add_reply(dialogue, chosen.parsed)


def with_returns(turns: Sequence[Sequence[Sequence[Sample]]], *, gamma: float) -> list[Sample]:
    """Samples whose reward is their return `G = R + gamma V`, of dialogues that begin and end in `turns`.

    `turns` holds each turn's groups. V stands for the value of the dialogue after a sample:
    - the sample went on: the mean return of the group that answers the next message;
    - it is malformed, or its turn is the last: 0, for there the dialogue ends;
    - it is well-formed, but another one went on: the average of the dialogues of its turn.

    Samples that nobody could judge count in no mean. With `gamma=0` nothing changes.
    """
    later: dict[Dialogue, float] = {}  # mean return of a group, by the dialogue it answers
    credited: list[list[Sample]] = []
    for groups in reversed(turns):
        # The value of a sample whose dialogue did not go on is unknown. By the average it gains or loses by the next
        # turns only where it had some.
        average = sum(later.values()) / len(later) if later else 0.0
        # A dialogue of the next turn is found by the reply that it follows.
        follows = {before(dialogue): value for dialogue, value in later.items()}
        done = [_credit(group, follows, average, gamma) for group in groups]
        judged = {group[0].source: [sample.reward for sample in group if sample.ok] for group in done}
        later = {dialogue: sum(values) / len(values) for dialogue, values in judged.items() if values}
        credited.append([sample for group in done for sample in group])
    return [sample for samples in reversed(credited) for sample in samples]


def before(dialogue: Dialogue) -> Dialogue:
    """The dialogue up to its last reply, without the last message, which answers that reply."""
    return dataclasses.replace(dialogue, turns=dialogue.turns[:-1])


def _credit(group: Sequence[Sample], follows: Mapping[Dialogue, float], average: float, gamma: float) -> list[Sample]:
    replied = with_best_reply(group)
    reply = replied.turns[-1] if replied else None
    value = average if replied is None else follows.get(replied, average)
    credited, gone = [], False
    for sample in group:
        parsed = sample.parsed
        # Of equal replies only the first one went on.
        went_on = parsed is not None and not gone and Turn('assistant', parsed.reply, parsed.profile) == reply
        after = 0.0 if parsed is None else value if went_on else average
        gone |= went_on
        credited.append(dataclasses.replace(sample, rewards=(sample.reward + gamma * after, *sample.rewards[1:])))
    return credited


def first_alike(dialogues: Sequence[Dialogue]) -> list[int]:
    """The number of the first dialogue that reads the same as each of these, whoever its person is."""
    first: dict[tuple[Turn, ...], int] = {}
    return [first.setdefault(dialogue.turns, k) for k, dialogue in enumerate(dialogues)]


def learnt_once(groups: Sequence[Group]) -> list[Group]:
    """The groups, where several of the same answers to the same prompt are one group with their mean rewards."""
    alike: dict[Any, list[Group]] = {}
    for group in groups:
        answers = tuple(sample.completion.token_ids for sample in group)
        alike.setdefault((tuple(group[0].prompt_ids), answers), []).append(group)
    return [list(map(_mean_of, zip(*same, strict=True))) for same in alike.values()]


def _mean_of(samples: Sequence[Sample]) -> Sample:
    """One answer that several people got, with the mean of the rewards that somebody could judge."""
    judged = [sample for sample in samples if sample.ok]
    if not judged:
        return samples[0]
    rewards = zip(*(sample.rewards for sample in judged), strict=True)
    return dataclasses.replace(judged[0], rewards=tuple(sum(channel) / len(judged) for channel in rewards))


def down_sampled(group: Group, count: int) -> Group:
    """The `count - 1` best samples of a group and its worst, in their order (as PODS, arXiv 2504.13818)."""
    # A sample that nobody could judge is learnt only where the group has too few others.
    ranked = sorted(range(len(group)), key=lambda k: (group[k].ok, group[k].reward), reverse=True)
    judged = max(sum(sample.ok for sample in group), count)
    return [group[k] for k in sorted([*ranked[: count - 1], ranked[judged - 1]])]


# --- what the policy reads ------------------------------------------------------------------------------------------


def actor_prompt(topics: Sequence[str], profile: Literal['lines', 'json'] = 'lines') -> str:
    """A short system prompt: the topics of a profile without any value, and the layout of an answer.

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

    Among the policy's own turns only the last one shows the profile written with it; the older ones are bare replies.
    """
    last = max((i for i, turn in enumerate(dialogue.turns) if turn.role == 'assistant'), default=None)
    chat = [{'role': 'system', 'content': system}] if system else []
    for i, turn in enumerate(dialogue.turns):
        content = render_completion(turn.profile, turn.content) if i == last else turn.content
        chat.append({'role': turn.role, 'content': content})
    return chat


def fit_dialogue(dialogue: Dialogue, fits: Callable[[Dialogue], bool]) -> Dialogue:
    """The dialogue without its oldest exchanges, as few as it takes to fit; its last message is kept whole."""

    def of(turns: Sequence[Turn]) -> Dialogue:
        return dataclasses.replace(dialogue, turns=tuple(turns))

    # The published code cuts tokens off the end of a long prompt instead, the person's last words first.
    return of(newest_turns(dialogue.turns, lambda turns: fits(of(turns))))


def newest_turns(turns: Sequence[T], fits: Callable[[Sequence[T]], bool]) -> Sequence[T]:
    """The turns without the oldest pairs, as few as it takes to fit; the last two turns stay."""
    while len(turns) > 2 and not fits(turns):
        turns = turns[2:]
    return turns
