"""The file of a person whom PLUS scores for."""

from __future__ import annotations

import pytest

from pal_jax.recipes.plus import scoring


@pytest.mark.parametrize('name', ['ana.json', 'ana.jsonl', 'ana'])
def test_a_summary_is_a_line_in_any_file(tmp_path, name):
    (path := tmp_path / name).write_text('{"user": "ana", "summary": "Likes cats."}\n')
    assert scoring.read_summary(str(path)) == 'Likes cats.'
    path.write_text('{"summary": "Likes cats."}\n{"summary": "Likes dogs."}\n')
    with pytest.raises(ValueError, match=rf'{name}, line 2'):
        scoring.read_summary(str(path))
