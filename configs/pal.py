r"""PAL: preferences of many people as mixtures of a few prototypes, new people from a few choices (arXiv 2406.08469).

  python -m pal_jax.train --config=configs/pal.py                        # 361 people's choices of electricity tariffs
  python -m pal_jax.train --config=configs/pal.py --config.data=train    # 235 people's of train journeys
  python -m pal_jax.train --config=configs/pal.py --config.data=my.csv  # your people's (recipes/personal/pal/tables.py)
  python -m pal_jax.train --config=configs/pal.py:text --config.data=polis/bowling_green    # votes on statements
  python -m pal_jax.train --config=configs/pal.py:text --config.data=jester:jester5k   # choices between texts, by name
  python -m pal_jax.train --config=configs/pal.py:text-large --config.data=polis/bowling_green  # the decoder learns
  python -m pal_jax.train --config=configs/pal.py:large --config.data=folder  # pairs on disk (data/readers/columns.py)
  python -m pal_jax.train --config=configs/pal.py:smoke                  # a tenth of the steps and two splits

A minute or two on two CPU cores. Any value can be changed: --config.loss.pull=0.1 --config.model.rule=dist. The keys,
what they mean and their defaults: pal_jax/recipes/personal/pal/settings.py. A run writes all of them to its
config.json."""

from ml_collections import ConfigDict

from pal_jax.learners.training import Lora
from pal_jax.recipes.personal import pal
from pal_jax.recipes.personal.learner import Rates
from pal_jax.recipes.personal.pal.settings import DecoderSettings, HoldSettings
from pal_jax.run import presets as p


def get_config(variant: str = '') -> ConfigDict:
    variant = p.parse_variant(variant, 'smoke', 'text', 'text-large', 'large')
    rates = Rates(projector=1e-3, projector_decay=0.0, prototypes=2e-2, users=2e-2)
    config = p.to_config(pal.Settings(recipe='personal.pal', total_steps=20, optimizer=rates))
    return {
        '': lambda: config,
        'smoke': lambda: smoke(config),
        'text': lambda: text(config),
        'text-large': lambda: text_large(config),
        'large': lambda: large(config),
    }[variant]()


def smoke(config: ConfigDict) -> ConfigDict:
    config.total_steps = 4
    config.updates = 20
    config.split.seeds = 2
    config.prototypes = (1, 2)
    config.new.steps = 50
    config.baselines.mixed_logit = False
    config.checkpoint.every = 2
    return config


def text(config: ConfigDict) -> ConfigDict:
    """Statements that people vote on, or texts they chose among, by a frozen decoder; those of the test are new."""
    config.data = ''
    config.text.update(source=p.EMBEDDED, layers=20)  # of 30
    config.prototypes = (1, 2, 3, 4)
    config.standardize = False
    config.split.update(train=0.5, validation=0.2)  # of the statements
    config.updates = 20
    config.baselines.update(groups=True, majority=False, mixed_logit=False)
    return config


def text_large(config: ConfigDict) -> ConfigDict:
    """PAL-Large: the decoder is trained too, each model's own (pal_jax/recipes/personal/pal/large.py). Give
    --config.data."""
    config = text(config)
    config.recipe = 'personal.pal_large'
    config.total_steps = 24
    config.hold = p.to_config(HoldSettings())
    config.updates = 8
    config.batch = 256
    config.prototypes = (1, 2)
    config.split.update(seeds=3, control=False)
    config.new.ask = 0
    config.baselines.update(embedding=0, own=False, groups=False)
    adam = p.Optimizer(lr=2e-4)  # 1e-5 without adapters
    config.decoder = p.to_config(DecoderSettings(optimizer=adam, lora=Lora(rank=8)))
    return config


def large(config: ConfigDict) -> ConfigDict:
    """Pairs in a folder, more than memory holds: a pass over them, one split, PAL beside the shared model."""
    config.data = ''
    config.standardize = False
    config.prototypes = (1, 4)
    config.split.update(seeds=1, control=False)
    config.batch = 8192
    config.updates = 50
    config.total_steps = 12
    config.new.update(counts=(), steps=50, ask=0)
    config.baselines.update(embedding=0, own=False, majority=False, mixed_logit=False)
    return config
