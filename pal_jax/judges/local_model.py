"""A model on this machine as a chat model, for example the frozen base policy that plays a user."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.requests import Request, check
from pal_jax.models.files.sources import Source
from pal_jax.run import devices
from pal_jax.types import Chat, Sampling


class LocalModel:
    """A `ChatModel` on this process's devices, beside the models that are trained there."""

    def __init__(self, source: Source, mesh: Mesh, sampling: Sampling, *, slots: int):
        self._source, self._mesh, self._sampling, self._slots = source, mesh, sampling, slots
        self._tokenizer = source.tokenizer()
        self._cfg = devices.for_platform(source.config)
        self._decoder: LocalDecoder | None = None

    @property
    def longest(self) -> int:
        """The number of tokens that an answer to an empty message may have."""
        return self._cfg.max_len - len(self._tokenizer.chat([{'role': 'user', 'content': ''}]))

    def __call__(self, chats: Sequence[Chat], seed: int, sampling: Sampling | None = None) -> list[str | None]:
        """Answers in the order of the chats, by another `sampling` if it is given; None where a chat is too long for
        the model."""
        sampling = sampling or self._sampling
        requests = {i: request for i, chat in enumerate(chats) if (request := self._request(chat, seed, sampling))}
        completions = dict(zip(requests, self._opened()(list(requests.values())), strict=True))
        return [
            self._tokenizer.thinking(requests[i].prompt_ids, completions[i].text) if i in requests else None
            for i in range(len(chats))
        ]

    def _request(self, chat: Chat, seed: int, sampling: Sampling) -> Request | None:
        prompt = tuple(self._tokenizer.chat([dict(message) for message in chat]))
        # The seed of a chat follows from its tokens, so chats may be batched in any way.
        entropy = np.random.SeedSequence([seed, zlib.crc32(np.asarray(prompt, np.int32).tobytes())])
        request = Request(prompt, sampling, int(entropy.generate_state(1, np.uint64)[0]))
        try:
            check(request, self._cfg)
        except ValueError:
            return None
        return request

    def _opened(self) -> LocalDecoder:
        # The weights are read at the first call and stay in memory.
        if self._decoder is None:
            self._decoder = LocalDecoder(self._cfg, self._tokenizer, self._mesh, slots=self._slots)
            self._decoder.load(self._source.load(self._decoder.param_shardings))
        return self._decoder
