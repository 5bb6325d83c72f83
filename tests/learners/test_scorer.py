"""The reward model: its scores are those of replies by themselves, its gradient is that of its loss."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.data.packing import BranchPair, shared_prompt
from pal_jax.learners.scorer import BradleyTerry, Scorer, decoder_params, pack_replies, to_score
from pal_jax.learners.training import Lora
from pal_jax.models import config, decoder, params
from pal_jax.run import devices
from pal_jax.run.optim import Optimizer
from pal_jax.types import OPENING

CFG = dataclasses.replace(config.tiny(vocab=64), unroll=True)
ONE = devices.make_mesh(devices=jax.devices()[:1])


def make_learner(mesh=ONE, **changes):
    return Scorer(CFG, Optimizer('adamw', lr=1e-2, total_steps=10, warmup_ratio=0.0), mesh, **changes)


def make_state(learner):
    weights = params.init(params.decoder_specs(CFG), jax.random.key(1))
    return learner.init(jax.device_put(weights, learner.param_shardings))


def make_texts(count=8, pairs=2, seed=0):
    """Token ids of prompts with their replies."""
    rng = np.random.default_rng(seed)

    def ids(least, most):
        return rng.integers(1, 64, rng.integers(least, most)).tolist()

    return [(ids(3, 12), [ids(2, 9) for _ in range(2 * pairs)]) for _ in range(count)]


def pack(texts, mesh=ONE, micro_rows=4, pooling='last', **packing):
    groups = [shared_prompt([to_score(prompt, reply, pooling) for reply in replies]) for prompt, replies in texts]
    return pack_replies(groups, mesh, micro_rows=micro_rows, **packing)


@jax.jit
def values(weights, head, tokens):
    """The head's value of every token of one sequence, which is padded at its end."""
    positions, ones = jnp.arange(len(tokens))[None], jnp.ones((1, len(tokens)), jnp.int32)
    return decoder.forward(weights, CFG, tokens[None], positions, ones, ones)[0].astype(jnp.float32) @ head[:, 0]


def score_alone(state, prompt, reply, pooling='last'):
    """The head's value of the last token of a sequence that holds nothing else, or its mean over reply and what comes
    before it."""
    weights = decoder_params(state.model.params['decoder'], state.model.frozen)
    tokens = np.zeros(24, np.int32)
    tokens[: len(prompt) + len(reply)] = [*prompt, *reply]
    end = len(prompt) + len(reply)
    start = end - 1 if pooling == 'last' else len(prompt) - 1
    return float(values(weights, state.model.params['head'], tokens)[start:end].mean())


@pytest.mark.parametrize('adapters', [None, Lora(2, 4.0, 'all-linear')], ids=['full', 'lora'])
def test_gaps_are_those_of_replies_by_themselves(adapters):
    learner = make_learner(adapters=adapters)
    state, texts = make_state(learner), make_texts()
    found = learner.gaps(state, pack(texts))
    for row, (prompt, replies) in zip(found, texts, strict=True):
        alone = [score_alone(state, prompt, reply) for reply in replies]
        np.testing.assert_allclose(row, np.subtract(alone[0::2], alone[1::2]), atol=2e-6)


def test_with_mean_pooling_a_score_is_the_mean_over_the_tokens_of_a_reply():
    learner, texts = make_learner(), make_texts()
    state = make_state(learner)
    alone = [[score_alone(state, prompt, reply, 'mean') for reply in replies] for prompt, replies in texts]
    for packing in ({}, {'row_tokens': 128, 'micro_rows': 1}):
        np.testing.assert_allclose(
            learner.scores(state, pack(texts, pooling='mean', **packing))[..., 0], alone, atol=2e-6
        )
    with pytest.raises(ValueError, match="data.pooling='max' is unknown; use 'last' or 'mean'"):
        pack(texts, pooling='max')


def test_swapping_the_sides_flips_the_sign():  # rlpa_plus IV.4-4
    learner, texts = make_learner(), make_texts()
    state = make_state(learner)
    swapped = [(prompt, [r for k in range(0, len(replies), 2) for r in replies[k : k + 2][::-1]])
               for prompt, replies in texts]  # fmt: skip
    np.testing.assert_allclose(learner.gaps(state, pack(texts)), -learner.gaps(state, pack(swapped)), atol=2e-6)


def test_reading_scores_all_pairs_and_learns_from_them():
    learner, texts = make_learner(), make_texts()
    state = make_state(learner)
    scores, grads, figures = learner.read(state, pack(texts))
    np.testing.assert_allclose(scores, learner.scores(state, pack(texts)), atol=1e-6)
    gaps = learner.gaps(state, pack(texts))
    assert gaps.shape == (len(texts), 2)
    assert figures['reward_loss'] == pytest.approx(float(np.logaddexp(0.0, -gaps).mean()), abs=1e-6)
    assert figures['reward_accuracy'] == pytest.approx(float((gaps > 0).mean()))
    # a small step against the gradient lowers the loss by its squared length
    step = 1e-3
    moved = state.replace(model=state.model.replace(
        params=jax.tree.map(lambda p, g: p - step * g, state.model.params, grads)))  # fmt: skip
    slope = (learner.read(moved, pack(texts))[2]['reward_loss'] - figures['reward_loss']) / step
    squared = sum(float(jnp.sum(jnp.square(g))) for g in jax.tree.leaves(grads))
    assert slope == pytest.approx(-squared, rel=0.05)


def test_embeddings_stay_and_the_rest_learns_to_tell_the_sides_apart():
    learner, texts = make_learner(), make_texts(count=4)
    state, pairs = make_state(learner), pack(texts)
    embed, first = np.asarray(state.model.frozen['embed']), None
    for _ in range(10):
        state, _, figures = learner.learn(state, pairs)
        first = first or figures['reward_loss']
    np.testing.assert_array_equal(state.model.frozen['embed'], embed)
    assert figures['reward_loss'] < 0.5 * first
    assert figures['reward_accuracy'] == 1.0


def test_a_step_goes_as_far_as_its_rate():
    learner, pairs = make_learner(), pack(make_texts(count=4))
    moved = []
    for rate in (1.0, 0.5):
        state = make_state(learner)
        head = np.asarray(state.model.params['head'])
        state, *_ = learner.learn(state, pairs, rate)
        moved.append(np.asarray(state.model.params['head']) - head)
    np.testing.assert_allclose(moved[1], 0.5 * moved[0], rtol=1e-3, atol=1e-7)


def test_groups_that_share_rows_score_and_teach_alike():
    learner = make_learner(loss=BradleyTerry(margin=0.5, label_smoothing=0.1, centring=0.02))
    state = make_state(learner)
    groups = [
        shared_prompt([to_score([5, 6, 7, *prompt], reply) for reply in replies])._replace(
            compared=[BranchPair(0, 1, 0.3 * i)]
        )
        for i, (prompt, replies) in enumerate(make_texts(pairs=1))
    ]
    alone, packed = (pack_replies(groups, ONE, micro_rows=2, row_tokens=tokens) for tokens in (0, 96))
    assert packed.batch.tokens.shape[0] < len(groups)  # rows
    assert (packed.batch.segments == OPENING).sum(axis=1).tolist() == [3] * packed.batch.tokens.shape[0]
    scores = learner.scores(state, alone)[..., 0]
    np.testing.assert_allclose(learner.scores(state, packed)[..., 0], scores, atol=2e-6)
    # the loss as its papers have it, in numpy
    chosen, rejected = scores[:, 0], scores[:, 1]
    surplus = chosen - rejected - 0.5 - 0.3 * np.arange(len(groups))
    each = 0.9 * np.logaddexp(0, -surplus) + 0.1 * np.logaddexp(0, surplus) + 0.02 * (chosen + rejected) ** 2
    grads = []
    for pairs in (alone, packed):
        _, gradient, figures = learner.read(state, pairs)
        assert figures['reward_loss'] == pytest.approx(float(each.mean()), abs=1e-5)
        grads.append(gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *grads)


def test_all_that_was_compared_of_a_group_is_learnt_and_every_group_counts_alike():  # Ouyang et al. 2022, 3.5
    learner = make_learner(loss=BradleyTerry(centring=0.02))
    state, texts = make_state(learner), make_texts(count=3)
    compared = [
        [(3, 0), (0, 1, 0.5), (2, 1), (3, 2), (3, 1), (0, 2)],
        [(1, 0)],
        [(0, 2, 1.0), (1, 2)],
    ]
    groups = [
        shared_prompt([to_score(prompt, reply) for reply in replies[:count]])._replace(
            compared=[BranchPair(*c) for c in own]
        )
        for (prompt, replies), own, count in zip(texts, compared, (4, 2, 3), strict=True)
    ]
    losses = []
    for (prompt, replies), own in zip(texts, compared, strict=True):
        s = [score_alone(state, prompt, reply) for reply in replies]
        each = [np.logaddexp(0, -(s[a] - s[b] - sum(m))) + 0.02 * (s[a] + s[b]) ** 2 for a, b, *m in own]
        losses.append(np.mean(each))
    gradients = []
    for packing in ({'row_tokens': 0}, {'row_tokens': 128}):
        pairs = pack_replies(groups, ONE, micro_rows=1, n=4, **packing)
        found, gradient, figures = learner.read(state, pairs.pick(np.array([[0], [2]]), np.array([[3, 0], [0, 2]])))
        assert figures['reward_loss'] == pytest.approx(np.mean(losses), abs=1e-5)
        alone = [score_alone(state, texts[i][0], texts[i][1][a]) - score_alone(state, texts[i][0], texts[i][1][b])
                 for i, a, b in ((0, 3, 0), (2, 0, 2))]  # fmt: skip
        np.testing.assert_allclose(found[:, 0, 0] - found[:, 1, 0], alone, atol=2e-6)
        gradients.append(gradient)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *gradients)


def test_a_reply_without_tokens_is_scored_where_its_prompt_ends():
    learner = make_learner()
    state, (prompt, (reply, *_)) = make_state(learner), make_texts(count=1)[0]
    state = state.replace(model=state.model.replace(params={**state.model.params, 'head': jnp.ones((CFG.width, 1))}))
    expected = [score_alone(state, prompt, each) for each in ([], reply)]
    for pooling in ('last', 'mean'):
        found = learner.scores(state, pack([(prompt, [[], reply])], pooling=pooling))[0, :, 0]
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(learner.scores(state, pack([(prompt, [[], reply])]))[0, :, 0], expected, rtol=1e-5)
    with pytest.raises(ValueError, match='no tokens'):
        to_score([], [])


@pytest.mark.parametrize('n', [1, 3])
def test_any_number_of_replies_is_scored(n):
    learner = make_learner()
    state, texts = make_state(learner), [(prompt, replies[:n]) for prompt, replies in make_texts(count=3)]
    alone = [[score_alone(state, prompt, reply) for reply in replies] for prompt, replies in texts]
    np.testing.assert_allclose(learner.scores(state, pack(texts, row_tokens=128))[..., 0], alone, atol=2e-6)


def test_one_program_reads_rows_of_many_groups_and_of_few():
    shapes = {
        tuple(pack(make_texts(count, pairs), row_tokens=256, multiple=256, micro_rows=1).batch.acts.shape[1:])
        for count, pairs in ((1, 1), (3, 2), (8, 1), (5, 4))
    }
    assert shapes == {(64, 1)}


def test_what_counts_twice_is_read_once():
    learner, texts = make_learner(), make_texts(count=3)
    state, of = make_state(learner), np.array([2, 0, 2, 1, 2])
    every = pack([texts[i] for i in of])
    once = pack(texts, times=np.bincount(of), row_tokens=256, multiple=256).pick(of[:, None], np.arange(4)[None])
    assert once.batch.tokens.shape == (1, 256)
    (scores, grads, figures), (found, gradient, told) = (learner.read(state, pairs) for pairs in (every, once))
    np.testing.assert_allclose(found, scores, atol=2e-6)
    assert told == pytest.approx(figures, abs=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient, grads)


def test_groups_may_have_fewer_replies_than_others():
    learner = make_learner()
    state, (one, other) = make_state(learner), make_texts(count=2, pairs=3)
    packed = pack([one, (other[0], other[1][:3])], n=8)
    wanted = packed.pick(np.array([[0, 0], [1, 1]]), np.array([[5, 1], [0, 2]]))
    alone = [[score_alone(state, prompt, replies[k]) for k in places]
             for (prompt, replies), places in ((one, (5, 1)), (other, (0, 2)))]  # fmt: skip
    np.testing.assert_allclose(learner.scores(state, wanted)[..., 0], alone, atol=2e-6)


def test_groups_without_pairs_teach_nothing_and_are_in_no_mean():
    learner, (one, other) = make_learner(), make_texts(count=2, pairs=2)
    state = make_state(learner)
    state, *_ = learner.learn(state, pack([one]))  # its moments would go on
    single = (other[0], other[1][:2])
    (_, _, alone), (_, _, both) = (learner.read(state, pack(texts, n=4)) for texts in ([one], [one, single]))
    assert both['reward_loss'] == pytest.approx(alone['reward_loss'], abs=1e-5)
    gaps = learner.gaps(state, pack([one, single], n=4))
    assert both['reward_accuracy'] == pytest.approx(np.mean([*gaps[0], gaps[1, 0]] > np.zeros(3)))
    same, _, figures = learner.learn(state, pack([single], n=4))
    assert figures == {}
    jax.tree.map(np.testing.assert_array_equal, same, state)


@pytest.mark.parametrize('changes', [{'margin': -1.0}, {'centring': -0.1}, {'label_smoothing': 0.5}])
def test_losses_that_make_no_sense_are_refused(changes):
    with pytest.raises(ValueError, match=f'reward.{next(iter(changes))}'):
        BradleyTerry(**changes)


def test_adapters_with_dropout_are_refused():
    with pytest.raises(ValueError, match=r'lora.dropout=0.1'):
        make_learner(adapters=Lora(2, 4.0, 'all-linear', 0.1))


@pytest.mark.slow
@pytest.mark.parametrize('shape', [(8, 1, 1), (1, 4, 2)])
def test_eight_devices_read_what_one_does(shape):
    mesh, texts = devices.make_mesh(*shape), make_texts(count=16)
    one, eight = make_learner(), make_learner(mesh)
    state, wide = make_state(one), make_state(eight)
    for atol in (1e-5, 1e-4):  # Adam magnifies how the first step rounds
        state, scores, figures = one.learn(state, pack(texts))
        pairs = pack(texts, mesh, micro_rows=1)
        wide, found, wide_figures = eight.learn(wide, pairs)
        np.testing.assert_allclose(found, scores, atol=atol)
        assert wide_figures['reward_loss'] == pytest.approx(figures['reward_loss'], rel=1e-5)
