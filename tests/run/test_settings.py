"""Settings: their changes, and their way to and from JSON."""

from __future__ import annotations

import json
import re

import pytest

from pal_jax import recipes
from pal_jax.run import habits, keys, shipped
from pal_jax.run.config_files import homed, settings_of
from pal_jax.run.faults import Fault
from pal_jax.run.settings import changed, filled, overridden, parse, to_dict
from tests import configs


@pytest.mark.parametrize(
    'name', ['cost', 'dpo', 'moderation', 'pal', 'plus', 'psoups', 'reward', 'rlpa', 'safe_rlhf', 'sft']
)
def test_settings_are_those_of_their_config(name):
    settings = configs.load(name)
    assert parse(type(settings), json.loads(json.dumps(to_dict(settings)))) == settings
    hash(settings.optimizer)  # learners compare by value


def test_a_list_of_a_json_file_is_a_tuple_and_an_integer_may_stand_for_a_float():
    rlpa = configs.load('rlpa')
    values = to_dict(rlpa)
    values['ppo'] |= {'reward_clip': [-1, 2], 'gamma': 1}
    settings = parse(type(rlpa), values)
    assert settings.ppo.reward_clip == (-1, 2) and isinstance(settings.ppo.gamma, float)
    assert settings.ppo.temperature == 1.0 and 'temperature' not in to_dict(settings.ppo)


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
    rlpa = configs.load('rlpa')
    with pytest.raises(ValueError, match='critic: lr=-1'):
        changed(rlpa, critic=dict(lr=-1.0))
    with pytest.raises(ValueError, match='ppo=3 must be a section'):
        changed(rlpa, ppo=3)
    values = to_dict(rlpa)
    values['ppo'] = {key: value for key, value in (values['ppo'] | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        parse(type(rlpa), values)
    if None not in change.values():
        with pytest.raises(ValueError, match=message):
            changed(rlpa, ppo=change)


@pytest.mark.parametrize(
    ('key', 'text', 'value'),
    [
        ('total_steps', '7', 7),
        ('ppo.kl_coef', '1e-3', 1e-3),
        ('export', 'false', False),
        ('export', '1', True),
        ('sampling.stop', "('.', '!')", ('.', '!')),
        ('sampling.stop', '.', ('.',)),
        ('sampling.stop', '', ()),
        ('ppo.reward_clip', '-1,2', (-1.0, 2.0)),
        ('ppo.kl_in', 'loss', 'loss'),
        ('policy.source', '17', '17'),
        ('endpoints.judge.address', 'http://a=b', 'http://a=b'),
    ],
)
def test_a_text_of_the_command_line_is_the_value_of_its_key(key, text, value):
    settings = overridden(configs.load('rlpa'), {key: text})
    for part in key.split('.'):
        settings = settings[part] if isinstance(settings, dict) else getattr(settings, part)
    assert settings == value and type(settings) is type(value)


@pytest.mark.parametrize(
    ('key', 'text', 'message'),
    [
        ('ppo.clpi', '1', r'unknown key ppo\.clpi; did you mean ppo\.clip'),
        ('pppo.clip', '1', r'unknown key pppo; did you mean ppo'),
        ('seed.x', '1', r'unknown key seed\.x'),
        ('endpoints.nobody.address', 'x', r'unknown key endpoints\.nobody'),
        ('total_steps', '1.5', r"total_steps='1\.5' must be of type int"),
        ('export', 'maybe', r"export='maybe' must be of type bool"),
        ('ppo', '3', r"ppo='3' must be a section"),
        ('endpoints', '3', r"endpoints='3' must have a section"),
        ('ppo.kl_in', 'los', r"ppo\.kl_in='los'; use one of reward, loss"),
    ],
)
def test_a_text_that_is_no_value_of_its_key_is_named(key, text, message):
    with pytest.raises(ValueError, match=message):
        overridden(configs.load('rlpa'), {key: text})


def test_a_value_in_the_place_of_a_section_is_refused_before_a_key_of_the_section():
    for texts in ({'ppo': '3', 'ppo.clip': '0.1'}, {'ppo.clip': '0.1', 'ppo': '3'}):
        with pytest.raises(ValueError, match="ppo='3' must be a section"):
            overridden(configs.load('rlpa'), texts)


def test_a_change_leaves_all_else_and_a_section_may_be_replaced():
    sft = configs.load('sft')
    other = changed(sft, seed=3, data=dict(batch_size=9), optimizer=sft.optimizer)
    assert (other.seed, other.data.batch_size, other.data.max_length) == (3, 9, sft.data.max_length)
    assert changed(other, seed=sft.seed, data=sft.data) == sft
    reward = filled(type(configs.load('reward')), other, data=configs.load('reward').data)
    assert (reward.seed, reward.optimizer) == (3, sft.optimizer)


def test_a_tilde_in_a_config_file_is_the_home_folder(monkeypatch):
    monkeypatch.setenv('HOME', '/home/ana')
    psoups = configs.load('psoups', **{'policy.source': 'hf:~/a', 'answers': '~/d'})
    homely = homed(changed(psoups, sampling=dict(stop=('~/b', 'c'))))
    assert (homely.policy.source, homely.answers, homely.sampling.stop) == (
        'hf:/home/ana/a',
        '/home/ana/d',
        ('/home/ana/b', 'c'),
    )
    assert homed(homely) == homely


@pytest.mark.parametrize(
    ('config', 'change', 'message'),
    [
        ('rl', 'lr=1e-4', '--config.optimizer.lr'),
        ('sft', 'learning_rate=1e-4', '--config.optimizer.lr'),
        ('rl', 'save_steps=5', '--config.checkpoint.every'),
        ('rl', 'num_generations=4', '--config.rl.n_samples_per_prompt'),
        ('rlpa', 'ppo.num_generations=4', '--config.dialogue.n_samples_per_prompt'),
        ('rl', 'beta=0.1', '--config.ppo.kl_coef'),
        ('rl', 'num_train_epochs=2', 'total_steps (epochs * prompts'),
        ('rl', 'train_batch_size=8', 'ppo.minibatches (it counts minibatches)'),
        ('rl', 'data.train_batch_size=8', '--config.rl.rollout_batch_size'),
        ('sft', 'data.train_batch_size=8', '--config.data.batch_size'),
        ('rl', 'data.max_prompt_length=8', '--config.prompts.max_length'),
        ('rl', 'data.max_response_length=8', '--config.sampling.max_tokens'),
        ('rl', 'actor_rollout_ref.rollout.n=4', '--config.rl.n_samples_per_prompt'),
        ('rl', 'actor_rollout_ref.actor.optim.lr=1', '--config.optimizer.lr'),
        ('rl', 'actor_rollout_ref.model.path=x', '--config.policy.source'),
        ('rl', 'algorithm.adv_estimator=grpo', '--config.ppo.estimator'),
        ('rl', 'trainer.total_epochs=2', 'total_steps (epochs * prompts'),
        ('rl', 'trainer.total_training_steps=2', '--config.total_steps'),
        ('rl', 'beta=0.04', 'ppo.kl_in=loss'),
        ('rl', 'deepspeed=3', '--config.mesh.fsdp'),
        ('rl', 'per_device_train_batch_size=8', 'divided by rl.n_samples_per_prompt'),
        ('dpo', 'per_device_train_batch_size=8', 'times its accumulation steps'),
        ('dpo', 'gradient_accumulation_steps=8', '--config.data.batch_size (multiply'),
        ('rl', 'report_to=wandb', '--config.metrics.wandb (the name of a project'),
        ('rl', 'use_vllm=True', 'leave it out'),
        ('sft', 'load_in_4bit=True', '--config.policy.lora.rank'),
        ('sft', 'dataset_name=a/b', '--config.data.train (a file, or hf:'),
        ('rl', 'input_key=x', '--config.prompts.key'),
        ('rl', 'flash_attn=1', 'attention'),
        ('rl', 'model=x', '--config.policy.source'),
        ('rl', 'warmup_steps=3', '--config.optimizer.warmup_ratio (it is a share'),
        ('dpo', 'beta=0.2', '--config.dpo.beta'),
        ('sft', 'output_dir=runs/a', '--workdir'),
        ('rl', 'logging_steps=1', 'metrics.jsonl'),
        ('rl', 'ppo.estimator=grpo', 'grpo is group_norm'),
        ('rl', 'ppo.loss_agg=dapo', 'dapo is token_mean'),
        ('grpo', 'seed=1', '--config=rl'),
        ('rl', 'ppo.clp=1', 'did you mean ppo.clip'),
    ],
)
def test_habits_of_other_libraries_are_answered_with_our_key(config, change, message):
    with pytest.raises(Fault, match=re.escape(message)):
        settings_of(shipped.config_path(config), (change,))


def test_all_unknown_keys_are_told_at_once():
    with pytest.raises(Fault, match=r'unknown key lr; .*optimizer.lr; unknown key foo; .*beta; .*ppo.kl_coef'):
        settings_of(shipped.config_path('rl'), ('lr=1', 'foo=2', 'beta=3'))


def test_every_name_of_a_habit_is_a_key_of_some_method():
    names = {
        key.name
        for config in shipped.config_names()
        for section in keys.sections(settings_of(shipped.config_path(config), ()))
        for key in section.keys
    }
    assert {key for meant in habits.KEYS.values() for key in meant} <= names | {'--workdir'}
    for config, *changes in map(str.split, recipes.ELSEWHERE.values()):
        assert settings_of(shipped.config_path(config), tuple(change.removeprefix('--config.') for change in changes))
    assert habits.hint('learning-rate') == '; here it is --config.optimizer.lr' and habits.hint('nonsense') == ''
