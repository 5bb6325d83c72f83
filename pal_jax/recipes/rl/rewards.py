"""The rewards of answers: own functions, the scores of a trained model, and the points of a judge."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pal_jax.data.chats import as_chat
from pal_jax.data.thoughts import spoken_reply
from pal_jax.judges import functions
from pal_jax.judges.answers import last_number
from pal_jax.judges.chat_models import ChatModels
from pal_jax.judges.functions import RewardFunction
from pal_jax.judges.prompts import quoted
from pal_jax.recipes.rl import sums
from pal_jax.recipes.rl.prompts import Prompts
from pal_jax.recipes.rl.settings import EMBEDDED, Settings
from pal_jax.run.glossary import OWN
from pal_jax.run.record_scorer import RecordScorer
from pal_jax.scoring import open_scorer, opener_of, to_name
from pal_jax.types import Chat, ChatModel, Sample

POINTS = 10
_JUDGE = """Here is what somebody asked an assistant, and what the assistant answered.

Asked: {asked}

Answer: {answer}

A good answer is one of which this is true: {rubric}
Say in one sentence what is good and what is bad about the answer. Then end with the points that it gets, from 0 to
{points}, in a box: \\boxed{{7}}"""


class Rewards(NamedTuple):
    """All rewards of an answer: the weighted sum of the values of functions."""

    functions: tuple[RewardFunction, ...]

    def __call__(self, samples: Sequence[Sample], seed: int) -> list[Sample]:
        """The samples with their rewards, and in `info` the value of each function that had one."""
        names = dict.fromkeys(name for sample in samples for name in sample.source.columns)
        lists: dict[str, Any] = {name: [sample.source.columns.get(name) for sample in samples] for name in names}
        lists |= {'prompts': [sample.source.prompt for sample in samples], 'seed': seed}
        # Where prompts are messages, functions get an answer as a list of one message, as in TRL.
        lists['completions'] = [
            sample.completion.text if isinstance(sample.source.prompt, str) else [message(sample.completion.text)]
            for sample in samples
        ]
        by_function = [functions.values(function, lists, len(samples)) for function in self.functions]
        return [self._paid(sample, row) for sample, row in zip(samples, zip(*by_function, strict=True), strict=True)]

    @property
    def payers(self) -> dict[str, str]:
        """The key and value of the config behind each name in `info`."""
        return {f'{OWN}{f.name}': f'{f.key}={f.text}' for f in self.functions}

    def _paid(self, sample: Sample, row: Sequence[float | None]) -> Sample:
        # A sample is `ok=False` where a function had no value for it.
        pairs = [(f, number) for f, number in zip(self.functions, row, strict=True) if number is not None]
        ok = len(pairs) == len(row)
        total = sum(function.weight * number for function, number in pairs) if ok else 0.0
        info = {f'{OWN}{function.name}': number for function, number in pairs}
        return dataclasses.replace(sample, rewards=(total,), info=info, ok=ok)


def make_rewards(settings: Settings, prompts: Prompts, models: ChatModels) -> Rewards:
    """The rewards that the section `reward` names; of the embedded prompts their rule, where it names none.

    Raises:
      ValueError: no reward is given, a weight is wrong, or a function, a scorer or a judge cannot be had.
    """
    named, extra = settings.reward, (*prompts.columns, 'seed')
    paying = list(functions.open_functions('reward.function', named.function, (), extra))
    if named.scorer:
        scores = make_scores(named.scorer, named.person, settings.prompts.chat)
        paying.append(RewardFunction(named.scorer, 'scorer', scores, key='reward.scorer'))
    elif named.person:
        raise ValueError(f'reward.person={named.person!r} goes with reward.scorer, which is empty')
    if named.judge:
        judge = models.choose('reward.judge', named.judge, lambda model: make_judge(model, named.rubric))
        paying.append(RewardFunction(named.judge, 'judge', judge, key='reward.judge'))
    if not paying and settings.prompts.train == EMBEDDED:
        paying = [RewardFunction(EMBEDDED, 'right', sums.right)]
    if not paying:
        raise ValueError(
            f'no reward is given for the answers to prompts.train={settings.prompts.train}; give '
            'reward.function=FILE.py:NAME, reward.scorer=orbax:<folder> or reward.judge'
        )
    functions.check_weights(named.weights, len(paying))
    weights = named.weights or [1.0] * len(paying)
    return Rewards(tuple(f._replace(weight=weight) for f, weight in zip(paying, weights, strict=True)))


def make_scores(source: str, person: str, chat: bool) -> Callable[..., list[float]]:
    """A function that pays the scores of the model of a run, which is opened at the first call. It reads no thought.

    Raises:
      ValueError: the run scores nothing, or the person cannot be had.
    """
    # Faults show here, before a weight is read.
    opener_of(source)
    to_name(person)
    scorer = functools.cache(lambda: open_scorer(source, person))

    def score(prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        texts = list(map(said, completions))
        chats_read = [as_chat(p) if isinstance(p, str) and chat else p for p in prompts]
        rows = [
            {'prompt': p, 'completion': text if isinstance(p, str) else [message(text)]}
            for p, text in zip(chats_read, texts, strict=True)
        ]
        # Prompts that are texts are read as the policy read them, as chats, unless the run reads texts alone.
        if chat and isinstance(prompts[0], str) and not reads(scorer(), rows[0]):
            rows = [{'prompt': p, 'completion': text} for p, text in zip(prompts, texts, strict=True)]
        return scorer()(rows).tolist()

    return score


def reads(scorer: RecordScorer, record: Mapping[str, Any]) -> bool:
    """True where a model reads records of this form."""
    try:
        scorer.read(record)
    except ValueError:
        return False
    return True


def make_judge(model: ChatModel, rubric: str) -> Callable[..., list[float | None]]:
    """A function that pays a judge's points, from 0 to 1; None where the judge gave none. Thoughts are not read."""

    def judge(prompts: Sequence[Any], completions: Sequence[Any], seed: int) -> list[float | None]:
        chats = [ask(asked, said(answer), rubric) for asked, answer in zip(prompts, completions, strict=True)]
        return [points(text) for text in model(chats, seed)]

    return judge


def ask(asked: str | Chat, answer: str, rubric: str) -> Chat:
    """The prompt of a judge, with texts of others as quotations."""
    chat = asked if isinstance(asked, str) else '\n'.join(f'{one["role"]}: {one["content"]}' for one in asked)
    text = _JUDGE.format(asked=quoted(chat), answer=quoted(answer), rubric=rubric, points=POINTS)
    return as_chat(text)


def points(text: str | None) -> float | None:
    """The points of a judge's text as a share; None where there is no number from 0 to `POINTS`."""
    try:
        number = float(last_number(text or '') or 'nan')
    except ValueError:
        return None
    return number / POINTS if 0 <= number <= POINTS else None


def said(answer: Any) -> str:
    """The text of an answer without its thought."""
    return spoken_reply(answer if isinstance(answer, str) else answer[0]['content']) or ''


def message(text: str) -> dict[str, str]:
    """An answer as a message of a chat."""
    return {'role': 'assistant', 'content': text}
