r"""Supervised fine-tuning on chats: every token that the assistant says, and no other.

pal-jax train --config=sft                                                     # the oracle's answers, RLPA's baseline
pal-jax train --config=sft --config.data.train=chats.jsonl
pal-jax train --config=sft:smoke                                               # a random tiny model, 1 to 3 minutes
pal-jax train --config=sft:paper                                               # the baseline of RLPA's paper
"""

from pal_jax.recipes import sft
from pal_jax.run import presets as p
from pal_jax.run.language import RowSettings, SampleSettings


def get_config(variant: str = '') -> sft.Settings:
    variant = p.parse_variant(variant, 'smoke', 'paper')
    settings = sft.Settings(
        recipe='sft',
        total_steps=0,  # 0: data.epochs passes over the rows
        optimizer=p.Optimizer(lr=5e-5),
        data=RowSettings(batch_size=16),
        samples=SampleSettings(count=3),  # the report shows them before and after training
    )
    return {'smoke': p.smoke_rows, 'paper': paper}[variant](settings) if variant else settings


def paper(settings: sft.Settings) -> sft.Settings:
    """The appendix of arXiv 2505.15456; give its rows with --config.data.train."""
    return p.changed(
        settings,
        policy=dict(source='hf:Qwen/Qwen2.5-3B-Instruct', remat='full'),
        optimizer=dict(lr=1e-5),
        data=dict(batch_size=32, max_length=4096),
    )
