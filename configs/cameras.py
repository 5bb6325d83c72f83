r"""Flying cameras that reconstruct a person in a crowd: contributions of cameras (CTCR) beside a shared reward.

  python -m pal_jax.train --config=configs/cameras.py            # four cameras, six people, three seeds of each
  python -m pal_jax.train --config=configs/cameras.py:dynamics   # with heads that predict the next places, too
  python -m pal_jax.train --config=configs/cameras.py:paper      # a policy with an LSTM, mixed crowds, a long run
  python -m pal_jax.train --config=configs/cameras.py:smoke      # a few updates, nothing learnt
  python -m pal_jax.train --config=configs/cameras.py --config.scene.cameras=5 --config.scene.people="(7,7)"

--help lists all keys.
"""

from ml_collections import ConfigDict

from pal_jax.recipes.cameras.settings import Settings
from pal_jax.run import presets as p
from pal_jax.run.optim import Optimizer
from pal_jax.run.settings import CheckpointSettings


def get_config(variant: str = '') -> ConfigDict:
    variant = p.parse_variant(variant, 'smoke', 'dynamics', 'paper')
    adam = Optimizer('adam', lr=5e-4, warmup_ratio=0.0, b2=0.999, max_norm=0.5)
    config = p.to_config(
        Settings(
            recipe='cameras', total_steps=19, optimizer=adam, critic=adam, checkpoint=CheckpointSettings(every=2),
            export=False,
        )
    )  # fmt: skip
    return {
        '': lambda: config, 'smoke': lambda: smoke(config), 'dynamics': lambda: dynamics(config),
        'paper': lambda: paper(config),
    }[variant]()  # fmt: skip


def smoke(config: ConfigDict) -> ConfigDict:
    config.total_steps = 4
    config.updates = config.epochs = 1
    config.seeds = 1
    config.environments = 4
    config.minibatches = 2
    config.rollout = 5
    config.hidden = (16,)
    config.scene.update(cameras=3, people=(2, 3), horizon=10)
    config.eval.update(episodes=2, others=('2,3',), frames=3)
    config.checkpoint.every = 2
    return config


def dynamics(config: ConfigDict) -> ConfigDict:
    config.methods = ('ctcr', 'ctcr_dynamics', 'shared', 'shared_dynamics')
    return config


def paper(config: ConfigDict) -> ConfigDict:
    """The sizes of section 8.3 of the paper's appendix, as far as this scene has them."""
    config.methods = ('ctcr', 'ctcr_dynamics', 'shared', 'shared_dynamics')
    config.memory = 128
    config.epochs = 16
    config.minibatches = 2
    config.environments = 28
    config.entropy = 0.0
    config.total_steps = 143  # a million steps of the environment
    config.scene.update(people=(1, 6), horizon=500)
    config.scene.value = 'geman'
    return config
