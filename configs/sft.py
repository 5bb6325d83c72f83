r"""Supervised fine-tuning on chats: every token that the assistant says, and no other.

python -m pal_jax.train --config=configs/sft.py                                # the oracle's answers, RLPA's baseline
python -m pal_jax.train --config=configs/sft.py --config.data.train=chats.jsonl
python -m pal_jax.train --config=configs/sft.py:smoke                          # a random tiny model, under a minute
python -m pal_jax.train --config=configs/sft.py:paper                          # the baseline of RLPA's paper
"""

from ml_collections import ConfigDict

from pal_jax import presets as p


def get_config(variant: str = '') -> ConfigDict:
    variant = p.parse_variant(variant, 'smoke', 'paper')
    config = p.base(recipe='sft', total_steps=0)  # 0: data.epochs passes over the rows
    config.policy = p.policy(p.EMBEDDED)
    config.optimizer = p.adamw(lr=5e-5)
    config.data = p.rows(batch_size=16)
    config.max_z_coef = 0.0  # how much the squares of the largest logits count (Baichuan 2: 2e-4)
    config.oracle = p.oracle()
    config.eval = dict(
        every=0,  # steps; 0: none in between
        base=True,  # before the first one, too
    )
    return {'': lambda: config, 'smoke': lambda: p.smoke_rows(config), 'paper': lambda: paper(config)}[variant]()


def paper(config: ConfigDict) -> ConfigDict:
    """The appendix of arXiv 2505.15456; give its rows with --config.data.train."""
    config.policy.source = 'hf:Qwen/Qwen2.5-3B-Instruct'
    config.policy.remat = 'full'
    config.optimizer = p.adamw(lr=1e-5)
    config.data.batch_size = 32
    config.data.max_length = 4096
    return config
