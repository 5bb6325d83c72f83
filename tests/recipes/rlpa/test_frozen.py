"""The model before training as a reader: its log-probs are the decoder's, however replies share rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.models import decoder
from pal_jax.models.files import sources
from pal_jax.recipes.rlpa import frozen
from pal_jax.recipes.rlpa.frozen import FrozenModel, open_naturalness, who_judged
from pal_jax.run import devices
from pal_jax.types import Dialogue, Person, Turn
from tests import configs

SAID = ('Hello', 'Hi there.', 'I have a ferret.', 'A ferret!', 'Yes.')
DIALOGUES = [Dialogue(Person('p', ()), tuple(Turn(('user', 'assistant')[i % 2], x) for i, x in enumerate(SAID[:k])))
             for k in (1, 3, 5, 3)]  # fmt: skip
REPLIES = ['How are you?', 'Is it tame?', 'Hm.', 'Who looks after it when you travel?']


def no_model():
    raise AssertionError('the model before training was opened')


@pytest.fixture(scope='module')
def reader():
    return FrozenModel(sources.resolve('random:tiny'), 'float32', devices.make_mesh(devices=jax.devices()[:1]))


def test_a_reply_is_read_after_the_last_messages_of_its_dialogue(reader, monkeypatch):
    monkeypatch.setattr(frozen, 'ROW_TOKENS', 256)
    found = reader(DIALOGUES, REPLIES)
    source = sources.resolve('random:tiny')
    params, tokenizer = source.load(), source.tokenizer()
    cfg = devices.for_platform(source.config, 'float32')
    forward, length = jax.jit(decoder.forward, static_argnums=1), 256  # one program for all lengths
    for dialogue, reply, logprobs in zip(DIALOGUES, REPLIES, found, strict=True):
        chat = [{'role': turn.role, 'content': turn.content} for turn in dialogue.turns[-frozen.CONTEXT :]]
        prompt = tokenizer.chat([{'role': 'system', 'content': ''}, *chat])
        ids = [*prompt, *tokenizer.encode(reply), tokenizer.stop_ids[0]]
        exists = (jnp.arange(length) < len(ids)).astype(jnp.int32)[None]
        tokens = jnp.array([ids + [0] * (length - len(ids))])
        hidden = forward(params, cfg, tokens, jnp.arange(length)[None], exists, exists)
        table = jax.nn.log_softmax(hidden[0] @ decoder.unembed_weight(params, cfg).T)
        expected = [float(table[k - 1, ids[k]]) for k in range(len(prompt), len(ids))]
        assert len(logprobs) == len(expected)
        np.testing.assert_allclose(logprobs, expected, atol=1e-4)


def test_weights_that_were_given_back_are_read_again(reader):
    before = reader(DIALOGUES[:1], REPLIES[:1])
    reader.release()
    np.testing.assert_array_equal(reader(DIALOGUES[:1], REPLIES[:1])[0], before[0])


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        ({'reward.naturalness': 'often'}, 'often'),
        ({'reward.naturalness': 'model'}, 'random:tiny'),
        ({'reward.naturalness': 'model', 'reward.judge': 'endpoint:judge'}, 'endpoint:judge|random:tiny'),
    ],
)
def test_naturalness_that_cannot_be_had_is_told(changes, told):
    with pytest.raises(ValueError, match=rf'reward\.naturalness=.*(?:{told})'):
        open_naturalness(configs.load('rlpa', **changes), no_model)


def test_an_evaluation_says_that_random_weights_judge_nothing():
    config = configs.load('rlpa')
    assert open_naturalness(config, no_model) is None
    assert who_judged(None, config.reward) == {'naturalness_judged': 0.0}
    judged = configs.load('rlpa', **{'reward.judge': 'endpoint:judge'})  # a language model judges all of it
    assert who_judged(open_naturalness(judged, no_model), judged.reward) == {}
