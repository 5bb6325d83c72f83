"""The people that PLUS learns from and those that it is tested on, from the source that `config.data` names."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pal_jax.data import histories, holdouts
from pal_jax.data.histories import History
from pal_jax.data.readers import opinions, votes
from pal_jax.recipes.plus import attributes, pets
from pal_jax.run.forecast import counted
from pal_jax.types import Choice

Splits = Mapping[str, Sequence[History]]
Log = Callable[[str], None]

OPINION = 'What do you think?'  # the question that the statements of a conversation answer


@dataclasses.dataclass(frozen=True)
class HistoryOptions:
    """The making of histories from people's choices."""

    told: int = 4  # the number of choices of the context
    held: int = 2  # the number of choices that test
    max_words: int = 40  # words of a reply; choices with longer ones are left out
    disputed: float = 0.2  # of votes: the least share on either side of a statement
    taught: int = 1  # the number of choices that teach
    # Histories of a person to learn from; choices of the context and choices that teach change places between them.
    each: int = 1
    # Attributes of rated replies that people want, such as helpfulness, honesty; (): all.
    attributes: tuple[str, ...] = ()


def no_log(text: str) -> None:
    """A log that does nothing with a line."""


def _vote(name: str, made: HistoryOptions) -> Mapping[str, Sequence[Choice]]:
    return votes.to_choices(votes.read(name), OPINION, disputed=made.disputed, seed=0)


def by_person(choices: Iterable[Choice]) -> Mapping[str, Sequence[Choice]]:
    """The choices between texts, by the person who made them."""
    by_user: dict[str, list[Choice]] = {}
    for row in choices:
        by_user.setdefault(row.user, []).append(Choice(row.prompt.strip(), row.chosen.strip(), row.rejected.strip()))
    return by_user


def read(
    data: str, *, people: int, tested: int, seed: int, form: str, made: HistoryOptions, log: Log = no_log
) -> tuple[list[History], Splits]:
    """The people to learn from, and the people to test on by the name of their split.

    `test` are people nobody has learnt from, `seen` are people to learn from; the choices that test either were not
    taught. A prompt that tests one person may have been asked of others, except for `rated:`, whose prompts are kept
    apart.

    Args:
      data: `pets`; or a JSONL file of people; or the source of choices that histories are made of:
        `votes:<folder>/<name>` (`data/readers/votes.py`), or a public set by name, as `ukp:<folder>`
        (`data/readers/opinions.py`); or `rated:<file>`, replies rated by attributes that made-up people want
        (`recipes/plus/attributes.py`).
      people: the number of made-up people, or the largest number of others.
      tested: the number of people of a split; at most a fifth of people who are not made up.
      seed: the seed of made-up people to learn from. The people and choices that test are the same for every seed.
      form: the form of the context, see `data.histories.context_of`.
      log: receives a line about people who are on the side of somebody with the same content.

    Raises:
      ValueError: a file is wrong, with the line, or has too few people.
    """
    if form not in histories.FORMS:
        raise ValueError(f'form={form!r} is unknown; use one of {", ".join(histories.FORMS)}')
    if data == 'pets':
        # Only people to learn from depend on the seed of the run.
        train = pets.make_pet_people(people, seed=seed, split='train', form=form, taught=made.taught)
        splits: tuple[pets.Split, ...] = ('test', 'animals')
        return train, {split: pets.make_pet_people(tested, seed=0, split=split, form=form) for split in splits}
    settings: Any = {
        'in_context': made.told,
        'taught': made.taught,
        'held': made.held,
        'max_words': made.max_words,
        'form': form,
    }
    if data.startswith('rated:'):
        train, test = attributes.make_attribute_people(
            data.removeprefix('rated:'), made.attributes, people, tested, **settings, seed=seed
        )
        return train, {'test': test}
    voted = data.startswith('votes:')
    made_here = voted or opinions.is_source(data)
    if made_here and form == 'guide':
        raise ValueError(f'form=guide: nobody in {data} says who they are; use labelled or chosen')
    if made_here:
        choices = _vote(data.removeprefix('votes:'), made) if voted else by_person(opinions.read(data))
        # The seed is 0 whatever that of the run, so that all runs test the same people on the same choices.
        by_user = histories.from_choices(choices, **settings, seed=0, per_user=made.each)
        random.Random(0).shuffle(by_user)
        contents = [
            holdouts.joint_content(map(histories.choice_text, choices[of_person[0].user])) for of_person in by_user
        ]
    elif ':' in data and not Path(data).exists():
        raise ValueError(
            f'data={data!r} is unknown; use pets, a JSONL file of people, votes:<folder>/<name>, rated:<file>, or a '
            f'source of choices after {", ".join(f"{name}:" for name in opinions.SOURCES)}'
        )
    else:
        by_user = histories.load(data)
        contents = [holdouts.joint_content(map(histories.content, of_person)) for of_person in by_user]
    if not min(tested, len(by_user) // 5):
        count = made.told + 1 + made.taught + made.held
        needed = f'{count} choices apart (history.told + 1 + history.taught + history.held)'
        enough = f' with {needed} of at most {made.max_words} words (history.max_words)' if made_here else ''
        available = counted(len(by_user), 'person')
        raise ValueError(f'{data} has {available}{enough}; give five or more, a fifth is kept for testing')
    try:
        # Two people with the same content are one person: both teach, or both test.
        held = holdouts.held_out(contents, tested, last=True)
    except ValueError as error:
        raise ValueError(f'{data}: {error}; give other people') from None
    learnt, test = ([row for row, kept in zip(by_user, held, strict=True) if kept == way] for way in (False, True))
    if moved := holdouts.repeats(contents):
        log(f'{counted(moved, "person")} with the same content as others, kept on their side of the split')
    learnt = learnt[:people]
    # A person may teach by several histories, but is tested by the first one alone.
    tests = {'test': [of_person[0] for of_person in test], 'seen': [of_person[0] for of_person in learnt[:tested]]}
    return [history for of_person in learnt for history in of_person], tests
