"""Makes a training server's worker of a model."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import jax
from jax.sharding import Mesh

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.local import LocalDecoder
from pal_jax.models.files import sources
from pal_jax.models.files.sources import Source
from pal_jax.models.params import decoder_specs
from pal_jax.run import devices, sharding
from pal_jax.training_server.sampler import Bank, Sampler, never_ending
from pal_jax.training_server.store import Store
from pal_jax.training_server.trainer import Base, Trainer
from pal_jax.training_server.worker import Worker

# The unit of the lengths of the decoder's caches, in tokens.
GRAIN = 256


def resolved(model: str, workdir: Path) -> tuple[Source, str, str]:
    """The model, the source that saved adapters name as their base, and the base's name for clients.

    `model` is a Hugging Face folder or hub id, or another source of `models.files.sources`. Clients hand the name to
    `AutoTokenizer`. For a source that it cannot open, the name is that of a folder in `workdir` with its tokenizer and
    config.

    Raises:
      ValueError, RuntimeError: as `sources.resolve`.
    """
    if not model.startswith(('gguf:', 'hf:', 'peft:', 'random:')):
        model = f'hf:{model}'
    source, plain = sources.resolve(model), model.removeprefix('hf:')
    if plain != model:
        return source, plain, plain
    # The client cuts a name at a colon.
    folder = workdir.absolute() / 'bases' / re.sub(r'[^\w.-]+', '_', model)
    if jax.process_index() == 0:
        sources.keep(folder, source, source.tokenizer())
    return source, model, str(folder)


def make_worker(
    model: str, workdir: Path, mesh: Mesh, *, dtype: str = 'auto', max_len: int = 2048, max_rank: int = 32,
    rows: int = 4, slots: int = 32, bank: int = 4, scan_layers: bool = False,
) -> tuple[Worker, Tokenizer]:  # fmt: skip
    """The worker of a model, see `resolved`, and the model's tokenizer.

    Raises:
      ValueError, RuntimeError: as `resolved`, or a dimension of the model does not divide over the mesh.
    """
    source, origin, name = resolved(model, workdir)
    cfg = devices.for_platform(source.config, dtype, scan_layers=scan_layers)
    tied, tokenizer = cfg.tie_embed, source.tokenizer()
    cfg = dataclasses.replace(cfg, max_len=min(cfg.max_len, max_len))
    params = source.load(sharding.param_shardings(decoder_specs(cfg), mesh))
    if tied:
        # An adapter on the output matrix leaves the embeddings as they are, so the matrix is a leaf of its own. Both
        # leaves are one array.
        cfg, params = dataclasses.replace(cfg, tie_embed=False), {**params, 'unembed': params['embed']}
    base = Base(name, origin, cfg, params, mesh)
    decoder = LocalDecoder(cfg, never_ending(tokenizer), mesh, slots=slots, grain=GRAIN)
    trainer, store = Trainer(base, rows=rows, max_rank=max_rank), Store(workdir.absolute() / 'tinker', base)
    return Worker(trainer, store, Sampler(Bank(decoder, base, size=bank, rank=max_rank))), tokenizer
