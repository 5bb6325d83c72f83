"""What distinguishes one decoder from another: data, not code paths."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's stretching of the low rotary frequencies (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_len: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. Frozen and hashable, so it is static under `jit`.

    The last group is how it is computed, not what it is: see `runtime.devices.for_platform`.
    """

    family: str  # a row of the name table in models/hf.py
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    max_len: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    tie_embed: bool = True

    dtype: str = 'float32'  # of what goes into matrix products
    act_dtype: str = 'float32'  # of what comes out of them
    unroll: bool = False  # layers as straight code (faster on CPU) instead of a scan (compiles faster)
    remat: bool = False  # recompute each layer in the backward pass


def tiny(vocab: int = 512) -> ModelConfig:
    """A random model for tests and `:smoke` runs: every part of the real ones, none of their size."""
    return ModelConfig(
        family='llama', vocab=vocab, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp=128, max_len=1024
    )
