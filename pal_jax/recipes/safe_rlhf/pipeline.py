"""The stages of Safe RLHF: their list, the part of the config that each stage reads, and the recipe of each stage."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from jaxtyping import Array
from ml_collections import ConfigDict

from pal_jax.decode.answers import ModelScores, make_sampler
from pal_jax.decode.sampler import make_packing
from pal_jax.judges.refusals import read_prompts
from pal_jax.learners.ppo import PolicyLearner, check_samples
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params, abstract, decoder_specs
from pal_jax.objectives.advantages import Discounts
from pal_jax.objectives.constraints import P3O, Constrained, FixedPenalty
from pal_jax.recipes import reward
from pal_jax.recipes.cost import recipe as cost
from pal_jax.recipes.safe_rlhf import collect
from pal_jax.recipes.safe_rlhf.collect import make_collect, records_folder, rl_name, round_name
from pal_jax.recipes.safe_rlhf.evaluate import make_evaluation
from pal_jax.recipes.safe_rlhf.prompts import check_groups, make_groups, read_questions
from pal_jax.recipes.safe_rlhf.recipe import SafeRLHF
from pal_jax.recipes.safe_rlhf.settings import (
    RL,
    STAGES,
    Collecting,
    ConstraintSettings,
    Evaluating,
    HandlerName,
    Settings,
    Stage,
    groups_shown,
)
from pal_jax.run import files
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.models import Policy, keeping, make_learner, make_policy, trained_policy
from pal_jax.run.planned import Planned, sampling
from pal_jax.run.recipe import Context, Plan, Recipe, check_at_least, check_stage, stage_before
from pal_jax.run.settings import keys_of, to_config
from pal_jax.run.summary import SUMMARY
from pal_jax.run.trained import Trained, trained_in

SHOWN = 'reward', 'cost', 'limit', 'prompts_above_limit', 'unsafe_share'  # of stage rl, on the console


def make(settings: Stage, ctx: Context) -> Recipe:
    """The recipe of a stage.

    Raises:
      ValueError: a value is wrong, or an earlier stage has not been run.
      RuntimeError: a model cannot be had.
    """
    match settings:
        case Settings():  # of all stages
            raise ValueError('a run of safe_rlhf has a folder for each of its stages; name one, such as .../rl')
        case Collecting():
            return make_collect(settings, ctx)
        case RL():
            return make_ppo(settings, ctx)
        case Evaluating():
            return make_evaluation(settings, ctx)
    raise TypeError(f'{type(settings).__name__} are the settings of no stage')


def make_ppo(settings: RL, ctx: Context) -> SafeRLHF:
    """The recipe of stage rl."""
    policy, rl, seed = make_policy(settings.policy, ctx, settings.seed), settings.rl, settings.seed
    learner, n, steps = make_policy_learner(settings, policy.cfg, ctx), rl.n_samples_per_prompt, settings.total_steps
    judges = [Path(named.removeprefix('orbax:')) for named in (rl.reward, rl.cost)]
    check_limits(settings.constraint, judges[1])
    opens = reward.open_scores, cost.open_scores
    scores = [ModelScores(folder, ctx, opened) for folder, opened in zip(judges, opens, strict=True)]
    train, test = read_questions(settings.prompts, seed, policy.tokenizer)
    stage = functools.partial(stage_before, warmup=0, steps=steps, every=settings.eval.every, base=settings.eval.base)
    trained, keep = trained_policy(settings.policy, policy, learner), keeping(policy=policy)
    # One decoder samples the answers of a step and those of an evaluation, so it is as large as both need.
    at_once = max(rl.rollout_batch_size * n, len(test))
    return SafeRLHF(
        Plan(steps, learner.abstract, stage, trained, (*SHOWN, *groups_shown(settings.constraint)), keep=keep), ctx,
        learner, policy.source.load, [folder for folder in judges if folder.parent == ctx.workdir.parent],
        critics=functools.partial(read_critics, judges, policy, ctx) if settings.ppo.has_critic else tuple,
        sample=make_sampler(settings.decode, settings.sampling, policy, ctx, at_once),
        reward=scores[0], cost=scores[1], decode=policy.tokenizer.text_of,
        pack=make_packing(settings, ctx.mesh, n), train=train, test=test,
        groups=make_groups(settings.constraint.limit, settings.constraint.by_group),
        handler=settings.constraint.chosen,
        estimate=estimate_of(settings),
        window=settings.constraint.window, batch_size=rl.rollout_batch_size, n=n,
        ptx=collect.make_ptx(settings, policy.tokenizer, ctx), ptx_coef=settings.ptx.coef, seed=seed,
    )  # fmt: skip


def check_limits(constraint: ConstraintSettings, folder: Path) -> None:
    """Raises ValueError where a limit is below all that the cost model in this folder found on its held-out answers."""
    summary = folder / SUMMARY
    # These two handlers read no limit, and without an evaluation no lowest cost is known.
    if constraint.handler in ('none', 'fixed') or not summary.exists():
        return
    least = files.read_object(summary)['evaluations'].get('final', {}).get('cost_least', -np.inf)
    for name, limit in {'limit': constraint.limit, **constraint.by_group}.items():
        if limit < least:
            raise ValueError(
                f'constraint: {name}={limit} is below {least:.2f}, the lowest cost of a held-out answer by '
                f'{folder}, so no policy meets it; raise it'
            )


def estimate_of(settings: RL) -> Constrained:
    """The advantages of both channels. Raises ValueError where the estimator does not keep their scales."""
    ppo = settings.ppo
    return Constrained(ppo.estimator, Discounts(ppo.gamma, ppo.lam, ppo.reward_clip))


def make_policy_learner(settings: RL, cfg: ModelConfig, ctx: Context) -> PolicyLearner:
    """PPO with a critic of the reward and one of the cost, if its estimator has critics."""
    learner = make_learner(settings, cfg, ctx, n=settings.rl.n_samples_per_prompt)
    # An estimator without critics has an empty tuple here, which stays empty.
    return dataclasses.replace(learner, critics=learner.critics * 2)


def planned(settings: Stage, prompt: int) -> Planned | None:
    """The part of a run that is planned, see `run/planned.py`: the stage that trains the policy."""
    if not isinstance(settings, RL):
        return None
    rl = settings.rl
    return sampling(settings, make_policy_learner, rl.rollout_batch_size, rl.n_samples_per_prompt, prompt)


def make_trained(settings: Stage, ctx: Context) -> Trained | None:
    """The policy of PPO; the start policy and the models that score are runs of other recipes."""
    # `Settings` inherits from `RL`, but a run of all stages has no policy in its own folder.
    if isinstance(settings, Settings) or not isinstance(settings, RL):
        return None
    policy = make_policy(settings.policy, ctx, settings.seed)
    return trained_policy(settings.policy, policy, make_policy_learner(settings, policy.cfg, ctx))


def read_critics(folders: Sequence[Path], policy: Policy, ctx: Context) -> list[tuple[Params, Array]]:
    """The weights and heads of the models in these folders, from which critics start.

    Raises:
      ValueError: a model has another shape than the policy, whose tokens its critic reads.
    """
    starts = []
    for folder in folders:
        trained = trained_in(str(folder), ctx)
        # Shapes are compared before the weights are read, which takes longer.
        if abstract(decoder_specs(trained.model)) != abstract(decoder_specs(policy.cfg)):
            raise ValueError(f'{folder} has another model than policy.source, whose tokens its critic reads')
        state, *_ = Checkpoints(folder, trained.exported, read_only=True).read()
        export = trained.exports(state)['export']
        assert export.head is not None
        starts.append((export.params, export.head))
    return starts


# --- the list of stages ----------------------------------------------------------------------------------------------


def stages(settings: Settings, workdir: Path) -> list[tuple[ConfigDict, Path]]:
    """The stages that `stage` of the settings names, each with its own config and folder, in their order.

    Raises:
      ValueError: there is no such stage, or a value is wrong.
    """
    check(settings)
    check_stage(settings.stage, STAGES)
    return [made for made in all_stages(settings, workdir) if settings.stage in ('all', made[0].stage)]


def all_stages(settings: Settings, workdir: Path) -> Iterator[tuple[ConfigDict, Path]]:
    """Every stage of every round."""
    start = source = settings.policy.source
    for number in range(1, settings.rounds + 1):
        records = records_folder(workdir, number)
        # With both models named and no start policy to train, the first round has no use for judged answers.
        if number > 1 or not (settings.rl.reward and settings.rl.cost and not settings.start.total_steps):
            yield make_stage(settings, 'collect', workdir, number, source)
        if number == 1 and settings.start.total_steps:
            yield make_stage(settings, 'sft', workdir, number, source, records / collect.SFT)
            start = source = f'orbax:{workdir / "sft"}'
        # Models that `rl` names are those of the first round; later ones learn from the answers of new policies.
        if number > 1 or not settings.rl.reward:
            yield make_stage(settings, 'reward', workdir, number, source, records / collect.PAIRS)
        if number > 1 or not settings.rl.cost:
            yield make_stage(settings, 'cost', workdir, number, source, records / collect.JUDGED)
        for variant in settings.variants:
            yield make_stage(settings, 'rl', workdir, number, source, variant=variant)
        # The next round goes on from this policy; `check` refuses variants in more than one round.
        source = f'orbax:{workdir / round_name("rl", number)}'
    yield make_stage(settings, 'evaluate', workdir, 1, start)


def make_stage(
    settings: Settings, stage: str, workdir: Path, number: int, source: str, rows: Path | None = None, variant: str = ''
) -> tuple[ConfigDict, Path]:
    """The config and the folder of a stage. The config has only the values that the stage reads, so that others may
    change once it is finished."""
    kind, policy = STAGES[stage], dataclasses.replace(settings.policy, source=source)
    place = {'stage': stage, 'round': number, 'variant': variant, 'policy': policy}
    # `total_steps` is that of PPO alone; other stages have theirs in their sections, or none.
    values: dict[str, Any] = {**vars(settings), **place, 'total_steps': settings.total_steps if kind is RL else 0}
    if rows:
        values |= learning_of(settings, stage, source, rows)
    if kind in (RL, Evaluating):
        # Policies of all rounds are judged by the last models, which have learnt from the answers of most of them.
        last = settings.rounds if kind is Evaluating else number
        values['rl'] = dataclasses.replace(settings.rl, **judges_of(settings, workdir, last))
    if variant:
        # A handler may have a dash itself, as in fixed-0.5-1, so the seed stands behind the last one.
        handler, seed = variant.rpartition('-')[::2]
        values |= {'constraint': constraint_of(settings, handler), 'seed': int(seed)}
    config = to_config(kind(**{key: values[key] for key in keys_of(kind) if key in values}))
    folder = rl_name(number, variant) if kind is RL else round_name(stage, number)
    return ConfigDict({**config, 'stage': stage}), workdir / folder


def judges_of(settings: Settings, workdir: Path, number: int) -> dict[str, str]:
    """The sources of the reward and the cost model of a round. Models that `rl` names stand for those of the first."""
    named = {'reward': settings.rl.reward, 'cost': settings.rl.cost} if number == 1 else {}
    return {name: named.get(name) or f'orbax:{workdir / round_name(name, number)}' for name in ('reward', 'cost')}


def learning_of(settings: Settings, stage: str, source: str, rows: Path) -> dict[str, Any]:
    """The keys of a stage that is a run of another recipe: those of its section, and the files that it learns from. A
    model starts from the policy's source, unless its section has another one."""
    learning = {'sft': settings.start, 'reward': settings.reward, 'cost': settings.cost}[stage]
    values = dict(vars(learning))
    files = {'train': f'{rows}.jsonl', 'test': f'{rows}-test.jsonl'}
    values |= {'recipe': stage, 'data': dataclasses.replace(learning.data, **files)}
    if stage != 'sft' and values['policy'].source == settings.policy.source:
        values['policy'] = dataclasses.replace(values['policy'], source=source)
    return values


def constraint_of(settings: Settings, named: str) -> ConstraintSettings:
    """The constraint of a handler that `compare` names, as log or, with its penalty, fixed-0.5.

    Raises:
      ValueError: there is no such handler.
    """
    name, _, penalty = named.partition('-')
    if name not in get_args(HandlerName) or (penalty and name != 'fixed'):
        raise ValueError(f'compare has {named!r}; use {", ".join(get_args(HandlerName))}, or a penalty as fixed-0.5')
    chosen = dataclasses.replace(settings.constraint, handler=name)
    return dataclasses.replace(chosen, fixed=FixedPenalty(float(penalty))) if penalty else chosen


def check(settings: Settings) -> None:
    """Check everything that can be wrong before the first stage.

    Raises:
      ValueError: a value is wrong, or two do not fit together.
    """
    check_at_least(
        settings, 1, 'total_steps', 'rounds', 'seeds', 'collect.dilemmas', 'collect.prompts', 'collect.batch_size',
        'rl.rollout_batch_size', 'rl.n_samples_per_prompt', 'prompts.test_count', 'constraint.window',
        'evaluate.draws', 'ppo.minibatches', 'checkpoint.every',
    )  # fmt: skip
    # One answer makes no pair.
    check_at_least(settings, 2, 'collect.answers')
    if settings.rl.rollout_batch_size % settings.ppo.minibatches:
        raise ValueError(
            f'rl.rollout_batch_size={settings.rl.rollout_batch_size} does not divide into '
            f'ppo.minibatches={settings.ppo.minibatches}'
        )
    if not 0 < settings.collect.test_share < 1:
        raise ValueError(f'collect.test_share={settings.collect.test_share} must be between 0 and 1')
    # The folder of a variant has no number of a round, so rounds would write over one another.
    if settings.compare and settings.rounds > 1:
        raise ValueError(f'compare={settings.compare} goes with rounds=1, got rounds={settings.rounds}')
    evaluate = settings.evaluate
    if bool(evaluate.reward) != bool(evaluate.cost):
        raise ValueError(f'evaluate.reward={evaluate.reward!r} and evaluate.cost={evaluate.cost!r}: give both or none')
    if evaluate.moderation and not evaluate.prompts:
        raise ValueError(f'evaluate.moderation={evaluate.moderation!r} judges answers to evaluate.prompts; name some')
    for name in evaluate.prompts:
        read_prompts(name)
    constraints = [constraint_of(settings, name) for name in settings.compare] or [settings.constraint]
    check_samples(settings.ppo, settings.rl.n_samples_per_prompt)
    estimate_of(settings)
    if settings.constraint.by_group and any(isinstance(constraint.chosen, P3O) for constraint in constraints):
        raise ValueError(f'constraint.limits={settings.constraint.limits!r}: p3o has one gate; use another handler')
    check_groups(settings.prompts, settings.seed, settings.constraint.by_group)
