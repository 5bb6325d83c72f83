"""Functions that configuration files share: they parse variants and make the small runs that try everything out."""

from __future__ import annotations

from typing import TypeVar

from pal_jax.learners.ppo_settings import PPO
from pal_jax.models.files.sources import EMBEDDED
from pal_jax.run.optim import Optimizer
from pal_jax.run.settings import Run, changed, filled
from pal_jax.run.stages import ALL
from pal_jax.types import Sampling

__all__ = [
    'EMBEDDED',
    'PPO',
    'Optimizer',
    'Sampling',
    'changed',
    'filled',
    'parse_stage',
    'parse_variant',
    'smoke_rows',
]

S = TypeVar('S', bound=Run)


def parse_variant(text: str, *variants: str) -> str:
    """The variant behind the colon of `--config=x:variant`; '' is the default.

    Raises:
      ValueError: the file does not have the variant.
    """
    if text and text not in variants:
        raise ValueError(f'variant {text!r} is unknown; use one of {", ".join(variants)}, or none')
    return text


def parse_stage(text: str, *variants: str) -> tuple[str, str]:
    """The variant of `:variant,stage=policy,preference=P2A`, and the stage that follows it: `policy-P2A`.

    Each of the three may be missing; without a stage all stages are meant.

    Raises:
      ValueError: the file does not have the variant or a key, or there is a preference of no stage.
    """
    parts = [part.partition('=') for part in text.split(',')]
    values = {key: value for key, equals, value in parts if equals}
    if unknown := [key for key in values if key not in ('stage', 'preference')]:
        raise ValueError(f'{unknown[0]}= in variant {text!r} is unknown; use stage=... and preference=...')
    if 'preference' in values and 'stage' not in values:
        raise ValueError(f'preference={values["preference"]!r} goes with a stage, such as stage=policy')
    variant = parse_variant(','.join(key for key, equals, _ in parts if not equals), *variants)
    return variant, '-'.join(values[key] for key in ('stage', 'preference') if values.get(key)) or ALL


def smoke_rows(settings: S) -> S:
    """Settings of a random tiny model and a few rows. Where an oracle makes the data, it has few people."""
    small = changed(
        settings,
        total_steps=6,
        policy=dict(source='random:tiny', dtype='float32'),
        optimizer=dict(lr=1e-3),
        data=dict(batch_size=4, test_rows=3),
        checkpoint=dict(every=2),
    )
    return changed(small, oracle=dict(people=8, rounds=2)) if hasattr(small, 'oracle') else small
