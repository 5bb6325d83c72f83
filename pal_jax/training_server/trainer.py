"""Models of tenants: adapters over one frozen base, each with its own gradients and optimiser.

Batches of many tenants are computed together. A row has one datum, and beside it stand the adapters of its tenant. The
gradient comes by row, too, and is added to the tenant's in the order of its data. A row's numbers of float32 depend on
no other row.

All functions of a `Trainer` run on the executor's thread, one after the other.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pal_jax.decode.requests import bucket
from pal_jax.learners import forward, training
from pal_jax.learners.training import Lora, TrainState
from pal_jax.models import lora
from pal_jax.models.config import ModelConfig
from pal_jax.models.params import Params
from pal_jax.run import sharding
from pal_jax.run.optim import ADAM, UNCLIPPED, with_numbers
from pal_jax.training_server import losses
from pal_jax.training_server.futures import UserFault
from pal_jax.training_server.losses import LOSSES, NO_TARGET, Datum, LossInputs
from pal_jax.types import TokenBatch

# The product of an adapter's factors is multiplied by ALPHA / rank.
ALPHA = 32.0
# The unit of the lengths of rows, in tokens.
GRAIN = 16


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
    def padded(self) -> Shape:
        """The shape with the rank rounded up to a power of two. Rows of one such shape are computed together."""
        return self._replace(rank=1 << (self.rank - 1).bit_length())

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
    params: Params
    opt_state: Any
    user_metadata: dict[str, Any]
    grads: Params | None = None
    spoiled: int | None = None
    seq: int = 0
    last_request: float = dataclasses.field(default_factory=time.time)

    def spoil(self) -> None:
        """Drop the gradients, since a forward_backward has failed, and refuse the next step."""
        # A step without this batch would be a step on half of what the client meant.
        self.spoiled = self.seq if self.spoiled is None else self.spoiled
        self.grads = None


class Batch(NamedTuple):
    """The data of one operation, the name of their loss and its settings."""

    tenant: Tenant
    data: Sequence[Datum]
    loss: str
    numbers: dict[str, float]


class Step(NamedTuple):
    """One step of a tenant's optimiser: its gradient and the numbers of `wire.AdamForm`."""

    tenant: Tenant
    grads: Params
    numbers: dict[str, float]


class Row(NamedTuple):
    """A datum on its way through a program: its batch, and its place there."""

    batch: Batch
    place: int

    @property
    def datum(self) -> Datum:
        """The datum itself."""
        return self.batch.data[self.place]

    @property
    def part(self) -> tuple[slice, slice]:
        """The part of the row's numbers `[K, T]` that is not padding."""
        length, targets = self.datum.targets.shape
        return slice(targets), slice(length)


# The log-probability of each target of each datum of a batch, and the metrics.
Result = tuple[list[np.ndarray], dict[str, float]]


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

    def create(self, model_id: str, shape: Shape, seed: int, user_metadata: dict[str, Any]) -> Tenant:
        """A new model. The same seed draws the same adapters, bit for bit.

        Raises:
          UserFault: the rank or the seed is out of its range, or nothing is to be trained.
        """
        if not 1 <= shape.rank <= self.max_rank:
            raise UserFault(f'lora_config.rank={shape.rank}; this server has ranks from 1 to {self.max_rank}')
        if not 0 <= seed < 2**31:
            raise UserFault(f'lora_config.seed={seed}; give one from 0 to 2^31 - 1')
        if not shape.lora.targets:
            raise UserFault('lora_config trains nothing; set one of train_unembed, train_mlp and train_attn')
        tenant = self.start(self._drawn(shape)(self.base.params, seed), model_id, shape, user_metadata)
        self.tenants[model_id] = tenant
        return tenant

    def start(self, params: Params, model_id: str, shape: Shape, user_metadata: dict[str, Any]) -> Tenant:
        """A model with these adapters, whose optimiser starts afresh."""
        return Tenant(model_id, shape, params, self._new_optimizer(shape)(params), user_metadata)

    def placed(self, params: Params, shape: Shape) -> Params:
        """Adapters that every process has, as they lie on the mesh."""
        return sharding.put(jax.device_get(params), self._places(shape).params)

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def _new_optimizer(self, shape: Shape) -> Any:
        return training.jit_to(self.layout(shape).opt_state, ADAM.init)

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def _drawn(self, shape: Shape) -> Any:
        return training.jit_to(
            self.layout(shape).params, lambda params, seed: training.attached(params, shape.lora, seed)[0]
        )

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def layout(self, shape: Shape) -> TrainState:
        """The shapes and shardings of a model's adapters and optimiser."""

        def new(params: Params) -> TrainState:
            adapters, _ = training.attached(params, shape.lora, 0)
            return TrainState(adapters, {}, ADAM.init(adapters))

        return training.laid_out(new, self.base.cfg, shape.lora, self.base.mesh)

    def _places(self, shape: Shape) -> TrainState:
        return jax.tree.map(lambda x: x.sharding, self.layout(shape))

    # --- training ----------------------------------------------------------------------------------------------------

    def checked(self, tenant: Tenant, data: Sequence[Datum], loss_fn: str, settings: dict[str, float | str]) -> Batch:
        """The data of an operation.

        Raises:
          UserFault: they do not fit the loss or the model.
        """
        form, numbers = losses.form_of(loss_fn, settings)
        losses.check(data, loss_fn, form, self.base.cfg.vocab, self.base.cfg.max_len)
        return Batch(tenant, data, loss_fn, numbers)

    def forward(self, batches: Sequence[Batch]) -> list[Result]:
        """The results of batches of any tenants. No gradient is touched."""
        return self._passes(batches, learn=False)

    def forward_backward(self, batches: Sequence[Batch]) -> list[Result]:
        """The results of `forward`, while the gradient of each batch's loss is added to that of its tenant.

        Where it fails, the gradients are dropped and the next steps are refused. No tenant has two of the batches.
        """
        try:
            return self._passes(batches, learn=True)
        except Exception:
            for batch in batches:
                batch.tenant.spoil()
            raise

    def _passes(self, batches: Sequence[Batch], learn: bool) -> list[Result]:
        done: dict[tuple[int, int], tuple[np.ndarray, float]] = {}
        for members, tokens in self._micro_batches(batches):
            adapters = self._adapters(members, len(tokens.tokens))
            args = self.base.cfg, self.base.mesh, adapters, self.base.params, tokens
            # The ratio of a sequence needs all of its log-probabilities before the loss of its first token.
            whole = any('sequence_ratio_mask' in LOSSES[row.batch.loss].needs for row in members)
            before = _trimmed(sharding.to_every_host(_logprobs(*args), self.base.mesh), members) if whole else ()
            inputs = sharding.put_batch(_inputs(members, before, tokens.acts.shape), self.base.mesh)
            if learn:
                grads, lps = _gradients(*args, inputs)
                for place, row in enumerate(members):
                    self._add(row.batch.tenant, grads, place)
            else:
                lps = _logprobs(*args)
            lps, sums = sharding.to_every_host((lps, _sums(lps, inputs)), self.base.mesh)
            for row, some, total in zip(members, _trimmed(lps, members), sums.tolist(), strict=False):
                done[id(row.batch), row.place] = some, total
        results = []
        for batch in batches:
            logprobs, sums = zip(*(done[id(batch), place] for place in range(len(batch.data))), strict=True)
            results.append((list(logprobs), {'loss:sum': sum(sums)}))
        return results

    def _add(self, tenant: Tenant, grads: Params, row: int) -> None:
        """Add the gradient of a row to that of its tenant."""
        before, tenant.grads = tenant.grads, None
        before = training.zeros(tenant.params) if before is None else before
        tenant.grads = self._added(tenant.shape)(before, grads, row)

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def _added(self, shape: Shape) -> Any:
        def add(total: Params, grads: Params, row: int) -> Params:
            return jax.tree.map(jnp.add, total, lora.gradient_of_row(grads, row, total))

        return jax.jit(add, donate_argnums=0, out_shardings=self._places(shape).params)

    def step_of(self, tenant: Tenant, numbers: dict[str, float]) -> Step:
        """The step on the tenant's sum of gradients, which is cleared.

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
        return Step(tenant, grads, numbers)

    def optim_steps(self, steps: Sequence[Step]) -> list[dict[str, float]]:
        """The metrics of steps of AdamW. A gradient that is not finite makes no step."""
        norms = []
        for tenant, grads, numbers in steps:
            clip = numbers['grad_clip_norm']
            named = {key: x for key, x in numbers.items() if key != 'grad_clip_norm'} | {'max_norm': clip or UNCLIPPED}
            tenant.params, tenant.opt_state, norm = self._step(tenant.shape)(
                tenant.params, with_numbers(tenant.opt_state, **named), grads
            )
            norms.append(norm)
        # The devices have the steps of all tenants before the first result is waited for.
        return [
            {'grad_norm:mean': float(norm), 'skipped:sum': float(not math.isfinite(norm))}
            for norm in jax.device_get(norms)
        ]

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def _step(self, shape: Shape) -> Any:
        places = self._places(shape)

        def step(params: Params, opt_state: Any, grads: Params) -> tuple[Params, Any, jax.Array]:
            state, norm = training.apply(ADAM, TrainState(params, {}, opt_state), grads)
            return state.params, state.opt_state, norm

        # Nothing is donated, so that snapshots may hold the adapters.
        return jax.jit(step, out_shardings=(places.params, places.opt_state, None))

    # --- rows --------------------------------------------------------------------------------------------------------

    def _micro_batches(self, batches: Sequence[Batch]) -> Iterator[tuple[list[Row], TokenBatch]]:
        """Rows of one length and one padded shape of adapters, and their tokens on the devices.

        What a row is computed with depends on its own length and shape alone, and not on who else is there.
        """
        groups: dict[tuple[int, int, Shape], list[Row]] = {}
        for batch in batches:
            for place, datum in enumerate(batch.data):
                # Few lengths and few numbers of targets keep the programs to compile few.
                targets = bucket(datum.targets.shape[1], 1)
                key = bucket(len(datum.tokens), GRAIN), targets, batch.tenant.shape.padded
                groups.setdefault(key, []).append(Row(batch, place))
        size = self.rows * sharding.batch_ways(self.base.mesh)
        for (length, targets, _), rows in sorted(groups.items(), key=lambda group: group[0]):
            for first in range(0, len(rows), size):
                members = rows[first : first + size]
                # A program of fewer rows would add some numbers up in another order.
                yield members, self._tokens(members, (size, targets, length))

    def _adapters(self, members: Sequence[Row], rows: int) -> Params:
        """The adapters of the rows' tenants. Rows without a datum have those of the first."""
        tenants = [row.batch.tenant for row in members] + [members[0].batch.tenant] * (rows - len(members))
        return _stacked(tuple(tenant.params for tenant in tenants), tenants[0].shape.padded.rank, self.base.mesh)

    def _tokens(self, members: Sequence[Row], shape: tuple[int, int, int]) -> TokenBatch:
        """The rows, `shape[2]` columns each, and `shape[1]` targets of each column."""
        tokens, targets = np.zeros((shape[0], shape[2]), np.int32), np.full(shape, NO_TARGET, np.int32)
        for i, row in enumerate(members):
            tokens[i, : len(row.datum.tokens)] = row.datum.tokens
            targets[i][row.part] = row.datum.targets.T
        lengths = np.asarray([len(row.datum.tokens) for row in members] + [0] * (shape[0] - len(members)))
        real = (np.arange(shape[2]) < lengths[:, None]).astype(np.int32)
        # The targets are given: position i of the input chooses target i.
        columns = np.arange(shape[2], dtype=np.int32)
        arrays: dict[str, Any] = {
            'tokens': tokens,
            'positions': np.broadcast_to(columns, tokens.shape),
            'segments': real,
            'prefix': real,
            'states': np.broadcast_to(columns, shape),
            'actions': np.maximum(targets, 0),
            'acts': targets != NO_TARGET,
        }
        return sharding.put_batch(TokenBatch(**arrays), self.base.mesh)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _stacked(adapters: tuple[Params, ...], rank: int, mesh: Mesh) -> Params:
    """The adapters of rows, spread over the devices as the rows are."""

    def spread(x: jax.Array) -> jax.Array:
        axes = (*[None] * (x.ndim - 3), 'batch', None, None)
        return jax.lax.with_sharding_constraint(x, sharding.sharding(mesh, axes))

    return jax.tree.map(spread, lora.by_row(adapters, rank))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _logprobs(cfg: ModelConfig, mesh: Mesh, adapters: Params, base: Params, batch: TokenBatch) -> jax.Array:
    """The log-probabilities `[R, K, T]` of the targets."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return forward.logprobs(lora.join(adapters, base), cfg, batch)[0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gradients(
    cfg: ModelConfig, mesh: Mesh, adapters: Params, base: Params, batch: TokenBatch, inputs: LossInputs
) -> tuple[Params, jax.Array]:
    """The gradient of the sum of losses by the adapters of each row, and the log-probabilities `[R, K, T]`."""

    def loss(adapters: Params) -> tuple[jax.Array, jax.Array]:
        aux = inputs._asdict()
        return forward.token_loss(lora.join(adapters, base), cfg, batch, aux, _per_token)

    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        return jax.grad(loss, has_aux=True)(adapters)


def _per_token(lp: jax.Array, aux: dict[str, Any]) -> jax.Array:
    return losses.any_loss(lp, LossInputs(**aux))


@jax.jit
def _sums(lps: jax.Array, inputs: LossInputs) -> jax.Array:
    """The loss `[R]` of each row."""
    return losses.any_loss(lps, inputs).sum(axis=(1, 2))


def _trimmed(rows: np.ndarray, members: Sequence[Row]) -> list[np.ndarray]:
    """Numbers `[R, K, T]` without those of padding, an array of the shape of the targets for each datum."""
    return [
        of_row[row.part].T.reshape(row.datum.inputs['target_tokens'].shape)
        for of_row, row in zip(rows, members, strict=False)
    ]


def _inputs(members: Sequence[Row], before: Sequence[np.ndarray], shape: tuple[int, ...]) -> LossInputs:
    """The inputs of the rows' losses as arrays `[R, K, T]`.

    Args:
      before: the log-probabilities of the targets, for losses with the ratio of a sequence.
    """
    columns: dict[str, np.ndarray] = {name: np.zeros(shape, np.float32) for name in LossInputs._fields}
    columns['kind'] = np.full(shape, -1, np.int32)
    for i, row in enumerate(members):
        form, numbers, given = LOSSES[row.batch.loss], row.batch.numbers, row.datum.inputs
        # A datum without weights has all weights 1.
        weight = given['advantages'] if 'advantages' in form.needs else given.get('weights', 1.0)
        values = {
            'kind': [*LOSSES].index(row.batch.loss),
            'weight': weight,
            'old': given.get('logprobs', 0.0),
            'low': numbers.get('clip_low_threshold', 0.0),
            'high': numbers.get('clip_high_threshold', 0.0),
            'beta': numbers.get('beta', 0.0),
        }
        if 'sequence_ratio_mask' in form.needs:
            counted = given['sequence_ratio_mask'] != 0
            values['sequence'] = (before[i] - given['logprobs'])[counted].mean() if counted.any() else 0.0
        exists = row.datum.targets.T != NO_TARGET
        for name, value in values.items():
            # Numbers of one target a position are rows, and those of several have the targets last.
            columns[name][i][row.part] = np.where(exists, np.asarray(value).T, columns[name][i, 0, 0])
    return LossInputs(**columns)


def _check_numbers(numbers: dict[str, float]) -> None:
    """Raise UserFault where a number of a step is out of its range."""
    for key, x in numbers.items():
        below = 1.0 if key in ('beta1', 'beta2') else math.inf
        if not 0 <= x < below:
            raise UserFault(f'adam_params.{key}={x}; give a number from 0 on{", below 1" if below == 1 else ""}')
