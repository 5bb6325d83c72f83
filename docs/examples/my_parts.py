"""A user, a judge and a game of your own."""

import dataclasses


def user(dialogues, seed):
    """The next message of each person: they tell their facts one after the other. None would be no answer."""
    return [
        f'By the way, {dialogue.person.facts[dialogue.round % len(dialogue.person.facts)]}.' for dialogue in dialogues
    ]


def judge(dialogues, inferred, replies, seed):
    """A score from 0 to 1 for each reply: the share of its words that are not the person's own last words."""
    scores = []
    for dialogue, reply in zip(dialogues, replies, strict=True):
        said = set(dialogue.turns[-1].content.lower().split())
        words = reply.lower().split()
        scores.append(sum(word not in said for word in words) / len(words) if words else 0.0)
    return scores


@dataclasses.dataclass(frozen=True)
class Sticks:
    """Nim with seven sticks for SPIRAL: seats take one or two in turn, and whoever takes the last one wins."""

    name = 'sticks'

    def start(self, seed):
        return 7, 0  # sticks, and the seat that moves

    def turn(self, state):
        return state[1] if state[0] else None

    def legal(self, state):
        return tuple(f'[{count}]' for count in (1, 2) if count <= state[0])

    def read(self, state, text):
        return next((action for action in self.legal(state) if action in text), None)

    def move(self, state, action):
        return state[0] - int(action[1]), 1 - state[1]

    def rewards(self, state):
        return (-1.0, 1.0) if state[1] == 0 else (1.0, -1.0)  # the other seat took the last stick

    def observe(self, state, seat):
        return f'There are {state[0]} sticks. You take one or two; whoever takes the last one wins.'
