"""Figures, pictures and an animation of flying cameras around a person in a crowd."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Rectangle
from PIL import Image

from pal_jax.recipes.cameras.figures import TEAMS
from pal_jax.recipes.cameras.scene import AREA, FIGURES, MARKS, REACH, Scene
from pal_jax.recipes.cameras.vision import RADIUS
from pal_jax.run import intervals
from pal_jax.run.curve import BLUE, GREY, INK, STYLE, png
from pal_jax.types import Exhibit

RED = '#dc2626'
SIGHT = 120.0  # cm: the length of the lines that show where a camera looks
Scenes = Scene  # of an episode: every array has a leading axis of steps


class TeamResult(NamedTuple):
    """Means over episodes and steps of a team's `FIGURES`, with a number of cameras and people."""

    team: str
    seed: int
    cameras: int
    people: int
    figures: tuple[float, ...]


def by_team(results: Sequence[TeamResult]) -> dict[str, Float[np.ndarray, 'seeds F']]:
    """The figures of each team's seeds."""
    return {
        team: np.array([result.figures for result in results if result.team == team])
        for team in dict.fromkeys(result.team for result in results)
    }


def make_record(results: Sequence[TeamResult]) -> dict[str, Any]:
    """Mean error and success of every team, standard errors over seeds, and errors over that of tracking cameras."""
    record: dict[str, Any] = {}
    teams = by_team(results)
    for team, rows in teams.items():
        record[f'{team}_error'], record[f'{team}_success'] = map(float, rows.mean(axis=0)[:2])
        if len(rows) > 1:
            record |= intervals.mean(rows[:, 0]).named(f'{team}_error')
    if 'ctcr' in teams:
        for team in (team for team in ('tracking', 'shared') if team in teams):
            # A rule has one row for all seeds.
            record |= intervals.mean(teams['ctcr'][:, 0] / teams[team][:, 0]).named(f'error_to_{team}')
    return record


def make_exhibits(
    results: Sequence[TeamResult],
    others: Sequence[TeamResult],
    curve: Mapping[str, Any],
    samples: int,
    episodes: Mapping[str, Scenes],
    frames: int,
) -> list[Exhibit]:
    """Tables of the teams and of other numbers of cameras and people, learning curves, and the scene.

    Args:
      curve: the mean error of every step of training by run, such as `ctcr-0`.
      samples: environment steps of a run in a step of training.
      episodes: scenes of an episode before and after training.
    """
    text = 'Means over whole episodes, with the standard error over seeds. Success: a mean error below 15 cm.'
    exhibits = [Exhibit('Teams', text, table(results), plot_curves(curve, results, samples))]
    if others:
        text = 'The same policies with numbers of cameras and people that they were not trained with: mean error in cm.'
        exhibits.append(Exhibit('Other cameras and crowds', text, transfer(others)))
    text = 'From above: cameras (blue) and their field of view, the target (red), the crowd. Lines: the way so far.'
    exhibits.append(Exhibit('The scene', text, picture=plot_scene(episodes)))
    exhibits.append(Exhibit('The scene in motion', text, picture=animate(episodes, frames)))
    return exhibits


def table(results: Sequence[TeamResult]) -> list[list[str]]:
    """Teams by figure."""
    marks = [f'joints below {mark:g} cm' for mark in MARKS]
    rows = [['team', 'mean error, cm', 'success', *marks, 'cameras that see a joint']]
    for team, figures in by_team(results).items():
        mean = dict(zip(FIGURES, figures.mean(axis=0), strict=True))
        error = intervals.mean(figures[:, 0]).with_error('.2f')
        shares = [f'{mean[name]:.3f}' for name in FIGURES[1:-1]]
        rows.append([TEAMS[team], error, *shares, f'{mean["views"]:.2f}'])
    return rows


def transfer(results: Sequence[TeamResult]) -> list[list[str]]:
    """Mean errors by numbers of cameras and people, and team."""
    teams = list(dict.fromkeys(result.team for result in results))
    rows = [['cameras', 'people', *(TEAMS[team] for team in teams)]]
    for counts in dict.fromkeys((result.cameras, result.people) for result in results):
        at = by_team([result for result in results if (result.cameras, result.people) == counts])
        rows.append([*map(str, counts), *(f'{at[team][:, 0].mean():.2f}' for team in teams)])
    return rows


def plot_curves(curve: Mapping[str, Any], results: Sequence[TeamResult], samples: int) -> bytes:
    """The mean error in training by environment steps, a line a seed, beside the rules' errors."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4.2), layout='constrained')
        ax = figure.subplots()
        ax.set_title('Mean error of the target while cameras learn', fontsize=13, fontweight='bold')
        colours, shown = matplotlib.colormaps['tab10'], []
        for run, errors in curve.items():
            team = run.rsplit('-', 1)[0]
            # A team has a line for each seed, but only one entry in the legend.
            label = TEAMS[team] if team not in shown else None
            shown += [team] if label else []
            steps = samples * (1 + np.arange(len(errors)))
            ax.plot(steps, errors, color=colours(shown.index(team)), label=label, linewidth=1.2)
        for result, style in zip((r for r in results if r.team in ('standing', 'tracking')), (':', '--'), strict=False):
            ax.axhline(result.figures[0], color=GREY, linestyle=style, label=TEAMS[result.team])
        ax.set_ylim(bottom=0)
        ax.set_xlabel('environment steps')
        ax.set_ylabel('mean joint error, cm')
        ax.legend(frameon=False)
    return png(figure)


# --- the scene --------------------------------------------------------------------------------------------------------


def plot_scene(episodes: Mapping[str, Scenes]) -> bytes:
    """The last moment of episodes side by side, with the ways of the cameras."""
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(episodes)
        for ax, (title, scenes) in zip(panels, episodes.items(), strict=True):
            draw(ax, scenes, len(scenes.clock) - 1, title)
    return png(figure)


def animate(episodes: Mapping[str, Scenes], frames: int) -> bytes:
    """A GIF of episodes side by side."""
    length = min(len(scenes.clock) for scenes in episodes.values())
    pictures = []
    with matplotlib.rc_context(STYLE):
        figure, panels = _panels(episodes)
        canvas = FigureCanvasAgg(figure)
        for t in np.unique(np.linspace(0, length - 1, frames).astype(int)):
            for ax, (title, scenes) in zip(panels, episodes.items(), strict=True):
                # All frames share one canvas, so the frame before is wiped off.
                ax.clear()
                draw(ax, scenes, int(t), title)
            canvas.draw()
            pictures.append(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert('RGB').quantize(64))
    file = io.BytesIO()
    pictures[0].save(file, format='GIF', save_all=True, append_images=pictures[1:], duration=120, loop=0)
    return file.getvalue()


def draw(ax: Axes, scenes: Scenes, t: int, title: str) -> None:
    """Moment `t` from above, with the ways of the cameras until then."""
    cameras, people = np.asarray(scenes.cameras), np.asarray(scenes.people)
    error = float(np.asarray(scenes.sight.figures)[t, 0])
    ax.set_title(f'{title}: step {t + 1}, error {error:.1f} cm')
    for number in np.flatnonzero(np.asarray(scenes.present)[t]):
        # Person 0 is the target.
        colour = RED if number == 0 else GREY
        ax.add_patch(Circle(people[t, number], RADIUS, color=colour))
    for camera in range(cameras.shape[1]):
        ax.plot(*cameras[: t + 1, camera, :2].T, color=BLUE, linewidth=0.6, alpha=0.4)
        x, y, z, _, yaw = cameras[t, camera]
        ax.plot(x, y, 'o', color=BLUE, markersize=4)
        ax.annotate(f'{z:.0f}', (x, y), fontsize=6, color=INK, xytext=(4, 4), textcoords='offset points')
        # The field of view is 90 degrees wide.
        for side in (-45.0, 45.0):
            end = np.deg2rad(yaw + side)
            ax.plot([x, x + SIGHT * np.cos(end)], [y, y + SIGHT * np.sin(end)], color=BLUE, linewidth=0.8)
    ax.add_patch(Rectangle((-AREA, -AREA), 2 * AREA, 2 * AREA, fill=False, edgecolor=GREY))
    ax.set_xlim(-REACH - 60, REACH + 60)
    ax.set_ylim(-REACH - 60, REACH + 60)
    ax.set_aspect('equal')


def _panels(episodes: Mapping[str, Scenes]) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(4.6 * len(episodes), 4.8), layout='constrained', dpi=70)
    return figure, np.atleast_1d(figure.subplots(1, len(episodes))).tolist()
