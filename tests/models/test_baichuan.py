"""Baichuan 2 against golden logits and a forward pass in numpy, from checkpoints in its own layout."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from pal_jax.models import decoder
from pal_jax.models.config import ModelConfig
from pal_jax.models.files import families, hf
from pal_jax.objectives.logprobs import max_z_loss, token_loss

FORWARD = jax.jit(decoder.forward, static_argnums=1)


def config(alibi: bool, vocab: int = 11, width: int = 8, heads: int = 2, layers: int = 1, mlp: int = 16) -> ModelConfig:
    length = {'model_max_length': 4096} if alibi else {'max_position_embeddings': 4096}
    sizes = {'hidden_size': width, 'num_attention_heads': heads, 'num_hidden_layers': layers, 'intermediate_size': mlp}
    return families.config_from_hf(
        {'architectures': ['BaichuanForCausalLM'], 'vocab_size': vocab, 'rms_norm_eps': 1e-6, **length, **sizes}
    )


def waves(k: int, rows: int, columns: int) -> np.ndarray:
    return 0.3 * np.sin(0.7 * np.arange(rows)[:, None] + 1.3 * np.arange(columns)[None] + k)


def golden_tensors() -> dict[str, np.ndarray]:
    ramp = np.arange(8) * 0.1 / 8
    return {
        'model.embed_tokens.weight': waves(0, 11, 8),
        'model.layers.0.self_attn.W_pack.weight': waves(1, 24, 8),
        'model.layers.0.self_attn.o_proj.weight': waves(2, 8, 8),
        'model.layers.0.mlp.gate_proj.weight': waves(3, 16, 8),
        'model.layers.0.mlp.up_proj.weight': waves(4, 16, 8),
        'model.layers.0.mlp.down_proj.weight': waves(5, 8, 16),
        'model.layers.0.input_layernorm.weight': 1 + ramp,
        'model.layers.0.post_attention_layernorm.weight': 1 - ramp,
        'model.norm.weight': np.ones(8),
        'lm_head.weight': waves(6, 11, 8),
    }


def random_tensors(cfg: ModelConfig) -> dict[str, np.ndarray]:
    D, F, rng = cfg.width, cfg.mlp, np.random.default_rng(0)
    shapes = {'model.embed_tokens.weight': (cfg.vocab, D), 'lm_head.weight': (cfg.vocab, D), 'model.norm.weight': (D,)}
    for i in range(cfg.layers):
        layer = {'self_attn.W_pack': (3 * D, D), 'self_attn.o_proj': (D, D), 'mlp.gate_proj': (F, D)}
        layer |= {'mlp.up_proj': (F, D), 'mlp.down_proj': (D, F)}
        layer |= {'input_layernorm': (D,), 'post_attention_layernorm': (D,)}
        shapes |= {f'model.layers.{i}.{name}.weight': shape for name, shape in layer.items()}
    return {name: rng.normal(size=shape) * 0.1 + (len(shape) == 1) for name, shape in shapes.items()}


def load(tensors: dict[str, np.ndarray], cfg: ModelConfig, folder) -> dict:
    save_file({name: x.astype(np.float32) for name, x in tensors.items()}, folder / 'model.safetensors')
    return hf.load_params(folder, cfg)


def numpy_logits(w: dict[str, np.ndarray], cfg: ModelConfig, tokens: list[int]) -> np.ndarray:
    """Logits [T, V] of one text, in float64, as section 6 of the specification has it."""
    T, H, K = len(tokens), cfg.heads, cfg.width // cfg.heads
    ahead = np.arange(T)[:, None] - np.arange(T)[None]

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weight

    def rotated(x: np.ndarray) -> np.ndarray:
        angles = np.arange(T)[:, None] * 10_000.0 ** (-np.arange(K // 2) * 2 / K)
        turned = (x[:, : K // 2] + 1j * x[:, K // 2 :]) * np.exp(1j * angles)
        return np.concatenate([turned.real, turned.imag], -1)

    x = w['model.embed_tokens.weight'][tokens]
    for i in range(cfg.layers):
        layer = {name.split('.', 3)[3]: value for name, value in w.items() if name.startswith(f'model.layers.{i}.')}
        h = norm(x, layer['input_layernorm.weight'])
        q, k, v = (h @ block.T for block in np.split(layer['self_attn.W_pack.weight'], 3))
        heads = []
        for n in range(H):
            mine = slice(n * K, (n + 1) * K)
            if cfg.alibi:
                scores = q[:, mine] @ k[:, mine].T / np.sqrt(K) - 2.0 ** (-8 * (n + 1) / H) * ahead
            else:
                scores = rotated(q[:, mine]) @ rotated(k[:, mine]).T / np.sqrt(K)
            p = np.exp(scores) * (ahead >= 0)
            heads.append(p / p.sum(-1, keepdims=True) @ v[:, mine])
        x = x + np.concatenate(heads, -1) @ layer['self_attn.o_proj.weight'].T
        h = norm(x, layer['post_attention_layernorm.weight'])
        gate = h @ layer['mlp.gate_proj.weight'].T
        up = h @ layer['mlp.up_proj.weight'].T
        x = x + (gate / (1 + np.exp(-gate)) * up) @ layer['mlp.down_proj.weight'].T
    head = w['lm_head.weight']
    return norm(x, w['model.norm.weight']) @ (head / np.linalg.norm(head, axis=1, keepdims=True)).T


def hidden_states(params: dict, cfg: ModelConfig, tokens: list[int]) -> jax.Array:
    rows = jnp.array([tokens])
    return FORWARD(params, cfg, rows, jnp.arange(len(tokens))[None], jnp.ones_like(rows), jnp.ones_like(rows))


# Logits of the last position, cross-entropy, max-z term (section 6.5).
ROPE = '1.042321 .587507 -.14839 -.751488 -1.057662 -.875513 -.21249 .486616 .954979 1.038026 .570985'
ALIBI = '1.491403 .943328 -.065374 -.9507 -1.462528 -1.309018 -.438775 .553695 1.273737 1.487903 .921619'
GOLDEN = {False: (ROPE, 2.854945, 4.760836e-4), True: (ALIBI, 3.110133, 5.634394e-4)}


@pytest.mark.parametrize('alibi', [False, True], ids=['7B', '13B'])
def test_golden_logits_and_losses(alibi, tmp_path):
    """Both losses are means over the three positions with a next token."""
    cfg, tokens = config(alibi), [1, 5, 3, 7]
    params = load(golden_tensors(), cfg, tmp_path)
    hidden = hidden_states(params, cfg, tokens)
    last, cross_entropy, max_z = GOLDEN[alibi]
    np.testing.assert_allclose(decoder.unembed(params, cfg, hidden)[0, -1], [float(x) for x in last.split()], atol=2e-6)
    unembed, targets = decoder.unembed_weight(params, cfg), jnp.array([tokens[1:]])
    loss = token_loss(hidden[:, :-1], unembed, targets, jnp.full((1, 3), 1 / 3), lambda lp, w: -lp * w)[0]
    np.testing.assert_allclose(loss, cross_entropy, atol=2e-6)
    np.testing.assert_allclose(
        max_z_loss(hidden[:, :-1], unembed, jnp.full((1, 3), 2e-4 / 3), chunk=2), max_z, rtol=1e-5
    )


@pytest.mark.parametrize('alibi', [False, True], ids=['7B', '13B'])
def test_logits_are_those_of_numpy(alibi, tmp_path):
    cfg = config(alibi, vocab=257, width=64, heads=4, layers=2, mlp=96)
    tensors, tokens = random_tensors(cfg), np.random.default_rng(1).integers(0, 257, 20).tolist()
    params = load(tensors, cfg, tmp_path)
    logits = decoder.unembed(params, cfg, hidden_states(params, cfg, tokens))[0]
    np.testing.assert_allclose(logits, numpy_logits(tensors, cfg, tokens), atol=1e-4)


def test_norm_head():
    cfg = dataclasses.replace(config(False), vocab=3, width=3)
    rows = jnp.array([[3.0, 0.0, 4.0], [1.0, 1.0, 1.0], [0.0, -2.0, 0.0]])
    state = jnp.array([[[1.0, 2.0, -1.0]]])

    def loss(rows: jax.Array) -> jax.Array:
        logits = decoder.unembed({'embed': rows, 'unembed': rows}, cfg, state)[0, 0]
        unembed = decoder.unembed_weight({'embed': rows, 'unembed': rows}, cfg)
        return -jax.nn.log_softmax(logits)[0] + max_z_loss(state, unembed, jnp.full((1, 1), 2e-4))

    logits = decoder.unembed({'embed': rows, 'unembed': rows * jnp.array([[7.0], [0.1], [2.0]])}, cfg, state)[0, 0]
    np.testing.assert_allclose(logits, [-0.2, 1.154701, -2.0], atol=1e-6)
    value, grads = jax.jit(jax.value_and_grad(loss))(rows)
    np.testing.assert_allclose(value, 1.617584 + 2.666667e-4, atol=1e-6)
    np.testing.assert_allclose((grads * rows).sum(-1), 0.0, atol=1e-6)


def test_max_z_pushes_the_largest_logit_of_counted_states_only():
    hidden, unembed = jax.random.normal(jax.random.key(0), (2, 5, 4)), jax.random.normal(jax.random.key(1), (7, 4))
    weight = jnp.where(jnp.arange(5)[None] < jnp.array([[5], [2]]), jax.random.uniform(jax.random.key(2), (2, 5)), 0.0)

    def dense(hidden: jax.Array, unembed: jax.Array) -> jax.Array:
        largest = (hidden @ unembed.T).max(-1)
        return (largest**2 * weight).sum()

    got = jax.jit(jax.value_and_grad(lambda *x: max_z_loss(*x, weight, chunk=4), (0, 1)))(hidden, unembed)
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, atol=1e-5),
        got,
        jax.value_and_grad(dense, (0, 1))(hidden, unembed),
    )
