"""Who a policy talks to: people, who plays them and who judges, from `config.dialogue` and `config.reward`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from pal_jax.envs import dialogue as env
from pal_jax.evals import personalization
from pal_jax.feedback.judges import judge_by_rules
from pal_jax.feedback.people import SLOTS, Split, load_people, make_people
from pal_jax.feedback.profiles import match_exactly, split_fact
from pal_jax.feedback.rewards import make_reward
from pal_jax.feedback.users import make_scripted_user
from pal_jax.recipes.recipe import Config
from pal_jax.types import Person, RewardFn, UserSimulator


@dataclasses.dataclass(frozen=True)
class World:
    """Who is talked to, who answers and who judges."""

    train: list[Person]
    tests: dict[str, list[Person]]  # people it never trains on, by the name of their split
    guess: tuple[str, ...]  # the constant profile that suits the training people best
    system: str
    user: UserSimulator
    reward: RewardFn
    score: RewardFn  # of evaluations: the reward, also where training is given a control


def make_world(config: Config) -> World:
    """People, their simulator and the reward, from `config.dialogue` and `config.reward`."""
    dialogue, tested = config.dialogue, config.eval.people
    if dialogue.profiles == 'embedded':
        train = make_people(dialogue.people, seed=config.seed, split='train', facts=dialogue.facts)
        splits: tuple[Split, ...] = ('heldout', 'unseen')
        tests: dict[str, list[Person]] = {
            split: make_people(tested, seed=0, split=split, facts=dialogue.facts) for split in splits
        }
        slots = SLOTS
    else:
        people = load_people(dialogue.profiles)
        cut = len(people) - min(tested, len(people) // 5 or 1)
        if cut < 1:
            raise ValueError(f'{dialogue.profiles} has {len(people)} person; give two or more, one is kept for testing')
        train, tests = people[:cut], {'heldout': people[cut:]}
        slots = tuple(dict.fromkeys(slot for p in train for slot, _ in map(split_fact, p.facts) if slot))[:12]
    reward = functools.partial(
        make_reward,
        choose('reward.matcher', config.reward.matcher, exact=lambda: match_exactly),
        choose('reward.judge', config.reward.judge, rule=lambda: judge_by_rules),
        response=config.reward.response,
        profile_weight=config.reward.profile_weight,
        response_weight=config.reward.response_weight,
    )
    return World(
        train=train,
        tests=tests,
        guess=personalization.most_common_facts(train),
        system=env.actor_prompt(slots) if dialogue.system == 'embedded' else dialogue.system,
        user=choose(
            'dialogue.user', dialogue.user, scripted=lambda: make_scripted_user(p_spontaneous=dialogue.p_spontaneous)
        ),
        reward=reward(shuffled=config.reward.shuffled),
        score=reward(),
    )


def choose(key: str, name: str, **known: Callable[[], Any]) -> Any:
    """`known[name]()`, or an error that names the key and the choices."""
    if name not in known:
        raise ValueError(f'{key}={name!r} is unknown; use {" or ".join(known)}')
    return known[name]()
