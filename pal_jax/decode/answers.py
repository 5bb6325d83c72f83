"""Answers to questions of one turn: their sampler, the model that scores them, and the check that earlier stages are
finished."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from pal_jax.data import chats
from pal_jax.data.packing import PromptGroup
from pal_jax.data.rows import scored_replies
from pal_jax.data.thoughts import spoken_reply
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode import sampler
from pal_jax.decode.choose import Decoder
from pal_jax.models import params as model_params
from pal_jax.models.params import Params
from pal_jax.run import sharding
from pal_jax.run.language import DecodeSettings
from pal_jax.run.models import Policy
from pal_jax.run.recipe import Context
from pal_jax.run.workdir import REPORT
from pal_jax.types import Sample, Sampling

# Takes weights or None, questions, the number of samples of each, and a seed; see `PolicySampler`.
Sampler = Callable[..., list[Sample]]


@dataclasses.dataclass(frozen=True)
class PolicySampler:
    """Samples answers of a policy, without their thoughts."""

    decoder: Decoder
    tokenizer: Tokenizer
    sampling: Sampling

    def __call__(self, params: Params | None, questions: Sequence[str], n: int, seed: Sequence[int]) -> list[Sample]:
        """Sample `n` answers to each question, side by side. Without `params` the decoder has loaded the weights, and
        keeps them."""
        prompts = [tuple(self.tokenizer.chat(chats.as_chat(text))) for text in questions]
        if params is not None:
            self.decoder.load(params)
        samples = sampler.sample(self.decoder, self.tokenizer, prompts, [self.sampling] * n, seed, sources=questions)
        # The learner needs the memory of the weights next.
        if params is not None:
            self.decoder.release()
        return list(map(without_thoughts, samples))


def make_sampler(
    decode: DecodeSettings, sampling: Sampling, policy: Policy, ctx: Context, at_once: int, *, lockstep: bool = True
) -> PolicySampler:
    """A sampler of the policy that decodes at most `at_once` answers at a time; for `lockstep` see `make_decoder`."""
    decoder = sampler.make_decoder(decode, policy, ctx, at_once, lockstep=lockstep)
    return PolicySampler(decoder, policy.tokenizer, sampling)


@dataclasses.dataclass(frozen=True)
class ModelScores:
    """Scores answers by the model of the run in `folder`, which is read at the first call.

    Attributes:
      open: opens the run, and gives the tokenizer, the pooling and the scores of groups.
    """

    folder: Path
    ctx: Context
    open: Callable[[Path, Context], tuple[Tokenizer, str, Callable[[Sequence[PromptGroup]], np.ndarray]]]

    def __call__(self, questions: Sequence[str], replies: Sequence[Sequence[str]]) -> Float[np.ndarray, 'Q n']:
        """The scores of the `n` replies to each question."""
        tokenizer, pooling, scores = self._opened
        pairs = zip(questions, replies, strict=True)
        return scores([scored_replies(tokenizer, question, answers, pooling) for question, answers in pairs])

    @functools.cached_property
    def _opened(self) -> tuple[Tokenizer, str, Callable[[Sequence[PromptGroup]], np.ndarray]]:
        return self.open(self.folder, self.ctx)


def without_thoughts(sample: Sample) -> Sample:
    """Cut the thought out of a sample's text; the text is empty where a thought does not end."""
    # The tokens stay whole, since they are what the policy sampled and learns from.
    completion = dataclasses.replace(sample.completion, text=spoken_reply(sample.completion.text) or '')
    return dataclasses.replace(sample, completion=completion)


def as_dialogue(
    asked: str, answer: str, person: str = '', rewards: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """An answer as a report shows it, with its scores by their names."""
    turns = [{'role': 'user', 'content': asked}, {'role': 'assistant', 'content': answer, 'rewards': rewards or {}}]
    return {'person': person or asked[:60], 'facts': [], 'turns': turns}


def load_base(policy: Policy, ctx: Context) -> Params:
    """Load the weights of a policy that is not trained onto the mesh."""
    return policy.source.load(sharding.param_shardings(model_params.decoder_specs(policy.cfg), ctx.mesh))


def check_finished(folder: Path) -> None:
    """Raises ValueError where a stage is not finished."""
    if not (folder / REPORT).exists():
        raise ValueError(f'{folder} is not finished; run stage={folder.name} first (stage=all runs all in order)')
