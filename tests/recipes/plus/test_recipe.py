"""PLUS from its config: who is updated when, what is paid, and what a run that resumes ends with."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import signal
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.data.histories import History
from pal_jax.learners.scorer import BradleyTerry, gaps
from pal_jax.recipes.plus import context as plus_context
from pal_jax.recipes.plus import latent as plus_latent
from pal_jax.recipes.plus import parts as plus_parts
from pal_jax.recipes.plus import people as plus_people
from pal_jax.recipes.plus import recipe as plus
from pal_jax.run import devices
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.recipe import Context, Plan
from pal_jax.types import Choice, Completion, Sample
from tests import configs
from tests.test_train import KILLER, python, records


@contextlib.contextmanager
def no_phase(name):
    yield


ONE = Context(devices.make_mesh(devices=jax.devices()[:1]), no_phase)


get_settings = functools.partial(configs.load, 'plus')


def steps(settings, count, ctx=ONE):
    """The state before each of some steps and after the last, as numpy, and their metrics."""
    recipe = plus.make(settings, ctx)
    state, host = recipe.init()
    states, rows = [jax.tree.map(np.asarray, state)], []
    for i in range(count):
        state, host, phase, metrics = recipe.step(state, host, i)
        states.append(jax.tree.map(np.asarray, state))
        rows.append((phase, metrics))
        assert host == {'rewards': [each['reward'] for _, each in rows[-2:]]}
    return states, rows


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def copied(state):
    """A state to be used up by an update."""
    return jax.tree.map(jnp.array, state)


@pytest.mark.long
def test_the_summariser_waits_and_then_both_learn():  # rlpa_plus IV.4-2
    states, rows = steps(get_settings(**{'optimizer.warmup_ratio': 0.0}), 3)
    assert [phase for phase, _ in rows] == ['hold', 'hold', 'plus']
    policies, rewards = ([state[name] for state in states] for name in ('policy', 'reward'))
    assert same(policies[0], policies[2])
    assert not same(policies[2].actor.model.params, policies[3].actor.model.params)
    assert same(policies[2].actor.reference, policies[3].actor.reference)
    assert all(not same(a.model.params, b.model.params) for a, b in itertools.pairwise(rewards))
    for _, metrics in rows:
        assert metrics['reward'] == pytest.approx(-np.log(2), abs=0.05)  # a new head knows nothing


def test_rewards_and_losses_of_known_gaps():  # rlpa_plus IV.4-1
    rewards = plus_context.log_sigmoid(np.array([0.0, 1.0, -1.0, 2.0]))
    np.testing.assert_allclose(rewards, [-0.693147, -0.313262, -1.313262, -0.126928], atol=1e-6)
    chosen, rejected = np.array([1.2, 0.3, -0.5]), np.array([0.2, 0.3, 0.5])
    scores = np.stack([chosen, rejected], axis=-1).reshape(1, -1)
    losses = BradleyTerry().of_pairs(chosen, rejected, np.zeros(3))
    assert float(losses.mean()) == pytest.approx(0.773224, abs=1e-6)
    assert np.mean(gaps(scores) > 0) == pytest.approx(1 / 3)  # a tie is wrong
    slope = jax.grad(lambda gap: BradleyTerry().of_pairs(gap, 0.0, 0.0))(1.0)
    assert float(slope) == pytest.approx(-0.268941, abs=1e-6)


class Watched:
    """A part, and what it is asked."""

    def __init__(self, part, seen):
        self.part, self.seen = part, seen

    def __getattr__(self, name):
        return getattr(self.part, name)

    def gaps(self, state, pairs):
        gaps = self.part.gaps(state, pairs)
        self.seen.append(('pay', float(np.mean(-np.logaddexp(0, -gaps[:, 0] / 2.0)))))  # rlpa_plus IV.4-13
        return gaps

    def learn(self, state, pairs, rate):
        self.seen.append(('learn', None))
        before = self.part.gaps(state, pairs)  # which an update uses up
        state, scores, figures = self.part.learn(state, pairs, rate)
        np.testing.assert_allclose(scores[:, 0::2, 0] - scores[:, 1::2, 0], before, atol=2e-6)
        return state, scores, figures

    def update(self, *args):
        self.seen.append(('update', None))
        return self.part.update(*args)


@pytest.mark.slow
def test_what_pays_is_the_reward_model_from_before_the_step():
    recipe, seen = plus.make(get_settings(**{'hold.steps': 0, 'reward_model.std': 2.0}), ONE), []
    reward_model = dataclasses.replace(recipe.reward_model, scorer=Watched(recipe.reward_model.scorer, seen))
    recipe = dataclasses.replace(recipe, reward_model=reward_model, learner=Watched(recipe.learner, seen))
    *_, metrics = recipe.step(*recipe.init(), 0)
    assert [name for name, _ in seen] == ['pay', 'learn', 'update']
    assert metrics['reward'] == pytest.approx(seen[0][1], abs=1e-6)


class Count(NamedTuple):
    """The state of a fake part: how many updates it has had."""

    updates: int = 0
    skipped: int = 0


class Fake(NamedTuple):
    """A scorer, a learner and a packer of pairs. Gaps are the number of updates before."""

    seen: list

    def gaps(self, state, pairs):
        return np.full((len(pairs), 1), float(state.updates))

    def learn(self, state, pairs, rate):
        self.seen.append(('learn', pairs, rate))
        gaps = self.gaps(state, pairs)
        return Count(state.updates + 1), np.stack([gaps, np.zeros_like(gaps)], axis=1), {}

    def score(self, state, samples):
        self.seen.append(('score', [sample.source for sample in samples], [sample.reward for sample in samples]))
        return samples, {}

    def advantages(self, state, batch, estimate):
        return batch, {}

    def update(self, state, batch, key, ptx):
        return Count(state.updates + 1), {}


class Listed(NamedTuple):
    """Packs nothing: pairs are the texts and what is chosen."""

    def compare(self, texts, choices):
        return [(text, [choice.chosen for choice in row]) for text, row in zip(texts, choices, strict=True)]

    learn = compare


def person(name):
    choices = {part: Choice('p', f'{part} {name}', 'no') for part in ('reward', 'train', 'held')}
    reward, train, held = choices.values()
    return History(user=name, context=f'of {name}', reward=reward, train=(train,), held=(held,))


def written(state, people, temperatures, seed):
    texts = [f'{one.user} {temperature}' for one in people for temperature in temperatures]
    completion = Completion('', (1,), (0.0,), 'stop')
    return plus_context.SummaryTexts(texts, [Sample((1,), completion, source=text) for text in texts])


def test_a_step_of_fake_parts_waits_then_pays_by_the_reward_model_of_before():
    seen = []
    sizes = plus_people.Size(2, (0.5,)), plus_people.Size(1, (1.0, 1.0))
    recipe = plus.PLUS(
        Plan(2, None, lambda i: None), ONE, {}, Fake(seen), written,
        plus_context.SummaryRewardModel(Fake(seen), Listed(), taught=1),
        plus_people.PeopleDraw([person('ann'), person('bo')], *sizes, hold=1), lambda i: 0.5 * i,
        lambda samples: samples, {}, None, None,
    )  # fmt: skip
    state, host, phase, metrics = recipe.step({'reward': Count(), 'policy': Count()}, {'rewards': []}, 0)
    assert (phase, state) == ('hold', {'reward': Count(1), 'policy': Count()})
    ((_, lesson, rate),) = seen
    assert sorted(lesson) == [('ann 0.5', ['train ann']), ('bo 0.5', ['train bo'])] and rate == 0.0
    state, host, phase, metrics = recipe.step(state, host, 1)
    assert (phase, state) == ('plus', {'reward': Count(2), 'policy': Count(1)})
    paid = plus_context.log_sigmoid(1.0)  # by the gaps of one update, though the model has learnt since
    assert host == {'rewards': [plus_context.log_sigmoid(0.0), paid]} and metrics['samples'] == 2.0
    _, (_, lesson, rate), (_, sources, rewards) = seen
    ((text, (taught,)),) = lesson  # the first of two summaries alone
    assert rate == 0.5 and sources == [text] * 2 and taught == f'train {text.split()[0]}'
    assert rewards == [paid] * 2


def test_a_latent_baseline_of_fake_parts_judges_all_but_the_past_and_what_tests():
    seen, people = [], [dataclasses.replace(person(name), past=(Choice('p', f'past {name}', 'no'),)) for name in 'ab']

    def update(state, known, judged, key):
        seen.append((known, judged))
        return state + 1, {'loss': float(state)}

    recipe = plus_latent.LatentBaseline(
        Plan(1, None, lambda i: None), ONE, lambda: 0, lambda choices: [[c.chosen for c in row] for row in choices],
        update, 2, people, {}, None,
    )  # fmt: skip
    state, _, phase, metrics = recipe.step(0, {}, 0)
    assert (state, phase, metrics) == (2, 'latent', {'loss': 0.5})
    assert sorted(seen) == [([[f'past {name}']], [[f'reward {name}', f'train {name}']]) for name in 'ab']


def test_all_summaries_of_a_person_are_paid_and_the_first_teach():
    settings = get_settings(reads='kind', **{'summary.taught': 2})
    parts, people = plus_parts.make_parts(settings, ONE), plus_people.read_people(settings)[0][:2]
    state = parts.reader.init(parts.judge.source.load(parts.reader.param_shardings))
    read = plus_context.make_reward_model(settings, parts.reader, parts.pair_up).read
    texts = ['Liked: Dogs', 'Cats', 'Birds', 'Liked: Dogs and cats', 'Fish', 'Horses']  # three of each person
    taught_by, rewards, _ = read(copied(state), texts, people, pays=True, rate=0.5)
    paid = parts.pair_up.compare(texts, [(person.reward,) for person in people for _ in range(3)])
    np.testing.assert_array_equal(rewards, plus_context.log_sigmoid(parts.reader.gaps(state, paid)[:, 0]))
    taught = parts.pair_up.learn(texts[:2] + texts[3:5], [person.train for person in people for _ in range(2)])
    assert same(taught_by, parts.reader.learn(copied(state), taught, 0.5)[0])
    _, rewards, metrics = read(state, texts[:2], people, pays=False, rate=0.5)  # of the choice that teaches
    assert metrics['reward_loss'] == pytest.approx(-float(rewards.mean()), abs=1e-6)


@pytest.mark.slow
def test_a_reward_model_that_does_not_train_keeps_every_bit():  # rlpa_plus IV.4-2
    states, _ = steps(get_settings(**{'reward_model.train': False, 'hold.steps': 0}), 2)
    assert same(states[0]['reward'], states[-1]['reward'])
    assert not same(states[0]['policy'].actor.model.params, states[-1]['policy'].actor.model.params)


@pytest.mark.slow
@pytest.mark.parametrize('reads', ['untrained', 'context', 'kind', 'nothing'])
def test_baselines_train_the_reward_model_alone(reads):
    states, rows = steps(get_settings(reads=reads), 3)
    assert ('policy' in states[0]) == (reads == 'untrained')
    assert same(states[0].get('policy'), states[-1].get('policy'))
    assert not same(states[2]['reward'].model.params, states[3]['reward'].model.params)
    assert {metrics['samples'] for _, metrics in rows} == {8.0}


def test_what_is_compared_once_has_the_gaps_of_all_that_is_read():
    parts = plus_parts.make_parts(get_settings(reads='kind'), ONE)
    people = plus_people.read_people(get_settings())[0][:3]
    texts = ['Liked: Dogs', 'Liked: Dogs', '', 'Liked: Cats', 'Liked: Dogs']
    choices = [(person.reward, *person.train) for person in (*people, people[0], people[0])]
    state = parts.reader.init(parts.judge.source.load(parts.reader.param_shardings))
    learnt, compared = (pack(texts, choices) for pack in (parts.pair_up.learn, parts.pair_up.compare))
    found = parts.reader.gaps(state, learnt)
    np.testing.assert_allclose(parts.reader.gaps(state, compared), found, atol=2e-6)
    np.testing.assert_array_equal(found[0], found[4])
    assert int((learnt.lesson.weight > 0).sum()) == 4 * 2  # of five texts with two choices two are alike
    assert float(learnt.lesson.weight.max()) == pytest.approx(2 / 5 / 2)
    assert (learnt.where[0][0] == learnt.where[0][4]).all()


@pytest.mark.slow
def test_a_summariser_that_does_not_train_keeps_every_bit():
    states, _ = steps(get_settings(**{'summary.train': False, 'hold.steps': 0}), 2)
    assert same(states[0]['policy'], states[-1]['policy'])
    assert not same(states[0]['reward'].model.params, states[-1]['reward'].model.params)


@pytest.mark.parametrize(
    ('changes', 'rewards', 'i', 'following'),
    [
        ({}, [-0.1], 0, 1),  # one step tells little
        ({}, [-0.69, -0.6], 1, 2),
        ({}, [-0.6, -0.63], 1, 16),
        ({}, [-0.63, -0.6], 1, 16),
        ({}, [-0.1, -0.1], 20, 21),
        ({'hold.reward': 0.0}, [-0.1, -0.1], 1, 2),
        ({'reads': 'untrained'}, [-0.1, -0.1], 1, 2),
    ],
)
def test_the_summariser_waits_until_what_two_steps_read_is_worth_something(changes, rewards, i, following):
    assert plus.make_after(get_settings('', **changes))({'rewards': rewards}, i) == following


def test_the_reward_models_rate_falls_while_the_summariser_learns():
    rate = plus_parts.make_rate(get_settings(total_steps=4, **{'hold.steps': 3}))
    np.testing.assert_allclose([rate(i) for i in range(8)], [1, 1, 1, 1, 0.868, 0.55, 0.232, 0.1], atol=1e-3)


@pytest.mark.long
def test_a_run_killed_after_a_short_wait_goes_on_after_it(tmp_path):
    flags = ['--config=configs/plus.py:smoke', '--config.checkpoint.every=4', '--config.hold.steps=6']
    flags += ['--config.hold.reward=-9', '--config.eval.base=False', '--config.total_steps=2']
    whole, broken = tmp_path / 'whole', tmp_path / 'broken'
    result = python('-m', 'pal_jax.train', *flags, f'--workdir={whole}', cache=tmp_path / 'cache')
    assert result.returncode == 0, result.stderr
    assert [row['step'] for row in records(whole, 'metrics.jsonl')] == [0, 1, 6, 7]
    killer = KILLER.format(owner='PolicyLearner', name='minibatch', count=1)
    killed = python('-c', killer, *flags, f'--workdir={broken}', cache=tmp_path / 'cache')
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = python('-m', 'pal_jax.train', *flags, f'--workdir={broken}', cache=tmp_path / 'cache')
    assert 'at step 6 of 8' in resumed.stdout, resumed.stderr
    assert records(broken, 'metrics.jsonl') == records(whole, 'metrics.jsonl')
    assert records(broken, 'evals.jsonl') == records(whole, 'evals.jsonl')


@pytest.mark.slow
def test_a_run_that_resumes_or_is_made_again_ends_with_the_same_bits(tmp_path):  # rlpa_plus IV.4-14
    """Critic included: the estimator is gae."""
    recipe = plus.make(get_settings(**{'ppo.estimator': 'gae', 'ppo.std_floor': 0.0, 'hold.steps': 1}), ONE)
    state, host = recipe.init()
    state, host, *_ = recipe.step(state, host, 0)
    state, host, *_ = recipe.step(state, host, 1)
    with contextlib.closing(Checkpoints(tmp_path, recipe.plan.abstract)) as checkpoints:
        checkpoints.save(2, state, host)
        checkpoints.wait()
        restored = checkpoints.restore()
    assert restored
    before = jax.tree.map(np.asarray, state['policy'].critics[0].params)
    whole, *_, told = recipe.step(state, host, 2)
    resumed, *_ = recipe.step(*restored[:2], 2)
    assert same(whole, resumed)
    assert not same(before, resumed['policy'].critics[0].params)
    again, host = recipe.init()
    for i in range(3):
        again, host, _, metrics = recipe.step(again, host, i)
    assert same(whole, again)
    assert metrics == told


@pytest.mark.slow
@pytest.mark.parametrize('writer', ['endpoint:condition', 'local:random:tiny'])
def test_another_model_writes_after_the_summaries(writer, chat_server):
    with chat_server(lambda text: 'Dogs sleep.' if 'About the person' in text else 'Birds sleep.') as server:
        changes = {'endpoints.condition.address': server.address, 'endpoints.condition.model': 'm'}
        recipe = plus.make(get_settings(reads='kind', condition=writer, answers='', **changes), ONE)
        state, _ = recipe.init()
        assert 'written' not in recipe.evaluate(state, 'base').record
        evaluation = recipe.evaluate(state, 'final')
    assert evaluation.record['written'] >= 1
    assert 0 <= evaluation.record['written_better'] <= 1
    _, table = evaluation.exhibits
    assert 'The user prefers dogs.' in {row[1] for row in table.table}
    if writer.startswith('endpoint'):
        assert table.table[1][3:5] == ['Dogs sleep.', 'Birds sleep.']
        assert evaluation.record['written'] == 8


@pytest.mark.long
def test_the_kl_keeps_a_summariser_where_it_began():  # rlpa_plus IV.4-12
    def drift(coefficient):
        changes = {'ppo.kl_coef': coefficient, 'optimizer.lr': 1e-3, 'optimizer.warmup_ratio': 0.0, 'hold.steps': 0}
        recipe = plus.make(get_settings(total_steps=12, **changes, **{'optimizer.min_ratio': 1.0}), ONE)
        state, host = recipe.init()
        told = []
        for i in range(12):
            state, host, _, metrics = recipe.step(state, host, i)
            told.append(metrics['kl'])
        return np.mean(told[6:])

    free, guarded, held = (drift(coefficient) for coefficient in (1e-9, 0.01, 1.0))  # of 0 none is told
    assert free > guarded > held
    assert held < 0.01


@pytest.mark.slow
def test_eight_devices_learn_what_one_does():
    settings = get_settings(**{'summary.people': 8, 'hold.steps': 1, 'ppo.micro_rows': 1, 'reward_model.micro_rows': 1})
    _, one = steps(settings, 2)
    _, eight = steps(settings, 2, Context(devices.make_mesh(), no_phase))
    for (_, a), (_, b) in zip(one, eight, strict=True):
        for key in ('reward', 'reward_loss', 'words'):
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5), key


# --- a latent vector in place of words ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_latent_vector_is_made_of_the_choices_that_are_told(tmp_path):
    settings = get_settings(**{'reads': 'latent', 'latent.passes': 2})
    recipe = plus.make(settings, Context(ONE.mesh, no_phase, workdir=tmp_path))
    assert recipe.plan.total_steps == 2
    state, host = recipe.init()
    for i in range(2):
        state, host, phase, metrics = recipe.step(state, host, i)
    assert phase == 'latent' and metrics['reward'] == pytest.approx(-np.log(2), abs=0.1)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype), recipe.plan.abstract
    )
    record = recipe.evaluate(state, 'final').record
    assert len(record['accuracy_by_person']) == settings.eval.people
    assert {'other_accuracy', 'random_accuracy', 'none_accuracy', 'animals_accuracy'} <= set(record)
    assert not {'words', 'named'} & set(record)
