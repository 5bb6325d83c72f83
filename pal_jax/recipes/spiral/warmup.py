"""The supervised warm-up of SPIRAL: the form of answers, and nothing about which of them are good.

A small model answers a board with prose, so that every match of its self-play would end at its first answer, with the
same reward whatever it says. The warm-up shows positions of matches between players that move at random, with all legal
actions side by side: the model that learns them best draws each legal action with the same chance.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from pal_jax.data.packing import Branch, PromptGroup, most_actions, pack_whole
from pal_jax.recipes.spiral.matches import POLICY, Match, Matches, play_matches
from pal_jax.recipes.spiral.players import ModelPlayer, at_random
from pal_jax.recipes.spiral.settings import Settings
from pal_jax.run import sharding
from pal_jax.types import TokenBatch

WARMUP = 2**31 + 1  # stands in place of a step's number in seeds


def positions(matches: Matches, count: int, seed: int, i: int) -> list[Match]:
    """Positions of step `i`, the games in turn: each is one of those that a match of two random players passes."""
    rng = np.random.default_rng([seed, WARMUP, i])
    starts = [matches.begin(k % len(matches.rules), int(rng.integers(2**31))) for k in range(count)]
    played = play_matches(matches, {POLICY: at_random(matches, (seed, WARMUP, i))}, starts)
    return [samples[int(rng.integers(len(samples)))].source for samples in played]


def make_legal_action_batches(settings: Settings, answers: ModelPlayer, mesh: Mesh) -> Callable[[int], TokenBatch]:
    """A function that gives the batch of a step of the warm-up: positions with their legal actions."""
    matches, tokenizer, ways = answers.matches, answers.tokenizer, sharding.batch_ways(mesh)

    def batch(i: int) -> TokenBatch:
        groups = []
        for match in positions(matches, settings.warmup.positions, settings.seed, i):
            # Every legal action is taught alike, so that the policy learns their form and no strategy.
            legal = matches.rules[match.game].legal(match.state)
            branches = [Branch([*tokenizer.encode(action), tokenizer.stop_ids[0]]) for action in legal]
            groups.append(PromptGroup(answers.prompt(match), branches))
        # Positions differ in their number of legal actions; the batch has room for the largest.
        n = max(len(group.branches) for group in groups)
        shape = {'n': n, 'actions': most_actions(groups), 'ways': ways, 'row_tokens': settings.ppo.row_tokens}
        return sharding.put_batch(pack_whole(groups, **shape), mesh)

    return batch
