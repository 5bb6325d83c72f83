"""The stages of Self-RedTeam, what each of them reads of the config, and what is refused before the first of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pal_jax.data import chats
from pal_jax.data.packing import pack_examples
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode import sampler
from pal_jax.judges.chat_models import ChatModels
from pal_jax.learners.ppo import PolicyLearner
from pal_jax.models.config import ModelConfig
from pal_jax.recipes.redteam import judges
from pal_jax.recipes.redteam import seeds as seed_sources
from pal_jax.recipes.redteam.attack import RedTeam, Seed
from pal_jax.recipes.redteam.evaluate import make_evaluation
from pal_jax.recipes.redteam.games import Players
from pal_jax.recipes.redteam.judges import make_judge
from pal_jax.recipes.redteam.recipe import RoleStates, SelfRedTeam, with_frozen
from pal_jax.recipes.redteam.seeds import kinds_of, read_seeds
from pal_jax.recipes.redteam.settings import (
    EMBEDDED,
    POLICIES,
    STAGES,
    Evaluating,
    Making,
    Playing,
    PlaySettings,
    Settings,
    Stage,
)
from pal_jax.recipes.redteam.stand_ins import chat_records, make_examples
from pal_jax.run import files, models, piecework, sharding
from pal_jax.run.models import Policy, keeping, make_policy
from pal_jax.run.piecework import Piecework, Records
from pal_jax.run.recipe import Context, Evaluation, Host, Plan, Recipe, check_at_least, check_stage, stage_before
from pal_jax.run.settings import StageSettings, keys_of, to_config
from pal_jax.run.trained import Adapters, Export, Trained
from pal_jax.types import Metrics, TokenBatch

RECORDS = 'records'  # the folder of the examples, beside the stages
SHOWN = 'attack_success', 'plain_success', 'overrefusal', 'self_bleu'


def make(settings: Stage, ctx: Context) -> Recipe:
    """The recipe of a stage.

    Raises:
      ValueError: a value is wrong, or an earlier stage has not been run.
      RuntimeError: a model cannot be had.
    """
    match settings:
        case Settings():  # of all stages
            raise ValueError(
                'a run of redteam has a folder for each of its stages; name one, such as .../play-shared-0'
            )
        case Playing():
            return make_play(settings, ctx)
        case Evaluating():
            return make_evaluation(settings, ctx)
        case Making():
            return make_records(settings, ctx)
    raise TypeError(f'{type(settings).__name__} are the settings of no stage')


def make_records(settings: Making, ctx: Context) -> Piecework:
    """The recipe of stage examples: moves of both roles, to learn from and to test on."""
    game, folder = RedTeam(hidden=settings.play.hidden), ctx.workdir.parent / RECORDS

    def work(host: Host, i: int) -> tuple[Records, Host, Metrics]:
        parts = {'': ('train', settings.examples.count), '-test': ('test', settings.examples.test_count)}
        for ending, (split, count) in parts.items():
            rows = make_examples(count, split=split, seed=settings.seed, game=game)  # type: ignore[arg-type]
            piecework.write(folder / f'sft{ending}.jsonl', rows)
        return [{'rows': settings.examples.count}], host, {'answers': float(settings.examples.count)}

    def finish(records: Records) -> Evaluation:
        return Evaluation({'rows': records[0]['rows']})

    return piecework.make(ctx, 1, work, 'examples', finish)


def make_play(settings: Playing, ctx: Context) -> SelfRedTeam:
    """The recipe of stage play."""
    policy, seed, steps, play = (
        make_policy(settings.policy, ctx, settings.seed),
        settings.seed,
        settings.total_steps,
        settings.play,
    )
    learner, chat = make_learner(settings, policy.cfg, ctx), ChatModels(settings.endpoints, settings.answers, seed)
    train, test = read_seeds(settings.seeds, seed, settings.examples.count, policy.tokenizer)
    game = RedTeam(hidden=play.hidden)
    stage = functools.partial(stage_before, warmup=0, steps=steps, every=settings.eval.every, base=settings.eval.base)
    source = Path(settings.policy.source.removeprefix('orbax:'))
    return SelfRedTeam(
        plan=Plan(
            steps, abstract(learner, play.roles), stage, trained_by(settings, policy, learner), SHOWN,
            resume=chat.count_on, keep=keeping(policy=policy),
        ),
        ctx=ctx, learner=learner, load=policy.source.load,
        before=[source] if source.parent == ctx.workdir.parent else [],
        roles=POLICIES[play.roles],
        players=Players(
            sampler.make_decoder(settings.decode, policy, ctx), policy.tokenizer, settings.sampling, game
        ),
        judge=make_judge('play.judge', play.judge, chat, ctx), models=chat,
        pack=sampler.make_packing(settings, ctx.mesh, 1),
        train=kinds_of(train, play.roles), test=test, count=play.games, payment=play.payment,
        stream=make_stream(settings, train, game, policy.tokenizer, ctx),
        max_failed=play.max_failed, seed=seed, shown=play.shown,
    )  # fmt: skip


def make_stream(
    settings: Playing, seeds: Sequence[Seed], game: RedTeam, tokenizer: Tokenizer, ctx: Context
) -> Callable[[int], TokenBatch | None]:
    """The supervised batch of a step: finished answers to harmless seeds, with thoughts written afterwards.

    Raises:
      ValueError: no harmless seed has a finished answer, or one cannot be learnt; the message shows that answer.
    """
    stream, rows = settings.stream, chat_records(seeds, game)
    # Without a weight, or without a defender that learns, there is nothing to teach.
    if not settings.ppo.ptx_coef or POLICIES[settings.play.roles][1] is None:
        return lambda i: None
    if not rows:
        raise ValueError(
            f'ppo.ptx_coef={settings.ppo.ptx_coef} teaches finished answers, and no harmless seed of seeds.train='
            f'{settings.seeds.train} has a completion; give some, or set ppo.ptx_coef=0'
        )
    placed = ((f'seeds.train={settings.seeds.train}, {files.shown(row["completion"])}', row) for row in rows)
    examples = chats.converted(placed, functools.partial(chats.to_imitate, tokenizer=tokenizer))

    def batch(i: int) -> TokenBatch | None:
        if i % stream.every:
            return None
        packed = pack_examples(
            examples, groups=stream.batch_size, n=1, i=i // stream.every, seed=settings.seed,
            ways=sharding.batch_ways(ctx.mesh), row_tokens=settings.ppo.row_tokens,
        )  # fmt: skip
        return sharding.put_batch(packed, ctx.mesh)

    return batch


# --- the policies ----------------------------------------------------------------------------------------------------


def make_learner(settings: Playing, cfg: ModelConfig, ctx: Context) -> PolicyLearner:
    """The learner of each policy, without a critic."""
    return models.make_learner(settings, cfg, ctx, n=1)


def abstract(learner: PolicyLearner, roles: str) -> RoleStates:
    """The shapes and shardings of the state."""
    return stated(learner.abstract, learner.abstract.actor.model.frozen, roles)


def stated(policy: Any, base: Any, roles: str) -> RoleStates:
    """A state with one and the same policy in the place of each that learns, on one base."""
    count = len({k for k in POLICIES[roles] if k is not None})
    return RoleStates(base, (with_frozen(policy, {}),) * count)


def trained_by(settings: Playing, policy: Policy, learner: PolicyLearner) -> Trained:
    """The export of a run: the defender, or the one policy that learns; with an adapter a role the attacker, too."""
    named, weights = settings.policy, learner.abstract_weights
    base = named.source.removeprefix('hf:')

    def exported(state: RoleStates, k: int) -> Export:
        actor = state.policy(k).actor
        adapters = Adapters(actor.model.params, base, named.lora.dropout) if named.lora.rank else None
        return Export(learner.actor.weights(actor), policy.cfg, policy.tokenizer, adapters)

    def exports(state: RoleStates) -> dict[str, Export]:
        last = len(state.policies) - 1
        return {'export': exported(state, last)} | ({'attacker': exported(state, 0)} if last else {})

    return Trained(
        exports, stated(weights, weights.actor.model.frozen, settings.play.roles), policy.cfg, policy.tokenizer,
        lambda state: state.policy(len(state.policies) - 1).actor,
    )  # fmt: skip


def make_trained(settings: Stage, ctx: Context) -> Trained | None:
    """The policies of a stage play; other stages are runs of other recipes, or train none."""
    # `Settings` inherits from `Playing`, but a run of all stages has no policy in its own folder.
    if isinstance(settings, Settings) or not isinstance(settings, Playing):
        return None
    policy = make_policy(settings.policy, ctx, settings.seed)
    return trained_by(settings, policy, make_learner(settings, policy.cfg, ctx))


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
    """Every stage in its order."""
    source = settings.policy.source
    if settings.start.total_steps:
        yield make_stage(settings, 'examples', workdir, source)
        yield make_stage(settings, 'sft', workdir, source)
        source = f'orbax:{workdir / "sft"}'
    for variant in settings.variants:
        yield make_stage(settings, 'play', workdir, source, variant)
    yield make_stage(settings, 'evaluate', workdir, source)


def make_stage(
    settings: Settings, stage: str, workdir: Path, source: str, variant: str = ''
) -> tuple[ConfigDict, Path]:
    """The config and the folder of a stage. The config has only the values that the stage reads."""
    kind, policy = STAGES[stage], dataclasses.replace(settings.policy, source=source)
    values: dict[str, Any] = {**vars(settings), 'stage': stage, 'variant': variant, 'policy': policy}
    # `total_steps` is that of self-play alone; other stages have theirs in their sections, or none.
    values['total_steps'] = settings.total_steps if stage == 'play' else 0
    if stage == 'examples':
        # The form is all that examples read of the games, so that games may change once they are written.
        values['play'] = PlaySettings(hidden=settings.play.hidden)
    if stage == 'sft':
        rows = workdir / RECORDS / 'sft'
        data = dataclasses.replace(settings.start.data, train=f'{rows}.jsonl', test=f'{rows}-test.jsonl')
        # Evaluations of games are none of its business, so it need not be made again where they change.
        values |= {**vars(settings.start), 'recipe': 'sft', 'data': data, 'eval': StageSettings(base=False)}
    if variant:
        roles, _, seed = variant.rpartition('-')
        values |= {'play': dataclasses.replace(settings.play, roles=roles), 'seed': int(seed)}
    config = to_config(kind(**{key: values[key] for key in keys_of(kind) if key in values}))
    return ConfigDict({**config, 'stage': stage}), workdir / (f'{stage}-{variant}' if variant else stage)


def check(settings: Settings) -> None:
    """Check everything that can be wrong before the first stage.

    Raises:
      ValueError: a value is wrong, or two do not fit together.
    """
    play, seeds, ppo = settings.play, settings.seeds, settings.ppo
    check_at_least(
        settings, 1, 'total_steps', 'repeats', 'play.games', 'stream.every', 'stream.batch_size', 'examples.count',
        'examples.test_count', 'seeds.max_length', 'checkpoint.every',
    )  # fmt: skip
    check_at_least(settings, 0, 'play.shown', 'evaluate.shown', 'seeds.train_count', 'seeds.test_count')
    if play.games % 4:
        raise ValueError(f'play.games={play.games} are a quarter each of four kinds of seeds; give a multiple of 4')
    if unknown := [name for name in settings.compare if name not in POLICIES]:
        raise ValueError(f'compare has {unknown[0]!r}; use {", ".join(POLICIES)}')
    for name in settings.compare or (play.roles,):
        if name == 'adapters' and not settings.policy.lora.rank:
            raise ValueError("roles='adapters' has an adapter for each role; set policy.lora.rank to 1 or more")
        if None in POLICIES[name] and not settings.policy.lora.rank and not ppo.has_reference:
            raise ValueError(
                f'roles={name!r} plays against the start policy, which ppo.kl_coef=0 does not keep; raise '
                'it, or set policy.lora.rank'
            )
    if ppo.estimator != 'reinforce':
        raise ValueError(
            f'ppo.estimator={ppo.estimator!r}: advantages are returns whitened by role, without a critic and without '
            "other samples of a prompt; set ppo.estimator='reinforce'"
        )
    if play.judge == 'rule' and (seeds.train, seeds.test) != (EMBEDDED, EMBEDDED):
        raise ValueError(
            f"play.judge='rule' knows the embedded seeds alone, got seeds.train={seeds.train} and seeds.test="
            f'{seeds.test}; give a moderator (orbax:<workdir>) or a language model (endpoint:judge)'
        )
    judges.check(settings)
    seed_sources.check(seeds, settings.seed)
    if late := [step for step in settings.evaluate.steps if not 0 < step < settings.total_steps]:
        raise ValueError(f'evaluate.steps has {late[0]}; give steps between 1 and total_steps={settings.total_steps}')
