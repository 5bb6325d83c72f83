"""Personalized Soups (arXiv 2310.11564): a policy for each pole of what people may want, merged for who wants several.

    rollout    answers of the base policy under every preference, several to a prompt
    annotate   a judge says which of two answers to a prompt suits the preference better
    reward     a reward model for each preference, one for all of them, and one for no preference in particular
    rlhf, morl, policy      PPO: on the general reward; on the mean over the preferences of a prompt by the joint reward
               model; on one preference, which makes a policy for each
    multitask  supervised: the best answers, under their preferences
    merge      the weighted mean of three policies' adapters
    evaluate   win rates of all of these against each other

Each stage is a run of its own in a folder beside the others'. Reward models and multitask learning are those of
`recipes/reward.py` and `recipes/sft.py` on files that the annotations make. This file has the stages and the step of
PPO; beside it `parts.py` has what all stages read, `check.py` says what is wrong with a config, `data.py` makes data,
`merge.py` merges, `evaluate.py` evaluates.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from pal_jax.data.packing import pack_rollouts, round_up
from pal_jax.data.passes import shuffled
from pal_jax.feedback.preferences import BEST, GENERAL, JOINT, Preference, ask, combinations
from pal_jax.learners import ppo
from pal_jax.learners.ppo import PPO, PolicyLearner, PolicyState
from pal_jax.models.config import ModelConfig
from pal_jax.objectives.moments import Moments, scaled, seen
from pal_jax.parts.recipe import (
    EVALUATION,
    Closures,
    Config,
    Context,
    Evaluation,
    Host,
    Plan,
    Recipe,
    Trained,
    check_finite,
    keeping,
    make_adapters,
    make_policy,
    stage_before,
    trained_policy,
)
from pal_jax.recipes.pal import person as pal_person
from pal_jax.recipes.psoups import data, merge, parts
from pal_jax.recipes.psoups.check import check
from pal_jax.recipes.psoups.evaluate import GENERATIONS, as_dialogue, make_evaluation
from pal_jax.runtime import sharding
from pal_jax.runtime.optim import Optimizer
from pal_jax.runtime.workdir import CONFIG
from pal_jax.types import Metrics, Sample

SHARED = ('seed', 'mesh', 'checkpoint', 'metrics', 'export')
WHO = ('preferences', 'poles', 'prompts', 'policy', 'sampling', 'decode')
RL = (*WHO, 'optimizer', 'critic', 'ppo', 'rl', 'eval')
READS = {  # of the config, by stage
    'rollout': (*WHO, 'rollout'),
    'annotate': ('preferences', 'poles', 'annotate', 'endpoints', 'answers'),
    'reward': ('eval',),
    'rlhf': RL,
    'multitask': ('policy', 'eval'),
    'morl': RL,
    'policy': RL,
    'merge': ('preferences', 'poles', 'policy', 'merge'),
    'evaluate': (*WHO, 'merge', 'evaluate', 'endpoints', 'answers'),
}
WRITES = {  # beside the stages' folders
    'rollout': (parts.ROLLOUTS,),
    'annotate': (parts.ANNOTATIONS, parts.PAIRS),
    'merge': (parts.MERGED,),
    'evaluate': (GENERATIONS,),
}
POLICIES = 'rlhf', 'morl', 'policy'


class Asked(NamedTuple):
    """A question, what is preferred of the answer, and whether the policy is told."""

    prompt: parts.Prompt
    preferences: tuple[Preference, ...] = ()

    @property
    def text(self) -> str:
        return ask(self.prompt.question, self.preferences)

    @property
    def readings(self) -> list[str]:
        """What reward models read of it: the question with one preference at a time, or with none (I.6, edge 1)."""
        return [ask(self.prompt.question, [each]) for each in self.preferences] or [self.prompt.question]


# --- stages -----------------------------------------------------------------------------------------------------------


def stages(config: Config, workdir: Path) -> list[tuple[Config, Path]]:
    """The stages that `config.stage` and `config.preference` name, each with its own config and folder.

    Raises:
      ValueError: there is no such stage or preference, a value is wrong, or a file that a stage writes is somebody's.
    """
    wanted, chosen = config.stage, config.preference
    if wanted != 'all' and wanted not in READS:
        raise ValueError(f'stage={wanted!r} is unknown; use all or one of {", ".join(READS)}')
    reads_prompts = wanted == 'all' or 'prompts' in READS[wanted]
    poles = [each.id for each in check(config, reads_prompts)]
    names = {'reward': [GENERAL, *poles, JOINT], 'policy': poles}
    if chosen and wanted not in names:
        raise ValueError(f'preference={chosen!r} goes with stage=policy or stage=reward, got stage={wanted}')
    if chosen and chosen not in names[wanted]:
        raise ValueError(f'preference={chosen!r} is none of stage={wanted}; use one of {", ".join(names[wanted])}')
    made = [*READS] if wanted == 'all' else [wanted]
    check_shared(made, workdir)
    return [
        (make_stage(config, stage, name, workdir), workdir / (f'{stage}-{name}' if name else stage))
        for stage in made
        for name in names.get(stage, [''])
        if name == chosen or not chosen
    ]


def check_shared(made: Sequence[str], workdir: Path) -> None:
    """Raises ValueError where there is a file that a stage writes beside its folder, and the stage has never begun."""
    for stage in made:
        for path in (workdir / name for name in WRITES.get(stage, ())):
            if not (workdir / stage / CONFIG).exists() and (path.is_file() or (path.is_dir() and any(path.iterdir()))):
                raise ValueError(
                    f'{path} is there, and stage={stage} of this run has not written it; give another --workdir'
                )


def make_stage(config: Config, stage: str, name: str, workdir: Path) -> Config:
    """What a stage reads of the config, so that other values may change once it is finished."""
    part = {key: config[key] for key in (*SHARED, *READS[stage])}
    steps = config.total_steps if 'rl' in READS[stage] else 0
    part |= {'recipe': 'psoups', 'total_steps': steps, 'stage': stage, 'preference': name}
    if stage in ('reward', 'multitask'):
        pairs = workdir / parts.PAIRS / (name or BEST)
        part |= config[stage].to_dict() | {'recipe': 'reward' if stage == 'reward' else 'sft'}
        part['data'] |= {'train': f'{pairs}.jsonl', 'test': f'{pairs}-test.jsonl'}
        part['export'] &= part['data'].get('pooling', 'last') == 'last'  # transformers has no other
    return ConfigDict(part)


def make(config: Config, ctx: Context) -> Recipe:
    """The recipe of a stage.

    Raises:
      ValueError: a value is wrong, or an earlier stage has not been run.
      RuntimeError: a model cannot be had.
    """
    if config.stage == 'all':
        raise ValueError('a run of psoups has a folder for each of its stages; name one, such as .../policy-P2A')
    if config.stage in POLICIES:
        return make_ppo(config, ctx)
    made = {'rollout': data.make_rollouts, 'annotate': data.make_annotations}
    made |= {'merge': merge.make_merges, 'evaluate': make_evaluation}
    return made[config.stage](config, ctx)


def make_trained(config: Config, ctx: Context) -> Trained | None:
    """The policy of PPO; stages of reward models and of multitask learning are runs of other recipes."""
    if config.stage not in POLICIES:
        return None
    policy = make_policy(config, ctx)
    return trained_policy(config, policy, make_learner(config, policy.cfg, ctx))


# --- PPO --------------------------------------------------------------------------------------------------------------


def make_ppo(config: Config, ctx: Context) -> Recipe:
    """Stages rlhf, morl and policy."""
    policy = make_policy(config, ctx)
    rl, wanted = config.rl, who_wants_what(config)
    learner = make_learner(config, policy.cfg, ctx)
    at_once = max(rl.rollout_batch_size * rl.n_samples_per_prompt, rl.test_count)
    sample = parts.make_sampler(config, policy, ctx, at_once)
    name = {'rlhf': GENERAL, 'morl': JOINT}.get(config.stage, config.preference)
    judge = ctx.workdir.parent / f'reward-{name}'
    score = pal_person.make_score(rl.reward, rl.person) if rl.reward else parts.make_score(judge, ctx)
    train, test = (parts.read_prompts(config, split, policy.tokenizer) for split in ('train', 'test'))
    n, actions = rl.n_samples_per_prompt, round_up(config.sampling.max_tokens, 8)
    ways = sharding.batch_ways(ctx.mesh) * config.ppo.minibatches
    rows = {'ways': ways, 'micro_rows': config.ppo.micro_rows, 'row_tokens': config.ppo.row_tokens}

    def init() -> tuple[PolicyState, Host]:
        if not rl.reward:
            parts.check_finished(judge)
        return learner.init(policy.source.load(learner.actor.param_shardings)), {'moments': list(Moments())}

    def draw(i: int) -> list[Asked]:
        start, size = i * rl.rollout_batch_size, rl.rollout_batch_size
        first = len(data.everyone(config)) * len(train)  # in orders that no reward model's prompts were drawn by
        chosen = shuffled(len(train), start=first + start, size=size, seed=config.seed)
        return [Asked(train[k], wanted[(start + j) % len(wanted)]) for j, k in enumerate(chosen)]

    def scored(asked: Sequence[Asked], samples: Sequence[Sample], n: int) -> np.ndarray:
        texts = [sample.completion.text.strip() for sample in samples]
        scores = score([each.readings for each in asked], [texts[k : k + n] for k in range(0, len(texts), n)])
        return paid(scores.ravel(), texts)

    def step(state: PolicyState, host: Host, i: int) -> tuple[PolicyState, Host, str, Metrics]:
        asked = draw(i)
        with ctx.phase('rollout'):
            samples = sample(learner.weights(state), [each.text for each in asked], n, (config.seed, i))
        with ctx.phase('reward'):
            scores = scored(asked, samples, n)
            moments = seen(Moments(*host['moments']), scores)
            rewards = scaled(moments, scores) if rl.scale_scores else scores
            samples = [dataclasses.replace(s, rewards=(float(r),)) for s, r in zip(samples, rewards, strict=True)]
        with ctx.phase('annotate'):
            batch = pack_rollouts(samples, n=n, actions=actions, mesh=ctx.mesh, **rows)
            batch, figures = learner.score(state, batch)
            batch, estimated = learner.advantages(state, batch)
        with ctx.phase('update'):
            state, updated = learner.update(state, batch, jax.random.fold_in(jax.random.key(config.seed), i))
        check_finite(state, ' or raise ppo.kl_coef')
        return (
            state,
            {'moments': list(moments)},
            config.stage,
            summarize(samples, scores) | figures | estimated | updated,
        )

    def evaluate(state: PolicyState, stage: str) -> Evaluation:
        asked = [Asked(prompt, wanted[k % len(wanted)]) for k, prompt in enumerate(test[: rl.test_count])]
        with ctx.phase('evaluate'):
            samples = sample(learner.weights(state), [each.text for each in asked], 1, (config.seed, EVALUATION))
            scores = scored(asked, samples, 1)
        texts = [sample.completion.text for sample in samples]
        met = {p.id: [p.rule.score(a.prompt.question, t) for a, t in zip(asked, texts, strict=True)]
               for p in wanted[0] if len(wanted) == 1 and p.rule}  # fmt: skip
        record = summarize(samples, scores) | {f'rule_{name}': float(np.mean(found)) for name, found in met.items()}
        told = [as_dialogue(a.text, text) for a, text in zip(asked[:3], texts[:3], strict=True)]
        return Evaluation(record, told)

    steps = config.total_steps
    stage = functools.partial(stage_before, warmup=0, steps=steps, **config.eval)
    trained, keep = trained_policy(config, policy, learner), keeping(policy=policy)
    plan = Plan(steps, learner.abstract, stage, trained, ('reward', 'words'), keep=keep)
    return Closures(plan, init, step, evaluate)


def who_wants_what(config: Config) -> list[tuple[Preference, ...]]:
    """What the prompts of a stage ask for, in turn."""
    poles = parts.read_preferences(config)
    if config.stage == 'morl':
        return combinations(poles)
    return [()] if config.stage == 'rlhf' else [tuple(each for each in poles if each.id == config.preference)]


def paid(scores: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """The scores, of which an answer without text has the least: reward models have learnt from none, and judges let it
    lose against any other."""
    return np.where([not text.strip() for text in texts], scores.min(), scores)


def summarize(samples: Sequence[Sample], scores: np.ndarray) -> Metrics:
    """Means over the samples of a step; `reward` before any scaling."""
    completions = [sample.completion for sample in samples]
    return {
        'reward': float(scores.mean()),
        'reward_std': float(scores.std()),
        'samples': float(len(samples)),
        'length': float(np.mean([len(each.token_ids) for each in completions])),
        'words': float(np.mean([len(each.text.split()) for each in completions])),
        'truncated': float(np.mean([each.finish_reason == 'length' for each in completions])),
    }


def make_learner(config: Config, cfg: ModelConfig, ctx: Context) -> PolicyLearner:
    updates = config.total_steps * config.ppo.epochs * config.ppo.minibatches
    actor, critic = (Optimizer(**each, total_steps=updates) for each in (config.optimizer, config.critic))
    return ppo.make_learner(
        cfg, PPO(**config.ppo, temperature=config.sampling.temperature or 1.0), actor, ctx.mesh, critic=critic,
        n=config.rl.n_samples_per_prompt, length=config.sampling.max_tokens, adapters=make_adapters(config),
        seed=config.seed,
    )  # fmt: skip
