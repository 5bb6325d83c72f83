"""What a device can do, by the name it gives itself, and where to find devices to plan for."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from pal_jax.runtime.devices import overlap_on_tpu

GIB = 2**30


class Chip(NamedTuple):
    """Vendors' figures. `memory` is what programs may fill of the large memory; a rate of 0 is unknown.

    flops: of bf16 products, a second. bandwidth: bytes/s of the large memory. links: bytes/s in from its neighbours.
    """

    memory: float
    flops: float = 0.0
    bandwidth: float = 0.0
    links: float = 0.0


# TPUs: cloud.google.com/tpu/docs/v5e and its siblings; what a program may fill is the compiler's own limit.
CHIPS = {
    'TPU v4': Chip(31.25 * GIB, 275e12, 1228e9, 150e9),
    'TPU v5 lite': Chip(15.75 * GIB, 197e12, 819e9, 100e9),
    'TPU v5': Chip(95.7 * GIB, 459e12, 2765e9, 300e9),
    'TPU v5p': Chip(95.7 * GIB, 459e12, 2765e9, 300e9),
    'TPU v6 lite': Chip(31.25 * GIB, 918e12, 1640e9, 224e9),
    'NVIDIA A100-SXM4-80GB': Chip(0.92 * 80e9, 312e12, 2039e9, 300e9),
    'NVIDIA H100 80GB HBM3': Chip(0.92 * 80e9, 989e12, 3350e9, 450e9),
    'NVIDIA H200': Chip(0.92 * 141e9, 989e12, 4800e9, 450e9),
}


def topology_devices(name: str) -> Sequence[Any]:
    """The devices of a TPU slice such as v5e:4x4, from the compiler alone.

    Raises:
      RuntimeError: the compiler is not installed.
      ValueError: it knows no such slice.
    """
    # Without these the library looks for a TPU machine around it, and says at length that there is none.
    os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
    os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
    os.environ.setdefault('TPU_ACCELERATOR_TYPE', 'v5litepod-4')
    os.environ.setdefault('TPU_MIN_LOG_LEVEL', '3')
    os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')  # it only compiles: no device is held
    overlap_on_tpu()
    if not importlib.util.find_spec('libtpu'):
        raise RuntimeError("the TPU compiler is not installed; run pip install 'pal_jax[plan]'")
    try:
        return topologies.get_topology_desc(platform='tpu', topology_name=name).devices
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f'--topology={name} is no TPU slice ({reason}); such as v5e:4x4, v6e:2x4, v5p:4x4x4') from None


def local_devices(platform: str) -> Sequence[Any]:
    """The devices of this machine.

    Raises:
      RuntimeError: it has none of this platform.
    """
    try:
        return jax.devices(platform)
    except RuntimeError:
        message = f'this machine has no {platform} device; plan where there is one, or for a TPU slice with --topology'
        raise RuntimeError(message) from None


def chip(device: Any) -> Chip:
    """What is known of a device; its memory at least.

    Raises:
      ValueError: a device of which nothing is known.
    """
    if device.platform == 'cpu':
        # Pretended devices share the machine's.
        return Chip(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // jax.local_device_count('cpu'))
    if device.device_kind in CHIPS:
        return CHIPS[device.device_kind]
    stats = None if device.platform == 'tpu' else device.memory_stats()
    if not stats:
        raise ValueError(f'nothing is known of the device {device.device_kind!r}; add it to pal_jax/planning/chips.py')
    return Chip(stats['bytes_limit'])
