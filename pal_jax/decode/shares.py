"""Decoders side by side, each on its share of the devices, with which several processes sample.

Every process samples its share of the requests on a mesh of its own devices, and the processes exchange the
completions. The number of shares alone decides which requests are sampled together. One process with as many shares,
which then take turns, gives the same samples bit by bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.programs import programs_of
from pal_jax.decode.requests import Request, Told, completion_of
from pal_jax.models import params as model_params
from pal_jax.models import soups
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.run import devices, sharding
from pal_jax.run.processes import Shares
from pal_jax.types import Completion

# The completions of requests, each of which is told as soon as it is there.
Decode = Callable[[Sequence[Request], Told], list[Completion]]


def by_shares(
    shares: Shares, decoders: Mapping[int, Decode], requests: Sequence[Request], on_completion: Told | None
) -> list[Completion]:
    """The completions of all shares, in the order of the requests. `decoders` are those of this process's shares.

    `on_completion(place, completion)` is called for the completions that this process has sampled.
    """

    def decode(number: int, part: Sequence[Request]) -> list[Completion]:
        # Places are counted among all requests, not among those of a share.
        start = shares.start(len(requests), number)

        def tell(place: int, sampled: Completion) -> None:
            if on_completion:
                on_completion(start + place, sampled)

        return decoders[number](part, tell)

    return shares.gather(
        f'{len(requests)} completions', requests, decode, pack=dataclasses.asdict, unpack=completion_of
    )


class SharedDecoder:
    """The `LocalDecoder`s of this process's shares. `slots` is the number of all shares' slots together.

    Weights are gathered once, into the precision and layout for decoding. A device has one set of weights beside the
    training state.

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
        # Each share gets its part of the slots, rounded up.
        settings |= {'slots': -(-slots // shares.parts), 'int8': int8}
        self._shares = shares
        self._decoders = {number: LocalDecoder(cfg, tokenizer, parts[number], **settings) for number in shares.own}
        first_decoder = self._decoders[shares.own[0]]
        self._publish = programs_of(first_decoder.cfg, wide, slots=first_decoder.slots, int8=int8).publish
        # The shardings of training, in the order of these devices. Where the orders are the same, nothing moves.
        ordered = Mesh(wide.devices.reshape(mesh.devices.shape), wide.axis_names, axis_types=wide.axis_types)
        self._spread = sharding.param_shardings(model_params.decoder_specs(cfg), ordered)
        self._everywhere = sharding.replicated(wide)

    def load(self, params: Params, version: int = 0) -> None:
        """Decode with these parameters, spread over all processes, from now on."""
        # The old weights are freed first.
        self.release()
        weights = self._publish(soups.placed(params, self._spread, self._everywhere))
        # Each decoder takes the part on its own devices without a copy.
        for decoder in self._decoders.values():
            decoder.use(on_mesh(weights, decoder.mesh), version)

    def release(self) -> None:
        """Give back the memory of weights and caches until the next `load`."""
        for decoder in self._decoders.values():
            decoder.release()

    def __call__(self, requests: Sequence[Request], on_completion: Told | None = None) -> list[Completion]:
        """The completions, in the order of the requests, which are the same in every process.

        `on_completion(place, completion)` is called for the completions that this process has sampled.

        Raises:
          ValueError: a request does not fit the model's context.
          RuntimeError: no weights are loaded.
        """
        return by_shares(self._shares, self._decoders, requests, on_completion)


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Arrays on `mesh` alone, from arrays that each part of a larger mesh has in full. Buffers are not copied."""

    def part(x: jax.Array) -> jax.Array:
        shards = {shard.device: shard.data for shard in x.addressable_shards}
        assert isinstance(x.sharding, NamedSharding)
        place = NamedSharding(mesh, x.sharding.spec)
        return jax.make_array_from_single_device_arrays(
            x.shape, place, [shards[device] for device in mesh.devices.flat]
        )

    return jax.tree.map(part, tree)
