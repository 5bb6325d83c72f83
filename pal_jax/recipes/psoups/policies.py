"""The policies of Personalized Soups: their answers to questions, and the adapters that stages have trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from pal_jax.data import chats, inputs
from pal_jax.data.thoughts import spoken
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.decode.choose import Decoder
from pal_jax.models import params as model_params
from pal_jax.models.params import Params
from pal_jax.parts import sampler
from pal_jax.parts.models import Policy
from pal_jax.parts.recipe import Context
from pal_jax.parts.runs import read_config, trained_in
from pal_jax.parts.settings import to_config
from pal_jax.recipes.psoups.settings import Asking, Stage
from pal_jax.runtime import sharding
from pal_jax.runtime.checkpoint import Checkpoints
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


def make_sampler(settings: Asking, policy: Policy, ctx: Context, at_once: int) -> PolicySampler:
    """A sampler of the policy that decodes at most `at_once` answers at a time."""
    decoder = sampler.make_decoder(settings.decode, policy, ctx, at_once)
    return PolicySampler(decoder, policy.tokenizer, settings.sampling)


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


def check_trained(folder: Path, settings: Stage) -> None:
    """Raises ValueError where a stage is not finished, has trained adapters of another base or kind, or has read
    other preferences or prompts by the same name."""
    check_finished(folder)
    configs = [each.to_dict() for each in (read_config(str(folder)), to_config(settings))]
    inputs.check_shared(inputs.look(configs[1]), folder)
    theirs, ours = ({**each['policy'], 'seed': each['seed']} for each in configs)
    random = ours['source'].startswith('random:')  # then the seed makes the base
    for key in ('source', 'lora', *(['seed'] if random else [])):
        if theirs[key] != ours[key]:
            named = key if key == 'seed' else f'policy.{key}'
            raise ValueError(
                f'{folder} was trained with {named}={theirs[key]}, got {ours[key]}; give that or another --workdir'
            )


def open_adapters(folder: Path, ctx: Context) -> Params:
    """Read the adapters that a stage has trained from its last checkpoint, whole on every device.

    Raises:
      ValueError: the stage has no checkpoint.
    """
    trained = trained_in(str(folder), ctx)
    adapters = jax.tree_util.tree_map_with_path(only_adapters, trained.exported)
    state, *_ = Checkpoints(folder, adapters, read_only=True).read()
    return jax.jit(lambda params: params, out_shardings=sharding.replicated(ctx.mesh))(
        trained.actor(state).model.params
    )


def only_adapters(path: Any, leaf: Any) -> Any:
    """The leaf of a policy's state where it is an adapter's, else `...`, which a checkpoint's reader leaves out."""
    return leaf if '.model.params' in jax.tree_util.keystr(path) else ...
