"""Many clients at once: each has what it would have alone, and the memory of all comes back."""

from __future__ import annotations

import gc
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import pytest

tinker = pytest.importorskip('tinker', reason="needs the client: pip install 'pal_jax[tinker]'")
types = tinker.types

CLIENTS, SAMPLES = 8, 12


def loop(client: Any, folder: str, number: int) -> list[Any]:
    """A loop of two steps and many samples, whose randomness is that of `number`."""
    rng = np.random.default_rng(number)
    training = client.create_lora_training_client(base_model=folder, rank=4, seed=number).result()
    told: list[Any] = []
    for _ in range(2):
        data = []
        for length in rng.integers(5, 40, 3):
            tokens = rng.integers(0, 256, length + 1).tolist()
            targets = types.TensorData(data=tokens[1:], dtype='int64', shape=[int(length)])
            model_input = types.ModelInput.from_ints(tokens[:-1])
            data.append(types.Datum(model_input=model_input, loss_fn_inputs={'target_tokens': targets}))
        loss = training.forward_backward(data, 'cross_entropy')
        step = training.optim_step(types.AdamParams(learning_rate=0.01))
        told.append((loss.result().metrics, step.result().metrics))
    sampler = training.save_weights_and_get_sampling_client()
    sampler = sampler.result() if hasattr(sampler, 'result') else sampler
    prompt = types.ModelInput.from_ints(rng.integers(0, 256, 9).tolist())
    asked = [
        sampler.sample(prompt=prompt, num_samples=2, sampling_params=types.SamplingParams(max_tokens=4, seed=seed))
        for seed in range(SAMPLES)
    ]
    told += [[(list(x.tokens), list(x.logprobs)) for x in one.result().sequences] for one in asked]
    return told


def held() -> int:
    """The bytes of all arrays on devices."""
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays())


@pytest.mark.long
@pytest.mark.filterwarnings(
    'ignore::pytest.PytestUnraisableExceptionWarning', 'ignore::ResourceWarning', 'ignore::FutureWarning'
)
def test_many_clients_at_once_have_what_each_has_alone_and_give_their_memory_back(connect, tiny_folder, service):
    alone = loop(connect(), str(tiny_folder), 3)
    clients = [connect() for _ in range(CLIENTS)]
    before, earlier = held(), set(service.samplers)
    with ThreadPoolExecutor(CLIENTS) as pool:
        results = list(pool.map(loop, clients, [str(tiny_folder)] * CLIENTS, range(CLIENTS)))
    assert results[3] == alone
    assert len({repr(result) for result in results}) == CLIENTS
    most = held()
    for client in clients:
        client.close('success').result(30)
    # The caches of the decoder stay, and the adapters of eight models do not.
    for _ in range(100):
        if (left := held() - before) < (most - before) / CLIENTS:
            break
        time.sleep(0.1)
    assert left < (most - before) / CLIENTS
    assert set(service.samplers) == earlier
