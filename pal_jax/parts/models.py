"""Models that a config names: which they are, how they are adapted, and what a method exports of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pal_jax.data import inputs
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.learners.actor import Actor, ActorState
from pal_jax.learners.ppo import PolicyLearner
from pal_jax.learners.training import Lora
from pal_jax.models import sources
from pal_jax.models.config import ModelConfig
from pal_jax.models.sources import Source
from pal_jax.parts.recipe import Adapters, Config, Context, Export, Trained
from pal_jax.parts.runs import open_run
from pal_jax.runtime import devices


class Policy(NamedTuple):
    """A model that the config names, as this machine computes it; its weights are read by `load`."""

    cfg: ModelConfig
    tokenizer: Tokenizer
    source: Source


def make_policy(config: Config, ctx: Context, of: str = 'policy') -> Policy:
    """What `config.policy`, or another part, names. Raises ValueError or RuntimeError where the model cannot be had."""
    named, source = config[of], make_source(config, ctx, of)
    cfg = devices.for_platform(source.config, named.dtype, scan_layers=named.get('scan_layers', False))
    return Policy(dataclasses.replace(cfg, remat=named.remat), source.tokenizer(), source)


def make_source(config: Config, ctx: Context, of: str) -> Source:
    """The model that a part of the config names.

    A run that goes on or is opened has kept the model's tokenizer and config, and these count. The weights are found by
    the same name, or where they were when the run began.

    Raises:
      ValueError, RuntimeError: the model cannot be had; where it is kept, when its weights are loaded.
    """
    began = inputs.load(ctx.kept) if ctx.kept else None

    def find() -> Source:
        name = config[of].source if began is None else inputs.find(began, f'{of}.source', config[of].source)
        return sources.resolve(name, seed=config.seed, open_run=lambda run: open_run(run, ctx))

    folder = ctx.kept / of if ctx.kept else None
    return sources.kept(folder, find) if folder and (folder / 'config.json').exists() else find()


def keeping(**models: Policy) -> Callable[[Path], None]:
    """Writes what a run keeps of its models, given by their parts of the config: see `Recipe.keep`, `make_source`."""

    def keep(folder: Path) -> None:
        for name, model in models.items():
            sources.keep(folder / name, model.source, model.tokenizer)

    return keep


def make_adapters(config: Config, of: str = 'policy') -> Lora | None:
    """The adapters that `config.policy.lora`, or that of another part, names."""
    lora = config[of].lora
    targets = lora.targets if lora.targets == 'all-linear' else tuple(lora.targets.split(','))
    return Lora(lora.rank, lora.alpha, targets, lora.dropout) if lora.rank else None


def trained_actor(config: Config, policy: Policy, actor: Actor) -> Trained:
    """What a method exports whose state is an actor's: the model, and its adapters if it has any."""
    base, lora = config.policy.source.removeprefix('hf:'), config.policy.lora

    def exports(state: ActorState) -> dict[str, Export]:
        adapters = Adapters(state.model.params, base, lora.dropout) if lora.rank else None
        return {'export': Export(actor.weights(state), policy.cfg, policy.tokenizer, adapters)}

    return Trained(exports, actor.abstract_weights, policy.cfg, policy.tokenizer)


def trained_policy(config: Config, policy: Policy, learner: PolicyLearner) -> Trained:
    """What a method exports whose state is a policy's."""
    trained = trained_actor(config, policy, learner.actor)
    exports = trained.exports
    return trained._replace(
        exports=lambda state: exports(state.actor), exported=learner.abstract_weights, actor=lambda state: state.actor
    )
