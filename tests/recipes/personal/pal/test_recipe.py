"""PAL from its config: what it finds, what it leaves alone, what it refuses, and runs that are killed."""

from __future__ import annotations

import contextlib
import csv
import functools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from benchmarks import pal_population, pal_synthetic
from pal_jax.data.comparisons import PairBatch
from pal_jax.data.readers import columns
from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.recipes.personal.pal import recipe as pal
from pal_jax.recipes.personal.pal import reward as pal_reward
from pal_jax.recipes.personal.pal import text as pal_text
from pal_jax.recipes.personal.panel import Trial
from pal_jax.recipes.personal.population import Panel
from pal_jax.run import intervals
from pal_jax.run.recipe import Plan
from pal_jax.run.settings import to_dict
from pal_jax.run.trained import open_run
from tests import configs, shell
from tests.choices import two_kinds
from tests.recipes.personal.texts import ONE

ROOT = Path(__file__).parents[4]


get_settings = functools.partial(configs.load, 'pal')


@pytest.fixture(scope='session')
def table(tmp_path_factory):
    """Sixty people of two kinds who want opposite things of two attributes, fifteen choices each."""
    return two_kinds(tmp_path_factory.mktemp('table') / 'choices.jsonl', 60)


def small(table, **changes):
    few = {'baselines.embedding': 0, 'baselines.own': False, 'baselines.majority': False, 'new.counts': (0, 5)}
    return get_settings(**{'data': str(table), 'updates': 40, **few, **changes})


@pytest.fixture(scope='module')
def trained(table):
    config = small(table)
    recipe = pal.make(config, ONE)
    state, host = recipe.init()
    for i in range(config.total_steps):
        state, host, _, metrics = recipe.step(state, host, i)
    before = jax.tree.map(np.asarray, state)
    return recipe, state, before, metrics, recipe.evaluate(state, 'final')


def test_two_kinds_of_people_are_told_apart_and_new_ones_placed(trained):
    record = trained[-1].record
    assert record['seen_pal'] > 0.9 > 0.7 > record['seen_shared']
    assert record['new_pal'] > 0.85 > 0.7 > record['new_shared']
    assert record['chosen_prototypes'][:2] == [2, 2]
    assert record['seen_shuffled'] < 0.7
    assert record['new_pal_by_known'][0] < record['new_pal_by_known'][1]
    asked, random = record['new_asked_by_known'], record['new_pal_by_known']
    assert (asked[0], asked[-1]) == (random[0], random[-1])  # nothing known, and everything
    assert asked[1] > random[1] - 0.02
    assert record['asked_gain_by_known'][1] == pytest.approx(asked[1] - random[1])


def test_an_evaluation_moves_nothing(trained):
    _, state, before, *_ = trained
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, state))


def test_new_people_have_not_moved_while_the_seen_were_trained(trained):
    _, _, before, *_ = trained
    users = jax.tree.map(lambda x: x[:, :60], before['K=2'].users)  # rows past the people fill the table up
    never = users.updates == 0
    assert never.sum(axis=1).tolist() == [12] * 4  # a fifth of sixty, in every trial
    np.testing.assert_array_equal(users.z[never], 0.0)


def test_exhibits_tell_the_story(trained):
    exhibits = {exhibit.title: exhibit for exhibit in trained[-1].exhibits}
    assert '95 % interval' in exhibits['Who is predicted how well'].text
    assert [row[0] for row in exhibits['Who is predicted how well'].table][1:5] == [
        'one model for all (K = 1)',
        'PAL, K chosen on validation',
        'PAL, new people asked what tells most',
        'PAL, shuffled user ids',
    ]
    assert list(exhibits)[1] == 'What people want'
    assert [row[0] for row in exhibits['What people want'].table] == ['attribute', 'x0', 'x1']
    assert '--split=0' in exhibits['The people'].text and 'triangle' not in exhibits['The people'].text
    assert trained[-1].record['log_odds_factor'] > 0
    prototypes = exhibits['The prototypes'].table
    assert len(prototypes) == 3
    assert {prototypes[1][3].split()[0], prototypes[1][4].split()[0]} & {'x0'}  # what the two kinds disagree about
    assert all(exhibits[title].picture for title in ('By prototypes', 'New people', 'The people', 'The prototypes'))


def test_what_each_person_wants_is_a_table_for_other_programs(trained):
    recipe, state, *_, evaluation = trained
    rows = list(csv.DictReader(evaluation.files['people.csv'].splitlines()))
    seen = np.flatnonzero(np.asarray(state['K=2'].users.updates)[0])
    everybody, known = rows, [row for row in rows if row['kept_out'] == '0']
    assert sorted(row['participant'] for row in everybody) == sorted(recipe.panel.data.names)
    assert [row['participant'] for row in known] == [recipe.panel.data.names[u] for u in seen]
    weights = np.array([[float(row[f'weight_{k}']) for k in (1, 2)] for row in everybody])
    np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-5)
    effects = np.array([float(row['effect_x0']) for row in known])  # the half of the people wants the opposite
    _, x0, _ = next(each.table for each in evaluation.exhibits if each.title == 'What people want')
    assert 0.3 < (effects > 0).mean() < 0.7 and float(x0[6]) == pytest.approx(effects.std(), abs=0.01)
    assert '±' in x0[1] and ' to ' in x0[2]


class Learner(NamedTuple):
    """A learner whose state is how many updates it has had."""

    seen: list

    def init(self, seeds):
        return 0

    def update(self, state, batches):
        self.seen.append(batches)
        return state + 1, {'loss': np.zeros(2), 'accuracy': np.array([0.75, 0.25])}


def test_fake_learners_update_on_the_same_pairs_which_are_put_on_the_device_once():
    learners = {'K=1': Learner([]), 'K=2': Learner([])}
    trials = [Trial(None, None, seed, shuffled) for seed, shuffled in ((0, False), (1, True))]
    columns = np.zeros((2, 1, 4), np.int32), np.zeros((2, 1, 4, 3)), np.ones((2, 1, 4, 3)), np.ones((2, 1, 4))
    panel = Panel(None, trials, learners, (1, 2), (0,), 'zero')
    recipe = pal.PALRecipe(Plan(1, None, lambda i: None), ONE, panel, lambda i: PairBatch(*columns))
    state, host, phase, metrics = recipe.step(*recipe.init(), 0)
    assert (state, host, phase) == ({'K=1': 1, 'K=2': 1}, {}, 'pal')
    assert metrics['accuracy K=2'] == 0.75  # the shuffled split is left out
    (one,), (two,) = (learner.seen for learner in learners.values())
    assert one is two
    assert isinstance(one.chosen, jax.Array)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'prototypes': (2, 3)}, r'prototypes=\(2, 3\) lacks 1'),
        ({'prototypes': (1, 100)}, r'^prototypes=\(1, 100\).* 60 people'),
        ({'baselines.embedding': 60}, r'^baselines.embedding=60.* 60 people.*baselines.embedding=0'),
        ({'prototypes': (1, 100), 'baselines.embedding': 60}, r'^prototypes=\(1, 100\).*baselines.embedding=60'),
        ({'batch': 0}, 'batch=0 must be at least 1'),
        ({'split.train': 0.9}, 'leave nothing for the test'),
        ({'split.seen': 1.0}, 'leaves nobody seen or nobody new'),
        ({'loss.name': 'hing'}, "loss.name='hing'; use one of logistic, hinge, smooth_hinge"),
        ({'model.variant': 'B'}, 'needs the vectors of prompts'),
        ({'model.rule': 'dots'}, "model.rule='dots'; use one of dist"),
        ({'model.mixture': 'free'}, "model.mixture='free'"),
        ({'model.mixture': 'linear'}, "model.mixture='linear'"),
        ({'model.temperature': 0.0}, 'model.temperature=0.0'),
        ({'model.temperature': 2.0, 'model.scaled': True}, 'model.temperature=2.0'),
        ({'loss.prototype_pull': -1.0}, 'loss.prototype_pull=-1.0'),
        ({'loss.prototype_pull': 1.0, 'model.variant': 'B'}, 'loss.prototype_pull=1.0'),
        ({'loss.by': 'persons'}, "loss.by='persons'"),
        ({'new.question': 'entropy'}, "new.question='entropy'"),
        ({'new.toward': 'mean'}, "new.toward='mean'; use one of population, zero"),
        ({'new.pull': 0.0}, r'new.ask=20 questions need new.pull=0.0 above 0'),
        ({'model.dtype': 'float16'}, "dtype='float16' is unknown"),
        ({'data': 'nowhere.csv'}, r'nowhere\.csv.* electricity, train, swissmetro'),
    ],
)
def test_wrong_values_are_refused(table, changes, message):
    with pytest.raises(ValueError, match=message):
        pal.make(small(table, **changes), ONE)


# --- statements that people vote on -----------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def conversation(tmp_path_factory):
    """Thirty statements full of a, thirty full of z; half of forty people agree with the ones, half with the others."""
    rng, stem = np.random.default_rng(0), tmp_path_factory.mktemp('votes') / 'letters'
    texts = [''.join(rng.choice(list('az'[i % 2] * 4 + 'mn'), 24)) for i in range(60)]
    lines = (json.dumps({'comment_id': i, 'text': text}) + '\n' for i, text in enumerate(texts))
    stem.with_suffix('.statements.jsonl').write_text(''.join(lines))
    said = (f'p{p},{s},{1 if s % 2 == p % 2 else -1}\n' for p in range(40) for s in range(60))
    stem.with_suffix('.votes.csv').write_text('participant,comment_id,vote\n' + ''.join(said))
    people = (f'p{p},{("north", "south")[p % 2]}\n' for p in range(40))
    stem.with_suffix('.people.csv').write_text('participant,group\n' + ''.join(people))
    return stem


def text_settings(conversation, **changes):
    small = {
        'text.source': 'random:tiny', 'text.layers': 0, 'text.dtype': 'float32', 'text.width': 4, 'text.pairs': 60,
        'total_steps': 4,
        'text.folder': str(conversation.parent / 'states'), 'split.seeds': 2, 'prototypes': (1, 2), 'new.steps': 50,
        'baselines.own': False, 'new.counts': (0, 5), 'updates': 40,
    }  # fmt: skip
    return get_settings('text', **{'data': str(conversation), **small, **changes})


@pytest.mark.long
def test_people_are_told_apart_by_statements_nobody_has_seen(conversation, monkeypatch):
    recipe = pal.make(text_settings(conversation), ONE)
    state, host = recipe.init()
    for i in range(4):
        state, host, *_ = recipe.step(state, host, i)
    evaluation = recipe.evaluate(state, 'final')
    record = evaluation.record
    assert record['seen_pal'] > 0.9 > 0.7 > record['seen_shared']
    assert record['new_pal'] > 0.9
    assert record['group_auc K=2'] > 0.95  # of groups that no model was told
    assert record['group_auc K=2, shuffled ids'] < 0.9
    for mine, all_alike in zip(record['seen_pal_by_group'], record['seen_shared_by_group'], strict=True):
        assert mine > 0.9  # of both groups
        assert all_alike < 0.9
    exhibits = {exhibit.title: exhibit for exhibit in evaluation.exhibits}
    assert [row[:2] for row in exhibits['Each group'].table[1:]] == [['north', '20'], ['south', '20']]
    _, one, two = exhibits['The prototypes'].table
    letters = [max('az', key=row[3].count) for row in (one, two)]  # of the statements that each likes most
    assert sorted(letters) == ['a', 'z']
    # the states are there: no weights are read again
    monkeypatch.setattr(pal_text.states, 'hidden_states', None)
    pal.make(text_settings(conversation), ONE)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'data': 'nowhere'}, 'there is no file nowhere.statements.jsonl'),
        ({'text.layers': 3}, r'text.layers=3 must be between 0 \(all\) and 2'),
        ({'text.pool': 'max'}, "text.pool='max'; use one of mean, last"),
        ({'model.variant': 'B'}, 'needs prompts, and statements that are voted on have none'),
        ({'baselines.majority': True}, 'where text.source is given set them to False'),
        ({'baselines.context': -1}, 'baselines.context=-1 must be at least 0'),
        ({'baselines.context': 2, 'text.source': ''}, 'is of texts; take --config=pal:text'),
    ],
)
def test_wrong_values_for_statements_are_refused(conversation, changes, message):
    with pytest.raises(ValueError, match=message):
        pal.make(text_settings(conversation, **changes), ONE)


def test_choices_between_texts_are_read_by_their_name(conversation, tmp_path):
    path = tmp_path / 'choices.csv'
    path.write_text('user,prompt,chosen,rejected\nana,Tea?,yes,no\nbo,Milk?,no,yes\n')
    pairs = pal_text.read_pairs(text_settings(conversation, data=f'choices:{path}'), byte_tokenizer())
    assert pairs.names == ('ana', 'bo') and pairs.prompt is not None
    assert [pairs.words[i] for i in (*pairs.chosen, *pairs.prompt)] == ['yes', 'no', 'Tea?', 'Milk?']
    with pytest.raises(ValueError, match=r'are texts; take --config=pal:text'):
        pal.make(get_settings(data=f'choices:{path}'), ONE)


def test_a_run_of_pal_is_no_language_model(table, tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(to_dict(small(table))))
    with pytest.raises(ValueError, match='trains no language model'):
        open_run(str(tmp_path), ONE)


@pytest.mark.long
def test_a_persons_reward_says_what_the_pair_rule_says(table, tmp_path):
    flags = [f'--config.data={table}', '--config.baselines.own=False', '--config.baselines.embedding=0']
    done = python('-m', 'pal_jax.train', '--config=configs/pal.py:smoke', *flags, f'--workdir={tmp_path}')
    assert done.returncode == 0, done.stderr
    taste = {'p0': [-3.0, 1.0], 'p1': [3.0, 1.0]}
    items = np.random.default_rng(1).normal(size=(1000, 2)).astype(np.float32)
    known = 0
    for split in range(2):
        for user, wants in taste.items():
            with contextlib.suppress(ValueError):  # new in this split
                found = pal_reward.load_pal_reward_model(str(tmp_path), user=user, split=split)
                assert np.corrcoef(found.reward(items), items @ np.array(wants))[0, 1] > 0.8
                carried = json.loads(json.dumps(found.mixture))
                again = pal_reward.load_pal_reward_model(str(tmp_path), mix=carried, split=split)
                np.testing.assert_allclose(again.reward(items), found.reward(items), rtol=1e-5)
                known += 1
    assert known
    with pytest.raises(ValueError, match="user 'nobody' is not among the 48"):
        pal_reward.load_pal_reward_model(str(tmp_path), user='nobody')
    with pytest.raises(ValueError, match='sum to 1'):
        pal_reward.load_pal_reward_model(str(tmp_path), mix=[0.5, 0.6])
    before = table.read_text()
    table.write_text(''.join(sorted(before.splitlines(keepends=True))))
    flags += [f'--workdir={tmp_path}', '--config.total_steps=5']
    longer = python('-m', 'pal_jax.train', '--config=configs/pal.py:smoke', *flags)
    table.write_text(before)
    assert longer.returncode == 2 and longer.stderr.count('\n') == 1
    assert f"data='{table}': {table} has other content" in longer.stderr


def test_a_synthetic_person_prefers_the_nearer_item():
    people = pal_population.make_population('partition', 0, d=4, seen=6, new=3, pairs=5)
    assert people.mixtures.tolist()[:3] == np.eye(3).tolist()
    assert [len(part) for part in people.split] == [30, 30, 30, 15, 15]
    assert set(people.data.users[people.split.train]) == set(range(6))


# --- the command ----------------------------------------------------------------------------------------------------

KILLER = """
import os, signal
from {module} import {owner}
original, calls = {owner}.{name}, []
def deadly(*args, **kwargs):
    calls.append(1)
    out = original(*args, **kwargs)
    if len(calls) == {count}:
        os.kill(os.getpid(), signal.SIGKILL)
    return out
{owner}.{name} = deadly
from pal_jax.run import cli
from pal_jax.train import main
cli.run(main, '')
"""
LEARNER = 'pal_jax.recipes.personal.learner', 'IdealPointLearner', 'update'
CHECKPOINTS = 'pal_jax.run.checkpoint', 'Checkpoints', 'save'


def whole_and_broken(tmp_path, flags, *kills, look=lambda broken: None):
    """The folders of an unbroken run and of one that was killed, in the `count`-th call of a function each time, and
    then ran to its end; `look` is called with the latter's folder in between."""
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    result = python('-m', 'pal_jax.train', *flags, f'--workdir={whole}')
    assert result.returncode == 0, result.stderr
    for (module, owner, name), count in kills:
        killer = KILLER.format(module=module, owner=owner, name=name, count=count)
        killed = python('-c', killer, *flags, f'--workdir={broken}')
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    look(broken)
    resumed = python('-m', 'pal_jax.train', *flags, f'--workdir={broken}')
    assert resumed.returncode == 0, resumed.stderr
    assert 'resuming' in resumed.stdout
    return whole, broken


def same_runs(whole, broken, *files, last=Path('checkpoints') / '4' / 'host' / 'metadata'):
    """The records of two runs are the same, and the sum of every leaf's bits in the last checkpoint."""
    for name in files:
        assert records(broken, name) == records(whole, name)
    assert json.loads((broken / last).read_text()) == json.loads((whole / last).read_text())


def python(*args):
    env = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': shell.FLAGS}
    if cache := jax.config.values['jax_compilation_cache_dir']:  # this session's
        env |= {'JAX_COMPILATION_CACHE_DIR': cache, 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2'}
    return subprocess.run([sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def records(workdir, name):
    lines = (workdir / name).read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith('seconds_')} for line in lines]


@pytest.mark.long
def test_a_run_killed_in_update_and_save_ends_as_an_unbroken_one(table, tmp_path):
    flags = ['--config=configs/pal.py:smoke', f'--config.data={table}', '--config.checkpoint.every=1']
    flags += ['--config.baselines.own=False', '--config.baselines.embedding=0']
    whole, broken = whole_and_broken(tmp_path, flags, (LEARNER, 3), (CHECKPOINTS, 2))
    same_runs(whole, broken, 'metrics.jsonl', 'evals.jsonl', 'exhibits.jsonl')
    page = (whole / 'report.html').read_text()
    assert page.count('data:image/png') == 5
    assert 'PAL, K chosen on validation' in page
    exported = python('-m', 'pal_jax.export', f'--workdir={whole}')
    assert exported.returncode == 2
    assert 'trains no language model; name another' in exported.stderr


@pytest.mark.long
def test_a_run_from_disk_killed_in_an_update_ends_as_an_unbroken_one(tmp_path):
    rng, users, pairs = np.random.default_rng(0), 3000, 30_000
    items = rng.standard_normal((500, 4)).astype(np.float32)
    left = rng.integers(0, 500, pairs)
    right = (left + rng.integers(1, 500, pairs)) % 500
    who = np.arange(pairs) % users
    better = (items[left, 0] > items[right, 0]) == (who % 2 == 0)
    part = who, np.where(better, left, right), np.where(better, right, left)
    columns.write(tmp_path / 'pairs', items, [part], pairs)
    flags = ['--config=configs/pal.py:large', f'--config.data={tmp_path / "pairs"}', '--config.checkpoint.every=1']
    flags += ['--config.batch=1024', '--config.updates=40', '--config.total_steps=4', '--config.optimizer.users=0.1']
    whole, broken = whole_and_broken(tmp_path, flags, (LEARNER, 5))
    same_runs(whole, broken, 'metrics.jsonl', 'evals.jsonl')
    (found,) = records(whole, 'evals.jsonl')
    assert found['seen_pal'] > 0.8 > 0.6 > found['seen_shared']


def test_a_folder_of_pairs_needs_what_it_can_do(tmp_path):
    columns.write(tmp_path, np.eye(2, dtype=np.float32), [([0] * 3, [0] * 3, [1] * 3)], 3)
    with pytest.raises(ValueError, match='need all items in memory'):
        pal.make(get_settings(data=str(tmp_path)), ONE)


def test_embeddings_are_pairs_too(tmp_path):
    path, numbers = tmp_path / 'pick.npz', {'users': [0, 1], 'prompt': [0, 1], 'chosen': [0, 2], 'rejected': [1, 3]}
    np.savez(path, images=np.eye(4, dtype=np.float32), prompts=np.ones((2, 4), np.float32), **numbers)
    assert pal.read(get_settings('large', data=str(path))).names == ('0', '1')
    with pytest.raises(ValueError, match='need all items in memory'):
        pal.read(get_settings(data=str(path)))


@pytest.mark.long
def test_known_prototypes_are_found_by_accuracy():  # II.9, checks 8 to 10
    one = pal_synthetic.run('partition', 16, 'linear', 1, range(5))
    three = pal_synthetic.run('partition', 16, 'linear', 3, range(5), (5, 20, 50), (2, 5, 10))
    for random, asked in zip(*three.asked, strict=True):
        gain = intervals.mean(np.subtract(asked, random))
        assert gain.value > 2 * gain.error  # questions that are chosen tell more
    assert np.mean(one.seen) <= 0.82
    assert min(three.seen) >= 0.92
    assert np.mean(three.seen) - np.mean(one.seen) >= 0.12
    five, twenty, fifty = (np.mean(row) for row in three.new)
    assert five >= 0.84
    assert twenty >= 0.91
    assert fifty >= max(0.92, np.mean(three.seen) - 0.015)
    assert np.median(three.found) >= 0.97
    four = pal_synthetic.run('partition', 16, 'linear', 4, range(5))
    assert np.mean(four.seen) >= np.mean(three.seen) - 0.015
    low = pal_synthetic.run('partition', 2, 'linear', 3, range(5))
    assert np.mean(low.seen) >= 0.96


def test_a_wrong_row_names_the_key_that_leaves_it_out(tmp_path):
    path = tmp_path / 'a.csv'
    path.write_text('user,choice,left_x,right_x\nana,left,1,2\nana,,1,2\n')
    with pytest.raises(ValueError, match=r'row 3: choice.*--config\.wrong_rows=drop'):
        pal.make_parts(get_settings(data=str(path)), ONE)
    for lines in ('ana,,1,2', 'ana,left,1,2\nbo,left,2,3\ncy,left,1,2'):  # nobody would be left
        path.write_text(f'user,choice,left_x,right_x\n{lines}\n')
        with pytest.raises(ValueError, match='choice|ana') as error:
            pal.make_parts(get_settings(data=str(path)), ONE)
        assert 'wrong_rows' not in str(error.value)
