"""The stage of Personalized Soups that merges: the policies of a combination's poles become one.

It writes `merged/<combination>/`, adapters as the library peft has them, into the folder that all stages share.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from pal_jax.models import lora, merging
from pal_jax.models.config import ModelConfig
from pal_jax.models.files import peft
from pal_jax.models.params import Params
from pal_jax.recipes.psoups import preferences
from pal_jax.recipes.psoups.policies import check_trained, open_adapters
from pal_jax.recipes.psoups.preferences import Combination
from pal_jax.recipes.psoups.prompts import read_preferences
from pal_jax.recipes.psoups.settings import MergeSettings, PreferenceKeys
from pal_jax.run import piecework
from pal_jax.run.language import ModelSettings
from pal_jax.run.models import make_policy
from pal_jax.run.piecework import Piecework, Records
from pal_jax.run.recipe import Context, Evaluation, Host
from pal_jax.types import Metrics

MERGED = 'merged'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(PreferenceKeys):
    """The keys of stage merge."""

    policy: ModelSettings = ModelSettings()
    merge: MergeSettings = MergeSettings()


@dataclasses.dataclass(frozen=True)
class Merges:
    """For every combination of poles the weighted mean of their policies' adapters, factor by factor."""

    # The folder that all stages share.
    folder: Path
    # The poles of every part.
    combinations: Sequence[Combination]
    # The weights of the poles of a combination, with sum 1.
    weights: Sequence[float]
    # `adapters` reads the adapters that the stage in a folder has trained.
    adapters: Callable[[Path], Params]
    # The model of the adapters, the name of its base, and the adapters' dropout.
    cfg: ModelConfig
    base: str
    dropout: float

    def work(self, host: Host, i: int) -> tuple[Records, Host, Metrics]:
        """Merge the policies of combination `i`, and write the merged adapters; the first process writes."""
        poles = self.combinations[i]
        name = preferences.name_of(poles)
        # The paper's soup: the parameters that PPO trained are averaged, here the two factors of each adapter.
        soup = merging.linear([self.adapters(self.folder / f'policy-{pole.id}') for pole in poles], self.weights)
        if jax.process_index() == 0:
            place = self.folder / MERGED / name
            # A kill may have come between this and the checkpoint, and left a folder.
            if place.exists():
                shutil.rmtree(place)
            peft.save(soup, self.cfg, self.base, place, self.dropout)
        return [{'combination': name, 'weights': list(self.weights)}], host, {'sources': float(len(self.weights))}

    def finish(self, records: Records) -> Evaluation:
        """Count the merged policies."""
        return Evaluation({'rows': len(records)})


def make(settings: Settings, ctx: Context) -> Piecework:
    """The recipe of the stage. Raises ValueError where a policy is not trained, or was trained on another base."""
    policy, folder = make_policy(settings.policy, ctx, settings.seed), ctx.workdir.parent
    combinations = preferences.combinations(read_preferences(settings))
    weights = soup_weights(settings.merge, len(combinations[0]))
    for name in dict.fromkeys(pole.id for combination in combinations for pole in combination):
        check_trained(folder / f'policy-{name}', settings)
    # A pole is in several combinations: its adapters are read once.
    adapters = functools.cache(functools.partial(open_adapters, ctx=ctx))
    base, dropout = settings.policy.source.removeprefix('hf:'), settings.policy.lora.dropout
    stage = Merges(folder, combinations, weights, adapters, policy.cfg, base, dropout)
    return piecework.make(ctx, len(combinations), stage.work, 'merge', stage.finish)


def soup_weights(settings: MergeSettings, n: int) -> tuple[float, ...]:
    """The weights of `n` dimensions, which are equal where `merge.weights` is empty.

    Raises:
      ValueError: `merge.weights` are not `n` numbers with sum 1.
    """
    weights = settings.weights or (1.0 / n,) * n
    # Weights with another sum would scale the adapters.
    numbers = all(isinstance(weight, int | float) for weight in weights)
    if not numbers or len(weights) != n or not abs(sum(weights) - 1.0) <= 1e-6:
        raise ValueError(f'merge.weights={weights} must be a number for each of {n} dimensions, with sum 1')
    return weights


@jax.jit
def whole(adapters: Params, base: Params) -> Params:
    """Merge adapters into their base: plain weights that compute the same as the base with the adapters."""
    return lora.merge(lora.join(adapters, base))
