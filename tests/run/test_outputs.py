"""Whose place an output takes: its own kind's, and nobody else's."""

import json
import os

import pytest

from pal_jax.run.outputs import MARKER, check_file, check_folder, whole_file, whole_folder


def write(folder, sources=(), **files):
    with whole_folder(folder, sources) as partial:
        for name, text in (files or {'config': '{}'}).items():
            (partial / f'{name}.json').write_text(text)


def tree(folder):
    """Everything in a folder, with the bytes of files."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob('*'))}


def test_what_was_written_whole_is_replaced_whole(tmp_path):
    out = tmp_path / 'deep' / 'out'
    write(out, config='1', extra='2')
    write(out, config='3')
    assert {path.name for path in out.iterdir()} == {'config.json', MARKER}
    assert (out / 'config.json').read_text() == '3'
    assert [path.name for path in out.parent.iterdir()] == ['out']
    (tmp_path / 'plain').mkdir()
    assert out.stat().st_mode == (tmp_path / 'plain').stat().st_mode
    os.utime(out / 'config.json', (1, 1))  # as a copy has it
    write(out)
    write(tmp_path / 'plain')  # an empty folder is nobody's work
    assert (tmp_path / 'plain' / 'config.json').exists()


@pytest.mark.parametrize(
    'name',
    ['config.json', 'notes.txt', '.DS_Store', '.git/HEAD', 'sub/config.json', 'checkpoints/10/x', 'link', 'empty/'],
)
@pytest.mark.parametrize('marked', [True, False])
def test_a_folder_with_anything_else_in_it_is_refused_and_stays(name, marked, tmp_path):
    out = tmp_path / 'out'
    if marked:
        write(out, config='1', second='2')
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name == 'link':
        path.symlink_to(tmp_path)
    elif name.endswith('/'):
        path.mkdir()
    else:
        path.write_text('mine')
    before = tree(tmp_path)
    with pytest.raises(ValueError, match='out'):
        write(out)
    assert tree(tmp_path) == before


def test_a_folder_that_becomes_somebody_elses_meanwhile_stays_and_so_does_what_was_made(tmp_path):
    out = tmp_path / 'out'
    write(out, config='1')

    def interrupted():
        with whole_folder(out) as partial:
            (partial / 'config.json').write_text('2')
            (out / 'notes.txt').write_text('mine')

    with pytest.raises(ValueError, match=r'notes\.txt.*\.out\.partial-') as error:
        interrupted()
    (partial,) = tmp_path.glob('.out.partial-*')
    assert {path.name: path.read_text() for path in out.glob('[!.]*')} == {'config.json': '1', 'notes.txt': 'mine'}
    assert (partial / 'config.json').read_text() == '2'
    assert str(partial) in str(error.value)


def test_folders_of_others_beside_the_place_are_left_alone(tmp_path):
    others = ['out.partial', 'out.old', 'out.tmp', '.out.partial-12345678', '.out.replaced-12345678']
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / 'thesis.txt').write_text('mine')
    write(tmp_path / 'out')
    write(tmp_path / 'out', config='2')
    with pytest.raises(KeyError), whole_folder(tmp_path / 'out') as partial:
        raise KeyError
    assert not partial.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, 'out'])
    assert all((tmp_path / name / 'thesis.txt').exists() for name in others)


def test_sources_by_any_spelling_and_what_holds_them_are_refused(tmp_path, monkeypatch):
    source = tmp_path / 'models' / 'source'
    write(source)
    (tmp_path / 'link').symlink_to(source)
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    for out in (source, tmp_path / 'link', tmp_path / 'models' / 'x' / '..' / 'source', source.relative_to(tmp_path)):
        with pytest.raises(ValueError, match='source'):
            write(out, [source])
    with pytest.raises(ValueError, match='source'):
        write(source, [tmp_path / 'link'])
    with pytest.raises(ValueError, match='models'):
        write(tmp_path / 'models', [source])
    write(source / 'inside', [source])  # takes nothing's place
    monkeypatch.chdir(tmp_path / 'link')
    with pytest.raises(ValueError, match='working directory'):
        write(source)
    assert {name: text for name, text in tree(tmp_path).items() if 'inside' not in name} == before


@pytest.mark.parametrize('name', ['checkpoints/99', 'kept/policy', 'link/99'])
def test_nothing_is_written_among_the_checkpoints_of_a_run_nor_into_what_it_keeps(name, tmp_path):
    run, beside = tmp_path / 'run', tmp_path / 'checkpoints' / '99'
    (run / 'checkpoints' / '4').mkdir(parents=True)
    (run / 'kept').mkdir()
    (run / 'link').symlink_to(run / 'checkpoints')
    (run / 'config.json').write_text('{}')
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=str(run)):
        check_folder(run / name)
    with pytest.raises(ValueError, match=str(run)):
        check_file(run / name)
    assert tree(tmp_path) == before
    assert check_folder(beside) == beside  # of no run


def test_a_link_is_followed_and_stays(tmp_path):
    write(tmp_path / 'real')
    (tmp_path / 'link').symlink_to(tmp_path / 'real')
    (tmp_path / 'open').symlink_to(tmp_path / 'new')
    for name in ('link', 'open'):
        write(tmp_path / name, config='2')
        assert (tmp_path / name).is_symlink()
    assert (tmp_path / 'real' / 'config.json').read_text() == (tmp_path / 'new' / 'config.json').read_text() == '2'


def test_a_list_names_no_file_of_another_folder(tmp_path):
    write(out := tmp_path / 'out')
    (tmp_path / 'thesis.txt').write_text('mine')
    marker = json.loads((out / MARKER).read_text())
    marker['files']['../thesis.txt'] = marker['files']['config.json']
    (out / MARKER).write_text(json.dumps(marker))
    write(out)
    assert (tmp_path / 'thesis.txt').exists()
    (out / MARKER).write_text('{"files": 3}')
    with pytest.raises(ValueError, match='no list'):
        check_folder(out)


def test_a_file_in_a_folders_place_or_way(tmp_path):
    (tmp_path / 'file').write_text('mine')
    for place in (tmp_path / 'file', tmp_path / 'file' / 'deep' / 'out'):
        with pytest.raises(ValueError, match='is a file'):
            check_folder(place)
    with pytest.raises(ValueError, match='no folder'):
        check_file(tmp_path / 'file' / 'out.jsonl')
    with pytest.raises(ValueError, match='is a folder'):
        check_file(tmp_path)
    with pytest.raises(ValueError, match='no folder'):
        check_file(tmp_path / 'nowhere' / 'out.jsonl')


def test_a_file_that_the_user_names_is_never_replaced(tmp_path):
    path = tmp_path / 'pairs.jsonl'
    with whole_file(path) as partial:
        partial.write_text('1')
        assert not path.exists()
    with pytest.raises(ValueError, match='pairs.jsonl exists'):
        check_file(path)
    other = tmp_path / 'x'

    def overtaken():
        with whole_file(other) as partial:
            partial.write_text('2')
            other.write_text('mine')

    with pytest.raises(ValueError, match='What was made is in') as error:
        overtaken()
    (partial,) = tmp_path.glob('.x.partial-*')
    assert str(partial) in str(error.value)
    assert (path.read_text(), other.read_text(), partial.read_text()) == ('1', 'mine', '2')


def test_a_file_of_the_programs_name_is_replaced_where_the_program_wrote_it(tmp_path):
    path = tmp_path / 'evaluation.json'
    for text in '12':
        with whole_file(path, named_here=True) as partial:
            partial.write_text(text)
    assert path.read_text() == '2'
    path.write_text('3')
    (tmp_path / 'comparison.json').write_text('mine')
    for own in (path, tmp_path / 'comparison.json'):
        with pytest.raises(ValueError, match=f'{own.name} exists and'):
            check_file(own, named_here=True)
    with pytest.raises(ValueError, match='no list'):  # of a folder as a whole
        check_folder(tmp_path)


def test_a_list_is_ahead_of_its_file_where_a_kill_came_in_between(tmp_path):
    path = tmp_path / 'evaluation.json'
    for text in '12':
        with whole_file(path, named_here=True) as partial:
            partial.write_text(text)
    path.write_text('1')  # as it was before the second
    check_file(path, named_here=True)
    path.unlink()
    check_file(path, named_here=True)
