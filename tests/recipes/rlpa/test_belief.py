"""The gain of belief: hand-made potentials, sums over dialogues, and what a frozen model is asked."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pal_jax.recipes.rlpa import world
from pal_jax.recipes.rlpa.belief import belief_gains, make_potential
from pal_jax.recipes.rlpa.criteria import SCORES, judge_by_rules
from pal_jax.recipes.rlpa.dialogue import add_message, add_reply, open_dialogue
from pal_jax.recipes.rlpa.own_rewards import make_estimate
from pal_jax.recipes.rlpa.profiles import ParsedCompletion, match_exactly, render_completion, render_facts, to_sample
from pal_jax.recipes.rlpa.rewards import make_reward
from pal_jax.types import Completion, Dialogue, Person, Verdict
from tests import configs
from tests.recipes.rlpa.dialogues import BAD

PERSON = Person('p', ('pet: cat', 'city: Oslo'))


def reply(*facts):
    return ParsedCompletion(render_facts(facts), facts, 'Hm?')


def dialogue_of(replies):
    """A dialogue with these replies, each answered by the person, and its states at which the policy replied."""
    dialogue, states = open_dialogue(PERSON), []
    for turn, parsed in enumerate(replies):
        states.append(dialogue)
        dialogue = add_message(add_reply(dialogue, parsed), f'Line {turn}.')
    return states


def by_replies(values):
    """A potential that depends on the number of replies alone."""
    return lambda dialogues, golden: [values[dialogue.round] for dialogue in dialogues]


@pytest.mark.parametrize(
    ('gamma', 'expected'),
    # After no, one, two and three replies the log-probability is -12, -9.5, -7.25 and -8.
    [(1.0, [2.5, 2.25, -0.75]), (0.9, [3.45, 2.975, 0.05])],
)
def test_golden_gains(gamma, expected):
    replies = [reply(), reply('pet: cat'), reply('pet: dog')]
    potential = by_replies([-12.0, -9.5, -7.25, -8.0])
    gains = belief_gains(potential, dialogue_of(replies), replies, [PERSON.facts] * 3, gamma=gamma)
    assert gains == pytest.approx(expected)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('gamma', [1.0, 0.9])
def test_the_gains_of_a_dialogue_add_up_to_the_potential_at_its_end(seed, gamma):
    rng = random.Random(seed)
    replies = [
        reply(*rng.sample(['pet: cat', 'pet: dog', 'city: Oslo', 'job: pilot'], rng.randint(0, 3))) for _ in 'abcd'
    ]

    def potential(dialogues, golden):
        # Any function of the replies and of the truth.
        seen = [[t for t in dialogue.turns if t.role == 'assistant'] for dialogue in dialogues]
        draws = (random.Random(f'{seed} {turns} {facts}') for turns, facts in zip(seen, golden, strict=True))
        return [-draw.expovariate(0.1) for draw in draws]

    states = dialogue_of(replies)
    gains = belief_gains(potential, states, replies, [PERSON.facts] * 4, gamma=gamma)
    start, end = potential([Dialogue(PERSON, ()), add_reply(states[-1], replies[-1])], [PERSON.facts] * 2)
    assert sum(gamma**turn * gain for turn, gain in enumerate(gains)) == pytest.approx(gamma**4 * end - start)


def test_a_model_is_asked_for_the_true_profile_after_the_dialogue_as_the_policy_reads_it():
    asked = []

    def logprobs(chats, texts):
        asked.extend(zip(chats, texts, strict=True))
        return [np.array([-1.0, -0.25 * len(chat)]) for chat in chats]

    replies = [reply('pet: dog'), reply('pet: cat')]
    states, golden = dialogue_of(replies), [PERSON.facts] * 3
    gains = belief_gains(
        make_potential(logprobs, ('pet', 'city')), [states[0], states[1], states[1]], [*replies, replies[1]], golden
    )
    assert gains == pytest.approx([-0.5] * 3)  # two messages more
    assert len(asked) == 3  # before the dialogue, and after either reply: what is asked twice is read once
    for chat, text in asked:
        assert text == '- pet: cat\n- city: Oslo\n'
        assert chat[-1]['role'] == 'user' and 'pet, city' in chat[-1]['content'] and 'Oslo' not in str(chat)
    longest = max((chat for chat, _ in asked), key=len)
    assert 'pet: dog' not in str(longest) and '<profile>\n- pet: cat' in longest[-2]['content']
    assert min(len(chat) for chat, _ in asked) == 1


def samples(*texts):
    return [to_sample(open_dialogue(PERSON), Completion(text, (3,), (0.0,), 'stop')) for text in texts]


def test_the_gain_pays_and_the_f1_is_measured():
    def belief(dialogues, replies, golden):
        assert len(replies) == 1 and golden == [PERSON.facts]  # a malformed answer is not asked about
        return [-3.0]

    def judge(dialogues, inferred, replies, seed):
        return [Verdict(dict.fromkeys(SCORES, 0.5)) for _ in replies]

    reward = make_reward(match_exactly, judge, profile_weight=0.1, belief=belief)
    formed, malformed = reward(samples(render_completion('- pet: cat\n', 'Hm?'), BAD), 0)
    assert formed.reward == pytest.approx(0.1 * -3.0 + 0.5)
    assert formed.info['belief'] == -3.0 and formed.info['profile'] == pytest.approx(2 / 3)
    assert malformed.reward == malformed.info['belief'] == 0.0 and malformed.info.keys() == formed.info.keys()
    assert 'belief' not in make_reward(match_exactly, judge_by_rules)(samples(BAD), 0)[0].info


class FrozenByLength:
    """Stands for the model before training; a text has a nat for each message of its chat."""

    def __init__(self, settings, kept):
        pass

    def open(self):
        pass

    def logprobs(self, chats, texts):
        return [np.array([float(len(chat))]) for chat in chats]


@pytest.mark.parametrize(('turn_gamma', 'gain'), [(0.0, 2.0), (0.5, 0.5)])  # from one message to three
def test_a_run_is_paid_by_the_model_before_training_and_evaluated_by_the_f1(monkeypatch, turn_gamma, gain):
    monkeypatch.setattr(world, 'open_frozen', FrozenByLength)
    config = configs.load('rlpa', **{'reward.profile': 'belief', 'dialogue.turn_gamma': turn_gamma})
    made = world.make_world(config)
    asked = samples(render_completion('- pet: cat\n', 'Hm?'))
    (paid,), (scored,) = made.reward(asked, 0), made.score(asked, 0)
    assert paid.info['belief'] == gain and paid.reward == pytest.approx(gain + paid.info['response'])
    assert scored.reward == pytest.approx(scored.info['profile'] + scored.info['response'])


def test_rewards_that_are_standardised_apart_know_no_gain():
    with pytest.raises(ValueError, match=r"reward\.profile='belief'"):
        make_estimate(configs.load('rlpa', **{'reward.profile': 'belief', 'reward.normalise': 'each'}))
