"""Shapes of models, with random weights, for our programs and for transformers'."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pal_jax.models.config import ModelConfig, tiny

if TYPE_CHECKING:
    from transformers import LlamaConfig

SHAPES = {
    'smollm2-135m': ModelConfig(
        family='llama', vocab=49152, width=576, layers=30, heads=9, kv_heads=3, head_dim=64, mlp=1536, max_len=8192,
        rope_theta=100_000.0,
    ),
    'tiny': tiny(),
}  # fmt: skip


def as_llama(cfg: ModelConfig) -> LlamaConfig:
    """The same shape for transformers."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=cfg.vocab,
        hidden_size=cfg.width,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        num_key_value_heads=cfg.kv_heads,
        head_dim=cfg.head_dim,
        intermediate_size=cfg.mlp,
        max_position_embeddings=cfg.max_len,
        rope_parameters={'rope_type': 'default', 'rope_theta': cfg.rope_theta},
        tie_word_embeddings=cfg.tie_embed,
    )
