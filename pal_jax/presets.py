"""Fragments of configuration files: every key a recipe reads, once, with a default that is meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from pal_jax.learners.ppo import PPO
from pal_jax.models.sources import EMBEDDED
from pal_jax.runtime.optim import Optimizer
from pal_jax.types import Sampling

__all__ = [
    'EMBEDDED',
    'adamw',
    'base',
    'endpoint',
    'oracle',
    'parse_stage',
    'parse_variant',
    'policy',
    'ppo',
    'rows',
    'sampling',
    'smoke_rows',
]


def parse_variant(text: str, *known: str) -> str:
    """The variant behind the colon of `--config=configs/x.py:variant`; '' is the default.

    Raises:
      ValueError: a variant that the file does not have.
    """
    if text and text not in known:
        raise ValueError(f'variant {text!r} is unknown; use one of {", ".join(known)}, or none')
    return text


def parse_stage(text: str, *known: str) -> tuple[str, dict[str, str]]:
    """The variant, and what follows it of `:variant,stage=policy,preference=P2A`; each of them may be missing.

    Raises:
      ValueError: a variant or a key that the file does not have.
    """
    parts = [part.partition('=') for part in text.split(',')]
    settings = {key: value for key, equals, value in parts if equals}
    if unknown := [key for key in settings if key not in ('stage', 'preference')]:
        raise ValueError(f'{unknown[0]}= in variant {text!r} is unknown; use stage=... and preference=...')
    return parse_variant(','.join(key for key, equals, _ in parts if not equals), *known), settings


def base(recipe: str, total_steps: int) -> ConfigDict:
    """What every recipe has."""
    return ConfigDict(
        {
            'recipe': recipe,
            'seed': 0,
            'total_steps': total_steps,
            'mesh': {'data': 1, 'fsdp': -1, 'tensor': 1},  # -1: all devices that are left
            'checkpoint': {'every': 10, 'minutes': 15.0, 'keep': 2},  # saved after so many steps or minutes
            'metrics': {'wandb': ''},  # a project's name
            'export': True,  # write a Hugging Face folder at the end
        }
    )


def policy(source: str) -> ConfigDict:
    """A model by its source (see `models/sources.py`) and how it is trained."""
    return ConfigDict(
        {
            'source': source,
            'dtype': 'auto',  # of matrix products: bfloat16 where the machine has it
            'remat': 'none',  # 'full' or 'dots' computes layers again in the backward pass, to save memory
            'scan_layers': False,  # on a CPU too: compiles in a quarter of the time, steps take up to a third longer
            # rank 0: all parameters. targets: patterns over paths, such as attn/(q|v),down
            'lora': {'rank': 0, 'alpha': 16.0, 'targets': 'all-linear', 'dropout': 0.0},
        }
    )


def defaults(settings: type, without: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a dataclass of settings with their defaults, but for those that come from elsewhere."""
    fields = (field for field in dataclasses.fields(settings) if field.name not in without)
    return {field.name: field.default for field in fields}


def adamw(lr: float, **changes: object) -> ConfigDict:
    """`runtime.optim.Optimizer`, whose number of steps is the run's: linear warm-up, then cosine to `min_ratio` of the
    rate."""
    return ConfigDict(defaults(Optimizer, without=['total_steps']) | {'name': 'adamw', 'lr': lr} | changes)


def sampling(*, temperature: float = 1.0, max_tokens: int = 64, stop: tuple[str, ...] = ()) -> ConfigDict:
    """`types.Sampling`; the token ids that end a completion are the tokenizer's."""
    changes = {'temperature': temperature, 'max_tokens': max_tokens, 'stop': stop}
    return ConfigDict(defaults(Sampling, without=['stop_ids']) | changes)


def endpoint(*, temperature: float, max_tokens: int) -> ConfigDict:
    """A chat model of an OpenAI-compatible server, for who is set to `endpoint:<name>`; of one that is set to
    `local:<source>` the first two and `slots` count."""
    return ConfigDict(
        {
            'temperature': temperature,
            'max_tokens': max_tokens,
            'address': '',  # http://host:port/v1
            'model': '',
            'key_env': '',  # the environment variable with the key
            'concurrency': 64,  # requests under way at once
            'timeout': 60.0,  # seconds of an attempt
            'retries': 5,
            'prompt_price': 0.0,  # of a million tokens, for the metrics
            'completion_price': 0.0,
            'slots': 16,
        }
    )


def ppo(**changes: object) -> ConfigDict:
    """`learners.ppo.PPO`, which tells what each value does; its defaults are RLPA's published values."""
    return ConfigDict(defaults(PPO, without=['ptx_coef', 'temperature']) | changes)


def rows(*, batch_size: int) -> ConfigDict:
    """What a supervised method reads (formats: `data/formats.py`) and how it is batched."""
    return ConfigDict(
        {
            'train': 'oracle',  # or recall (feedback/recall.py), or a file: .jsonl, .json, .parquet
            'test': '',  # a file, whose prompts are not learnt; '': rows of some prompts of train, a fifth at most
            'test_rows': 64,
            'max_length': 1024,  # tokens; longer rows are left out
            'epochs': 1.0,
            'batch_size': batch_size,  # rows, pairs or groups of pairs of an update
            'micro_rows': 2,  # in a device's memory at once
            'row_tokens': 1024,  # several share rows of so many tokens; 0: a row each
        }
    )


def oracle() -> ConfigDict:
    """The people, all of RLPA's training, to whom the oracle answers where `data.train` is that."""
    return ConfigDict({'people': 240, 'facts': 4, 'rounds': 3, 'p_spontaneous': 1.0})


def smoke_rows(config: ConfigDict) -> ConfigDict:
    """A random tiny model and a few of the oracle's answers."""
    config.update(
        total_steps=6,
        policy=dict(source='random:tiny', dtype='float32'),
        optimizer=dict(lr=1e-3),
        oracle=dict(people=8, rounds=2),
        data=dict(batch_size=4, test_rows=3),
        checkpoint=dict(every=2),
    )
    return config
