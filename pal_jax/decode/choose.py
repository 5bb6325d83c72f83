"""The choice of the decoder that samples a trainer's rollouts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from secrets import randbits
from typing import Protocol

import jax
from jax.sharding import Mesh

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.requests import Request, Told
from pal_jax.decode.shares import SharedDecoder
from pal_jax.models import attention
from pal_jax.models.config import ModelConfig, exact_config
from pal_jax.models.params import Params
from pal_jax.run.credentials import secret
from pal_jax.run.processes import ALONE, LAST_PORT, Shares, exchange
from pal_jax.types import Completion

# The environment variable that a server's secret is in.
TOKEN = 'PAL_JAX_TOKEN'


class Decoder(Protocol):
    """A decoder that a recipe samples with. A completion depends on its request and the weights, not on the decoder.

    `on_completion(place, completion)` is called when a completion has ended, in the process that sampled it.
    `place` is that of its request.
    """

    def load(self, params: Params, version: int = 0) -> None:
        """Decode with these parameters from now on."""
        ...

    def release(self) -> None:
        """Give back the memory of the weights until the next `load`."""
        ...

    def __call__(self, requests: Sequence[Request], on_completion: Told | None = None) -> list[Completion]: ...


def choose_decoder(
    cfg: ModelConfig,
    tokenizer: Tokenizer,
    mesh: Mesh,
    *,
    driver: str,
    address: str,
    slots: int,
    stride: int,
    shares: Shares = ALONE,
    reuse: bool = True,
    int8: bool = False,
    exact: bool = False,
    lockstep: bool = True,
) -> Decoder:
    """The decoder that `config.decode` names.

    Args:
      lockstep: see `rollout.lockstep`.

    Raises:
      ValueError: the driver is unknown, or does not support an address or several shares, the address is no host:port,
        `int8` is set with an address or on a CPU, `exact` is set where nobody has shown it, or the token of the
        environment cannot be sent.
    """
    if driver not in ('local', 'jetstream'):
        raise ValueError(f"decode.driver={driver!r} is unknown; use 'local' or 'jetstream'")
    if driver == 'local':
        if address:
            raise ValueError(f"decode.address={address!r} needs decode.driver='jetstream'")
        check_eight_bits('decode.int8', int8, mesh)
        if exact:
            check_exact(cfg, mesh, int8=int8)
            cfg = exact_config(cfg)
        settings = {'slots': slots, 'stride': stride, 'reuse': reuse, 'int8': int8}
        if shares.parts > 1:
            return SharedDecoder(cfg, tokenizer, mesh, shares, **settings)
        return LocalDecoder(cfg, tokenizer, mesh, **settings)
    if shares.parts != jax.process_count():
        raise ValueError(f"decode.shares={shares.parts} is for decode.driver='local' alone; leave it at 0")
    addresses = split(address)
    for name, chosen in {'int8': int8, 'exact': exact}.items():
        if chosen:
            raise ValueError(f'decode.address={address!r} decodes as its server was started; leave decode.{name} off')
    # gRPC is imported only where a server is asked.
    from pal_jax.decode.serve.jetstream.remote import RemoteDecoder
    from pal_jax.decode.serve.jetstream.servers import Servers, SharedServers

    # A number of this run's own, from which its weights are counted, lets it notice those of another trainer.
    start = None if lockstep else exchange('versions', randbits(30))[0]
    decoders = [RemoteDecoder(cfg, tokenizer, server, secret(TOKEN), start=start) for server in addresses]
    if shares.parts > 1:
        return SharedServers(Servers(decoders))
    return decoders[0] if len(decoders) == 1 else Servers(decoders)


def split(address: str) -> list[str]:
    """The servers that `decode.address` names. Raises ValueError where one is no host:port, or is named twice."""
    addresses = address.split(',')
    # A wrong address is found before the trainer waits for it.
    for server in addresses:
        host, _, port = server.rpartition(':')
        if not host or not re.fullmatch('[0-9]{1,5}', port) or not 0 < int(port) <= LAST_PORT:
            raise ValueError(
                f'decode.address={address!r}: {server!r} is no host:port, such as 127.0.0.1:9000, which '
                "decode.driver='jetstream' needs"
            )
    if len(set(addresses)) < len(addresses):
        raise ValueError(f'decode.address={address!r} names a server twice')
    return addresses


def check_eight_bits(key: str, int8: bool, mesh: Mesh) -> None:
    """Raises ValueError where `key` asks for weights of eight bits on a CPU."""
    # The compiler has no product of eight-bit weights for a CPU, and widens them anew for each token.
    if int8 and mesh.devices.flat[0].platform == 'cpu':
        raise ValueError(f'{key}: weights of eight bits make decoding on a CPU up to 12 times slower; leave it off')


def check_exact(cfg: ModelConfig, mesh: Mesh, key: str = 'decode.exact', *, int8: bool = False) -> None:
    """Raises ValueError, which names the setting `key`, where a decoder is known to round otherwise than training."""
    platform, tensor = mesh.devices.flat[0].platform, mesh.shape.get('tensor', 1)
    for fault, why in (
        (int8, 'weights of eight bits are not those of training'),
        (
            platform != 'cpu' and cfg.attention not in ('flash', 'splash'),
            f'this is a {platform}, for which there are no kernels of attention',
        ),
        (cfg.attention == 'splash' and cfg.alibi, 'the kernels for a TPU have no ALiBi'),
        (
            platform == 'cpu' and not attention.adds_in_order(),
            'this processor adds up the columns of a product in an order that depends on their number',
        ),
        (tensor > 1, f'mesh.tensor={tensor} cuts the sums of a product; set it to 1'),
    ):
        if fault:
            raise ValueError(f'{key}: {why}, or leave {key} off')
