"""A model opened to be talked with, and how it wants to be talked with."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from jax.sharding import Mesh

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.page import PLAIN, Preset
from pal_jax.feedback.profiles import render_completion
from pal_jax.models import sources
from pal_jax.models.config import ModelConfig
from pal_jax.models.sources import Source
from pal_jax.recipes.recipe import Context, open_run, read_config
from pal_jax.recipes.rlpa import make_sampling
from pal_jax.recipes.world import make_world
from pal_jax.runtime import devices

CACHE = '~/.cache/pal_jax/compiled'


def open_model(source: str, dtype: str, max_len: int) -> tuple[Source, ModelConfig, Tokenizer, Mesh]:
    """The source, the model as this machine computes it, its tokenizer, and a mesh of all devices.

    Raises:
      ValueError, RuntimeError: as `sources.resolve`.
    """
    devices.initialize(Path(CACHE).expanduser())
    mesh = devices.make_mesh()
    found = sources.resolve(
        source, open_run=lambda run: open_run(run, Context(mesh, lambda _: contextlib.nullcontext()))
    )
    cfg = devices.for_platform(found.config, dtype)
    return found, dataclasses.replace(cfg, max_len=min(cfg.max_len, max_len)), found.tokenizer(), mesh


def chat_preset(source: str) -> Preset:
    """How to talk with the model: as in its training with a run of RLPA, plainly with any other."""
    kind, _, workdir = source.partition(':')
    if kind != 'orbax' or (config := read_config(workdir)).recipe != 'rlpa':
        return PLAIN
    return Preset(make_world(config).system, render_completion('{profile}', '{reply}'), make_sampling(config))
