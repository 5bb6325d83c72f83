"""The training server as a command: what it refuses, and weights that outlive a killed server."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import shell

MODULE = 'pal_jax.serve_training'
TOKENS = np.random.default_rng(0).integers(0, 256, size=12)


@contextlib.contextmanager
def serving(model: Path, workdir: Path, *flags: str) -> Iterator[tuple[str, Any]]:
    """The address of a server in a process of its own, and the process."""
    pytest.importorskip('tinker', reason="needs the client: pip install 'pal_jax[tinker]'")
    options = f'--model={model}', '--port=0', f'--workdir={workdir}', '--dtype=float32', *flags
    command = [sys.executable, '-m', MODULE, *options]
    env = os.environ | {'XLA_FLAGS': os.environ['XLA_FLAGS'].replace('device_count=8', 'device_count=1')}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout
        try:
            yield address_in(process.stdout), process
        finally:
            process.kill()


def address_in(lines: Iterable[str]) -> str:
    """The address in what a server prints, which says before that it loads."""
    found = (re.search(r'TINKER_BASE_URL=(\S+)', line) for line in lines)
    return next(address[1] for address in found if address)


def train(training: Any, steps: int) -> list[float]:
    from tinker import types

    datum = types.Datum(
        model_input=types.ModelInput.from_ints(TOKENS[:-1].tolist()),
        loss_fn_inputs={'target_tokens': types.TensorData(data=TOKENS[1:].tolist(), dtype='int64', shape=[11])},
    )
    losses = []
    for _ in range(steps):
        losses.append(training.forward_backward([datum], 'cross_entropy').result().metrics['loss:sum'])
        training.optim_step(types.AdamParams(learning_rate=0.01)).result()
    return losses


@pytest.mark.long
@pytest.mark.filterwarnings('ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning')
def test_a_killed_server_goes_on_from_saved_weights_bit_for_bit(tiny_folder, tmp_path, monkeypatch):
    tinker = pytest.importorskip('tinker', reason="needs the client: pip install 'pal_jax[tinker]'")
    monkeypatch.setenv('TINKER_TELEMETRY', '0')
    with serving(tiny_folder, tmp_path) as (address, process):
        client = tinker.ServiceClient(base_url=address, api_key='tml-test')
        training = client.create_lora_training_client(base_model=str(tiny_folder), rank=4, seed=1).result()
        train(training, 2)
        path = training.save_state('two').result().path
        expected = train(training, 3)
        process.send_signal(signal.SIGKILL)
        let_go(client)
    with serving(tiny_folder, tmp_path) as (address, _):
        client = tinker.ServiceClient(base_url=address, api_key='tml-test')
        resumed = client.create_training_client_from_state_with_optimizer(path).result()
        assert train(resumed, 3) == expected
        gone = client.holder.run_coroutine_threadsafe(info(client, training.model_id))
        with pytest.raises(tinker.NotFoundError, match=re.escape(f'restart from {path}')):
            gone.result()
        let_go(client)


def let_go(client: Any) -> None:
    """Close the connections of a client, whether or not its server lives."""
    client.holder.run_coroutine_threadsafe(client.holder.aclose()).result(10)
    # The client leaves the socket to a killed server open, which Python tells when it collects it: here, not later.
    gc.collect()


async def info(client: Any, model_id: str) -> Any:
    from tinker import types
    from tinker.lib.client_connection_pool_type import ClientConnectionPoolType

    with client.holder.aclient(ClientConnectionPoolType.TRAIN) as requests:
        return await requests.models.get_info(request=types.GetInfoRequest(model_id=model_id))


@pytest.mark.long
@pytest.mark.parametrize(
    ('args', 'told'),
    [
        (['--model=gguf:/nowhere.gguf'], '/nowhere.gguf'),
        (['--model=/nowhere/at/all'], '/nowhere/at/all'),
        (['--model=x', '--host=0.0.0.0'], '--host=0.0.0.0'),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(args, told):
    pytest.importorskip('tinker', reason="needs the client: pip install 'pal_jax[tinker]'")
    assert told in shell.refusal(MODULE, '--port=0', *args)
