"""Figures of the matches of a step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pal_jax.recipes.spiral.matches import POLICY, SEATS, Matches
from pal_jax.types import Metrics, Sample


def summarize(matches: Matches, played: Sequence[Sequence[Sample]]) -> Metrics:
    """Legal answers of the policy, who wins, and how long matches and answers are."""
    answers = [sample for samples in played for sample in policys(samples)]
    ends = [matches.end([[sample] for sample in samples]) for samples in played]
    # A match that an invalid answer ended says nothing of which seat plays better.
    won = [matches.rewards(end)[0] for end in ends if end.offender is None]
    metrics = {
        'matches': float(len(played)),
        'turns': float(len(answers)),
        'moves': float(np.mean([len(samples) for samples in played])),
        'legal': float(np.mean([sample.parsed is not None for sample in answers])),
        'length': float(np.mean([len(sample.completion.token_ids) for sample in answers])),
        'truncated': float(np.mean([sample.completion.finish_reason == 'length' for sample in answers])),
    }
    if won:
        metrics['return_first'] = float(np.mean(won))
    for game, rules in enumerate(matches.rules):
        said = [sample.parsed is not None for sample in answers if sample.source.game == game]
        metrics |= {f'{rules.name}_legal': float(np.mean(said))} if said else {}
    return metrics


def named(matches: Matches, baselines: Sequence[Sequence[float]]) -> Metrics:
    """The baselines as figures."""
    pairs = zip(matches.rules, baselines, strict=True)
    return {f'baseline_{rules.name}_{matches.roles[s]}': b[s] for rules, b in pairs for s in SEATS}


def policys(samples: Sequence[Sample]) -> list[Sample]:
    """The policy's answers of a match."""
    return [sample for sample in samples if sample.source.players[sample.role] == POLICY]


def is_policys(samples: Sequence[Sample], seat: int) -> bool:
    """True where the policy has answered in this seat of a match."""
    return any(sample.role == seat for sample in policys(samples))
