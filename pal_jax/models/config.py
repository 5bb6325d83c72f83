"""The fields in which one decoder differs from another. They are data, and the code has no paths for families."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """The scaling of Llama 3.1, which stretches low rotary frequencies (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_len: int


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """The scaling that divides all rotary frequencies by `factor` (Chen et al. 2023; `rope_type: linear`)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class LayerKind:
    """The fields in which the layers of one model may differ.

    `window`: a token sees the tokens less than so many positions before it; None is all of them.
    `rope`: rotary positions with the model's `rope_theta` and `rope_scaling`, with its `rope_local_theta`, or none.
    """

    window: int | None = None
    rope: Literal['global', 'local', 'none'] = 'global'


# The tokens of an exact tile. A decoder that reads all weights for one token has time to compute as many.
TILE = 256


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer. Frozen and hashable, so it is static under `jit`.

    The fields from `dtype` on say how the model is computed, and not what it is: see `run.devices.for_platform`.
    """

    family: str  # a row of the table in models/files/families.py
    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    max_len: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | LinearScaling | None = None
    norm_eps: float = 1e-5
    qkv_bias: bool = False
    tie_embed: bool = True

    pattern: tuple[LayerKind, ...] = (LayerKind(),)  # repeated over the depth
    rope_local_theta: float = 10_000.0
    alibi: bool = False  # scores fall with distance (Press et al. 2022)
    query_scalar: float | None = None  # queries are divided by its root; None: head_dim
    attn_softcap: float | None = None  # scores are cap * tanh(score / cap)
    final_softcap: float | None = None  # logits likewise
    qk_norm: bool = False  # each head's query and key are normalised before they are rotated
    post_norms: bool = False  # the outputs of attention and network are normalised, too, before they are added
    norm_offset: float = 0.0  # added to the weights of norms
    activation: Literal['silu', 'gelu_tanh'] = 'silu'
    scale_embed: bool = False  # embeddings are multiplied by the root of the width
    unit_head: bool = False  # rows of the output matrix are divided by their length (Baichuan 2's NormHead)

    dtype: str = 'float32'  # of the inputs of matrix products
    act_dtype: str = 'float32'  # of their results
    unroll: bool = False  # layers as straight code (faster on CPU) instead of a scan (compiles faster)
    # 'blocks': plain XLA; 'fused': XLA's own choice; 'splash': kernels for TPUs (models/splash.py); 'flash': for GPUs
    attention: str = 'blocks'
    logit_states: int = 512  # states whose logits a device has at once; rows with few actions skip most of them
    exact: bool = False  # a decoder rounds as training does, bit for bit (`decode.exact`)
    tile: int = 0  # the tokens that both compute at once on an accelerator (`rounding.by_tile`)
    remat: str = 'none'  # the part of a layer that the backward pass computes again; see `decoder.saved`

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """The kind of every layer."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.layers))


def exact_config(cfg: ModelConfig) -> ModelConfig:
    """The model computed so that a decoder rounds as training does; on an accelerator, whose attention is a kernel, in
    tiles."""
    return dataclasses.replace(cfg, exact=True, tile=0 if cfg.attention == 'blocks' else TILE)


def shortest_pattern(kinds: Sequence[LayerKind]) -> tuple[LayerKind, ...]:
    """The shortest beginning that gives the kinds of all layers when it is repeated. The last repetition may be cut."""
    period = next(p for p in range(1, len(kinds) + 1) if all(kind == kinds[i % p] for i, kind in enumerate(kinds)))
    return tuple(kinds[:period])


def tiny(vocab: int = 512) -> ModelConfig:
    """The config of a small model for tests and `:smoke` runs, with every part of a real one."""
    return ModelConfig(
        family='llama', vocab=vocab, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, mlp=128, max_len=1024
    )
