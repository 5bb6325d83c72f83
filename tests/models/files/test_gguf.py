"""GGUF files written with the `gguf` package, row order included, must give back the parameters they came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import gguf as ggml
import jax
import numpy as np
import pytest

from pal_jax.models import params
from pal_jax.models.config import LayerKind, LinearScaling, ModelConfig, tiny
from pal_jax.models.files import families, gguf
from pal_jax.models.files.hf import by_path

LLAMA = dataclasses.replace(tiny(vocab=96), tie_embed=False, rope_theta=100_000.0)
QWEN2 = dataclasses.replace(tiny(vocab=96), family='qwen2', qkv_bias=True)
QWEN3 = dataclasses.replace(tiny(vocab=96), family='qwen3', qk_norm=True)
GEMMA2 = dataclasses.replace(
    tiny(vocab=96),
    family='gemma2',
    pattern=(LayerKind(8), LayerKind()),
    query_scalar=16,
    attn_softcap=50.0,
    final_softcap=30.0,
    **families.GEMMA,
)
GEMMA3 = dataclasses.replace(
    GEMMA2,
    family='gemma3_text',
    pattern=(*(LayerKind(8, 'local'),) * 5, LayerKind()),
    qk_norm=True,
    attn_softcap=None,
    final_softcap=None,
    rope_scaling=LinearScaling(8.0),
)


def interleaved(x: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's row order within each head of q and k: 0, K/2, 1, K/2 + 1, ..."""
    K = x.shape[0] // heads
    order = [row for i in range(K // 2) for row in (i, i + K // 2)]
    return np.concatenate([x[h * K : (h + 1) * K][order] for h in range(heads)])


def as_ggml(name: str, x: np.ndarray, cfg: ModelConfig) -> np.ndarray:
    """One layer of a leaf as llama.cpp stores it."""
    if name.endswith('norm.weight'):
        return x + np.float32(cfg.norm_offset)
    if name.endswith('.bias'):
        return x.reshape(-1)
    if 'attn_output' in name:
        return x.reshape(-1, cfg.width).T
    if 'blk' in name:
        x = x.reshape(x.shape[0], -1).T
    heads = {'attn_q': cfg.heads, 'attn_k': cfg.kv_heads}.get(name.split('.')[-2])
    return interleaved(x, heads) if heads and cfg.family == 'llama' else x


def write(path, cfg: ModelConfig, values, quantize: bool = False, extra: Mapping[str, int] = MappingProxyType({})):
    arch = cfg.family.removesuffix('_text')
    writer = ggml.GGUFWriter(path, arch)
    if cfg.family.startswith('gemma'):
        writer.add_sliding_window(8)
    if cfg.attn_softcap and cfg.final_softcap:
        writer.add_attn_logit_softcapping(cfg.attn_softcap)
        writer.add_final_logit_softcapping(cfg.final_softcap)
    if isinstance(cfg.rope_scaling, LinearScaling):
        writer.add_rope_scaling_type(ggml.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(cfg.rope_scaling.factor)
    writer.add_block_count(cfg.layers)
    writer.add_context_length(cfg.max_len)
    writer.add_embedding_length(cfg.width)
    writer.add_feed_forward_length(cfg.mlp)
    writer.add_head_count(cfg.heads)
    writer.add_head_count_kv(cfg.kv_heads)
    writer.add_layer_norm_rms_eps(cfg.norm_eps)
    writer.add_rope_freq_base(cfg.rope_theta)
    for key, value in extra.items():
        writer.add_uint32(f'{arch}.{key}', value)
    for path_, leaf in by_path(values).items():
        pattern = gguf.NAMES[path_]
        layers = range(cfg.layers) if '{}' in pattern else [...]
        for i in layers:
            name = pattern.format(i)
            x = np.ascontiguousarray(as_ggml(name, np.asarray(leaf)[i], cfg))
            if quantize and x.ndim == 2:
                kind = ggml.GGMLQuantizationType.Q8_0
                writer.add_tensor(name, ggml.quants.quantize(x, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_params(cfg: ModelConfig):
    """All leaves random: zero biases and norms of one would hide a mistake."""
    values = params.init(params.decoder_specs(cfg), jax.random.key(0))
    leaves, tree = jax.tree.flatten(values)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])


@pytest.mark.parametrize('cfg', [LLAMA, QWEN2, QWEN3, GEMMA2, GEMMA3], ids=lambda cfg: cfg.family)
def test_config_and_parameters_come_back(cfg, tmp_path):
    values = random_params(cfg)
    write(tmp_path / 'm.gguf', cfg, values)
    reader = gguf.open_gguf(tmp_path / 'm.gguf')
    assert gguf.config_from_gguf(reader) == cfg
    atol = 1e-6 if cfg.norm_offset else 0.0  # the offset is added to the file's norms and taken off again
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), gguf.load_params(reader, cfg), values
    )


def test_quantised_tensors_come_back_within_half_a_step(tmp_path):
    values = random_params(LLAMA)
    write(tmp_path / 'm.gguf', LLAMA, values, quantize=True)
    loaded = gguf.load_params(gguf.open_gguf(tmp_path / 'm.gguf'), LLAMA)
    step = max(float(np.abs(x).max()) for x in jax.tree.leaves(values)) / 127
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=0.51 * step), loaded, values)
    assert np.abs(loaded['layers']['attn']['q'] - values['layers']['attn']['q']).max() > 0


def test_the_head_size_may_be_stated(tmp_path):
    cfg = dataclasses.replace(LLAMA, head_dim=8)
    values = random_params(cfg)
    write(tmp_path / 'm.gguf', cfg, values, extra={'attention.key_length': 8})
    reader = gguf.open_gguf(tmp_path / 'm.gguf')
    assert gguf.config_from_gguf(reader) == cfg
    jax.tree.map(np.testing.assert_array_equal, gguf.load_params(reader, cfg), values)


def test_what_cannot_be_read_is_refused(tmp_path):
    (tmp_path / 'text.gguf').write_text('not a model, but long enough to have a header')
    with pytest.raises(ValueError, match='not a readable GGUF'):
        gguf.open_gguf(tmp_path / 'text.gguf')
    with pytest.raises(ValueError, match='no file'):
        gguf.open_gguf(tmp_path / 'none.gguf')


def test_a_damaged_count_takes_no_memory(tmp_path):
    path = tmp_path / 'm.gguf'
    writer = ggml.GGUFWriter(path, 'llama')
    writer.add_token_types([1, 2, 3])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    count = path.read_bytes().rindex((3).to_bytes(8, 'little'))
    path.write_bytes(path.read_bytes()[:count] + (2**50).to_bytes(8, 'little') + path.read_bytes()[count + 8 :])
    with pytest.raises(ValueError, match='beyond the end'):
        gguf.open_gguf(path)


@pytest.mark.parametrize(
    ('family', 'extra', 'message'),
    [
        ('mamba', {}, 'architecture mamba'),
        ('llama', {'expert_count': 8}, 'expert_count=8'),
        ('llama', {'rope.dimension_count': 8}, 'rope.dimension_count=8 .* with 16'),
        ('llama', {'attention.sliding_window': 8}, 'attention.sliding_window=8'),
        ('llama', {'attention.value_length': 8}, 'attention.value_length=8'),
        ('qwen3', {'a_key_of_tomorrow': 8}, 'qwen3.a_key_of_tomorrow=8'),
    ],
)
def test_what_the_decoder_lacks_is_refused(family, extra, message, tmp_path):
    write(tmp_path / 'm.gguf', dataclasses.replace(LLAMA, family=family), random_params(LLAMA), extra=extra)
    with pytest.raises(ValueError, match=message):
        gguf.config_from_gguf(gguf.open_gguf(tmp_path / 'm.gguf'))


def test_numbers_that_are_not_finite_are_refused_with_their_tensor(tmp_path):
    values = random_params(LLAMA)
    values['layers']['mlp']['up'] = values['layers']['mlp']['up'].at[1, 2, 3].set(np.nan)
    write(tmp_path / 'm.gguf', LLAMA, values)
    with pytest.raises(ValueError, match=r'blk\.1\.ffn_up\.weight has nan at \[3, 2\]'):
        gguf.load_params(gguf.open_gguf(tmp_path / 'm.gguf'), LLAMA)


def test_stretched_frequencies_are_refused(tmp_path):
    writer = ggml.GGUFWriter(tmp_path / 'm.gguf', 'llama')
    writer.add_tensor('rope_freqs.weight', np.ones(8, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match='rope frequencies'):
        gguf.config_from_gguf(gguf.open_gguf(tmp_path / 'm.gguf'))
