r"""Moderation (BeaverTails, Ji et al. 2023): a decoder that says which of 14 kinds of harm an answer to a question has.

pal-jax train --config=moderation                                               # made-up, mild questions and answers
pal-jax train --config=moderation --config.data.train=train.jsonl --config.data.test=test.jsonl
pal-jax train --config=moderation:paper --config.data.train=train.jsonl                          # of BeaverTails
pal-jax train --config=moderation:smoke                                         # a random tiny model, 1 to 3 minutes
"""

from pal_jax.data.safety import SafetyRows
from pal_jax.learners.training import Lora
from pal_jax.recipes.scorer import moderation
from pal_jax.recipes.scorer.moderation import LabelSettings
from pal_jax.run import presets as p
from pal_jax.run.language import ModelSettings


def get_config(variant: str = '') -> moderation.Settings:
    variant = p.parse_variant(variant, 'smoke', 'paper')
    settings = moderation.Settings(
        recipe='scorer.moderation',
        total_steps=32,  # 512 of the answers; 0: data.epochs passes over them
        policy=ModelSettings(lora=Lora(rank=8)),
        optimizer=p.Optimizer(lr=3e-3),
        data=SafetyRows(batch_size=16, test_rows=168, row_tokens=512),
        labels=LabelSettings(validation=84),
    )
    return {'smoke': smoke, 'paper': paper}[variant](settings) if variant else settings


def smoke(settings: moderation.Settings) -> moderation.Settings:
    """A random tiny model and a few answers."""
    return p.changed(
        settings,
        total_steps=6,
        policy=dict(source='random:tiny', dtype='float32', lora=dict(rank=0)),
        optimizer=dict(lr=1e-3),
        data=dict(batch_size=8, dilemmas=28, test_rows=42),
        labels=dict(validation=21),
        checkpoint=dict(every=2),
    )


def paper(settings: moderation.Settings) -> moderation.Settings:
    """A model of 7B parameters, of the LLaMA family as the paper's, with a chat template, and BeaverTails itself: give
    `data.train` and `data.test`. The paper does not publish its settings of training in detail; rate, passes and batch
    are a usual start."""
    return p.changed(
        settings,
        total_steps=0,
        policy=dict(source='hf:allenai/tulu-2-7b', remat='full', lora=dict(rank=0)),
        optimizer=dict(lr=2e-5),
        data=dict(epochs=3.0, batch_size=64, max_length=1024, row_tokens=2048, test_rows=3000),
        labels=dict(validation=3000),
        checkpoint=dict(every=200),
    )
