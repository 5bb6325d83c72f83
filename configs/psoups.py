r"""Personalized Soups: a policy for each preference, merged for each combination of them (arXiv 2310.11564).

  pal-jax train --config=psoups                                 # all stages, three dimensions; the same again resumes
  pal-jax train --config=psoups:quick                           # two dimensions, too few steps to learn much
  pal-jax train --config=psoups:smoke                           # a random tiny model, one dimension, nothing learnt
  pal-jax train --config=psoups:stage=policy,preference=P2A                          # one stage, after those before it

Stages, each in a folder of its own: rollout, annotate, reward, rlhf, multitask, morl, policy, merge, evaluate.
Any value can be changed: --config.preferences=mine.yaml --config.annotate.annotator=rule; --help lists the keys.
"""

from pal_jax.learners.ppo_settings import PPO
from pal_jax.learners.training import Lora
from pal_jax.recipes.psoups.settings import MultitaskSettings, PoleRewardSettings, Settings
from pal_jax.recipes.scorer.reward import PairSettings
from pal_jax.run import presets as p
from pal_jax.run.language import DecodeSettings, ModelSettings, RowSettings
from pal_jax.run.optim import Optimizer
from pal_jax.types import Sampling


def get_config(variant: str = '') -> Settings:
    variant, stage = p.parse_stage(variant, 'quick', 'smoke', 'paper')
    settings = Settings(
        recipe='psoups',
        stage=stage,
        total_steps=4,  # of each PPO
        export=False,  # 9 policies; pal-jax export --workdir=.../policy-P2A writes one
        policy=ModelSettings(scan_layers=True, lora=Lora(rank=16, alpha=32.0)),  # many short stages
        sampling=Sampling(temperature=0.7, max_tokens=24),  # at 1 the embedded model hardly makes sense
        decode=DecodeSettings(slots=128),
        optimizer=Optimizer(lr=1e-3, warmup_ratio=0.0),  # few steps: none of them at rate 0
        critic=Optimizer(lr=1e-3),
        ppo=PPO(
            estimator='group_norm', kl_in='loss', kl_estimator='k3', kl_coef=0.05, row_tokens=320, micro_rows=1,
            old_logprobs='sampler',
        ),
        reward=PoleRewardSettings(
            total_steps=20,
            optimizer=Optimizer(lr=3e-3),
            # The source '' is policy.source, unless another model is named.
            policy=ModelSettings(source='', scan_layers=True, lora=Lora(rank=8, alpha=32.0)),
            # Of few pairs more is learnt by the scores of all tokens of a reply than by that of the last. A row a
            # step is one program to compile, where two rows would make several. Replies 0 are those of rollout.answers.
            data=PairSettings(batch_size=2, replies=0, pooling='mean', row_tokens=304, micro_rows=1),
        ),
        multitask=MultitaskSettings(
            total_steps=8, optimizer=Optimizer(lr=3e-4), data=RowSettings(batch_size=16, row_tokens=512)
        ),
    )  # fmt: skip
    return {'quick': quick, 'smoke': smoke, 'paper': paper}[variant](settings) if variant else settings


def quick(settings: Settings) -> Settings:
    """Two dimensions that need no library."""
    return p.changed(
        settings,
        poles='P2A,P2B,P3A,P3B',
        prompts=dict(train_count=48, test_count=8),
        sampling=dict(max_tokens=20),
        total_steps=2,
        reward=dict(total_steps=4),
        multitask=dict(total_steps=4, data=dict(batch_size=8)),
        rl=dict(rollout_batch_size=2, test_count=2),
        rollout=dict(prompts=16),
        annotate=dict(test_share=0.2),
        evaluate=dict(draws=1, front_weights=(0.0, 0.5, 1.0), front_prompts=8),
    )


def smoke(settings: Settings) -> Settings:
    """A random tiny model; one dimension, for what it babbles has no register."""
    tiny = dict(dtype='float32', lora=dict(rank=2))
    return p.changed(
        quick(settings),
        poles='P2A,P2B',
        policy=dict(source='random:tiny', **tiny),
        prompts=dict(train_count=16, test_count=3),
        sampling=dict(max_tokens=16),
        reward=dict(total_steps=2, policy=tiny, data=dict(batch_size=4)),
        multitask=dict(total_steps=2, data=dict(batch_size=4)),
        rollout=dict(prompts=0, answers=2, batch_size=24),
        rl=dict(n_samples_per_prompt=2),
        annotate=dict(test_share=0.25),
        decode=dict(slots=8),
        checkpoint=dict(every=2),
    )


def paper(settings: Settings) -> Settings:
    """The published settings where there is one (psoups I.2); give the prompts with --config.prompts.train."""
    rate = Optimizer(lr=1.4e-5, warmup_ratio=0.0, min_ratio=1.0)
    return p.changed(
        settings,
        # Tulu-7B itself is published as a difference from LLaMA's weights.
        policy=dict(source='hf:allenai/tulu-2-7b', remat='full', lora=dict(targets='attn/(q|v)', dropout=0.05)),
        rollout=dict(prompts=0, answers=2, batch_size=128),
        reward=dict(
            total_steps=0,  # one pass
            policy=dict(remat='full', lora=dict(targets='attn/(q|v)')),
            optimizer=Optimizer(lr=2e-5, weight_decay=0.001),
            data=dict(batch_size=8, micro_rows=2, max_length=2048, pooling='last'),  # two answers of 512 tokens
        ),
        multitask=dict(
            total_steps=1000,
            optimizer=Optimizer(lr=1e-5, warmup_ratio=0.1, min_ratio=1.0, weight_decay=0.05),
            data=dict(row_tokens=1024),
        ),
        eval=dict(base=True),
        prompts=dict(test_count=50),
        sampling=dict(temperature=1.0, max_tokens=512),
        total_steps=156,
        optimizer=rate,
        critic=rate,
        ppo=PPO(
            estimator='gae', kl_coef=0.2, kl_target=6.0, kl_target_per='sample', kl_horizon=10_000, epochs=8,
            early_stop_kl=0.1, reward_clip=(-1e9, 1e9), loss_agg='token_mean', micro_rows=8,
        ),
        rl=dict(rollout_batch_size=64, n_samples_per_prompt=1, scale_scores=True),
        decode=dict(slots=256, stride=8),
    )  # fmt: skip
