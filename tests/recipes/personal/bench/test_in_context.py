"""GPO for pairs (arXiv 2310.11523): odd margins, draws without the answer, and people told apart by their choices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.recipes.personal.bench import reading
from pal_jax.recipes.personal.bench.in_context import InContextLearner
from pal_jax.recipes.personal.bench.set_transformer import SetTransformer
from tests.recipes.personal import people

NET = SetTransformer(6, width=16, maps=2, layers=1, heads=2, hidden=16)


def with_a_head(params, seed=0):
    rng = np.random.default_rng(seed)
    params['head'][1]['w'] = jnp.asarray(rng.normal(size=params['head'][1]['w'].shape), jnp.float32)
    return params


def test_a_pair_turned_around_has_exactly_the_negative_margin():
    rng, learner = np.random.default_rng(0), InContextLearner(NET)
    params = with_a_head(learner.weights(jax.random.key(0)))
    known, asked = (rng.normal(size=(3, n, 5)).astype(np.float32) for n in (7, 9))
    exists = jnp.arange(7)[None] < jnp.array([[7], [3], [0]])
    m = learner.margins(params, known, exists, asked)
    assert (np.abs(m) > 1e-4).all()
    np.testing.assert_array_equal(learner.margins(params, known, exists, -asked), -m)
    # An answer of a known pair counts, and the side that it stood on does not.
    turned = known.copy()
    turned[0, 0] *= -1
    assert np.abs(learner.margins(params, turned, exists, asked) - m)[0].max() > 1e-4
    assert not learner.margins(params, known, exists, np.zeros_like(asked)).any()


def test_a_draw_has_the_persons_own_choices_and_each_once():
    learner = InContextLearner(SetTransformer(2), people=400, context=3, targets=4)
    x = jnp.arange(1.0, 8.0)[:, None]  # seven pairs: four of the first person, two of the second, one of the third
    index = jnp.array([[0, 1, 2, 3], [4, 5, 0, 0], [6, 0, 0, 0]])
    exists = jnp.arange(4)[None] < jnp.array([[4], [2], [1]])
    tokens, known, asked, counted = (np.asarray(a) for a in learner.draw(jax.random.key(0), x, index, exists))
    assert set(np.abs(tokens[..., 1]).ravel()) == {1} and (tokens[..., 0] * tokens[..., 1] > 0).all()
    assert 0.4 < (tokens[..., 1] > 0).mean() < 0.6
    sizes = set()
    for row in range(400):
        mine = np.abs(tokens[row, known[row], 0]).tolist() + asked[row, counted[row], 0].tolist()
        assert len(mine) == len(set(mine)) and counted[row].any()
        (person,) = {[0, 0, 0, 0, 1, 1, 2][int(pair) - 1] for pair in mine}
        sizes.add((person, int(known[row].sum())))
    assert sizes == {(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (2, 0)}


@pytest.mark.slow
def test_updates_follow_from_the_key_and_the_step():
    learner = InContextLearner(NET, people=4, context=3, targets=3, steps=10)
    x = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    index, exists = np.arange(20).reshape(2, 10), np.ones((2, 10), bool)
    key = jax.random.key(1)
    runs = []
    for _ in range(2):
        state = reading.begin(learner, jax.random.key(0))
        for i in range(2):
            keys = jax.random.fold_in(key, i)[None]
            state, metrics = reading.update(learner, state, x, index, exists, keys)
        runs.append((state, metrics))
    jax.tree.map(np.testing.assert_array_equal, *runs)
    first, second = (learner.draw(jax.random.fold_in(key, i), jnp.asarray(x), jnp.asarray(index), jnp.asarray(exists))
                     for i in range(2))  # fmt: skip
    assert not np.array_equal(first[2], second[2])


@pytest.mark.long
def test_a_population_of_rank_three():
    """On one seed: known choices are worth something, and as answers by a coin they are worth nothing."""
    population = people.draw(1)
    net = SetTransformer(people.WIDTH + 1, width=32, maps=2, layers=2, heads=2, hidden=32)
    learner = InContextLearner(net, people=32, lr=3e-3, steps=1500)
    x = population.train.reshape(-1, people.WIDTH)
    index, exists = np.arange(len(x)).reshape(people.SEEN, -1), np.ones((people.SEEN, 40), bool)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(1), np.arange(1500))
    state, metrics = reading.update(learner, reading.begin(learner, jax.random.key(0)), x, index, exists, keys)
    known, asked = population.new[:, : people.KNOWN], population.new[:, people.KNOWN :]
    coins = np.where(np.random.default_rng(0).random(known.shape[:2]) < 0.5, 1, -1)[..., None].astype(np.float32)

    def accuracy(context, count):
        exists = jnp.broadcast_to(jnp.arange(people.KNOWN) < count, known.shape[:2])
        return float((np.asarray(learner.margins(state.params, context, exists, asked)) > 0).mean())

    figures = [accuracy(known, 0), accuracy(known, 5), accuracy(known, 20), accuracy(known * coins, 20)]
    print(np.round(figures, 3), metrics)
