"""Does a policy find out who it talks to? Dialogues with people it has not met, scored turn by turn.

The profile F1 stands next to what it can be compared with:
- bound: 2k / (k + n) after the person has told k of n facts; above it there is only guessing, or a leak;
- guesser: the constant profile of the facts most common among the training people;
- shuffled: the same predictions scored against another person's profile. Whatever is left there is not about the user.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from pal_jax.envs import dialogue as env
from pal_jax.evals.improvement import Improvement, normalized_improvement
from pal_jax.feedback.profiles import match_exactly, parse_completion, profile_f1
from pal_jax.feedback.users import revealed
from pal_jax.types import Dialogue, Person, Sample, UserSimulator

Respond = Callable[[Sequence[Dialogue], int], list[Sample]]  # one rewarded completion a dialogue
Talk = list[Sample]  # one person's dialogue, a sample a turn


def evaluate(
    respond: Respond, user: UserSimulator, splits: Mapping[str, Sequence[Person]], *, rounds: int, guess: Sequence[str]
) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    """Figures of every split of people, and all dialogues; the first split's figures go by their own names."""
    record: dict[str, Any] = {}
    dialogues: list[Mapping[str, Any]] = []
    for number, (name, people) in enumerate(splits.items()):
        talks = play(respond, user, people, rounds=rounds, seed=number * rounds)
        figures = table(talks, rounds=rounds, guess=guess)
        record |= figures if number == 0 else {f'{name}_{key}': value for key, value in figures.items()}
        dialogues += map(shown, talks)
    return record, dialogues


def play(respond: Respond, user: UserSimulator, people: Sequence[Person], *, rounds: int, seed: int) -> list[Talk]:
    """Talks with every person for `rounds` turns, all of them in step. A malformed turn ends its dialogue, and so does
    a user who has no answer."""
    talks: list[Talk] = [[] for _ in people]
    live = dict(enumerate(env.open_queue(people).pending))
    for turn in range(rounds):
        samples = respond(list(live.values()), seed + turn)
        queue = env.continue_best(
            env.Queue(()), [[s] for s in samples], max_rounds=rounds, round_batch_size=1, user=user, seed=seed + turn
        )
        for number, sample in zip(live, samples, strict=True):
            talks[number].append(sample)
        numbers = {id(people[number]): number for number in live}
        live = {numbers[id(dialogue.person)]: dialogue for dialogue in queue.pending}
        if not live:
            break
    return talks


def table(talks: Sequence[Talk], *, rounds: int, guess: Sequence[str]) -> dict[str, Any]:
    """Means over people. Turns that a malformed one cut off count as 0, but not in `format`.

    `n_ir` and `n_r2` are the paper's, of the strict reply score by turn.
    """
    people = [talk[0].dialogue.person for talk in talks]
    others = [*people[1:], *people[:1]]

    def by_turn(value: Callable[[int, Sample], float]) -> list[float]:
        cells = [[value(i, talk[t]) if t < len(talk) else 0.0 for t in range(rounds)] for i, talk in enumerate(talks)]
        return np.mean(cells, axis=0).tolist()

    f1 = by_turn(lambda i, sample: f1_against(sample, people[i]))
    strict = by_turn(lambda i, sample: sample.info['strict'])
    rise = normalized_improvement([100.0 * level for level in strict]) if rounds > 1 else Improvement(0.0, 0.0, 0.0)
    totals = [sum(sample.reward for sample in talk) / rounds for talk in talks]
    turns = [sample for talk in talks for sample in talk]
    means = {
        name: sum(s.info[name] for s in turns) / (rounds * len(talks)) for name in ('profile', 'response', 'strict')
    }
    return {
        'people': len(talks),
        'reward': float(np.mean(totals)),
        'reward_se': float(np.std(totals, ddof=1) / np.sqrt(len(totals))) if len(totals) > 1 else None,
        'format': float(np.mean([sample.info['format'] for sample in turns])),
        **means,
        'f1_by_turn': f1,
        'bound_by_turn': by_turn(lambda i, sample: bound(sample.dialogue)),
        'guesser_by_turn': [float(np.mean([_f1(guess, person.facts) for person in people]))] * rounds,
        'shuffled_by_turn': by_turn(lambda i, sample: f1_against(sample, others[i])),
        'response_by_turn': by_turn(lambda i, sample: sample.info['response']),
        'strict_by_turn': strict,
        'n_ir': rise.n_ir,
        'n_r2': rise.n_r2,
        'length': float(np.mean([len(sample.completion.token_ids) for sample in turns])),
    }


def bound(dialogue: Dialogue) -> float:
    """The F1 of stating exactly what the person has told so far."""
    told, facts = len(revealed(dialogue)), len(dialogue.person.facts)
    return 2 * told / (told + facts)


def f1_against(sample: Sample, person: Person) -> float:
    """Profile F1 of a sample's inferred facts against the profile of any person."""
    parsed = parse_completion(sample.completion.text)
    return _f1(parsed.facts, person.facts) if parsed else 0.0


def most_common_facts(people: Sequence[Person]) -> tuple[str, ...]:
    """The constant prediction that scores best on these people: their commonest facts, as many as pay."""
    ranked = [fact for fact, _ in Counter(fact for person in people for fact in person.facts).most_common()]
    longest = 2 * max(len(person.facts) for person in people)
    sizes = range(1, min(longest, len(ranked)) + 1)
    best = max(sizes, key=lambda size: sum(_f1(ranked[:size], person.facts) for person in people))
    return tuple(ranked[:best])


def shown(talk: Talk) -> Mapping[str, Any]:
    """A dialogue as a report shows it."""
    person, turns = talk[0].dialogue.person, []
    for sample in talk:
        parsed = parse_completion(sample.completion.text)
        turns.append({'role': 'user', 'content': sample.dialogue.turns[-1].content})
        scores = {name: sample.info[name] for name in ('profile', 'response', 'strict')} | {'total': sample.reward}
        content, profile = (parsed.reply, parsed.profile) if parsed else (sample.completion.text, '')
        turns.append({'role': 'assistant', 'content': content, 'profile': profile, 'rewards': scores})
    return {'person': person.id, 'facts': list(person.facts), 'turns': turns}


def _f1(inferred: Sequence[str], golden: Sequence[str]) -> float:
    (matched,) = match_exactly([inferred], [golden])
    return profile_f1(matched or 0, len(inferred), len(golden))
