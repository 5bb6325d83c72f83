"""Processes, devices and what each platform computes best in."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import platform as host
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from pal_jax.models.config import ModelConfig
from pal_jax.runtime import memory

AXES = ('data', 'fsdp', 'tensor')


def initialize(cache_dir: str | os.PathLike[str] | None = None) -> None:
    """Joins the other processes of a pod, if there are any, keeps compiled programs in `cache_dir`, and has memory
    given back around compilations.

    JAX_COMPILATION_CACHE_DIR names another place for the programs.
    """
    memory.give_back_when_compiling()
    if os.environ.get('JAX_COORDINATOR_ADDRESS') or os.environ.get('SLURM_NTASKS', '1') != '1' or _on_pod():
        jax.distributed.initialize()
    if cache_dir and not os.environ.get('JAX_COMPILATION_CACHE_DIR'):
        jax.config.update('jax_compilation_cache_dir', os.fspath(cache_dir))
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def _on_pod() -> bool:
    return ',' in os.environ.get('TPU_WORKER_HOSTNAMES', '')


def make_mesh(data: int = 1, fsdp: int = -1, tensor: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """`devices` (all by default) as a mesh `data x fsdp x tensor`; -1 is what the others leave.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    sizes, devices = [data, fsdp, tensor], devices or jax.devices()
    if any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f'mesh: {dict(zip(AXES, sizes, strict=True))}; a size is at least 1, or -1 for the rest')
    if sizes.count(-1) > 1:
        raise ValueError(f'mesh: {dict(zip(AXES, sizes, strict=True))} has more than one -1; leave at most one open')
    rest = -int(np.prod(sizes))
    if -1 in sizes and len(devices) % rest:
        raise ValueError(
            f'mesh: {dict(zip(AXES, sizes, strict=True))} divides the devices by {rest}, got {len(devices)}; lower '
            '--config.mesh.data, .fsdp or .tensor'
        )
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // rest
    if np.prod(sizes) != len(devices):
        raise ValueError(
            f'mesh: {dict(zip(AXES, sizes, strict=True))} needs {np.prod(sizes)} devices, got {len(devices)}; '
            'set one of --config.mesh.data, .fsdp, .tensor to -1'
        )
    return jax.make_mesh(tuple(sizes), AXES, (AxisType.Auto,) * len(AXES), devices=devices)


def for_platform(cfg: ModelConfig, dtype: str = 'auto') -> ModelConfig:
    """The same model in the precision and layer loop that this platform runs best.

    A CPU multiplies bf16 fast only where the chip has instructions for it, keeps activations in float32 (elementwise
    bf16 is emulated) and runs straight-line layers faster than a loop; accelerators are the reverse.
    """
    if dtype not in ('auto', 'float32', 'bfloat16'):
        raise ValueError(f"policy.dtype={dtype!r} is unknown; use 'auto', 'float32' or 'bfloat16'")
    on_cpu = jax.default_backend() == 'cpu'
    if dtype == 'auto':
        dtype = 'float32' if on_cpu and not _cpu_has_bf16() else 'bfloat16'
    return dataclasses.replace(cfg, dtype=dtype, act_dtype='float32' if on_cpu else dtype, unroll=on_cpu)


def _cpu_has_bf16() -> bool:
    info = pathlib.Path('/proc/cpuinfo')
    return host.system() == 'Linux' and info.exists() and 'bf16' in info.read_text()
