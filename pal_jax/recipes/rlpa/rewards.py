"""The reward of RLPA: profile F1 plus the judge's score of the reply, for every turn by itself (section 3.3)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Literal

from pal_jax.recipes.rlpa.criteria import SCORES
from pal_jax.recipes.rlpa.people import content
from pal_jax.recipes.rlpa.profiles import ParsedCompletion, ProfileScores, plain_history, profile_scores
from pal_jax.types import Dialogue, Metrics, Person, ProfileMatcher, ResponseJudge, RewardFn, Sample, Turn, Verdict

MALFORMED = 0.0  # the reward of a completion that does not keep the format
# The gain of belief in each golden profile by a reply to its dialogue, see `belief.py`.
Belief = Callable[[Sequence[Dialogue], Sequence[ParsedCompletion], Sequence[Sequence[str]]], list[float]]
_NO_INFO = dict.fromkeys(('format', 'profile', 'response', *SCORES, 'facts', 'matched', 'precision', 'recall'), 0.0)


def make_reward(
    matcher: ProfileMatcher,
    judge: ResponseJudge,
    *,
    response: Literal['graded', 'strict'] = 'graded',
    profile_weight: float = 1.0,
    response_weight: float = 1.0,
    shuffled: bool = False,
    known: Sequence[Person] = (),
    informed: bool = False,
    system: str = '',
    belief: Belief | None = None,
) -> RewardFn:
    """The reward `profile_weight * R_p + response_weight * R_r`: R_p is the profile F1, R_r the judge's score named
    `response`. With `belief`, R_p is the gain of belief, and the F1 is only measured.

    A malformed completion gets `MALFORMED`; a sample for which matcher or judge has no answer is `ok=False` with reward
    0.

    `shuffled` is a control: every prediction is scored against the profile of a person with other facts, who is in the
    same call, or in `known` where all in the call have the same facts.

    An `informed` judge sees the person's true profile, as in evaluations. `system` is the policy's system prompt where
    the judge is to read it at the head of the dialogue, as in the published code.

    Raises:
      ValueError: `response` is unknown, or a weight is negative or not finite.
    """
    if response not in ('graded', 'strict'):
        raise ValueError(f"response={response!r} is unknown; use 'graded' or 'strict'")
    for name, weight in (('profile_weight', profile_weight), ('response_weight', response_weight)):
        if not 0 <= weight < math.inf:
            raise ValueError(f'{name}={weight} must be a finite number of at least 0')

    paid = 'belief' if belief else 'profile'
    nothing = _NO_INFO | {paid: 0.0}

    def score(
        sample: Sample,
        golden: Sequence[str],
        parsed: ParsedCompletion,
        matched: int | None,
        verdict: Verdict,
        gain: Metrics,
    ) -> Sample:
        info = nothing | gain | {'format': 1.0, 'facts': float(len(parsed.facts))}
        if matched is not None:
            info |= _profile_info(profile_scores(matched, len(parsed.facts), len(golden)))
        if verdict.ok:
            info |= _response_info(verdict, response)
        ok = matched is not None and verdict.ok
        # With a weight of 0, as in the paper's ablations, a part is measured all the same.
        # The parts stay in `info`, so every sample's `info` has the same keys.
        total = profile_weight * info[paid] + response_weight * info['response']
        return dataclasses.replace(sample, rewards=(total if ok else 0.0,), info=info, ok=ok)

    def reward(samples: Sequence[Sample], seed: int) -> list[Sample]:
        scored = [dataclasses.replace(sample, rewards=(MALFORMED,), info=dict(nothing), ok=True) for sample in samples]
        # A malformed completion reaches neither matcher nor judge; each is called once, with all others.
        formed = [(i, sample.parsed) for i, sample in enumerate(samples) if sample.parsed is not None]
        if not formed:
            return scored
        inferred = [parsed.facts for _, parsed in formed]
        people = [samples[i].source.person for i, _ in formed]
        # Facts of other people leave the reward nothing to do with the user.
        golden = [person.facts for person in (swapped_people(people, known) if shuffled else people)]
        matches = matcher(inferred, golden)
        shown = [judged_dialogue(samples[i].source, informed, system) for i, _ in formed]
        verdicts = judge(shown, inferred, [parsed.reply for _, parsed in formed], seed)
        gains = _gains(belief, [samples[i].source for i, _ in formed], [parsed for _, parsed in formed], golden)
        for (i, parsed), facts, matched, verdict, gain in zip(formed, golden, matches, verdicts, gains, strict=True):
            scored[i] = score(samples[i], facts, parsed, matched, verdict, gain)
        return scored

    return reward


def swapped_people(people: Sequence[Person], known: Sequence[Person] = ()) -> list[Person]:
    """The next person of the list with other facts for each person, round and round; where all have the same facts,
    one of `known`.

    Raises:
      ValueError: nobody has other facts.
    """
    distinct = {content(person): person for person in people}
    if len(distinct) < 2:
        distinct |= {content(person): person for person in known if content(person) not in distinct}
    if len(distinct) < 2:
        raise ValueError('all people have the same facts, so nobody can stand for another; give others, or no control')
    following = dict(zip(distinct, [*list(distinct.values())[1:], next(iter(distinct.values()))], strict=True))
    return [following[content(person)] for person in people]


def judged_dialogue(dialogue: Dialogue, informed: bool = False, system: str = '') -> Dialogue:
    """The dialogue as the response judge sees it: bare replies; the person's profile if it is to be `informed`."""
    person = dialogue.person if informed else dataclasses.replace(dialogue.person, facts=())
    head = (Turn('system', system),) if system else ()
    return Dialogue(person, (*head, *plain_history(dialogue).turns))


def _gains(
    belief: Belief | None,
    dialogues: Sequence[Dialogue],
    replies: Sequence[ParsedCompletion],
    golden: Sequence[Sequence[str]],
) -> list[Metrics]:
    if belief is None:
        return [{} for _ in replies]
    return [{'belief': gain} for gain in belief(dialogues, replies, golden)]


def _profile_info(scores: ProfileScores) -> dict[str, float]:
    matched, precision, recall, f1 = map(float, scores)
    return {'profile': f1, 'matched': matched, 'precision': precision, 'recall': recall}


def _response_info(verdict: Verdict, response: str) -> dict[str, float]:
    missing = [name for name in SCORES if name not in verdict.scores]
    if missing:
        raise ValueError(f'the judge gave no score for {missing}; a response judge must give {list(SCORES)}')
    return {name: float(verdict.scores[name]) for name in SCORES} | {'response': float(verdict.scores[response])}
