"""The work of a training server on its devices: it trains the models of clients, saves and loads them, and samples.

Process 0 has the clients. Every process has a `Worker`, and all of them get the same calls in the same order, so that
each takes part in every program on the mesh of all devices. A call is an object that `pickle` can carry.
"""

from __future__ import annotations

import functools
import tempfile
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from pal_jax.training_server import wire
from pal_jax.training_server.futures import Answer, Outcome, UserFault, as_json, outcome
from pal_jax.training_server.sampler import BASE, SampleJob, Sampler, Snapshot, Weights
from pal_jax.training_server.store import Store
from pal_jax.training_server.trainer import Batch, Shape, Step, Tenant, Trainer

# Snapshots of unsaved weights whose adapters are in memory; older ones are in files for as long as the server runs.
IN_MEMORY = 8

# A call of one method of a worker, such as `functools.partial(Worker.unload, model_id='a')`.
Work = Callable[['Worker'], Any]
# A method that finishes the work of several models together.
Together = Callable[['Worker', Sequence[Any]], Sequence[Answer]]


class Worker:
    """The models, saved weights and samples of one process. The executor's thread alone changes a worker."""

    def __init__(self, trainer: Trainer, store: Store, sampler: Sampler):
        self.trainer, self.store, self.sampler = trainer, store, sampler
        # The session and the weights of each sampling session.
        self._samplers: dict[str, tuple[str, Weights]] = {}
        # Sampling sessions of the same weights share their turn.
        self._snapshots: dict[Weights, Snapshot] = {BASE: Snapshot(dict, is_base=True)}
        self._recent: deque[Snapshot] = deque()
        self._aside = tempfile.TemporaryDirectory(prefix='pal_jax_snapshots_')

    def close(self) -> None:
        """Delete the files of snapshots."""
        self._aside.cleanup()

    def carry_out(self, works: Sequence[Work], together: Together | None = None) -> list[Outcome]:
        """The answers or errors of works, each whole by itself or finished by `together`."""
        outcomes = [outcome(functools.partial(work, self)) for work in works]
        parts = [part for part in outcomes if not isinstance(part, Exception)]
        if together is None or not parts:
            return outcomes
        answers = outcome(functools.partial(together, self, parts))
        rest = iter([answers] * len(parts) if isinstance(answers, Exception) else answers)
        return [part if isinstance(part, Exception) else next(rest) for part in outcomes]

    # --- models ------------------------------------------------------------------------------------------------------

    def create(self, model_id: str, shape: Shape, seed: int, user_metadata: dict[str, Any]) -> Answer:
        """Make a model."""
        self.trainer.create(model_id, shape, seed, user_metadata)
        return as_json({'model_id': model_id, 'type': 'create_model'})

    def unload(self, model_id: str) -> Answer:
        """Drop a model from memory."""
        self.trainer.tenants.pop(model_id, None)
        return as_json({'type': 'unload_model', 'model_id': model_id})

    def _in_turn(self, model_id: str, seq: int) -> Tenant:
        """The model of an operation, which is its operation `seq`."""
        if model_id not in self.trainer.tenants:
            raise UserFault(f'there is no model {model_id} in memory any more')
        tenant = self.trainer.tenants[model_id]
        tenant.seq = seq
        return tenant

    # --- training ----------------------------------------------------------------------------------------------------

    def batch(self, model_id: str, seq: int, body: bytes, learn: bool) -> Batch:
        """The data of a forward_backward, for `forward` or `forward_backward`.

        Args:
          body: the message in bytes.
          learn: whether the data are to have a gradient; where they are refused, the next step is refused, too.
        """
        tenant, message = self._in_turn(model_id, seq), wire.read_training(body)
        try:
            return self.trainer.checked(tenant, wire.data_of(message), message.loss_fn, wire.settings_of(message))
        except Exception:
            if learn:
                tenant.spoil()
            raise

    def refuse(self, why: str) -> Answer:
        """Fail an operation."""
        raise UserFault(why)

    def spoil(self, model_id: str, seq: int, why: str) -> Answer:
        """Fail a forward_backward that could not be read. Its gradient counts as lost."""
        self._in_turn(model_id, seq).spoil()
        raise UserFault(why)

    def forward(self, batches: Sequence[Batch]) -> list[Answer]:
        """The log-probabilities and losses of batches."""
        return [wire.training_answer(*result) for result in self.trainer.forward(batches)]

    def forward_backward(self, batches: Sequence[Batch]) -> list[Answer]:
        """The log-probabilities and losses of batches, whose gradients are added to those of their models."""
        return [wire.training_answer(*result) for result in self.trainer.forward_backward(batches)]

    def step(self, model_id: str, seq: int, numbers: dict[str, float]) -> Step:
        """A step of AdamW, for `optim_steps`."""
        return self.trainer.step_of(self._in_turn(model_id, seq), numbers)

    def optim_steps(self, steps: Sequence[Step]) -> list[Answer]:
        """Make steps, and give their metrics."""
        return [as_json({'type': 'optim_step', 'metrics': metrics}) for metrics in self.trainer.optim_steps(steps)]

    # --- weights -----------------------------------------------------------------------------------------------------

    def save(self, form: wire.SaveWeights) -> Answer:
        """Save a model to train on."""
        saved = self.store.save(
            self._in_turn(form.model_id, form.seq_id), 'weights', form.path, overwrite=form.overwrite,
            ttl_seconds=form.ttl_seconds, user_metadata=form.user_metadata,
        )  # fmt: skip
        return as_json({'path': saved.path, 'type': 'save_weights'})

    def save_for_sampler(self, form: wire.SaveForSampler) -> Answer:
        """Save a model's adapters to sample from."""
        tenant = self._in_turn(form.model_id, form.seq_id)
        more = {'ttl_seconds': form.ttl_seconds, 'user_metadata': form.user_metadata}
        saved = self.store.save(tenant, 'sampler_weights', form.path, **more)
        return as_json({'path': saved.path, 'type': 'save_weights_for_sampler'})

    def hold(self, model_id: str, seq: int, sampler_id: str, session_id: str) -> Answer:
        """Keep a model's adapters of this moment for a sampling session."""
        adapters = self._in_turn(model_id, seq).params
        snapshot, weights = Snapshot(lambda: adapters), Weights(sampler_id)
        self._snapshots[weights], self._samplers[sampler_id] = snapshot, (session_id, weights)
        # A loop makes a snapshot a step, and the client never says that it needs one no longer.
        self._recent.append(snapshot)
        if len(self._recent) > IN_MEMORY:
            self._recent.popleft().put_aside(Path(self._aside.name))
        return as_json({'sampling_session_id': sampler_id, 'type': 'save_weights_for_sampler'})

    def load(self, model_id: str, seq: int, form: wire.LoadWeights) -> Answer:
        """Load saved weights into a model."""
        tenant, loaded = self._in_turn(model_id, seq), self._loaded(model_id, form)
        if loaded.shape != tenant.shape:
            raise UserFault(f'{form.path} has adapters {loaded.shape}, the model {tenant.shape}; make a model of it')
        tenant.params, tenant.opt_state = loaded.params, loaded.opt_state
        tenant.grads = tenant.spoiled = None
        return as_json({'path': form.path, 'model_id': model_id, 'type': 'load_weights'})

    def load_new(self, model_id: str, form: wire.LoadWeights) -> Answer:
        """Make a model of saved weights."""
        self.trainer.tenants[model_id] = self._loaded(model_id, form)
        return as_json({'path': form.path, 'model_id': model_id, 'type': 'load_weights'})

    def _loaded(self, model_id: str, form: wire.LoadWeights) -> Tenant:
        return self.store.load(
            self.trainer, form.path, model_id, optimizer=form.optimizer, user_metadata=form.user_metadata
        )

    # --- samples -----------------------------------------------------------------------------------------------------

    def open_sampler(self, sampler_id: str, session_id: str, weights: Weights) -> Answer:
        """Keep the base or saved weights for a sampling session."""
        self._samplers[sampler_id] = session_id, weights
        return as_json({})

    def release(self, session_id: str) -> Answer:
        """Free the sampling sessions of a session, and the memory and files of weights that no other one has."""
        self._samplers = {name: kept for name, kept in self._samplers.items() if kept[0] != session_id}
        used = {BASE} | {weights for _, weights in self._samplers.values()}
        # Samples of saved weights that are under way may be of no session, and need their place.
        used |= {weights for weights, kept in self._snapshots.items() if weights.saved and self.sampler.samples(kept)}
        ended = [self._snapshots.pop(weights) for weights in [*self._snapshots] if weights not in used]
        self.sampler.bank.forget(ended)
        self._recent = deque(snapshot for snapshot in self._recent if snapshot not in ended)
        for snapshot in ended:
            if snapshot.path is not None:
                snapshot.path.unlink(missing_ok=True)
        return as_json({})

    def sample(self, jobs: Sequence[SampleJob], cancelled: Collection[str], now: float) -> list[tuple[str, Outcome]]:
        """Put jobs in line, take others back, and decode a few tokens of all samples under way.

        Args:
          cancelled: the request ids of jobs to take back.
          now: the time in seconds by the clock of process 0, so that all processes decide the same.
        Returns:
          the request ids of jobs that have ended, with their answers or errors.
        """
        ended: list[tuple[str, Outcome]] = []
        for job in jobs:
            snapshot = outcome(functools.partial(self._snapshot, job.weights))
            if isinstance(snapshot, Exception):
                ended.append((job.request_id, snapshot))
            else:
                self.sampler.put(job, snapshot)
        return ended + self.sampler.advance(cancelled, now)

    def _snapshot(self, weights: Weights) -> Snapshot:
        if weights not in self._snapshots:
            name, saved = weights
            if saved is None:
                raise UserFault(f'the weights of sampling session {name} are gone; save them again')
            self._snapshots[weights] = Snapshot(lambda: self.store.adapters(self.trainer, name, saved))
        return self._snapshots[weights]
