"""The engine in JetStream's interface: its own driver decodes our tokens with it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.decode.choose import choose_decoder
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.requests import Request
from pal_jax.decode.serve.jetstream.engine import JetStreamEngine, orchestrator, protocol
from pal_jax.models import config, params
from pal_jax.run import devices
from pal_jax.types import Sampling

ROOT = Path(__file__).parents[4]
TOKENIZER = byte_tokenizer()
CFG = dataclasses.replace(config.tiny(vocab=TOKENIZER.vocab_size), unroll=True)
MESH = devices.make_mesh(devices=jax.devices()[:1])


def weights() -> params.Params:
    """Weights that greedily never end a text."""
    tree = params.init(params.decoder_specs(CFG), jax.random.key(0))
    tree = jax.tree.map(lambda x: 8 * x if x.ndim > 2 else x, tree)
    return {**tree, 'embed': tree['embed'].at[jax.numpy.asarray(TOKENIZER.stop_ids)].set(0)}


def test_the_engine_runs_under_jetstreams_own_driver():
    """The words of several requests at once are those of the local decoder; the driver drops the end."""
    local = LocalDecoder(CFG, TOKENIZER, MESH, slots=8, stride=2)
    local.load(weights())
    engine = JetStreamEngine(CFG, TOKENIZER, MESH, slots=8)
    with pytest.raises(RuntimeError, match='has no weights; call load'):
        engine.load_params()
    engine.load(weights())
    driver = orchestrator.Driver([engine], [engine], [engine.load_params()], [engine.load_params()], True)
    texts = ['Hello', 'Bye', 'A longer prompt']
    lone = local([Request(tuple(TOKENIZER.encode(text)), Sampling(0.0, max_tokens=9), 0) for text in texts])

    async def answer(text):
        request = protocol.DecodeRequest(text_content=protocol.DecodeRequest.TextContent(text=text), max_tokens=9)
        messages = [m async for m in orchestrator.LLMOrchestrator(driver).Decode(request)]
        return [token for message in messages for token in message.stream_content.samples[0].token_ids]

    async def answers():
        tokens = await asyncio.gather(*map(answer, texts))
        await asyncio.to_thread(driver.stop)  # before the loop closes, or the driver's thread has nowhere to write
        return tokens

    kept = [[token for token in one.token_ids if token not in TOKENIZER.stop_ids] for one in lone]
    assert asyncio.run(answers()) == kept
    with pytest.raises(ValueError, match='send the whole prompt'):
        engine.prefill(
            params=engine.load_params(), existing_prefix=1, padded_tokens=np.ones(16, np.int32), true_length=3
        )


@pytest.mark.slow
def test_starting_it_imports_no_tensorflow_and_leaves_the_logging_as_it_was():
    code = (
        'import json, logging, sys\nimport pal_jax.decode.serve.jetstream.rpc\n'
        'root = logging.getLogger()\n'
        'left = sorted({"tensorflow", "seqio"} & sys.modules.keys())\n'
        'print(json.dumps([left, root.level, len(root.handlers)]))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert json.loads(done.stdout) == [[], 30, 0]


@pytest.mark.parametrize(
    ('chosen', 'message'),
    [
        ({'driver': 'vllm'}, "decode.driver='vllm' is unknown; use 'local' or 'jetstream'"),
        ({'driver': 'jetstream', 'address': 'a:74651'}, "'a:74651' is no host:port"),
        ({'driver': 'jetstream'}, "decode.address='': '' is no host:port"),
        ({'driver': 'jetstream', 'address': 'a,b:1'}, "decode.address='a,b:1': 'a' is no host:port"),
        ({'driver': 'jetstream', 'address': 'b:1,b:1'}, 'names a server twice'),
        ({'driver': 'local', 'int8': True}, 'decode.int8: weights of eight bits .* on a CPU'),
        ({'driver': 'local', 'address': 'a:1'}, "decode.address='a:1' needs decode.driver='jetstream'"),
    ],
)
def test_a_wrong_choice_is_told(chosen, message):
    with pytest.raises(ValueError, match=message):
        choose_decoder(CFG, TOKENIZER, MESH, **{'address': '', 'slots': 8, 'stride': 2} | chosen)
