"""One step of PLUS against the sum of its parts: what there is beside decoding and the two updates.

  python -m benchmarks.plus_step --steps=4
Prints one JSON object. A round is a step, then its parts alone, on people of the same number and from the state that
the step has left: `decode`, the summaries; `ppo`, the summariser's log-probs and update; `reward_model`, what it reads
for rewards and for its gradient, and its update. The first round compiles and is left out. `overhead` is the median
over rounds of a step's seconds by those of its parts. `reward_real_share` is the share of tokens in the rows that pay
that are no padding.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import runpy
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import contest
from benchmarks.contest import Contestant
from benchmarks.contestant import Round

CONFIG = Path(__file__).parents[1] / 'configs' / 'plus.py'
PARTS = ('decode', 'ppo', 'reward_model')


def make_plus(variant: str, source: str | None) -> Round:
    """A round: a step, and its parts one by one."""
    import jax

    from pal_jax.recipes.plus import recipe as plus
    from pal_jax.recipes.plus.context import SummaryTexts
    from pal_jax.run import devices
    from pal_jax.run.progress import Stopwatch
    from pal_jax.run.recipe import Context
    from pal_jax.run.settings import changed

    settings = changed(runpy.run_path(str(CONFIG))['get_config'](variant), hold=dict(steps=0))
    if source:
        settings = changed(settings, policy=dict(source=source), reward_model=dict(source=source))
    stopwatch = Stopwatch()
    ctx = Context(devices.make_mesh(**vars(settings.mesh)), stopwatch.phase)
    recipe = plus.make(settings, ctx)
    assert isinstance(recipe, plus.PLUS)
    (state, host), number = recipe.init(), 0

    def decode() -> SummaryTexts:
        drawn = recipe.draw(number)
        return recipe.describe(state, drawn.people, drawn.temperatures, (settings.seed, number))

    def update(written: SummaryTexts, rewards: np.ndarray) -> Any:
        paid = [dataclasses.replace(s, rewards=(float(r),)) for s, r in zip(written.samples, rewards, strict=True)]
        return recipe.improve(state['policy'], paid, number)[0]

    def teach(written: SummaryTexts) -> tuple[Any, np.ndarray]:
        choosers = recipe.draw(number).choosers
        return recipe.reward_model.read(state['reward'], written.texts, choosers, pays=True, rate=1.0)[:2]

    def real_share(written: SummaryTexts) -> float:
        choosers = recipe.draw(number).choosers
        choices = [(person.reward,) for person in choosers for _ in range(settings.summary.n_samples)]
        pairs = recipe.reward_model.pair_up.compare(written.texts, choices)
        return float(np.mean(np.asarray(pairs.batch.segments) != 0))

    def take() -> dict[str, float]:
        nonlocal state, host, number
        stopwatch.take_seconds()
        (state, host, *_), step_s = timed(lambda: recipe.step(state, host, number))
        phases = stopwatch.take_seconds()
        number += 1
        written, decode_s = timed(decode)
        (taught, rewards), reward_s = timed(lambda: teach(written))
        improved, ppo_s = timed(lambda: update(written, rewards))
        state = {'policy': improved, 'reward': taught}
        figures = {'step': step_s, 'decode': decode_s, 'ppo': ppo_s, 'reward_model': reward_s}
        figures |= {'real_share': real_share(written)}
        return figures | {name.replace('seconds_', 'phase_'): seconds for name, seconds in phases.items()}

    def timed(call: Callable[[], Any]) -> tuple[Any, float]:
        start = time.perf_counter()
        made = jax.block_until_ready(call())
        return made, time.perf_counter() - start

    return take


def summary(rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Medians over rounds."""

    def median(values: Sequence[float]) -> float:
        return round(statistics.median(values), 4)

    sums = [sum(figures[part] for part in PARTS) for figures in rounds]
    phases = [name for name in rounds[0] if name.startswith('phase_')]
    return {
        'step_s': median([figures['step'] for figures in rounds]),
        'parts_s': {part: median([figures[part] for figures in rounds]) for part in PARTS},
        'sum_of_parts_s': median(sums),
        'overhead': median([figures['step'] / parts for figures, parts in zip(rounds, sums, strict=True)]),
        'phases_s': {name.removeprefix('phase_'): median([figures[name] for figures in rounds]) for name in phases},
        'reward_real_share': median([figures['real_share'] for figures in rounds]),
    }


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--variant', default='', help="of configs/plus.py, such as 'smoke'")
    parser.add_argument('--source', help='another model than its own, for both')
    parser.add_argument('--steps', type=int, default=4, help='rounds that count')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    settings = {'variant': args.variant, 'source': args.source}
    result = contest.race({'plus': Contestant('benchmarks.plus_step:make_plus', settings)}, args.steps).results['plus']
    report = {'config': f'plus:{args.variant}'.rstrip(':'), 'steps': args.steps} | summary(result.figures)
    report |= {'compile_s': round(result.first_s - statistics.median(result.seconds), 1)}
    report |= {'peak_gib': round(result.peak_bytes / 2**30, 2)}
    print(json.dumps(report | contest.surroundings('jax', 'flax', 'optax')))


if __name__ == '__main__':
    main()
