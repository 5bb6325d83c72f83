"""Speed of decoding with a model of SmolLM2-135M's shape, with random weights: our engine's step alone, and a whole
call of our decoder with its prefill and its loop on the host.

  python -m benchmarks.decode --batch 8 16 --against=torch
  python -m benchmarks.decode --batch 32 --through jetstream grpc      what google-jetstream's driver and gRPC cost
Prints one JSON object; see `contest.py` for how the numbers come about. Torch is transformers' `generate` and is
compared with the whole call. All are greedy, and none may stop early.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks import contest, shapes
from benchmarks.contest import Contestant, Result, Round
from benchmarks.shapes import SHAPES
from pal_jax.models.config import ModelConfig

SERVERS: list[Any] = []  # kept to the end of the process


class Task(NamedTuple):
    """What each contestant decodes in a round: `new` tokens after each of `batch` prompts."""

    shape: ModelConfig
    batch: int
    prompt: int
    new: int


def make_engine(task: Task, dtype: str, stride: int = 4) -> Round:
    """Steps of the engine from a full prompt on, tokens fetched every `stride` steps as `LocalDecoder` does."""
    import jax
    import jax.numpy as jnp

    from pal_jax.decode import engine
    from pal_jax.models import decoder, params
    from pal_jax.runtime.devices import for_platform

    cfg = for_platform(task.shape, dtype)
    weights = engine.decode_weights(params.init(params.decoder_specs(cfg), jax.random.key(0)), cfg)
    generate = jax.jit(lambda weights, state: engine.generate(weights, cfg, state), donate_argnums=1)
    room = -(-(task.prompt + task.new) // 128) * 128
    states = [engine.init_state(cfg, task.batch, room)]
    read = (weights['layers'], decoder.unembed_weight(weights), states[0].keys, states[0].values)
    step_bytes = sum(x.nbytes for x in jax.tree.leaves(read))

    def decode() -> dict[str, float]:
        state, sampled = states.pop().replace(length=jnp.full(task.batch, task.prompt - 1)), []
        for i in range(task.new):
            state, step = generate(weights, state)
            sampled.append(step)
            if i % stride == stride - 1:
                jax.device_get(sampled[-stride:])
        jax.block_until_ready(state)
        states.append(state)
        return {'tokens': len(sampled) * task.batch, 'step_bytes': step_bytes}

    return decode


class Endless:
    """A tokenizer to which no token ends a turn."""

    stop_ids = ()

    def text_of(self, ids: Sequence[int]) -> str:
        return ''


def make_decoder(task: Task, dtype: str, driver: str = 'local') -> Round:
    """One call of a decoder on prompts that have nothing in common; for 'grpc' its server is in the same process."""
    import jax
    import numpy as np

    from pal_jax.decode.choose import make_decoder
    from pal_jax.decode.local import Request
    from pal_jax.models import params
    from pal_jax.runtime.devices import for_platform, make_mesh
    from pal_jax.types import Sampling

    cfg = for_platform(task.shape, dtype)
    endless: Any = Endless()
    mesh = make_mesh(devices=jax.devices()[:1])
    where = serve(cfg, endless, mesh, task.batch) if driver == 'grpc' else ''
    driver = 'jetstream' if driver == 'grpc' else driver
    decoder = make_decoder(cfg, endless, mesh, driver=driver, address=where, slots=task.batch, stride=4)
    decoder.load(params.init(params.decoder_specs(cfg), jax.random.key(0)))
    prompts = np.random.default_rng(0).integers(0, cfg.vocab, (task.batch, task.prompt)).tolist()
    sampling = Sampling(temperature=0.0, max_tokens=task.new)
    requests = [Request(tuple(prompt), sampling, seed=0) for prompt in prompts]
    return lambda: {'tokens': sum(len(completion.token_ids) for completion in decoder(requests))}


def serve(cfg: ModelConfig, tokenizer: Any, mesh: Any, slots: int) -> str:
    """Starts a gRPC server that lives as long as this process; returns its address."""
    from pal_jax.decode.jetstream import JetStreamEngine
    from pal_jax.decode.jetstream_driver import JetStreamDriver
    from pal_jax.decode.rpc import GrpcServer

    server = GrpcServer('127.0.0.1', 0, requests=slots)
    server.start(JetStreamDriver(JetStreamEngine(cfg, tokenizer, mesh, slots=slots)), 'benchmark')
    SERVERS.append(server)
    return f'127.0.0.1:{server.port}'


def make_torch(task: Task, dtype: str) -> Round:
    """One call of transformers' `generate`."""
    import torch
    from transformers import GenerationConfig, LlamaForCausalLM

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = LlamaForCausalLM(shapes.as_llama(task.shape)).eval().to(getattr(torch, dtype))
        prompts = torch.randint(0, task.shape.vocab, (task.batch, task.prompt))
    greedy: Any = GenerationConfig(do_sample=False, use_cache=True, max_new_tokens=task.new, min_new_tokens=task.new)
    greedy.pad_token_id = greedy.eos_token_id = 0

    def generate() -> dict[str, float]:
        tokens = model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=greedy)
        return {'tokens': tokens[:, task.prompt :].numel()}

    return generate


def contestants(task: Task, dtype: str, against: str | None, through: Sequence[str] = ()) -> dict[str, Contestant]:
    ours = {'pal_jax': make_decoder, 'pal_jax_engine': make_engine}
    ours |= {f'pal_jax_{driver}': functools.partial(make_decoder, driver=driver) for driver in through}
    all_of_them = {
        name: Contestant(functools.partial(make, task, dtype), contest.jax_peak) for name, make in ours.items()
    }
    for peer_dtype in shapes.peers(against):
        make = functools.partial(make_torch, task, peer_dtype)
        all_of_them[f'torch_{peer_dtype}'] = Contestant(make, contest.torch_peak)
    return all_of_them


def summary(result: Result, task: Task, memory_gbytes_per_s: float) -> dict[str, float]:
    best, tokens = min(result.seconds), result.first['tokens']
    numbers = {
        'tokens_per_s': round(tokens / best, 1),
        'median_tokens_per_s': round(tokens / statistics.median(result.seconds), 1),
        **result.startup(),
    }
    if 'step_bytes' in result.first:
        rate = result.first['step_bytes'] * task.new / best / 1e9
        numbers['fraction_of_memory_bandwidth'] = round(rate / memory_gbytes_per_s, 3)
    return numbers


def compare(results: dict[str, Result], task: Task, memory_gbytes_per_s: float) -> dict[str, Any]:
    """Every contestant's numbers, and how many times faster a call of ours is than transformers' better precision."""
    report: dict[str, Any] = {name: summary(result, task, memory_gbytes_per_s) for name, result in results.items()}
    peers = {name: result for name, result in results.items() if name.startswith('torch')}
    for driver in ('jetstream', 'grpc'):
        if result := results.get(f'pal_jax_{driver}'):
            report[f'pal_jax_over_{driver}'] = contest.ratios(results['pal_jax'], result)
    if peers:
        best = min(peers, key=lambda name: min(peers[name].seconds))
        report[f'pal_jax_over_{best}'] = contest.ratios(results['pal_jax'], peers[best])
    return report


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = shapes.arguments(__doc__)
    parser.add_argument('--batch', type=int, nargs='+', default=[8, 16], help='prompts decoded at once, a contest each')
    parser.add_argument('--prompt', type=int, default=64, help='tokens of a prompt')
    parser.add_argument('--new', type=int, default=128, help='tokens decoded after it')
    parser.add_argument('--rounds', type=int, default=5, help='timed rounds of each contestant')
    parser.add_argument('--through', nargs='+', default=[], choices=['jetstream', 'grpc'], help='drivers to compare')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    tasks = {batch: Task(SHAPES[args.shape], batch, args.prompt, args.new) for batch in args.batch}
    around = contest.surroundings(*shapes.packages(args.against))
    results = {
        batch: contest.race(contestants(task, args.dtype, args.against, args.through), args.rounds)
        for batch, task in tasks.items()
    }
    report = {'shape': args.shape, 'prompt': args.prompt, 'new': args.new, 'dtype': args.dtype, **around}
    bandwidth = around['machine']['memory_gbytes_per_s']
    for batch, task in tasks.items():
        report[f'batch_{batch}'] = compare(results[batch], task, bandwidth)
    print(json.dumps(report))


if __name__ == '__main__':
    main()
