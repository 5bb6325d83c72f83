"""The whole suite runs on eight pretended CPU devices, strictly: no silent rank promotion, no warnings.

`JAX_PLATFORMS=cuda pytest -m gpu` (or `tpu`) runs the tests that need a device on that device instead.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Eight devices on few cores may wait long for each other: XLA gives up after 40 s by default, and ends the process.
os.environ['XLA_FLAGS'] = os.environ.get('XLA_FLAGS', '') + (
    ' --xla_force_host_platform_device_count=8 --xla_cpu_collective_call_terminate_timeout_seconds=300'
)
# Where a device has as many programs under way as XLA's CPU client lets it, the next one waits in a thread that those
# need: with as many threads as devices all then wait for each other.
os.environ.setdefault('PJRT_NPROC', '32')
# torch's threads spin while they wait for each other, which takes the cores from the other workers.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '2'  # XLA logs a page per program it finds in the cache below

import jax
import pytest

pytest_plugins = ['tests.chat_server']

# Each compiled program for the CPU holds some dozens of memory maps, of which Linux lets a process have 65,530
# (vm.max_map_count); above that LLVM crashes. Programs dropped here come back from the cache below.
MAPS = Path('/proc/self/maps')
MAX_MAPS = 30_000

PLATFORMS = {'gpu': 'cuda', 'tpu': 'tpu'}  # marker and what JAX_PLATFORMS calls it


def pytest_configure(config: pytest.Config) -> None:
    jax.config.update('jax_numpy_rank_promotion', 'raise')
    # Compiled programs outlive the session in .pytest_cache (which git ignores; --cache-clear drops them).
    cache = getattr(config, 'cache', None)  # absent under -p no:cacheprovider
    jax.config.update('jax_compilation_cache_dir', str(cache.mkdir('jax')) if cache else None)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs another platform than this session's."""
    for item in items:
        for marker, platform in PLATFORMS.items():
            if item.get_closest_marker(marker) and jax.default_backend() != marker:
                item.add_marker(pytest.mark.skip(reason=f'needs JAX_PLATFORMS={platform}'))


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    if MAPS.exists() and MAPS.read_bytes().count(b'\n') > MAX_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def strict_promotion() -> Iterator[None]:
    """No silent promotion of dtypes either; optax needs the standard one."""
    with jax.numpy_dtype_promotion('strict'):
        yield
