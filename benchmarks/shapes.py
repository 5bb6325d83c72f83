"""Shapes of models with random weights, for us and for others, and the flags that choose among them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pal_jax.commands.planning.shapes import SHAPES as PUBLISHED
from pal_jax.models.config import ModelConfig, tiny
from pal_jax.run.files import at_home
from pal_jax.run.outputs import check_file

if TYPE_CHECKING:
    from transformers import LlamaConfig

SHAPES = {
    'default': PUBLISHED['HuggingFaceTB/SmolLM2-135M'],
    'llama-1b': PUBLISHED['meta-llama/Llama-3.2-1B'],
    'tiny': tiny(),
}


def as_llama(cfg: ModelConfig) -> LlamaConfig:
    """The shape as a config of transformers."""
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


def as_tunix(cfg: ModelConfig) -> Any:
    """The shape as a config of Tunix."""
    from tunix.models.llama3.model import ModelConfig as TunixConfig

    return TunixConfig(
        num_layers=cfg.layers,
        vocab_size=cfg.vocab,
        embed_dim=cfg.width,
        hidden_dim=cfg.mlp,
        num_heads=cfg.heads,
        head_dim=cfg.head_dim,
        num_kv_heads=cfg.kv_heads,
        rope_theta=int(cfg.rope_theta),
        norm_eps=cfg.norm_eps,
        weight_tying=cfg.tie_embed,
    )


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Flags of every program that compares us with others."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', choices=SHAPES, default='default', help="its shape; 'default' is SmolLM2-135M's")
    parser.add_argument('--dtype', choices=('bfloat16', 'float32'), default='bfloat16', help='of our matrix products')
    return parser


def new_file(text: str) -> Path:
    """The type of a flag that names a file to write."""
    try:
        return check_file(Path(at_home(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def listed(kind: type, choices: Sequence[str] = ()) -> Callable[[str], list[Any]]:
    """The type of a flag that takes a list with commas."""

    def parse(text: str) -> list[Any]:
        parts = [part for part in text.split(',') if part]
        if unknown := [part for part in parts if choices and part not in choices]:
            raise argparse.ArgumentTypeError(f'{unknown[0]!r} is unknown; choose from {", ".join(choices)}')
        return [kind(part) for part in parts]

    parse.__name__ = f'list of {kind.__name__}'
    return parse
