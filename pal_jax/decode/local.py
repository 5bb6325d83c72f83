"""Continuous batching in the trainer's own process: requests in, completions out, slots refilled as they free up."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode import engine
from pal_jax.models import params as model_params
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.runtime import sharding
from pal_jax.types import Completion, FinishReason, Sampling


@dataclasses.dataclass(frozen=True)
class Request:
    """One completion wanted. Its result depends on these three and the weights, never on its neighbours."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    seed: int


class Progress(NamedTuple):
    """What a step brought one request; the last has its `completion`. `version` is of the weights."""

    number: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    completion: Completion | None
    version: int = 0


@dataclasses.dataclass
class Live:
    """A request under way."""

    number: int
    request: Request
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    versions: list[int] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Counters:
    """Work done since the start: what a rate or a share is computed from."""

    requests: int = 0
    prompt_tokens: int = 0
    tokens: int = 0  # that belong to a request
    slot_steps: int = 0  # slots times steps: tokens there was room for


class LocalDecoder:
    """Drives the engine's three functions. `slots` requests decode at once; `stride` steps run per host round trip.

    Prompts are padded to powers of two and the cache to a multiple of `grain`, so the programs to compile are few.
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
    ):
        # A product with a single row runs outside the fast path on CPU; eight rows cost the same.
        self.cfg, self.tokenizer, self.mesh = cfg, tokenizer, mesh
        self.slots, self.prefill_rows, self.stride, self.grain = max(slots, 8), prefill_rows, stride, grain
        self.version, self.counters = 0, Counters()
        self._weights: Params | None = None
        self._state: engine.DecodeState | None = None
        self._waiting: deque[tuple[int, Request]] = deque()
        self._live: dict[int, Live] = {}  # by slot
        self.param_shardings = sharding.param_shardings(model_params.decoder_specs(cfg), mesh, sharding.DECODE_RULES)
        self._publish = jax.jit(
            lambda params: engine.decode_weights(jax.lax.with_sharding_constraint(params, self.param_shardings), cfg)
        )
        self._prefill = jax.jit(lambda weights, tokens, length: engine.prefill(weights, cfg, tokens, length))
        self._insert = jax.jit(engine.insert, donate_argnums=0)
        self._generate = jax.jit(lambda weights, state: engine.generate(weights, cfg, state), donate_argnums=1)
        self._grow = jax.jit(engine.grow, static_argnums=1)

    def load(self, params: Params, version: int = 0) -> None:
        """Decodes with these (plain, merged) parameters from now on; what is under way goes on with them."""
        self._weights = None  # frees the old ones first
        self._weights, self.version = self._publish(params), version

    def release(self) -> None:
        """Gives the weights' memory back until the next `load`."""
        self._weights = None

    def reset(self) -> None:
        """Drops every request and the caches: the way back after a step that raised."""
        self._state = None
        self._waiting.clear()
        self._live.clear()

    @property
    def free(self) -> int:
        """Slots that nothing decodes in and nothing waits for."""
        return self.slots - len(self._live) - len(self._waiting)

    def check(self, request: Request) -> None:
        """Raises ValueError where a request cannot be met by this model."""
        length, vocab = len(request.prompt_ids), self.cfg.vocab
        if not length or min(request.prompt_ids) < 0 or max(request.prompt_ids) >= vocab:
            raise ValueError(f'a prompt has one or more token ids from 0 to {vocab - 1}')
        room = length + request.sampling.max_tokens
        if room > self.cfg.max_len:
            raise ValueError(
                f'a prompt and its completion need {room} tokens, the model has room for {self.cfg.max_len}; '
                'shorten the prompt (fewer rounds of a dialogue) or max_tokens'
            )

    def add(self, request: Request) -> int:
        """Puts a request in line and returns its number.

        Raises:
          ValueError: the model cannot meet it.
        """
        self.check(request)
        return self._queue(request)

    def _queue(self, request: Request) -> int:
        self.counters.requests += 1
        self._waiting.append((self.counters.requests, request))
        return self.counters.requests

    def cancel(self, number: int) -> Completion | None:
        """Takes a request back and returns what it has so far; None if it had ended."""
        for entry in self._waiting:
            if entry[0] == number:
                self._waiting.remove(entry)
                return Completion('', (), (), 'aborted')
        for slot, live in self._live.items():
            if live.number == number:
                return self._finish(self._live.pop(slot), 'aborted')
        return None

    def step(self) -> list[Progress]:
        """Fills free slots and decodes `stride` tokens in each.

        Raises:
          RuntimeError: no weights are loaded.
        """
        if self._weights is None:
            raise RuntimeError('the decoder has no weights; call load(params) first')
        self._admit()
        if not self._live:
            return []
        tokens, logprobs = self._decode()
        progress = []
        for slot, live in list(self._live.items()):
            before = len(live.tokens)
            completion = self._advance(live, tokens[:, slot], logprobs[:, slot])
            news = tuple(live.tokens[before:]), tuple(live.logprobs[before:])
            progress.append(Progress(live.number, *news, completion, self.version))
            self.counters.tokens += len(news[0])
            if completion is not None:
                del self._live[slot]
        if not self._live and not self._waiting:
            self._state = None  # an idle decoder holds no caches
        return progress

    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        """Completions in the order of the requests.

        Raises:
          ValueError: a request does not fit the model's context.
          RuntimeError: no weights are loaded, or other requests are under way.
        """
        if self._live or self._waiting:
            raise RuntimeError('this decoder has requests under way; add() yours to them')
        for request in requests:
            self.check(request)
        numbers = [self._queue(request) for request in requests]
        done: dict[int, Completion] = {}
        while len(done) < len(numbers):
            done |= {each.number: each.completion for each in self.step() if each.completion is not None}
        return [done[number] for number in numbers]

    def _decode(self) -> tuple[np.ndarray, np.ndarray]:
        sampled = []
        for _ in range(self.stride):
            self._state, step = self._generate(self._weights, self._state)
            sampled.append(step)
        self.counters.slot_steps += self.slots * self.stride
        tokens, logprobs = jax.device_get((tuple(s.token for s in sampled), tuple(s.logprob for s in sampled)))
        return np.stack(tokens), np.stack(logprobs)

    def _admit(self) -> None:
        """Prompts into free slots, `prefill_rows` different ones at a time; equal prompts are computed once."""
        free = deque(slot for slot in range(self.slots) if slot not in self._live)
        if free and self._waiting:
            self._make_room()
        while free and self._waiting:
            prompts: dict[tuple[int, ...], int] = {}
            placed: list[tuple[int, int, Request]] = []
            while free and self._waiting:
                number, request = self._waiting[0]
                if request.prompt_ids not in prompts and len(prompts) == self.prefill_rows:
                    break
                self._waiting.popleft()
                row = prompts.setdefault(request.prompt_ids, len(prompts))
                slot = free.popleft()
                self._live[slot] = Live(number, request)
                placed.append((row, slot, request))
            self._state = self._place(self._state, list(prompts), placed)

    def _make_room(self) -> None:
        """The caches as long as the requests at hand need, in steps of `grain`: attention costs their length."""
        requests = [live.request for live in self._live.values()] + [request for _, request in self._waiting]
        room = max(max(len(r.prompt_ids) + r.sampling.max_tokens, bucket(len(r.prompt_ids))) for r in requests)
        room = -(-room // self.grain) * self.grain
        if not self._live or self._state is None:
            self._state = engine.init_state(self.cfg, self.slots, room)
        elif room > self._state.capacity:
            self._state = self._grow(self._state, room)

    def _place(self, state, prompts: list[tuple[int, ...]], placed: list[tuple[int, int, Request]]):
        rows = 1 if len(prompts) == 1 else self.prefill_rows
        length = bucket(max(len(prompt) for prompt in prompts))
        self.counters.prompt_tokens += sum(map(len, prompts))
        prefix = self._prefill(self._weights, *engine.pad_prompts(prompts, rows, length))
        fill = self.slots - len(placed)
        requests = [request for _, _, request in placed]

        def column(values, pad, dtype):
            return np.asarray([*values, *[pad] * fill], dtype)

        entry: Any = dict(
            row=column((row for row, _, _ in placed), 0, np.int32),
            slot=column((number for _, number, _ in placed), self.slots, np.int32),
            rng=np.stack([_key(r.seed) for r in requests] + [np.zeros(2, np.uint32)] * fill),
            temperature=column((r.sampling.temperature for r in requests), 0, np.float32),
            top_k=column((r.sampling.top_k for r in requests), 0, np.int32),
            top_p=column((r.sampling.top_p for r in requests), 1, np.float32),
        )
        return self._insert(state, prefix, engine.Admission(**jax.tree.map(jnp.asarray, entry)))

    def _advance(self, live: Live, tokens: np.ndarray, logprobs: np.ndarray) -> Completion | None:
        """Takes the new tokens of a request up to its end, if it has reached one."""
        settings = live.request.sampling
        for token, logprob in zip(tokens.tolist(), logprobs.tolist(), strict=True):
            live.tokens.append(token)
            live.logprobs.append(logprob)
            live.versions.append(self.version)
            if token in self.tokenizer.stop_ids or token in settings.stop_ids:
                return self._finish(live, 'stop')
            if settings.stop:
                longest = max(len(stop.encode()) for stop in settings.stop)  # in tokens it is no longer than in bytes
                tail = self.tokenizer.text_of(live.tokens[-longest:])
                if any(stop in tail for stop in settings.stop):
                    return self._finish(live, 'stop')
            if len(live.tokens) == settings.max_tokens:
                return self._finish(live, 'length')
        return None

    def _finish(self, live: Live, reason: FinishReason) -> Completion:
        text = self.tokenizer.text_of(live.tokens)
        return Completion(text, tuple(live.tokens), tuple(live.logprobs), reason, tuple(live.versions))


def bucket(length: int, smallest: int = 64) -> int:
    """The next power of two: how long a prompt is padded to."""
    return max(smallest, 1 << (length - 1).bit_length())


def _key(seed: int) -> np.ndarray:
    """The threefry key of `jax.random.PRNGKey(seed)`, without a device call."""
    return np.asarray([(seed >> 32) & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)
