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
    # No limit helps where no answer is paid.
    assert 'higher limit' not in str(error.value)


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
    pay = rewards.Rewards((rewards.RewardFunction('f', 'f', lambda prompts, completions: None),))
    with pytest.raises(RuntimeError, match='returned None.* return'):
        pay([answer(PromptRow('a?', (1,), {}), 'A')], 0)
    # A generator is read once.
    pay = rewards.Rewards((rewards.RewardFunction('f', 'f', lambda prompts, completions: (1.0 for _ in completions)),))
    assert [sample.reward for sample in pay([answer(PromptRow('a?', (1,), {}), 'A')], 0)] == [1.0]


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
