r"""Self-RedTeam: a model attacks itself, defends itself, and learns from both (arXiv 2506.07468).

  python -m pal_jax.train --config=configs/redteam.py            # all stages; the same again resumes
  python -m pal_jax.train --config=configs/redteam.py:quick      # a third of the work
  python -m pal_jax.train --config=configs/redteam.py:smoke      # a random tiny model, nothing learnt
  python -m pal_jax.train --config=configs/redteam.py:table      # all four ways to learn, three seeds each: hours
  python -m pal_jax.train --config=configs/redteam.py:paper      # the published settings; give seeds and a judge
  python -m pal_jax.train --config=configs/redteam.py --config.compare="('adapters','attacker')" --workdir=runs/adapters

Stages, each in a folder of its own: examples, sft, play-<who learns>-<seed>, evaluate. --help lists all keys.
"""

from ml_collections import ConfigDict

from pal_jax.learners.training import Lora
from pal_jax.recipes.redteam.settings import EvaluationSettings, PlaySettings, SeedSettings, Settings, StartSettings
from pal_jax.run import presets as p
from pal_jax.run.language import DecodeSettings, ModelSettings, RowSettings
from pal_jax.run.settings import StageSettings
from pal_jax.types import Sampling


def get_config(variant: str = '') -> ConfigDict:
    variant, chosen = p.parse_stage(variant, 'quick', 'smoke', 'table', 'paper')
    optimizer = p.Optimizer(lr=3e-4, warmup_ratio=0.05, min_ratio=1.0)
    config = p.to_config(
        Settings(
            recipe='redteam',
            stage=chosen.get('stage', 'all'),
            total_steps=16,  # of each self-play
            export=False,  # python -m pal_jax.export --workdir=.../play-shared-0 writes the policy
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
            start=StartSettings(
                total_steps=40,
                optimizer=p.Optimizer(lr=1e-3),
                data=RowSettings(batch_size=16, train='', test_rows=64, row_tokens=512, micro_rows=1),
            ),
        )
    )
    return {'quick': quick, 'smoke': smoke, 'table': table, 'paper': paper}[variant](config) if variant else config


def quick(config: ConfigDict) -> ConfigDict:
    """Too few steps to learn much."""
    config.total_steps = 8
    config.start.total_steps = 24
    config.seeds.test_count = 12
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    """A random tiny model."""
    config.policy.source = 'random:tiny'
    config.policy.dtype = 'float32'
    config.policy.lora.rank = 2
    config.total_steps = config.start.total_steps = 2
    config.start.data.batch_size = 4
    config.examples.update(count=12, test_count=6)
    config.seeds.update(train_count=4, test_count=2, max_length=512)
    config.play.update(games=4, hidden=False)  # a random model keeps to no form
    config.stream.batch_size = 2
    config.sampling.max_tokens = 12
    config.decode.slots = 8
    config.checkpoint.every = 1
    return config


def table(config: ConfigDict) -> ConfigDict:
    """One policy, an adapter for each role, and either role by itself, three seeds each."""
    config.compare = ('shared', 'adapters', 'attacker', 'defender')
    config.repeats = 3
    return config


def paper(config: ConfigDict) -> ConfigDict:
    """The published settings (docs/methods/redteam.md); give --config.seeds.train, .test and --config.play.judge."""
    config.policy.source = 'hf:meta-llama/Llama-3.1-8B-Instruct'
    config.policy.remat = 'full'
    config.policy.lora.rank = 0
    config.compare = ('shared',)
    config.start.total_steps = 0
    config.total_steps = 200
    config.sampling = p.to_config(Sampling(temperature=1.0, max_tokens=2048))
    config.seeds.update(train_count=20_000, test_count=1000, max_length=2048)
    config.play.update(games=128, judge='endpoint:judge')
    config.optimizer = p.to_config(p.Optimizer(lr=5e-7, warmup_ratio=0.03, min_ratio=1.0))
    config.ppo.update(row_tokens=0, micro_rows=8, minibatches=4, ptx_coef=1.0, old_logprobs='policy')
    config.stream.batch_size = 32
    config.evaluate = p.to_config(EvaluationSettings(encoder='minilm'))
    config.decode.update(slots=128, stride=8)
    return config
