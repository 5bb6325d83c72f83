"""The learner: exactness of its cuts, its first minibatch, its reference, its optimisers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.data.packing import Branch, PromptGroup, lay_out, pack_groups, pack_rollouts
from pal_jax.learners import actor as actors
from pal_jax.learners import forward
from pal_jax.learners.ppo import PPO, PolicyLearner, adapted_kl, loss_weights
from pal_jax.learners.ppo import make_actor_critic as make
from pal_jax.learners.training import Lora, accumulate, join, micro_batches
from pal_jax.models import config, params
from pal_jax.models.lora import merge
from pal_jax.run import devices, sharding
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.optim import Optimizer
from pal_jax.types import Completion, Sample

CFG = dataclasses.replace(config.tiny(vocab=64), unroll=True)
N, A = 2, 8
ONE = devices.make_mesh(devices=jax.devices()[:1])


def make_learner(mesh=ONE, adapters=None, n=N, lr=1e-2, name='adamw', warmup=False, **changes) -> PolicyLearner:
    optimizer = Optimizer(name, lr=lr, total_steps=10, warmup_ratio=0.0)
    ppo = PPO(**{'estimator': 'gae', 'micro_rows': 8, **changes})
    settings = {'n': n, 'length': A, 'adapters': adapters, 'warmup': warmup}
    return make(CFG, ppo, optimizer, mesh, **settings)


def weights():
    return params.init(params.decoder_specs(CFG), jax.random.key(1))


def rollouts(rows=8, mesh=ONE, seed=0, row_tokens=0):
    rng = np.random.default_rng(seed)
    samples = []
    for r in range(rows):
        prompt = tuple(rng.integers(0, 64, rng.integers(2, 9)).tolist())
        for _ in range(N):
            ids = tuple(rng.integers(0, 64, rng.integers(1, A + 1)).tolist())
            completion = Completion('', ids, tuple(-1.0 for _ in ids), 'stop')
            samples.append(Sample(prompt, completion, r, rewards=(float(rng.normal()),)))
    samples = sorted(
        samples,
        key=lambda s: sum(len(o.completion.token_ids) for o in samples if o.group == s.group) + len(s.prompt_ids),
    )
    return samples, pack_rollouts(
        samples, n=N, actions=A, mesh=mesh, ways=sharding.batch_ways(mesh), row_tokens=row_tokens, multiple=32
    )


def pack(groups):
    """One branch a group, one group a row, in the order given."""
    layout = lay_out([1] * len(groups), multiple=32)
    return pack_groups(groups, layout, n=1, actions=A)


def annotate(learner, state, batch):
    batch, scored = learner.score(state, batch)
    batch, metrics = learner.advantages(state, batch)
    return batch, scored | metrics


def run(learner, batch, seed=0):
    state = learner.init(weights())
    batch, annotated = annotate(learner, state, batch)
    state, updated = learner.update(state, batch, jax.random.key(seed))
    return state, batch, annotated | updated


def close(a, b, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def test_a_fresh_rollout_has_ratio_one_no_clipping_and_no_kl():  # G19
    _, _, metrics = run(make_learner(kl_in='loss', kl_estimator='k3'), rollouts()[1])
    assert metrics['first_ratio_deviation'] < 1e-3
    assert metrics['clip_fraction'] == 0.0
    assert abs(metrics['kl']) < 1e-6


def test_logprobs_of_the_sampler_may_stand_for_those_before_the_update():
    options = {'kl_in': 'loss', 'kl_estimator': 'k3', 'name': 'sgd'}
    state, batch, metrics = run(make_learner(**options), rollouts()[1])
    assert {'entropy', 'sampler_drift'} <= set(metrics)
    learner = make_learner(old_logprobs='sampler', **options)
    true = rollouts()[1].replace(sampler_logprobs=batch.logprobs)
    trusting, _, metrics = run(learner, true)
    close(trusting.actor.model.params, state.actor.model.params)
    assert metrics['first_ratio_deviation'] < 1e-3 and 'sampler_drift' not in metrics and metrics['entropy'] > 0
    _, _, metrics = run(learner, true.replace(sampler_logprobs=batch.logprobs - 0.1))
    assert metrics['first_ratio_deviation'] == pytest.approx(np.exp(0.1) - 1, abs=1e-3)


def test_logprobs_of_a_shared_row_are_those_of_separate_sequences():
    samples, batch = rollouts()
    learner = make_learner()
    shared = annotate(learner, learner.init(weights()), batch)[0].logprobs
    apart = pack([PromptGroup(s.prompt_ids, [Branch(s.completion.token_ids)]) for s in samples])
    separate, _ = jax.jit(lambda p, b: forward.logprobs(p, CFG, b))(weights(), jax.tree.map(jnp.asarray, apart))
    mask = np.asarray(batch.tokens.acts).reshape(-1, A)
    np.testing.assert_allclose(np.asarray(shared).reshape(-1, A)[mask], np.asarray(separate)[:, 0][mask], atol=1e-5)


def by_prompt(batch, x):
    """Rows of `x [R, N, ...]` of the groups that exist, in the order of their rewards."""
    reward, x = np.asarray(batch.rewards[..., 0]).reshape(-1, N), np.asarray(x)
    x = x.reshape(-1, N, *x.shape[2:])
    return x[np.argsort(reward[:, 0])][np.sort(reward[:, 0]) != 0]


@pytest.mark.parametrize('estimator', [pytest.param('gae', marks=pytest.mark.slow), 'group_norm'])
def test_prompts_that_share_rows_learn_what_they_do_alone(estimator):
    options = {'estimator': estimator, 'kl_in': 'loss', 'kl_estimator': 'k3', 'name': 'sgd'}
    alone, alone_batch, alone_metrics = run(make_learner(**options), rollouts()[1])
    shared, batch, metrics = run(make_learner(micro_rows=1, **options), rollouts(row_tokens=64)[1])
    assert batch.tokens.tokens.shape[0] < 8 and metrics['real_share'] > alone_metrics['real_share']
    for name in ('logprobs', 'ref_logprobs', 'advantages', 'returns'):
        counts = by_prompt(batch, batch.tokens.acts)
        np.testing.assert_array_equal(counts, by_prompt(alone_batch, alone_batch.tokens.acts))
        values = [
            np.where(counts, by_prompt(b, getattr(b, name).reshape(b.tokens.acts.shape)), 0)
            for b in (batch, alone_batch)
        ]
        np.testing.assert_allclose(*values, atol=2e-6)
    assert metrics['policy_loss'] == pytest.approx(alone_metrics['policy_loss'], abs=1e-6)
    assert metrics['grad_norm'] == pytest.approx(alone_metrics['grad_norm'], rel=1e-5)
    close(shared.actor.model.params, alone.actor.model.params, atol=1e-6)


@pytest.mark.parametrize('loss_agg', ['seq_mean', 'token_mean', 'constant'])
@pytest.mark.slow
def test_micro_batches_change_nothing(loss_agg):
    whole, _, metrics = run(make_learner(name='sgd', loss_agg=loss_agg), rollouts()[1])
    cut, _, cut_metrics = run(make_learner(name='sgd', loss_agg=loss_agg, micro_rows=2), rollouts()[1])
    close(whole.actor.model.params, cut.actor.model.params, atol=1e-5)
    close(whole.critics[0].params, cut.critics[0].params, atol=1e-5)
    assert metrics['policy_loss'] == pytest.approx(cut_metrics['policy_loss'], abs=1e-6)


@pytest.mark.slow
def test_eight_devices_learn_what_one_does():
    _, batch = rollouts()
    one, _, metrics = run(make_learner(name='sgd'), batch)
    mesh = devices.make_mesh(data=2, fsdp=2, tensor=2)
    many, _, many_metrics = run(make_learner(mesh, name='sgd'), rollouts(mesh=mesh)[1])
    close(one.actor.model.params, many.actor.model.params, atol=1e-5)
    assert metrics['value_loss'] == pytest.approx(many_metrics['value_loss'], abs=1e-5)
    gate = many.actor.model.params['layers']['mlp']['gate']
    assert gate.addressable_shards[0].data.shape == (2, 32, 64)
    moments = make_learner(mesh).init(weights()).actor.model.opt_state[1].mu['layers']['mlp']['gate']
    assert moments.sharding == gate.sharding


def test_rewards_of_masked_samples_do_not_matter():
    _, batch = rollouts()
    ok = batch.ok.at[2, 1].set(False)
    learner = make_learner(estimator='rloo')
    a = run(learner, batch.replace(ok=ok))[0]
    b = run(learner, batch.replace(ok=ok, rewards=batch.rewards.at[2, 1].set(1e6)))[0]
    close(a.actor.model.params, b.actor.model.params, atol=0.0)


@pytest.mark.slow
def test_a_good_action_becomes_likelier_and_a_bad_one_less_likely():
    _, batch = rollouts()
    learner = make_learner(estimator='rloo', kl_coef=0.0, lr=1e-3)
    state, batch, _ = run(learner, batch)
    new, _ = forward.logprobs(state.actor.model.params, CFG, batch.tokens, learner.ppo.temperature)
    change = np.where(batch.tokens.acts, np.asarray(new - batch.logprobs), 0).sum(-1)
    better = np.asarray(batch.rewards[..., 0]) > np.asarray(batch.rewards[..., 0]).mean(1, keepdims=True)
    assert change[better].mean() > 0 > change[~better].mean()


@pytest.mark.slow
@pytest.mark.parametrize('kl_in', ['loss', 'reward'])
def test_without_a_kl_no_reference_is_kept_and_the_update_is_that_of_a_kl_that_counts_nothing(kl_in):
    free, weightless = (
        make_learner(estimator='rloo', kl_in=kl_in, kl_estimator='k3', kl_coef=coef, epochs=2) for coef in (0.0, 1e-30)
    )
    state, batch, metrics = run(free, rollouts()[1])
    other, _, others = run(weightless, rollouts()[1])
    assert state.actor.reference == {} and batch.ref_logprobs is None
    assert jax.tree.leaves(other.actor.reference)
    close(state.actor.model.params, other.actor.model.params)
    assert set(others) - set(metrics) == {'kl'}


@pytest.mark.slow
def test_adapters_train_alone_and_the_reference_is_the_base():
    learner = make_learner(adapters=Lora(4, 8.0, 'all-linear'), estimator='rloo')
    base = weights()
    state, _, metrics = run(learner, rollouts()[1])
    close(learner.actor.reference(state.actor), base, atol=0.0)
    assert state.actor.reference == {}
    assert abs(metrics['kl']) < 1e-6
    moved = jax.tree.map(
        lambda x, y: float(jnp.abs(x - y).max()), learner.weights(state)['layers']['attn'], base['layers']['attn']
    )
    assert min(jax.tree.leaves(moved)) > 0


@pytest.mark.slow
def test_dropout_is_of_the_step_and_off_where_the_policy_is_scored():
    batch, base = rollouts()[1], weights()
    runs = []
    for rate in (0.0, 0.5):
        learner = make_learner(adapters=Lora(4, 8.0, 'all-linear', rate), estimator='rloo', epochs=2, lr=0.1)
        state = learner.init(base)
        annotated, _ = annotate(learner, state, batch)
        state, metrics = learner.update(state, annotated, jax.random.key(0))
        runs.append((annotated, state, metrics))
    (plain, _, exact), (dropped, state, metrics) = runs
    np.testing.assert_array_equal(plain.logprobs, dropped.logprobs)
    assert exact['first_ratio_deviation'] < 1e-3
    assert metrics['ratio_deviation'] > 1e-3  # the adapters are 0 in the first epoch, and so is what they drop
    learner = make_learner(adapters=Lora(4, 8.0, 'all-linear', 0.5), estimator='rloo')
    params = join(state.actor.model.params, state.actor.model.frozen)
    keys = [
        np.concatenate(
            [
                x
                for x in jax.tree.leaves(actors.draw_dropout(learner.actor.adapters, 0, params, (1, step, 0)))
                if x.dtype == jnp.uint32
            ]
        )
        for step in (5, 6)
    ]
    assert not np.any(keys[0] == keys[1])


def test_gradients_add_up_in_place():
    params = {'stack': jnp.arange(6.0).reshape(3, 2) / 7, 'last': jnp.ones(2)}
    moved = {'stack': params['stack'] / 2, 'last': jnp.zeros(2)}

    def loss(params):
        x, _ = jax.lax.scan(lambda x, w: (jnp.sin(x * w), None), params['last'], params['stack'])
        return x.sum(), 7

    @jax.jit
    def both():
        (value, rest), first = accumulate(loss, params, jax.tree.map(jnp.zeros_like, params))
        return value, rest, accumulate(loss, moved, first)[1]

    value, rest, total = both()
    assert (int(rest), float(value)) == (7, pytest.approx(float(loss(params)[0])))
    close(total, jax.tree.map(jnp.add, *(jax.grad(lambda p: loss(p)[0])(each) for each in (params, moved))))


def test_values_out_of_range_are_told():
    with pytest.raises(ValueError, match='policy.lora.dropout=1.0 must be at least 0 and below 1'):
        make_learner(adapters=Lora(4, 8.0, 'all-linear', 1.0))
    with pytest.raises(ValueError, match='ppo.row_tokens=-1 must be at least 0'):
        PPO(row_tokens=-1)
    with pytest.raises(ValueError, match="policy.remat='some'; use none, full, dots"):
        make(dataclasses.replace(CFG, remat='some'), PPO(), Optimizer('sgd', lr=1.0, total_steps=1), ONE, n=N, length=A)


@pytest.mark.parametrize('adapters', [None, Lora(8, 8.0, 'all-linear')], ids=['full', 'lora'])
@pytest.mark.parametrize('name', ['adamw', 'lion', 'adafactor', 'muon'])
def test_nothing_large_lies_on_every_device(name, adapters):
    cfg = dataclasses.replace(CFG, width=256, mlp=512, heads=8, head_dim=128, kv_heads=4, qkv_bias=True)
    optimizer = Optimizer(name, lr=1.0, total_steps=1)
    mesh = devices.make_mesh(data=1, fsdp=4, tensor=2)
    learner = make(cfg, PPO(), optimizer, mesh, n=N, length=A, adapters=adapters)
    norms = cfg.layers * cfg.width
    everywhere = {
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(learner.abstract)
        if leaf.sharding.is_fully_replicated and leaf.size > norms
    }
    assert everywhere == set()


def test_imitation_learns_its_examples_and_anchor_makes_it_the_reference():
    learner = make_learner(estimator='rloo')
    state = learner.init(weights())
    rows = jax.tree.map(jnp.asarray, pack([PromptGroup([1, 2], [Branch([3, 4, 5])])] * 4))
    losses = []
    for _ in range(12):
        state, metrics = learner.imitate(state, rows)
        losses.append(metrics['loss'])
    assert losses[-1] < 0.2 * losses[0]
    state = learner.anchor(state)
    close(learner.actor.reference(state.actor), state.actor.model.params, atol=0.0)
    assert int(state.actor.step) == 0
    assert float(jnp.abs(jax.tree.leaves(state.actor.model.opt_state[1].mu)[0]).max()) == 0.0
    _, annotated = annotate(learner, state, rollouts()[1])
    assert abs(annotated['kl']) < 1e-6


@pytest.mark.parametrize('warmup', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_adapters_of_a_warm_up_are_the_reference_on_the_base_that_does_not_move(tmp_path, warmup):
    learner, base = make_learner(adapters=Lora(4, 8.0, 'all-linear'), estimator='rloo', warmup=warmup), weights()
    state, rows = learner.init(base), jax.tree.map(jnp.asarray, pack([PromptGroup([1, 2], [Branch([3, 4, 5])])] * 4))
    for _ in range(6):
        state, _ = learner.imitate(state, rows)
    state, batch = learner.anchor(state), rollouts()[1]
    of_base = learner.actor.logprobs(base, batch.tokens)
    if warmup:  # as a run that is stopped between the warm-up and the first step
        checkpoints = Checkpoints(tmp_path, learner.abstract)
        checkpoints.save(6, state, {})
        checkpoints.wait()
        state, *_ = Checkpoints(tmp_path, learner.abstract, read_only=True).read()
    annotated, metrics = annotate(learner, state, batch)
    assert abs(metrics['kl']) < 1e-6
    np.testing.assert_array_equal(annotated.logprobs, annotated.ref_logprobs)
    assert np.abs(np.where(batch.tokens.acts, annotated.ref_logprobs - of_base, 0)).max() > 1e-2  # it has learnt
    close(
        state.actor.model.frozen, base, atol=0.0
    )  # so adapters that are exported are of the model they were attached to
    state, _ = learner.update(state, annotated, jax.random.key(0))
    close(annotate(learner, state, batch)[0].ref_logprobs, annotated.ref_logprobs, atol=0.0)
    close(learner.weights(state), merge(join(state.actor.model.params, base)))


def test_minibatches_and_epochs_make_as_many_updates():
    state, _, metrics = run(make_learner(epochs=2, minibatches=4), rollouts()[1])
    assert int(state.actor.step) == 8
    assert metrics['ratio_deviation'] > metrics['first_ratio_deviation']


def one_real_row(batch):
    """The batch with its last row alone; the others are padding."""
    there = (jnp.arange(len(batch.ok)) == len(batch.ok) - 1)[:, None]
    tokens = batch.tokens.replace(acts=batch.tokens.acts & there[..., None], segments=batch.tokens.segments * there)
    return batch.replace(tokens=tokens, ok=batch.ok & there)


@pytest.mark.parametrize(
    'options',
    [
        {'estimator': 'rloo'},
        pytest.param({'estimator': 'gae', 'micro_rows': 1}, marks=pytest.mark.slow),
        pytest.param({'estimator': 'rloo', 'adapters': Lora(4, 8.0, 'all-linear')}, marks=pytest.mark.slow),
    ],
)
def test_a_minibatch_without_a_real_row_changes_nothing(options):
    learner = make_learner(minibatches=4, **options)
    state, batch, _ = run(learner, rollouts()[1])
    kept = jax.tree.map(np.asarray, state)  # its moments would go on

    def update(batch, seed=0):
        state, metrics = learner.update(jax.tree.map(jnp.array, kept), batch, jax.random.key(seed))
        return jax.tree.map(np.asarray, state), metrics

    annotated, _ = annotate(learner, state, one_real_row(batch))
    results = [update(annotated, seed) for seed in range(3)]  # the real minibatch is another one of the four
    for state, metrics in results:
        close(state, results[0][0])
        assert metrics == pytest.approx(results[0][1], rel=1e-4, abs=1e-6)
        assert int(state.actor.step) == int(kept.actor.step) + 1
    failed, found = annotate(learner, state, batch.replace(ok=jnp.zeros_like(batch.ok)))
    state, metrics = update(failed)
    close(state, kept, atol=0.0)
    assert set(metrics) == {'kl_coef'} and set(found) == {'real_share'}


def test_nothing_to_imitate_changes_nothing():
    learner, rows = make_learner(estimator='rloo'), pack([PromptGroup([1, 2], [Branch([3, 4, 5])])] * 4)
    state, _ = learner.imitate(learner.init(weights()), jax.tree.map(jnp.asarray, rows))
    same, metrics = learner.imitate(state, rows.replace(acts=jnp.zeros(rows.acts.shape, bool)))
    close(same, state, atol=0.0)
    assert metrics == {}


@pytest.mark.slow
def test_the_actor_waits_for_its_critic_and_ptx_adds_its_loss():
    _, batch = rollouts()
    frozen, _, _ = run(make_learner(freezing_actor_steps=1), batch)
    close(frozen.actor.model.params, weights(), atol=0.0)
    thawed, _, metrics = run(make_learner(freezing_actor_steps=1, minibatches=2), batch)
    assert metrics['grad_norm'] > 0
    assert not np.array_equal(thawed.actor.model.params['final_norm'], weights()['final_norm'])
    learner = make_learner(ptx_coef=0.5, estimator='reinforce')
    state = learner.init(weights())
    annotated, _ = annotate(learner, state, batch)
    rows = jax.tree.map(jnp.asarray, pack([PromptGroup([1, 2], [Branch([3, 4, 5])])] * 8))
    _, metrics = learner.update(state, annotated, jax.random.key(0), rows)
    assert metrics['ptx_loss'] == pytest.approx(0.5 * np.log(64), rel=0.05)


def test_the_kl_coefficient_follows_its_target():
    state, _, metrics = run(make_learner(kl_target=0.1), rollouts()[1])  # KL 0 is below the target
    assert metrics['kl_coef'] == pytest.approx(0.01)
    assert float(state.kl_coef) == pytest.approx(0.01 * (1 - 0.2 * 16 / 10_000), rel=1e-6)


@pytest.mark.parametrize(('kl', 'coef'), [(9.0, 0.200064), (3.0, 0.199936)])
def test_the_target_may_be_of_a_samples_sum(kl, coef):  # psoups I.7-7
    batch = rollouts()[1]
    acts = batch.tokens.acts
    spread = jnp.where(acts, kl / acts.sum(axis=2, keepdims=True), 0.0)
    batch = batch.replace(logprobs=spread, ref_logprobs=jnp.zeros_like(spread))
    found = adapted_kl(PPO(kl_target=6.0, kl_target_per='sample'), batch, jnp.array(0.2))
    assert float(found) == pytest.approx(coef, abs=1e-6)


def test_epochs_end_once_the_policy_is_far_from_the_one_that_sampled():
    _, batch = rollouts()
    state, _, metrics = run(make_learner(epochs=8, early_stop_kl=1e-3), batch)
    assert 2 <= int(state.actor.step) == metrics['epochs'] < 8  # the first measures a policy that has not moved yet


def test_an_update_that_is_not_finite_is_not_made_and_counted():
    _, batch = rollouts()
    learner = make_learner(estimator='reinforce')
    state = learner.init(weights())
    annotated, _ = annotate(learner, state, batch)
    state, _ = learner.update(state, annotated.replace(advantages=annotated.advantages * jnp.nan), jax.random.key(0))
    close(state.actor.model.params, weights(), atol=0.0)
    assert int(state.skipped) == 1


def test_one_sample_cannot_be_compared():
    with pytest.raises(ValueError, match='n_samples_per_prompt=1'):
        make_learner(estimator='rloo', n=1)
    with pytest.raises(ValueError, match="ppo.estimator='ppo'; use one of gae"):
        PPO(estimator='ppo')
    with pytest.raises(ValueError, match="kl_estimator='k1' has no gradient"):
        PPO(kl_in='loss')
    with pytest.raises(ValueError, match=r'ppo.kl_target=0.1 adapts ppo.kl_coef, which is 0'):
        PPO(kl_coef=0.0, kl_target=0.1)


def test_dr_grpo_divides_by_a_constant_alone():  # arXiv 2503.20783, section 3.2
    assert PPO(estimator='dr_grpo').aggregation == 'constant'
    assert PPO(estimator='rloo').aggregation == 'seq_mean'
    assert PPO(estimator='rloo', loss_agg='constant').aggregation == 'constant'
    for agg in ('seq_mean', 'token_mean', 'micro_token_mean'):
        with pytest.raises(ValueError, match=f"ppo.loss_agg='{agg}'.*ppo.estimator='dr_grpo'"):
            PPO(estimator='dr_grpo', loss_agg=agg)
    with pytest.raises(ValueError, match="ppo.std_floor=0.1 .*ppo.estimator='dr_grpo'"):
        PPO(estimator='dr_grpo', std_floor=0.1)
    batch = rollouts()[1]
    found = loss_weights(PPO(estimator='dr_grpo'), batch, A)
    np.testing.assert_allclose(found, np.where(batch.tokens.acts, 1 / (batch.ok.size * A), 0), rtol=1e-6)


def test_padding_columns_are_cut_from_each_micro_batch():
    _, batch = rollouts()
    wide = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 256))) if x.ndim == 2 else x, batch.tokens)
    wide = wide.replace(segments=wide.segments.at[5, :150].set(1))
    first, second = micro_batches(wide, ONE, 4)
    assert first.tokens.shape == (4, 128) and second.tokens.shape == (4, 256)
    for part, rows in ((first, slice(4)), (second, slice(4, 8))):
        length = part.tokens.shape[1]
        kept = jax.tree.map(lambda x, r=rows, n=length: x[r, :n] if x.ndim == 2 else x[r], wide)
        jax.tree.map(np.testing.assert_array_equal, part, kept)
        assert np.sum(part.segments > 0) == np.sum(wide.segments[rows] > 0)


@pytest.mark.parametrize('correction', ['tis', 'icepop', 'cispo', 'gspo'])
def test_a_correction_changes_an_update_where_the_sampler_is_another_policy_and_only_there(correction):
    learner = make_learner(estimator='reinforce', kl_coef=0.0)
    corrected = dataclasses.replace(learner, ppo=dataclasses.replace(learner.ppo, correction=correction))
    state = learner.init(weights())
    batch, _ = annotate(learner, state, rollouts()[1])
    moved = []
    for drift in (0.0, 0.7):
        sampled = batch.replace(sampler_logprobs=batch.logprobs.at[::2].add(drift))
        states = [x.update(x.init(weights()), sampled, jax.random.key(0))[0] for x in (learner, corrected)]
        leaves = (jax.tree.leaves(state.actor.model.params) for state in states)
        moved.append(max(float(jnp.abs(a - b).max()) for a, b in zip(*leaves, strict=True)))
    assert moved[0] < 1e-6 < 1e-4 < moved[1]


def test_samples_on_which_sampler_and_policy_disagree_are_left_out_and_counted():
    learner = make_learner(estimator='reinforce', max_drift=0.5)
    state, (_, batch) = learner.init(weights()), rollouts()
    scored, metrics = make_learner(estimator='reinforce').score(state, batch)
    assert 'drifted_samples' not in metrics
    close_by = batch.replace(sampler_logprobs=scored.logprobs)
    far = close_by.replace(sampler_logprobs=close_by.sampler_logprobs.at[1].add(1.0))
    kept, metrics = learner.score(state, far)
    assert metrics['drifted_samples'] == batch.ok[1].sum() > 0
    assert not kept.ok[1].any()
    np.testing.assert_array_equal(kept.ok[2:], batch.ok[2:])


@pytest.mark.parametrize(
    ('changes', 'key'),
    [
        ({'correction': 'none', 'correction_bounds': (0.5, 2.0)}, 'ppo.correction_bounds'),
        ({'correction': 'tis', 'old_logprobs': 'sampler'}, 'ppo.old_logprobs'),
        ({'max_drift': 0.1, 'old_logprobs': 'sampler'}, 'ppo.max_drift'),
        ({'correction': 'tiss'}, "ppo.correction='tiss'"),
    ],
)
def test_corrections_that_cannot_be_are_refused(changes, key):
    with pytest.raises(ValueError, match=key):
        PPO(**changes)
