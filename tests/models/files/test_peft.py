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
from pal_jax.models import config, decoder, lora, params
from pal_jax.models.files import hf, peft, sources

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


def edit(folder, **settings):
    path = folder / peft.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


# What peft 0.21 writes of an option that is not used, and what versions before it did.
UNUSED = {
    'alora_invocation_tokens': None, 'arrow_config': None, 'auto_mapping': None, 'corda_config': None,
    'ensure_weight_tying': False, 'eva_config': None, 'exclude_modules': None, 'init_lora_weights': True,
    'kasa_config': None, 'layer_replication': None, 'layers_pattern': None, 'layers_to_transform': None,
    'loftq_config': {}, 'lora_ga_config': None, 'megatron_config': None, 'megatron_core': 'megatron.core',
    'monteclora_config': None, 'peft_version': '0.21.2', 'qalora_group_size': 16, 'revision': None,
    'target_parameters': None, 'trainable_token_indices': None, 'use_bdlora': None, 'use_qalora': False,
    'use_rslora': False, 'velora_config': None, 'merge_weights': False, 'enable_lora': None,
    'an_option_of_tomorrow': False,
}  # fmt: skip


@pytest.mark.parametrize(
    'settings',
    [
        UNUSED,
        {'init_lora_weights': False},
        {'init_lora_weights': 'gaussian'},
        {'init_lora_weights': 'eva', 'eva_config': {'rho': 2.0}},
        {'init_lora_weights': 'orthogonal'},
        {'task_type': None, 'revision': 'main', 'lora_dropout': 0.3, 'auto_mapping': {'parent_library': 'a.b'}},
        {'target_modules': r'.*\.(q_proj|o_proj|down_proj)', 'target_parameters': []},
        {'target_modules': ['self_attn.q_proj', 'self_attn.o_proj', 'down_proj', 'fc_in']},
        {'target_modules': ['q_proj', 'o_proj', 'down_proj', 'lm_head'], 'exclude_modules': ['lm_head']},
        {'layers_to_transform': [0, 1], 'layers_pattern': 'layers'},
    ],
    ids=lambda settings: ','.join(settings)[:30],
)
def test_options_that_change_nothing_change_nothing(adapted, folder, settings):
    edit(folder, **settings)
    again = peft.attach(lora.base(adapted), CFG, folder)
    jax.tree.map(np.testing.assert_array_equal, lora.split(again)[0], lora.split(adapted)[0])


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('peft_type', 'LOHA'),
        ('task_type', 'SEQ_CLS'),
        *(
            ('init_lora_weights', kind)
            for kind in ('pissa', 'pissa_niter_4', 'olora', 'corda', 'loftq', 'lora_ga', 'x')
        ),
        ('alora_invocation_tokens', [1, 2]),
        ('use_dora', True),
        ('lora_bias', True),
        ('bias', 'all'),
        ('fan_in_fan_out', True),
        ('rank_pattern', {'q_proj': 8}),
        ('alpha_pattern', {'q_proj': 8}),
        ('modules_to_save', ['lm_head']),
        ('target_parameters', ['mlp.experts']),
        ('trainable_token_indices', [3]),
        ('layer_replication', [[0, 1], [0, 1]]),
        ('use_qalora', True),
        ('use_bdlora', {'nblocks': 2}),
        ('arrow_config', {'top_k': 3}),
        ('kasa_config', {'beta': 1}),
        ('monteclora_config', {'num_samples': 8}),
        ('megatron_config', {'a': 1}),
        ('revision', 'v2'),
        ('an_option_of_tomorrow', 16),
        ('r', 0),
        ('r', None),
        ('lora_alpha', 'much'),
        ('target_modules', 7),
        ('target_modules', '(q_proj'),
    ],
)
def test_an_option_that_is_not_computed_is_refused_by_its_name(adapted, folder, key, value):
    edit(folder, **{key: value})
    with pytest.raises(ValueError, match=rf'adapter_config.json has (a pattern|{key}=)'):
        peft.attach(lora.base(adapted), CFG, folder)


def test_tensors_and_targets_have_to_agree(adapted, folder):
    base, name = lora.base(adapted), 'model.layers.0.mlp.down_proj.lora_A.weight'
    for settings in ({'target_modules': ['q_proj', 'o_proj']}, {'exclude_modules': r'.*down_proj'}):
        edit(folder, **{'target_modules': ['q_proj', 'o_proj', 'down_proj'], **settings})
        with pytest.raises(ValueError, match=f'{name}, which target_modules'):
            peft.attach(base, CFG, folder)
    edit(folder, exclude_modules=None, target_modules='all-linear')
    with pytest.raises(ValueError, match=r'has no .*k_proj\.lora_A'):
        peft.attach(base, CFG, folder)
    edit(folder, target_modules=['q_proj', 'o_proj', 'down_proj'], r=8)
    with pytest.raises(ValueError, match='of rank 4 on layers/attn/q, its adapter_config.json r=8'):
        peft.attach(base, CFG, folder)


def test_layers_without_an_adapter_stay_as_they_are(adapted, folder):
    tensors = load_file(folder / peft.TENSORS)
    save_file({name: x for name, x in tensors.items() if '.layers.1.' in name}, folder / peft.TENSORS)
    edit(folder, layers_to_transform=1)
    merged, base = peft.load_merged(lora.base(adapted), CFG, folder), lora.base(adapted)
    q = merged['layers']['attn']['q']
    np.testing.assert_array_equal(q[0], base['layers']['attn']['q'][0])
    np.testing.assert_allclose(q[1], lora.merge(adapted)['layers']['attn']['q'][1], rtol=1e-6)


def test_numbers_that_are_not_finite_are_refused_with_their_tensor(adapted, folder):
    tensors, name = load_file(folder / peft.TENSORS), 'base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight'
    tensors[name][3, 1] = np.inf
    save_file(tensors, folder / peft.TENSORS)
    with pytest.raises(ValueError, match=f'{name} of .* has inf'):
        peft.attach(lora.base(adapted), CFG, folder)


def test_pickled_tensors_are_not_read(adapted, folder):
    (folder / peft.TENSORS).rename(folder / 'adapter_model.bin')
    with pytest.raises(ValueError, match=r'adapter_model\.bin is not read.*save the adapter as safetensors'):
        peft.attach(lora.base(adapted), CFG, folder)


def test_a_tokenizer_and_a_template_in_the_folder_stand_before_the_base_s(folder):
    chat, base = [{'role': 'user', 'content': 'a'}], tokenizer.byte_tokenizer()
    assert sources.resolve(f'peft:{folder}').tokenizer().chat(chat) == base.chat(chat)
    (folder / 'chat_template.jinja').write_text('{{ messages[0].content }}!')
    assert sources.resolve(f'peft:{folder}').tokenizer().chat(chat) == base.encode('a!')
    fast = base.with_template('{{ messages[0].content }}?').fast
    fast.eos_token = '<|endoftext|>'
    (folder / 'chat_template.jinja').unlink()
    tokenizer.Tokenizer(fast).save(folder)
    found = sources.resolve(f'peft:{folder}').tokenizer()
    assert found.chat(chat) == base.encode('a?')
    assert found.stop_ids[0] == base.encode('<|endoftext|>')[0]
    assert {*base.stop_ids} <= {*found.stop_ids}
    (folder / 'tokenizer.json').unlink()
    with pytest.raises(ValueError, match=r'no tokenizer\.json in'):
        sources.resolve(f'peft:{folder}').tokenizer()


def test_a_base_that_is_not_named_is_asked_for(folder):
    edit(folder, base_model_name_or_path=None)
    with pytest.raises(ValueError, match='does not name its base model; set base_model_name_or_path'):
        sources.resolve(f'peft:{folder}')


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', [True, False, 'gaussian', 'eva', 'orthogonal', 'mica', 'olora', 'pissa'])
def test_what_peft_loads_of_a_kind_of_beginning_is_ours_or_refused(adapted, tmp_path, kind):
    """Those that are refused have another base in peft once they are loaded."""
    library = pytest.importorskip('peft', reason='needs the library peft')
    import torch
    from transformers import AutoModelForCausalLM

    base = lora.base(adapted)
    hf.save(base, CFG, tokenizer.byte_tokenizer(), tmp_path / 'base')
    network = AutoModelForCausalLM.from_pretrained(tmp_path / 'base')
    settings = library.LoraConfig(r=4, target_modules=['q_proj', 'down_proj'], init_lora_weights=kind)
    network = library.get_peft_model(network, settings)
    torch.manual_seed(0)
    for name, x in network.named_parameters():
        if 'lora_' in name:
            x.data += 0.05 * torch.randn_like(x)
    network.save_pretrained(tmp_path / 'adapter')
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / 'base')
    loaded = library.PeftModel.from_pretrained(loaded, str(tmp_path / 'adapter')).eval()
    tokens = np.random.default_rng(0).integers(0, 200, (2, 9))
    theirs = loaded(torch.from_numpy(tokens)).logits.detach().numpy()
    refused = kind in ('olora', 'pissa')
    if refused:
        with pytest.raises(ValueError, match=f"init_lora_weights='{kind}'"):
            peft.attach(base, CFG, tmp_path / 'adapter')
        edit(tmp_path / 'adapter', init_lora_weights=True)
    difference = np.abs(_logits(peft.attach(base, CFG, tmp_path / 'adapter'), tokens) - theirs).max()
    assert difference > 1e-2 if refused else difference < 1e-4


@pytest.mark.slow
def test_every_option_of_the_installed_peft_is_known_at_its_default(adapted, folder):
    library = pytest.importorskip('peft', reason='needs the library peft')
    defaults = json.loads(json.dumps(library.LoraConfig().to_dict(), default=str))
    idle = {'peft_type', 'task_type', 'base_model_name_or_path', 'r', 'lora_alpha', 'target_modules'}
    edit(folder, **{key: value for key, value in defaults.items() if key not in idle})
    again = peft.attach(lora.base(adapted), CFG, folder)
    jax.tree.map(np.testing.assert_array_equal, lora.split(again)[0], lora.split(adapted)[0])


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::FutureWarning')  # of transformers, at what peft calls
def test_peft_computes_the_same_logits_and_its_adapters_are_ours(adapted, tmp_path):
    library = pytest.importorskip('peft', reason='needs the library peft')
    import torch
    from transformers import AutoModelForCausalLM

    hf.save(lora.base(adapted), CFG, tokenizer.byte_tokenizer(), tmp_path / 'base')
    peft.save(lora.split(adapted)[0], CFG, str(tmp_path / 'base'), tmp_path / 'ours')
    network = AutoModelForCausalLM.from_pretrained(tmp_path / 'base')
    network = library.PeftModel.from_pretrained(network, str(tmp_path / 'ours')).eval()
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
