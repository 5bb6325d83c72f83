"""The part of a run that `pal-jax plan` plans: the learner that its settings describe, and a step's sizes.

A method that trains a language model says so by its function `planned(settings, prompt)`. Of a run of several stages it
is the one that trains the policy; the others are runs of methods that have configs of their own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from jax.sharding import Mesh

from pal_jax.data.packing import round_up
from pal_jax.decode.requests import bucket
from pal_jax.models.config import ModelConfig
from pal_jax.run.language import DecodeSettings, ModelSettings
from pal_jax.run.recipe import Context
from pal_jax.run.runs import recipe_module
from pal_jax.run.settings import Run


class Work(NamedTuple):
    """The sizes of a step. Every row and completion is taken to be as long as it may become."""

    # The prompts of a step, and the samples of each that are learnt.
    prompts: int
    n: int
    # The tokens of a prompt and of a completion.
    prompt: int
    completion: int
    # `minibatches` and `epochs` are as `PPO` has them.
    minibatches: int
    epochs: int
    # Requests that all decoders decode at once.
    slots: int
    # Decoders side by side, each on its part of the devices and of the prompts; 0 is one for each process.
    shares: int = 0
    # The samples of a prompt, where not all of them are learnt; 0: `n`.
    sampled: int = 0
    # The columns of a block, where each sample follows a copy of its prompt in whole blocks (`decode.exact`).
    apart: int = 0

    @property
    def row(self) -> int:
        """Tokens of a row, which has a prompt and its completions, rounded up to 128."""
        if self.apart:
            return self.n * round_up(self.prompt + self.completion, self.apart)
        return round_up(self.prompt + self.n * self.completion, 128)

    @property
    def room(self) -> int:
        """Tokens for which a decoder's slot has room."""
        return bucket(self.prompt + max(self.completion, 64), 128)

    def shares_on(self, mesh: Mesh) -> int:
        """The number of decoders side by side on these devices."""
        return self.shares or len({device.process_index for device in mesh.devices.flat})


class PlannedRun(NamedTuple):
    """The part of a run that is planned."""

    # The model that is trained, and the maker of its learner on a mesh, with so many rows in memory at once.
    policy: ModelSettings
    make_learner: Callable[[ModelConfig, Mesh, int], Any]
    # The sizes of a step.
    work: Work
    # The rows in memory at once that the config names, and the key that names them.
    micro_rows: int
    rows: str
    # The decoder that samples; None where the method does not sample.
    decode: DecodeSettings | None = None


def planned(settings: Run, prompt: int) -> PlannedRun:
    """The part of a run to plan, by its method, with prompts of `prompt` tokens where the method samples.

    Raises:
      ValueError: the method trains no language model, or one that is not planned.
    """
    of_method = getattr(recipe_module(settings.recipe), 'planned', None)
    part = of_method(settings, prompt) if of_method else None
    if part is None:
        raise ValueError(
            f'recipe={settings.recipe!r} is not planned: it trains no language model (its arrays fit any device), or a '
            'table of users beside one; docs/gpu.md lists the configs that are'
        )
    return part


def sampling(
    settings: Any, make: Callable[..., Any], prompts: int, n: int, prompt: int, sampled: int = 0
) -> PlannedRun:
    """A method that improves a policy by PPO on `n` samples of each of `prompts` prompts, of `sampled` ones."""
    ppo, decode = settings.ppo, settings.decode
    work = Work(
        prompts,
        n,
        prompt,
        settings.sampling.max_tokens,
        ppo.minibatches,
        ppo.epochs,
        decode.slots,
        decode.shares,
        sampled,
    )

    def make_learner(cfg: ModelConfig, mesh: Mesh, micro_rows: int) -> Any:
        changed = dataclasses.replace(settings, ppo=dataclasses.replace(ppo, micro_rows=micro_rows))
        return make(changed, cfg, Context(mesh))

    return PlannedRun(settings.policy, make_learner, work, ppo.micro_rows, 'ppo.micro_rows', decode)


def reading(settings: Any, make: Callable[..., Any], *, n: int) -> PlannedRun:
    """A method that learns from rows of a file: every row is as long as it may be, and has `n` answers."""
    rows = settings.data
    length = max(rows.max_length, rows.row_tokens)
    # A row of the batch has room for so many rows of the file.
    shared = length // rows.max_length
    work = Work(-(-rows.batch_size // shared), n, 0, length // n, 1, 1, slots=0)

    def make_learner(cfg: ModelConfig, mesh: Mesh, micro_rows: int) -> Any:
        changed = dataclasses.replace(settings, data=dataclasses.replace(rows, micro_rows=micro_rows))
        return make(changed, cfg, Context(mesh))

    return PlannedRun(settings.policy, make_learner, work, rows.micro_rows, 'data.micro_rows')
