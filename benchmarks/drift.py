"""The distance of a sampler's log-probs from those of the trainer, of models that are at hand.

  python -m benchmarks.drift                                       # smollm2 and gemma, float32 and bfloat16
  python -m benchmarks.drift --sources=gemma --dtypes=bfloat16 --tokens=32

A decoder samples 32 answers at temperature 1, four to each of eight questions, and the trainer's forward pass scores
them in packed rows. Prints a row of a Markdown table for each model and type of products: the answers' tokens, the mean
and the largest difference in nats, and the mean and the largest ratio of probabilities.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.exact import N
from pal_jax.data.packing import pack_rollouts, round_up
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.requests import Request
from pal_jax.learners import forward
from pal_jax.models.files import sources
from pal_jax.objectives.corrections import drift_figures
from pal_jax.run.devices import for_platform, make_mesh
from pal_jax.types import Sample, Sampling

QUESTIONS = (
    'What is a good breakfast?', 'Why is the sky blue?', 'Name three rivers.', 'How do I learn to swim?',
    'Tell me about your favourite book.', 'Was ist ein Apfel?', 'What is 17 times 3?', 'Write a line of a poem.',
)  # fmt: skip
COLUMNS = 'sampler_drift', 'sampler_drift_max', 'sampler_ratio', 'sampler_ratio_max'


def drift(source: sources.Source, dtype: str, tokens: int) -> dict[str, float]:
    """The figures of a model whose products are of this type, of answers of up to `tokens` tokens."""
    cfg, tokenizer, mesh = for_platform(source.config, dtype), source.tokenizer(), make_mesh(devices=jax.devices()[:1])
    weights = source.load()
    decoder = LocalDecoder(cfg, tokenizer, mesh, slots=16)
    decoder.load(weights)
    prompts = [tuple(tokenizer.chat([{'role': 'user', 'content': question}])) for question in QUESTIONS]
    asked = [Request(prompts[k // N], Sampling(max_tokens=tokens), k) for k in range(N * len(prompts))]
    answers = decoder(asked)
    samples = [Sample(prompts[k // N], answer, k // N) for k, answer in enumerate(answers)]
    batch = pack_rollouts(samples, n=N, actions=round_up(tokens, 8), mesh=mesh, row_tokens=512)
    rows = [jax.tree.map(lambda x, r=r: x[r : r + 1], batch.tokens) for r in range(len(batch.tokens.acts))]
    score = jax.jit(lambda weights, row: forward.logprobs(weights, cfg, row, 1.0)[0])
    scored = jnp.concatenate([score(weights, row) for row in rows])
    figures = drift_figures(batch.sampler_logprobs, scored, batch.tokens.acts)
    return {'tokens': float(np.sum(batch.tokens.acts)), **{name: float(figures[name]) for name in COLUMNS}}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sources', default='smollm2,gemma', help='by commas')
    parser.add_argument('--dtypes', default='float32,bfloat16', help='of what is multiplied, by commas')
    parser.add_argument('--tokens', type=int, default=64, help='of an answer at most')
    args = parser.parse_args(argv)
    print('| model | products | tokens | mean drift | largest | mean ratio | largest |')
    print('|---' * 7 + '|')
    for name in args.sources.split(','):
        for dtype in args.dtypes.split(','):
            tokens, *figures = drift(sources.resolve(name), dtype, args.tokens).values()
            cells = [name, dtype, f'{tokens:.0f}', *(f'{figure:.3g}' for figure in figures)]
            print(f'| {" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
    main()
