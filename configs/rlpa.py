r"""RLPA: multi-turn PPO that learns its user's profile while talking (arXiv 2505.15456).

  pal-jax train --config=rlpa                                 # SmolLM2-135M and scripted users: learns on two CPU cores
  pal-jax train --config=rlpa:smoke                           # a random tiny model, 1 to 3 minutes
  pal-jax train --config=rlpa:paper                           # Qwen2.5-3B-Instruct, the published settings

Any value can be changed: --config.ppo.kl_coef=0.1 --config.dialogue.profiles=people.jsonl; --help lists the keys.
"""

from pal_jax.recipes.rlpa import recipe as rlpa
from pal_jax.recipes.rlpa.settings import DialogueEvaluationSettings, DialogueSettings
from pal_jax.recipes.rlpa.turns import WarmupSettings
from pal_jax.run import presets as p


def get_config(variant: str = '') -> rlpa.Settings:
    variant = p.parse_variant(variant, 'smoke', 'paper')
    settings = rlpa.Settings(
        recipe='rlpa',
        total_steps=24,  # of PPO; those of the warm-up come before
        optimizer=p.Optimizer(lr=3e-5, warmup_ratio=0.1),
        critic=p.Optimizer(lr=9e-6),
        warmup=WarmupSettings(steps=24, rows=8, examples_per_row=1, examples=160, optimizer=p.Optimizer(lr=1e-4)),
        ppo=p.PPO(
            estimator='group_norm',
            kl_in='loss',
            kl_estimator='k3',
            kl_coef=0.05,
            negative_scale=0.2,
            micro_rows=1,
            row_tokens=640,
            old_logprobs='sampler',
        ),
        dialogue=DialogueSettings(n_samples_per_prompt=8, learnt_per_prompt=3, share_alike=True),
        eval=DialogueEvaluationSettings(base=False),
        sampling=p.Sampling(temperature=0.7, max_tokens=72, stop=('</response>',)),
    )
    return {'smoke': smoke, 'paper': paper}[variant](settings) if variant else settings


def smoke(settings: rlpa.Settings) -> rlpa.Settings:
    return p.changed(
        settings,
        policy=dict(source='random:tiny', dtype='float32'),
        total_steps=6,
        warmup=dict(steps=4, rows=2, examples_per_row=2, examples=16, optimizer=dict(lr=3e-3)),
        sampling=dict(max_tokens=32),
        dialogue=dict(people=8, max_rounds=2, rollout_batch_size=4, round_batch_size=4),
        decode=dict(slots=16),
        eval=dict(people=4),
        checkpoint=dict(every=2),
    )


def paper(settings: rlpa.Settings) -> rlpa.Settings:
    """Section 4 and the appendix of the paper; people and users stay scripted until endpoints are chosen."""
    return p.changed(
        settings,
        seed=42,
        checkpoint=dict(keep=3),
        policy=dict(source='hf:Qwen/Qwen2.5-3B-Instruct', remat='full'),
        total_steps=150,
        optimizer=p.Optimizer(lr=5e-7),
        warmup=dict(steps=0),
        ppo=p.PPO(estimator='gae', minibatches=8, micro_rows=32, loss_agg='token_mean'),
        sampling=p.Sampling(max_tokens=4096),
        dialogue=dict(
            people=3840, facts=10, max_rounds=10, rollout_batch_size=256, round_batch_size=256, p_spontaneous=0.3,
            max_samples=10_000_000, prompt_max_len=4096, n_samples_per_prompt=4, learnt_per_prompt=0, share_alike=False,
        ),
        reward=dict(response='strict', min_std=1e-3),
        decode=dict(slots=256, stride=8),
        eval=dict(people=74, base=True),
    )  # fmt: skip
