"""Cross-play: the policy of now and its past selves against each other."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from pal_jax.models.params import Params
from pal_jax.recipes.spiral import crossplay
from pal_jax.recipes.spiral.matches import SEATS, play_matches
from pal_jax.recipes.spiral.players import ModelPlayer
from pal_jax.run.recipe import Evaluation

END = 'end'  # the policy of now


def cross(
    answers: ModelPlayer, params: Params, past: Mapping[int, Params], count: int, seed: Sequence[int]
) -> Evaluation:
    """Every pair against each other, `count` matches in either seat of each game.

    Args:
      params: the policy of now.
      past: its past selves by their steps of self-play.
    """
    weights = {f'step {step}': one for step, one in past.items()} | {END: params}
    players = {name: answers.loaded(one, (*seed, 7 + k)) for k, (name, one) in enumerate(weights.items())}
    rules = answers.matches.rules
    keys = [*itertools.product(range(len(rules)), itertools.permutations(players, 2), range(count))]
    # The same deals for all pairs.
    starts = [answers.matches.begin(game, k, pair) for game, pair, k in keys]
    won: dict[tuple[str, str, str], list[float]] = {}
    for (game, pair, _), samples in zip(keys, play_matches(answers.matches, players, starts), strict=True):
        rewards = answers.matches.rewards(answers.matches.end([[sample] for sample in samples]))
        for seat in SEATS:
            won.setdefault((rules[game].name, pair[seat], pair[1 - seat]), []).append(rewards[seat])
    means = {key: float(np.mean(values)) for key, values in won.items()}
    # The figure is the mean of the policy of now against its past selves.
    gains = [mean for (_, row, _), mean in means.items() if row == END]
    return Evaluation({'crossplay': float(np.mean(gains))}, (), [crossplay.make_exhibit(means, [*players])])
