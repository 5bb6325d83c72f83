"""Losses of people, pulls of bases, weights of hard people: golden numbers computed apart from this code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.recipes.personal import losses as people

V = jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]])  # bases by row


def close(values, expected, atol=1e-5):
    np.testing.assert_allclose(values, expected, atol=atol)


def test_means_by_pairs_and_by_people():
    losses, users = jnp.array([0.323592, 0.742607, 0.249359]), jnp.array([0, 0, 1])
    for average, value in (('people_sum', 0.782458), ('people', 0.391229), ('pairs', 0.438519)):
        close(people.averaged(losses, users, 3, average), value)  # the third person has no pair
    with pytest.raises(ValueError, match='unknown average'):
        people.averaged(losses, users, 3, 'all')  # type: ignore[arg-type]


def test_what_weighs_nothing_is_nobody():
    losses, users, weight = jnp.array([1.0, 5.0, 7.0]), jnp.array([0, 0, 1]), jnp.array([1.0, 0.0, 0.0])
    means, there = people.person_means(losses, users, 2, weight)
    close(means, [1, 0])
    np.testing.assert_array_equal(there, [True, False])


def test_pulls_of_bases():
    close(people.bases_pull(V, jnp.array([1.0, 1.0, 0.0]), 'cosine'), 0.5)
    close(people.bases_pull(V, jnp.array([1.0, 1.0, 0.0]), 'squared'), 4.0)
    with pytest.raises(ValueError, match='unknown form'):
        people.bases_pull(V, jnp.zeros(3), 'angle')  # type: ignore[arg-type]


def test_the_ramp_of_a_pull():
    steps = jnp.array([3999, 4000, 10000, 15999, 16000])
    close(1e4 * people.ramp(steps, 20000), [0, 0, 5000, 9999.1667, 10000], atol=2e-3)
    close(people.ramp(jnp.array(0), 0), 1)


def test_hard_people_weigh_more():
    losses, everybody = jnp.array([0.4, 0.6, 0.9, 1.3]), jnp.ones(4, bool)
    omega = people.hard_people(losses, everybody, 0.5, 0.5)
    close(omega, [0.331812, 0.425557, 0.574443, 0.750260])
    close(omega @ losses, 1.880396)
    close(omega @ losses / omega.sum(), 0.903137)
    close(people.hard_people(losses, everybody, 0.5, 0.0) @ losses, 2.2)
    two = jnp.array([0.5, 0.9])
    close(people.hard_people(two, everybody[:2], 0.5, 0.5), [0.401312, 0.598688])
    close(people.hard_people(two, everybody[:2], 0.5, 0.5) @ two, 0.739475)


def test_weights_of_hard_people_are_constants_unless_asked():
    losses, everybody = jnp.array([0.4, 0.6, 0.9, 1.3]), jnp.ones(4, bool)

    def objective(losses, through):
        return people.hard_people(losses, everybody, 0.5, 0.5, through=through) @ losses

    close(jax.grad(objective)(losses, True), [0.509183, 0.019954, 0.315514, 1.237422])
    close(jax.grad(objective)(losses, False), people.hard_people(losses, everybody, 0.5, 0.5))


def test_who_is_not_there_is_in_no_quantile():
    omega = people.hard_people(jnp.array([0.5, 100.0, 0.9]), jnp.array([True, False, True]), 0.5, 0.5)
    close(omega, [0.401312, 0, 0.598688])


@pytest.mark.parametrize(
    ('form', 'expected'),
    [
        ('none', [0.263282, 0.913015, 0.554355]),
        ('probit', [0.268628, 0.853987, 0.565382]),
        ('gal', [1.481532, 0.803081, 0.762137]),
        ('inverse', [0.239348, 0.304338, 0.369570]),
    ],
)
def test_uncertain_margins_count_less(form, expected):
    m, v = jnp.array([1.2, -0.4, 0.3]), jnp.array([0.1, 2.0, 0.5])
    close(people.attenuated(m, v, form), expected)
    if form == 'probit':
        close(jnp.exp(-people.attenuated(m, v, form)), [0.764428, 0.425714, 0.568143])
    with pytest.raises(ValueError, match='unknown attenuation'):
        people.attenuated(m, v, 'half')  # type: ignore[arg-type]
