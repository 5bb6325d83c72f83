"""A run of PAL stands alone: its people, scales and coordinates are in its folder, wherever its data went."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from pal_jax.data.readers import columns
from pal_jax.models.states import Frame
from pal_jax.recipes.personal.pal import kept as pal_kept
from pal_jax.recipes.personal.pal import recipe as pal
from pal_jax.recipes.personal.pal import reward as pal_reward
from pal_jax.run.recipe import KEPT
from tests import configs
from tests.recipes.personal.texts import ONE, finished

FEW = {
    'split.seeds': 1, 'split.control': False, 'prototypes': (1, 2), 'baselines.embedding': 0, 'baselines.own': False,
    'batch': 16, 'updates': 3, 'total_steps': 1, 'checkpoint.every': 1, 'optimizer.users': 0.5,
}  # fmt: skip
ITEMS = np.array([[120.0, 3.0], [80.0, 4.0], [100.0, 1.0]])


def choices(path, people):
    """Six choices each between tariffs; every other person likes them dear."""
    rng = np.random.default_rng(0)
    with path.open('w') as file:
        for number, name in enumerate(people):
            for _ in range(6):
                pair = rng.normal((100, 3), (30, 1), (2, 2)).round(3)
                better = int(pair[:, 0].argmax()) ^ number % 2
                sides = (dict(zip(('price', 'years'), side.tolist(), strict=True)) for side in pair)
                chosen, rejected = list(sides)[:: 1 if better == 0 else -1]
                file.write(json.dumps({'user': name, 'chosen': chosen, 'rejected': rejected}) + '\n')
    return path


def two_tastes(folder):
    """A finished run on a table whose two prototypes disagree: odd people like their tariffs dear."""
    data = choices(folder / 'choices.jsonl', [f'p{i}' for i in range(12)])
    changes = {'data': str(data), 'baselines.majority': False, 'baselines.mixed_logit': False, 'updates': 40}
    finished(configs.load('pal', **FEW | changes), folder / 'run')
    return folder / 'run'


@pytest.fixture(scope='module')
def on_table(tmp_path_factory):
    folder = tmp_path_factory.mktemp('table')
    data = choices(folder / 'choices.jsonl', [f'p{i}' for i in range(11)] + [0])
    config = configs.load(
        'pal', **FEW, **{'data': str(data), 'baselines.majority': False, 'baselines.mixed_logit': False}
    )
    _, state, _ = finished(config, folder / 'run')
    lines = data.read_text().splitlines()
    return folder / 'run', data, lines, state, config


def rewards_of_all(workdir):
    run = pal_reward.open_pal(str(workdir))
    items = pal_reward.item_vectors(run, ITEMS)
    return {name: np.asarray(pal_reward.rewards(run, run.mixture(user=name), *items)) for name in run.people}


@pytest.mark.parametrize('change', ['reordered', 'shortened', 'moved'])
def test_who_is_who_stands_in_the_run(on_table, change):
    workdir, data, lines, *_ = on_table
    before = rewards_of_all(workdir)
    assert len(before) > 5 and len({tuple(each) for each in before.values()}) > 5
    if change == 'moved':
        data.unlink()
    else:
        data.write_text('\n'.join(lines[::-1] if change == 'reordered' else lines[40:]) + '\n')
    try:
        after = rewards_of_all(workdir)
    finally:
        data.write_text('\n'.join(lines) + '\n')
    assert before.keys() == after.keys()
    for name, each in before.items():
        np.testing.assert_array_equal(each, after[name])


def test_a_mixture_is_that_of_the_persons_row(on_table):
    workdir, _, lines, state, _ = on_table
    names = list(dict.fromkeys(str(json.loads(line)['user']) for line in lines))
    run, z = pal_reward.open_pal(str(workdir)), np.asarray(state['K=2'].users.z[0])
    for name in run.people:
        logits = np.exp(z[names.index(name)])
        np.testing.assert_allclose(run.mixture(user=name), logits / logits.sum(), rtol=1e-5)


def test_a_user_called_0_is_nobody_else(on_table):
    run = pal_reward.open_pal(str(on_table[0]))
    if '0' in run.people:
        np.testing.assert_array_equal(run.mixture(user=0), run.mixture(user='0'))
    else:
        with pytest.raises(ValueError, match='user 0 is not among'):
            run.mixture(user=0)


def test_units_are_those_of_the_data_it_learnt_from(on_table):
    workdir, _, lines, *_ = on_table
    sides = [list(json.loads(line)[side].values()) for line in lines for side in ('chosen', 'rejected')]
    vectors, _ = pal_reward.item_vectors(pal_reward.open_pal(str(workdir)), ITEMS)
    np.testing.assert_allclose(vectors, ITEMS / np.std(sides, axis=0), rtol=1e-6)


@pytest.mark.parametrize('items', [[[1.0]], [1.0, 2.0], [[np.nan, 1.0]], [[1e300, 1.0]]])
def test_items_of_another_form_are_refused(on_table, items):
    with pytest.raises(ValueError, match='price, years'):
        pal_reward.load_pal_reward_model(str(on_table[0])).reward(items)


def test_a_run_that_goes_on_refuses_other_people(on_table, tmp_path):
    workdir, _, lines, _, config = on_table
    assert pal.make(config, ONE._replace(kept=workdir / KEPT)).plan.total_steps == 1
    other = tmp_path / 'other.jsonl'
    other.write_text('\n'.join(lines[::-1]) + '\n')
    with pytest.raises(ValueError, match=r"other\.jsonl' has other users than when the run began \(0: 'p0' -> '0'"):
        pal.make(configs.load('pal', **{**FEW, 'data': str(other)}), ONE._replace(kept=workdir / KEPT))


@pytest.mark.parametrize('damage', [None, '{"names": ["a"'])
def test_a_run_that_kept_nothing_is_refused(on_table, tmp_path, damage):
    workdir = tmp_path / 'run'
    workdir.mkdir()
    for name in ('config.json', 'evals.jsonl'):
        (workdir / name).write_text((on_table[0] / name).read_text())
    if damage:
        (workdir / KEPT).mkdir()
        (workdir / KEPT / pal_kept.FILE).write_text(damage)
    with pytest.raises(ValueError, match=r'pal\.json (is missing|cannot be read)'):
        pal_reward.open_pal(str(workdir))


# --- texts ------------------------------------------------------------------------------------------------------------


def say(path):
    """Statements full of a and full of z, and people who like the ones or the others."""
    rng = np.random.default_rng(0)
    words = [''.join(rng.choice(list('az'[i % 2] * 6 + 'mn'), 12)) for i in range(24)]
    with path.open('w') as file:
        for person in range(12):
            for _ in range(30):
                chosen, rejected = 2 * rng.integers(12) + person % 2, 2 * rng.integers(12) + 1 - person % 2
                record = {'user': f'p{person}', 'chosen': words[chosen], 'rejected': words[rejected]}
                file.write(json.dumps(record) + '\n')
    return path


@pytest.fixture(scope='module')
def statements(tmp_path_factory):
    return say(tmp_path_factory.mktemp('stated') / 'pairs.jsonl')


def on_texts(path, **changes):
    few = {'data': str(path), 'text.source': 'random:tiny', 'text.layers': 0, 'text.width': 4, 'text.dtype': 'float32'}
    few |= {'text.folder': str(path.parent / 'states'), 'baselines.groups': False, **FEW}
    return configs.load('pal', 'text', **{**few, **changes})


def test_coordinates_of_texts_stand_in_the_run(statements, tmp_path):
    finished(on_texts(statements), tmp_path)
    model = pal_reward.load_pal_reward_model(str(tmp_path), user='p0')
    before = model.reward(['', ''], ['azam', 'zzzz'])
    first = pal_reward.open_pal(str(tmp_path))
    aside = statements.rename(statements.with_name('elsewhere.jsonl'))
    try:
        again = pal_reward.load_pal_reward_model(str(tmp_path), user='p0').reward(['', ''], ['azam', 'zzzz'])
    finally:
        aside.rename(statements)
    np.testing.assert_array_equal(before, again)
    assert np.ptp(before) > 1e-4
    kept = first.kept
    turned = kept._replace(frame=Frame(kept.frame.mean, -kept.frame.basis))  # as another machine may have found them
    pal_kept.save(tmp_path / KEPT, turned)
    one, two = (pal_reward.reply_vectors(run, [''], ['azam'])[0] for run in (first, pal_reward.open_pal(str(tmp_path))))
    np.testing.assert_array_equal(one, -two)


def test_a_run_that_goes_on_keeps_its_coordinates(statements, tmp_path):
    settings = on_texts(statements)
    first = pal.make(settings, ONE)
    first.plan.keep(tmp_path)
    kept = pal_kept.load(tmp_path)
    turned = kept._replace(frame=Frame(kept.frame.mean, -kept.frame.basis))
    pal_kept.save(tmp_path, turned)
    second = pal.make(settings, ONE._replace(kept=tmp_path))
    (one, _), (two, _) = first.init(), second.init()
    two = {name: each.replace(params={'P': -each.params['P']}) for name, each in two.items()}
    one, two = (recipe.step(state, {}, 0)[0]['K=2'].params['P'] for recipe, state in ((first, one), (second, two)))
    np.testing.assert_array_equal(one, -two)
    second.plan.keep(tmp_path / 'again')
    np.testing.assert_array_equal(pal_kept.load(tmp_path / 'again').frame.basis, turned.frame.basis)


def test_what_is_kept_is_read_back_bit_by_bit(tmp_path):
    rng = np.random.default_rng(0)
    frame = Frame(rng.normal(size=5), rng.normal(size=(5, 2)))
    kept = pal_kept.Kept(('ana', 'bo\n', 'ü\x00'), ('x0', 'x1'), rng.normal(size=2), frame, 3, True, True)
    pal_kept.save(tmp_path, kept)
    jax.tree.map(np.testing.assert_array_equal, pal_kept.load(tmp_path)._asdict(), kept._asdict())


def test_two_users_of_one_name_are_refused(tmp_path):
    pairs = np.arange(12) % 4, np.zeros(12, int), np.ones(12, int)
    columns.write(tmp_path, np.eye(2, dtype=np.float32), [pairs], 12, names=['ana', 'bo', 'ana', 'cy'])
    with pytest.raises(ValueError, match=r"names\.txt, line 3: 'ana' is the name in line 1"):
        pal.make(configs.load('pal', 'large', data=str(tmp_path), prototypes=(1, 2)), ONE)
