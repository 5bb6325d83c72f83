"""The language model that a run trains: what it takes to open, export or merge it, and to go on from it elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.learners.actor import ActorState
from pal_jax.models.config import ModelConfig
from pal_jax.models.files import hf, peft, sources
from pal_jax.models.files.sources import Source
from pal_jax.models.params import Params, cast
from pal_jax.run import devices, sharding
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.recipe import Context
from pal_jax.run.runs import read_settings, recipe_module
from pal_jax.run.workdir import read_run

FOLDED = "The model's chat template takes no system prompt: it stands at the head of the first user message."


class Adapters(NamedTuple):
    """The trained part of an adapted model: the trainable tree (see `models.lora.split`) and its base's source."""

    params: Params
    base: str
    dropout: float


class Export(NamedTuple):
    """A model in the form of Hugging Face, with its adapters merged, and the adapters by themselves if it has any."""

    params: Params
    model: ModelConfig
    tokenizer: Tokenizer
    adapters: Adapters | None = None
    # The head of a scorer, which stands in place of the unembedding.
    head: jax.Array | None = None
    # The names of the head's outputs.
    labels: Sequence[str] = ('reward',)
    # Further keys of the config.json.
    more: Mapping[str, Any] = MappingProxyType({})


class TrainedModel(NamedTuple):
    """The language model that a method trains: all that it takes to open, export or merge a run.

    A recipe's `make_trained(settings, ctx)` makes it without people, judges or rows, which may be gone or elsewhere.
    """

    # Models by the name of their folder.
    exports: Callable[[Any], dict[str, Export]]
    # Shapes and shardings of the part of the state that `exports` reads; the rest is `...`.
    exported: Any
    # The config and the tokenizer of the first export.
    model: ModelConfig
    tokenizer: Tokenizer
    # The part of a state that is an actor's, where there is one.
    actor: Callable[[Any], ActorState] = lambda state: state

    @property
    def notes(self) -> Sequence[str]:
        """Remarks on the model for the report of a run."""
        return [FOLDED] if self.tokenizer.folded else []

    def write(self, state: Any, workdir: Path) -> None:
        """Write the models of a state as Hugging Face folders below `workdir`; all processes take part."""
        write_exports(self.exports(state), lambda name: workdir / name)


def folders_read(named: Any) -> list[Path]:
    """The folders that a source or the sources of a config name, and those that the runs and adapters in them name."""
    if isinstance(named, Mapping):
        return [folder for value in named.values() for folder in folders_read(value)]
    if isinstance(named, list | tuple):
        return [folder for value in named for folder in folders_read(value)]
    kind, _, name = named.rpartition(':') if isinstance(named, str) else ('', '', '')
    folder = Path(name)
    if not kind or not name or not folder.is_dir():
        return []
    # An adapter stands on a base, whose folders are read as well.
    if (folder / peft.CONFIG).exists():
        return [folder, *folders_read(sources.base_source(peft.read_config(folder).base))]
    return [folder, *(folders_read(read_run(folder)) if kind.endswith('orbax') else [])]


def trained_in(workdir: str, ctx: Context) -> TrainedModel:
    """The model that the run in `workdir` trains.

    Raises:
      ValueError: the folder is not that of a run, or the run has no language model.
    """
    settings = read_settings(workdir)
    make = getattr(recipe_module(settings.recipe), 'make_trained', None)
    trained: TrainedModel | None = make(settings, ctx.of(workdir)) if make else None
    if trained is None:
        raise ValueError(f'{workdir} is a run of {settings.recipe} that trains no language model; name another')
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
