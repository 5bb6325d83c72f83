"""Which action an answer names."""

from __future__ import annotations

import pytest

from pal_jax.games.actions import extract


@pytest.mark.parametrize(
    ('text', 'action'),
    [
        (r'\boxed{\text{4}}', '[4]'),  # golden 1.7-5
        (r'First \boxed{1}, no: \boxed{ [2] }.', '[2]'),
        (r'\boxed{a{b}c}', '[a{b}c]'),
        (r'\boxed{1} and then \boxed{2', '[1]'),  # the last box is not closed
        ('call', '[call]'),
        ('  [check]\n', '[check]'),
        ('one two  three\nfour five', '[one two three four five]'),
        ('one two three four five six', 'one two three four five six'),
        ('I take [4]', 'I take [4]'),
        ('', None),
        (' \n', None),
        (r'\boxed{}', None),
    ],
)
def test_an_action_is_in_the_last_box_or_the_whole_of_a_short_answer(text, action):
    assert extract(text) == action
