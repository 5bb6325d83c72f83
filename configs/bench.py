r"""The audited bench of personalised rewards: leakage tests of the data, then all methods on the same people.

  python -m pal_jax.train --config=configs/bench.py                 # 361 people's choices of electricity tariffs
  python -m pal_jax.train --config=configs/bench.py --config.texts="('polis/bowling_green','jester:jester5k')"
  python -m pal_jax.train --config=configs/bench.py --config.tables="('electricity','train','my.csv')"
  python -m pal_jax.train --config=configs/bench.py:quick           # three splits, fewer steps
  python -m pal_jax.train --config=configs/bench.py:smoke           # nothing learnt
  python -m pal_jax.train --config=configs/bench.py --config.methods="('majority','mixed_logit')"

The sections pal and pal_text are configs/pal.py and configs/pal.py:text; all methods have their splits, their numbers
of known choices and the vectors that their decoder makes of texts. The keys:
pal_jax/recipes/personal/bench/settings.py."""

import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pal_jax.recipes.personal import bench, pal
from pal_jax.run import presets as p
from pal_jax.run.settings import CheckpointSettings, parse


def get_config(variant: str = '') -> ConfigDict:
    variant = p.parse_variant(variant, 'quick', 'smoke')
    run_of_pal = runpy.run_path(str(Path(__file__).with_name('pal.py')))['get_config']
    tables, texts = run_of_pal(''), run_of_pal('text')
    texts.text.pairs = 40  # of a person's votes, as of a person's ratings: errors are over people, not over pairs
    table, text = (parse(pal.Settings, section) for section in (tables, texts))
    # A checkpoint after each part, so that a run that was killed does no finished part again.
    every = CheckpointSettings(every=1)
    config = p.to_config(
        bench.Settings(recipe='personal.bench', total_steps=0, export=False, checkpoint=every, pal=table, pal_text=text)
    )
    return {'': lambda: config, 'quick': lambda: quick(config), 'smoke': lambda: smoke(config)}[variant]()


def quick(config: Any) -> ConfigDict:
    for section in (config.pal, config.pal_text):
        section.update(total_steps=8, prototypes=(1, 2, 4), split=dict(seeds=3), new=dict(counts=(0, 5, 20)))
    return config


def smoke(config: Any) -> ConfigDict:
    for section in (config.pal, config.pal_text):
        section.update(
            total_steps=2, updates=10, prototypes=(1, 2), split=dict(seeds=2),
            new=dict(counts=(0, 5), steps=50, ask=0), baselines=dict(mixed_logit=False, own=False),
        )  # fmt: skip
    config.methods = ('majority',)
    config.pal_text.text.update(source='random:tiny', layers=0, dtype='float32', width=4)
    return config
