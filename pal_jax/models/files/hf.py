"""Hugging Face folders, both ways: safetensors <-> parameters, bit for bit, as `families` names them.

Leaves go to the devices one by one. A process reads the part of a leaf that its own devices hold, so the host never has
more than a share of one leaf. On the way out the host has the tensors of one file.
"""

from __future__ import annotations

import functools
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.models.config import ModelConfig
from pal_jax.models.files import tensors
from pal_jax.models.files.families import FAMILIES, Names, classifier_to_hf, config_from_hf, config_to_hf, token_ids
from pal_jax.models.files.tensors import TensorLike
from pal_jax.models.params import Params, ParamSpec, decoder_specs
from pal_jax.run.files import read_object, short_repr
from pal_jax.run.outputs import whole_folder

# A function that opens a tensor by its name.
Read = Callable[[str], TensorLike]
# The number of a matrix's rows that are compared at once.
ROWS = 1 << 14

# A torch Linear is stored [out, in]. These are the numbers of a leaf's leading axes that are its `in`. Other leaves
# keep the order of their axes.
IN_AXES = {f'layers/{path}': 1 for path in ('attn/q', 'attn/k', 'attn/v', 'mlp/gate', 'mlp/up', 'mlp/down')}
IN_AXES['layers/attn/o'] = 2


# --- reading --------------------------------------------------------------------------------------------------------


def read_config(folder: str | Path) -> ModelConfig:
    """The `ModelConfig` of a folder's config.json. No weights are read.

    Raises:
      ValueError: there is no config.json, or as `config_from_hf`.
    """
    path = Path(folder) / 'config.json'
    if not path.exists():
        raise ValueError(f'no config.json in {folder}; give the folder of a Hugging Face model')
    config = read_object(path)
    try:
        cfg = config_from_hf(config)
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from None
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f'{path}: a field is missing, or no number where one is due ({error!r})') from None
    for name in ('vocab', 'width', 'layers', 'heads', 'kv_heads', 'head_dim', 'mlp', 'max_len'):
        if type(size := getattr(cfg, name)) is not int or not 0 < size < 2**31:
            raise ValueError(
                f'{path}: the {name} that it gives is {short_repr(size)}; it must be a whole number above 0'
            )
    return cfg


def load_params(
    folder: str | Path, cfg: ModelConfig, shardings: Params | None = None, dtype: str = 'float32'
) -> Params:
    """The parameters in a folder's safetensors, one file or many. `shardings` is a tree like the parameters.

    Raises:
      ValueError: there are no safetensors, they are quantised, their names or shapes are not those of `cfg`, or a
        number is not finite.
    """
    files, names = tensors.files(Path(folder)), FAMILIES[cfg.family].names
    for path in set(files.values()):
        tensors.check_kinds(path)
    optional = {names['unembed']} if cfg.tie_embed else set()
    # Old checkpoints have the rotary frequencies, which follow from the config.
    extra = {name for name in files if not name.endswith('rotary_emb.inv_freq')} - optional
    if cfg.tie_embed and {names['embed'], names['unembed']} <= files.keys():
        _check_tied(*(tensors.stored(files[name], name) for name in (names['embed'], names['unembed'])))

    return assemble(cfg, names, lambda name: tensors.stored(files[name], name), extra, shardings, dtype)


def _check_tied(embed: TensorLike, unembed: TensorLike) -> None:
    """Raise ValueError where two matrices `[V, D]` that a config ties to each other differ."""
    rows = embed.shape[0]
    parts = [slice(start, min(start + ROWS, rows)) for start in range(0, rows, ROWS)]
    # transformers 4 would compute with the first matrix alone, and 5 with both.
    if embed.shape != unembed.shape or not all(np.array_equal(embed[part], unembed[part]) for part in parts):
        raise ValueError(
            'the checkpoint has an lm_head.weight that differs from its embeddings, the config '
            'tie_word_embeddings=true; set it to false if the model has an output matrix of its own, or save the model '
            'without lm_head.weight'
        )


def assemble(
    cfg: ModelConfig, names: Names, read: Read, present: Iterable[str], shardings: Params | None, dtype: str
) -> Params:
    """The parameters from tensors in torch's layout, which `read` gives by name.

    A process reads the parts of a leaf that its devices hold, and puts them there before it reads the next leaf.

    Raises:
      ValueError: `present` lacks a tensor of `cfg` or has one that `cfg` has no place for, a shape differs, or a number
        is not finite.
    """
    specs = by_path(decoder_specs(cfg))
    places: dict[str, Any] = by_path(shardings) if shardings else dict.fromkeys(specs)
    _check_names({name for path in specs for name, _ in _slots(path, names, cfg)}, set(present))
    leaves = {
        path: _put(functools.partial(_part, path, specs, cfg, names, read, dtype), specs[path], place)
        for path, place in places.items()
    }
    return dict(unflatten_dict(leaves, sep='/'))


def by_path(tree: Params) -> dict[str, Any]:
    """The leaves of a tree by their path, such as 'layers/attn/q'."""
    return dict(flatten_dict(tree, sep='/'))


def _slots(path: str, names: Names, cfg: ModelConfig) -> list[tuple[str, Any]]:
    """The names of a leaf's tensors, each with its index in the leaf."""
    if path.startswith('layers/'):
        return [(names[path].format(i), i) for i in range(cfg.layers)]
    return [(names[path], ...)]


def _check_names(needed: set[str], present: set[str]) -> None:
    for fault, names in (('has no', needed - present), ('has unexpected', present - needed)):
        if names:
            some = ', '.join(sorted(names)[:3])
            raise ValueError(f'the checkpoint {fault} {some} ({len(names)} in all); does its config belong to it?')


def _part(
    path: str,
    specs: Mapping[str, ParamSpec],
    cfg: ModelConfig,
    names: Names,
    read: Read,
    dtype: str,
    index: tuple[slice, ...],
) -> np.ndarray:
    """The part of a leaf that `index`, a slice for each axis, cuts, read from the leaf's tensors."""
    shapes = {
        leaf_path: _torch_shape(leaf_path, specs[leaf_path].shape)
        for leaf_path in specs
        if names[leaf_path] == names[path]
    }
    rows = [shape[0] for shape in shapes.values()]
    expected = (sum(rows), *shapes[path][1:])
    # Where a tensor holds other leaves, too, the rows of this leaf are read.
    start = sum(rows[: list(shapes).index(path)])
    where, remaining = _torch_index(path, index, specs[path].shape)
    where = slice(start + where[0].start, start + where[0].stop), *where[1:]

    def cut(name: str) -> np.ndarray:
        tensor = read(name)
        if tensor.shape != expected:
            raise ValueError(
                f'{name} has shape {tensor.shape}, the config says {expected}; does the config belong to it?'
            )
        x = tensor[where]
        tensors.check_finite(x, name)
        return (x.T if path in IN_AXES else x).reshape(remaining.shape)[remaining.cuts]

    if not path.startswith('layers/'):
        return cut(names[path]).astype(dtype)
    layers = range(cfg.layers)[index[0]]
    part = np.empty((len(layers), *np.empty(remaining.shape, bool)[remaining.cuts].shape), jnp.dtype(dtype))
    for i, layer in enumerate(layers):
        part[i] = cut(names[path].format(layer))
    return part


class PartialArray(NamedTuple):
    """The shape of a read array as a part of a leaf, and the slices of its axes that remain to be cut."""

    shape: tuple[int, ...]
    cuts: tuple[slice, ...]


def _torch_index(path: str, index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[tuple[slice, ...], PartialArray]:
    """The slices that read a part of a leaf from one of its tensors, and what remains to be cut then."""
    if path.startswith('layers/'):
        index, shape = index[1:], shape[1:]
    index = tuple(slice(*part.indices(size)) for part, size in zip(index, shape, strict=True))
    inputs = IN_AXES.get(path, 0)
    groups = [range(inputs, len(shape)), range(inputs)] if inputs else [range(len(shape))]
    if not inputs and not path.endswith('_bias'):
        return index, PartialArray(tuple(part.stop - part.start for part in index), (slice(None),) * len(shape))
    where, cut, remaining = [], list(shape), list(index)
    # Where torch has several axes as one, the first of them alone is cut in the tensor.
    for first, *merged in groups:
        size = math.prod(shape[axis] for axis in merged)
        where.append(slice(index[first].start * size, index[first].stop * size))
        cut[first], remaining[first] = index[first].stop - index[first].start, slice(None)
    return tuple(where), PartialArray(tuple(cut), tuple(remaining))


def _to_torch(path: str, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return x.reshape(shape[::-1]).T if path in IN_AXES else x.reshape(shape)


def _torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one tensor of a leaf in torch. A Linear is [out, in], and the heads of a bias are one axis."""
    shape = shape[1:] if path.startswith('layers/') else shape
    if inputs := IN_AXES.get(path):
        return math.prod(shape[inputs:]), math.prod(shape[:inputs])
    return (math.prod(shape),) if path.endswith('_bias') else shape


def _put(part: Callable[[tuple[slice, ...]], np.ndarray], spec: ParamSpec, place: Sharding | None) -> jax.Array:
    """A leaf on its devices."""
    if place is None:
        return jnp.array(part((slice(None),) * len(spec.shape)))
    parts: dict[Any, np.ndarray] = {}

    def of(index: Any) -> np.ndarray:
        # Devices that hold the same part share one reading of it.
        key = tuple(cut.indices(size) for cut, size in zip(index, spec.shape, strict=True))
        if key not in parts:
            parts[key] = part(index)
        return parts[key]

    return jax.make_array_from_callback(spec.shape, place, of)


# --- writing --------------------------------------------------------------------------------------------------------


def save(
    params: Params,
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    folder: str | Path,
    dtype: str = 'float32',
    file_bytes: int = 4 << 30,
    head: np.ndarray | jax.Array | None = None,
    labels: Sequence[str] = ('reward',),
    more: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write a folder that `AutoModelForCausalLM` and `AutoTokenizer` load. LoRA weights must have been merged.

    With the `head` of a scorer, `[D, K]`, the folder is one for `AutoModelForSequenceClassification` with K `labels`,
    none of which excludes another. `more` are further keys of config.json.

    The folder is complete or does not exist.

    Raises:
      ValueError: the folder exists, see `outputs.check_folder`, or the family has no classifier.
    """
    beside = None
    if head is None:
        config = config_to_hf(cfg, tokenizer, dtype)
    else:
        # A classifier reads the last token that is not padding.
        tokenizer = tokenizer.padding_apart()
        config, beside = classifier_to_hf(cfg, tokenizer, dtype, labels), {'score.weight': np.asarray(head).T}
    write(params, cfg, tokenizer, folder, {**config, **more}, dtype, file_bytes, beside)


def write(
    params: Params,
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    folder: str | Path,
    config: Mapping[str, Any],
    dtype: str = 'float32',
    file_bytes: int = 4 << 30,
    beside: Mapping[str, np.ndarray] | None = None,
    code: Path | None = None,
) -> None:
    """Write the folder of any model around a decoder.

    It has its own `config`, the tensors `beside` the decoder's in place of the unembedding, and the file `code` that
    loads it. The other arguments are those of `save`.
    """
    with whole_folder(Path(folder)) as partial:
        _write_json(partial / 'config.json', config)
        _write_json(partial / 'generation_config.json', token_ids(tokenizer))
        tokenizer.save(partial)
        if code:
            shutil.copy(code, partial)
        _write_tensors(params, cfg, partial, dtype, file_bytes, beside)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')


def _write_tensors(
    params: Params, cfg: ModelConfig, folder: Path, dtype: str, file_bytes: int, beside: Mapping[str, np.ndarray] | None
) -> None:
    leaves, names = by_path(params), FAMILIES[cfg.family].names
    if beside is not None:
        leaves, names = {**leaves, **beside}, {**names, **{name: name for name in beside}}
        leaves.pop('unembed', None)
    shapes = {path: _torch_shape(path, leaf.shape) for path, leaf in leaves.items()}
    # The leaves in each tensor, by its name, and the place in each leaf.
    parts: dict[str, list[tuple[str, Any]]] = {}
    for path in sorted(leaves, key=list(names).index):
        for name, at in _slots(path, names, cfg):
            parts.setdefault(name, []).append((path, at))

    def tensor(name: str) -> np.ndarray:
        rows = [_to_torch(p, np.asarray(leaves[p][at], jnp.dtype(dtype)), shapes[p]) for p, at in parts[name]]
        # The array must be contiguous, since safetensors writes its buffer and ignores strides.
        return np.ascontiguousarray(rows[0] if len(rows) == 1 else np.concatenate(rows))

    itemsize = jnp.dtype(dtype).itemsize
    sizes = [sum(math.prod(shapes[path]) for path, _ in leaves_in) * itemsize for leaves_in in parts.values()]
    groups = list(_grouped(list(parts), sizes, file_bytes))
    weight_map = {}
    for i, group in enumerate(groups, 1):
        file = tensors.SINGLE if len(groups) == 1 else f'model-{i:05}-of-{len(groups):05}.safetensors'
        tensors.save({name: tensor(name) for name in group}, folder / file)
        weight_map |= dict.fromkeys(group, file)
    if len(groups) > 1:
        index = {'metadata': {'total_size': sum(sizes)}, 'weight_map': weight_map}
        _write_json(folder / tensors.INDEX, index)


def _grouped(items: list[Any], sizes: list[int], limit: int) -> Iterator[list[Any]]:
    """Groups of neighbouring items whose sizes add up to at most `limit`. A larger item is a group of its own."""
    group, total = [], 0
    for item, size in zip(items, sizes, strict=True):
        if group and total + size > limit:
            yield group
            group, total = [], 0
        group.append(item)
        total += size
    yield group
