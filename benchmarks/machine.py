"""The limits of this machine: the peak of matrix products and the memory bandwidth, measured in-process.

  python -m benchmarks.machine
Prints one JSON object. On a shared machine the numbers fall with its load: quote a program's speed as a share of the
peak measured beside it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array


def best_seconds(run: Callable[[], Array], rounds: int = 10) -> float:
    """The shortest of `rounds` runs, after one that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return min(times)


def gemm_flops(dtype: str, out_dtype: str, size: tuple[int, int, int], rounds: int = 10) -> float:
    """Flop/s of `x [m, k] @ w [k, n]` with inputs and output in the given precisions. Of random numbers: a GPU that
    multiplies ones draws less power, and so runs faster than it can for a model."""
    m, k, n = size
    x, w = jax.random.normal(jax.random.key(0), (m, k), dtype), jax.random.normal(jax.random.key(1), (k, n), dtype)
    product = jax.jit(lambda x, w: jnp.matmul(x, w, preferred_element_type=out_dtype))
    return 2 * m * k * n / best_seconds(lambda: product(x, w), rounds)


def read_bytes(size: int, rounds: int = 10) -> float:
    """Bytes/s read by the maxima of the rows of a matrix of `size` bytes, larger than any cache.

    It writes next to nothing: a result of that size would be fresh memory, whose page faults take longer than the copy.
    """
    x = jnp.ones((size >> 14, 1 << 12), jnp.float32)
    maxima = jax.jit(lambda x: x.max(axis=-1))
    return size / best_seconds(lambda: maxima(x), rounds)


def gemm_size() -> tuple[int, int, int]:
    """Large enough for the device to reach its peak: a layer of a small model on a CPU, a large square elsewhere."""
    return (1024, 576, 1536) if jax.default_backend() == 'cpu' else (8192, 8192, 8192)


def read_size() -> int:
    """More than caches hold; on accelerators enough that the start of a program is no part of its time."""
    return 1 << 27 if jax.default_backend() == 'cpu' else 1 << 32


def measure() -> dict[str, float | str]:
    size = gemm_size()
    narrow_out = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
    return {
        'device': jax.devices()[0].device_kind,
        'float32_gflops': round(gemm_flops('float32', 'float32', size) / 1e9, 1),
        'bfloat16_gflops': round(gemm_flops('bfloat16', narrow_out, size) / 1e9, 1),
        'memory_gbytes_per_s': round(read_bytes(read_size()) / 1e9, 1),
    }


if __name__ == '__main__':
    print(json.dumps(measure()))
