from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pal_jax.run.optim import ADAM, Optimizer, decays, make_schedule, moment_axes, with_numbers

NAMES = ['adam', 'adamw', 'lion', 'adafactor', 'muon', 'sgd']


def steady(name: str, **options) -> optax.GradientTransformation:
    """A constant rate of 0.1."""
    return Optimizer(name, **{'lr': 0.1, 'total_steps': 100, 'warmup_ratio': 0.0, 'min_ratio': 1.0} | options)


def first_update(optimizer, grads, params) -> Any:
    return jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p)[0])(grads, params)


def test_schedule_equals_the_formula():
    schedule = make_schedule(lr=2.0, total_steps=50, warmup_ratio=0.1, min_ratio=0.25)
    steps = np.arange(51)
    cosine = 0.25 + 0.75 * 0.5 * (1 + np.cos(np.pi * (steps - 5) / 45))
    expected = 2.0 * np.where(steps < 5, (steps + 1) / 5, cosine)
    np.testing.assert_allclose(schedule(jnp.asarray(steps)), expected, rtol=1e-5)


def test_a_linear_schedule_falls_along_a_line():
    schedule = make_schedule(lr=2.0, total_steps=50, warmup_ratio=0.1, min_ratio=0.25, decay='linear')
    steps = np.arange(60)
    expected = 2.0 * np.where(steps < 5, (steps + 1) / 5, np.maximum(1 - 0.75 * (steps - 5) / 45, 0.25))
    np.testing.assert_allclose(schedule(jnp.asarray(steps)), expected, rtol=1e-5)
    optimizer = Optimizer(lr=2.0, warmup_ratio=0.1, min_ratio=0.25, decay='linear').over(50)
    assert optimizer.rate(30) == pytest.approx(expected[30])
    with pytest.raises(ValueError, match='decay=.*linear'):
        Optimizer(lr=2.0, decay='line')  # type: ignore[arg-type]


@pytest.mark.parametrize('decay', ['cosine', 'linear'])
def test_a_rate_may_be_held_before_it_falls(decay):
    shape = {'lr': 2.0, 'total_steps': 50, 'warmup_ratio': 0.1, 'min_ratio': 0.25, 'decay': decay}
    plain, held = make_schedule(**shape), make_schedule(**shape, held=7)
    expected = [plain(i) for i in range(5)] + [2.0] * 7 + [plain(i) for i in range(5, 60)]
    np.testing.assert_allclose([held(i) for i in range(67)], expected, rtol=1e-6)


def test_warmup_is_rounded_up():
    assert float(jnp.asarray(make_schedule(lr=1.0, total_steps=34)(0))) == pytest.approx(0.5)


def test_the_only_update_is_not_wasted_on_warmup():
    assert float(jnp.asarray(make_schedule(lr=1.0, total_steps=1)(0))) == 1.0


@pytest.mark.parametrize(('total_steps', 'warmup_ratio'), [(0, 0.03), (10, 1.0), (10, -0.1)])
def test_bad_schedule(total_steps, warmup_ratio):
    with pytest.raises(ValueError, match='total_steps >= 1 and warmup_ratio in'):
        make_schedule(lr=1.0, total_steps=total_steps, warmup_ratio=warmup_ratio)


@pytest.mark.parametrize('name', NAMES)
def test_every_optimizer_descends_under_jit(name):
    optimizer = steady(name)
    params = {'w': jnp.array([[3.0, -2.0], [1.0, 4.0]])}

    def loss(params):
        return jnp.sum(params['w'] ** 2)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    before, state = loss(params), optimizer.init(params)
    for _ in range(20):
        params, state = step(params, state)
    assert loss(params) < 0.7 * before


def test_gradients_are_clipped_to_the_global_norm():
    params = {'x': jnp.zeros(2), 'y': jnp.zeros(1)}
    grads = {'x': jnp.array([3.0, 0.0]), 'y': jnp.array([4.0])}
    clipped = first_update(steady('sgd', max_norm=1.0), grads, params)
    np.testing.assert_allclose(clipped['x'], [-0.06, 0], rtol=1e-5)
    np.testing.assert_allclose(clipped['y'], [-0.08], rtol=1e-5)
    free = first_update(steady('sgd', max_norm=np.inf), grads, params)
    np.testing.assert_allclose(free['y'], [-0.4], rtol=1e-5)


def test_adam_takes_the_published_moments():
    optimizer, params = steady('adam', max_norm=np.inf), {'w': jnp.zeros(1)}
    state, mean, square = optimizer.init(params), 0.0, 0.0
    update: Any
    for t, g in enumerate([1.0, -3.0, 0.5], 1):
        update, state = optimizer.update({'w': jnp.array([g])}, state, params)
        mean, square = 0.9 * mean + 0.1 * g, 0.95 * square + 0.05 * g**2
        expected = -0.1 * (mean / (1 - 0.9**t)) / (np.sqrt(square / (1 - 0.95**t)) + 1e-8)
        np.testing.assert_allclose(update['w'], [expected], rtol=1e-5)


def test_decay_spares_norms_and_biases_of_stacked_layers():
    params = {
        'embed': jnp.ones((5, 3)),
        'layers': {
            'attn': {'q': jnp.ones((2, 3, 1, 3)), 'q_bias': jnp.ones((2, 1, 3))},
            'norm': {'attn': jnp.ones((2, 3)), 'mlp': jnp.ones((2, 3))},
        },
        'final_norm': jnp.ones(3),
    }
    updates = first_update(steady('adamw', weight_decay=0.5), jax.tree.map(jnp.zeros_like, params), params)
    moved = jax.tree.map(lambda u: bool(jnp.all(u == -0.05)), updates)
    assert moved == decays(params)
    assert moved == {
        'embed': True,
        'layers': {'attn': {'q': True, 'q_bias': False}, 'norm': {'attn': False, 'mlp': False}},
        'final_norm': False,
    }


def test_muon_orthogonalises_each_layer_and_leaves_the_rest_to_adam():
    rng = np.random.default_rng(0)
    params = {
        'embed': jnp.zeros((5, 4)),
        'layers': {'attn': {'q': jnp.zeros((2, 6, 2, 2)), 'o': jnp.zeros((2, 2, 2, 6))}, 'norm': jnp.zeros((2, 6))},
    }
    grads = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), params)
    updates = first_update(steady('muon', max_norm=np.inf), grads, params)
    adam = first_update(steady('adam', max_norm=np.inf), grads, params)
    np.testing.assert_allclose(updates['embed'], adam['embed'], rtol=1e-6)
    np.testing.assert_allclose(updates['layers']['norm'], adam['layers']['norm'], rtol=1e-6)
    for name, shape in (('q', (2, 6, 4)), ('o', (2, 4, 6))):
        both = (tree['layers']['attn'][name].reshape(shape) for tree in (updates, grads))
        for update, grad in zip(*both, strict=True):
            u, _, v = np.linalg.svd(grad, full_matrices=False)
            singular = np.diag(u.T @ (update / (-0.1 * 0.2 * np.sqrt(6))) @ v.T)
            assert np.all((singular > 0.6) & (singular < 1.3))  # what five steps of Newton-Schulz come to


@pytest.mark.parametrize('shape', [(2, 256, 512), (3, 512, 4, 128), (256, 128)])
def test_factored_moments_keep_the_axes_that_are_left(shape):
    names = tuple(f'axis{k}' for k in range(len(shape)))
    state = optax.scale_by_factored_rms().init({'w': jnp.zeros(shape)})
    for name in ('v_row', 'v_col'):
        moment = getattr(state, name)['w']
        axes = moment_axes(('0', name), shape, names, moment.shape)
        assert tuple(shape[names.index(axis)] for axis in axes if axis) == moment.shape
    assert moment_axes(('v',), shape, names, (1,)) == ()
    assert moment_axes(('mu',), shape, names, shape) == names


def test_unknown_optimizer():
    for wrong in ({'lr': -1.0}, {'lr': float('nan')}, {'b1': 1.5}, {'max_norm': -1.0}, {'weight_decay': -0.1}):
        name, value = next(iter(wrong.items()))
        with pytest.raises(ValueError, match=f'{name}={value}'):
            Optimizer('adamw', **{'lr': 1e-3, 'total_steps': 10} | wrong)
    with pytest.raises(ValueError, match="unknown optimizer 'adamm'; use one of adam"):
        Optimizer('adamm', lr=1.0, total_steps=10)


# --- AdamW with numbers that change -----------------------------------------------------------------------------------


def test_adam_with_numbers_that_change_is_that_of_torch():
    import torch

    rng = np.random.default_rng(0)
    start = rng.normal(size=(4, 3)).astype(np.float32)
    theirs = torch.nn.Parameter(torch.tensor(start))
    adam = torch.optim.AdamW([theirs], lr=1.0)
    params, state = {'w': jnp.asarray(start)}, ADAM.init({'w': jnp.asarray(start)})

    @jax.jit
    def step(params, state, grads):
        updates, state = ADAM.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    programs = []
    for i in range(5):
        grad = rng.normal(size=(4, 3)).astype(np.float32)
        numbers = {'beta1': 0.8 + 0.02 * i, 'beta2': 0.9 + 0.01 * i, 'eps': 10.0 ** -(8 + i), 'weight_decay': 0.1 * i}
        rate, clip = 0.01 * (i + 1), 1.0 + i
        theirs.grad = torch.tensor(grad)
        torch.nn.utils.clip_grad_norm_([theirs], clip)
        adam.param_groups[0].update(
            lr=rate,
            betas=(numbers['beta1'], numbers['beta2']),
            eps=numbers['eps'],
            weight_decay=numbers['weight_decay'],
        )
        adam.step()
        state = with_numbers(state, learning_rate=rate, max_norm=clip, **numbers)
        params, state = step(params, state, {'w': jnp.asarray(grad)})
        programs.append(step._cache_size())
    np.testing.assert_allclose(params['w'], theirs.detach().numpy(), rtol=1e-5, atol=1e-5)
    # Numbers are arrays, so they are no other program.
    assert programs[1:] == [programs[1]] * 4


def test_an_unknown_number_of_adam_is_refused():
    with pytest.raises(ValueError, match='momentum'):
        with_numbers(ADAM.init({'w': jnp.zeros(1)}), momentum=0.9)
