"""What the training loop asks of a method, and what a method gets from it."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pal_jax.data import inputs
from pal_jax.data.tokenizer import Tokenizer
from pal_jax.learners.actor import Actor, ActorState
from pal_jax.learners.ppo import PolicyLearner
from pal_jax.learners.training import Lora
from pal_jax.models import hf, peft, sources
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params, cast
from pal_jax.models.sources import Source
from pal_jax.runtime import devices, sharding
from pal_jax.runtime.checkpoint import KEPT, Checkpoints
from pal_jax.runtime.workdir import read_run
from pal_jax.types import Exhibit, Metrics

Config = Any  # an ml_collections.ConfigDict: its attributes are the keys of a config file
Host = dict[str, Any]


class Context(NamedTuple):
    """The machine a recipe runs on. `phase('rollout')` times and shows a part of the work; `show` keeps samples of a
    step for whoever reads the run's report. `workdir` is the run's folder; those of other stages are beside it. A run
    that goes on or is opened finds in `kept` what `Recipe.keep` wrote when it began; None: it begins. `log` writes a
    line on the console."""

    mesh: Mesh
    phase: Callable[[str], AbstractContextManager[None]] = lambda name: contextlib.nullcontext()
    show: Callable[[Iterable[Mapping[str, Any]]], None] = lambda records: None
    workdir: Path = Path()
    kept: Path | None = None
    log: Callable[[str], None] = lambda text: None

    def of(self, workdir: str | Path) -> Context:
        """The same machine, for a run that is opened."""
        return self._replace(workdir=Path(workdir), kept=Path(workdir) / KEPT)


class Evaluation(NamedTuple):
    """One record of numbers and lists of them, some dialogues to look at, and what else a report shows."""

    record: Mapping[str, Any]
    dialogues: Sequence[Mapping[str, Any]] = ()
    exhibits: Sequence[Exhibit] = ()


class Adapters(NamedTuple):
    """What was trained of an adapted model: the trainable tree (see `models.lora.split`) and its base's source."""

    params: Params
    base: str
    dropout: float


class Export(NamedTuple):
    """A model as Hugging Face has it, with its adapters merged, and these by themselves if it has any. `head` is that
    of a reward model, which has it in place of the unembedding."""

    params: Params
    model: ModelConfig
    tokenizer: Tokenizer
    adapters: Adapters | None = None
    head: jax.Array | None = None


class Trained(NamedTuple):
    """The language model that a method trains: all that it takes to open, export or merge a run. A recipe's
    `make_trained(config, ctx)` makes it without people, judges or rows, which may be gone or elsewhere.

    exports: models by the name of their folder.
    exported: shapes and shardings of the part of the state that `exports` reads; the rest is `...`.
    model, tokenizer: of the first of them.
    actor: the part of a state that is an actor's, where there is one.
    """

    exports: Callable[[Any], dict[str, Export]]
    exported: Any
    model: ModelConfig
    tokenizer: Tokenizer
    actor: Callable[[Any], ActorState] = lambda state: state


class Plan(NamedTuple):
    """What the training loop knows of a method beside its steps.

    total_steps: steps of all phases together.
    abstract: the state's shapes and shardings, for a restore.
    stage: the name of the evaluation that is due before step `i` ('base', 'final', ...), or None.
    trained: the language model that is trained, if one is.
    shown: figures of an evaluation that the console shows, if it has them.
    pack: the host item as a checkpoint keeps it, which is JSON-able.
    resume: the inverse of `pack`, called once, before a run goes on from a checkpoint or evaluates it.
    after: the step that comes after step `i`, by the host item: another than the next where some are skipped, before
      which nothing is evaluated.
    keep: writes into a folder what gives the trained parameters their meaning, such as whose rows they are.
    """

    total_steps: int
    abstract: Any
    stage: Callable[[int], str | None]
    trained: Trained | None = None
    shown: Sequence[str] = ('reward', 'loss', 'accuracy')
    pack: Callable[[Host], Host] = lambda host: host
    resume: Callable[[Host], Host] = lambda host: host
    after: Callable[[Host, int], int] = lambda host, i: i + 1
    keep: Callable[[Path], Any] = lambda folder: None


class Recipe(Protocol):
    """A method: a frozen dataclass of its parts. Its state is a pytree of arrays.

    Its `host` item holds records on the host, which `plan.pack` makes JSON-able.
    """

    @property
    def plan(self) -> Plan: ...

    def init(self) -> tuple[Any, Host]:
        """The state and the host item before step 0."""
        ...

    def step(self, state: Any, host: Host, i: int, /) -> tuple[Any, Host, str, Metrics]:
        """The next state, host item, the name of the phase, and figures. Randomness is a function of `i` and the seed
        of the config."""
        ...

    def evaluate(self, state: Any, stage: str, /) -> Evaluation:
        """Figures of a state; changes nothing."""
        ...


@dataclasses.dataclass(frozen=True)
class Closures:
    """A recipe whose functions were made elsewhere."""

    plan: Plan
    init: Callable[[], tuple[Any, Host]]
    step: Callable[[Any, Host, int], tuple[Any, Host, str, Metrics]]
    evaluate: Callable[[Any, str], Evaluation]


EVALUATION = 2**31  # stands where a training step has its number in seeds


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


def stage_before(i: int, *, warmup: int, steps: int, every: int, base: bool = True) -> str | None:
    """The evaluation due before step `i`: the base model unless it is left out, the warmed-up one, the last, and every
    so many in between."""
    if not (i or base):
        return None
    named = {0: 'base', warmup: 'warm-up' if warmup else 'base', steps: 'final'}
    return named.get(i) or ('step' if every and i > warmup and (i - warmup) % every == 0 else None)


def check_at_least(config: Config, least: int, *keys: str) -> None:
    """Raises ValueError where a value of the config, such as `eval.people`, is less."""
    for key in keys:
        value = functools.reduce(getitem, key.split('.'), config)
        if value < least:
            raise ValueError(f'{key}={value} must be at least {least}')


def check_finite(state: Any, advice: str = '') -> None:
    """Raises RuntimeError after three updates in a row that were not finite, and so were not made."""
    if int(state.skipped) >= 3:
        raise RuntimeError(f'three updates in a row were not finite; lower optimizer.lr{advice}')


def read_config(workdir: str) -> Config:
    """The config of the run in `workdir`.

    Raises:
      ValueError: the folder is not that of a run.
    """
    return ConfigDict(read_run(Path(workdir)))


def folders_read(named: Any) -> list[Path]:
    """The folders that a source or the sources of a config name, and those that the runs and adapters there name."""
    if isinstance(named, Mapping | ConfigDict):
        return [folder for value in named.values() for folder in folders_read(value)]
    if isinstance(named, list | tuple):
        return [folder for value in named for folder in folders_read(value)]
    kind, _, name = named.rpartition(':') if isinstance(named, str) else ('', '', '')
    folder = Path(name)
    if not kind or not name or not folder.is_dir():
        return []
    if (folder / peft.CONFIG).exists():
        return [folder, *folders_read(sources.base_source(peft.read_config(folder).base))]
    return [folder, *(folders_read(read_config(name)) if kind.endswith('orbax') else [])]


def trained_in(workdir: str, ctx: Context) -> Trained:
    """What the run in `workdir` trains.

    Raises:
      ValueError: the folder is not that of a run, or of one without a language model.
    """
    config = read_config(workdir)
    try:
        recipe = importlib.import_module(f'pal_jax.recipes.{config.recipe}')
    except ModuleNotFoundError:
        raise ValueError(f'{workdir} is a run of {config.recipe!r}, which is no method of this package') from None
    trained: Trained | None = recipe.make_trained(config, ctx.of(workdir)) if hasattr(recipe, 'make_trained') else None
    if trained is None:
        raise ValueError(f'{workdir} is a run of {config.recipe} that trains no language model; name another')
    return trained


def load_trained(workdir: str, step: int | None = None) -> tuple[dict[str, Export], int]:
    """The models of a run by the name of their folder, on one device, and the step they were saved at.

    Raises:
      ValueError: as `trained_in`, or there is no checkpoint, or none of that step.
    """
    mesh = devices.make_mesh(devices=jax.local_devices()[:1])
    trained = trained_in(workdir, Context(mesh))
    state, _, step = Checkpoints(workdir, trained.exported, read_only=True).read(step)
    return trained.exports(state), step


def write_exports(exports: dict[str, Export], folder: Callable[[str], Path]) -> None:
    """Models as Hugging Face folders. All processes take part, the first one writes."""
    for name, export in exports.items():
        params, head = sharding.to_host((export.params, export.head))
        if jax.process_index() == 0:
            hf.save(params, export.model, export.tokenizer, folder(name), head=head)


def open_run(workdir: str, ctx: Context) -> Source:
    """The model a run has trained, as a source for another run (`orbax:<workdir>`): its last whole checkpoint.

    Raises:
      ValueError: as `trained_in`, or there is no checkpoint.
    """
    trained = trained_in(workdir, ctx)
    checkpoints = Checkpoints(workdir, trained.exported, read_only=True)
    if checkpoints.latest is None:
        raise ValueError(f'{workdir} has no checkpoint; train it first')

    def load(shardings: Params | None = None, dtype: str = 'float32') -> Params:
        state, *_ = checkpoints.read()
        params = cast(next(iter(trained.exports(state).values())).params, dtype)
        return jax.device_put(params, shardings) if shardings else params

    return Source(trained.model, lambda: trained.tokenizer, load)
