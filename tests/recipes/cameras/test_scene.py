"""Flying cameras: geometry against golden numbers and brute force, and the rules of the scene."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.recipes.cameras import scene as c
from pal_jax.recipes.cameras import vision

SQUARE = [
    (500, 500, 300, -20, -135),
    (500, -500, 300, -20, 135),
    (-500, -500, 300, -20, 45),
    (-500, 500, 300, -20, -45),
]
POINT = [[50.0, -30.0, 100.0]]
PIXELS = [(294.8437, 218.1786), (326.6580, 223.7302), (344.2602, 214.8072), (314.2426, 210.1775)]
NOISE = [(2.0, -1.0), (-1.5, 0.5), (0.5, 1.0), (1.0, -2.0)]
VIEWS = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]], bool)


def test_projection_and_triangulation_of_the_golden_point():
    with jax.enable_x64(True):
        cameras, point = jnp.array(SQUARE, float), jnp.array(POINT)
        pixels, depth = vision.project(cameras, point)
        np.testing.assert_allclose(pixels[:, 0], PIXELS, atol=1e-4)
        assert (np.asarray(depth) > 0).all()
        visible = jnp.ones((4, 1), bool)
        placed, enough = vision.triangulate(cameras, pixels, visible, VIEWS)
        assert np.asarray(enough).all()
        np.testing.assert_allclose(placed[:, 0], np.repeat(POINT, 4, axis=0), atol=1e-6)
        placed, _ = vision.triangulate(cameras, pixels + jnp.array(NOISE)[:, None], visible, VIEWS)
        error = jnp.linalg.norm(placed[:, 0] - point, axis=-1)
        np.testing.assert_allclose(error, [5.1606, 13.5101, 3.6675, 3.2736], atol=2e-3)


def test_triangulation_is_the_smallest_singular_vector():
    rng = np.random.default_rng(0)
    cameras = jnp.array([(*row[:3], *row[3:]) for row in SQUARE], jnp.float32)
    points = jnp.asarray(rng.uniform(-400, 400, (30, 3)) * [1, 1, 0] + rng.uniform(0, 170, (30, 1)) * [0, 0, 1])
    pixels, _ = vision.project(cameras, points.astype(jnp.float32))
    noisy = np.asarray(pixels + 2.0 * rng.normal(size=pixels.shape), np.float64)
    visible = rng.random((4, 30)) < 0.8
    placed, enough = vision.triangulate(cameras, jnp.asarray(noisy, jnp.float32), jnp.asarray(visible), VIEWS)
    turned = np.asarray(vision.axes(cameras), np.float64)
    projection = np.concatenate([turned, -turned @ np.asarray(cameras)[:, :3, None]], axis=-1)
    for s, team in enumerate(VIEWS):
        for j in range(30):
            seen = np.flatnonzero(team & visible[:, j])
            assert enough[s, j] == (len(seen) > 1)
            if len(seen) < 2:
                continue
            u, v = ((noisy[seen, j] - [320, 240]) / 320).T
            rows = [projection[i, 2] * at - projection[i, k] for i, *both in zip(seen, u, v, strict=True)
                    for k, at in enumerate(both)]  # fmt: skip
            rows = np.array([row / np.linalg.norm(row) for row in rows])
            x = np.linalg.svd(rows)[2][-1]
            np.testing.assert_allclose(placed[s, j], x[:3] / x[3], atol=0.3)


def test_who_stands_in_the_way():
    rng = np.random.default_rng(0)
    start = np.c_[rng.uniform(-650, 650, (4, 2)), rng.uniform(90, 300, 4)]
    points = np.c_[rng.uniform(-500, 500, (20, 2)), rng.uniform(0, 170, 20)]
    people = rng.uniform(-500, 500, (7, 2))
    blocked = vision.blocked(*(jnp.asarray(x, jnp.float32) for x in (start, points, people)))
    t = np.linspace(0.0, 1.0, 2001)[:, None]
    way = start[:, None, None] + t * (points[None, :, None] - start[:, None, None])  # [n, J, t, 3]
    height = np.clip(way[..., 2], 25.0, 145.0)
    for person, place in enumerate(people):
        square = np.sum((way[..., :2] - place) ** 2, axis=-1) + (way[..., 2] - height) ** 2
        np.testing.assert_array_equal(blocked[..., person], square.min(axis=-1) < 25.0**2)
    assert 0 < blocked.mean() < 0.2


def test_cameras_move_in_their_own_directions_and_stay_in_the_air():
    cameras = jnp.array([(0.0, 0.0, 200.0, -10.0, 90.0), (640.0, 0.0, 290.0, 19.0, 178.0)])
    after = c.move_cameras(cameras, jnp.array([(1, 2, 1, 0, 2), (1, 0, 2, 2, 2)]))
    np.testing.assert_allclose(after[0], [0.0, 30.0, 200.0, -13.0, 95.0], atol=1e-4)
    np.testing.assert_allclose(after[1], [650.0, -1.05, 300.0, 20.0, -177.0], atol=0.1)
    right = c.move_cameras(cameras, jnp.array([(2, 1, 1, 1, 1)] * 2))
    np.testing.assert_allclose(right[0, :2], [30.0, 0.0], atol=1e-4)  # yaw 90 looks along y, so right is x


@pytest.mark.parametrize('count', range(2, 7))
def test_the_formation_looks_at_the_middle(count):
    cameras = jnp.asarray(c.formation(count), jnp.float32)
    pixels, depth = vision.project(cameras, jnp.zeros((1, 3)))
    np.testing.assert_allclose(pixels[:, 0, 0], 320.0, atol=1e-2)
    assert (np.asarray(depth) > 0).all()


@pytest.fixture(scope='module')
def scenes():
    env = c.Cameras(3, (1, 4))
    fresh = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 16))
    step = jax.jit(jax.vmap(lambda scene, key: env.step(scene, env.tracking(scene), key)))
    return env, fresh, *step(fresh, jax.random.split(jax.random.key(1), 16))


def test_a_step_pays_contributions_whose_mean_is_the_teams_value(scenes):
    _, fresh, after, outcome = scenes
    np.testing.assert_allclose(outcome.contributions.mean(axis=1), outcome.shared, atol=1e-5)
    assert set(np.asarray(fresh.present).sum(axis=1)) == {1, 2, 3, 4}
    assert (np.asarray(after.clock) == 1).all()
    error, success, *below, views = np.asarray(outcome.figures).T
    np.testing.assert_array_equal(success, error < 15.0)
    assert (np.diff(below, axis=0) >= 0).all() and (views <= 3).all()
    np.testing.assert_allclose(outcome.shared, 4 / ((0.2 * error) ** 2 + 4), rtol=1e-4)


def test_what_cameras_read_is_bounded_and_leaves_out_who_is_not_there(scenes):
    env, _, after, _ = scenes
    seen, over = jax.vmap(env.observe)(after), jax.vmap(env.oversee)(after)
    assert seen.shape == (16, 3, env.width) and over.shape == (16, 3, env.central)
    assert np.abs(seen).max() < 10
    alone = np.asarray(after.present).sum(axis=1) == 1
    blocks = np.asarray(seen)[:, :, 17 : 17 + 13 * 7].reshape(16, 3, 7, 13)
    assert (blocks[alone][:, :, 1:] == 0).all() and (blocks[:, :, 0, 0] == 1).all()


def test_cameras_that_track_bring_the_target_to_the_middle():
    env = c.Cameras(4, (2, 2), speed=0.0)
    scene, _ = _played(env, 60)
    away = np.asarray(scene.people)[0] - np.asarray(scene.cameras)[:, :2]
    yaw = np.degrees(np.arctan2(away[:, 1], away[:, 0])) - np.asarray(scene.cameras)[:, 4]
    assert (np.abs((yaw + 180) % 360 - 180) <= 2.6).all()
    ruled, _ = _played(c.Cameras(4, (2, 2), speed=0.0, rule=True), 60)
    np.testing.assert_allclose(ruled.cameras, scene.cameras, atol=1e-3)


def _played(env, steps):
    def step(scene, key):
        return env.step(scene, env.tracking(scene), key)

    return jax.jit(lambda key: jax.lax.scan(step, env.reset(key), jax.random.split(key, steps)))(jax.random.key(2))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [({'cameras': 1}, 'cameras=1'), ({'cameras': 7}, 'cameras=7'), ({'people': (3, 2)}, r'people=\(3, 2\)'),
     ({'people': (1, 8)}, r'people=\(1, 8\)'), ({'horizon': 0}, 'horizon=0'), ({'value': 'best'}, "'best'")],
)  # fmt: skip
def test_wrong_scenes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        c.Cameras(**changes)
