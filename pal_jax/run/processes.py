"""Several processes as one run: they find each other, share the text that their hosts have, and end together.

Arrays cross processes inside programs, on the mesh. Text does not. The texts that a process has sampled and the scores
that it has judged go through the key-value store of JAX's coordinator, so that every host has the same ones and decides
the same.
"""

from __future__ import annotations

import itertools
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax

from pal_jax.run import stores
from pal_jax.run.rollcall import RollCall

LAST_PORT = 65535
# Seconds in which all processes have to come.
PATIENCE = 300.0
# The time is in milliseconds; the roll call ends a process that waits in vain much earlier.
_FOREVER = 7 * 24 * 3600 * 1000

# The name of what process 0 tells, the bytes of an entry in the store, and the messages and bytes that the store keeps.
_TOLD, _PART, _KEPT, _KEPT_BYTES = 'told', 1 << 20, 256, 1 << 26

T = TypeVar('T')
R = TypeVar('R')


class Place(NamedTuple):
    """The number `process` of this process, from 0, among `processes`.

    `coordinator` is host:port of process 0, which also listens at the port beside it.
    """

    coordinator: str
    processes: int
    process: int


# Stands for the place that JAX detects when it starts: the number and the coordinator are not known before.
DETECTED = Place('auto', 0, 0)

_rollcall: RollCall | None = None
# The exchanges of a thread, by their name; those of the main thread have none.
_exchanges: ContextVar[str] = ContextVar('exchanges', default='')
_counts: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
# The numbers and the bytes of the messages that the store keeps.
_told: list[tuple[int, int]] = []


# --- coming and going -------------------------------------------------------------------------------------------------


def join(place: Place | None) -> None:
    """Wait for the other processes, the first time it is called. `place` is None where there are no others.

    Raises:
      RuntimeError: a process cannot be reached in time; the message names it where the places were given.
      ValueError: two processes have one number, they disagree about how many there are, or JAX detects no cluster.
    """
    global _rollcall
    if place is None or joined():
        return
    # This service would take SIGTERM from `run/stopping.py`.
    jax.config.update('jax_enable_preemption_service', False)
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    if place == DETECTED:
        _rollcall = _call(_detect())
        return
    # The roll call comes first, since it says which process is missing.
    _rollcall = _call(place)
    jax.distributed.initialize(
        *place, local_device_ids=local_devices(os.environ), cluster_detection_method='deactivate'
    )


def _call(place: Place) -> RollCall:
    """The connections to the other processes."""
    host, port = place.coordinator.rsplit(':', 1)
    # The roll call listens at the port beside that of JAX's coordinator.
    return RollCall((host, port_beside(int(port))), place.process, place.processes, timeout=PATIENCE)


def _detect() -> Place:
    """Start JAX, which detects its cluster, and return the place that it has detected."""
    # `auto` is a word of `--coordinator` alone, and JAX reads this variable, too.
    if os.environ.get('JAX_COORDINATOR_ADDRESS') == 'auto':
        del os.environ['JAX_COORDINATOR_ADDRESS']
    try:
        jax.distributed.initialize(local_device_ids=local_devices(os.environ), initialization_timeout=int(PATIENCE))
    except ValueError as error:
        raise ValueError(
            f'JAX found no cluster ({error}); give --coordinator=host:port --processes=N --process=I'
        ) from error
    state = _distributed()
    return Place(state.coordinator_address, state.num_processes, state.process_id)


def port_beside(port: int) -> int:
    """The port after a port, or before the last one."""
    # Slurm's jobs get ports up to the last, by their number.
    return port + 1 if port < LAST_PORT else port - 1


def finish() -> None:
    """Wait until all processes have come to the end, and close the connections to them."""
    global _rollcall
    if _rollcall is not None:
        exchange('end')
        _rollcall.finish()
        _rollcall = None
        jax.distributed.shutdown()


def leave(message: str, code: int) -> None:
    """End this process and the others at once, with the same status. Return where there are no others."""
    if _rollcall is not None:
        _rollcall.leave(message, code)


def host_port(host: str, port: int) -> str:
    """Host and port as an address has them, with an IPv6 address in brackets."""
    return f'[{host}]:{port}' if ':' in host else f'{host}:{port}'


def joined() -> bool:
    """True where other processes wait for this one."""
    return _rollcall is not None


def locate(coordinator: str, processes: int | None, process: int | None) -> Place | None:
    """The place of this process, by its arguments or, where there are none, by its environment; None if it is alone.

    Slurm's tasks and TPU pods are recognised; `coordinator='auto'` has JAX look for other clusters. In all of these the
    place is `DETECTED`.

    Raises:
      ValueError: the arguments are incomplete, or contradict each other.
    """
    present = (bool(coordinator), processes is not None, process is not None)
    if coordinator == 'auto' or (not any(present) and in_cluster(os.environ)):
        return DETECTED
    if not any(present):
        return None
    if not all(present) or processes is None or process is None:
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
    """True where this is one of several tasks of a Slurm step, or one of several hosts of TPU slices."""
    hosts = ',' in env.get('TPU_WORKER_HOSTNAMES', '') or env.get('MEGASCALE_NUM_SLICES', '1') != '1'
    task = all(name in env for name in ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID', 'SLURM_LOCALID'))
    return (task and env.get('SLURM_NTASKS', '1') != '1') or hosts


def local_devices(env: Any) -> list[int] | None:
    """The numbers of the GPUs of this process.

    A Slurm task has one GPU where its node has several tasks that see all GPUs, else every GPU that it sees, which an
    empty list means. None leaves it to JAX.
    """
    # OpenMPI's ranks in a task of Slurm have numbers of their own.
    if 'SLURM_LOCALID' not in env or env.keys() & {'JAX_LOCAL_DEVICE_IDS', 'OMPI_COMM_WORLD_LOCAL_RANK'}:
        return None
    # Slurm writes the numbers of tasks as `2(x3),1`.
    tasks = env.get('SLURM_STEP_TASKS_PER_NODE', '1').partition('(')[0].partition(',')[0]
    sees_others = ',' in env.get('CUDA_VISIBLE_DEVICES', 'all,')
    return [int(env['SLURM_LOCALID'])] if tasks != '1' and sees_others else []


# --- values that hosts exchange ---------------------------------------------------------------------------------------


def share(path: Path) -> None:
    """Have all processes find what the first one has written below a path in the mirror of a store."""
    if stores.in_store(path):
        if jax.process_index() == 0:
            stores.push(path.absolute())
        exchange(f'shared {path.name}')
        stores.pull(path.absolute())


def exchange(what: str, value: Any = None) -> list[Any]:
    """The `value` of every process, in the order of their numbers. A value is anything that JSON can hold.

    All processes have to call this in the same order, with the same `what`, which names the exchange. Threads that have
    called `exchange_as` have orders of their own.

    Raises:
      RuntimeError: another process is at another exchange.
    """
    count = jax.process_count()
    if count == 1:
        return [value]
    store, thread, here = _store(), _exchanges.get(), jax.process_index()
    turn = next(_counts[thread])
    # The name goes along, so that processes at different exchanges notice it.
    store.key_value_set_bytes(_key(thread, turn, here), zlib.compress(json.dumps([what, value]).encode(), 1))
    values = []
    for process in range(count):
        text = zlib.decompress(store.blocking_key_value_get_bytes(_key(thread, turn, process), _FOREVER))
        name, their_value = json.loads(text)
        if name != what:
            raise RuntimeError(f'process {process} is at {name!r}, this one at {what!r}; start all with one command')
        values.append(their_value)
    # All processes have come here, so all have read the values of the exchange before.
    if turn:
        store.key_value_delete(_key(thread, turn - 1, here))
    return values


def agree(what: str, check: Callable[[], T], fault: type[Exception]) -> T:
    """The result of a check in this process. Where the check raises `fault` in any process, all of them raise it.

    All processes have to call this in the same order, as `exchange`.
    """
    result: Any = None
    try:
        result, why = check(), None
    except fault as error:
        why = str(error)
    if reasons := [reason for reason in exchange(what, why) if reason is not None]:
        raise fault(reasons[0])
    return result


def tell(value: bytes) -> None:
    """Send bytes to all other processes, each of which calls `heard` for them."""
    store, turn = _store(), next(_counts[_TOLD])
    parts = [value[i : i + _PART] for i in range(0, len(value), _PART)] or [b'']
    for place, part in enumerate(parts):
        # The first byte says whether more parts follow.
        store.key_value_set_bytes(_key(_TOLD, turn, place), bytes([place + 1 < len(parts)]) + part)
    _forget_told(turn, len(value))


def heard() -> bytes:
    """The next bytes that process 0 has sent by `tell`, once they come."""
    store, turn, parts = _store(), next(_counts[_TOLD]), []
    while not parts or parts[-1][0]:
        parts.append(store.blocking_key_value_get_bytes(_key(_TOLD, turn, len(parts)), _FOREVER))
    value = b''.join(part[1:] for part in parts)
    _forget_told(turn, len(value))
    return value


def _forget_told(turn: int, size: int) -> None:
    """Now and then, wait until all processes have heard what was told, and drop it."""
    _told.append((turn, size))
    if len(_told) < _KEPT and sum(size for _, size in _told) < _KEPT_BYTES:
        return
    exchange(_TOLD, turn)
    if jax.process_index() == 0:
        for earlier, _ in _told:
            # The store deletes all keys below this one.
            _store().key_value_delete(f'pal_jax/{_TOLD}/{earlier}/')
    _told.clear()


def exchange_as(thread: str) -> None:
    """Give the exchanges of the calling thread an order of their own, under this name."""
    _exchanges.set(thread)


def _store() -> Any:
    """The key-value store of JAX's coordinator."""
    return _distributed().client


def _distributed() -> Any:
    """The state that JAX keeps of the processes that it has joined."""
    # There is no public way to the store and to the coordinator's address; Orbax takes the same.
    from jax._src import distributed

    return distributed.global_state


def _key(thread: str, turn: int, process: int) -> str:
    return f'pal_jax/{thread}/{turn}/{process}'


class Shares(NamedTuple):
    """Work on many items, cut into `parts` parts of which each is done by one process.

    Items of one part are worked on together, so the same parts give the same results in any number of processes.
    """

    parts: int

    @property
    def own(self) -> list[int]:
        """The numbers of the parts that this process does."""
        here, count = jax.process_index(), self.parts // jax.process_count()
        return list(range(here * count, (here + 1) * count))

    def part(self, items: Sequence[T], number: int) -> Sequence[T]:
        """The items of part `number`: neighbours, and as evenly many in each part as possible."""
        return items[self.start(len(items), number) : self.start(len(items), number + 1)]

    def start(self, count: int, number: int) -> int:
        """The index at which part `number` of `count` items begins."""
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
        """The results of all parts, in the order of the items. This process calls `work(number, part)` for its parts.

        `pack` turns a result into a value for JSON, and `unpack` turns it back. `what` names the exchange.
        """
        results_here = [list(work(number, self.part(items, number))) for number in self.own]
        if jax.process_count() == 1:
            return [result for part in results_here for result in part]
        results = exchange(what, [[pack(result) for result in part] for part in results_here])
        return [unpack(result) for parts in results for part in parts for result in part]


ALONE = Shares(1)
