"""The parts of a training step's time in RLPA: the first steps of a configuration, its warm-up left out.

  python -m benchmarks.rlpa_step --steps=6
Prints one JSON object. The steps are taken twice from the same start: the first pass compiles what the steps need, the
second is measured. `real_share` is that of the micro-batches of the update; a token counts as trained when it was
sampled and has been annotated and updated on.
"""

from __future__ import annotations

import argparse
import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contest
from benchmarks.contest import Contestant
from benchmarks.contestant import Round

CONFIG = Path(__file__).parents[1] / 'configs' / 'rlpa.py'
PHASES = ('rollout', 'annotate', 'update')


def make_rlpa(variant: str, source: str | None, steps: int) -> Round:
    """The first `steps` steps from the start, timed by phase; `load` is the start itself."""
    from pal_jax.recipes.rlpa import recipe as rlpa
    from pal_jax.run import devices
    from pal_jax.run.progress import Stopwatch
    from pal_jax.run.recipe import Context
    from pal_jax.run.settings import changed

    settings = changed(runpy.run_path(str(CONFIG))['get_config'](variant), warmup=dict(steps=0))
    settings = changed(settings, policy=dict(source=source or settings.policy.source))
    stopwatch = Stopwatch()
    recipe = rlpa.make(settings, Context(devices.make_mesh(**vars(settings.mesh)), stopwatch.phase))

    def train() -> dict[str, float]:
        with stopwatch.phase('load'):
            state, host = recipe.init()
        history = []
        for i in range(steps):
            state, host, _, metrics = recipe.step(state, host, i)
            history.append(metrics)
        sampled = sum((metrics['samples'] + metrics['failed']) * metrics['length'] for metrics in history)
        shares = {name: float(np.mean([metrics[name] for metrics in history])) for name in ('real_share', 'truncated')}
        return stopwatch.take_seconds() | shares | {'sampled': sampled}

    return train


def summary(first: dict[str, float], passes: Sequence[dict[str, float]], steps: int) -> dict[str, Any]:
    """Numbers of the fastest pass over the steps."""
    best = min(passes, key=_total)
    seconds = {name: best[f'seconds_{name}'] for name in PHASES} | {'rest': best['seconds_other']}
    return {
        'step_s': round(_total(best) / steps, 3),
        'seconds_per_step': {name: round(value / steps, 4) for name, value in seconds.items()},
        'rest_share': round(seconds['rest'] / _total(best), 4),
        'real_share': round(best['real_share'], 3),
        'truncated': round(best['truncated'], 3),
        'sampled_tokens_per_s': round(best['sampled'] / seconds['rollout'], 1),
        'trained_tokens_per_s': round(best['sampled'] / (seconds['annotate'] + seconds['update']), 1),
        'compile_s': round(_total(first) - _total(best), 1),
        'load_s': round(best['seconds_load'], 1),
    }


def _total(figures: dict[str, float]) -> float:
    """Seconds of all steps of a pass, without the load before them."""
    return sum(figures[f'seconds_{name}'] for name in (*PHASES, 'other'))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--variant', default='', help="of configs/rlpa.py, such as 'smoke'")
    parser.add_argument('--source', help='another model than its own, such as orbax:<workdir> of a run')
    parser.add_argument('--steps', type=int, default=6, help='steps of a pass: two dialogues of three rounds')
    parser.add_argument('--rounds', type=int, default=1, help='timed passes; the fastest counts')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    settings = {'variant': args.variant, 'source': args.source, 'steps': args.steps}
    outcome = contest.race({'rlpa': Contestant('benchmarks.rlpa_step:make_rlpa', settings)}, args.rounds)
    result = outcome.results['rlpa']
    report = {'config': f'rlpa:{args.variant}'.rstrip(':'), 'steps': args.steps}
    report |= summary(result.first, result.figures, args.steps)
    report |= {'peak_gib': round(result.peak_bytes / 2**30, 2)}
    print(json.dumps(report | contest.surroundings('jax', 'flax', 'optax')))


if __name__ == '__main__':
    main()
