"""Folders of models merged into a folder, tensor by tensor: Hugging Face's models, sharded or not, and peft's adapters.

A tensor of each model is open at a time, and read block by block (see `models.merging`), so what is in memory does not
depend on the size of the models or on their number. Tokenizer and configs are those of the first, or of the base.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from pal_jax.models import merging, peft, tensors
from pal_jax.models.merging import Updated
from pal_jax.models.tensors import Kind, Tensor
from pal_jax.runtime.outputs import check_folder, whole_folder

METHODS = ('linear', 'delta', 'task_arithmetic', 'ties', 'slerp')
SIDE = ('*.json', '*.jinja', '*.model', '*.txt')  # what goes along with the tensors

Watch = Callable[[int, int], None]  # hears how many tensors are done, of how many


class Settings(NamedTuple):
    """How models are merged; `base`, `k` and `lambda_` where the method has them. See `models.merging`."""

    method: str
    weights: Sequence[float]
    base: Path | None = None
    k: float = 0.2
    lambda_: float = 1.0


class Model(NamedTuple):
    """Tensors by name: the file each is in, what it is, and itself, to be read when it is cut."""

    name: str
    files: Mapping[str, Path]
    kinds: Mapping[str, Kind]
    read: Callable[[str], Tensor]


def is_adapter(folder: Path) -> bool:
    return (folder / peft.CONFIG).exists()


def merge(folders: Sequence[Path], settings: Settings, out: Path, watch: Watch = lambda done, of: None) -> None:
    """Writes the merged model, or of adapters by `linear` the merged adapter, to `out`: there is all of it or nothing.

    Adapters by another method become full weights on `base`.

    Raises:
      ValueError: weights that do not sum to 1, folders that hold no model or not of one kind, adapters of different
        bases, ranks or scales, tensors that not all models have, shapes that differ, a missing base, or an `out` that
        is one of them or somebody else's.
    """
    merging.checked(settings.weights, len(folders))
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
    with whole_folder(out, read) as partial:
        for path in {path for pattern in SIDE for path in first.glob(pattern)}:
            shutil.copy(path, partial)
        _write(models, settings, partial, watch)


def _full(folders: Sequence[Path], settings: Settings, adapters: bool) -> tuple[list[Model], Path]:
    """The models with all their weights, after the base where the method has one, and the folder of the first."""
    if adapters or settings.method in ('task_arithmetic', 'ties'):
        if settings.base is None:
            raise ValueError(f'method {settings.method} needs the model that all started from; give it with --base')
        base = of_folder(settings.base)
        if not adapters:
            return [base, *map(of_folder, folders)], settings.base
        if settings.method == 'delta':
            return [updated(base, folders, settings.weights)], settings.base
        each = [updated(base, [folder], [1.0]) for folder in folders]
        return ([base, *each] if settings.method in ('task_arithmetic', 'ties') else each), settings.base
    if settings.method == 'delta':
        raise ValueError(f'method delta merges the updates of adapters, {folders[0]} is none; take method linear')
    return list(map(of_folder, folders)), folders[0]


def of_folder(folder: Path) -> Model:
    """The model in a Hugging Face folder.

    Raises:
      ValueError: there is none, in safetensors.
    """
    if not (folder / 'config.json').exists():
        raise ValueError(
            f'{folder} is neither the folder of a Hugging Face model nor of a PEFT adapter; check the path'
        )
    return _model(folder, tensors.files(folder))


def of_adapter(folder: Path) -> Model:
    """The factors in a PEFT folder.

    Raises:
      ValueError: there are none, in safetensors.
    """
    path = peft.tensors_of(folder)
    found = _model(folder, dict.fromkeys(tensors.names(path), path))
    peft.check_targets(folder, found.kinds)
    return found


def _model(folder: Path, files: Mapping[str, Path]) -> Model:
    opened = {name: tensors.stored(path, name) for name, path in files.items()}
    kinds = {name: Kind(x.shape, x.dtype) for name, x in opened.items()}
    return Model(str(folder), files, kinds, lambda name: tensors.stored(files[name], name))


def updated(base: Model, folders: Sequence[Path], weights: Sequence[float]) -> Model:
    """`base` with the weighted updates of adapters: `W + sum_i w_i s_i B_i A_i`, W being [out, in].

    Raises:
      ValueError: an adapter's tensor that is no factor of a matrix of the base.
    """
    adapters = [of_adapter(folder) for folder in folders]
    counts = [w * peft.read_config(folder).scale for w, folder in zip(weights, folders, strict=True)]
    for adapter in adapters:
        for name, (shape, _) in adapter.kinds.items():
            weight, axis = f'{peft.module_of(name)}.weight', int('.lora_A.' in name)
            if base.kinds.get(weight, Kind((), np.dtype(bool))).shape[axis : axis + 1] != shape[axis : axis + 1]:
                raise ValueError(f'{adapter.name} has {name} {shape}, which adapts no weight of {base.name}')

    def read(name: str) -> Tensor:
        prefix, x = peft.PREFIX + name.removesuffix('.weight'), base.read(name)
        left, right = f'{prefix}.lora_B.weight', f'{prefix}.lora_A.weight'
        own = [
            (c, each.read(left)[:], each.read(right)[:])
            for c, each in zip(counts, adapters, strict=True)
            if left in each.kinds
        ]
        return Updated(x, own) if own else x

    return base._replace(read=read)


def check_alike(folders: Sequence[Path]) -> None:
    """Raises ValueError where the factors of adapters have no mean: another base, rank or scale."""
    first, *others = [peft.read_config(folder) for folder in folders]
    for folder, other in zip(folders[1:], others, strict=True):
        for what, ours, theirs in zip(('base', 'scale', 'rank'), first, other, strict=True):
            if ours != theirs:
                hint = 'merge adapters of one base' if what == 'base' else 'method delta merges their updates'
                raise ValueError(f'{folders[0]} has {what} {ours} and {folder} {what} {theirs}; {hint}')


def check_tensors(models: Sequence[Model]) -> None:
    """Raises ValueError where a model has other tensors than the first, or of other shapes."""
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


def _write(models: Sequence[Model], settings: Settings, folder: Path, watch: Watch) -> None:
    first = models[0]
    method, done = _method(settings), itertools.count(1)

    def make(name: str) -> np.ndarray:
        made = _merged(models, method, name)
        watch(next(done), len(first.kinds))
        return made

    for path in dict.fromkeys(first.files.values()):
        names = [name for name, file in first.files.items() if file == path]
        tensors.write(folder / path.name, {name: first.kinds[name] for name in names}, make)


def _method(settings: Settings) -> Callable[[list[Any]], np.ndarray]:
    """Of tensors, the base's first where there is one."""
    weights, k, lambda_ = settings.weights, settings.k, settings.lambda_
    match settings.method:
        case 'linear':
            return lambda xs: merging.linear(xs, weights)
        case 'delta':
            return lambda xs: merging.linear(xs, [1.0])
        case 'slerp':
            return lambda xs: merging.slerp(xs, weights)
        case 'task_arithmetic':
            return lambda xs: merging.task_arithmetic(xs[1:], weights, xs[0], lambda_)
        case 'ties':
            return lambda xs: merging.ties(xs[1:], weights, xs[0], k, lambda_)
    raise ValueError(f'unknown method {settings.method!r}; use one of {", ".join(METHODS)}')


def _merged(models: Sequence[Model], method: Callable[[list[Any]], np.ndarray], name: str) -> np.ndarray:
    """A tensor of the merged model. What is no number with a fraction (a buffer) has to be the same in all."""
    xs = [model.read(name) for model in models]
    if jnp.issubdtype(models[0].kinds[name].dtype, jnp.floating):
        return method(xs)
    first, *others = [x[()] for x in xs]
    if any(not np.array_equal(first, other) for other in others):
        raise ValueError(f'{name} is of whole numbers, and they differ; merge models that share it')
    return first
