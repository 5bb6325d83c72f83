r"""Reinforcement learning on your own prompts and rewards: GRPO by default; ppo.estimator has RLOO, REINFORCE and PPO.

  pal-jax train --config=rl                                            # sums of two numbers, for a first look
  pal-jax train --config=rl --config.prompts.train=prompts.jsonl \
    --config.reward.function=my_rewards.py:score                       # a reward for each answer of your own prompts
  pal-jax train --config=rl --config.ppo.estimator=rloo
  pal-jax train --config=rl:control                                    # the control: rewards go to answers at random
  pal-jax train --config=rl:smoke                                      # a random tiny model, 1 to 3 minutes
"""

from pal_jax.learners.training import Lora
from pal_jax.recipes.rl.settings import Settings
from pal_jax.run import presets as p
from pal_jax.run.language import ModelSettings


def get_config(variant: str = '') -> Settings:
    variant = p.parse_variant(variant, 'control', 'smoke')
    settings = Settings(
        recipe='rl',
        total_steps=30,
        policy=ModelSettings(lora=Lora(rank=16, alpha=32.0)),
        optimizer=p.Optimizer(lr=3e-4, warmup_ratio=0.05, min_ratio=1.0),
        critic=p.Optimizer(lr=3e-4),
        ppo=p.PPO(estimator='group_norm', kl_coef=0.0, row_tokens=512, micro_rows=1, old_logprobs='sampler'),
        sampling=p.Sampling(temperature=1.0, max_tokens=12),  # enough for sums; give more for your own prompts
    )
    return {'control': control, 'smoke': smoke}[variant](settings) if variant else settings


def control(settings: Settings) -> Settings:
    """The control, of which a policy can learn no rule: what rises all the same is chance."""
    return p.changed(settings, reward=dict(shuffled=True))


def smoke(settings: Settings) -> Settings:
    """A random tiny model and two steps."""
    return p.changed(
        settings,
        total_steps=2,
        policy=dict(source='random:tiny', dtype='float32', lora=dict(rank=2)),
        sampling=dict(max_tokens=8),
        rl=dict(rollout_batch_size=2, n_samples_per_prompt=2),
        prompts=dict(test_count=3),
        decode=dict(slots=4),
        checkpoint=dict(every=1),
    )
