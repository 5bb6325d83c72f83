"""Adapters go to a folder and back, and the library peft computes with it what we do."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pal_jax.data import tokenizer
from pal_jax.models import config, decoder, hf, lora, params, peft, sources

CFG = dataclasses.replace(config.tiny(vocab=tokenizer.byte_tokenizer().vocab_size), layers=2)


@pytest.fixture(scope='module')
def adapted():
    """A tree with adapters on weights with one input axis and two, that training has moved."""
    plain = params.init(params.decoder_specs(CFG), jax.random.key(0))
    tree = lora.attach(plain, rank=4, alpha=12.0, targets=('attn/(q|o)', 'down'), key=jax.random.key(1))
    trainable, frozen = lora.split(tree)
    return lora.join(jax.tree.map(lambda x: x + 0.05 * jnp.cos(jnp.arange(x.size)).reshape(x.shape), trainable), frozen)


@pytest.fixture
def folder(adapted, tmp_path):
    peft.save(lora.split(adapted)[0], CFG, 'random:tiny', tmp_path, dropout=0.1)
    return tmp_path


def test_an_adapter_comes_back_bit_by_bit(adapted, folder):
    again = peft.attach(lora.base(adapted), CFG, folder)
    jax.tree.map(np.testing.assert_array_equal, lora.split(again)[0], lora.split(adapted)[0])
    assert again['layers']['attn']['q'].scale == 3.0
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1


def test_tensors_are_torch_matrices_of_the_family_s_modules(adapted, folder):
    tensors = load_file(folder / peft.TENSORS)
    assert len(tensors) == 2 * 2 * 3
    o = tensors['base_model.model.model.layers.1.self_attn.o_proj.lora_A.weight']
    np.testing.assert_array_equal(o, adapted['layers']['attn']['o'].a[1].T)
    assert json.loads((folder / peft.CONFIG).read_text())['target_modules'] == ['down_proj', 'o_proj', 'q_proj']


def test_a_folder_is_a_source_merged_into_its_base(folder):
    source = sources.resolve(f'peft:{folder}', seed=3)
    base = sources.resolve('random:tiny', seed=3).load()
    moved = jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), source.load(), base)
    attn, mlp = moved['layers']['attn'], moved['layers']['mlp']
    assert min(attn['q'], attn['o'], mlp['down']) > 0 == max(attn['k'], attn['v'], mlp['gate'], moved['embed'])


def test_faults_of_a_folder(adapted, folder, tmp_path):
    with pytest.raises(ValueError, match='no adapter_config.json in'):
        sources.resolve('peft:nowhere')
    tensors = load_file(folder / peft.TENSORS)
    save_file(tensors | {'base_model.model.lm_head.lora_A.weight': np.zeros((4, 64))}, folder / peft.TENSORS)
    with pytest.raises(ValueError, match='lm_head.lora_A.weight, which adapts no linear weight of a llama model'):
        peft.attach(lora.base(adapted), CFG, folder)
    name = 'base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight'
    save_file({key: x for key, x in tensors.items() if key != name}, folder / peft.TENSORS)
    with pytest.raises(ValueError, match=f'has no {name}; an adapter has to be on every layer'):
        peft.attach(lora.base(adapted), CFG, folder)
    settings = json.loads((folder / peft.CONFIG).read_text())
    (folder / peft.CONFIG).write_text(json.dumps(settings | {'use_dora': True}))
    with pytest.raises(ValueError, match='only adapters with use_dora=False can be read'):
        peft.read_config(folder)
    with pytest.raises(ValueError, match='layers/attn/q of a phi3 model shares a tensor with others'):
        peft.save(lora.split(adapted)[0], dataclasses.replace(CFG, family='phi3'), '', tmp_path)
    with pytest.raises(ValueError, match='this policy has no adapters'):
        peft.save({'embed': None}, CFG, '', tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::FutureWarning')  # of transformers, at what peft calls
def test_peft_computes_the_same_logits_and_its_adapters_are_ours(adapted, folder, tmp_path):
    library = pytest.importorskip('peft', reason='needs the library peft')
    import torch
    from transformers import AutoModelForCausalLM

    hf.save(lora.base(adapted), CFG, tokenizer.byte_tokenizer(), tmp_path / 'base')
    peft.save(lora.split(adapted)[0], CFG, str(tmp_path / 'base'), folder)
    network = AutoModelForCausalLM.from_pretrained(tmp_path / 'base')
    network = library.PeftModel.from_pretrained(network, str(folder)).eval()
    tokens = np.random.default_rng(0).integers(0, 200, (2, 9))
    theirs = network(torch.from_numpy(tokens)).logits.detach().numpy()
    np.testing.assert_allclose(_logits(adapted, tokens), theirs, atol=1e-4)
    network.save_pretrained(tmp_path / 'theirs')
    again = peft.attach(lora.base(adapted), CFG, tmp_path / 'theirs')
    np.testing.assert_allclose(_logits(again, tokens), theirs, atol=1e-4)
    assert np.abs(_logits(lora.base(adapted), tokens) - theirs).max() > 1e-2


def _logits(tree, tokens):
    @jax.jit
    def logits(tree, tokens):
        one = jnp.ones_like(tokens)
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return decoder.unembed(tree, CFG, decoder.forward(tree, CFG, tokens, positions, one, one))

    return logits(tree, jnp.asarray(tokens, jnp.int32))
