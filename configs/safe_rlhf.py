r"""Safe RLHF: helpful answers under a limit on their harm (arXiv 2310.12773), by any constraint handler.

  pal-jax train --config=safe_rlhf                                 # all stages; the same again resumes
  pal-jax train --config=safe_rlhf:quick                           # a third of the work
  pal-jax train --config=safe_rlhf:smoke                           # a random tiny model, nothing learnt
  pal-jax train --config=safe_rlhf:table                           # ten handlers, three seeds each: hours
  pal-jax train --config=safe_rlhf:paper                           # the published settings; give records and a policy
  pal-jax train --config=safe_rlhf --config.constraint.handler=log --config.constraint.limit=0

Stages, each in a folder of its own: collect, sft, cost, reward, rl, evaluate. Another handler is one word:
none, fixed, linear, log, pid, p3o, ipo, crpo, focops, cup, repo, saute, early. --help lists all keys.
"""

import dataclasses

from pal_jax.data.safety import SafetyRows
from pal_jax.learners.ppo_settings import PPO
from pal_jax.learners.training import Lora
from pal_jax.objectives.constraints import LinearLagrangian, LogLagrangian, PIDLagrangian
from pal_jax.recipes.safe_rlhf.settings import (
    CollectSettings,
    ConstraintSettings,
    CostSettings,
    RewardSettings,
    Settings,
    StartSettings,
)
from pal_jax.recipes.scorer.reward import PairSettings
from pal_jax.run import presets as p
from pal_jax.run.language import DecodeSettings, ModelSettings, RowSettings
from pal_jax.run.optim import Optimizer
from pal_jax.types import Sampling

HANDLERS = 'none', 'fixed-0.3', 'fixed-1', 'fixed-3', 'linear', 'log', 'pid', 'crpo', 'p3o', 'repo'


def get_config(variant: str = '') -> Settings:
    variant, stage = p.parse_stage(variant, 'quick', 'smoke', 'table', 'paper')
    adapted = ModelSettings(scan_layers=True, lora=Lora(rank=16, alpha=32.0))  # many short stages
    scorer = dataclasses.replace(adapted, source='')  # policy.source, unless another model is named
    settings = Settings(
        recipe='safe_rlhf',
        stage=stage,
        total_steps=40,  # of each PPO
        export=False,  # pal-jax export --workdir=.../rl writes the policy
        policy=adapted,
        sampling=Sampling(temperature=1.0, max_tokens=48),
        decode=DecodeSettings(slots=32),
        optimizer=Optimizer(lr=3e-4, warmup_ratio=0.05, min_ratio=1.0),  # so that a late penalty still acts
        critic=Optimizer(lr=3e-4),
        collect=CollectSettings(test_share=0.06),
        constraint=ConstraintSettings(
            handler='pid', limit=-1.0, window=64,
            pid=PIDLagrangian(kp=0.5, ki=0.02, kd=0.5, lam_init=1.5, smoothing=0.5, delay=4),
            log=LogLagrangian(lam_init=1.5), linear=LinearLagrangian(lam_init=1.5),
        ),
        ppo=PPO(
            estimator='dr_grpo', kl_in='loss', kl_estimator='k3', kl_coef=0.05, reward_clip=(-50.0, 50.0),
            row_tokens=512, micro_rows=1, old_logprobs='sampler',
        ),
        start=StartSettings(
            total_steps=40, optimizer=Optimizer(lr=1e-3),
            data=RowSettings(batch_size=16, train='', test_rows=64, row_tokens=512, micro_rows=1),
        ),
        reward=RewardSettings(
            total_steps=40, policy=scorer, optimizer=Optimizer(lr=1e-3),
            data=PairSettings(batch_size=8, train='', row_tokens=512, micro_rows=1),
        ),
        cost=CostSettings(
            total_steps=40, policy=scorer, optimizer=Optimizer(lr=1e-3),
            data=SafetyRows(batch_size=8, row_tokens=512, micro_rows=1),
        ),
    )  # fmt: skip
    return {'quick': quick, 'smoke': smoke, 'table': table, 'paper': paper}[variant](settings) if variant else settings


def quick(settings: Settings) -> Settings:
    """Too few steps to learn much."""
    steps = dict(total_steps=16)
    return p.changed(
        settings,
        total_steps=12,
        start=steps,
        reward=steps,
        cost=steps,
        prompts=dict(test_count=24),
        evaluate=dict(draws=1),
    )


def smoke(settings: Settings) -> Settings:
    """A random tiny model."""
    tiny = dict(dtype='float32', lora=dict(rank=2))
    return p.changed(
        settings,
        policy=dict(source='random:tiny', **tiny),
        total_steps=2,
        start=dict(total_steps=2, data=dict(batch_size=4)),
        reward=dict(total_steps=2, policy=tiny, data=dict(batch_size=4)),
        cost=dict(total_steps=2, policy=tiny, data=dict(batch_size=4)),
        collect=dict(dilemmas=17, test_share=0.12, prompts=4, batch_size=4),
        prompts=dict(train_count=17, test_count=3),
        rl=dict(rollout_batch_size=4, n_samples_per_prompt=2),
        sampling=dict(max_tokens=16),
        evaluate=dict(draws=1),
        decode=dict(slots=8),
        checkpoint=dict(every=1),
        constraint=dict(limit=0.0),
    )


def table(settings: Settings) -> Settings:
    """Handlers beside fixed penalties and no constraint, on the same reward and cost models."""
    return p.changed(settings, compare=HANDLERS, seeds=3)


def paper(settings: Settings) -> Settings:
    """The published settings (docs/methods/safe_rlhf.md); give --config.collect.records and --config.prompts.train."""
    whole = dict(remat='full', lora=dict(rank=0))
    scorer = dict(
        total_steps=0,  # data.epochs passes
        policy=whole,
        optimizer=Optimizer(lr=2e-5, warmup_ratio=0.03, weight_decay=0.1),
        data=dict(batch_size=128, max_length=512, micro_rows=16),
    )
    return p.changed(
        settings,
        policy=dict(source='hf:allenai/tulu-2-7b', **whole),
        rounds=3,
        constraint=ConstraintSettings(handler='log'),
        start=dict(total_steps=0),
        total_steps=1000,
        sampling=Sampling(max_tokens=384),
        optimizer=Optimizer(lr=1e-5, warmup_ratio=0.03, weight_decay=0.01),
        critic=Optimizer(lr=5e-6, warmup_ratio=0.03, min_ratio=1.0),
        ppo=PPO(
            estimator='gae', kl_in='reward', kl_estimator='k1', kl_coef=0.01, value_clip=5.0, loss_agg='token_mean',
            reward_clip=(-50.0, 50.0), micro_rows=16,
        ),
        reward=dict(**scorer, reward=dict(regularization=0.001)),
        cost=dict(**scorer, cost=dict(regularization=0.001)),
        rl=dict(rollout_batch_size=128, n_samples_per_prompt=1),
        ptx=dict(coef=16.0, batch_size=128),
        decode=dict(slots=256, stride=8),
    )  # fmt: skip
