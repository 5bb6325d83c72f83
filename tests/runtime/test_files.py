import pytest

from pal_jax.runtime.files import write_whole


def test_a_file_that_cannot_be_written_whole_stays_what_it_was(tmp_path):
    path = write_whole(tmp_path / 'notes.txt', 'ü\n')
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, 'new \ud800')
    assert path.read_text(encoding='utf-8') == 'ü\n'
    write_whole(path, 'new \ud800', 'backslashreplace')
    assert path.read_text(encoding='utf-8') == 'new \\ud800'
    assert [each.name for each in tmp_path.iterdir()] == ['notes.txt']
