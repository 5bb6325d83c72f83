"""Speed of one full training step (cross-entropy, AdamW) of a model of SmolLM2-135M's shape, with random weights.

  python -m benchmarks.train_step --against=torch,tunix
  python -m benchmarks.train_step --against=torch --quick       two timed steps of each
Prints one JSON object; see `contest.py` for how the numbers come about, and `decode.py` for where Tunix may live.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks import contest, shapes
from benchmarks.contest import Contestant, Result
from benchmarks.contestant import Round
from benchmarks.shapes import SHAPES
from pal_jax.models.config import ModelConfig

LEARNING_RATE = 1e-5
PEERS = {'torch': ('torch', 'transformers'), 'tunix': ('google-tunix', 'jax', 'flax')}  # and whose versions count


def make_pal_jax(model: str, batch: int, length: int, dtype: str) -> Round:
    """Our step, computed as `for_platform` has it."""
    import jax

    from pal_jax.models import params
    from pal_jax.run.devices import for_platform

    cfg = for_platform(SHAPES[model], dtype)
    update, optimizer = supervised(cfg)
    tokens = jax.random.randint(jax.random.key(1), (batch, length), 0, cfg.vocab)
    weights = params.init(params.decoder_specs(cfg), jax.random.key(0))
    state = [weights, optimizer.init(weights)]

    def step() -> dict[str, float]:
        state[0], state[1], loss = update(*state, tokens)
        jax.block_until_ready(state)
        return {'loss': float(loss)}

    del weights
    return step


def supervised(cfg: ModelConfig) -> tuple[Any, Any]:
    """The jitted step on weights, the optimiser's state and tokens `[R, T]`, and its optimiser."""
    import jax
    import optax

    optimizer = optax.adamw(LEARNING_RATE)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(weights: Any, opt_state: optax.OptState, tokens: jax.Array):
        loss, grads = jax.value_and_grad(_cross_entropy)(weights, cfg, tokens)
        updates, opt_state = optimizer.update(grads, opt_state, weights)
        return optax.apply_updates(weights, updates), opt_state, loss

    return update, optimizer


def _cross_entropy(weights: Any, cfg: Any, tokens: Any) -> Any:
    import jax.numpy as jnp

    from pal_jax.models import decoder
    from pal_jax.objectives.logprobs import token_loss

    one_segment = jnp.ones_like(tokens)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = decoder.forward(weights, cfg, tokens, positions, one_segment, one_segment)
    states, targets = hidden[:, :-1], tokens[:, 1:]
    share = jnp.full(targets.shape, 1 / targets.size)
    unembed = decoder.unembed_weight(weights, cfg)
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


def make_tunix(model: str, batch: int, length: int, dtype: str) -> Round:
    """The step of Tunix' trainer, with its Llama 3 in the same shape; bfloat16 is that of all its weights."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx
    from tunix.models.llama3.model import Llama3
    from tunix.sft.peft_trainer import PeftTrainer, TrainingConfig

    network = Llama3(shapes.as_tunix(SHAPES[model]), rngs=nnx.Rngs(0))
    nnx.update(network, jax.tree.map(lambda x: x.astype(dtype), nnx.state(network)))
    trainer = PeftTrainer(network, optax.adamw(LEARNING_RATE), TrainingConfig(eval_every_n_steps=1 << 30))
    update, _ = trainer.jit_train_and_eval_step(cache_nnx_graph=True)
    tokens = jax.random.randint(jax.random.key(1), (batch, length), 0, SHAPES[model].vocab)
    inputs = {
        'input_tokens': tokens,
        'input_mask': jnp.ones_like(tokens, bool),
        'positions': jnp.broadcast_to(jnp.arange(length), tokens.shape),
        'attention_mask': jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length)),
    }

    def step() -> dict[str, float]:
        loss, *_ = update(inputs)
        jax.block_until_ready(nnx.state(network))
        return {'loss': float(loss)}

    return step


def flops(shape: ModelConfig, batch: int, length: int) -> float:
    """The operations of a step's matrix products, forward and backward, with the visible half of attention."""
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
    parser.add_argument(
        '--against',
        type=shapes.listed(str, tuple(PEERS)),
        default=[],
        help=f'of {", ".join(PEERS)}, in both precisions',
    )
    parser.add_argument(
        '--tunix-python',
        default=os.environ.get('TUNIX_PYTHON', sys.executable),
        help='the interpreter that has Tunix; default $TUNIX_PYTHON, or else this one',
    )
    parser.add_argument('--quick', dest='steps', action='store_const', const=2, help='--steps=2')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    settings = {'model': args.model, 'batch': args.batch, 'length': args.seq}
    dtypes = {'pal_jax': args.dtype}
    contestants = {'pal_jax': Contestant('benchmarks.train_step:make_pal_jax', settings | {'dtype': args.dtype})}
    around = contest.surroundings('jax', 'optax')
    raced, slow = contest.precisions(args.against, around['machine'])
    for peer, precisions in raced.items():
        python = args.tunix_python if peer == 'tunix' else sys.executable
        for dtype in precisions:
            make, library = f'benchmarks.train_step:make_{peer}', 'torch' if peer == 'torch' else 'jax'
            dtypes[f'{peer}_{dtype}'] = dtype
            contestants[f'{peer}_{dtype}'] = Contestant(make, settings | {'dtype': dtype}, library, PEERS[peer], python)
    results, absent = contest.race(contestants, args.steps)
    report: dict[str, Any] = {'model': args.model, 'batch': args.batch, 'seq': args.seq, 'dtype': args.dtype, **around}
    work = flops(SHAPES[args.model], args.batch, args.seq)
    for name, result in results.items():
        peak = float(around['machine'][f'{dtypes[name]}_gflops'])
        report[name] = summary(result, args.batch * args.seq, work, peak)
    for name in list(results)[1:]:
        report[f'pal_jax_over_{name}'] = contest.ratios(results['pal_jax'], results[name])
    print(json.dumps(report | {'absent': absent | slow}))


if __name__ == '__main__':
    main()
