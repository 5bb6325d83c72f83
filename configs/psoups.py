r"""Personalized Soups: a policy for each preference, merged for each combination of them (arXiv 2310.11564).

  python -m pal_jax.train --config=configs/psoups.py            # all stages, three dimensions; the same again resumes
  python -m pal_jax.train --config=configs/psoups.py:quick      # two dimensions, too few steps to learn much
  python -m pal_jax.train --config=configs/psoups.py:smoke      # a random tiny model, one dimension, nothing learnt
  python -m pal_jax.train --config=configs/psoups.py:stage=policy,preference=P2A     # one stage, after those before it

Stages, each in a folder of its own: rollout, annotate, reward, rlhf, multitask, morl, policy, merge, evaluate.
Any value can be changed: --config.preferences=mine.yaml --config.annotate.annotator=endpoint:judge
"""

from ml_collections import ConfigDict

from pal_jax import presets as p


def get_config(variant: str = '') -> ConfigDict:
    variant, chosen = p.parse_stage(variant, 'quick', 'smoke', 'paper')
    config = p.base(recipe='psoups', total_steps=4)  # of each PPO
    config.export = False  # 9 policies; python -m pal_jax.export --workdir=.../policy-P2A writes one
    config.stage = chosen.get('stage', 'all')
    config.preference = chosen.get('preference', '')  # of stages reward and policy; '': all
    config.preferences = 'embedded'  # or a YAML or JSON file (pal_jax/feedback/preferences.py)
    config.poles = ''  # of them, as P1A,P1B; '': the first two of each dimension; all
    config.prompts = dict(
        train='embedded',  # or a JSONL file of instruction and, if you like, input
        test='embedded',  # likewise
        train_count=0,  # 0: all
        test_count=50,
        max_length=512,  # tokens with the texts of preferences; longer ones are left out
    )
    config.policy = p.policy(p.EMBEDDED)
    config.policy.scan_layers = True  # many short stages
    config.policy.lora = dict(rank=16, alpha=32.0, targets='all-linear', dropout=0.0)
    config.sampling = p.sampling(temperature=0.7, max_tokens=24)  # at 1 the embedded model hardly makes sense
    config.decode = dict(slots=128, stride=4, driver='local', address='', reuse=True, int8=False)
    config.rollout = dict(
        prompts=48,  # that are asked under a preference, drawn for each; 0: all
        answers=4,  # to each of them, of which all pairs are compared
        batch_size=32,  # prompts of a step
    )
    config.annotate = dict(
        annotator='rule',  # or endpoint:<name>, local:<source>, or a YAML file (pal_jax/feedback/annotators.py)
        second='',  # another one, to see how far they agree
        batch_size=100,  # rows of a step
        max_failed=0.1,  # share of rows without a verdict at which the stage stops
        test_share=0.12,  # of the prompts, kept to test reward models on
    )
    config.endpoints = dict(
        judge=p.endpoint(temperature=1.0, max_tokens=250),
        evaluator=p.endpoint(temperature=0.1, max_tokens=512),
    )
    config.answers = '~/.cache/pal_jax/answers.sqlite'  # what endpoints have answered is not asked again; '': is
    config.reward = reward()
    config.reward.data.replies = config.rollout.get_oneway_ref('answers')
    config.reward.policy.source = config.policy.get_oneway_ref('source')  # another model, if it is named by itself
    config.multitask = multitask()
    config.optimizer = p.adamw(lr=1e-3, warmup_ratio=0.0)  # few steps: none of them at rate 0
    config.critic = p.adamw(lr=1e-3)  # used by estimators that have one (gae)
    config.ppo = p.ppo(
        estimator='group_norm', kl_in='loss', kl_estimator='k3', kl_coef=0.05, row_tokens=320, micro_rows=1,
        old_logprobs='sampler',
    )  # fmt: skip
    config.rl = dict(
        rollout_batch_size=6,  # prompts a step
        n_samples_per_prompt=4,
        scale_scores=False,  # by the running mean and standard deviation of all scores; group_norm needs none
        test_count=8,  # prompts of an evaluation
        reward='',  # pal:<workdir> in place of the reward models of stage=reward (docs/methods/pal.md)
        person='',  # with it: a user of that run, a file of a mixture, or '': the population
    )
    config.eval = dict(  # of each stage that trains; what came of it is what stage=evaluate finds
        every=0,  # steps; 0: none in between
        base=False,  # before the first one, too
    )
    config.merge = dict(weights=())  # of the dimensions, in their order, with sum 1; (): equal ones
    config.evaluate = dict(
        judge='rule',  # as annotate.annotator, or endpoint:evaluator; language models see every pair in both orders
        max_failed=0.1,  # share of comparisons without a verdict above which there is no result; below they are ties
        draws=2,  # answers to each prompt where the policy of one pole is compared with the base
        front='',  # two poles whose policies are merged by weights from 0 to 1, as P2A,P2B; '': two of each dimension
        front_weights=(0.0, 0.25, 0.5, 0.75, 1.0),  # of the second of them
        front_prompts=16,  # that each of these soups answers
    )
    return {'quick': quick, 'smoke': smoke, 'paper': paper}[variant](config) if variant else config


def reward() -> ConfigDict:
    """What configs/reward.py has."""
    config = ConfigDict({'total_steps': 20, 'optimizer': p.adamw(lr=3e-3), 'policy': p.policy(p.EMBEDDED)})
    config.policy.scan_layers = True
    config.policy.lora = dict(rank=8, alpha=32.0, targets='all-linear', dropout=0.0)
    config.reward = dict(margin=0.0, label_smoothing=0.0, centring=0.0)
    config.data = p.rows(batch_size=2)
    config.data.pooling = 'mean'  # of the scores of a reply's tokens: of few pairs more is learnt than of the last's
    config.data.update(row_tokens=304, micro_rows=1)  # a program to compile, where two rows would make several
    return config


def multitask() -> ConfigDict:
    """What configs/sft.py has."""
    config = ConfigDict({'total_steps': 8, 'optimizer': p.adamw(lr=3e-4), 'max_z_coef': 0.0})
    config.data = p.rows(batch_size=16)
    config.data.row_tokens = 512
    return config


def quick(config: ConfigDict) -> ConfigDict:
    """Two dimensions that need no library."""
    config.poles = 'P2A,P2B,P3A,P3B'
    config.prompts.update(train_count=48, test_count=8)
    config.sampling.max_tokens = 20
    config.total_steps = 2
    config.reward.total_steps = config.multitask.total_steps = 4
    config.multitask.data.batch_size = 8
    config.rl.update(rollout_batch_size=2, test_count=2)
    config.rollout.prompts = 16
    config.annotate.test_share = 0.2
    config.evaluate.update(draws=1, front_weights=(0.0, 0.5, 1.0), front_prompts=8)
    return config


def smoke(config: ConfigDict) -> ConfigDict:
    """A random tiny model; one dimension, for what it babbles has no register."""
    config = quick(config)
    config.poles = 'P2A,P2B'
    config.policy.source = 'random:tiny'
    config.policy.dtype = config.reward.policy.dtype = 'float32'
    config.policy.lora.rank = config.reward.policy.lora.rank = 2
    config.prompts.update(train_count=16, test_count=3)
    config.sampling.max_tokens = 16
    config.reward.total_steps = config.multitask.total_steps = 2
    config.reward.data.batch_size = config.multitask.data.batch_size = 4
    config.rollout.update(prompts=0, answers=2, batch_size=24)
    config.rl.n_samples_per_prompt = 2
    config.annotate.test_share = 0.25
    config.decode.slots = 8
    config.checkpoint.every = 2
    return config


def paper(config: ConfigDict) -> ConfigDict:
    """The published settings where there is one (psoups I.2); give the prompts with --config.prompts.train."""
    # Tulu-7B itself is published as a difference from LLaMA's weights.
    config.policy.source = 'hf:allenai/tulu-2-7b'
    config.policy.remat = config.reward.policy.remat = 'full'
    config.policy.lora = dict(rank=16, alpha=32.0, targets='attn/(q|v)', dropout=0.05)
    config.rollout.update(prompts=0, answers=2, batch_size=128)
    config.reward.policy.lora = dict(rank=8, alpha=32.0, targets='attn/(q|v)', dropout=0.0)
    config.reward.optimizer = p.adamw(lr=2e-5)
    config.reward.optimizer.weight_decay = 0.001
    config.reward.total_steps = 0  # one pass
    config.reward.data.update(batch_size=8, micro_rows=2, max_length=2048)  # two answers of 512 tokens
    config.multitask.optimizer = p.adamw(lr=1e-5, warmup_ratio=0.1, min_ratio=1.0)
    config.multitask.optimizer.weight_decay = 0.05
    config.multitask.data.row_tokens = 1024
    config.multitask.total_steps = 1000
    config.eval.base = True
    config.prompts.test_count = 50
    config.reward.data.pooling = 'last'
    config.sampling.update(temperature=1.0, max_tokens=512)
    config.total_steps = 156
    config.optimizer = p.adamw(lr=1.4e-5, warmup_ratio=0.0, min_ratio=1.0)
    config.critic = p.adamw(lr=1.4e-5, warmup_ratio=0.0, min_ratio=1.0)
    config.ppo = p.ppo(
        estimator='gae', kl_coef=0.2, kl_target=6.0, kl_target_per='sample', kl_horizon=10_000, epochs=8,
        early_stop_kl=0.1, reward_clip=(-1e9, 1e9), loss_agg='token_mean', micro_rows=8,
    )  # fmt: skip
    config.rl.update(rollout_batch_size=64, n_samples_per_prompt=1, scale_scores=True)
    config.decode.update(slots=256, stride=8)
    return config
