"""Functions of a user's own file: rewards, users, judges, games, and how their faults are named."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from pal_jax.judges.functions import open_functions
from pal_jax.recipes.rlpa.criteria import SCORES
from pal_jax.recipes.rlpa.own import EXTRA, open_role, part_weights, with_functions
from pal_jax.recipes.rlpa.own_rewards import make_estimate
from pal_jax.recipes.rlpa.profiles import render_completion, to_sample
from pal_jax.recipes.rlpa.world import make_world
from pal_jax.recipes.spiral.settings import MatchSettings, make_rules
from pal_jax.run import inputs, own
from pal_jax.types import Completion, Dialogue, Person, Turn, Verdict
from tests import configs, pages

KEY = 'reward.function'
PERSON = Person('p', ('pet: cat',))


def answer(text):
    completion = Completion(text, (3,), (0.0,), 'stop')
    return to_sample(Dialogue(PERSON, (Turn('user', 'Hello'),)), completion, (1, 2))


ASKS = answer(render_completion('- pet: cat\n', 'Do you have a cat?'))
TELLS = answer(render_completion('- pet: cat\n', 'I have a cat.'))
MALFORMED = answer('What?')


@pytest.fixture(scope='module')
def examples(tmp_path_factory):
    """The folder with the files that the manual shows."""
    folder = tmp_path_factory.mktemp('examples')
    for page in ('tutorials/reward_function.md', 'howto/own_parts.md'):
        pages.write_files(pages.DOCS / page, folder)
    return folder


def write(tmp_path, text):
    (file := tmp_path / 'mine.py').write_text(text)
    return str(file)


def test_functions_of_an_example_add_to_the_reward_of_a_run(examples):
    text = f'{examples}/dialogue_rewards.py:asks_back, {examples}/dialogue_rewards.py:short'
    changes = {'reward.function': text, 'reward.weights': (2.0, 0.5), 'dialogue.people': 4, 'eval.people': 2}
    world, plain = make_world(configs.load('rlpa', **changes)), make_world(configs.load('rlpa'))
    samples = [ASKS, TELLS, MALFORMED]
    for scored, before in (
        (world.reward(samples, 0), plain.reward(samples, 0)),
        (world.score(samples, 0), plain.score(samples, 0)),
    ):
        gains = [new.reward - old.reward for new, old in zip(scored, before, strict=True)]
        assert gains == pytest.approx([2.5, 0.5, 0.0])
        assert [sample.info['own_asks_back'] for sample in scored] == [1.0, 0.0, 0.0]
        assert all(sample.ok and len(sample.rewards) == 1 for sample in scored)
    assert world.estimate is None


def test_a_function_reads_what_it_names_and_none_is_no_reward(tmp_path):
    file = write(
        tmp_path,
        'seen = {}\n'
        'def score(prompts, completions, people, rounds, seed):\n'
        '    seen.update(prompts=prompts, people=people, rounds=rounds, seed=seed)\n'
        '    return [None, 1]\n'
        'def trl(completions, **kwargs): return [len(kwargs["profiles"][0])] * len(completions)\n',
    )
    (score, trl) = open_functions(KEY, f'{file}:score,{file}:trl', (), EXTRA)
    messages = lambda dialogue: [{'role': 'user', 'content': dialogue.turns[0].content}]  # noqa: E731
    reward = with_functions(lambda samples, seed: list(samples), [score, trl], messages, weights={}, apart=False)
    first, second = reward([ASKS, TELLS], 7)
    assert (first.ok, first.reward, second.ok, second.reward) == (False, 0.0, True, 2.0)
    seen = own._module(Path(file), Path(file).stat().st_mtime_ns).seen
    assert seen['prompts'][0] == [{'role': 'user', 'content': 'Hello'}]
    assert (seen['people'], seen['rounds'], seen['seed']) == ([['pet: cat']] * 2, [0, 0], 7)


@pytest.mark.parametrize(
    ('text', 'name', 'message'),
    [
        ('def score(prompts): return []', 'score', 'score is called with prompts, completions, and may take'),
        ('def other(prompts, completions): return []', 'score', 'no function score; it has other'),
        ('x = 1 / 0', 'score', r'mine\.py, line 1: ZeroDivisionError'),
        ('def score(:', 'score', r'mine\.py, line 1: SyntaxError'),
        ('', 'score, x', 'is no function; write FILE.py:NAME'),
        ('def score(prompts, completions, solution): return []', 'score', "'solution'.*score is called with"),
    ],
)
def test_a_function_that_cannot_be_had_is_named(tmp_path, text, name, message):
    with pytest.raises(ValueError, match=message):
        open_functions(KEY, f'{write(tmp_path, text)}:{name}', (), EXTRA)
    with pytest.raises(ValueError, match='there is no file'):
        open_functions(KEY, f'{tmp_path}/none.py:score', (), EXTRA)


def test_a_file_without_a_name_is_answered_with_its_functions(tmp_path):
    file = write(tmp_path, 'def score(prompts, completions): return []')
    with pytest.raises(ValueError, match='mine.py has score'):
        open_functions(KEY, file, (), EXTRA)


def test_weights_belong_to_functions(tmp_path):
    text = f'{write(tmp_path, "def score(prompts, completions): return []")}:score'
    with pytest.raises(ValueError, match=r'reward\.weights=\(1\.0, 2\.0\) has 2 numbers for 1 function\b'):
        open_functions(KEY, text, (1.0, 2.0), EXTRA)
    with pytest.raises(ValueError, match='two functions of one name'):
        open_functions(KEY, f'{text},{text}', (), EXTRA)
    weights = part_weights(open_functions(KEY, text, (3.0,), EXTRA), dict(profile=1, response=2, format=0))
    assert weights == (1, 2, 0, 3.0)


@pytest.mark.parametrize(
    ('body', 'message'),
    [
        ('return [1.0]', 'returned 1 number for 2 answers'),
        ('return [float("nan"), 0]', 'returned nan'),
        ('return ["good", 0]', 'must return a list of numbers'),
        ('return 5', 'must return a list of numbers'),
        ('return [1 / 0]', r'mine\.py, line 2: ZeroDivisionError'),
    ],
)
def test_what_a_function_returns_is_checked(tmp_path, body, message):
    file = write(tmp_path, f'def score(prompts, completions):\n    {body}\n')
    functions = open_functions(KEY, f'{file}:score', (), EXTRA)
    reward = with_functions(lambda samples, seed: list(samples), functions, lambda d: [], weights={}, apart=False)
    assert reward([], 0) == []
    with pytest.raises(RuntimeError, match=message):
        reward([ASKS, TELLS], 0)


def test_rewards_apart_are_channels_and_a_malformed_answer_has_no_profile(examples):
    text = f'{examples}/dialogue_rewards.py:asks_back'
    config = {'reward.function': text, 'reward.normalise': 'each', 'reward.profile_weight': 3.0}
    settings = configs.load('rlpa', **config)
    world = make_world(settings)
    assert world.estimate == make_estimate(settings) and world.estimate.apart.weights == (3.0, 1.0, 1.0, 1.0)
    formed, malformed = world.reward([ASKS, MALFORMED], 0)
    assert formed.rewards[1:] == (formed.info['profile'], formed.info['response'], 1.0, 1.0)
    assert formed.reward == pytest.approx(3 * formed.info['profile'] + formed.info['response'] + 1.0)
    assert [math.isnan(number) for number in malformed.rewards] == [False, True, True, False, False]
    for change in ({'ppo.estimator': 'rloo'}, {'dialogue.turn_gamma': 0.5}, {'reward.floor': -1.0}):
        with pytest.raises(ValueError, match=next(iter(change)).split('.')[1]):
            make_estimate(configs.load('rlpa', **config | change))


def test_a_user_and_a_judge_of_a_file(examples):
    user = open_role('dialogue.user', f'{examples}/my_parts.py:user')
    assert user([ASKS.source], 0) == ['By the way, pet: cat.']
    judge = open_role('reward.judge', f'{examples}/my_parts.py:judge')
    assert judge([ASKS.source], [()], ['Hello you two there'], 0) == [Verdict(dict.fromkeys(SCORES, 0.2))]
    world = make_world(configs.load('rlpa', **{'reward.judge': f'{examples}/my_parts.py:judge'}))
    assert world.reward([ASKS], 0)[0].info['response'] == 0.25


def test_a_judge_of_a_file_must_answer_from_0_to_1(tmp_path):
    body = 'def judge(dialogues, inferred, replies, seed): return [2, None][: len(replies)]'
    judge = open_role('reward.judge', f'{write(tmp_path, body)}:judge')
    with pytest.raises(RuntimeError, match='returned 2; return a number from 0 to 1'):
        judge([ASKS.source], [()], [''], 0)
    with pytest.raises(RuntimeError, match='returned 2 values for 3'):
        judge([ASKS.source] * 3, [()] * 3, [''] * 3, 0)


def test_a_game_of_a_file_is_played(examples):
    (rules,) = make_rules(MatchSettings(games=(f'{examples}/my_parts.py:Sticks',)))
    state = rules.start(0)
    for taken in ('[1]', '[2]', '[1]', '[2]', '[1]'):
        assert taken in rules.legal(state) and rules.read(state, f'I take {taken}') == taken
        state = rules.move(state, taken)
    assert rules.turn(state) is None and rules.rewards(state) == (1.0, -1.0)
    assert rules.name == 'sticks' and rules.observe(state, 0).startswith('There are 0')


def test_a_game_without_a_part_is_refused(tmp_path):
    file = write(tmp_path, 'class Game:\n    name = "mine"\n    start = turn = legal = read = move = observe = print\n')
    with pytest.raises(ValueError, match=r"play.games='.*mine.py:Game' has no rewards; see"):
        make_rules(MatchSettings(games=(f'{file}:Game',)))


def test_a_run_remembers_the_files_of_its_functions(tmp_path):
    file = write(tmp_path, 'def a(prompts, completions): return []')
    config = {'reward': {'function': f'{file}:a,{file}:b'}, 'play': {'games': ('kuhn', f'{file}:c')}}
    before = inputs.look(config)
    assert set(before) == {'reward.function.0', 'reward.function.1', 'play.games.0'}
    write(tmp_path, 'def a(prompts, completions): return [0]')
    with pytest.raises(ValueError, match=r'a of .*mine\.py, or code that it uses, has other content'):
        inputs.check(before, inputs.look(config), tmp_path)
