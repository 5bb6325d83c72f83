r"""Personalized Soups: a policy for each preference, merged for each combination of them (arXiv 2310.11564).

  python -m pal_jax.train --config=configs/psoups.py            # all stages, three dimensions; the same again resumes
  python -m pal_jax.train --config=configs/psoups.py:quick      # two dimensions, too few steps to learn much
  python -m pal_jax.train --config=configs/psoups.py:smoke      # a random tiny model, one dimension, nothing learnt
  python -m pal_jax.train --config=configs/psoups.py:stage=policy,preference=P2A     # one stage, after those before it

Stages, each in a folder of its own: rollout, annotate, reward, rlhf, multitask, morl, policy, merge, evaluate.
Any value can be changed: --config.preferences=mine.yaml --config.annotate.annotator=rule; --help lists the keys.
"""

from ml_collections import ConfigDict

from pal_jax.learners.ppo import PPO
from pal_jax.learners.training import Lora
from pal_jax.recipes.psoups.settings import MultitaskSettings, RewardSettings, Settings
from pal_jax.recipes.reward import PairSettings
from pal_jax.run import presets as p
from pal_jax.run.language import DecodeSettings, ModelSettings, RowSettings
from pal_jax.run.optim import Optimizer
from pal_jax.run.settings import to_config
from pal_jax.types import Sampling


def get_config(variant: str = '') -> ConfigDict:
    variant, chosen = p.parse_stage(variant, 'quick', 'smoke', 'paper')
    config = to_config(
        Settings(
            recipe='psoups',
            stage=chosen.get('stage', 'all'),
            preference=chosen.get('preference', ''),
            total_steps=4,  # of each PPO
            export=False,  # 9 policies; python -m pal_jax.export --workdir=.../policy-P2A writes one
            policy=ModelSettings(scan_layers=True, lora=Lora(rank=16, alpha=32.0)),  # many short stages
            sampling=Sampling(temperature=0.7, max_tokens=24),  # at 1 the embedded model hardly makes sense
            decode=DecodeSettings(slots=128),
            optimizer=Optimizer(lr=1e-3, warmup_ratio=0.0),  # few steps: none of them at rate 0
            critic=Optimizer(lr=1e-3),
            ppo=PPO(
                estimator='group_norm', kl_in='loss', kl_estimator='k3', kl_coef=0.05, row_tokens=320, micro_rows=1,
                old_logprobs='sampler',
            ),
            reward=RewardSettings(
                total_steps=20,
                optimizer=Optimizer(lr=3e-3),
                policy=ModelSettings(scan_layers=True, lora=Lora(rank=8, alpha=32.0)),
                # Of few pairs more is learnt by the scores of all tokens of a reply than by that of the last. A row a
                # step is one program to compile, where two rows would make several.
                data=PairSettings(batch_size=2, pooling='mean', row_tokens=304, micro_rows=1),
            ),
            multitask=MultitaskSettings(
                total_steps=8, optimizer=Optimizer(lr=3e-4), data=RowSettings(batch_size=16, row_tokens=512)
            ),
        )
    )  # fmt: skip
    config.reward.data.replies = config.rollout.get_oneway_ref('answers')
    config.reward.policy.source = config.policy.get_oneway_ref('source')  # another model, if it is named by itself
    return {'quick': quick, 'smoke': smoke, 'paper': paper}[variant](config) if variant else config


def quick(config: ConfigDict) -> ConfigDict:
    """Two dimensions that need no library."""
    config.poles = 'P2A,P2B,P3A,P3B'
    config.prompts.update(train_count=48, test_count=8)
    config.sampling.max_tokens = 20
    config.total_steps = 2
    config.reward.total_steps = config.multitask.total_steps = 4
    config.multitask.data.batch_size = 8
    config.rl.update(rollout_batch_size=2, test_count=2)
    config.rollout.prompts = 16
    config.annotate.test_share = 0.2
    config.evaluate.update(draws=1, front_weights=(0.0, 0.5, 1.0), front_prompts=8)
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    """A random tiny model; one dimension, for what it babbles has no register."""
    config = quick(config)
    config.poles = 'P2A,P2B'
    config.policy.source = 'random:tiny'
    config.policy.dtype = config.reward.policy.dtype = 'float32'
    config.policy.lora.rank = config.reward.policy.lora.rank = 2
    config.prompts.update(train_count=16, test_count=3)
    config.sampling.max_tokens = 16
    config.reward.total_steps = config.multitask.total_steps = 2
    config.reward.data.batch_size = config.multitask.data.batch_size = 4
    config.rollout.update(prompts=0, answers=2, batch_size=24)
    config.rl.n_samples_per_prompt = 2
    config.annotate.test_share = 0.25
    config.decode.slots = 8
    config.checkpoint.every = 2
    return config


def paper(config: ConfigDict) -> ConfigDict:
    """The published settings where there is one (psoups I.2); give the prompts with --config.prompts.train."""
    # Tulu-7B itself is published as a difference from LLaMA's weights.
    config.policy.source = 'hf:allenai/tulu-2-7b'
    config.policy.remat = config.reward.policy.remat = 'full'
    config.policy.lora.update(targets='attn/(q|v)', dropout=0.05)
    config.rollout.update(prompts=0, answers=2, batch_size=128)
    config.reward.policy.lora.targets = 'attn/(q|v)'
    config.reward.optimizer = to_config(Optimizer(lr=2e-5, weight_decay=0.001))
    config.reward.total_steps = 0  # one pass
    config.reward.data.update(batch_size=8, micro_rows=2, max_length=2048)  # two answers of 512 tokens
    config.multitask.optimizer = to_config(Optimizer(lr=1e-5, warmup_ratio=0.1, min_ratio=1.0, weight_decay=0.05))
    config.multitask.data.row_tokens = 1024
    config.multitask.total_steps = 1000
    config.eval.base = True
    config.prompts.test_count = 50
    config.reward.data.pooling = 'last'
    config.sampling.update(temperature=1.0, max_tokens=512)
    config.total_steps = 156
    config.optimizer = to_config(Optimizer(lr=1.4e-5, warmup_ratio=0.0, min_ratio=1.0))
    config.critic = to_config(Optimizer(lr=1.4e-5, warmup_ratio=0.0, min_ratio=1.0))
    config.ppo = to_config(
        PPO(
            estimator='gae', kl_coef=0.2, kl_target=6.0, kl_target_per='sample', kl_horizon=10_000, epochs=8,
            early_stop_kl=0.1, reward_clip=(-1e9, 1e9), loss_agg='token_mean', micro_rows=8,
        )
    )  # fmt: skip
    config.rl.update(rollout_batch_size=64, n_samples_per_prompt=1, scale_scores=True)
    config.decode.update(slots=256, stride=8)
    return config
