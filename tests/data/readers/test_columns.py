"""Folders of pairs: what is written is read, a batch at a time, and what is wrong is told with file and row."""

from __future__ import annotations

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.data import comparisons
from pal_jax.data.comparisons import Lookup
from pal_jax.data.passes import HELD, scattered, shuffled
from pal_jax.data.readers import columns
from pal_jax.run import devices, sharding

ITEMS = np.arange(12, dtype=np.float32).reshape(6, 2)
PARTS = [(np.array([0, 1]), np.array([0, 2]), np.array([1, 3])), (np.array([2]), np.array([4]), np.array([5]))]


def written(folder, **changes):
    columns.write(folder, ITEMS, PARTS, 3)
    for name, array in changes.items():
        np.save(folder / f'{name}.npy', array)
    return folder


def test_what_was_written_in_parts_is_read(tmp_path):
    data = columns.load(written(tmp_path))
    np.testing.assert_array_equal(data.users, [0, 1, 2])
    np.testing.assert_array_equal(data.chosen[:], ITEMS[[0, 2, 4]])
    np.testing.assert_array_equal(data.rejected[np.array([2, 0])], ITEMS[[5, 1]])
    assert isinstance(data.users, np.memmap)
    assert data.names == ('0', '1', '2')
    columns.write(tmp_path / 'named', ITEMS, PARTS, 3, names=['ana', 'bo', 'cy'])
    assert columns.load(tmp_path / 'named').names == ('ana', 'bo', 'cy')


@pytest.mark.parametrize('count', [2, 4])
def test_parts_that_do_not_add_up_are_refused(tmp_path, count):
    with pytest.raises(ValueError, match=f'of the {count} pairs announced|more than the {count} pairs announced'):
        columns.write(tmp_path, ITEMS, PARTS, count)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'chosen': np.array([0, 6, 4], np.int32)}, r'chosen.npy, row 1 is none of the 6 items'),
        ({'rejected': np.array([1, 3, 4], np.int32)}, r'rejected.npy, row 2 is the chosen item'),
        ({'items': np.where(ITEMS > 9, ITEMS - 2, ITEMS)}, r'rejected.npy, row 2 has the same numbers as the chosen'),
        ({'items': ITEMS * np.array([[-0.0], [0.0]] * 3, np.float32)}, r'rejected.npy, row 0 has the same numbers'),
        ({'users': np.array([0, -1, 2], np.int32)}, r'users.npy, row 1 is no number of a user'),
        ({'users': np.array([0, 1], np.int32)}, 'there are 2 users, 3 chosen, 3 rejected items'),
        ({'users': np.array([0, 1, 2])}, 'users.npy has 1 axes of int64; give 1 of int32'),
        ({'items': np.where(ITEMS == 5, np.nan, ITEMS)}, r'items.npy, row 2 is not finite'),
    ],
)
def test_what_is_wrong_in_a_folder_is_told_with_its_row(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        columns.load(written(tmp_path, **changes))


@pytest.mark.parametrize('mapped', [True, False])
def test_a_damaged_archive_is_told_and_closed(tmp_path, mapped):
    path = tmp_path / 'users.npy'
    path.write_bytes(b'PK\x03\x04 and no more')
    with pytest.raises(ValueError, match=r'users\.npy is no array'):
        columns.read_arrays(path, mapped=mapped)
    gc.collect()  # an open file would be an error here


def test_missing_files_and_names_are_told(tmp_path):
    with pytest.raises(ValueError, match=r'there is no file .*items.npy'):
        columns.load(tmp_path)
    (written(tmp_path) / 'names.txt').write_text('ana\n')
    with pytest.raises(ValueError, match='has 1 names, there are 3 users'):
        columns.load(tmp_path)


class Watched:
    """A table that notes which of its rows are read."""

    def __init__(self, rows):
        self.rows, self.shape, self.read = rows, rows.shape, []

    def __getitem__(self, numbers):
        self.read.append(np.unique(numbers))
        return self.rows[numbers]


def test_a_device_reads_its_own_pairs_and_no_others():
    table, numbers = Watched(np.arange(64, dtype=np.float32).reshape(32, 2)), np.arange(32).reshape(1, 2, 16)
    mesh = devices.make_mesh(1, 8, 1)
    lazy = Lookup(table, np.arange(32)).at(numbers)  # type: ignore[arg-type]
    assert lazy.shape == (1, 2, 16, 2)
    put = sharding.put_batch(lazy, mesh, (None, None, 'batch'))
    np.testing.assert_array_equal(put, table.rows[numbers])
    assert len(table.read) == 8
    assert all(len(rows) == 4 for rows in table.read)  # two of sixteen pairs in each of two updates


def test_a_batch_read_late_is_the_batch(tmp_path):
    data = columns.load(written(tmp_path))
    index = np.array([[2, 0], [1, 1]])
    share = np.ones(index.shape, np.float32)
    soon, late = (comparisons.take(data, index, data.users[index], share, read=read) for read in (True, False))
    assert isinstance(late.chosen, Lookup)
    put = sharding.put_batch(late, devices.make_mesh(devices=jax.devices()[:1]), ())
    jax.tree.map(np.testing.assert_array_equal, soon, jax.tree.map(jnp.asarray, put))


@pytest.mark.parametrize('total', [1, 2, 3, 1000, 4097])
def test_an_order_that_is_not_written_down_is_a_permutation(total):
    sent = scattered(np.arange(total), total, [0, 0])
    assert sorted(sent) == list(range(total))
    if total > 3:
        assert not np.array_equal(sent, np.arange(total))
        assert not np.array_equal(sent, scattered(np.arange(total), total, [0, 1]))
        correlation = np.corrcoef(np.arange(total), sent)[0, 1]
        assert abs(correlation) < 5 / total**0.5


def test_draws_from_many_pairs_are_a_function_of_their_place():
    total = HELD + 3
    together = shuffled(total, start=total - 5, size=10, seed=1)  # across two passes
    np.testing.assert_array_equal(together[3:6], shuffled(total, start=total - 2, size=3, seed=1))
    assert len(set(shuffled(total, start=0, size=total, seed=1))) == total


def test_an_array_with_a_header_of_python_2_is_read_without_a_warning(tmp_path):
    header = b"{'descr': '<i4', 'fortran_order': False, 'shape': (2L,), }".ljust(117) + b'\n'
    (path := tmp_path / 'a.npy').write_bytes(b'\x93NUMPY\x01\x00v\x00' + header + np.arange(2, dtype='<i4').tobytes())
    np.testing.assert_array_equal(columns.read_arrays(path, mapped=True), [0, 1])
