"""Contributions of members to a team, against golden numbers and their axioms."""

from __future__ import annotations

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.recipes.cameras import contributions as c

FOUR = [0.5, 0.4, 0.1, 0.3, 0.2, 0.1, 0.7, 0.6, 0.5, 0.4, 0.8]  # pairs 01 02 03 12 13 23, triples 012 013 023 123, all


@pytest.mark.parametrize(
    ('values', 'expected'),
    [
        ([0.6, 0.2, 0.3, 0.7], (0.8, 0.95, 0.35)),
        (FOUR, (1.133333, 1.0, 0.733333, 0.333333)),
        ([-4.0, -8.0, -7.0, -3.0], (-2.0, -0.5, -6.5)),
    ],
)
def test_contributions_of_the_golden_teams(values, expected):
    phi = c.contributions(jnp.array(values), len(expected))
    np.testing.assert_allclose(phi, expected, atol=2e-6)
    np.testing.assert_allclose(np.mean(phi), values[-1], atol=2e-6)


@pytest.mark.parametrize('members', range(2, 7))
def test_contributions_are_shapley_values_by_orders_of_arrival(members):
    teams = c.teams(members)
    values = np.random.default_rng(members).normal(size=len(teams)).astype(np.float32)
    worth = {frozenset(np.flatnonzero(row)): value for row, value in zip(teams, values, strict=True)}
    shares = np.zeros(members)
    for order in itertools.permutations(range(members)):
        for place, member in enumerate(order):
            with_it, without = frozenset(order[: place + 1]), frozenset(order[:place])
            shares[member] += worth.get(with_it, 0.0) - worth.get(without, 0.0)
    expected = members * shares / math.factorial(members)
    np.testing.assert_allclose(c.contributions(jnp.array(values), members), expected, rtol=1e-4, atol=1e-5)


def test_two_cameras_share_what_they_are_worth():
    np.testing.assert_allclose(c.contributions(jnp.array([0.7]), 2), [0.7, 0.7])


def test_equal_members_get_equal_shares_and_a_dummy_its_pairs():
    sizes = c.teams(4).sum(axis=1)
    phi = c.contributions(jnp.asarray(sizes, jnp.float32), 4)
    np.testing.assert_allclose(phi, phi[0], rtol=1e-6)
    # Member 3 adds nothing to teams of two and more, so pairs with it are the only terms of its share.
    worth = {(0, 1): 0.5, (0, 2): 0.4, (1, 2): 0.3, (0, 1, 2): 0.7, (0, 3): 0.1, (1, 3): 0.2, (2, 3): 0.3}
    values = []
    for row in c.teams(4):
        team = tuple(np.flatnonzero(row).tolist())
        rest = tuple(member for member in team if member != 3)
        values.append(worth[rest] if len(rest) > 1 else worth[team])
    pair_weight = 4 * math.factorial(1) * math.factorial(2) / math.factorial(4)
    np.testing.assert_allclose(c.contributions(jnp.array(values), 4)[3], pair_weight * 0.6, rtol=1e-5)


def test_values_of_errors():
    errors = jnp.array([0.0, 5.0, 10.0, 25.0, 50.0, 100.0])
    loss = [-1.0, -0.6, 0.0, 0.724138, 0.923077, 0.980198]
    np.testing.assert_allclose(c.geman(errors), loss, atol=1e-6)
    np.testing.assert_allclose(c.value(errors, 'geman'), np.negative(loss), atol=1e-6)
    np.testing.assert_allclose(c.value(errors, 'unit'), (1 - np.array(loss)) / 2, atol=1e-6)
    np.testing.assert_allclose(c.value(errors, 'error'), -errors)
    with pytest.raises(ValueError, match="'square'"):
        c.value(errors, 'square')
    with pytest.raises(ValueError, match='2 to 6'):
        c.teams(7)
