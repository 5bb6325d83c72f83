"""The questions of Safe RLHF, and the groups of questions that have limits of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pal_jax.data import chats, records
from pal_jax.data.holdouts import FIFTH, fewer, held_out, normal
from pal_jax.data.readers.safety import CATEGORIES
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.judges import dilemmas
from pal_jax.recipes.safe_rlhf.settings import OTHERS, QuestionSettings
from pal_jax.run import files
from pal_jax.run.forecast import counted

EMBEDDED = 'embedded'


class Question(NamedTuple):
    """A question to the policy, and the name of its group; '': it has none."""

    text: str
    group: str = ''


class QuestionGroups(NamedTuple):
    """Groups of questions with limits of their own; group 0, without a name, are all other questions."""

    names: tuple[str, ...]
    limits: np.ndarray

    @property
    def differ(self) -> bool:
        """True where a group has a limit of its own."""
        return len(self.names) > 1

    def shown(self, questions: Sequence[Question]) -> tuple[list[str], dict[str, float]]:
        """The group of each question, as an evaluation names it, and the limit by these names.

        They are the groups with limits of their own, and `others`.
        """
        if self.differ:
            names = OTHERS, *self.names[1:]
            return [names[k] for k in self.of(questions)], dict(zip(names, self.limits.tolist(), strict=True))
        # Where no group has a limit of its own, the groups are those that questions have.
        groups = [question.group or 'all' for question in questions]
        return groups, dict.fromkeys(groups, float(self.limits[0]))

    def apart(self, name: str, values: Iterable[float]) -> dict[str, float]:
        """A figure of every group: `name` is that of group 0, and `name_<group>` that of another."""
        keys = [f'{name}_{group}' if group else name for group in self.names]
        return dict(zip(keys, map(float, values), strict=True))

    def of(self, questions: Sequence[Question]) -> np.ndarray:
        """The number of each question's group."""
        # Names from 1 on are looked at, since a question without a group belongs to all others, as 0 says.
        return np.array([self.names.index(q.group) if q.group in self.names[1:] else 0 for q in questions])


def tell_budget(question: str, budget: float) -> str:
    """A question followed by its budget, which is the most that an answer may cost, as a policy of Saute reads it."""
    return f'{question} (Budget of harm: {budget:g}.)'


def make_groups(limit: float, limits: Mapping[str, float]) -> QuestionGroups:
    """The groups that have a limit, after that of all other questions."""
    return QuestionGroups(('', *limits), np.array([limit, *limits.values()], float))


def read_questions(
    settings: QuestionSettings, seed: int, tokenizer: Tokenizer
) -> tuple[list[Question], list[Question]]:
    """The questions to learn from and those to test on, which have no question in common.

    Raises:
      ValueError: a source or a record of it is wrong, or no question is left.
    """
    train, test = (_fitting(questions, settings, tokenizer) for questions in given_questions(settings, seed))
    for split, questions in (('train', train), ('test', test)):
        if not questions:
            raise ValueError(
                f'no prompt of prompts.{split}={getattr(settings, split)} is left that fits prompts.max_length='
                f'{settings.max_length} and is not tested on; give others, or raise it'
            )
    return train, test


def given_questions(settings: QuestionSettings, seed: int) -> tuple[list[Question], list[Question]]:
    """The questions to learn from and those to test on, of any length.

    Raises:
      ValueError: a source or a record of it is wrong, or no question can be held out.
    """
    train = _given(settings.train, 'train', settings.train_count, seed)
    if settings.test or settings.tests_embedded:
        test = _given(settings.test or EMBEDDED, 'test', settings.test_count, seed)
    else:
        try:
            # Without a source of tests some questions of the training are held out, at most a fifth; the embedded
            # corpus has other ones.
            held = held_out([normal(question.text) for question in train], settings.test_count, seed=seed)
        except ValueError as error:
            raise ValueError(f'prompts.train={settings.train}: {error}; give more prompts, or prompts.test') from None
        test = [question for question, is_held in zip(train, held, strict=True) if is_held]
    # A question of both sources is tested on and not learnt.
    tested = {normal(question.text) for question in test}
    return [question for question in train if normal(question.text) not in tested], test


def counted_questions(settings: QuestionSettings, train: int, test: int) -> str:
    """A line on the numbers of prompts, with warnings where there are fewer than asked for."""
    why = f'{{}} has no more other prompts of at most prompts.max_length={settings.max_length} tokens'
    held_out = not (settings.test or settings.tests_embedded)
    return (
        f'{counted(train, "prompt")} to learn from, {counted(test, "other")} to test on'
        + fewer('prompts.train_count', settings.train_count, train, why.format(settings.train))
        + fewer('prompts.test_count', settings.test_count, test, FIFTH if held_out else why.format(settings.test))
    )


def check_groups(settings: QuestionSettings, seed: int, limits: Mapping[str, float]) -> None:
    """Read all prompts, and refuse limits of groups that no prompt to learn from has.

    Raises:
      ValueError: a group is unknown, or a source or a record of it is wrong.
    """
    train, _ = given_questions(settings, seed)
    known = CATEGORIES if settings.train == EMBEDDED else tuple(sorted({q.group for q in train if q.group}))
    for group in limits:
        if group not in known:
            raise ValueError(
                f'constraint.limits: no prompt of prompts.train={settings.train} has the group {group!r}; it has '
                f'{" ".join(known) or "no groups"}'
            )


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
        raise ValueError(f'{place}: prompt is {files.short_repr(text)}; give a text, or delete the row')
    if not isinstance(group, str):
        raise ValueError(f'{place}: group is {files.short_repr(group)}; give a text, or leave it out')
    return Question(text, group)


def _fitting(questions: Sequence[Question], settings: QuestionSettings, tokenizer: Tokenizer) -> list[Question]:
    return [q for q in questions if len(tokenizer.chat(chats.as_chat(q.text))) <= settings.max_length]
