"""Users, matchers and judges that are language models: the questions to them, and the reading of their answers.

An answer that cannot be read is asked for again, a few times; then there is none, and the caller leaves the sample out.
Only a number or a line of talk is read from an answer, and nothing is read from its thoughts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from pal_jax.data.thoughts import spoken_reply
from pal_jax.judges import prompts
from pal_jax.types import Chat, ChatModel, Dialogue, ProfileMatcher, ResponseJudge, UserSimulator, Verdict

ATTEMPTS = 3
_BOX = re.compile(r'\\boxed\s*\{([^{}]*)\}')
_TAG = re.compile(r'</?(?:profile|response)>', re.IGNORECASE)
_LONGEST = 600  # characters of a user's message

Answer = TypeVar('Answer')


def make_user(model: ChatModel) -> UserSimulator:
    """A user whose messages `model` writes, also for a person without facts; openings are those of the person."""

    def answer(dialogues: Sequence[Dialogue], seed: int) -> list[str | None]:
        talking = [dialogue for dialogue in dialogues if dialogue.turns]
        # A person opens a dialogue by itself, so only begun dialogues are asked about.
        written = iter(ask(model, list(map(prompts.simulate, talking)), read_message, seed))
        return [next(written) if dialogue.turns else dialogue.person.opening for dialogue in dialogues]

    return answer


def make_matcher(model: ChatModel) -> ProfileMatcher:
    """A matcher that has `model` count; it is not asked about profiles without a fact to match."""

    def match(inferred: Sequence[Sequence[str]], golden: Sequence[Sequence[str]]) -> list[int | None]:
        pairs = list(zip(inferred, golden, strict=True))
        comparable = [(ours, true) for ours, true in pairs if ours and true]
        counts = iter(ask(model, [prompts.match(*pair) for pair in comparable], read_count, seed=0))
        return [_at_most(next(counts), ours, true) if ours and true else 0 for ours, true in pairs]

    return match


def make_judge(model: ChatModel, *, golden: bool = False) -> ResponseJudge:
    """A judge of replies by five criteria; with `golden` it knows the true profile of the dialogue's person, not the
    inferred one.

    `strict` is the product of the criteria, `graded` is naturalness times the mean of the others.
    """

    def judge(
        dialogues: Sequence[Dialogue], inferred: Sequence[Sequence[str]], replies: Sequence[str], seed: int
    ) -> list[Verdict]:
        cases = zip(dialogues, inferred, replies, strict=True)
        chats = [
            prompts.judge(dialogue, dialogue.person.facts if golden else facts, reply, golden=golden)
            for dialogue, facts, reply in cases
        ]
        return [Verdict({}, ok=False) if s is None else Verdict(s) for s in ask(model, chats, read_scores, seed)]

    return judge


def ask(
    model: ChatModel, chats: Sequence[Chat], read: Callable[[str], Answer | None], seed: int
) -> list[Answer | None]:
    """The result of `read` for the model's answer to each chat."""
    answers: list[Answer | None] = [None] * len(chats)
    for attempt in range(ATTEMPTS):
        missing = [i for i, answer in enumerate(answers) if answer is None]
        if not missing:
            break
        # An answer in which `read` finds nothing is asked for again with another seed; so is one whose thought does not
        # end.
        texts = model([chats[i] for i in missing], seed * ATTEMPTS + attempt)
        for i, text in zip(missing, texts, strict=True):
            plain = None if text is None else spoken_reply(text)
            answers[i] = None if plain is None else read(plain)
    return answers


def read_message(text: str) -> str | None:
    """A user's message: one line of at most `_LONGEST` characters, without the tags of a policy's format."""
    line = ' '.join(text.split()).strip('"')
    return line if 0 < len(line) <= _LONGEST and not _TAG.search(line) else None


def read_count(text: str) -> int | None:
    """The number in the last box; None where it holds no number."""
    box = _last_box(text)
    return int(box) if re.fullmatch(r'\d{1,4}', box) else None


def read_scores(text: str) -> dict[str, float] | None:
    """The five numbers in the last box, by criterion, and their two totals; None where they cannot be read."""
    numbers = re.split(r'[\s,]+', _last_box(text))
    if len(numbers) != len(prompts.CRITERIA) or not set(numbers) <= {'0', '1'}:
        return None
    scores = dict(zip(prompts.CRITERIA, map(float, numbers), strict=True))
    natural, *others = scores.values()
    return scores | {'graded': natural * sum(others) / len(others), 'strict': math.prod(scores.values())}


def _last_box(text: str) -> str:
    boxes = _BOX.findall(text)
    return boxes[-1].strip() if boxes else ''


def _at_most(count: int | None, *lists: Sequence[str]) -> int | None:
    # A model may count more facts than there are.
    return None if count is None else min(count, *map(len, lists))
