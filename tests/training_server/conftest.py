"""A training server of a tiny model in a thread, and the real client of it."""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import pytest

from pal_jax.models.files import hf, sources
from pal_jax.run import devices
from tests.decode.conftest import serving

# A client of one server, and all that is closed with it.
Connect = Callable[..., Any]


@pytest.fixture(scope='session')
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model as a Hugging Face folder."""
    source = sources.resolve('random:tiny')
    folder = tmp_path_factory.mktemp('models') / 'tiny'
    hf.save(source.load(), source.config, source.tokenizer(), folder)
    return folder


@pytest.fixture(scope='session')
def service(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The service of the tiny model on one device."""
    pytest.importorskip('tinker', reason="needs the client: pip install 'pal_jax[tinker]'")
    from pal_jax.training_server.service import Service
    from pal_jax.training_server.start import make_worker

    mesh = devices.make_mesh(devices=jax.devices()[:1])
    return Service(
        *make_worker(
            str(tiny_folder), tmp_path_factory.mktemp('work'), mesh, dtype='float32', max_len=128, rows=2, slots=8
        )
    )


def end(client: Any) -> None:
    """Close the connections of a client, also of one that the server has refused."""
    with contextlib.suppress(Exception):
        client.close('success').result(10)


@pytest.fixture(scope='session')
def connect(service: Any) -> Iterator[Connect]:
    """A function that makes a `ServiceClient` of the server; `flags` are the client's configuration."""
    import tinker

    from pal_jax.training_server.app import make_app

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, {'HF_HUB_OFFLINE': '1', 'TINKER_TELEMETRY': '0'}))
        # The service outlives the applications that show it.
        stack.enter_context(mock.patch.object(service, 'close'))
        addresses: dict[str, str] = {}

        def make(key: str = 'tml-test', **flags: Any) -> Any:
            if repr(flags) not in addresses:
                addresses[repr(flags)] = stack.enter_context(serving(make_app(service, key='tml-test', flags=flags)))
            client = tinker.ServiceClient(base_url=addresses[repr(flags)], api_key=key)
            stack.callback(end, client)
            return client

        yield make
    service.close()
    # The client leaves sockets open, which Python tells when it collects them.
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ResourceWarning)
        gc.collect()
