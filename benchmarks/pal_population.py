"""People with known prototypes: PAL's synthetic set (arXiv 2406.08469, section on simulations).

K* prototypes `P* ~ N(0, 1/d)` and a linear map `f*(x) = x M*`, `M* ~ N(0, 1/d)`; a person stands at `a = w* P*` and
prefers the item whose image is nearer to that of `a`. Partition: everyone holds one prototype; mixture:
`w* ~ Dirichlet(1, ..., 1)`. Items are `N(0, I/d)`, drawn anew for every person.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from pal_jax.data.comparisons import Comparisons, Split

Setting = Literal['partition', 'mixture']


class Population(NamedTuple):
    """The choices of the seen people, then those of the new ones. `mixtures` `[people, K*]` are the true weights."""

    data: Comparisons
    split: Split
    mixtures: np.ndarray


def make_population(
    setting: Setting, seed: int, *, d: int = 16, prototypes: int = 3, seen: int = 100, new: int = 50, pairs: int = 50
) -> Population:
    """A population whose people have `pairs` choices to train on, or to be fitted by, and as many for the test.

    Since K* is known, no validation part is needed: the part of that name is the test part.

    Args:
      d: the number of attributes of an item.
      prototypes: K*, the number of prototypes.
      seen, new: numbers of people.
    """
    rng, people = np.random.default_rng(seed), seen + new
    P, M = (rng.normal(0, d**-0.5, shape) for shape in ((prototypes, d), (d, d)))
    if setting == 'partition':
        w = np.eye(prototypes)[np.arange(people) % prototypes]
    else:
        w = rng.dirichlet(np.ones(prototypes), people)
    users = np.repeat(np.arange(people), 2 * pairs)
    items = rng.normal(0, d**-0.5, (len(users), 2, d))
    distance = np.linalg.norm(items @ M - ((w @ P) @ M)[users, None], axis=2)
    nearer, rows = distance.argmin(axis=1), np.arange(len(users))
    data = Comparisons(
        users=users.astype(np.int32),
        situations=rows.astype(np.int32),
        chosen=items[rows, nearer].astype(np.float32),
        rejected=items[rows, 1 - nearer].astype(np.float32),
        prompt=None,
        names=tuple(f'p{i}' for i in range(people)),
        attributes=tuple(f'x{i}' for i in range(d)),
    )
    first, is_seen = rows % (2 * pairs) < pairs, users < seen
    test = np.flatnonzero(is_seen & ~first)
    parts = (np.flatnonzero(is_seen & first), test, test, np.flatnonzero(~is_seen & first))
    return Population(data, Split(*parts, np.flatnonzero(~is_seen & ~first)), w)


def side_by_side(populations: list[Population]) -> tuple[Comparisons, list[Split]]:
    """Several populations as one table, in which each has people of its own, and the split of each population."""
    datas = [population.data for population in populations]
    pairs = np.cumsum([0] + [len(data.users) for data in datas])
    people = np.cumsum([0] + [len(data.names) for data in datas])
    joined = Comparisons(
        users=np.concatenate([data.users + first for data, first in zip(datas, people[:-1], strict=True)]).astype(
            np.int32
        ),
        situations=np.arange(pairs[-1], dtype=np.int32),
        chosen=np.concatenate([data.chosen[:] for data in datas]),
        rejected=np.concatenate([data.rejected[:] for data in datas]),
        prompt=None,
        names=tuple(f'p{i}' for i in range(people[-1])),
        attributes=datas[0].attributes,
    )
    splits = [
        Split(*(part + first for part in population.split))
        for population, first in zip(populations, pairs[:-1], strict=True)
    ]
    return joined, splits
