"""Names, shapes and bytes of checkpoints, on random tensors written as transformers would write them. No torch."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import re
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.models import params
from pal_jax.models.config import LayerKind, LinearScaling, ModelConfig, RopeScaling, tiny
from pal_jax.models.files import families, hf
from pal_jax.models.files.tensors import StoredTensor
from pal_jax.run.sharding import param_shardings

LLAMA = dataclasses.replace(tiny(vocab=264), tie_embed=False)
QWEN2 = dataclasses.replace(tiny(vocab=264), family='qwen2', qkv_bias=True)
# the width of the heads is not the width of the model, as in Mistral Nemo
MISTRAL = dataclasses.replace(tiny(vocab=264), family='mistral', head_dim=8, tie_embed=False)
QWEN3 = dataclasses.replace(tiny(vocab=264), family='qwen3', qk_norm=True, tie_embed=False, norm_eps=1e-6)
GEMMA2 = dataclasses.replace(
    tiny(vocab=264),
    family='gemma2',
    layers=3,
    pattern=(LayerKind(8), LayerKind()),
    query_scalar=24,
    attn_softcap=50.0,
    final_softcap=30.0,
    **families.GEMMA,
)
GEMMA3 = dataclasses.replace(
    GEMMA2,
    family='gemma3_text',
    pattern=(LayerKind(8, 'local'), LayerKind(8, 'local'), LayerKind()),
    qk_norm=True,
    attn_softcap=None,
    final_softcap=None,
    rope_scaling=LinearScaling(8.0),
    rope_theta=1e6,
    rope_local_theta=500.0,
)
SMOLLM3 = dataclasses.replace(LLAMA, family='smollm3', pattern=(LayerKind(), LayerKind(rope='none')))
PHI3 = dataclasses.replace(LLAMA, family='phi3', pattern=(LayerKind(5),))
BAICHUAN = dataclasses.replace(LLAMA, family='baichuan', kv_heads=4, unit_head=True)
BAICHUAN_13B = dataclasses.replace(BAICHUAN, alibi=True, pattern=(LayerKind(rope='none'),))
EVERY = [LLAMA, QWEN2, MISTRAL, QWEN3, GEMMA2, GEMMA3, SMOLLM3, PHI3, BAICHUAN]
CONFIGS = pytest.mark.parametrize('cfg', EVERY, ids=lambda cfg: cfg.family)


def torch_tensors(cfg: ModelConfig, dtype: str = 'float32') -> dict[str, np.ndarray]:
    """Random tensors with the names and [out, in] shapes of a torch checkpoint, spelled out by hand."""
    D, H, G, K, F = cfg.width, cfg.heads, cfg.kv_heads, cfg.head_dim, cfg.mlp
    shapes = {'model.embed_tokens.weight': (cfg.vocab, D), 'model.norm.weight': (D,)}
    if not cfg.tie_embed:
        shapes['lm_head.weight'] = (cfg.vocab, D)
    layer = {'input_layernorm.weight': (D,), 'post_attention_layernorm.weight': (D,)}
    layer |= {'self_attn.q_proj.weight': (H * K, D), 'self_attn.o_proj.weight': (D, H * K)}
    layer |= {'self_attn.k_proj.weight': (G * K, D), 'self_attn.v_proj.weight': (G * K, D)}
    layer |= {'mlp.gate_proj.weight': (F, D), 'mlp.up_proj.weight': (F, D), 'mlp.down_proj.weight': (D, F)}
    if cfg.qk_norm:
        layer |= {'self_attn.q_norm.weight': (K,), 'self_attn.k_norm.weight': (K,)}
    if cfg.post_norms:
        layer |= {'pre_feedforward_layernorm.weight': (D,), 'post_feedforward_layernorm.weight': (D,)}
    if fused := {'phi3': 'qkv_proj', 'baichuan': 'W_pack'}.get(cfg.family):
        layer = {name: shape for name, shape in layer.items() if name[10:16] not in ('q_proj', 'k_proj', 'v_proj')}
        layer[f'self_attn.{fused}.weight'] = ((H + 2 * G) * K, D)
    if cfg.family == 'phi3':
        del layer['mlp.gate_proj.weight'], layer['mlp.up_proj.weight']
        layer['mlp.gate_up_proj.weight'] = (2 * F, D)
    if cfg.qkv_bias:
        layer |= {f'self_attn.{name}_proj.bias': (n * K,) for name, n in zip('qkv', (H, G, G), strict=True)}
    shapes |= {f'model.layers.{i}.{name}': shape for i in range(cfg.layers) for name, shape in layer.items()}
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(jnp.dtype(dtype)) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path, request):
    """A folder with the tensors of `cfg` in one file."""
    cfg = request.getfixturevalue('cfg')
    save_file(torch_tensors(cfg), tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    return tmp_path


@pytest.mark.slow
@CONFIGS
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('file_bytes', [1 << 30, 100_000], ids=['one file', 'many files'])
def test_a_round_trip_keeps_every_bit(cfg, dtype, file_bytes, tmp_path):
    tensors = torch_tensors(cfg, dtype)
    save_file(tensors, tmp_path / 'model.safetensors')
    out = tmp_path / 'out'
    hf.save(hf.load_params(tmp_path, cfg, dtype=dtype), cfg, byte_tokenizer(), out, dtype, file_bytes)

    files = list(out.glob('*.safetensors'))
    assert (len(files) > 1) == (file_bytes < 1 << 30)
    written = {name: x for file in files for name, x in load_file(file).items()}
    assert written.keys() == tensors.keys()
    for name, x in tensors.items():
        assert written[name].dtype == x.dtype and written[name].tobytes() == x.tobytes(), name
    again = hf.load_params(out, hf.read_config(out), dtype=dtype)
    jax.tree.map(np.testing.assert_array_equal, again, hf.load_params(tmp_path, cfg, dtype=dtype))


@CONFIGS
def test_the_tree_is_that_of_the_specs(cfg, folder):
    loaded = hf.load_params(folder, cfg)
    expected = params.abstract(params.decoder_specs(cfg))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), loaded) == jax.tree.map(lambda x: (x.shape, x.dtype), expected)


@pytest.mark.parametrize('cfg', [QWEN2])
def test_leaves_are_the_transposes_of_torchs(cfg, folder):
    loaded, tensors = hf.by_path(hf.load_params(folder, cfg)), torch_tensors(cfg)
    x = np.random.default_rng(1).standard_normal(cfg.width).astype(np.float32)
    q = np.einsum('d,dhk->hk', x, loaded['layers/attn/q'][1]) + loaded['layers/attn/q_bias'][1]
    attn = 'model.layers.1.self_attn.'
    np.testing.assert_allclose(
        q.ravel(), tensors[f'{attn}q_proj.weight'] @ x + tensors[f'{attn}q_proj.bias'], rtol=1e-4, atol=1e-4
    )
    heads = x.reshape(cfg.heads, cfg.head_dim)
    out = np.einsum('hk,hkd->d', heads, loaded['layers/attn/o'][0])
    expected = tensors['model.layers.0.self_attn.o_proj.weight'] @ x
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('cfg', [LLAMA])
def test_leaves_go_where_the_shardings_say(cfg, folder):
    mesh = Mesh(np.array(jax.devices()).reshape(1, -1, 1), ('data', 'fsdp', 'tensor'))
    places = param_shardings(params.decoder_specs(cfg), mesh)
    loaded = hf.load_params(folder, cfg, places)
    jax.tree.map(lambda x, place: x.sharding.is_equivalent_to(place, x.ndim) or pytest.fail(str(place)), loaded, places)
    jax.tree.map(np.testing.assert_array_equal, loaded, hf.load_params(folder, cfg))


@pytest.mark.parametrize('cfg', [LLAMA])
def test_no_more_of_a_tensor_is_read_than_its_devices_hold(cfg, folder, monkeypatch):
    places = param_shardings(
        params.decoder_specs(cfg), Mesh(np.array(jax.devices()).reshape(2, 2, 2), ('data', 'fsdp', 'tensor'))
    )
    read: list[int] = []
    cut = StoredTensor.__getitem__

    def counted(stored, index):
        part = cut(stored, index)
        read.append(part.nbytes)
        return part

    monkeypatch.setattr(StoredTensor, '__getitem__', counted)
    loaded = hf.load_params(folder, cfg, places)
    matrices = [leaf for leaf in jax.tree.leaves(loaded['layers']) if leaf.ndim > 2]
    assert max(read) <= max(x.nbytes // 2 for x in jax.tree.leaves((loaded['embed'], loaded.get('unembed'))))
    assert min(read) < min(leaf[0].nbytes for leaf in matrices)
    assert sum(read) == sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))  # replicas of a part share one reading


@contextlib.contextmanager
def peak_of_anonymous_memory():
    """The most bytes that were held beyond those at the start, sampled all the time; a list of one at the end."""
    status, done, peak = Path('/proc/self/status'), threading.Event(), [0]

    def held():
        return 1024 * int(re.search(r'RssAnon:\s+(\d+)', status.read_text())[1])

    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], held() - start)

    start = held()
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='reads the memory of the process from /proc')
def test_loading_holds_little_beside_the_model(tmp_path):
    cfg = dataclasses.replace(LLAMA, vocab=16_000, width=1024, mlp=4096, layers=6, head_dim=256)
    values = params.init(params.decoder_specs(cfg), jax.random.key(0))
    hf.save(values, cfg, byte_tokenizer(), tmp_path, file_bytes=100 << 20)
    largest = max(path.stat().st_size for path in tmp_path.glob('*.safetensors'))
    del values
    gc.collect()
    mesh = Mesh(np.array(jax.devices()).reshape(1, 4, 2), ('data', 'fsdp', 'tensor'))
    with peak_of_anonymous_memory() as peak:
        loaded = jax.block_until_ready(hf.load_params(tmp_path, cfg, param_shardings(params.decoder_specs(cfg), mesh)))
    model = sum(shard.data.nbytes for leaf in jax.tree.leaves(loaded) for shard in leaf.addressable_shards)
    assert len(list(tmp_path.glob('*.safetensors'))) >= 4
    assert peak[0] - model < 1.3 * largest, (peak[0] / 2**20, model / 2**20, largest / 2**20)


@pytest.mark.parametrize('cfg', [LLAMA])
def test_wrong_tensors_are_named(cfg, folder):
    with pytest.raises(ValueError, match=r'has no model\.layers\.2\.input_layernorm\.weight.*9 in all'):
        hf.load_params(folder, dataclasses.replace(cfg, layers=3))
    with pytest.raises(ValueError, match=r'unexpected model\.layers\.1\.'):
        hf.load_params(folder, dataclasses.replace(cfg, layers=1))
    with pytest.raises(ValueError, match=r'gate_proj\.weight has shape \(128, 64\), the config says \(96, 64\)'):
        hf.load_params(folder, dataclasses.replace(cfg, mlp=96))
    with pytest.raises(ValueError, match='no model.safetensors'):
        hf.load_params(folder / 'nowhere', cfg)


@pytest.mark.parametrize('cfg', [PHI3])
def test_a_fused_tensor_holds_its_leaves_below_each_other(cfg, folder):
    loaded, tensors = hf.by_path(hf.load_params(folder, cfg)), torch_tensors(cfg)
    x = np.random.default_rng(1).standard_normal(cfg.width).astype(np.float32)
    for fused, parts in {
        'self_attn.qkv_proj': ('attn/q', 'attn/k', 'attn/v'),
        'mlp.gate_up_proj': ('mlp/gate', 'mlp/up'),
    }.items():
        outs = [np.tensordot(x, loaded[f'layers/{part}'][1], 1).ravel() for part in parts]
        np.testing.assert_allclose(
            np.concatenate(outs), tensors[f'model.layers.1.{fused}.weight'] @ x, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize('cfg', [LLAMA])
def test_a_broken_file_is_named(cfg, folder):
    path = folder / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r'model\.safetensors cannot be read .*download it again'):
        hf.load_params(folder, cfg)
    path.unlink()
    index = {'weight_map': dict.fromkeys(torch_tensors(cfg), 'model-00001-of-00002.safetensors')}
    (folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    with pytest.raises(ValueError, match='model-00001-of-00002'):
        hf.load_params(folder, cfg)


@pytest.mark.parametrize('cfg', [LLAMA])
def test_a_tied_config_lets_a_written_output_matrix_lie_that_is_its_embeddings(cfg, folder):
    tied = dataclasses.replace(cfg, tie_embed=True)
    with pytest.raises(ValueError, match=r'lm_head\.weight.*tie_word_embeddings'):  # transformers 5 computes with it
        hf.load_params(folder, tied)
    stored = load_file(path := folder / 'model.safetensors')
    save_file({**stored, 'lm_head.weight': stored['model.embed_tokens.weight']}, path, metadata={'format': 'pt'})
    assert 'unembed' not in hf.load_params(folder, tied)


def test_an_export_replaces_nothing(tmp_path):
    tok, cfg = byte_tokenizer(), LLAMA
    values = params.init(params.decoder_specs(cfg), jax.random.key(0))
    out = tmp_path / 'deep' / 'model'
    hf.save(values, cfg, tok, out)
    with pytest.raises(ValueError, match='exists and holds'):
        hf.save(jax.tree.map(jnp.zeros_like, values), cfg, tok, out)
    assert load_file(out / 'model.safetensors')['lm_head.weight'].any()
    assert [path.name for path in out.parent.iterdir()] == ['model']
    assert len({path.stat().st_mode for path in out.iterdir()}) == 1
    with safe_open(out / 'model.safetensors', 'numpy') as f:
        assert f.metadata() == {'format': 'pt'}
    (tmp_path / 'thesis.txt').write_text('precious')
    with pytest.raises(ValueError, match='exists and holds'):
        hf.save(values, cfg, tok, tmp_path)
    assert (tmp_path / 'thesis.txt').exists()


def test_generation_stops_where_the_tokenizer_says(tmp_path):
    tok = byte_tokenizer()
    hf.save(params.init(params.decoder_specs(QWEN2), jax.random.key(0)), QWEN2, tok, tmp_path / 'model')
    generation = json.loads((tmp_path / 'model' / 'generation_config.json').read_text())
    assert tuple(generation['eos_token_id']) == tok.stop_ids
    assert generation['pad_token_id'] == tok.pad_id


@pytest.mark.parametrize(
    'cfg',
    [
        *(*EVERY, BAICHUAN_13B),
        dataclasses.replace(MISTRAL, pattern=(LayerKind(4096),)),
        dataclasses.replace(QWEN2, layers=4, pattern=(LayerKind(), LayerKind(), LayerKind(64), LayerKind(64))),
        dataclasses.replace(LLAMA, rope_theta=5e5, rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192), norm_eps=1e-6),
    ],
    ids=[*(cfg.family for cfg in EVERY), 'baichuan-13B', 'mistral-window', 'qwen2-window', 'llama3'],
)
def test_config_round_trip(cfg):
    assert families.config_from_hf(json.loads(json.dumps(families.config_to_hf(cfg, byte_tokenizer())))) == cfg


def test_transformers_5_rope_is_read():
    config = families.config_to_hf(LLAMA, byte_tokenizer())
    del config['rope_theta'], config['rope_scaling']
    config['rope_parameters'] = {'rope_type': 'default', 'rope_theta': 123.0}
    assert families.config_from_hf(config).rope_theta == 123.0


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'architectures': ['MambaForCausalLM']}, 'MambaForCausalLM is not supported; use one of LlamaForCausalLM'),
        ({'architectures': None}, 'architecture none'),
        ({'hidden_act': 'gelu'}, 'hidden_act=gelu'),
        ({'attention_bias': True}, 'attention_bias=True'),
        ({'mlp_bias': True}, 'mlp_bias=True'),
        ({'quantization_config': {'quant_method': 'fp8'}}, 'quantization_config'),
        ({'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}}, 'rope_type=yarn'),
        ({'rope_scaling': {'rope_type': 'longrope', 'factor': 4.0}}, 'rope_type=longrope'),
        ({'architectures': ['Phi3ForCausalLM'], 'partial_rotary_factor': 0.75}, 'partial_rotary_factor=0.75'),
        ({'architectures': ['BaichuanForCausalLM'], 'vocab_size': 64_000}, 'use Baichuan 2'),
        ({'architectures': ['Qwen3ForCausalLM'], 'attention_bias': True}, 'Qwen3ForCausalLM with attention_bias=True'),
        (
            {'architectures': ['Gemma2ForCausalLM'], 'sliding_window': 8, 'layer_types': ['chunked_attention']},
            'layer_types with chunked_attention',
        ),
        ({'architectures': ['Gemma2ForCausalLM'], 'query_pre_attn_scalar': None}, 'no query_pre_attn_scalar'),
    ],
)
def test_what_the_decoder_lacks_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        families.config_from_hf(families.config_to_hf(LLAMA, byte_tokenizer()) | change)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'rope_scaling': {'rope_type': 'linear'}}, 'factor=None'),
        ({'rope_scaling': {'type': 'llama3', 'factor': 8.0}}, 'low_freq_factor=None'),
        ({'rope_scaling': {'factor': 4.0}}, 'factor=4.0 and rope_type=default'),
        ({'rope_scaling': {'rope_type': 'linear', 'factor': '4'}}, "factor='4'"),
        ({'rope_scaling': 'linear'}, "rope_scaling='linear'"),
        ({'rope_theta': None}, 'rope_theta=None'),
        ({'rope_parameters': {'rope_type': 'yarn', 'factor': 4.0}}, 'rope_type=yarn'),
        ({'rope_parameters': {'rope_type': 'default', 'partial_rotary_factor': 0.5}}, 'partial_rotary_factor=0.5'),
        ({'rope_parameters': {'full_attention': {'rope_theta': 1e6}}}, 'full_attention='),
        ({'rope_parameters': {'mrope_section': [1, 2]}}, r'mrope_section=\[1, 2\]'),
        ({'embedding_multiplier': 12.0}, 'embedding_multiplier=12.0'),
        ({'residual_multiplier': 0.22}, 'residual_multiplier=0.22'),
        ({'attention_multiplier': 0.5}, 'attention_multiplier=0.5'),
        ({'num_experts': 8}, 'num_experts=8'),
        ({'is_encoder_decoder': True}, 'is_encoder_decoder=True'),
        ({'sliding_window': 8}, 'sliding_window=8'),
        ({'text_config': {'hidden_size': 8}}, 'text_config='),
        ({'model_type': 'granite'}, 'model_type=granite'),
        ({'num_key_value_heads': 3}, 'num_key_value_heads=3'),
        ({'num_hidden_layers': '2'}, "num_hidden_layers='2'"),
        ({'rms_norm_eps': 0}, 'rms_norm_eps=0'),
    ],
)
def test_a_key_that_would_change_the_result_is_refused_by_its_name(change, message):
    with pytest.raises(ValueError, match=message):
        families.config_from_hf(families.config_to_hf(LLAMA, byte_tokenizer()) | change)


@pytest.mark.parametrize(
    ('cfg', 'change', 'message'),
    [
        (MISTRAL, {'sliding_window': 0}, 'sliding_window=0'),
        (QWEN2, {'layer_types': ['sliding_attention'] * 2}, 'no sliding_window is used'),
        (QWEN2, {'layer_types': ['full_attention']}, 'layer_types=.* each of 2 layers'),
        (QWEN3, {'head_dim': -1}, 'head_dim=-1'),
        (GEMMA2, {'sliding_window': None}, 'no sliding_window'),
        (GEMMA2, {'use_bidirectional_attention': True}, 'use_bidirectional_attention=True'),
        (GEMMA3, {'rope_parameters': {'rope_type': 'default'}}, 'rope_parameters with rope_type'),
        (GEMMA3, {'rope_parameters': {'sliding_attention': {'rope_type': 'linear', 'factor': 2.0}}}, 'windowed layers'),
        (SMOLLM3, {'no_rope_layers': [1]}, 'no_rope_layers='),
        (SMOLLM3, {'layer_types': ['sliding_attention', 'full_attention']}, 'no sliding_window is used'),
        (PHI3, {'rope_scaling': {'type': 'longrope', 'short_factor': [1.0], 'long_factor': [2.0]}}, 'longrope'),
    ],
)
def test_a_key_of_a_family_is_refused_by_its_name(cfg, change, message):
    with pytest.raises(ValueError, match=message):
        families.config_from_hf(families.config_to_hf(cfg, byte_tokenizer()) | change)


def test_keys_of_no_consequence_do_not_matter():
    idle = {
        'pretraining_tp': 2, 'attention_dropout': 0.1, 'auto_map': {'AutoConfig': 'a.B'}, 'use_cache': False,
        'transformers_version': '4.40.2', 'dtype': 'bfloat16', 'residual_multiplier': 1.0, 'is_llama_config': True,
        'partial_rotary_factor': 1, 'quantization_config': None, 'a_key_of_tomorrow': False, 'rope_interleaved': False,
        'eos_token_id': [1, 2], 'transformers.js_config': {'dtype': 'fp16'}, 'attention_bias': None,
    }  # fmt: skip
    assert families.config_from_hf(families.config_to_hf(LLAMA, byte_tokenizer()) | idle) == LLAMA


def test_a_config_that_is_no_json_is_named(tmp_path):
    (tmp_path / 'config.json').write_text('{"architectures": ')
    with pytest.raises(ValueError, match=r'config\.json, line 1: not valid JSON'):
        hf.read_config(tmp_path)
    (tmp_path / 'config.json').write_text('[]')
    with pytest.raises(ValueError, match=r'config\.json must hold a JSON object'):
        hf.read_config(tmp_path)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
@pytest.mark.parametrize('value', [np.nan, -np.inf])
def test_numbers_that_are_not_finite_are_refused_with_their_tensor(dtype, value, tmp_path):
    tensors, name = torch_tensors(LLAMA, dtype), 'model.layers.1.self_attn.k_proj.weight'
    tensors[name][5, 7] = value
    save_file(tensors, tmp_path / 'model.safetensors')
    with pytest.raises(ValueError, match=rf'{name} has -?(nan|inf) at \[5, 7\]'):
        hf.load_params(tmp_path, LLAMA)


def test_a_missing_field_is_named():
    config = families.config_to_hf(LLAMA, byte_tokenizer())
    del config['hidden_size']
    with pytest.raises(ValueError, match='no hidden_size'):
        families.config_from_hf(config)
