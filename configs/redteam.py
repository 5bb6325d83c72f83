r"""Self-RedTeam: a model attacks itself, defends itself, and learns from both (arXiv 2506.07468).

  pal-jax train --config=redteam                                 # all stages; the same again resumes
  pal-jax train --config=redteam:quick                           # a third of the work
  pal-jax train --config=redteam:smoke                           # a random tiny model, nothing learnt
  pal-jax train --config=redteam:table                           # all four ways to learn, three seeds each: hours
  pal-jax train --config=redteam:paper                           # the published settings; give seeds and a judge
  pal-jax train --config=redteam --config.compare="('adapters','attacker')" --workdir=runs/adapters

Stages, each in a folder of its own: examples, sft, play-<who learns>-<seed>, evaluate. --help lists all keys.
"""

from pal_jax.learners.training import Lora
from pal_jax.recipes.redteam.settings import (
    CrossPlaySettings,
    PlaySettings,
    SeedSettings,
    Settings,
    StartPolicySettings,
)
from pal_jax.run import presets as p
from pal_jax.run.language import DecodeSettings, ModelSettings, RowSettings
from pal_jax.run.settings import StageSettings
from pal_jax.types import Sampling


def get_config(variant: str = '') -> Settings:
    variant, stage = p.parse_stage(variant, 'quick', 'smoke', 'table', 'paper')
    optimizer = p.Optimizer(lr=3e-4, warmup_ratio=0.05, min_ratio=1.0)
    settings = Settings(
        recipe='redteam',
        stage=stage,
        total_steps=16,  # of each self-play
        export=False,  # pal-jax export --workdir=.../play-shared-0 writes the policy
        policy=ModelSettings(scan_layers=True, lora=Lora(rank=16, alpha=32.0)),
        sampling=Sampling(temperature=0.6, max_tokens=80),  # at 1 a model of 135M writes neither harm nor help
        decode=DecodeSettings(slots=32),
        optimizer=optimizer,
        critic=optimizer,  # there is none
        compare=('shared', 'attacker'),  # the attacker is one that the shared policy has never met
        play=PlaySettings(games=24),
        seeds=SeedSettings(test_count=32),
        eval=StageSettings(base=False),  # stage evaluate has the start beside all others
        ppo=p.PPO(
            estimator='reinforce',
            kl_coef=0.01,
            ptx_coef=0.2,
            row_tokens=512,
            micro_rows=1,
            old_logprobs='sampler',
        ),
        start=StartPolicySettings(
            total_steps=40,
            optimizer=p.Optimizer(lr=1e-3),
            data=RowSettings(batch_size=16, train='', test_rows=64, row_tokens=512, micro_rows=1),
        ),
    )
    return {'quick': quick, 'smoke': smoke, 'table': table, 'paper': paper}[variant](settings) if variant else settings


def quick(settings: Settings) -> Settings:
    """Too few steps to learn much."""
    return p.changed(settings, total_steps=8, start=dict(total_steps=24), seeds=dict(test_count=12))


def smoke(settings: Settings) -> Settings:
    """A random tiny model."""
    return p.changed(
        settings,
        policy=dict(source='random:tiny', dtype='float32', lora=dict(rank=2)),
        total_steps=2,
        start=dict(total_steps=2, data=dict(batch_size=4)),
        examples=dict(count=12, test_count=6),
        seeds=dict(train_count=4, test_count=2, max_length=512),
        play=dict(games=4, hidden=False),  # a random model keeps to no form
        stream=dict(batch_size=2),
        sampling=dict(max_tokens=12),
        decode=dict(slots=8),
        checkpoint=dict(every=1),
    )


def table(settings: Settings) -> Settings:
    """One policy, an adapter for each role, and either role by itself, three seeds each."""
    return p.changed(settings, compare=('shared', 'adapters', 'attacker', 'defender'), repeats=3)


def paper(settings: Settings) -> Settings:
    """The published settings (docs/methods/redteam.md); give --config.seeds.train, .test and --config.play.judge."""
    return p.changed(
        settings,
        policy=dict(source='hf:meta-llama/Llama-3.1-8B-Instruct', remat='full', lora=dict(rank=0)),
        compare=('shared',),
        start=dict(total_steps=0),
        total_steps=200,
        sampling=Sampling(temperature=1.0, max_tokens=2048),
        seeds=dict(train_count=20_000, test_count=1000, max_length=2048),
        play=dict(games=128, judge='endpoint:judge'),
        optimizer=p.Optimizer(lr=5e-7, warmup_ratio=0.03, min_ratio=1.0),
        ppo=dict(row_tokens=0, micro_rows=8, minibatches=4, ptx_coef=1.0, old_logprobs='policy'),
        stream=dict(batch_size=32),
        evaluate=CrossPlaySettings(encoder='minilm'),
        decode=dict(slots=128, stride=8),
    )
