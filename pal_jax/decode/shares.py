"""Decoders side by side, each on its share of the devices: what several processes sample with.

Every process samples its share of the requests on a mesh of its own devices and tells the others, so all know all
completions. Which requests are sampled together is decided by the number of shares alone: one process with as many
shares, which then take turns, samples the same bit by bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.programs import programs_of
from pal_jax.decode.requests import Request, Told
from pal_jax.models import params as model_params
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.runtime import devices, sharding
from pal_jax.runtime.processes import Shares
from pal_jax.types import Completion


class SharedDecoder:
    """`LocalDecoder`s, of which this process has its own ones. `slots` are of all shares together.

    Weights are gathered once, into the precision and layout that decoding wants. Each decoder takes the part on its own
    devices: nothing is copied, and a device holds one set of weights beside the training state.

    Raises:
      ValueError: the devices do not divide into these shares.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        tokenizer: Tokenizer,
        mesh: Mesh,
        shares: Shares,
        *,
        slots: int,
        int8: bool = False,
        **settings: Any,
    ):
        wide = devices.divide(mesh, shares.parts)
        parts = [Mesh(part[None], wide.axis_names, axis_types=wide.axis_types) for part in wide.devices]
        settings |= {'slots': -(-slots // shares.parts), 'int8': int8}
        self._shares = shares
        self._decoders = {number: LocalDecoder(cfg, tokenizer, parts[number], **settings) for number in shares.own}
        one = self._decoders[shares.own[0]]
        self._publish = programs_of(one.cfg, wide, slots=one.slots, int8=int8).publish
        # As they lie in training, in the order of these devices: where it is the same, nothing moves.
        ordered = Mesh(wide.devices.reshape(mesh.devices.shape), wide.axis_names, axis_types=wide.axis_types)
        self._spread = sharding.param_shardings(model_params.decoder_specs(cfg), ordered)

    def load(self, params: Params, version: int = 0) -> None:
        """Decodes with these (plain, merged) parameters, spread over all processes, from now on."""
        self.release()  # frees the old ones first
        weights = self._publish(jax.device_put(params, self._spread))
        for decoder in self._decoders.values():
            decoder.use(on_mesh(weights, decoder.mesh), version)

    def release(self) -> None:
        """Gives the memory of weights and caches back until the next `load`."""
        for decoder in self._decoders.values():
            decoder.release()

    def __call__(self, requests: Sequence[Request], told: Told | None = None) -> list[Completion]:
        """Completions in the order of the requests, which are the same in every process; `told` hears of its own.

        Raises:
          ValueError: a request does not fit the model's context.
          RuntimeError: no weights are loaded.
        """

        def decode(number: int, part: Sequence[Request]) -> list[Completion]:
            start = self._shares.start(len(requests), number)

            def tell(place: int, each: Completion) -> None:
                if told:
                    told(start + place, each)

            return self._decoders[number](part, tell)

        return self._shares.gather(
            f'{len(requests)} completions',
            requests,
            decode,
            pack=dataclasses.asdict,
            unpack=completion,
        )


def completion(packed: dict[str, Any]) -> Completion:
    """The inverse of `dataclasses.asdict`, also after it went through JSON text."""
    values: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in packed.items()}
    return Completion(**values)


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Arrays that each part of their mesh holds in full, on the part `mesh` alone; the buffers are the same."""

    def part(x: jax.Array) -> jax.Array:
        held = {shard.device: shard.data for shard in x.addressable_shards}
        assert isinstance(x.sharding, NamedSharding)
        place = NamedSharding(mesh, x.sharding.spec)
        return jax.make_array_from_single_device_arrays(x.shape, place, [held[device] for device in mesh.devices.flat])

    return jax.tree.map(part, tree)
