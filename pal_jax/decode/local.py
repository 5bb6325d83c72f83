"""Continuous batching in the trainer's own process.

A slot is a row of the cache of keys and values and decodes one request at a time. It takes the next request of the
queue when its own has ended.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pal_jax.data.packing import round_up
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode import engine
from pal_jax.decode.prefixes import WORTH, Prefixes, common
from pal_jax.decode.programs import programs_of
from pal_jax.decode.requests import (
    ALTERNATIVES,
    LiveRequest,
    PromptLogprobs,
    Request,
    RequestProgress,
    Told,
    admission,
    advance,
    alternatives_of,
    bucket,
    check,
    finish,
    for_slots,
)
from pal_jax.models import soups
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.run import sharding
from pal_jax.types import Completion, FinishReason

# The share of a prefill's rows that prompts have to fill; with fewer prompts, one at a time costs less than padding.
FULL = 0.75


@dataclasses.dataclass(eq=False)
class PendingPrompt:
    """A prompt on its way into the caches of `slots`, which all sample from it.

    The first slot gets every chunk of it, and all slots get it when it is complete. `done` of its tokens are in the
    cache of slot `source`.
    """

    tokens: tuple[int, ...]
    slots: list[int]
    mixture: tuple[float, ...] | None = None
    source: int = 0
    done: int = 0


@dataclasses.dataclass
class Counters:
    """Counts of work since the start, from which rates and shares are computed."""

    requests: int = 0
    prompt_tokens: int = 0  # computed
    reused_tokens: int = 0  # tokens of prompts that were found in a cache
    tokens: int = 0  # sampled tokens that belong to a request
    slot_steps: int = 0  # slots times steps, the largest possible number of tokens


class LocalDecoder:
    """A decoder that drives the engine's pure functions. `slots` requests decode at once.

    Prompts are padded and caches rounded up to few sizes, so few programs are compiled. A prompt is prefilled in chunks
    of `chunk` tokens, between the steps of other requests. It starts from the longest prefix of it that is in any slot,
    such as the same prompt, an earlier turn of its dialogue, or a system prompt. The cache of a slot belongs to the
    weights that it began with and to one mixture of adapters (see `models.soups`), and only prompts of both start from
    it.

    Args:
      stride: steps between two transfers to the host.
      grain: the caches' unit of length, in tokens; a server takes a large one, as its requests grow turn by turn.
      int8: decodes with weights of eight bits.
      reuse: False to start no prompt from a cache. Equal prompts at hand then share a prefill and no others.
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
        chunk: int = 512,
        reuse: bool = True,
        int8: bool = False,
        grain: int = 128,
    ):
        ways = sharding.batch_ways(mesh)
        cfg, slots = for_slots(cfg, slots, ways=ways)
        self.cfg, self.tokenizer, self.mesh = cfg, tokenizer, mesh
        self.slots, self.stride, self.reuse = round_up(slots, ways), stride, reuse
        self.chunk = bucket(chunk, 64)
        # The rows of a small and of a large prefill.
        self._rows = ways, round_up(prefill_rows, ways)
        self.grain = grain
        self._alternatives = min(ALTERNATIVES, cfg.vocab)
        self.version, self.counters = 0, Counters()
        self._weights: Params | None = None
        # The number of weights loaded so far; versions come from the caller and may repeat.
        self._loaded = 0
        self._mixtures = np.zeros((self.slots, 0), np.float32)  # a row for each slot
        self._state: engine.DecodeState | None = None
        self._prefixes = Prefixes(self.slots)
        self._waiting: deque[tuple[int, Request]] = deque()
        self._prompts: list[PendingPrompt] = []
        self._live: dict[int, LiveRequest] = {}  # the requests in slots, by slot
        self._programs = programs_of(cfg, mesh, slots=self.slots, int8=int8)
        self.param_shardings = self._programs.param_shardings

    def load(self, params: Params, version: int = 0) -> None:
        """Decode with these parameters from now on: plain and merged ones, or a soup of adapters.

        Requests under way go on with the new parameters.

        Raises:
          ValueError: a request under way mixes other adapters.
        """
        self._adapters(params)
        # The old weights are freed first.
        self._weights = None
        self.use(self._programs.publish(params), version)

    def use(self, weights: Params, version: int = 0) -> None:
        """Load weights that `Programs.publish` has put on the decoder's mesh in the form for decoding."""
        adapters = self._adapters(weights)
        self._weights, self.version, self._loaded = weights, version, self._loaded + 1
        self._mixtures = np.zeros((self.slots, adapters), np.float32)
        for slot, live in self._live.items():
            self._mixtures[slot] = self._row(live.request.mixture)
        # The caches come from the old weights, so no prompt starts from them any more.
        self._prefixes.clear()
        # Prompts on their way are computed again from their beginning.
        for prompt in self._prompts:
            prompt.done = 0

    def _adapters(self, weights: Params) -> int:
        """The number of adapters to mix. Raises ValueError where a request at hand mixes another number."""
        adapters = soups.count(weights)
        for request in self._at_hand():
            check(request, self.cfg, adapters)
        return adapters

    def release(self) -> None:
        """Give back the memory of the weights, and of caches in which nothing decodes, until the next `load`."""
        self._weights = None
        if not self._live:
            self._drop_caches()

    def reset(self) -> None:
        """Drop every request and the caches, after a step that raised."""
        self._drop_caches()
        self._waiting.clear()
        self._prompts.clear()
        self._live.clear()

    def _drop_caches(self) -> None:
        self._state = None
        self._prefixes.clear()

    @property
    def free(self) -> int:
        """The number of slots in which nothing decodes and for which no request waits."""
        return self.slots - len(self._live) - len(self._waiting)

    def check(self, request: Request, prompt_only: bool = False) -> None:
        """Raise ValueError where the model cannot meet a request. With `prompt_only`, no tokens are to follow."""
        check(request, self.cfg, self._mixtures.shape[1], prompt_only)

    def add(self, request: Request) -> int:
        """Put a request in line and return its number.

        Raises:
          ValueError: the model cannot meet the request.
        """
        self.check(request)
        return self._queue(request)

    def _queue(self, request: Request) -> int:
        self.counters.requests += 1
        self._waiting.append((self.counters.requests, request))
        return self.counters.requests

    def cancel(self, number: int) -> Completion | None:
        """Take a request back and return the completion that it has so far; None if it had ended."""
        for entry in self._waiting:
            if entry[0] == number:
                self._waiting.remove(entry)
                return Completion('', (), (), 'aborted')
        for slot, live in self._live.items():
            if live.number == number:
                return self._leave(slot, 'aborted')
        return None

    def step(self) -> list[RequestProgress]:
        """Fill free slots and decode `stride` tokens in each slot. The result is the progress of the requests.

        A request that is decoding waits in a step for about `chunk` tokens of prompts at most, unless more prompts than
        an eighth of the slots are to come.

        Raises:
          RuntimeError: no weights are loaded.
        """
        if self._weights is None:
            raise RuntimeError('the decoder has no weights; call load(params) first')
        self._admit()
        decoding, prefilled = any(live.ready for live in self._live.values()), 0
        while self._prompts:
            # Many prompts to come leave many slots empty, so they are not put off.
            if decoding and prefilled >= self.chunk and 8 * len(self._prompts) <= self.slots:
                break
            prefilled += self._prefill_batch(alone=not decoding)
        if not self._live:
            return []
        sampled, *likeliest = self._decode()
        progress = []
        for slot, live in list(self._live.items()):
            # The slot's prompt is still on its way, and the token means nothing.
            if not live.ready:
                continue
            before = len(live.tokens)
            ended = advance(live, self.tokenizer, self.version, *(column[:, slot].tolist() for column in sampled))
            news = tuple(live.tokens[before:]), tuple(live.logprobs[before:])
            self.counters.tokens += len(news[0])
            others, count = (), live.request.alternatives
            if count:
                others = alternatives_of(likeliest[0], np.s_[: len(news[0]), slot], count)
            completion = self._leave(slot, ended) if ended else None
            progress.append(RequestProgress(live.number, *news, completion, self.version, others))
        return progress

    def score(self, request: Request) -> Iterator[PromptLogprobs]:
        """The log-probs of a prompt's tokens, in pieces of a chunk at most.

        A piece is computed when it is asked for, beside other requests, and takes no slot. Weights may not change
        between the pieces.

        Raises:
          ValueError: the model cannot meet the request.
          RuntimeError: no weights are loaded.
        """
        self.check(request, prompt_only=True)
        if self._weights is None:
            raise RuntimeError('the decoder has no weights; call load(params) first')
        ids, rows = request.prompt_ids, self._rows[0]
        size = bucket(min(len(ids), self.chunk), 64)
        cache = self._programs.blank(rows, round_up(len(ids), size))
        mixtures = np.zeros((rows, self._mixtures.shape[1]), np.float32)
        mixtures[:] = self._row(request.mixture)
        mixed = self._mixed(mixtures)
        yield PromptLogprobs((None,), ((),), self.version)
        for start in range(0, len(ids) - 1, size):
            piece, targets = ids[start : start + size], ids[start + 1 : start + size + 1]
            tokens, length = engine.pad_prompts([piece], rows, size)
            padded = self._place((tokens, engine.pad_prompts([targets], rows, size)[0], length))
            cache, scores = self._programs.score(self._weights, cache, *padded, mixed, self._alternatives)
            host_scores, place = jax.device_get(scores), np.s_[0, : len(targets)]
            others = alternatives_of(host_scores.likeliest, place, request.alternatives)
            yield PromptLogprobs(tuple(host_scores.logprob[place].tolist()), others, self.version)

    def __call__(self, requests: Sequence[Request], on_completion: Told | None = None) -> list[Completion]:
        """The completions, in the order of the requests.

        `on_completion(place, completion)` is called when a completion has ended.

        Raises:
          ValueError: a request does not fit the model's context.
          RuntimeError: no weights are loaded, or other requests are under way.
        """
        if self._live or self._waiting:
            raise RuntimeError('this decoder has requests under way; add() yours to them')
        for request in requests:
            self.check(request)
        # Requests that may become longest start first: the slots become empty together at the end, and prompts of
        # similar length are prefilled together.
        lengths = [(request.sampling.max_tokens, len(request.prompt_ids)) for request in requests]
        longest_first = sorted(range(len(requests)), key=lengths.__getitem__, reverse=True)
        places = {self._queue(requests[i]): i for i in longest_first}
        done: dict[int, Completion] = {}
        while len(done) < len(places):
            ended = {places[news.number]: news.completion for news in self.step() if news.completion is not None}
            done |= ended
            if on_completion:
                for place, completion in ended.items():
                    on_completion(place, completion)
        return [done[i] for i in range(len(requests))]

    def _decode(self) -> list[Any]:
        """The samples of `stride` steps, arrays [stride, slots], and the likeliest tokens if a request wants them."""
        steps, mixtures = [], self._mixed(self._mixtures)
        telling = any(live.request.alternatives for live in self._live.values())
        for _ in range(self.stride):
            if telling:
                args = self._weights, self._state, mixtures, self._alternatives
                self._state, *sampled = self._programs.generate_telling(*args)
            else:
                self._state, *sampled = self._programs.generate(self._weights, self._state, mixtures)
            steps.append(sampled)
        self.counters.slot_steps += self.slots * self.stride
        return jax.tree.map(lambda *rows: np.stack(rows), *jax.device_get(steps))

    def _row(self, mixture: tuple[float, ...] | None) -> Any:
        """A mixture as weights of all adapters; weights of 0 are the base alone."""
        return 0.0 if mixture is None else mixture

    def _mixed(self, rows: np.ndarray) -> Any:
        """The mixtures on the devices; None where there are no adapters."""
        return self._place((rows,))[0] if rows.shape[1] else None

    # --- from the line into slots ------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Give slots to the requests in line. Equal prompts are computed once."""
        free = [slot for slot in range(self.slots) if slot not in self._live]
        if free and self._waiting:
            self._make_room()
        while free and self._waiting:
            number, request = self._waiting.popleft()
            key = request.prompt_ids, request.mixture
            prompt = next((waiting for waiting in self._prompts if (waiting.tokens, waiting.mixture) == key), None)
            slot = self._choose(free, request.prompt_ids if prompt is None else (), request.mixture)
            free.remove(slot)
            self._live[slot] = LiveRequest(number, request)
            self._mixtures[slot] = self._row(request.mixture)
            if prompt is None:
                self._prompts.append(PendingPrompt(request.prompt_ids, [slot], request.mixture))
            else:
                prompt.slots.append(slot)

    def _choose(self, free: Sequence[int], tokens: Sequence[int], mixture: tuple[float, ...] | None) -> int:
        """A free slot for a prompt. The slot that the prompt can start from is taken if it holds nothing more, or if no
        free slot is empty; otherwise the slot that was not used for longest."""
        slot, count = self._start(tokens, mixture)
        oldest = self._prefixes.oldest(free)
        goes_on = count > 0 and count == self._prefixes.held(slot)
        if slot in free and count and (goes_on or self._prefixes.held(oldest)):
            self._prefixes.forget(slot, count)
            return slot
        self._prefixes.forget(oldest)
        return oldest

    def _start(self, tokens: Sequence[int], mixture: tuple[float, ...] | None) -> tuple[int, int]:
        """The slot that has most of a prompt's first tokens, and their number. The last token is always computed."""
        slot, count = self._prefixes.longest(tokens[:-1], mixture, self._loaded) if self.reuse else (0, 0)
        return (slot, count) if count >= WORTH else (0, 0)

    def _make_room(self) -> None:
        """Make the caches as long as the requests at hand need."""
        prompts = (bucket(min(len(r.prompt_ids), self.chunk), 64) for r in self._at_hand())
        final_lengths = (len(r.prompt_ids) + r.sampling.max_tokens for r in self._at_hand())
        room = bucket(max(*prompts, *final_lengths), self.grain)
        # Attention costs the caches' whole length, so caches also shrink once nothing decodes in them.
        if self._state is None or (not self._live and 2 * room <= self._state.capacity):
            self._drop_caches()
            self._state = self._programs.init(room)
        elif room > self._state.capacity:
            self._state = self._programs.grow(self._state, room)

    def _at_hand(self) -> list[Request]:
        """The requests in slots and in the queue."""
        return [live.request for live in self._live.values()] + [request for _, request in self._waiting]

    # --- prompts into the cache --------------------------------------------------------------------------------------

    def _prefill_batch(self, alone: bool) -> int:
        """Prefill the next chunk of a few prompts, and return the number of tokens computed, padding included.

        Prompts that are complete then start to decode. `alone` says that no request is decoding.
        """
        batch, size = self._next_batch(alone)
        rows = self._rows[len(batch) > self._rows[0]]
        pieces = [prompt.tokens[prompt.done : prompt.done + self.chunk] for prompt in batch]
        padded = self._place(engine.pad_prompts(pieces, rows, size))
        mixtures = np.zeros((rows, self._mixtures.shape[1]), np.float32)
        mixtures[: len(batch)] = [self._mixtures[prompt.slots[0]] for prompt in batch]
        mixed = self._mixed(mixtures)
        if any(prompt.done for prompt in batch):
            source, start = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
            source[: len(batch)] = [prompt.source for prompt in batch]
            start[: len(batch)] = [prompt.done for prompt in batch]
            prefix = self._programs.extend(self._weights, self._state, *self._place((source, start)), *padded, mixed)
        else:
            prefix = self._programs.prefill(self._weights, *padded, mixed)
        placed = []
        for row, (prompt, piece) in enumerate(zip(batch, pieces, strict=True)):
            complete = prompt.done + len(piece) == len(prompt.tokens)
            self.counters.prompt_tokens += len(piece)
            # The first slot gets every chunk, and the others get the prompt when it is complete.
            for slot in prompt.slots if complete else prompt.slots[:1]:
                placed.append((row, slot))
                self._live[slot].ready, self._live[slot].weights = complete, self._loaded
            cached = prompt.tokens[: prompt.done + len(piece)]
            self._prefixes.write(prompt.slots[0], 0, cached, prompt.mixture, self._loaded)
            prompt.source, prompt.done = prompt.slots[0], len(cached)
        entry = admission([(row, slot, self._live[slot].request) for row, slot in placed], self.slots)
        self._state = self._programs.insert(self._state, prefix, entry)
        for prompt in batch:
            if prompt.done == len(prompt.tokens):
                self._prompts.remove(prompt)
        return rows * size

    def _next_batch(self, alone: bool) -> tuple[list[PendingPrompt], int]:
        """The prompts whose next chunks are computed together, and the length that the chunks are padded to.

        All chunks of a batch are padded to the same length. If the next chunks nearly fill a batch, and either no
        request is decoding or they have few tokens, they are computed together. Otherwise they are computed a few at a
        time.
        """
        batch: list[PendingPrompt] = []
        starts: list[tuple[int, int]] = []
        size = 0
        for prompt in self._prompts:
            source, start = (prompt.source, prompt.done) if prompt.done else self._start(prompt.tokens, prompt.mixture)
            padded = bucket(min(len(prompt.tokens) - start, self.chunk), 64)
            alike = [queued.tokens for queued in batch if queued.mixture == prompt.mixture]
            shared = max((common(prompt.tokens[:-1], tokens) for tokens in alike), default=0)
            # A prompt that shares a beginning with another of the batch waits, since it can start from that one.
            waits = self.reuse and not prompt.done and shared - start >= WORTH
            if waits or (batch and padded != size):
                continue
            size = padded
            batch.append(prompt)
            starts.append((source, start))
            if len(batch) == self._rows[1]:
                break
        fewest, many = self._rows
        if len(batch) < FULL * many or (not alone and many * size > self.chunk):
            del batch[fewest:], starts[fewest:]
        else:
            longest = max(len(member.tokens) - start for member, (_, start) in zip(batch, starts, strict=True))
            size = bucket(min(longest, self.chunk), 32)
        assert self._state is not None
        for prompt, (source, start) in zip(batch, starts, strict=True):
            # The padded chunk must end within the cache.
            start = min(start, self._state.capacity - size)
            self.counters.reused_tokens += 0 if prompt.done else start
            prompt.source, prompt.done = source, start
        return batch, size

    def _place(self, arrays: tuple[np.ndarray, ...]) -> tuple[Any, ...]:
        """Rows of prompts, spread over the mesh as batches are."""
        return sharding.put_batch(arrays, self.mesh)

    # --- out of slots ------------------------------------------------------------------------------------------------

    def _leave(self, slot: int, reason: FinishReason) -> Completion:
        """End the request in a slot. Its cache stays, and later prompts under the same weights can start from it."""
        live = self._live.pop(slot)
        prompt = live.request.prompt_ids
        # The last token is in no cache, so the slot's columns end before it.
        if live.ready:
            read = [prompt[-1], *live.tokens[:-1]]
            self._prefixes.write(slot, len(prompt) - 1, read, live.request.mixture, live.weights)
        else:
            self._withdraw(slot)
        return finish(live, self.tokenizer, reason)

    def _withdraw(self, slot: int) -> None:
        """Take a slot from the prompt on its way into it."""
        prompt = next(prompt for prompt in self._prompts if slot in prompt.slots)
        if prompt.slots[0] == slot:
            # The chunks are in this slot, and the next slot starts from its cache.
            prompt.done = 0
        prompt.slots.remove(slot)
        if not prompt.slots:
            self._prompts.remove(prompt)
