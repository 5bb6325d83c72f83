r"""PAL: preferences of many people as mixtures of a few prototypes, new people from a few choices (arXiv 2406.08469).

  python -m pal_jax.train --config=configs/pal.py                        # 361 people's choices of electricity tariffs
  python -m pal_jax.train --config=configs/pal.py --config.data=train    # 235 people's of train journeys
  python -m pal_jax.train --config=configs/pal.py --config.data=my.csv   # your people's (pal_jax/data/tables.py)
  python -m pal_jax.train --config=configs/pal.py:text --config.data=polis/bowling_green    # votes on statements
  python -m pal_jax.train --config=configs/pal.py:text --config.data=jester:jester5k   # choices between texts, by name
  python -m pal_jax.train --config=configs/pal.py:text-large --config.data=polis/bowling_green  # the decoder learns
  python -m pal_jax.train --config=configs/pal.py:large --config.data=folder    # pairs on disk (data/columns.py)
  python -m pal_jax.train --config=configs/pal.py:smoke                  # a tenth of the steps and two splits

A minute or two on two CPU cores. Any value can be changed: --config.loss.pull=0.1 --config.model.rule=dist
"""

from ml_collections import ConfigDict

from pal_jax import presets as p


def get_config(variant: str = '') -> ConfigDict:
    variant = p.parse_variant(variant, 'smoke', 'text', 'text-large', 'large')
    config = p.base(recipe='pal', total_steps=20)
    # or train, swissmetro (1,191 people), a file of your own; with text.source votes or choices between texts, such as
    # a public set: jester:, movielens:, ukp:, prism:, tldr:<folder>, personas:<file>, choices:<source>
    # (data/opinions.py)
    config.data = 'electricity'
    # Of texts, which people voted on (pal_jax/data/votes.py) or chose among: whose decoder makes vectors; '': no text.
    config.text = dict(
        source='',
        dtype='auto',
        layers=0,  # the first so many of the decoder's; 0: all
        pool='mean',  # over the tokens of a text, or last
        span='',  # with pool=last a loss at every token of where a pair differs: cumulative, mean or only_last
        template='{}',
        width=32,  # principal coordinates of the states; 0: the states as they are
        pairs=200,  # of votes: at most of a person's
        folder='runs/states',  # keeps the states
    )
    config.standardize = True  # attributes in units of their standard deviation
    config.split = dict(
        seeds=5,  # splits at random, side by side
        seen=0.8,  # share of people; the others are new
        train=0.6,  # share of each person's choice situations
        validation=0.2,  # the rest is the test
        control=True,  # as many splits again with shuffled user ids
    )
    config.prototypes = (1, 2, 3, 4, 6, 8)  # K is chosen on the validation part
    config.model = dict(
        variant='A',  # B mixes functions of a prompt's vector
        rule='dot',  # or dist, normalized_dist, angle, norm
        scaled=False,  # rewards times a learnt scale
        point='Pw',  # or f(Pw), f(P)w, |f(P)|w
        projector='identity',  # or such as mlp2-gelu-dropout0
        dim=0,  # of the space of preferences; 0: the items'
        mixture='softmax',  # or gumbel, partition
        tau=1.0,
        prototype_init='unit',  # or expected
        z_std=0.0,  # of users' first logits
        dtype='auto',  # of a projector's products: bfloat16 where the platform has instructions for it
    )
    config.loss = dict(
        name='logistic',  # or hinge, smooth_hinge
        margin=0.0,
        label_smoothing=0.0,
        gamma=5.0,  # of smooth_hinge
        pull=2.0,  # precision of a Gaussian prior on users' logits
        bound=0.0,  # on the length of users' points; 0: none
        bound_coef=1.0,
    )
    config.optimizer = dict(  # Adam by group, without a schedule
        projector=1e-3, projector_decay=0.0, prototypes=2e-2, users=2e-2, log_scale=1e-1, b1=0.9, b2=0.999
    )
    config.batch = 512
    config.updates = 100  # of every model in a step
    config.new = dict(
        counts=(0, 1, 2, 5, 10, 20, 50, 100),  # of known comparisons
        steps=300,
        lr=5e-2,
        pull=2.0,
        toward='population',  # or zero
        ask=20,  # so many questions are also chosen by what each is expected to tell; 0: none
    )
    config.baselines = dict(
        embedding=4,  # width of a free vector a user; 0: none
        embedding_pull=1.0,
        own=True,  # a model a user
        own_pull=0.1,
        groups=False,  # a prototype for each known group, and seen people at that of theirs
        majority=True,
        mixed_logit=True,
        context=0,  # of texts: so many earlier choices in front of each pair, read by the decoder; 0: none
    )
    config.eval = dict(every=0)  # 0: at the end
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
    """PAL-Large: the decoder is trained too, each model's own (pal_jax/recipes/pal/large.py). Give --config.data."""
    config = text(config)
    config.recipe = 'pal_large'
    config.total_steps = 24  # with all learning; those of `hold` come before
    config.hold = dict(steps=20, updates=20)  # in which decoders wait
    config.updates = 8  # of prototypes and people, for one of the decoders
    config.batch = 256
    config.prototypes = (1, 2)
    config.split.update(seeds=3, control=False)
    config.new.ask = 0
    config.baselines.update(embedding=0, own=False, groups=False)
    config.decoder = dict(
        optimizer=p.adamw(lr=2e-4),  # of decoders; 1e-5 without adapters
        lora=dict(rank=8, alpha=16.0, targets='all-linear', dropout=0.0),  # rank=0: all of a decoder
        remat='none',
        statements=48,  # or prompts, of a step; its pairs are of these alone
        micro_rows=4,
        row_tokens=256,
    )
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
