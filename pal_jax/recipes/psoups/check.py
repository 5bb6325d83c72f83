"""The checks of a config of Personalized Soups before its first stage runs, for errors that later stages would fail
at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pal_jax.judges.chat_models import ChatModels
from pal_jax.learners.ppo import check_samples
from pal_jax.learners.scorer import check_dropout, check_pooling
from pal_jax.recipes.personal.pal import scores as pal_scores
from pal_jax.recipes.psoups.annotate import ANNOTATIONS, PAIRS
from pal_jax.recipes.psoups.evaluate import GENERATIONS
from pal_jax.recipes.psoups.jobs import make_fronts
from pal_jax.recipes.psoups.judges import open_annotators, read_annotators
from pal_jax.recipes.psoups.merge import MERGED, soup_weights
from pal_jax.recipes.psoups.preferences import Preference, combinations
from pal_jax.recipes.psoups.prompts import known_prompts, read_preferences
from pal_jax.recipes.psoups.rollout import ROLLOUTS
from pal_jax.recipes.psoups.settings import Settings
from pal_jax.run.ahead import check_ahead
from pal_jax.run.models import make_adapters
from pal_jax.run.recipe import check_at_least, check_divides
from pal_jax.run.workdir import CONFIG

WRITES = {  # files that stages write beside their folders
    'rollout': (ROLLOUTS,),
    'annotate': (ANNOTATIONS, PAIRS),
    'merge': (MERGED,),
    'evaluate': (GENERATIONS,),
}


def check(settings: Settings) -> tuple[Preference, ...]:
    """The preferences of the settings, after checks of everything that later stages would fail at.

    Raises:
      ValueError: a value is wrong.
      RuntimeError: a library is missing.
    """
    if not settings.policy.lora.rank:
        raise ValueError('policy.lora.rank=0: soups are made of adapters; give a rank')
    check_at_least(settings, 0, 'rollout.prompts', 'prompts.train_count')
    check_at_least(settings, 2, 'rollout.answers')
    check_at_least(
        settings, 1, 'total_steps', 'rollout.batch_size', 'annotate.batch_size', 'rl.rollout_batch_size',
        'rl.n_samples_per_prompt', 'rl.test_count', 'prompts.test_count', 'evaluate.draws',
        'evaluate.front_prompts', 'ppo.minibatches', 'checkpoint.every',
    )  # fmt: skip
    check_divides(settings, 'rl.rollout_batch_size', 'ppo.minibatches')
    check_ahead(settings.rollout, settings.decode)
    if not 0 < settings.annotate.test_share < 1:
        raise ValueError(f'annotate.test_share={settings.annotate.test_share} must be between 0 and 1')
    check_learning(settings)
    poles = read_preferences(settings)
    check_judges(settings, poles)
    for pole in poles:
        if pole.rule:
            # A rule imports its library at its first score: it is tried now, and not hours later.
            pole.rule.score('', 'The library that it needs is there.')
    soup_weights(settings.merge, len(combinations(poles)[0]))
    make_fronts(settings.evaluate, poles)
    return poles


def check_prompts(settings: Settings) -> None:
    """Raises ValueError where a file of prompts has no prompt, or a line that is none."""
    for split in ('train', 'test'):
        known_prompts(settings.prompts, split)


def check_judges(settings: Settings, poles: Sequence[Preference]) -> None:
    """Raises ValueError where a judge cannot be had, or has no rule for one of the poles."""
    for key, name, role in (
        ('annotate.annotator', settings.annotate.annotator, 'judge'),
        ('annotate.second', settings.annotate.second, 'judge'),
        ('evaluate.judge', settings.evaluate.judge, 'evaluator'),
    ):
        if key == 'annotate.second' and not name:
            continue
        models = ChatModels(settings.endpoints, settings.answers, settings.seed)
        try:
            judges = open_annotators(models, read_annotators(name, settings.preferences), role)
            for pole in poles:
                # An annotator that is asked about no rows fails only where it can judge no row of the pole.
                judges(pole.id)(pole, [], settings.seed)
        except ValueError as error:
            raise ValueError(f'{key}={name!r}: {error}') from None


def check_learning(settings: Settings) -> None:
    """Raises ValueError where reward models or PPO would fail once there are answers to learn from."""
    if settings.ppo.ptx_coef:
        raise ValueError(
            f'ppo.ptx_coef={settings.ppo.ptx_coef} weighs supervised examples, of which psoups has none beside its '
            'samples; set it to 0'
        )
    check_samples(settings.ppo, settings.rl.n_samples_per_prompt)
    check_pooling(settings.reward.data.pooling)
    check_dropout(make_adapters(settings.reward.policy.lora))
    if settings.rl.reward:
        pal_scores.make_score(settings.rl.reward, settings.rl.person)


def check_shared(stages: Sequence[str], workdir: Path) -> None:
    """Raises ValueError where a stage that has never begun would write a file that exists beside its folder."""
    for stage in stages:
        for path in (workdir / name for name in WRITES.get(stage, ())):
            if not (workdir / stage / CONFIG).exists() and (path.is_file() or (path.is_dir() and any(path.iterdir()))):
                raise ValueError(
                    f'{path} is there, and stage={stage} of this run has not written it; give another --workdir'
                )
