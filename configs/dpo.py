r"""Direct preference optimisation on pairs of answers (arXiv 2305.18290).

  pal-jax train --config=dpo                                                     # the oracle's answers and worse ones
  pal-jax train --config=dpo --config.data.train=pairs.jsonl --config.dpo.loss=ipo
  pal-jax train --config=dpo:smoke                                               # a random tiny model, 1 to 3 minutes
  pal-jax train --config=dpo:paper                                               # the baseline of RLPA's paper

RLPA's baseline: the best against the worst of n samples of a policy that writes the format:

  pal-jax collect --config=rlpa --source=orbax:runs/sft --output=pairs.jsonl
  pal-jax train --config=dpo --config.policy.source=orbax:runs/sft --config.data.train=pairs.jsonl
"""

from pal_jax.recipes import dpo
from pal_jax.run import presets as p
from pal_jax.run.language import RowSettings, SampleSettings


def get_config(variant: str = '') -> dpo.Settings:
    variant = p.parse_variant(variant, 'smoke', 'paper')
    settings = dpo.Settings(
        recipe='dpo',
        total_steps=0,  # 0: data.epochs passes over the rows
        optimizer=p.Optimizer(lr=5e-6),
        data=RowSettings(batch_size=16),
        samples=SampleSettings(count=3),  # the report shows them before and after training
    )
    return {'smoke': p.smoke_rows, 'paper': paper}[variant](settings) if variant else settings


def paper(settings: dpo.Settings) -> dpo.Settings:
    """The appendix of arXiv 2505.15456; give its rows with --config.data.train."""
    return p.changed(
        settings,
        policy=dict(source='hf:Qwen/Qwen2.5-3B-Instruct', remat='full'),
        dpo=dict(beta=0.01),
        data=dict(batch_size=32, max_length=4096),
    )
