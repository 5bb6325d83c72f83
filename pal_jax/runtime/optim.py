"""The optimiser of every learner: clip, direction, decay, rate."""

from __future__ import annotations

import math
from typing import Any

import jax
import optax


def make_optimizer(
    name: str,
    *,
    lr: float,
    total_steps: int,
    warmup_ratio: float = 0.03,
    min_ratio: float = 0.1,
    b1: float = 0.9,
    b2: float = 0.95,
    weight_decay: float = 0.0,
    max_norm: float = 1.0,
) -> optax.GradientTransformation:
    """Clip to a global norm, scale by `name`, decay weights (decoupled, times the rate), follow `make_schedule`.

    `name` is adam (or adamw: they differ only in `weight_decay`), lion, adafactor or sgd. `max_norm=inf` clips nothing.
    """
    return optax.chain(
        optax.clip_by_global_norm(max_norm),
        _direction(name, b1, b2),
        optax.add_decayed_weights(weight_decay, mask=decays),
        optax.scale_by_learning_rate(
            make_schedule(lr=lr, total_steps=total_steps, warmup_ratio=warmup_ratio, min_ratio=min_ratio)
        ),
    )


def make_schedule(*, lr: float, total_steps: int, warmup_ratio: float = 0.03, min_ratio: float = 0.1) -> optax.Schedule:
    """Rate by update: linear from 0 to `lr` in `ceil(warmup_ratio * total_steps)`, then cosine to `min_ratio * lr`.

    The very first update has rate 0, unless it is the only one or there is no warm-up.
    """
    if total_steps < 1 or not 0.0 <= warmup_ratio < 1.0:
        raise ValueError(
            f'a schedule needs total_steps >= 1 and warmup_ratio in [0, 1), got {total_steps}, {warmup_ratio}'
        )
    warmup = min(math.ceil(warmup_ratio * total_steps), total_steps - 1)
    return optax.warmup_cosine_decay_schedule(0.0, lr, warmup, total_steps, end_value=min_ratio * lr)


def decays(params: optax.Params) -> Any:
    """Tree of bools: which leaves weight decay applies to. Norms and biases, known by their names, are spared.

    The number of axes would not tell: a stack of layers gives a norm two.
    """

    def is_weight(path: tuple[Any, ...], _: Any) -> bool:
        where = jax.tree_util.keystr(path)
        return 'norm' not in where and 'bias' not in where

    return jax.tree_util.tree_map_with_path(is_weight, params)


def _direction(name: str, b1: float, b2: float) -> optax.GradientTransformation:
    match name:
        case 'adam' | 'adamw':
            return optax.scale_by_adam(b1, b2)
        case 'lion':
            return optax.scale_by_lion(b1, b2)
        case 'adafactor':
            return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0))
        case 'sgd':
            return optax.identity()
    raise ValueError(f'unknown optimizer {name!r}; use one of adam, adamw, lion, adafactor, sgd')
