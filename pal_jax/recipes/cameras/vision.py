"""Pinhole cameras, who stands in whose way, and points from several views, on arrays.

Lengths are in cm, angles in degrees, pixels are counted from the upper left corner. A camera is (x, y, z, pitch, yaw).
Its axes are right, down and forward; yaw 0 looks along x and 90 along y, a negative pitch looks down.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

FOCAL, WIDTH, HEIGHT = 320.0, 640.0, 480.0  # pixels: a field of view of 90 degrees
PERSON, RADIUS = 170.0, 25.0  # a person is an upright capsule of this height and radius
SCALE = 500.0  # a length by which coordinates get the size of 1
ROUNDS = 4  # of inverse iteration


def axes(cameras: Float[Array, 'n 5']) -> Float[Array, 'n 3 3']:
    """The directions right, down and forward of cameras, as rows."""
    pitch, yaw = jnp.deg2rad(cameras[:, 3]), jnp.deg2rad(cameras[:, 4])
    flat = jnp.zeros_like(yaw)
    forward = jnp.stack([jnp.cos(yaw) * jnp.cos(pitch), jnp.sin(yaw) * jnp.cos(pitch), jnp.sin(pitch)], axis=-1)
    right = jnp.stack([jnp.sin(yaw), -jnp.cos(yaw), flat], axis=-1)
    return jnp.stack([right, jnp.cross(forward, right), forward], axis=1)


def project(cameras: Float[Array, 'n 5'], points: Float[Array, 'J 3']) -> tuple[Array, Array]:
    """The pixels `[n, J, 2]` of points and how far they lie in front of the cameras, `[n, J]`."""
    seen = jnp.einsum('nak,njk->nja', axes(cameras), points[None] - cameras[:, None, :3])
    depth = seen[..., 2]
    # A point beside the camera would divide by 0; `inside` leaves it out by its depth.
    ahead = jnp.where(jnp.abs(depth) > 1e-3, depth, 1e-3)
    centre = jnp.array([[[WIDTH, HEIGHT]]]) / 2.0
    return centre + FOCAL * seen[..., :2] / ahead[..., None], depth


def inside(pixels: Float[Array, '*B 2'], depth: Float[Array, '*B']) -> Bool[Array, '*B']:
    """True for points in the image."""
    u, v = pixels[..., 0], pixels[..., 1]
    return (u >= 0.0) & (u <= WIDTH) & (v >= 0.0) & (v <= HEIGHT) & (depth > 1.0)


def blocked(
    start: Float[Array, 'n 3'], points: Float[Array, 'J 3'], people: Float[Array, 'K 2']
) -> Bool[Array, 'n J K']:
    """True where the way from a camera to a point crosses a person: it comes as near to the axis of the capsule as
    its radius."""
    low, high = RADIUS, PERSON - RADIUS
    way = points[None] - start[:, None]  # [n, J, 3]
    square = jnp.sum(way * way, axis=-1)[..., None]
    # Only z tells the axis from a point of the plane, so its direction has one entry.
    length = high - low
    away_xy = start[:, None, None, :2] - people[None, None]  # [n, 1, K, 2]
    away_z = (start[:, 2] - low)[:, None, None]
    along = jnp.sum(way[:, :, None, :2] * away_xy, axis=-1) + way[..., 2, None] * away_z
    mixed, up = way[..., 2, None] * length, away_z * length
    divisor = square * length**2 - mixed**2
    # The nearest points of two segments are those of Ericson 2005, section 5.1.9: `s` of the way, `t` of the axis.
    s = jnp.clip((mixed * up - along * length**2) / jnp.maximum(divisor, 1e-6), 0.0, 1.0)
    t = (mixed * s + up) / length**2
    held = jnp.clip(t, 0.0, 1.0)
    # Where `t` is beyond an end of the axis, that end has another nearest point of the way.
    s = jnp.where(t == held, s, jnp.clip((mixed * held - along) / jnp.maximum(square, 1e-6), 0.0, 1.0))
    near_xy = away_xy + s[..., None] * way[:, :, None, :2]
    near_z = away_z + s * way[..., 2, None] - held * length
    return jnp.sum(near_xy**2, axis=-1) + near_z**2 < RADIUS**2


# --- triangulation ----------------------------------------------------------------------------------------------------

PAIRS = tuple((row, column) for row in range(4) for column in range(row + 1))  # the lower triangle of a 4 x 4 matrix


def view_rows(
    cameras: Float[Array, 'n 5'], pixels: Float[Array, 'n J 2'], weights: Float[Array, 'n J']
) -> Float[Array, 'n J 10']:
    """The lower triangles of the sums `a a'` over both rows `a` that a view adds to the linear system of a point.

    The rows are `u P3 - P1` and `v P3 - P2` with norm 1 (P: the 3 x 4 projection). A `weight` of 0 leaves a view out.
    """
    turned = axes(cameras)
    projection = jnp.concatenate([turned, -jnp.einsum('nak,nk->na', turned, cameras[:, :3])[..., None]], axis=-1)
    plane = (pixels - jnp.array([[[WIDTH, HEIGHT]]]) / 2.0) / FOCAL
    rows = plane[..., None] * projection[:, None, None, 2] - projection[:, None, :2]  # [n, J, 2, 4]
    rows = rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-9)
    # Lengths of the size of 1 let float32 tell the eigenvalues apart. `smallest` takes the scale out again.
    rows = rows * jnp.array([[[[SCALE, SCALE, SCALE, 1.0]]]]) * jnp.sqrt(weights)[..., None, None]
    return jnp.stack([jnp.sum(rows[..., i] * rows[..., j], axis=-1) for i, j in PAIRS], axis=-1)


def smallest(triangles: Float[Array, '*B 10']) -> Float[Array, '*B 3']:
    """The points whose homogeneous coordinates are the eigenvectors of the smallest eigenvalues, by inverse iteration.

    The matrices are sums of `view_rows`.
    """
    m = {pair: triangles[..., number] for number, pair in enumerate(PAIRS)}
    # Views that agree make a singular matrix, whose factor is finite with a ridge of the size of its rounding.
    ridge = jnp.finfo(triangles.dtype).eps * sum(m[i, i] for i in range(4)) + 1e-12
    # The 4 x 4 factors are written out, so that all points go through one fused program. A library's decomposition of a
    # million small matrices takes a hundred times as long.
    factor: dict[tuple[int, int], Array] = {}
    for i in range(4):
        for j in range(i + 1):
            remainder = m[i, j] - sum((factor[i, k] * factor[j, k] for k in range(j)), jnp.zeros_like(m[i, j]))
            factor[i, j] = jnp.sqrt(jnp.maximum(remainder + ridge, ridge)) if i == j else remainder / factor[j, j]
    # An eigenvector of the unscaled matrix is one of the scaled matrix in this metric.
    metric = (SCALE**2, SCALE**2, SCALE**2, 1.0)

    def iterate(_: Array, x: list[Array]) -> list[Array]:
        y = [scale * entry for scale, entry in zip(metric, x, strict=True)]
        # An iteration solves with the lower factor and then with its transpose.
        for i in range(4):
            y[i] = (y[i] - sum((factor[i, k] * y[k] for k in range(i)), jnp.zeros_like(ridge))) / factor[i, i]
        for i in reversed(range(4)):
            y[i] = (y[i] - sum((factor[k, i] * y[k] for k in range(i + 1, 4)), jnp.zeros_like(ridge))) / factor[i, i]
        # Only the direction counts, so a step keeps the entries at the size of 1.
        largest = functools.reduce(jnp.maximum, (jnp.abs(entry) for entry in y))
        return [entry / largest for entry in y]

    x = jax.lax.fori_loop(0, ROUNDS, iterate, [jnp.full_like(ridge, start) for start in (0.1, 0.2, 0.3, 1.0)])
    last = jnp.where(jnp.abs(x[3]) > 1e-6, x[3], 1e-6)
    return SCALE * jnp.stack(x[:3], axis=-1) / last[..., None]


def triangulate(
    cameras: Float[Array, 'n 5'],
    pixels: Float[Array, 'n J 2'],
    visible: Bool[Array, 'n J'],
    members: Bool[np.ndarray, 'S n'],
) -> tuple[Float[Array, 'S J 3'], Bool[Array, 'S J']]:
    """The points by the views of every sub-team, and whether two or more of its cameras see them (linear
    triangulation, Hartley & Zisserman 2004, section 12.2). Points that too few see have no meaning."""
    one_by_one = view_rows(cameras, pixels, visible.astype(pixels.dtype))
    inside_team = jnp.asarray(members, pixels.dtype)
    # The system of a sub-team is the sum of its views, so each view is worked out once.
    triangles = jnp.einsum('sn,njt->sjt', inside_team, one_by_one)
    views = jnp.einsum('sn,nj->sj', inside_team, visible.astype(pixels.dtype))
    return smallest(triangles), views > 1.5
