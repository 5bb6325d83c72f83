r"""RLPA: multi-turn PPO that learns its user's profile while talking (arXiv 2505.15456).

  python -m pal_jax.train --config=configs/rlpa.py            # SmolLM2-135M and scripted users: learns on two CPU cores
  python -m pal_jax.train --config=configs/rlpa.py:smoke      # a random tiny model, under a minute
  python -m pal_jax.train --config=configs/rlpa.py:paper      # Qwen2.5-3B-Instruct, the published settings

Any value can be changed: --config.ppo.kl_coef=0.1 --config.dialogue.profiles=people.jsonl
"""

from ml_collections import ConfigDict

from pal_jax import presets as p


def get_config(variant: str = '') -> ConfigDict:
    variant = p.parse_variant(variant, 'smoke', 'paper')
    config = p.base(recipe='rlpa', total_steps=48)  # of PPO; the warm-up's come before
    config.reference_compatible = False  # True: the published code's visibility, aggregation and flat updates
    config.policy = p.policy(p.EMBEDDED)
    config.optimizer = p.adamw(lr=3e-5, warmup_ratio=0.1)
    config.critic = p.adamw(lr=9e-6)  # used by estimators that have one (gae)
    config.warmup = dict(steps=24, rows=2, examples_per_row=4, examples=160, optimizer=p.adamw(lr=1e-4))
    config.ppo = p.ppo(
        estimator='group_norm', kl_in='loss', kl_estimator='k3', kl_coef=0.05, negative_scale=0.2, micro_rows=2
    )
    config.ppo.ptx_coef = 0.0  # above 0: the warm-up's examples are learnt in every update too, weighted by it
    config.sampling = p.sampling(temperature=0.7, max_tokens=56, stop=('</response>',))
    config.dialogue = dict(
        profiles='embedded',  # or a JSONL file of people
        input_key='input',  # what such a file calls the first message
        label_key='profile',  # and the profile
        max_samples=0,  # people of a file, at most; 0: all
        personalities='',  # a JSONL file of free texts, one of which goes with each person, as in ALOE
        slotter='none',  # or endpoint:<name>, local:<source>: brings people of a file from free text into ten slots
        shuffle=False,  # people in another order in every episode
        people=240,
        facts=4,  # of each embedded person
        system='embedded',  # or the text of a system prompt, or file:<path>
        profile_format='lines',  # or 'json': what the embedded prompt asks for
        user='scripted',  # or endpoint:<name>, local:<source of a model>
        p_spontaneous=1.0,  # chance that a scripted user tells something unasked
        use_multiturn=True,
        max_rounds=3,
        n_samples_per_prompt=4,
        rollout_batch_size=8,  # prompts a step
        prompt_max_len=0,  # tokens; of a longer prompt the oldest exchanges are left out; 0: none
        round_batch_size=5,  # > 0: depth-first, < 0: breadth-first; less than a batch mixes rounds
        shown=4,  # samples a step kept for the report
        turn_gamma=0.0,  # above 0: rewards of later turns reach earlier ones; a step then plays whole dialogues
    )
    config.reward = dict(
        matcher='exact',  # or embedding, endpoint:<name>, local:<source>
        shuffled=False,  # the control: score predictions against another person's profile
        judge='rule',  # or endpoint:<name>, local:<source>
        naturalness='rules',  # of a rule judge in training; 'model': the model before training reads replies as well
        response='graded',  # or 'strict'
        profile_weight=1.0,
        response_weight=1.0,
        min_std=0.0,  # of a step's rewards: below it no update is made of whitened advantages, they would be noise
        max_failed=0.1,  # share of samples without a reward at which a run stops
    )
    config.endpoints = dict(  # language models that play and judge
        user=p.endpoint(temperature=1.0, max_tokens=120),
        matcher=p.endpoint(temperature=0.0, max_tokens=512),
        judge=p.endpoint(temperature=0.0, max_tokens=512),
        slotter=p.endpoint(temperature=0.0, max_tokens=512),
    )
    config.answers = '~/.cache/pal_jax/answers.sqlite'  # what endpoints have answered is not asked again; '': is
    config.decode = dict(
        slots=32,  # completions sampled at once
        stride=4,  # tokens a round trip between device and host
        driver='local',  # or 'jetstream': the same tokens through google-jetstream's driver
        address='',  # host:port of a pal_jax.serve --driver=jetstream that samples instead; see docs/serving.md
        reuse=True,  # prompts start from what caches hold of them
        int8=False,  # sample with weights of eight bits
        shares=0,  # decoders side by side, each on its share of devices and dialogues; 0: one a process
    )
    config.eval = dict(
        people=64,  # of each split
        profiles='',  # a JSONL file of people of another schema: the Extended setting
        rounds=0,  # 0: as many as max_rounds
        every=0,  # 0: before, after the warm-up and at the end
        shown=3,
    )
    return {'': lambda: config, 'smoke': lambda: smoke(config), 'paper': lambda: paper(config)}[variant]()


def smoke(config: ConfigDict) -> ConfigDict:
    config.policy.source = 'random:tiny'
    config.policy.dtype = 'float32'
    config.total_steps = 6
    config.warmup.update(steps=4, rows=2, examples_per_row=2, examples=16)
    config.warmup.optimizer.lr = 3e-3
    config.sampling.max_tokens = 32
    config.dialogue.update(people=8, max_rounds=2, rollout_batch_size=4, round_batch_size=4)
    config.decode.slots = 16
    config.eval.people = 4
    config.checkpoint.every = 2
    return config


def paper(config: ConfigDict) -> ConfigDict:
    """Section 4 and the appendix of the paper; people and users stay scripted until endpoints are chosen."""
    config.seed = 42
    config.checkpoint.keep = 3
    config.policy.source = 'hf:Qwen/Qwen2.5-3B-Instruct'
    config.policy.remat = 'full'
    config.total_steps = 150
    config.optimizer = p.adamw(lr=5e-7)
    config.warmup.steps = 0
    config.ppo.update(p.ppo(estimator='gae', minibatches=8, micro_rows=32, loss_agg='token_mean'))
    config.sampling = p.sampling(temperature=1.0, max_tokens=4096)
    config.dialogue.update(
        people=3840, facts=10, max_rounds=10, rollout_batch_size=256, round_batch_size=256, p_spontaneous=0.3,
        max_samples=10_000_000, prompt_max_len=4096,
    )  # fmt: skip
    config.reward.update(response='strict', min_std=1e-3)
    config.decode.update(slots=256, stride=8)
    config.eval.people = 74
    return config
