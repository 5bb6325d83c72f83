"""Agreement with groups, against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pal_jax.recipes.personal import groups


def test_the_direction_people_differ_in_is_compared_whichever_way_it_points():
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, 400)
    share = np.where(kind == 1, 0.8, 0.2) + 0.05 * rng.normal(size=400)
    mixtures = np.stack([share, 1 - share], axis=1)
    assert groups.agreement(mixtures, kind) == pytest.approx(1.0)
    assert groups.agreement(mixtures[:, ::-1], 1 - kind) == pytest.approx(1.0)
    unknown = np.where(np.arange(400) < 50, -1, kind)
    unknown[50:53] = 2  # a third group, of three
    assert groups.agreement(mixtures, unknown) == pytest.approx(1.0)
    assert groups.agreement(mixtures, rng.permutation(kind)) < 0.6
    assert np.isnan(groups.agreement(mixtures, np.zeros(400, int)))
