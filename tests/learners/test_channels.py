"""Channels of rewards, critics of several channels, and roles."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.data.packing import pack_rollouts
from pal_jax.learners.ppo import PPO, make_actor_critic
from pal_jax.models import config, params
from pal_jax.objectives import advantages as adv
from pal_jax.run import devices
from pal_jax.run.optim import Optimizer
from pal_jax.types import Completion, Sample

CFG = dataclasses.replace(config.tiny(vocab=64), unroll=True)
ONE = devices.make_mesh(devices=jax.devices()[:1])
SGD = Optimizer('sgd', lr=0.1, total_steps=10, warmup_ratio=0.0, max_norm=float('inf'))
A = 8


def learner_of(critics=1, heads=1, **changes):
    """A learner with so many critics of so many heads, whose seeds differ."""
    ppo = PPO(**{'estimator': 'gae', 'micro_rows': 8, 'kl_coef': 0.0, **changes})
    learner = make_actor_critic(CFG, ppo, SGD, ONE, n=1, length=A)
    towers = [dataclasses.replace(learner.critics[0], heads=heads, seed=10 * k) for k in range(critics)]
    return dataclasses.replace(learner, critics=tuple(towers))


def weights():
    return params.init(params.decoder_specs(CFG), jax.random.key(1))


def rollouts(channels, roles=(0,), rows=8, keep=None):
    """Samples of one prompt each, with these channels of the same rewards, whoever is kept."""
    rng, samples = np.random.default_rng(0), []
    for r in range(rows):
        prompt = tuple(rng.integers(0, 64, 5).tolist())
        ids = tuple(rng.integers(0, 64, rng.integers(2, A + 1)).tolist())
        rewards, role = rng.normal(size=3), roles[r % len(roles)]
        completion = Completion('', ids, (-1.0,) * len(ids), 'stop')
        samples.append(Sample(prompt, completion, r, role, tuple(float(rewards[c]) for c in channels)))
    samples = [sample for sample in samples if keep is None or sample.role == keep]
    return pack_rollouts(samples, n=1, actions=A, mesh=ONE)


@dataclasses.dataclass(frozen=True)
class Weighed:
    """Advantages of the reward less `lam` times those of the cost, or of one channel alone."""

    lam: float = 0.0
    channel: int | None = None
    white: bool = True

    def __call__(self, rollout):
        signs = (-1.0,) * rollout.rewards.shape[-1]
        rewards = adv.token_rewards(rollout.rewards, rollout.penalty, rollout.acts, signs=signs)
        advantages, returns = adv.gae(rewards, rollout.values, rollout.acts, gamma=1.0, lam=0.95)
        if self.channel is not None:
            chosen = advantages[..., self.channel]
        else:
            chosen = advantages[..., 0] - self.lam * advantages[..., 1] if self.lam else advantages[..., 0]
        return adv.whiten(chosen, rollout) if self.white else chosen, returns


def updated(learner, batch, estimate=None):
    state = learner.init(weights())
    batch, _ = learner.score(state, batch)
    batch, _ = learner.advantages(state, batch, estimate)
    return learner.update(state, batch, jax.random.key(0))


def close(a, b, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def test_a_multiplier_of_zero_is_plain_ppo():
    plain, _ = updated(learner_of(), rollouts([0]))
    constrained, metrics = updated(learner_of(critics=2), rollouts([0, 1]), Weighed(lam=0.0))
    close(constrained.actor.model.params, plain.actor.model.params)
    close(constrained.critics[0].params, plain.critics[0].params)
    assert {'value_loss', 'value_loss_1', 'critic_grad_norm', 'critic_grad_norm_1'} <= set(metrics)


def test_a_large_multiplier_is_ppo_on_the_cost():
    constrained, _ = updated(learner_of(critics=2), rollouts([0, 1]), Weighed(lam=1e7))
    two = learner_of(critics=2)
    state = two.init(weights())
    batch, _ = two.score(state, rollouts([0, 1]))
    batch, _ = two.advantages(state, batch, Weighed(channel=1))
    cost, _ = two.update(state, batch.replace(advantages=-batch.advantages), jax.random.key(0))
    close(constrained.actor.model.params, cost.actor.model.params, atol=1e-5)


def test_two_critics_are_two_single_ones():
    both, _ = updated(learner_of(critics=2), rollouts([0, 1]), Weighed())
    for channel in range(2):
        alone = dataclasses.replace(learner_of(), critics=(learner_of(critics=2).critics[channel],))
        single, _ = updated(alone, rollouts([channel]), Weighed(channel=0))
        close(both.critics[channel].params, single.critics[0].params)


def test_heads_of_one_tower_are_channels():
    learner = learner_of(heads=2)
    state, batch = learner.init(weights()), rollouts([0, 1])
    batch, _ = learner.score(state, batch)
    assert batch.values.shape == (*batch.tokens.acts.shape, 2)
    batch, figures = learner.advantages(state, batch, Weighed(lam=1.0))
    assert {'explained_variance', 'explained_variance_1'} <= set(figures)
    after, _ = learner.update(state, batch, jax.random.key(0))
    before = learner.init(weights()).critics[0].params['head']
    moved = np.abs(np.asarray(after.critics[0].params['head']) - np.asarray(before))
    assert moved.max(axis=0).min() > 0


def test_channels_without_a_critic_are_refused():
    learner = learner_of()
    state = learner.init(weights())
    batch, _ = learner.score(state, rollouts([0, 1]))
    with pytest.raises(ValueError, match='2 channels, the critics 1 heads'):
        learner.advantages(state, batch)


def test_critics_start_from_scorers():
    learner = learner_of(critics=2)
    scorers = [(weights(), jnp.full((CFG.width, 1), value)) for value in (0.5, -0.5)]
    state = learner.init(weights(), scorers)
    for critic, (_, head) in zip(state.critics, scorers, strict=True):
        np.testing.assert_array_equal(critic.params['head'], head)


@pytest.mark.parametrize('white', [False, True])
def test_roles_side_by_side_learn_what_they_learn_alone_unless_they_are_whitened_together(white):
    learner, estimate = learner_of(loss_agg='constant'), Weighed(white=white)
    start, both = weights(), updated(learner, rollouts([0], roles=(0, 1)), estimate)[0]
    alone = [updated(learner, rollouts([0], roles=(0, 1), keep=role), estimate)[0] for role in (0, 1)]
    mean = jax.tree.map(lambda x, *each: sum(y - x for y in each) / 2, start, *(s.actor.model.params for s in alone))
    together = jax.tree.map(lambda x, y: y - x, start, both.actor.model.params)
    far = max(float(jnp.abs(x - y).max()) for x, y in zip(*map(jax.tree.leaves, (mean, together)), strict=True))
    assert (far < 1e-6) == (not white)
