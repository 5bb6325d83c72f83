"""Adapters in the format of the library `peft`: a folder with adapter_config.json and adapter_model.safetensors.

An adapter of stacked layers is a pair of tensors for each layer, [out, in] as in torch. Names are those of the family's
weights in `models.families`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from pal_jax.data import tokenizer
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.models import lora
from pal_jax.models.config import ModelConfig
from pal_jax.models.files.families import FAMILIES
from pal_jax.models.files.fields import neutral
from pal_jax.models.files.tensors import check_finite
from pal_jax.models.files.tensors import read as read_tensors
from pal_jax.models.files.tensors import save as save_tensors
from pal_jax.models.linear import LoraWeight
from pal_jax.models.lora import Adapter
from pal_jax.models.params import Params
from pal_jax.run.files import read_object, short_repr
from pal_jax.run.outputs import whole_folder

CONFIG, TENSORS = 'adapter_config.json', 'adapter_model.safetensors'
PREFIX = 'base_model.model.'
# The values that the forward pass takes for granted.
ONLY = {
    'peft_type': 'LORA', 'bias': 'none', 'use_dora': False, 'fan_in_fan_out': False, 'rank_pattern': {},
    'alpha_pattern': {}, 'modules_to_save': None, 'lora_bias': False,
}  # fmt: skip
# Keys with values beside null, false and empty that change nothing.
ALLOWED: Mapping[str, tuple[Any, ...]] = {
    'peft_type': ('LORA',),
    'bias': ('none',),
    'task_type': ('CAUSAL_LM',),
    'revision': ('main',),
    # The other kinds (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base when they begin.
    'init_lora_weights': (True, 'gaussian', 'eva', 'orthogonal', 'mica'),
}
READ = (
    'base_model_name_or_path', 'r', 'lora_alpha', 'use_rslora', 'target_modules', 'exclude_modules',
    'layers_to_transform', 'layers_pattern',
)  # fmt: skip
# Keys of how an adapter was begun, trained and saved, and keys without effect unless another option is set.
IDLE = (
    'auto_mapping', 'peft_version', 'inference_mode', 'lora_dropout', 'megatron_core', 'loftq_config', 'eva_config',
    'corda_config', 'lora_ga_config', 'velora_config', 'qalora_group_size', 'runtime_config', 'ensure_weight_tying',
    'merge_weights',
)  # fmt: skip


class PeftConfig(NamedTuple):
    """The fields of an adapter's config that are read: the source of its base, the scale of its product, its rank."""

    base: str
    scale: float
    rank: int


def save(adapters: Params, cfg: ModelConfig, base: str, folder: str | Path, dropout: float = 0.0) -> None:
    """Write the trainable part of an adapted tree (see `lora.split`). `base` names the model below it.

    Raises:
      ValueError: there are no adapters, an adapted weight is stored within a larger tensor, or the folder exists,
        see `outputs.check_folder`.
    """
    adapter_of = dict(_adapters(adapters))
    if not adapter_of:
        raise ValueError('this policy has no adapters; train with --config.policy.lora.rank above 0')
    names, folder = _own_names(cfg), Path(folder)
    if fused := [path for path in adapter_of if path not in names]:
        raise ValueError(f'{fused[0]} of a {cfg.family} model shares a tensor with others; export the merged model')
    tensors: dict[str, np.ndarray] = {}
    for path, adapter in adapter_of.items():
        a, b = (np.asarray(jax.device_get(x), np.float32) for x in (adapter.a, adapter.b))
        # The output matrix has no axis of layers.
        for i, (a_layer, b_layer) in enumerate(zip(a, b, strict=True) if a.ndim == 3 else [(a, b)]):
            module = PREFIX + names[path].format(i).removesuffix('.weight')
            tensors[f'{module}.lora_A.weight'] = np.ascontiguousarray(a_layer.T)
            tensors[f'{module}.lora_B.weight'] = np.ascontiguousarray(b_layer.T)
    rank, scale = next((x.a.shape[-1], x.scale) for x in adapter_of.values())
    config = ONLY | {
        'base_model_name_or_path': base,
        'task_type': 'CAUSAL_LM',
        'r': rank,
        'lora_alpha': scale * rank,
        'lora_dropout': dropout,
        'target_modules': sorted({names[path].removesuffix('.weight').rpartition('.')[2] for path in adapter_of}),
        'inference_mode': True,
    }
    with whole_folder(folder) as partial:
        save_tensors(tensors, partial / TENSORS)
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')


def _own_names(cfg: ModelConfig) -> dict[str, str]:
    """The tensors' names by path, for the leaves that have a tensor to themselves."""
    names = FAMILIES[cfg.family].names
    # An adapter of a tensor with several leaves would be of another kind.
    return {path: name for path, name in names.items() if list(names.values()).count(name) == 1}


def _adapters(tree: Params) -> Iterator[tuple[str, Adapter]]:
    for path, leaf in flatten_dict(tree, sep='/').items():
        if isinstance(leaf, Adapter):
            yield str(path), leaf


def read_config(folder: str | Path) -> PeftConfig:
    """The config of an adapter.

    Raises:
      ValueError: there is no config, or it is of a kind that this package does not compute.
    """
    config = _checked(folder)
    rank, alpha = config['r'], config['lora_alpha']
    scale = alpha / (math.sqrt(rank) if config.get('use_rslora') else rank)
    return PeftConfig(config.get('base_model_name_or_path') or '', scale, rank)


def _checked(folder: str | Path) -> dict[str, Any]:
    """The adapter_config.json of a folder. Raises ValueError for a key or a value that is not supported."""
    path = Path(folder) / CONFIG
    if not path.exists():
        raise ValueError(f'no {CONFIG} in {folder}; give the folder of a PEFT adapter')
    config = read_object(path)
    for key, value in config.items():
        allowed = any(
            type(value) is type(allowed_value) and value == allowed_value for allowed_value in ALLOWED.get(key, ())
        )
        if key not in READ + IDLE and not neutral(value) and not allowed:
            hint = _hint(key)
            raise ValueError(f'{path} has {key}={value!r}; only adapters with {hint} can be read')
    rank, alpha = config.get('r'), config.get('lora_alpha')
    if type(rank) is not int or not 0 < rank < 2**31:
        raise ValueError(f'{path} has r={short_repr(rank)}; it has to be a whole number above 0')
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) < 2**31:
        raise ValueError(f'{path} has lora_alpha={short_repr(alpha)}; it has to be a number')
    return config


def _hint(key: str) -> str:
    if key == 'init_lora_weights':
        return (
            'init_lora_weights=true or a kind that leaves the base as it is (gaussian, eva, orthogonal, mica); save it '
            'with peft as a plain adapter (path_initial_model_for_weight_conversion)'
        )
    return f'{key}={ALLOWED[key][0] if key in ALLOWED else ONLY.get(key)!r}'


def targets(folder: str | Path) -> Callable[[str], bool]:
    """A function that is True for a linear module, such as `model.layers.0.self_attn.q_proj`, with an adapter on it.

    Raises:
      ValueError: as `read_config`, or an option is neither names nor a regular expression.
    """
    config = _checked(folder)
    included, excluded = config.get('target_modules'), config.get('exclude_modules') or []
    # These are peft's defaults for Llama and its like.
    included = ['q_proj', 'v_proj'] if included is None else included
    for key, value in (('target_modules', included), ('exclude_modules', excluded)):
        if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(x, str) for x in value)):
            raise ValueError(f'{Path(folder) / CONFIG} has {key}={value!r}; it has to be a text or a list of texts')
    layers, pattern = config.get('layers_to_transform'), config.get('layers_pattern') or [r'[^.]*']
    layers = layers if isinstance(layers, list) or layers is None else [layers]
    patterns = [pattern] if isinstance(pattern, str) else pattern

    def named(module: str, names: str | Sequence[str]) -> bool:
        if isinstance(names, str):
            return bool(re.fullmatch(names, module))
        return any(module == name or module.endswith(f'.{name}') for name in names)

    def targeted(module: str) -> bool:
        if named(module, excluded):
            return False
        if isinstance(included, str) and included.lower() == 'all-linear':
            return module != 'lm_head'
        if layers and isinstance(included, list):
            matches = (re.match(rf'(?:^|.*?\.){stack}\.(\d+)\.', module) for stack in patterns)
            place = next((int(match[1]) for match in matches if match), None)
            return place in layers and named(module, included)
        return named(module, included)

    try:
        targeted('')
    except re.error as error:
        raise ValueError(f'{Path(folder) / CONFIG} has a pattern that is no regular expression: {error}') from None
    return targeted


def module_of(name: str) -> str:
    """The module that a tensor of an adapter belongs to, as the base names it."""
    return name.removeprefix(PREFIX).partition('.lora_')[0]


def check_targets(folder: str | Path, names: Iterable[str]) -> None:
    """Raise ValueError for a tensor of a module that the config puts no adapter on."""
    targeted = targets(folder)
    for name in names:
        # peft would ignore such a tensor.
        if not targeted(module_of(name)):
            raise ValueError(f'{Path(folder) / TENSORS} has {name}, which target_modules of {CONFIG} does not name')


def tensors_of(folder: str | Path) -> Path:
    """The file of an adapter's tensors. Raises ValueError where there is none in safetensors."""
    path = Path(folder) / TENSORS
    if path.exists():
        return path
    pickled = path.with_suffix('.bin')
    instead = f'{pickled.name} is not read, since such a file may run code; ' if pickled.exists() else ''
    raise ValueError(f'no {TENSORS} in {folder}; {instead}save the adapter as safetensors')


def attach(params: Params, cfg: ModelConfig, folder: str | Path) -> Params:
    """Plain weights with the adapters of `folder` on them. A layer without an adapter gets zeros where others have one.

    Raises:
      ValueError: a tensor is missing, not finite, has another shape, or belongs to no linear weight of the model.
    """
    _, scale, rank = read_config(folder)
    path, targeted = tensors_of(folder), targets(folder)
    tensors = read_tensors(path)
    flat: dict[Any, Any] = flatten_dict(params, sep='/')
    linear: set[str] = set()
    for where, name in _own_names(cfg).items():
        is_head = where == lora.HEAD and where in flat
        if where.rpartition('/')[2] not in lora.IN_DIMS and not is_head:
            continue
        modules = [name.format(i).removesuffix('.weight') for i in range(1 if is_head else cfg.layers)]
        linear.update(modules)
        present = [f'{PREFIX}{module}' if targeted(module) else None for module in modules]
        if any(present):
            a, b = (
                _stacked(tensors, [prefix and f'{prefix}.lora_{part}.weight' for prefix in present]) for part in 'AB'
            )
            if a.shape[-1] != rank:
                raise ValueError(f'{path} has adapters of rank {a.shape[-1]} on {where}, its {CONFIG} r={rank}')
            flat[where] = _on_head(flat[where], a[0], b[0], scale) if is_head else _on(flat[where], a, b, scale, where)
    # Tensors that are left over adapt nothing of this model.
    for name in sorted(tensors):
        if module_of(name) in linear:
            check_targets(folder, [name])
        raise ValueError(f'{path} has {name}, which adapts no linear weight of a {cfg.family} model')
    return unflatten_dict(flat, sep='/')


def _stacked(tensors: dict[str, np.ndarray], names: Sequence[str | None]) -> np.ndarray:
    """Take the named tensors, [out, in], out of `tensors`, and stack them to [L, in, out]. A name None gives zeros."""
    if missing := [name for name in names if name and name not in tensors]:
        raise ValueError(f'{TENSORS} has no {missing[0]}; an adapter has to be on every layer that its config names')
    parts = [tensors.pop(name).T if name else None for name in names]
    shapes = {part.shape: name for part, name in zip(parts, names, strict=True) if part is not None}
    if len(shapes) > 1:
        raise ValueError(f'{TENSORS} has {" and ".join(f"{name} {shape[::-1]}" for shape, name in shapes.items())}')
    zeros = np.zeros(next(iter(shapes)), np.float32)
    for name, part in zip(names, parts, strict=True):
        check_finite(zeros if part is None else part, f'{name} of {TENSORS}')
    return np.stack([zeros if part is None else part for part in parts])


def _on(weight: Any, a: np.ndarray, b: np.ndarray, scale: float, where: str) -> LoraWeight:
    if a.shape[0] != weight.shape[0] or a.shape[1] * b.shape[2] != weight[0].size or a.shape[2] != b.shape[1]:
        raise ValueError(f'{where} of the model has shape {weight.shape}, its adapter {a.shape} and {b.shape}')
    return LoraWeight(weight, jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), scale)


def _on_head(weight: Any, a: np.ndarray, b: np.ndarray, scale: float) -> LoraWeight:
    if (b.shape[1], a.shape[0]) != weight.shape or a.shape[1] != b.shape[0]:
        raise ValueError(f'{lora.HEAD} of the model has shape {weight.shape}, its adapter {a.shape} and {b.shape}')
    return LoraWeight(weight, jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32), scale)


def read_tokenizer(folder: str | Path, base: Tokenizer) -> Tokenizer:
    """The tokenizer and chat template in an adapter's folder, or those of its base where it has none.

    Raises:
      ValueError: the folder has a tokenizer in another form than tokenizer.json.
    """
    folder = Path(folder)
    if any((folder / name).exists() for name in ('tokenizer.json', 'tokenizer_config.json', 'tokenizer.model')):
        # The tokens that end the base's texts end texts here, too.
        return tokenizer.from_folder(folder, base.stop_ids)
    template = folder / 'chat_template.jinja'
    return base.with_template(template.read_text('utf-8')) if template.exists() else base


def load_merged(params: Params, cfg: ModelConfig, folder: str | Path) -> Params:
    """Plain weights with the adapters of `folder` merged into them."""
    return jax.jit(lora.merge)(attach(params, cfg, folder))
