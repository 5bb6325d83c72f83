"""Runs from Python: rows, functions, callbacks and errors of the program, and whole runs."""

from __future__ import annotations

import functools
import json

import pytest

import pal_jax
from pal_jax.commands import library
from pal_jax.recipes.rl import sums
from pal_jax.run import own as own_parts


@pytest.mark.slow
def test_a_run_from_python_with_a_function_that_is_resumed_and_answers(tmp_path):
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
    question, answered, _ = run.verdict.partition(':')
    assert answered and repr(run).endswith(f'verdict: {question}>')
    assert run.report.exists() and str(folder) in repr(run)
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
    assert [record.get('mended') for record in run.evaluations] == [{'reward.function': 1}]
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
