"""Self-RedTeam (arXiv 2506.07468): an attacker and a defender play on seeds, and both learn from what a judge says.

    examples   moves of both roles, which a small model learns from before it plays
    sft        the start policy, supervised on them
    play       REINFORCE++ on games, with advantages whitened by role
    evaluate   attackers and defenders of all runs against each other

Each stage is a run of its own, in a folder beside the others'. This file has the list of stages and what is refused
before the first of them; each stage has a file of its name, and `sft` is `recipes/sft.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from pal_jax.recipes import sft
from pal_jax.recipes.redteam import evaluate, examples, judges, play
from pal_jax.recipes.redteam import seeds as seed_sources
from pal_jax.recipes.redteam.settings import EMBEDDED, POLICIES, Settings, variants
from pal_jax.run.ahead import check_ahead
from pal_jax.run.recipe import check_at_least
from pal_jax.run.settings import Run, StageSettings
from pal_jax.run.stages import Stage, chosen, make_stage, section_values


def stages(settings: Settings, workdir: Path) -> list[Stage]:
    """The stages that `stage` of the settings names, each with its own settings and folder, in their order.

    Raises:
      ValueError: there is no such stage, or a value is wrong.
    """
    check(settings)
    return chosen([*all_stages(settings, workdir)], settings.stage)


def all_stages(settings: Settings, workdir: Path) -> Iterator[Stage]:
    """Every stage in its order."""
    source = settings.policy.source

    def make(folder: str, kind: type[Run], **values: object) -> Stage:
        policy = dataclasses.replace(settings.policy, source=source)
        return make_stage(settings, workdir / folder, kind, **{'policy': policy, **values})

    if settings.start.total_steps:
        hidden = settings.play.hidden
        yield make_stage(settings, workdir / 'examples', examples.Settings, recipe='redteam.examples', hidden=hidden)
        # Evaluations of games are none of its business, so it need not be made again where they change.
        values = section_values(settings.start, workdir / examples.RECORDS / 'sft')
        yield make('sft', sft.Settings, recipe='sft', eval=StageSettings(base=False), **values)
        source = f'orbax:{workdir / "sft"}'
    # A run of self-play has its roles and its seed in its name.
    for variant in variants(settings, settings.play.roles):
        roles, _, seed = variant.rpartition('-')
        games = dataclasses.replace(settings.play, roles=roles)
        yield make(
            f'play-{variant}',
            play.Settings,
            recipe='redteam.play',
            total_steps=settings.total_steps,
            play=games,
            seed=int(seed),
        )
    yield make('evaluate', evaluate.Settings, recipe='redteam.evaluate')


def check(settings: Settings) -> None:
    """Check everything that can be wrong before the first stage.

    Raises:
      ValueError: a value is wrong, or two do not fit together.
    """
    games, seeds, ppo = settings.play, settings.seeds, settings.ppo
    check_at_least(
        settings, 1, 'total_steps', 'repeats', 'play.games', 'stream.every', 'stream.batch_size', 'examples.count',
        'examples.test_count', 'seeds.max_length', 'checkpoint.every',
    )  # fmt: skip
    check_at_least(settings, 0, 'play.shown', 'evaluate.shown', 'seeds.train_count', 'seeds.test_count')
    if games.games % 4:
        raise ValueError(f'play.games={games.games} are a quarter each of four kinds of seeds; give a multiple of 4')
    if unknown := [name for name in settings.compare if name not in POLICIES]:
        raise ValueError(f'compare has {unknown[0]!r}; use {", ".join(POLICIES)}')
    check_ahead(settings.rollout, settings.decode)
    for name in settings.compare or (games.roles,):
        if settings.served_ahead and name != 'shared':
            raise ValueError(
                f'rollout.ahead={settings.rollout.ahead} with roles={name!r}: a decode server has one policy at a '
                "time, and a game has two; set rollout.ahead=0 or decode.driver='local'"
            )
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
    if games.judge == 'rule' and (seeds.train, seeds.test) != (EMBEDDED, EMBEDDED):
        raise ValueError(
            f"play.judge='rule' knows the embedded seeds alone, got seeds.train={seeds.train} and seeds.test="
            f'{seeds.test}; give a moderator (orbax:<workdir>) or a language model (endpoint:judge)'
        )
    # Judges and sources are tried here, so a fault shows before the first stage.
    judges.check(settings)
    seed_sources.check(seeds, settings.seed)
    if late := [step for step in settings.evaluate.steps if not 0 < step < settings.total_steps]:
        raise ValueError(f'evaluate.steps has {late[0]}; give steps between 1 and total_steps={settings.total_steps}')
