r"""Reward models on pairs of replies (Ouyang et al. 2022): a decoder that says how good a reply is.

pal-jax train --config=reward                                                     # right and wrong answers
pal-jax train --config=reward --config.data.train=pairs.jsonl
pal-jax train --config=reward --config.policy.lora.rank=16 --config.optimizer.lr=5e-4
pal-jax train --config=reward:smoke                                               # a random tiny model, 1 to 3 minutes
"""

from pal_jax.recipes.scorer import reward
from pal_jax.recipes.scorer.reward import PairSettings
from pal_jax.run import presets as p
from pal_jax.run.language import OracleSettings


def get_config(variant: str = '') -> reward.Settings:
    variant = p.parse_variant(variant, 'smoke')
    settings = reward.Settings(
        recipe='scorer.reward',
        total_steps=0,  # 0: data.epochs passes over the pairs
        optimizer=p.Optimizer(lr=2e-5),
        data=PairSettings(batch_size=16, train='recall', row_tokens=512),
        oracle=OracleSettings(people=120),  # with data.train='recall', four pairs of each
    )
    return p.smoke_rows(settings) if variant else settings
