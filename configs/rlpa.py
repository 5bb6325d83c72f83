r"""RLPA: multi-turn PPO that learns its user's profile while talking (arXiv 2505.15456).

  python -m pal_jax.train --config=configs/rlpa.py            # SmolLM2-135M and scripted users: learns on two CPU cores
  python -m pal_jax.train --config=configs/rlpa.py:smoke      # a random tiny model, under a minute
  python -m pal_jax.train --config=configs/rlpa.py:paper      # Qwen2.5-3B-Instruct, the published settings

Any value can be changed: --config.ppo.kl_coef=0.1 --config.dialogue.profiles=people.jsonl; --help lists the keys.
"""

from ml_collections import ConfigDict

from pal_jax.recipes.rlpa import recipe as rlpa
from pal_jax.recipes.rlpa.turns import WarmupSettings
from pal_jax.run import presets as p


def get_config(variant: str = '') -> ConfigDict:
    variant = p.parse_variant(variant, 'smoke', 'paper')
    config = p.to_config(
        rlpa.Settings(
            recipe='rlpa',
            total_steps=48,  # of PPO; those of the warm-up come before
            optimizer=p.Optimizer(lr=3e-5, warmup_ratio=0.1),
            critic=p.Optimizer(lr=9e-6),
            warmup=WarmupSettings(steps=24, rows=2, examples_per_row=4, examples=160, optimizer=p.Optimizer(lr=1e-4)),
            ppo=p.PPO(
                estimator='group_norm', kl_in='loss', kl_estimator='k3', kl_coef=0.05, negative_scale=0.2, micro_rows=2
            ),
            sampling=p.Sampling(temperature=0.7, max_tokens=72, stop=('</response>',)),
        )
    )
    return {'': lambda: config, 'smoke': lambda: smoke(config), 'paper': lambda: paper(config)}[variant]()


def smoke(config: ConfigDict) -> ConfigDict:
    config.policy.source = 'random:tiny'
    config.policy.dtype = 'float32'
    config.total_steps = 6
    config.warmup.update(steps=4, rows=2, examples_per_row=2, examples=16)
    config.warmup.optimizer.lr = 3e-3
    config.sampling.max_tokens = 32
    config.dialogue.update(people=8, max_rounds=2, rollout_batch_size=4, round_batch_size=4)
    config.decode.slots = 16
    config.eval.people = 4
    config.checkpoint.every = 2
    return config


def paper(config: ConfigDict) -> ConfigDict:
    """Section 4 and the appendix of the paper; people and users stay scripted until endpoints are chosen."""
    config.seed = 42
    config.checkpoint.keep = 3
    config.policy.source = 'hf:Qwen/Qwen2.5-3B-Instruct'
    config.policy.remat = 'full'
    config.total_steps = 150
    config.optimizer = p.to_config(p.Optimizer(lr=5e-7))
    config.warmup.steps = 0
    config.ppo = p.to_config(p.PPO(estimator='gae', minibatches=8, micro_rows=32, loss_agg='token_mean'))
    config.sampling = p.to_config(p.Sampling(max_tokens=4096))
    config.dialogue.update(
        people=3840, facts=10, max_rounds=10, rollout_batch_size=256, round_batch_size=256, p_spontaneous=0.3,
        max_samples=10_000_000, prompt_max_len=4096,
    )  # fmt: skip
    config.reward.update(response='strict', min_std=1e-3)
    config.decode.update(slots=256, stride=8)
    config.eval.people = 74
    return config
