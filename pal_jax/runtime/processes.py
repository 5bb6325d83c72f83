"""Several processes as one run: how they find each other, share what their hosts know, and end together.

Arrays cross processes inside programs, on the mesh. Text does not: what each process has sampled or judged goes through
the key-value store of JAX's coordinator, so that every host knows the same and decides the same.
"""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax

from pal_jax.runtime.rollcall import RollCall

LAST_PORT = 65535
PATIENCE = 300.0  # seconds in which all processes have to come
_FOREVER = 7 * 24 * 3600 * 1000  # milliseconds; who waits that long is ended by the roll call much earlier

T = TypeVar('T')
R = TypeVar('R')


class Place(NamedTuple):
    """Which process this is. `coordinator` is host:port of process 0, which also listens at the port beside it."""

    coordinator: str
    processes: int
    process: int


_rollcall: RollCall | None = None
_count = itertools.count()


# --- coming and going -------------------------------------------------------------------------------------------------


def join(place: Place | None) -> None:
    """Waits for the other processes, the first time. None: there are none.

    Raises:
      RuntimeError: one cannot be reached in time; the message names it.
      ValueError: two processes have one number, or they disagree about how many there are.
    """
    global _rollcall
    if place is None or joined():
        return
    host, port = place.coordinator.rsplit(':', 1)
    _rollcall = RollCall((host, port_beside(int(port))), place.process, place.processes, patience=PATIENCE)
    jax.config.update('jax_enable_preemption_service', False)  # it would take SIGTERM from `runtime.stop`
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    jax.distributed.initialize(
        place.coordinator,
        place.processes,
        place.process,
        local_device_ids=local_devices(os.environ),
        cluster_detection_method='deactivate',
    )


def port_beside(port: int) -> int:
    """The port after it, or before it where there is none: Slurm's jobs get ports up to the last, by their number."""
    return port + 1 if port < LAST_PORT else port - 1


def part() -> None:
    """Waits until all processes have come to the end, and takes leave of them."""
    global _rollcall
    if _rollcall is not None:
        exchange('end')
        _rollcall.part()
        _rollcall = None
        jax.distributed.shutdown()


def leave(message: str, code: int) -> None:
    """Where there are other processes, ends this one at once and has them end with the same status; else returns."""
    if _rollcall is not None:
        _rollcall.leave(message, code)


def joined() -> bool:
    """Whether other processes wait for this one."""
    return _rollcall is not None


def locate(coordinator: str, processes: int | None, process: int | None) -> Place | None:
    """Which process this is, by what it was told or, where it was told nothing, by its environment; None: the only one.

    Slurm's tasks and TPU pods are recognised; `coordinator='auto'` has JAX look for other clusters.

    Raises:
      ValueError: what was told is incomplete, or contradicts itself.
    """
    told = (bool(coordinator), processes is not None, process is not None)
    if coordinator == 'auto' or (not any(told) and in_cluster(os.environ)):
        return _detect()
    if not any(told):
        return None
    if not all(told) or processes is None or process is None:
        raise ValueError(
            f'--coordinator={coordinator} --processes={processes} --process={process}: give all three, as in '
            '--coordinator=host:8476 --processes=2 --process=0'
        )
    host, _, port = coordinator.rpartition(':')
    if not host or not port.isdigit() or not 0 < int(port) <= LAST_PORT:
        raise ValueError(f'--coordinator={coordinator} is no host:port, such as node0:8476')
    if not 0 <= process < processes:
        raise ValueError(f'--process={process} is not one of --processes={processes}: they count from 0')
    return Place(coordinator, processes, process)


def in_cluster(env: Any) -> bool:
    """Whether this is one of several tasks of a Slurm step, or one of several hosts of a TPU slice."""
    task = all(name in env for name in ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID', 'SLURM_LOCALID'))
    return (task and env.get('SLURM_NTASKS', '1') != '1') or ',' in env.get('TPU_WORKER_HOSTNAMES', '')


def _detect() -> Place | None:
    from jax._src.clusters import ClusterEnv  # what `jax.distributed.initialize` asks, told before it is used

    coordinator, processes, process, _ = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, int(PATIENCE)
    )
    if coordinator is None or processes is None or process is None:
        raise ValueError('--coordinator=auto found no cluster; give --coordinator=host:port --processes=N --process=I')
    return Place(coordinator, processes, process)


def local_devices(env: Any) -> list[int] | None:
    """The GPUs of a Slurm task by number: all of the node's for its only task, else one; None: whatever there is."""
    tasks = env.get('SLURM_STEP_TASKS_PER_NODE', '1').partition('(')[0].partition(',')[0]
    visible = env.get('CUDA_VISIBLE_DEVICES', '').count(',') + 1
    return [int(env['SLURM_LOCALID'])] if tasks != '1' and 'SLURM_LOCALID' in env and visible > 1 else None


# --- what hosts tell each other ---------------------------------------------------------------------------------------


def exchange(what: str, value: Any = None) -> list[Any]:
    """`value` (as JSON has it) of every process, in their order. All have to call it alike; `what` says for what.

    Raises:
      RuntimeError: the processes do not do the same.
    """
    count = jax.process_count()
    if count == 1:
        return [value]
    from jax._src import distributed  # there is no public way to the store; Orbax takes the same

    store: Any = distributed.global_state.client
    turn, here = next(_count), jax.process_index()
    store.key_value_set_bytes(_key(turn, here), zlib.compress(json.dumps([what, value]).encode(), 1))
    told = []
    for process in range(count):
        text = zlib.decompress(store.blocking_key_value_get_bytes(_key(turn, process), _FOREVER))
        other, theirs = json.loads(text)
        if other != what:
            raise RuntimeError(f'process {process} is at {other!r}, this one at {what!r}; start all with one command')
        told.append(theirs)
    if turn:  # all have come here, so all have read what was told before
        store.key_value_delete(_key(turn - 1, here))
    return told


def _key(turn: int, process: int) -> str:
    return f'pal_jax/{turn}/{process}'


class Shares(NamedTuple):
    """Work of many items in `parts` parts, each done by one process. The parts, not the processes, decide what is done
    together: the same parts give the same results in any number of processes."""

    parts: int

    @property
    def own(self) -> list[int]:
        """The parts of this process."""
        here, each = jax.process_index(), self.parts // jax.process_count()
        return list(range(here * each, (here + 1) * each))

    def part(self, items: Sequence[T], number: int) -> Sequence[T]:
        """Neighbouring items, as many in each part as can be."""
        return items[self.start(len(items), number) : self.start(len(items), number + 1)]

    def start(self, count: int, number: int) -> int:
        """Where a part of so many items begins."""
        return count * number // self.parts

    def gather(
        self,
        what: str,
        items: Sequence[T],
        work: Callable[[int, Sequence[T]], Sequence[R]],
        *,
        pack: Callable[[R], Any] = lambda result: result,
        unpack: Callable[[Any], R] = lambda packed: packed,
    ) -> list[R]:
        """`work(number, part)` of this process's parts, and the results of all parts in the order of the items."""
        own = [list(work(number, self.part(items, number))) for number in self.own]
        if jax.process_count() == 1:
            return [result for part in own for result in part]
        told = exchange(what, [[pack(result) for result in part] for part in own])
        return [unpack(result) for parts in told for part in parts for result in part]


ALONE = Shares(1)
