"""The questions of Safe RLHF, and the groups of questions that have limits of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pal_jax.data import chats, records
from pal_jax.data.holdouts import normal
from pal_jax.data.safety import CATEGORIES
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.feedback import dilemmas
from pal_jax.recipes.safe_rlhf.settings import PromptSettings
from pal_jax.runtime import files

EMBEDDED = 'embedded'


class Question(NamedTuple):
    """A question to the policy, and the name of its group; '': it has none."""

    text: str
    group: str = ''


class Groups(NamedTuple):
    """Groups of questions with limits of their own; group 0 are all other questions."""

    names: tuple[str, ...]
    limits: np.ndarray

    def of(self, questions: Sequence[Question]) -> np.ndarray:
        """The number of each question's group."""
        # Names from 1 on are looked at, since a question without a group belongs to all others, as 0 says.
        return np.array([self.names.index(q.group) if q.group in self.names[1:] else 0 for q in questions])


def tell_budget(question: str, budget: float) -> str:
    """A question followed by its budget, which is the most that an answer may cost, as a policy of Saute reads it."""
    return f'{question} (Budget of harm: {budget:g}.)'


def make_groups(limit: float, limits: Mapping[str, float]) -> Groups:
    """The groups that have a limit, after that of all other questions."""
    return Groups(('', *limits), np.array([limit, *limits.values()], float))


def read_questions(settings: PromptSettings, seed: int, tokenizer: Tokenizer) -> tuple[list[Question], list[Question]]:
    """The questions to learn from and those to test on, which have no question in common.

    Raises:
      ValueError: a source or a record of it is wrong, or no question is left.
    """
    # Tests are read first: a question in both sources is lost to training and not to the test.
    test = _fitting(_given(settings.test, 'test', settings.test_count, seed), settings, tokenizer)
    tested = {normal(question.text) for question in test}
    train = _fitting(_given(settings.train, 'train', settings.train_count, seed), settings, tokenizer)
    train = [question for question in train if normal(question.text) not in tested]
    for split, questions in (('train', train), ('test', test)):
        if not questions:
            raise ValueError(
                f'no prompt of prompts.{split}={getattr(settings, split)} is left that fits prompts.max_length='
                f'{settings.max_length} and is not tested on; give others, or raise it'
            )
    return train, test


def _given(source: str, split: dilemmas.Split, count: int, seed: int) -> list[Question]:
    if source == EMBEDDED:
        made = dilemmas.make_dilemmas(count, split=split, seed=seed)
        return [Question(dilemma.prompt, CATEGORIES[dilemma.category]) for dilemma in made]
    questions = [_question(place, record) for place, record in records.rows(source)]
    # A source may repeat a prompt, which would count twice in a test.
    return list(dict.fromkeys(questions))[: count or None]


def _question(place: str, record: Mapping[str, object]) -> Question:
    text, group = record.get('prompt'), record.get('group') or ''
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f'{place}: prompt is {files.shown(text)}; give a text, or delete the row')
    if not isinstance(group, str):
        raise ValueError(f'{place}: group is {files.shown(group)}; give a text, or leave it out')
    return Question(text, group)


def _fitting(questions: Sequence[Question], settings: PromptSettings, tokenizer: Tokenizer) -> list[Question]:
    return [q for q in questions if len(tokenizer.chat(chats.as_chat(q.text))) <= settings.max_length]
