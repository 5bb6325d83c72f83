"""Every option of RLPA's published code: its default in `:paper`, and that it changes what it should."""

from __future__ import annotations

import contextlib
import functools
import json
from operator import attrgetter

import jax
import pytest

from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.models.files import sources
from pal_jax.recipes.rlpa import people, world
from pal_jax.recipes.rlpa import recipe as rlpa
from pal_jax.recipes.rlpa.criteria import judge_by_rules
from pal_jax.recipes.rlpa.profiles import render_completion, to_sample
from pal_jax.recipes.rlpa.turns import make_turn_sampler
from pal_jax.run import devices
from pal_jax.run.recipe import Context
from pal_jax.types import Completion, Dialogue, Person, Turn
from tests import configs
from tests.recipes.rlpa.test_dialogues_of_models import Idle, make

CONTEXT = Context(devices.make_mesh(devices=jax.devices()[:1]), lambda name: contextlib.nullcontext())

# Section II.6 of the specification: the training script's value where it gives one, else the parser's default.
PUBLISHED = {
    'dialogue.use_multiturn': True, 'dialogue.max_rounds': 10, 'dialogue.round_batch_size': 256,
    'dialogue.shuffle': False, 'dialogue.n_samples_per_prompt': 4, 'dialogue.rollout_batch_size': 256,
    'dialogue.input_key': 'input', 'dialogue.label_key': 'profile', 'dialogue.max_samples': 10_000_000,
    'dialogue.prompt_max_len': 4096, 'dialogue.turn_gamma': 0.0,
    'ppo.estimator': 'gae', 'ppo.kl_in': 'reward', 'ppo.kl_coef': 0.01, 'ppo.kl_estimator': 'k1', 'ppo.kl_target': 0.0,
    'ppo.kl_horizon': 10_000, 'ppo.gamma': 1.0, 'ppo.lam': 0.95, 'ppo.clip': 0.2, 'ppo.value_clip': 0.2,
    'ppo.reward_clip': (-10.0, 10.0), 'ppo.epochs': 1, 'ppo.micro_train_batch_size': 4,
    'ppo.freezing_actor_steps': -1, 'ppo.ptx_coef': 0.0, 'ppo.negative_scale': 1.0,
    'sampling.temperature': 1.0, 'sampling.top_p': 1.0, 'sampling.top_k': 0, 'sampling.max_tokens': 4096,
    'optimizer.lr': 5e-7, 'critic.lr': 9e-6, 'optimizer.warmup_ratio': 0.03, 'optimizer.min_ratio': 0.1,
    'optimizer.b1': 0.9, 'optimizer.b2': 0.95, 'optimizer.weight_decay': 0.0, 'optimizer.max_norm': 1.0,
    'reward.profile_weight': 1.0, 'reward.response_weight': 1.0, 'reward.response': 'strict',
    'policy.lora.rank': 0, 'policy.lora.alpha': 16.0, 'policy.lora.targets': 'all-linear', 'policy.lora.dropout': 0.0,
    'policy.source': 'hf:Qwen/Qwen2.5-3B-Instruct', 'policy.remat': 'full', 'warmup.steps': 0, 'seed': 42,
    'checkpoint.every': 10, 'checkpoint.keep': 3, 'eval.every': 0, 'export': True, 'metrics.wandb': '',
    'total_steps': 150,
}  # fmt: skip


get_config = functools.partial(configs.load, 'rlpa')


class Silent:
    """A decoder that keeps what it is asked and answers one text."""

    def __init__(self, text=''):
        self.prompts, self.text = [], text

    def load(self, params, version=0):
        pass

    def release(self):
        pass

    def __call__(self, requests, told=None):
        self.prompts += [byte_tokenizer().decode(request.prompt_ids) for request in requests]
        return [Completion(self.text, (1, 2), (0.0, 0.0), 'stop') for _ in requests]


def test_the_papers_variant_has_the_references_values():
    config = get_config('paper')
    assert {key: attrgetter(key)(config) for key in PUBLISHED} == PUBLISHED
    sequences = config.dialogue.rollout_batch_size * config.dialogue.n_samples_per_prompt
    assert sequences // config.ppo.minibatches == 128  # train_batch_size
    assert config.dialogue.people * config.dialogue.max_rounds // 256 == config.total_steps  # num_episodes=1


def test_the_ablations_pay_one_part():
    text = render_completion('- pet: cat\n', 'Yes.')
    hello = Dialogue(Person('a', ('pet: cat',)), (Turn('user', 'Hello'),))
    sample = to_sample(hello, Completion(text, (), (), 'stop'))
    profile, reply = (
        world.make_world(get_config(**{f'reward.{weight}_weight': 0.0})).reward([sample], 0)[0].reward
        for weight in ('response', 'profile')
    )
    both = world.make_world(get_config()).reward([sample], 0)[0]
    assert (profile, reply) == (both.info['profile'], both.info['response']) == (1.0, 0.0)
    assert both.reward == 1.0


def test_the_published_visibility_shows_the_judge_the_policys_prompt(monkeypatch):
    shown = []

    def judge(dialogues, inferred, replies, seed):
        shown.append([turn.role for turn in dialogues[0].turns])
        return judge_by_rules(dialogues, inferred, replies, seed)

    text = render_completion('', 'How are you?')
    hello = Dialogue(Person('a', ('pet: cat',)), (Turn('user', 'Hello'),))
    sample = to_sample(hello, Completion(text, (), (), 'stop'))
    rewards = []
    with monkeypatch.context() as patch:
        patch.setattr(world, 'judge_by_rules', judge)
        for published in (False, True):
            made = world.make_world(get_config(reference_compatible=published))
            rewards.append(made.reward([sample], 0)[0].reward)
            made.score([sample], 0)
    assert shown == [['user'], ['user'], ['system', 'user'], ['system', 'user']]
    assert rewards[0] == rewards[1]  # the rules read what was said alone


def test_the_published_aggregation_is_a_mean_of_micro_batches():
    cfg = devices.for_platform(sources.resolve('random:tiny').config, 'float32')
    ours, theirs = (
        rlpa.make_turn_learner(get_config('paper', reference_compatible=flag), cfg, CONTEXT).ppo
        for flag in (False, True)
    )
    assert (ours.aggregation, theirs.aggregation) == ('token_mean', 'micro_token_mean')
    assert ours.micro_train_batch_size == 4


def test_rewards_that_do_not_differ_bring_no_update_unless_it_is_published():
    for published in (False, True):
        config = get_config(reference_compatible=published, **{'warmup.steps': 0, 'reward.min_std': 1e-3})
        made = make(config, Silent(), Idle())
        _, _, _, metrics = made.step(*made.init(), 0)
        assert (metrics['flat'], 'updated' in metrics) == ((0.0, True) if published else (1.0, False))


def test_a_long_dialogue_loses_its_oldest_exchanges_and_never_its_last_words():
    turns = [Turn('user', 'Hello')]
    for i in range(4):
        turns += [Turn('assistant', f'reply {i}', f'- note: {i}\n'), Turn('user', f'message {i}')]
    dialogue, decoder, longest = Dialogue(Person('a', ('pet: cat',)), tuple(turns)), Silent(), 0
    for _ in range(4):
        sampler = make_turn_sampler(get_config(**{'dialogue.prompt_max_len': longest}), '', byte_tokenizer(), decoder)
        (sample,) = sampler([dialogue], 1, (0,))
        assert sample.source == dialogue
        assert not longest or len(sample.prompt_ids) <= longest
        longest = len(sample.prompt_ids) - 1
    assert all('message 3' in prompt and '- note: 3' in prompt for prompt in decoder.prompts)
    assert [[i for i in range(4) if f'reply {i}' in prompt] for prompt in decoder.prompts] == [
        [0, 1, 2, 3], [1, 2, 3], [2, 3], [3],
    ]  # fmt: skip
    tight = make_turn_sampler(get_config(**{'dialogue.prompt_max_len': 20}), '', byte_tokenizer(), decoder)
    with pytest.raises(ValueError, match=r'the last messages alone .* dialogue\.prompt_max_len=20; raise it'):
        tight([dialogue], 1, (0,))


def test_a_files_columns_and_length_are_options(tmp_path):
    path = tmp_path / 'people.jsonl'
    path.write_text('\n'.join(json.dumps({'greeting': f'Hi {i}', 'persona': f'- pet: cat {i}\n- b'}) for i in range(9)))
    keys = {'dialogue.profiles': str(path), 'dialogue.input_key': 'greeting', 'dialogue.label_key': 'persona'}
    made = world.make_world(get_config(**keys, **{'dialogue.max_samples': 5}))
    assert [person.opening for person in made.train] == ['Hi 0', 'Hi 1', 'Hi 2', 'Hi 3']
    assert made.tests['heldout'][0].facts == ('pet: cat 4', 'b')
    with pytest.raises(ValueError, match="expected a string or an object with 'profile'"):
        world.make_world(get_config(**{'dialogue.profiles': str(path)}))


def test_a_system_prompt_may_come_from_a_file(tmp_path):
    path = tmp_path / 'system.txt'
    path.write_text('Be kind.\n')
    assert world.make_world(get_config(**{'dialogue.system': f'file:{path}'})).system == 'Be kind.'
    assert world.make_world(get_config(**{'dialogue.system': 'Be brief.'})).system == 'Be brief.'
    with pytest.raises(ValueError, match='is no file; name one with the text of a system prompt'):
        world.make_world(get_config(**{'dialogue.system': 'file:nowhere'}))


def test_a_profile_may_be_asked_for_as_json():
    config = get_config(**{'dialogue.profile_format': 'json', 'warmup.steps': 0})
    system = world.make_world(config).system
    written = json.loads(system.split('<profile>')[1].split('</profile>')[0])
    assert tuple(written) == people.SLOTS and not any(written.values())
    rlpa.check(config, CONTEXT.mesh)
    with pytest.raises(ValueError, match=r'set warmup\.steps=0 and ppo\.ptx_coef=0'):
        rlpa.check(get_config(**{'dialogue.profile_format': 'json'}), CONTEXT.mesh)
    with pytest.raises(ValueError, match=r"dialogue\.profile_format='xml'"):
        get_config(**{'dialogue.profile_format': 'xml'})
