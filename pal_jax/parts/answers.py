"""Policies that answer questions of one turn, and the stages of a run whose work others read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from pal_jax.data import chats
from pal_jax.data.thoughts import spoken
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.choose import Decoder
from pal_jax.models import params as model_params
from pal_jax.models.params import Params
from pal_jax.parts import sampler
from pal_jax.parts.models import Policy
from pal_jax.parts.recipe import Context
from pal_jax.parts.settings import DecodeSettings
from pal_jax.runtime import sharding
from pal_jax.runtime.report import REPORT
from pal_jax.types import Sample, Sampling

Sampler = Callable[..., list[Sample]]  # of weights, questions, samples of each and a seed: see `PolicySampler`


@dataclasses.dataclass(frozen=True)
class PolicySampler:
    """Samples answers of a policy, without their thoughts."""

    decoder: Decoder
    tokenizer: Tokenizer
    sampling: Sampling

    def __call__(self, params: Params, questions: Sequence[str], n: int, seed: Sequence[int]) -> list[Sample]:
        """Sample `n` answers to each question, side by side."""
        prompts = [tuple(self.tokenizer.chat(chats.as_chat(text))) for text in questions]
        self.decoder.load(params)
        samples = sampler.sample(self.decoder, self.tokenizer, prompts, [self.sampling] * n, seed, sources=questions)
        self.decoder.release()
        return list(map(without_thoughts, samples))


def make_sampler(
    decode: DecodeSettings, sampling: Sampling, policy: Policy, ctx: Context, at_once: int
) -> PolicySampler:
    """A sampler of the policy that decodes at most `at_once` answers at a time."""
    decoder = sampler.make_decoder(decode, policy, ctx, at_once)
    return PolicySampler(decoder, policy.tokenizer, sampling)


def without_thoughts(sample: Sample) -> Sample:
    """Cut the thought out of a sample's text, which is empty where a thought does not end. The tokens stay."""
    said = dataclasses.replace(sample.completion, text=spoken(sample.completion.text) or '')
    return dataclasses.replace(sample, completion=said)


def load_base(policy: Policy, ctx: Context) -> Params:
    """Load the weights of a policy that is not trained onto the mesh."""
    return policy.source.load(sharding.param_shardings(model_params.decoder_specs(policy.cfg), ctx.mesh))


def check_finished(folder: Path) -> None:
    """Raises ValueError where a stage has not come to its end."""
    if not (folder / REPORT).exists():
        stage, _, preference = folder.name.partition('-')
        named = f'stage={stage}' + (f',preference={preference}' if preference else '')
        raise ValueError(f'{folder} is not finished; run {named} first (stage=all runs all in order)')
