"""Messages of the `tinker` client as records of this package, and results as its messages.

Training data and samples are protobuf messages, whose compiled classes the client brings. All else is JSON, whose forms
refuse fields that they do not know.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict
from tinker.proto import tinker_public_pb2 as pb

from pal_jax.decode.requests import Alternatives, PromptLogprobs
from pal_jax.training_server.futures import Answer, UserFault
from pal_jax.training_server.losses import Datum
from pal_jax.types import Completion

PROTOBUF = 'application/x-protobuf'
# The first bytes of a forward_backward that have its model and number.
HEAD = 256
# The types of numbers of a tensor. Numbers of half precision are the upper halves of float32.
DTYPES = {
    pb.DTYPE_FLOAT32: np.float32,
    pb.DTYPE_INT64: np.int64,
    pb.DTYPE_INT32: np.int32,
    pb.DTYPE_BFLOAT16: np.uint16,
}
# The log-probability that stands where a row has fewer tokens.
NO_LOGPROB = -99999.0
REASONS = {'stop': pb.STOP_REASON_STOP, 'length': pb.STOP_REASON_LENGTH}


# --- training data ---------------------------------------------------------------------------------------------------


def read_training(body: bytes) -> pb.ForwardBackwardRequest:
    """The message of a forward_backward. Raises ValueError where the body is none."""
    try:
        return pb.ForwardBackwardRequest.FromString(body)
    # protobuf's own class of errors is no public name of the package.
    except Exception as error:
        raise ValueError(f'the body is no ForwardBackwardRequest: {error}') from None


def numbered_in(start: bytes) -> tuple[str, int] | None:
    """The model and the number of a forward_backward of which the first bytes are there; None where they lack them."""
    # The client writes the two fields before the data. A part that ends within a field is no message.
    for end in range(min(len(start), HEAD)):
        with contextlib.suppress(ValueError):
            message = read_training(start[: end + 1])
            if message.model_id and message.seq_id:
                return message.model_id, message.seq_id
    return None


def settings_of(message: pb.ForwardBackwardRequest) -> dict[str, float | str]:
    """The settings of a loss. The client writes numbers in two fields, and texts in the second alone."""
    settings: dict[str, float | str] = dict(message.loss_fn_config)
    for key, value in message.loss_fn_config_v2.items():
        settings[key] = value.text if value.WhichOneof('value') == 'text' else value.number
    return settings


def data_of(message: pb.ForwardBackwardRequest) -> list[Datum]:
    """The data of a forward_backward. Raises UserFault for anything but text and dense tensors."""
    return [
        Datum(_text(datum, place), {name: _array(x, name, place) for name, x in datum.loss_fn_inputs.items()})
        for place, datum in enumerate(message.data)
    ]


def _text(datum: Any, place: int) -> np.ndarray:
    kinds = {kind for kind in ('image', 'dmel') for chunk in datum.model_input if chunk.HasField(kind)}
    if kinds:
        raise UserFault(f'data[{place}]: model_input has a chunk of type {min(kinds)}; text alone is supported')
    if any(len(chunk.encoded_text.tokens) % 4 for chunk in datum.model_input):
        raise UserFault(f'data[{place}]: model_input has a chunk that is no array of int32')
    parts = [np.frombuffer(chunk.encoded_text.tokens, np.int32) for chunk in datum.model_input]
    return np.concatenate([np.zeros(0, np.int32), *parts])


def _array(tensor: pb.Tensor, name: str, place: int) -> np.ndarray:
    if tensor.HasField('sparse_csr'):
        raise UserFault(f'data[{place}]: {name} is a sparse tensor; send a dense one')
    if tensor.dtype not in DTYPES:
        raise UserFault(f'data[{place}]: {name} has the unknown dtype {tensor.dtype}')
    try:
        array = np.frombuffer(tensor.dense, DTYPES[tensor.dtype])
        array = array.reshape(list(tensor.shape)) if tensor.shape else array
    except ValueError as error:
        raise UserFault(f'data[{place}]: {name} does not have the bytes of its shape ({error})') from None
    if tensor.dtype == pb.DTYPE_BFLOAT16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def training_answer(logprobs: Sequence[np.ndarray], metrics: Mapping[str, float]) -> Answer:
    """The result of a forward_backward: the log-probabilities of each datum's targets, float32, and the metrics.

    A metric's name ends in the reduction by which the client joins chunks.
    """
    flat = [np.ascontiguousarray(x, np.float32) for x in logprobs]
    offsets = np.cumsum([0, *(x.nbytes for x in flat)], dtype=np.int64)
    data = b''.join(x.tobytes() for x in flat)
    trailing = flat[0].shape[1:]
    tensor = pb.BatchedTensor(data=data, offsets=offsets.tobytes(), dtype=pb.DTYPE_FLOAT32, trailing_shape=trailing)
    record = pb.ArrayRecord(type_tag='ArrayRecord', fields={'logprobs': tensor}, num_datums=len(flat))
    output = pb.ForwardBackwardOutput(
        loss_fn_output_type='ArrayRecord', loss_fn_outputs=[record], metrics=dict(metrics)
    )
    return Answer(output.SerializeToString(), PROTOBUF)


class PromptWishes(NamedTuple):
    """The parts of an answer that are about the prompt: its log-probabilities, and so many likeliest tokens.

    `last` is the number of last tokens of the prompt that are to have them; None for all.
    """

    logprobs: bool = False
    likeliest: int = 0
    last: int | None = None


def sample_answer(
    completions: Sequence[Completion], likeliest: Sequence[Sequence[Alternatives]], count: int,
    prompt: PromptLogprobs | None, wishes: PromptWishes,
) -> Answer:  # fmt: skip
    """The result of an asample: tokens and log-probabilities at temperature 1, without cuts.

    Args:
      likeliest: the `count` likeliest tokens at each token of each completion, if the client wants any.
      prompt: the log-probabilities of the prompt, where they were asked for.
    """
    response = pb.SampleResponse()
    for completion, others in zip(completions, likeliest, strict=True):
        response.sequences.add(
            stop_reason=REASONS[completion.finish_reason],
            tokens=np.asarray(completion.token_ids, np.int32).tobytes(),
            logprobs=np.asarray(completion.policy_logprobs, np.float32).tobytes(),
            topk_sampled_logprobs=_likeliest(others, count) if count else None,
        )
    if prompt is not None:
        dropped = max(len(prompt.logprobs) - (wishes.last or len(prompt.logprobs)), 0)
        values = np.asarray([np.nan if x is None else x for x in prompt.logprobs], np.float32)
        values[:dropped] = np.nan
        if wishes.logprobs:
            response.prompt_logprobs = values.tobytes()
        if wishes.likeliest:
            shown = [() if i < dropped else others for i, others in enumerate(prompt.alternatives)]
            response.topk_prompt_logprobs.CopyFrom(_likeliest(shown, wishes.likeliest))
    return Answer(response.SerializeToString(), PROTOBUF)


def _likeliest(rows: Sequence[Alternatives], count: int) -> pb.TopkLogprobs:
    """The `count` likeliest tokens of each row, as the client reads them."""
    ids, logprobs = np.zeros((len(rows), count), np.int32), np.full((len(rows), count), NO_LOGPROB, np.float32)
    for i, row in enumerate(rows):
        for place, (token, logprob) in enumerate(row):
            ids[i, place], logprobs[i, place] = token, logprob
    return pb.TopkLogprobs(token_ids=ids.tobytes(), logprobs=logprobs.tobytes(), k=count, length=len(rows))


# --- JSON ------------------------------------------------------------------------------------------------------------


class Form(BaseModel):
    """A JSON request. A field that it does not have is refused.

    Values out of their range are refused where the operation is carried out, so that the error reaches the future.
    """

    model_config = ConfigDict(extra='forbid', protected_namespaces=())
    type: str = ''


class CreateSession(Form):
    """The first request of a client; tags and metadata are the user's own."""

    tags: list[str] = []
    user_metadata: dict[str, Any] | None = None
    sdk_version: str
    project_id: str | None = None
    display_name: str | None = None


class NamedSession(Form):
    """A request about a session."""

    session_id: str


class LoraForm(Form):
    """The adapters of a model: their rank, the seed that draws them, and the weights that have one."""

    rank: int
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class OptimizerForm(BaseModel):
    """An optimiser by its name. Those with settings of their own are refused by the name."""

    model_config = ConfigDict(extra='allow')
    type: str = 'adamw'


class CreateModel(Form):
    """A new model: adapters on the base."""

    session_id: str
    model_seq_id: int
    base_model: str
    user_metadata: dict[str, Any] | None = None
    lora_config: LoraForm | None = None
    optimizer_config: OptimizerForm = OptimizerForm()


class NamedModel(Form):
    """A request about a model."""

    model_id: str


class AdamForm(Form):
    """The numbers of one step of AdamW; a `grad_clip_norm` of 0 clips nothing."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


class OptimStep(NamedModel):
    """A step of the optimiser on the gradients since the last one."""

    seq_id: int
    adam_params: AdamForm | None = None
    optimizer_params: OptimizerForm | None = None


class SaveWeights(NamedModel):
    """Adapters and the optimiser's state, to be saved under a name."""

    seq_id: int
    path: str | None = None
    ttl_seconds: int | None = None
    overwrite: bool = False
    user_metadata: dict[str, str] | None = None


class SaveForSampler(NamedModel):
    """Adapters to sample from: saved under a name, or held in memory for a sampling session."""

    seq_id: int
    path: str | None = None
    sampling_session_seq_id: int | None = None
    kind: str = 'snapshot'
    ttl_seconds: int | None = None
    user_metadata: dict[str, str] | None = None


class LoadWeights(Form):
    """Saved weights, to be loaded into an existing model or into a new one of a session."""

    model_id: str | None = None
    seq_id: int | None = None
    session_id: str | None = None
    model_seq_id: int | None = None
    base_model: str | None = None
    user_metadata: dict[str, Any] | None = None
    path: str
    optimizer: bool
    optimizer_config: OptimizerForm | None = None
    weights_access_token: str | None = None


class CreateSampler(Form):
    """A sampling session of the base or of saved weights."""

    session_id: str
    sampling_session_seq_id: int
    base_model: str | None = None
    model_path: str | None = None


class NamedSampler(Form):
    """A request about a sampling session."""

    sampling_session_id: str


class Chunk(BaseModel):
    """A part of a prompt. Parts other than text are refused by their type."""

    model_config = ConfigDict(extra='allow')
    type: str
    tokens: list[int] = []


class Prompt(Form):
    """A prompt in parts."""

    chunks: list[Chunk]


class SamplingForm(Form):
    """The settings of a sample. `stop` None stands for the model's end tokens, and [] for none at all."""

    max_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str] | list[int] | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


class Sample(Form):
    """Samples after one prompt, and the log-probabilities of the prompt's tokens."""

    num_samples: int = 1
    prompt: Prompt
    sampling_params: SamplingForm
    base_model: str | None = None
    model_path: str | None = None
    sampling_session_id: str | None = None
    seq_id: int | None = None
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: Any = None
    prompt_alt_tokens_k: int = 0
    prompt_logprobs_last_n: int | None = None
    record_stability_info: bool | None = None


class NamedRequest(Form):
    """A request about a future."""

    request_id: str
    allow_metadata_only: bool = False


class NamedPath(Form):
    """A request about saved weights."""

    tinker_path: str
    weights_access_token: str | None = None
