"""Continuous batching in the trainer's own process: requests in, completions out, slots refilled as they free up."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any

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
from pal_jax.types import Completion, Sampling


@dataclasses.dataclass(frozen=True)
class Request:
    """One completion wanted. Its result depends on these three and the weights, never on its neighbours."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    seed: int


@dataclasses.dataclass
class Slot:
    """A request under way."""

    index: int
    request: Request
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)


class LocalDecoder:
    """Drives the engine's three functions. `slots` requests decode at once; `stride` steps run per host round trip.

    Prompts are padded to powers of two and the cache to a multiple of 128, so the programs to compile are few.
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
    ):
        # A product with a single row runs outside the fast path on CPU; eight rows cost the same.
        self.cfg, self.tokenizer, self.mesh = cfg, tokenizer, mesh
        self.slots, self.prefill_rows, self.stride = max(slots, 8), prefill_rows, stride
        self._weights: Params | None = None
        specs = model_params.decoder_specs(cfg)
        shardings = sharding.param_shardings(specs, mesh, sharding.DECODE_RULES)
        self._publish = jax.jit(
            lambda params: engine.decode_weights(jax.lax.with_sharding_constraint(params, shardings), cfg)
        )
        self._prefill = jax.jit(lambda weights, tokens, length: engine.prefill(weights, cfg, tokens, length))
        self._insert = jax.jit(engine.insert, donate_argnums=0)
        self._generate = jax.jit(lambda weights, state: engine.generate(weights, cfg, state), donate_argnums=1)

    def load(self, params: Params) -> None:
        """Decodes with these (plain, merged) parameters from now on."""
        self._weights = None  # frees the old ones first
        self._weights = self._publish(params)

    def release(self) -> None:
        """Gives the weights' memory back until the next `load`."""
        self._weights = None

    def __call__(self, requests: Sequence[Request]) -> list[Completion]:
        """Completions in the order of the requests.

        Raises:
          ValueError: a request does not fit the model's context.
          RuntimeError: no weights are loaded.
        """
        if self._weights is None:
            raise RuntimeError('the decoder has no weights; call load(params) first')
        if not requests:
            return []
        room = max(len(r.prompt_ids) + r.sampling.max_tokens for r in requests)
        if room > self.cfg.max_len:
            raise ValueError(
                f'a prompt and its completion need {room} tokens, the model has room for {self.cfg.max_len}; '
                'shorten the dialogue (--config.dialogue.max_rounds) or --config.sampling.max_tokens'
            )
        room = max(room, *(bucket(len(r.prompt_ids)) for r in requests))
        state = engine.init_state(self.cfg, self.slots, -(-room // 128) * 128)
        waiting = deque(enumerate(requests))
        active: dict[int, Slot] = {}
        done: dict[int, Completion] = {}
        while waiting or active:
            state = self._admit(state, waiting, active)
            state, tokens, logprobs = self._steps(state)
            for number, slot in list(active.items()):
                completion = self._advance(slot, tokens[:, number], logprobs[:, number])
                if completion is not None:
                    done[slot.index] = completion
                    del active[number]
        return [done[i] for i in range(len(requests))]

    def _steps(self, state: engine.DecodeState) -> tuple[engine.DecodeState, np.ndarray, np.ndarray]:
        sampled = []
        for _ in range(self.stride):
            state, step = self._generate(self._weights, state)
            sampled.append(step)
        tokens, logprobs = jax.device_get((tuple(s.token for s in sampled), tuple(s.logprob for s in sampled)))
        return state, np.stack(tokens), np.stack(logprobs)

    def _admit(self, state, waiting: deque[tuple[int, Request]], active: dict[int, Slot]):
        free = deque(number for number in range(self.slots) if number not in active)
        while free and waiting:
            prompts: dict[tuple[int, ...], int] = {}
            placed: list[tuple[int, int, Request]] = []
            while free and waiting:
                index, request = waiting[0]
                if request.prompt_ids not in prompts and len(prompts) == self.prefill_rows:
                    break
                waiting.popleft()
                row = prompts.setdefault(request.prompt_ids, len(prompts))
                number = free.popleft()
                active[number] = Slot(index, request)
                placed.append((row, number, request))
            state = self._place(state, list(prompts), placed)
        return state

    def _place(self, state, prompts: list[tuple[int, ...]], placed: list[tuple[int, int, Request]]):
        rows = 1 if len(prompts) == 1 else self.prefill_rows
        length = bucket(max(len(prompt) for prompt in prompts))
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

    def _advance(self, slot: Slot, tokens: np.ndarray, logprobs: np.ndarray) -> Completion | None:
        """Takes the new tokens of one slot up to its end, if it has reached one."""
        settings = slot.request.sampling
        for token, logprob in zip(tokens.tolist(), logprobs.tolist(), strict=True):
            slot.tokens.append(token)
            slot.logprobs.append(logprob)
            if token in self.tokenizer.stop_ids or token in settings.stop_ids:
                return self._finish(slot, 'stop')
            if settings.stop:
                longest = max(len(stop.encode()) for stop in settings.stop)  # in tokens it is no longer than in bytes
                tail = self.tokenizer.text_of(slot.tokens[-longest:])
                if any(stop in tail for stop in settings.stop):
                    return self._finish(slot, 'stop')
            if len(slot.tokens) == settings.max_tokens:
                return self._finish(slot, 'length')
        return None

    def _finish(self, slot: Slot, reason) -> Completion:
        return Completion(self.tokenizer.text_of(slot.tokens), tuple(slot.tokens), tuple(slot.logprobs), reason)


def bucket(length: int, smallest: int = 64) -> int:
    """The next power of two: how long a prompt is padded to."""
    return max(smallest, 1 << (length - 1).bit_length())


def _key(seed: int) -> np.ndarray:
    """The threefry key of `jax.random.PRNGKey(seed)`, without a device call."""
    return np.asarray([(seed >> 32) & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)
