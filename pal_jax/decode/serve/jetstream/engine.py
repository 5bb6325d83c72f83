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
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Int

from pal_jax.data.packing import round_up
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode import engine
from pal_jax.decode.local import Counters
from pal_jax.decode.programs import programs_of
from pal_jax.decode.requests import Request, admission, bucket, for_slots
from pal_jax.decode.sampling import SampledTokens
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.run import sharding
from pal_jax.types import Sampling

KNOWN = '0.2.'  # the versions that the repairs below were written for


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
            del sys.modules[name]  # a later import of seqio gets the real module
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
    """A daemon thread in place of JetStream's.

    JetStream's thread ends the process with SIGKILL when it fails, and can keep the process from ending.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs | {'daemon': True})


orchestrator.JetThread = Thread  # type: ignore[misc]
# JetStream's function calls one that jax no longer has. A prefix is freed with its last reference, and may be inserted
# many times.
orchestrator.delete_pytree = lambda _: None


class Weights:
    """JetStream's `Params`. Its threads have this handle from the start, and an assignment to it loads new weights."""

    def __init__(self):
        self.current: tuple[Params, int] | None = None  # the weights and their version

    def read(self) -> tuple[Params, int]:
        """The weights and their version. Raises RuntimeError where none are loaded."""
        if self.current is None:
            raise RuntimeError('the decoder has no weights; call load(params) first')
        return self.current


class Prefix(NamedTuple):
    """A prefilled prompt on its way into a slot: row `row` of a batch's cache, and its request."""

    cache: engine.PrefixCaches
    row: int
    request: Request


class Slots(struct.PyTreeNode):
    """The decode state, and the length of each slot's cache when its request came in."""

    decode: engine.DecodeState
    start: Int[Array, ' B']


@struct.dataclass
class Stride(engine_api.ResultTokens):
    """The results of a few steps in one array of columns.

    The columns are the tokens of the steps, as many columns of 1, the count of tokens so far, and the bits of the
    log-probs. `version` is that of the weights that sampled the tokens.
    """

    version: int = struct.field(pytree_node=False, default=0)

    def columns(self) -> list[np.ndarray]:
        """The tokens, log-probs and policy log-probs, [slots, steps], once the device has computed them."""
        data = np.asarray(self.data)
        steps = self.tokens_idx[1]
        bits = np.ascontiguousarray(data[:, 2 * steps + 1 :]).view(np.float32)
        return [data[:, :steps], bits[:, :steps], bits[:, steps:]]


def pack(steps: Sequence[SampledTokens], length: Int[Array, ' B'], start: Int[Array, ' B']) -> Int[Array, 'B C']:
    """The samples of a stride as one array [B, C], so that one copy brings them to the host."""
    tokens = jnp.stack([step.token for step in steps], axis=1)
    logprobs = [step.logprob for step in steps] + [step.policy_logprob for step in steps]
    bits = lax.bitcast_convert_type(jnp.stack(logprobs, axis=1).astype(jnp.float32), jnp.int32)
    return jnp.concatenate([tokens, jnp.ones_like(tokens), (length - start)[:, None], bits], axis=1)


def start(before: Int[Array, ' B'], prefix: engine.PrefixCaches, entry: engine.Admission) -> Int[Array, ' B']:
    """The length of each slot's cache when its request came in, after the admission of these requests."""
    slot = jnp.where(jnp.arange(len(entry.slot)) < entry.size, entry.slot, len(before))
    return before.at[slot].set(prefix.length[entry.row], mode='drop')


class JetStreamEngine(engine_api.Engine):
    """The functions of `decode.engine` under JetStream's names: `slots` requests, `stride` steps a call of `generate`.

    Prompts are padded and caches grow as in `LocalDecoder`, so both compute the same numbers.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        tokenizer: Tokenizer,
        mesh: Mesh,
        *,
        slots: int = 32,
        prefill_rows: int = 8,
        stride: int = 4,
        grain: int = 128,
        int8: bool = False,
    ):
        ways = sharding.batch_ways(mesh)
        cfg, slots = for_slots(cfg, slots)
        self.cfg, self.tokenizer, self._mesh = cfg, tokenizer, mesh
        self.slots, self.stride, self.grain = round_up(slots, ways), stride, grain
        self.rows = ways, round_up(prefill_rows, ways)
        self.weights, self.counters = Weights(), Counters()
        # Two threads that start programs of several devices at once may wait for each other for ever.
        self._one_at_a_time = threading.Lock()
        self._programs = programs_of(cfg, mesh, slots=self.slots, int8=int8)
        self.param_shardings = self._programs.param_shardings
        self._start = jax.jit(start, out_shardings=sharding.sharding(mesh, ('batch',)))
        self._pack = jax.jit(pack)

    # --- weights -----------------------------------------------------------------------------------------------------

    def load(self, params: Params, version: int = 0) -> None:
        """Decode with these (plain, merged) parameters from the next call on."""
        with self._one_at_a_time:
            self.weights.current = self._programs.publish(params), version

    def release(self) -> None:
        """Give back the memory of the weights until the next `load`."""
        self.weights.current = None

    @property
    def version(self) -> int:
        """The version of the weights; 0 where there are none."""
        return self.weights.current[1] if self.weights.current else 0

    # --- what JetStream calls ----------------------------------------------------------------------------------------

    def load_params(self, *args: Any, **kwargs: Any) -> Weights:
        return self.weights

    def prefill(self, *, params: Weights, existing_prefix: Any = None, padded_tokens: Any, true_length: int) -> Prefix:
        """Prefill one prompt, to be decoded greedily. The caller has cut a prompt that is longer than its padding."""
        if existing_prefix is not None:
            raise ValueError('a prompt that continues a prefix is not supported; send the whole prompt')
        ids = np.asarray(padded_tokens)[: min(true_length, len(padded_tokens))].tolist()
        request = Request(tuple(ids), Sampling(0.0, max_tokens=max(self.cfg.max_len - len(ids), 1)), 0)
        return Prefix(self.prefill_prompts(params, [request.prompt_ids]), 0, request)

    def insert(self, prefix: Prefix, decode_state: Slots, slot: int) -> Slots:
        """The state with a prefilled prompt copied into a slot."""
        return self.place(decode_state, prefix.cache, [(prefix.row, slot, prefix.request)])

    def generate(self, params: Weights, decode_state: Slots) -> tuple[Slots, Stride]:
        """The next state, and `stride` tokens for every slot, also for empty ones."""
        weights, version = params.read()
        state, sampled = decode_state.decode, []
        with self._one_at_a_time:
            for _ in range(self.stride):
                state, step = self._programs.generate(weights, state)
                sampled.append(step)
            data = self._pack(sampled, state.length, decode_state.start)
        self.counters.slot_steps += self.slots * self.stride
        steps = self.stride
        where = (0, steps), (steps, 2 * steps), (2 * steps, 2 * steps + 1)
        stride = Stride(data, *where, self.samples_per_slot, version)
        return Slots(decode=state, start=decode_state.start), stride

    def init_decode_state(self, *args: Any, **kwargs: Any) -> Slots:
        """Free slots with room for the model's longest text."""
        return self.empty(bucket(self.cfg.max_len, 128))

    # --- the same for many at once -----------------------------------------------------------------------------------

    def prefill_prompts(self, params: Weights, prompts: Sequence[tuple[int, ...]]) -> engine.PrefixCaches:
        """The caches of up to `rows[1]` prompts."""
        padded = engine.pad_prompts(prompts, self.rows[len(prompts) > self.rows[0]], bucket(max(map(len, prompts)), 64))
        self.counters.prompt_tokens += sum(map(len, prompts))
        with self._one_at_a_time:
            placed = jax.device_put(padded, sharding.sharding(self._mesh, ('batch',)))
            return self._programs.prefill(params.read()[0], *placed)

    def place(self, state: Slots, cache: engine.PrefixCaches, placed: Sequence[tuple[int, int, Request]]) -> Slots:
        """The state with prefilled prompts, (row, slot, request), copied into slots; a row may fill several slots."""
        with self._one_at_a_time:
            entry = admission(placed, self.slots)
            return Slots(self._programs.insert(state.decode, cache, entry), self._start(state.start, cache, entry))

    def empty(self, room: int) -> Slots:
        """Free slots with room for `room` tokens each."""
        with self._one_at_a_time:
            return Slots(self._programs.init(room), jnp.zeros(self.slots, jnp.int32))

    def grown(self, state: Slots, room: int) -> Slots:
        """A copy of the slots with room for at least `room` tokens each."""
        if room <= state.decode.capacity:
            return state
        with self._one_at_a_time:
            return state.replace(decode=self._programs.grow(state.decode, room))

    def room_for(self, requests: Iterable[Request]) -> int:
        """The length of caches that all these requests need. They are no longer, since attention costs their length."""
        lengths = ((len(r.prompt_ids), r.sampling.max_tokens) for r in requests)
        return bucket(max(max(prompt + more, bucket(prompt, 64)) for prompt, more in lengths), self.grain)

    # --- what JetStream asks -----------------------------------------------------------------------------------------

    def get_prefix_destination_sharding(self) -> None:
        return None  # prefill and decode share their devices

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
        """The largest power of two within the model's length, since JetStream pads prompts to powers of two."""
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
        return self.eos_id  # JetStream reads it and never uses it, since a prompt has its beginning already

    @property
    def stop_tokens(self) -> set[int]:
        return set(self._tokenizer.stop_ids)
