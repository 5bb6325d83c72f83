"""People who like dogs or cats: made-up choices on which PLUS is tried first (after Pets of VPL, arXiv 2408.10075).

A sentence is an animal and a predicate that fits every animal, so nothing but the animal tells the sides of a choice
apart. Everyone likes birds best and rabbits least; half of the people like dogs better than cats, the others cats.
"""

from __future__ import annotations

import random
from typing import Literal

from pal_jax.data.histories import History, context_of
from pal_jax.run import files
from pal_jax.types import Choice

Split = Literal['train', 'test', 'animals']

PROMPT = 'Write a sentence about an animal.'
KINDS = ('dogs', 'cats')
OTHER_KINDS = ('horses', 'hamsters')
EVERYONE = ('birds', 'rabbits')  # liked best, liked least
TAUGHT = 14  # the largest number of a person's choices that teach

_PREDICATES = files.beside(__name__)
TRAINED, HELD = _PREDICATES['trained'], _PREDICATES['held']


def make_pet_people(count: int, *, seed: int, split: Split, form: str = 'labelled', taught: int = 1) -> list[History]:
    """`count` people, half of them of each kind.

    Args:
      taught: the number of choices that teach, of one person.
      split: in `test` the judged choices have predicates that nobody in `train` has met. In `animals` both these
        choices and the context are about animals that nobody in `train` has met.
      form: the form of the context, see `data.histories.context_of`.

    Raises:
      ValueError: more choices teach than there are sentences for.
    """
    if taught > TAUGHT:
        raise ValueError(f'history.taught={taught}: there are predicates for {TAUGHT} at most')
    rng = random.Random(f'{split} {seed}')
    kinds = OTHER_KINDS if split == 'animals' else KINDS

    def person(number: int) -> History:
        kind, other = kinds[number % 2], kinds[1 - number % 2]
        # No predicate stands in two choices of one person, except the choices that test, which have the same two.
        predicates = rng.sample(TRAINED, 8)
        others = [predicate for predicate in TRAINED if predicate not in predicates]
        one, two, *judged = rng.sample(others if split == 'train' else HELD, 4 + 2 * taught)
        reward, *train = (_choice(kind, other, *judged[i : i + 2]) for i in range(0, len(judged), 2))
        # The context has four choices in random order, two of which say nothing about dogs and cats.
        pairs = rng.sample([(kind, other), (kind, other), EVERYONE, EVERYONE], 4)
        past = [_choice(*pair, *predicates[2 * i : 2 * i + 2]) for i, pair in enumerate(pairs)]
        return History(
            user=f'{split} {number}',
            context=context_of(past, rng, form, kind),
            reward=reward,
            train=tuple(train),
            # A choice that tests comes with its sides swapped, too: a liking for a predicate cancels out.
            held=(_choice(kind, other, one, two), _choice(kind, other, two, one)),
            kind=kind,
            past=tuple(past),
        )

    return [person(number) for number in range(count)]


def _choice(liked: str, other: str, one: str, two: str) -> Choice:
    return Choice(PROMPT, _sentence(liked, one), _sentence(other, two))


def _sentence(animal: str, predicate: str) -> str:
    return f'{animal.capitalize()} {predicate}.'
