"""Folders of models merged into a folder, tensor by tensor: Hugging Face's models, sharded or not, and peft's adapters.

One tensor of each model is open at a time, and read block by block (see `models.merging`), so the memory does not
depend on the size of the models or on their number. config.json is that of the first model, or of the base. Tokenizer,
chat template and generation_config.json are those of the first model where it has them.

Everything that gives weights a meaning has to be the same in all models (see `check_meaning`). Models may differ in the
length that a config states (`max_position_embeddings`), in precision, padding token, chat template and
generation_config.json.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from pal_jax.data import tokenizer
from pal_jax.models import merging
from pal_jax.models.files import peft, tensors
from pal_jax.models.files.families import config_from_hf, described
from pal_jax.models.files.fields import IDLE, neutral
from pal_jax.models.files.tensors import TensorLike, TensorSpec
from pal_jax.models.merging import UpdatedMatrix
from pal_jax.run.files import read_object
from pal_jax.run.outputs import check_folder, whole_folder

METHODS = ('linear', 'delta')
SPEECH = frozenset({
    'tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'added_tokens.json', 'tokenizer.model',
    'vocab.json', 'vocab.txt', 'merges.txt', 'chat_template.jinja', 'chat_template.json',
})  # fmt: skip
# The fields of config.json in which models may differ.
FREE = frozenset({'max_position_embeddings', 'model_max_length'})
ROLES = ('bos_token', 'eos_token', 'unk_token')
# The files that go along with the tensors.
SIDE = ('*.json', '*.jinja', '*.model', '*.txt')

Watch = Callable[[int, int], None]  # is called with the number of tensors done and the number of all


class Settings(NamedTuple):
    """The method of merging, `linear` or `delta`, the weights of the models, and the `base` of adapters for `delta`."""

    method: str
    weights: Sequence[float]
    base: Path | None = None


class StoredModel(NamedTuple):
    """A model by its tensors' names: the file and the kind of each, and a function that opens it.

    A tensor's values are read when it is indexed.
    """

    name: str
    files: Mapping[str, Path]
    kinds: Mapping[str, TensorSpec]
    read: Callable[[str], TensorLike]


def is_adapter(folder: Path) -> bool:
    """True for the folder of a PEFT adapter."""
    return (folder / peft.CONFIG).exists()


def merge(folders: Sequence[Path], settings: Settings, out: Path, watch: Watch = lambda done, of: None) -> None:
    """Write the merged model to the folder `out`, which has all of it or does not exist.

    Adapters that are merged by `linear` become an adapter again, and by `delta` full weights on `base`.

    Raises:
      ValueError: the method is unknown; the weights do not sum to 1; a folder has no model; models differ in kind,
        family, config, vocabulary, tensors or shapes; adapters differ in base, rank or scale; a base is missing; a
        result is not finite; or `out` is one of the folders or exists, see `outputs.check_folder`.
    """
    # All that can be told beforehand is checked before a tensor is read.
    merging.checked(settings.weights, len(folders))
    if settings.method not in METHODS:
        raise ValueError(f'method {settings.method!r} is not one of {", ".join(METHODS)}; mergekit has others')
    read = [*folders, *([settings.base] if settings.base else [])]
    check_folder(out, read)
    if len(adapters := [folder for folder in folders if is_adapter(folder)]) not in (0, len(folders)):
        full = next(folder for folder in folders if not is_adapter(folder))
        raise ValueError(f'{adapters[0]} is an adapter and {full} is not; merge models of one kind')
    factors = bool(adapters) and settings.method == 'linear'
    if factors:
        check_alike(folders)
        models, first = [of_adapter(folder) for folder in folders], folders[0]
    else:
        models, first = _full(folders, settings, bool(adapters))
    check_tensors(models)
    check_meaning(folders, settings.base if first == settings.base else None)
    with whole_folder(out, read) as partial:
        for path in _side_files(first, folders[0]):
            shutil.copy(path, partial)
        _write(models, settings, partial, watch)


def _side_files(first: Path, speaker: Path) -> list[Path]:
    """The files that go along with the tensors: those of `first`, but tokenizer and generation config of `speaker`."""
    files = {path.name: path for pattern in SIDE for path in first.glob(pattern)}
    speech = {path.name: path for pattern in SIDE for path in speaker.glob(pattern)}
    speech = {name: path for name, path in speech.items() if name in SPEECH or name == 'generation_config.json'}
    others = {name: path for name, path in files.items() if name not in SPEECH or 'tokenizer.json' not in speech}
    return [*(others | speech).values()]


def _full(folders: Sequence[Path], settings: Settings, adapters: bool) -> tuple[list[StoredModel], Path]:
    """The models with all their weights, of adapters their base with all updates, and the folder of the first."""
    if adapters:
        if settings.base is None:
            raise ValueError(f'method {settings.method} needs the model that all started from; give it with --base')
        return [updated(of_folder(settings.base), folders, settings.weights)], settings.base
    if settings.method == 'delta':
        raise ValueError(f'method delta merges the updates of adapters, {folders[0]} is none; take method linear')
    return list(map(of_folder, folders)), folders[0]


def of_folder(folder: Path) -> StoredModel:
    """The model in a Hugging Face folder.

    Raises:
      ValueError: the folder has no model in safetensors.
    """
    if not (folder / 'config.json').exists():
        raise ValueError(
            f'{folder} is neither the folder of a Hugging Face model nor of a PEFT adapter; check the path'
        )
    return _model(folder, tensors.files(folder))


def of_adapter(folder: Path) -> StoredModel:
    """The factors in a PEFT folder as a model.

    Raises:
      ValueError: the folder has no adapter in safetensors, or a factor is missing or of another rank.
    """
    path = peft.tensors_of(folder)
    model, rank = _model(folder, dict.fromkeys(tensors.names(path), path)), peft.read_config(folder).rank
    peft.check_targets(folder, model.kinds)
    for name, (shape, _) in model.kinds.items():
        if (
            name.replace('.lora_A.', '.lora_B.') not in model.kinds
            or name.replace('.lora_B.', '.lora_A.') not in model.kinds
        ):
            raise ValueError(f'{path} has {name}, but not its other factor; save the adapter again')
        if shape[0 if '.lora_A.' in name else -1] != rank:
            raise ValueError(f'{path} has {name} of shape {shape}, its {peft.CONFIG} r={rank}')
    return model


def _model(folder: Path, files: Mapping[str, Path]) -> StoredModel:
    opened = {name: tensors.stored(path, name) for name, path in files.items()}
    kinds = {name: TensorSpec(x.shape, x.dtype) for name, x in opened.items()}
    return StoredModel(str(folder), files, kinds, lambda name: tensors.stored(files[name], name))


def updated(base: StoredModel, folders: Sequence[Path], weights: Sequence[float]) -> StoredModel:
    """`base` with the weighted updates of adapters: `W + sum_i w_i s_i B_i A_i`, where W is [out, in].

    Raises:
      ValueError: a tensor of an adapter is no factor of a matrix of the base.
    """
    adapters = [of_adapter(folder) for folder in folders]
    counts = [w * peft.read_config(folder).scale for w, folder in zip(weights, folders, strict=True)]
    for adapter in adapters:
        for name, (shape, _) in adapter.kinds.items():
            weight, axis = f'{peft.module_of(name)}.weight', int('.lora_A.' in name)
            if base.kinds.get(weight, TensorSpec((), np.dtype(bool))).shape[axis : axis + 1] != shape[axis : axis + 1]:
                raise ValueError(f'{adapter.name} has {name} {shape}, which adapts no weight of {base.name}')

    def read(name: str) -> TensorLike:
        prefix, x = peft.PREFIX + name.removesuffix('.weight'), base.read(name)
        left, right = f'{prefix}.lora_B.weight', f'{prefix}.lora_A.weight'
        # An adapter need not be on every weight.
        updates = [
            (c, adapter.read(left)[:], adapter.read(right)[:])
            for c, adapter in zip(counts, adapters, strict=True)
            if left in adapter.kinds
        ]
        return UpdatedMatrix(x, updates) if updates else x

    return base._replace(read=read)


def check_alike(folders: Sequence[Path]) -> None:
    """Raise ValueError where the factors of adapters have no mean, since bases, ranks or scales differ."""
    first, *others = [peft.read_config(folder) for folder in folders]
    for folder, config in zip(folders[1:], others, strict=True):
        for part, ours, theirs in zip(('base', 'scale', 'rank'), first, config, strict=True):
            if ours != theirs:
                hint = 'merge adapters of one base' if part == 'base' else 'method delta merges their updates'
                raise ValueError(f'{folders[0]} has {part} {ours} and {folder} {part} {theirs}; {hint}')


def check_meaning(folders: Sequence[Path], base: Path | None) -> None:
    """Raise ValueError where the weights of two models have different meanings.

    That is so where they differ in a config's fields of the forward pass, in the ids of tokens, or in the tokens that
    begin and end texts.
    """
    models = [*([base] if base else []), *(folder for folder in folders if not is_adapter(folder))]
    for other in models[1:]:
        ours, theirs = _comparable(models[0], other)
        for key in (*ours, *theirs):
            if (a := ours.get(key)) != (b := theirs.get(key)):
                raise ValueError(
                    f'{models[0]} has {key}={a!r} in its config.json, {other} {key}={b!r}; merge models of one kind'
                )
    speaking = [folder for folder in ([base] if base else []) + list(folders) if _speech(folder)]
    if silent := [folder for folder in models if folder not in speaking and speaking]:
        raise ValueError(f'{speaking[0]} has a tokenizer, {silent[0]} has none to compare with it; put it there')
    for other in speaking[1:]:
        # The base may end texts with another token, since tuned models often end them otherwise.
        roles = [role for role in ROLES if speaking[0] != base or role != 'eos_token']
        _check_speech(speaking[0], other, roles)
    if base and len(apart := [folder for folder in folders if folder in speaking]) > 1:
        for other in apart[1:]:
            _check_speech(apart[0], other, ROLES)


def _comparable(*folders: Path) -> list[dict[str, Any]]:
    """The fields of configs that decide what a model computes, in one spelling."""
    configs = [read_object(folder / 'config.json') for folder in folders]
    try:
        described_configs = [
            (cfg := config_from_hf(config), described(cfg))[1] | {'alibi': cfg.alibi} for config in configs
        ]
    except ValueError:
        # Configs of models that are not known here keep all fields that may have an effect.
        described_configs = [
            {key: value for key, value in config.items() if key not in IDLE and not neutral(value)}
            for config in configs
        ]
    return [{key: value for key, value in config.items() if key not in FREE} for config in described_configs]


def _speech(folder: Path) -> dict[str, bytes]:
    """The contents of the files that make a tokenizer, by name; empty where a folder has none."""
    names = ('tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'tokenizer.model', 'vocab.json')
    files = {name: (folder / name).read_bytes() for name in names if (folder / name).exists()}
    return files if files.keys() & {'tokenizer.json', 'tokenizer.model', 'vocab.json'} else {}


def _check_speech(first: Path, other: Path, roles: Sequence[str]) -> None:
    """Raise ValueError where tokens have different ids, or the roles have different tokens. Files may differ."""
    ours, theirs = _speech(first), _speech(other)
    if ours == theirs:
        return
    if 'tokenizer.json' not in ours or 'tokenizer.json' not in theirs:
        name = next(name for name in ours | theirs if ours.get(name) != theirs.get(name))
        raise ValueError(
            f'{name} of {first} and {other} differ; save both tokenizers as tokenizer.json to compare them'
        )
    fast = [tokenizer.from_folder(folder, ()).fast for folder in (first, other)]
    ids = [fast_tokenizer.get_vocab() for fast_tokenizer in fast]
    apart = (token for token in ids[0] | ids[1] if ids[0].get(token) != ids[1].get(token))
    if token := min(apart, key=lambda token: ids[0][token] if token in ids[0] else ids[1][token], default=None):
        a, b = ids[0].get(token), ids[1].get(token)
        raise ValueError(f'token {token!r} has id {a} in {first} and {b} in {other}; merge models of one vocabulary')
    for role in roles:
        if (a := getattr(fast[0], role)) != (b := getattr(fast[1], role)):
            raise ValueError(
                f'{first} has {role}={a!r} in its tokenizer, {other} {role}={b!r}; merge models of one kind'
            )


def check_tensors(models: Sequence[StoredModel]) -> None:
    """Raise ValueError where a model has other tensors than the first model, or tensors of other shapes."""
    first = models[0]
    for other in models[1:]:
        for ours, theirs in ((first, other), (other, first)):
            if absent := [name for name in ours.kinds if name not in theirs.kinds]:
                raise ValueError(
                    f'{ours.name} has {absent[0]}, {theirs.name} has not ({len(absent)} in all); merge equals'
                )
        for name, (shape, _) in first.kinds.items():
            if other.kinds[name].shape != shape:
                raise ValueError(
                    f'{name} has shape {shape} in {first.name} and {other.kinds[name].shape} in {other.name}; merge '
                    'models of one shape'
                )


def _write(models: Sequence[StoredModel], settings: Settings, folder: Path, watch: Watch) -> None:
    first = models[0]
    # Adapters by `delta` are one model already, with all their updates.
    weights, done = settings.weights if len(models) > 1 else [1.0], itertools.count(1)

    def make(name: str) -> np.ndarray:
        merged = _merged(models, weights, name)
        watch(next(done), len(first.kinds))
        return merged

    for path in dict.fromkeys(first.files.values()):
        names = [name for name, file in first.files.items() if file == path]
        tensors.write(folder / path.name, {name: first.kinds[name] for name in names}, make)


def _merged(models: Sequence[StoredModel], weights: Sequence[float], name: str) -> np.ndarray:
    """A tensor of the merged model."""
    xs = [model.read(name) for model in models]
    if jnp.issubdtype(models[0].kinds[name].dtype, jnp.floating):
        merged = merging.linear(xs, weights)
        tensors.check_finite(
            merged, f'{name}, merged of {" and ".join(dict.fromkeys(model.name for model in models))},'
        )
        return merged
    # A tensor of whole numbers or truth values has no mean, so it has to be the same in all models.
    first, *others = [x[()] for x in xs]
    if any(not np.array_equal(first, other) for other in others):
        raise ValueError(f'{name} is of whole numbers, and they differ; merge models that share it')
    return first
