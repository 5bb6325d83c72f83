"""The engine in google-jetstream 0.2's interface. No other module imports that library.

Importing this module imports google-jetstream with three repairs: it starts without seqio, and so without TensorFlow;
it does not change the logging of the process; and neither its threads nor its clean-up of caches can end the process or
a request. Nothing imports this module before a driver of JetStream's is asked for.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import sys
import threading
import types
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Int

from pal_jax.data.packing import round_up
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode import engine
from pal_jax.decode.programs import programs_of
from pal_jax.decode.requests import Request, admission, bucket, for_slots
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.run import sharding
from pal_jax.types import Sampling

# The versions that the repairs below were written for.
KNOWN = '0.2.'


@contextlib.contextmanager
def _repaired() -> Iterator[None]:
    """A context for the import of google-jetstream, with stand-ins for seqio. It restores the root logger."""
    try:
        version = importlib.metadata.version('google-jetstream')
    except importlib.metadata.PackageNotFoundError:
        version = 'none'
    if not version.startswith(KNOWN):
        raise RuntimeError(f'the JetStream driver needs google-jetstream {KNOWN}x, got {version}; install 0.2.2')
    vocabularies: Any = types.ModuleType('seqio.vocabularies')
    vocabularies.Vocabulary = vocabularies.SentencePieceVocabulary = type('Vocabulary', (), {})
    seqio: Any = types.ModuleType('seqio')
    seqio.vocabularies = vocabularies
    stand_ins = {} if 'seqio' in sys.modules else {'seqio': seqio, 'seqio.vocabularies': vocabularies}
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            # A later import of seqio gets the real module.
            del sys.modules[name]
        root.setLevel(level)
        root.handlers[:] = handlers


with _repaired():
    from jetstream.core import orchestrator
    from jetstream.core.proto import jetstream_pb2, jetstream_pb2_grpc
    from jetstream.engine import engine_api, token_utils, tokenizer_api, tokenizer_pb2


protocol: Any = jetstream_pb2  # its messages are made at run time
tokenizer_protocol: Any = tokenizer_pb2
protocol_grpc = jetstream_pb2_grpc


class Thread(threading.Thread):
    """A daemon thread in place of JetStream's."""

    def __init__(self, *args: Any, **kwargs: Any):
        # JetStream's thread ends the process with SIGKILL when it fails, and can keep the process from ending.
        super().__init__(*args, **kwargs | {'daemon': True})


orchestrator.JetThread = Thread  # type: ignore[misc]
# JetStream's function calls one that jax no longer has. A prefix is freed with its last reference, and may be inserted
# many times.
orchestrator.delete_pytree = lambda _: None


class Prefix(NamedTuple):
    """A prefilled prompt on its way into a slot, and its request."""

    cache: engine.PrefixCaches
    request: Request


class Slots(struct.PyTreeNode):
    """The decode state, and the length of each slot's cache when its request came in."""

    decode: engine.DecodeState
    start: Int[Array, ' B']


def start(before: Int[Array, ' B'], prefix: engine.PrefixCaches, entry: engine.Admission) -> Int[Array, ' B']:
    """The length of each slot's cache when its request came in, after the admission of these requests."""
    # Entries that are not used point behind the last slot, where `mode='drop'` ignores them.
    slot = jnp.where(jnp.arange(len(entry.slot)) < entry.size, entry.slot, len(before))
    return before.at[slot].set(prefix.length[entry.row], mode='drop')


class JetStreamEngine(engine_api.Engine):
    """The functions of `decode.engine` under JetStream's names, for whoever runs JetStream's own driver.

    It decodes greedily, and computes the same numbers as `LocalDecoder`.
    """

    def __init__(self, cfg: ModelConfig, tokenizer: Tokenizer, mesh: Mesh, *, slots: int = 32, int8: bool = False):
        ways = sharding.batch_ways(mesh)
        cfg, slots = for_slots(cfg, slots)
        self.cfg, self.tokenizer, self._mesh = cfg, tokenizer, mesh
        self.slots, self._rows = round_up(slots, ways), ways
        # Two threads that start programs of several devices at once may wait for each other for ever.
        self._one_at_a_time = threading.Lock()
        self._programs = programs_of(cfg, mesh, slots=self.slots, int8=int8)
        self.param_shardings = self._programs.param_shardings
        self._start = jax.jit(start, out_shardings=sharding.sharding(mesh, ('batch',)))
        self._params: Params | None = None

    def load(self, params: Params) -> None:
        """Take these (plain, merged) parameters, which a driver gets by `load_params`."""
        self._params = self._programs.publish(params)

    # --- what JetStream calls ----------------------------------------------------------------------------------------

    def load_params(self, *args: Any, **kwargs: Any) -> Params:
        """The parameters. Raises RuntimeError where none are loaded."""
        if self._params is None:
            raise RuntimeError('the engine has no weights; call load(params) first')
        return self._params

    def prefill(self, *, params: Params, existing_prefix: Any = None, padded_tokens: Any, true_length: int) -> Prefix:
        """Prefill one prompt, to be decoded greedily. The caller has cut a prompt that is longer than its padding."""
        if existing_prefix is not None:
            raise ValueError('a prompt that continues a prefix is not supported; send the whole prompt')
        ids = tuple(np.asarray(padded_tokens)[: min(true_length, len(padded_tokens))].tolist())
        # JetStream's driver has no sampling, so decoding is greedy.
        request = Request(ids, Sampling(0.0, max_tokens=max(self.cfg.max_len - len(ids), 1)), 0)
        padded = engine.pad_prompts([ids], self._rows, bucket(len(ids), 64))
        with self._one_at_a_time:
            placed = jax.device_put(padded, sharding.sharding(self._mesh, ('batch',)))
            return Prefix(self._programs.prefill(params, *placed), request)

    def insert(self, prefix: Prefix, decode_state: Slots, slot: int) -> Slots:
        """The state with a prefilled prompt copied into a slot."""
        with self._one_at_a_time:
            entry = admission([(0, slot, prefix.request)], self.slots)
            inserted = self._programs.insert(decode_state.decode, prefix.cache, entry)
            return Slots(inserted, self._start(decode_state.start, prefix.cache, entry))

    def generate(self, params: Params, decode_state: Slots) -> tuple[Slots, engine_api.ResultTokens]:
        """The next state, and a token for every slot, also for empty ones.

        The columns of the result are the token, 1, and the number of tokens so far.
        """
        with self._one_at_a_time:
            state, step = self._programs.generate(params, decode_state.decode)
        columns = [step.token, jnp.ones_like(step.token), state.length - decode_state.start]
        tokens = engine_api.ResultTokens(jnp.stack(columns, axis=1), (0, 1), (1, 2), (2, 3), self.samples_per_slot)
        return decode_state.replace(decode=state), tokens

    def init_decode_state(self, *args: Any, **kwargs: Any) -> Slots:
        """Free slots with room for the model's longest text."""
        with self._one_at_a_time:
            room = bucket(self.cfg.max_len, 128)
            return Slots(self._programs.init(room), jnp.zeros(self.slots, jnp.int32))

    # --- what JetStream asks -----------------------------------------------------------------------------------------

    def get_prefix_destination_sharding(self) -> None:
        # Prefill and decoding share their devices.
        return None

    def get_tokenizer(self) -> Any:
        return tokenizer_protocol.TokenizerParameters()

    def build_tokenizer(self, metadata: Any) -> TokenizerAdapter:
        return TokenizerAdapter(self.tokenizer)

    @property
    def max_concurrent_decodes(self) -> int:
        return self.slots

    @property
    def samples_per_slot(self) -> int:
        return 1

    @property
    def max_prefill_length(self) -> int:
        """The largest power of two within the model's length."""
        # JetStream pads prompts to powers of two.
        return 1 << (self.cfg.max_len.bit_length() - 1)

    @property
    def mesh(self) -> Mesh:
        return self._mesh

    @property
    def colocated_cpus(self) -> None:
        return None


class TokenizerAdapter(tokenizer_api.Tokenizer):
    """The package's tokenizer in the interface of JetStream's own driver, whose texts are prompts."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def encode(self, s: str, **kwargs: Any) -> tuple[Any, int]:
        ids = np.asarray(self._tokenizer.prompt(s), np.int32)
        return token_utils.pad_tokens(
            ids,
            self.bos_id,
            self.pad_id,
            is_bos=False,
            max_prefill_length=kwargs.get('max_prefill_length'),
            jax_padding=kwargs.get('jax_padding', True),
        )

    def decode(self, token_ids: list[int], **kwargs: Any) -> str:
        return self._tokenizer.text_of(token_ids)

    @property
    def pad_id(self) -> int:
        return self._tokenizer.pad_id

    @property
    def eos_id(self) -> int:
        return self._tokenizer.stop_ids[0]

    @property
    def bos_id(self) -> int:
        # JetStream reads this id and never uses it, since a prompt has its beginning already.
        return self.eos_id

    @property
    def stop_tokens(self) -> set[int]:
        return set(self._tokenizer.stop_ids)
