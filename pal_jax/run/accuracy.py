"""The score of a predicted choice, by its margin: a model's reward of the chosen item less that of the other."""

from __future__ import annotations

import numpy as np


def hits(margins: np.ndarray) -> np.ndarray:
    """The score of each margin: 1 for a choice predicted right, 1/2 for a tie, 0 for a wrong one."""
    return (np.sign(margins) + 1.0) / 2.0
