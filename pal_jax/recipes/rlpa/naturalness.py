"""The naturalness of replies by a language model: rules cannot tell sense from word salad.

The model is not trained: it is the policy as it was before training. It reads a reply after the end of its dialogue,
and two figures count, in nats a token: the mean log-probability of the reply with the token that ends it (Lau et al.
2017, Kann et al. 2018), and the lowest mean of `WINDOW` neighbours, so that nonsense within fluent text is not averaged
away.

The usual range is learnt from made-up `good_replies`, by length. Naturalness is the lower score of the two figures.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from pal_jax.recipes.rlpa.demonstrations import make_demonstrations
from pal_jax.recipes.rlpa.oracle import make_answers
from pal_jax.recipes.rlpa.people import SLOTS, make_people
from pal_jax.recipes.rlpa.profiles import parse_completion
from pal_jax.recipes.rlpa.users import make_scripted_user
from pal_jax.types import Dialogue, ResponseJudge, RewardFn, Sample, Verdict

WINDOW = 4  # tokens
# A reply belongs to the first bin whose number of tokens it does not exceed; longer ones to the last bin.
_BINS = (8, 16, 32)
# A bin with as many replies weighs its own percentiles as much as those of all lengths.
_SHRINK = 16
# Nats between the figure that scores 0 and the one that scores 1 are at least so many.
_NARROWEST = 0.1
# The model must find the good reply of a pair likelier in this share of pairs.
_SEPARATES = 0.9

LogProbs = Float[np.ndarray, 'A']  # log-probabilities of the tokens of a reply and of its end
Reader = Callable[[Sequence[Dialogue], Sequence[str]], list[LogProbs]]

_THINGS = (
    'feather, saddle, basket, ladder, bucket, candle, pebble, lantern, hammer, ribbon, mirror, bottle, carpet, engine, '
    'pillow, button, needle, shovel, blanket, garden, window, bridge, marble, turnip, kettle, anchor, planet, socket'
).split(', ')


class Case(NamedTuple):
    """A dialogue that ends with the person's message, and a reply to it."""

    dialogue: Dialogue
    reply: str


class Scale(NamedTuple):
    """The figures that score 0 and those that score 1, by length of a reply."""

    nothing: Float[np.ndarray, 'bins figures']
    full: Float[np.ndarray, 'bins figures']


def figures(logprobs: LogProbs) -> Float[np.ndarray, 'figures']:
    """The mean log-probability of a reply, and the lowest mean of `WINDOW` neighbours."""
    width = min(WINDOW, len(logprobs))
    windows = np.convolve(logprobs, np.full(width, 1 / width), mode='valid')
    return np.array([np.mean(logprobs), np.min(windows)])


def calibrate(good: Sequence[LogProbs]) -> Scale:
    """The scale of the usual figures of good replies."""
    measured, bins = np.array([figures(reply) for reply in good]), np.array([_bin(reply) for reply in good])

    def percentile(q: float) -> np.ndarray:
        # Each length has its own percentiles; the fewer replies it has, the nearer they are drawn to the percentiles of
        # all lengths.
        overall = np.percentile(measured, q, axis=0)
        by_length = [measured[bins == b] for b in range(len(_BINS) + 1)]
        return np.array(
            [
                (_SHRINK * overall + len(some) * np.percentile(some, q, axis=0)) / (_SHRINK + len(some))
                if len(some)
                else overall
                for some in by_length
            ]
        )

    lowest, full, low = map(percentile, (1, 5, 10))
    # A figure scores 1 from the 5th percentile on, and 0 as far below the 1st as the 1st is below the 10th.
    return Scale(np.minimum(2 * lowest - low, full - _NARROWEST), full)


def score(scale: Scale, logprobs: LogProbs) -> float:
    """The naturalness of a reply, in [0, 1]."""
    nothing, full = scale.nothing[_bin(logprobs)], scale.full[_bin(logprobs)]
    # The scores are one-sided: a model's text is likelier than people's, and a policy would lose for it.
    # Other very likely texts, an echo or a repetition, have their rules (`criteria.py`).
    return float(np.clip((figures(logprobs) - nothing) / (full - nothing), 0.0, 1.0).min())


def separation(good: Sequence[LogProbs], spoilt: Sequence[LogProbs]) -> float:
    """The share of pairs in which the good reply has a higher mean log-probability than the spoilt one (the area under
    the ROC curve)."""
    good_means, spoilt_means = (np.array([np.mean(reply) for reply in replies]) for replies in (good, spoilt))
    return float(np.mean(good_means[:, None] > spoilt_means[None]))


def _bin(logprobs: LogProbs) -> int:
    return int(np.searchsorted(_BINS, len(logprobs)))


class Naturalness:
    """Scores of replies by the model behind `read`; it is calibrated at the first question.

    Args:
      open: fetches the model, if it is not in memory.
      release: frees the memory of the model, which `read` may fetch again.
      required: whether a model that cannot tell good replies from spoilt ones is an error.
    """

    def __init__(
        self,
        read: Reader,
        *,
        open: Callable[[], Any] = lambda: None,
        release: Callable[[], None] = lambda: None,
        required: bool = False,
    ):
        self._read, self.open, self.release, self._required = read, open, release, required
        self._scale: Scale | None = None
        self.separation = 0.0  # how well good replies are told from spoilt ones, once it is calibrated

    @property
    def able(self) -> bool:
        """True where the model tells good replies from spoilt ones; otherwise its scores mean nothing.

        Raises:
          RuntimeError: it does not, and is required to.
        """
        self._calibrated()
        return self.separation >= _SEPARATES

    def __call__(self, dialogues: Sequence[Dialogue], replies: Sequence[str]) -> list[float]:
        scale = self._calibrated()
        return [score(scale, logprobs) for logprobs in self._read(dialogues, replies)]

    def _calibrated(self) -> Scale:
        if self._scale is None:
            good = good_replies(seed=0)
            spoilt = [*spoil(good[::4], seed=0)]
            read = self._read(*zip(*(good + spoilt), strict=True))
            # Without a model that tells good replies from spoilt ones, its scores would mean nothing.
            self.separation = separation(read[: len(good)], read[len(good) :])
            self._scale = calibrate(read[: len(good)])
            if self._required and self.separation < _SEPARATES:
                raise RuntimeError(
                    f'the model before training finds a good reply likelier than a spoilt one in {self.separation:.0%} '
                    f"of cases, {_SEPARATES:.0%} are needed; use reward.naturalness='rules'"
                )
        return self._scale


def make_natural_judge(judge: ResponseJudge, natural: Naturalness) -> ResponseJudge:
    """A judge whose naturalness is the lower of `judge`'s and `natural`'s.

    The total `graded` falls in proportion, and `strict` is 0 below a naturalness of a half. Where `natural` is not
    able, the verdicts of `judge` stand.
    """

    def judged(
        dialogues: Sequence[Dialogue], inferred: Sequence[Sequence[str]], replies: Sequence[str], seed: int
    ) -> list[Verdict]:
        verdicts = judge(dialogues, inferred, replies, seed)
        # Replies that `judge` finds unnatural are not read by the model.
        read = [i for i, verdict in enumerate(verdicts) if verdict.ok and verdict.scores['naturalness']]
        if not read or not natural.able:
            return verdicts
        values = dict(zip(read, natural([dialogues[i] for i in read], [replies[i] for i in read]), strict=True))
        return [with_naturalness(v, values[i]) if i in values else v for i, v in enumerate(verdicts)]

    return judged


def open_before(reward: RewardFn, open: Callable[[], Any] | None) -> RewardFn:
    """A reward that fetches the model that reads for it, by `open`, before it is computed."""
    if open is None:
        return reward

    def rewarded(samples: Sequence[Sample], seed: int) -> list[Sample]:
        # Every process asks for a reward at the same time, but one may have no reply for the model to read. A
        # checkpoint is read by all processes together, so all of them fetch the model.
        open()
        return reward(samples, seed)

    return rewarded


def with_naturalness(verdict: Verdict, natural: float) -> Verdict:
    """The verdict with a naturalness that is no higher than `natural`."""
    before = verdict.scores['naturalness']
    value = min(before, natural)
    totals = {'graded': verdict.scores['graded'] * value / before, 'strict': verdict.scores['strict'] * (value >= 0.5)}
    return Verdict({**verdict.scores, 'naturalness': value, **totals})


# --- what is usual, and what is not ---------------------------------------------------------------------------------


def good_replies(*, people: int = 8, examples: int = 24, seed: int) -> list[Case]:
    """Good replies: the oracle's to training people, and the replies of the warm-up's examples."""
    user = make_scripted_user(p_spontaneous=1.0)
    answers = make_answers(make_people(people, seed=seed), user, rounds=4, seed=seed)
    completions = [(answer.dialogue, answer.good) for answer in answers]
    completions += [(example.dialogue, example.completion) for example in make_demonstrations(examples, seed=seed)]
    parsed = ((dialogue, parse_completion(text)) for dialogue, text in completions)
    return [Case(dialogue, parts.reply) for dialogue, parts in parsed if parts]


def spoil(good: Sequence[Case], *, seed: int) -> Iterator[Case]:
    """Two spoilt replies to each dialogue: the words of the good reply shuffled, and a salad of words with a word of
    the person's message and a topic."""
    rng = random.Random(f'spoilt {seed}')
    for dialogue, reply in good:
        words = re.findall(r"[\w'-]+", reply.lower())
        yield Case(dialogue, f'{" ".join(rng.sample(words, len(words))).capitalize()}.')
        word = rng.choice(re.findall(r'\w+', dialogue.turns[-1].content))
        yield Case(dialogue, f'{word.capitalize()} {" ".join(rng.sample(_THINGS, 4))} {rng.choice(SLOTS)}?')
