"""Functions that configuration files share: they parse variants and make the small runs that try everything out."""

from __future__ import annotations

from ml_collections import ConfigDict

from pal_jax.learners.ppo import PPO
from pal_jax.models.files.sources import EMBEDDED
from pal_jax.run.optim import Optimizer
from pal_jax.run.settings import to_config
from pal_jax.types import Sampling

__all__ = ['EMBEDDED', 'PPO', 'Optimizer', 'Sampling', 'parse_stage', 'parse_variant', 'smoke_rows', 'to_config']


def parse_variant(text: str, *variants: str) -> str:
    """The variant behind the colon of `--config=configs/x.py:variant`; '' is the default.

    Raises:
      ValueError: the file does not have the variant.
    """
    if text and text not in variants:
        raise ValueError(f'variant {text!r} is unknown; use one of {", ".join(variants)}, or none')
    return text


def parse_stage(text: str, *variants: str) -> tuple[str, dict[str, str]]:
    """The variant of `:variant,stage=policy,preference=P2A`, and the settings that follow it; each may be missing.

    Raises:
      ValueError: the file does not have the variant or a key.
    """
    parts = [part.partition('=') for part in text.split(',')]
    settings = {key: value for key, equals, value in parts if equals}
    if unknown := [key for key in settings if key not in ('stage', 'preference')]:
        raise ValueError(f'{unknown[0]}= in variant {text!r} is unknown; use stage=... and preference=...')
    return parse_variant(','.join(key for key, equals, _ in parts if not equals), *variants), settings


def smoke_rows(config: ConfigDict) -> ConfigDict:
    """Change a config to a random tiny model and a few rows. Where an oracle makes the data, it has few people."""
    config.update(
        total_steps=6,
        policy=dict(source='random:tiny', dtype='float32'),
        optimizer=dict(lr=1e-3),
        data=dict(batch_size=4, test_rows=3),
        checkpoint=dict(every=2),
    )
    if 'oracle' in config:
        config.update(oracle=dict(people=8, rounds=2))
    return config
