r"""Reward models on pairs of replies (Ouyang et al. 2022): a decoder that says how good a reply is.

python -m pal_jax.train --config=configs/reward.py                                # right and wrong answers
python -m pal_jax.train --config=configs/reward.py --config.data.train=pairs.jsonl
python -m pal_jax.train --config=configs/reward.py --config.policy.lora.rank=16 --config.optimizer.lr=5e-4
python -m pal_jax.train --config=configs/reward.py:smoke                          # a random tiny model, under a minute
"""

from ml_collections import ConfigDict

from pal_jax import presets as p


def get_config(variant: str = '') -> ConfigDict:
    variant = p.parse_variant(variant, 'smoke')
    config = p.base(recipe='reward', total_steps=24)  # half a pass; 0: data.epochs passes over the pairs
    config.policy = p.policy(p.EMBEDDED)  # the decoder that gets a head
    config.optimizer = p.adamw(lr=2e-5)
    config.reward = dict(
        margin=0.0,  # beside the margin of a pair's own record
        label_smoothing=0.0,
        centring=0.0,  # times the squared sum of a pair's scores; 0.01 keeps them about zero
    )
    config.data = p.rows(batch_size=16)
    config.data.update(train='recall', test_rows=192, row_tokens=512)
    config.data.replies = 2  # with more, pairs of one prompt are a group, in which each of so many replies is read once
    config.data.pooling = 'last'  # token of a reply, whose state is scored; 'mean': of the scores of all
    config.oracle = p.oracle()
    config.eval = dict(
        every=0,  # steps; 0: none in between
        base=True,  # before the first one, too
    )
    return {'': lambda: config, 'smoke': lambda: p.smoke_rows(config)}[variant]()
