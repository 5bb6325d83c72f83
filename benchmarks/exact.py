"""Is the sampler the trainer, bit for bit (`decode.exact`), and what does that cost?

  python -m benchmarks.exact                 # SmolLM2-135M, 16 requests of 80 tokens in 1, 2, 8 and 32 slots
  python -m benchmarks.exact --quick         # three of its layers, 16 requests of 40 tokens
  python -m benchmarks.exact --quick --requests=64 --prompt=300 --new=500 --row-tokens=2048 --slots=1,2,8,32
  python -m benchmarks.exact --quick --slots=8 --fewest=8      # a decoder that is not exact, for comparison
Prints one JSON object: the largest difference of the sampler's log-probs from those of a scoring pass and of an update,
on packed and on unpacked rows, and how many times longer an exact decoder takes.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import contest, shapes
from benchmarks.decoders import Endless
from pal_jax.data.packing import pack_rollouts, round_up
from pal_jax.decode import requests
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.requests import Request
from pal_jax.learners import forward
from pal_jax.models import attention, lora, params
from pal_jax.models.config import ModelConfig, exact_config
from pal_jax.models.params import Params
from pal_jax.run.devices import for_platform, make_mesh
from pal_jax.types import Completion, Sample, Sampling, TokenBatch

N = 4  # samples of a prompt
TEMPERATURE = 0.7


def questions(count: int, new: int, vocab: int, prompt: int = 150) -> list[Request]:
    """`N` requests for each prompt, of up to `prompt` tokens of which a fifth is the same, with unequal answers."""
    rng = np.random.default_rng(0)
    shared, rest = rng.integers(1, vocab, prompt // 5), (prompt // 3 - prompt // 5, prompt - prompt // 5)
    prompts = [tuple(map(int, [*shared, *rng.integers(1, vocab, rng.integers(*rest))])) for _ in range(-(-count // N))]
    return [
        Request(prompts[k // N], Sampling(temperature=TEMPERATURE, max_tokens=new - k % 7), k) for k in range(count)
    ]


def trained(cfg: ModelConfig, weights: Any, asked: Sequence[Request], answers: Sequence[Completion], row_tokens: int):
    """The largest differences of the sampler's log-probs from those of a score and of an update, and the share of
    tokens of which both are equal."""
    samples = [
        Sample(request.prompt_ids, answer, k // N, rewards=(0.0,))
        for k, (request, answer) in enumerate(zip(asked, answers, strict=True))
    ]
    mesh, actions = make_mesh(devices=jax.devices()[:1]), round_up(max(r.sampling.max_tokens for r in asked), 8)
    largest, equal, tokens = {'score': 0.0, 'update': 0.0}, 0, 0
    for start in range(0, len(samples), 4 * N):
        part = samples[start : start + 4 * N]
        apart = attention.COLUMNS if cfg.tile else 0
        batch = pack_rollouts(part, n=N, actions=actions, mesh=mesh, row_tokens=row_tokens, apart=apart)
        acts, sampled = (np.asarray(x) for x in (batch.tokens.acts, batch.sampler_logprobs))
        same = np.ones(acts.shape, bool)
        for name, function in (('score', _score), ('update', _update)):
            off = np.abs(np.asarray(function(weights, cfg, batch.tokens)) - sampled)
            largest[name], same = max(largest[name], float(off[acts].max())), same & (off == 0)
        equal, tokens = equal + int(same[acts].sum()), tokens + int(acts.sum())
    return {**largest, 'equal': equal / tokens}


@functools.partial(jax.jit, static_argnums=1)
def _score(weights: Any, cfg: ModelConfig, batch: TokenBatch) -> jax.Array:
    return forward.logprobs(weights, cfg, batch, TEMPERATURE)[0]


@functools.partial(jax.jit, static_argnums=1)
def _update(weights: Any, cfg: ModelConfig, batch: TokenBatch) -> jax.Array:
    """The log-probs that a loss returns beside its gradient."""

    def loss(weights: Any) -> tuple[jax.Array, jax.Array]:
        aux = {'weight': jnp.ones(batch.acts.shape)}
        return forward.token_loss(
            weights, cfg, batch, aux, lambda logprob, aux: -logprob * aux['weight'], temperature=TEMPERATURE
        )

    (_, logprobs), grads = jax.value_and_grad(loss, has_aux=True)(weights)
    # The gradient is computed, too, as the sum of it that is added here and does not count.
    total = sum(jnp.sum(x) for x in jax.tree.leaves(grads))
    return jnp.where(jnp.isnan(total), jnp.nan, logprobs)


def compare(cfg: ModelConfig, weights: Any, args: argparse.Namespace) -> dict[str, Any]:
    """The differences for each number of slots, with and without prefixes reused, of requests in a shuffled order."""
    asked, differences = questions(args.requests, args.new, cfg.vocab, args.prompt), {}
    rng = np.random.default_rng(1)
    for slots, reuse in itertools.product(args.slots, (True, False)):
        decoder = make_decoder(cfg, slots, reuse)
        decoder.load(weights)
        order = rng.permutation(len(asked)).tolist()
        answers = dict(zip(order, decoder([asked[k] for k in order]), strict=True))
        for row_tokens in (0, args.row_tokens):
            name = f'slots {slots}, {"reused" if reuse else "fresh"} prefixes, {"packed" if row_tokens else "own"} rows'
            differences[name] = trained(cfg, weights, asked, [answers[k] for k in range(len(asked))], row_tokens)
            contest.say(f'{name}: {differences[name]}')
    return differences


def costs(cfg: ModelConfig, weights: Any) -> dict[str, float]:
    """The ratios of the times of an exact and of another decoder, for so many requests at once, of two rounds each."""
    ratios = {}
    for batch in (1, 8, 32, 64):
        seconds = {}
        for exact in (False, True):
            plain = dataclasses.replace(cfg, exact=False, tile=0)
            decoder = make_decoder(cfg if exact else plain, batch, reuse=True)
            decoder.load(weights)
            asked = [
                Request(r.prompt_ids, Sampling(max_tokens=32), k) for k, r in enumerate(questions(batch, 39, cfg.vocab))
            ]
            decoder(asked)
            rounds = []
            for _ in range(2):
                start = time.perf_counter()
                decoder(asked)
                rounds.append(time.perf_counter() - start)
            seconds[exact] = min(rounds)
        ratios[f'batch_{batch}'] = round(seconds[True] / seconds[False], 2)
        contest.say(f'batch {batch}: an exact decoder takes {ratios[f"batch_{batch}"]} times as long')
    return ratios


def adapted(weights: Params, rank: int) -> Params:
    """The weights with adapters that change what they compute, and whose scale is no power of two."""
    trained, frozen = lora.split(
        lora.attach(weights, rank=rank, alpha=3.0, targets='all-linear', key=jax.random.key(1))
    )
    keys = itertools.count(2)
    moved = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(next(keys)), x.shape), trained)
    return lora.join(moved, frozen)


def make_decoder(cfg: ModelConfig, slots: int, reuse: bool) -> LocalDecoder:
    return LocalDecoder(cfg, Endless(cfg.vocab), make_mesh(devices=jax.devices()[:1]), slots=slots, reuse=reuse)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--model', choices=shapes.SHAPES, default='default', help="its shape; 'default' is SmolLM2-135M's"
    )
    parser.add_argument('--layers', type=int, default=0, help='of it; 0: all')
    parser.add_argument('--requests', type=int, default=16)
    parser.add_argument('--prompt', type=int, default=150, help='tokens of the longest prompt')
    parser.add_argument('--new', type=int, default=80, help='tokens of an answer')
    parser.add_argument('--slots', type=shapes.listed(int), default=[1, 2, 8, 32])
    parser.add_argument('--row-tokens', type=int, default=512, help='of packed rows')
    parser.add_argument('--dtype', choices=requests.EXACT_SLOTS, default='float32', help='of what is multiplied')
    parser.add_argument('--lora', type=int, default=0, metavar='RANK', help='of adapters on all layers; 0: none')
    parser.add_argument('--fewest', type=int, default=0, help='slots of an exact decoder at least; 0: as it has them')
    parser.add_argument(
        '--quick', action='store_true', help='--layers=3 --new=40 --slots=2,8 where they are not given, without costs'
    )
    args = parser.parse_args(argv)
    for name, value in {'layers': 3, 'new': 40, 'slots': [2, 8]}.items() if args.quick else ():
        if getattr(args, name) == parser.get_default(name):
            setattr(args, name, value)
    around = contest.surroundings('jax')
    if args.fewest:
        requests.EXACT_SLOTS[args.dtype] = args.fewest
    shape = shapes.SHAPES[args.model]
    shape = dataclasses.replace(shape, layers=args.layers or shape.layers)
    cfg = exact_config(for_platform(shape, args.dtype))
    weights = params.init(params.decoder_specs(cfg), jax.random.key(0))
    if args.lora:
        weights = adapted(weights, args.lora)
    report: dict[str, Any] = {
        'model': args.model,
        'dtype': args.dtype,
        'lora': args.lora,
        'layers': cfg.layers,
        'requests': args.requests,
        'new': args.new,
    }
    report['differences'] = compare(cfg, weights, args)
    report['largest'] = max(max(case['score'], case['update']) for case in report['differences'].values())
    if not args.quick:
        report['costs'] = costs(cfg, weights)
    print(json.dumps(report | around))


if __name__ == '__main__':
    main()
