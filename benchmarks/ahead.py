"""Steps of RLPA whose user and judge are behind addresses, with rollouts from 0 to 4 steps ahead of their updates.

  python -m benchmarks.ahead --user=1 --judge=0.5 --steps=24
Prints one JSON object a line for every value of `rollout.ahead`: the mean seconds of a step, those of decoding, the
judge, the user and the update in the same steps, and `over_longest`: a step over the longest of these four.
`over_device` counts decoding and the update, which share this machine's device, as one part.

The judge is asked when all answers are sampled, also with nothing ahead, where a run asks it while others are sampled
(`benchmarks.judging`). The servers are processes on this machine that sleep. The policy is a random model, and texts in
the format replace its answers.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import runpy
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks.judging import CONFIG, Writing, server


def measure(ahead: int, addresses: dict[str, str], args: argparse.Namespace) -> dict[str, float]:
    """Mean seconds of a step and of its parts, without the first steps, which compile and fill the line."""
    from pal_jax.recipes.rlpa import recipe as rlpa
    from pal_jax.recipes.rlpa import turns
    from pal_jax.run import devices
    from pal_jax.run.recipe import Context
    from pal_jax.run.settings import changed

    seconds: defaultdict[str, float] = defaultdict(float)

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            start = time.perf_counter()
            result = work(*args)
            seconds[name] += time.perf_counter() - start
            return result

        return call

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds['update' if name == 'annotate' else name] += time.perf_counter() - start

    first = ahead + 4
    config: Any = changed(
        runpy.run_path(str(CONFIG))['get_config']('smoke'),
        policy=dict(source=args.source),
        warmup=dict(steps=0),
        total_steps=first + args.steps + ahead,
        dialogue=dict(
            people=400, user='endpoint:user', rollout_batch_size=8, round_batch_size=8, max_rounds=8,
            n_samples_per_prompt=4, learnt_per_prompt=0, share_alike=False,
        ),
        sampling=dict(max_tokens=args.tokens, stop=()),
        decode=dict(slots=32),
        answers='',
        reward=dict(judge='endpoint:judge'),
        rollout=dict(ahead=ahead),
        endpoints={role: dict(address=address, model='m') for role, address in addresses.items()},
    )  # fmt: skip
    recipe: Any = rlpa.make(config, Context(devices.make_mesh(), phase))
    decoder, world, tokenizer = recipe.decoder, recipe.world, rlpa.make_policy(config.policy, recipe.ctx, 0).tokenizer
    # Early questions, while others are decoded, would hide a part of the judge's time.
    world = dataclasses.replace(
        world, user=timed('user', world.user), reward=timed('judge', world.reward), early=None,
    )  # fmt: skip
    sample = turns.make_turn_sampler(config, world.system, tokenizer, Writing(timed('decode', decoder)))  # type: ignore[arg-type]  # it samples, no more
    recipe = dataclasses.replace(recipe, world=world, sample_turns=sample)
    state, host = recipe.init()
    start = 0.0
    for i in range(first + args.steps):
        if i == first:
            seconds.clear()
            start = time.perf_counter()
        state, host, *_ = recipe.step(state, host, i)
    step = (time.perf_counter() - start) / args.steps
    for result in (*host['rollouts'], *host['replies']):
        result()
    return {'step': step} | {part: seconds[part] / args.steps for part in ('decode', 'judge', 'user', 'update')}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--user', type=float, default=1.0, help='seconds the user takes')
    parser.add_argument('--judge', type=float, default=0.5, help='seconds the judge takes')
    parser.add_argument('--steps', type=int, default=24, help='steps that are timed')
    parser.add_argument('--tokens', type=int, default=64, help='of each answer')
    parser.add_argument('--ahead', type=int, nargs='+', default=[0, 1, 2, 4], help='values of rollout.ahead')
    parser.add_argument('--source', default='random:tiny', help='the policy')
    args = parser.parse_args(argv)
    with ExitStack() as stack:
        addresses = {role: stack.enter_context(server(getattr(args, role))) for role in ('user', 'judge')}
        for ahead in args.ahead:
            measured = measure(ahead, addresses, args)
            device, asked = (measured['decode'], measured['update']), (measured['judge'], measured['user'])
            ratios = {
                'over_longest': measured['step'] / max(*device, *asked),
                'over_device': measured['step'] / max(sum(device), *asked),
            }
            record = {f'{name}_s': value for name, value in measured.items()} | ratios
            print(json.dumps({'ahead': ahead} | {name: round(value, 3) for name, value in record.items()}), flush=True)


if __name__ == '__main__':
    main()
