"""The messages between the decode server and its clients: msgpack of plain values, all checked on arrival.

Arrays are sent as bytes, with a name, a shape and a dtype that the receiver expects. Nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import msgpack
import numpy as np
from flax import traverse_util
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.driver import SwapPolicy
from pal_jax.decode.requests import Request
from pal_jax.models import params as model_params
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.types import Completion, FinishReason, Sampling

SERVICE = 'pal_jax.Rollout'
# The largest number of bytes of weights in a message.
CHUNK = 16 << 20
LIMIT = 64 << 20  # bytes of a message
OPTIONS = (
    ('grpc.max_send_message_length', LIMIT),
    ('grpc.max_receive_message_length', LIMIT),
    # A peer whose machine is gone is noticed.
    ('grpc.keepalive_time_ms', 30_000),
    ('grpc.http2.min_recv_ping_interval_without_data_ms', 10_000),
)
# Fields of a model's config that say how it is computed, and not which model it is.
HOW = ('act_dtype', 'attention', 'unroll', 'logit_states', 'remat', 'max_len', 'exact', 'tile')

Token = Annotated[int, Field(ge=0, lt=2**31)]


class Message(BaseModel):
    """A message whose fields are checked strictly."""

    model_config = ConfigDict(extra='forbid', strict=True)


class Ask(Message):
    """A request for one completion. The defaults are those of `Sampling`."""

    prompt: Annotated[str, Field(min_length=1)] | Annotated[list[Token], Field(min_length=1)]
    seed: int = Field(0, ge=0, lt=2**64)
    temperature: float = Field(1.0, allow_inf_nan=False)
    top_k: int = Field(0, lt=2**31)
    top_p: float = Field(1.0, allow_inf_nan=False)
    max_tokens: int = Field(64, lt=2**31)
    stop: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field([], max_length=16)
    stop_ids: list[Token] = Field([], max_length=256)


class Batch(Message):
    """The requests of one call."""

    requests: list[Ask] = Field(min_length=1, max_length=1 << 16)


class Answer(Message):
    """The end of request number `index` of a batch."""

    index: int
    text: str
    tokens: list[int]
    logprobs: list[float]
    policy_logprobs: list[float]
    versions: list[int]
    finish_reason: FinishReason


class Answers(Message):
    """The answers that ended together."""

    answers: list[Answer]


class Tensor(Message):
    """The shape and dtype of a tensor that follows."""

    shape: list[int]
    dtype: Literal['float32', 'bfloat16']


class UpdateHeader(Message):
    """The first message of new weights."""

    version: int = Field(ge=0, lt=2**31)
    policy: SwapPolicy
    tensors: dict[str, Tensor]


class Chunk(Message):
    """A piece of one tensor's bytes. Pieces are sent in order."""

    name: str
    offset: int
    data: bytes = Field(min_length=1, max_length=CHUNK)


class Commit(Message):
    """The last message of new weights, after all of their bytes."""

    commit: Literal[True]


class Status(Message):
    """The model of a server, and its requests under way."""

    name: str
    model: dict[str, Any]
    stop_ids: list[int]
    version: int
    slots: int
    free: int
    accepted: int
    room: int
    # The number of requests so far whose caller did not wait for their end.
    left: int


def pack(message: Message) -> bytes:
    """The bytes of a message."""
    return msgpack.packb(message.model_dump())  # type: ignore[return-value]


def unpack(kind: type[Message], data: bytes) -> Any:
    """The message of a type from its bytes. Raises ValueError where the bytes are no such message."""
    try:
        return kind.model_validate(msgpack.unpackb(data))
    except ValidationError as error:
        first = error.errors()[0]
        where = '.'.join(map(str, first['loc'])) or kind.__name__
        raise ValueError(f'{where}: {first["msg"]}') from None
    # Msgpack raises errors of many types.
    except Exception as error:
        raise ValueError(f'this is not msgpack: {error}') from None


# --- requests and answers --------------------------------------------------------------------------------------------


def ask(request: Request) -> Ask:
    """The message of a request."""
    settings = dataclasses.asdict(request.sampling)
    settings |= {'stop': list(request.sampling.stop), 'stop_ids': list(request.sampling.stop_ids)}
    return Ask(prompt=list(request.prompt_ids), seed=request.seed, **settings)


def request_of(ask: Ask, tokenizer: Tokenizer) -> Request:
    """The request of a message. Raises ValueError where a setting is out of its range."""
    ids = tokenizer.prompt(ask.prompt) if isinstance(ask.prompt, str) else ask.prompt
    sampling = Sampling(ask.temperature, ask.top_k, ask.top_p, ask.max_tokens, tuple(ask.stop), tuple(ask.stop_ids))
    return Request(tuple(ids), sampling, ask.seed)


def answer(index: int, completion: Completion) -> Answer:
    """The message of a completion, as the answer to request number `index`."""
    return Answer(
        index=index,
        text=completion.text,
        tokens=list(completion.token_ids),
        logprobs=list(completion.logprobs),
        policy_logprobs=list(completion.policy_logprobs),
        versions=list(completion.versions),
        finish_reason=completion.finish_reason,
    )


def completion_of(answer: Answer) -> Completion:
    """The completion in an answer."""
    return Completion(
        answer.text,
        tuple(answer.tokens),
        tuple(answer.logprobs),
        answer.finish_reason,
        policy_logprobs=tuple(answer.policy_logprobs),
        versions=tuple(answer.versions),
    )


# --- the model and its weights ---------------------------------------------------------------------------------------


def identity(cfg: ModelConfig) -> dict[str, Any]:
    """The fields of a config that identify the model, without those that say how it is computed."""
    facts = dataclasses.asdict(cfg) | {'pattern': [dataclasses.asdict(kind) for kind in cfg.pattern]}
    return {name: value for name, value in facts.items() if name not in HOW}


def update(params: Params, version: int, policy: SwapPolicy) -> Iterator[bytes]:
    """The messages of new weights."""
    leaves: dict[str, Any] = traverse_util.flatten_dict(params, sep='/')
    tensors = {name: {'shape': list(x.shape), 'dtype': str(x.dtype)} for name, x in leaves.items()}
    yield pack(UpdateHeader.model_validate({'version': version, 'policy': policy, 'tensors': tensors}))
    for name, x in leaves.items():
        data = np.ascontiguousarray(x).reshape(-1).view(np.uint8)
        for offset in range(0, len(data), CHUNK):
            yield pack(Chunk(name=name, offset=offset, data=data[offset : offset + CHUNK].tobytes()))
    yield pack(Commit(commit=True))


def read_update(messages: Iterator[bytes], cfg: ModelConfig) -> tuple[UpdateHeader, Params]:
    """The header and the parameters of new weights, from their messages.

    Raises:
      ValueError: the weights are of another model, out of order, or end before their commit.
    """
    header: UpdateHeader = unpack(UpdateHeader, next(messages, b''))
    expected: dict[str, Any] = traverse_util.flatten_dict(model_params.decoder_specs(cfg), sep='/', is_leaf=_is_spec)
    # The shapes are checked before any memory is taken for them.
    _check_tensors(header.tensors, {name: list(spec.shape) for name, spec in expected.items()})
    arrays = {name: np.empty(tensor.shape, jnp.dtype(tensor.dtype)) for name, tensor in header.tensors.items()}
    views = {name: x.reshape(-1).view(np.uint8) for name, x in arrays.items()}
    filled = dict.fromkeys(arrays, 0)
    for message in messages:
        # Only a short message can be the commit, so chunks are not compared with it.
        if len(message) < 64 and message == pack(Commit(commit=True)):
            break
        _take(unpack(Chunk, message), views, filled)
    else:
        raise ValueError('the update ended before its commit; nothing has changed')
    for name, view in views.items():
        if filled[name] != len(view):
            raise ValueError(f'{name} has {filled[name]} of {len(view)} bytes at the commit; nothing has changed')
    return header, traverse_util.unflatten_dict(arrays, sep='/')


def _is_spec(_: Any, value: Any) -> bool:
    return model_params.is_spec(value)


def _check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, list[int]]) -> None:
    for name in sorted(tensors.keys() ^ expected.keys()):
        raise ValueError(f'the weights are of another model: {name} is {"not in it" if name in tensors else "missing"}')
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise ValueError(f'the weights are of another model: {name} has shape {tensors[name].shape}, not {shape}')


def _take(chunk: Chunk, views: dict[str, np.ndarray], filled: dict[str, int]) -> None:
    # Pieces come in order, so no byte is missing or written twice.
    if chunk.name not in views or chunk.offset != filled[chunk.name]:
        raise ValueError(f'a chunk of {chunk.name} at byte {chunk.offset} is out of order')
    end = chunk.offset + len(chunk.data)
    if end > len(views[chunk.name]):
        raise ValueError(f'{chunk.name} has {len(views[chunk.name])} bytes, got {end}')
    views[chunk.name][chunk.offset : end] = np.frombuffer(chunk.data, np.uint8)
    filled[chunk.name] = end
