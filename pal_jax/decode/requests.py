"""Requests to a decoder and their results, for every program that drives the engine."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from pal_jax.data.packing import round_up
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode import engine, sampling
from pal_jax.models.config import ModelConfig
from pal_jax.types import Completion, FinishReason, Sampling


class TooLong(ValueError):
    """The error of a prompt that has, with its completion, more tokens than the model has room for."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A request for one completion. The result depends on these fields and the weights, never on other requests.

    `mixture`: the weights of a soup's adapters (see `models.soups`), with sum 1; None is their base alone.
    `alternatives`: the number of likeliest tokens, up to `ALTERNATIVES`, that come with each token. `LocalDecoder`
    alone has them.
    `continues`: True where the completion is read as going on with the prompt's text, with the space of its first word,
    in which a stop string may begin.
    """

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    seed: int
    mixture: tuple[float, ...] | None = None
    alternatives: int = 0
    continues: bool = False


# Tokens and their log-probs, the likeliest first.
Alternatives = tuple[tuple[int, float], ...]
# The largest number of alternatives, as in OpenAI's API.
ALTERNATIVES = 20
# The fewest slots whose product with a weight rounds as it does in training, for each type of what is multiplied: XLA
# adds up fewer rows in another order.
EXACT_SLOTS = {'float32': 64, 'bfloat16': 8}
# The number of last tokens of a prompt with which the text of its completion is decoded.
CONTEXT = 16
# A function of the place of a request and its completion.
Told = Callable[[int, Completion], None]


class RequestProgress(NamedTuple):
    """The tokens that a step gave one request. The last progress of a request has its `completion`.

    `version` is that of the weights. `alternatives` has those of each token, where the request asks for some.
    """

    number: int
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    completion: Completion | None
    version: int = 0
    alternatives: tuple[Alternatives, ...] = ()


class News(NamedTuple):
    """The progress of one of several requests, whose place among them is `number`."""

    number: int
    progress: RequestProgress


class PromptLogprobs(NamedTuple):
    """The log-probs of a prompt's tokens under softmax(logits), each after all tokens before it.

    The first token has no log-prob and no alternatives.
    """

    logprobs: tuple[float | None, ...]
    alternatives: tuple[Alternatives, ...]
    version: int = 0


@dataclasses.dataclass
class LiveRequest:
    """A request in a slot. It decodes once its prompt is in the cache (`ready`).

    `weights` is the number of the weights that computed the prompt; a decoder numbers them as it loads them.
    """

    number: int
    request: Request
    ready: bool = False
    weights: int = 0
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    policy_logprobs: list[float] = dataclasses.field(default_factory=list)
    versions: list[int] = dataclasses.field(default_factory=list)


def for_slots(cfg: ModelConfig, slots: int, platform: str | None = None, ways: int = 1) -> tuple[ModelConfig, int]:
    """The config and the number of slots that decode fastest for `slots` requests, or in which a decoder is exact; by
    default on this platform. The slots are spread over `ways` devices."""
    if (platform or jax.default_backend()) != 'cpu':
        return cfg, slots
    if cfg.exact:
        return cfg, ways * max(round_up(-(-slots // ways), 8), EXACT_SLOTS[cfg.dtype])
    # A CPU multiplies rows in groups of eight, so that 25 rows take more time than 32. It multiplies a single row
    # fastest in float32.
    return (dataclasses.replace(cfg, dtype='float32'), 1) if slots == 1 else (cfg, round_up(slots, 8))


def check(request: Request, cfg: ModelConfig, adapters: int = 0, prompt_only: bool = False) -> None:
    """Raise ValueError where a model, whose weights have `adapters` adapters to mix, cannot meet a request.

    It is TooLong where the model has too little room. With `prompt_only`, no tokens are to follow the prompt.
    """
    mixture = request.mixture
    if mixture is not None and not (adapters == len(mixture) and abs(sum(mixture) - 1) <= 1e-6):
        raise ValueError(
            f'mixture has {len(mixture)} weights with sum {sum(mixture):g}, the model {adapters} adapters to '
            'mix; give one weight each, with sum 1'
        )
    length, vocab = len(request.prompt_ids), cfg.vocab
    if not length:
        raise ValueError(f'the prompt is empty; a prompt has one or more token ids from 0 to {vocab - 1}')
    if min(request.prompt_ids) < 0 or max(request.prompt_ids) >= vocab:
        raise ValueError(f'a prompt has one or more token ids from 0 to {vocab - 1}')
    room = length + (0 if prompt_only else request.sampling.max_tokens)
    if room > cfg.max_len:
        raise TooLong(
            f'a prompt and its completion need {room} tokens, the model has room for {cfg.max_len}; '
            'shorten the prompt (fewer rounds of a dialogue) or max_tokens'
        )


def admission(placed: Sequence[tuple[int, int, Request]], slots: int) -> engine.Admission:
    """The admission of rows of a prefix into slots, from (row, slot, request), with the requests' settings."""
    # All admissions have as many entries as there are slots, so one program is compiled.
    fill, requests = slots - len(placed), [request for _, _, request in placed]

    def column(values: Iterable[float], dtype: Any) -> np.ndarray:
        return np.asarray([*values, *[0] * fill], dtype)

    entry: Any = dict(
        size=np.int32(len(placed)),
        row=column((row for row, _, _ in placed), np.int32),
        slot=column((slot for _, slot, _ in placed), np.int32),
        rng=np.stack([_key(r.seed) for r in requests] + [np.zeros(2, np.uint32)] * fill),
        temperature=column((r.sampling.temperature for r in requests), np.float32),
        top_k=column((r.sampling.top_k for r in requests), np.int32),
        top_p=column((r.sampling.top_p for r in requests), np.float32),
    )
    return engine.Admission(**entry)


def advance(
    live: LiveRequest,
    tokenizer: Tokenizer,
    version: int,
    tokens: Sequence[int],
    logprobs: Sequence[float],
    policy_logprobs: Sequence[float],
) -> FinishReason | None:
    """Add the new tokens of a request up to its end. The result is the reason of its end, None if it goes on."""
    settings = live.request.sampling
    for token, logprob, policy_logprob in zip(tokens, logprobs, policy_logprobs, strict=True):
        live.tokens.append(token)
        live.logprobs.append(logprob)
        live.policy_logprobs.append(policy_logprob)
        live.versions.append(version)
        if token in tokenizer.stop_ids or token in settings.stop_ids:
            return 'stop'
        if settings.stop:
            # A stop string has no more tokens than bytes.
            longest = max(len(stop.encode()) for stop in settings.stop)
            before = live.request.prompt_ids[-CONTEXT:] if live.request.continues else ()
            # One more token is read, since the space of the first one may be dropped.
            tail = tokenizer.last_text(live.tokens, longest + 1, before)
            if any(stop in tail for stop in settings.stop):
                return 'stop'
        if len(live.tokens) == settings.max_tokens:
            return 'length'
    return None


def alternatives_of(top: sampling.LikeliestTokens, place: Any, count: int) -> tuple[Alternatives, ...]:
    """The `count` likeliest tokens of each row that `place` selects, without tokens of probability 0."""
    pairs = zip(top.tokens[place].tolist(), top.logprobs[place].tolist(), strict=True)
    listed = (list(zip(*row, strict=True))[:count] for row in pairs)
    return tuple(tuple(pair for pair in row if pair[1] > -math.inf) for row in listed)


def finish(live: LiveRequest, tokenizer: Tokenizer, reason: FinishReason) -> Completion:
    """The completion of a request, from the tokens that it has."""
    return Completion(
        tokenizer.text_of(live.tokens),
        tuple(live.tokens),
        tuple(live.logprobs),
        reason,
        policy_logprobs=tuple(live.policy_logprobs),
        versions=tuple(live.versions),
    )


def completion_of(record: Mapping[str, Any]) -> Completion:
    """A completion from its `dataclasses.asdict`, also after that went through JSON text."""
    values: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    return Completion(**values)


def bucket(length: int, unit: int) -> int:
    """A length rounded up to 1, 2, 3, 4, 6, 8, 12, 16, ... units: few sizes, of which at most a third is padding."""
    units = -(-length // unit)
    step = 1 << max((units - 1).bit_length() - 2, 0)
    return -(-units // step) * step * unit


def _key(seed: int) -> np.ndarray:
    """The threefry key of `jax.random.PRNGKey(seed)`, without a device call."""
    return np.asarray([(seed >> 32) & 0xFFFFFFFF, seed & 0xFFFFFFFF], np.uint32)
