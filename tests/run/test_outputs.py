"""Whose place an output takes: its own kind's, and nobody else's."""

import pytest

from pal_jax.run.outputs import check_file, check_folder, whole_file, whole_folder


def write(folder, sources=(), **files):
    with whole_folder(folder, sources) as partial:
        for name, text in (files or {'config': '{}'}).items():
            (partial / f'{name}.json').write_text(text)


def tree(folder):
    """Everything in a folder, with the bytes of files."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob('*'))}


def make_run(folder):
    (folder / 'checkpoints').mkdir(parents=True)
    (folder / 'config.json').write_text('{"recipe": "sft"}')
    return folder


def test_a_folder_is_written_whole_and_never_replaced(tmp_path):
    out = tmp_path / 'deep' / 'out'
    write(out, config='1', extra='2')
    assert {path.name for path in out.iterdir()} == {'config.json', 'extra.json'}
    assert [path.name for path in out.parent.iterdir()] == ['out']
    (tmp_path / 'plain').mkdir()
    assert out.stat().st_mode == (tmp_path / 'plain').stat().st_mode
    write(tmp_path / 'plain')  # an empty folder is nobody's work
    assert (tmp_path / 'plain' / 'config.json').exists()
    before = tree(tmp_path)
    for place in (out, out.parent, tmp_path / 'plain'):
        with pytest.raises(ValueError, match='exists and holds'):
            write(place, config='3', extra='4')
    assert tree(tmp_path) == before


def test_the_export_of_a_run_is_made_anew(tmp_path):
    out = make_run(tmp_path / 'run') / 'export'
    write(out, config='1', extra='2')
    (out / '.pal_jax.json').write_text('{}')  # of an earlier version
    write(out, config='3', extra='4')
    assert {path.name: path.read_text() for path in out.iterdir()} == {'config.json': '3', 'extra.json': '4'}
    assert sorted(path.name for path in out.parent.iterdir()) == ['checkpoints', 'config.json', 'export']
    for stage in (tmp_path / 'run', make_run(tmp_path / 'run' / 'stage')):  # a run is none's export
        with pytest.raises(ValueError, match='exists and holds'):
            write(stage)


@pytest.mark.parametrize(
    'name', ['notes.txt', '.DS_Store', '.git/HEAD', 'sub/config.json', 'checkpoints/10/x', 'link', 'empty/']
)
@pytest.mark.parametrize('of_run', [True, False])
def test_a_folder_with_anything_else_in_it_is_refused_and_stays(name, of_run, tmp_path):
    out = tmp_path / 'out'
    if of_run:
        write(out := make_run(tmp_path) / 'out', config='1', second='2')
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if name == 'link':
        path.symlink_to(tmp_path)
    elif name.endswith('/'):
        path.mkdir()
    else:
        path.write_text('mine')
    before = tree(out)
    with pytest.raises(ValueError, match='out'):
        write(out, config='3', second='4')
    assert tree(out) == before
    kept = [*tmp_path.glob('.out.partial-*')]  # what was made; beside a run nothing is
    assert bool(kept) == (of_run and 'checkpoints' not in name)


def test_a_folder_that_becomes_somebody_elses_meanwhile_stays_and_so_does_what_was_made(tmp_path):
    out = make_run(tmp_path) / 'out'
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
    make_run(tmp_path)
    for text in '12':
        write(tmp_path / 'out', config=text)
    with pytest.raises(KeyError), whole_folder(tmp_path / 'out') as partial:
        raise KeyError
    assert not partial.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, 'out', 'checkpoints', 'config.json'])
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
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'real')
    (tmp_path / 'open').symlink_to(tmp_path / 'new')
    for name in ('link', 'open'):
        write(tmp_path / name, config='2')
        assert (tmp_path / name).is_symlink()
    assert (tmp_path / 'real' / 'config.json').read_text() == (tmp_path / 'new' / 'config.json').read_text() == '2'


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


def test_a_file_of_the_programs_name_is_replaced_but_not_among_a_models(tmp_path):
    for folder in (tmp_path, make_run(tmp_path / 'run')):
        for text in '12':
            with whole_file(folder / 'evaluation.json', named_here=True) as partial:
                partial.write_text(text)
        assert (folder / 'evaluation.json').read_text() == '2'
    (tmp_path / 'config.json').write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match='evaluation.json exists'):
        check_file(tmp_path / 'evaluation.json', named_here=True)
