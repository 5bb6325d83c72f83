"""What is wrong with a config of Personalized Soups, told before its first stage runs: later ones would fail at it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pal_jax.feedback.preferences import Preference, combinations
from pal_jax.learners.ppo import PPO, check_samples
from pal_jax.learners.scorer import BradleyTerry, check_dropout, check_pooling
from pal_jax.parts.chat_models import ChatModels
from pal_jax.parts.models import make_adapters
from pal_jax.parts.recipe import Config, check_at_least
from pal_jax.recipes.pal import person as pal_person
from pal_jax.recipes.psoups.data import ANNOTATIONS, PAIRS, ROLLOUTS
from pal_jax.recipes.psoups.evaluate import GENERATIONS
from pal_jax.recipes.psoups.jobs import make_fronts
from pal_jax.recipes.psoups.judges import open_annotators, read_annotators
from pal_jax.recipes.psoups.merge import MERGED, soup_weights
from pal_jax.recipes.psoups.prompts import known_prompts, read_preferences
from pal_jax.runtime.workdir import CONFIG

WRITES = {  # what stages write beside their folders
    'rollout': (ROLLOUTS,),
    'annotate': (ANNOTATIONS, PAIRS),
    'merge': (MERGED,),
    'evaluate': (GENERATIONS,),
}


def check(config: Config, prompts: bool = True) -> tuple[Preference, ...]:
    """The preferences of a config, if everything is right that later stages would fail at; with `prompts`, files of
    prompts too.

    Raises:
      ValueError: a value is wrong.
      RuntimeError: a library is not there.
    """
    if not config.policy.lora.rank:
        raise ValueError('policy.lora.rank=0: soups are made of adapters; give a rank')
    check_at_least(config, 0, 'rollout.prompts', 'prompts.train_count')
    check_at_least(config, 2, 'rollout.answers')
    check_at_least(
        config, 1, 'total_steps', 'rollout.batch_size', 'annotate.batch_size', 'rl.rollout_batch_size',
        'rl.n_samples_per_prompt', 'rl.test_count', 'prompts.test_count', 'evaluate.draws',
        'evaluate.front_prompts', 'ppo.minibatches', 'checkpoint.every',
    )  # fmt: skip
    if config.rl.rollout_batch_size % config.ppo.minibatches:
        raise ValueError(
            f'rl.rollout_batch_size={config.rl.rollout_batch_size} does not divide into '
            f'ppo.minibatches={config.ppo.minibatches}'
        )
    if not 0 < config.annotate.test_share < 1:
        raise ValueError(f'annotate.test_share={config.annotate.test_share} must be between 0 and 1')
    for split in ('train', 'test') if prompts else ():
        known_prompts(config, split)
    check_learning(config)
    poles = read_preferences(config)
    check_judges(config, poles)
    for pole in poles:
        if pole.rule:
            pole.rule.score('', 'The library that it needs is there.')
    soup_weights(config, len(combinations(poles)[0]))
    make_fronts(config, poles)
    return poles


def check_judges(config: Config, poles: Sequence[Preference]) -> None:
    """Raises ValueError where a judge cannot be had, or has no rule for one of the poles."""
    named = {'annotate.annotator': 'judge', 'annotate.second': 'judge', 'evaluate.judge': 'evaluator'}
    for key, role in named.items():
        part, _, name = key.partition('.')
        given = config[part][name]
        if key == 'annotate.second' and not given:
            continue
        try:
            judges = open_annotators(ChatModels(config), read_annotators(given, config), role)
            for pole in poles:
                judges(pole.id)(pole, [], config.seed)
        except ValueError as error:
            raise ValueError(f'{key}={given!r}: {error}') from None


def check_learning(config: Config) -> None:
    """Raises ValueError where reward models or PPO would, once there are answers to learn from."""
    check_samples(PPO(**config.ppo), config.rl.n_samples_per_prompt)
    BradleyTerry(**config.reward.reward)
    check_pooling(config.reward.data.pooling)
    check_dropout(make_adapters(config.reward))
    if config.rl.reward:
        pal_person.make_score(config.rl.reward, config.rl.person)


def check_shared(stages: Sequence[str], workdir: Path) -> None:
    """Raises ValueError where there is a file that a stage writes beside its folder, and the stage has never begun."""
    for stage in stages:
        for path in (workdir / name for name in WRITES.get(stage, ())):
            if not (workdir / stage / CONFIG).exists() and (path.is_file() or (path.is_dir() and any(path.iterdir()))):
                raise ValueError(
                    f'{path} is there, and stage={stage} of this run has not written it; give another --workdir'
                )
