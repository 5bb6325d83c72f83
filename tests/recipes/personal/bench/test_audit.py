"""The audit of data sets that are made for it: clean ones, and what stands both in the test and in training."""

from __future__ import annotations

import numpy as np
import pytest

from pal_jax.data import comparisons
from pal_jax.data.comparisons import Comparisons, Lookup
from pal_jax.recipes.personal.bench import audit, leakage


def by_test(data, split, **options):
    findings = audit.audit(data, split, **options)
    assert [row.test for row in findings] == [f'T{number}' for number in range(1, 13)]
    return {row.test: row for row in findings}


def statements(seed=0, people=40, texts=60, pairs=30, width=6):
    """Two camps that agree with the one or the other half of statements whose vectors tell the half."""
    rng = np.random.default_rng(seed)
    half = np.arange(texts) % 2
    table = rng.normal(size=(texts, width)).astype(np.float32)
    table[:, 0] += np.where(half, 2.0, -2.0)
    # Texts of the same letters and length on both sides.
    words = tuple(''.join(rng.permutation(list('abcdefghijklmnopqrstuvwxyz'))) for _ in range(texts))
    users = np.repeat(np.arange(people), pairs).astype(np.int32)
    liked = users % 2
    sides = np.stack([2 * rng.integers(0, texts // 2, len(users)) + way for way in (liked, 1 - liked)])
    chosen, rejected = (Lookup(table, side.astype(np.int32)) for side in sides)
    return Comparisons(
        users, np.arange(len(users)), chosen, rejected, None, tuple(f'p{i}' for i in range(people)),
        tuple(f'x{i}' for i in range(width)), words,
    )  # fmt: skip


@pytest.fixture(scope='module')
def clean():
    data = statements()
    return data, comparisons.split_items(data, seed=0, seen=0.8, train=0.5, validation=0.2)


def test_camps_over_shared_statements_pass(clean):
    data, split = clean
    rows = by_test(data, split)
    assert audit.fails(rows.values()) == []
    assert rows['T1'].figure > 0.15  # a blind model is a coin here
    assert rows['T2'].verdict == rows['T5'].verdict == 'none'


def test_a_person_or_a_statement_on_both_sides_flags(clean):
    data, split = clean
    seen = split._replace(new_test=np.concatenate([split.new_test, split.test[:20]]))
    assert by_test(data, seen)['T8'].verdict == 'flag'
    both = split._replace(new_test=np.concatenate([split.new_test, split.fit[:3]]))
    assert by_test(data, both)['T12'].verdict == 'flag'


def test_nearly_the_same_statement_in_training_flags(clean):
    data, split = clean
    words = list(data.texts)
    tested, learnt = (data.chosen.numbers[part[0]] for part in (split.test, split.train))
    words[tested] = words[learnt].replace('a', 'b')
    for i in (tested, learnt):
        words[i] += ' and so on and so forth, as everybody says who has seen it'
    assert by_test(data._replace(texts=tuple(words)), split)['T7'].verdict == 'flag'


def test_few_people_who_are_all_alike_do_not_void_a_data_set():
    data = statements()
    same = np.where(np.arange(len(data.users)) % 10 < 8, True, False)  # eight of ten like what camp 1 likes
    one, other = (np.where(data.users % 2, a.numbers, b.numbers) for a, b in
                  ((data.chosen, data.rejected), (data.rejected, data.chosen)))  # fmt: skip
    table = data.chosen.table
    data = data._replace(
        chosen=Lookup(table, np.where(same, one, other)), rejected=Lookup(table, np.where(same, other, one))
    )
    split = comparisons.split_items(data, seed=0, seen=0.8, train=0.5, validation=0.2)
    first = by_test(data, split)['T1']
    assert (first.verdict, leakage.TOO_FEW in first.words) == ('warn', True)


def test_many_coordinates_are_made_few(clean):
    data, split = clean
    wide = np.concatenate([data.chosen.table, np.zeros((60, 100), np.float32)], axis=1)
    data = data._replace(chosen=Lookup(wide, data.chosen.numbers), rejected=Lookup(wide, data.rejected.numbers))
    narrow = audit.narrow(data, split.train)
    assert narrow.chosen.shape[-1] == audit.WIDE
    assert audit.audit(data, split)[0].figure > 0.15
