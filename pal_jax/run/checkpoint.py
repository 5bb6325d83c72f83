"""Checkpoints: one pytree of arrays and one JSON-able `host` item a step, written in the background by Orbax.

A checkpoint appears under its step number in one piece or not at all, so a kill loses only the steps since the last.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epy
from jaxtyping import Array, UInt32

from pal_jax.run import files, processes, stores
from pal_jax.run.files import write_whole
from pal_jax.run.forecast import few_of
from pal_jax.run.metrics import METRICS, read_records
from pal_jax.run.recipe import KEPT
from pal_jax.run.workdir import CONFIG, PARTS, REPORT

# Orbax is imported at its first use, since it takes a second, and most commands read this module for a config alone.
with epy.lazy_imports():
    import orbax.checkpoint as ocp

# Seconds after which all processes see a file that one of them wrote to a shared file system.
SEEN = 30.0
FOLDER = 'checkpoints'


class Unreadable(RuntimeError):
    """One of several processes cannot read its part of a checkpoint. The others wait for it inside Orbax."""


class Checkpoints:
    """The checkpoints of a run: the `keep` latest and, by the `reward` they were saved with, the best.

    `abstract` is the tree of the state's shapes, dtypes and shardings. A leaf `...` there is not read, and is `...` in
    the restored state, too.
    With `read_only` nothing in the folder is changed, so a run that is still writing to it is not disturbed.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        abstract: Any,
        *,
        keep: int = 2,
        read_only: bool = False,
        log: Callable[[str], None] = print,
    ):
        # Orbax tells of every file.
        logging.getLogger('absl').setLevel(logging.ERROR)
        self._mirror = Path(workdir).absolute() / FOLDER
        self.folder = stores.target(self._mirror)
        self._abstract, self._log = abstract, log
        policies = [
            ocp.checkpoint_managers.LatestN(keep),
            ocp.checkpoint_managers.BestN(
                get_metric_fn=lambda metrics: metrics['reward'], n=1, keep_checkpoints_without_metrics=False
            ),
        ]
        self._manager = ocp.CheckpointManager(
            self.folder,
            item_handlers={'state': _array_handler(abstract), 'host': ocp.JsonCheckpointHandler()},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
                best_fn=lambda metrics: metrics['reward'],
                cleanup_tmp_directories=not read_only,
                create=not read_only,
                read_only=read_only,
            ),
        )

    def save(self, step: int, state: Any, host: dict[str, Any], reward: float | None = None) -> None:
        """Start to write the state after `step` steps, and return once the arrays are safe to change.

        Raises:
          RuntimeError: this or the previous save failed (no room on the disk, say); older checkpoints are intact.
        """
        # All processes write to one file system.
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        free = math.inf if stores.in_store(self._mirror) else shutil.disk_usage(self.folder).free
        # Files are a little larger than the arrays in them.
        if free < 1.1 * needed:
            raise RuntimeError(self._failure(step, f'it needs {needed / 2**30:.2f} GiB, {free / 2**30:.2f} are free'))
        # The bits of every leaf are summed at save and compared at restore, so a file that was damaged since is not
        # used.
        item = {'host': host, 'fingerprint': np.asarray(fingerprint(state)).tolist()}
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), host=ocp.args.JsonSave(item)),
                metrics=None if reward is None else {'reward': reward},
            )
        # Orbax raises what the previous save, in the background, met.
        except Exception as error:
            raise RuntimeError(self._failure(step, str(error))) from error

    def restore(self, step: int | None = None) -> tuple[Any, dict[str, Any], int] | None:
        """The state, host item and step of the newest complete checkpoint, or of that of `step`; None if there is none.

        A checkpoint that cannot be read is left out, with a line in the log.

        Raises:
          ValueError: there is no checkpoint of `step`.
          RuntimeError: there are checkpoints, and none of them can be read.
          Unreadable: this process is one of several and cannot read a checkpoint.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if step is not None and step not in steps:
            raise ValueError(f'there is no checkpoint {step} in {self.folder}; there are {steps[::-1]}')
        steps = [step] if step is not None else steps
        for candidate in steps:
            try:
                state, host = self._read(candidate)
            # In several processes a checkpoint that cannot be read ends them all.
            except Unreadable:
                raise
            except Exception as error:
                self._log(f'checkpoint {candidate} cannot be read, trying an older one: {_first_line(error)}')
                continue
            return state, host, candidate
        if steps:
            raise RuntimeError(
                f'none of the checkpoints {steps} in {self.folder} can be read; move the folder away to start again'
            )
        return None

    def read(self, step: int | None = None) -> tuple[Any, dict[str, Any], int]:
        """The state, host item and step of a checkpoint as `restore` gives them, with all numbers checked.

        Raises:
          ValueError: there is no checkpoint, or a number in it is not finite.
        """
        if (restored := self.restore(step)) is None:
            raise ValueError(f'{self.folder.parent} has no checkpoint; train it first')
        paths = [path for path, leaf in jax.tree.leaves_with_path(restored[0]) if leaf is not ...]
        finite = np.asarray(_finite([leaf for leaf in jax.tree.leaves(restored[0]) if leaf is not ...]))
        if not finite.all():
            name = jax.tree_util.keystr(paths[int(finite.argmin())], simple=True, separator='/')
            raise ValueError(
                f'checkpoint {restored[2]} of {self.folder.parent} has numbers in {name} that are not finite; give an '
                'earlier --step, or train it again'
            )
        return restored

    def set_aside_after(self, step: int) -> None:
        """Move the checkpoints later than `step`, which could not be read, out of the way of a run that resumes."""
        for later in self._manager.all_steps():
            if later > step and jax.process_index() == 0:
                aside = self._mirror.with_name('unreadable') / f'{later}-{time.time_ns()}'
                # Nothing is deleted, so a person can still look at it.
                stores.rename(self._mirror / str(later), aside)
        processes.exchange('set aside')
        self._manager.reload()

    def wait(self) -> None:
        """Wait until every saved checkpoint is on the disk.

        Raises:
          RuntimeError: a checkpoint could not be written; older checkpoints are intact.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            stores.pull(self._mirror)
        except Exception as error:
            raise RuntimeError(self._failure(self.latest, str(error))) from error

    def close(self) -> None:
        """Wait for the saves under way, and release Orbax's resources."""
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """The step of the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    def _read(self, step: int) -> tuple[Any, dict[str, Any]]:
        """The state and the host item of a checkpoint. Raises ValueError where their bits are not those saved."""
        restore_args = ocp.args.PyTreeRestore(
            self._abstract, ocp.checkpoint_utils.construct_restore_args(self._abstract)
        )
        try:
            restored = self._manager.restore(
                step, args=ocp.args.Composite(state=restore_args, host=ocp.args.JsonRestore())
            )
        except Exception as error:
            if not processes.joined():
                raise
            raise Unreadable(
                f'process {jax.process_index()} cannot read checkpoint {step} ({_first_line(error)}); move '
                f'{self.folder / str(step)} away and start all again, from an older one'
            ) from error
        state, item = restored['state'], restored['host']
        leaves = jax.tree.leaves(state)
        read = [i for i, leaf in enumerate(leaves) if leaf is not ...]
        if np.asarray(fingerprint([leaves[i] for i in read])).tolist() != [item['fingerprint'][i] for i in read]:
            raise ValueError('its contents have changed since they were written')
        return state, item['host']

    def _failure(self, step: int | None, why: str) -> str:
        """The message for a checkpoint that could not be written, which names the newest intact one."""
        good = [s for s in self._manager.all_steps() if s != step]
        advice = (
            f'checkpoint {max(good)} is intact: free some room and run the same command' if good else 'none is kept'
        )
        return f'checkpoint {step} could not be written to {self.folder}: {why.splitlines()[0]}; {advice}'


def _array_handler(abstract: Any) -> ocp.PyTreeCheckpointHandler:
    """A handler that writes and reads a few arrays at a time."""
    largest = max(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract) if leaf is not ...)
    # Orbax refuses an array that alone is above the limit.
    limit = max(3 * largest / 1e9, 0.1)
    # All arrays at once would hold the state twice in memory.
    return ocp.PyTreeCheckpointHandler(save_concurrent_gb=limit, restore_concurrent_gb=limit)


@jax.jit
def fingerprint(state: Any) -> UInt32[Array, ' leaves']:
    """The sum of each leaf's bits, weighted by position, modulo 2^32. It does not depend on the mesh."""
    return jnp.stack([_bit_sum(leaf) for leaf in jax.tree.leaves(state)])


def _bit_sum(leaf: Array) -> Array:
    width = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[leaf.dtype.itemsize]
    bits = leaf.astype(width) if leaf.dtype == bool else jax.lax.bitcast_convert_type(leaf, width)
    bits = bits.reshape(-1).astype(jnp.uint32)
    # The weights are odd, so every bit counts wherever it stands.
    return jnp.sum(bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)


@jax.jit
def _finite(leaves: list[Array]) -> Array:
    """An array `[leaves]` of bools, True where all numbers of a leaf are finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves])


def kept_in(workdir: str | os.PathLike[str]) -> Path | None:
    """The folder of the files that a run keeps beside its checkpoints; None where it has no checkpoint yet."""
    steps = (Path(workdir) / FOLDER).glob('*')
    return Path(workdir) / KEPT if any(step.name.isdigit() for step in steps) else None


def check_config(workdir: str | os.PathLike[str], config: dict[str, Any], free: tuple[str, ...] = ()) -> None:
    """Compare a configuration with the one that the run in `workdir` has written, if there is one.

    A run that has made nothing, since it failed or was stopped before, may begin again with another configuration.

    Args:
      free: keys that may change between two calls of one run, such as `total_steps` or `endpoints.*.address`.
    Raises:
      ValueError: the folder belongs to a run of another configuration; the changed keys are listed.
    """
    path = Path(workdir) / CONFIG
    saved = any(Path(workdir, FOLDER).glob('[0-9]*'))
    # A run of parts has written some before its first step ends, and one of no steps has a report.
    made = (
        saved or any(Path(workdir, name).exists() for name in (REPORT, PARTS)) or read_records(Path(workdir, METRICS))
    )
    if not path.exists() or not made:
        return
    # JSON makes lists of tuples, as they are in the file.
    old, ours = flatten(files.read_object(path)), flatten(json.loads(stores.shown(json.dumps(config))))
    changed = [
        k
        for k in sorted(old.keys() | ours.keys())
        if old.get(k) != ours.get(k) and not any(fnmatch(k, key) for key in free)
    ]
    # Most keys of two methods differ, so the method alone is told.
    changed = ['recipe'] if 'recipe' in changed else changed
    if changed:
        listed = few_of([f'{key}: {old.get(key)!r} -> {ours.get(key)!r}' for key in changed])
        lost = '' if saved else ', or delete it, for it has no checkpoint yet'
        raise ValueError(f'{workdir} was made by another config ({listed}); give that one, or another --workdir{lost}')


def check_processes(config: dict[str, Any]) -> None:
    """Raise ValueError, with the changed keys, where another process of the run was started with another config."""
    first, *others = map(flatten, processes.exchange('config', config))
    for number, other in enumerate(others, 1):
        if changed := [key for key in sorted(first.keys() | other.keys()) if first.get(key) != other.get(key)]:
            listed = ', '.join(f'{key}: {first.get(key)!r} -> {other.get(key)!r}' for key in changed)
            raise ValueError(f'process {number} has another config than process 0 ({listed}); give all the same flags')


def write_config(workdir: str | os.PathLike[str], config: dict[str, Any]) -> None:
    """Write the configuration of the run in `workdir`, in one piece.

    Raises:
      ValueError: as `check_seen`.
    """
    path = Path(workdir) / CONFIG
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(config, indent=2) + '\n')
    check_seen(path)


def check_seen(path: Path) -> None:
    """Wait until all processes see what process 0 has written to a path.

    Raises:
      ValueError: this process does not see it, so its folder is another one.
    """
    processes.exchange('written')
    processes.share(path.parent)
    # A process may see a file on a shared file system some seconds late.
    deadline = time.monotonic() + SEEN
    while not path.exists():
        if time.monotonic() > deadline:
            raise ValueError(
                f'process {jax.process_index()} does not see what process 0 wrote to {path}; give a --workdir that all '
                'processes share'
            )
        time.sleep(0.1)


def flatten(tree: dict[str, Any], prefix: str = '') -> dict[str, Any]:
    """The values of a nested dictionary by their keys with dots, such as `ppo.clip`."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f'{prefix}{key}.') if isinstance(value, dict) and value else {prefix + key: value}
    return flat


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
