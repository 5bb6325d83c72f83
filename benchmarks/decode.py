"""Speed of decoding with a model of SmolLM2-135M's shape, with random weights.

  python benchmarks/decode.py --batch=1,8,32 --prompt=128 --new=128 --against=torch,tunix --json=out.json
  python -m benchmarks.decode --against=torch --quick        two rounds of calls, eight prompts at once, 64 tokens each
Prints one JSON object; see `contest.py` for how the numbers come about. It has a part for each question, `--parts`:
  calls     calls of equal lengths: ours, our engine's steps alone, and others; at the largest batch over gRPC too
  mixed     more requests than slots, of many lengths, against as many of equal ones; time to first and between tokens
  dialogue  rounds of dialogues with and without the reuse of what the caches hold
  rollout   the same for the rollouts of configs/rlpa.py
Others are those of requirements-peers.txt; one that is not installed is named as absent. Tunix may live in an
environment of its own, see `--tunix-python`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).parents[1])  # python benchmarks/decode.py is python -m benchmarks.decode

from benchmarks import contest, dialogues, shapes, traffic
from benchmarks.contest import Contestant, Result
from pal_jax.run.outputs import whole_file

PEERS = {'torch': ('torch', 'transformers'), 'tunix': ('google-tunix', 'jax', 'flax')}  # and whose versions count


def contestants(args: argparse.Namespace, batch: int, raced: dict[str, list[str]]) -> dict[str, Contestant]:
    """Ours, each peer in its precisions of `raced`, and the other drivers at the largest batch."""
    task = {'model': args.model, 'batch': batch, 'prompt': args.prompt, 'new': args.new}
    ours = {'pal_jax': 'local', 'pal_jax_engine': 'engine'}
    if batch == max(args.batch):
        ours |= {'grpc': 'grpc'}
    names = {
        name: Contestant(f'benchmarks.decoders:make_{make}', task | {'dtype': args.dtype})
        for name, make in ours.items()
    }
    for peer, dtypes in raced.items():
        for dtype in dtypes:
            names[f'{peer}_{dtype}'] = Contestant(
                f'benchmarks.decoders:make_{peer}',
                task | {'dtype': dtype},
                'torch' if peer == 'torch' else 'jax',
                PEERS[peer],
                args.tunix_python if peer == 'tunix' else sys.executable,
            )
    return names


def calls(args: argparse.Namespace, machine: dict[str, Any]) -> dict[str, Any]:
    report, (raced, slow) = {}, contest.precisions(args.against, machine)
    for batch in args.batch:
        results, absent = contest.race(contestants(args, batch, raced), args.rounds)
        compared = compare(results, args.new, machine['memory_gbytes_per_s'])
        report[f'batch_{batch}'] = compared | {'absent': absent | slow}
    return report


def compare(results: dict[str, Result], new: int, memory_gbytes_per_s: float) -> dict[str, Any]:
    """Every contestant's numbers, and how many times faster a call of ours is than each peer's better precision."""
    report: dict[str, Any] = {name: summary(result, new, memory_gbytes_per_s) for name, result in results.items()}
    for peer in (*PEERS, 'grpc'):
        theirs = [name for name in results if name.split('_')[0] == peer]
        if theirs:
            best = min(theirs, key=lambda name: min(results[name].seconds))
            report[f'pal_jax_over_{best}'] = contest.ratios(results['pal_jax'], results[best])
    return report


def summary(result: Result, new: int, memory_gbytes_per_s: float) -> dict[str, Any]:
    best, tokens = min(result.seconds), result.first['tokens']
    numbers = {
        'tokens_per_s': round(tokens / best, 1),
        'median_tokens_per_s': round(tokens / statistics.median(result.seconds), 1),
        **result.startup(),
    }
    if 'step_bytes' in result.first:
        rate = result.first['step_bytes'] * new / best / 1e9
        numbers['fraction_of_memory_bandwidth'] = float(f'{rate / memory_gbytes_per_s:.3g}')
    return numbers


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = shapes.arguments(__doc__)
    numbers = shapes.listed(int)
    parser.add_argument('--batch', type=numbers, default=[8, 32], help='prompts decoded at once, a contest each')
    parser.add_argument('--prompt', type=int, default=128, help='tokens of a prompt')
    parser.add_argument('--new', type=int, default=128, help='tokens decoded after it')
    parser.add_argument('--rounds', type=int, default=5, help='timed rounds of each contestant')
    parser.add_argument('--against', type=shapes.listed(str, tuple(PEERS)), default=[], help=f'of {", ".join(PEERS)}')
    parser.add_argument('--parts', type=shapes.listed(str, tuple(PARTS)), default=list(PARTS), help='what to measure')
    parser.add_argument(
        '--tunix-python',
        default=os.environ.get('TUNIX_PYTHON', sys.executable),
        help='the interpreter that has Tunix; default $TUNIX_PYTHON, or else this one',
    )
    parser.add_argument('--slots', type=int, default=32, help='of the mixed lengths')
    parser.add_argument('--requests', type=int, default=128, help='of the mixed lengths')
    parser.add_argument('--people', type=int, default=8, help='of the dialogues')
    parser.add_argument('--variant', default='', help="of configs/rlpa.py, such as 'smoke'")
    parser.add_argument('--steps', type=int, default=6, help='rollouts of a round of it')
    parser.add_argument('--json', type=shapes.new_file, help='a new file that gets the report too')
    parser.add_argument('--quick', action='store_true', help='--batch=8 --new=64 --rounds=2 --parts=calls')
    args = parser.parse_args(argv)
    if args.quick:
        args.batch, args.new, args.rounds, args.parts = [8], 64, 2, ['calls']
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    around = contest.surroundings('jax')
    report = {'model': args.model, 'prompt': args.prompt, 'new': args.new, 'dtype': args.dtype, **around}
    for part in args.parts:
        report |= PARTS[part](args, around['machine'])
    text = json.dumps(report)
    if args.json:
        with whole_file(args.json) as partial:
            partial.write_text(text + '\n', encoding='utf-8')
    print(text)


PARTS: dict[str, Callable[[argparse.Namespace, dict[str, Any]], dict[str, Any]]] = {
    'calls': calls,
    'mixed': lambda args, _: {'mixed': traffic.measure(args.model, args.dtype, args.slots, args.requests, args.rounds)},
    'dialogue': lambda args, _: {'dialogue': dialogues.measure(args.model, args.dtype, args.people, args.rounds)},
    'rollout': lambda args, _: {'rollout': dialogues.measure_rollouts(args.variant, args.steps, args.rounds)},
}

if __name__ == '__main__':
    main()
