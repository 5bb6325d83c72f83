"""VPL in the bench: what its margins must not depend on, whatever it has learnt."""

from __future__ import annotations

import numpy as np
import pytest

from pal_jax.recipes.personal.bench import reading, vpl
from tests.recipes.personal.people import of_people


def choices(rng, people=6, count=8, kinds=True):
    users = np.repeat(np.arange(people), count).astype(np.int32)
    pairs = rng.normal(size=(len(users), 2, 3)).astype(np.float32)
    sign = np.where(users % 2, 1, -1) if kinds else np.ones(len(users))
    better, rows = (pairs[..., 0] * sign[:, None]).argmax(axis=1), np.arange(len(users))
    return of_people(users, pairs[rows, better], pairs[rows, 1 - better], people)


@pytest.fixture(scope='module')
def fitted():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vpl, 'UPDATES', 20)
        yield vpl.fit(choices(np.random.default_rng(0)), 0, decay=0.01)


def test_sides_swapped_give_the_negative_margin(fitted):
    rng = np.random.default_rng(1)
    known, asked = choices(rng), choices(rng)
    margins = reading.margins(fitted, known, asked)
    assert np.abs(margins).max() > 0
    np.testing.assert_allclose(reading.margins(fitted, known, asked.swapped()), -margins, atol=1e-6)


def test_choices_that_are_not_known_and_their_order_are_nothing(fitted):
    rng = np.random.default_rng(2)
    known, asked = choices(rng), choices(rng)
    few = known.where(np.arange(48) % 8 < 3)
    other = np.where(few.counts[:, None], few.chosen, 9.0).astype(np.float32)
    margins = reading.margins(fitted, few, asked)
    np.testing.assert_array_equal(reading.margins(fitted, few.replace(chosen=other), asked), margins)
    order = rng.permutation(48)
    shuffled = few.replace(**{name: getattr(few, name)[order] for name in ('users', 'chosen', 'rejected', 'share')})
    np.testing.assert_allclose(reading.margins(fitted, shuffled, asked), margins, atol=1e-5)
    assert np.abs(reading.margins(fitted, known, asked) - margins).max() > 1e-6


def test_people_of_whom_nothing_is_known_are_alike(fitted):
    rng = np.random.default_rng(3)
    nothing, asked = choices(rng).where(np.zeros(48, bool)), choices(rng)
    moved = asked.replace(users=np.zeros(48, np.int32))
    np.testing.assert_array_equal(reading.margins(fitted, nothing, asked), reading.margins(fitted, nothing, moved))
