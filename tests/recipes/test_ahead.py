"""Methods whose rollouts begin ahead of their updates: which weights sample a step, and what a checkpoint keeps."""

from __future__ import annotations

import dataclasses

import pytest

from pal_jax.run.ahead import Ahead
from pal_jax.types import Completion
from tests.recipes import ahead
from tests.recipes.psoups import test_recipe as psoups
from tests.recipes.safe_rlhf import test_recipe as safe_rlhf
from tests.recipes.spiral import test_recipe as spiral

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


def test_personalized_soups():
    """The scale of rewards is that of the scores which have been learnt."""
    decoder, sampled = ahead.Noting(), {}

    def sample(weights, texts, n, seed):
        assert weights is None
        sampled[seed[1]] = decoder.loaded
        # The fake learner's weights are the rewards of the last step, and answers have as many words as they say.
        samples = psoups.fake_sampler([])(weights, texts, n, seed)
        return [dataclasses.replace(one, completion=Completion('word ' * (k + decoder.loaded % 7), (1,), (), 'stop'))
                for k, one in enumerate(samples)]  # fmt: skip

    rollouts = ahead.make_rollouts(psoups.ONE, STEPS, decoder, AHEAD)
    recipe = psoups.fake_rlphf([], sample=sample, rollouts=rollouts, scale_scores=True)
    ahead.assert_it_goes_on_with_the_weights_of_its_steps(recipe, STEPS, recipe.learner.weights, sampled, AHEAD)


@pytest.mark.slow
def test_spiral():
    """The baselines are those of the matches that have been learnt."""
    decoder, sampled = ahead.Noting(), {}

    class Answers(spiral.Scripted):
        def player(self, seed):
            sampled[seed[1]] = decoder.loaded
            return super().player((*seed, decoder.loaded))

    recipe = spiral.make_recipe()
    rollouts = dataclasses.replace(recipe.rollouts, decoder=decoder, end=STEPS, sampling=Ahead('', AHEAD, here=True))
    recipe = dataclasses.replace(recipe, answers=Answers(recipe.matches, decoder), rollouts=rollouts)
    ahead.assert_it_goes_on_with_the_weights_of_its_steps(
        recipe, STEPS, lambda state: recipe.learner.weights(state.policy), sampled, AHEAD
    )
