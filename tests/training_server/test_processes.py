"""A training server of two processes: the bits of one process, and an end for all when one is lost."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_processes import environment, free_port
from tests.training_server.test_restart import MODULE, TOKENS, address_in, let_go, train

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings('ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning'),
]


@contextlib.contextmanager
def serving(model: Path, workdir: Path, count: int) -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """The address of a server of `count` processes, which have four devices together, and the processes."""
    coordinator = f'--coordinator=localhost:{free_port()}'
    options = f'--model={model}', '--port=0', f'--workdir={workdir}', '--dtype=float32', '--max_len=128', '--slots=8'
    commands = [
        [sys.executable, '-m', MODULE, *options, coordinator, f'--processes={count}', f'--process={i}']
        for i in range(count)
    ]
    env = environment(workdir / 'compiled', 4 // count)
    pipes: Any = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    processes = [subprocess.Popen(command, env=env, **pipes) for command in commands]
    try:
        assert processes[0].stdout
        yield address_in(processes[0].stdout), processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def loop(address: str, model: Path) -> dict[str, Any]:
    """All results of a session: two models, saved weights, and samples of four kinds of weights."""
    import tinker
    from tinker import types

    client = tinker.ServiceClient(base_url=address, api_key='tml-test')
    one, other = (client.create_lora_training_client(base_model=str(model), rank=r, seed=r).result() for r in (4, 3))
    results: dict[str, Any] = {'losses': [train(one, 2), train(other, 1)]}
    path = one.save_state('two').result().path
    for refused in (lambda: one.save_state('two'), lambda: client.create_training_client_from_state(f'{path}x')):
        with pytest.raises(tinker.RequestFailedError, match='two'):
            refused().result()
    results['went on'] = train(one, 1)
    resumed = client.create_training_client_from_state_with_optimizer(path).result()
    results['resumed'] = train(resumed, 1)
    saved = client.create_sampling_client(model_path=one.save_weights_for_sampler('s').result().path).result()
    base = client.create_sampling_client(base_model=str(model)).result()
    settings = types.SamplingParams(max_tokens=6, seed=7)
    prompt = types.ModelInput.from_ints(TOKENS[:9].tolist())
    results['samples'] = []
    moments = [training.save_weights_and_get_sampling_client().result() for training in (one, other)]
    for sampler in (*moments, saved, base):
        answer = sampler.sample(prompt, 3, settings, include_prompt_logprobs=True).result()
        sampled = [[x.tokens, x.logprobs] for x in answer.sequences]
        results['samples'].append([sampled, answer.prompt_logprobs])
    let_go(client)
    return results


def test_two_processes_serve_the_bits_of_one(tiny_folder, tmp_path, monkeypatch):
    pytest.importorskip('tinker', reason="needs the client: pip install 'pal_jax[tinker]'")
    monkeypatch.setenv('TINKER_TELEMETRY', '0')
    results = []
    for count in (1, 2):
        with serving(tiny_folder, tmp_path / str(count), count) as (address, processes):
            results.append(loop(address, tiny_folder))
            processes[0].send_signal(signal.SIGTERM)
            assert [process.wait(60) for process in processes] == [0] * count
    one, two = (json.dumps(result) for result in results)
    assert one == two
    assert results[0]['went on'] == results[0]['resumed']


def test_a_lost_process_ends_the_server_in_one_line(tiny_folder, tmp_path):
    pytest.importorskip('tinker', reason="needs the client: pip install 'pal_jax[tinker]'")
    with serving(tiny_folder, tmp_path, 2) as (_, processes):
        processes[1].kill()
        assert processes[0].wait(60) != 0
        assert processes[0].stderr
        assert 'process 1' in processes[0].stderr.read()
