r"""PAL: preferences of many people as mixtures of a few prototypes, new people from a few choices (arXiv 2406.08469).

  pal-jax train --config=pal                                             # 361 people's choices of electricity tariffs
  pal-jax train --config=pal --config.data=train                         # 235 people's of train journeys
  pal-jax train --config=pal --config.data=my.csv                       # your people's (recipes/personal/pal/tables.py)
  pal-jax train --config=pal:text --config.data=polis/bowling_green                         # votes on statements
  pal-jax train --config=pal:text --config.data=jester:jester5k                        # choices between texts, by name
  pal-jax train --config=pal:text-large --config.data=polis/bowling_green                       # the decoder learns
  pal-jax train --config=pal:large --config.data=folder                       # pairs on disk (data/readers/columns.py)
  pal-jax train --config=pal:smoke                                       # a 25th of the updates and two splits
  pal-jax train --config=pal:text-smoke --config.data=pairs.jsonl        # 2 steps on one split

Under five minutes on two CPU cores. Any value can be changed: --config.loss.pull=0.1 --config.model.rule=dist. The
keys, what they mean and their defaults: pal_jax/recipes/personal/pal/settings.py. A run writes all of them to its
config.json."""

from pal_jax.learners.training import Lora
from pal_jax.recipes.personal import pal
from pal_jax.recipes.personal.learner import Rates
from pal_jax.recipes.personal.pal.settings import DecoderSettings, HoldSettings, LargeSettings
from pal_jax.run import presets as p


def get_config(variant: str = '') -> pal.Settings:
    variant = p.parse_variant(variant, 'smoke', 'text', 'text-smoke', 'text-large', 'large')
    rates = Rates(projector=1e-3, projector_decay=0.0, prototypes=2e-2, users=2e-2)
    settings = pal.Settings(recipe='personal.pal', total_steps=20, optimizer=rates)
    variants = {'smoke': smoke, 'text': text, 'text-smoke': text_smoke, 'text-large': text_large, 'large': large}
    return variants[variant](settings) if variant else settings


def smoke(settings: pal.Settings) -> pal.Settings:
    return p.changed(
        settings, total_steps=4, updates=20, split=dict(seeds=2), prototypes=(1, 2), new=dict(steps=50),
        baselines=dict(mixed_logit=False), checkpoint=dict(every=2),
    )  # fmt: skip


def text(settings: pal.Settings) -> pal.Settings:
    """Statements that people vote on, or texts they chose among, by a frozen decoder; those of the test are new."""
    return p.changed(
        settings,
        data='',
        text=dict(source=p.EMBEDDED, layers=20),  # of 30
        prototypes=(1, 2, 3, 4),
        standardize=False,
        split=dict(train=0.5, validation=0.2),  # of the statements
        updates=20,
        baselines=dict(groups=True, majority=False, mixed_logit=False),
    )


def text_smoke(settings: pal.Settings) -> pal.Settings:
    """A first look at texts: 2 steps on one split."""
    return p.changed(
        text(settings), total_steps=2, prototypes=(1, 2), split=dict(seeds=1, control=False), new=dict(ask=0)
    )


def text_large(settings: pal.Settings) -> LargeSettings:
    """PAL-Large: the decoder is trained too, each model's own (pal_jax/recipes/personal/pal/large.py). Give
    --config.data."""
    frozen = p.changed(
        text(settings),
        total_steps=24,
        updates=8,
        batch=256,
        prototypes=(1, 2),
        split=dict(seeds=3, control=False),
        new=dict(ask=0),
        baselines=dict(embedding=0, own=False, groups=False),
    )
    adam = p.Optimizer(lr=2e-4)  # 1e-5 without adapters
    decoder = DecoderSettings(optimizer=adam, lora=Lora(rank=8))
    return p.filled(LargeSettings, frozen, recipe='personal.pal_large', hold=HoldSettings(), decoder=decoder)


def large(settings: pal.Settings) -> pal.Settings:
    """Pairs in a folder, more than memory holds: a pass over them, one split, PAL beside the shared model."""
    return p.changed(
        settings,
        data='',
        standardize=False,
        prototypes=(1, 4),
        split=dict(seeds=1, control=False),
        batch=8192,
        updates=50,
        total_steps=12,
        new=dict(counts=(), steps=50, ask=0),
        baselines=dict(embedding=0, own=False, majority=False, mixed_logit=False),
    )
