"""People and items by a singular value decomposition of their judgements: the start of PReF (arXiv 2503.06358).

    Y: different pairs x people, 1 where the person prefers the first side of the pair and -1 where the second
    items, people = refill(Y, missing, rank)    # Y as a product of `rank` numbers of each
    V = (x'x + ridge)^-1 x' items               # [H, K]: from pairs' differences to items' factors

The learner's prototypes are V', and a person's logits the person's factors, with PAL's mixture 'linear'. The published
code has 1 and 0 with .5 for what is missing, does not centre them, and takes the factors' products as logits, in which
.5 is no indifference; Y is centred here. Where each pair was judged by one person, a row has one entry and the
decomposition says nothing.
"""

from __future__ import annotations

import numpy as np

ENOUGH = 0.5  # the share of pairs that several people judged, from which a decomposition says something
LARGEST = 50_000_000  # cells of a matrix that is decomposed, 400 MB each
ROUNDS, RIDGE = 10, 1e-2


def start(x: np.ndarray, users: np.ndarray, people: int, rank: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The first prototypes `[K, H]` and people's logits `[U, K]`; None where most pairs were judged by one person, or
    the matrix is too large or too small.

    Args:
      x: the chosen item less the other, by pair. users: the pair's person, from 0 to `people` - 1.
    """
    # 1. The same pair has the same differences but for the sign, whichever side was chosen.
    x = np.asarray(x, np.float64)
    first = x[np.arange(len(x)), np.argmax(x != 0, axis=1)]
    sign = np.where(first < 0, -1.0, 1.0)
    different, number = np.unique(np.round(sign[:, None] * x, 6) + 0.0, axis=0, return_inverse=True)
    number = number.reshape(-1)
    judges = np.bincount(np.unique(np.stack([number, users]), axis=1)[0], minlength=len(different))
    too_large = len(different) * people > LARGEST
    if np.mean(judges > 1) < ENOUGH or too_large or min(len(different), people) <= rank:
        return None
    # 2. Each person's mean judgement of each pair.
    total, count = np.zeros((2, len(different), people))
    np.add.at(total, (number, users), sign)
    np.add.at(count, (number, users), 1.0)
    # 3. Judgements in products of K numbers, and a linear map from a pair's difference to its own K.
    items, of_people = refill(total / np.maximum(count, 1.0), count == 0, rank)
    squares = different.T @ different + RIDGE * np.eye(different.shape[1])
    return np.linalg.solve(squares, different.T @ items).T.astype(np.float32), of_people.astype(np.float32)


def refill(Y: np.ndarray, missing: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """The left singular vectors `[n, K]` and the right ones `[U, K]`, each times the root of the singular values, of a
    matrix `[n, U]` whose missing cells are filled in by their product, clipped to `[-1, 1]`, in so many rounds.

    The missing cells of `Y` hold their first values. A singular vector's sign is chosen so that its largest entry on
    the side of people is positive.
    """
    left, values, right = np.linalg.svd(Y, full_matrices=False)
    for _ in range(ROUNDS - 1):
        # Known cells stay; the others become what the known ones imply at this rank.
        product = (left[:, :rank] * values[:rank]) @ right[:rank]
        filled = np.where(missing, np.clip(product, -1.0, 1.0), Y)
        left, values, right = np.linalg.svd(filled, full_matrices=False)
    # The signs of singular vectors are free; the largest entry by size says which.
    largest = np.argmax(np.abs(right[:rank]), axis=1)
    root = np.sign(right[np.arange(rank), largest]) * np.sqrt(values[:rank])
    return left[:, :rank] * root, right[:rank].T * root
