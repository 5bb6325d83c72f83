"""A model opened to be talked with, and how it wants to be talked with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from absl import flags
from jax.sharding import Mesh

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.choose import Decoder
from pal_jax.decode.page import PLAIN, Preset
from pal_jax.feedback.profiles import render_completion
from pal_jax.models import sources
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import decoder_specs
from pal_jax.models.sources import Source
from pal_jax.parts.dialogues import Dialogues
from pal_jax.parts.models import Policy
from pal_jax.parts.recipe import Context
from pal_jax.parts.runs import open_run, read_config, read_settings
from pal_jax.parts.sampler import make_decoder
from pal_jax.parts.world import make_system
from pal_jax.runtime import devices, sharding
from pal_jax.runtime.checkpoint import KEPT

SOURCE = flags.DEFINE_string('source', sources.EMBEDDED, 'The model.')
SOURCES = flags.DEFINE_list('sources', [], 'Several models, of commands that take them.')
CACHE = '~/.cache/pal_jax/compiled'


def open_model(source: str, dtype: str, max_len: int) -> tuple[Source, ModelConfig, Tokenizer, Mesh]:
    """The source, the model as this machine computes it, its tokenizer, and a mesh of all devices.

    Raises:
      ValueError, RuntimeError: as `sources.resolve`.
    """
    devices.initialize(Path(CACHE).expanduser())
    mesh = devices.make_mesh()
    found = sources.resolve(source, open_run=lambda run: open_run(run, Context(mesh)))
    cfg = devices.for_platform(found.config, dtype)
    return found, dataclasses.replace(cfg, max_len=min(cfg.max_len, max_len)), found.tokenizer(), mesh


def open_decoder(settings: Dialogues, source: str) -> tuple[Decoder, Tokenizer]:
    """A model that samples as a run of these settings would, with its weights, and its tokenizer.

    Raises:
      ValueError, RuntimeError: as `sources.resolve`.
    """
    mesh = devices.make_mesh(**dataclasses.asdict(settings.mesh))
    context = Context(mesh)
    found = sources.resolve(source, seed=settings.seed, open_run=lambda run: open_run(run, context))
    cfg, tokenizer = devices.for_platform(found.config, settings.policy.dtype), found.tokenizer()
    decode = dataclasses.replace(settings.decode, shares=1)
    decoder = make_decoder(decode, Policy(cfg, tokenizer, found), context)
    decoder.load(found.load(sharding.param_shardings(decoder_specs(cfg), mesh)))
    return decoder, tokenizer


def chat_preset(source: str) -> Preset:
    """How to talk with the model: as in its training with a run of RLPA, plainly with any other."""
    kind, _, workdir = source.partition(':')
    settings = read_settings(read_config(workdir)) if kind == 'orbax' else None
    if not isinstance(settings, Dialogues):
        return PLAIN
    system = make_system(settings, Path(workdir) / KEPT)
    return Preset(system, render_completion('{profile}', '{reply}'), settings.sampling)
