r"""The audited bench of personalised rewards: leakage tests of the data, then all methods on the same people.

  pal-jax train --config=bench                                      # 361 people's choices of electricity tariffs
  pal-jax train --config=bench --config.texts="('polis/bowling_green','jester:jester5k')"
  pal-jax train --config=bench --config.tables="('electricity','train','my.csv')"
  pal-jax train --config=bench:quick                                # three splits, fewer steps
  pal-jax train --config=bench:smoke                                # nothing learnt
  pal-jax train --config=bench --config.methods="('majority','mixed_logit')"

The sections pal and pal_text are configs/pal.py and pal:text; all methods have their splits, their numbers
of known choices and the vectors that their decoder makes of texts. The keys:
pal_jax/recipes/personal/bench/recipe.py."""

import runpy
from pathlib import Path
from typing import Any

from pal_jax.recipes.personal import bench
from pal_jax.run import presets as p
from pal_jax.run.settings import CheckpointSettings


def get_config(variant: str = '') -> bench.Settings:
    variant = p.parse_variant(variant, 'quick', 'smoke')
    run_of_pal = runpy.run_path(str(Path(__file__).with_name('pal.py')))['get_config']
    table = run_of_pal('')
    text = p.changed(run_of_pal('text'), text=dict(pairs=40))  # of a person's votes: errors are over people, not pairs
    # A checkpoint after each part, so that a run that was killed does no finished part again.
    every = CheckpointSettings(every=1)
    settings = bench.Settings(
        recipe='personal.bench', total_steps=0, export=False, checkpoint=every, pal=table, pal_text=text
    )
    return {'quick': quick, 'smoke': smoke}[variant](settings) if variant else settings


def quick(settings: bench.Settings) -> bench.Settings:
    part: dict[str, Any] = dict(total_steps=8, prototypes=(1, 2, 4), split=dict(seeds=3), new=dict(counts=(0, 5, 20)))
    return p.changed(settings, pal=part, pal_text=part)


def smoke(settings: bench.Settings) -> bench.Settings:
    part: dict[str, Any] = dict(
        total_steps=2, updates=10, prototypes=(1, 2), split=dict(seeds=2),
        new=dict(counts=(0, 5), steps=50, ask=0), baselines=dict(mixed_logit=False, own=False),
    )  # fmt: skip
    text = dict(source='random:tiny', layers=0, dtype='float32', width=4)
    return p.changed(settings, methods=('majority',), pal=part, pal_text=dict(**part, text=text))
