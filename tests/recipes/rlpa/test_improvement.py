from __future__ import annotations

import pytest

from pal_jax.recipes.rlpa.improvement import normalized_improvement

# Turn-wise alignment levels published with RLPA (arXiv 2505.15456), N-IR and N-R2 as recomputed from them.
CURVES = {
    'vanilla gpt-4o-mini': ([8.11, 40.54, 82.43, 90.54, 89.19, 91.89, 91.89, 86.49, 85.14, 91.89], 0.079, 0.500),
    'vanilla gpt-4o': ([13.51, 40.54, 85.14, 91.89, 89.19, 89.19, 89.19, 82.43, 87.84, 77.03], 0.068, 0.380),
    'vanilla sonnet': ([0, 27.03, 41.89, 67.57, 86.49, 89.19, 95.95, 95.95, 94.59, 93.24], 0.105, 0.792),
    'vanilla base': ([0, 18.92, 10.81, 9.46, 9.46, 1.35, 9.46, 9.46, 6.76, 4.05], -0.020, 0.047),
    'vanilla sft': ([2.7, 24.32, 41.89, 40.54, 59.46, 56.76, 54.05, 54.05, 54.05, 55.41], 0.083, 0.628),
    'vanilla dpo': ([6.76, 14.86, 54.05, 55.41, 70.27, 70.27, 60.81, 58.11, 55.41, 52.7], 0.070, 0.389),
    'vanilla rlpa': ([62.16, 68.92, 70.27, 74.32, 72.97, 74.32, 75.68, 78.38, 77.03, 79.73], 0.090, 0.855),
    'profile reward only': ([41.89, 33.78, 50, 51.35, 51.35, 44.59, 47.3, 47.3, 50, 37.84], 0.015, 0.019),
    'response reward only': ([58.92, 63.92, 60.27, 67.03, 60.27, 72.97, 64.32, 73.78, 71.08, 69.32], 0.088, 0.524),
    'extended gpt-4o': ([1.37, 21.92, 56.16, 69.86, 75.34, 75.34, 63.01, 61.64, 63.01, 58.9], 0.067, 0.384),
    'extended sonnet': ([0, 2.74, 12.33, 27.4, 47.95, 52.05, 49.32, 53.42, 54.79, 56.16], 0.124, 0.850),
    'extended sft': ([2.74, 2.74, 19.18, 39.73, 34.25, 35.62, 31.51, 21.92, 26.03, 30.14], 0.066, 0.320),
    'extended dpo': ([1.37, 4.11, 26.03, 34.25, 53.42, 38.36, 35.62, 31.51, 24.66, 23.29], 0.042, 0.178),
    'extended rlpa': ([49.32, 45.21, 46.58, 49.32, 52.05, 52.05, 53.42, 58.9, 53.42, 67.12], 0.081, 0.706),
}


@pytest.mark.parametrize('name', CURVES)
def test_published_curves(name):
    levels, n_ir, n_r2 = CURVES[name]
    result = normalized_improvement(levels)
    assert (result.n_ir, result.n_r2) == (pytest.approx(n_ir, abs=6e-4), pytest.approx(n_r2, abs=6e-4))


def test_rlpa_to_five_decimals():
    assert normalized_improvement(CURVES['vanilla rlpa'][0]) == pytest.approx((0.08999, 0.14354, 0.85461), abs=1e-5)


def test_flat_curve_is_zero():
    assert normalized_improvement([70.0] * 10) == (0.0, 0.0, 0.0)


def test_straight_line_fits_perfectly_whatever_its_offset_and_scale():
    assert normalized_improvement([10, 12, 14, 16, 18]) == pytest.approx((0.25, -0.25, 1.0))


@pytest.mark.parametrize('levels', [[50.0], [[1.0, 2.0]]])
def test_a_curve_has_two_turns_or_more(levels):
    with pytest.raises(ValueError, match='two or more turns, got shape'):
        normalized_improvement(levels)
