"""The engine's compiled functions, which every decoder runs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pal_jax.decode import engine
from pal_jax.models import params as model_params
from pal_jax.models import soups
from pal_jax.models.config import ModelConfig
from pal_jax.models.linear import LoraWeight, SoupWeight
from pal_jax.models.params import Params
from pal_jax.run import sharding


class Programs:
    """The functions of `decode.engine` for one model, mesh and number of slots, compiled once for each argument size.

    `mixtures [B, K]` are those of the rows or slots, where the weights are a soup of `K` adapters.

    Args:
      slots: a multiple of the devices that slots are spread over.
      int8: publishing makes weights of eight bits.
    Raises:
      ValueError: a dimension of the model does not divide over the mesh.
    """

    def __init__(self, cfg: ModelConfig, mesh: Mesh, *, slots: int, int8: bool = False):
        self.param_shardings = sharding.param_shardings(model_params.decoder_specs(cfg), mesh, sharding.DECODE_RULES)
        state = engine.state_shardings(mesh)
        # The host of every process reads the samples and scores.
        replicated = sharding.replicated(mesh)
        # Results are given their shardings here, since a constraint inside the function is lost between two meshes.
        places, dtype = dict(self.param_shardings), None if int8 else cfg.dtype
        a_layer = jax.tree.map(lambda place: NamedSharding(mesh, PartitionSpec(*place.spec[1:])), places.pop('layers'))
        if engine.has_own_output(places, cfg):
            places['unembed'] = places.get('unembed', places['embed'])
        self.send_outer = jax.jit(lambda outer: engine.decode_outer(outer, cfg), out_shardings=places)
        self.send_layer = jax.jit(lambda stack, i: engine.layer_of(stack, i, dtype), out_shardings=a_layer)
        self.decode_layer = jax.jit(lambda layer, i: engine.decode_layer(layer, i, cfg, slots=slots, int8=int8))
        self.layers, self.dtype = cfg.layers, cfg.dtype
        self.init = jax.jit(lambda room: engine.init_state(cfg, slots, room), static_argnums=0, out_shardings=state)
        self.grow = jax.jit(engine.grow, static_argnums=1, out_shardings=state)

        def on_mesh(function: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(function)
            def in_context(*arguments: Any) -> Any:
                # Kernels that no compiler spreads need to know the mesh.
                with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
                    return function(*arguments)

            return in_context

        def prefill(
            weights: Params, tokens: Array, length: Array, mixtures: Array | None = None
        ) -> engine.PrefixCaches:
            return engine.prefill(soups.mixed(weights, mixtures), cfg, tokens, length)

        self.prefill = jax.jit(on_mesh(prefill))
        self.extend = jax.jit(
            on_mesh(
                lambda weights, state, slots, start, tokens, length, mixtures=None: engine.prefill(
                    soups.mixed(weights, mixtures), cfg, tokens, length, engine.read(state, slots, start)
                )
            )
        )
        # The state is donated, so its caches are updated in place.
        self.insert = jax.jit(engine.insert, donate_argnums=0, out_shardings=state)
        self.generate = jax.jit(
            on_mesh(lambda weights, state, mixtures=None: engine.generate(soups.mixed(weights, mixtures), cfg, state)),
            donate_argnums=1,
            out_shardings=(state, replicated),
        )
        self.generate_telling = jax.jit(
            on_mesh(
                lambda weights, state, mixtures, alternatives: engine.generate_telling(
                    soups.mixed(weights, mixtures), cfg, state, alternatives
                )
            ),
            static_argnums=3,
            donate_argnums=1,
            out_shardings=(state, replicated, replicated),
        )
        prefix = engine.PrefixCaches(state.keys, state.values, state.length, state.token)
        self.blank = jax.jit(functools.partial(engine.empty_caches, cfg), static_argnums=(0, 1), out_shardings=prefix)
        self.score = jax.jit(
            on_mesh(
                lambda weights, cache, tokens, targets, length, mixtures, alternatives: engine.score(
                    soups.mixed(weights, mixtures), cfg, cache, tokens, targets, length, alternatives
                )
            ),
            static_argnums=6,
            donate_argnums=1,
            out_shardings=(prefix, replicated),
        )

    def publish(self, params: Params) -> Params:
        """Plain parameters, a soup, or an adapted tree, in the form for decoding: a list of layers, and the others.

        Raises:
          ValueError: the output matrix has an adapter that is part of no soup.
        """
        head = params.get('unembed')
        if isinstance(head, LoraWeight):
            raise ValueError('an adapter of the output matrix cannot be decoded beside its base; merge it')
        stack = params['layers']
        outer = self.send_outer({name: soups.plain(w) for name, w in params.items() if name != 'layers'})
        if isinstance(head, SoupWeight):
            outer['unembed'] = soups.with_precision(head.replace(base=outer['unembed']), self.dtype)
        # Layers are sent one by one, so that few bytes are on their way at a time.
        layers = (soups.on_base(lambda plain, i=i: self.send_layer(plain, i), stack) for i in range(self.layers))
        return outer | {'layers': [self.decode_layer(layer, i) for i, layer in enumerate(layers)]}


# Decoders of one shape, one after the other, share their compiled programs.
programs_of = functools.lru_cache(maxsize=4)(Programs)
