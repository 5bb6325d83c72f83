"""RLPA from its config: what goes into the batches, and what is refused before a weight is read."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.models import lora
from pal_jax.models.files import sources
from pal_jax.recipes.rlpa import recipe as rlpa
from pal_jax.recipes.rlpa.dialogue import DialogueGame
from pal_jax.recipes.rlpa.people import SCHEMA
from pal_jax.recipes.rlpa.profiles import render_completion, render_facts, to_sample
from pal_jax.recipes.rlpa.world import make_world
from pal_jax.run import devices
from pal_jax.run.ahead import Ahead
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.recipe import Context, Plan
from pal_jax.run.settings import changed, to_dict
from pal_jax.types import Completion, Person
from tests import configs
from tests.recipes.rlpa.test_dialogues_of_models import Idle, make


@contextlib.contextmanager
def no_phase(name):
    yield


CONTEXT = Context(devices.make_mesh(devices=jax.devices()[:1]), no_phase)


get_config = functools.partial(configs.load, 'rlpa')


def run(config, steps, decoder=None):
    """The batches of the first `steps` PPO steps, and the last state."""
    seen, recipe = [], make(config, decoder) if decoder else rlpa.make(config, CONTEXT)

    def pack(samples):
        batch = recipe.pack(samples)
        seen.append((samples, jax.tree.map(np.asarray, batch)))
        return batch

    seeing = dataclasses.replace(recipe, pack=pack)
    state, host = seeing.init()
    for i in range(steps):
        state, host, _, metrics = seeing.step(state, host, i)
    return seen, state, host, metrics


def small(**changes):
    return get_config(**{
        'warmup.steps': 0, 'decode.slots': 8, 'sampling.max_tokens': 8, 'ppo.row_tokens': 0,
        'dialogue.n_samples_per_prompt': 4, 'dialogue.learnt_per_prompt': 0, 'dialogue.share_alike': False, **changes,
    })  # fmt: skip


def from_fake_parts(people=4, **changes):
    """A recipe of plain functions: policies write a fact that earns its place in the group, and nothing is learnt."""
    seen = SimpleNamespace(packed=[], answered=[], prompts=[])

    def sample_turns(dialogues, n, seed, tell=None):
        seen.prompts.append(([dialogue.person.id for dialogue in dialogues], tuple(seed)))
        texts = [render_completion(f'- pet: {k}\n', f'Hm {k}.') for k in range(n)]
        return [to_sample(d, Completion(text, (1,), (0.0,), 'stop')) for d in dialogues for text in texts]

    def reward(samples, seed):
        scores = dict.fromkeys(('format', 'profile', 'response'), 1.0)
        return [dataclasses.replace(s, rewards=(float(s.parsed.facts[0][-1]),), info=scores) for s in samples]

    def user(dialogues, seed):
        seen.answered.append([dialogue.person.id for dialogue in dialogues])
        return [f'Go on, {seed}.' for _ in dialogues]

    crowd = [Person(f'u{k}', ('pet: cat',)) for k in range(people)]
    models = SimpleNamespace(usage={'user_requests': 1.0}, count_on=lambda host: host)
    world = SimpleNamespace(
        train=crowd,
        user=user,
        reward=reward,
        early=None,
        estimate=None,
        models=models,
        check_answers=lambda samples, user: None,
    )
    parts = {
        'plan': Plan(4, None, lambda i: None), 'ctx': CONTEXT, 'world': world, 'learner': Idle(),
        'load': lambda shardings: {}, 'decoder': Writing(), 'sample_turns': sample_turns, 'supervised': lambda i: i,
        'pack': lambda samples: seen.packed.append(samples) or samples, 'game': DialogueGame(crowd, 3),
        'sampling': Ahead('sampling', 0, here=True), 'rollouts': Ahead('rollouts', 0), 'replies': Ahead('replies', 0),
        'dialogues': 2, 'n': 2, 'learnt': 2, 'share_alike': False, 'round_batch_size': 2, 'shuffle': None,
        'turn_gamma': 0.0, 'min_std': 0.1, 'warmup': 0, 'ptx': False, 'seed': 5,
        'shown': 0, 'test_rounds': 3, 'test_shown': 0,
    }  # fmt: skip
    return rlpa.RLPA(**parts | changes), seen


def test_a_recipe_of_fake_parts_takes_conversations_on_with_their_best_answers():
    recipe, seen = from_fake_parts()
    state, host = recipe.init()
    for i in range(4):
        state, host, phase, metrics = recipe.step(state, host, i)
        assert (phase, metrics['updated'], metrics['flat']) == ('rlpa', 1.0, 0.0)
    assert seen.prompts == [(people, (5, i, 0)) for i, people in enumerate([['u0', 'u1']] * 3 + [['u2', 'u3']])]
    assert seen.answered == [['u0', 'u1'], ['u0', 'u1'], ['u2', 'u3']]  # not after a last round
    last = seen.packed[2][0].source
    assert [turn.content for turn in last.turns] == ['Hello', 'Hm 1.', 'Go on, 0.', 'Hm 1.', 'Go on, 1.']
    assert [sample.reward for sample in seen.packed[0]] == [0.0, 1.0, 0.0, 1.0]
    assert host['usage'] == {'user_requests': 1.0} and len(host['queue'].pending) == 2


def test_dialogues_that_read_the_same_get_the_same_answers_which_are_learnt_once():
    recipe, seen = from_fake_parts(n=3, learnt=2, share_alike=True)
    recipe.step(*recipe.init(), 0)
    assert seen.prompts == [(['u0'], (5, 0, 0))]
    # Both people go on with the best of three answers; the best and the worst are learnt.
    assert seen.answered == [['u0', 'u1']]
    assert [(sample.source.person.id, sample.reward) for sample in seen.packed[0]] == [('u0', 0.0), ('u0', 2.0)]


def test_a_discount_plays_whole_conversations_and_credits_what_followed():
    recipe, seen = from_fake_parts(turn_gamma=0.5)
    _, host, _, _ = recipe.step(*recipe.init(), 0)
    assert seen.prompts == [(['u0', 'u1'], (5, 0, turn)) for turn in range(3)]
    assert [sample.reward for sample in seen.packed[0]] == 2 * [0.375, 1.375] + 2 * [0.25, 1.25] + 2 * [0.0, 1.0]
    assert [dialogue.person.id for dialogue in host['queue'].pending] == ['u2', 'u3'] and not host['queue'].waiting


def test_answers_of_one_worth_bring_no_update():
    recipe, _ = from_fake_parts(n=1, learnt=1)
    *_, metrics = recipe.step(*recipe.init(), 0)
    assert metrics['flat'] == 1.0 and 'updated' not in metrics


def test_a_checkpoint_keeps_the_queue_as_json():
    recipe, _ = from_fake_parts(round_batch_size=3)
    plan = rlpa.make(small(), CONTEXT).plan
    _, host, *_ = recipe.step(*recipe.init(), 0)
    assert host['queue'].waiting
    assert plan.resume(json.loads(json.dumps(plan.pack(host)))) == host


@pytest.mark.slow
def test_without_multiturn_the_batches_are_those_of_single_turns():  # IV.3-8
    off, *_ = run(small(**{'dialogue.use_multiturn': False, 'dialogue.max_rounds': 3}), 3)
    single, *_ = run(small(**{'dialogue.max_rounds': 1}), 3)
    for (_, a), (_, b) in zip(off, single, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_a_batch_may_be_short_of_people():
    """Two open conversations where a batch takes four: whole micro-batches are padding."""
    config = small(**{'dialogue.people': 2, 'ppo.micro_rows': 1})
    seen, state, _, metrics = run(config, 1)
    assert len(seen[0][0]) == 2 * 4
    assert metrics['samples'] == 8
    assert int(state.skipped) == 0


@pytest.mark.slow
@pytest.mark.parametrize('rank', [0, 4])
def test_the_reference_is_the_model_after_the_warm_up_also_in_a_run_that_resumes(tmp_path, rank):
    recipe = rlpa.make(small(**{'warmup.steps': 2, 'policy.lora.rank': rank, 'warmup.optimizer.lr': 1e-2}), CONTEXT)
    (state, host), kl = recipe.init(), []
    for i in range(2):
        state, host, phase, _ = recipe.step(state, host, i)
    checkpoints = Checkpoints(tmp_path, recipe.plan.abstract)
    checkpoints.save(2, state, recipe.plan.pack(host))
    checkpoints.wait()
    read, kept, _ = Checkpoints(tmp_path, recipe.plan.abstract, read_only=True).read()
    for start in ((state, host), (read, recipe.plan.resume(kept))):
        *_, phase, metrics = recipe.step(*start, 2)
        assert phase == 'rlpa'
        kl.append(metrics['kl'])
    assert np.abs(kl).max() < 1e-6
    if rank:
        exported = recipe.plan.trained.exports(
            Checkpoints(tmp_path, recipe.plan.trained.exported, read_only=True).read()[0]
        )
        learnt, base = exported['export'], recipe.init()[0].actor.model.frozen
        again = lora.merge(lora.join(learnt.adapters.params, base))  # as peft puts them on the original model
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again, learnt.params)


@pytest.mark.slow
def test_what_was_sampled_is_what_is_trained_on():
    seen, *_ = run(small(), 1)
    samples, batch = seen[0]
    n = 4
    groups = sorted((samples[k : k + n] for k in range(0, len(samples), n)), key=lambda g: row_length(g))
    for b, sample in enumerate(sample for group in groups for sample in group):
        r, i = divmod(b, n)
        size = len(sample.completion.token_ids)
        assert tuple(batch.tokens.actions[r, i, :size]) == sample.completion.token_ids
        assert tuple(batch.tokens.tokens[r, : len(sample.prompt_ids)]) == sample.prompt_ids
        np.testing.assert_array_equal(batch.sampler_logprobs[r, i, :size], np.float32(sample.completion.logprobs))


def row_length(group):
    return len(group[0].prompt_ids) + sum(len(sample.completion.token_ids) for sample in group)


@pytest.mark.slow
def test_the_reward_of_a_later_turn_does_not_reach_an_earlier_one():  # IV.3-9
    seen, *_ = run(small(), 1)
    learner = rlpa.make_turn_learner(small(), rlpa_model(), CONTEXT)
    batch = jax.tree.map(jax.numpy.asarray, seen[0][1])
    state = learner.init(sources.resolve('random:tiny').load())
    rewards = batch.rewards.at[0].set(jax.numpy.arange(4.0)[:, None])
    later = rewards.at[1].set(jax.numpy.asarray([[5.0], [1.0], [0.0], [2.0]]))
    scored, _ = learner.score(state, batch)
    before, after = (learner.advantages(state, scored.replace(rewards=each))[0] for each in (rewards, later))
    np.testing.assert_array_equal(before.advantages[0], after.advantages[0])
    assert float(abs(before.advantages[0]).max()) > 0
    assert float(abs(after.advantages[1] - before.advantages[1]).max()) > 0


@pytest.mark.long
def test_with_a_discount_a_step_holds_whole_dialogues_and_without_it_nothing_changes():
    config = {'sampling.max_tokens': 64, 'dialogue.rollout_batch_size': 2}
    (off,), *_ = run(small(**config), 1, Writing())
    (first, second), _, host, metrics = run(small(**config, **{'dialogue.turn_gamma': 0.5}), 2, Writing())
    for samples, batch in (first, second):
        assert [sample.source.round for sample in samples] == [0] * 8 + [1] * 8
        assert batch.ok.sum() == 16
    assert metrics['round'] == 1.5
    assert not host['queue'].waiting and {len(dialogue.turns) for dialogue in host['queue'].pending} <= {1}
    gains = [with_later.reward - alone.reward for with_later, alone in zip(first[0][:8], off[0], strict=True)]
    assert min(gains) >= 0.0 < max(gains)
    assert metrics['reward'] < np.mean([sample.reward for sample in second[0]])  # metrics tell rewards, not returns
    with pytest.raises(ValueError, match=r'dialogue\.turn_gamma=1\.5 must be from 0 \(off\) to 1'):
        rlpa.make(small(**{'dialogue.turn_gamma': 1.5}), CONTEXT)


EVERYTHING = render_facts(f'{slot.name}: {value}' for slot in SCHEMA for value in slot.known)  # true of anybody


class Writing:
    """A decoder whose policy writes its format, whatever it is asked."""

    def load(self, params, version=0):
        pass

    def release(self):
        pass

    def __call__(self, requests, told=None):
        texts = [render_completion(EVERYTHING, ('Hm.', 'What is your job?')[r.seed % 2]) for r in requests]
        ids = [tuple(byte_tokenizer().encode(text))[:64] for text in texts]
        return [Completion(text, each, (0.0,) * len(each), 'stop') for text, each in zip(texts, ids, strict=True)]


def rlpa_model():
    return devices.for_platform(sources.resolve('random:tiny').config, 'float32')


def test_sampler_and_trainer_agree_on_logprobs():
    *_, metrics = run(small(**{'ppo.old_logprobs': 'policy'}), 1)
    assert metrics['sampler_drift_max'] < 2e-3
    assert metrics['first_ratio_deviation'] < 1e-3


@pytest.mark.parametrize('variant', ['', 'paper'])
def test_every_variant_is_complete_and_small_changes_are_named(variant):
    config = configs.load('rlpa', variant)
    rlpa.check(config, CONTEXT.mesh)
    with pytest.raises(ValueError, match=r'ppo.clp; did you mean ppo.clip'):
        changed(config, ppo=dict(clp=0.1))


def test_the_published_model_is_sharded_as_declared_without_its_weights():
    """Qwen2.5-3B by its published shape, on eight devices: every leaf has a place, and large ones are cut."""
    cfg = sources.config.ModelConfig(
        family='qwen2', vocab=151_936, width=2048, layers=36, heads=16, kv_heads=2, head_dim=128, mlp=11_008,
        max_len=32_768, rope_theta=1e6, norm_eps=1e-6, qkv_bias=True, dtype='bfloat16', act_dtype='bfloat16',
        remat='full',
    )  # fmt: skip
    mesh = devices.make_mesh(data=1, fsdp=4, tensor=2)
    learner = rlpa.make_turn_learner(get_config('paper'), cfg, Context(mesh, no_phase))
    leaves = jax.tree.leaves(learner.abstract)
    assert all(leaf.sharding.mesh.shape == mesh.shape for leaf in leaves)
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    shard = sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)
    assert shard < 1.01 * total / 8


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'ppo.estimator': 'rloo', 'dialogue.n_samples_per_prompt': 1}, 'n_samples_per_prompt=1'),
        ({'ppo.minibatches': 3}, 'rollout_batch_size=4 does not divide into ppo.minibatches=3'),
        ({'ppo.micro_rows': 3}, 'does not divide into ppo.micro_rows=3'),
        ({'dialogue.rollout_batch_size': 0}, 'dialogue.rollout_batch_size=0 must be at least 1'),
        (
            {'dialogue.rollout_batch_size': 5, 'ppo.minibatches': 5, 'ppo.micro_rows': 2},
            'does not divide into ppo.micro',
        ),
        ({'warmup.rows': 0}, 'warmup.rows=0 must be at least 1'),
        ({'dialogue.people': 0}, 'dialogue.people=0 must be at least 1'),
        ({'dialogue.profiles': 'nowhere.jsonl'}, 'nowhere.jsonl is no file'),
        ({'policy.dtype': 'float16'}, "dtype='float16' is unknown"),
        ({'sampling.temperature': -1.0}, 'temperature=-1.0'),
        ({'decode.driver': 'vllm'}, "decode.driver='vllm' is unknown; use 'local' or 'jetstream'"),
        ({'decode.driver': 'jetstream', 'decode.address': 'a:1', 'decode.int8': True}, 'leave decode.int8 off'),
        ({'decode.address': 'a:1'}, "decode.address='a:1' needs decode.driver='jetstream'"),
        ({'decode.driver': 'jetstream'}, r"decode\.address='': '' is no host:port"),
        ({'reward.judge': 'rules'}, "reward.judge='rules' is unknown; use rule"),
        ({'policy.source': 'hf:nowhere/at all'}, 'nowhere/at all'),
        ({'policy.source': 'elsewhere:x'}, 'is no source of a model'),
        ({'policy.lora.rank': 4, 'policy.lora.targets': 'q,w'}, "LoRA targets \\['w'\\] match no linear weight"),
        ({'ppo.kl_estimator': 'k4'}, "ppo.kl_estimator='k4'; use one of k1, k2, k3"),
        ({'warmup.optimizer.name': 'lion'}, "warmup.optimizer.name='lion'"),
    ],
)
def test_wrong_values_are_told_in_one_line(changes, message):
    with pytest.raises((ValueError, RuntimeError), match=message) as error:
        rlpa.make(get_config(**changes), CONTEXT)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        (['{"profile": "- a\\n- b"}', '{"profile": 3}'], r'people.jsonl, line 2: '),
        (['{"profile": "- a\\n- b"}', '{broken'], r'people.jsonl, line 2: '),
        ([], 'no people'),
        (['{"profile": "- a\\n- b"}'], 'one is kept for testing'),
    ],
)
def test_bad_profile_files_are_told_by_line(tmp_path, lines, message):
    path = tmp_path / 'people.jsonl'
    path.write_text('\n'.join(lines))
    with pytest.raises(ValueError, match=message):
        rlpa.make(get_config(**{'dialogue.profiles': str(path)}), CONTEXT)


@pytest.mark.parametrize(('limit', 'extended'), [(0, False), (200, False), (0, True)])
def test_who_opens_with_more_than_there_is_room_for_is_named_before_training(tmp_path, limit, extended):
    short, long = tmp_path / 'short.jsonl', tmp_path / 'long.jsonl'
    rows = [{'profile': f'- a{i}\n- b', 'id': f'p{i}'} for i in range(5)]
    short.write_text('\n'.join(map(json.dumps, rows)))
    if extended:  # people with other facts than those of the training
        rows = [row | {'profile': row['profile'].replace('a', 'c')} for row in rows]
    rows[1] |= {'input': 'x' * 5000}
    long.write_text('\n\n'.join(map(json.dumps, rows)))
    files = {'dialogue.profiles': str(short if extended else long), 'eval.profiles': str(long) if extended else ''}
    keys = files | {'dialogue.prompt_max_len': limit, 'dialogue.system': 'Note.'}
    with pytest.raises(ValueError, match=r"long.jsonl, line 3: .* of 'p1' makes a prompt of 50\d\d tokens, .* \d+;"):
        rlpa.make(get_config(**keys), CONTEXT)


def test_own_people_are_split_and_their_topics_named(tmp_path):
    path = tmp_path / 'people.jsonl'
    path.write_text('\n'.join(json.dumps({'facts': {'band': f'b{i}', 'tea': f't{i}'}}) for i in range(10)))
    world = make_world(get_config(**{'dialogue.profiles': str(path)}))
    assert (len(world.train), len(world.tests['heldout'])) == (8, 2)
    assert 'band, tea' in world.system


@pytest.mark.slow
def test_a_run_can_start_from_what_another_has_trained(tmp_path):
    from pal_jax.run.checkpoint import Checkpoints, write_config

    config = small()
    _, state, host, _ = run(config, 1)
    write_config(tmp_path, to_dict(config))
    plan = rlpa.make(config, CONTEXT).plan
    checkpoints = Checkpoints(tmp_path, plan.abstract)
    checkpoints.save(1, state, plan.pack(host))
    checkpoints.wait()
    recipe = rlpa.make(small(**{'policy.source': f'orbax:{tmp_path}'}), CONTEXT)
    start, _ = recipe.init()
    jax.tree.map(np.testing.assert_array_equal, start.actor.model.params, state.actor.model.params)
    with pytest.raises(ValueError, match='is no run of this package'):
        rlpa.make(small(**{'policy.source': 'orbax:nowhere'}), CONTEXT)
