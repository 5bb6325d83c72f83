"""PAL on texts that an encoder of sentences reads: its vectors, a person's reward, and what only decoders can."""

from __future__ import annotations

import json
import string

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file
from tokenizers import models, pre_tokenizers, processors

from pal_jax.data.texts import Text
from pal_jax.models import bert, states
from pal_jax.recipes.personal.pal import export as pal_export
from pal_jax.recipes.personal.pal import large as pal_large
from pal_jax.recipes.personal.pal import recipe as pal
from pal_jax.recipes.personal.pal import reward as pal_reward
from pal_jax.recipes.personal.pal import text as pal_text
from pal_jax.recipes.personal.pal.settings import TextSettings
from tests.recipes.personal.texts import ONE, finished, small, write_replies

WIDTH, LONGEST = 8, 24
CONFIG = {
    'model_type': 'bert', 'hidden_act': 'gelu', 'num_hidden_layers': 2, 'num_attention_heads': 2,
    'layer_norm_eps': 1e-6, 'max_position_embeddings': LONGEST, 'hidden_size': WIDTH,
}  # fmt: skip


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
    """A folder of a random BERT whose tokens are letters."""
    folder, rng = tmp_path_factory.mktemp('encoder'), np.random.default_rng(0)
    vocab = {token: i for i, token in enumerate(['[PAD]', '[CLS]', '[SEP]', '[UNK]', *string.ascii_lowercase])}
    sizes = {'attention.self.query': (8, 8), 'attention.self.key': (8, 8), 'attention.self.value': (8, 8),
             'attention.output.dense': (8, 8), 'intermediate.dense': (16, 8), 'output.dense': (8, 16)}  # fmt: skip
    embeddings = {'word': len(vocab), 'position': LONGEST, 'token_type': 2}
    arrays = {f'embeddings.{name}_embeddings.weight': rng.normal(size=(n, WIDTH)) for name, n in embeddings.items()}
    for i in range(2):
        for name, size in sizes.items():
            arrays[f'encoder.layer.{i}.{name}.weight'] = 0.5 * rng.normal(size=size)
            arrays[f'encoder.layer.{i}.{name}.bias'] = 0.1 * rng.normal(size=size[0])
    norms = ['embeddings', *(f'encoder.layer.{i}.{part}output' for i in range(2) for part in ('attention.', ''))]
    arrays |= {f'{name}.LayerNorm.weight': np.ones(WIDTH) for name in norms}
    arrays |= {f'{name}.LayerNorm.bias': np.zeros(WIDTH) for name in norms}
    save_file({name: x.astype(np.float32) for name, x in arrays.items()}, folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps(CONFIG))
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, '[UNK]'))
    backend.pre_tokenizer = pre_tokenizers.Split('', 'isolated')
    backend.add_special_tokens(['[PAD]', '[CLS]', '[SEP]', '[UNK]'])
    backend.post_processor = processors.TemplateProcessing('[CLS] $A [SEP]', None, [('[CLS]', 1), ('[SEP]', 2)])
    backend.save(str(folder / 'tokenizer.json'))
    named = {'cls_token': '[CLS]', 'sep_token': '[SEP]', 'pad_token': '[PAD]', 'unk_token': '[UNK]'}
    (folder / 'tokenizer_config.json').write_text(json.dumps(named))
    return folder


def opened(encoder, **changes):
    return pal_text.open_encoder(TextSettings(source=f'encoder:{encoder}', **changes))


def test_a_text_has_the_mean_of_its_own_tokens_after_its_prompt(encoder):
    reader = opened(encoder)
    tokens = reader.tokenizer.statement('cab')
    assert reader.tokenizer.fast.convert_ids_to_tokens(tokens) == ['[CLS]', 'c', 'a', 'b', '[SEP]']
    given = [Text(tuple(tokens)), Text((5, 6, 2), (1, 9, 9)), Text((4, 2), (1, 7))]
    read = pal_text.sentence_reader(reader, ONE.mesh, None)(given)
    ids = np.zeros((3, 6), np.int32)
    for row, text in zip(ids, given, strict=True):
        row[: len(text.before) + len(text.tokens)] = [*text.before, *text.tokens]
    hidden = np.asarray(jax.jit(bert.encode, static_argnums=1)(reader.weights, reader.cfg, ids, (ids > 0).sum(1)))
    for text, states_of, vector in zip(given, hidden, read, strict=True):
        first = len(text.before)
        mean = states_of[first : first + len(text.tokens)].mean(axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)


def test_long_texts_are_shortened_and_counted(encoder):
    reader = opened(encoder)
    long = Text(tuple([5] * 30 + [2]), (1, 9, 9, 8)), Text(tuple([6] * 20 + [2]), (1, *[9] * 20))
    short = Text(tuple([5] * 23 + [2])), Text(tuple([6] * 20 + [2]), (1, 9, 9))
    first, second = (pal_text.sentence_reader(reader, ONE.mesh, None)(texts) for texts in (long, short))
    np.testing.assert_allclose(first, second, atol=1e-6)
    assert states.first_layers(reader.cfg, 1).layers == 1
    with pytest.raises(ValueError, match='text.layers=3 must be between 0'):
        opened(encoder, layers=3)


@pytest.fixture(scope='module')
def replies(tmp_path_factory):
    return write_replies(tmp_path_factory.mktemp('replies') / 'replies.jsonl')


@pytest.mark.slow
def test_a_run_with_an_encoder_is_opened_for_a_persons_reward(encoder, replies, tmp_path):
    config = small(replies, 'text', **{'text.source': f'encoder:{encoder}'})
    recipe, *_ = finished(config, tmp_path / 'run')
    run = pal_reward.open_pal(str(tmp_path / 'run'))
    person = next(iter(run.people))
    model = pal_reward.load_pal_reward_model(str(tmp_path / 'run'), user=person)
    said = model.reward(['azaz', 'zzzz'], ['yes', 'no'])
    assert said.shape == (2,) and said[0] != said[1]
    # The vectors that a run learnt from are those that its reward reads.
    pairs = pal_text.read_pairs(config, run.reading.model.tokenizer)
    items = pairs.in_states(run.reading.read(pairs.texts))
    np.testing.assert_allclose(items.chosen[:20], recipe.panel.data.chosen[:20], atol=1e-5)
    for save in (pal_export.save_model, pal_export.save_classifier):
        with pytest.raises(ValueError, match=r'text.source=.* is no decoder'):
            save(str(tmp_path / 'run'), tmp_path / 'out')


@pytest.mark.parametrize(
    ('variant', 'changes', 'words'),
    [
        ('text', {'text.pool': 'last'}, 'text.pool'),
        ('text', {'text.pool': 'last', 'text.span': 'mean'}, 'text.span'),
        ('text', {'baselines.context': 2}, 'baselines.context'),
        ('text-large', {}, 'text.source'),
    ],
)
def test_what_needs_a_decoder_is_refused(encoder, replies, variant, changes, words):
    config = small(replies, variant, **{'text.source': f'encoder:{encoder}', **changes})
    with pytest.raises(ValueError, match=f'{words}.*encoder|encoder.*{words}'):
        (pal_large if variant == 'text-large' else pal).make(config, ONE)
