"""Constraint handlers: golden numbers, and what all handlers have alike."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.objectives import constraints as c
from pal_jax.objectives.advantages import ConstrainedEstimator, Discounts, EstimatorInputs
from pal_jax.objectives.handler import updated
from pal_jax.objectives.policy import ClippedSurrogate, TokenInputs

HANDLERS = tuple(field.default for field in dataclasses.fields(c.Handlers))
# Two samples of three and of two tokens, as `additions.md` section 2 has them.
MASK = np.array([[1, 1, 1], [1, 1, 0]], bool)
OLD = np.array([[-1, -2, -0.5], [-1.5, -0.7, 0]])
NEW = np.array([[-0.8, -2.3, -0.5], [-1.2, -0.9, 0]])
FIRST = np.array([[-0.85, -2.2, -0.55], [-1.3, -0.8, 0]])  # after CUP's first update
REWARD = np.array([[1, -0.5, 0.2], [0.4, 0.8, 0]])
COST = np.array([[0.5, 0.5, -1], [1, -0.2, 0]])
MEAN_COST, LENGTH = 0.4, 2.5


def multipliers(handler, costs, limit, groups=1):
    state, history = handler.init(groups), []
    for cost in costs:
        state = handler.update(state, np.full(groups, cost), np.full(groups, limit))
        history.append(state['lambda'][0])
    return history


def mean_loss(loss, advantage, reference=None, cost=None, logprobs=NEW):
    tokens = TokenInputs(OLD, advantage, reference, np.zeros_like(OLD), cost)
    return float(np.asarray(jax.jit(loss)(logprobs, tokens))[MASK].mean())


def mixed(handler, costs, limit, state=None):
    state = handler.update(state or handler.init(1), np.array([costs]), np.array([limit]))
    weights = handler.weigh(state)
    return (weights.reward * REWARD - weights.cost[0] * COST) / weights.divisor


@pytest.mark.parametrize(
    ('handler', 'costs', 'limit', 'golden'),
    [
        (c.LinearLagrangian(), [60, 50, 40, 20, 10], 25, [0.036, 0.070224, 0.102569, 0.126684, 0.140103]),
        (c.PIDLagrangian(), [60, 50, 40, 20, 10], 25, [0.556, 0.94575, 1.173513, 1.087387, 0.848068]),
        (c.RePO(), [0.4, 0.1, 0.0], 0.0, [1.2, 1.25, 1.25]),
        (c.RePO(slack=0.1), [0.4, 0.1, 0.0], 0.0, [1.15, 1.15, 1.1]),
        (c.LogLagrangian(lam_lr=0.5), [0.4, 0.1, 0.0], 0.0, [1.221403, 1.298319, 1.298319]),
        (
            c.LinearLagrangian(lam_init=1.0, lam_lr=0.5, optimizer='sgd'),
            [-0.25, -0.35, -0.5], 0.0, [0.875, 0.7, 0.45],
        ),
    ],
)  # fmt: skip
def test_multipliers_are_the_golden_ones(handler, costs, limit, golden):
    np.testing.assert_allclose(multipliers(handler, costs, limit), golden, atol=1e-6)


def test_costs_are_rectified_by_answer_and_by_prompt():
    costs = np.array([1.2, -0.8, 0.2, -0.2, -0.5, -1.5, 0.4, -0.4])
    assert c.RePO(by='answer').count(costs, np.zeros(8), 4).mean() == pytest.approx(0.225)
    assert c.RePO(by='prompt').count(costs, np.zeros(8), 4).mean() == pytest.approx(0.05)


def test_saute_pays_within_a_budget():
    rewards, costs, budgets = np.array([1.0, 2.0, 3.0]), np.array([-1.0, 0.5, 0.5]), np.array([0.0, 0.0, 1.0])
    handler = c.Saute(unsafe_reward=-4.0, budgets=(-1.0, 2.0))
    assert handler.pay(rewards, costs, budgets).tolist() == [1.0, -4.0, 3.0]
    assert handler.budget(np.zeros(3)).tolist() == [-1.0, 2.0, -1.0]  # in turn
    assert c.Saute().budget(budgets).tolist() == budgets.tolist()


def test_ppo_of_the_reward_is_the_golden_one():
    assert mean_loss(ClippedSurrogate(), REWARD) == pytest.approx(-0.426997, abs=1e-6)


@pytest.mark.parametrize(('limit', 'loss'), [(0.9, -0.369338), (0.3, -0.100882), (0.4, -0.100882), (0.42, -0.100882)])
def test_ipo_weighs_by_what_is_left_below_the_limit(limit, loss):
    advantages = mixed(c.IPO(kappa=0.05), MEAN_COST, limit)
    assert mean_loss(ClippedSurrogate(), advantages) == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize(('limit', 'loss'), [(0.3, 0.239363), (0.36, -0.426997)])
def test_crpo_takes_a_step_of_the_cost_or_of_the_reward(limit, loss):
    advantages = mixed(c.CRPO(tolerance=0.05), MEAN_COST, limit)
    assert mean_loss(ClippedSurrogate(), advantages) == pytest.approx(loss, abs=1e-6)


def test_focops_gates_each_token():
    handler = c.FOCOPS(lam_init=0.5)
    advantages = mixed(handler, 0.0, 0.0)
    loss = handler.token_loss(ClippedSurrogate())
    assert mean_loss(loss, advantages) == pytest.approx(-0.124216, abs=1e-6)
    near, far = (np.log1p(x) * np.ones((1, 1)) for x in (0.1, 0.3))
    token = TokenInputs(np.zeros((1, 1)), np.full((1, 1), 0.5), None, np.zeros((1, 1)))
    assert float(jax.jit(loss)(near, token)[0, 0]) == pytest.approx(1.1 * np.log(1.1) - 0.1 - 1.1 * 0.5 / 1.5)
    assert float(jax.jit(loss)(far, token)[0, 0]) == 0.0


def test_cup_projects_towards_the_policy_after_its_first_update():
    handler, state = c.CUP(lam_init=0.5), {'lambda': [0.5]}
    weights, loss = handler.second_update(state)
    advantages = weights.reward * REWARD - weights.cost[0] * COST
    assert mean_loss(ClippedSurrogate(), REWARD, logprobs=FIRST) == pytest.approx(-0.429317, abs=1e-6)
    assert mean_loss(loss, advantages, reference=FIRST) == pytest.approx(0.120187, abs=1e-6)
    assert mean_loss(loss, advantages, reference=OLD) == pytest.approx(0.143210, abs=1e-6)  # another anchor


@pytest.mark.parametrize(
    ('limit', 'loss', 'slope'), [(0.3, 0.119892, True), (0.9, -0.360108, True), (1.2, -0.426997, False)]
)
def test_p3o_has_one_gate_for_a_minibatch(limit, loss, slope):
    weight, ratio = MASK / MASK.sum(), np.exp(NEW - OLD)
    excess = (MEAN_COST - limit) / LENGTH
    handler = c.P3O(kappa=2.0)
    cost = handler.before(COST, ratio, weight, excess + (weight * COST).sum())  # whose mean a rollout takes off
    token_loss = handler.token_loss(ClippedSurrogate(0.2))
    value = mean_loss(token_loss, REWARD, cost=cost) + (2.0 * excess if slope else 0.0)
    assert value == pytest.approx(loss, abs=1e-6)

    def penalty(logprobs):
        tokens = TokenInputs(OLD, np.zeros_like(REWARD), None, np.zeros_like(OLD), cost)
        return jnp.sum(token_loss(logprobs, tokens) * MASK)

    if limit == 0.3:
        golden = [[0.244281, 0.148164, -0.4], [0.539944, -0.065498, 0]]
        np.testing.assert_allclose(jax.jit(jax.grad(penalty))(NEW) / MASK.sum(), golden, atol=1e-6)
    elif not slope:
        assert not np.any(jax.jit(jax.grad(penalty))(NEW))


@pytest.mark.parametrize('estimator', ['gae', 'dr_grpo'])
def test_the_gate_of_p3o_follows_the_limit_and_no_error_of_a_critic(estimator):
    estimate = ConstrainedEstimator(estimator, Discounts(), kl_of_cost=0.0)

    @jax.jit
    def gate(paid, weight, excess):
        cost, _ = estimate.of_cost(paid._replace(n=2), weight)
        return jnp.any(c.P3O().before(cost, jnp.ones_like(cost), weight, excess) > 0)

    for seed in range(8):
        paid = rollout([0] * 16, np.random.default_rng(seed))
        # A penalty of 1 a token, and a critic that is off by 3: each by itself would hold the gate open.
        paid = paid._replace(penalty=np.ones_like(paid.penalty), values=paid.values - 3.0)
        weight = paid.acts / paid.acts.sum(axis=1, keepdims=True) / 16
        assert [bool(gate(paid, weight, excess)) for excess in (-0.5, -0.01, 0.01, 0.5)] == [False, False, True, True]


@pytest.mark.parametrize('handler', HANDLERS, ids=lambda handler: type(handler).__name__)
def test_what_a_group_pays_moves_by_its_own_new_costs_alone(handler):
    rng = np.random.default_rng(0)
    limits, state, alone = np.array([0.0, 0.3]), handler.init(2), [handler.init(1), handler.init(1)]
    for step in range(40):
        present = rng.random(2) < (0.9, 0.0 if step < 5 else 0.2)
        costs = rng.normal(size=2) + 1.0
        state = updated(handler, state, costs, limits, present)
        for k in np.flatnonzero(present):
            one = slice(k, k + 1)
            alone[k] = handler.update(alone[k], costs[one], limits[one])
        if not isinstance(handler, c.CRPO):  # which chooses one of the groups
            assert state['lambda'] == pytest.approx([one['lambda'][0] for one in alone], abs=1e-12)
        if step == 4:
            assert state['lambda'][1] == handler.init(2)['lambda'][1]


@pytest.mark.parametrize('handler', [c.P3O(), c.TrustRegion()], ids=lambda handler: type(handler).__name__)
def test_the_state_tells_how_far_the_limit_is_passed(handler):
    once = np.array([True])
    state = updated(handler, handler.init(1), np.array([1.5]), np.array([1.0]), once)
    assert state == {'lambda': [0.0], 'excess': [0.5]}
    assert updated(handler, state, np.array([9.0]), np.array([1.0]), ~once) == state  # where nobody had costs


def test_handlers_with_an_update_of_their_own_are_known_by_what_they_ask_for():
    own = {name for name in c.Handlers.names('arrays') if getattr(c.Handlers, name).own_update}
    assert own >= {'focops', 'p3o', 'cup', 'cpo', 'pcpo'}
    assert own.isdisjoint({'none', 'fixed', 'linear', 'log', 'pid', 'ipo', 'crpo'})


def test_crpo_lowers_the_costs_of_a_group_that_has_samples():
    handler, limits = c.CRPO(), np.zeros(2)
    state = updated(handler, handler.init(2), np.array([0.2, 9.0]), limits, np.array([True, True]))
    assert handler.weigh(state, (0.5, 0.5))[:1] == (0.0,)
    state = updated(handler, state, np.array([-1.0, 9.0]), limits, np.array([True, False]))
    weights = handler.weigh(state, (1.0, 0.0))
    assert (weights.reward, *weights.cost) == (1.0, 0.0, 0.0)


def rollout(groups, rng=None):
    rng = rng or np.random.default_rng(0)
    size, length = len(groups), 4
    return EstimatorInputs(
        rewards=rng.normal(size=(size, 2)).astype(np.float32),
        penalty=rng.normal(size=(size, length)).astype(np.float32) * 0.1,
        values=rng.normal(size=(size, length, 2)).astype(np.float32),
        acts=np.arange(length)[None] < rng.integers(1, length + 1, size)[:, None],
        ok=np.ones(size, bool),
        role=np.asarray(groups),
        n=2,
    )


def test_groups_of_prompts_have_limits_of_their_own():
    groups, costs = np.array([0, 0, 1, 1, 1, 2]), np.array([0.8, 0.2, -0.4, 0.1, 0.6, 0.3])
    means = np.array([costs[groups == g].mean() for g in range(3)])
    np.testing.assert_allclose(means, [0.5, 0.1, 0.3])
    handler = c.LinearLagrangian(lam_lr=0.5, optimizer='sgd')
    state = handler.update({**handler.init(3), 'lambda': [1, 0.5, 0.25]}, means, np.array([0.2, 0.3, 0.5]))
    np.testing.assert_allclose(state['lambda'], [1.15, 0.4, 0.15])
    weights = handler.weigh(state, np.bincount(groups) / 6)
    assert weights.divisor == pytest.approx(1.608333, abs=1e-6)
    reward, cost = np.array([0.5, -0.2, 1, 0.3, -0.6, 0.4]), np.array([0.3, -0.1, -0.5, 0, 0.5, 0.2])
    golden = [0.096373, -0.05285, 0.746114, 0.186528, -0.497409, 0.230052]
    np.testing.assert_allclose((reward - weights.cost[groups] * cost) / weights.divisor, golden, atol=1e-6)
    paid = rollout(groups)
    estimate = ConstrainedEstimator('gae', Discounts())
    advantages = jax.jit(lambda: estimate(paid, weights)[0])()
    both = np.asarray(jax.jit(lambda: estimate.by_channel(paid)[0])())
    expected = (both[..., 0] - weights.cost[groups][:, None] * both[..., 1]) / weights.divisor
    np.testing.assert_allclose(advantages, expected, rtol=1e-5)


@pytest.mark.parametrize('estimator', ['gae', 'dr_grpo'])
def test_without_a_multiplier_advantages_are_those_of_the_reward_bit_for_bit(estimator):
    paid, estimate = rollout([0] * 6), ConstrainedEstimator(estimator, Discounts())
    estimated = jax.jit(lambda weights: estimate(paid, weights)[0])
    reward = np.asarray(jax.jit(lambda: estimate.by_channel(paid)[0][..., 0])())
    for handler in HANDLERS:
        weights = handler.weigh({**handler.init(1), 'lambda': [0.0]})
        np.testing.assert_array_equal(np.asarray(estimated(weights)), reward, type(handler).__name__)


@pytest.mark.parametrize('handler', HANDLERS, ids=lambda handler: type(handler).__name__)
def test_a_state_is_finite_and_goes_through_json(handler):
    state = handler.init(2)
    for costs in ([1e3, -1e3], [0.0, 0.0], [0.5, 0.5], [-1e3, 1e3], [0.5, 1e3]):
        state = handler.update(state, np.array(costs), np.array([0.5, 0.0]))
        assert json.loads(json.dumps(state)) == state
        weights = handler.weigh(state, (0.5, 0.5))
        assert np.isfinite([*weights.cost, weights.reward, weights.divisor]).all()
        assert min(state['lambda']) >= 0


def test_a_handler_does_not_change_the_state_it_is_given():
    for handler in HANDLERS:
        state = handler.init(1)
        before = json.dumps(state)
        handler.update(state, np.array([3.0]), np.array([1.0]))
        assert json.dumps(state) == before


@pytest.mark.parametrize('estimator', ['group_norm', 'reinforce', 'rloo'])
def test_an_estimator_that_loses_the_scales_is_refused(estimator):
    with pytest.raises(ValueError, match=rf"ppo\.estimator='{estimator}'"):
        ConstrainedEstimator(estimator, Discounts())


def bandit(handler, limit, steps=4000, rate=0.5):
    """Exact gradients of a softmax policy over three answers (selfplay_safety.md 5.4 a); means of the last half."""
    reward, cost = np.array([1, 0.6, 0.2]), np.array([1, 0.4, 0.0])
    logits, state, history = np.zeros(3), handler.init(1), []
    for _ in range(steps):
        policy = np.exp(logits - logits.max())
        policy /= policy.sum()
        spent = float(policy @ cost)
        state = handler.update(state, np.array([spent]), np.array([limit]))
        weights = handler.weigh(state)
        value = (weights.reward * reward - weights.cost[0] * cost) / weights.divisor
        logits = logits + rate * policy * (value - policy @ value)
        history.append((float(policy @ reward), spent))
    return np.mean(history[steps // 2 :], axis=0)


@pytest.mark.parametrize(
    'handler',
    [
        c.LinearLagrangian(lam_lr=0.05, optimizer='sgd'),
        c.LogLagrangian(lam_init=0.5),
        c.PIDLagrangian(kp=1.0, ki=0.05, kd=5.0, smoothing=0.9),
    ],
    ids=lambda handler: type(handler).__name__,
)
@pytest.mark.parametrize(('limit', 'optimum'), [(0.7, 0.8), (0.4, 0.6), (0.2, 0.4)])
def test_a_lagrangian_solves_the_constrained_bandit(handler, limit, optimum):
    reward, cost = bandit(handler, limit)
    assert abs(cost - limit) < 0.02
    assert abs(reward - optimum) < 0.02


def test_without_a_constraint_the_bandit_passes_the_limit():
    reward, cost = bandit(c.Unconstrained(), 0.2)
    assert reward > 0.95
    assert cost > 0.9
