r"""What counts as the same answer of mathematics: a table of forms, and no two numbers that are one."""

from __future__ import annotations

import itertools
import threading
from fractions import Fraction

import pytest

from pal_jax.judges import answers
from pal_jax.judges.answers import boxed, is_same, last_number, number, plain

SAME = [  # said and known
    ('18', '18'), ('18.0', '18'), ('1,000', '1000'), (r'\left( 3, \frac{\pi}{2} \right)', r'(3,\frac{\pi}{2})'),
    (r'\dfrac12', '0.5'), (r'\frac{3}{4}', r'\frac34'), (r'-\frac{1}{2}', '-0.5'), (r'5\text{ cm}', '5'),
    (r'90^\circ', '90'), ('x=5', '5'), (r'\frac1{2}', r'\frac{1}{2}'), (r'\frac{3}4', '0.75'), ('3/4', r'\frac{3}{4}'),
    (r'11\sqrt{2}', r'11\sqrt2'), ('864', r'864 \mbox{ inches}^2'), ('10{,}080', r'10,\!080'), ('10080', r'10,\!080'),
    ('B', r'\text{(B)}'), (r'\textbf{(B)}', r'\text{(B)}'), (r'\mathrm{even}', r'\text{even}'),
    ('Even', r'\text{even}'),
    (r'x\in[-2,7]', '[-2,7]'), ('y=2x+3', '2x+3'), ('2x+3=y', 'y=2x+3'), (r'(-\infty, 3)', r'(-\infty,3)'),
    (r'50\%', '50'), ('0.5', r'50\%'), (r'1\frac{1}{2}', r'\frac{3}{2}'), ('7 1/2', '7.5'), ('-1 1/2', '-1.5'),
    (r'\$18', '18'), ('−3', '-3'), ('1e3', '1000'), ('2.5e3', '2500'), ('1 000', '1000'), (r'1\,000', '1000'),
    ('1\u202f000', '1000'), ('1\u2009000 000', '1000000'), ('.5', r'\frac12'), ('5.', '5'), ('5-2=3', '3'),
    ('12 dollars', '12'), ('5 cm', '5'), ('60 miles per hour', '60'), ('€5', '5'), ('2½', '2.5'),
    (r'\{1,2\}', r'\{2,1\}'),
    ('1,-2', '-2,1'), (r'\sqrt 2', r'\sqrt{2}'), ('1.000.000', '1000000'), (r'\frac{\sqrt{8}}{2}', r'\sqrt{2}'),
    ('x²+1', 'x^2+1'), (r'2 \times 3', '6'),
]  # fmt: skip
OTHER = [
    ('-3', '3'), (None, '3'), (r'\frac{1}{0}', '0'), (r'\sqrt{2}', r'\sqrt{3}'), ('(3, 4)', '(4,3)'), ('3,4', '34'),
    ('1,2', '12'), ('12,34', '1234'), ('1 2', '12'), ('3_4', '34'), ('(1,234)', '1234'), ('3 million', '3'),
    ('0.333333', r'\frac13'), ('1.414214', r'\sqrt2'), ('3.14', r'\pi'), (r'\text{east}', r'\text{seat}'), ('2x', '2'),
    (r'18\text{ of }20', '18'), ('eighteen', '18'), ('', '0'), ('-', '0'), ('50%', '0.05'), ('5%', '500%'),
    ('(' * 400, '3'), (r'\frac{' * 50, '3'), ('1e999', '0'), ('9' * 5000, '3'), ('[1,2)', '[1,2]'), ('1/3', '3'),
]  # fmt: skip


@pytest.mark.parametrize(('said', 'answer'), SAME)
def test_the_same_answer_in_other_dress_is_right(said, answer):
    assert is_same(said, answer)
    assert is_same(answer, answer)


@pytest.mark.parametrize(('said', 'answer'), OTHER)
def test_another_answer_is_wrong(said, answer):
    assert not is_same(said, answer)


def test_an_answer_without_end_is_wrong_when_its_time_is_over(monkeypatch):
    monkeypatch.setattr(answers, 'SECONDS', 1)
    assert not is_same('9^{9^{9^9}}', '3')


def test_numbers_are_the_same_only_where_their_values_are():
    forms = [
        '1', '-1', '0', '10', '100', '1000', '1,000', '1 000', '1.000', '0.1', '.1', '1/10', r'\frac{1}{10}', '11/10',
        '1 1/10', r'1\frac{1}{10}', '1.1', '12', '1e1', '1e-1', '-0.1', '1,000.5', '2001/2', '1000001', '1,000,001',
        '0.10000001',
    ]  # fmt: skip
    spelled = {text: text.replace(',', '').replace('1 000', '1000') for text in forms if '\\' not in text}
    value = {text: sum(map(Fraction, digits.split())) for text, digits in spelled.items()}
    value |= {r'\frac{1}{10}': Fraction(1, 10), r'1\frac{1}{10}': Fraction(11, 10)}
    for text in forms:
        assert number(plain(text)) == [value[text]], text
    for left, right in itertools.combinations(forms, 2):
        assert is_same(left, right) == (value[left] == value[right]), (left, right)


@pytest.mark.parametrize(
    ('text', 'box', 'last'),
    [
        (r'So \boxed 7.', '7', '7'),
        (r'\fbox{7} or $\boxed{8.0}$', '8.0', '8.0'),
        (r'\boxed{eighteen}. I used 3 steps.', 'eighteen', 'eighteen'),
        ('The answer is −5.', None, '-5'),
        ('a range 3-5', None, '5'),
        ('10-5 is 5', None, '5'),
        ('It costs $18.00.', None, '18.00'),
        ('10{,}080 in all', None, '10,080'),
        ('so 7 1/2', None, '7 1/2'),
        ('none', None, None),
    ],
)
def test_the_final_answer_of_a_text(text, box, last):
    assert (boxed(text), last_number(text)) == (box, last)


def test_the_library_is_asked_where_its_time_limit_holds():
    said: list[bool] = []
    thread = threading.Thread(target=lambda: said.append(is_same('2x+3=y', 'y=2x+3') or is_same('1,000', '1000')))
    thread.start()
    thread.join()
    assert said == [True]
