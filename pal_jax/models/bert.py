"""BERT and MPNet as encoders of sentences (Devlin et al. 2019, Song et al. 2020; mean pooling as in
sentence-transformers, Reimers et al. 2019).

The model is frozen and small, so it is plain functions of a Hugging Face folder's tensors, by BERT's own names.

Letters: `B` sentences, `T` tokens, `D` width.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pal_jax.models.files import tensors
from pal_jax.run.files import read_object

Weights = dict[str, Array]

WORDS, TYPES, DISTANCES = (
    'embeddings.word_embeddings.weight',
    'embeddings.token_type_embeddings.weight',
    'encoder.relative_attention_bias.weight',
)
# Parts of the names of MPNet's tensors, and those of the same tensors of BERT.
MPNET = {
    'attention.attn.q.': 'attention.self.query.',
    'attention.attn.k.': 'attention.self.key.',
    'attention.attn.v.': 'attention.self.value.',
    'attention.attn.o.': 'attention.output.dense.',
    'attention.LayerNorm.': 'attention.output.LayerNorm.',
}
# The distance in tokens from which on all distances of MPNet have one bias.
FARTHEST = 128


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The sizes of an encoder.

    Attributes:
      max_len: the longest sentence in tokens.
      first: the number of the first token's position.
      mpnet: scores have a bias by the distance of two tokens.
    """

    layers: int
    heads: int
    norm_eps: float
    max_len: int
    width: int
    first: int = 0
    mpnet: bool = False

    @property
    def dtype(self) -> str:
        """The type of the matrix products."""
        return 'float32'


def load(folder: Path) -> tuple[BertConfig, Weights]:
    """A BERT or MPNet with exact GELU from a Hugging Face folder.

    Raises:
      ValueError: the model is of another kind, or a number is not finite.
    """
    path = folder / 'config.json'
    config = read_object(path)
    kind = config.get('model_type'), config.get('hidden_act'), config.get('position_embedding_type', 'absolute')
    # Other kinds may have the same tensors and would compute something else without an error.
    if kind not in (('bert', 'gelu', 'absolute'), ('mpnet', 'gelu', 'absolute')):
        raise ValueError(
            f'{folder} is {kind}; only BERT and MPNet with exact GELU and absolute positions are supported'
        )
    sizes = 'num_hidden_layers', 'num_attention_heads', 'layer_norm_eps', 'max_position_embeddings', 'hidden_size'
    if missing := [name for name in sizes if type(config.get(name)) not in (int, float)]:
        raise ValueError(f'{path} has no number {missing[0]}; download it again')
    cfg = BertConfig(*(config[name] for name in sizes))
    loaded = tensors.read(folder / 'model.safetensors')
    for name, x in loaded.items():
        tensors.check_finite(x, name)
    weights = {name.removeprefix('bert.').removeprefix('mpnet.'): jnp.asarray(x) for name, x in loaded.items()}
    if kind[0] == 'bert':
        return cfg, weights
    for theirs, ours in MPNET.items():
        weights = {name.replace(theirs, ours): x for name, x in weights.items()}
    # MPNet has no types of sentences, and numbers its positions after that of padding.
    weights[TYPES] = jnp.zeros((1, cfg.width))
    return dataclasses.replace(cfg, max_len=cfg.max_len - 2, first=2, mpnet=True), weights


@functools.partial(jax.jit, static_argnums=1)
def embed(
    weights: Weights, cfg: BertConfig, tokens: Int[Array, 'B T'], first: Int[Array, ' B'], ends: Int[Array, ' B']
) -> Float[Array, 'B D']:
    """The vectors of sentences, which are the mean of the tokens' last hidden states, scaled to length 1.

    A sentence has the tokens `first` to `ends`, and those before `first` are read before it.
    """
    place = jnp.arange(tokens.shape[1])[None]
    hidden = encode(weights, cfg, tokens, ends)
    counted = (place >= first[:, None]) & (place < ends[:, None])
    # Padding has hidden states, too, which must not count in the mean.
    summed = jnp.where(counted[..., None], hidden, 0.0).sum(axis=1) / jnp.maximum(counted.sum(axis=1), 1)[:, None]
    return summed / jnp.maximum(jnp.linalg.norm(summed, axis=1, keepdims=True), 1e-12)


def encode(
    weights: Weights, cfg: BertConfig, tokens: Int[Array, 'B T'], ends: Int[Array, ' B']
) -> Float[Array, 'B T D']:
    """The last hidden states. Tokens from `ends` on are padding."""
    T = tokens.shape[1]
    # Padding may lie beyond the last position.
    numbers = cfg.first + np.minimum(np.arange(T), cfg.max_len - 1)
    positions = weights['embeddings.position_embeddings.weight'][numbers]
    # A sentence alone is of the first type of the two that BERT tells apart.
    x = weights[WORDS][tokens] + positions[None] + weights[TYPES][:1, None]
    x = _norm(weights, 'embeddings.LayerNorm', x, cfg.norm_eps)
    bias = jnp.where(jnp.arange(T)[None] < ends[:, None], 0.0, -jnp.inf)[:, None, None]
    if cfg.mpnet:
        table = weights[DISTANCES]
        bias += table[distance_buckets(T, len(table))].transpose(2, 0, 1)[None]
    for i in range(cfg.layers):
        name = f'encoder.layer.{i}'
        attended = _linear(weights, f'{name}.attention.output.dense', _attention(weights, name, cfg, x, bias))
        x = _norm(weights, f'{name}.attention.output.LayerNorm', x + attended, cfg.norm_eps)
        inner = jax.nn.gelu(_linear(weights, f'{name}.intermediate.dense', x), approximate=False)
        x = _norm(
            weights, f'{name}.output.LayerNorm', x + _linear(weights, f'{name}.output.dense', inner), cfg.norm_eps
        )
    return x


def distance_buckets(T: int, count: int) -> np.ndarray:
    """The number `[T, T]` of the bias of a query and a key by their distance, as in T5 (Raffel et al. 2020).

    Half of the `count` numbers are of keys after the query. Of each half, one half are of single distances, and the
    other half of ranges that grow up to `FARTHEST`.
    """
    behind = np.arange(T)[:, None] - np.arange(T)[None]
    half, single = count // 2, count // 4
    distance = np.abs(behind)
    steps = np.log(np.maximum(distance, 1) / single) / math.log(FARTHEST / single) * (half - single)
    far = np.minimum(single + steps.astype(np.int64), half - 1)
    return np.where(behind < 0, half, 0) + np.where(distance < single, distance, far)


def _attention(weights: Weights, name: str, cfg: BertConfig, x: Array, bias: Array) -> Array:
    parts = ('query', 'key', 'value')
    q, k, v = (_linear(weights, f'{name}.attention.self.{part}', x) for part in parts)
    q, k, v = (projected.reshape(*projected.shape[:2], cfg.heads, -1) for projected in (q, k, v))
    scores = jnp.einsum('bthd,bshd->bhts', q, k) / jnp.sqrt(q.shape[-1])
    probabilities = jax.nn.softmax(scores + bias, axis=-1)
    return jnp.einsum('bhts,bshd->bthd', probabilities, v).reshape(x.shape)


def _linear(weights: Weights, name: str, x: Array) -> Array:
    return x @ weights[f'{name}.weight'].T + weights[f'{name}.bias'][None, None]


def _norm(weights: Weights, name: str, x: Array, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    scaled = centred / jnp.sqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + eps)
    return scaled * weights[f'{name}.weight'][None, None] + weights[f'{name}.bias'][None, None]
