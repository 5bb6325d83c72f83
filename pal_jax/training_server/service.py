"""The state behind the HTTP paths: sessions, models, samplers, and the operations that they order.

The event loop's thread alone uses a `Service`. What an operation does on devices runs on the executor's thread.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import secrets
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.training_server import wire
from pal_jax.training_server.executor import Executor
from pal_jax.training_server.futures import Answer, Futures, Operation, Order, UserFault
from pal_jax.training_server.sampler import SampleJob, Sampler, Snapshot, requests_of
from pal_jax.training_server.store import Saved, Store, about, moment
from pal_jax.training_server.trainer import Batch, Shape, Step, Tenant, Trainer

# Snapshots of unsaved weights whose adapters are in memory; older ones are in files for as long as the server runs.
IN_MEMORY = 8
# Seconds without a heartbeat after which a session is finished.
SILENCE = 600.0


class Missing(Exception):
    """The error of a name that nothing has."""


class Gone(Exception):
    """The error of a session that has finished."""


@dataclasses.dataclass
class Session:
    """A client's session, and the models and samplers that end with it."""

    seen: float = dataclasses.field(default_factory=time.monotonic)
    models: list[str] = dataclasses.field(default_factory=list)

    def beat(self) -> None:
        """Note a sign of life."""
        self.seen = time.monotonic()


@dataclasses.dataclass
class SamplerEntry:
    """A sampling session: its session, its weights, their path if they are saved, and the count of its clients."""

    session_id: str
    snapshot: Snapshot
    path: str | None = None
    clients: itertools.count[int] = dataclasses.field(default_factory=lambda: itertools.count(1))


def session_of(model_id: str) -> str:
    """The id of the session in which a model was made."""
    return model_id.partition(':train:')[0]


def as_json(record: Mapping[str, Any]) -> Answer:
    """A result in JSON."""
    return Answer(json.dumps(record).encode())


class Service:
    """The functions behind the paths.

    Args:
      line: the number of sampling requests that may wait or be under way.
      share: see `Executor`.
    """

    def __init__(
        self, trainer: Trainer, store: Store, sampler: Sampler, tokenizer: Tokenizer, *, line: int = 8192,
        share: float = 0.5,
    ):  # fmt: skip
        self.trainer, self.store, self.tokenizer = trainer, store, tokenizer
        self.sampling, self.decoder, self.line = sampler, sampler.decoder, line
        self.executor = Executor(sampler, share=share)
        self.futures = Futures()
        self.sessions: dict[str, Session] = {}
        self.orders: dict[str, Order] = {}
        self.samplers: dict[str, SamplerEntry] = {}
        # Samplers of saved weights and of the base, so that clients of the same weights share their turn.
        self._shared: dict[str, Snapshot] = {'': Snapshot(dict, is_base=True)}
        self._jobs: dict[str, SampleJob] = {}
        # Why requests were refused whose number nobody knows.
        self._unread: deque[str] = deque(maxlen=8)
        self._recent: deque[Snapshot] = deque()
        self._aside = tempfile.TemporaryDirectory(prefix='pal_jax_snapshots_')

    @property
    def base_name(self) -> str:
        """The name of the base for clients."""
        return self.trainer.base.name

    def close(self) -> None:
        """End the executor."""
        self.executor.close()
        self._aside.cleanup()

    # --- sessions ----------------------------------------------------------------------------------------------------

    def open_session(self) -> str:
        """The id of a new session."""
        session_id = str(uuid.uuid4())
        self.sessions[session_id] = Session()
        return session_id

    def session(self, session_id: str) -> Session:
        """The session of that id. Raises Gone where there is none, or none any more."""
        if session_id not in self.sessions:
            raise Gone(f'session {session_id} has finished; make a new ServiceClient')
        return self.sessions[session_id]

    def finish(self, session_id: str) -> None:
        """End a session: its models, samplers and results are dropped once its last operation is carried out."""
        session = self.sessions.pop(session_id, None)
        if session is None:
            return
        for model_id in session.models:
            self.orders.pop(model_id, None)
            self.executor.put(Operation('', lambda model_id=model_id: self._unload(model_id), model_id))
        self.executor.put(Operation('', lambda: self._release(session_id)))
        for job in self._jobs.values():
            job.cancelled = job.cancelled or job.operation.owner == session_id
        # A job holds the adapters that it samples from.
        self._jobs = {key: job for key, job in self._jobs.items() if job.operation.owner != session_id}
        self.futures.drop(lambda operation: operation.owner == session_id)

    def _release(self, session_id: str) -> Answer:
        """Free the samplers of a session that has finished, and the memory and files of their snapshots."""
        # An operation before this one may have made a sampler, on this thread.
        names = [key for key, entry in list(self.samplers.items()) if entry.session_id == session_id]
        ended = {self.samplers.pop(key).snapshot for key in names}
        used = {entry.snapshot for entry in list(self.samplers.values())} | {self._shared['']}
        for key in [key for key, kept in list(self._shared.items()) if kept not in used]:
            del self._shared[key]
        self.sampling.bank.forget(ended - used)
        self._recent = deque(kept for kept in self._recent if kept in used)
        for snapshot in ended - used:
            if snapshot.path is not None:
                snapshot.path.unlink(missing_ok=True)
        return as_json({})

    def sweep(self) -> None:
        """Finish sessions without a heartbeat, and forget old results."""
        for session_id, session in list(self.sessions.items()):
            if time.monotonic() - session.seen > SILENCE:
                self.finish(session_id)
        self.futures.sweep()

    # --- models ------------------------------------------------------------------------------------------------------

    def about_base(self) -> dict[str, Any]:
        """The entry of the base among the models of this server."""
        length = self.trainer.base.cfg.max_len
        return {'model_name': self.base_name, 'max_context_length': length, 'trainable': True, 'sampleable': True}

    def tenant(self, model_id: str) -> Tenant:
        """The model of that id. Raises Missing, with the last saved weights, where it is not in memory."""
        if model_id not in self.trainer.tenants:
            paths = [saved.path for saved in self.store.listed(model_id) if '/weights/' in saved.path]
            advice = f'restart from {paths[-1]}' if paths else 'it has no saved weights'
            raise Missing(f'there is no model {model_id} in memory; {advice}')
        return self.trainer.tenants[model_id]

    def about_model(self, model_id: str) -> dict[str, Any]:
        """The information about a model."""
        shape, cfg = self.tenant(model_id).shape, self.trainer.base.cfg
        data = {'arch': cfg.family, 'model_name': self.base_name, 'tokenizer_id': self.base_name}
        return {
            'type': 'get_info', 'model_id': model_id, 'model_name': self.base_name, 'model_data': data, 'is_lora': True,
            'lora_rank': shape.rank,
        }  # fmt: skip

    def create_model(self, form: wire.CreateModel, digest: bytes) -> Operation:
        """The operation that makes a model."""
        model_id = f'{form.session_id}:train:{form.model_seq_id}'

        def work() -> Answer:
            self._check_base(form.base_model)
            _check_optimizer(form.optimizer_config)
            if form.lora_config is None:
                raise UserFault('lora_config is missing; this server trains adapters alone')
            lora = form.lora_config
            shape = Shape(lora.rank, lora.train_unembed, lora.train_mlp, lora.train_attn)
            self.trainer.create(model_id, shape, lora.seed, form.user_metadata)
            return as_json({'model_id': model_id, 'type': 'create_model'})

        return self._first(form.session_id, model_id, digest, work)

    def _first(self, session_id: str, model_id: str, digest: bytes, work: Callable[[], Answer]) -> Operation:
        """The operation 0 of a model, which makes it."""
        session = self.session(session_id)
        operation, new = self.futures.take((model_id, 0), digest, lambda: Operation(session_id, work))
        if new:
            session.models.append(model_id)
            self.orders[model_id] = Order(self.executor.put, unread=self._unread)
            self.executor.put(operation)
        return operation

    def _numbered(
        self, model_id: str, seq_id: int, digest: bytes, work: Callable[[Tenant], Any],
        together: Callable[[Sequence[Any]], Sequence[Answer]] | None = None,
    ) -> Operation:  # fmt: skip
        """An operation of a model, which is carried out in its turn."""
        tenant = self.tenant(model_id)
        tenant.last_request = time.time()

        def in_turn() -> Any:
            tenant.seq = seq_id
            return work(tenant)

        owner = session_of(model_id)
        operation, new = self.futures.take(
            (model_id, seq_id), digest, lambda: Operation(owner, in_turn, model_id, together)
        )
        if new:
            self.orders[model_id].add(seq_id, operation)
        return operation

    def refuse(self, body: object) -> None:
        """Count an operation as carried out whose request, with this body, is refused. Other bodies change nothing."""
        match body:
            case {'model_id': str(model_id), 'seq_id': int(number)} if model_id in self.orders:
                self.orders[model_id].refuse(number)

    def refuse_unread(self, start: bytes, why: str) -> None:
        """Fail the forward_backward whose first bytes are there, since the request is refused. Its gradient counts as
        lost. Where these bytes name no operation, those that wait for it will say why it is missing."""

        def work(tenant: Tenant) -> Answer:
            tenant.spoil()
            raise UserFault(why)

        match wire.numbered_in(start):
            case (model_id, number) if model_id in self.orders and model_id in self.trainer.tenants:
                self._numbered(model_id, number, b'', work)
            case _:
                self._unread.append(why)

    def unload(self, model_id: str) -> Operation:
        """The operation that drops a model from memory."""
        self.tenant(model_id)
        owner = session_of(model_id)
        operation, _ = self.futures.take(None, b'', lambda: Operation(owner, lambda: self._unload(model_id), model_id))
        self.executor.put(operation)
        return operation

    def _unload(self, model_id: str) -> Answer:
        self.trainer.tenants.pop(model_id, None)
        return as_json({'type': 'unload_model', 'model_id': model_id})

    # --- training ----------------------------------------------------------------------------------------------------

    def forward_backward(self, message: Any, digest: bytes) -> Operation:
        """The operation of a batch: its log-probabilities, and its gradient unless it is `forward_only`."""

        def work(tenant: Tenant) -> Batch:
            try:
                return self.trainer.checked(tenant, wire.data_of(message), message.loss_fn, wire.settings_of(message))
            except Exception:
                if not message.forward_only:
                    tenant.spoil()
                raise

        together = self._forward if message.forward_only else self._forward_backward
        return self._numbered(message.model_id, message.seq_id, digest, work, together)

    def _forward(self, batches: Sequence[Batch]) -> list[Answer]:
        return [wire.training_answer(*result) for result in self.trainer.forward(batches)]

    def _forward_backward(self, batches: Sequence[Batch]) -> list[Answer]:
        return [wire.training_answer(*result) for result in self.trainer.forward_backward(batches)]

    def _steps(self, steps: Sequence[Step]) -> list[Answer]:
        return [as_json({'type': 'optim_step', 'metrics': metrics}) for metrics in self.trainer.optim_steps(steps)]

    def optim_step(self, form: wire.OptimStep, digest: bytes) -> Operation:
        """The operation of a step."""

        def work(tenant: Tenant) -> Step:
            if form.optimizer_params is not None or form.adam_params is None:
                kind = form.optimizer_params.type if form.optimizer_params else 'none'
                raise UserFault(f'optimizer_params of type {kind!r} are not supported; pass AdamParams')
            return self.trainer.step_of(tenant, form.adam_params.model_dump(exclude={'type'}))

        return self._numbered(form.model_id, form.seq_id, digest, work, self._steps)

    # --- weights -----------------------------------------------------------------------------------------------------

    def save_weights(self, form: wire.SaveWeights, digest: bytes) -> Operation:
        """The operation that saves a model to train on."""

        def work(tenant: Tenant) -> Answer:
            saved = self.store.save(
                tenant, 'weights', form.path, overwrite=form.overwrite, ttl_seconds=form.ttl_seconds,
                user_metadata=form.user_metadata,
            )  # fmt: skip
            return as_json({'path': saved.path, 'type': 'save_weights'})

        return self._numbered(form.model_id, form.seq_id, digest, work)

    def save_for_sampler(self, form: wire.SaveForSampler, digest: bytes) -> Operation:
        """The operation that saves adapters to sample from, or holds them in memory for a sampling session."""
        session_id = session_of(form.model_id)

        def work(tenant: Tenant) -> Answer:
            if form.path is not None:
                more = {'ttl_seconds': form.ttl_seconds, 'user_metadata': form.user_metadata}
                saved = self.store.save(tenant, 'sampler_weights', form.path, **more)
                return as_json({'path': saved.path, 'type': 'save_weights_for_sampler'})
            if form.kind != 'snapshot':
                raise UserFault(f'kind={form.kind!r} is not supported; use snapshot')
            adapters = tenant.params
            sampler_id = f'{session_id}:sample:{form.sampling_session_seq_id}'
            snapshot = Snapshot(lambda: adapters)
            self.samplers[sampler_id] = SamplerEntry(session_id, snapshot)
            # A loop makes a snapshot a step, and the client never says that it needs one no longer.
            self._recent.append(snapshot)
            if len(self._recent) > IN_MEMORY:
                self._recent.popleft().put_aside(Path(self._aside.name))
            return as_json({'sampling_session_id': sampler_id, 'type': 'save_weights_for_sampler'})

        return self._numbered(form.model_id, form.seq_id, digest, work)

    def load_weights(self, form: wire.LoadWeights, digest: bytes) -> tuple[Operation, str]:
        """The operation that loads saved weights into a new model or an existing one, and the model's id."""
        if form.model_id is not None and form.seq_id is not None:
            operation = self._numbered(form.model_id, form.seq_id, digest, lambda tenant: self._load(form, tenant))
            return operation, form.model_id
        if form.session_id is None or form.model_seq_id is None:
            raise UserFault('load_weights needs session_id and model_seq_id, or model_id and seq_id')
        model_id = f'{form.session_id}:train:{form.model_seq_id}'

        def work() -> Answer:
            self.trainer.tenants[model_id] = self._loaded(form, model_id)
            return as_json({'path': form.path, 'model_id': model_id, 'type': 'load_weights'})

        return self._first(form.session_id, model_id, digest, work), model_id

    def _load(self, form: wire.LoadWeights, tenant: Tenant) -> Answer:
        loaded = self._loaded(form, tenant.model_id)
        if loaded.shape != tenant.shape:
            raise UserFault(f'{form.path} has adapters {loaded.shape}, the model {tenant.shape}; make a model of it')
        tenant.params, tenant.opt_state = loaded.params, loaded.opt_state
        tenant.grads = tenant.spoiled = None
        return as_json({'path': form.path, 'model_id': tenant.model_id, 'type': 'load_weights'})

    def _loaded(self, form: wire.LoadWeights, model_id: str) -> Tenant:
        _check_optimizer(form.optimizer_config)
        if form.base_model is not None:
            self._check_base(form.base_model)
        return self.store.load(
            self.trainer, form.path, model_id, optimizer=form.optimizer, user_metadata=form.user_metadata
        )

    def weights_info(self, path: str) -> dict[str, Any]:
        """The base and the adapters of saved weights. Raises Missing where there are none."""
        shape = self._saved(path).shape
        return {
            'base_model': self.base_name, 'is_lora': True, 'lora_rank': shape.rank, 'train_unembed': shape.unembed,
            'train_mlp': shape.mlp, 'train_attn': shape.attn,
        }  # fmt: skip

    def _saved(self, path: str) -> Saved:
        try:
            return self.store.open(path)
        except UserFault as fault:
            raise Missing(str(fault)) from None

    def training_runs(self) -> list[dict[str, Any]]:
        """The models in memory and those with saved weights."""
        names = [*self.trainer.tenants, *(saved.folder.parts[-3] for saved in self.store.listed())]
        return [self.training_run(model_id) for model_id in dict.fromkeys(names)]

    def training_run(self, model_id: str) -> dict[str, Any]:
        """One model. Raises Missing where it is neither in memory nor has saved weights."""
        saved, tenant = list(self.store.listed(model_id)), self.trainer.tenants.get(model_id)
        if tenant is None and not saved:
            raise Missing(f'there is no model {model_id}')
        metadata = tenant.user_metadata if tenant else saved[-1].note['model_metadata']
        last = tenant.last_request if tenant else saved[-1].note['time']
        by_kind = {entry['checkpoint_type']: entry for entry in map(about, saved)}
        return {
            'training_run_id': model_id, 'base_model': self.base_name, 'model_owner': 'local', 'is_lora': True,
            'lora_rank': (tenant.shape if tenant else saved[-1].shape).rank, 'last_request_time': moment(last),
            'last_checkpoint': by_kind.get('training'), 'last_sampler_checkpoint': by_kind.get('sampler'),
            'user_metadata': {key: str(value) for key, value in metadata.items()},
        }  # fmt: skip

    def checkpoints(self, model_id: str) -> list[dict[str, Any]]:
        """The saved weights of one model."""
        return [about(saved) for saved in self.store.listed(model_id)]

    # --- samples -----------------------------------------------------------------------------------------------------

    def create_sampler(self, form: wire.CreateSampler) -> str:
        """The id of a sampling session of the base or of saved weights. Raises Missing where there are none."""
        self.session(form.session_id)
        sampler_id = f'{form.session_id}:sample:{form.sampling_session_seq_id}'
        snapshot = self._snapshot(form.base_model, form.model_path)
        self.samplers[sampler_id] = SamplerEntry(form.session_id, snapshot, form.model_path)
        return sampler_id

    def _snapshot(self, base_model: str | None, path: str | None) -> Snapshot:
        """The weights of a path, or the base. Raises Missing for another base or path."""
        if path is None:
            if base_model is None:
                raise Missing('neither base_model nor model_path is given; give one of them')
            try:
                self._check_base(base_model)
            except UserFault as fault:
                raise Missing(str(fault)) from None
            return self._shared['']
        saved = self._saved(path)
        # Weights that were saved anew under an old name are others.
        key = f'{path} {saved.note["time"]}'
        return self._shared.setdefault(key, Snapshot(lambda: self.store.adapters(saved)))

    def sampler(self, sampler_id: str) -> SamplerEntry:
        """The sampling session of that id. Raises Missing where there is none."""
        if sampler_id not in self.samplers:
            raise Missing(f'there is no sampling session {sampler_id}; create one')
        return self.samplers[sampler_id]

    def about_sampler(self, sampler_id: str) -> dict[str, Any]:
        """The base and the path of a sampling session."""
        path = self.sampler(sampler_id).path
        return {'sampler_id': sampler_id, 'base_model': self.base_name, 'model_path': path}

    def join(self, sampler_id: str) -> int:
        """A number of its own for a client of a sampling session."""
        return next(self.sampler(sampler_id).clients)

    def full(self) -> bool:
        """True where no more samples are taken."""
        self._jobs = {key: job for key, job in self._jobs.items() if not job.operation.done.done()}
        return len(self._jobs) >= self.line

    def sample(self, form: wire.Sample, digest: bytes) -> Operation:
        """The operation of samples after a prompt. Raises Missing for unknown weights."""
        owner, key = '', None
        if form.sampling_session_id is not None:
            entry = self.sampler(form.sampling_session_id)
            owner, snapshot = entry.session_id, entry.snapshot
            key = None if form.seq_id is None else (form.sampling_session_id, form.seq_id)
        else:
            snapshot = self._snapshot(form.base_model, form.model_path)
        operation, new = self.futures.take(key, digest, lambda: Operation(owner, _never))
        if not new:
            return operation
        try:
            requests = requests_of(form, self.tokenizer, self.decoder, secrets.randbits(62))
        except UserFault as fault:
            operation.fail(fault)
            return operation
        job = SampleJob(operation, snapshot, requests, bool(form.prompt_logprobs), form.prompt_logprobs_last_n)
        self._jobs[operation.request_id] = job
        self.executor.put(job)
        return operation

    def queue_state(self, request_id: str) -> str:
        """The word of the interface for what keeps a request waiting: `paused_capacity` where its weights wait for a
        place in the decoder."""
        job = self._jobs.get(request_id)
        return 'paused_capacity' if job and not job.started and job.snapshot in self.sampling.waiting else 'active'

    def cancel(self, request_id: str) -> None:
        """Take samples back. Raises Missing where nothing has that id."""
        if self.futures.get(request_id) is None:
            raise Missing(f'there is no request {request_id}')
        if request_id in self._jobs:
            self._jobs[request_id].cancelled = True

    def _check_base(self, name: str) -> None:
        if name != self.base_name:
            raise UserFault(f'there is no model {name!r} here; this server has {self.base_name!r}')


def _never() -> Answer:
    raise AssertionError('samples are decoded, and not carried out')


def _check_optimizer(form: wire.OptimizerForm | None) -> None:
    if form is not None and form.type != 'adamw':
        raise UserFault(f'optimizer_config of type {form.type!r} is not supported; use adamw')
