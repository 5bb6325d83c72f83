r"""PLUS: summaries of people learnt by reinforcement, with the reward model that reads them (arXiv 2507.13579).

  python -m pal_jax.train --config=configs/plus.py               # SmolLM2-135M as both, people who like dogs or cats
  python -m pal_jax.train --config=configs/plus.py:table         # three seeds of it and of all it is compared with
  python -m pal_jax.train --config=configs/plus.py:smoke         # random tiny models
  python -m pal_jax.train --config=configs/plus.py --config.reads=context     # a baseline, see `reads` of the settings
  python -m pal_jax.train --config=configs/plus.py --config.data=histories.jsonl # your own (pal_jax/data/histories.py)
  python -m pal_jax.train --config=configs/plus.py:people --config.data=votes:data/taxes     # the table, of real people

Any value can be changed: --config.ppo.kl_coef=0.05 --config.reward_model.train=False. The keys, what they mean and
their defaults: pal_jax/recipes/plus/settings.py for people, summaries and the reward model, pal_jax/learners/ppo.py for
PPO, pal_jax/run/settings.py and run/language.py for all else. A run writes all of them to its config.json.
"""

from ml_collections import ConfigDict

from pal_jax.recipes import plus
from pal_jax.run import presets as p
from pal_jax.run.language import EndpointSettings
from pal_jax.run.settings import CheckpointSettings


def get_config(variant: str = '') -> ConfigDict:
    variant = p.parse_variant(variant, 'table', 'people', 'smoke', 'paper')
    config = p.to_config(
        plus.Settings(
            recipe='plus',
            total_steps=14,
            optimizer=p.Optimizer(lr=1e-4, warmup_ratio=0.0),
            critic=p.Optimizer(lr=9e-6),
            # There is no KL to what it began as: it costs a pass a step and is of little help in a run as short;
            # --config.ppo.kl_coef=0.02 brings one.
            ppo=p.PPO(
                estimator='group_norm', std_floor=0.1, kl_coef=0.0, kl_in='loss', kl_estimator='k3', negative_scale=0.5,
                reward_clip=(-3.0, 10.0), row_tokens=384, micro_rows=1, old_logprobs='sampler',
            ),
            sampling=p.Sampling(max_tokens=16, stop=('\n', '.')),
            checkpoint=CheckpointSettings(every=20),  # they are gigabytes, of two models that learn
            endpoints={'condition': EndpointSettings(temperature=0.7, max_tokens=48)},
        )
    )  # fmt: skip
    return {'table': table, 'people': people, 'smoke': smoke, 'paper': paper}[variant](config) if variant else config


def table(config: ConfigDict) -> ConfigDict:
    """A run for each method and seed, resumed by the same command, then the table of them."""
    config.methods = 'plus,untrained,context,nothing,latent,kind,shuffled,static-summariser,static-reward-model'
    config.seeds = 3
    config.export = False
    config.checkpoint.keep = 1  # gigabytes each, of many runs
    return config


def people(config: ConfigDict) -> ConfigDict:
    """The table for people whose kinds nobody knows; give them with --config.data."""
    config = table(config)
    config.data = ''
    config.methods = config.methods.replace('kind,', '')
    config.summary.prefill = '##Summary\nThis person'
    config.history.update(told=2, taught=3, each=32)  # a choice that teaches costs little beside what is told
    config.latent.passes = 2  # more learn the people by heart
    config.hold.reward = 0.0  # what most people like is worth a reward, too, without a word read of a person
    config.sampling.max_tokens = 24
    config.hold.people = 16  # of whom more is read than of one who likes pets
    config.summary.n_samples = 4
    config.reward_model.row_tokens = 640  # two of whom fit a row
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    config.policy.source = config.reward_model.source = 'random:tiny'
    config.policy.dtype = config.reward_model.dtype = 'float32'
    config.total_steps = 4
    config.people = 16
    config.sampling.max_tokens = 8
    config.summary.update(people=4, n_samples=2)
    config.hold.update(steps=2, reward=0.0, people=8)
    config.latent.update(dim=4, hidden=8, passes=4, people=8)
    config.decode.slots = 8
    config.eval.people = 8
    config.checkpoint.every = 2
    return config


def paper(config: ConfigDict) -> ConfigDict:
    """The published command; give the people with --config.data."""
    config.policy.source = 'hf:Qwen/Qwen2.5-3B-Instruct'
    config.policy.remat = config.reward_model.remat = 'full'
    config.total_steps = 100
    config.optimizer = p.to_config(p.Optimizer(lr=5e-7))
    config.ppo = p.to_config(p.PPO(estimator='gae', minibatches=2, micro_rows=32))
    config.reward_model.update(source='hf:Qwen/Qwen2.5-1.5B-Instruct', row_tokens=4096, micro_rows=4)
    config.reward_model.optimizer = p.to_config(p.Optimizer(lr=9e-6))
    config.summary.update(people=256, n_samples=1, prefill='')
    config.sampling = p.to_config(p.Sampling(max_tokens=256))
    config.hold.update(steps=10, reward=0.0, people=256, temperature=1.0)
    config.decode.update(slots=256, stride=8)
    return config
