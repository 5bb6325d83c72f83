"""The stage of Personalized Soups that merges: the policies of a combination's poles become one."""

from __future__ import annotations

import functools
from typing import Any

import jax

from pal_jax.feedback import preferences
from pal_jax.models import lora, merging, peft
from pal_jax.models.params import Params
from pal_jax.parts import piecework
from pal_jax.parts.recipe import Config, Context, Evaluation, Host, Recipe, make_policy
from pal_jax.recipes.psoups import parts
from pal_jax.types import Metrics


def make_merges(config: Config, ctx: Context) -> Recipe:
    """Stage 5: for every combination of poles the weighted mean of their policies' adapters, factor by factor."""
    policy = make_policy(config, ctx)
    combinations = preferences.combinations(parts.read_preferences(config))
    weights = soup_weights(config, len(combinations[0]))
    for name in dict.fromkeys(each.id for combination in combinations for each in combination):
        parts.check_trained(ctx.workdir.parent / f'policy-{name}', config)
    trained = functools.cache(lambda name: parts.open_adapters(ctx.workdir.parent / f'policy-{name}', ctx))

    def work(host: Host, i: int) -> tuple[list[dict[str, Any]], Host, Metrics]:
        name = preferences.name_of(combinations[i])
        soup = merging.linear([trained(each.id) for each in combinations[i]], weights)
        if jax.process_index() == 0:
            base = config.policy.source.removeprefix('hf:')
            peft.save(soup, policy.cfg, base, ctx.workdir.parent / parts.MERGED / name, config.policy.lora.dropout)
        return [{'combination': name, 'weights': list(weights)}], host, {'sources': float(len(weights))}

    return piecework.make(ctx, len(combinations), work, 'merge', lambda records: Evaluation({'rows': len(records)}))


def soup_weights(config: Config, n: int) -> tuple[float, ...]:
    """Raises ValueError where `merge.weights` are not those of `n` dimensions."""
    weights = tuple(config.merge.weights) or (1.0 / n,) * n
    numbers = all(isinstance(each, int | float) for each in weights)
    if not numbers or len(weights) != n or not abs(sum(weights) - 1.0) <= 1e-6:
        raise ValueError(f'merge.weights={weights} must be a number for each of {n} dimensions, with sum 1')
    return weights


@jax.jit
def whole(adapters: Params, base: Params) -> Params:
    """Plain weights that compute what the base does with these adapters."""
    return lora.merge(lora.join(adapters, base))
