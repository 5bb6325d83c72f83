"""Speed of one full training step (cross-entropy, AdamW) of a model of SmolLM2-135M's shape, with random weights.

  python -m benchmarks.train_step --against=torch
Prints one JSON object; see `contest.py` for how the numbers come about.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks import contest, shapes
from benchmarks.contest import Contestant, Result
from benchmarks.contestant import Round
from benchmarks.shapes import SHAPES
from pal_jax.models.config import ModelConfig

LEARNING_RATE = 1e-5


def make_pal_jax(model: str, batch: int, length: int, dtype: str) -> Round:
    """Our step, computed as `for_platform` has it."""
    import jax
    import optax

    from pal_jax.models import params
    from pal_jax.runtime.devices import for_platform

    cfg = for_platform(SHAPES[model], dtype)
    optimizer = optax.adamw(LEARNING_RATE)
    tokens = jax.random.randint(jax.random.key(1), (batch, length), 0, cfg.vocab)
    weights = params.init(params.decoder_specs(cfg), jax.random.key(0))
    state = [weights, optimizer.init(weights)]

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(weights: params.Params, opt_state: optax.OptState):
        loss, grads = jax.value_and_grad(_cross_entropy)(weights, cfg, tokens)
        updates, opt_state = optimizer.update(grads, opt_state, weights)
        return optax.apply_updates(weights, updates), opt_state, loss

    def step() -> dict[str, float]:
        state[0], state[1], loss = update(*state)
        jax.block_until_ready(state)
        return {'loss': float(loss)}

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


def make_torch(model: str, batch: int, length: int, dtype: str) -> Round:
    """Transformers' Llama under torch; bfloat16 is autocast over float32 weights."""
    import torch
    from transformers import LlamaForCausalLM

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)
    with torch.device(device):
        network = LlamaForCausalLM(shapes.as_llama(SHAPES[model])).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, fused=True)
    tokens = torch.randint(0, SHAPES[model].vocab, (batch, length), device=device)

    def step() -> dict[str, float]:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16'):
            loss = network(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return {'loss': loss.item()}

    return step


def flops(shape: ModelConfig, batch: int, length: int) -> float:
    """Of the matrix products of a step, forward and backward, with the visible half of attention."""
    heads, inner = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = shape.width * (2 * heads + 2 * inner + 3 * shape.mlp) + heads * length
    return 6.0 * batch * length * (shape.layers * layer + shape.vocab * shape.width)


def summary(result: Result, tokens: int, work: float, peak_gflops: float) -> dict[str, Any]:
    best = min(result.seconds)
    return {
        'tokens_per_s': round(tokens / best, 1),
        'fraction_of_gemm_peak': round(work / best / 1e9 / peak_gflops, 3),
        'median_step_s': round(statistics.median(result.seconds), 3),
        **result.startup(),
        'first_loss': round(result.first['loss'], 4),
    }


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = shapes.arguments(__doc__)
    parser.add_argument('--batch', type=int, default=4, help='rows of a step')
    parser.add_argument('--seq', type=int, default=256, help='tokens of a row')
    parser.add_argument('--steps', type=int, default=5, help='timed steps of each contestant')
    parser.add_argument('--against', choices=('torch',), help='also run transformers on torch, in both precisions')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    settings = {'model': args.model, 'batch': args.batch, 'length': args.seq}
    dtypes = {'pal_jax': args.dtype}
    contestants = {'pal_jax': Contestant('benchmarks.train_step:make_pal_jax', settings | {'dtype': args.dtype})}
    for dtype in ('bfloat16', 'float32') if args.against else ():
        theirs = settings | {'dtype': dtype}
        dtypes[f'torch_{dtype}'] = dtype
        contestants[f'torch_{dtype}'] = Contestant(
            'benchmarks.train_step:make_torch', theirs, 'torch', ('torch', 'transformers')
        )
    around = contest.surroundings('jax', 'optax')
    results, absent = contest.race(contestants, args.steps)
    report: dict[str, Any] = {'model': args.model, 'batch': args.batch, 'seq': args.seq, 'dtype': args.dtype, **around}
    work = flops(SHAPES[args.model], args.batch, args.seq)
    for name, result in results.items():
        peak = float(around['machine'][f'{dtypes[name]}_gflops'])
        report[name] = summary(result, args.batch * args.seq, work, peak)
    for name in list(results)[1:]:
        report[f'pal_jax_over_{name}'] = contest.ratios(results['pal_jax'], results[name])
    print(json.dumps(report | {'absent': absent}))


if __name__ == '__main__':
    main()
