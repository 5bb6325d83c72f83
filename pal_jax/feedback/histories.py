"""The people that PLUS learns from and those it is tested on, by what `config.data` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pal_jax.data import histories
from pal_jax.feedback import pets
from pal_jax.types import History

Splits = Mapping[str, Sequence[History]]


def read(data: str, *, people: int, tested: int, seed: int, labelled: bool) -> tuple[list[History], Splits]:
    """Those to learn from, and those to test on by the name of their split.

    Args:
      data: `pets`, or a JSONL file of people.
      people, seed, labelled: of pets, see `pets.make_people`; those that test are the same for every seed.
      tested: people of a split; of a file at most a fifth.

    Raises:
      ValueError: a line of the file, or it has too few people.
    """
    if data == 'pets':
        train = pets.make_people(people, seed=seed, split='train', labelled=labelled)
        splits: tuple[pets.Split, ...] = ('test', 'animals')
        return train, {split: pets.make_people(tested, seed=0, split=split, labelled=labelled) for split in splits}
    found = histories.load(data)
    cut = len(found) - min(tested, len(found) // 5)
    if cut == len(found):
        raise ValueError(f'{data} has {len(found)} people; give five or more, a fifth is kept for testing')
    return found[:cut], {'test': found[cut:]}
