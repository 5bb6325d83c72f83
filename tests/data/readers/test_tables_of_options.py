"""Tables with a row for each option: their columns, wrong rows and situations, and an option "none of these"."""

from __future__ import annotations

import numpy as np
import pytest

from pal_jax.recipes.personal.pal import tables
from tests.data.readers.test_surveys import written


@pytest.mark.parametrize(
    ('head', 'attributes'),
    [
        ('user,task,chosen,x1,x2', ('x1', 'x2')),
        ('user,chid,choice,x1,x2', ('x1', 'x2')),
        ('respID,obsID,choice,x1,x2', ('x1', 'x2')),
        ('respondent,Task,Chosen,price,time', ('price', 'time')),
        ('user,task,chosen,price,left', ('price', 'left')),
    ],
)
def test_a_row_for_each_option_is_known_by_its_situation_and_answer(tmp_path, head, attributes):
    rows = [f'{user},1,{chosen},{x},{y}' for user in 'ab' for chosen, x, y in ((1, 5, 1), (0, 7, 2), (0, 6, 3))]
    logged: list[str] = []
    data = tables.load(written(tmp_path, '\n'.join([head, *rows])), log=logged.append)
    assert data.attributes == attributes and len(data.users) == 4 and len(set(data.situations)) == 2
    assert any(head.split(',')[1] in line for line in logged)


def test_of_several_columns_that_may_be_the_situation_the_most_telling_one_counts_and_never_the_group(tmp_path):
    rows = ['a,1,7,1,5', 'a,1,7,0,6', 'a,1,8,1,5', 'a,1,8,0,7']
    data = tables.load(written(tmp_path, '\n'.join(['user,set,task,chosen,price', *rows])))
    assert len(set(data.situations)) == 2
    data = tables.load(written(tmp_path, '\n'.join(['user,scenario,task,chosen,price', *rows])), group='scenario')
    assert len(set(data.situations)) == 2 and data.group_names == ('1',)
    with pytest.raises(ValueError, match='situation'):
        tables.load(written(tmp_path, 'user,task,chosen,price\na,1,1,5\na,1,0,6\n'), group='task')


def test_numbers_of_options_and_profiles_are_no_attributes(tmp_path):
    rows = [f'a,{s},{alt},{10 * s + alt},{chosen},{x}' for s in (1, 2) for alt, chosen, x in ((1, 1, 5), (2, 0, s + 5))]
    text = '\n'.join(['respondent,obsID,altID,profileID,choice,price', *rows])
    assert tables.load(written(tmp_path, text)).attributes == ('price',)


def test_a_situation_with_equal_options_is_wrong_whichever_was_chosen(tmp_path):
    rows = ['a,1,1,5', 'a,1,0,6', 'a,1,0,6', 'a,2,1,5', 'a,2,0,5', 'a,3,1,5', 'a,3,0,6']
    path = written(tmp_path, '\n'.join(['user,situation,chosen,price', *rows]))
    with pytest.raises(ValueError, match=r"situation '1'.*situation '2'"):
        tables.load(path)
    assert len(tables.load(path, drop=lambda line: None).users) == 1


def test_wrong_cells_and_wrong_situations_are_told_together(tmp_path):
    rows = ['a,1,1,5', 'a,1,0,x', 'a,2,1,5', 'a,2,1,6', 'a,3,1,5', 'a,3,0,6', 'a,4,0,5', 'a,4,0,6']
    path, said = written(tmp_path, '\n'.join(['user,situation,chosen,price', *rows])), []
    with pytest.raises(
        ValueError, match=r"5 of 8 rows are wrong: .*row 3: price has 'x'.*row 4: situation '2'.*row 5"
    ) as told:
        tables.load(path)
    # What is left of the first choice is no fault of its own.
    assert "situation '1'" not in str(told.value) and "'4'" in str(told.value)
    assert len(tables.load(path, drop=said.append).users) == 1
    (line, *_) = said
    assert 'left out 6 of 8 rows' in line and "situation '1' of 'a' has 1 chosen of 1 options" in line


def neither(cells, situations=12):
    """A table of choices between two offers and "none of these", whose row has these cells for maker and price."""
    lines = ['user,situation,chosen,maker,price,neither']
    for s in range(situations):
        lines += [
            f'a,{s},{int(s > 2)},VW,{s},0',
            f'a,{s},0,{("Ford", "BMW")[s % 2]},{s + 1},0',
            f'a,{s},{int(s < 3)},{cells}',
        ]
    return '\n'.join(lines)


def test_a_word_that_only_none_of_these_has_is_no_reference(tmp_path):
    data = tables.load(written(tmp_path, neither('-,0,1')))
    assert data.attributes == ('maker: Ford over BMW', 'maker: VW over BMW', 'maker: - over BMW', 'price', 'neither')
    # Equal numbers, and equal ids of a person, are told by what they mean.
    text = neither('-,0,1').replace('a,5,0,-,0,1', 'A,5,0,-,0.0,1').replace('a,5,', 'A,5,')
    assert tables.load(written(tmp_path, text)).attributes == data.attributes
    # A word of offers, or one in a table of few choices, stays where it is.
    assert tables.load(written(tmp_path, neither('BMW,0,1'))).attributes[0] == 'maker: Ford over BMW'
    assert tables.load(written(tmp_path, neither('-,0,1', situations=5))).attributes[0] == 'maker: BMW over -'


@pytest.mark.parametrize('drop', [None, pytest.fail])
def test_an_option_without_values_in_every_choice_is_none_of_these(tmp_path, drop):
    said: list[str] = []
    expected = tables.load(written(tmp_path, neither('BMW,0,1')))
    text = neither(',,')
    without = '\n'.join(line.rpartition(',')[0] for line in text.splitlines())
    marked = '\n'.join(f'{line},{("no", "none")[line.endswith(",,")]}' for line in text.splitlines()[1:])
    # A column of zeros is filled, and one that lacks is added.
    for table in (text, without):
        data = tables.load(written(tmp_path, table), drop=drop, log=said.append)
        assert data.attributes == expected.attributes
        np.testing.assert_array_equal(data.items, expected.items)
        assert any('no maker, price' in line and 'column neither' in line for line in said)
        said.clear()
    # Another column that has a word of its own there takes its place, and a price of 0 does not.
    words = tables.load(written(tmp_path, f'user,situation,chosen,maker,price,a,kind\n{marked}'), log=said.append)
    assert words.attributes[-1] == 'kind: none over no' and not any('column neither' in line for line in said)
    rows = (f'a,{s},1,VW,{s + 1}\na,{s},0,BMW,{s + 2}\na,{s},0,,0' for s in range(12))
    free = tables.load(written(tmp_path, '\n'.join(['user,situation,chosen,maker,price', *rows])))
    assert free.attributes == ('maker: VW over BMW', 'price', 'neither')


def test_few_choices_of_a_new_person_may_have_none_of_these(tmp_path):
    known = tables.load(written(tmp_path, neither(',,')))
    data = tables.load(written(tmp_path, neither(',,', situations=2)), attributes=known.attributes)
    np.testing.assert_array_equal(data.chosen[0], [0.0, 0.0, 0.0, 1.0])
    # The run knows of no such option.
    with pytest.raises(ValueError, match='maker is empty'):
        tables.load(written(tmp_path, neither(',,', situations=2)), attributes=known.attributes[:3])


def test_an_option_without_some_values_or_in_some_choices_is_no_none_of_these(tmp_path):
    lines = neither(',,').splitlines()
    half = written(tmp_path, '\n'.join(lines[:19] + [line for line in lines[19:] if not line.endswith(',,')]))
    with pytest.raises(ValueError, match='6 of .* rows are wrong: .*maker is empty'):
        tables.load(half)
    with pytest.raises(ValueError, match='rows are wrong: .*maker is empty'):
        tables.load(written(tmp_path, neither(',0,1')))
    with pytest.raises(ValueError, match='row 2: maker is empty$'):
        tables.load(written(tmp_path, neither('VW,0,1').replace('a,0,0,VW', 'a,0,0,')))


def test_names_that_words_are_told_by_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"'Q1: brand' .*rename"):
        tables.load(written(tmp_path, 'user,situation,chosen,Q1: brand\na,1,1,VW\na,1,0,Ford\n'))
    for name in ('Q1: price', 'hours over 40'):
        data = tables.load(written(tmp_path, f'user,situation,chosen,{name}\na,1,1,2\na,1,0,3\n'))
        assert data.attributes == (name,)


def test_the_separator_that_excel_writes_is_read(tmp_path):
    data = tables.load(written(tmp_path, 'sep=;\nuser;situation;chosen;price\na;1;1;2,5\na;1;0;3,5\n'))
    assert data.attributes == ('price',) and data.chosen[0, 0] == 2.5


@pytest.mark.parametrize('name', ['a.xlsx', 'a.SAV', 'a.rds'])
def test_files_of_other_programs_are_told_how_to_be_written(tmp_path, name):
    (tmp_path / name).write_bytes(b'PK')
    with pytest.raises(ValueError, match='CSV'):
        tables.load(tmp_path / name)


def test_situations_with_the_same_fault_are_all_counted(tmp_path):
    rows = [f'a,{s},{chosen},{x}' for s in range(5) for chosen, x in ((1, 'inf' if s else 5), (0, 6))]
    path, said = written(tmp_path, '\n'.join(['user,situation,chosen,price', *rows])), []
    with pytest.raises(ValueError, match='8 of 10 rows are wrong: .*not finite'):
        tables.load(path)
    assert len(tables.load(path, drop=said.append).users) == 1 and 'left out 8 of 10 rows' in said[0]
