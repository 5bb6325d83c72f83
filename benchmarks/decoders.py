"""The contestants of `decode.py`: what each decodes in a round is `new` tokens after each of `batch` prompts.

Prompts are new in every round, so nothing that a cache has kept is of use. All are greedy, and none may stop early.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import shapes
from benchmarks.contestant import Round
from benchmarks.shapes import SHAPES

if TYPE_CHECKING:
    from pal_jax.decode.local import LocalDecoder
    from pal_jax.decode.requests import Request

STRIDE = 4  # steps between two fetches of tokens, ours and the engine's


def prompts(model: str, batch: int, length: int) -> Iterator[np.ndarray]:
    """A round's prompts [batch, length], with no token 0: others pad with it."""
    rng = np.random.default_rng(0)
    while True:
        yield rng.integers(1, SHAPES[model].vocab, (batch, length))


class Endless:
    """A tokenizer to which no token of the vocabulary ends a turn."""

    pad_id = 0

    def __init__(self, vocab: int):
        self.stop_ids = (vocab,)

    def text_of(self, ids: Sequence[int]) -> str:
        return ''


def make_engine(model: str, dtype: str, batch: int, prompt: int, new: int) -> Round:
    """Steps of the engine from a full prompt on, in as many rows as `LocalDecoder` has for them, tokens fetched every
    `STRIDE` steps as it does.

    A round's figures are its tokens, the bytes that a step reads at least, the kernels of a step, and how often its
    compiled text speaks of command buffers, which are XLA's CUDA graphs.
    """
    import jax
    import jax.numpy as jnp

    from pal_jax.commands.planning import hlo
    from pal_jax.decode.programs import Programs
    from pal_jax.decode.requests import bucket, for_slots
    from pal_jax.models import decoder, params
    from pal_jax.run.devices import for_platform, make_mesh

    cfg, rows = for_slots(for_platform(SHAPES[model], dtype), batch)
    programs = Programs(cfg, make_mesh(devices=jax.devices()[:1]), slots=rows)
    weights, generate = programs.publish(params.init(params.decoder_specs(cfg), jax.random.key(0))), programs.generate
    states = [programs.init(bucket(prompt + new, 128))]
    read = (weights['layers'], decoder.unembed_weight(weights, cfg), states[0].keys, states[0].values)
    step_bytes = sum(x.nbytes for x in jax.tree.leaves(read))
    text = generate.lower(weights, states[0], None).compile().as_text()
    program = {'kernels': hlo.traffic(text).kernels, 'graphs': text.count('command_buffer')}

    def decode() -> dict[str, float]:
        state, sampled = states.pop().replace(length=jnp.full(rows, prompt - 1)), []
        for i in range(new):
            state, step = generate(weights, state, None)
            sampled.append(step)
            if i % STRIDE == STRIDE - 1:
                jax.device_get(sampled[-STRIDE:])
        jax.block_until_ready(state)
        states.append(state)
        return {'tokens': len(sampled) * batch, 'step_bytes': step_bytes, **program}

    return decode


def local_decoder(model: str, dtype: str, slots: int, reuse: bool = True) -> LocalDecoder:
    """Ours, with random weights."""
    from pal_jax.decode.local import LocalDecoder

    cfg, tokenizer, mesh = _parts(model, dtype)
    decoder = LocalDecoder(cfg, tokenizer, mesh, slots=slots, stride=STRIDE, reuse=reuse)
    decoder.load(_weights(cfg))
    return decoder


def make_local(model: str, dtype: str, batch: int, prompt: int, new: int) -> Round:
    """Calls of `LocalDecoder`."""
    return _calls(local_decoder(model, dtype, batch), model, batch, prompt, new)


def make_grpc(model: str, dtype: str, batch: int, prompt: int, new: int) -> Round:
    """A round of decoding asked for over gRPC, of a server that runs in this process too."""
    from pal_jax.decode.driver import Driver
    from pal_jax.decode.serve.jetstream.remote import RemoteDecoder
    from pal_jax.decode.serve.jetstream.rpc import GrpcServer

    driver = Driver(local_decoder(model, dtype, batch))
    cfg, tokenizer = driver.decoder.cfg, driver.decoder.tokenizer
    server = GrpcServer('127.0.0.1', 0, requests=driver.room)
    server.start(driver, model)
    decoder = RemoteDecoder(cfg, tokenizer, f'127.0.0.1:{server.port}')
    decoder.load(_weights(cfg))
    decoder.server = server  # lives as long as who asks it
    return _calls(decoder, model, batch, prompt, new)


def make_torch(model: str, dtype: str, batch: int, prompt: int, new: int, cache: str | None = None) -> Round:
    """Calls of transformers' `generate`, with a `cache` of its kinds, such as 'static'; by default its own choice."""
    import torch
    from transformers import GenerationConfig, LlamaForCausalLM

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)
    with torch.device(device):
        network: Any = LlamaForCausalLM(shapes.as_llama(SHAPES[model])).eval().to(getattr(torch, dtype))
    fresh = prompts(model, batch, prompt)
    greedy: Any = GenerationConfig(do_sample=False, use_cache=True, max_new_tokens=new, min_new_tokens=new)
    greedy.pad_token_id = greedy.eos_token_id = 0
    greedy.cache_implementation = cache

    def generate() -> dict[str, float]:
        token_ids = torch.from_numpy(next(fresh)).to(device)
        tokens = network.generate(token_ids, attention_mask=torch.ones_like(token_ids), generation_config=greedy)
        return {'tokens': tokens[:, prompt:].numel()}

    return generate


def make_tunix(model: str, dtype: str, batch: int, prompt: int, new: int) -> Round:
    """Calls of Tunix' sampler, with its Llama 3 in the same shape."""
    import jax
    from flax import nnx
    from tunix.generate.sampler import CacheConfig, Sampler
    from tunix.models.llama3.model import Llama3

    shape = SHAPES[model]
    network = Llama3(shapes.as_tunix(shape), rngs=nnx.Rngs(0))
    nnx.update(network, jax.tree.map(lambda x: x.astype(dtype), nnx.state(network)))
    cache = CacheConfig(prompt + new, shape.layers, shape.kv_heads, shape.head_dim)
    sampler = Sampler(network, Spelled(), cache)
    fresh = prompts(model, batch, prompt)

    def generate() -> dict[str, float]:
        texts = [' '.join(map(str, row)) for row in next(fresh).tolist()]
        answer = sampler(texts, new, max_prompt_length=prompt, eos_tokens=[shape.vocab])
        return {'tokens': sum(len(tokens) for tokens in answer.tokens)}

    return generate


class Spelled:
    """A tokenizer for Tunix, of texts that are token ids; it neither begins nor ends them."""

    def encode(self, text: str) -> list[int]:
        return [int(number) for number in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return ''

    def bos_id(self) -> int:
        return 0

    eos_id = pad_id = bos_id


def _parts(model: str, dtype: str) -> tuple[Any, Any, Any]:
    """The model as this machine computes it, its tokenizer and a mesh of one device."""
    import jax

    from pal_jax.run.devices import for_platform, make_mesh

    return for_platform(SHAPES[model], dtype), Endless(SHAPES[model].vocab), make_mesh(devices=jax.devices()[:1])


def _weights(cfg: Any) -> Any:
    import jax

    from pal_jax.models import params

    return params.init(params.decoder_specs(cfg), jax.random.key(0))


def ask(prompt: Sequence[int], new: int) -> Request:
    """A greedy request."""
    from pal_jax.decode.requests import Request
    from pal_jax.types import Sampling

    return Request(tuple(prompt), Sampling(temperature=0.0, max_tokens=new), seed=0)


def _calls(decoder: Any, model: str, batch: int, prompt: int, new: int) -> Round:
    """Rounds of one call each."""
    fresh = prompts(model, batch, prompt)

    def call() -> dict[str, float]:
        completions = decoder([ask(tokens, new) for tokens in next(fresh).tolist()])
        return {'tokens': sum(len(completion.token_ids) for completion in completions)}

    return call
