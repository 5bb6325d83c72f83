"""Opens a model to talk with, and finds the system prompt and the sampling that it was trained with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from absl import flags
from jax.sharding import Mesh

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.choose import Decoder
from pal_jax.decode.sampler import make_decoder
from pal_jax.decode.serve.page import PLAIN, Preset
from pal_jax.models.config import ModelConfig
from pal_jax.models.files import sources
from pal_jax.models.files.sources import Source
from pal_jax.models.params import decoder_specs
from pal_jax.recipes.rlpa.profiles import render_completion
from pal_jax.recipes.rlpa.settings import Dialogues
from pal_jax.recipes.rlpa.world import make_system
from pal_jax.run import cli, devices, sharding
from pal_jax.run.models import SYSTEM, Policy
from pal_jax.run.recipe import KEPT, Context
from pal_jax.run.runs import read_settings
from pal_jax.run.trained import open_run
from pal_jax.run.workdir import CONFIG, read_run

CACHE = '~/.cache/pal_jax/compiled'


def source_of(name: str) -> str:
    """The source that a flag names: a run is `orbax:FOLDER`, a folder of transformers `hf:FOLDER`, one of an adapter
    `peft:FOLDER`, and a GGUF file `gguf:FILE`. Any other name stays as it is.

    Raises:
      ValueError: the folder has the stages of a run, of which one has to be named.
    """
    folder = Path(name).expanduser()
    if kind := sources.kind_of(folder):
        return f'{kind}:{name}'
    stages = folder.is_dir() and [*folder.glob(CONFIG), *folder.glob(f'*/{CONFIG}')]
    return f'orbax:{name}' if stages and read_run(folder) else name


class SourceParser(flags.ArgumentParser):
    """Reads the value of --source by `source_of`."""

    def parse(self, argument: str) -> str:
        return source_of(argument)


class SourcesParser(flags.ListParser):
    """Reads the values of --sources by `source_of`."""

    def parse(self, argument: str | list[str]) -> list[str]:
        return list(map(source_of, super().parse(argument)))


SOURCE = flags.DEFINE(SourceParser(), 'source', sources.EMBEDDED, 'The model.')
SOURCES = flags.DEFINE(SourcesParser(), 'sources', [], 'Several models, of commands that take them.')


def source_or_run() -> str:
    """The source that --source names, or the run that --workdir names.

    Raises:
      Fault: both are given, or --workdir is no folder of one run.
    """
    if cli.WORKDIR.value is None:
        return SOURCE.value
    if SOURCE.present:
        raise cli.Fault(f'--source={SOURCE.value} and --workdir={cli.WORKDIR.value} name two models; give one')
    return cli.faults(lambda: source_of(str(cli.workdir())))


def open_model(source: str, dtype: str, max_len: int) -> tuple[Source, ModelConfig, Tokenizer, Mesh]:
    """The source of a model, its config for this machine, its tokenizer, and a mesh of all devices.

    Raises:
      ValueError, RuntimeError: as `sources.resolve`.
    """
    devices.initialize(Path(CACHE).expanduser())
    mesh = devices.make_mesh()
    model = sources.resolve(source, open_run=lambda run: open_run(run, Context(mesh)))
    cfg = devices.for_platform(model.config, dtype)
    return model, dataclasses.replace(cfg, max_len=min(cfg.max_len, max_len)), model.tokenizer(), mesh


def open_decoder(settings: Dialogues, source: str) -> tuple[Decoder, Tokenizer]:
    """A decoder of the source's model, with its weights, that samples as a run of these settings would; its tokenizer.

    Raises:
      ValueError, RuntimeError: as `sources.resolve`.
    """
    mesh = devices.make_mesh(**dataclasses.asdict(settings.mesh))
    context = Context(mesh)
    model = sources.resolve(source, seed=settings.seed, open_run=lambda run: open_run(run, context))
    cfg, tokenizer = devices.for_platform(model.config, settings.policy.dtype), model.tokenizer()
    # A single decoder samples, however many a run has side by side.
    decode = dataclasses.replace(settings.decode, shares=1)
    decoder = make_decoder(decode, Policy(cfg, tokenizer, model), context)
    decoder.load(model.load(sharding.param_shardings(decoder_specs(cfg), mesh)))
    return decoder, tokenizer


def chat_preset(source: str) -> Preset:
    """The system prompt, layout and sampling to talk with a model.

    A run of RLPA is talked with as in its training, and one on rows with the system prompt of its rows, where all of
    them have the same; any other model plainly.

    Raises:
      ValueError: the model is one that scores texts.
    """
    kind, _, workdir = source.partition(':')
    settings = read_settings(workdir) if kind == 'orbax' else None
    if settings and settings.recipe.startswith('scorer.'):
        raise ValueError(
            f'{workdir} has a model that scores texts ({settings.recipe}) and does not talk; '
            f'pal-jax score --source={workdir} scores with it'
        )
    kept = Path(workdir) / KEPT
    if not isinstance(settings, Dialogues):
        is_kept = settings is not None and (kept / SYSTEM).is_file()
        return PLAIN._replace(system=(kept / SYSTEM).read_bytes().decode()) if is_kept else PLAIN
    system = make_system(settings, kept)
    return Preset(system, render_completion('{profile}', '{reply}'), settings.sampling)
