"""The chat models that a config names as users, matchers, judges and annotators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from pal_jax.judges.local_model import LocalModel
from pal_jax.models.files import sources
from pal_jax.run import devices
from pal_jax.run.language import EndpointSettings
from pal_jax.run.own import is_own
from pal_jax.run.processes import exchange
from pal_jax.run.recipe import Context, Host
from pal_jax.run.trained import open_run
from pal_jax.types import ChatModel, Metrics, Sampling

if TYPE_CHECKING:
    from pal_jax.judges.endpoint import Endpoint


class ChatModels:
    """The language models among users, matchers and judges, by their names; each is opened once."""

    def __init__(self, settings: Mapping[str, EndpointSettings], answers: str, seed: int):
        """`answers` is the file that keeps the answers of endpoints; '': there is none."""
        self._settings, self._answers, self._seed = settings, answers, seed
        self._endpoints: dict[str, Endpoint] = {}
        self._local: dict[str, LocalModel] = {}
        self.counts: Metrics = {}  # further figures, the same in every process
        self._earlier: Metrics = {}

    def choose(
        self,
        key: str,
        name: str,
        make: Callable[[ChatModel], Any],
        changes: Mapping[str, Any] | None = None,
        of_file: Callable[[str, str], Any] | None = None,
        **known: Callable[[], Any],
    ) -> Any:
        """The result of `known[name]()`, or of `make` for the model that endpoint:<name> or local:<source> names.

        The settings in `changes` replace those of the config. Where `name` is FILE.py:NAME, the result is that of
        `of_file(key, name)`, if the key may name a function of a file.

        Raises:
          ValueError: `name` is none of them.
        """
        kind, _, model = name.partition(':')
        changes = changes or {}
        if of_file and is_own(name):
            return of_file(key, name)
        if kind == 'endpoint' and model:
            # A model with other settings is an endpoint of its own.
            called = '-'.join([model, *map(str, changes.values())])
            if called not in self._endpoints:
                self._endpoints[called] = self._open_endpoint(model, changes)
            return make(self._endpoints[called])
        if kind == 'local' and model:
            role = key.split('.')[-1]
            # A model on this machine samples as its role does, so each role has its own.
            called = '-'.join([role, model, *map(str, changes.values())])
            if called not in self._local:
                self._local[called] = self._open_local(model, role, changes)
            return make(self._local[called])
        if name not in known:
            files = ['FILE.py:NAME'] if of_file else []
            ways = ', '.join([*known, *files, 'endpoint:<name> or local:<source>'])
            raise ValueError(f'{key}={name!r} is unknown; use {ways}')
        return known[name]()

    @property
    def here(self) -> bool:
        """True where one of the models is on this machine."""
        return bool(self._local)

    def endpoint(self, name: str) -> Endpoint | None:
        """The endpoint that `choose` has opened for endpoint:<name>; None for any other name."""
        kind, _, endpoint = name.partition(':')
        return self._endpoints.get(endpoint) if kind == 'endpoint' else None

    def _open_endpoint(self, name: str, changes: Mapping[str, Any]) -> Endpoint:
        # The client of an endpoint takes a second to import.
        from pal_jax.judges.endpoint import Endpoint

        if name not in self._settings:
            raise ValueError(f'endpoint:{name} is unknown; config.endpoints has {", ".join(sorted(self._settings))}')
        settings = {**dataclasses.asdict(self._settings[name]), **changes}
        # Slots are those of models on this machine.
        del settings['slots']
        prices = settings.pop('prompt_price'), settings.pop('completion_price')
        answers = Path(self._answers).expanduser() if self._answers else None
        return Endpoint(name, **settings, prices=prices, cache=answers)

    def _open_local(self, source: str, role: str, changes: Mapping[str, Any]) -> LocalModel:
        if role not in self._settings:
            raise ValueError(f'local:{source} samples by config.endpoints.{role}, which is missing; add the section')
        settings = dataclasses.replace(self._settings[role], **changes)
        mesh = devices.make_mesh(devices=jax.local_devices())
        sampling = Sampling(settings.temperature, max_tokens=settings.max_tokens)
        context = Context(mesh)
        model = sources.resolve(source, seed=self._seed, open_run=lambda run: open_run(run, context))
        return LocalModel(model, mesh, sampling, slots=settings.slots)

    def count_on(self, host: Host) -> Host:
        """Begin from the `usage` of the host item that a run goes on from, and return the item."""
        self._earlier = host.get('usage', {})
        return host

    @property
    def usage(self) -> Metrics:
        """The requests to endpoints since the start of the run, by all processes together, and `counts`."""
        own_usage = {
            f'{name}_{field}': float(value)
            for name, endpoint in self._endpoints.items()
            for field, value in dataclasses.asdict(endpoint.usage).items()
        }
        parts = [*exchange('usage', own_usage), self._earlier]
        # Requests of all processes count, and those from before the run went on.
        return {key: sum(part.get(key, 0.0) for part in parts) for key in own_usage} | self.counts

    @property
    def last_error(self) -> str:
        """The last errors of the endpoints, in a line."""
        errors = {name: endpoint.last_error for name, endpoint in self._endpoints.items()}
        return '; '.join(f'{name}: {error}' for name, error in errors.items() if error)
