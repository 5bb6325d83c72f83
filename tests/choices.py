"""A file of choices of people whose tastes are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def two_kinds(path: Path, people: int) -> Path:
    """Write fifteen choices of each of `people` people; the two kinds want opposite things of two attributes."""
    rng = np.random.default_rng(0)
    with path.open('w') as file:
        for person in range(people):
            taste = np.array([3.0, 1.0]) if person % 2 else np.array([-3.0, 1.0])
            for _ in range(15):
                pair = rng.normal(size=(2, 2))
                better = int((pair @ taste).argmax())
                record = {'user': f'p{person}', 'chosen': pair[better].tolist(), 'rejected': pair[1 - better].tolist()}
                file.write(json.dumps(record) + '\n')
    return path
