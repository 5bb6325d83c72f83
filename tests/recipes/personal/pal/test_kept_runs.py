"""A run is opened from anywhere: with the tokenizer and config that it has kept, and a source that is where it was."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest

from pal_jax.commands.talking import chat_preset
from pal_jax.models.files import hf, sources
from pal_jax.recipes import sft
from pal_jax.recipes.personal.pal import reward as pal_reward
from pal_jax.recipes.personal.pal import text as pal_text
from pal_jax.recipes.plus import latent as plus_latent
from pal_jax.recipes.rlpa import recipe as rlpa
from pal_jax.recipes.rlpa.frozen import open_frozen
from pal_jax.run import checkpoint, devices
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.language import ModelSettings
from pal_jax.run.models import keeping, make_policy
from pal_jax.run.recipe import KEPT, Context
from pal_jax.run.settings import to_dict
from pal_jax.run.trained import load_trained, open_run
from tests import configs
from tests.recipes.personal.pal.test_kept import on_texts, say
from tests.recipes.personal.texts import finished

ONE = Context(devices.make_mesh(devices=jax.devices()[:1]))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder to work in, with a model in it."""
    home = tmp_path / 'home'
    home.mkdir()
    monkeypatch.chdir(home)
    save_source(0)
    return home


def save_source(seed: int) -> None:
    """Put a model of random weights into `models/tiny`, in place of one that is there."""
    shutil.rmtree('models', ignore_errors=True)
    tiny = sources.resolve('random:tiny', seed=seed)
    hf.save(tiny.load(), tiny.config, tiny.tokenizer(), 'models/tiny')


def begin(config, workdir, keep):
    """The folder of a run as it is when it has a checkpoint."""
    from pal_jax.run import inputs

    checkpoint.write_config(workdir, to_dict(config))
    inputs.save(workdir / KEPT, inputs.look(to_dict(config)))
    keep(workdir / KEPT)


@pytest.fixture(params=[0, 2], ids=['full', 'lora'])
def imitated(home, request):
    config = configs.load('sft', 'smoke', **{'policy.source': 'hf:models/tiny', 'policy.lora.rank': request.param})
    settings = config
    policy = make_policy(settings.policy, ONE, settings.seed)
    learner = sft.make_actor(settings, policy.cfg, ONE)
    begin(config, home / 'run', keeping(policy=policy))
    checkpoints = Checkpoints(home / 'run', learner.abstract)
    checkpoints.save(1, learner.init(policy.source.load(learner.param_shardings)), {})
    checkpoints.close()
    return home


def test_a_run_with_all_its_weights_needs_no_source(imitated, tmp_path, monkeypatch):
    exports, _ = load_trained('run')
    tokens = exports['export'].tokenizer.chat([{'role': 'user', 'content': 'Hi'}])
    shutil.rmtree('models')
    shutil.move('run', tmp_path / 'moved')
    monkeypatch.chdir(tmp_path)
    again, _ = load_trained('moved')
    assert again['export'].tokenizer.chat([{'role': 'user', 'content': 'Hi'}]) == tokens
    assert again['export'].model == exports['export'].model
    jax.tree.map(np.testing.assert_array_equal, again['export'].params, exports['export'].params)


def test_the_kept_tokenizer_counts_where_the_sources_has_changed(imitated):
    path = imitated / 'models' / 'tiny' / 'chat_template.jinja'
    before = open_run('run', ONE).tokenizer().chat([{'role': 'user', 'content': 'Hi'}])
    path.write_text(path.read_text().replace('user', 'human') + 'changed')
    assert open_run('run', ONE).tokenizer().chat([{'role': 'user', 'content': 'Hi'}]) == before


# --- weights that are not in the run ----------------------------------------------------------------------------------


@pytest.fixture
def read(home):
    config = on_texts(say(home / 'pairs.jsonl'), **{'text.source': 'hf:models/tiny', 'text.folder': 'states'})
    finished(config, home / 'run')
    begin(config, home / 'run', lambda folder: None)
    return home


def test_a_relative_source_is_found_from_another_folder(read, tmp_path, monkeypatch):
    before = pal_reward.load_pal_reward_model('run').reward(['', ''], ['aazm', 'zz'])
    monkeypatch.chdir(tmp_path)
    again = pal_reward.load_pal_reward_model('home/run').reward(['', ''], ['aazm', 'zz'])
    np.testing.assert_array_equal(before, again)


def test_states_are_of_the_weights_that_stand_in_the_source(read):
    config = on_texts(read / 'pairs.jsonl', **{'text.source': 'hf:models/tiny', 'text.folder': 'states'})
    settings, tables = config, []
    for seed in (0, 1, 0):
        save_source(seed)
        found = pal_text.read(settings, ONE, pal_text.open_reader(settings.text, ONE, settings.seed))
        tables.append(np.array(found.items.chosen.table))
    np.testing.assert_array_equal(tables[0], tables[2])
    assert np.abs(tables[0] - tables[1]).max() > 0.1


@pytest.mark.parametrize('change', ['gone', 'changed'])
def test_a_source_that_is_gone_or_another_is_named(read, tmp_path, monkeypatch, change):
    if change == 'gone':
        shutil.rmtree('models')
    else:
        save_source(1)
    monkeypatch.chdir(tmp_path)
    fault = r'models/tiny is missing' if change == 'gone' else r'tiny/model\.safetensors has changed'
    with pytest.raises(ValueError, match=rf"text\.source='hf:models/tiny' is needed .*home/{fault}|home.*{fault}"):
        pal_reward.open_pal('home/run')


def test_a_hub_id_is_not_taken_for_a_folder_of_its_name(home):
    tiny = sources.resolve('random:tiny')
    sources.keep(home / 'run' / KEPT / 'policy', tiny, tiny.tokenizer())
    (home / 'run' / KEPT / 'inputs.json').write_text('{}')
    source = make_policy(ModelSettings('hf:me/tiny'), ONE.of('run'), 0).source
    shutil.copytree('models/tiny', 'me/tiny')
    with pytest.raises(ValueError, match=r"policy\.source='hf:me/tiny' was no folder"):
        source.load()


def test_a_chat_with_a_run_of_rlpa_reads_no_people(home):
    people = home / 'people.jsonl'
    lines = [{'id': f'p{i}', 'input': 'Hi', 'profile': f'- pet: ferret {i}\n- job: baker'} for i in range(6)]
    people.write_text('\n'.join(map(json.dumps, lines)) + '\n')
    config = configs.load('rlpa', 'smoke', **{'dialogue.profiles': str(people), 'eval.people': 1})
    begin(config, home / 'run', rlpa.make(config, ONE).plan.keep)
    before = chat_preset('orbax:run')
    assert 'pet' in before.system and 'job' in before.system
    people.unlink()
    assert chat_preset('orbax:run') == before


def test_the_model_that_reads_replies_is_found_where_the_policy_was(home, tmp_path, monkeypatch):
    config = configs.load('rlpa', 'smoke', **{'policy.source': 'hf:models/tiny'})
    begin(config, home / 'run', lambda folder: None)
    monkeypatch.chdir(tmp_path)
    open_frozen(config, home / 'run' / KEPT)
    with pytest.raises((ValueError, RuntimeError), match='models/tiny'):
        open_frozen(config)


def test_the_units_of_latent_vectors_stay_those_of_the_first_machine(tmp_path):
    rng = np.random.default_rng(0)
    states = rng.normal(2.0, 3.0, (20, 4)).astype(np.float32)
    first = plus_latent.units(ONE._replace(workdir=tmp_path), states)
    again = plus_latent.units(ONE.of(tmp_path), states + 0.1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    np.testing.assert_allclose(first, (states.mean(axis=0), states.std(axis=0)), rtol=1e-5)
    with pytest.raises(ValueError, match=r'latent\.json is missing'):
        plus_latent.units(ONE.of(tmp_path / 'other'), states)
