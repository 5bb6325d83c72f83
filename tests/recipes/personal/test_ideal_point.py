"""PAL's models against the numbers of the specification, and what must not change them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.models import params as model_params
from pal_jax.objectives.preference import logistic
from pal_jax.recipes.personal import ideal_point
from pal_jax.recipes.personal.ideal_point import PAL, ProjectorShape, parse_projector

RULES = [
    PAL(8, 3, projector='mlp1-gelu', dim=5),
    PAL(8, 3, projector='mlp0-linear-nobias', rule='normalized_dist', point='Pw'),
    PAL(8, 3, projector='mlp2-relu-residual', rule='angle', scaled=True, point='f(P)w'),
    PAL(8, 3, projector='mlp1-gelu', rule='dist', scaled=True, point='|f(P)|w'),
    PAL(8, 3, rule='dot', point='Pw'),
    PAL(8, 3, projector='mlp0-linear', rule='norm', point='Pw'),
    PAL(8, 3, variant='B', projector='mlp1-gelu', rule='angle', scaled=True, dim=5),
    PAL(8, 3, variant='B', projector='mlp1-gelu'),
]


def drawn(pal: PAL, seed: int = 0):
    return model_params.init(ideal_point.specs(pal), jax.random.key(seed))


def rewards(params, pal: PAL, z, x, prompt):
    w = ideal_point.weights(pal, z)
    return ideal_point.item_reward(params, pal, ideal_point.user_point(params, pal, w, prompt), x)


@pytest.fixture(params=range(len(RULES)), ids=lambda i: f'{RULES[i].variant}-{RULES[i].rule}-{RULES[i].point}')
def case(request):
    pal = RULES[request.param]
    keys = jax.random.split(jax.random.key(1), 4)
    z, left, right, prompt = (jax.random.normal(k, (20, n)) for k, n in zip(keys, (3, 8, 8, 8), strict=True))
    return pal, drawn(pal), z, left, right, prompt


def test_pal_a_of_the_specification():
    pal = PAL(2, 2)
    params = {'P': jnp.eye(2)}
    w = ideal_point.weights(pal, jnp.array([[np.log(3.0), 0.0]], jnp.float32))
    u = ideal_point.user_point(params, pal, w, None)
    np.testing.assert_allclose(u, [[0.75, 0.25]], atol=1e-6)
    items = jnp.array([[[1.0, 0.5], [0.0, 1.0]]])
    found = ideal_point.item_reward(params, pal, u, items)
    np.testing.assert_allclose(found, [[-0.353553, -1.060660]], atol=1e-6)
    scaled = dataclasses.replace(pal, scaled=True)
    params['log_scale'] = jnp.log(jnp.float32(1 / 0.07))
    logits = ideal_point.item_reward(params, scaled, u, items)
    np.testing.assert_allclose(logits, [[-5.050763, -15.152288]], rtol=1e-5)
    np.testing.assert_allclose(logistic(logits[0, 0] - logits[0, 1]), 4.10161e-5, rtol=1e-3)


def test_pal_b_of_the_specification():
    pal = PAL(2, 2, variant='B', projector='mlp0-linear', rule='angle', scaled=True)
    identity = [{'weight': jnp.eye(2), 'bias': jnp.zeros(2)}]
    points = [{'weight': jnp.zeros((2, 2, 2)), 'bias': jnp.array([[1.0, 2.0], [2.0, -1.0]])}]  # whatever the prompt
    params = {'f': identity, 'g': points, 'log_scale': jnp.log(jnp.float32(1 / 0.07))}
    w = ideal_point.weights(pal, jnp.array([[0.2, -0.3]]))
    np.testing.assert_allclose(w, [[0.622459, 0.377541]], atol=1e-6)
    u = ideal_point.user_point(params, pal, w, jnp.zeros((1, 2)))
    np.testing.assert_allclose(u, [[1.377541, 0.867378]], atol=1e-6)
    logits = ideal_point.item_reward(params, pal, u, jnp.array([[[3.0, 1.0], [-1.0, 2.0]]]))
    np.testing.assert_allclose(logits, [[13.875610, 1.401933]], rtol=1e-5)


@pytest.mark.parametrize(
    ('pal', 'count'),
    [
        (PAL(512, 2, projector='mlp2-relu-dropout0-residual'), 788_992),
        (PAL(512, 2, variant='B', projector='mlp2-gelu-dropout0'), 2_363_904),
        (PAL(768, 2, variant='B', projector='mlp2-gelu-dropout0'), 5_315_328),
        (PAL(1024, 1, variant='B', projector='mlp2-relu-dropout5-residual'), 6_297_600),
        (PAL(1024, 2, variant='B', projector='mlp2-gelu-dropout0'), 9_446_400),
        (PAL(1536, 2, variant='B', projector='mlp2-gelu-dropout0'), 21_247_488),
    ],
)
def test_models_have_the_published_numbers_of_parameters(pal, count):
    leaves = jax.tree.leaves(ideal_point.specs(pal), is_leaf=model_params.is_spec)
    assert sum(int(np.prod(spec.shape)) for spec in leaves) == count


def test_projectors_go_by_their_names():
    assert parse_projector('mlp2-relu-dropout5-residual') == ProjectorShape(3, 'relu', 0.5, True, True)
    assert parse_projector('mlp2-gelu-dropout75').dropout == 0.75
    assert parse_projector('mlp0-linear-nobias') == ProjectorShape(1, 'linear', 0.0, False, False)
    assert parse_projector('identity').layers == 0
    for wrong in ('mlp2', 'mlp2-tanh', 'mlp-relu', 'mlp2-relu-dropout', 'mlp2-relu-batchnorm', 'identity-residual'):
        with pytest.raises(ValueError, match='unknown projector'):
            parse_projector(wrong)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'rule': 'cosine'}, "model.rule='cosine' is unknown"),
        ({'dim': 4}, 'is not the width 8'),
        ({'rule': 'norm'}, "needs variant='A' and point='Pw'"),
        ({'prototypes': 0}, 'at least 1'),
        ({'variant': 'B', 'mixture': 'own'}, 'no variant B'),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PAL(**{'width': 8, 'prototypes': 2, **changes})


@pytest.mark.slow
def test_a_constant_added_to_the_logits_changes_nothing(case):
    pal, params, z, left, _, prompt = case
    np.testing.assert_allclose(
        rewards(params, pal, z + 3.0, left, prompt), rewards(params, pal, z, left, prompt), rtol=1e-4, atol=1e-6
    )


def test_the_order_of_the_prototypes_changes_nothing(case):
    pal, params, z, left, _, prompt = case
    order = jnp.array([2, 0, 1])
    turned = {
        name: jax.tree.map(lambda x: x[order], tree) if name in ('P', 'g') else tree for name, tree in params.items()
    }
    np.testing.assert_allclose(
        rewards(turned, pal, z[:, order], left, prompt), rewards(params, pal, z, left, prompt), rtol=1e-4, atol=1e-5
    )


def test_all_weight_on_a_prototype_is_the_model_of_that_prototype_alone(case):
    pal, params, _, left, _, prompt = case
    alone = dataclasses.replace(pal, prototypes=1)
    for k in range(3):
        w = jax.nn.one_hot(jnp.full(20, k), 3)
        mixed = ideal_point.item_reward(params, pal, ideal_point.user_point(params, pal, w, prompt), left)
        one = {
            name: jax.tree.map(lambda x, k=k: x[k : k + 1], tree) if name in ('P', 'g') else tree
            for name, tree in params.items()
        }
        single = rewards(one, alone, jnp.zeros((20, 1)), left, prompt)
        np.testing.assert_allclose(mixed, single, rtol=1e-4, atol=1e-5)


def test_tokens_are_judged_as_vectors_are(case):
    pal, params, z, left, right, prompt = case
    both = rewards(params, pal, z, jnp.stack([left, right], axis=1), prompt)
    for token, x in enumerate((left, right)):
        np.testing.assert_allclose(both[:, token], rewards(params, pal, z, x, prompt), rtol=1e-4, atol=1e-5)


def test_distances_have_a_gradient_where_item_and_user_meet():
    pal = PAL(2, 1, rule='dist', point='Pw')
    gradient = jax.grad(lambda x: jnp.sum(rewards({'P': jnp.ones((1, 2))}, pal, jnp.zeros((1, 1)), x, None)))
    assert np.isfinite(gradient(jnp.ones((1, 2)))).all()


def test_mixtures_of_training_and_after_it():
    z, key = jnp.array([[0.0, 1.0, 3.0], [1.0, 1.5, 0.0]]), jax.random.key(0)
    partition = PAL(8, 3, mixture='partition')
    np.testing.assert_array_equal(ideal_point.weights(partition, z), [[0, 0, 1], [0, 1, 0]])
    np.testing.assert_allclose(ideal_point.weights(partition, z, training=True), jax.nn.softmax(z), rtol=1e-6)
    gumbel = PAL(8, 3, mixture='gumbel', tau=0.5)
    np.testing.assert_allclose(ideal_point.weights(gumbel, z, training=True), jax.nn.softmax(2 * z), rtol=1e-6)
    noisy = ideal_point.weights(gumbel, jnp.broadcast_to(z[0], (4000, 3)), training=True, key=key)
    shares = np.bincount(np.argmax(noisy, axis=1), minlength=3) / 4000
    np.testing.assert_allclose(shares, jax.nn.softmax(z[0]), atol=0.03)  # Gumbel's maximum draws from the softmax


def test_dropout_is_of_training_alone_and_keeps_the_mean():
    pal = PAL(4, 1, projector='mlp1-linear-dropout5-nobias')
    layers = [{'weight': jnp.eye(4)}, {'weight': jnp.eye(4)}]
    x = jnp.ones((4000, 4))
    np.testing.assert_array_equal(ideal_point.project(layers, pal, x), x)
    dropped = ideal_point.project(layers, pal, x, jax.random.key(0))
    assert set(np.unique(dropped)) == {0.0, 2.0}
    np.testing.assert_allclose(np.mean(dropped), 1.0, atol=0.05)


def test_an_embedding_is_a_shared_point_and_a_persons_own_directions():
    pal = PAL(8, 4, rule='dot', point='Pw', mixture='free')
    params, z = drawn(pal), jnp.array([[0.5, -2.0, 0.0], [0.0, 0.0, 0.0]])
    assert pal.logits_per_user == 3
    point = ideal_point.user_point(params, pal, ideal_point.weights(pal, z), None)
    P = params['P']
    np.testing.assert_allclose(point, jnp.stack([P[0] + 0.5 * P[1] - 2.0 * P[2], P[0]]), rtol=1e-5, atol=1e-6)
    own = PAL(8, 1, rule='dot', point='Pw', mixture='own')
    assert ideal_point.specs(own) == {}
    x = jax.random.normal(jax.random.key(0), (2, 8))
    np.testing.assert_allclose(rewards({}, own, x, x, None), jnp.sum(x * x, axis=1), rtol=1e-5)


def test_a_mixture_sums_to_one_within_rounding():
    np.testing.assert_allclose(ideal_point.checked_mixture([0.1] * 10, 10), 0.1)
    for wrong in ([0.5, 0.6], [1.0], [1.5, -0.5], [float('nan'), 1.0]):
        with pytest.raises(ValueError, match='a mixture of 2 prototypes'):
            ideal_point.checked_mixture(wrong, 2)
