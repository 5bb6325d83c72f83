"""What an update of PAL costs, by the number of users in the table.

  python -m benchmarks.pal_step
  python -m benchmarks.pal_step --users=1000,1000000 --width=512 --batch=4096 --projector=mlp2-gelu-dropout0

Prints a table: users, the table's size with its Adam moments, and the milliseconds of an update: the best of
`--repeats` programs of `--updates` updates each, compiled before.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pal_jax.learners.ideal_point import IdealPointLearner, Loss, Rates
from pal_jax.models.ideal_point import PAL
from pal_jax.runtime import devices
from pal_jax.types import PairBatch


def measure(pal: PAL, users: int, batch: int, updates: int, repeats: int) -> tuple[float, float]:
    """Milliseconds of an update, and the table's bytes."""
    learner = IdealPointLearner(pal, Loss('hinge'), Rates(), devices.make_mesh(devices=jax.devices()[:1]), users=users)
    state, rng, form = learner.init(jnp.zeros(1, jnp.int32)), np.random.default_rng(0), (1, updates, batch)
    chosen, rejected = (rng.standard_normal((*form, pal.width), np.float32) for _ in range(2))
    ids = rng.integers(0, users, form).astype(np.int32)
    pairs = PairBatch(ids, chosen, rejected, np.ones(form, np.float32))
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(learner.update(state, pairs))
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds[1:]) / updates, sum(leaf.nbytes for leaf in jax.tree.leaves(state.users))


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--users', default='1000,100000,1000000')
    parser.add_argument('--width', type=int, default=32)
    parser.add_argument('--prototypes', type=int, default=4)
    parser.add_argument('--projector', default='mlp1-gelu')
    parser.add_argument('--batch', type=int, default=1024)
    parser.add_argument('--updates', type=int, default=50)
    parser.add_argument('--repeats', type=int, default=5)
    options = parser.parse_args(args)
    pal = PAL(options.width, options.prototypes, projector=options.projector)
    print('| users | table, MB | ms an update |\n|---|---|---|')
    for users in map(int, options.users.split(',')):
        milliseconds, size = measure(pal, users, options.batch, options.updates, options.repeats)
        print(f'| {users:,} | {size / 1e6:.1f} | {milliseconds:.3f} |', flush=True)


if __name__ == '__main__':
    main()
