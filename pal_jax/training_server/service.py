"""The state behind the HTTP paths: sessions, models, samplers, and the operations that they order.

The event loop's thread of process 0 alone uses a `Service`. What an operation does on devices is a call of a `Worker`.
"""

from __future__ import annotations

import dataclasses
import itertools
import secrets
import time
import uuid
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from pal_jax.data.tokenizer import Tokenizer
from pal_jax.training_server import wire
from pal_jax.training_server.executor import Executor
from pal_jax.training_server.futures import Futures, Operation, Order, UserFault, no_work
from pal_jax.training_server.sampler import BASE, SampleJob, Weights, requests_of
from pal_jax.training_server.store import Saved, about, moment
from pal_jax.training_server.trainer import Shape, Tenant
from pal_jax.training_server.worker import Together, Work, Worker

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
    """A sampling session: its session, its weights, and the count of its clients."""

    session_id: str
    weights: Weights
    clients: itertools.count[int] = dataclasses.field(default_factory=lambda: itertools.count(1))


def session_of(model_id: str) -> str:
    """The id of the session in which a model was made."""
    return model_id.partition(':train:')[0]


class Service:
    """The functions behind the paths.

    Args:
      line: the number of sampling requests that may wait or be under way.
      share: see `Executor`.
    """

    def __init__(self, worker: Worker, tokenizer: Tokenizer, *, line: int = 8192, share: float = 0.5):
        self.worker, self.trainer, self.store = worker, worker.trainer, worker.store
        self.tokenizer, self.line = tokenizer, line
        self.executor = Executor(worker, share=share)
        self.futures = Futures()
        self.sessions: dict[str, Session] = {}
        self.orders: dict[str, Order] = {}
        self.samplers: dict[str, SamplerEntry] = {}
        self._jobs: dict[str, tuple[Operation, SampleJob]] = {}
        # Why requests were refused whose number nobody knows.
        self._unread: deque[str] = deque(maxlen=8)

    @property
    def base_name(self) -> str:
        """The name of the base for clients."""
        return self.trainer.base.name

    def close(self) -> None:
        """End the executor."""
        self.executor.close()
        self.worker.close()

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
            self.executor.put(Operation('', partial(Worker.unload, model_id=model_id), model_id))
        for request_id, (operation, _) in self._jobs.items():
            if operation.owner == session_id:
                self.executor.cancel(request_id)
        self.executor.put(Operation('', partial(Worker.release, session_id=session_id)))
        self._jobs = {key: entry for key, entry in self._jobs.items() if entry[0].owner != session_id}
        self.samplers = {key: entry for key, entry in self.samplers.items() if entry.session_id != session_id}
        self.futures.drop(lambda operation: operation.owner == session_id)

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
        # A model whose session has finished is in memory until the executor drops it.
        if model_id not in self.trainer.tenants or model_id not in self.orders:
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

        def work() -> Work:
            self._check_base(form.base_model)
            _check_optimizer(form.optimizer_config)
            if form.lora_config is None:
                raise UserFault('lora_config is missing; this server trains adapters alone')
            lora = form.lora_config
            shape = Shape(lora.rank, lora.train_unembed, lora.train_mlp, lora.train_attn)
            seed = secrets.randbits(31) if lora.seed is None else lora.seed
            return partial(
                Worker.create, model_id=model_id, shape=shape, seed=seed, user_metadata=form.user_metadata or {}
            )

        return self._first(form.session_id, model_id, digest, _checked(work))

    def _first(self, session_id: str, model_id: str, digest: bytes, work: Work) -> Operation:
        """The operation 0 of a model, which makes it."""
        session = self.session(session_id)
        operation, new = self.futures.take((model_id, 0), digest, lambda: Operation(session_id, work))
        if new:
            session.models.append(model_id)
            self.orders[model_id] = Order(self.executor.put, unread=self._unread)
            self.executor.put(operation)
        return operation

    def _numbered(
        self, model_id: str, seq: int, digest: bytes, work: Work, together: Together | None = None
    ) -> Operation:
        """An operation of a model, which is carried out in its turn."""
        self.tenant(model_id).last_request = time.time()
        owner = session_of(model_id)
        operation, new = self.futures.take((model_id, seq), digest, lambda: Operation(owner, work, model_id, together))
        if new:
            self.orders[model_id].add(seq, operation)
        return operation

    def refuse(self, body: object) -> None:
        """Count an operation as carried out whose request, with this body, is refused. Other bodies change nothing."""
        match body:
            case {'model_id': str(model_id), 'seq_id': int(number)} if model_id in self.orders:
                self.orders[model_id].refuse(number)

    def refuse_unread(self, start: bytes, why: str) -> None:
        """Fail the forward_backward whose first bytes are there, since the request is refused. Its gradient counts as
        lost. Where these bytes name no operation, those that wait for it will say why it is missing."""

        match wire.numbered_in(start):
            case (model_id, number) if model_id in self.orders and model_id in self.trainer.tenants:
                work = partial(Worker.spoil, model_id=model_id, seq=number, why=why)
                self._numbered(model_id, number, b'', work)
            case _:
                self._unread.append(why)

    def unload(self, model_id: str) -> Operation:
        """The operation that drops a model from memory."""
        self.tenant(model_id)
        work = partial(Worker.unload, model_id=model_id)
        operation, _ = self.futures.take(None, b'', lambda: Operation(session_of(model_id), work, model_id))
        self.executor.put(operation)
        return operation

    # --- training ----------------------------------------------------------------------------------------------------

    def forward_backward(self, message: Any, body: bytes, digest: bytes) -> Operation:
        """The operation of a batch: its log-probabilities, and its gradient unless it is `forward_only`.

        `body` has the bytes of the message.
        """
        name, seq, learn = message.model_id, message.seq_id, not message.forward_only
        work = partial(Worker.batch, model_id=name, seq=seq, body=body, learn=learn)
        return self._numbered(name, seq, digest, work, Worker.forward_backward if learn else Worker.forward)

    def optim_step(self, form: wire.OptimStep, digest: bytes) -> Operation:
        """The operation of a step."""

        def work() -> Work:
            if form.optimizer_params is not None or form.adam_params is None:
                kind = form.optimizer_params.type if form.optimizer_params else 'none'
                raise UserFault(f'optimizer_params of type {kind!r} are not supported; pass AdamParams')
            numbers = form.adam_params.model_dump(exclude={'type'})
            return partial(Worker.step, model_id=form.model_id, seq=form.seq_id, numbers=numbers)

        return self._numbered(form.model_id, form.seq_id, digest, _checked(work), Worker.optim_steps)

    # --- weights -----------------------------------------------------------------------------------------------------

    def save_weights(self, form: wire.SaveWeights, digest: bytes) -> Operation:
        """The operation that saves a model to train on."""
        return self._numbered(form.model_id, form.seq_id, digest, partial(Worker.save, form=form))

    def save_for_sampler(self, form: wire.SaveForSampler, digest: bytes) -> Operation:
        """The operation that saves adapters to sample from, or holds them in memory for a sampling session."""
        session_id = session_of(form.model_id)
        sampler_id = f'{session_id}:sample:{form.sampling_session_seq_id}'

        def work() -> Work:
            if form.path is not None:
                return partial(Worker.save_for_sampler, form=form)
            if form.kind != 'snapshot':
                raise UserFault(f'kind={form.kind!r} is not supported; use snapshot')
            # Nobody knows the sampling session before the operation has ended.
            # The request may come again, and its clients keep their numbers.
            self.samplers.setdefault(sampler_id, SamplerEntry(session_id, Weights(sampler_id)))
            return partial(
                Worker.hold, model_id=form.model_id, seq=form.seq_id, sampler_id=sampler_id, session_id=session_id
            )

        self.tenant(form.model_id)
        return self._numbered(form.model_id, form.seq_id, digest, _checked(work))

    def load_weights(self, form: wire.LoadWeights, digest: bytes) -> tuple[Operation, str]:
        """The operation that loads saved weights into a new model or an existing one, and the model's id."""

        def checked(work: Work) -> Work:
            _check_optimizer(form.optimizer_config)
            if form.base_model is not None:
                self._check_base(form.base_model)
            return work

        if form.model_id is not None and form.seq_id is not None:
            work = partial(Worker.load, model_id=form.model_id, seq=form.seq_id, form=form)
            return self._numbered(form.model_id, form.seq_id, digest, _checked(partial(checked, work))), form.model_id
        if form.session_id is None or form.model_seq_id is None:
            raise UserFault('load_weights needs session_id and model_seq_id, or model_id and seq_id')
        model_id = f'{form.session_id}:train:{form.model_seq_id}'
        work = partial(Worker.load_new, model_id=model_id, form=form)
        return self._first(form.session_id, model_id, digest, _checked(partial(checked, work))), model_id

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
        weights = self._weights(form.base_model, form.model_path)
        self.samplers[sampler_id] = SamplerEntry(form.session_id, weights)
        work = partial(Worker.open_sampler, sampler_id=sampler_id, session_id=form.session_id, weights=weights)
        self.executor.put(Operation('', work))
        return sampler_id

    def _weights(self, base_model: str | None, path: str | None) -> Weights:
        """The weights of a path, or the base. Raises Missing for another base or path."""
        if path is not None:
            return Weights(path, self._saved(path).note['time'])
        if base_model is None:
            raise Missing('neither base_model nor model_path is given; give one of them')
        try:
            self._check_base(base_model)
        except UserFault as fault:
            raise Missing(str(fault)) from None
        return BASE

    def sampler(self, sampler_id: str) -> SamplerEntry:
        """The sampling session of that id. Raises Missing where there is none."""
        if sampler_id not in self.samplers:
            raise Missing(f'there is no sampling session {sampler_id}; create one')
        return self.samplers[sampler_id]

    def about_sampler(self, sampler_id: str) -> dict[str, Any]:
        """The base and the path of a sampling session."""
        weights = self.sampler(sampler_id).weights
        path = None if weights.saved is None else weights.name
        return {'sampler_id': sampler_id, 'base_model': self.base_name, 'model_path': path}

    def join(self, sampler_id: str) -> int:
        """A number of its own for a client of a sampling session."""
        return next(self.sampler(sampler_id).clients)

    def full(self) -> bool:
        """True where no more samples are taken."""
        self._jobs = {key: entry for key, entry in self._jobs.items() if not entry[0].done.done()}
        return len(self._jobs) >= self.line

    def sample(self, form: wire.Sample, digest: bytes) -> Operation:
        """The operation of samples after a prompt. Raises Missing for unknown weights."""
        owner, key = '', None
        if form.sampling_session_id is not None:
            entry = self.sampler(form.sampling_session_id)
            owner, weights = entry.session_id, entry.weights
            key = None if form.seq_id is None else (form.sampling_session_id, form.seq_id)
        else:
            weights = self._weights(form.base_model, form.model_path)
        operation, new = self.futures.take(key, digest, lambda: Operation(owner, no_work))
        if not new:
            return operation
        try:
            requests = requests_of(form, self.tokenizer, self.worker.sampler.decoder, secrets.randbits(62))
        except UserFault as fault:
            operation.end(fault)
            return operation
        wishes = wire.PromptWishes(bool(form.prompt_logprobs), form.topk_prompt_logprobs, form.prompt_logprobs_last_n)
        job = SampleJob(operation.request_id, weights, requests, wishes)
        self._jobs[operation.request_id] = operation, job
        self.executor.sample(operation, job)
        return operation

    def queue_state(self, request_id: str) -> str:
        """The word of the interface for what keeps a request waiting: `paused_capacity` where its weights wait for a
        place in the decoder."""
        _, job = self._jobs.get(request_id, (None, None))
        return 'paused_capacity' if job and not job.started and self.worker.sampler.waits(job) else 'active'

    def cancel(self, request_id: str) -> None:
        """Take samples back. Raises Missing where nothing has that id."""
        if self.futures.get(request_id) is None:
            raise Missing(f'there is no request {request_id}')
        self.executor.cancel(request_id)

    def _check_base(self, name: str) -> None:
        if name != self.base_name:
            raise UserFault(f'there is no model {name!r} here; this server has {self.base_name!r}')


def _checked(work: Callable[[], Work]) -> Work:
    """The work, or one that fails where it is refused, so that the error reaches the future."""
    try:
        return work()
    except UserFault as fault:
        return partial(Worker.refuse, why=str(fault))


def _check_optimizer(form: wire.OptimizerForm | None) -> None:
    if form is not None and form.type != 'adamw':
        raise UserFault(f'optimizer_config of type {form.type!r} is not supported; use adamw')
