"""Processes, devices, and the precision and layer loop that each platform computes fastest with."""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import platform as host
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AxisType, Mesh

from pal_jax.models.config import ModelConfig
from pal_jax.run import memory, processes, stores

AXES = ('data', 'fsdp', 'tensor')

# With these flags, weights are gathered and gradients summed beside other work. For some chips (v5p) the compiler does
# not do so by default.
LIBTPU_ARGS = (
    '--xla_enable_async_all_gather=true',
    '--xla_tpu_enable_async_collective_fusion=true',
    '--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true',
    '--xla_tpu_enable_async_collective_fusion_multiple_steps=true',
    '--xla_tpu_overlap_compute_collective_tc=true',
)

# The same for GPUs: docs/gpu.md says what it changes.
CUDA_FLAGS = ('--xla_gpu_enable_latency_hiding_scheduler=true',)


def initialize(cache_dir: str | os.PathLike[str] | None = None, place: processes.Place | None = None) -> None:
    """Join the other processes, if there are any, and keep compiled programs in `cache_dir`.

    JAX_COMPILATION_CACHE_DIR names another place for the programs, LIBTPU_INIT_ARGS other flags for a TPU.

    Raises:
      RuntimeError, ValueError: see `processes.join`.
    """
    # Free memory is given back to the system around compilations.
    memory.give_back_when_compiling()
    # On a CPU, a program that starts before the last one ends has its temporaries in memory beside those of the last.
    jax.config.update('jax_cpu_enable_async_dispatch', False)
    overlap_on_tpu()
    processes.join(place)
    if cache_dir and not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
        jax.config.update('jax_compilation_cache_dir', os.fspath(stores.target(pathlib.Path(cache_dir))))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def overlap_on_tpu() -> None:
    """Set the flags by which the TPU compiler runs collectives beside other work. It reads them once, when loaded."""
    os.environ.setdefault('LIBTPU_INIT_ARGS', ' '.join(LIBTPU_ARGS))


def overlap_on_cuda() -> None:
    """Set the flags of `CUDA_FLAGS` for the compiler for GPUs, which reads them once, when loaded."""
    os.environ.setdefault('XLA_FLAGS', ' '.join(CUDA_FLAGS))


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh `data x fsdp x tensor` of `devices`, by default all. A size of -1 takes the devices that the others leave.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    sizes, devices = [data, fsdp, tensor], devices or jax.devices()
    if any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f'mesh: {dict(zip(AXES, sizes, strict=True))}; a size is at least 1, or -1 for the rest')
    if sizes.count(-1) > 1:
        raise ValueError(f'mesh: {dict(zip(AXES, sizes, strict=True))} has more than one -1; leave at most one open')
    # Where a size is -1, the product has it as a factor; hence the minus sign.
    product = -int(np.prod(sizes))
    if -1 in sizes and len(devices) % product:
        raise ValueError(
            f'mesh: {dict(zip(AXES, sizes, strict=True))} divides the devices by {product}, got {len(devices)}; lower '
            '--config.mesh.data, .fsdp or .tensor'
        )
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // product
    if np.prod(sizes) != len(devices):
        raise ValueError(
            f'mesh: {dict(zip(AXES, sizes, strict=True))} needs {np.prod(sizes)} devices, got {len(devices)}; '
            'set one of --config.mesh.data, .fsdp, .tensor to -1'
        )
    return Mesh(_laid_out(sizes, devices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _laid_out(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices in the shape of a mesh. `data` alone crosses the network between slices, once a step."""
    # The driver of GPUs gives every host an index of its own, and any axis may cross the network between hosts.
    indices = {0 if device.platform == 'gpu' else getattr(device, 'slice_index', 0) for device in devices}
    slices, (data, *rest) = len(indices), sizes
    # An axis of a slice such as 8x8x8 may have to be split, which `jax.make_mesh` refuses.
    if slices == 1:
        return create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if data % slices:
        raise ValueError(
            f'mesh.data={data} does not divide over {slices} slices, and no other axis may cross the network between '
            f'them; use --config.mesh.data={slices} or a multiple of it'
        )
    within = (data // slices, *rest)
    return create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)


def divide(mesh: Mesh, parts: int) -> Mesh:
    """The devices of a mesh as a mesh `parts x rest x tensor` of the same axes, each part within one process.

    Raises:
      ValueError: the devices do not divide into so many parts, or the parts not into processes.
    """
    if parts % jax.process_count() or mesh.size % parts:
        raise ValueError(
            f'decode.shares={parts} does not divide {mesh.size} devices of {jax.process_count()} processes; use a '
            'multiple of the processes that divides the devices, or 0 for one share a process'
        )
    size = mesh.size // parts
    # The `tensor` axis keeps its size, or the largest divisor of it that a part has devices for.
    tensor = math.gcd(mesh.shape['tensor'], size)
    together = sorted(mesh.devices.reshape(-1, tensor).tolist(), key=lambda row: row[0].process_index)
    # Where the `tensor` axis crosses hosts, the devices are laid out anew, host by host.
    if any(len({device.process_index for device in row}) > 1 for row in together):
        together = sorted(mesh.devices.flat, key=lambda device: (device.process_index, device.id))
    shaped = np.array(together).reshape(parts, -1, tensor)
    return Mesh(shaped, AXES, axis_types=(AxisType.Auto,) * len(AXES))


ATTENTION = {'cpu': 'blocks', 'tpu': 'splash', 'gpu': 'flash'}  # others: 'fused'


def for_platform(
    cfg: ModelConfig, dtype: str = 'auto', platform: str | None = None, scan_layers: bool = False
) -> ModelConfig:
    """The model with the precision, layer loop, attention and chunks of logits that a platform runs fastest.

    `platform` is 'cpu', 'tpu' or 'gpu', by default that of this process.
    """
    platform = platform or jax.default_backend()
    dtypes = precision(dtype, platform)
    attention = ATTENTION.get(platform, 'fused')
    cpu = platform == 'cpu'
    # A CPU runs unrolled layers faster than a loop over them. The loop compiles faster, and `scan_layers` asks for it.
    # A CPU is as fast with few rows in a product. Accelerators are the reverse in both.
    unroll, logit_states = cpu and not scan_layers, 128 if cpu else cfg.logit_states
    return dataclasses.replace(cfg, **dtypes, unroll=unroll, attention=attention, logit_states=logit_states)


def precision(dtype: str = 'auto', platform: str | None = None) -> dict[str, str]:
    """The precision of the inputs of a matrix product, `dtype`, and of its result, `act_dtype`.

    Accelerators have both in bf16.

    Raises:
      ValueError: the dtype is none of auto, float32 and bfloat16.
    """
    if dtype not in ('auto', 'float32', 'bfloat16'):
        raise ValueError(f"dtype={dtype!r} is unknown; use 'auto', 'float32' or 'bfloat16'")
    on_cpu = (platform or jax.default_backend()) == 'cpu'
    if dtype == 'auto':
        # A CPU multiplies bf16 fast only where the chip has instructions for it.
        dtype = 'float32' if on_cpu and not _cpu_has_bf16() else 'bfloat16'
    # A CPU keeps activations in float32, since elementwise bf16 is emulated.
    return {'dtype': dtype, 'act_dtype': 'float32' if on_cpu else dtype}


def _cpu_has_bf16() -> bool:
    """True on Linux where the processor has instructions for bf16."""
    info = pathlib.Path('/proc/cpuinfo')
    return host.system() == 'Linux' and info.exists() and 'bf16' in info.read_text(encoding='utf-8')
