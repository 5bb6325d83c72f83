"""Asking a person: two texts, a click, the person's mixture of a trained run's prototypes, and the next pair.

    interview = open_interview('runs/pal', 'pairs.jsonl', Path('people'), adapters=2)
    interview.told([])                                  # the first question, and what is known of a stranger
    interview.told([(7, 'left'), (2, 'right')])         # after two clicks
    interview.save('ana', [(7, 'left'), (2, 'right')])  # people/ana.json, which load and forget read and delete

What is known of a person follows from the clicks alone, so whoever asks keeps them, and nothing is kept here before
`save`. The prototypes stay as they were trained. The next pair is the one whose answer is expected to tell most
(`recipes/personal/asking.py`). With K adapters of a soup, adapter k is the policy of prototype k, and the person's
mixture is that of the soup (P-Soups and rewarded soups mix policies by the weights of their rewards).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from pal_jax.data import records
from pal_jax.recipes.personal import ideal_point
from pal_jax.recipes.personal.pal import person as pal_person
from pal_jax.recipes.personal.pal.person import PersonChoices
from pal_jax.recipes.personal.pal.reward import TrainedPAL, open_pal
from pal_jax.run import files
from pal_jax.run.files import write_whole
from pal_jax.run.forecast import counted

Click = tuple[int, str]  # the number of a pair, from 0, and the side that was clicked
SIDES = 'left', 'right'
BETWEEN = 10, 90  # the percentiles that are told of people drawn from what is known
SHOWN = 70  # characters of a text in a sentence
NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_-]{0,63}')


def open_interview(workdir: str, questions: str, folder: Path, *, adapters: int = 0) -> Interview:
    """The interview of a finished run of PAL about the pairs of a file, as `pal-jax personalize --ask` reads them.

    Raises:
      ValueError: the run knows one taste alone or none that are shares, its prior is flat, a pair is wrong, or the
        number of adapters is not that of prototypes.
    """
    run = open_pal(workdir)
    if run.pal.mixture != 'softmax' or run.pal.prototypes < 2:
        raise ValueError(
            f'{workdir} has model.mixture={run.pal.mixture} and K={run.pal.prototypes}; people are asked about their '
            'shares of two prototypes or more, which model.mixture=softmax has'
        )
    if adapters not in (0, run.pal.prototypes):
        raise ValueError(
            f'--adapters has {adapters} and {workdir} has K={run.pal.prototypes} prototypes; give an adapter for each '
            'prototype, in their order, or none'
        )
    pairs = pal_person.read_choices(run, questions, answered=False)
    pal_person.information(run, pairs)  # a flat prior is refused now, and the program is compiled
    return Interview(run, pairs, folder, soup=adapters > 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Interview:
    """A trained run, the pairs that people are asked about, and the folder of people who were saved.

    Attributes:
      soup: whether the server's adapters are mixed by the person's mixture.
    """

    run: TrainedPAL
    questions: PersonChoices
    folder: Path
    soup: bool = False

    def told(self, clicks: Sequence[Click]) -> dict[str, Any]:
        """The state after the clicks, as JSON: the next question, the mixture, and in words what is known.

        `question` is None once all pairs were answered. Raises ValueError where a click is none.
        """
        pairs, weight = self._answered(clicks)
        learner, params, prior, known = (
            self.run.learner,
            self.run.replica.params,
            self.run.prior,
            jnp.asarray(weight[None]),
        )
        # 1. The likeliest mixture given the clicks, and people who could have clicked so, drawn about it by Laplace's
        # approximation; the same clicks give the same draws.
        person = pal_person.fit(self.run, pairs, weight)
        z = pal_person.drawn_logits(self.run, pairs, weight)
        drawn = np.asarray(ideal_point.weights(self.run.pal, jnp.asarray(z, jnp.float32)))
        low, high = np.percentile(drawn, BETWEEN, axis=0)
        # 2. The pair whose answer is expected to tell most.
        expected = np.asarray(learner.expect(params, pairs.batch, known, prior, len(weight)))[0]
        # A pair that was answered is not asked again.
        nats = np.where(weight, -1.0, expected)
        best = int(np.argmax(nats))
        prompt = self.questions.prompts[best] if self.questions.prompts else ''
        sides = dict(zip(SIDES, self._texts(best), strict=True))
        question = None if weight.all() else {'pair': best, 'prompt': prompt, **sides}
        # 3. The same in plain words.
        mixture = np.asarray(person.mixture, np.float64)
        right = round(person.agreement * len(clicks), 1)
        words = self._words(mixture, low, high, len(clicks), right)
        if question and clicks:
            words.append(f'The next answer is expected to tell {nats[best] / np.log(2):.2f} bits; a coin has 1.')
        return {'question': question, 'mixture': mixture.tolist(), 'soup': self.soup, 'words': words}

    def save(self, name: str, clicks: Sequence[Click]) -> dict[str, Any]:
        """Write the person's mixture and clicks, in the form that `pal-jax score --person` reads.

        Raises:
          ValueError: the name is none, or somebody has it whose first clicks are others.
        """
        path, kept = self._path(name), []
        if path.exists():
            # An interview that goes on begins with the clicks that are kept.
            kept = self._record(path).get('clicks', [])
        if path.exists() and kept != [list(click) for click in clicks[: len(kept)]]:
            raise ValueError(f'{name} is kept with other answers; choose another name, or forget {name} first')
        person = pal_person.fit(self.run, *self._answered(clicks))
        shown = tuple(self.questions.shown[pair] for pair, _ in clicks)
        record = pal_person.to_record(self.run, self.questions._replace(user=name, shown=shown), person)
        record |= {'clicks': [list(click) for click in clicks], 'questions': self._fingerprint}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(record, ensure_ascii=False) + '\n')
        return {'name': name, 'words': [f'{name} is kept with {counted(len(clicks), "answer")}.']}

    def load(self, name: str) -> dict[str, Any]:
        """A saved person's clicks, and what is known after them. Raises ValueError where nobody has the name, or the
        answers are to other questions or of another run."""
        record = self._record(self._path(name))
        if (record.get('fingerprint'), record.get('questions')) != (self.run.fingerprint, self._fingerprint):
            raise ValueError(f'{name} was kept by another run or with other questions; begin again under another name')
        clicks = [(int(pair), str(side)) for pair, side in record['clicks']]
        return {'name': name, 'clicks': [list(click) for click in clicks], **self.told(clicks)}

    def forget(self, name: str) -> dict[str, Any]:
        """Delete a saved person, and say what has learnt from the person. Raises ValueError where nobody has the
        name."""
        path = self._path(name)
        self._record(path)
        path.unlink()
        words = [f'{name} is forgotten: weights and answers are deleted. No shared parameter has learnt from them.']
        if (name := records.spelled(name, self.run.people)) in self.run.people:
            words.append(
                f'A person of this name is among those that {self.run.workdir} was trained on; python -m '
                f'pal_jax.personalize --source=orbax:{self.run.workdir} --forget={name} drops that row.'
            )
        return {'name': name, 'words': words}

    # --- what is known ------------------------------------------------------------------------------------------------

    def _answered(self, clicks: Sequence[Click]) -> tuple[PersonChoices, np.ndarray]:
        """All pairs, with the clicked side as the chosen one, and which of them `[n]` were clicked. Raises ValueError
        where a click is none."""
        count, batch = len(self.questions.shown), self.questions.batch
        for pair, side in clicks:
            if not 0 <= pair < count or side not in SIDES:
                raise ValueError(
                    f'click [{pair}, {side!r}] is none; a pair is from 0 to {count - 1}, a side left or right'
                )
        if len({pair for pair, _ in clicks}) < len(clicks):
            raise ValueError('a pair was clicked twice; a pair has one answer')
        # A pair is turned where its right side was clicked; pairs without a click stay as they are.
        turned, clicked = (
            np.isin(np.arange(count), [pair for pair, side in clicks if side in sides]) for sides in (SIDES[1:], SIDES)
        )
        chosen, rejected = (
            np.where(turned[None, :, None], *(np.asarray(side) for side in pair))
            for pair in ((batch.rejected, batch.chosen), (batch.chosen, batch.rejected))
        )
        return self.questions._replace(batch=batch.replace(chosen=chosen, rejected=rejected)), clicked

    # --- in words -----------------------------------------------------------------------------------------------------

    def _words(self, mixture: np.ndarray, low: np.ndarray, high: np.ndarray, answers: int, right: float) -> list[str]:
        if answers:
            head = [f'{answers} answer{"s" * (answers > 1)}, {right:g} as your weights predict.']
        else:
            head = ['Nothing is known about you yet: you are taken for the mean of the people of the training.']
        lines = []
        for k in np.argsort(-mixture, kind='stable'):
            liked, other = self._example(int(k))
            lines.append(
                f'{mixture[k]:.0%} (likely {low[k]:.0%} to {high[k]:.0%}) taste {k + 1}, which prefers “{liked}” to '
                f'“{other}”.'
            )
        return head + lines

    def _example(self, k: int) -> tuple[str, str]:
        """The two texts that a prototype tells apart otherwise than the others do, the preferred one first."""
        by_prototype = np.asarray(self.run.learner.by_prototype(self.run.replica.params, self.questions.batch))[0]
        mine, others = by_prototype[:, k], np.delete(by_prototype, k, axis=1).mean(axis=1)
        # The best example is one that this prototype decides, and the others less or the other way.
        pair = int(np.argmax(np.sign(mine) * (mine - others)))
        left, right = (
            text if len(text) <= SHOWN else text[: SHOWN - 1] + '…' for text in self._texts(pair, alike=False)
        )
        return (left, right) if mine[pair] > 0 else (right, left)

    def _texts(self, pair: int, *, alike: bool = True) -> tuple[str, str]:
        """Both sides of a pair in words; of items of a table, all attributes, or those that differ."""
        left, right = self.questions.shown[pair]
        if isinstance(left, str):
            return left, right
        names = [name for name in left if alike or left[name] != right[name]]
        first, second = (', '.join(f'{name} {side[name]}' for name in names) for side in (left, right))
        return first, second

    # --- on disk ------------------------------------------------------------------------------------------------------

    @property
    def _fingerprint(self) -> str:
        """A hash of the questions, to whose numbers clicks refer."""
        return hashlib.sha256(json.dumps(self.questions.shown).encode()).hexdigest()[:16]

    def _path(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise ValueError(f'{files.short_repr(name)} is no name; use up to 64 letters, digits, - and _')
        path = self.folder / f'{name}.json'
        # A name that is written in another way is the same person.
        return path.with_stem(records.spelled(name, (kept.stem for kept in self.folder.glob('*.json'))))

    def _record(self, path: Path) -> dict[str, Any]:
        if not path.is_file():
            raise ValueError(f'nobody called {path.stem} is kept')
        return files.read_object(path)
