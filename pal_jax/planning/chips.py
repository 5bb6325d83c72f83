"""Rates and memory of devices, by the name that a device gives itself, and the devices to plan for."""

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
    """The vendor's figures of one device; a rate of 0 is unknown.

    memory: bytes of the large memory that programs may fill.
    flops: operations of bf16 products in a second.
    bandwidth: bytes that the large memory reads or writes in a second.
    links: bytes that the device receives from its neighbours in a second.
    """

    memory: float
    flops: float = 0.0
    bandwidth: float = 0.0
    links: float = 0.0


# TPUs: cloud.google.com/tpu/docs/v5e and the pages beside it; the memory limit is the compiler's own.
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
      ValueError: the compiler knows no such slice.
    """
    # Without these variables the library looks for a TPU machine and writes many lines that there is none.
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
      RuntimeError: the machine has no device of this platform.
    """
    try:
        return jax.devices(platform)
    except RuntimeError:
        message = f'this machine has no {platform} device; plan where there is one, or for a TPU slice with --topology'
        raise RuntimeError(message) from None


def chip(device: Any) -> Chip:
    """The figures of a device. Its memory is always known; its rates are 0 where the device is not in `CHIPS`.

    Raises:
      ValueError: the device is not in `CHIPS` and does not state its memory.
    """
    if device.platform == 'cpu':
        # Pretended devices share the machine's memory.
        return Chip(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // jax.local_device_count('cpu'))
    if device.device_kind in CHIPS:
        return CHIPS[device.device_kind]
    stats = None if device.platform == 'tpu' else device.memory_stats()
    if not stats:
        raise ValueError(f'nothing is known of the device {device.device_kind!r}; add it to pal_jax/planning/chips.py')
    return Chip(stats['bytes_limit'])
