"""The cost of a batch whose requests mix adapters of their own, with random weights of SmolLM2-135M's shape.

  python benchmarks/soups.py --batch=32 --adapters=3,8 --targets=attn/(q|v) --json=out.json
Prints one JSON object; see `contest.py` for how the numbers come about. Contestants decode `--new` tokens after each of
`--batch` prompts: `merged`, weights without adapters; `lora`, one adapter for all; and soups of so many adapters, each
request with a mixture of its own. `over_merged` and `over_lora` tell how many times longer a call of a soup takes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:
    sys.path[0] = str(Path(__file__).parents[1])  # python benchmarks/soups.py is python -m benchmarks.soups

from benchmarks import contest, decoders, shapes
from benchmarks.contest import Contestant, Result
from benchmarks.contestant import Round
from pal_jax.run.outputs import whole_file

TASK = ('model', 'dtype', 'batch', 'prompt', 'new', 'rank', 'targets', 'kind')  # what is the same for all


def make_decoder(
    model: str, dtype: str, batch: int, prompt: int, new: int, adapters: int, rank: int, targets: str, kind: str
) -> Round:
    """Calls of `LocalDecoder`, each of whose requests mixes `adapters` adapters in its own way."""
    import jax

    from pal_jax.decode.local import LocalDecoder
    from pal_jax.decode.requests import Request
    from pal_jax.models import lora, params, soups
    from pal_jax.run.devices import for_platform, make_mesh
    from pal_jax.types import Sampling

    cfg = for_platform(shapes.SHAPES[model], dtype)
    tokenizer, mesh = decoders.Endless(cfg.vocab), make_mesh(devices=jax.devices()[:1])
    weights = params.init(params.decoder_specs(cfg), jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), max(adapters, 1))
    trained = [
        lora.split(lora.attach(weights, rank=rank, alpha=2.0 * rank, targets=targets, key=key))[0] for key in keys
    ]
    decoder: Any = LocalDecoder(cfg, tokenizer, mesh, slots=batch, stride=decoders.STRIDE)
    decoder.load(soups.stack(weights, trained, 'delta' if kind == 'delta' else 'factors') if adapters else weights)
    mixtures = np.random.default_rng(1).dirichlet(np.ones(adapters), batch).tolist() if adapters else [None] * batch
    fresh = decoders.prompts(model, batch, prompt)
    greedy = Sampling(temperature=0.0, max_tokens=new)

    def call() -> dict[str, float]:
        rows = zip(next(fresh).tolist(), mixtures, strict=True)
        requests = [Request(tuple(row), greedy, 0, mixture and tuple(mixture)) for row, mixture in rows]
        return {'tokens': sum(len(completion.token_ids) for completion in decoder(requests))}

    return call


def measure(args: argparse.Namespace) -> dict[str, Any]:
    counts = {'merged': 0, 'lora': 1} | {f'soup_{count}': count for count in args.adapters}
    task = {key: getattr(args, key) for key in TASK}
    make = 'benchmarks.soups:make_decoder'
    players = {name: Contestant(make, task | {'adapters': count}) for name, count in counts.items()}
    results, _ = contest.race(players, args.rounds)
    return {name: told(name, result, results) for name, result in results.items()}


def told(name: str, result: Result, results: dict[str, Result]) -> dict[str, Any]:
    """A contestant's numbers, of a soup also beside the others."""
    numbers: dict[str, Any] = {
        'tokens_per_s': round(result.first['tokens'] / min(result.seconds), 1),
        **result.startup(),
    }
    if name.startswith('soup'):
        numbers |= {f'over_{other}': contest.ratios(results[other], result) for other in ('merged', 'lora')}
    return numbers


def main(argv: Sequence[str] | None = None) -> None:
    parser = shapes.arguments(__doc__)
    parser.add_argument('--batch', type=int, default=32, help='requests decoded at once')
    parser.add_argument('--prompt', type=int, default=128, help='tokens of a prompt')
    parser.add_argument('--new', type=int, default=128, help='tokens decoded after it')
    parser.add_argument('--adapters', type=shapes.listed(int), default=[3, 8], help='adapters of a soup, one soup each')
    parser.add_argument('--rank', type=int, default=16, help='of an adapter')
    parser.add_argument('--targets', default='attn/(q|v)', help="the weights it is on, or 'all-linear'")
    parser.add_argument('--kind', choices=('factors', 'delta'), default='factors', help='what of adapters is mixed')
    parser.add_argument('--rounds', type=int, default=5, help='timed rounds of each contestant')
    parser.add_argument('--json', type=shapes.new_file, help='a new file that gets the report too')
    args = parser.parse_args(argv)
    settings = {key: getattr(args, key) for key in TASK}
    text = json.dumps({**settings, **contest.surroundings('jax'), **measure(args)})
    if args.json:
        with whole_file(args.json) as partial:
            partial.write_text(text + '\n', encoding='utf-8')
    print(text)


if __name__ == '__main__':
    main()
