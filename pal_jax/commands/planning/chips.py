"""Rates and memory of devices, by the name that a device gives itself, and the devices to plan for."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from pal_jax.run.devices import overlap_on_cuda, overlap_on_tpu

GIB = 2**30


class Chip(NamedTuple):
    """The vendor's figures of one device; a rate of 0 is unknown."""

    # Bytes of the large memory that programs may fill.
    memory: float
    # Operations of bf16 products in a second.
    flops: float = 0.0
    # Bytes that the large memory reads or writes in a second.
    bandwidth: float = 0.0
    # Bytes that the device receives from its neighbours in a second.
    links: float = 0.0
    # Bytes that the device receives in a second over the network of the data centre: from GPUs of other hosts, and from
    # TPUs of other slices.
    network: float = 0.0
    # The GPUs of a host, where several hosts work together; else 0.
    host: int = 0

    def transfer(self, received: float, between: Mapping[int, float]) -> float:
        """Seconds of collectives by which the device receives so many bytes, see `hlo.Traffic`."""
        # A ring over several hosts enters a host once for each of its members there, by the adapter of each.
        far = sum(size / min(self.links, members * self.network) for members, size in between.items())
        return (received - sum(between.values())) / self.links + far


class Card(NamedTuple):
    """A GPU as its compiler wants it described where it is not there (XLA's GpuTargetConfig), and the vendor's rates.

    capability: CUDA's compute capability. cores: multiprocessors. fpus: float32 lanes of each.
    shared, block_shared: bytes of shared memory of a multiprocessor, and of a block that asks for them.
    l2: bytes of the cache. clock: GHz. memory: bytes. bandwidth, flops, links, network: as `Chip` has them.
    """

    kind: str
    capability: tuple[int, int]
    cores: int
    fpus: int
    shared: int
    block_shared: int
    l2: int
    clock: float
    memory: int
    bandwidth: float
    flops: float
    links: float
    network: float

    def config(self) -> str:
        """The text form of XLA's GpuTargetConfig."""
        return f"""gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: {self.shared}
  shared_memory_per_block_optin: {self.block_shared} core_count: {self.cores} fpus_per_core: {self.fpus}
  memory_bandwidth: {self.bandwidth:.0f} l2_cache_size: {self.l2} clock_rate_ghz: {self.clock}
  device_memory_size: {self.memory}
  cuda_compute_capability {{ major: {self.capability[0]} minor: {self.capability[1]} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 12 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{self.kind}"
"""


# The share of a card's memory that a run takes: XLA_PYTHON_CLIENT_MEM_FRACTION of launch/slurm_cuda.sh and Dockerfile.
TAKEN = 0.92

# Sources. All but the last three numbers: XLA's own descriptions of these cards (openxla/xla, a100_sxm_80, h100_sxm,
# h200 and b200 in xla/backends/gpu/target_config/specs). Operations of dense bf16 products and NVLink one way: NVIDIA's
# data sheets of A100, H100, H200 and DGX B200 (half of the sparse rate; of the box an eighth). Network: an adapter a
# card of 200 Gb/s (DGX A100) or 400 Gb/s (DGX H100, H200 and B200), their user guides.
CARDS = {
    'a100': Card('NVIDIA A100-SXM4-80GB', (8, 0), 108, 64, 167936, 166912, 41943040, 1.41, 85100068864,
                 2.03904e12, 312e12, 300e9, 25e9),
    'h100': Card('NVIDIA H100 80GB HBM3', (9, 0), 132, 128, 233472, 232448, 52428800, 1.98, 84942979072,
                 3.35232e12, 989e12, 450e9, 50e9),
    'h200': Card('NVIDIA H200', (9, 0), 132, 128, 233472, 232448, 52428800, 1.98, 151397597184,
                 4.8e12, 989e12, 450e9, 50e9),
    'b200': Card('NVIDIA B200', (10, 0), 148, 128, 233472, 232448, 132644864, 1.965, 191514411008,
                 7.67232e12, 2250e12, 900e9, 50e9),
}  # fmt: skip

# TPUs: cloud.google.com/tpu/docs/v5e and the pages beside it, with the network of the data centre by chip; that of v4
# is not stated. The memory limit is the compiler's own.
CHIPS = {
    'TPU v4': Chip(31.25 * GIB, 275e12, 1228e9, 150e9),
    'TPU v5 lite': Chip(15.75 * GIB, 197e12, 819e9, 100e9, 3.125e9),
    'TPU v5': Chip(95.7 * GIB, 459e12, 2765e9, 300e9, 6.25e9),
    'TPU v5p': Chip(95.7 * GIB, 459e12, 2765e9, 300e9, 6.25e9),
    'TPU v6 lite': Chip(31.25 * GIB, 918e12, 1640e9, 224e9, 12.5e9),
} | {
    card.kind: Chip(TAKEN * card.memory, card.flops, card.bandwidth, card.links, card.network)
    for card in CARDS.values()
}


def topology_devices(name: str, slices: int = 1) -> Sequence[Any]:
    """The devices of TPU slices such as v5e:4x4, or of CUDA nodes such as h100:8 or h100:8x8, from the compiler alone.

    Raises:
      RuntimeError: the compiler is not installed.
      ValueError: there is no such slice or GPU, or several slices of GPUs are asked for.
    """
    if name.partition(':')[0] not in CARDS:
        if not re.match(r'v[0-9]', name):
            raise ValueError(
                f'--topology={name} is not known; give GPUs, {", ".join(CARDS)} with nodes and cards, such as h100:8 '
                'or h100:8x8, or a TPU slice, such as v5e:4x4, v6e:2x4, v5p:4x4x4'
            )
        return slice_devices(name, slices)
    if slices > 1:
        raise ValueError(f'--slices={slices} are slices of TPUs; --topology={name} names its nodes, as in h100:8x8')
    return cuda_devices(name)


def cuda_devices(name: str) -> Sequence[Any]:
    """The GPUs of `<card>:<cards>` or `<card>:<nodes>x<cards of a node>`; the extra `plan-cuda` has their compiler.

    Raises:
      RuntimeError: the compiler is not installed.
      ValueError: the name is none of these.
    """
    card, _, sizes = name.partition(':')
    if not re.fullmatch(r'([1-9][0-9]*x)?[1-9][0-9]*', sizes):
        raise ValueError(
            f'--topology={name} names no nodes; such as {card}:8 (one node of eight) or {card}:8x8 (eight)'
        )
    # `find_spec` raises where the parent is not there.
    if not all(map(importlib.util.find_spec, ('jax_plugins', 'jax_plugins.xla_cuda13'))):
        wheels = (f'{wheel}=={jax.__version__}' for wheel in ('jax-cuda13-plugin', 'jax-cuda13-pjrt'))
        raise RuntimeError(f"CUDA's compiler is not installed; run pip install --no-deps {' '.join(wheels)} (0.4 GB)")
    overlap_on_cuda()
    # No driver is checked, since this only compiles.
    os.environ.setdefault('JAX_SKIP_CUDA_CONSTRAINTS_CHECK', '1')
    os.environ.setdefault('CUDA_VISIBLE_DEVICES', '-1')
    # The shape is slices x nodes x cards of a node.
    shape = f'1x{sizes if "x" in sizes else f"1x{sizes}"}'
    config = CARDS[card].config()
    return topologies.get_topology_desc(platform='cuda', target_config=config, topology=shape).devices


def slice_devices(name: str, slices: int = 1) -> Sequence[Any]:
    """The chips of so many TPU slices; raises as `topology_devices`."""
    # Without these variables the library looks for a TPU machine and writes many lines that there is none.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
    os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')
    os.environ.setdefault('TPU_MIN_LOG_LEVEL', '3')
    # No device is held, since this only compiles.
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
    overlap_on_tpu()
    if not importlib.util.find_spec('libtpu'):
        raise RuntimeError("the TPU compiler is not installed; run pip install 'pal_jax[plan]'")
    try:
        chips = topologies.get_topology_desc(platform='tpu', topology_name=name, num_slices=slices).devices
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f'--topology={name} is no TPU slice ({reason}); such as v5e:4x4, v6e:2x4, v5p:4x4x4; for GPUs '
            f'{", ".join(CARDS)} with nodes and cards, such as h100:8 or h100:8x8'
        ) from None
    kind = chips[0].device_kind
    if slices > 1 and not (kind in CHIPS and CHIPS[kind].network):
        raise ValueError(f'--slices={slices}: the rate of the network between slices of {kind} is not known')
    return chips


def local_devices(platform: str) -> Sequence[Any]:
    """The devices of this machine.

    Raises:
      RuntimeError: the machine has no device of this platform.
    """
    try:
        return jax.devices(platform)
    except RuntimeError:
        raise RuntimeError(
            f'this machine has no {platform} device; plan for other machines with --topology, such as h100:8 or v5e:4x4'
        ) from None


def chip(device: Any, host: int = 0) -> Chip:
    """The figures of a device. Its memory is always known; its rates are 0 where the device is not in `CHIPS`.

    Where several hosts of GPUs work together, `host` is the number of devices of each.

    Raises:
      ValueError: the device is not in `CHIPS` and does not state its memory.
    """
    if device.platform == 'cpu':
        # Pretended devices share the machine's memory.
        return Chip(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // jax.local_device_count('cpu'))
    if device.device_kind in CHIPS:
        known = CHIPS[device.device_kind]
        return known._replace(host=host if device.platform == 'gpu' else 0)
    stats = None if device.platform == 'tpu' else device.memory_stats()
    if not stats:
        raise ValueError(
            f'nothing is known of the device {device.device_kind!r}; add it to pal_jax/commands/planning/chips.py'
        )
    return Chip(stats['bytes_limit'])
