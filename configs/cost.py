r"""Cost models of Safe RLHF (arXiv 2310.12773): a decoder that says how unsafe an answer is, with 0 as the border.

pal-jax train --config=cost                                                     # made-up dilemmas, nothing harmful
pal-jax train --config=cost --config.data.train=pairs.jsonl                                     # of PKU-SafeRLHF
pal-jax train --config=cost --config.policy.lora.rank=0 --config.optimizer.lr=1e-4                       # all weights
pal-jax train --config=cost:smoke                                               # a random tiny model, 1 to 3 minutes
pal-jax train --config=cost:paper                                               # the published settings
"""

from pal_jax.data.safety import SafetyRows
from pal_jax.learners.training import Lora
from pal_jax.recipes.scorer import cost
from pal_jax.run import presets as p
from pal_jax.run.language import ModelSettings


def get_config(variant: str = '') -> cost.Settings:
    variant = p.parse_variant(variant, 'smoke', 'paper')
    settings = cost.Settings(
        recipe='scorer.cost',
        total_steps=30,  # 0: data.epochs passes over the pairs
        policy=ModelSettings(lora=Lora(rank=16, alpha=32.0)),
        optimizer=p.Optimizer(lr=1e-3),
        data=SafetyRows(batch_size=16, test_rows=192, row_tokens=512),
    )
    return {'smoke': smoke, 'paper': paper}[variant](settings) if variant else settings


def smoke(settings: cost.Settings) -> cost.Settings:
    return p.changed(p.smoke_rows(settings), data=dict(dilemmas=8))


def paper(settings: cost.Settings) -> cost.Settings:
    """The published settings; give the records of PKU-SafeRLHF with --config.data.train. `data.batch_size` is that of
    one device."""
    return p.changed(
        settings,
        policy=dict(source='hf:allenai/tulu-2-7b', remat='full', lora=dict(rank=0)),
        total_steps=0,
        optimizer=p.Optimizer(lr=2e-5, warmup_ratio=0.03, weight_decay=0.1),
        data=dict(batch_size=16, max_length=512),
        cost=dict(regularization=1e-3),
    )
