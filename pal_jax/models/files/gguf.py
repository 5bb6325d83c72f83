"""GGUF files: llama.cpp's metadata and quantised tensors as a `ModelConfig` and parameters.

No other file imports `gguf`. Tensors are dequantised one by one and passed to `models.hf.assemble` in the layout of a
Hugging Face checkpoint.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

from pal_jax.models.config import LayerKind, LinearScaling, ModelConfig
from pal_jax.models.files.families import FAMILIES, Names
from pal_jax.models.files.hf import assemble
from pal_jax.models.params import Params

# general.architecture -> row of families.FAMILIES. Mistral's files call themselves llama.
ARCHITECTURES = {'llama': 'llama', 'qwen2': 'qwen2', 'qwen3': 'qwen3', 'gemma2': 'gemma2', 'gemma3': 'gemma3_text'}

NAMES: Names = {
    'embed': 'token_embd.weight',
    'unembed': 'output.weight',
    'final_norm': 'output_norm.weight',
    'layers/norm/attn': 'blk.{}.attn_norm.weight',
    'layers/norm/mlp': 'blk.{}.ffn_norm.weight',
    'layers/norm/attn_out': 'blk.{}.post_attention_norm.weight',
    'layers/norm/mlp_out': 'blk.{}.post_ffw_norm.weight',
    'layers/attn/q': 'blk.{}.attn_q.weight',
    'layers/attn/k': 'blk.{}.attn_k.weight',
    'layers/attn/v': 'blk.{}.attn_v.weight',
    'layers/attn/o': 'blk.{}.attn_output.weight',
    'layers/attn/q_bias': 'blk.{}.attn_q.bias',
    'layers/attn/k_bias': 'blk.{}.attn_k.bias',
    'layers/attn/v_bias': 'blk.{}.attn_v.bias',
    'layers/attn/q_norm': 'blk.{}.attn_q_norm.weight',
    'layers/attn/k_norm': 'blk.{}.attn_k_norm.weight',
    'layers/mlp/gate': 'blk.{}.ffn_gate.weight',
    'layers/mlp/up': 'blk.{}.ffn_up.weight',
    'layers/mlp/down': 'blk.{}.ffn_down.weight',
}
# Names of fields without that of the architecture. Fields of READ are read or checked; no forward pass depends on those
# of IDLE.
READ = frozenset(
    """
    attention.head_count attention.head_count_kv attention.key_length attention.layer_norm_rms_epsilon block_count
    context_length embedding_length feed_forward_length rope.freq_base rope.scaling.factor rope.scaling.type
    """.split()
)
READ_OF_GEMMA = frozenset({'attention.sliding_window', 'attn_logit_softcapping', 'final_logit_softcapping'})
IDLE = frozenset(
    """
    expert_used_count rope.scaling.finetuned rope.scaling.original_context_length tensor_data_layout vocab_size
    """.split()
)
# The default of a field without a default.
REQUIRED = object()


class _Reader(GGUFReader):
    """The library's reader, which ends where the file ends."""

    # The library reads nothing beyond the end, and continues: a damaged count of an array would fill all memory.
    def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> np.ndarray:
        if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
            raise ValueError('a value lies beyond the end of the file')
        return super()._get(offset, dtype, count, override_order)


def open_gguf(path: str | Path) -> GGUFReader:
    """A memory-mapped reader of a GGUF file. Metadata are read now, and tensors when they are asked for.

    Raises:
      ValueError: there is no such file, or it is not GGUF.
    """
    if not Path(path).is_file():
        raise ValueError(f'no file {path}; give the path of a .gguf file')
    try:
        return _Reader(path)
    except (ValueError, LookupError, TypeError, ArithmeticError, MemoryError, OSError) as error:
        # In a file that is cut or damaged, the library reads offsets, types and sizes that do not exist.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f'{path} is not a readable GGUF file ({reason}); download it again') from error


def config_from_gguf(reader: GGUFReader) -> ModelConfig:
    """The `ModelConfig` that the metadata and tensor shapes state. No tensor is read.

    Raises:
      ValueError: the decoder does not have the architecture or a feature, or a field is missing.
    """
    arch = _field(reader, 'general.architecture')
    if arch not in ARCHITECTURES:
        raise ValueError(f'GGUF architecture {arch} is not supported; use one of {", ".join(ARCHITECTURES)}')
    _check_features(reader, arch)
    heads, width = _field(reader, f'{arch}.attention.head_count'), _field(reader, f'{arch}.embedding_length')
    shapes = {tensor.name: tensor.shape for tensor in reader.tensors}
    cfg = ModelConfig(
        family=ARCHITECTURES[arch],
        # gguf has the axes of a shape in reverse order.
        vocab=int(shapes['token_embd.weight'][1]),
        width=width,
        layers=_field(reader, f'{arch}.block_count'),
        heads=heads,
        kv_heads=_field(reader, f'{arch}.attention.head_count_kv', heads),
        head_dim=_field(reader, f'{arch}.attention.key_length', width // heads),
        mlp=_field(reader, f'{arch}.feed_forward_length'),
        max_len=_field(reader, f'{arch}.context_length'),
        rope_theta=_decimal(_field(reader, f'{arch}.rope.freq_base', 10_000.0)),
        rope_scaling=_scaling(reader, arch),
        norm_eps=_decimal(_field(reader, f'{arch}.attention.layer_norm_rms_epsilon')),
        tie_embed='output.weight' not in shapes,
        **FAMILIES[ARCHITECTURES[arch]].traits,
    )
    _check_keys(reader, arch, cfg)
    return dataclasses.replace(cfg, **_gemma(reader, arch, cfg)) if arch.startswith('gemma') else cfg


def _check_keys(reader: GGUFReader, arch: str, cfg: ModelConfig) -> None:
    """Raise ValueError for a field that is not known here and may change what a model computes."""
    known_keys = READ | IDLE | (READ_OF_GEMMA if arch.startswith('gemma') else frozenset())
    only = {
        'attention.value_length': cfg.head_dim,
        'rope.dimension_count': cfg.head_dim,
        'rope.freq_base_swa': cfg.rope_local_theta if arch == 'gemma3' else None,
        'rope.scale_linear': 1.0,
        'attention.causal': True,
        'attention.sliding_window_pattern': {'gemma2': 2, 'gemma3': 6}.get(arch),
    }
    for field in (name for name in reader.fields if name.startswith(f'{arch}.')):
        key, value = field.removeprefix(f'{arch}.'), _field(reader, field)
        if key not in known_keys and value not in (0, '', [], only.get(key)):
            instead = f'; use a model with {only[key]}' if only.get(key) is not None else ''
            raise ValueError(f'GGUF with {field}={value} is not supported{instead}')


def _scaling(reader: GGUFReader, arch: str) -> LinearScaling | None:
    if _field(reader, f'{arch}.rope.scaling.type', 'none') == 'none':
        return None
    return LinearScaling(_field(reader, f'{arch}.rope.scaling.factor'))


def _gemma(reader: GGUFReader, arch: str, cfg: ModelConfig) -> dict[str, Any]:
    """The fields of Gemma's models."""
    # llama.cpp knows two fields without the file: the layers that have windows, and that the largest model of each
    # generation (46 and 62 layers) scales its queries by width per head.
    window = _field(reader, f'{arch}.attention.sliding_window')
    if arch == 'gemma2':
        pattern = LayerKind(window), LayerKind()
    else:
        pattern = *(LayerKind(window, 'local'),) * 5, LayerKind()
    return {
        'pattern': pattern,
        'query_scalar': cfg.width // cfg.heads if cfg.layers in (46, 62) else cfg.head_dim,
        'attn_softcap': _field(reader, f'{arch}.attn_logit_softcapping', None),
        'final_softcap': _field(reader, f'{arch}.final_logit_softcapping', None),
    }


def load_params(
    reader: GGUFReader, cfg: ModelConfig, shardings: Params | None = None, dtype: str = 'float32'
) -> Params:
    """The dequantised parameters of a GGUF file. `shardings` is a tree like the parameters.

    Raises:
      ValueError: names or shapes are not those of `cfg`, a tensor's type of quantisation is unknown, or a number is not
        finite.
    """
    tensors = {tensor.name: tensor for tensor in reader.tensors}

    def read(name: str) -> np.ndarray:
        kind = tensors[name].tensor_type
        try:
            x = dequantize(tensors[name].data, kind)
        except NotImplementedError as error:
            raise ValueError(f'{name} is of type {kind.name}, which gguf cannot read; use a file in Q4_K_M') from error
        if name.endswith('norm.weight'):
            # llama.cpp stores the sum of the weight and its offset.
            return x - np.float32(cfg.norm_offset)
        return _unpermuted(x, heads) if (heads := _permuted_heads(name, cfg)) else x

    return assemble(cfg, NAMES, read, tensors, shardings, dtype)


def _field(reader: GGUFReader, key: str, default: Any = REQUIRED) -> Any:
    field = reader.get_field(key)
    value = default if field is None else field.contents()
    if value is REQUIRED:
        raise ValueError(f'the GGUF file has no {key}; is it a complete language model?')
    return value


def _check_features(reader: GGUFReader, arch: str) -> None:
    """Raise ValueError for features that the decoder does not have."""
    supported = {f'{arch}.expert_count': (0,), f'{arch}.rope.scaling.type': ('none', 'linear')}
    for key, allowed in supported.items():
        if (value := _field(reader, key, allowed[0])) not in allowed:
            choice = ' or '.join(str(option) for option in allowed)
            raise ValueError(f'GGUF with {key}={value} is not supported; use a model with {key}={choice}')
    # Llama 3.1 stores its stretched frequencies as a tensor, which cannot be turned back into `RopeScaling`.
    if any(tensor.name.startswith('rope_') for tensor in reader.tensors):
        raise ValueError('GGUF with a tensor of rope frequencies is not supported; use hf:<folder> of the same model')


def _decimal(x: float) -> float:
    """The shortest decimal of a float32."""
    # 1e-5 would otherwise be read as 9.999999747e-06.
    return float(str(np.float32(x)))


def _permuted_heads(name: str, cfg: ModelConfig) -> int:
    """The number of heads of a tensor whose rows llama.cpp reorders (q and k of `llama`), 0 for any other."""
    if cfg.family != 'llama':
        return 0
    return {'attn_q': cfg.heads, 'attn_k': cfg.kv_heads}.get(name.split('.')[-2], 0)


def _unpermuted(x: np.ndarray, heads: int) -> np.ndarray:
    """The rows of q or k in Hugging Face's order, where the second half of a head follows the first."""
    # In llama.cpp's order the two halves alternate, since it rotates neighbours.
    return x.reshape(heads, -1, 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
