"""Families of models as rows of data, and config.json <-> `ModelConfig`.

A row has the names of a family's tensors, the fields that all its models share, and the functions that read and write
its other fields of config.json. The decoder knows no families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.models.config import LayerKind, LinearScaling, ModelConfig, RopeScaling, shortest_pattern
from pal_jax.models.files import fields
from pal_jax.models.files.fields import Config

Names = Mapping[str, str]  # path of a leaf -> name of a tensor, with {} for the layer

LLAMA: Names = {
    'embed': 'model.embed_tokens.weight',
    'unembed': 'lm_head.weight',
    'final_norm': 'model.norm.weight',
    'layers/norm/attn': 'model.layers.{}.input_layernorm.weight',
    'layers/norm/mlp': 'model.layers.{}.post_attention_layernorm.weight',
    'layers/attn/q': 'model.layers.{}.self_attn.q_proj.weight',
    'layers/attn/k': 'model.layers.{}.self_attn.k_proj.weight',
    'layers/attn/v': 'model.layers.{}.self_attn.v_proj.weight',
    'layers/attn/o': 'model.layers.{}.self_attn.o_proj.weight',
    'layers/mlp/gate': 'model.layers.{}.mlp.gate_proj.weight',
    'layers/mlp/up': 'model.layers.{}.mlp.up_proj.weight',
    'layers/mlp/down': 'model.layers.{}.mlp.down_proj.weight',
}
QWEN2: Names = {
    **LLAMA,
    'layers/attn/q_bias': 'model.layers.{}.self_attn.q_proj.bias',
    'layers/attn/k_bias': 'model.layers.{}.self_attn.k_proj.bias',
    'layers/attn/v_bias': 'model.layers.{}.self_attn.v_proj.bias',
}
QK_NORMS: Names = {
    'layers/attn/q_norm': 'model.layers.{}.self_attn.q_norm.weight',
    'layers/attn/k_norm': 'model.layers.{}.self_attn.k_norm.weight',
}
GEMMA2: Names = {
    **LLAMA,
    'layers/norm/attn_out': 'model.layers.{}.post_attention_layernorm.weight',
    'layers/norm/mlp': 'model.layers.{}.pre_feedforward_layernorm.weight',
    'layers/norm/mlp_out': 'model.layers.{}.post_feedforward_layernorm.weight',
}
# Leaves with the same name are one tensor, in which their outputs follow each other in this order.
BAICHUAN: Names = LLAMA | {f'layers/attn/{x}': 'model.layers.{}.self_attn.W_pack.weight' for x in 'qkv'}
PHI3: Names = {
    **LLAMA,
    **{f'layers/attn/{x}': 'model.layers.{}.self_attn.qkv_proj.weight' for x in 'qkv'},
    **{f'layers/mlp/{x}': 'model.layers.{}.mlp.gate_up_proj.weight' for x in ('gate', 'up')},
}


# --- fields that a family has in a form of its own ------------------------------------------------------------------

FULL, SLIDING = 'full_attention', 'sliding_attention'


def _pattern(
    config: Config, slides: Callable[[int], bool], window: int | None, local: LayerKind | None = None
) -> tuple[LayerKind, ...]:
    """The pattern of layers that see all tokens or a window, by `layer_types` or else by `slides(layer)`."""
    layers = range(fields.size(config, 'num_hidden_layers'))
    if unknown := sorted({*map(str, config.get('layer_types') or ())} - {FULL, SLIDING}):
        raise ValueError(f'layer_types with {unknown[0]} is not supported; use a model with {FULL} and {SLIDING} only')
    types = fields.by_layer(config, 'layer_types', [SLIDING if slides(i) else FULL for i in layers])
    if SLIDING in types and window is None and local is None:
        raise ValueError(f'layer_types with {SLIDING}, but no sliding_window is used; correct config.json')
    kinds = {FULL: LayerKind(), SLIDING: local or LayerKind(window)}
    return shortest_pattern([kinds[kind] for kind in types])


def _windows(cfg: ModelConfig) -> dict[str, Any]:
    windows = [kind.window for kind in cfg.kinds]
    return {
        'sliding_window': next((window for window in windows if window), None),
        'layer_types': [SLIDING if window else FULL for window in windows],
    }


def _read_mistral(config: Config) -> dict[str, Any]:
    return {'pattern': (LayerKind(fields.window(config)),)}


def _write_mistral(cfg: ModelConfig) -> dict[str, Any]:
    return {'sliding_window': cfg.pattern[0].window}


def _read_qwen(config: Config) -> dict[str, Any]:
    window = fields.window(config) if config.get('use_sliding_window') else None
    # Qwen's first layers see all tokens, and the others a window.
    full = fields.size(config, 'max_window_layers', least=0)
    return {'pattern': _pattern(config, lambda i: window is not None and i >= full, window)}


def _write_qwen(cfg: ModelConfig) -> dict[str, Any]:
    windows = _windows(cfg)
    slides = SLIDING in windows['layer_types']
    first = windows['layer_types'].index(SLIDING) if slides else cfg.layers
    return {**windows, 'use_sliding_window': slides, 'max_window_layers': first}


def _read_gemma2(config: Config) -> dict[str, Any]:
    return {
        'pattern': _pattern(config, lambda i: i % 2 == 0, fields.size(config, 'sliding_window')),
        'query_scalar': fields.number(config, 'query_pre_attn_scalar'),
        'attn_softcap': fields.maybe_number(config, 'attn_logit_softcapping'),
        'final_softcap': fields.maybe_number(config, 'final_logit_softcapping'),
    }


def _read_gemma3(config: Config) -> dict[str, Any]:
    """The fields of Gemma 3, whose layers with a window have rotary settings of their own."""
    rope = dict(fields.mapping(fields.mapping(config, 'rope_parameters'), SLIDING))
    theta, scaling = fields.rotary({'rope_theta': config.get('rope_local_base_freq', 10_000.0)} | rope, config)
    if scaling:
        raise ValueError('rope_type of windowed layers is not supported unless default; use a model with default there')
    # Every sixth layer sees all tokens unless the config says otherwise.
    every = config.get('sliding_window_pattern', config.get('_sliding_window_pattern')) or 6
    local = LayerKind(fields.size(config, 'sliding_window'), 'local')
    return {
        'pattern': _pattern(config, lambda i: (i + 1) % every != 0, None, local),
        'rope_local_theta': theta,
        'query_scalar': fields.number(config, 'query_pre_attn_scalar'),
        'final_softcap': fields.maybe_number(config, 'final_logit_softcapping'),
    }


def _write_gemma2(cfg: ModelConfig) -> dict[str, Any]:
    return {
        **_windows(cfg),
        'query_pre_attn_scalar': cfg.query_scalar,
        'attn_logit_softcapping': cfg.attn_softcap,
        'final_logit_softcapping': cfg.final_softcap,
    }


def _write_gemma3(cfg: ModelConfig) -> dict[str, Any]:
    return {**_write_gemma2(cfg), 'rope_local_base_freq': cfg.rope_local_theta}


def _read_smollm3(config: Config) -> dict[str, Any]:
    """The fields of SmolLM3, whose `no_rope_layers` has a 1 for every layer with rotary positions."""
    # No layer has a window.
    _pattern(config, lambda i: False, None)
    layers, every = range(fields.size(config, 'num_hidden_layers')), fields.size(config, 'no_rope_layer_interval')
    rotary = fields.by_layer(config, 'no_rope_layers', [(i + 1) % every for i in layers])
    return {'pattern': shortest_pattern([LayerKind() if on else LayerKind(rope='none') for on in rotary])}


def _write_smollm3(cfg: ModelConfig) -> dict[str, Any]:
    return {'no_rope_layers': [int(kind.rope != 'none') for kind in cfg.kinds]}


def _read_baichuan(config: Config) -> dict[str, Any]:
    """The fields of Baichuan 2."""
    if config['vocab_size'] == 64_000:
        raise ValueError('vocab_size=64000 is the first Baichuan, which is not supported; use Baichuan 2')
    # The config of 13B, whose scores fall with distance, has `model_max_length` in place of `max_position_embeddings`.
    if config.get('max_position_embeddings') is not None:
        return {}
    return {'alibi': True, 'pattern': (LayerKind(rope='none'),)}


def _write_baichuan(cfg: ModelConfig) -> dict[str, Any]:
    lengths = {'max_position_embeddings': None if cfg.alibi else cfg.max_len, 'model_max_length': cfg.max_len}
    return {**lengths, 'z_loss_weight': 0}


# --- the table ------------------------------------------------------------------------------------------------------


class ModelFamily(NamedTuple):
    """A row of the table of families.

    architecture: the name of the class in transformers.
    names: the tensors' names by the path of their leaf.
    fixed: the fields of config.json, with their only value, that the decoder takes for granted. They are checked on
      reading and written out.
    traits: the fields of `ModelConfig` that all models of the family share.
    defaults: the values of fields that config.json leaves out, as in transformers. With Llama's they name all keys that
      are read.
    read: finds the fields of `ModelConfig` that config.json has in another form than Llama's.
    write: the inverse of `read`.
    """

    architecture: str
    names: Names
    fixed: Config
    traits: Mapping[str, Any] = MappingProxyType({})
    defaults: Config = MappingProxyType({})
    read: Callable[[Config], dict[str, Any]] = lambda config: {}
    write: Callable[[ModelConfig], dict[str, Any]] = lambda cfg: {}


SILU: Config = {'hidden_act': 'silu'}
NO_BIAS: Config = {'hidden_act': 'silu', 'attention_bias': False, 'mlp_bias': False}
GEMMA: Mapping[str, Any] = {'scale_embed': True, 'norm_offset': 1.0, 'post_norms': True, 'activation': 'gelu_tanh'}
GEMMA_FIXED: Config = {
    'hidden_activation': 'gelu_pytorch_tanh',
    'attention_bias': False,
    'use_bidirectional_attention': None,
}

# A default of None belongs to a key that may be left out or be null.
LLAMA_DEFAULTS: Config = {
    'num_key_value_heads': None,
    'head_dim': None,
    'max_position_embeddings': 2048,
    'rms_norm_eps': 1e-6,
    'tie_word_embeddings': False,
    'rope_theta': 10_000.0,
}
QWEN_DEFAULTS: Config = {
    'num_key_value_heads': 32,
    'max_position_embeddings': 32_768,
    'use_sliding_window': False,
    'sliding_window': 4096,
    'max_window_layers': 28,
    'layer_types': None,
}
GEMMA2_DEFAULTS: Config = {
    'num_key_value_heads': 4, 'head_dim': 256, 'max_position_embeddings': 8192, 'tie_word_embeddings': True,
    'sliding_window': 4096, 'query_pre_attn_scalar': 256, 'attn_logit_softcapping': 50.0,
    'final_logit_softcapping': 30.0, 'layer_types': None, 'hidden_act': None,
}  # fmt: skip
GEMMA3_DEFAULTS: Config = {
    **GEMMA2_DEFAULTS,
    'max_position_embeddings': 131_072,
    'rope_theta': 1e6,
    'rope_local_base_freq': 10_000.0,
    'attn_logit_softcapping': None,
    'final_logit_softcapping': None,
    'sliding_window_pattern': None,
    '_sliding_window_pattern': None,
}
SMOLLM3_DEFAULTS: Config = {
    'num_key_value_heads': 4, 'max_position_embeddings': 32_768, 'tie_word_embeddings': True, 'rope_theta': 2e6,
    'no_rope_layers': None, 'no_rope_layer_interval': 4, 'layer_types': None, 'sliding_window': None,
}  # fmt: skip

# The families by config.json's model_type.
FAMILIES: dict[str, ModelFamily] = {
    'llama': ModelFamily('LlamaForCausalLM', LLAMA, NO_BIAS),
    'mistral': ModelFamily(
        'MistralForCausalLM',
        LLAMA,
        SILU,
        defaults={'num_key_value_heads': 8, 'max_position_embeddings': 131_072, 'sliding_window': 4096},
        read=_read_mistral,
        write=_write_mistral,
    ),
    'qwen2': ModelFamily(
        'Qwen2ForCausalLM', QWEN2, SILU, {'qkv_bias': True}, QWEN_DEFAULTS, read=_read_qwen, write=_write_qwen
    ),
    'qwen3': ModelFamily(
        'Qwen3ForCausalLM',
        LLAMA | QK_NORMS,
        {'hidden_act': 'silu', 'attention_bias': False},
        {'qk_norm': True},
        {**QWEN_DEFAULTS, 'head_dim': 128},
        read=_read_qwen,
        write=_write_qwen,
    ),
    'gemma2': ModelFamily(
        'Gemma2ForCausalLM', GEMMA2, GEMMA_FIXED, GEMMA, GEMMA2_DEFAULTS, read=_read_gemma2, write=_write_gemma2
    ),
    'gemma3_text': ModelFamily(
        'Gemma3ForCausalLM',
        GEMMA2 | QK_NORMS,
        GEMMA_FIXED | {'use_bidirectional_attention': False, 'attn_logit_softcapping': None},
        {**GEMMA, 'qk_norm': True},
        GEMMA3_DEFAULTS,
        read=_read_gemma3,
        write=_write_gemma3,
    ),
    'smollm3': ModelFamily(
        'SmolLM3ForCausalLM',
        LLAMA,
        NO_BIAS | {'use_sliding_window': False},
        defaults=SMOLLM3_DEFAULTS,
        read=_read_smollm3,
        write=_write_smollm3,
    ),
    'phi3': ModelFamily(
        'Phi3ForCausalLM',
        PHI3,
        SILU,
        defaults={'max_position_embeddings': 4096, 'rms_norm_eps': 1e-5, 'sliding_window': None},
        read=_read_mistral,
        write=_write_mistral,
    ),
    'baichuan': ModelFamily(
        'BaichuanForCausalLM',
        BAICHUAN,
        SILU,
        {'unit_head': True},
        {'max_position_embeddings': None, 'model_max_length': None},
        read=_read_baichuan,
        write=_write_baichuan,
    ),
}

# Fields that the decoder does not have, with the value at which they change nothing.
ABSENT: Config = {
    'quantization_config': None,
    'partial_rotary_factor': 1.0,
    'embedding_multiplier': 1.0,
    'residual_multiplier': 1.0,
    'logits_scaling': 1.0,
}
# The classes of transformers for a family with a head in place of the unembedding; Baichuan's own code has none.
CLASSIFIERS = {
    name: family.architecture.replace('ForCausalLM', 'ForSequenceClassification')
    for name, family in FAMILIES.items()
    if name != 'baichuan'
} | {'gemma3_text': 'Gemma3TextForSequenceClassification'}


# --- config.json ----------------------------------------------------------------------------------------------------


def config_from_hf(config: Config) -> ModelConfig:
    """The `ModelConfig` of a config.json. Every key is read, without effect, or at a value that changes nothing.

    Raises:
      ValueError: the decoder does not have the architecture, a feature or a key, or a field is missing.
    """
    name = _family_of(config)
    family = FAMILIES[name]
    _check_fixed(config, family)
    config = {**LLAMA_DEFAULTS, **family.defaults, **config}
    heads, width = fields.size(config, 'num_attention_heads'), fields.size(config, 'hidden_size')
    kv_heads = heads if config['num_key_value_heads'] is None else fields.size(config, 'num_key_value_heads')
    if heads % kv_heads:
        raise ValueError(f'num_attention_heads={heads} is no multiple of num_key_value_heads={kv_heads}')
    theta, scaling = _rope(config, 'rope_local_base_freq' in family.defaults)
    cfg = ModelConfig(
        family=name,
        vocab=fields.size(config, 'vocab_size'),
        width=width,
        layers=fields.size(config, 'num_hidden_layers'),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width // heads if config['head_dim'] is None else fields.size(config, 'head_dim'),
        mlp=fields.size(config, 'intermediate_size'),
        max_len=fields.size(config, 'max_position_embeddings', 'model_max_length'),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=fields.number(config, 'rms_norm_eps'),
        tie_embed=fields.need(config, 'tie_word_embeddings'),
        **family.traits,
        **family.read(config),
    )
    if (kind := config.get('model_type') or name) != name:
        raise ValueError(f'model_type={kind} with {family.architecture}; config.json has to name one model')
    # A key that is read by nothing might change what the model computes.
    known_keys = {*ABSENT, *LLAMA_DEFAULTS, *family.defaults, *family.fixed}
    fields.check_known(config, known_keys, family.architecture)
    return cfg


def _family_of(config: Config) -> str:
    architectures = config.get('architectures') or ['none']
    for name, family in FAMILIES.items():
        if family.architecture in architectures:
            return name
    supported = ', '.join(family.architecture for family in FAMILIES.values())
    raise ValueError(f'architecture {", ".join(architectures)} is not supported; use one of {supported}')


def _check_fixed(config: Config, family: ModelFamily) -> None:
    for key, value in {**ABSENT, **family.fixed}.items():
        actual = config.get(key)
        if actual is not None and actual != value and (actual or value):
            raise ValueError(
                f'{family.architecture} with {key}={actual} is not supported; use a model with {key}={value}'
            )


def _rope(config: Config, layered: bool) -> tuple[float, RopeScaling | LinearScaling | None]:
    """The base and scaling of the rotary frequencies.

    transformers 5 has both in `rope_parameters`, for Gemma 3 by the type of layer (`layered`). transformers 4 has
    `rope_theta` beside `rope_scaling`. Where a config has both forms, they are read as transformers 5 reads them.
    """
    rope, older = fields.mapping(config, 'rope_parameters'), fields.mapping(config, 'rope_scaling')
    if layered:
        if unknown := sorted(set(rope) - {FULL, SLIDING}):
            raise ValueError(f'rope_parameters with {unknown[0]} is not supported; give those of {FULL} and {SLIDING}')
        rope = {**fields.mapping(rope, FULL), **older}
    else:
        # Where a config has both forms, transformers 5 takes the older one.
        rope = older or rope
    return fields.rotary({'rope_theta': config['rope_theta'], **rope}, config)


def config_to_hf(cfg: ModelConfig, tokenizer: Tokenizer, dtype: str = 'float32') -> dict[str, Any]:
    """The config.json of a model, with fields that transformers 4 and 5 both read."""
    return {**described(cfg), 'torch_dtype': dtype, **token_ids(tokenizer)}


def described(cfg: ModelConfig) -> dict[str, Any]:
    """The fields of a config.json that decide what a model computes."""
    family = FAMILIES[cfg.family]
    return {
        'architectures': [family.architecture],
        'model_type': cfg.family,
        'vocab_size': cfg.vocab,
        'hidden_size': cfg.width,
        'num_hidden_layers': cfg.layers,
        'num_attention_heads': cfg.heads,
        'num_key_value_heads': cfg.kv_heads,
        'head_dim': cfg.head_dim,
        'intermediate_size': cfg.mlp,
        'max_position_embeddings': cfg.max_len,
        'rope_theta': cfg.rope_theta,
        'rope_scaling': _rope_scaling(cfg),
        'rms_norm_eps': cfg.norm_eps,
        'tie_word_embeddings': cfg.tie_embed,
        **family.fixed,
        **family.write(cfg),
    }


def classifier_to_hf(
    cfg: ModelConfig, tokenizer: Tokenizer, dtype: str = 'float32', labels: Sequence[str] = ('reward',)
) -> dict[str, Any]:
    """The config.json of a model with a head `score`, an output for each label, in place of the unembedding.

    Raises:
      ValueError: transformers has no such model of this family.
    """
    if cfg.family not in CLASSIFIERS:
        raise ValueError(f'transformers has no classifier of family {cfg.family}; use one of {", ".join(CLASSIFIERS)}')
    return config_to_hf(cfg, tokenizer, dtype) | {
        'architectures': [CLASSIFIERS[cfg.family]],
        'id2label': {str(k): label for k, label in enumerate(labels)},
        'label2id': {label: k for k, label in enumerate(labels)},
        'num_labels': len(labels),
        **({'problem_type': 'multi_label_classification'} if len(labels) > 1 else {}),
    }


def _rope_scaling(cfg: ModelConfig) -> dict[str, Any] | None:
    match cfg.rope_scaling:
        case LinearScaling(factor):
            return {'rope_type': 'linear', 'factor': factor}
        case RopeScaling(factor, low, high, original):
            lengths = {'low_freq_factor': low, 'high_freq_factor': high, 'original_max_position_embeddings': original}
            return {'rope_type': 'llama3', 'factor': factor, **lengths}
    return None


def token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """The ids with which generation begins, ends and pads, for config.json and generation_config.json."""
    return {
        'bos_token_id': tokenizer.fast.bos_token_id,
        'eos_token_id': list(tokenizer.stop_ids),
        'pad_token_id': tokenizer.pad_id,
    }
