"""What a mesh changes: where things lie and what is sent, and nothing that is computed."""

from __future__ import annotations

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.data.packing import pack_rollouts
from pal_jax.learners import actor, forward
from pal_jax.learners.actor import Actor
from pal_jax.learners.ppo import PPO, PolicyLearner
from pal_jax.learners.ppo import make_actor_critic as make
from pal_jax.learners.training import Lora, accumulate, apply
from pal_jax.models import config, params
from pal_jax.models.config import LayerKind
from pal_jax.models.files import families
from pal_jax.objectives.policy import TokenInputs
from pal_jax.run import devices, sharding
from pal_jax.run.optim import Optimizer
from pal_jax.types import Completion, RolloutBatch, Sample, TokenBatch

N, A = 2, 32
LORA = Lora(4, 8.0, 'all-linear')
CFG = dataclasses.replace(config.tiny(vocab=64), kv_heads=4, heads=8, head_dim=8)  # divides over every mesh of eight
GEMMA3 = dataclasses.replace(
    CFG, family='gemma3_text', layers=3, pattern=(LayerKind(window=16, rope='local'), LayerKind()),
    query_scalar=16.0, qk_norm=True, **families.GEMMA,
)  # fmt: skip
BAICHUAN = dataclasses.replace(
    CFG, family='baichuan', kv_heads=8, tie_embed=False, unit_head=True, alibi=True,
    pattern=(LayerKind(rope='none'),),
)  # fmt: skip
FAMILIES = {'llama': CFG, 'gemma3': GEMMA3, 'baichuan': BAICHUAN}
MESHES = {(8, 1, 1): 1, (1, 8, 1): 64, (1, 2, 4): 1, (4, 2, 1): 64, (1, 4, 2): 1, (2, 2, 2): 2}  # and `micro_rows`


def make_learner(mesh, cfg=CFG, adapters=None, **changes) -> PolicyLearner:
    ppo = PPO(**{'estimator': 'group_norm', 'kl_in': 'loss', 'kl_estimator': 'k3', **changes})
    optimizer = Optimizer('adamw', lr=1e-3, total_steps=20, warmup_ratio=0.0)
    return make(cfg, ppo, optimizer, mesh, n=N, length=A, adapters=adapters)


def rollouts(mesh, i: int, row_tokens: int) -> RolloutBatch:
    rng, samples = np.random.default_rng(i), []
    for group in range(32):
        prompt = tuple(rng.integers(0, 64, rng.integers(2, 30)).tolist())
        for _ in range(N):
            ids = tuple(rng.integers(0, 64, rng.integers(1, A + 1)).tolist())
            completion = Completion('', ids, (0.0,) * len(ids), 'stop')
            samples.append(Sample(prompt, completion, group, rewards=(float(rng.normal()),)))
    ways = sharding.batch_ways(mesh)
    return pack_rollouts(samples, n=N, actions=A, mesh=mesh, ways=ways, row_tokens=row_tokens)


def losses(mesh, cfg, *, adapters: Lora | None, row_tokens: int, micro_rows: int) -> list[float]:
    """Of five updates: losses, norms of gradients and distances from the reference."""
    learner = make_learner(mesh, cfg, adapters, micro_rows=micro_rows)
    plain = params.init(params.decoder_specs(cfg), jax.random.key(0))
    state, out = learner.init(plain), []
    for i in range(5):
        batch, scored = learner.score(state, rollouts(mesh, i, row_tokens))
        batch, _ = learner.advantages(state, batch)
        state, updated = learner.update(state, batch, jax.random.key(i))
        out += [updated['policy_loss'], updated['grad_norm'], scored['kl'], scored['entropy']]
    return out


@pytest.mark.long
@pytest.mark.parametrize(
    ('family', 'adapters', 'row_tokens'),
    [
        ('llama', None, 0),
        ('llama', LORA, 0),
        ('llama', None, 256),
        ('llama', LORA, 256),
        ('gemma3', None, 256),
        ('gemma3', LORA, 0),
        ('baichuan', None, 256),
        ('baichuan', LORA, 0),
    ],
    ids=lambda value: value if isinstance(value, str) else 'lora' if value is LORA else 'packed' if value else '',
)
def test_every_mesh_of_eight_learns_what_one_device_does(family, adapters, row_tokens):
    """With micro-batches (`micro_rows=1`) and without."""
    cfg, how = FAMILIES[family], {'adapters': adapters, 'row_tokens': row_tokens}
    one = losses(devices.make_mesh(devices=jax.devices()[:1]), cfg, micro_rows=64, **how)
    assert abs(one[-2]) > 1e-6  # it moves
    for shape, micro_rows in MESHES.items():
        many = losses(devices.make_mesh(*shape), cfg, micro_rows=micro_rows, **how)
        np.testing.assert_allclose(many, one, rtol=1e-5, atol=1e-6, err_msg=str(shape))


@pytest.mark.slow
def test_a_gradient_is_added_to_the_sum_after_it_is_summed_over_devices():
    """The gradient of an output matrix that is whole on every device, by hand in float64."""
    rng = np.random.default_rng(0)
    matrix, rows = rng.standard_normal((7, 3)), rng.standard_normal((8, 3))

    def loss(weights):
        squares = forward.by_rows(lambda m, x: (jnp.tanh(x @ m.T) ** 2).sum()[None])
        return squares(weights['head'], jnp.float32(rows)).sum(), None

    with jax.set_mesh(devices.make_mesh(data=4, fsdp=2)):
        add = jax.jit(lambda weights, sums: accumulate(loss, weights, sums)[1])
        got = add({'head': jnp.float32(matrix)}, {'head': jnp.ones((7, 3))})['head']
    bent = np.tanh(rows @ matrix.T)
    np.testing.assert_allclose(got, 1 + (2 * bent * (1 - bent**2)).T @ rows, rtol=1e-5, atol=1e-5)


def test_gradients_are_summed_where_their_parameters_lie(monkeypatch):
    mesh, summed = devices.make_mesh(1, 4, 2), []

    def watched(optimizer, state, grads):
        summed.append(grads)
        return apply(optimizer, state, grads)

    monkeypatch.setattr(actor, 'apply', watched)
    learner = make_learner(mesh, micro_rows=1)
    state = learner.init(params.init(params.decoder_specs(CFG), jax.random.key(0)))
    places = jax.tree.map(lambda x: x.sharding, state.actor.model.params)
    batch, _ = learner.score(state, rollouts(mesh, 0, 0))
    batch, _ = learner.advantages(state, batch)
    learner.update(state, batch, jax.random.key(0))
    (grads,) = summed
    assert all(
        jax.tree.leaves(jax.tree.map(lambda g, place: g.sharding.is_equivalent_to(place, g.ndim), grads, places))
    )


def gradient_program(mesh, unroll: bool):
    """The compiled gradients of a micro-batch, two rows a device of eight."""
    cfg = dataclasses.replace(
        config.tiny(vocab=1024), width=256, heads=8, kv_heads=4, head_dim=32, mlp=512, unroll=unroll
    )
    learner, place = make_learner(mesh, cfg), sharding.sharding(mesh, ('batch',))

    def rows(dtype, *shape):
        return jax.ShapeDtypeStruct((16, *shape), dtype, sharding=place)

    columns, acted = [rows(jnp.int32, 256)] * 4, [rows(jnp.int32, N, A)] * 2
    each = rows(jnp.float32, N, A)
    tokens = TokenBatch(*columns, *acted, rows(bool, N, A))
    state, loss = learner.abstract.actor, learner.ppo.token_loss
    return Actor.gradients.lower(
        learner.actor, state.model.params, state, tokens, TokenInputs(each, each, each, each), each, loss, 0
    ).compile()


def sent(text: str, kind: str) -> list[int]:
    """Sizes of the results of a kind of collective."""
    results = re.findall(rf'= (.*?) {kind}(?:-start)?\(', text)
    shapes = [shape for result in results for shape in re.findall(r'\w+\[([\d,]*)\]', result)]
    return [math.prod(int(size) for size in shape.split(',') if size) for shape in shapes]


@pytest.mark.slow
@pytest.mark.parametrize('unroll', [False, True], ids=['scan', 'unroll'])
def test_eight_devices_share_the_work_and_gather_a_weight_at_a_time(unroll):
    one = gradient_program(devices.make_mesh(devices=jax.devices()[:1]), unroll)
    for shape in ((1, 8, 1), (1, 4, 2), (2, 2, 2)):
        program = gradient_program(devices.make_mesh(*shape), unroll)
        assert program.cost_analysis()['flops'] < 1.1 / 8 * one.cost_analysis()['flops'], shape
        assert program.memory_analysis().temp_size_in_bytes < 0.25 * one.memory_analysis().temp_size_in_bytes, shape
        gathered = sent(program.as_text(), 'all-gather')
        assert gathered and max(gathered) <= 1024 * 256, shape  # the embedding; a layer's largest weight is half of it
        activations = 2 * 8 // shape[2] * 256 * 256  # of a device's rows
        assert max(sent(program.as_text(), 'all-reduce')) <= max(1024 * 256, activations), shape
