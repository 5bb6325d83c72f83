"""Shapes of models to plan for, by the models' ids on the hub or from a config.json.

Models of the table need no weights, no tokenizer and no network.
"""

from __future__ import annotations

from pathlib import Path

from pal_jax.models.config import ModelConfig, RopeScaling

LLAMA3_ROPE = RopeScaling(8.0, 1.0, 4.0, 8192)

# Published in each model's config.json.
SHAPES = {
    'HuggingFaceTB/SmolLM2-135M': ModelConfig(
        'llama', 49152, 576, 30, 9, 3, 64, 1536, 8192, rope_theta=100_000.0
    ),
    'Qwen/Qwen2.5-0.5B': ModelConfig(
        'qwen2', 151936, 896, 24, 14, 2, 64, 4864, 32768, rope_theta=1e6, norm_eps=1e-6, qkv_bias=True
    ),
    'Qwen/Qwen2.5-3B': ModelConfig(
        'qwen2', 151936, 2048, 36, 16, 2, 128, 11008, 32768, rope_theta=1e6, norm_eps=1e-6, qkv_bias=True
    ),
    'Qwen/Qwen2.5-7B': ModelConfig(
        'qwen2', 152064, 3584, 28, 28, 4, 128, 18944, 32768, rope_theta=1e6, norm_eps=1e-6, qkv_bias=True,
        tie_embed=False,
    ),
    'meta-llama/Llama-3.2-1B': ModelConfig(
        'llama', 128256, 2048, 16, 32, 8, 64, 8192, 131072, rope_theta=5e5,
        rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
    ),
    'meta-llama/Llama-3.1-8B': ModelConfig(
        'llama', 128256, 4096, 32, 32, 8, 128, 14336, 131072, rope_theta=5e5, rope_scaling=LLAMA3_ROPE,
        tie_embed=False,
    ),
    'meta-llama/Llama-3.1-70B': ModelConfig(
        'llama', 128256, 8192, 80, 64, 8, 128, 28672, 131072, rope_theta=5e5, rope_scaling=LLAMA3_ROPE,
        tie_embed=False,
    ),
}  # fmt: skip


def shape(name: str) -> ModelConfig:
    """The shape of a model.

    `name` is a source as configs have it (`models/files/sources.py`) or, without a scheme, a hub id or a folder with a
    config.json. Ids of `SHAPES`, with any suffix such as -Instruct, are known; for others the hub is asked.

    Raises:
      ValueError, RuntimeError: there is no such model, or the hub cannot be reached.
    """
    # A benchmark's peers read the table above without JAX.
    from pal_jax.models.files import hf, sources

    kind, _, reference = name.partition(':')
    local = reference if kind == 'hf' else name if not reference else ''
    if local and Path(local).is_dir():
        return hf.read_config(Path(local))
    if shapes := [cfg for model_id, cfg in SHAPES.items() if local == model_id or local.startswith(f'{model_id}-')]:
        return shapes[0]
    return sources.resolve(f'hf:{local}' if local else name).config
