"""Methods whose rollouts begin ahead of their updates: which weights sample a step, and what a checkpoint keeps."""

from __future__ import annotations

import dataclasses

from tests.recipes import ahead
from tests.recipes.safe_rlhf import test_recipe as safe_rlhf

STEPS, AHEAD = 4, 2


def test_safe_rlhf():
    decoder, sampled = ahead.Noting(), {}

    def sample(weights, texts, n, seed):
        assert weights is None
        sampled[seed[1]] = decoder.loaded
        return safe_rlhf.fake_sample(weights, texts, n, (*seed, decoder.loaded))

    recipe = safe_rlhf.make_recipe('pid')
    rollouts = ahead.make_rollouts(recipe.ctx, STEPS, decoder, AHEAD)
    recipe = dataclasses.replace(recipe, sample=sample, rollouts=rollouts)
    ahead.assert_it_goes_on_with_the_weights_of_its_steps(recipe, STEPS, recipe.learner.weights, sampled, AHEAD)
