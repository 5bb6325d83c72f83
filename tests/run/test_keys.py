"""What `--help` says about keys: where meanings are read from, and that every key of every config has one."""

from __future__ import annotations

import dataclasses
from typing import Literal

import pytest

from pal_jax.objectives.advantages import ESTIMATORS
from pal_jax.run import keys
from pal_jax.types import derived
from tests import configs


@dataclasses.dataclass(frozen=True)
class Inner:
    """The kitchen. It has no windows.

    Attributes:
      salt: grams of salt,
        and of sugar.
      b1, b2: two burners.
    """

    salt: float = 1.0
    b1: int = 0
    b2: int = 1


@dataclasses.dataclass(frozen=True)
class Outer:
    """The house."""

    # The colour of the door,
    # which is painted.
    door: Literal['red', 'blue'] = 'red'
    name: str = 'a\nb'  # its name
    kitchen: Inner = Inner()
    bare: int = 0
    hidden: int = derived(3)  # no key


def test_meanings_stand_behind_above_or_in_the_docstring():
    assert keys.meanings(Inner) == {'salt': 'grams of salt, and of sugar.', 'b1': 'two burners.', 'b2': 'two burners.'}
    assert keys.meanings(Outer)['door'] == 'The colour of the door, which is painted.'
    assert keys.meanings(Outer)['name'] == 'its name'


def test_a_subclass_has_the_meanings_of_its_fields_and_may_change_them():
    @dataclasses.dataclass(frozen=True)
    class Second(Outer):
        name: str = 'c'  # another name

    assert keys.meanings(Second) == keys.meanings(Outer) | {'name': 'another name'}


def test_help_has_option_value_meaning_and_choices():
    text = '\n'.join(keys.described(Outer()))
    assert '--config.door=red' in text and 'which is painted. (red, blue)' in text
    assert r'--config.name=a\nb' in text  # one line
    assert 'kitchen: The kitchen\n' in text and '--config.kitchen.salt=1.0' in text
    assert 'hidden' not in text
    assert all(len(line) <= keys.WIDTH for line in text.splitlines())
    of_run = '\n'.join(keys.described(configs.load('rlpa')))
    first = of_run.partition('\nrun: ')[0]
    assert first.index('--config.policy.source=') < first.index('--config.total_steps=') < first.index('.optimizer.lr=')
    # One class explains the optimisers of policy and critic.
    assert 'on a gradient; of the policy\n' in of_run and 'on a gradient; used by the estimator' in of_run
    assert '--config.endpoints.judge.retries=5 ' in of_run
    assert all(name in of_run.split('--config.ppo.estimator')[1][:200] for name in ESTIMATORS)


@pytest.mark.parametrize(
    ('config', 'variant'),
    [(path.stem, '') for path in sorted(configs.CONFIGS.glob('*.py'))] + [('pal', 'large')],
)
def test_every_key_of_a_config_has_a_meaning(config, variant):
    settings = configs.load(config, variant)
    bare = [key.name for section in keys.sections(settings) for key in section.keys if not key.meaning]
    assert bare == []
    assert all(keys.first_sentence(section.kind) for section in keys.sections(settings))
