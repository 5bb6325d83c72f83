"""Plain reinforcement learning: prompts of rows, who pays answers, own games, steps, and a whole run from Python."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

import pal_jax
from pal_jax.commands import library
from pal_jax.decode.driver import Driver
from pal_jax.judges import functions
from pal_jax.learners.ppo_settings import PPO
from pal_jax.models.files import sources
from pal_jax.objectives.advantages import standardised
from pal_jax.recipes.rl import recipe as rl
from pal_jax.recipes.rl import rewards, sums
from pal_jax.recipes.rl.prompts import PromptRow, read_prompts
from pal_jax.recipes.rl.settings import PromptSettings
from pal_jax.recipes.rl.sources import PaidGames, open_game
from pal_jax.run import devices
from pal_jax.run import own as own_parts
from pal_jax.run.recipe import Context
from pal_jax.run.record_scorer import RecordScorer
from pal_jax.types import Completion, Sample
from tests import configs
from tests.decode.serve.jetstream.test_rpc import serving
from tests.recipes.broken_off import assert_it_goes_on_wherever_it_is_broken_off

get_settings = functools.partial(configs.load, 'rl')
ONE = Context(devices.make_mesh(devices=jax.devices()[:1]), lambda name: contextlib.nullcontext())

OWN = '''
def length(prompts, completions, **rest):
    return [float(len(text)) for text in completions]


def tagged(prompts, completions, tag):
    return [float(name == 'b') for name in tag]


def none(prompts, completions):
    return [None for _ in prompts]


def of_chats(prompts, completions):
    return [float(len(completion[0]['content'])) for completion in completions]


class Guess:
    """Two moves, one by each role; the second role is paid where the two moves differ."""

    roles = ('first', 'second')

    def start(self, seed):
        return (seed, ())

    def turn(self, state):
        return len(state[1]) if len(state[1]) < 2 else None

    def prompt(self, state, role):
        return [{'role': 'user', 'content': f'{state[0]} {role} {len(state[1])}'}]

    def apply(self, state, sample):
        return (state[0], (*state[1], sample.completion.text))

    def rewards(self, state):
        return (0.0, float(state[1][0] != state[1][1]))
'''


@pytest.fixture
def own(tmp_path):
    file = tmp_path / 'own.py'
    file.write_text(OWN)
    return str(file)


@pytest.fixture(scope='module')
def tokenizer():
    return sources.resolve('random:tiny').tokenizer()


def write(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return str(path)


def answer(prompt, text, group=0):
    return Sample(prompt.ids, Completion(text, (1,), (0.0,), 'stop'), group, source=prompt)


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_texts_and_messages_are_asked_as_chats_and_columns_stay(tmp_path, tokenizer):
    messages = [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'b?'}]
    text = write(tmp_path / 'texts.jsonl', [{'prompt': 'a?', 'tag': 'a', 'n': 1}, {'prompt': 'b?'}])
    prompts = read_prompts(PromptSettings(text, configs.other_prompts(text)), tokenizer, 0)
    assert prompts.train[0].ids == tuple(tokenizer.chat([{'role': 'user', 'content': 'a?'}]))
    assert dict(prompts.train[0].columns) == {'tag': 'a', 'n': 1} and prompts.columns == ('tag', 'n')
    plain = read_prompts(PromptSettings(text, configs.other_prompts(text), chat=False), tokenizer, 0)
    assert plain.train[0].ids == tuple(tokenizer.prompt('a?'))
    chats = write(tmp_path / 'chats.jsonl', [{'prompt': messages}])
    prompts = read_prompts(PromptSettings(chats, configs.other_prompts(chats)), tokenizer, 0)
    assert prompts.train[0].ids == tuple(tokenizer.chat(messages)) and prompts.train[0].prompt == messages
    with pytest.raises(ValueError, match='prompts.train=.* some prompts are texts'):
        read_prompts(PromptSettings(text, chats), tokenizer, 0)


def test_a_prompt_that_is_tested_is_not_learnt_and_long_ones_are_left_out(tmp_path, tokenizer):
    rows = [{'ask': f'Question {k}?'} for k in range(10)] + [{'ask': 'QUESTION 3? '}, {'ask': 'long ' * 200}]
    settings = PromptSettings(write(tmp_path / 'rows.jsonl', rows), key='ask', test_count=2, max_length=100)
    prompts = read_prompts(settings, tokenizer, 0)
    assert not {p.content for p in prompts.train} & {p.content for p in prompts.test}
    assert len(prompts.test) <= 2 and prompts.left_out == 1


@pytest.mark.parametrize(('rows', 'key'), [
    ([{'question': 'a?'}], "rows.jsonl, line 1: .* 'prompt', but question"), ([{'prompt': ' '}], "'prompt' is ' '"),
    ([{'prompt': [{'role': 'user'}]}], 'content'), ([{'prompt': 'a?'}], 'prompts.train='),
])  # fmt: skip
def test_a_row_without_a_prompt_is_named(tmp_path, tokenizer, rows, key):
    with pytest.raises(ValueError, match=key):
        read_prompts(PromptSettings(write(tmp_path / 'rows.jsonl', rows)), tokenizer, 0)


# --- rewards ----------------------------------------------------------------------------------------------------------


def test_rewards_are_the_weighted_sum_of_functions_that_get_columns(tmp_path, tokenizer, own):
    rows = [{'prompt': f'{tag}?', 'tag': tag} for tag in 'ab']
    path = write(tmp_path / 'rows.jsonl', rows)
    settings = get_settings(**{
        'prompts.train': path, 'reward.function': f'{own}:length,{own}:tagged', 'reward.weights': (0.5, 2.0)
    })  # fmt: skip
    prompts = read_prompts(PromptSettings(path, configs.other_prompts(path)), tokenizer, 0)
    samples = [answer(prompt, 'four') for prompt in prompts.train]
    paid = rewards.make_rewards(settings, prompts, None)(samples, 0)
    assert [sample.reward for sample in paid] == [2.0, 4.0]
    assert dict(paid[1].info) == {'own_length': 4.0, 'own_tagged': 1.0}
    failed = configs.changed(settings, **{'reward.function': f'{own}:none', 'reward.weights': ()})
    assert [s.ok for s in rewards.make_rewards(failed, prompts, None)(samples, 0)] == [False, False]


def test_a_function_without_values_is_named_and_no_server_is(tmp_path, tokenizer, own):
    path = write(tmp_path / 'rows.jsonl', [{'prompt': f'{k}?'} for k in range(6)])
    made = rl.make(get_settings(**{'prompts.train': path, 'reward.function': f'{own}:length,{own}:none'}), ONE)
    groups = made.source.pay([[answer(prompt, 'four')] for prompt in made.source.prompts.train], 0)
    with pytest.raises(RuntimeError, match=f'reward.function={own}:none') as error:
        made.check_paid(groups)
    assert ':length' not in str(error.value) and 'answers=' not in str(error.value)


def test_a_function_that_reads_texts_as_messages_is_told_of_texts(own):
    function = functions.open_functions('reward.function', f'{own}:of_chats', (), ())
    with pytest.raises(RuntimeError, match='reward.function=.*completions are texts'):
        rewards.Rewards(function)([answer(PromptRow('a?', (1,), {}), 'A')], 0)


def test_a_game_without_messages_is_named():
    game = type('Game', (), {'roles': ('a',), 'turn': lambda *_: 0, 'prompt': lambda *_: {'role': 'user'}})()
    games = PaidGames(game, None, 9, PPO(estimator='group_norm'), size=1, n=1, tests=1, seed=0, name='own.py:Game')
    with pytest.raises(RuntimeError, match="rl.game='own.py:Game'"):
        games._prompt(None)


@pytest.mark.parametrize('changes', [{'clip': 0.0}, {'clip_high': -0.1}, {'kl_coef': -0.1}])
def test_values_of_ppo_that_cannot_be_meant_are_refused(changes):
    ((key, value),) = changes.items()
    with pytest.raises(ValueError, match=f'ppo.{key}={value}'):
        PPO(**changes)


def test_tests_are_fewer_than_asked_for(tmp_path, tokenizer):
    path = write(tmp_path / 'rows.jsonl', [{'prompt': f'{k}?'} for k in range(6)])
    asked, default = PromptSettings(path, test_count=3), PromptSettings(path)
    assert 'prompts.test_count=3 became 1' in rl.fewer_tests(asked, read_prompts(asked, tokenizer, 0))
    assert not rl.fewer_tests(default, read_prompts(default, tokenizer, 0))


def test_texts_are_no_rewards():
    pay = rewards.Rewards((rewards.RewardFunction('f', 'f', lambda prompts, completions: ['1.0']),))
    with pytest.raises(RuntimeError, match="'1.0' is a text"):
        pay([answer(PromptRow('a?', (1,), {}), 'A')], 0)


def test_a_function_gets_an_answer_to_messages_as_a_message():
    seen = []
    pay = rewards.Rewards(
        (rewards.RewardFunction('f', 'f', lambda prompts, completions: seen.extend(completions) or [1, 1]),)
    )
    pay(
        [answer(PromptRow('a?', (1,), {}), 'A'), answer(PromptRow([{'role': 'user', 'content': 'b?'}], (1,), {}), 'B')],
        0,
    )
    assert seen == ['A', [{'role': 'assistant', 'content': 'B'}]]


@pytest.mark.parametrize(('text', 'share'), [
    ('Good. \\boxed{7}', 0.7), ('\\boxed{10}', 1.0), ('8', 0.8), ('\\boxed{11}', None), ('fine', None), (None, None),
])  # fmt: skip
def test_a_judge_gives_points(text, share):
    assert rewards.points(text) == share


def test_a_judge_reads_no_thought_and_no_marks_of_others():
    chats = []
    judge = rewards.make_judge(lambda asked, seed: chats.extend(asked) or ['\\boxed{5}'], 'It is short.')
    assert judge(['Why?'], ['<think>secret</think>So. \\boxed{10}'], 0) == [0.5]
    text = chats[0][0]['content']
    assert 'It is short.' in text and 'Why?' in text and 'secret' not in text and text.count('\\boxed') == 1


def test_a_scorer_reads_what_the_policy_read_and_texts_where_it_reads_no_chats(monkeypatch):
    def of_texts(record):
        if not isinstance(record['prompt'], str):
            raise ValueError('texts alone')
        return record

    seen = []
    for read in (lambda record: record, of_texts):
        scorer = RecordScorer(read, lambda rows: seen.extend(rows) or np.ones(len(rows)))
        monkeypatch.setattr(rewards, 'opener_of', lambda source: None)
        monkeypatch.setattr(rewards, 'open_scorer', lambda source, person, scorer=scorer: scorer)
        assert rewards.make_scores('orbax:x', '', chat=True)(['Why?'], ['<think>a</think>So.']) == [1.0]
    assert seen == [
        {'prompt': [{'role': 'user', 'content': 'Why?'}], 'completion': [{'role': 'assistant', 'content': 'So.'}]},
        {'prompt': 'Why?', 'completion': 'So.'},
    ]


def test_the_embedded_sums_pay_the_last_number():
    rows = sums.make_rows()
    assert len(rows) == len({row['prompt'] for row in rows}) == 144
    assert sums.right(['?'] * 3, ['It is 12.', '12 or 13', 'twelve'], ['12'] * 3) == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(('changes', 'key'), [
    ({'prompts.train': 'rows.jsonl'}, 'reward.function'), ({'reward.person': 'ana'}, 'reward.person'),
    ({'reward.scorer': 'orbax:gone'}, 'gone'), ({'reward.judge': 'gpt'}, 'reward.judge'),
    ({'reward.weights': (1.0, 2.0)}, 'reward.weights'),
    ({'rl.game': 'own.py:Guess', 'reward.judge': 'endpoint:judge'}, 'rl.game'),
    ({'rl.game': 'own.py:Guess', 'prompts.train': 'a.jsonl'}, r'rl.game=.*own.py:Guess.*prompts.train'),
    ({'rl.game': 'own.py:length'}, 'rl.game'), ({'rl.rollout_batch_size': 0}, 'rl.rollout_batch_size'),
    ({'rl.game': 'own.py:Guess', 'ppo.estimator': 'gae'}, 'ppo.estimator'),
    ({'sampling.temperature': 0.0}, 'sampling.temperature=0'), ({'total_steps': 0}, 'total_steps=0'),
    ({'prompts.train': 'one.jsonl'}, 'prompts.train=one.jsonl has 1 row'),
    ({'prompts.train': 'none.jsonl'}, 'prompts.train=none.jsonl has no rows'),
    ({'ppo.minibatches': 3}, 'ppo.minibatches=3'),
])  # fmt: skip
def test_wrong_values_are_told_by_their_key(tmp_path, monkeypatch, own, changes, key):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / 'rows.jsonl', [{'prompt': f'{k}?'} for k in range(6)])
    write(tmp_path / 'one.jsonl', [{'prompt': 'a?'}])
    write(tmp_path / 'none.jsonl', [])
    with pytest.raises(ValueError, match=key):
        rl.make(get_settings(**changes), ONE)


# --- steps ------------------------------------------------------------------------------------------------------------


def test_all_moves_of_a_role_in_a_game_have_the_advantage_of_its_reward():
    games = PaidGames(
        type('Game', (), {'roles': ('a', 'b')})(), None, 0, PPO(estimator='group_norm'), size=1, n=3, tests=1,
        seed=0, name='own.py:Game',
    )  # fmt: skip
    paid = [(0.0, 1.0), (1.0, 0.0), (2.0, 5.0)]
    groups = [[Sample((1,), None, role=role, rewards=(reward[role],)) for role in (0, 1, 0)] for reward in paid]
    credited = np.array([sample.reward for sample in games.credit(groups, 0)]).reshape(3, 3)
    expected = np.asarray(standardised(np.array(paid, np.float32).T.reshape(6, 1), np.ones(6, bool), 3)).reshape(2, 3).T
    np.testing.assert_allclose(credited[:, :2], expected, rtol=1e-6)
    np.testing.assert_array_equal(credited[:, 2], credited[:, 0])


def test_the_control_pays_the_same_rewards_to_other_answers(tokenizer):
    control = rl.make(get_settings('control', **{'policy.source': 'random:tiny'}), ONE).source
    prompt = PromptRow('a?', (1,), {})
    numbered = [
        [dataclasses.replace(answer(prompt, 'x'), rewards=(float(8 * g + k),)) for k in range(8)] for g in range(4)
    ]
    given = [sample.reward for sample in control.credit(numbered, 3)]
    assert sorted(given) == list(range(32)) and given != sorted(given)
    assert given == [sample.reward for sample in control.credit(numbered, 3)]


@pytest.mark.slow
def test_a_step_of_a_game_learns_from_the_moves_of_both_roles(own):
    recipe = rl.make(get_settings(**{'rl.game': f'{own}:Guess', 'rl.n_samples_per_prompt': 2}), ONE)
    state, host = recipe.init()
    state, host, phase, metrics = recipe.step(state, host, 0)
    assert phase == 'rl' and metrics['samples'] == 2 * 2 * 2
    assert recipe.evaluate(state, 'final').record['prompts'] == 3


@pytest.mark.slow
@pytest.mark.parametrize('ahead', [0, 1])
def test_a_decode_server_samples_with_the_weights_of_the_step(ahead):
    local = rl.make(get_settings('smoke', total_steps=3), ONE)
    changes = {'decode.driver': 'jetstream', 'decode.address': '127.0.0.1:1', 'rollout.ahead': ahead, 'total_steps': 3}
    recipe = rl.make(get_settings('smoke', **changes), ONE)
    rollouts = dataclasses.replace(recipe.rollouts, decoder=local.decoder)
    recipe = dataclasses.replace(recipe, rollouts=rollouts, sample=local.sample)
    assert recipe.rollouts.sampling.apart == bool(ahead)
    state, host = recipe.init()
    for i in range(3):
        # The decoder on this machine stands for a server: without weights it raises an error.
        state, host, *_ = recipe.step(state, host, i)
    recipe.plan.close()


@pytest.mark.slow
def test_without_lockstep_no_token_is_of_weights_more_than_so_many_updates_ago():
    local = rl.make(get_settings('smoke', total_steps=4), ONE)
    state, _ = local.init()
    local.decoder.load(local.learner.weights(state))
    with serving(Driver(local.decoder, line=64)) as address:
        changes = {'decode.driver': 'jetstream', 'decode.address': address, 'total_steps': 4}
        recipe = rl.make(get_settings('smoke', **{'rollout.ahead': 2, 'rollout.lockstep': False} | changes), ONE)
        state, host = recipe.init()
        ages = []
        for i in range(4):
            state, host, _, metrics = recipe.step(state, host, i)
            ages.append(metrics['age'])
            assert all(0 <= version <= i for groups in host['rollouts'] for group in groups() for sample in group
                       for version in sample.completion.versions)  # fmt: skip
        recipe.plan.close()
    assert ages[0] == 0 and 0 <= max(ages) <= 2


@pytest.mark.slow
@pytest.mark.parametrize('ahead', [1, 3])
def test_a_run_ahead_of_its_updates_goes_on_bit_by_bit_wherever_it_is_broken_off(own, tmp_path, ahead):
    write(tmp_path / 'rows.jsonl', [{'prompt': f'What is {k}?'} for k in range(40)])
    recipe = rl.make(
        get_settings('smoke', **{
            'prompts.train': str(tmp_path / 'rows.jsonl'), 'reward.function': f'{own}:length', 'optimizer.lr': 1e-2,
            'rollout.ahead': ahead, 'total_steps': 6,
        }),
        ONE,
    )  # fmt: skip
    steps = assert_it_goes_on_wherever_it_is_broken_off(recipe, 6)
    assert [len(host['rollouts']) for host, _ in steps] == [min(ahead, 6 - i) * (i > 0) for i in range(6)]


@pytest.mark.slow
def test_a_run_from_python_with_a_function_that_is_resumed_and_answers(tmp_path, own):
    def vowels(prompts, completions, **columns):
        return [sum(text.count(letter) for letter in 'aeiou') for text in completions]

    folder, steps = tmp_path / 'run', []

    def early(step, metrics):
        steps.append((step, metrics['reward']))
        raise LookupError('enough')

    changes = {'prompts.train': [{'prompt': f'Say {letter}'} for letter in 'abcdefgh'], 'export': False}
    with pytest.raises(LookupError, match='enough'):
        pal_jax.train('rl:smoke', changes | {'total_steps': 1}, reward=vowels, callback=early, workdir=folder)
    run = pal_jax.train('rl:smoke', changes | {'total_steps': 1}, reward=vowels, workdir=folder)
    assert steps == [(0, run.metrics[0]['reward'])]
    assert run.report.exists() and f'verdict: {run.verdict}' in repr(run) and str(folder) in repr(run)
    assert run.folder == folder and len(run.metrics) == 1 and 'own_vowels' in run.metrics[0]
    again = pal_jax.train('rl:smoke', changes | {'total_steps': 2}, reward=vowels, workdir=folder)
    assert [row['step'] for row in again.metrics] == [0, 1] and again.evaluations[-1]['stage'] == 'final'
    assert len(again.model(['Hello', [{'role': 'user', 'content': 'Hi'}]])) == 2
    figures = pal_jax.evaluate(folder, reward=vowels)
    assert figures['step'] == 2 and figures['reward'] == again.evaluations[-1]['reward']
    with pytest.raises(ValueError, match='vowels'):
        pal_jax.evaluate(folder)
    with pytest.raises(ValueError, match='give a list of prompts'):
        again.model('Hello')
    with pytest.raises(ValueError, match=r'max_tokens=99999 leaves no room .* give \d+ or fewer'):
        again.model(['Hello'], max_tokens=99999)

    def edited(prompts, completions, **columns):
        return [2.0 * sum(text.count(letter) for letter in 'aeiou') for text in completions]

    edited.__name__ = 'vowels'
    assert run.metrics[0]['lr'] == pytest.approx(3e-4) and run.metrics[0]['entropy'] > 0
    with pytest.raises(ValueError, match=r'reward.function=vowels: .*has other content'):
        pal_jax.train('rl:smoke', changes | {'total_steps': 3}, reward=edited, workdir=folder)


@pytest.mark.parametrize(
    'paid', ['1.0', '(1.0, 2.0)', '()', "('1',)", "('1', 1.0)", '{0: 1.0}', "(float('nan'),)", 'None']
)
def test_wrong_rewards_of_a_game_name_the_key_and_the_value(tmp_path, paid):
    lines = ["roles = ('a',)", *(f'def {name}(self, *_): 0' for name in ('start', 'turn', 'prompt', 'apply'))]
    lines += [f'def rewards(self, state): return {paid}']
    file = tmp_path / 'games.py'
    file.write_text('class Game:\n' + ''.join(f'    {line}\n' for line in lines))
    with pytest.raises(RuntimeError, match=r"rl.game='.*games.py:Game': rewards\(\).*got "):
        open_game(f'{file}:Game').rewards(0)


def test_an_error_in_a_method_of_a_game_names_key_file_and_line(tmp_path):
    file = tmp_path / 'games.py'
    file.write_text('class Game:\n    roles = ("a",)\n    def start(self, seed):\n        return 1 // seed\n')
    game = own_parts.load('rl.game', f'{file}:Game')()
    assert game.roles == ('a',) and game.start(1) == 1 and not hasattr(game, 'turn')
    with pytest.raises(RuntimeError, match=r"rl.game='.*games.py:Game' .*games.py, line 4: ZeroDivisionError"):
        game.start(0)


@pytest.mark.parametrize(
    'head', ['from typing import NamedTuple\nclass Made(NamedTuple):', '@dataclass(frozen=True)\nclass Made:']
)
def test_a_function_may_make_a_game_whose_fields_are_fixed(tmp_path, head):
    file = tmp_path / 'games.py'
    methods = ''.join(f'    def {name}(self, *_): return 1 // 0\n' for name in ('start', 'turn', 'prompt', 'apply'))
    file.write_text(
        f'from dataclasses import dataclass\n{head}\n    roles: tuple = ("a",)\n{methods}'
        '    def rewards(self, state): return state\ndef make(): return Made()\n'
    )
    game = copy.copy(open_game(f'{file}:make'))
    assert game.roles == ('a',) and game.rewards([1]) == (1.0,)
    with pytest.raises(RuntimeError, match=r'one for each role.*got \[\]'):
        game.rewards([])
    with pytest.raises(RuntimeError, match='games.py:make.*games.py, line 5: ZeroDivisionError'):
        game.start(0)


def test_callables_have_names_and_digests_by_what_they_were_made_of():
    def scaled(factor):
        return lambda prompts, completions, **columns: [factor * len(text) for text in completions]

    class Length:
        def __call__(self, prompts, completions, **columns):
            return list(map(len, completions))

    twice = functools.partial(scaled(1), prompts=2)
    assert list(map(own_parts.name_of, (Length(), Length, twice))) == ['Length', 'Length', '<lambda>']
    digests = []
    for call in (scaled(1), scaled(2), scaled(1), Length(), Length()):
        with own_parts.given({'reward': call}):
            digests.append(own_parts.given_in('python:reward,a.py:f'))
    assert digests[0] == digests[2] != digests[1] and digests[3] == digests[4]
    assert [name for name, _ in digests[0]] == ['python:reward']


def test_a_function_without_its_source_has_the_digest_of_its_constants():
    digests = []
    for number in (100, 50, 100):
        names = {}
        exec(f'def reward(prompts, completions, **columns): return [{number} for text in completions]', names)
        with own_parts.given({'reward': names['reward']}):
            digests.append(own_parts.given_in('python:reward'))
    assert digests[0] == digests[2] != digests[1]


def test_functions_and_classes_of_a_program_are_values_of_any_key_that_takes_a_file():
    def judge(dialogues, inferred, replies, seed):
        return [1.0] * len(replies)

    class Sticks:
        name = 'sticks'

    changes = {'reward.judge': judge, 'play.games': (Sticks, 'tictactoe'), 'total_steps': 2, 'sizes': [1, 2]}
    assert {key: library._text(key, value, ()) for key, value in changes.items()} == {
        'reward.judge': 'python:judge', 'play.games': "('python:Sticks', 'tictactoe')", 'total_steps': '2',
        'sizes': '(1, 2)',
    }  # fmt: skip
    assert library._text('reward.function', [judge, 'a.py:f'], '') == 'python:judge,a.py:f'
    with own_parts.given(library._by_name([judge, Sticks])):
        assert own_parts.load('play.games', 'python:Sticks')().name == 'sticks'
        loaded = own_parts.load('reward.judge', 'python:judge', 'dialogues', 'inferred', 'replies', 'seed')
        assert loaded([], [], ['a', 'b'], 0) == [1.0, 1.0]
        with pytest.raises(ValueError, match='reward.judge'):
            own_parts.load('reward.judge', 'python:judge', 'prompts')


@pytest.mark.slow
def test_the_steps_before_a_failure_are_saved_and_a_mended_function_goes_on(tmp_path):
    failing = (
        'def score(prompts, completions):\n    score.calls += 1\n    return [1.0 / (3 - score.calls)] * len(prompts)\n'
    )
    file = tmp_path / 'mine.py'
    file.write_text(failing + 'score.calls = 0\n')
    changes = {'checkpoint.every': 10, 'total_steps': 4, 'eval.base': False, 'reward.function': f'{file}:score'}
    train = functools.partial(pal_jax.train, 'rl:smoke', changes | {'export': False}, workdir=tmp_path / 'run')
    with pytest.raises(RuntimeError, match=r'reward.function=.*line 3: ZeroDivisionError'):
        train()
    assert [path.name for path in (tmp_path / 'run' / 'checkpoints').iterdir()] == ['2']
    file.write_text(failing.replace('(3 - ', '(9 - ') + 'score.calls = 2\n')
    with pytest.raises(ValueError, match=r' changed=reward.function'):
        train()
    with pytest.raises(ValueError, match="changed='reward.functions'"):
        train(changed=['reward.functions'])
    run = train(changed='reward.function')
    assert [row['own_score'] for row in run.metrics] == [1 / 2, 1 / 1, 1 / 6, 1 / 5]
    assert 'mine.py, sha256' in json.loads((run.folder / 'summary.json').read_text())['notes'][0]
    # The change is kept, so that the next call needs no word on it.
    assert train().metrics == run.metrics


def test_a_table_of_pandas_becomes_lines_with_null_for_what_is_missing():
    table = pytest.importorskip('pandas').DataFrame(
        {'prompt': ['Hi', 'é'], 'score': [1 / 3, float('nan')]}, index=[4, 7]
    )
    assert [json.loads(line) for line in library._lines('prompts.train', table).splitlines()] == [
        {'prompt': 'Hi', 'score': 1 / 3}, {'prompt': 'é', 'score': None},
    ]  # fmt: skip
    with pytest.raises(ValueError, match='prompts.train: there are no rows'):
        library._lines('prompts.train', table[:0])
    assert not library._lines('total_steps', 3, 10)
    assert not library._lines('prototypes', (1, 2), (3,))
    assert not library._lines('reward.function', [sums.right])
    assert library._lines('data', iter([{'text': 'a'}])) == '{"text": "a"}\n'


class DatasetDict(dict[str, list[object]]):
    num_rows = 3


@pytest.mark.parametrize(
    ('rows', 'message'),
    [
        (DatasetDict(train=[], test=[]), r"prompts.train is a DatasetDict .*\['train'\]"),
        ({'prompt': ['a', 'b']}, "prompts.train is a dict of 'prompt'"),
        ([], 'prompts.train: .*no rows'),
        (iter([]), 'prompts.train: .*no rows'),
        (['Hello'], "prompts.train, row 1: 'Hello'"),
        ([{'prompt': 'a'}, {'prompt': 'b'}, {'prompt': ''}], "prompts.train, row 3: 'prompt' is ''"),
        ([{'prompt': 'a'}], '^prompts.train has 1 row'),
        ('nothere.jsonl', '^prompts.train=nothere.jsonl'),
        (None, 'prompts.train is None'),
    ],
)
def test_wrong_rows_from_python_are_named_as_the_program_gave_them(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message) as error:
        pal_jax.train('rl:smoke', {'prompts.train': rows}, reward=sums.right, workdir=tmp_path / 'run')
    assert '--' not in str(error.value) and '-.jsonl' not in str(error.value) and str(tmp_path) not in str(error.value)


def test_a_line_of_a_command_is_told_in_the_words_of_python(tmp_path):
    files = {'data': tmp_path / 'rows' / 'data-0123456789ab.jsonl'}
    line = f'data={files["data"]}, line 3: no user (also line 5); see {files["data"]} or --config.data, --workdir'
    assert library._in_python(line, files) == 'data, row 3: no user (also row 5); see data or data, workdir'
    other = files['data'].with_name('data-ba9876543210.jsonl')
    assert library._in_python(f"config (data: '{other}' -> '{files['data']}')", files) == (
        'config (data: it has other rows)'
    )


def test_a_callback_that_cannot_take_a_step_is_refused(tmp_path):
    with pytest.raises(ValueError, match='callback=.*step, metrics'):
        pal_jax.train('rl:smoke', reward=sums.right, callback=lambda step: None, workdir=tmp_path)
    # Python knows no signature of this builtin.
    library._check_callback(dict)


def test_a_list_for_a_text_that_names_no_data_is_no_rows():
    assert library._lines('decode.address', ['h:1', 'h:2'], '') == ''
    with pytest.raises(ValueError, match='data, row 1'):
        library._lines('data', ['h:1'], '')


def test_wrong_inputs_from_python_are_value_errors(tmp_path):
    with pytest.raises(ValueError, match='rl.gamma'):
        pal_jax.train('rl:smoke', {'rl.gamma': 1}, workdir=tmp_path)
    with pytest.raises(ValueError, match='rl.gamma') as nested:
        pal_jax.train('rl:smoke', {'prompts': {'train': [{'prompt': 'a'}]}, 'rl': {'gamma': 1}}, workdir=tmp_path)
    assert "'a'" not in str(nested.value)
    with pytest.raises(ValueError, match='config.json'):
        pal_jax.open_run(tmp_path)
    with pytest.raises(ValueError, match='two functions'):
        pal_jax.train('rl:smoke', reward=[sums.right, sums.right], workdir=tmp_path)
    for reward in ('rewards.py:right', [sums.right, 'rewards.py:right']):
        with pytest.raises(ValueError, match=r"'reward.function': 'FILE.py:NAME'"):
            pal_jax.train('rl:smoke', reward=reward, workdir=tmp_path)
    with pytest.raises(ValueError, match='reward=: sft takes no reward'):
        pal_jax.train('sft:smoke', reward=sums.right, workdir=tmp_path)
    with pytest.raises(ValueError, match='prompts.train, row 1: .*JSON'):
        pal_jax.train('rl:smoke', {'prompts.train': [{'prompt': {1, 2}}]}, workdir=tmp_path)
    assert not [*tmp_path.iterdir()]
    with pytest.raises(AttributeError):
        pal_jax.tarin  # noqa: B018
