"""Makes a training server's service of a model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jax.sharding import Mesh

from pal_jax.decode.local import LocalDecoder
from pal_jax.models.files import sources
from pal_jax.models.params import decoder_specs
from pal_jax.run import devices, sharding
from pal_jax.training_server.sampler import Sampler, never_ending
from pal_jax.training_server.service import Service
from pal_jax.training_server.store import Store
from pal_jax.training_server.trainer import Base, Trainer

# The unit of the lengths of the decoder's caches, in tokens.
GRAIN = 256


def make_service(
    model: str, workdir: Path, mesh: Mesh, *, dtype: str = 'auto', max_len: int = 2048, max_rank: int = 128,
    rows: int = 4, slots: int = 32, line: int = 8192, share: float = 0.5, scan_layers: bool = False,
) -> Service:  # fmt: skip
    """The service of a Hugging Face folder or hub id, or of another source of `models.files.sources`.

    Raises:
      ValueError, RuntimeError: as `sources.resolve`, or a dimension of the model does not divide over the mesh.
    """
    kinds = 'gguf:', 'hf:', 'random:'
    source = sources.resolve(model if model.startswith(kinds) else f'hf:{model}')
    cfg = devices.for_platform(source.config, dtype, scan_layers=scan_layers)
    tied, tokenizer = cfg.tie_embed, source.tokenizer()
    cfg = dataclasses.replace(cfg, max_len=min(cfg.max_len, max_len))
    params = source.load(sharding.param_shardings(decoder_specs(cfg), mesh))
    if tied:
        # An adapter on the output matrix leaves the embeddings as they are, so the matrix is a leaf of its own. Both
        # leaves are one array.
        cfg, params = dataclasses.replace(cfg, tie_embed=False), {**params, 'unembed': params['embed']}
    base = Base(model, cfg, params, mesh)
    decoder = LocalDecoder(cfg, never_ending(tokenizer), mesh, slots=slots, grain=GRAIN)
    trainer, store = Trainer(base, rows=rows, max_rank=max_rank), Store(workdir.absolute() / 'tinker', base)
    return Service(
        trainer, store, Sampler(decoder, base), tokenizer, tokenizer_id=model.removeprefix('hf:'), line=line,
        share=share,
    )  # fmt: skip
