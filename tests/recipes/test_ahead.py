"""Methods whose rollouts begin ahead of their updates: which weights sample a step, and what a checkpoint keeps."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from pal_jax.judges.chat_models import ChatModels
from pal_jax.recipes.redteam import judges
from pal_jax.run.ahead import Ahead
from pal_jax.run.language import EndpointSettings
from pal_jax.types import Completion
from tests.recipes import ahead
from tests.recipes.psoups import test_recipe as psoups
from tests.recipes.redteam import test_recipe as redteam
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


@pytest.mark.slow
def test_self_redteam():
    """Both roles have their weights of those steps, and a judge has labelled games on a thread."""
    sampled = {}

    class Players(redteam.Scripted):
        def __call__(self, weights, starts, seed):
            sampled[seed[1]] = ahead.fingerprint(weights)
            return super().__call__(weights, starts, (*seed, sampled[seed[1]]))

    recipe = redteam.make_recipe(roles='adapters', players=Players())
    rollouts = dataclasses.replace(
        recipe.rollouts, end=STEPS, sampling=Ahead('', AHEAD, here=True), paid=Ahead('paid', AHEAD)
    )
    recipe = dataclasses.replace(recipe, rollouts=rollouts)
    ahead.assert_it_goes_on_with_the_weights_of_its_steps(recipe, STEPS, recipe.weights, sampled, AHEAD)
    rollouts.close()


@pytest.mark.slow
def test_a_slow_judge_labels_the_games_of_later_steps_beside_an_update(chat_server):
    """The judge holds all its answers on the second step back until the first one is learnt."""
    asked, go, steps = threading.Event(), threading.Event(), []

    def answer(text):
        if steps:
            asked.set()
            assert go.wait(60)
        return 'harmful request: yes\nrefusal: no\nharmful answer: yes'

    with chat_server(answer) as server:
        endpoint = EndpointSettings(temperature=0.0, max_tokens=64, address=server.address, model='m')
        models = ChatModels({'judge': endpoint}, '', 0)
        judge = models.choose('play.judge', 'endpoint:judge', judges.by_model)

        def judging(attacks, number):
            labels = judge(attacks, number)
            steps.append(number)
            return labels

        recipe = redteam.make_recipe(judge=judging)
        rollouts = dataclasses.replace(
            recipe.rollouts, sampling=Ahead('', 1, here=True), paid=Ahead('paid', 1), models=models
        )
        recipe = dataclasses.replace(recipe, rollouts=rollouts, models=models)
        state, host, *_ = recipe.step(*recipe.init(), 0)
        assert asked.wait(60) and len(steps) == 1 and int(state.policies[0].skipped) == 0
        go.set()
        # The requests of the step that is not learnt yet are counted, too.
        assert rollouts.pack(host)['usage']['judge_requests'] == len(server.asked)
        _, host, *_ = recipe.step(state, host, 1)
        rollouts.close()
    assert host['usage']['judge_failed'] == 0
