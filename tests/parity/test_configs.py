"""What config.json leaves unsaid is what transformers' own config classes say, and what they write is read."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from pal_jax.models.config import LayerKind, LinearScaling, ModelConfig, RopeScaling
from pal_jax.models.files import families

transformers = pytest.importorskip('transformers')

CLASSES = {
    'llama': 'LlamaConfig',
    'mistral': 'MistralConfig',
    'qwen2': 'Qwen2Config',
    'qwen3': 'Qwen3Config',
    'gemma2': 'Gemma2Config',
    'gemma3_text': 'Gemma3TextConfig',
    'smollm3': 'SmolLM3Config',
    'phi3': 'Phi3Config',
}
SIZES = dict(vocab_size=264, hidden_size=64, num_hidden_layers=7, num_attention_heads=32, intermediate_size=96)
LLAMA3 = dict(rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)


def theirs(name: str, **settings: Any) -> Any:
    return getattr(transformers, CLASSES[name])(**SIZES | settings)


def ours(name: str, **settings: Any) -> ModelConfig:
    named = {'architectures': [families.FAMILIES[name].architecture], 'model_type': name}
    return families.config_from_hf(json.loads(json.dumps({**SIZES, **named, **settings})))


def as_transformers_has_it(name: str, config: Any) -> dict[str, Any]:
    """Every field of a `ModelConfig` that describes the model, from the attributes of transformers' config."""
    rope = config.rope_parameters
    full = rope.get('full_attention', rope)
    scaling = {
        'default': lambda: None,
        'linear': lambda: LinearScaling(full['factor']),
        'llama3': lambda: RopeScaling(*(full[key] for key in (*list(LLAMA3)[1:], 'original_max_position_embeddings'))),
    }[full['rope_type']]()
    windowed = getattr(config, 'layer_types', None)
    if name in ('mistral', 'phi3'):
        windowed = ['sliding_attention'] * config.num_hidden_layers
    kinds = []
    for i in range(config.num_hidden_layers):
        slides = bool(windowed) and windowed[i] == 'sliding_attention'
        rotary = 'none' if name == 'smollm3' and not config.no_rope_layers[i] else 'global'
        kinds.append(
            LayerKind(
                config.sliding_window if slides else None, 'local' if slides and name == 'gemma3_text' else rotary
            )
        )
    gemma = name.startswith('gemma')
    return {
        'family': name,
        'vocab': config.vocab_size,
        'width': config.hidden_size,
        'layers': config.num_hidden_layers,
        'heads': config.num_attention_heads,
        'kv_heads': config.num_key_value_heads,
        'head_dim': getattr(config, 'head_dim', config.hidden_size // config.num_attention_heads),
        'mlp': config.intermediate_size,
        'max_len': config.max_position_embeddings,
        'rope_theta': full['rope_theta'],
        'rope_scaling': scaling,
        'norm_eps': config.rms_norm_eps,
        'qkv_bias': name == 'qwen2',
        'tie_embed': config.tie_word_embeddings,
        'kinds': tuple(kinds),
        'rope_local_theta': rope['sliding_attention']['rope_theta'] if name == 'gemma3_text' else 10_000.0,
        'alibi': False,
        'query_scalar': getattr(config, 'query_pre_attn_scalar', None),
        'attn_softcap': getattr(config, 'attn_logit_softcapping', None),
        'final_softcap': getattr(config, 'final_logit_softcapping', None),
        'qk_norm': name in ('qwen3', 'gemma3_text'),
        'post_norms': gemma,
        'norm_offset': float(gemma),
        'activation': 'gelu_tanh' if gemma else 'silu',
        'scale_embed': gemma,
        'unit_head': False,
    }


def described(cfg: ModelConfig) -> dict[str, Any]:
    computed = {'dtype', 'act_dtype', 'unroll', 'attention', 'logit_states', 'exact', 'tile', 'remat', 'pattern'}
    found = {each.name: getattr(cfg, each.name) for each in dataclasses.fields(cfg) if each.name not in computed}
    return found | {'kinds': cfg.kinds}


SETTINGS: dict[str, dict[str, Any]] = {
    'nothing': {},
    'nulls': dict(num_key_value_heads=None, rope_parameters=None),
    'transformers 4': dict(rope_theta=123.0, rope_scaling=dict(rope_type='linear', factor=3.0)),
    'transformers 5': dict(rope_parameters=dict(rope_type='linear', factor=3.0, rope_theta=123.0)),
    'both': dict(rope_theta=99.0, rope_parameters=dict(rope_type='default', rope_theta=123.0)),
    'llama3': dict(rope_scaling=LLAMA3 | dict(original_max_position_embeddings=77), rope_theta=5e5),
    'llama3 without its length': dict(rope_parameters=LLAMA3 | dict(rope_theta=5e5), max_position_embeddings=512),
    'windows': dict(sliding_window=5, use_sliding_window=True, max_window_layers=2),
    'no window': dict(sliding_window=None),
    'old window': dict(sliding_window=5, max_window_layers=2),
    'heads': dict(head_dim=16, num_key_value_heads=2, rms_norm_eps=1e-3, tie_word_embeddings=True),
}
UNLIKE = {  # what a class does not take or ignores
    'transformers 5': ('gemma3_text', 'phi3'),
    'transformers 4': ('phi3',),
    'both': ('gemma3_text',),
    'llama3': ('phi3',),
    'llama3 without its length': ('gemma3_text', 'phi3'),
    'nulls': ('mistral', 'gemma2', 'gemma3_text'),
    'windows': ('llama', 'mistral', 'gemma2', 'gemma3_text', 'smollm3', 'phi3'),
    'old window': ('llama',),
    'no window': ('gemma2', 'gemma3_text'),
}
CASES = [(name, kind) for name in CLASSES for kind in SETTINGS if name not in UNLIKE.get(kind, ())]


@pytest.mark.parametrize(('name', 'kind'), CASES, ids=lambda x: x)
def test_every_field_is_that_of_transformers(name, kind):
    settings = SETTINGS[kind]
    config = theirs(name, **json.loads(json.dumps(settings)))
    expected = as_transformers_has_it(name, config)
    assert described(ours(name, **settings)) == expected
    written = config.to_dict() | {'architectures': [families.FAMILIES[name].architecture]}
    assert described(families.config_from_hf(json.loads(json.dumps(written)))) == expected
