r"""Direct preference optimisation on pairs of answers (arXiv 2305.18290).

  python -m pal_jax.train --config=configs/dpo.py                                # the oracle's answers and worse ones
  python -m pal_jax.train --config=configs/dpo.py --config.data.train=pairs.jsonl --config.dpo.loss=ipo
  python -m pal_jax.train --config=configs/dpo.py:smoke                          # a random tiny model, under a minute
  python -m pal_jax.train --config=configs/dpo.py:paper                          # the baseline of RLPA's paper

RLPA's baseline: the best against the worst of n samples of a policy that writes the format:

  python -m pal_jax.collect --config=configs/rlpa.py --source=orbax:runs/sft --output=pairs.jsonl
  python -m pal_jax.train --config=configs/dpo.py --config.policy.source=orbax:runs/sft --config.data.train=pairs.jsonl
"""

from ml_collections import ConfigDict

from pal_jax.recipes import dpo
from pal_jax.run import presets as p
from pal_jax.run.language import RowSettings


def get_config(variant: str = '') -> ConfigDict:
    variant = p.parse_variant(variant, 'smoke', 'paper')
    config = p.to_config(
        dpo.Settings(
            recipe='dpo',
            total_steps=0,  # 0: data.epochs passes over the rows
            optimizer=p.Optimizer(lr=5e-6),
            data=RowSettings(batch_size=16),
        )
    )
    return {'': lambda: config, 'smoke': lambda: p.smoke_rows(config), 'paper': lambda: paper(config)}[variant]()


def paper(config: ConfigDict) -> ConfigDict:
    """The appendix of arXiv 2505.15456; give its rows with --config.data.train."""
    config.policy.source = 'hf:Qwen/Qwen2.5-3B-Instruct'
    config.policy.remat = 'full'
    config.dpo.beta = 0.01
    config.data.batch_size = 32
    config.data.max_length = 4096
    return config
