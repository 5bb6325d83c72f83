"""Answers of a policy to prompts: the decoder that a config names, and its samples."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from pal_jax.data.packing import pack_rollouts, round_up
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.choose import Decoder, choose_decoder
from pal_jax.decode.requests import Request, completion_of
from pal_jax.models import attention
from pal_jax.run import sharding
from pal_jax.run.language import DecodeSettings, ReinforcedRun
from pal_jax.run.models import Policy
from pal_jax.run.processes import Shares
from pal_jax.run.recipe import Context
from pal_jax.types import Completion, RolloutBatch, Sample, Sampling


def make_shares(decode: DecodeSettings) -> Shares:
    """Decoders side by side, each on its part of the prompts: one a process, unless `decode.shares` says otherwise."""
    return Shares(decode.shares or jax.process_count())


def make_decoder(
    decode: DecodeSettings, policy: Policy, ctx: Context, at_once: int | None = None, *, lockstep: bool = True
) -> Decoder:
    """The decoder that the settings name.

    Args:
      at_once: the largest number of samples that will be asked for together.
      lockstep: see `rollout.lockstep`.

    Raises:
      ValueError: as `decode.choose.choose_decoder`.
    """
    options: dict[str, Any] = dataclasses.asdict(decode) | {'shares': make_shares(decode), 'lockstep': lockstep}
    # More slots than samples would stay empty.
    if at_once:
        options['slots'] = min(decode.slots, at_once)
    return choose_decoder(policy.cfg, policy.tokenizer, ctx.mesh, **options)


def make_packing(
    settings: ReinforcedRun, mesh: Mesh, n: int, *, multiple: int = 128, gathered: bool = False
) -> Callable[[Sequence[Sample]], RolloutBatch]:
    """A function that makes the batch of an update of samples; the `n` samples of a prompt stand side by side.

    The length of a row in tokens is a multiple of `multiple`. For `gathered` see `pack_rollouts`.
    """
    return functools.partial(
        pack_rollouts, n=n, actions=round_up(settings.sampling.max_tokens, 8), mesh=mesh,
        ways=sharding.batch_ways(mesh) * settings.ppo.minibatches, micro_rows=settings.ppo.micro_rows,
        row_tokens=settings.ppo.row_tokens, multiple=multiple, gathered=gathered,
        apart=attention.COLUMNS if settings.decode.exact and mesh.devices.flat[0].platform != 'cpu' else 0,
    )  # fmt: skip


def to_json(sample: Sample) -> dict[str, Any]:
    """A sample without `source` and `parsed`, as plain dicts, lists and numbers; the inverse of `from_json`."""
    return dataclasses.asdict(dataclasses.replace(sample, source=None, parsed=None))


def from_json(record: Mapping[str, Any], source: Any = None, parsed: Any = None) -> Sample:
    """The sample that `to_json` gave, also after it went through JSON text."""
    values: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in record.items()}
    return Sample(**values | {'completion': completion_of(record['completion']), 'source': source, 'parsed': parsed})


def samples_to_json(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Samples without `source` and `parsed`; the inverse of `samples_of`."""
    return list(map(to_json, samples))


def samples_of(records: Sequence[Mapping[str, Any]]) -> list[Sample]:
    """The samples that `samples_to_json` gave, also after they went through JSON text."""
    return list(map(from_json, records))


def sample(
    decoder: Decoder, tokenizer: Tokenizer, prompts: Sequence[tuple[int, ...]], samplings: Sequence[Sampling],
    seed: Sequence[int], *, sources: Sequence[Any] | None = None, parse: Callable[[str], Any] = lambda text: None,
    tell: Callable[[Sample], None] | None = None,
) -> list[Sample]:  # fmt: skip
    """Samples of each prompt, side by side: one by each of `samplings`.

    Their randomness is a function of `seed` and of a sample's place.

    Args:
      prompts: token ids.
      sources: the records that the prompts were made of.
      parse: reads the text of a completion.
      tell: receives a sample as soon as it is there.
    """
    n = len(samplings)
    # A sample's seed follows from `seed` and its place, so a run that resumes draws the same samples.
    seeds = np.random.SeedSequence(list(seed)).generate_state(len(prompts) * n, np.uint64).tolist()

    def as_sample(k: int, completion: Completion) -> Sample:
        # Where the prompt has opened a thought, the text alone would not show that it begins within one.
        text = tokenizer.thinking(prompts[k // n], completion.text)
        source = sources[k // n] if sources is not None else None
        completion = dataclasses.replace(completion, text=text)
        return Sample(prompts[k // n], completion, k // n, source=source, parsed=parse(text))

    requests = [Request(prompts[k // n], samplings[k % n], number) for k, number in enumerate(seeds)]
    completions = decoder(requests, (lambda k, completion: tell(as_sample(k, completion))) if tell else None)
    return [as_sample(k, completion) for k, completion in enumerate(completions)]
