"""What is wrong with a config of Personalized Soups, told before its first stage runs: later ones would fail at it."""

from __future__ import annotations

from collections.abc import Sequence

from pal_jax.feedback.preferences import Preference, combinations
from pal_jax.learners.ppo import PPO, check_samples
from pal_jax.learners.scorer import BradleyTerry, check_dropout, check_pooling
from pal_jax.parts.chat_models import ChatModels
from pal_jax.parts.recipe import Config, check_at_least, make_adapters
from pal_jax.recipes.pal import person as pal_person
from pal_jax.recipes.psoups import evaluate, merge, parts


def check(config: Config, prompts: bool = True) -> tuple[Preference, ...]:
    """The preferences, if everything is right that later stages would fail at; with `prompts`, their files too.

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
        parts.known_prompts(config, split)
    check_learning(config)
    poles = parts.read_preferences(config)
    check_judges(config, poles)
    for pole in poles:
        if pole.rule:
            pole.rule.score('', 'The library that it needs is there.')
    merge.soup_weights(config, len(combinations(poles)[0]))
    evaluate.make_fronts(config, poles)
    return poles


def check_judges(config: Config, poles: Sequence[Preference]) -> None:
    """Raises ValueError where one cannot be had, or has no rule for one of the poles."""
    named = {'annotate.annotator': 'judge', 'annotate.second': 'judge', 'evaluate.judge': 'evaluator'}
    for key, role in named.items():
        part, _, name = key.partition('.')
        given = config[part][name]
        if key == 'annotate.second' and not given:
            continue
        try:
            judges = parts.open_annotators(ChatModels(config), parts.read_annotators(given, config), role)
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
