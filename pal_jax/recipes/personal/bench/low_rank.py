"""People and items by a singular value decomposition of their judgements: the start of PReF (arXiv 2503.06358).

    parts = refill(Y, missing, rank=3, rounds=10, low=-1.0, high=1.0)     # Y: pairs x people, 1, -1 or 0
    V = regress(x, parts.items, ridge=1e-2)                               # [H, K]: pairs' differences to items' factors
    learner's P = V', and a person's logits are the person's factors, with PAL's mixture 'linear'

A cell is 1 where the person prefers the first side of the pair, and -1 where the second. The published code has 1 and 0
with .5 for what is missing, does not centre them, and takes the factors' products as logits, in which .5 is no
indifference; Y is centred here. Where each pair was judged by one person, a row has one entry and the decomposition
says nothing: `start` refuses such data.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from pal_jax.recipes.personal.learner import IdealPointLearner, PALState

ENOUGH = 0.5  # the share of pairs that several people judged, from which a decomposition says something
LARGEST = 50_000_000  # cells of a matrix that is decomposed, 400 MB each


class Factors(NamedTuple):
    """The parts of a matrix `[n, U]` of judgements.

    Attributes:
      items: left singular vectors times the root of the singular values, `[n, K]`.
      people: right ones times the root, `[U, K]`.
      values: singular values of the last round, `[K]`.
      filled: the matrix with its missing cells filled in.
    """

    items: np.ndarray
    people: np.ndarray
    values: np.ndarray
    filled: np.ndarray


def refill(Y: np.ndarray, missing: np.ndarray, *, rank: int, rounds: int, low: float, high: float) -> Factors:
    """Fill the missing cells in by a product of low rank, clipped to `[low, high]`, so many rounds.

    The missing cells of `Y` hold their first values. A singular vector's sign is chosen so that its largest entry on
    the side of people is positive.

    Raises:
      ValueError: the rank is below 1 or no less than the smaller side of `Y`, in which case cells would stay as they
        are; or there are no rounds.
    """
    if not 1 <= rank < min(Y.shape) or rounds < 1:
        raise ValueError(
            f'rank={rank} of {Y.shape[0]} pairs and {Y.shape[1]} people in {rounds} rounds: a rank from 1 to '
            f'{min(Y.shape) - 1} and at least one round fill anything in'
        )
    filled = np.array(Y, np.float64)
    left, values, right = np.linalg.svd(filled, full_matrices=False)
    # Known cells stay; the others become what the known ones imply at this rank.
    for i in range(rounds):
        if i:
            left, values, right = np.linalg.svd(filled, full_matrices=False)
        product = (left[:, :rank] * values[:rank]) @ right[:rank]
        filled = np.where(missing, np.clip(product, low, high), filled)
    # The signs of singular vectors are free; the largest entry by size says which.
    largest = np.argmax(np.abs(right[:rank]), axis=1)
    signs = np.sign(right[np.arange(rank), largest])
    root = signs * np.sqrt(values[:rank])
    return Factors(left[:, :rank] * root, right[:rank].T * root, values[:rank], filled)


def regress(x: np.ndarray, items: np.ndarray, ridge: float) -> np.ndarray:
    """The map `V` `[H, K]` whose products `x V` are nearest to the items' factors, with `ridge |V|²` beside them."""
    return np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ items)


def judgements(x: np.ndarray, users: np.ndarray, people: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The judgements `Y` `[n, U]` of the different pairs, which of them are missing, and the pairs' differences.

    Two pairs are one where their differences are the same but for the sign. A person who judged one twice has the mean.

    Args:
      x: the chosen item less the other, by pair. users: the pair's person, from 0 to `people` - 1.

    Raises:
      ValueError: the matrix is too large.
    """
    # 1. The same pair has the same differences, whichever side was chosen.
    different, number, sign = _numbered(x)
    if len(different) * people > LARGEST:
        raise ValueError(
            f'{len(different)} pairs x {people} people are more than the {LARGEST} cells that are decomposed; start '
            'from normal draws'
        )
    # 2. Each person's mean judgement of each pair.
    total, count = (np.zeros((len(different), people)) for _ in range(2))
    where = number, users
    np.add.at(total, where, sign)
    np.add.at(count, where, 1.0)
    return total / np.maximum(count, 1.0), count == 0, different


def _numbered(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different pairs, the number of each pair among them, and -1 for pairs that stand there turned around."""
    x = np.asarray(x, np.float64)
    first = x[np.arange(len(x)), np.argmax(x != 0, axis=1)]
    sign = np.where(first < 0, -1.0, 1.0)
    different, number = np.unique(np.round(sign[:, None] * x, 6) + 0.0, axis=0, return_inverse=True)
    return different, number.reshape(-1), sign


def can_start(x: np.ndarray, users: np.ndarray, people: int, rank: int) -> bool:
    """True where most pairs were judged by several people, and the matrix is neither too large nor too small."""
    different, number, _ = _numbered(x)
    judges = np.bincount(np.unique(np.stack([number, users]), axis=1)[0], minlength=len(different))
    enough = np.mean(judges > 1) >= ENOUGH
    return bool(enough and len(different) * people <= LARGEST and min(len(different), people) > rank)


def start(
    Y: np.ndarray, missing: np.ndarray, x: np.ndarray, *, rank: int, rounds: int = 10, ridge: float = 1e-2
) -> tuple[np.ndarray, np.ndarray]:
    """The first prototypes `[K, H]` and people's logits `[U, K]` by `judgements`.

    Raises:
      ValueError: most pairs were judged by one person, so that there is nothing to decompose.
    """
    several = np.mean(np.sum(~missing, axis=1) > 1)
    if several < ENOUGH:
        raise ValueError(
            f'a decomposition needs pairs that several people judged, and {several:.0%} of {len(Y)} are; start from '
            'normal draws'
        )
    # Judgements in products of K numbers, and a linear map from a pair's difference to its own K.
    parts = refill(Y, missing, rank=rank, rounds=rounds, low=-1.0, high=1.0)
    return regress(x, parts.items, ridge).T.astype(np.float32), parts.people.astype(np.float32)


def placed(learner: IdealPointLearner, state: PALState, P: np.ndarray, z: np.ndarray) -> PALState:
    """The state of one replica with these prototypes and people's logits; the table's further rows stay."""
    table = state.users.z
    rows = np.array(table)
    rows[0, : len(z)] = z
    users = state.users.replace(z=jax.device_put(rows, table.sharding))
    params = {**state.params, 'P': jax.device_put(P[None], state.params['P'].sharding)}
    return state.replace(params=params, users=users)
