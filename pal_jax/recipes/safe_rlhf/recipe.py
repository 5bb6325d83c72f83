"""Safe RLHF (arXiv 2310.12773): a policy that is as helpful as a limit on the harm of its answers lets it be.

    collect    judged answers: which of two helps more, which is safer, and which are unsafe
    sft        the start policy, supervised on these answers
    cost       a cost model, above 0 for what is unsafe; reward: a reward model of what helps
    rl         PPO on reward and cost under a limit, by any handler of `objectives/constraints.py`
    evaluate   the policies side by side

In later rounds (`rounds`) the last policy answers, its answers are judged, both models are trained anew on all
judgements so far, and PPO goes on from that policy. Each stage is a run of its own in a folder beside the others'.
This file has the list of stages and what is refused before the first of them; `rl.py` is PPO.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from pal_jax.judges.refusals import read_prompts
from pal_jax.learners.ppo import check_samples
from pal_jax.recipes import sft
from pal_jax.recipes.safe_rlhf import collect, evaluate, rl
from pal_jax.recipes.safe_rlhf.collect import records_folder, rl_name, round_name
from pal_jax.recipes.safe_rlhf.prompts import check_groups
from pal_jax.recipes.safe_rlhf.settings import ConstraintSettings, RLSettings, Settings, variants
from pal_jax.recipes.scorer import cost, reward
from pal_jax.run.ahead import check_ahead
from pal_jax.run.planned import PlannedRun
from pal_jax.run.recipe import check_at_least, check_divides
from pal_jax.run.settings import Run, filled
from pal_jax.run.stages import Stage, chosen, make_stage, section_values


def stages(settings: Settings, workdir: Path) -> list[Stage]:
    """The stages that `stage` of the settings names, each with its own settings and folder, in their order.

    Raises:
      ValueError: there is no such stage, or a value is wrong.
    """
    check(settings)
    return chosen([*all_stages(settings, workdir)], settings.stage)


def all_stages(settings: Settings, workdir: Path) -> Iterator[Stage]:
    """Every stage of every round."""
    start = source = settings.policy.source

    def make(folder: str, kind: type[Run], **values: object) -> Stage:
        policy = dataclasses.replace(settings.policy, source=source)
        return make_stage(settings, workdir / folder, kind, **{'policy': policy, **values})

    for number in range(1, settings.rounds + 1):
        records = records_folder(workdir, number)
        # With both models named and no start policy to train, the first round has no use for judged answers.
        if number > 1 or not (settings.rl.reward and settings.rl.cost and not settings.start.total_steps):
            yield make(round_name('collect', number), collect.Settings, recipe='safe_rlhf.collect', round=number)
        if number == 1 and settings.start.total_steps:
            yield make('sft', sft.Settings, recipe='sft', **section_values(settings.start, records / collect.SFT))
            start = source = f'orbax:{workdir / "sft"}'
        # Models that `rl` names are those of the first round; later ones learn from the answers of new policies.
        # Which limits are possible is known with the cost model, so it comes first.
        if number > 1 or not settings.rl.cost:
            values = section_values(settings.cost, records / collect.JUDGED, source)
            yield make(round_name('cost', number), cost.Settings, recipe='scorer.cost', **values)
        if number > 1 or not settings.rl.reward:
            values = section_values(settings.reward, records / collect.PAIRS, source)
            yield make(round_name('reward', number), reward.Settings, recipe='scorer.reward', **values)
        judges = judges_of(settings, workdir, number)
        for variant in variants(settings):
            steps = {'total_steps': settings.total_steps, **variant_values(settings, variant)}
            yield make(rl_name(number, variant), rl.Settings, recipe='safe_rlhf.rl', rl=judges, **steps)
        # The next round goes on from this policy; `check` refuses variants in more than one round.
        source = f'orbax:{workdir / round_name("rl", number)}'
    source = start
    # Policies of all rounds are judged by the last models, which have learnt from the answers of most of them.
    judges = judges_of(settings, workdir, settings.rounds)
    yield make('evaluate', evaluate.Settings, recipe='safe_rlhf.evaluate', rl=judges)


def stage_ended(settings: Settings, stage: Stage) -> str:
    """A line on the limits that a finished cost model leaves; '' of other stages.

    Raises:
      ValueError: no policy meets a limit.
    """
    if stage.settings.recipe != 'scorer.cost':
        return ''
    return max((rl.check_limits(constraint, stage.folder) for constraint in constraints_of(settings)), key=len)


def judges_of(settings: Settings, workdir: Path, number: int) -> RLSettings:
    """The section `rl` with the reward and the cost model of a round. Models that it names stand for the first's."""
    named = {'reward': settings.rl.reward, 'cost': settings.rl.cost} if number == 1 else {}
    sources = {name: named.get(name) or f'orbax:{workdir / round_name(name, number)}' for name in ('reward', 'cost')}
    return dataclasses.replace(settings.rl, **sources)


def variant_values(settings: Settings, variant: str) -> dict[str, object]:
    """The keys of a policy of PPO that `compare` names, such as log-0; none where there is one policy."""
    # A handler may have a dash itself, as in fixed-0.5-1, so the seed stands behind the last one.
    handler, _, seed = variant.rpartition('-')
    return {'constraint': settings.constraint.compared(handler), 'seed': int(seed)} if variant else {}


def constraints_of(settings: Settings) -> list[ConstraintSettings]:
    """The constraints of all policies of PPO."""
    return [settings.constraint.compared(name) for name in settings.compare] or [settings.constraint]


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
    check_divides(settings, 'rl.rollout_batch_size', 'ppo.minibatches')
    check_ahead(settings.rollout, settings.decode)
    if not 0 < settings.collect.test_share < 1:
        raise ValueError(f'collect.test_share={settings.collect.test_share} must be between 0 and 1')
    # The folder of a variant has no number of a round, so rounds would write over one another.
    if settings.compare and settings.rounds > 1:
        raise ValueError(f'compare={settings.compare} goes with rounds=1, got rounds={settings.rounds}')
    section = settings.evaluate
    if bool(section.reward) != bool(section.cost):
        raise ValueError(f'evaluate.reward={section.reward!r} and evaluate.cost={section.cost!r}: give both or none')
    if section.moderation and not section.prompts:
        raise ValueError(f'evaluate.moderation={section.moderation!r} judges answers to evaluate.prompts; name some')
    for name in section.prompts:
        read_prompts(name)
    constraints = constraints_of(settings)
    check_samples(settings.ppo, settings.rl.n_samples_per_prompt)
    rl.estimate_of(settings)
    for reason in (constraint.chosen.refused_with_groups for constraint in constraints):
        if settings.constraint.by_group and reason:
            raise ValueError(f'constraint.limits={settings.constraint.limits!r}: {reason}; use another handler')
    check_groups(settings.prompts, settings.seed, settings.constraint.by_group)


def planned(settings: Settings, prompt: int) -> PlannedRun:
    """The part of a run that is planned, see `run/planned.py`: the stage that trains the policy."""
    return rl.planned(filled(rl.Settings, settings), prompt)
