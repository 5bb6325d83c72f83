"""Runs that are opened: the models that they trained, as sources of other runs or as exports, and the folders they
read."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from pal_jax.models.files import hf, peft, sources
from pal_jax.models.files.sources import Source
from pal_jax.models.params import Params, cast
from pal_jax.run import devices, sharding
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.recipe import Context, Export, Trained
from pal_jax.run.settings import Run, parse
from pal_jax.run.workdir import read_run

STAGE_KEYS = 'stage', 'preference'  # keys that tell the stage of a run in which a config is used


def read_config(workdir: str) -> ConfigDict:
    """The config of the run in `workdir`. Raises ValueError where the folder is not that of a run."""
    return ConfigDict(read_run(Path(workdir)))


def recipe_module(config: ConfigDict) -> Any:
    """The module `pal_jax.recipes.<config.recipe>`. Raises ValueError where there is no such method."""
    try:
        return importlib.import_module(f'pal_jax.recipes.{config.recipe}')
    except ModuleNotFoundError:
        raise ValueError(f'recipe={config.recipe!r} is no method of this package; see pal_jax/recipes') from None


def read_settings(config: ConfigDict) -> Run:
    """The settings of a run, or of a stage of a run, as its method defines them.

    Raises:
      ValueError: as `recipe_module` and `settings.parse`.
    """
    module = recipe_module(config)
    kind = getattr(module, 'STAGES', {}).get(config.get('stage'), module.Settings)
    return parse(kind, config, besides=STAGE_KEYS)


def folders_read(named: Any) -> list[Path]:
    """The folders that a source or the sources of a config name, and those that the runs and adapters in them name."""
    if isinstance(named, Mapping | ConfigDict):
        return [folder for value in named.values() for folder in folders_read(value)]
    if isinstance(named, list | tuple):
        return [folder for value in named for folder in folders_read(value)]
    kind, _, name = named.rpartition(':') if isinstance(named, str) else ('', '', '')
    folder = Path(name)
    if not kind or not name or not folder.is_dir():
        return []
    if (folder / peft.CONFIG).exists():
        return [folder, *folders_read(sources.base_source(peft.read_config(folder).base))]
    return [folder, *(folders_read(read_config(name)) if kind.endswith('orbax') else [])]


def trained_in(workdir: str, ctx: Context) -> Trained:
    """The model that the run in `workdir` trains.

    Raises:
      ValueError: the folder is not that of a run, or the run has no language model.
    """
    config = read_config(workdir)
    try:
        recipe, settings = recipe_module(config), read_settings(config)
    except ValueError as error:
        raise ValueError(f'{workdir}: {error}') from None
    make = getattr(recipe, 'make_trained', None)
    trained: Trained | None = make(settings, ctx.of(workdir)) if make else None
    if trained is None:
        raise ValueError(f'{workdir} is a run of {config.recipe} that trains no language model; name another')
    return trained


def load_trained(workdir: str, step: int | None = None) -> tuple[dict[str, Export], int]:
    """The models of a run by the name of their folder, on one device, and the step they were saved at.

    Raises:
      ValueError: as `trained_in`, or there is no checkpoint, or none of that step.
    """
    mesh = devices.make_mesh(devices=jax.local_devices()[:1])
    trained = trained_in(workdir, Context(mesh))
    state, _, step = Checkpoints(workdir, trained.exported, read_only=True).read(step)
    return trained.exports(state), step


def write_exports(exports: dict[str, Export], folder: Callable[[str], Path]) -> None:
    """Write models as Hugging Face folders; all processes take part, and the first one writes."""
    for name, export in exports.items():
        params, head = sharding.to_host((export.params, export.head))
        if jax.process_index() == 0:
            about: Any = {'labels': export.labels, 'more': export.more}
            hf.save(params, export.model, export.tokenizer, folder(name), head=head, **about)


def open_run(workdir: str, ctx: Context) -> Source:
    """The model that a run has trained, in its last whole checkpoint, as a source for another run (`orbax:<workdir>`).

    Raises:
      ValueError: as `trained_in`, or there is no checkpoint.
    """
    trained = trained_in(workdir, ctx)
    checkpoints = Checkpoints(workdir, trained.exported, read_only=True)
    if checkpoints.latest is None:
        raise ValueError(f'{workdir} has no checkpoint; train it first')

    def load(shardings: Params | None = None, dtype: str = 'float32') -> Params:
        state, *_ = checkpoints.read()
        params = cast(next(iter(trained.exports(state).values())).params, dtype)
        return jax.device_put(params, shardings) if shardings else params

    return Source(trained.model, lambda: trained.tokenizer, load)
