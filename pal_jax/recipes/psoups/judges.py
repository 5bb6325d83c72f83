"""The judges of Personalized Soups: annotators, which compare two answers, and reward models, which score one."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pal_jax.decode.answers import ModelScores
from pal_jax.judges.chat_models import ChatModels
from pal_jax.recipes.psoups import annotators, preferences
from pal_jax.recipes.psoups.annotators import Annotator, Spec
from pal_jax.recipes.psoups.prompts import known_preferences

# Takes the readings of every question, and the replies to every question; returns scores `[questions, replies]`.
Score = Callable[[Sequence[Sequence[str]], Sequence[Sequence[str]]], np.ndarray]


def read_annotators(source: str, among: str, default: Spec = annotators.LABELLING) -> dict[str, Spec]:
    """The annotators of a file, or the one annotator that endpoint:<name>, local:<source> or rule names.

    They judge the preferences that `among`, the value of a config's `preferences`, names.

    Raises:
      ValueError: the file is wrong, or an annotator after its first judges no preference.
    """
    if not source.endswith(('.yaml', '.yml')):
        return {source: default._replace(decoder=source)}
    specs = annotators.load_annotators(source)
    known = [preferences.GENERAL, *(preference.id for preference in known_preferences(among))]
    if idle := [name for name in [*specs][1:] if name not in known]:
        raise ValueError(f'{source}: {idle[0]} is neither its first annotator nor one of {", ".join(known)}')
    return specs


def open_annotators(models: ChatModels, specs: Mapping[str, Spec], role: str = 'judge') -> Callable[[str], Annotator]:
    """Open the annotators of a file, and return the annotator of a preference by the preference's id.

    A local model samples as `config.endpoints` has it for the role.

    Raises:
      ValueError: an annotator is unknown.
    """
    # Each annotator is opened once, however many preferences it judges.
    opened = {
        name: models.choose(
            role,
            spec.decoder,
            functools.partial(annotators.make_annotator, spec=spec),
            spec.model,
            rule=lambda: annotators.annotate_by_rule,
        )
        for name, spec in specs.items()
    }
    first = next(iter(opened.values()))
    # The first annotator judges preferences that have none of their own.
    return lambda preference: opened.get(preference, first)


@dataclasses.dataclass(frozen=True)
class ReplyScorer:
    """Scores replies to questions in several readings."""

    scores: ModelScores

    def __call__(self, readings: Sequence[Sequence[str]], replies: Sequence[Sequence[str]]) -> np.ndarray:
        """Scores `[questions, replies]`: the mean over the readings of a question, each with the reply (I.6, edges 1
        and 3)."""
        texts = [text for by_question in readings for text in by_question]
        repeated = [to_it for by_question, to_it in zip(readings, replies, strict=True) for _ in by_question]
        # The scores stand by question, then by reading, then by reply.
        return self.scores(texts, repeated).reshape(len(readings), -1, len(replies[0])).mean(axis=1)
