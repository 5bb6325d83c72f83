"""Shapes of models with random weights, for us and for transformers, and the flags that choose among them."""

from __future__ import annotations

import argparse
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


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Flags of every program that compares us with torch."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--shape', choices=SHAPES, default='smollm2-135m')
    parser.add_argument('--dtype', choices=('bfloat16', 'float32'), default='bfloat16', help='of our matrix products')
    parser.add_argument('--against', choices=('torch',), help='also run transformers on torch, in both precisions')
    return parser


def peers(against: str | None) -> tuple[str, ...]:
    """The precisions in which torch takes part."""
    return ('bfloat16', 'float32') if against == 'torch' else ()


def packages(against: str | None) -> tuple[str, ...]:
    """Whose versions a comparison depends on."""
    return ('jax', 'torch', 'transformers') if against == 'torch' else ('jax',)
