"""Settings from and to a config."""

from __future__ import annotations

import pytest
from ml_collections import ConfigDict

from pal_jax.run.runs import read_settings
from pal_jax.run.settings import parse, to_config
from tests import configs


@pytest.mark.parametrize(
    'name', ['cost', 'dpo', 'moderation', 'pal', 'plus', 'psoups', 'reward', 'rlpa', 'safe_rlhf', 'sft']
)
def test_settings_are_those_of_their_config(name):
    config = configs.load(name)
    settings = read_settings(config)
    assert to_config(settings).to_dict() == config.copy_and_resolve_references().to_dict()
    assert parse(type(settings), to_config(settings)) == settings
    hash(settings.optimizer)  # learners compare by value


def test_a_list_of_a_json_file_is_a_tuple_and_an_integer_may_stand_for_a_float():
    settings = read_settings(configs.load('rlpa', **{'ppo.reward_clip': (-1, 2), 'ppo.gamma': 1}))
    assert settings.ppo.reward_clip == (-1, 2) and isinstance(settings.ppo.gamma, float)
    assert settings.ppo.temperature == 1.0 and 'temperature' not in to_config(settings.ppo)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'clip': None}, r'no ppo\.clip; .* earlier version'),
        ({'clpi': 0.1}, r'unknown key ppo\.clpi; did you mean ppo\.clip'),
        ({'kl_in': 'los'}, r"ppo\.kl_in='los'; use one of reward, loss"),
        ({'epochs': '1'}, r"ppo\.epochs='1' must be of type int"),
        ({'epochs': 0}, r'ppo\.epochs=0'),
        ({'reward_clip': ('a', 1.0)}, r"ppo\.reward_clip=\('a', 1\.0\)"),
        ({'reward_clip': (1.0,)}, r'ppo\.reward_clip=\(1\.0,\)'),
        ({'loss_agg': 'mean'}, r"ppo\.loss_agg='mean'; use one of"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_its_section(change, message):
    config = configs.load('rlpa').to_dict()
    with pytest.raises(ValueError, match='critic: lr=-1'):
        read_settings(configs.load('rlpa', **{'critic.lr': -1.0}))
    with pytest.raises(ValueError, match='ppo=3 must be a section'):
        read_settings(ConfigDict(config | {'ppo': 3}))
    config['ppo'] = {key: value for key, value in (config['ppo'] | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        read_settings(ConfigDict(config))
