"""A trained moderator: whoever trains one opens it, and whoever needs a judge of harm asks here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from pal_jax.data.packing import PromptGroup
from pal_jax.run.recipe import Context
from pal_jax.run.runs import recipe_module
from pal_jax.run.workdir import read_run
from pal_jax.types import Chat


class Moderator(NamedTuple):
    """A trained moderator: `moderator(prompts, responses)` are the probabilities of the categories.

    A prompt is a question or the messages of a chat. `read` makes a group of a prompt with its response, and
    `probabilities` scores groups, for callers that read first and score many groups later.
    """

    thresholds: Float[np.ndarray, ' K']
    read: Callable[[str | Chat, str], PromptGroup]
    probabilities: Callable[[Sequence[PromptGroup]], Float[np.ndarray, 'N K']]

    def __call__(self, prompts: Sequence[str | Chat], responses: Sequence[str]) -> Float[np.ndarray, 'N K']:
        """Raises ValueError where a prompt with its response is too long for the model, or is no chat of its
        template."""
        return self.probabilities([self.read(*pair) for pair in zip(prompts, responses, strict=True)])

    def unsafe(self, prompts: Sequence[str | Chat], responses: Sequence[str]) -> Bool[np.ndarray, ' N']:
        """True where a probability is above the threshold of its category. Raises ValueError as a call does."""
        return unsafe_by(self(prompts, responses), self.thresholds)


def unsafe_by(probabilities: Float[np.ndarray, 'N K'], thresholds: Float[np.ndarray, ' K']) -> Bool[np.ndarray, ' N']:
    """The verdict: True where a probability is above the threshold of its category."""
    return np.any(probabilities > thresholds, axis=1)


def open_moderator(folder: str | Path, ctx: Context) -> Moderator:
    """Open the moderator of a run, by `open_moderator` of the run's method.

    Raises:
      ValueError, RuntimeError: the folder is no run of a moderator, or its model or checkpoint cannot be read.
    """
    recipe = read_run(Path(folder))['recipe']
    opener = getattr(recipe_module(recipe), 'open_moderator', None)
    if opener is None:
        raise ValueError(
            f'{folder} is a run of {recipe}, which judges no answers; give one of a moderator (docs/serving.md)'
        )
    return opener(folder, ctx)
