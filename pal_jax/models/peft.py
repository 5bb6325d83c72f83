"""Adapters as the library `peft` has them: a folder with adapter_config.json and adapter_model.safetensors.

A stack of layers is one pair of tensors a layer, each [out, in] as torch has it. Names are those of the family's
weights in `models.families`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pal_jax.models import lora
from pal_jax.models.config import ModelConfig
from pal_jax.models.families import FAMILIES
from pal_jax.models.linear import LoraWeight
from pal_jax.models.lora import Adapter
from pal_jax.models.params import Params
from pal_jax.models.tensors import read as read_tensors
from pal_jax.models.tensors import save as save_tensors
from pal_jax.runtime.files import read_object, shown
from pal_jax.runtime.outputs import whole_folder

CONFIG, TENSORS = 'adapter_config.json', 'adapter_model.safetensors'
PREFIX = 'base_model.model.'
ONLY = {  # what the forward pass takes for granted
    'peft_type': 'LORA', 'bias': 'none', 'use_dora': False, 'fan_in_fan_out': False, 'rank_pattern': {},
    'alpha_pattern': {}, 'modules_to_save': None, 'lora_bias': False,
}  # fmt: skip


class PeftConfig(NamedTuple):
    """What is read of an adapter's config: the model it stands on, and what its product counts."""

    base: str
    scale: float
    rank: int


def save(adapters: Params, cfg: ModelConfig, base: str, folder: str | Path, dropout: float = 0.0) -> None:
    """Writes the trainable part of an adapted tree (see `lora.split`). `base` names the model below it.

    Raises:
      ValueError: there are no adapters, or one on a weight that is stored within a larger one; or the folder is
        somebody else's, see `outputs.check_folder`.
    """
    found = dict(_adapters(adapters))
    if not found:
        raise ValueError('this policy has no adapters; train with --config.policy.lora.rank above 0')
    names, folder = _own_names(cfg), Path(folder)
    if fused := [path for path in found if path not in names]:
        raise ValueError(f'{fused[0]} of a {cfg.family} model shares a tensor with others; export the merged model')
    tensors: dict[str, np.ndarray] = {}
    for path, adapter in found.items():
        a, b = (np.asarray(jax.device_get(x), np.float32) for x in (adapter.a, adapter.b))
        for i in range(len(a)):
            module = PREFIX + names[path].format(i).removesuffix('.weight')
            tensors[f'{module}.lora_A.weight'] = np.ascontiguousarray(a[i].T)
            tensors[f'{module}.lora_B.weight'] = np.ascontiguousarray(b[i].T)
    rank, scale = next((x.a.shape[-1], x.scale) for x in found.values())
    config = ONLY | {
        'base_model_name_or_path': base,
        'task_type': 'CAUSAL_LM',
        'r': rank,
        'lora_alpha': scale * rank,
        'lora_dropout': dropout,
        'target_modules': sorted({names[path].removesuffix('.weight').rpartition('.')[2] for path in found}),
        'inference_mode': True,
    }
    with whole_folder(folder) as partial:
        save_tensors(tensors, partial / TENSORS)
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')


def _own_names(cfg: ModelConfig) -> dict[str, str]:
    """Tensors by path, of leaves that have one to themselves: an adapter of several in one would be of another kind."""
    names = FAMILIES[cfg.family].names
    return {path: name for path, name in names.items() if list(names.values()).count(name) == 1}


def _adapters(tree: Params) -> Iterator[tuple[str, Adapter]]:
    for path, leaf in flatten_dict(tree, sep='/').items():
        if isinstance(leaf, Adapter):
            yield str(path), leaf


def read_config(folder: str | Path) -> PeftConfig:
    """The config of an adapter.

    Raises:
      ValueError: it is not there, or of a kind that this package does not compute.
    """
    path = Path(folder) / CONFIG
    if not path.exists():
        raise ValueError(f'no {CONFIG} in {folder}; give the folder of a PEFT adapter')
    config = read_object(path)
    for key, value in ONLY.items():
        if config.get(key, value) not in (value, value or None):
            raise ValueError(f'{path} has {key}={config[key]!r}; only adapters with {key}={value!r} can be read')
    rank, alpha = config.get('r'), config.get('lora_alpha')
    if type(rank) is not int or not 0 < rank < 2**31 or not isinstance(alpha, int | float) or not abs(alpha) < 2**31:
        raise ValueError(f'{path} has r={shown(rank)} and lora_alpha={shown(alpha)}; give a rank above 0 and a number')
    scale = alpha / (math.sqrt(rank) if config.get('use_rslora') else rank)
    return PeftConfig(config.get('base_model_name_or_path') or '', scale, rank)


def attach(params: Params, cfg: ModelConfig, folder: str | Path) -> Params:
    """Plain weights with the adapters of `folder` on them.

    Raises:
      ValueError: a tensor is missing, has another shape, or belongs to no linear weight of the model.
    """
    scale, path = read_config(folder).scale, Path(folder) / TENSORS
    if not path.exists():
        raise ValueError(f'no {TENSORS} in {folder}; save the adapter as safetensors')
    tensors = read_tensors(path)
    flat: dict[Any, Any] = flatten_dict(params, sep='/')
    for where, name in _own_names(cfg).items():
        modules = [PREFIX + name.format(i).removesuffix('.weight') for i in range(cfg.layers)]
        if f'{modules[0]}.lora_A.weight' in tensors and name.count('{}'):
            a, b = (_stacked(tensors, [f'{module}.lora_{part}.weight' for module in modules]) for part in 'AB')
            flat[where] = _on(flat[where], a, b, scale, where)
    if tensors:
        raise ValueError(f'{path} has {sorted(tensors)[0]}, which adapts no linear weight of a {cfg.family} model')
    return unflatten_dict(flat, sep='/')


def _stacked(tensors: dict[str, np.ndarray], names: list[str]) -> np.ndarray:
    """Takes these out of `tensors`, [out, in] each, as one [L, in, out]."""
    if missing := [name for name in names if name not in tensors]:
        raise ValueError(f'{TENSORS} has no {missing[0]}; an adapter has to be on every layer')
    return np.stack([tensors.pop(name).T for name in names])


def _on(weight: Any, a: np.ndarray, b: np.ndarray, scale: float, where: str) -> LoraWeight:
    if a.shape[0] != weight.shape[0] or a.shape[1] * b.shape[2] != weight[0].size or a.shape[2] != b.shape[1]:
        raise ValueError(f'{where} of the model has shape {weight.shape}, its adapter {a.shape} and {b.shape}')
    return LoraWeight(weight, jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), scale)


def load_merged(params: Params, cfg: ModelConfig, folder: str | Path) -> Params:
    """Plain weights that compute what `params` with the adapters of `folder` do."""
    return jax.jit(lora.merge)(attach(params, cfg, folder))
