"""Functions and classes of a user's own: names, digests and errors."""

from __future__ import annotations

import functools

import pytest

from pal_jax.run import own as own_parts


def test_an_error_in_a_method_of_a_game_names_key_file_and_line(tmp_path):
    file = tmp_path / 'games.py'
    file.write_text('class Game:\n    roles = ("a",)\n    def start(self, seed):\n        return 1 // seed\n')
    game = own_parts.load('rl.game', f'{file}:Game')()
    assert game.roles == ('a',) and game.start(1) == 1 and not hasattr(game, 'turn')
    with pytest.raises(RuntimeError, match=r"rl.game='.*games.py:Game' .*games.py, line 4: ZeroDivisionError"):
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


OWN = '''"""Rewards."""
import math
import json
SCALE = 2.0
TABLE = {}
TABLE['a'] = 1
def helper(text):
    return SCALE * len(text)
def other(text):
    return json.dumps(text)
def score(prompts, completions, **rest):
    """How long answers are."""
    return [helper(text) for text in completions]
@keep
def kept(text):
    return text
class Listed(Base):
    a = 1
unused = other
READY = setup(1)
if __name__ == '__main__':
    print(score([], ['a']))
'''


@pytest.mark.parametrize(('old', 'new', 'is_same'), [
    ('"""Rewards."""', '# rewards of answers', True),
    ('"""How long answers are."""', '# How long', True),
    ('return json.dumps(text)', 'return text', True),
    ("['a']))", "['b']))", True),
    ('import json\n', '', True),
    ('SCALE = 2.0', 'SCALE = 3.0', False),
    ('len(text)', 'len(text) + 1', False),
    ("TABLE['a'] = 1", "TABLE['a'] = 2", False),
    ('for text in completions', 'for text in prompts', False),
    ('def score', 'def score(:', False),
    ('return json.dumps(text)', 'return globals()[text]', False),
    ('return json.dumps(text)', 'return score.__doc__', False),
    ('unused = other', 'unused = 1', True),
    ('unused = other', 'unused = SCALE', True),
    ('READY = setup(1)', 'READY = setup(2)', False),
    ('def kept(text):\n    return text', 'def kept(text):\n    return 1', False),
    ('a = 1', 'a = 2', False),
    ("if __name__ == '__main__'", "if __name__ != '__main__'", False),
])  # fmt: skip
def test_a_function_of_a_file_is_told_by_itself_and_what_it_uses(tmp_path, old, new, is_same):
    assert OWN.count(old) == 1
    first, second = tmp_path / 'a.py', tmp_path / 'b.py'
    first.write_text(OWN)
    second.write_text(OWN.replace(old, new))
    assert (own_parts.digest(first, 'score') == own_parts.digest(second, 'score')) == is_same
