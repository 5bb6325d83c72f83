"""Models that a config names: their source, their adapters, and the export of a trained one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Array

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.learners import ppo
from pal_jax.learners.actor import Actor, ActorState
from pal_jax.learners.ppo import Estimate, PolicyLearner, PolicyState
from pal_jax.learners.ppo_settings import PPO
from pal_jax.learners.training import Lora
from pal_jax.models import attention
from pal_jax.models.config import ModelConfig, exact_config
from pal_jax.models.files import sources
from pal_jax.models.files.sources import Source
from pal_jax.models.lora import HEAD
from pal_jax.run import devices, inputs
from pal_jax.run.files import write_whole
from pal_jax.run.language import ModelSettings, ReinforcedRun
from pal_jax.run.recipe import Context, check_finite
from pal_jax.run.trained import Adapters, Export, TrainedModel, open_run
from pal_jax.types import Metrics, RolloutBatch, TokenBatch

SYSTEM = 'system.txt'  # the file of a run with the system prompt with which its model is talked with


class Policy(NamedTuple):
    """A model that the config names, as this machine computes it; its weights are read by `load`."""

    cfg: ModelConfig
    tokenizer: Tokenizer
    source: Source


def make_policy(named: ModelSettings, ctx: Context, seed: int, of: str = 'policy') -> Policy:
    """The model that the section `of` of a config names.

    Raises:
      ValueError, RuntimeError: the model cannot be had.
    """
    source = make_source(named.source, ctx, seed, of)
    cfg = devices.for_platform(source.config, named.dtype, scan_layers=named.scan_layers)
    return Policy(dataclasses.replace(cfg, remat=named.remat), source.tokenizer(), source)


def make_source(named: str, ctx: Context, seed: int, of: str) -> Source:
    """The model that `source` of the section `of` of a config names.

    Raises:
      ValueError, RuntimeError: the model cannot be had; where it is kept, when its weights are loaded.
    """
    began = inputs.load(ctx.kept) if ctx.kept else None

    def find() -> Source:
        # The weights are found by the same name, or where they were when the run began.
        name = named if began is None else inputs.find(began, f'{of}.source', named)
        return sources.resolve(name, seed=seed, open_run=lambda run: open_run(run, ctx))

    folder = ctx.kept / of if ctx.kept else None
    # A run that goes on or is opened has kept the model's tokenizer and config, and these count.
    return sources.kept_source(folder, find) if folder and (folder / 'config.json').exists() else find()


def keeping(system: str = '', **models: Policy) -> Callable[[Path], None]:
    """A function that writes the record of a run's models, given by their sections of the config: see `Recipe.keep`,
    `make_source`. `system` is the system prompt with which the run's model is talked with; '': none is kept."""

    def keep(folder: Path) -> None:
        for name, model in models.items():
            sources.keep(folder / name, model.source, model.tokenizer)
        if system:
            write_whole(folder / SYSTEM, system)

    return keep


def make_adapters(lora: Lora) -> Lora | None:
    """The adapters of a model; None where all of its parameters are trained."""
    return lora if lora.rank else None


def make_learner(settings: ReinforcedRun, cfg: ModelConfig, ctx: Context, *, n: int, **more: Any) -> PolicyLearner:
    """The PPO learner of a policy and its critic.

    Args:
      n: the number of samples of a prompt.
      more: further arguments of `learners.ppo.make_actor_critic`.
    Raises:
      ValueError: `decode.exact` with what rounds otherwise than a decoder.
    """
    # Rates are scheduled over so many updates.
    updates = max(settings.total_steps, 1) * settings.ppo.epochs * settings.ppo.minibatches
    # Greedy sampling learns as if at temperature 1.
    chosen = dataclasses.replace(settings.ppo, temperature=settings.sampling.temperature or 1.0)
    if settings.decode.exact:
        _check_exact(cfg, chosen, settings.policy.lora)
        # The actor's own pass would compute the same numbers again.
        chosen = dataclasses.replace(chosen, old_logprobs='sampler', exact=True)
        cfg = exact_config(cfg)
    return ppo.make_actor_critic(
        cfg,
        chosen,
        settings.optimizer.over(updates),
        ctx.mesh,
        critic=settings.critic.over(updates),
        n=n,
        length=settings.sampling.max_tokens,
        adapters=make_adapters(settings.policy.lora),
        seed=settings.seed,
        **more,
    )


def _check_exact(cfg: ModelConfig, chosen: PPO, lora: Lora) -> None:
    """Raises ValueError where an update rounds otherwise than a decoder, or leaves out what a decoder does not."""
    for fault, why in (
        (
            cfg.attention == 'blocks' and chosen.row_tokens > attention.LONG,
            f'ppo.row_tokens={chosen.row_tokens} is above {attention.LONG}, from where attention adds up in another '
            'order; lower it',
        ),
        (lora.rank and lora.dropout, f'policy.lora.dropout={lora.dropout} is on in updates alone; set it to 0'),
        (
            lora.rank and HEAD in lora.shape['targets'],
            f'policy.lora.targets={lora.targets!r} adapts the output matrix; leave {HEAD} out',
        ),
    ):
        if fault:
            raise ValueError(f'decode.exact: {why}, or leave decode.exact off')


def improve(
    learner: PolicyLearner,
    ctx: Context,
    state: PolicyState,
    batch: RolloutBatch,
    key: Array,
    *,
    estimate: Estimate | None = None,
    ptx: TokenBatch | None = None,
) -> tuple[PolicyState, Metrics]:
    """PPO's update on a batch that has its rewards; `estimate` and `ptx` are those of `PolicyLearner`.

    Raises:
      RuntimeError: three updates in a row were not finite.
    """
    with ctx.phase('annotate'):
        # 1. Log-probabilities by policy and reference, and values by critics.
        batch, scored = learner.score(state, batch)
        # 2. Advantages of the rewards.
        batch, estimated = learner.advantages(state, batch, estimate)
    with ctx.phase('update'):
        # 3. Epochs of minibatches on the clipped loss.
        state, updated = learner.update(state, batch, key, ptx)
    check_finite(state, 'lower optimizer.lr or raise ppo.kl_coef')
    return state, scored | estimated | updated


def trained_actor(named: ModelSettings, policy: Policy, actor: Actor) -> TrainedModel:
    """The export of a method whose state is an actor's: the model, and its adapters if it has any."""
    base, lora = named.source.removeprefix('hf:'), named.lora

    def exports(state: ActorState) -> dict[str, Export]:
        adapters = Adapters(state.model.params, base, lora.dropout) if lora.rank else None
        return {'export': Export(actor.weights(state), policy.cfg, policy.tokenizer, adapters)}

    return TrainedModel(exports, actor.abstract_weights, policy.cfg, policy.tokenizer)


def trained_policy(named: ModelSettings, policy: Policy, learner: PolicyLearner) -> TrainedModel:
    """The export of a method whose state is a policy's."""
    trained = trained_actor(named, policy, learner.actor)
    exports = trained.exports
    return trained._replace(
        exports=lambda state: exports(state.actor), exported=learner.abstract_weights, actor=lambda state: state.actor
    )
