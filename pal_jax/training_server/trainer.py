"""Models of tenants: adapters over one frozen base, each with its own gradients and optimiser.

All functions of a `Trainer` run on the executor's thread, one after the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pal_jax.data.packing import round_up
from pal_jax.decode.requests import bucket
from pal_jax.learners import training
from pal_jax.learners.actor import Actor, ActorState
from pal_jax.learners.training import Lora, TrainState
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.run import sharding
from pal_jax.run.optim import ADAM, UNCLIPPED, with_numbers
from pal_jax.training_server import losses
from pal_jax.training_server.futures import UserFault
from pal_jax.training_server.losses import Datum, LossForm, LossInputs
from pal_jax.types import TokenBatch

# The product of an adapter's factors is multiplied by ALPHA / rank.
ALPHA = 32.0
# The unit of the lengths of rows, in tokens.
GRAIN = 64


class Base(NamedTuple):
    """The frozen model: its name for clients, its source, and its weights, whose output matrix is a leaf of its own."""

    name: str
    source: str
    cfg: ModelConfig
    params: Params
    mesh: Mesh


class Shape(NamedTuple):
    """The adapters of a model: their rank, and the parts of the model that have one."""

    rank: int
    unembed: bool
    mlp: bool
    attn: bool

    @property
    def lora(self) -> Lora:
        """The adapters as the learners know them."""
        parts = {'attn/.*': self.attn, 'mlp/.*': self.mlp, 'unembed': self.unembed}
        return Lora(self.rank, ALPHA, ','.join(target for target, trained in parts.items() if trained))


@dataclasses.dataclass(eq=False)
class Tenant:
    """One model that clients train.

    Attributes:
      params: the adapters. The arrays are never changed in place, so a snapshot is a reference to them.
      opt_state: the state of AdamW for them.
      grads: the sum of the gradients since the last step; None where there are none.
      spoiled: the number of a forward_backward that failed since the last step; None without one.
      seq: the number of the last operation.
    """

    model_id: str
    shape: Shape
    actor: Actor
    params: Params
    opt_state: Any
    user_metadata: dict[str, Any]
    grads: Params | None = None
    spoiled: int | None = None
    seq: int = 0
    last_request: float = dataclasses.field(default_factory=time.time)


class Trainer:
    """The functions of training.

    Args:
      rows: the number of sequences in a device's memory at once.
      max_rank: the largest rank of adapters.
    """

    def __init__(self, base: Base, *, rows: int, max_rank: int):
        self.base, self.rows, self.max_rank = base, rows, max_rank
        self.tenants: dict[str, Tenant] = {}

    # --- models ------------------------------------------------------------------------------------------------------

    def create(self, model_id: str, shape: Shape, seed: int | None, user_metadata: dict[str, Any] | None) -> Tenant:
        """A new model. The same seed draws the same adapters, bit for bit; without one, they differ each time.

        Raises:
          UserFault: the rank or the seed is out of its range, or nothing is to be trained.
        """
        if not 1 <= shape.rank <= self.max_rank:
            raise UserFault(f'lora_config.rank={shape.rank}; this server has ranks from 1 to {self.max_rank}')
        if seed is not None and not 0 <= seed < 2**31:
            raise UserFault(f'lora_config.seed={seed}; give one from 0 to 2^31 - 1')
        if not shape.lora.targets:
            raise UserFault('lora_config trains nothing; set one of train_unembed, train_mlp and train_attn')
        actor = self.actor(shape)
        drawn = secrets.randbits(31) if seed is None else seed
        params, _ = training.attached(self.base.params, shape.lora, drawn)
        tenant = self.start(actor, params, model_id, shape, user_metadata or {})
        self.tenants[model_id] = tenant
        return tenant

    def start(self, actor: Actor, params: Params, model_id: str, shape: Shape, user_metadata: dict[str, Any]) -> Tenant:
        """A model with these adapters, whose optimiser starts afresh."""
        places = jax.tree.map(lambda x: x.sharding, actor.abstract.model)
        params = jax.device_put(params, places.params)
        return Tenant(
            model_id, shape, actor, params, jax.device_put(ADAM.init(params), places.opt_state), user_metadata
        )

    # Actors of one shape share their compiled programs.
    @functools.lru_cache(maxsize=16)  # noqa: B019
    def actor(self, shape: Shape) -> Actor:
        """The learner of adapters of that shape."""
        return Actor(self.base.cfg, ADAM, self.base.mesh, micro_rows=self.rows, adapters=shape.lora, anchored=False)

    def _state(self, tenant: Tenant) -> ActorState:
        nothing = jnp.zeros((), jnp.int32)
        return ActorState(nothing, TrainState(tenant.params, self.base.params, ()), {}, nothing)

    # --- training ----------------------------------------------------------------------------------------------------

    def forward(
        self, tenant: Tenant, data: Sequence[Datum], loss_fn: str, settings: dict[str, float | str]
    ) -> tuple[list[np.ndarray], dict[str, float]]:
        """The log-probability of each target of each datum, and the metrics. No gradient is touched.

        Raises:
          UserFault: the data do not fit the loss or the model.
        """
        form, numbers = self._checked(data, loss_fn, settings)
        whole, total, logprobs = self._state(tenant).whole, 0.0, {}
        for members, batch in self._batches(data):
            some = [data[i] for i in members]
            lps = tenant.actor.logprobs(whole, batch)
            rows = _trimmed(lps, some)
            losses_of = form.loss(lps, _inputs(some, form, numbers, rows, batch.acts.shape))
            total += float(jnp.where(batch.acts, losses_of, 0.0).sum())
            logprobs |= dict(zip(members, rows, strict=True))
        return [logprobs[i] for i in range(len(data))], {'loss:sum': total}

    @contextlib.contextmanager
    def spoiling(self, tenant: Tenant, seq_id: int) -> Iterator[None]:
        """A context of a forward_backward. Where it fails, the gradients are dropped and the next step is refused."""
        try:
            yield
        except Exception:
            # A step without this batch would be a step on half of what the client meant.
            tenant.spoiled = seq_id if tenant.spoiled is None else tenant.spoiled
            tenant.grads = None
            raise

    def forward_backward(
        self, tenant: Tenant, data: Sequence[Datum], loss_fn: str, settings: dict[str, float | str]
    ) -> tuple[list[np.ndarray], dict[str, float]]:
        """The results of `forward`, while the gradient of the loss is added to the tenant's.

        Raises:
          UserFault: as `forward`.
        """
        form, numbers = self._checked(data, loss_fn, settings)
        state, total, logprobs = self._state(tenant), 0.0, {}
        grads, tenant.grads = tenant.grads, None
        places = jax.tree.map(lambda x: x.sharding, tenant.params)
        grads = training.zeros(tenant.params) if grads is None else grads
        for members, batch in self._batches(data):
            some = [data[i] for i in members]
            # The ratio of a sequence needs all of its log-probabilities before the loss of its first token.
            whole = 'sequence_ratio_mask' in form.needs
            before = _trimmed(tenant.actor.logprobs(state.whole, batch), some) if whole else ()
            inputs = _inputs(some, form, numbers, before, batch.acts.shape)
            weight = batch.acts.astype(jnp.float32)
            grads, loss, lps = tenant.actor.gradients(grads, state, batch, inputs, weight, form.loss, 0)
            # The compiler names the places of a sum anew, and another name would be another program.
            grads = jax.device_put(grads, places)
            total += float(loss)
            logprobs |= dict(zip(members, _trimmed(lps, some), strict=True))
        tenant.grads = grads
        return [logprobs[i] for i in range(len(data))], {'loss:sum': total}

    def optim_step(self, tenant: Tenant, numbers: dict[str, float]) -> dict[str, float]:
        """One step of AdamW on the sum of gradients, which is cleared. A sum that is not finite makes no step.

        Args:
          numbers: those of `wire.AdamForm`.
        Raises:
          UserFault: there is no gradient, a forward_backward before failed, or a number is out of its range.
        """
        grads, spoiled = tenant.grads, tenant.spoiled
        tenant.grads = tenant.spoiled = None
        if spoiled is not None:
            raise UserFault(f'forward_backward {spoiled} failed, so there is no step on the rest of its batch')
        if grads is None:
            raise UserFault('nothing to apply: no forward_backward came since the last step')
        _check_numbers(numbers)
        clip = numbers['grad_clip_norm']
        named = {name: x for name, x in numbers.items() if name != 'grad_clip_norm'} | {'max_norm': clip or UNCLIPPED}
        tenant.params, tenant.opt_state, norm = self._step(tenant.shape)(
            tenant.params, with_numbers(tenant.opt_state, **named), grads
        )
        return {'grad_norm:mean': float(norm), 'skipped:sum': float(not math.isfinite(float(norm)))}

    @functools.lru_cache(maxsize=16)  # noqa: B019
    def _step(self, shape: Shape) -> Any:
        places = jax.tree.map(lambda x: x.sharding, self.actor(shape).abstract.model)

        def step(params: Params, opt_state: Any, grads: Params) -> tuple[Params, Any, jax.Array]:
            state, norm = training.apply(ADAM, TrainState(params, {}, opt_state), grads)
            return state.params, state.opt_state, norm

        # Nothing is donated, so that snapshots may hold the adapters.
        return jax.jit(step, out_shardings=(places.params, places.opt_state, None))

    # --- batches -----------------------------------------------------------------------------------------------------

    def _checked(
        self, data: Sequence[Datum], loss_fn: str, settings: dict[str, float | str]
    ) -> tuple[LossForm, dict[str, float]]:
        form, numbers = losses.form_of(loss_fn, settings)
        losses.check(data, loss_fn, form, self.base.cfg.vocab, self.base.cfg.max_len)
        return form, numbers

    def _batches(self, data: Sequence[Datum]) -> Iterator[tuple[list[int], TokenBatch]]:
        """The places of data of similar length, and their rows on the devices; a row has one datum.

        Rows are padded to few lengths and few numbers of rows, so that few programs are compiled.
        """
        ways = sharding.batch_ways(self.base.mesh)
        order, size = sorted(range(len(data)), key=lambda i: len(data[i].tokens)), self.rows * ways
        for first in range(0, len(order), size):
            members = order[first : first + size]
            rows = round_up(1 << (len(members) - 1).bit_length(), ways)
            # The last member is the longest.
            length = bucket(len(data[members[-1]].tokens), GRAIN)
            yield members, self._rows([data[i] for i in members], rows, length)

    def _rows(self, data: Sequence[Datum], rows: int, length: int) -> TokenBatch:
        lengths = np.asarray([len(datum.tokens) for datum in data] + [0] * (rows - len(data)))
        real = np.arange(length) < lengths[:, None]
        targets = _padded([datum.inputs['target_tokens'] for datum in data], real.shape, np.int32)
        # The targets are given: position i of the input chooses target i.
        columns = np.broadcast_to(np.arange(length, dtype=np.int32), real.shape)
        arrays: dict[str, Any] = {
            'tokens': _padded([datum.tokens for datum in data], real.shape, np.int32),
            'positions': columns,
            'segments': real.astype(np.int32),
            'prefix': real.astype(np.int32),
            'states': columns[:, None],
            'actions': targets[:, None],
            'acts': real[:, None],
        }
        batch = TokenBatch(**arrays)
        return jax.device_put(batch, sharding.sharding(self.base.mesh, ('batch',)))


def _trimmed(rows: jax.Array, data: Sequence[Datum]) -> list[np.ndarray]:
    """Numbers `[R, 1, T]` without those of padding, an array a datum."""
    return [row[0, : len(datum.tokens)] for row, datum in zip(np.asarray(rows), data, strict=False)]


def _padded(rows: Sequence[np.ndarray], shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """Rows of several lengths as one array, filled up with 0."""
    array = np.zeros(shape, dtype)
    for place, row in zip(array.reshape(-1, shape[-1]), rows, strict=False):
        place[: len(row)] = row
    return array


def _inputs(
    data: Sequence[Datum], form: LossForm, numbers: dict[str, float], before: Sequence[np.ndarray],
    shape: tuple[int, ...],
) -> LossInputs:  # fmt: skip
    """The inputs of a token loss as arrays `[R, 1, T]`.

    Args:
      before: the log-probabilities of the data's targets, for losses with the ratio of a sequence.
    """

    def column(key: str) -> np.ndarray:
        # A datum without weights has all weights 1.
        return _padded([datum.inputs.get(key, np.ones(len(datum.tokens))) for datum in data], shape)

    def everywhere(key: str) -> np.ndarray | None:
        return np.full(shape, numbers[key], np.float32) if key in numbers else None

    sequence = None
    if 'sequence_ratio_mask' in form.needs:
        sequence = np.zeros(shape, np.float32)
        for row, datum, lp in zip(sequence, data, before, strict=False):
            counted = datum.inputs['sequence_ratio_mask'] != 0
            row[...] = (lp - datum.inputs['logprobs'])[counted].mean() if counted.any() else 0.0
    sampled = 'logprobs' in form.needs
    arrays = LossInputs(
        column('advantages' if sampled else 'weights'), column('logprobs') if sampled else None,
        everywhere('clip_low_threshold'), everywhere('clip_high_threshold'), everywhere('beta'), sequence,
    )  # fmt: skip
    return jax.tree.map(jnp.asarray, arrays)


def _check_numbers(numbers: dict[str, float]) -> None:
    """Raise UserFault where a number of a step is out of its range."""
    for key, x in numbers.items():
        below = 1.0 if key in ('beta1', 'beta2') else math.inf
        if not 0 <= x < below:
            raise UserFault(f'adam_params.{key}={x}; give a number from 0 on{", below 1" if below == 1 else ""}')
