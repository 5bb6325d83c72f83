r"""AllReduce on data-centre networks and accelerator meshes: short schedules beside the least rounds that there can be.

  pal-jax train --config=allreduce                                 # BCube, DCell, Jellyfish, ring, torus, fat tree
  pal-jax train --config=allreduce:exact                           # small ones, by integer programme too
  pal-jax train --config=allreduce:learn                           # two policies, trained in turn on each network
  pal-jax train --config=allreduce:smoke
  pal-jax train --config=allreduce --config.networks="('bcube:4,1','my.gml')"

The shortest schedule of each network is in schedules/ of the run's folder, as JSON. --help lists all keys.
"""

from pal_jax.recipes.allreduce import learned as allreduce_learned
from pal_jax.recipes.allreduce.recipe import Settings
from pal_jax.run import presets as p
from pal_jax.run.optim import Optimizer
from pal_jax.run.settings import CheckpointSettings

ALL = 'bcube:3,1', 'bcube:4,1', 'dcell:3,1', 'jellyfish:10,3', 'ring:8', 'torus:4,4', 'fat_tree:4'
SMALL = 'bcube:2,1', 'bcube:3,1', 'dcell:2,1', 'ring:8'


def get_config(variant: str = '') -> Settings | allreduce_learned.Settings:
    variant = p.parse_variant(variant, 'smoke', 'exact', 'learn')
    if variant == 'learn':
        return learn()
    settings = Settings(
        recipe='allreduce', total_steps=0, networks=ALL, checkpoint=CheckpointSettings(every=1), export=False
    )
    variants = {
        'smoke': dict(networks=('bcube:2,1', 'ring:4'), tries=2),
        'exact': dict(networks=SMALL, programme=120.0),
    }
    return p.changed(settings, **variants[variant]) if variant else settings


def learn() -> allreduce_learned.Settings:
    """The policies of which trees and which transfers."""
    return allreduce_learned.Settings(
        recipe='allreduce.learned', total_steps=24, networks=('bcube:3,1', 'bcube:4,1', 'dcell:3,1'),
        larger=('bcube:5,1', 'dcell:4,1'), optimizer=Optimizer('adam', lr=0.01, warmup_ratio=0.0, b2=0.999),
        checkpoint=CheckpointSettings(every=4), export=False,
    )  # fmt: skip
