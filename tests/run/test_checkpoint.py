"""Checkpoints: whole or not at all, damage is noticed, the good ones survive."""

from __future__ import annotations

import collections
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.learners.ppo import PPO, make_actor_critic
from pal_jax.models.config import tiny
from pal_jax.run import checkpoint, devices
from pal_jax.run.checkpoint import Checkpoints, check_config, check_processes, fingerprint, write_config
from pal_jax.run.optim import Optimizer
from pal_jax.run.sharding import replicated


def make_state(seed=0):
    key = jax.random.key(seed)
    return {'w': jax.random.normal(key, (64, 8)), 'half': jnp.ones(7, jnp.bfloat16), 'step': jnp.asarray(seed)}


def abstract(state):
    where = replicated(devices.make_mesh())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state)


ABSTRACT = abstract(make_state())


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def save(folder, *steps, keep=2):
    checkpoints = Checkpoints(folder, ABSTRACT, keep=keep)
    for step in steps:
        checkpoints.save(step, make_state(step), {'queue': [step]}, reward=-float(step))
    checkpoints.wait()
    return checkpoints


def damage(folder):
    """Overwrites the middle of the largest file of array data."""
    files = [p for p in (folder / 'state').rglob('*') if p.is_file() and '/d/' in str(p)]
    path = max(files, key=lambda p: p.stat().st_size)
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2
    raw[middle : middle + 8] = bytes(b ^ 0x5A for b in raw[middle : middle + 8])
    path.write_bytes(raw)


def test_what_is_restored_is_what_was_saved(tmp_path):
    assert Checkpoints(tmp_path, ABSTRACT).restore() is None
    checkpoints = save(tmp_path, 3)
    state, host, step = checkpoints.restore()
    same(state, make_state(3))
    assert (host, step) == ({'queue': [3]}, 3)


def test_the_latest_and_the_best_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4)  # rewards fall, so the first is the best
    assert sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir() if p.name.isdigit()) == [1, 3, 4]


def test_a_damaged_checkpoint_is_left_out_and_said(tmp_path):
    save(tmp_path, 1, 2).close()
    damage(tmp_path / 'checkpoints' / '2')
    said = []
    checkpoints = Checkpoints(tmp_path, ABSTRACT, log=said.append)
    state, _, step = checkpoints.restore()
    same(state, make_state(1))
    assert step == 1
    assert len(said) == 1
    assert 'checkpoint 2 cannot be read' in said[0]
    checkpoints.set_aside_after(1)
    assert checkpoints.latest == 1
    assert (tmp_path / 'unreadable').is_dir()
    checkpoints.save(2, make_state(2), {})
    checkpoints.wait()
    assert checkpoints.restore()[2] == 2


def test_numbers_that_are_not_finite_are_refused_with_their_place(tmp_path):
    checkpoints = Checkpoints(tmp_path, ABSTRACT)
    state = make_state(1)
    checkpoints.save(1, {**state, 'w': state['w'].at[3, 2].set(jnp.nan)}, {})
    checkpoints.wait()
    with pytest.raises(ValueError, match=r'checkpoint 1 of .* has numbers in w that are not finite'):
        checkpoints.read()


def test_a_reader_touches_nothing_and_a_wrong_step_is_told(tmp_path):
    save(tmp_path, 1).close()
    under_way = tmp_path / 'checkpoints' / '2.orbax-checkpoint-tmp-0'
    under_way.mkdir()
    reader = Checkpoints(tmp_path, ABSTRACT, read_only=True)
    assert reader.restore()[2] == 1
    assert under_way.exists()
    with pytest.raises(ValueError, match=r'no checkpoint 5 in .*; there are \[1\]'):
        reader.restore(5)


def test_when_all_are_damaged_the_run_says_what_to_do(tmp_path):
    save(tmp_path, 1).close()
    shutil.rmtree(tmp_path / 'checkpoints' / '1' / 'state')
    with pytest.raises(RuntimeError, match=r'none of the checkpoints \[1\].*move the folder away'):
        Checkpoints(tmp_path, ABSTRACT, log=lambda _: None).restore()


def test_a_full_disk_stops_before_it_writes_and_leaves_the_last_one_intact(tmp_path, monkeypatch):
    checkpoints = save(tmp_path, 1)
    usage = collections.namedtuple('usage', 'total used free')
    monkeypatch.setattr(checkpoint.shutil, 'disk_usage', lambda _: usage(10, 10, 100))
    with pytest.raises(RuntimeError, match=r'checkpoint 2 could not be written.*checkpoint 1 is intact'):
        checkpoints.save(2, make_state(2), {})
    same(checkpoints.restore()[0], make_state(1))


def test_fingerprints_see_every_bit_and_no_mesh():
    state = make_state(5)
    plain = np.asarray(fingerprint(state))
    assert not np.array_equal(plain, np.asarray(fingerprint(state | {'w': state['w'].at[3, 3].multiply(1.0000001)})))
    swapped = state['w'].at[jnp.asarray([0, 1])].set(state['w'][jnp.asarray([1, 0])])
    assert not np.array_equal(plain, np.asarray(fingerprint(state | {'w': swapped})))
    mesh = devices.make_mesh()
    spread = jax.device_put(state['w'], jax.NamedSharding(mesh, jax.P('fsdp')))
    np.testing.assert_array_equal(plain, np.asarray(fingerprint(state | {'w': spread})))


def test_another_config_is_refused_with_the_changed_keys_once_a_step_is_made(tmp_path):
    config = {'total_steps': 3, 'ppo': {'clip': 0.2, 'range': (1, 2)}}
    check_config(tmp_path, config)  # no run yet
    write_config(tmp_path, config)
    (tmp_path / 'metrics.jsonl').touch()
    check_config(tmp_path, {'total_steps': 4})  # the first step failed
    for name in ('report.html', 'parts'):
        (tmp_path / name).touch()
        with pytest.raises(ValueError, match=r'another config .total_steps: 3 -> 4'):
            check_config(tmp_path, config | {'total_steps': 4})
        (tmp_path / name).unlink()
    (tmp_path / 'metrics.jsonl').write_text('{"step": 0}\n')
    check_config(tmp_path, config | {'total_steps': 9}, free=('total_steps',))
    assert json.loads((tmp_path / 'config.json').read_text())['total_steps'] == 3
    with pytest.raises(ValueError, match=r'another config \(ppo.clip: 0.2 -> 0.1, ppo.kl: None -> 1\)'):
        check_config(tmp_path, {'total_steps': 3, 'ppo': {'clip': 0.1, 'range': (1, 2), 'kl': 1}})
    with pytest.raises(ValueError, match=r"another config \(recipe: None -> 'rl'\);"):
        check_config(tmp_path, {'recipe': 'rl', 'total_steps': 4})


def test_a_reader_of_one_part_reads_and_checks_no_other(tmp_path):
    save(tmp_path, 1).close()
    part = ABSTRACT | {'w': ...}
    damage(tmp_path / 'checkpoints' / '1')  # the largest array, `w`
    state, _, _ = Checkpoints(tmp_path, part, read_only=True).restore()
    assert state.pop('w') is ...
    same(state, {name: value for name, value in make_state(1).items() if name != 'w'})
    with pytest.raises(RuntimeError, match=r'none of the checkpoints \[1\]'):
        Checkpoints(tmp_path, ABSTRACT | {'half': ...}, read_only=True, log=lambda _: None).restore()


def train_state(mesh):
    """Shapes and places of all that RLPA's learner keeps, on a mesh."""
    optimizer = Optimizer('adamw', lr=1e-3, total_steps=3)
    cfg = tiny(vocab=512)
    return make_actor_critic(cfg, PPO(estimator='group_norm'), optimizer, mesh, n=2, length=8).abstract


@pytest.mark.slow
def test_a_train_state_is_restored_onto_any_mesh(tmp_path):
    rng = np.random.default_rng(0)
    meshes = [
        devices.make_mesh(),
        devices.make_mesh(data=2, fsdp=2, tensor=2),
        devices.make_mesh(devices=jax.devices()[:1]),
    ]
    first = train_state(meshes[0])
    values = jax.tree.map(lambda leaf: rng.integers(0, 100, leaf.shape).astype(leaf.dtype), first)
    state = jax.tree.map(lambda value, leaf: jax.device_put(value, leaf.sharding), values, first)
    assert not state.actor.model.opt_state[1].mu['layers']['mlp']['up'].sharding.is_fully_replicated
    for step, mesh in enumerate(meshes[1:], 1):
        folder = tmp_path / str(step)
        writer = Checkpoints(folder, jax.tree.map(shape_and_place, state))
        writer.save(step, state, {})
        writer.wait()
        writer.close()
        state, _, _ = Checkpoints(folder, train_state(mesh), read_only=True).restore()
        jax.tree.map(lambda leaf, wanted: assert_placed(leaf, wanted), state, train_state(mesh))
        same(state, values)


def shape_and_place(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def assert_placed(leaf, wanted):
    assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)


def test_processes_with_other_configs_or_folders_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.processes, 'exchange', lambda what, value=None: [value, {'ppo': {'clip': 0.1}}])
    with pytest.raises(ValueError, match=r'process 1 has another config than process 0 \(ppo.clip: 0.2 -> 0.1\)'):
        check_processes({'ppo': {'clip': 0.2}})
    monkeypatch.setattr(checkpoint, 'SEEN', 0.0)
    monkeypatch.setattr(checkpoint.jax, 'process_index', lambda: 1)
    with pytest.raises(ValueError, match='process 1 does not see what process 0 wrote to'):
        write_config(tmp_path, {})


def test_one_of_several_processes_says_which_checkpoint_to_move_away(tmp_path, monkeypatch):
    save(tmp_path, 1, 2).close()
    shutil.rmtree(tmp_path / 'checkpoints' / '2' / 'state')
    monkeypatch.setattr(checkpoint.processes, 'joined', lambda: True)
    with pytest.raises(RuntimeError, match=r'process 0 cannot read checkpoint 2 .*move .*checkpoints/2 away'):
        Checkpoints(tmp_path, ABSTRACT, read_only=True).restore()
