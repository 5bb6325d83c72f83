"""Surveys as people have them: other delimiters, decimal commas, answers by letters, words, rows that are wrong."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as arrow
import pytest
from pyarrow import parquet

from pal_jax.data import comparisons, records, texts
from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.recipes.personal import attributes as attributes_of
from pal_jax.recipes.personal import offers
from pal_jax.recipes.personal.pal import tables

PLAIN = 'user,choice,left_price,left_time,right_price,right_time\nana,left,1.5,9,2,3\nbo,right,1.5,9,2.25,3\n'


def written(folder, text, name='a.csv'):
    (folder / name).write_text(text)
    return folder / name


@pytest.mark.parametrize(
    'text',
    [
        'participant;choice;price_A;time_A;price_B;time_B\nana;A;1,5;9;2;3\nbo;B;1,5;9;2,25;3\n;;;;;\n',
        'Participant_ID\tchoice\tprice1\ttime1\tprice2\ttime2\nana\t1\t1,5\t9\t2\t3\nbo\t2.0\t1,5\t9\t2,25\t3\n',
        'comment,person,Answer,A.price,A.time,B.price,B.time\n"a; b; c",ana,a,1.5,9,2,3\n,bo,b,1.5,9,2.25,3\n',
        'user;situation;chosen;price;time\nana;1;TRUE;1,5;9\nana;1;FALSE;2;3\nbo;1;0;1,5;9\nbo;1;1;2,25;3\n',
    ],
)
def test_surveys_of_other_forms_hold_the_same_choices(tmp_path, text):
    plain, survey = (tables.load(written(tmp_path, one, f'{k}.csv')) for k, one in enumerate((PLAIN, text)))
    assert survey.names == ('ana', 'bo') and survey.attributes == ('price', 'time')
    np.testing.assert_array_equal(survey.chosen, plain.chosen)
    np.testing.assert_array_equal(survey.rejected, plain.rejected)


def test_words_become_a_number_for_each_but_the_first(tmp_path):
    rows = 'ana,A,VW,3,Ford,2\nbo,B,Seat,3,VW,4\nbo,A,Ford,1,Seat,5\n'
    table = written(tmp_path, f'user,choice,A_maker,A_doors,B_maker,B_doors\n{rows}')
    data = tables.load(table)
    assert data.attributes == ('maker: Seat over Ford', 'maker: VW over Ford', 'doors')
    np.testing.assert_array_equal(data.chosen, [[0, 1, 3], [0, 1, 4], [0, 0, 1]])
    np.testing.assert_array_equal(data.rejected, [[0, 0, 2], [1, 0, 3], [1, 0, 5]])
    # A new person has met some of the words alone.
    open_pair = written(tmp_path, 'A_maker,A_doors,B_maker,B_doors\nVW,1,Ford,1\n', 'b.csv')
    new = tables.load(open_pair, answered=False, attributes=data.attributes)
    assert new.attributes == data.attributes and new.chosen.tolist() == [[0, 1, 1]]
    assert attributes_of.with_numbers({'maker': 'Seat', 'doors': 3}, data.attributes) == dict(
        zip(data.attributes, (1, 0, 3), strict=True)
    )
    for make in (lambda: attributes_of.with_numbers({'maker': 'Fiat', 'doors': 3}, data.attributes),):
        with pytest.raises(ValueError, match='maker.*Fiat.*Ford, Seat, VW'):
            make()


def test_a_survey_of_parquet_is_read(tmp_path):
    row = {'user': 'ana', 'choice': 2, 'price1': 1.5, 'price2': 2.0}
    parquet.write_table(arrow.Table.from_pylist([row]), tmp_path / 'a.parquet')
    assert tables.load(tmp_path / 'a.parquet').chosen.tolist() == [[2.0]]


WRONG = 'user,choice,left_x,right_x\nana,left,1,2\nana,,1,2\n,left,1,2\nbo,left,2,2\nbo,right,cheap,2\nbo,right,1,2\n'


def test_all_wrong_rows_are_listed_or_left_out_and_counted(tmp_path):
    table, said = written(tmp_path, WRONG), []
    with pytest.raises(ValueError, match=r'4 of 6 rows are wrong') as error:
        tables.load(table)
    for place in ('row 3: choice', 'row 4: no user', 'row 5: the two items', "row 6: left_x has 'cheap'"):
        assert place in str(error.value)
    assert tables.load(table, drop=said.append).chosen.tolist() == [[1.0], [2.0]]
    assert len(said) == 1 and 'left out 4 of 6 rows' in said[0]


def test_rows_with_the_same_fault_are_listed_together(tmp_path):
    rows = [('a.csv, row 2', 0), *((f'a.csv, row {n}', 1) for n in range(3, 20)), ('b.csv, row 2', 1)]

    def convert(value):
        if value:
            raise ValueError('a fault')
        return value

    with pytest.raises(records.WrongRows) as error:
        records.converted(rows, convert)
    listed = 'a.csv, row 3: a fault (also rows 4, 5, 6, 7, 8, 9, 10, 11, 12, 13 and 7 more)'
    assert str(error.value) == f'18 of 19 rows are wrong: {listed}'
    with pytest.raises(ValueError, match='a.csv, row 3: .*also row b.csv, row 2'):
        records.converted([rows[1], rows[-1]], convert)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('user,choice,left_x,right_x\nana,0,1,2\nbo,1,1,2\n', 'choice.*0'),
        ('user,choice,left_x,right_x,left_y\nana,left,1,2,3\n', 'column left_y has no partner'),
        ('user,choice,x_A,price_A,x_B,prise_B\nana,A,1,2,3,4\n', 'column price_A has no partner.*prise_B'),
        ('user,choice,x1,price1,x2,prise2,wave1\nana,1,1,2,3,4,5\n', 'column price1 has no partner.*prise2'),
        ('user,choice,left_x,right_x\nana,left,"1,5","2,5"\n', "x has '1,5'; write numbers with a point"),
        ('user,choice,left_x,right_x\nana,left,"1,200",2\n', "row 2: left_x has '1,200'; give a number, with a point"),
        ('user,choice,left_x,right_x\nana,left,red,NA\nbo,left,red,blue\n', "row 2: right_x is 'NA'"),
        ('who,choice,left_x,right_x\nana,left,1,2\n', 'no column says who chose.*participant'),
        ('user,pick,left_x,right_x\nana,left,1,2\n', 'no column says which side was chosen.*answer'),
        ('user,situation,chosen,x\nana,1,1,red\nana,1,0,red\n', 'column x has 1 different words'),
        ('user,round,chosen,x\nana,1,1,1\nana,1,0,2\n', 'situation.*round'),
        ('user,situation,chosen,x,,y\nana,1,1,1,1,1\nana,1,0,2,2,2\n', 'a column has no name'),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        tables.load(written(tmp_path, text))


def test_tables_of_texts_need_no_prefix(tmp_path):
    pairs = [
        written(tmp_path, 'user,prompt,chosen,rejected\nana,Tea?,yes,no\nbo,Tea?,no,yes\n'),
        written(tmp_path, 'worker_id;prompt;A;B;choice\nana;Tea?;yes;no;A\nbo;Tea?;yes;no;2\n', 'b.csv'),
        written(tmp_path, 'worker_id;prompt;text_A;text_B;Answer\nana;Tea?;yes;no;A\nbo;Tea?;yes;no;2\n', 'd.csv'),
        tmp_path / 'c.parquet',
    ]
    parquet.write_table(arrow.Table.from_pylist([row for _, row in records.rows(str(pairs[0]))]), pairs[-1])
    for path in pairs:
        data = texts.read(path, byte_tokenizer(), alone=False)
        assert data.names == ('ana', 'bo') and data.prompt is not None
        assert [data.words[i] for i in (*data.chosen, *data.rejected)] == ['yes', 'no', 'no', 'yes']


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('a.csv', 'user,prompt,chosen,rejected\nana,Tea?,yes,no\n'),
        ('a.csv', 'participant,A,B,choice\nana,yes,no,A\n'),
        ('a.jsonl', '{"user": "ana", "chosen": "yes", "rejected": "no"}\n'),
        ('a.jsonl', '{"user": "ana", "chosen": [{"role": "user"}], "rejected": [{"role": "user"}]}\n'),
    ],
)
def test_texts_where_a_table_is_read_are_told_their_config(tmp_path, name, text):
    with pytest.raises(ValueError, match='--config=pal:text'):
        tables.load(written(tmp_path, text, name))


def test_wrong_rows_of_texts_are_left_out_on_request(tmp_path):
    table, said = written(tmp_path, 'user,chosen,rejected\nana,yes,no\nbo,yes,yes\n,a,b\n'), []
    assert texts.read(table, byte_tokenizer(), alone=False, drop=said.append).names == ('ana',)
    assert [choice.user for choice in records.read(str(table), drop=said.append)] == ['ana']
    assert len(said) == 2 and all('left out 2 of' in line for line in said)


def test_the_column_of_a_missing_text_or_answer_is_named(tmp_path):
    table = 'participant;text_A;text_B;answer\nana;yes;no;A\nana;;no;A\nana;yes;no;\n'
    with pytest.raises(ValueError, match=r'row 3: text_A is empty; .*row 4: answer is empty'):
        texts.read(written(tmp_path, table), byte_tokenizer(), alone=False)


def test_what_a_table_holds_and_what_is_not_read_is_told(tmp_path):
    rows = 'participant,age,answer,x_A,x_B,made_A,made_B\n' + 'ana,40,A,1,2,VW,Ford\nana,40,B,1,3,Ford,vw\n' * 2
    said = []
    data = tables.load(written(tmp_path, rows + 'bo,30,A,0,3,VW,Ford\n'), log=said.append, drop=said.append)
    assert 'not read: age' in said[0]
    assert 'made has words that differ in capitals alone, which are read as one word: VW, vw' in said[1]
    assert offers.described(data).startswith('5 choices of 2 people, 1 to 4 of each; x 0 to 3, made: VW over Ford')
    assert len(data.attributes) == 2
    with pytest.raises(ValueError, match=r'ana \(2\), bo \(1\)'):
        comparisons.split(data, seed=0, seen=0.5, train=0.5, validation=0.2)
    more = data._replace(
        users=np.array([0, 0, 0, 0, 1]), situations=np.arange(5), chosen=np.eye(5), rejected=-np.eye(5)
    )
    left = comparisons.without_few(more, said.append)
    assert (left.names, left.users.tolist(), left.situations.tolist()) == (('ana',), [0] * 4, [0, 1, 2, 3])
    assert said[-1].endswith('questions: bo')


@pytest.mark.parametrize('alt', ['alt', 'Concept'])
def test_a_persons_age_and_the_number_of_an_option_are_no_attributes(tmp_path, alt):
    rows = [(1, 1, 1, 5), (1, 0, 2, 6), (2, 0, 1, 7), (2, 1, 2, 8)]
    text = f'user,situation,chosen,age,{alt},price\n' + ''.join(f'ana,{s},{c},40,{k},{x}\n' for s, c, k, x in rows)
    said = []
    assert tables.load(written(tmp_path, text), log=said.append).attributes == ('price',)
    assert len(said) == 1 and 'not read: age' in said[0] and alt in said[0]
    # Ways to travel are attributes, though every choice has all of them.
    labelled = written(tmp_path, text.replace(',40,1,', ',40,bus,').replace(',40,2,', ',40,car,'), 'b.csv')
    assert tables.load(labelled).attributes[-1] == 'price' and len(tables.load(labelled).attributes) == 2
    # A new person's only choice may have options of one price.
    alone = written(tmp_path, 'user,situation,chosen,age,price,time\nbo,1,1,30,5,1\nbo,1,0,30,5,2\n', 'c.csv')
    assert tables.load(alone, attributes=('price', 'time')).attributes == ('price', 'time')


def test_numbers_with_a_unit_are_told(tmp_path):
    rows = ''.join(f'ana;A;{x},9 €;{x} low;{x + 1},9 €;{x + 1} low\n' for x in range(10, 12))
    said = []
    text = 'user;choice;price_A;size_A;price_B;size_B\n' + rows.replace('11 low', '11 high')
    tables.load(written(tmp_path, text), log=said.append)
    assert len(said) == 1 and 'price' in said[0] and '10,9 €' in said[0] and 'unit' in said[0]
    many = 'user,choice,price_A,price_B\n' + ''.join(f'ana,A,$ {x},$ {x + 1}\n' for x in range(30))
    with pytest.raises(ValueError, match='price has 31 .*unit'):
        tables.load(written(tmp_path, many, 'b.csv'))


def test_exact_copies_of_rows_are_told(tmp_path):
    said = []
    tables.load(written(tmp_path, PLAIN + PLAIN.partition('\n')[2]), log=said.append)
    assert len(said) == 1 and '2 rows' in said[0] and 'rows 4, 5;' in said[0]
    options = 'user,situation,chosen,x\n' + 'ana,7,1,1\nana,7,0,2\n' * 2
    with pytest.raises(ValueError, match="'7' of 'ana' has 2 chosen of 4 .*duplicated"):
        tables.load(written(tmp_path, options, 'b.csv'))


def test_an_item_is_shown_in_the_words_of_its_file():
    attributes = 'maker: Seat over Ford', 'maker: VW over Ford', 'price', 'doors'
    for maker, numbers in (('Ford', (0, 0)), ('Seat', (1, 0)), ('VW', (0, 1))):
        item = attributes_of.in_words(dict(zip(attributes, (*numbers, np.float32(16.9).item(), 5.0), strict=True)))
        assert item == {'maker': maker, 'price': 16.9, 'doors': 5}
        assert tuple(attributes_of.with_numbers(item, attributes).values()) == (*numbers, 16.9, 5)


def test_the_column_group_of_people_is_read_in_every_form(tmp_path):
    rows = [f'{who},{group},A,{i},{i + 1}' for i in range(4) for who, group in (('ana', 'north'), ('bo', ''))]
    table = '\n'.join(['participant,group,answer,price_A,price_B', *rows, 'cy,south,B,1,2'])
    data = tables.load(written(tmp_path, table))
    assert data.groups.tolist() == [0, -1, 1] and data.group_names == ('north', 'south')
    people = ('ana', 'n'), ('bo', 's')
    rows = [f'{who},{group},{i},{j},{2 - j}' for who, group in people for i in (1, 2) for j in (1, 2)]
    options = tables.load(written(tmp_path, '\n'.join(['user,group,situation,price,chosen', *rows])))
    assert options.groups.tolist() == [0, 1] and options.attributes == ('price',)
    # A group that is not the same for all options of a choice is an attribute of theirs.
    rows = [f'ana,{"nf"[j]},{i},{2 + j},{int(j == 1)}' for i in (1, 2) for j in (0, 1)]
    options = tables.load(written(tmp_path, '\n'.join(['user,group,situation,price,chosen', *rows])))
    assert options.groups is None and options.attributes == ('group: n over f', 'price')
    twice = 'user,group,choice,price_A,price_B\nana,n,A,1,2\nana,s,A,1,2'
    with pytest.raises(ValueError, match=r"survey.*'ana'.*'n'.*'s'"):
        tables.load(written(tmp_path, twice, 'survey.csv'))


def test_a_file_of_qualtrics_is_read(tmp_path):
    head = 'ResponseId,condition,answer,price_A,price_B\nResponse ID,,Which?,Price,Price\n'
    marks = '"{""ImportId"":""_recordId""}",,,,\n'
    table = f'{head}{marks}R_1,label,Option A,1,2\nR_2,control,option b,1,999\n'
    said = []
    data = tables.load(written(tmp_path, table), group='condition', log=said.append)
    assert data.names == ('R_1', 'R_2') and data.group_names == ('control', 'label') and data.groups.tolist() == [1, 0]
    assert data.chosen.tolist() == [[1], [999]]
    assert any('price has 999, far from all other values' in line for line in said)
    with pytest.raises(ValueError, match="'conditions'; did you mean condition"):
        tables.load(written(tmp_path, table), group='conditions')
    # So are files of texts, and every further file of people.
    texts = (
        'ResponseId,text_A,text_B,answer\nResponse ID,Text,Text,Which?\n"{""ImportId"":""_recordId""}",,,\nR_1,a,b,B\n'
    )
    (choice,) = records.read(str(written(tmp_path, texts, 'texts.csv')))
    assert (choice.user, choice.chosen, choice.rejected) == ('R_1', 'b', 'a')
    # A text in JSON lines that has the mark is a text.
    lines = ''.join(f'{{"user": "a", "chosen": "{{\\"ImportId\\"}} {i}", "rejected": "n"}}\n' for i in range(3))
    assert len(list(records.read(str(written(tmp_path, lines, 'lines.jsonl'))))) == 3
    both = 'ResponseId,PROLIFIC_PID,answer,price_A,price_B\nR_1,p,A,1,2\nR_2,p,B,1,2\n'
    assert tables.load(written(tmp_path, both)).names == ('p',)


def test_groups_are_of_people_and_of_nobody_else(tmp_path):
    people = ('ana', 'N'), ('bo', 'n')
    rows = [f'{who},{g},{i},{2 + i + j},{2 - j}' for who, g in people for i in (1, 2) for j in (1, 2)]
    table = written(tmp_path, '\n'.join(['user,region,situation,price,chosen', *rows]))
    data = tables.load(table, group='region')
    assert data.group_names == ('N',) and data.groups.tolist() == [0, 0] and data.attributes == ('price',)
    with pytest.raises(ValueError, match='price.*differs between the options'):
        tables.load(table, group='price')
    numbered = [f'ana,{i},{j},{2 + i * j},{2 - j}' for i in (1, 2) for j in (1, 2)]
    alternatives = written(tmp_path, '\n'.join(['user,situation,alt,price,chosen', *numbered]), 'alt.csv')
    with pytest.raises(ValueError, match='alt.*differs between the options'):
        tables.load(alternatives, group='alt')
    mixed = written(tmp_path, 'user,group,region,choice,x_A,x_B\nana,1,n,A,1,2\nana,2,n,A,1,3', 'b.csv')
    assert tables.load(mixed, group='').groups is None
    with pytest.raises(ValueError, match='ana.*--config.group'):
        tables.load(mixed)
    with pytest.raises(ValueError, match='a column group beside'):
        tables.load(mixed, group='region')
    # Pairs that nobody has answered have no people, and no groups.
    assert tables.load(mixed, answered=False).groups is None


def test_a_group_of_people_who_are_left_out_is_none(tmp_path):
    rows = [f'{who},{side},A,{i},{i + 1}' for who, side in (('ana', 'b'), ('cy', 'c')) for i in range(4)]
    data = tables.load(written(tmp_path, '\n'.join(['user,group,choice,x_A,x_B', 'bo,a,A,1,2', *rows])))
    left = comparisons.without_few(data, [].append)
    assert left.group_names == ('b', 'c') and left.groups.tolist() == [0, 1]


def test_messages_name_the_columns_of_a_file_as_they_are(tmp_path):
    table = written(tmp_path, 'Who,age,region,price_A,price_B\nana,31,north,1,2\n')
    with pytest.raises(ValueError, match=r'a\.csv.*Who, age, region, price_A, price_B'):
        tables.load(table, group='region')
    options = written(tmp_path, 'user,age,region,price\nana,31,north,1\n', 'b.csv')
    with pytest.raises(ValueError, match=r'b\.csv.*user, age, region, price'):
        tables.load(options, group='region')
    pairs = written(tmp_path, 'user,region,choice,price_A,price_B\nana,1.5,A,1,2\n', 'c.csv')
    assert tables.load(pairs, group='region').group_names == ('1.5',)
    line = '{"user": "ana", "region": 1.5, "choice": "A", "price_A": 1, "price_B": 2}'
    with pytest.raises(ValueError, match=r"line 1: 'region' is 1\.5"):
        tables.load(written(tmp_path, line, 'd.jsonl'), group='region')
    # A column of the person is none of groups, nor is a column that ends like a side one of options.
    for column in ('user', 'choice'):
        with pytest.raises(ValueError, match=f"group='{column}'"):
            tables.load(pairs, group=column)
    sides = written(tmp_path, 'user,region_A,choice,price_A,price_B\nana,north,A,1,2\n', 'e.csv')
    assert tables.load(sides, group='region_A').group_names == ('north',)


@pytest.mark.parametrize('mark', ['|', ' ', ':'])
def test_cells_between_other_marks_are_told_with_the_header_as_it_was_read(tmp_path, mark):
    header, row = (mark.join(cells) for cells in (PLAIN.split()[0].split(','), ['ana', 'left', '1', '9', '2', '3']))
    with pytest.raises(ValueError, match=r'a\.csv: .*semicolons or tabs') as told:
        tables.load(written(tmp_path, f'{header}\n{row}\n'))
    assert repr(header) in str(told.value)
    # Decimal commas cut the rows in pieces, and not the header.
    with pytest.raises(ValueError, match=r'b\.csv: 3 of 3 rows .*semicolons or tabs') as told:
        tables.load(written(tmp_path, f'{header}\n' + f'{row},5\n' * 3, 'b.csv'))
    assert repr(header) in str(told.value)
    with pytest.raises(ValueError, match=r'c\.csv.*semicolons or tabs') as told:
        list(records.read(str(written(tmp_path, f'user{mark}chosen{mark}rejected\nana{mark}a{mark}b\n', 'c.csv'))))
    assert f"'user{mark}chosen{mark}rejected'" in str(told.value)


def test_a_table_of_pandas_that_was_read_without_its_mark_is_told(tmp_path):
    header = ';'.join(PLAIN.split()[0].split(','))
    line = written(tmp_path, json.dumps({header: 'ana;left;1;9;2;3'}), 'a.jsonl')
    with pytest.raises(ValueError, match='sep=') as told:
        tables.load(line)
    assert repr(header) in str(told.value)
    # A mark in a name of several is no mark between cells.
    with pytest.raises(ValueError, match=r'the columns are user, price \| EUR'):
        tables.load(written(tmp_path, 'user,price | EUR,time\nana,1,2\n'))


def test_a_word_of_one_row_alone_is_a_doubt(tmp_path):
    def lines_of(words, file):
        rows = [f'p{i % 9},A,{word},none' for i, word in enumerate(words)]
        table, lines = '\n'.join(['user,choice,kind_A,kind_B', *rows]), []
        tables.load(written(tmp_path, table, file), log=lines.append)
        return [line for line in lines if 'in this row alone' in line]

    (line,) = lines_of(['organic'] * 38 + ['orgnic', 'organic'], 'a.csv')
    assert 'a.csv, row 40: kind' in line and "'orgnic'" in line and 'organic?' in line
    (line,) = lines_of(['organic'] * 38 + ['fair', 'organic'], 'b.csv')
    assert "row 40: kind has 'fair'" in line and 'did you mean' not in line
    # In few rows, or in two, a word is no doubt.
    assert not lines_of(['organic'] * 18 + ['orgnic'], 'c.csv')
    assert not lines_of(['organic'] * 38 + ['orgnic'] * 2, 'd.csv')


def test_a_number_that_is_ten_times_all_others_is_a_doubt(tmp_path):
    rows = [f'a,{s},{int(k == 0)},{s + k + 10}' for s in range(6) for k in range(2)]
    table, said = 'user,situation,chosen,price\n' + '\n'.join(rows), []
    tables.load(written(tmp_path, table), log=said.append)
    assert not said
    tables.load(written(tmp_path, table.replace('a,2,0,13', 'a,2,0,1750')), log=said.append)
    assert len(said) == 1 and 'row 7: price has 1750, ten times' in said[0]


@pytest.mark.parametrize('text', ['', 'user,situation,chosen,price\n'])
def test_a_table_without_rows_says_so(tmp_path, text):
    with pytest.raises(ValueError, match='no rows'):
        tables.load(written(tmp_path, text), group='region')


def test_many_groups_of_few_people_are_a_doubt(tmp_path):
    def lines_of(groups, file):
        table, lines = '\n'.join(['user,age,choice,x_A,x_B', *(f'p{i},{g},A,1,2' for i, g in enumerate(groups))]), []
        data = tables.load(written(tmp_path, table, file), group='age', log=lines.append)
        assert len(data.group_names) == len(set(groups))
        return [line for line in lines if 'age' in line]

    (line,) = lines_of(range(20, 70), 'a.csv')
    assert 'age has 50 different numbers' in line and 'median of 1 person' in line and '--config.group' in line
    (line,) = lines_of([f'place {i % 13}' for i in range(40)], 'b.csv')
    assert 'age has 13 different words' in line and 'median of 3 people' in line
    assert not lines_of([i % 13 for i in range(65)], 'c.csv')
    (line,) = lines_of(range(12), 'd.csv')
    assert 'has the groups 0 (1), 1 (1)' in line


def test_a_group_that_may_be_another_one_is_told_with_its_people(tmp_path):
    groups = ['north'] * 3 + ['nort', 'North', 'east'] + ['south'] * 3
    table = '\n'.join(['user,region,choice,x_A,x_B', *(f'p{i},{g},A,1,2' for i, g in enumerate(groups))])
    lines = []
    tables.load(written(tmp_path, table), group='region', log=lines.append)
    listed, *doubts = [line for line in lines if 'region' in line]
    assert 'east (1), nort (1), north (4), south (3)' in listed
    assert len(doubts) == 1 and "'nort'" in doubts[0] and 'p3' in doubts[0] and 'did you mean north?' in doubts[0]


def test_people_whose_choices_are_all_left_out_are_counted(tmp_path):
    rows = ['ana,A,1,2', 'ana,B,2,3', 'bo,both,1,2', 'bo,both,2,3', 'cy,both,3,4']
    path, said = written(tmp_path, '\n'.join(['user,choice,x_A,x_B', *rows])), []
    with pytest.raises(ValueError, match="'both'.*give left or right"):
        tables.load(path)
    assert tables.load(path, drop=said.append).names == ('ana',)
    assert (
        '3 of 5 rows' in said[0]
        and 'warning' in said[0]
        and said[1].startswith('left out 2 people')
        and 'bo, cy' in said[1]
    )
