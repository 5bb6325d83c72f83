"""Saved weights of tenants: a folder each, written in one piece, with a `tinker://` path for clients.

  <workdir>/tinker/<model_id>/weights/<name>/           adapter, optimiser and note
  <workdir>/tinker/<model_id>/sampler_weights/<name>/   adapter and note

The adapter is a folder of the library `peft` (one on the output matrix is its module `lm_head`), the optimiser's state
a checkpoint of this package, and the note a JSON object.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from pal_jax.models import lora
from pal_jax.models.files import peft
from pal_jax.models.params import Params
from pal_jax.run import processes, sharding
from pal_jax.run.checkpoint import Checkpoints, check_seen, fingerprint
from pal_jax.run.files import fresh_beside, read_object
from pal_jax.run.outputs import whole_folder
from pal_jax.training_server.futures import UserFault
from pal_jax.training_server.trainer import Base, Shape, Tenant, Trainer

NOTE, ADAPTER, OPTIMIZER = 'note.json', 'adapter', 'optimizer'
KINDS = {'weights': 'training', 'sampler_weights': 'sampler'}
# A part of a path, which becomes the name of a folder.
PART = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.:-]{0,199}')


class Saved(NamedTuple):
    """Saved weights: their path for clients, their folder, and the note that lies with them."""

    path: str
    folder: Path
    note: dict[str, Any]

    @property
    def shape(self) -> Shape:
        """The adapters' shape."""
        return Shape(**self.note['shape'])


class Store:
    """The saved weights in a folder of the server.

    Args:
      folder: it is made when something is saved.
    """

    def __init__(self, folder: Path, base: Base):
        self.folder, self.base = folder, base
        bits = np.asarray(fingerprint(base.params)).tobytes()
        self._fingerprint = hashlib.sha256(bits).hexdigest()

    def save(
        self, tenant: Tenant, kind: str, name: str | None, *, overwrite: bool = False, ttl_seconds: int | None = None,
        user_metadata: dict[str, str] | None = None,
    ) -> Saved:  # fmt: skip
        """Write the tenant's weights, of the `kind` 'weights' with the optimiser's state.

        Raises:
          UserFault: the name is taken, or cannot be that of a folder.
        """
        saved = processes.agree('to be saved', lambda: self._free(tenant.model_id, kind, name, overwrite), UserFault)
        note = {
            'base_model': self.base.name,
            'base_fingerprint': self._fingerprint,
            'shape': tenant.shape._asdict(),
            'seq': tenant.seq,
            'time': time.time(),
            'ttl_seconds': ttl_seconds,
            'user_metadata': user_metadata,
            'model_metadata': tenant.user_metadata,
        }
        adapters = sharding.to_every_host(tenant.params, self.base.mesh)
        with self._replacing(saved.folder) as place:
            # Process 0 makes the folder, in which all processes write the state of the optimiser.
            partial = Path(processes.exchange('saving', str(place))[0])
            if kind == 'weights':
                checkpoints = Checkpoints(partial / OPTIMIZER, tenant.opt_state)
                checkpoints.save(tenant.seq, tenant.opt_state, {})
                checkpoints.wait()
                checkpoints.close()
            if place:
                peft.save(adapters, self.base.cfg, self.base.source, place / ADAPTER)
                (place / NOTE).write_text(json.dumps(note, indent=2) + '\n', encoding='utf-8')
        check_seen(saved.folder / NOTE)
        return saved._replace(note=note)

    def _free(self, model_id: str, kind: str, name: str | None, overwrite: bool) -> Saved:
        """The place of weights that are to be saved. Raises UserFault where it is taken, or the name is none."""
        if not name or not PART.fullmatch(name):
            raise UserFault(f'path={name!r} is no name of weights; give letters, digits and the signs _ . : -')
        saved = self._at(model_id, kind, name)
        if saved.folder.exists() and not overwrite:
            raise UserFault(f'{saved.path} exists; give another name, or overwrite=True')
        return saved

    @contextlib.contextmanager
    def _replacing(self, folder: Path) -> Iterator[Path | None]:
        """A folder that takes the place of another one once it is whole, in process 0; None in other processes."""
        if jax.process_index():
            yield None
            return
        # What is to be replaced stays until the new folder is whole.
        fresh = fresh_beside(folder, 'new') if folder.exists() else folder
        with whole_folder(fresh) as partial:
            yield partial
        if fresh != folder:
            earlier = fresh_beside(folder, 'replaced')
            folder.rename(earlier)
            fresh.rename(folder)
            shutil.rmtree(earlier)

    def open(self, path: str) -> Saved:
        """The saved weights of a path.

        Raises:
          UserFault: the path has another form, nothing is there, or the weights stand on another base.
        """
        parts = path.removeprefix('tinker://').split('/')
        if not path.startswith('tinker://') or len(parts) != 3 or parts[1] not in KINDS:
            raise UserFault(f'{path!r} is no path of weights; give tinker://<model_id>/weights/<name>')
        if not all(map(PART.fullmatch, parts)):
            raise UserFault(f'{path!r} has a part that names no weights of this server')
        saved = self._at(*parts)
        if not (saved.folder / NOTE).exists():
            raise UserFault(f'{path} is not there; the weights of this server are in {self.folder}')
        saved = saved._replace(note=read_object(saved.folder / NOTE))
        if saved.note['base_fingerprint'] != self._fingerprint:
            raise UserFault(f'{path} was trained on another base, {saved.note["base_model"]}; serve that one')
        return saved

    def adapters(self, trainer: Trainer, path: str, time: float) -> Params:
        """The adapters of a path, saved at a time.

        Raises:
          UserFault: as `open`, or other weights have been saved there since; in all processes where it does in one.
        """

        def unchanged() -> Saved:
            saved = self.open(path)
            if saved.note['time'] != time:
                raise UserFault(f'{path} was saved anew since this sampling session began; make another session')
            return saved

        return self._adapters(trainer, processes.agree('weights', unchanged, UserFault))

    def _adapters(self, trainer: Trainer, saved: Saved) -> Params:
        adapters = lora.split(peft.attach(self.base.params, self.base.cfg, saved.folder / ADAPTER))[0]
        return trainer.placed(adapters, saved.shape)

    def load(
        self, trainer: Trainer, path: str, model_id: str, *, optimizer: bool, user_metadata: dict[str, Any] | None
    ) -> Tenant:
        """A model with saved weights. With `optimizer`, it goes on with the saved state of the optimiser.

        Raises:
          UserFault: as `open`, or there is no state of an optimiser.
        """
        saved = processes.agree('to be loaded', lambda: self._complete(path, optimizer), UserFault)
        metadata = saved.note['model_metadata'] if user_metadata is None else user_metadata
        tenant = trainer.start(self._adapters(trainer, saved), model_id, saved.shape, metadata)
        if optimizer:
            checkpoints = Checkpoints(saved.folder / OPTIMIZER, trainer.layout(saved.shape).opt_state, read_only=True)
            tenant.opt_state = checkpoints.read()[0]
            checkpoints.close()
        return tenant

    def _complete(self, path: str, optimizer: bool) -> Saved:
        """The saved weights of a path, which have a state of the optimiser where it is wanted."""
        saved = self.open(path)
        if optimizer and not (saved.folder / OPTIMIZER).exists():
            raise UserFault(f'{path} has weights alone; give a path of save_weights, or load without optimizer')
        return saved

    def listed(self, model_id: str | None = None) -> Iterator[Saved]:
        """All saved weights, or those of one model, the oldest first."""
        if model_id is not None and not PART.fullmatch(model_id):
            return
        notes = [*self.folder.glob(f'{model_id or "*"}/*/[!.]*/{NOTE}')]
        for note in sorted(notes, key=lambda path: path.stat().st_mtime):
            model, kind, name = note.parent.relative_to(self.folder).parts
            if kind in KINDS:
                yield self._at(model, kind, name)._replace(note=read_object(note))

    def _at(self, model_id: str, kind: str, name: str) -> Saved:
        return Saved(f'tinker://{model_id}/{kind}/{name}', self.folder / model_id / kind / name, {})


def about(saved: Saved) -> dict[str, Any]:
    """The entry of saved weights among the checkpoints that clients list."""
    kind, name = saved.folder.parts[-2:]
    ttl = saved.note['ttl_seconds']
    return {
        'checkpoint_id': f'{kind}/{name}', 'checkpoint_type': KINDS[kind], 'time': moment(saved.note['time']),
        'tinker_path': saved.path, 'user_metadata': saved.note['user_metadata'],
        'size_bytes': sum(path.stat().st_size for path in saved.folder.rglob('*') if path.is_file()),
        'expires_at': moment(saved.note['time'] + ttl) if ttl else None,
    }  # fmt: skip


def moment(seconds: float) -> str:
    """The time `seconds` after the epoch as clients read it."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()
