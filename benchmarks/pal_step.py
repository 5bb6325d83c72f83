"""The cost of an update of PAL: by the number of users in the table, or beside torch and the machine's matrix products.

  python -m benchmarks.pal_step
  python -m benchmarks.pal_step --users=1000,1000000 --width=512 --batch=4096 --projector=mlp2-gelu-dropout0
  python -m benchmarks.pal_step --method=lore         # or pref, mrm: options of the same learner
  python -m benchmarks.pal_step --against=torch

The first three print a table: users, the table's size with its Adam moments, and the milliseconds of an update: the
best of `--repeats` programs of `--updates` updates each, compiled before.

The last one is PAL-B-Tiny on cached states of last tokens: 512 wide, K = 2, mlp2-gelu, rule angle, `--batch` pairs an
update. Rounds in turn, see `contest.py`: ours, torch in both precisions, and matrix products alone, as many operations
as the step has; how much faster these are is the share of the machine's peak that the step reaches.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import contest, shapes
from benchmarks.contest import Contestant
from benchmarks.contestant import Round

WIDTH, LAYERS, K, USERS = 512, 3, 2, 1000
LEARNING_RATE, DECAY, USER_RATE, SCALE_RATE = 1e-4, 0.01, 5e-3, 1e-1
PRODUCT = (1024, 576, 1536)  # where a CPU reaches its peak, see machine.py


def flops(batch: int) -> float:
    """Operations of an update's products: chosen, rejected and the prompt by K functions; inputs have no gradient."""
    projections = 2 + K
    return 2.0 * batch * WIDTH**2 * projections * (3 * LAYERS - 1)


def draw(batch: int) -> tuple[np.ndarray, ...]:
    """Users, and states of chosen and rejected items and of prompts."""
    rng = np.random.default_rng(0)
    return rng.integers(0, USERS, batch), *(rng.standard_normal((batch, WIDTH), np.float32) for _ in range(3))


def make_pal_jax(batch: int, updates: int, dtype: str) -> Round:
    """Our update, computed as `devices.precision` has it."""
    import jax
    import jax.numpy as jnp

    from pal_jax.data.comparisons import PairBatch
    from pal_jax.recipes.personal.ideal_point import PAL
    from pal_jax.recipes.personal.learner import IdealPointLearner, Loss, Rates, put
    from pal_jax.run import devices

    pal = PAL(
        WIDTH, K, variant='B', projector='mlp2-gelu-dropout0', rule='angle', scaled=True, **devices.precision(dtype)
    )
    rates = Rates(LEARNING_RATE, DECAY, users=USER_RATE, log_scale=SCALE_RATE)
    learner = IdealPointLearner(pal, Loss(), rates, devices.make_mesh(devices=jax.devices()[:1]), users=USERS)
    columns = [jnp.asarray(np.broadcast_to(x, (1, updates, *x.shape))) for x in draw(batch)]
    users, chosen, rejected, prompt = columns
    pairs = PairBatch(users.astype(jnp.int32), chosen, rejected, jnp.ones(users.shape), prompt)
    state = [learner.init(jnp.zeros(1, jnp.int32))]

    def update() -> dict[str, float]:
        state[0], metrics = jax.block_until_ready(learner.update(state[0], put(pairs, learner.mesh)))
        return {'loss': float(metrics['loss'][0])}

    return update


def make_torch(batch: int, updates: int, dtype: str) -> Round:
    """An update in torch; bfloat16 is autocast over float32 weights, users' rows are moved by its sparse Adam."""
    import torch
    from torch import nn
    from torch.nn import functional

    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.manual_seed(0)

    def projector() -> nn.Module:
        layers = [nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)]
        return nn.Sequential(layers[0], nn.GELU('tanh'), layers[1], nn.GELU('tanh'), layers[2]).to(device)

    f, g = projector(), nn.ModuleList(projector() for _ in range(K))
    z = nn.Embedding(USERS, K, sparse=True, device=device)
    log_scale = nn.Parameter(torch.tensor(float(np.log(1 / 0.07)), device=device))
    shared = [
        {'params': [*f.parameters(), *g.parameters()], 'lr': LEARNING_RATE, 'weight_decay': DECAY},
        {'params': [log_scale], 'lr': SCALE_RATE},
    ]
    optimizers = torch.optim.Adam(shared, fused=True), torch.optim.SparseAdam(list(z.parameters()), lr=USER_RATE)
    users, chosen, rejected, prompt = (torch.from_numpy(x).to(device) for x in draw(batch))

    def one() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == 'bfloat16'):
            points = f(torch.cat([chosen, rejected]))
            functions = [function(prompt) for function in g]
        w = torch.softmax(z(users), dim=-1)
        u = sum(w[:, k, None] * output.float() for k, output in enumerate(functions))
        near, far = (functional.cosine_similarity(x, u) for x in points.float().chunk(2))
        loss = functional.softplus(torch.exp(log_scale).clamp(max=100.0) * (far - near)).mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    def update() -> dict[str, float]:
        return {'loss': float(np.mean([one().item() for _ in range(updates)]))}

    return update


def make_products(batch: int, updates: int, dtype: str) -> Round:
    """Products of matrices alone, with as many operations as the updates have."""
    import jax
    import jax.numpy as jnp

    from pal_jax.run import devices

    precision = devices.precision(dtype)
    m, k, n = PRODUCT if jax.default_backend() == 'cpu' else (8192, 8192, 8192)
    x, w = jnp.ones((m, k), precision['dtype']), jnp.ones((k, n), precision['dtype'])
    product = jax.jit(lambda x, w: jnp.matmul(x, w, preferred_element_type=precision['act_dtype']))
    count = updates * flops(batch) / (2 * m * k * n)

    def multiply() -> dict[str, float]:
        for _ in range(round(count)):
            jax.block_until_ready(product(x, w))
        return {'products': round(count), 'loss': 0.0}

    return multiply


def race(batch: int, updates: int, rounds: int, dtype: str, against: Sequence[str]) -> dict[str, Any]:
    """Race our update with products alone and with torch in both precisions: ratios by round."""
    settings = {'batch': batch, 'updates': updates}
    makers = {'pal_jax': ('make_pal_jax', dtype, 'jax'), 'products': ('make_products', dtype, 'jax')}
    if 'torch' in against:
        makers |= {f'torch_{precision}': ('make_torch', precision, 'torch') for precision in ('bfloat16', 'float32')}
    contestants = {
        name: Contestant(
            f'benchmarks.pal_step:{make}', settings | {'dtype': precision}, library, ('torch',) * (library == 'torch')
        )
        for name, (make, precision, library) in makers.items()
    }
    around = contest.surroundings('jax')
    results, absent = contest.race(contestants, rounds)
    report: dict[str, Any] = {**settings, 'dtype': dtype, **around}
    for name, result in results.items():
        figures = {'ms_an_update': round(1000 * min(result.seconds) / updates, 2), **result.startup()}
        report[name] = figures | {'first_loss': round(result.first['loss'], 4)}
    report['share_of_products'] = contest.ratios(results['pal_jax'], results['products'])
    for name in list(results)[2:]:
        report[f'pal_jax_over_{name}'] = contest.ratios(results['pal_jax'], results[name])
    return report | {'absent': absent}


def by_users(options: argparse.Namespace) -> None:
    print('| users | table, MB | ms an update |\n|---|---|---|')
    for users in map(int, options.users.split(',')):
        milliseconds, size = measure(users, options)
        print(f'| {users:,} | {size / 1e6:.1f} | {milliseconds:.3f} |', flush=True)


def measure(users: int, options: argparse.Namespace) -> tuple[float, float]:
    """Milliseconds of an update of PAL-A, and the table's bytes."""
    import jax
    import jax.numpy as jnp

    from pal_jax.data.comparisons import PairBatch
    from pal_jax.recipes.personal.ideal_point import PAL
    from pal_jax.recipes.personal.learner import IdealPointLearner, Loss, Rates, put
    from pal_jax.recipes.personal.meta import Meta
    from pal_jax.run import devices

    plain: dict[str, Any] = {'rule': 'dot', 'point': 'Pw'}
    model, loss, inner = {
        'pal': ({'projector': options.projector}, Loss('hinge'), None),
        'lore': (plain, Loss(pull=2.0, by='people', prototype_pull=1e-3), None),
        'pref': (plain | {'mixture': 'linear'}, Loss(pull=0.1), None),
        'mrm': (plain, Loss(), Meta()),
    }[options.method]
    pal = PAL(options.width, options.prototypes, **model, **devices.precision(options.dtype))
    mesh = devices.make_mesh(devices=jax.devices()[:1])
    learner = IdealPointLearner(pal, loss, Rates(), mesh, users=users, inner=inner)
    state, rng = learner.init(jnp.zeros(1, jnp.int32)), np.random.default_rng(0)
    form = (1, options.updates, options.batch)
    chosen, rejected = (rng.standard_normal((*form, pal.width), np.float32) for _ in range(2))
    ids = rng.integers(0, users, form).astype(np.int32)
    pairs = PairBatch(ids, chosen, rejected, np.ones(form, np.float32))
    seconds = []
    for _ in range(options.repeats + 1):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(learner.update(state, put(pairs, learner.mesh)))
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds[1:]) / options.updates, sum(leaf.nbytes for leaf in jax.tree.leaves(state.users))


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--users', default='1000,100000,1000000')
    parser.add_argument('--width', type=int, default=32)
    parser.add_argument('--prototypes', type=int, default=4)
    parser.add_argument('--projector', default='mlp1-gelu')
    parser.add_argument('--method', default='pal', choices=('pal', 'lore', 'pref', 'mrm'))
    parser.add_argument('--batch', type=int, help='pairs of an update; 1,024, or 4,096 with --against')
    parser.add_argument('--updates', type=int, help='in a program; 50, or 2 with --against')
    parser.add_argument('--repeats', type=int, default=5, help='timed programs, or rounds')
    parser.add_argument('--dtype', default='auto', help='auto, float32 or bfloat16')
    parser.add_argument('--against', type=shapes.listed(str, ('torch',)), default=[], help='torch, in both precisions')
    options = parser.parse_args(args)
    batch, updates = (4096, 2) if options.against else (1024, 50)
    options.batch, options.updates = options.batch or batch, options.updates or updates
    if options.against:
        print(json.dumps(race(options.batch, options.updates, options.repeats, options.dtype, options.against)))
    else:
        by_users(options)


if __name__ == '__main__':
    main()
