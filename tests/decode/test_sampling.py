"""Sampling against independent numpy, row by row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from pal_jax.decode import sampling

ROWS = 4000


def draw(logits, temperature=1.0, top_k=0, top_p=1.0, rows=ROWS):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jnp.zeros(2, jnp.uint32), jnp.arange(rows))
    full = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (rows, len(logits)))
    settings = (jnp.full(rows, temperature, jnp.float32), jnp.full(rows, top_k), jnp.full(rows, top_p, jnp.float32))
    return jax.jit(sampling.sample)(full, keys, *settings)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def test_frequencies_are_the_softmax_across_blocks():
    rng = np.random.default_rng(0)
    logits = np.where(rng.random(700) < 0.02, rng.normal(size=700) + 4, -8.0)  # a vocabulary of three blocks
    tokens, *_ = draw(logits)
    counts = np.bincount(np.asarray(tokens), minlength=700) / ROWS
    expected = softmax(logits)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected.max() / ROWS)


def test_logprobs_are_those_of_the_tempered_distribution():
    logits = np.array([0.0, 1.0, 2.0, -1.0])
    tokens, logprobs, _ = draw(logits, temperature=0.5, rows=50)
    np.testing.assert_allclose(logprobs, np.log(softmax(logits / 0.5))[np.asarray(tokens)], atol=1e-6)


def test_temperature_zero_is_greedy_and_reports_the_plain_logprob():
    logits = np.array([0.0, 3.0, 2.0])
    tokens, logprobs, _ = draw(logits, temperature=0.0, rows=5)
    assert np.asarray(tokens).tolist() == [1] * 5
    np.testing.assert_allclose(logprobs, np.log(softmax(logits))[1], atol=1e-6)


def test_argmax_is_the_first_of_the_largest_in_any_block():
    logits = np.random.default_rng(0).integers(-9, 9, (64, 700)).astype(np.float32)  # ties, and a last block cut short
    logits[0] = -np.inf
    np.testing.assert_array_equal(sampling.argmax(jnp.asarray(logits)), logits.argmax(-1))


def test_top_k_and_top_p_keep_what_they_say():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.07, 0.03]))
    assert set(np.asarray(draw(logits, top_k=2)[0]).tolist()) == {0, 1}
    assert set(np.asarray(draw(logits, top_p=0.65)[0]).tolist()) == {0, 1}
    assert set(np.asarray(draw(logits, top_p=0.75)[0]).tolist()) == {0, 1, 2}
    assert set(np.asarray(draw(logits, top_p=1e-6)[0]).tolist()) == {0}
    assert set(np.asarray(draw(logits, top_k=2, top_p=0.5)[0]).tolist()) == {0}  # p counts within the k


def test_tokens_without_mass_are_never_drawn_at_the_edges_of_the_uniform():
    logits = jnp.asarray([[-np.inf, 0.0, -np.inf] + [-np.inf] * 600])
    for uniform in (0.0, 0.5, np.nextafter(np.float32(1), np.float32(0))):
        assert int(sampling.inverse_cdf(logits, jnp.asarray([uniform], jnp.float32))[0]) == 1


def test_settings_at_the_edges_of_their_ranges_draw_tokens_with_a_logprob():
    logits = np.array([-3.0, 90.0, 80.0])
    smallest = np.finfo(np.float32).tiny
    for settings in ({'temperature': smallest}, {'temperature': 1e-5}, {'top_k': 1 << 20}, {'top_p': smallest}):
        tokens, logprobs, policy_logprobs = draw(logits, **settings, rows=4)
        np.testing.assert_array_equal(tokens, 1)
        assert np.isfinite(logprobs).all() and np.isfinite(policy_logprobs).all(), settings
