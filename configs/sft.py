r"""Supervised fine-tuning on chats: every token that the assistant says, and no other.

python -m pal_jax.train --config=configs/sft.py                                # the oracle's answers, RLPA's baseline
python -m pal_jax.train --config=configs/sft.py --config.data.train=chats.jsonl
python -m pal_jax.train --config=configs/sft.py:smoke                          # a random tiny model, under a minute
python -m pal_jax.train --config=configs/sft.py:paper                          # the baseline of RLPA's paper
"""

from ml_collections import ConfigDict

from pal_jax.recipes import sft
from pal_jax.run import presets as p
from pal_jax.run.language import RowSettings


def get_config(variant: str = '') -> ConfigDict:
    variant = p.parse_variant(variant, 'smoke', 'paper')
    config = p.to_config(
        sft.Settings(
            recipe='sft',
            total_steps=0,  # 0: data.epochs passes over the rows
            optimizer=p.Optimizer(lr=5e-5),
            data=RowSettings(batch_size=16),
        )
    )
    return {'': lambda: config, 'smoke': lambda: p.smoke_rows(config), 'paper': lambda: paper(config)}[variant]()


def paper(config: ConfigDict) -> ConfigDict:
    """The appendix of arXiv 2505.15456; give its rows with --config.data.train."""
    config.policy.source = 'hf:Qwen/Qwen2.5-3B-Instruct'
    config.policy.remat = 'full'
    config.optimizer.lr = 1e-5
    config.data.batch_size = 32
    config.data.max_length = 4096
    return config
