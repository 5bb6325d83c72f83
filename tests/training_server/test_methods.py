"""The public methods of the client: the table of docs/serve_training.md against the client and against the server."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

tinker = pytest.importorskip('tinker', reason="needs the client: pip install 'pal_jax[tinker]'")
types = tinker.types

import zstandard  # noqa: E402
from tinker.proto import tinker_public_pb2 as pb  # noqa: E402

from pal_jax.training_server.futures import Order  # noqa: E402

CLIENTS = 'ServiceClient', 'TrainingClient', 'SamplingClient', 'RestClient'
PAGE = Path(__file__).parents[2] / 'docs' / 'serve_training.md'
TOKENS = np.random.default_rng(0).integers(0, 256, size=9).tolist()


def documented() -> dict[str, tuple[set[str], set[str]]]:
    """The methods of each client that work, and those that do not, as the page has them."""
    rows = re.findall(r'^\| `(\w+Client)` \| (.*) \| ?(.*)\|$', PAGE.read_text('utf-8'), re.MULTILINE)
    return {
        client: (set(re.findall(r'`(\w+)`', works)), set(re.findall(r'`(\w+)`', not_))) for client, works, not_ in rows
    }


def public(client: str) -> set[str]:
    """The public methods of the installed client; an `_async` twin is no method of its own."""
    kind = getattr(tinker, client)
    names = {name for name, _ in inspect.getmembers(kind, callable) if not name.startswith('_')}
    return {name for name in names if name.removesuffix('_async') == name or name.removesuffix('_async') not in names}


def test_the_page_names_every_method_and_counts_them():
    table = documented()
    assert {client: works | not_ for client, (works, not_) in table.items()} == {c: public(c) for c in CLIENTS}
    assert all(not works & not_ for works, not_ in table.values())
    works, every = sum(len(works) for works, _ in table.values()), sum(len(public(client)) for client in CLIENTS)
    assert f'The client has {every} public methods' in PAGE.read_text('utf-8')
    assert f'{works} of {every} work' in PAGE.read_text('utf-8')


Calls = dict[str, Callable[[], Any]]


def calls(service: Any, folder: str) -> dict[str, Calls]:
    """A call of every method, in an order in which each finds what it needs."""
    training = service.create_lora_training_client(base_model=folder, rank=4).result()
    path = training.save_state('start').result().path
    sampling = service.create_sampling_client(base_model=folder).result()
    datum = types.Datum(
        model_input=types.ModelInput.from_ints(TOKENS[:-1]),
        loss_fn_inputs={'target_tokens': types.TensorData(data=TOKENS[1:], dtype='int64', shape=[8])},
    )
    return {
        'TrainingClient': training_calls(training, datum, path),
        'SamplingClient': sampling_calls(sampling, service, folder),
        'RestClient': rest_calls(service, sampling, training.model_id, path),
        'ServiceClient': service_calls(service, folder, datum, path),
    }


def training_calls(training: Any, datum: Any, path: str) -> Calls:
    """The calls of a client of one model, which has saved its weights at a path."""

    def custom(data: Any, logprobs: Any) -> Any:
        return -sum(lp.sum() for lp in logprobs), {}

    return {
        'get_info': training.get_info,
        'get_tokenizer': training.get_tokenizer,
        'get_telemetry': training.get_telemetry,
        'get_console_url': training.get_console_url,
        'forward': lambda: training.forward([datum], 'cross_entropy'),
        'forward_backward': lambda: training.forward_backward([datum], 'cross_entropy'),
        'forward_backward_custom': lambda: training.forward_backward_custom([datum], custom),
        'optim_step': lambda: training.optim_step(types.AdamParams()),
        'save_state': lambda: training.save_state('end'),
        'load_state': lambda: training.load_state(path),
        'load_state_with_optimizer': lambda: training.load_state_with_optimizer(path),
        'save_weights_for_sampler': lambda: training.save_weights_for_sampler('end'),
        'save_weights_and_get_sampling_client': training.save_weights_and_get_sampling_client,
        'save_weights_external': lambda: training.save_weights_external('other'),
        'create_sampling_client': lambda: training.create_sampling_client(path),
    }


def sampling_calls(sampling: Any, service: Any, folder: str) -> Calls:
    """The calls of a client that samples from the base."""
    prompt, two = types.ModelInput.from_ints(TOKENS), types.SamplingParams(max_tokens=2)
    return {
        'create': lambda: tinker.SamplingClient.create(service.holder, base_model=folder),
        'sample': lambda: sampling.sample(prompt, 1, two),
        'compute_logprobs': lambda: sampling.compute_logprobs(prompt),
        'get_base_model': sampling.get_base_model,
        'get_tokenizer': sampling.get_tokenizer,
        'get_telemetry': sampling.get_telemetry,
        'get_sampler_handle': sampling.get_sampler_handle,
        'from_sampler_handle': lambda: tinker.SamplingClient.from_sampler_handle(
            sampling.get_sampler_handle(), api_key='tml-test'
        ),
        'on_queue_state_change': lambda: sampling.on_queue_state_change(None, None),
    }


def rest_calls(service: Any, sampling: Any, run: str, path: str) -> Calls:
    """The calls about a sampler, a model and its weights at a path."""
    rest, session = service.create_rest_client(), service.holder.get_session_id()
    return {
        'get_sampler': lambda: rest.get_sampler(sampling._sampling_session_id),
        'get_server_capabilities': rest.get_server_capabilities,
        'get_telemetry': rest.get_telemetry,
        'get_training_run': lambda: rest.get_training_run(run),
        'get_training_run_by_tinker_path': lambda: rest.get_training_run_by_tinker_path(path),
        'get_weights_info_by_tinker_path': lambda: rest.get_weights_info_by_tinker_path(path),
        'list_checkpoints': lambda: rest.list_checkpoints(run),
        'list_training_runs': rest.list_training_runs,
        'list_user_checkpoints': rest.list_user_checkpoints,
        'list_sessions': rest.list_sessions,
        'get_session': lambda: rest.get_session(session),
        'assign_session_project': lambda: rest.assign_session_project(session, 'project'),
        'copy_weights': lambda: rest.copy_weights(path),
        'delete_checkpoint': lambda: rest.delete_checkpoint(run, 'weights/end'),
        'delete_checkpoint_from_tinker_path': lambda: rest.delete_checkpoint_from_tinker_path(
            path.replace('/weights/start', '/sampler_weights/end')
        ),
        'export_session_trace': lambda: rest.export_session_trace(session),
        'get_audit_log': rest.get_audit_log,
        'get_billing_usage': lambda: rest.get_billing_usage('2026-01-01', '2026-01-02'),
        'get_current_checkpoint_storage_usage': rest.get_current_checkpoint_storage_usage,
        'get_external_weights_urls': lambda: rest.get_external_weights_urls(
            path.replace('/weights/', '/external_weights/')
        ),
        'publish_checkpoint_from_tinker_path': lambda: rest.publish_checkpoint_from_tinker_path(path),
        'unpublish_checkpoint_from_tinker_path': lambda: rest.unpublish_checkpoint_from_tinker_path(path),
        'search_sessions': lambda: rest.search_sessions(types.SessionSearchRequest()),
        'set_checkpoint_ttl_from_tinker_path': lambda: rest.set_checkpoint_ttl_from_tinker_path(path, 60),
        'whoami': rest.whoami,
    }


def service_calls(service: Any, folder: str, datum: Any, path: str) -> Calls:
    """The calls of the client that makes the others; the last one ends its session."""

    def of_datum(logprobs: Any) -> Any:
        return -logprobs.sum(), {}

    def by_own_loss(handle: Any) -> Any:
        other = service.create_lora_training_client(base_model=folder, rank=4).result()
        return other.forward_backward_custom([datum], handle)

    state = {'path': path}
    return {
        'create_lora_training_client': lambda: service.create_lora_training_client(base_model=folder, rank=2),
        'create_rest_client': service.create_rest_client,
        'create_sampling_client': lambda: service.create_sampling_client(base_model=folder),
        'create_training_client_from_state': lambda: service.create_training_client_from_state(**state),
        'create_training_client_from_state_with_optimizer': (
            lambda: service.create_training_client_from_state_with_optimizer(**state)
        ),
        'get_console_url': service.get_console_url,
        'get_server_capabilities': service.get_server_capabilities,
        'get_telemetry': service.get_telemetry,
        'copy_weights': lambda: service.copy_weights(path),
        'create_custom_loss': lambda: by_own_loss(service.create_custom_loss(of_datum, {'logprobs': 1}).result()),
        'close': lambda: service.close('success'),
    }


@pytest.mark.long
@pytest.mark.filterwarnings(
    'ignore::pytest.PytestUnraisableExceptionWarning', 'ignore::ResourceWarning', 'ignore::FutureWarning'
)
def test_a_method_works_where_the_page_says_so(connect, tiny_folder, monkeypatch):
    monkeypatch.setenv('TINKER_PROJECT_ID', 'project')
    outcome: dict[str, tuple[set[str], set[str]]] = {}
    for client, methods in calls(connect(), str(tiny_folder)).items():
        outcome[client] = set(), set()
        for name, call in methods.items():
            try:
                result = call()
                if hasattr(result, 'result'):
                    result.result(300)
            except (tinker.TinkerError, RuntimeError):
                outcome[client][1].add(name)
            else:
                outcome[client][0].add(name)
    assert outcome == documented()


@contextlib.contextmanager
def opened(service: Any, folder: Path, **options: Any) -> Iterator[tuple[Any, str]]:
    """A client of HTTP alone, and a model of a session that ends with it."""
    from fastapi.testclient import TestClient

    from pal_jax.training_server.app import make_app

    app = make_app(service, **options)
    http = TestClient(app, base_url='http://127.0.0.1/api/v1/', headers={'X-API-Key': 'tml-test'})
    # The service outlives this application.
    with mock.patch.object(service, 'close'), http:
        session = http.post('create_session', json={'tags': [], 'sdk_version': '1'}).json()['session_id']
        form = {'session_id': session, 'model_seq_id': 0, 'base_model': str(folder), 'lora_config': {'rank': 1}}
        future = http.post('create_model', json=form).json()
        assert result(http, future)['model_id']
        yield http, future['model_id']
        http.post(f'sessions/{session}/finish', json={'reason': 'success'})


def result(http: Any, future: Any) -> Any:
    return http.post('retrieve_future', json={'request_id': future['request_id']}).json()


def step(http: Any, model_id: str, number: int) -> Any:
    """The result of a step."""
    form = {'model_id': model_id, 'seq_id': number, 'adam_params': {}}
    return result(http, http.post('optim_step', json=form).json())


def test_no_operation_waits_for_one_that_was_refused(service, tiny_folder):
    with opened(service, tiny_folder) as (http, model_id):
        of_model = {'model_id': model_id}
        assert http.post('save_weights_external', json=of_model | {'seq_id': 1, 'path': 'x'}).status_code == 404
        assert http.post('optim_step', json=of_model | {'seq_id': 2, 'colour': 'red'}).status_code == 422
        # There is no gradient to apply, which the third operation can tell only in its turn.
        assert step(http, model_id, 3)['category'] == 'user'


@pytest.mark.parametrize('kind', ['large', 'packed', 'packed_small', 'unreadable'])
def test_a_batch_whose_body_is_refused_fails_the_next_step_and_nothing_waits_for_it(service, tiny_folder, kind):
    with opened(service, tiny_folder, body_limit=1000) as (http, model_id):
        # Noise stays large when it is packed.
        noise = np.random.default_rng(0).integers(ord('a'), ord('z'), 5000).astype(np.uint8).tobytes().decode()
        loss = noise if kind == 'packed' else 'x' * 5000
        body = pb.ForwardBackwardRequest(model_id=model_id, seq_id=1, loss_fn=loss).SerializeToString()
        headers, status = {}, 413
        if kind.startswith('packed'):
            body, headers = zstandard.compress(body), {'content-encoding': 'zstd'}
            assert (len(body) > 1000) == (kind == 'packed')
        elif kind == 'unreadable':
            body, status = body[:100], 422
        assert http.post('forward_backward', content=body, headers=headers).status_code == status
        answer = step(http, model_id, 2)
        assert answer['category'] == 'user'
        assert 'forward_backward 1 failed' in answer['error']


def test_who_waits_for_an_operation_whose_number_could_not_be_read_is_told_why_it_is_missing(
    service, tiny_folder, monkeypatch
):
    monkeypatch.setattr('pal_jax.training_server.service.Order', functools.partial(Order, patience=0.05))
    with opened(service, tiny_folder, body_limit=1000) as (http, model_id):
        assert http.post('optim_step', content=b'x' * 1001).status_code == 413
        answer = step(http, model_id, 2)
    assert answer['category'] == 'user'
    assert 'operation 1 ' in answer['error']
    assert '1000 bytes' in answer['error']


def test_a_caller_without_the_key_fails_nobodys_batch(service, tiny_folder):
    body = pb.ForwardBackwardRequest(seq_id=1, loss_fn='x' * 5000)
    with opened(service, tiny_folder, body_limit=1000) as (http, model_id):
        body.model_id = model_id
        stranger = {'x-api-key': 'no key'}
        assert http.post('forward_backward', content=body.SerializeToString(), headers=stranger).status_code == 413
        # Operation 1 did not fail: the step lacks a gradient, and has lost none.
        answer = step(http, model_id, 1)
        assert 'failed' not in answer['error']
