"""Players of matches for tests."""

from __future__ import annotations

import random

from pal_jax.types import Completion, Sample


def saying(choose):
    """A player that answers with the text which `choose` makes of a match."""

    def player(states, moves):
        return [Sample((), Completion(choose(match), (), (), 'stop'), source=match) for match in states]

    return player


def at_random(matches, seed=0):
    """A player that draws one of the listed actions."""
    rng = random.Random(seed)
    return saying(lambda match: rng.choice(matches.rules[match.game].legal(match.state)))
