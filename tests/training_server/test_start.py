"""The base of the training server: its name for clients, and the source that saved adapters name."""

from __future__ import annotations

import pytest

pytest.importorskip('tinker', reason="needs the client: pip install 'pal_jax[tinker]'")

from pal_jax.training_server.start import resolved


def test_a_folder_is_the_name_of_its_base(tiny_folder, tmp_path):
    _, origin, name = resolved(str(tiny_folder), tmp_path)
    assert (origin, name) == (str(tiny_folder), str(tiny_folder))
    assert resolved(f'hf:{tiny_folder}', tmp_path)[2] == str(tiny_folder)
    assert not list(tmp_path.iterdir())


def test_the_name_of_another_source_is_a_folder_that_transformers_opens(tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    source, origin, name = resolved('random:tiny', tmp_path)
    assert origin == 'random:tiny'
    assert ':' not in name
    assert AutoTokenizer.from_pretrained(name).encode('Hi') == source.tokenizer().encode('Hi')
    assert AutoConfig.from_pretrained(name).vocab_size == source.config.vocab
    # A server that starts again finds the folder.
    assert resolved('random:tiny', tmp_path)[2] == name
