"""Data that methods make up: found by the names of files, one method a name."""

from __future__ import annotations

import pytest

from pal_jax.run import made


def write(root, *files):
    for file in files:
        (path := root / 'recipes' / file).parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def test_a_file_of_a_method_is_a_name_of_data(tmp_path):
    root = write(tmp_path / 'house', 'a/made/__init__.py', 'a/made/cats.py', 'b/made/dogs.py', 'b/birds.py', 'c.py')
    assert made.names(root) == {'cats': 'house.recipes.a.made.cats', 'dogs': 'house.recipes.b.made.dogs'}


def test_a_name_is_one_methods(tmp_path):
    with pytest.raises(ValueError, match=r'a/made/cats\.py and .*b/made/cats\.py make up data of one name'):
        made.names(write(tmp_path, 'a/made/cats.py', 'b/made/cats.py'))


def test_a_name_is_made_up_or_a_file_or_refused_with_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mine').touch()
    assert set(made.names()) == {'oracle', 'recall'}
    assert all(made.maker('key', name) for name in made.names())
    assert [made.maker('key', name) for name in ('mine', 'missing.jsonl', 'tfds:x')] == [None] * 3
    with pytest.raises(ValueError, match="key='oracl' is neither a file .*oracle, recall"):
        made.maker('key', 'oracl')
