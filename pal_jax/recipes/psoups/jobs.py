"""The answers that the systems of Personalized Soups give in the last stage.

base       the base policy, with the preferences in its prompt
rlhf       PPO on the general reward, without them; its answers stand for all combinations
multitask  supervised on the best answers of all preferences, with the preferences in its prompt
morl       P-MORL, with the preferences in its prompt
psoups     for each combination the merged policies of its poles, with the preferences in its prompt

Beside them each policy of one pole stands against the base under that pole alone, by `evaluate.draws` answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pal_jax.recipes.psoups.merge import soup_weights
from pal_jax.recipes.psoups.preferences import Preference, by_dimension, combinations, name_of
from pal_jax.recipes.psoups.settings import MergeSettings, WinRateSettings

SYSTEMS: tuple[str, ...] = ('base', 'rlhf', 'multitask', 'morl', 'psoups')


class Job(NamedTuple):
    """A system that answers prompts under some preferences."""

    system: str
    preferences: tuple[Preference, ...]
    # Stages whose adapters are merged by `weights`; none: the base answers.
    sources: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    # The number of answers to each prompt.
    draws: int = 1
    # The number of first prompts that are answered; None: all.
    prompts: int | None = None

    @property
    def name(self) -> str:
        """The system's name, with the preferences' if there are any."""
        return f'{self.system}-{name_of(self.preferences)}' if self.preferences else self.system

    @property
    def names(self) -> list[str]:
        """The name of each draw of answers."""
        return [self.name, *(f'{self.name}.{k}' for k in range(2, self.draws + 1))]


Fronts = Mapping[tuple[Preference, Preference], Sequence[Job]]  # the soups between two poles


def make_jobs(merge: MergeSettings, evaluate: WinRateSettings, poles: Sequence[Preference]) -> list[Job]:
    """All jobs, in their order."""
    combos = combinations(poles)
    weights = soup_weights(merge, len(combos[0]))
    jobs = [Job('rlhf', (), ('rlhf',), (1.0,))]
    for combo in combos:
        jobs += [Job('base', combo), *(Job(name, combo, (name,), (1.0,)) for name in ('multitask', 'morl'))]
        jobs.append(Job('psoups', combo, tuple(f'policy-{pole.id}' for pole in combo), weights))
    # Beside the comparison of systems: whether each policy serves its own pole at all.
    jobs += [job for pole in poles for job in pole_jobs(pole, evaluate.draws)]
    # For each dimension there are soups of two conflicting poles, by weights from one to the other, without a
    # preference in the prompt.
    jobs += [job for front in make_fronts(evaluate, poles).values() for job in front]
    # With a single dimension a combination is a pole, and its jobs would come twice.
    return list({job.name: job for job in jobs}.values())


def pole_jobs(pole: Preference, draws: int) -> tuple[Job, Job]:
    """The jobs of a pole's policy and of the base under that pole."""
    return Job('policy', (pole,), (f'policy-{pole.id}',), (1.0,), draws), Job('base', (pole,), draws=draws)


def make_fronts(
    settings: WinRateSettings, poles: Sequence[Preference]
) -> dict[tuple[Preference, Preference], list[Job]]:
    """Soups between the two poles of `evaluate.front`, or else between the first two poles of each dimension.

    Raises:
      ValueError: `evaluate.front` does not name two poles of one dimension, or its weights are no numbers from 0 to 1.
    """
    weights = settings.front_weights
    if not weights or not all(isinstance(w, int | float) and 0 <= w <= 1 for w in weights):
        raise ValueError(f'evaluate.front_weights={weights} must be numbers from 0 to 1, as (0.0,0.5,1.0)')
    named = [name.strip() for name in settings.front.split(',') if name.strip()]
    ends = [pole for name in named for pole in poles if pole.id == name]
    if named and not (len({*named}) == len(ends) == 2 and ends[0].dimension == ends[1].dimension):
        raise ValueError(f'evaluate.front={settings.front!r} must be two poles of one dimension, as P2A,P2B')
    pairs = [ends] if named else [group[:2] for group in by_dimension(poles).values() if len(group) > 1]
    return {
        (a, b): [
            Job(
                f'front-{a.id}-{b.id}-{w:g}',
                (),
                (f'policy-{a.id}', f'policy-{b.id}'),
                (1.0 - w, w),
                prompts=settings.front_prompts,
            )
            for w in weights
        ]
        for a, b in pairs
    }
