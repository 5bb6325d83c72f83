"""Folders merged tensor by tensor: against the same by trees in memory, within a bound of memory, and faults."""

from __future__ import annotations

import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.models import lora, merging, params
from pal_jax.models.config import tiny
from pal_jax.models.files import folders, hf, peft, sources, tensors
from pal_jax.models.files.folders import Settings

TOKENIZER = byte_tokenizer()
CFG = tiny(vocab=TOKENIZER.vocab_size)
WEIGHTS = [0.5, 0.2, 0.3]
TARGETS = ('attn/(q|o)', 'down')


def model(seed):
    return params.init(params.decoder_specs(CFG), jax.random.key(seed))


def adapter(plain, seed, rank=4, alpha=8.0, targets=TARGETS):
    trainable, _ = lora.split(lora.attach(plain, rank=rank, alpha=alpha, targets=targets, key=jax.random.key(seed)))
    return jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size) + seed).reshape(x.shape), trainable)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A base, three models of several files, and three adapters."""
    place = tmp_path_factory.mktemp('merging')
    hf.save(model(0), CFG, TOKENIZER, place / 'base')
    for i in range(3):
        hf.save(model(i + 1), CFG, TOKENIZER, place / f'model_{i}', file_bytes=100_000)
        peft.save(adapter(model(0), i), CFG, 'random:tiny', place / f'adapter_{i}')
    return place


def of(place, kind):
    return [place / f'{kind}_{i}' for i in range(3)]


def load(folder):
    return hf.load_params(folder, hf.read_config(folder))


def assert_near(found, expected, rtol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=rtol * np.abs(y).max()), found, expected)


def test_sharded_models_merge_as_their_trees_do(place, tmp_path):
    seen = []
    merge = Settings('linear', WEIGHTS)
    folders.merge(of(place, 'model'), merge, tmp_path / 'out', lambda done, of: seen.append((done, of)))
    assert_near(load(tmp_path / 'out'), merging.linear([model(1), model(2), model(3)], WEIGHTS))
    assert seen == [(i + 1, len(seen)) for i in range(len(seen))]
    assert (tmp_path / 'out' / tensors.INDEX).exists()  # as the first is
    assert {'config.json', 'tokenizer.json'} <= {path.name for path in (tmp_path / 'out').iterdir()}


def test_weights_1_0_0_copy_the_first_file_by_file(place, tmp_path):
    folders.merge(of(place, 'model'), Settings('linear', [1.0, 0.0, 0.0]), tmp_path / 'out')
    first = place / 'model_0'
    assert {path.name for path in first.iterdir()} == {path.name for path in (tmp_path / 'out').iterdir()}
    for path in first.glob('*.safetensors'):
        expected, found = load_file(path), load_file(tmp_path / 'out' / path.name)
        assert found.keys() == expected.keys()
        assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def test_factors_of_adapters_are_an_adapter_again(place, tmp_path):
    folders.merge(of(place, 'adapter'), Settings('linear', WEIGHTS), tmp_path / 'out')
    found = lora.split(peft.attach(model(0), CFG, tmp_path / 'out'))[0]
    assert_near(found, merging.linear([adapter(model(0), i) for i in range(3)], WEIGHTS))
    assert peft.read_config(tmp_path / 'out') == ('random:tiny', 2.0, 4)


def test_updates_of_adapters_merge_as_the_merged_models_do(place, tmp_path):
    apart = []
    for i, folder in enumerate(of(place, 'adapter')):
        apart.append(tmp_path / f'full_{i}')
        folders.merge([folder], Settings('delta', [1.0], place / 'base'), apart[-1])
        assert_near(load(apart[-1]), lora.merge(lora.join(adapter(model(0), i), model(0))))
    folders.merge(of(place, 'adapter'), Settings('delta', WEIGHTS, place / 'base'), tmp_path / 'out')
    folders.merge(apart, Settings('linear', WEIGHTS), tmp_path / 'expected')
    assert_near(load(tmp_path / 'out'), load(tmp_path / 'expected'))


def test_adapters_of_other_ranks_have_a_mean_of_updates(place, tmp_path):
    peft.save(adapter(model(0), 5, rank=2, alpha=6.0), CFG, 'random:tiny', tmp_path / 'narrow')
    both = [place / 'adapter_0', tmp_path / 'narrow']
    with pytest.raises(ValueError, match=r'adapter_0 has scale 2.0 and .*narrow scale 3.0; method delta merges'):
        folders.merge(both, Settings('linear', [0.5, 0.5]), tmp_path / 'out')
    folders.merge(both, Settings('delta', [0.5, 0.5], place / 'base'), tmp_path / 'out')
    each = [adapter(model(0), 0), adapter(model(0), 5, rank=2, alpha=6.0)]
    expected = merging.linear([lora.merge(lora.join(x, model(0))) for x in each], [0.5, 0.5])
    assert_near(load(tmp_path / 'out'), expected)


def test_memory_does_not_grow_with_models_and_tensors(tmp_path):
    """Never more than two tensors beside the one that is written, of eight models of six."""
    rng, size = np.random.default_rng(0), 512
    paths = [tmp_path / str(i) for i in range(8)]
    for path in paths:
        path.mkdir()
        (path / 'config.json').write_text('{}')
        values = {f't{i}': rng.standard_normal((size, size), np.float32) for i in range(6)}
        save_file(values, path / tensors.SINGLE)
    settings = Settings('linear', [1 / len(paths)] * len(paths))
    tracemalloc.start()
    try:
        folders.merge(paths, settings, tmp_path / 'out')
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * 4 * size**2


def test_buffers_and_narrow_numbers(tmp_path):
    values = {'w': np.ones((4, 2), jnp.bfloat16), 'ids': np.arange(3), 'one': np.array(2.0, np.float32)}
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / 'config.json').write_text('{}')
        save_file(values | {'w': values['w'] * (1 + 2 * i)}, tmp_path / str(i) / tensors.SINGLE)
    both, settings = [tmp_path / '0', tmp_path / '1'], Settings('linear', [0.5, 0.5])
    folders.merge(both, settings, tmp_path / 'out')
    found = load_file(tmp_path / 'out' / tensors.SINGLE)
    assert found['w'].dtype == jnp.bfloat16
    assert (found['w'] == 2).all()
    np.testing.assert_array_equal(found['ids'], values['ids'])
    assert found['one'] == 2
    save_file(values | {'ids': np.arange(3) + 1}, tmp_path / '1' / tensors.SINGLE)
    with pytest.raises(ValueError, match='ids is of whole numbers, and they differ'):
        folders.merge(both, settings, tmp_path / 'other')
    assert [path.name for path in tmp_path.glob('other*')] == []  # what was begun is gone


def refused(message, *args):
    with pytest.raises(ValueError, match=message):
        folders.merge(*args)


def other_model(folder, *, tok=TOKENIZER, cfg=CFG, **config):
    """Weights of the same names and shapes that mean something else."""
    hf.save(model(1), cfg, tok, folder)
    path = folder / 'config.json'
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def swapped(folder):
    """The tokenizer of a model with the ids of two tokens swapped."""
    path = folder / 'tokenizer.json'
    content = json.loads(path.read_text('utf-8'))
    vocab = content['model']['vocab']
    vocab['a'], vocab['b'] = vocab['b'], vocab['a']
    path.write_text(json.dumps(content), 'utf-8')


def ended(token):
    fast = byte_tokenizer().with_template('{{ messages }}').fast
    fast.eos_token = token
    return type(TOKENIZER)(fast)


@pytest.mark.parametrize(
    ('config', 'message'),
    [
        ({'rope_theta': 5e5}, r'base has rope_theta=10000.0 in its config.json, .*other rope_theta=500000.0'),
        ({'rope_scaling': {'rope_type': 'linear', 'factor': 2.0}}, 'rope_scaling=None .*factor'),
        ({'rms_norm_eps': 1e-6}, 'rms_norm_eps=1e-05 .*rms_norm_eps=1e-06'),
        ({'num_attention_heads': 8, 'head_dim': 8, 'num_key_value_heads': 4}, 'num_attention_heads=4 .*=8'),
        ({'architectures': ['MistralForCausalLM'], 'model_type': 'mistral'}, "architectures=.*'MistralForCausalLM'"),
        ({'embedding_multiplier': 12.0}, 'embedding_multiplier=None .*embedding_multiplier=12.0'),  # unknown to us
    ],
)
def test_configs_that_mean_something_else_are_refused(place, tmp_path, config, message):
    both = [place / 'base', other_model(tmp_path / 'other', **config)]
    refused(message, both, Settings('linear', [0.5, 0.5]), tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_tokens_have_to_have_the_same_ids_and_roles(place, tmp_path):
    linear, out = Settings('linear', [0.5, 0.5]), tmp_path / 'out'
    swapped(other_model(tmp_path / 'ids'))
    refused(r"token 'a' has id \d+ in .*base and \d+ in .*ids", [place / 'base', tmp_path / 'ids'], linear, out)
    other_model(tmp_path / 'ends', tok=ended('<|endoftext|>'))
    refused(r"eos_token='<\|im_end\|>' .*eos_token='<\|endoftext\|>'", [place / 'base', tmp_path / 'ends'], linear, out)
    (other_model(tmp_path / 'mute') / 'tokenizer.json').unlink()
    refused('mute has none', [place / 'base', tmp_path / 'mute'], linear, out)
    peft.save(adapter(model(0), 1), CFG, 'random:tiny', tmp_path / 'adapter')
    ended('<|im_end|>').save(tmp_path / 'adapter')
    swapped(tmp_path / 'adapter')
    refused("token 'a' has id", [tmp_path / 'adapter'], Settings('delta', [1.0], place / 'base'), out)


def test_what_may_differ_is_merged(place, tmp_path):
    """The length, precision, template, padding, ends of generation, the spelling of files and of rotary settings."""
    fast = ended('<|im_end|>').fast
    fast.pad_token = '<|reserved_0|>'
    other = other_model(
        tmp_path / 'other',
        tok=type(TOKENIZER)(fast),
        max_position_embeddings=77,
        torch_dtype='bfloat16',
        rope_theta=1.0,
        rope_parameters={'rope_type': 'default', 'rope_theta': 10_000.0},
        use_cache=False,
    )
    (other / 'generation_config.json').write_text('{"eos_token_id": [1]}')
    path = other / 'tokenizer.json'
    path.write_text(json.dumps(json.loads(path.read_text('utf-8')), indent=3), 'utf-8')
    folders.merge([place / 'base', other], Settings('linear', [0.5, 0.5]), tmp_path / 'out')
    assert_near(load(tmp_path / 'out'), merging.linear([model(0), model(1)], [0.5, 0.5]))


def test_adapters_speak_and_not_their_base(place, tmp_path):
    peft.save(adapter(model(0), 1), CFG, 'random:tiny', tmp_path / 'adapter')
    (tmp_path / 'adapter' / 'chat_template.jinja').write_text('{{ 1 }}')
    folders.merge([tmp_path / 'adapter'], Settings('delta', [1.0], place / 'base'), tmp_path / 'full')
    assert hf_tokenizer(tmp_path / 'full').fast.chat_template == '{{ 1 }}'
    assert hf.read_config(tmp_path / 'full') == CFG


def hf_tokenizer(folder):
    return sources.from_hf(str(folder)).tokenizer()


def test_a_result_that_is_not_finite_is_refused_with_its_tensor(place, tmp_path):
    broken = model(1)
    broken['layers']['mlp']['up'] = broken['layers']['mlp']['up'].at[1, 2, 3].set(jnp.nan)
    hf.save(broken, CFG, TOKENIZER, tmp_path / 'broken')
    both = [place / 'base', tmp_path / 'broken']
    refused(
        r'layers\.1\.mlp\.up_proj\.weight, merged of .*broken, has nan',
        both,
        Settings('linear', [0.5, 0.5]),
        tmp_path / 'o',
    )
    folders.merge(both, Settings('linear', [1.0, 0.0]), tmp_path / 'out')  # what counts nothing is not read


def test_what_is_refused_before_a_tensor_is_read(place, tmp_path):
    base, one, out = place / 'base', place / 'adapter_0', tmp_path / 'out'
    linear, delta = Settings('linear', [0.5, 0.5]), Settings('delta', [0.5, 0.5], base)
    refused('2 weights with sum 1 for 3 models', of(place, 'model'), linear, out)
    refused('weights with sum 0.9', [base, base], Settings('linear', [0.5, 0.4]), out)
    refused(r'adapter_0 is an adapter and .*base is not', [one, base], linear, out)
    refused('nowhere is neither the folder of', [base, tmp_path / 'nowhere'], linear, out)
    refused('give it with --base', [one, one], Settings('delta', [0.5, 0.5]), out)
    refused('merges the updates of adapters, .*base is none', [base, base], delta, out)
    refused("method 'ties' is not one of linear, delta; mergekit", [base, base], Settings('ties', [0.5, 0.5]), out)

    peft.save(adapter(model(0), 5, targets=('attn/(q|v)',)), CFG, 'random:tiny', tmp_path / 'v')
    refused(r'adapter_0 has base_model.*, .*v has not \(8 in all\)', [one, tmp_path / 'v'], linear, out)
    peft.save(adapter(model(0), 5), CFG, 'gguf:other', tmp_path / 'other')
    refused(r'has base random:tiny and .*other base gguf:other', [one, tmp_path / 'other'], linear, out)
    peft.save(adapter(model(0), 5, rank=2, alpha=4.0), CFG, 'random:tiny', tmp_path / 'rank')
    refused('rank 4 and .*rank rank 2', [one, tmp_path / 'rank'], linear, out)

    for name, values in {'wide': {'embed': np.ones((4, 4))}, 'narrow': {'embed': np.ones((4, 2))}, 'more': {}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / 'config.json').write_text('{}')
        save_file(values or {'embed': np.ones((4, 4)), 'head': np.ones(2)}, tmp_path / name / tensors.SINGLE)
    refused(r'embed has shape \(4, 4\) in .*wide and \(4, 2\)', [tmp_path / 'wide', tmp_path / 'narrow'], linear, out)
    refused(r'more has head, .*wide has not', [tmp_path / 'wide', tmp_path / 'more'], linear, out)
    alone = Settings('delta', [1.0], tmp_path / 'wide')
    refused(r'which adapts no weight of .*wide', [one], alone, out)
    assert not out.exists()
    assert not list(tmp_path.glob('.out*'))

    (tmp_path / 'notes').mkdir()
    (tmp_path / 'notes' / 'plan.txt').write_text('mine')
    refused('notes exists and holds plan.txt', [base, base], linear, tmp_path / 'notes')
    assert json.loads((base / 'config.json').read_text())  # a source is left as it was


@pytest.mark.parametrize('kind', ['F8_E4M3', 'F8_E5M2', 'I8', 'U8'])
def test_quantised_weights_are_refused_in_one_line_by_everything_that_reads_weights(place, tmp_path, kind):
    """They ended in a traceback (float8), or were loaded as numbers without their scales (int8)."""
    weights = load_file(place / 'base' / 'model.safetensors')
    name = next(name for name in weights if name.endswith('q_proj.weight'))
    for path in (place / 'base').iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    numbers = {**weights, name: weights[name].astype(np.uint8), f'{name}_scale_inv': np.ones((1, 1), np.float32)}
    save_file(numbers, tmp_path / 'model.safetensors')
    data = (tmp_path / 'model.safetensors').read_bytes()
    size = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8 : 8 + size])
    header[name]['dtype'] = kind
    text = json.dumps(header).encode()
    (tmp_path / 'model.safetensors').write_bytes(len(text).to_bytes(8, 'little') + text + data[8 + size :])
    readers = [
        lambda: load(tmp_path),
        lambda: sources.from_hf(str(tmp_path)).load(),
        lambda: folders.of_folder(tmp_path),
        lambda: tensors.read(tmp_path / 'model.safetensors'),
    ]
    for read in readers:
        with pytest.raises(ValueError, match=rf'model.safetensors: {name} is of {kind}, .*save the model in') as told:
            read()
        assert '\n' not in str(told.value)


def test_shards_without_an_index_are_read_and_missing_ones_told(place, tmp_path):
    for path in (place / 'model_0').iterdir():
        if path.name != tensors.INDEX:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert len(list(tmp_path.glob('model-*.safetensors'))) > 1
    assert set(tensors.files(tmp_path)) == set(tensors.files(place / 'model_0'))
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path), load(place / 'model_0'))
    next(tmp_path.glob('model-00002-of-*.safetensors')).unlink()
    with pytest.raises(ValueError, match='get those missing'):
        load(tmp_path)
