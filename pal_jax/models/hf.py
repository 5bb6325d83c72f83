"""Hugging Face folders, both ways: config.json <-> `ModelConfig`, safetensors <-> parameters, bit for bit.

A family is a row of data. Tensors are read one by one, stacked per leaf and put on the devices leaf by leaf, so the
host never holds more than one leaf; on the way out it holds one file's worth.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import save_file

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.models.config import ModelConfig, RopeScaling
from pal_jax.models.params import Params, ParamSpec, decoder_specs

Names = Mapping[str, str]  # path of a leaf -> name of a tensor, with {} for the layer
Read = Callable[[str], np.ndarray]  # name of a tensor -> its values

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
# A torch Linear is stored [out, in]: how many leading axes of our leaf are its `in`. Other leaves keep their order.
IN_AXES = {f'layers/{path}': 1 for path in ('attn/q', 'attn/k', 'attn/v', 'mlp/gate', 'mlp/up', 'mlp/down')}
IN_AXES['layers/attn/o'] = 2


class Family(NamedTuple):
    """`fixed` are the fields of config.json that our decoder takes for granted: checked on reading, written out."""

    architecture: str
    names: Names
    qkv_bias: bool
    fixed: Mapping[str, Any]


FAMILIES = {
    'llama': Family('LlamaForCausalLM', LLAMA, False, dict(hidden_act='silu', attention_bias=False, mlp_bias=False)),
    'mistral': Family('MistralForCausalLM', LLAMA, False, dict(hidden_act='silu', sliding_window=None)),
    'qwen2': Family('Qwen2ForCausalLM', QWEN2, True, dict(hidden_act='silu', use_sliding_window=False)),
}


# --- config.json ----------------------------------------------------------------------------------------------------


def config_from_hf(config: Mapping[str, Any]) -> ModelConfig:
    """The `ModelConfig` of a config.json.

    Raises:
      ValueError: an architecture or a feature that the decoder does not have, or a missing field.
    """
    name = _family_of(config)
    _check_fixed(config, FAMILIES[name])
    heads, width = _need(config, 'num_attention_heads'), _need(config, 'hidden_size')
    theta, scaling = _rope(config)
    return ModelConfig(
        family=name,
        vocab=_need(config, 'vocab_size'),
        width=width,
        layers=_need(config, 'num_hidden_layers'),
        heads=heads,
        kv_heads=config.get('num_key_value_heads') or heads,
        head_dim=config.get('head_dim') or width // heads,
        mlp=_need(config, 'intermediate_size'),
        max_len=_need(config, 'max_position_embeddings'),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=config.get('rms_norm_eps', 1e-6),
        qkv_bias=FAMILIES[name].qkv_bias,
        tie_embed=config.get('tie_word_embeddings', False),
    )


def _family_of(config: Mapping[str, Any]) -> str:
    found = config.get('architectures') or ['none']
    for name, family in FAMILIES.items():
        if family.architecture in found:
            return name
    supported = ', '.join(family.architecture for family in FAMILIES.values())
    raise ValueError(f'architecture {", ".join(found)} is not supported; use one of {supported}')


def _check_fixed(config: Mapping[str, Any], family: Family) -> None:
    for key, value in {**family.fixed, 'quantization_config': None}.items():
        got = config.get(key, value)
        if got != value:
            raise ValueError(f'{family.architecture} with {key}={got} is not supported; use a model with {key}={value}')


def _need(config: Mapping[str, Any], key: str) -> Any:
    if key not in config:
        raise ValueError(f'config.json has no {key}; is it the config of a causal language model?')
    return config[key]


def _rope(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """transformers 5 has everything in `rope_parameters`; 4 has `rope_theta` beside `rope_scaling`."""
    rope = config.get('rope_parameters') or config.get('rope_scaling') or {}
    theta = float(rope.get('rope_theta', config.get('rope_theta', 10_000.0)))
    kind = rope.get('rope_type', rope.get('type', 'default'))
    if kind == 'default':
        return theta, None
    if kind != 'llama3':
        raise ValueError(f'rope_type={kind} is not supported; use a model with rope_type default or llama3')
    low, high = rope['low_freq_factor'], rope['high_freq_factor']
    return theta, RopeScaling(rope['factor'], low, high, rope['original_max_position_embeddings'])


def config_to_hf(cfg: ModelConfig, tokenizer: Tokenizer, dtype: str = 'float32') -> dict[str, Any]:
    """The config.json of a model: fields that transformers 4 and 5 both read."""
    family, scaling = FAMILIES[cfg.family], cfg.rope_scaling
    rope_scaling = scaling and {
        'rope_type': 'llama3',
        'factor': scaling.factor,
        'low_freq_factor': scaling.low_freq_factor,
        'high_freq_factor': scaling.high_freq_factor,
        'original_max_position_embeddings': scaling.original_max_len,
    }
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
        'rope_scaling': rope_scaling,
        'rms_norm_eps': cfg.norm_eps,
        'tie_word_embeddings': cfg.tie_embed,
        'torch_dtype': dtype,
        **family.fixed,
        **_token_ids(tokenizer),
    }


def _token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """For config.json and generation_config.json: where generation begins and ends."""
    return {
        'bos_token_id': tokenizer.fast.bos_token_id,
        'eos_token_id': list(tokenizer.stop_ids),
        'pad_token_id': tokenizer.pad_id,
    }


# --- reading --------------------------------------------------------------------------------------------------------


def read_config(folder: str | Path) -> ModelConfig:
    """`config_from_hf` of a folder. Reads no weights."""
    path = Path(folder) / 'config.json'
    if not path.exists():
        raise ValueError(f'no config.json in {folder}; give the folder of a Hugging Face model')
    return config_from_hf(json.loads(path.read_text()))


def load_params(
    folder: str | Path, cfg: ModelConfig, shardings: Params | None = None, dtype: str = 'float32'
) -> Params:
    """The parameters in a folder's safetensors, one file or many. `shardings`: a tree like the parameters.

    Raises:
      ValueError: there are no safetensors, or their names or shapes are not those of `cfg`.
    """
    files = _files(Path(folder))
    optional = {'lm_head.weight'} if cfg.tie_embed else set()
    extra = {name for name in files if not name.endswith('rotary_emb.inv_freq')} - optional

    def read(name: str) -> np.ndarray:
        with safe_open(files[name], 'numpy') as f:
            return f.get_tensor(name)

    return assemble(cfg, FAMILIES[cfg.family].names, read, extra, shardings, dtype)


def _files(folder: Path) -> dict[str, Path]:
    """Name of every tensor -> the file it is in."""
    index = folder / 'model.safetensors.index.json'
    if index.exists():
        return {name: folder / file for name, file in json.loads(index.read_text())['weight_map'].items()}
    path = folder / 'model.safetensors'
    if not path.exists():
        raise ValueError(f'no model.safetensors in {folder}; save the model there with transformers first')
    with safe_open(path, 'numpy') as f:
        return dict.fromkeys(f.keys(), path)


def assemble(
    cfg: ModelConfig, names: Names, read: Read, present: Iterable[str], shardings: Params | None, dtype: str
) -> Params:
    """Parameters from tensors in torch's layout, read by name, each leaf on the devices before the next is read.

    Raises:
      ValueError: `present` lacks a tensor of `cfg` or has one that `cfg` has no place for, or a shape differs.
    """
    specs = by_path(decoder_specs(cfg))
    places: dict[str, Any] = by_path(shardings) if shardings else dict.fromkeys(specs)
    _check_names({name for path in specs for name, _ in _slots(path, names, cfg)}, set(present))
    leaves = {path: _put(_leaf(path, spec, cfg, names, read, dtype), places[path]) for path, spec in specs.items()}
    return dict(unflatten_dict(leaves, sep='/'))


def by_path(tree: Params) -> dict[str, Any]:
    """The leaves of a tree by their path, 'layers/attn/q'."""
    return dict(flatten_dict(tree, sep='/'))


def _slots(path: str, names: Names, cfg: ModelConfig) -> list[tuple[str, Any]]:
    """Names of the tensors of a leaf, and where in the leaf each goes."""
    if path.startswith('layers/'):
        return [(names[path].format(i), i) for i in range(cfg.layers)]
    return [(names[path], ...)]


def _check_names(wanted: set[str], present: set[str]) -> None:
    for what, names in (('has no', wanted - present), ('has unexpected', present - wanted)):
        if names:
            some = ', '.join(sorted(names)[:3])
            raise ValueError(f'the checkpoint {what} {some} ({len(names)} in all); does its config belong to it?')


def _leaf(path: str, spec: ParamSpec, cfg: ModelConfig, names: Names, read: Read, dtype: str) -> np.ndarray:
    leaf = np.empty(spec.shape, jnp.dtype(dtype))
    for name, at in _slots(path, names, cfg):
        leaf[at] = _from_torch(name, read(name), leaf[at].shape, IN_AXES.get(path, 0))
    return leaf


def _from_torch(name: str, x: np.ndarray, shape: tuple[int, ...], in_axes: int) -> np.ndarray:
    expected = _torch_shape(shape, in_axes, bias=name.endswith('.bias'))
    if x.shape != expected:
        raise ValueError(f'{name} has shape {x.shape}, the config says {expected}; does the config belong to it?')
    return (x.T if in_axes else x).reshape(shape)


def _to_torch(name: str, x: np.ndarray, in_axes: int) -> np.ndarray:
    shape = _torch_shape(x.shape, in_axes, bias=name.endswith('.bias'))
    # contiguous: safetensors writes the buffer as it lies, whatever the strides say
    return np.ascontiguousarray(x.reshape(shape[::-1]).T if in_axes else x.reshape(shape))


def _torch_shape(shape: tuple[int, ...], in_axes: int, bias: bool) -> tuple[int, ...]:
    """[out, in] of a Linear; the heads of a bias are one axis."""
    if in_axes:
        return math.prod(shape[in_axes:]), math.prod(shape[:in_axes])
    return (math.prod(shape),) if bias else shape


def _put(leaf: np.ndarray, place: jax.sharding.Sharding | None) -> jax.Array:
    if place is None:
        return jnp.array(leaf)
    return jax.make_array_from_callback(leaf.shape, place, lambda index: leaf[index])


# --- writing --------------------------------------------------------------------------------------------------------


def save(
    params: Params,
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    folder: str | Path,
    dtype: str = 'float32',
    file_bytes: int = 4 << 30,
) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load. LoRA weights must have been merged.

    It is complete or not there: everything is written beside it first. An earlier model at that place is replaced.

    Raises:
      ValueError: the folder exists and does not hold a model.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / 'config.json').exists():
        raise ValueError(f'{folder} exists and holds no model; give a new folder to export to')
    partial, old = folder.with_name(f'{folder.name}.partial'), folder.with_name(f'{folder.name}.old')
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_json(partial / 'config.json', config_to_hf(cfg, tokenizer, dtype))
    _write_json(partial / 'generation_config.json', _token_ids(tokenizer))
    tokenizer.save(partial)
    _write_tensors(params, cfg, partial, dtype, file_bytes)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + '\n')


def _write_tensors(params: Params, cfg: ModelConfig, folder: Path, dtype: str, file_bytes: int) -> None:
    leaves = by_path(params)
    names = FAMILIES[cfg.family].names
    itemsize = jnp.dtype(dtype).itemsize
    slots = [(name, path, at) for path in leaves for name, at in _slots(path, names, cfg)]
    sizes = [leaves[path].size * itemsize // (1 if at is ... else cfg.layers) for _, path, at in slots]
    groups = list(_grouped(slots, sizes, file_bytes))
    weight_map = {}
    for i, group in enumerate(groups, 1):
        file = 'model.safetensors' if len(groups) == 1 else f'model-{i:05}-of-{len(groups):05}.safetensors'
        host = {n: _to_torch(n, np.asarray(leaves[p][at], jnp.dtype(dtype)), IN_AXES.get(p, 0)) for n, p, at in group}
        save_file(host, folder / file, metadata={'format': 'pt'})
        weight_map |= dict.fromkeys(host, file)
    if len(groups) > 1:
        index = {'metadata': {'total_size': sum(sizes)}, 'weight_map': weight_map}
        _write_json(folder / 'model.safetensors.index.json', index)


def _grouped(items: list[Any], sizes: list[int], limit: int) -> Iterator[list[Any]]:
    """Runs of `items` whose sizes add up to at most `limit`, or single ones."""
    group, total = [], 0
    for item, size in zip(items, sizes, strict=True):
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    yield group
