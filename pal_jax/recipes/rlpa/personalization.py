"""The evaluation of a policy that is to find out about its user, in dialogues with people it has not met, scored turn
by turn.

The profile F1 stands next to its references:
- bound: 2k / (k + n) after the person has told k of n facts; a higher F1 comes from guessing, or from a leak;
- guesser: the F1 of the constant profile of the facts most common among the training people;
- shuffled: the F1 of the same predictions against the profile of a person with other facts; it measures how much of the
  F1 is not about the user.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from pal_jax.data import holdouts
from pal_jax.recipes.rlpa.criteria import CRITERIA
from pal_jax.recipes.rlpa.dialogue import DialogueGame, converse
from pal_jax.recipes.rlpa.improvement import Improvement, normalized_improvement
from pal_jax.recipes.rlpa.people import content
from pal_jax.recipes.rlpa.profiles import match_exactly, profile_f1
from pal_jax.recipes.rlpa.rollouts import scores_of
from pal_jax.recipes.rlpa.users import revealed
from pal_jax.run import intervals
from pal_jax.run.bootstrap import interval, means, resampled_means
from pal_jax.run.intervals import Estimate
from pal_jax.types import Dialogue, Person, ProfileMatcher, Sample, UserSimulator

# Entries of `info` that are in the record by these names.
SCORED = ('profile', 'precision', 'recall', 'response', 'strict', *CRITERIA)

# A completion for each dialogue; `evaluate` wants it rewarded.
Respond = Callable[[Sequence[Dialogue], int], list[Sample]]
Talk = list[Sample]  # one person's dialogue, a sample for each turn


def evaluate(
    respond: Respond,
    user: UserSimulator,
    splits: Mapping[str, Sequence[Person]],
    *,
    rounds: int,
    guess: Sequence[str],
    matcher: ProfileMatcher = match_exactly,
) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    """Figures of every split of people, and all dialogues; the first split's figures go by their own names."""
    record: dict[str, Any] = {}
    # All people talk in step, so that the decoder has few turns with empty slots.
    everybody = list(itertools.chain(*splits.values()))
    held = iter(hold_dialogues(respond, user, everybody, rounds=rounds))
    talks = {name: list(itertools.islice(held, len(people))) for name, people in splits.items()}
    for number, name in enumerate(splits):
        figures = table(talks[name], rounds=rounds, guess=guess, matcher=matcher)
        record |= figures if number == 0 else {f'{name}_{key}': value for key, value in figures.items()}
    return record, list(map(describe_dialogue, itertools.chain(*talks.values())))


def hold_dialogues(respond: Respond, user: UserSimulator, people: Sequence[Person], *, rounds: int) -> list[Talk]:
    """Dialogues with every person of `rounds` turns, all of them in step.

    A malformed turn ends its dialogue, and so does a user who has no answer.
    """
    game = DialogueGame(people, rounds)
    played = converse(
        game,
        list(map(game.start, range(len(people)))),
        lambda dialogues, turn: [[sample] for sample in respond(dialogues, turn)],
        user,
    )
    return [[sample for (sample,) in groups] for groups in played]


def table(
    talks: Sequence[Talk], *, rounds: int, guess: Sequence[str], matcher: ProfileMatcher = match_exactly
) -> dict[str, Any]:
    """Means over people and, in `intervals`, their 95 % bootstrap intervals over people.

    Turns that nobody could judge, and those in which a user had no answer, are left out and counted in `unanswered`.
    `al_by_turn` is AL(k) of the papers, the percentage of replies that meet all criteria; `al` is its mean, `n_ir` and
    `n_r2` its normalised improvement.
    """
    people = [talk[0].source.person for talk in talks]
    turns = [sample for talk in talks for sample in talk]
    # Turns that a silent user left out.
    unheard = [bool(talk[-1].info['format']) and rounds - len(talk) for talk in talks]

    def cells(value: Callable[[Sample], float]) -> np.ndarray:
        """The values `[people, turns]`, NaN where a sample was not judged."""
        rows = [[value(sample) if sample.ok else np.nan for sample in talk] for talk in talks]
        # Turns that a malformed one cut off count as 0, but not in `format`.
        padding = [np.nan if silent else 0.0 for silent in unheard]
        return np.array([row + [pad] * (rounds - len(row)) for row, pad in zip(rows, padding, strict=True)])

    scores = {name: cells(lambda sample, name=name: sample.info[name]) for name in SCORED}
    f1, al = scores['profile'], 100.0 * scores['strict']
    named = {'f1': f1, 'precision': scores['precision'], 'recall': scores['recall'], 'response': scores['response']}
    drawn = {name: resampled_means(cells_of) for name, cells_of in {**scores, **named, 'al': al}.items()}
    rise, rises = improvement(means(al)), np.array([improvement(curve) for curve in drawn['al']])
    rewards, level = cells(lambda sample: sample.reward), {**scores, 'al': al}
    other, guessed = shuffled(talks, rounds, matcher), float(np.mean(f1_of(matcher, [guess] * len(people), people)))
    # A turn without an F1 has no control either.
    of_others = None if other is None else means(np.where(np.isnan(f1), np.nan, other))
    # A person none of whose turns could be judged has no reward.
    totals = means(rewards.T)[np.isfinite(rewards).any(axis=1)]
    reward = intervals.mean(totals) if len(totals) else Estimate(0.0, None, None, None)
    return {
        'people': len(talks),
        'unanswered': sum(not sample.ok for sample in turns) + sum(unheard),
        **reward.named('reward'),
        'format': float(np.mean([sample.info['format'] for sample in turns])),
        **{name: float(means(cells_of).mean()) for name, cells_of in level.items()},
        **{f'{name}_by_turn': means(cells_of).tolist() for name, cells_of in named.items()},
        'bound_by_turn': means(cells(lambda sample: told_facts_bound(sample.source))).tolist(),
        'guesser_profile': guessed,
        'guesser_by_turn': [guessed] * rounds,
        'shuffled_profile': None if of_others is None else float(of_others.mean()),
        'shuffled_by_turn': None if of_others is None else of_others.tolist(),
        'al_by_turn': means(al).tolist(),
        'n_ir': rise.n_ir,
        'n_r2': rise.n_r2,
        'length': float(np.mean([len(sample.completion.token_ids) for sample in turns])),
        'intervals': {
            'reward': reward.interval,
            **{name: interval(drawn[name].mean(axis=1), len(talks)) for name in level},
            **{f'{name}_by_turn': interval(drawn[name], len(talks)) for name in ('f1', 'al')},
            'n_ir': interval(rises[:, 0], len(talks)),
            'n_r2': interval(rises[:, 2], len(talks)),
        },
    }


def improvement(curve: ArrayLike) -> Improvement:
    """N-IR and N-R² of a curve; zeros for a single turn."""
    return normalized_improvement(curve) if np.size(curve) > 1 else Improvement(0.0, 0.0, 0.0)


def shuffled(talks: Sequence[Talk], rounds: int, matcher: ProfileMatcher) -> np.ndarray | None:
    """The F1 `[people, turns]` of the facts inferred about each person against the profile of a person with other
    facts.

    It is None where all people have the same facts.
    """
    people = [talk[0].source.person for talk in talks]
    others = holdouts.strangers(list(map(content, people)))
    if others is None:
        return None
    places = [(i, t) for i, talk in enumerate(talks) for t in range(len(talk))]
    inferred = [parsed.facts if (parsed := talks[i][t].parsed) else () for i, t in places]
    scores = np.zeros((len(talks), rounds))
    values = f1_of(matcher, inferred, [people[others[i]] for i, _ in places])
    for place, value in zip(places, values, strict=True):
        scores[place] = value
    return scores


def told_facts_bound(dialogue: Dialogue) -> float:
    """The F1 of a profile with exactly the facts that the person has told so far."""
    count, facts = len(revealed(dialogue)), len(dialogue.person.facts)
    return 2 * count / (count + facts)


def f1_of(matcher: ProfileMatcher, inferred: Sequence[Sequence[str]], people: Sequence[Person]) -> list[float]:
    """The profile F1 of inferred facts against people; NaN where the matcher has no answer."""
    golden = [person.facts for person in people]
    return [
        np.nan if matched is None else profile_f1(matched, len(ours), len(true))
        for matched, ours, true in zip(matcher(inferred, golden), inferred, golden, strict=True)
    ]


def most_common_facts(people: Sequence[Person]) -> tuple[str, ...]:
    """The constant prediction that scores best on these people: their commonest facts, as many as raise the score."""
    ranked = [fact for fact, _ in Counter(fact for person in people for fact in person.facts).most_common()]
    longest = 2 * max(len(person.facts) for person in people)
    sizes = range(1, min(longest, len(ranked)) + 1)
    best = max(sizes, key=lambda size: sum(f1_of(match_exactly, [ranked[:size]] * len(people), people)))
    return tuple(ranked[:best])


def describe_dialogue(talk: Talk) -> Mapping[str, Any]:
    """A dialogue as a report shows it."""
    person, turns = talk[0].source.person, []
    for sample in talk:
        parsed = sample.parsed
        turns.append({'role': 'user', 'content': sample.source.turns[-1].content})
        scores = scores_of(sample, 'profile', 'response', 'strict') | {'total': sample.reward}
        content, profile = (parsed.reply, parsed.profile) if parsed else (sample.completion.text, '')
        turns.append({'role': 'assistant', 'content': content, 'profile': profile, 'rewards': scores})
    return {'person': person.id, 'facts': list(person.facts), 'turns': turns}
