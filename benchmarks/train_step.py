"""Speed of one full training step (cross-entropy, AdamW) of a model of SmolLM2-135M's shape, with random weights.

  python -m benchmarks.train_step --against=torch
Prints one JSON object. Every contestant lives in its own process and they take steps in turn, so that a busy machine
is as busy for one as for the other; read the ratios.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

SHAPE: dict[str, Any] = {
    'vocab': 49152,
    'width': 576,
    'layers': 30,
    'heads': 9,
    'kv_heads': 3,
    'head_dim': 64,
    'mlp': 1536,
}
ROPE_THETA = 100_000.0
LEARNING_RATE = 1e-5
HUGE_PAGES = 'glibc.malloc.hugetlb=1'
Step = Callable[[], float]  # takes one step and returns its loss, so the step is over when it returns


class Contestant(NamedTuple):
    """A way to take the step: `make(batch, length, dtype)` and the precision it multiplies in."""

    make: Callable[[int, int, str], Step]
    dtype: str


def make_pal_jax(batch: int, length: int, dtype: str) -> Step:
    """Our step, computed as `for_platform` has it."""
    import jax
    import optax

    from pal_jax.models import params
    from pal_jax.models.config import ModelConfig
    from pal_jax.runtime.devices import for_platform

    cfg = for_platform(ModelConfig(family='llama', **SHAPE, max_len=length, rope_theta=ROPE_THETA), dtype)
    optimizer = optax.adamw(LEARNING_RATE)
    tokens = jax.random.randint(jax.random.key(1), (batch, length), 0, cfg.vocab)
    weights = params.init(params.decoder_specs(cfg), jax.random.key(0))
    state = [weights, optimizer.init(weights)]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(weights: params.Params, opt_state: optax.OptState):
        loss, grads = jax.value_and_grad(_cross_entropy)(weights, cfg, tokens)
        updates, opt_state = optimizer.update(grads, opt_state, weights)
        return optax.apply_updates(weights, updates), opt_state, loss

    def step() -> float:
        state[0], state[1], loss = update(*state)
        jax.block_until_ready(state)
        return float(loss)

    del weights
    return step


def _cross_entropy(weights: Any, cfg: Any, tokens: Any) -> Any:
    import jax.numpy as jnp

    from pal_jax.models import decoder
    from pal_jax.models.attention import visibility
    from pal_jax.objectives.logprobs import token_loss

    one_segment = jnp.ones_like(tokens)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = decoder.forward(weights, cfg, tokens, positions, visibility(one_segment, one_segment))
    states, targets = hidden[:, :-1], tokens[:, 1:]
    share = jnp.full(targets.shape, 1 / targets.size)
    unembed = decoder.unembed_weight(weights)
    return token_loss(states, unembed, targets, share, lambda lp, w: -lp * w, dtype=cfg.dtype)[0]


def make_torch(batch: int, length: int, dtype: str) -> Step:
    """Transformers' Llama under torch; bfloat16 is autocast over float32 weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=SHAPE['vocab'],
        hidden_size=SHAPE['width'],
        num_hidden_layers=SHAPE['layers'],
        num_attention_heads=SHAPE['heads'],
        num_key_value_heads=SHAPE['kv_heads'],
        head_dim=SHAPE['head_dim'],
        intermediate_size=SHAPE['mlp'],
        max_position_embeddings=length,
        rope_parameters={'rope_type': 'default', 'rope_theta': ROPE_THETA},
        tie_word_embeddings=True,
    )
    with torch.device(device):
        model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    tokens = torch.randint(0, SHAPE['vocab'], (batch, length), device=device)

    def step() -> float:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16'):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def serve(pipe: Connection, contestant: Contestant, batch: int, length: int) -> None:
    """The life of a contestant's process: the first step, then one for each message, then its peak memory."""
    start = time.perf_counter()
    step = contestant.make(batch, length, contestant.dtype)
    made = time.perf_counter()
    loss = step()
    pipe.send({'init_s': made - start, 'first_step_s': time.perf_counter() - made, 'first_loss': loss})
    while pipe.recv():
        start = time.perf_counter()
        step()
        pipe.send(time.perf_counter() - start)
    pipe.send(_peak_bytes(contestant))


def _peak_bytes(contestant: Contestant) -> int:
    """Peak memory of the device where it counts it, of this process otherwise."""
    if contestant.make is make_pal_jax:
        import jax

        stats = jax.local_devices()[0].memory_stats() or {}
        if 'peak_bytes_in_use' in stats:
            return stats['peak_bytes_in_use']
    else:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def race(contestants: dict[str, Contestant], batch: int, length: int, steps: int) -> dict[str, dict[str, Any]]:
    """Steps in turn; for each name its first step, times and peak memory. One process at a time is awake."""
    context = multiprocessing.get_context('spawn')
    pipes, results = {}, {}
    for name, contestant in contestants.items():
        pipes[name], end = context.Pipe()
        context.Process(target=serve, args=(end, contestant, batch, length), daemon=True).start()
        end.close()
        results[name] = pipes[name].recv() | {'times': []}
    for _ in range(steps):
        for name, pipe in pipes.items():
            pipe.send(True)
            results[name]['times'].append(pipe.recv())
    for name, pipe in pipes.items():
        pipe.send(False)
        results[name]['peak_bytes'] = pipe.recv()
    return results


def flops(batch: int, length: int) -> float:
    """Of the matrix products of a step, forward and backward, with the visible half of attention."""
    heads, inner = SHAPE['heads'] * SHAPE['head_dim'], SHAPE['kv_heads'] * SHAPE['head_dim']
    layer = SHAPE['width'] * (2 * heads + 2 * inner + 3 * SHAPE['mlp']) + heads * length
    return 6.0 * batch * length * (SHAPE['layers'] * layer + SHAPE['vocab'] * SHAPE['width'])


def summary(result: dict[str, Any], batch: int, length: int, peak_gflops: float) -> dict[str, float]:
    best = min(result['times'])
    return {
        'tokens_per_s': round(batch * length / best, 1),
        'fraction_of_gemm_peak': round(flops(batch, length) / best / 1e9 / peak_gflops, 3),
        'median_step_s': round(statistics.median(result['times']), 3),
        'peak_gib': round(result['peak_bytes'] / 2**30, 2),
        'init_s': round(result['init_s'], 1),
        'first_step_s': round(result['first_step_s'], 1),
        'first_loss': round(result['first_loss'], 4),
    }


def ratios(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """How many times faster we are: by the fastest steps, and by the median over rounds. They agree where the machine
    is quiet; where they do not, neither is to be quoted."""
    rounds = [them / us for us, them in zip(ours, theirs, strict=True)]
    return {'fastest': round(min(theirs) / min(ours), 2), 'median': round(statistics.median(rounds), 2)}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=4, help='rows of a step')
    parser.add_argument('--seq', type=int, default=256, help='tokens of a row')
    parser.add_argument('--steps', type=int, default=5, help='timed steps of each contestant')
    parser.add_argument('--dtype', choices=('bfloat16', 'float32'), default='bfloat16', help='of our matrix products')
    parser.add_argument('--against', choices=('torch',), help='also run transformers and torch, in both precisions')
    parser.add_argument('--small-pages', action='store_true', help="leave the C library's allocator as it is")
    return parser.parse_args()


def main() -> None:
    args = _parse()
    if not args.small_pages:
        # Read by the C library as a process starts. Faulting in fresh 4 KiB pages is a quarter of a step on a CPU.
        os.environ.setdefault('GLIBC_TUNABLES', HUGE_PAGES)
    contestants = {'pal_jax': Contestant(make_pal_jax, args.dtype)}
    if args.against == 'torch':
        contestants |= {f'torch_{dtype}': Contestant(make_torch, dtype) for dtype in ('bfloat16', 'float32')}
    results = race(contestants, args.batch, args.seq, args.steps)
    from benchmarks import machine  # only now: its process must not hold the device while others run

    peaks = machine.measure()
    report: dict[str, Any] = {'batch': args.batch, 'seq': args.seq, 'dtype': args.dtype, 'machine': peaks}
    report['malloc'] = os.environ.get('GLIBC_TUNABLES', '')
    for name, result in results.items():
        peak = float(peaks[f'{contestants[name].dtype}_gflops'])
        report[name] = summary(result, args.batch, args.seq, peak)
    for name in list(results)[1:]:
        report[f'pal_jax_over_{name}'] = ratios(results['pal_jax']['times'], results[name]['times'])
    report['versions'] = {name: importlib.metadata.version(name) for name in ('jax', 'optax', 'torch', 'transformers')}
    print(json.dumps(report))


if __name__ == '__main__':
    main()
