r"""Flying cameras that reconstruct a person in a crowd: contributions of cameras (CTCR) beside a shared reward.

  pal-jax train --config=cameras                                 # four cameras, six people, three seeds of each
  pal-jax train --config=cameras:dynamics                        # with heads that predict the next places, too
  pal-jax train --config=cameras:paper                           # a policy with an LSTM, mixed crowds, a long run
  pal-jax train --config=cameras:smoke                           # a few updates, nothing learnt
  pal-jax train --config=cameras --config.scene.cameras=5 --config.scene.people="(7,7)"

--help lists all keys.
"""

from pal_jax.recipes.cameras import Settings
from pal_jax.run import presets as p
from pal_jax.run.optim import Optimizer
from pal_jax.run.settings import CheckpointSettings


def get_config(variant: str = '') -> Settings:
    variant = p.parse_variant(variant, 'smoke', 'dynamics', 'paper')
    adam = Optimizer('adam', lr=5e-4, warmup_ratio=0.0, b2=0.999, max_norm=0.5)
    settings = Settings(
        recipe='cameras', total_steps=19, optimizer=adam, critic=adam, checkpoint=CheckpointSettings(every=2),
        export=False,
    )  # fmt: skip
    return {'smoke': smoke, 'dynamics': dynamics, 'paper': paper}[variant](settings) if variant else settings


def smoke(settings: Settings) -> Settings:
    return p.changed(
        settings, total_steps=4, updates=1, epochs=1, seeds=1, environments=4, minibatches=2, rollout=5, hidden=(16,),
        scene=dict(cameras=3, people=(2, 3), horizon=10), eval=dict(episodes=2, others=('2,3',), frames=3),
        checkpoint=dict(every=2),
    )  # fmt: skip


def dynamics(settings: Settings) -> Settings:
    return p.changed(settings, methods=('ctcr', 'ctcr_dynamics', 'shared', 'shared_dynamics'))


def paper(settings: Settings) -> Settings:
    """The sizes of section 8.3 of the paper's appendix, as far as this scene has them."""
    return p.changed(
        dynamics(settings),
        memory=128,
        epochs=16,
        minibatches=2,
        environments=28,
        entropy=0.0,
        total_steps=143,  # a million steps of the environment
        scene=dict(people=(1, 6), horizon=500, value='geman'),
    )
