"""The command: where its models come from, what it makes of them, and what it says to wrong input."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from pal_jax.commands import merge
from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.models import lora, merging, params
from pal_jax.models.config import tiny
from pal_jax.models.files import hf, peft, sources
from pal_jax.models.files.folders import Settings
from pal_jax.recipes import sft
from pal_jax.run import checkpoint, devices
from pal_jax.run.recipe import Context
from pal_jax.run.settings import to_dict
from tests import configs

TOKENIZER = byte_tokenizer()
CFG = tiny(vocab=TOKENIZER.vocab_size)


def load(folder):
    return hf.load_params(folder, hf.read_config(folder))


@pytest.fixture
def adapters(tmp_path):
    base, folders = sources.resolve('random:tiny').load(), []
    for seed in range(2):
        trained = lora.split(lora.attach(base, rank=2, alpha=4.0, targets='attn/(q|v)', key=jax.random.key(seed)))[0]
        moved = jax.tree.map(lambda x: x + 0.1, trained)
        peft.save(moved, CFG, 'random:tiny', tmp_path / f'adapter_{seed}')
        folders.append((str(tmp_path / f'adapter_{seed}'), lora.join(moved, base)))
    return folders


def test_weights_are_numbers_or_fractions_with_sum_1():
    assert merge.parse_weights(['1/3', '1/3', '1/3'], 3) == [1 / 3] * 3
    assert merge.parse_weights(['0.25', '3/4'], 2) == [0.25, 0.75]
    assert merge.parse_weights([], 4) == [0.25] * 4
    for texts, message in (
        (['a', '1'], '--weights=a,1 are no numbers; give such as 1/3'),
        (['1/0'], 'no numbers'),
        (['0.5', '0.4'], '2 weights with sum 0.9 for 2 models; give one each, with sum 1'),
        (['1'], '1 weights with sum 1 for 2 models'),
    ):
        with pytest.raises(ValueError, match=message):
            merge.parse_weights(texts, 2)


def test_adapters_become_an_adapter_or_a_model_on_the_base_they_name(adapters, tmp_path):
    (one, first), (two, second) = adapters
    merge.merge([one, f'peft:{two}'], Settings('linear', [0.5, 0.5]), None, tmp_path / 'soup')
    assert peft.read_config(tmp_path / 'soup').base == 'random:tiny'
    merge.merge([one, two], Settings('delta', [0.5, 0.5]), None, tmp_path / 'model')
    expected = merging.linear([lora.merge(first), lora.merge(second)], [0.5, 0.5])
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), load(tmp_path / 'model'), expected
    )
    assert sources.resolve(f'hf:{tmp_path / "model"}').tokenizer().encode('a b') == TOKENIZER.encode('a b')
    assert [path.name for path in tmp_path.glob('.merge-*')] == []


def test_models_of_several_sources_and_an_earlier_result_stays(tmp_path):
    hf.save(params.init(params.decoder_specs(CFG), jax.random.key(7)), CFG, TOKENIZER, tmp_path / 'other')
    names = ['random:tiny', f'hf:{tmp_path / "other"}']
    merge.merge(names, Settings('linear', [0.0, 1.0]), None, tmp_path / 'out')
    with pytest.raises(ValueError, match='out exists and holds'):
        merge.merge(names, Settings('linear', [0.5, 0.5]), None, tmp_path / 'out')
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / 'out'), load(tmp_path / 'other'))


def test_what_cannot_be_had(adapters, tmp_path):
    linear, delta = Settings('linear', [0.5, 0.5]), Settings('delta', [0.5, 0.5])
    with pytest.raises(ValueError, match='there is no folder nowhere; give one, or orbax:<workdir>'):
        merge.merge(['nowhere', 'elsewhere'], linear, None, tmp_path / 'out')
    with pytest.raises(ValueError, match='nowhere is no run of this package'):
        merge.merge(['orbax:nowhere', 'elsewhere'], linear, None, tmp_path / 'out')
    trained = lora.split(adapters[0][1])[0]
    peft.save(trained, CFG, 'gguf:other', tmp_path / 'of_another')
    with pytest.raises(ValueError, match='the adapters name random:tiny and gguf:other as their base'):
        merge.merge([adapters[0][0], str(tmp_path / 'of_another')], delta, None, tmp_path / 'out')


@pytest.mark.slow
@pytest.mark.parametrize('rank', [0, 2])
def test_runs_are_merged_by_what_they_have_trained(rank, tmp_path, monkeypatch):
    monkeypatch.setattr(merge.cli, 'place', lambda: None)  # no flags are parsed here
    config = configs.load('sft', **{'policy.lora.rank': rank})
    recipe = sft.make(config, Context(devices.make_mesh(devices=jax.devices()[:1])))
    state, host = recipe.init()
    trained = []
    for i in range(2):
        workdir = tmp_path / f'run_{i}'
        checkpoint.write_config(workdir, to_dict(config))
        moved = jax.tree.map(lambda x, i=i: x * (1 + i) if x.ndim > 2 else x, state.model.params)
        moved_state = state.replace(model=state.model.replace(params=moved))
        checkpoints = checkpoint.Checkpoints(workdir, recipe.plan.abstract)
        checkpoints.save(1, moved_state, host)
        checkpoints.close()
        trained.append(moved)
    names = [f'orbax:{tmp_path / "run_0"}', f'orbax:{tmp_path / "run_1"}']
    merge.merge(names, Settings('linear', [0.25, 0.75]), None, tmp_path / 'out')
    expected = merging.linear(trained, [0.25, 0.75])
    found = load(tmp_path / 'out') if not rank else lora.split(peft.attach(load_base(config), CFG, tmp_path / 'out'))[0]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), found, expected)


def load_base(config):
    return sources.resolve(config.policy.source, seed=config.seed).load()
