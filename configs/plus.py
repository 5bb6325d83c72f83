r"""PLUS: summaries of people learnt by reinforcement, with the reward model that reads them (arXiv 2507.13579).

  python -m pal_jax.train --config=configs/plus.py               # SmolLM2-135M as both, people who like dogs or cats
  python -m pal_jax.train --config=configs/plus.py:table         # three seeds of it and of all it is compared with
  python -m pal_jax.train --config=configs/plus.py:smoke         # random tiny models
  python -m pal_jax.train --config=configs/plus.py --config.reads=context     # a baseline, see `reads` below
  python -m pal_jax.train --config=configs/plus.py --config.data=histories.jsonl # your own (pal_jax/data/histories.py)
  python -m pal_jax.train --config=configs/plus.py:people --config.data=votes:data/taxes     # the table, of real people

Any value can be changed: --config.ppo.kl_coef=0.05 --config.reward_model.source=hf:...
"""

from ml_collections import ConfigDict

from pal_jax import presets as p


def get_config(variant: str = '') -> ConfigDict:
    variant = p.parse_variant(variant, 'table', 'people', 'smoke', 'paper')
    config = p.base(recipe='plus', total_steps=14)  # with both learning; those of `hold` come before
    # pets; or a JSONL file of people (pal_jax/data/histories.py); or choices that histories are made of:
    # votes:<folder>/<name>, or a public set as ukp:<folder> or choices:<source> (pal_jax/data/opinions.py); or
    # rated:<file>, replies rated by attributes that made-up people want (pal_jax/data/attributes.py)
    config.data = 'pets'
    config.people = 200  # to learn from, at most where they are given
    config.form = 'labelled'  # both sides of past choices are told; chosen: those they liked; guide: 'I prefer dogs.'
    config.history = dict(  # of people who are made of their choices; `taught` is of pets and `rated:` as well
        told=4,  # choices in the context
        held=2,  # that test
        max_words=40,  # of a reply; choices with longer ones are left out
        disputed=0.2,  # of votes: the least share on either side of a statement
        taught=1,  # choices that teach
        each=1,  # histories of a person to learn from; what is told and what teaches changes places between them
        attributes=(),  # of rated replies, such as ('helpfulness', 'honesty'); (): all
    )
    config.shuffled = False  # the control: everyone's summary is of another person
    # What the reward model reads of a person: a summary, or, for baselines, the summary of the frozen model, the whole
    # context, the true kind, nothing, or no words but a vector (VPL). With all of these no summariser is trained.
    config.reads = 'summary'  # or untrained, context, kind, nothing, latent
    # Several methods (pal_jax/recipes/plus/table.py) are runs beside each other, of so many seeds, and a table of all.
    config.methods = ''  # as plus,untrained,context,nothing,latent,kind,shuffled,static-summariser,static-reward-model
    config.seeds = 1
    config.policy = p.policy(p.EMBEDDED)  # the summariser
    config.optimizer = p.adamw(lr=1e-4, warmup_ratio=0.0)
    config.critic = p.adamw(lr=9e-6)  # used by estimators that have one (gae)
    # No KL to what it began as: a pass a step, of little help in a run as short; --config.ppo.kl_coef=0.02 has one.
    config.ppo = p.ppo(
        estimator='group_norm', std_floor=0.1, kl_coef=0.0, kl_in='loss', kl_estimator='k3', negative_scale=0.5,
        reward_clip=(-3.0, 10.0), row_tokens=384, micro_rows=1, old_logprobs='sampler',
    )  # fmt: skip
    config.reward_model = dict(
        source=p.EMBEDDED,  # may be of another family than the summariser, with another tokenizer
        dtype='auto',
        remat='none',
        scan_layers=False,
        lora=dict(rank=0, alpha=16.0, targets='all-linear', dropout=0.0),
        optimizer=p.adamw(lr=1e-4, warmup_ratio=0.0),  # the rate falls while the summariser learns
        train=True,  # False: it stays as it begins
        std=1.0,  # of its scores: a gap that pays is divided by it (their mean would cancel out)
        row_tokens=384,  # summaries share rows of so many; 0: a row for each
        micro_rows=1,  # rows in a device's memory at once
    )
    config.summary = dict(
        people=8,  # of a step
        n_samples=8,  # summaries of each, all of which are paid; those alike are read once
        taught=2,  # of these summaries the reward model learns from
        prefill='##Summary\nLiked:',  # how every summary begins
        train=True,  # False: the summariser stays as it begins
    )
    config.sampling = p.sampling(temperature=1.0, max_tokens=16, stop=('\n', '.'))
    # Steps in which the summariser waits for a reward model that can read: many people, one cooler summary of each.
    config.hold = dict(
        steps=16,  # at most
        reward=-0.62,  # the wait ends when the mean reward of two of them is above it; 0: after all of them
        people=32,
        temperature=0.3,
    )
    # Of reads=latent, in place of steps: passes over all people, so many of them an update; frozen states of the reward
    # model's source are all that it knows of replies.
    config.latent = dict(dim=512, hidden=512, kl_coef=1e-4, passes=40, people=32, optimizer=p.adamw(lr=3e-4))
    config.checkpoint.every = 20  # they are gigabytes, of two models that learn
    config.decode = dict(slots=32, stride=4, driver='local', address='', reuse=True, int8=False)
    config.eval = dict(
        people=64,
        samples=1,  # drawn summaries of a person, beside the likeliest
        base=True,  # before the first step, too: of the first people alone, without what they are compared with
        every=0,
        shown=3,
    )
    # Who writes replies after a summary, and without, for the last evaluation: local:<source>, such as
    # local:orbax:runs/rlpa, or endpoint:condition. It reads summaries as it is; '': nobody.
    config.condition = ''
    config.endpoints = dict(condition=p.endpoint(temperature=0.7, max_tokens=48))
    config.answers = '~/.cache/pal_jax/answers.sqlite'  # what endpoints have answered is not asked again; '': is
    return {'table': table, 'people': people, 'smoke': smoke, 'paper': paper}[variant](config) if variant else config


def table(config: ConfigDict) -> ConfigDict:
    """A run for each method and seed, resumed by the same command, then the table of them."""
    config.methods = 'plus,untrained,context,nothing,latent,kind,shuffled,static-summariser,static-reward-model'
    config.seeds = 3
    config.export = False
    config.checkpoint.keep = 1  # gigabytes each, of many runs
    return config


def people(config: ConfigDict) -> ConfigDict:
    """The table for people whose kinds nobody knows; give them with --config.data."""
    config = table(config)
    config.data = ''
    config.methods = config.methods.replace('kind,', '')
    config.summary.prefill = '##Summary\nThis person'
    config.history.update(told=2, taught=3, each=32)  # a choice that teaches costs little beside what is told
    config.latent.passes = 2  # more learn the people by heart
    config.hold.reward = 0.0  # what most people like is worth a reward, too, without a word read of a person
    config.sampling.max_tokens = 24
    config.hold.people = 16  # of whom more is read than of one who likes pets
    config.summary.n_samples = 4
    config.reward_model.row_tokens = 640  # two of whom fit a row
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    config.policy.source = config.reward_model.source = 'random:tiny'
    config.policy.dtype = config.reward_model.dtype = 'float32'
    config.total_steps = 4
    config.people = 16
    config.sampling.max_tokens = 8
    config.summary.update(people=4, n_samples=2)
    config.hold.update(steps=2, reward=0.0, people=8)
    config.latent.update(dim=4, hidden=8, passes=4, people=8)
    config.decode.slots = 8
    config.eval.people = 8
    config.checkpoint.every = 2
    return config


def paper(config: ConfigDict) -> ConfigDict:
    """The published command; give the people with --config.data."""
    config.policy.source = 'hf:Qwen/Qwen2.5-3B-Instruct'
    config.policy.remat = config.reward_model.remat = 'full'
    config.total_steps = 100
    config.optimizer = p.adamw(lr=5e-7)
    config.ppo = p.ppo(estimator='gae', minibatches=2, micro_rows=32)
    config.reward_model.update(source='hf:Qwen/Qwen2.5-1.5B-Instruct', row_tokens=4096, micro_rows=4)
    config.reward_model.optimizer = p.adamw(lr=9e-6)
    config.summary.update(people=256, n_samples=1, prefill='')
    config.sampling = p.sampling(temperature=1.0, max_tokens=256)
    config.hold.update(steps=10, reward=0.0, people=256, temperature=1.0)
    config.decode.update(slots=256, stride=8)
    return config
