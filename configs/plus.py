r"""PLUS: summaries of people learnt by reinforcement, with the reward model that reads them (arXiv 2507.13579).

  pal-jax train --config=plus                                    # SmolLM2-135M as both, people who like dogs or cats
  pal-jax train --config=plus:table                              # three seeds of it and of all it is compared with
  pal-jax train --config=plus:smoke                              # random tiny models
  pal-jax train --config=plus --config.reads=context                          # a baseline, see `reads` of the settings
  pal-jax train --config=plus --config.data=histories.jsonl # your own (pal_jax/data/histories.py)
  pal-jax train --config=plus:people --config.data=votes:data/taxes                          # the table, of real people

Any value can be changed: --config.ppo.kl_coef=0.05 --config.reward_model.train=False. The keys, what they mean and
their defaults: pal_jax/recipes/plus/settings.py for people, summaries and the reward model, pal_jax/learners/ppo.py for
PPO, pal_jax/run/settings.py and run/language.py for all else. A run writes all of them to its config.json.
"""

from pal_jax.recipes import plus
from pal_jax.run import presets as p
from pal_jax.run.language import EndpointSettings
from pal_jax.run.settings import CheckpointSettings


def get_config(variant: str = '') -> plus.Settings:
    variant = p.parse_variant(variant, 'table', 'people', 'smoke', 'paper')
    settings = plus.Settings(
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
    )  # fmt: skip
    return (
        {'table': table, 'people': people, 'smoke': smoke, 'paper': paper}[variant](settings) if variant else settings
    )


def table(settings: plus.Settings) -> plus.Settings:
    """A run for each method and seed, resumed by the same command, then the table of them."""
    return p.changed(
        settings,
        methods='plus,untrained,context,nothing,latent,kind,shuffled,static-summariser,static-reward-model',
        seeds=3,
        export=False,
        checkpoint=dict(keep=1),  # gigabytes each, of many runs
    )


def people(settings: plus.Settings) -> plus.Settings:
    """The table for people whose kinds nobody knows; give them with --config.data."""
    settings = table(settings)
    return p.changed(
        settings,
        data='',
        methods=settings.methods.replace('kind,', ''),
        summary=dict(prefill='##Summary\nThis person', n_samples=4),
        history=dict(told=2, taught=3, each=32),  # a choice that teaches costs little beside what is told
        latent=dict(passes=2),  # more learn the people by heart
        # What most people like is worth a reward, too, without a word read of a person; of one more is read than of
        # one who likes pets.
        hold=dict(reward=0.0, people=16),
        sampling=dict(max_tokens=24),
        reward_model=dict(row_tokens=640),  # two of whom fit a row
    )


def smoke(settings: plus.Settings) -> plus.Settings:
    tiny = dict(source='random:tiny', dtype='float32')
    return p.changed(
        settings,
        policy=tiny,
        reward_model=tiny,
        total_steps=4,
        people=16,
        sampling=dict(max_tokens=8),
        summary=dict(people=4, n_samples=2),
        hold=dict(steps=2, reward=0.0, people=8),
        latent=dict(dim=4, hidden=8, passes=4, people=8),
        decode=dict(slots=8),
        eval=dict(people=8),
        checkpoint=dict(every=2),
    )


def paper(settings: plus.Settings) -> plus.Settings:
    """The published command; give the people with --config.data."""
    return p.changed(
        settings,
        policy=dict(source='hf:Qwen/Qwen2.5-3B-Instruct', remat='full'),
        total_steps=100,
        optimizer=p.Optimizer(lr=5e-7),
        ppo=p.PPO(estimator='gae', minibatches=2, micro_rows=32),
        reward_model=dict(
            source='hf:Qwen/Qwen2.5-1.5B-Instruct', remat='full', row_tokens=4096, micro_rows=4,
            optimizer=p.Optimizer(lr=9e-6),
        ),
        summary=dict(people=256, n_samples=1, prefill=''),
        sampling=p.Sampling(max_tokens=256),
        hold=dict(steps=10, reward=0.0, people=256, temperature=1.0),
        decode=dict(slots=256, stride=8),
    )  # fmt: skip
