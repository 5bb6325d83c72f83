"""Measurements on a graphics card in minutes: parts in the order of their worth, each result written at once.

  python -m benchmarks.card --json=card.json                 # on a card: under ten minutes, a second call is quicker
  python -m benchmarks.card --quick --json=card.json         # fewer shapes, about half the time
  python -m benchmarks.card --size=tiny --json=card.json     # the same programs in tiny shapes, on a CPU too
  python -m benchmarks.card --compile=h100                   # compiles all for a card that is not there, and runs none

Weights are random, in the shapes of SmolLM2-135M and Llama-3.2-1B, so no file is needed. Parts, for --parts:
  attention  our kernels against float32 and their time, beside torch's scaled_dot_product_attention
  train      a supervised step and an update by PPO, beside torch and transformers
  decode     calls at batch 1 to 512, kernels of a step, beside transformers' generate with a static cache
  rlpa       three steps of configs/rlpa.py by phase
  equality   log-probs of sampling against those of training
  plan       what the planner foretells of each program, beside its time
A task has a process of its own and ends after --seconds; one that fails is reported, and the others go on. The file is
written anew after every result. Compiled programs are kept in --cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import card_programs, contest, shapes
from benchmarks.card_tasks import PARTS, SIZES
from pal_jax.run.files import write_whole

Report = dict[str, Any]
# Figures of ours over a peer's, by part: the task and the figure of each, and whether less is better.
RATIOS = {
    'attention': (('pal_jax', 'both_ms'), [('torch', 'cudnn_both_ms'), ('torch', 'flash_both_ms')], True),
    'train': (('pal_jax', 'tokens_per_s'), [('torch', 'tokens_per_s')], False),
    'decode': (('pal_jax', 'tokens_per_s'), [('torch', 'tokens_per_s')], False),
}


def run(part: str, task: str, args: argparse.Namespace, note: Callable[[str, Any], None]) -> None:
    """Runs a task in a process of its own, and notes its results by name as they come. `failed` says why it ended."""
    command = [sys.executable, '-m', 'benchmarks.card', f'--size={args.size}', f'--task={part}.{task}']
    command += [f'--compile={args.compile}'] if args.compile else []
    folder = os.path.abspath(args.cache)
    environment = contest.environment() | {'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.5'}
    if args.compile:
        environment['JAX_PLATFORMS'] = 'cpu'
    else:
        environment.setdefault('JAX_COMPILATION_CACHE_DIR', folder)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=contest.ROOT, env=environment) as process:
        assert process.stdout
        late = threading.Timer(args.seconds, process.kill)
        late.start()
        for line in process.stdout:
            note(*json.loads(line))
        code = process.wait()
        if code and not late.is_alive():
            note('failed', f'it took more than --seconds={args.seconds}')
        elif code:
            note('failed', f'its process ended with {code}; what it wrote above says why')
        late.cancel()


def tell(name: str, size: str, card: str) -> None:
    """A task as a process: a line of JSON for each result, and for an exception that ends it."""
    part, _, task = name.partition('.')
    pipe = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)  # what libraries print is no result
    try:
        results = card_programs.compiled(part, SIZES[size], card) if card else PARTS[part][task](SIZES[size])
        for result, figures in results:
            rounded = {key: float(f'{x:.4g}') if isinstance(x, float) else x for key, x in figures.items()}
            pipe.write(json.dumps((result, rounded)) + '\n')
    except Exception as error:
        pipe.write(json.dumps(('failed', f'{type(error).__name__}: {error}'.splitlines()[0])) + '\n')


def ratios(part: str, tasks: Report) -> Report:
    """The ratios of our speed to that of each peer, for each shape that both have measured."""
    if part not in RATIOS:
        return {}
    (task, figure), peers, less = RATIOS[part]
    over = {}
    for shape, ours in tasks.get(task, {}).items():
        for peer, theirs in peers:
            other = tasks.get(peer, {}).get(shape)
            if isinstance(ours, dict) and isinstance(other, dict) and theirs in other:
                ratio = other[theirs] / ours[figure] if less else ours[figure] / other[theirs]
                over[f'{shape}: over {peer} ({theirs})'] = round(ratio, 3)
    return over


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--parts', type=shapes.listed(str, tuple(PARTS)), default=list(PARTS), help='what to measure')
    parser.add_argument('--size', choices=SIZES, default='full', help='of shapes')
    parser.add_argument('--quick', dest='size', action='store_const', const='quick', help='--size=quick')
    parser.add_argument('--compile', metavar='CARD', default='', help='that is not there: h100, a100, h200, b200')
    parser.add_argument('--seconds', type=int, help='after which a task is ended; default 150, with --compile 3600')
    parser.add_argument('--cache', default='runs/card', help='the folder of compiled programs')
    parser.add_argument('--json', type=shapes.new_file, help='a new file that gets the report after every result')
    parser.add_argument('--task', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.seconds = args.seconds if args.seconds is not None else 3600 if args.compile else 150
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    if args.task:
        return tell(args.task, args.size, args.compile)
    start, report = time.perf_counter(), {'size': args.size}

    def write() -> None:
        report['seconds'] = round(time.perf_counter() - start, 1)
        if args.json:
            write_whole(args.json, json.dumps(report, indent=1) + '\n')

    if args.compile:
        report['compile'] = args.compile
    else:
        print('measuring the machine', file=sys.stderr, flush=True)
        report |= contest.surroundings('jax', 'jaxlib')
    write()
    for part in [name for name in args.parts if not args.compile or name in card_programs.PARTS]:
        tasks: Report = report.setdefault(part, {})
        for task in ('compile',) if args.compile else PARTS[part]:
            results = tasks.setdefault(task, {})

            def note(name: str, figures: Any, where: Report = results, what: str = f'{part}.{task}') -> None:
                where[name] = figures
                print(f'{time.perf_counter() - start:6.0f} s  {what}  {name}  {json.dumps(figures)}', file=sys.stderr)
                write()

            run(part, task, args, note)
        report[part] |= {'ratios': over} if (over := ratios(part, tasks)) else {}
        write()
    print(json.dumps(report))
    return None


if __name__ == '__main__':
    main()
