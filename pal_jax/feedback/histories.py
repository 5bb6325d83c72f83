"""The people that PLUS learns from and those it is tested on, by what `config.data` says."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pal_jax.data import attributes, histories, holdouts, opinions, votes
from pal_jax.data.histories import History
from pal_jax.data.records import TextChoice
from pal_jax.feedback import pets
from pal_jax.types import Choice

Splits = Mapping[str, Sequence[History]]
Log = Callable[[str], None]

OPINION = 'What do you think?'  # what the statements of a conversation answer


@dataclasses.dataclass(frozen=True)
class Made:
    """How a history is made of somebody's choices."""

    told: int = 4  # choices of the context
    held: int = 2  # choices that test
    max_words: int = 40  # of a reply; choices with longer ones are left out
    disputed: float = 0.2  # of votes: the least share on either side of a statement
    taught: int = 1  # choices that teach
    # Histories of a person to learn from; what is told and what teaches changes places between them.
    each: int = 1
    attributes: tuple[str, ...] = ()  # what people want of rated replies, such as helpfulness, honesty; (): all


def silent(text: str) -> None:
    """Hears a line and says nothing."""


def _vote(name: str, made: Made) -> Mapping[str, Sequence[Choice]]:
    return votes.to_choices(votes.read(name), OPINION, disputed=made.disputed, seed=0)


def by_person(choices: Iterable[TextChoice]) -> Mapping[str, Sequence[Choice]]:
    found: dict[str, list[Choice]] = {}
    for each in choices:
        found.setdefault(each.user, []).append(Choice(each.prompt.strip(), each.chosen.strip(), each.rejected.strip()))
    return found


def read(
    data: str, *, people: int, tested: int, seed: int, form: str, made: Made, log: Log = silent
) -> tuple[list[History], Splits]:  # fmt: skip
    """Those to learn from, and those to test on by the name of their split: `test` are people nobody has learnt from,
    `seen` those to learn from; what tests either was not taught of them. Two of the same content are one person. What
    others were asked may be what tests a person, but for `rated:`, whose prompts are kept apart.

    Args:
      data: `pets`; or a JSONL file of people; or whose choices histories are made of: `votes:<folder>/<name>`
        (`data/votes.py`), or a public set by name, as `ukp:<folder>` (`data/opinions.py`); or `rated:<file>`, replies
        rated by attributes that made-up people want (`data/attributes.py`).
      people: of made-up ones so many, of others at most.
      tested: people of a split; of others than made-up ones at most a fifth.
      seed: of made-up ones to learn from. Who tests, and with what, is the same for every seed.
      form: how it is told what they chose, see `data.histories.context_of`.
      log: hears of people who are on the side of somebody with the same content.

    Raises:
      ValueError: a file that is wrong, with the line, or has too few people.
    """
    if form not in histories.FORMS:
        raise ValueError(f'form={form!r} is unknown; use one of {", ".join(histories.FORMS)}')
    if data == 'pets':
        train = pets.make_people(people, seed=seed, split='train', form=form, taught=made.taught)
        splits: tuple[pets.Split, ...] = ('test', 'animals')
        return train, {split: pets.make_people(tested, seed=0, split=split, form=form) for split in splits}
    settings: Any = {
        'told': made.told,
        'taught': made.taught,
        'held': made.held,
        'max_words': made.max_words,
        'form': form,
    }
    if data.startswith('rated:'):
        train, test = attributes.make_people(
            data.removeprefix('rated:'), made.attributes, people, tested, **settings, seed=seed
        )
        return train, {'test': test}
    voted = data.startswith('votes:')
    made_here = voted or opinions.is_source(data)
    if made_here and form == 'guide':
        raise ValueError(f'form=guide: nobody in {data} says who they are; use labelled or chosen')
    if made_here:
        choices = _vote(data.removeprefix('votes:'), made) if voted else by_person(opinions.read(data))
        found = histories.from_choices(choices, **settings, seed=0, each=made.each)
        random.Random(0).shuffle(found)
        contents = [holdouts.together(map(histories.said, choices[own[0].user])) for own in found]
    elif ':' in data and not Path(data).exists():
        raise ValueError(
            f'data={data!r} is unknown; use pets, a JSONL file of people, votes:<folder>/<name>, rated:<file>, or a '
            f'source of choices after {", ".join(f"{name}:" for name in opinions.SOURCES)}'
        )
    else:
        found = histories.load(data)
        contents = [holdouts.together(map(histories.content, own)) for own in found]
    if not min(tested, len(found) // 5):
        count = made.told + 1 + made.taught + made.held
        needed = f'{count} choices apart (history.told + 1 + history.taught + history.held)'
        enough = f' with {needed} of at most {made.max_words} words (history.max_words)' if made_here else ''
        raise ValueError(f'{data} has {len(found)} people{enough}; give five or more, a fifth is kept for testing')
    try:
        held = holdouts.held_out(contents, tested, last=True)
    except ValueError as error:
        raise ValueError(f'{data}: {error}; give other people') from None
    learnt, test = ([own for own, kept in zip(found, held, strict=True) if kept == way] for way in (False, True))
    if moved := holdouts.repeats(contents):
        log(f'{moved} people have the same content as others, and stand on their side')
    learnt = learnt[:people]
    tests = {'test': [own[0] for own in test], 'seen': [own[0] for own in learnt[:tested]]}
    return [history for own in learnt for history in own], tests
