"""Tables with a row for each choice among three or more options, or with answers that take none."""

from __future__ import annotations

import numpy as np
import pytest

from pal_jax.recipes.personal.pal import tables
from tests.data.readers.test_surveys import written

CHOICES = [(1, 5, 2, 6, 3, 7, 1), (4, 5, 2, 8, 3, 9, 3), (1, 6, 2, 7, 5, 8, 2), (1, 5, 4, 6, 3, 8, 3)]


def wide(head, answers='123', choices=CHOICES):
    """A table of choices with these columns of three options' attributes, and 1, 2 and 3 called so."""
    named = dict(zip(range(1, 4), answers, strict=True))
    lines = (','.join(map(str, ('ana', '44', *cells, named[answer]))) for *cells, answer in choices)
    return '\n'.join([f'person,age,{head},choice', *lines])


def long(rows):
    """The table with a row for each option that says the same."""
    lines = ['person,situation,chosen,price,time']
    for s, (*cells, answer) in enumerate(rows):
        lines += [f'ana,{s},{int(answer == k + 1)},{cells[2 * k]},{cells[2 * k + 1]}' for k in range(len(cells) // 2)]
    return '\n'.join(lines)


@pytest.mark.parametrize(
    ('head', 'answers'),
    [
        ('price_1,time_1,price_2,time_2,price_3,time_3', '123'),
        ('price_A,time_A,price_B,time_B,price_C,time_C', 'ABC'),
        ('price_A,time_A,price_B,time_B,price_C,time_C', '123'),
        ('price1,time1,price2,time2,price3,time3', ('Option A', 'Option B', 'Option C')),
    ],
)
def test_choices_among_three_are_those_of_a_row_for_each_option(tmp_path, head, answers):
    said = []
    data = tables.load(written(tmp_path, wide(head, answers)), log=said.append)
    expected = tables.load(written(tmp_path, long(CHOICES)))
    assert data.attributes == expected.attributes == ('price', 'time') and len(data.users) == 8
    for side in ('chosen', 'rejected', 'situations'):
        np.testing.assert_array_equal(getattr(data, side), getattr(expected, side))
    assert any('choice among 3 options; not read: age' in line for line in said)


def test_an_answer_that_takes_no_option_is_an_option_without_values(tmp_path):
    pairs = [f'ana,{x},5,{x + 1},6,{("A", "B", "neither")[x % 3]}' for x in range(12)]
    text = '\n'.join(['person,price_A,time_A,price_B,time_B,choice', *pairs])
    said = []
    data = tables.load(written(tmp_path, text), log=said.append)
    assert data.attributes == ('price', 'time', 'neither') and len(data.users) == 24
    assert data.items[:24, 2].sum() == 8 and data.items[24:, 2].sum() == 8
    assert any('among 2 options or none of these' in line for line in said)
    # Also of a new person, who has always taken an option.
    new = written(tmp_path, '\n'.join([text.splitlines()[0], pairs[0], pairs[1]]))
    np.testing.assert_array_equal(tables.load(new, attributes=data.attributes).rejected[1], [0.0, 0.0, 1.0])


def test_an_option_that_a_choice_does_not_have_is_left_out(tmp_path):
    head = 'price_1,av_1,price_2,av_2,price_3,av_3'
    rows = [(1, 1, 2, 1, 3, 0, 1), (1, 1, 2, 1, 3, 1, 2)]
    data = tables.load(written(tmp_path, wide(head, choices=rows)))
    assert data.attributes == ('price',)
    np.testing.assert_array_equal(data.rejected[:, 0], [2.0, 1.0, 3.0])
    with pytest.raises(ValueError, match=r"row 2' of 'ana' has 0 chosen of 2"):
        tables.load(written(tmp_path, wide(head, choices=[(1, 1, 2, 1, 3, 0, 3), rows[1]])))


def test_wrong_rows_are_listed_by_their_own_places(tmp_path):
    head = 'price_1,time_1,price_2,time_2,price_3,time_3'
    text = wide(head) + '\nana,44,1,5,2,6,3,7,\nana,44,1,5,2,6,3,7,4\nana,44,1,5,1,5,3,7,1\nana,44,1,x,2,6,3,7,1'
    faults = (
        '3 of 8 rows are wrong',
        'row 6: choice is empty; give one of 1, 2, 3',
        'row 7: choice is .4',
        'row 8: two options',
    )
    with pytest.raises(ValueError, match='.*'.join(faults)):
        tables.load(written(tmp_path, text))
    said = []
    assert len(tables.load(written(tmp_path, text), drop=said.append).users) == 8 and '3 of 8' in said[0]
    assert '3 of 15 rows: ' in said[1] and 'option 1 of row 9: time' in said[1]
    with pytest.raises(ValueError, match='time_1 and time_2 have no partner for option 3'):
        tables.load(written(tmp_path, wide('price_1,time_1,price_2,time_2,price_3,fast')))
