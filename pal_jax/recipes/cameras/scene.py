"""Flying cameras that reconstruct one person in a crowd: a task for a team, with every camera's contribution.

Chen et al. 2023 (arXiv 2303.03767), in a scene of our own: people are upright capsules that walk at random in a square
of 10 m, cameras are pinholes with noisy detections, and a joint is detected where it is in the image and nobody else
stands before it. The joints of person 0, the target, are triangulated by every sub-team of two cameras or more.

Letters: `n` cameras, `K` people, `S` sub-teams, `J` points, `D` the width of an observation.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from pal_jax.objectives.distributions import Categorical
from pal_jax.recipes.cameras import contributions, vision
from pal_jax.recipes.cameras.contributions import FAILED, MOST, Value
from pal_jax.recipes.cameras.vision import HEIGHT, PERSON, RADIUS, SCALE, WIDTH

CROWD = 7  # people that an observation has room for
AREA, REACH = 500.0, 650.0  # cm from the middle: where people walk, and where cameras fly
LOW, HIGH = 90.0, 300.0  # cm, of cameras
STEEP, UPWARD = -80.0, 20.0  # degrees of pitch
MOVE, PITCH, YAW = 30.0, 3.0, 5.0  # cm and degrees of an action
NOISE = 2.0  # pixels of a detection at 5 m
MARKS = (2.0, 5.0, 10.0, 15.0)  # cm: errors that shares of joints are counted below
# 17 joints of a standing person who looks along x (forward, left, up), in cm: pelvis, right leg, left leg, spine, neck,
# nose, head, left arm, right arm.
JOINTS = np.array([
    (0, 0, 95), (0, -13, 93), (2, -14, 50), (0, -15, 8), (0, 13, 93), (2, 14, 50), (0, 15, 8), (-3, 0, 118),
    (-2, 0, 143), (9, 0, 153), (1, 0, 168), (-2, 18, 138), (-3, 21, 110), (6, 22, 86), (-2, -18, 138), (-3, -21, 110),
    (6, -22, 86),
], np.float32)  # fmt: skip
FIGURES = ('error', 'success', *(f'below_{mark:g}' for mark in MARKS), 'views')


class Sight(NamedTuple):
    """The detections of a moment. `points` are the last reconstructions of the whole team by person, `fresh` whether
    they are of this moment, `boxes` corners in the image, 0 where a person is not detected."""

    points: Float[Array, 'K 3']
    fresh: Bool[Array, ' K']
    boxes: Float[Array, 'n K 4']
    detected: Bool[Array, 'n K']
    views: Float[Array, ' n']  # the share of the target's joints that each camera sees
    values: Float[Array, ' S']
    figures: Float[Array, ' F']  # see `FIGURES`


class Scene(NamedTuple):
    """Cameras (x, y, z, pitch, yaw), people and their headings in radians, who of them is there, and the clock."""

    cameras: Float[Array, 'n 5']
    people: Float[Array, 'K 2']
    heading: Float[Array, ' K']
    present: Bool[Array, ' K']
    clock: Int[Array, '']
    sight: Sight


class Outcome(NamedTuple):
    """The rewards of a step, of every camera by itself and of the team, and the figures of the reconstruction."""

    contributions: Float[Array, ' n']
    shared: Float[Array, '']
    figures: Float[Array, ' F']


@dataclasses.dataclass(frozen=True)
class Cameras:
    """The task.

    Attributes:
      cameras: 2 to 6 of them.
      people: the least and the largest number of people, the target among them; drawn anew for each episode.
      value: the value of a mean error, see `contributions.value`.
      rule: cameras turn to the target by rule, and choose only where to fly.
      speed: cm that a person walks in a step.
      horizon: steps of an episode.
    Raises:
      ValueError: a number is out of its range.
    """

    cameras: int = 4
    people: tuple[int, int] = (6, 6)
    value: Value = 'unit'
    rule: bool = False
    speed: float = 15.0
    horizon: int = 200

    gamma: ClassVar[float] = 0.99
    width: ClassVar[int] = 8 + 9 + 13 * CROWD + 9 * (MOST - 1)

    def __post_init__(self):
        if not 2 <= self.cameras <= MOST or not 1 <= self.people[0] <= self.people[1] <= CROWD:
            raise ValueError(
                f'cameras={self.cameras} must be 2 to {MOST}, and people={self.people} from 1 to {CROWD} in order'
            )
        if self.speed < 0 or self.horizon < 1:
            raise ValueError(f'speed={self.speed} must be at least 0, and horizon={self.horizon} at least 1')
        if self.value not in get_args(contributions.Value):
            raise ValueError(f'value={self.value!r}; use one of {", ".join(get_args(contributions.Value))}')

    @property
    def central(self) -> int:
        """The width of what the critic reads."""
        return self.width + 3 * CROWD + MOST + 1

    @property
    def actions(self) -> Categorical:
        """Three choices for each of right, forward and up, and where cameras turn by themselves pitch and yaw."""
        return Categorical((3,) * (3 if self.rule else 5))

    @functools.cached_property
    def teams(self) -> Bool[np.ndarray, 'S n']:
        return contributions.teams(self.cameras)

    # --- episodes -----------------------------------------------------------------------------------------------------

    def reset(self, key: Array) -> Scene:
        """Cameras in formation, numbered at random, and people anywhere."""
        to_number, to_place, to_turn, to_count, to_see = jax.random.split(key, 5)
        cameras = jax.random.permutation(to_number, jnp.asarray(formation(self.cameras), jnp.float32))
        crowd = self.people[1]
        people = jax.random.uniform(to_place, (crowd, 2), minval=-0.8 * AREA, maxval=0.8 * AREA)
        heading = jax.random.uniform(to_turn, (crowd,), maxval=2.0 * jnp.pi)
        count = jax.random.randint(to_count, (), self.people[0], crowd + 1)
        present = jnp.arange(crowd) < count
        points = jnp.zeros((crowd, 3)).at[:, 2].set(JOINTS[0, 2])  # before anybody was seen
        sight = self.look(cameras, people, heading, present, points, to_see)
        return Scene(cameras, people, heading, present, jnp.zeros((), jnp.int32), sight)

    def step(self, scene: Scene, action: Int[Array, 'n H'], key: Array) -> tuple[Scene, Outcome]:
        """Move cameras and people, then look."""
        to_walk, to_see = jax.random.split(key)
        if self.rule:
            action = jnp.concatenate([action, self.turning(scene)], axis=-1)
        cameras = move_cameras(scene.cameras, action)
        people, heading = self.walk(scene.people, scene.heading, scene.present, to_walk)
        sight = self.look(cameras, people, heading, scene.present, scene.sight.points, to_see)
        rewards = contributions.contributions(sight.values, self.cameras)
        after = Scene(cameras, people, heading, scene.present, scene.clock + 1, sight)
        return after, Outcome(rewards, sight.values[-1], sight.figures)

    def walk(self, people: Array, heading: Array, present: Array, key: Array) -> tuple[Array, Array]:
        """A random walk within the square, away from who is near."""
        heading = heading + 0.25 * jax.random.normal(key, heading.shape)
        way = jnp.stack([jnp.cos(heading), jnp.sin(heading)], axis=-1)
        apart = people[:, None] - people[None]
        distance = jnp.sqrt(jnp.sum(apart**2, axis=-1) + 1e-6)
        close = jnp.clip(1.0 - distance / (4.0 * RADIUS), 0.0) * (present[:, None] & present[None])
        # Who comes nearer than two diameters to somebody is pushed away from them.
        push = jnp.sum(apart / distance[..., None] * close[..., None], axis=1)
        after = people + self.speed * (way + 2.0 * push)
        # Who meets the border turns to the middle.
        out = jnp.any(jnp.abs(after) > AREA, axis=-1)
        heading = jnp.where(out, jnp.arctan2(-after[:, 1], -after[:, 0]), heading)
        return jnp.clip(after, -AREA, AREA), heading

    def look(self, cameras: Array, people: Array, heading: Array, present: Array, before: Array, key: Array) -> Sight:
        """Detections of the target's joints and of the middle of everybody else, and the points of all sub-teams."""
        count, joints = people.shape[0], len(JOINTS)
        truth = body(people[0], heading[0])
        # Everybody but the target is one point, the pelvis.
        middles = jnp.concatenate([people[1:], jnp.full((count - 1, 1), JOINTS[0, 2])], axis=-1)
        points = jnp.concatenate([truth, middles])
        owner = jnp.array([0] * joints + list(range(1, count)))
        pixels, depth = vision.project(cameras, points)
        others = present[None] & (owner[:, None] != jnp.arange(count)[None])
        # Nobody hides a point of their own body.
        hidden = vision.blocked(cameras[:, :3], points, people) & others[None]
        visible = vision.inside(pixels, depth) & ~jnp.any(hidden, axis=-1) & present[owner][None]
        distance = jnp.sqrt(jnp.sum((points[None] - cameras[:, None, :3]) ** 2, axis=-1))
        # A detector is as wrong as the person is small in the image.
        noise = NOISE * distance[..., None] / SCALE * jax.random.normal(key, pixels.shape)
        placed, enough = vision.triangulate(cameras, pixels + noise, visible, self.teams)
        error = jnp.sqrt(jnp.sum((placed[:, :joints] - truth[None]) ** 2, axis=-1))
        # A joint that fewer than two cameras of a sub-team see counts as the largest error.
        error = jnp.where(enough[:, :joints], jnp.minimum(error, FAILED), FAILED)
        mean = jnp.mean(error, axis=-1)
        # The whole team's points are all that cameras know of people.
        whole, known = placed[-1], enough[-1]
        weight = known[:joints].astype(jnp.float32)
        # The target is where the mean of its known joints is.
        target = jnp.sum(whole[:joints] * weight[:, None], axis=0) / jnp.maximum(jnp.sum(weight), 1.0)
        now = jnp.concatenate([target[None], whole[joints:]])
        now = jnp.clip(now, -2.0 * REACH, 2.0 * REACH)
        fresh = jnp.concatenate([jnp.any(known[:joints])[None], known[joints:]])
        detected = jnp.concatenate([jnp.any(visible[:, :joints], axis=1)[:, None], visible[:, joints:]], axis=1)
        success, below = mean[-1] < MARKS[-1], [jnp.mean(error[-1] < mark) for mark in MARKS]
        seen = jnp.mean(jnp.sum(visible[:, :joints], axis=0))
        figures = jnp.stack([mean[-1], success.astype(jnp.float32), *below, seen])
        boxed = boxes(cameras, people) * detected[..., None]
        views, values = jnp.mean(visible[:, :joints], axis=1), contributions.value(mean, self.value)
        # A person who is not reconstructed stays where the team last knew them.
        return Sight(jnp.where(fresh[:, None], now, before), fresh, boxed, detected, views, values, figures)

    # --- rules --------------------------------------------------------------------------------------------------------

    def turning(self, scene: Scene) -> Int[Array, 'n 2']:
        """The turns in pitch and yaw that bring the true target nearest to the middle of the image."""
        away = jnp.concatenate([scene.people[0], jnp.full(1, JOINTS[0, 2])])[None] - scene.cameras[:, :3]
        flat = jnp.sqrt(jnp.sum(away[:, :2] ** 2, axis=-1) + 1e-6)
        pitch = jnp.rad2deg(jnp.arctan2(away[:, 2], flat)) - scene.cameras[:, 3]
        yaw = wrapped(jnp.rad2deg(jnp.arctan2(away[:, 1], away[:, 0])) - scene.cameras[:, 4])
        steps = jnp.stack([pitch / PITCH, yaw / YAW], axis=-1)
        return 1 + jnp.clip(jnp.round(steps), -1, 1).astype(jnp.int32)

    def standing(self, scene: Scene) -> Int[Array, 'n H']:
        """The action that changes nothing."""
        return jnp.ones((self.cameras, len(self.actions.heads)), jnp.int32)

    def tracking(self, scene: Scene) -> Int[Array, 'n H']:
        """The action that stays and turns to the target."""
        still = self.standing(scene)
        return still if self.rule else still.at[:, 3:].set(self.turning(scene))

    # --- what cameras and the critic read -----------------------------------------------------------------------------

    def observe(self, scene: Scene) -> Float[Array, 'n D']:
        """Every camera's reading: the scene, itself, people (the target, then the nearest) and teammates, all of them
        by what the team has detected, in fixed scales. Places are in the camera's own directions, too."""
        crowd, sight = self.people[1], scene.sight
        turned = flat_axes(scene.cameras)
        near, mates = self._order(scene)
        fixed = [AREA / REACH, LOW / SCALE, HIGH / SCALE, MOVE / SCALE, PITCH / 90.0, YAW / 90.0]
        clock = scene.clock / self.horizon
        shared = jnp.broadcast_to(
            jnp.array([*fixed, 0.0, self.cameras / MOST]).at[6].set(clock)[None], (self.cameras, 8)
        )
        away = sight.points[None] - scene.cameras[:, None, :3]
        relative = jnp.einsum('nab,nkb->nka', turned, away) / SCALE
        is_target = jnp.broadcast_to(jnp.arange(crowd)[None] == 0, (self.cameras, crowd))
        fresh = jnp.broadcast_to(sight.fresh[None], (self.cameras, crowd))
        absolute = jnp.broadcast_to(sight.points[None] / SCALE, (self.cameras, crowd, 3))
        flags = jnp.stack([is_target, fresh, sight.detected], axis=-1).astype(jnp.float32)
        people = jnp.concatenate([flags, absolute, relative, sight.boxes], axis=-1) * scene.present[None, :, None]
        people = jnp.take_along_axis(people, near[..., None], axis=1).reshape(self.cameras, -1)
        # Padding gives an observation the same width for any number of people and cameras.
        people = jnp.pad(people, ((0, 0), (0, 13 * (CROWD - crowd))))
        # Every camera's direction and place in the directions of every other one.
        views = vision.axes(scene.cameras)[:, 2]
        apart = scene.cameras[None, :, :3] - scene.cameras[:, None, :3]
        place = jnp.einsum('nab,nmb->nma', turned, apart) / SCALE
        look = jnp.einsum('nab,mb->nma', turned, views)
        angle = self._angles(scene)
        bearing = jnp.stack([jnp.sin(angle), jnp.cos(angle), jnp.ones_like(angle)], axis=-1)
        team = jnp.take_along_axis(jnp.concatenate([place, look, bearing], axis=-1), mates[..., None], axis=1)
        team = jnp.pad(team.reshape(self.cameras, -1), ((0, 0), (0, 9 * (MOST - self.cameras))))
        return jnp.concatenate([shared, pose(scene.cameras), people, team], axis=-1)

    def oversee(self, scene: Scene) -> Float[Array, 'n W']:
        """The critic's reading: a camera's own, where people truly are, what each camera sees, and the team's value."""
        turned = flat_axes(scene.cameras)
        near, mates = self._order(scene)
        truth = jnp.pad(scene.people, ((0, 0), (0, 1)), constant_values=JOINTS[0, 2])
        away = jnp.einsum('nab,nkb->nka', turned, truth[None] - scene.cameras[:, None, :3]) / SCALE
        away = jnp.take_along_axis(away * scene.present[None, :, None], near[..., None], axis=1).reshape(
            self.cameras, -1
        )
        away = jnp.pad(away, ((0, 0), (0, 3 * (CROWD - self.people[1]))))
        views = jnp.concatenate([scene.sight.views[:, None], scene.sight.views[mates]], axis=-1)
        views = jnp.pad(views, ((0, 0), (0, MOST - self.cameras)))
        team = jnp.broadcast_to(scene.sight.values[-1], (self.cameras, 1))
        return jnp.concatenate([self.observe(scene), away, views, team], axis=-1)

    def outlook(self, before: Scene, after: Scene) -> dict[str, tuple[Array, Array]]:
        """The goals of dynamics heads after `before`: places `[n, slots, dimensions]` in units of 5 m in the order in
        which `before` was observed, and which slots count, `[n, slots]`."""
        near, mates = self._order(before)
        poses = pose(after.cameras)
        truth = jnp.pad(after.people, ((0, 0), (0, 1)), constant_values=JOINTS[0, 2]) / SCALE
        people = jnp.where(before.present[:, None], truth, 0.0)[near]
        there = before.present[near].astype(jnp.float32)
        spare = CROWD - self.people[1]
        others = jnp.pad(people[:, 1:], ((0, 0), (0, spare), (0, 0)))
        team = jnp.pad(poses[mates], ((0, 0), (0, MOST - self.cameras), (0, 0)))
        counted = jnp.ones((self.cameras, 1))
        return {
            'own': (poses[:, None], counted),
            'team': (team, jnp.pad(jnp.ones(mates.shape), ((0, 0), (0, MOST - self.cameras)))),
            'target': (people[:, :1], counted),
            'others': (others, jnp.pad(there[:, 1:], ((0, 0), (0, spare)))),
        }

    def _angles(self, scene: Scene) -> Float[Array, 'n n']:
        """The angle around the target from each camera to each other one."""
        away = scene.cameras[:, :2] - scene.sight.points[:1, :2]
        bearing = jnp.arctan2(away[:, 1], away[:, 0])
        return bearing[None, :] - bearing[:, None]

    def _order(self, scene: Scene) -> tuple[Int[Array, 'n K'], Int[Array, 'n n-1']]:
        """The target and then people by distance, and teammates by their angle around the target."""
        distance = jnp.sum((scene.sight.points[None] - scene.cameras[:, None, :3]) ** 2, axis=-1)
        # The target comes first, and those who are absent last.
        distance = jnp.where(scene.present[None], distance, jnp.inf).at[:, 0].set(-1.0)
        turn = jnp.mod(self._angles(scene), 2.0 * jnp.pi)
        # A camera is the first by its own angle, and is left out.
        turn = jnp.where(jnp.eye(self.cameras, dtype=bool), -1.0, turn)
        return jnp.argsort(distance, axis=-1), jnp.argsort(turn, axis=-1)[:, 1:]


# --- geometry ---------------------------------------------------------------------------------------------------------


def formation(cameras: int) -> Float[np.ndarray, 'n 5']:
    """The fixed formation: a square's corners for four cameras and two of them for two, regular polygons otherwise."""
    if cameras in (2, 4):
        corners = np.array([(AREA, AREA), (AREA, -AREA), (-AREA, -AREA), (-AREA, AREA)])[:cameras]
    else:
        turns = 2.0 * np.pi * np.arange(cameras) / cameras
        corners = AREA * np.stack([np.cos(turns), np.sin(turns)], axis=-1)
    yaw = np.degrees(np.arctan2(-corners[:, 1], -corners[:, 0]))
    height_and_pitch = np.broadcast_to([HIGH, -35.0], (cameras, 2))
    return np.concatenate([corners, height_and_pitch, yaw[:, None]], axis=1)


def move_cameras(cameras: Float[Array, 'n 5'], action: Int[Array, 'n 5']) -> Float[Array, 'n 5']:
    """Cameras after an action, within the air that they may use. Entries 0, 1 and 2 go back, stay and go on."""
    signs = action.astype(jnp.float32) - 1.0
    place = cameras[:, :3] + MOVE * jnp.einsum('nab,na->nb', flat_axes(cameras), signs[:, :3])
    place = jnp.clip(place, jnp.array([[-REACH, -REACH, LOW]]), jnp.array([[REACH, REACH, HIGH]]))
    pitch = jnp.clip(cameras[:, 3] + PITCH * signs[:, 3], STEEP, UPWARD)
    yaw = wrapped(cameras[:, 4] + YAW * signs[:, 4])
    return jnp.concatenate([place, pitch[:, None], yaw[:, None]], axis=-1)


def flat_axes(cameras: Float[Array, 'n 5']) -> Float[Array, 'n 3 3']:
    """The directions right, forward and up of cameras whose pitch is left out, as rows."""
    yaw = jnp.deg2rad(cameras[:, 4])
    zero, one = jnp.zeros_like(yaw), jnp.ones_like(yaw)
    right = jnp.stack([jnp.sin(yaw), -jnp.cos(yaw), zero], axis=-1)
    forward = jnp.stack([jnp.cos(yaw), jnp.sin(yaw), zero], axis=-1)
    return jnp.stack([right, forward, jnp.stack([zero, zero, one], axis=-1)], axis=1)


def pose(cameras: Float[Array, 'n 5']) -> Float[Array, 'n 9']:
    """Nine numbers of the size of 1: place, direction of view, pitch, and the yaw's sine and cosine."""
    yaw = jnp.deg2rad(cameras[:, 4:])
    return jnp.concatenate(
        [cameras[:, :3] / SCALE, vision.axes(cameras)[:, 2], cameras[:, 3:4] / 90.0, jnp.sin(yaw), jnp.cos(yaw)],
        axis=-1,
    )


def boxes(cameras: Float[Array, 'n 5'], people: Float[Array, 'K 2']) -> Float[Array, 'n K 4']:
    """The corners (left, top, right, bottom) of people in the images, as shares of the image from its middle."""
    ends = jnp.concatenate([jnp.pad(people, ((0, 0), (0, 1)), constant_values=z) for z in (PERSON, 0.0)])
    pixels, depth = vision.project(cameras, ends)
    (top, bottom), (near, far) = jnp.split(pixels, 2, axis=1), jnp.split(jnp.maximum(depth, 50.0), 2, axis=1)
    half = vision.FOCAL * RADIUS / jnp.maximum(near, far)
    left, right = jnp.minimum(top, bottom)[..., 0] - half, jnp.maximum(top, bottom)[..., 0] + half
    corners = jnp.stack([left, top[..., 1], right, bottom[..., 1]], axis=-1)
    size = jnp.array([[[WIDTH, HEIGHT, WIDTH, HEIGHT]]])
    return jnp.clip(corners / size - 0.5, -1.0, 1.0)


def body(place: Float[Array, ' 2'], heading: Float[Array, '']) -> Float[Array, '17 3']:
    """The joints of a person who stands at a place and looks along the heading."""
    cos, sin = jnp.cos(heading), jnp.sin(heading)
    forward, left, up = jnp.asarray(JOINTS).T
    return jnp.stack([place[0] + cos * forward - sin * left, place[1] + sin * forward + cos * left, up], axis=-1)


def wrapped(degrees: Array) -> Array:
    """An angle between -180 and 180 degrees."""
    return jnp.mod(degrees + 180.0, 360.0) - 180.0
