r"""Moderation (BeaverTails, Ji et al. 2023): a decoder that says which of 14 kinds of harm an answer to a question has.

python -m pal_jax.train --config=configs/moderation.py                          # made-up, mild questions and answers
python -m pal_jax.train --config=configs/moderation.py --config.data.train=30k_train.jsonl --config.data.test=30k_test.jsonl
python -m pal_jax.train --config=configs/moderation.py:paper --config.data.train=hf:PKU-Alignment/BeaverTails/330k_train.jsonl.gz
python -m pal_jax.train --config=configs/moderation.py:smoke                    # a random tiny model, under a minute
"""

from ml_collections import ConfigDict

from pal_jax import presets as p
from pal_jax.parts.safety import SafetyRows
from pal_jax.recipes import moderation


def get_config(variant: str = '') -> ConfigDict:
    variant = p.parse_variant(variant, 'smoke', 'paper')
    config = p.to_config(
        moderation.Settings(
            recipe='moderation',
            total_steps=60,  # half a pass; 0: data.epochs passes over the answers
            optimizer=p.Optimizer(lr=2e-5),
            data=SafetyRows(batch_size=32, test_rows=600, row_tokens=512),
        )
    )
    return {'': lambda: config, 'smoke': lambda: smoke(config), 'paper': lambda: paper(config)}[variant]()


def smoke(config: ConfigDict) -> ConfigDict:
    """A random tiny model and a few answers."""
    config.update(
        total_steps=6,
        policy=dict(source='random:tiny', dtype='float32'),
        optimizer=dict(lr=1e-3),
        data=dict(batch_size=8, dilemmas=28, test_rows=42),
        labels=dict(validation=21),
        checkpoint=dict(every=2),
    )
    return config


def paper(config: ConfigDict) -> ConfigDict:
    """A model of 7B parameters on BeaverTails itself. The paper does not publish its settings of training in detail:
    rate, passes and batch are a usual start. Give `data.train` and `data.test`."""
    config.update(
        total_steps=0,
        policy=dict(source='hf:huggyllama/llama-7b', remat='full'),
        optimizer=dict(lr=2e-5),
        data=dict(epochs=3.0, batch_size=64, max_length=1024, row_tokens=2048, test_rows=3000),
        labels=dict(validation=3000),
        checkpoint=dict(every=200),
    )
    return config
