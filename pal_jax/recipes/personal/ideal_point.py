"""PAL (arXiv 2406.08469): a user is a mixture of K prototypes, and prefers items that are near to it.

PAL-A mixes K points, and PAL-B mixes K functions of the prompt. The parameters are `f` (the projector of items), `P`
(prototypes) or `g` (the prototypes' projectors, stacked), `log_scale`, and a user's logits `z`.

Letters: `B` pairs, `K` prototypes, `Z` logits of a user, `H` width of an item's vector, `D` width of the space of
preferences.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from pal_jax.models.linear import product
from pal_jax.models.params import Params, ParamSpec

Rule = Literal['dist', 'normalized_dist', 'angle', 'dot', 'norm']
Point = Literal['f(Pw)', 'Pw', 'f(P)w', '|f(P)|w']
Mixture = Literal['softmax', 'gumbel', 'partition', 'free', 'linear', 'own']

MAX_SCALE = 100.0
ACTIVATIONS = {'relu': jax.nn.relu, 'gelu': jax.nn.gelu, 'linear': lambda x: x}


class ProjectorShape(NamedTuple):
    """`layers` affine maps with the width of the output, and an activation after each but the last.

    With 0 layers it is the identity.
    """

    layers: int
    activation: str = 'linear'
    dropout: float = 0.0
    residual: bool = False
    bias: bool = True


def parse_projector(name: str) -> ProjectorShape:
    """The projector of a name.

    The name is `identity` or `mlp<hidden layers>-<relu|gelu|linear>[-dropout<digits>][-residual][-nobias]`.

    Raises:
      ValueError: the name has another form.
    """
    if name == 'identity':
        return ProjectorShape(0)
    parts = re.fullmatch(r'mlp(\d+)-(relu|gelu|linear)(?:-dropout(\d+))?(-residual)?(-nobias)?', name)
    if not parts:
        raise ValueError(
            f'unknown projector {name!r}; use identity or '
            'mlp<n>-<relu|gelu|linear>[-dropout<digits>][-residual][-nobias]'
        )
    hidden, activation, digits, residual, nobias = parts.groups()
    # The digits stand behind the point: dropout75 is a rate of 0.75.
    dropout = int(digits) / 10 ** len(digits) if digits else 0.0
    return ProjectorShape(int(hidden) + 1, activation, dropout, bool(residual), not nobias)


@dataclasses.dataclass(frozen=True)
class PAL:
    """The settings that select one of PAL's models. They are static under jit.

    variant: 'A', or 'B' with prompts.
    width: numbers in an item's vector. prototypes: K.
    rule: the reward of an item with vector x for a user at point u.
      dist `-|f(x) - u|`, normalized_dist the same of unit vectors, angle `cos(f(x), u)`, dot `f(x) . u`,
      norm `-|f(x - u)|`.
    scaled: rewards are multiplied by `min(exp(log_scale), 100)`, which is learnt. The published rules are dist with a
      hinge (A), angle scaled with cross-entropy (B), dist scaled (their dist-logistic), and angle unscaled with a hinge
      (angle-hinge).
    temperature: rewards are divided by it, a constant (LoRe, arXiv 2504.14439).
    point: the formula of the user's point, from PAL-A's mixture w and prototypes P.
    mixture: the formula of the weights, from logits z. softmax; gumbel: softmax with noise in training; partition:
      softmax in training, and the largest alone after it; free: 1 and z without bounds (a user embedding); linear: z
      without bounds (PReF, arXiv 2503.06358); own: z is the point itself, without P.

    Raises:
      ValueError: a value is none of these, or two values do not fit each other.
    """

    width: int
    prototypes: int
    variant: Literal['A', 'B'] = 'A'
    dim: int = 0  # D, the width of the space of preferences; 0: `width`
    projector: str = 'identity'
    rule: Rule = 'dist'
    scaled: bool = False
    temperature: float = 1.0
    point: Point = 'f(Pw)'
    mixture: Mixture = 'softmax'
    tau: float = 1.0  # the temperature of the softmax of z
    prototype_init: Literal['unit', 'expected'] = 'unit'  # rows of norm 1, or N(0, 1/width)
    dtype: str = 'float32'  # of the inputs of a projector's products; `act_dtype` is of their results
    act_dtype: str = 'float32'

    def __post_init__(self):
        for key, value, allowed in (
            ('variant', self.variant, ('A', 'B')),
            ('rule', self.rule, get_args(Rule)),
            ('point', self.point, get_args(Point)),
            ('mixture', self.mixture, get_args(Mixture)),
            ('prototype_init', self.prototype_init, ('unit', 'expected')),
            ('dtype', self.dtype, ('float32', 'bfloat16')),
        ):
            if value not in allowed:
                raise ValueError(f'model.{key}={value!r} is unknown; use one of {", ".join(allowed)}')
        projector, d = self.parsed_projector, self.dim or self.width
        if d != self.width and (projector.layers == 0 or projector.residual):
            raise ValueError(f'model.dim={d} is not the width {self.width} of items, which {self.projector} keeps')
        if self.prototypes < 1 or self.tau <= 0:
            raise ValueError(f'model.prototypes={self.prototypes} must be at least 1 and tau={self.tau} above 0')
        if self.temperature <= 0:
            raise ValueError(f'model.temperature={self.temperature} must be above 0, for rewards are divided by it')
        if self.scaled and self.temperature != 1:
            raise ValueError(f'model.temperature={self.temperature} and model.scaled are two scales; use one of them')
        if self.variant == 'B' and self.mixture == 'own':
            raise ValueError("model.mixture='own' has no prototypes, so it has no variant B")
        if self.rule == 'norm' and (self.variant == 'B' or self.point != 'Pw'):
            raise ValueError("model.rule='norm' projects x - u, so it needs variant='A' and point='Pw'")

    @property
    def parsed_projector(self) -> ProjectorShape:
        """The projector that `projector` names."""
        return parse_projector(self.projector)

    @property
    def logits_per_user(self) -> int:
        """The number of logits that a user has."""
        # The first free weight is always 1, so it has no logit.
        return {'own': self.width, 'free': self.prototypes - 1}.get(self.mixture, self.prototypes)


def specs(pal: PAL) -> Params:
    """The specs of every parameter except the users' logits."""
    d = pal.dim or pal.width
    # The scale begins at 1 / 0.07, as that of CLIP.
    tree: Params = {'log_scale': ParamSpec((), (), lambda *_: jnp.log(jnp.float32(1 / 0.07)))} if pal.scaled else {}
    if pal.parsed_projector.layers:
        tree['f'] = _projector_specs(pal.parsed_projector, pal.width, d)
    if pal.variant == 'B':
        tree['g'] = _projector_specs(pal.parsed_projector, pal.width, d, pal.prototypes)
    elif pal.mixture != 'own':
        # Prototypes that are projected, or compared before the projection, are as wide as items.
        size = d if pal.point == 'Pw' and pal.rule != 'norm' else pal.width
        init = _unit_rows if pal.prototype_init == 'unit' else jax.nn.initializers.normal(size**-0.5)
        tree['P'] = ParamSpec((pal.prototypes, size), (None, None), init)
    return tree


def _projector_specs(projector: ProjectorShape, wide: int, out: int, *stack: int) -> list[Params]:
    layers = []
    for i in range(projector.layers):
        rows = wide if i == 0 else out
        normal = jax.nn.initializers.normal(1.0 / math.sqrt(rows))
        layer = {'weight': ParamSpec((*stack, rows, out), (None,) * (len(stack) + 2), normal)}
        if projector.bias:
            layer['bias'] = ParamSpec((*stack, out), (None,) * (len(stack) + 1), jax.nn.initializers.zeros)
        layers.append(layer)
    return layers


def _unit_rows(key: Array, shape: tuple[int, ...], dtype: str) -> Array:
    rows = jax.random.normal(key, shape, dtype)
    return rows / length(rows)[:, None]


def project(layers: list[Params], pal: PAL, x: Float[Array, '*S H'], key: Array | None = None) -> Array:
    """The projection of `x`. With a key, which is for training, dropout is on."""
    hidden, projector = x, pal.parsed_projector
    for i, layer in enumerate(layers):
        hidden = product(hidden, layer['weight'], pal.dtype, pal.act_dtype)
        if 'bias' in layer:
            hidden = hidden + jnp.reshape(layer['bias'], (1,) * (hidden.ndim - 1) + (-1,)).astype(hidden.dtype)
        if i + 1 < projector.layers:
            if key is not None and projector.dropout:
                keep = jax.random.bernoulli(jax.random.fold_in(key, i), 1.0 - projector.dropout, hidden.shape)
                # What is kept grows, so that the mean is that of evaluations, which drop nothing.
                hidden = jnp.where(keep, hidden / (1.0 - projector.dropout), 0.0)
            hidden = ACTIVATIONS[projector.activation](hidden)
    # Rewards are made in float32, whatever the type of the products.
    hidden = hidden.astype(jnp.float32)
    return x + hidden if projector.residual else hidden


def weights(
    pal: PAL, z: Float[Array, 'B Z'], *, training: bool = False, key: Array | None = None
) -> Float[Array, 'B K']:
    """The users' mixtures by their logits `z`, for evaluation or for `training`, where a key adds Gumbel noise."""
    match pal.mixture:
        case 'own' | 'linear':
            return z
        case 'free':
            return jnp.concatenate([jnp.ones((z.shape[0], 1), z.dtype), z], axis=1)
        # In training a partition is a softmax, for the largest alone has no gradient.
        case 'partition' if not training:
            return jax.nn.one_hot(jnp.argmax(z, axis=-1), pal.prototypes, dtype=z.dtype)
        case 'gumbel' if key is not None:
            z = z + jax.random.gumbel(key, z.shape, z.dtype)
    return jax.nn.softmax(z / pal.tau, axis=-1)


def user_point(
    params: Params, pal: PAL, w: Float[Array, 'B K'], prompt: Float[Array, 'B H'] | None, key: Array | None = None
) -> Float[Array, 'B D']:
    """The points of users in the space of preferences, or of items for rule 'norm'.

    `prompt` is the vector of a prompt's last real token, for PAL-B.
    """
    if pal.variant == 'B':
        assert prompt is not None
        keys = [None] * pal.prototypes if key is None else jax.random.split(key, pal.prototypes)
        projectors = [jax.tree.map(lambda x, k=k: x[k], params['g']) for k in range(pal.prototypes)]
        # Each prototype is a function of the prompt, and a user mixes the results.
        points = [w[:, k, None] * project(projectors[k], pal, prompt, keys[k]) for k in range(pal.prototypes)]
        return sum(points[1:], points[0])
    if pal.mixture == 'own':
        return w
    P, f = params['P'], params.get('f', [])
    match pal.point:
        case 'f(Pw)':
            return project(f, pal, w @ P, key)
        case 'f(P)w':
            return w @ project(f, pal, P, key)
        case '|f(P)|w':
            points = project(f, pal, P, key)
            return w @ (points / length(points)[:, None])
    return w @ P


def item_reward(
    params: Params, pal: PAL, u: Float[Array, 'B D'], x: Float[Array, 'B *T H'], key: Array | None = None
) -> Float[Array, 'B *T']:
    """The rewards of items, or of the tokens of items, for users at the points `u`."""
    # One point of the user stands beside all tokens of an item.
    u = u.reshape(u.shape[0], *(1,) * (x.ndim - 2), u.shape[1])
    f = params.get('f', [])
    if pal.rule == 'norm':
        reward = -length(project(f, pal, x - u, key))
    else:
        point = project(f, pal, x, key)
        match pal.rule:
            case 'dist':
                reward = -length(point - u)
            case 'normalized_dist':
                reward = -length(point / length(point)[..., None] - u / length(u)[..., None])
            case 'angle':
                reward = jnp.vecdot(point, u) / (length(point) * length(u))
            case _:
                reward = jnp.vecdot(point, u)
    if not pal.scaled:
        return reward if pal.temperature == 1 else reward / pal.temperature
    return jnp.minimum(jnp.exp(params['log_scale']), MAX_SCALE) * reward


def checked_mixture(mix: ArrayLike, K: int) -> Float[Array, ' K']:
    """A mixture of K prototypes as an array.

    Raises:
      ValueError: the mixture is no list of numbers, has another length, has a weight below 0 or not finite, or its sum
        is further than 1e-6 from 1.
    """
    try:
        weights = np.asarray(mix)
    except ValueError:  # lists of several lengths
        weights = np.empty(0)
    numbers = weights.shape == (K,) and weights.dtype.kind in 'iuf'
    if not numbers or not np.all(weights >= 0) or not abs(weights.sum(dtype=np.float64) - 1) <= 1e-6:
        raise ValueError(f'a mixture of {K} prototypes needs {K} weights of at least 0 that sum to 1, got {mix}')
    return jnp.asarray(weights, jnp.float32)


def length(x: Float[Array, '*S D']) -> Float[Array, '*S']:
    """The Euclidean norm over the last axis."""
    # With a bound below, the gradient at the origin is 0, and not NaN.
    return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1), 1e-12))
