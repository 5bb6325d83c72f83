"""The people of PLUS: those to learn from and those to test on, the people of a step, and the choices that go with
them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pal_jax.data.histories import History, content
from pal_jax.data.holdouts import fewer
from pal_jax.data.passes import shuffled
from pal_jax.recipes.plus import histories
from pal_jax.recipes.plus.histories import Splits
from pal_jax.recipes.plus.settings import Settings
from pal_jax.run.forecast import counted


class StepPeople(NamedTuple):
    """The people of a step.

    Attributes:
      people: the persons who are summarised.
      choosers: for each of them, the person whose choices pay for the summaries and teach the reward model.
      temperatures: a summary of each person is drawn at each of these.
      pays: whether the summariser is paid; while it waits it is not.
    """

    people: list[History]
    choosers: Sequence[History]
    temperatures: tuple[float, ...]
    pays: bool


class Size(NamedTuple):
    """The number of people that a step draws, and the temperatures at which the summaries of each person are drawn."""

    people: int
    temperatures: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class PeopleDraw:
    """Draws the people of a step in shuffled passes. A draw is a function of the step's number.

    Attributes:
      waiting: the size of a step in which the summariser waits.
      paid: the size of a step in which it is paid; None: it always waits.
      hold: the first step that pays.
      shuffled: whether, for the control, somebody else's choices go with each person.
    """

    train: Sequence[History]
    waiting: Size
    paid: Size | None
    hold: int
    shuffled: bool = False
    seed: int = 0

    def __call__(self, i: int) -> StepPeople:
        start, size, pays = i * self.waiting.people, self.waiting, False
        if self.paid and i >= self.hold:
            # The pass goes on where a wait of full length leaves it, however early it ended.
            start = self.hold * self.waiting.people + (i - self.hold) * self.paid.people
            size, pays = self.paid, True
        # The place in the pass follows from the step's number: a resumed run draws the same people.
        order = shuffled(len(self.train), start=start, size=size.people, seed=self.seed)
        people = [self.train[k] for k in order]
        choosers = of_whom(people, self.train, (self.seed, i), shuffled=self.shuffled)
        return StepPeople(people, choosers, size.temperatures, pays)


def make_draw(settings: Settings, train: Sequence[History]) -> PeopleDraw:
    """The draw of people that the settings describe."""
    hold, summary = settings.hold, settings.summary
    waiting = Size(hold.people, (hold.temperature,))
    paid = Size(summary.people, (settings.sampling.temperature,) * summary.n_samples)
    # A baseline has no summariser to pay, so it always waits.
    learns = settings.reads == 'summary'
    return PeopleDraw(train, waiting, paid if learns else None, hold.steps, settings.shuffled, settings.seed)


def of_whom(
    people: Sequence[History], train: Sequence[History], seed: Sequence[int], *, shuffled: bool
) -> Sequence[History]:
    """The persons whose choices go with these people: the people themselves or, where `shuffled`, others of `train`.

    Raises:
      ValueError: nobody of `train` is somebody else, by name and by content.
    """
    if not shuffled:
        return people
    rng = np.random.default_rng((*seed, 1))

    def somebody_else(person: History) -> History:
        # Compared by content, too: a person of another name with the same choices would be no control.
        mine, drawn = content(person), (train[k] for k in rng.permutation(len(train)))
        chosen = next((other for other in drawn if other.user != person.user and content(other) != mine), None)
        if chosen is None:
            raise ValueError(f'shuffled: nobody else to learn from is another than {person.user}; give other people')
        return chosen

    return list(map(somebody_else, people))


def read_people(settings: Settings, log: histories.Log = histories.no_log) -> tuple[list[History], Splits]:
    """The people to learn from, and those to test on by the name of their split.

    Raises:
      ValueError: `data` names no people, a line of a file is wrong, or the people lack what `reads` names.
    """
    train, tests = histories.read(
        settings.data,
        people=settings.people,
        tested=settings.eval.people,
        seed=settings.seed,
        form=settings.form,
        made=settings.history,
        log=log,
    )
    check_reads(settings.reads, settings.data, (train, tests))
    tested = len(next(iter(tests.values())))
    warning = fewer('eval.people', settings.eval.people, tested)
    log(f'{counted(len(train), "person")} to learn from, {tested} to test on{warning}')
    return train, tests


def check_reads(reads: str, data: str, people: tuple[Sequence[History], Splits]) -> None:
    """Raises ValueError where the people of `data` lack what `reads` names."""
    everyone = [*people[0], *(person for split in people[1].values() for person in split)]
    if reads == 'kind' and not all(person.kind for person in everyone):
        raise ValueError(f'reads=kind: people of {data} have no kind; read something else')
    if reads == 'latent':
        check_past(everyone)


def check_past(people: Sequence[History]) -> None:
    """Raises ValueError where the past choices of somebody are not known, or fewer than those of others."""
    # Past choices of all people are one array, so everyone needs as many.
    counts = {len(person.past): person.user for person in people}
    if len(counts) > 1 or 0 in counts:
        user = counts[min(counts)]
        raise ValueError(f'reads=latent: {user} has fewer choices told apart than others, or none; read something else')
