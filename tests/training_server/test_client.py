"""The real client of `tinker` against the server: its losses, order, faults, samples and saved weights."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

tinker = pytest.importorskip('tinker', reason="needs the client: pip install 'pal_jax[tinker]'")
torch = pytest.importorskip('torch')
types = tinker.types

from pal_jax.training_server.losses import LOSSES  # noqa: E402
from tests import pages  # noqa: E402

pytestmark = [
    pytest.mark.long,
    # The client leaves connections open, and calls some of its own methods deprecated.
    pytest.mark.filterwarnings(
        'ignore::pytest.PytestUnraisableExceptionWarning', 'ignore::ResourceWarning', 'ignore::FutureWarning'
    ),
]

# Updates are smooth in the gradient where eps is large, so small differences stay small.
SMOOTH = {'learning_rate': 0.05, 'eps': 1.0}
TOKENS = np.random.default_rng(0).integers(0, 256, size=(4, 17))
LENGTHS = 17, 9, 12, 5
NAN = np.full(16, np.nan, np.float32)


def datum(row: int, **inputs: Any) -> Any:
    tokens = TOKENS[row, : LENGTHS[row]]
    arrays = {'target_tokens': tokens[1:], **inputs}
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens[:-1].tolist()),
        loss_fn_inputs={key: types.TensorData.from_torch(torch.tensor(x)) for key, x in arrays.items()},
    )


def sampled(row: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(row)
    length = LENGTHS[row] - 1
    return {
        'logprobs': rng.normal(-5.5, 0.3, length).astype(np.float32),
        'advantages': rng.normal(size=length).astype(np.float32),
    }


def batch() -> list[Any]:
    weights = [np.linspace(-0.5, 1.0, length - 1, dtype=np.float32) for length in LENGTHS]
    return [datum(row, weights=weights[row]) for row in range(4)]


def model(client: Any, folder: Path, **options: Any) -> Any:
    return client.create_lora_training_client(base_model=str(folder), **{'rank': 4, 'seed': 3} | options).result()


def prompt(row: int) -> Any:
    return types.ModelInput.from_ints(TOKENS[row, : LENGTHS[row]].tolist())


def logprobs(training: Any, row: int = 0) -> np.ndarray:
    return np.asarray(training.forward([datum(row)], 'cross_entropy').result().loss_fn_outputs[0]['logprobs'].data)


def stepped(client: Any, folder: Path, train: Callable[[Any], Any]) -> tuple[np.ndarray, Any]:
    """The log-probabilities of a model after `train` and one step, and the result of `train`."""
    training = model(client, folder)
    result = train(training)
    training.optim_step(types.AdamParams(**SMOOTH)).result()
    return np.concatenate([logprobs(training, row) for row in range(4)]), result


@pytest.fixture(scope='module')
def client(connect: Any) -> Any:
    return connect()


def test_four_verbs(client, tiny_folder):
    training = model(client, tiny_folder)
    assert training.get_info().lora_rank == 4
    assert training.get_tokenizer().decode(training.get_tokenizer().encode('Hi')) == 'Hi'
    losses = []
    for _ in range(3):
        result = training.forward_backward([datum(row) for row in range(4)], 'cross_entropy')
        step = training.optim_step(types.AdamParams(learning_rate=1e-2))
        losses.append(result.result().metrics['loss:sum'])
        assert step.result().metrics['skipped:sum'] == 0
    assert losses[2] < losses[1] < losses[0]
    sampler = training.save_weights_and_get_sampling_client()
    sampler = sampler.result() if hasattr(sampler, 'result') else sampler
    settings = types.SamplingParams(max_tokens=6, seed=1)
    sample = sampler.sample(prompt=prompt(0), num_samples=2, sampling_params=settings).result()
    assert [len(sequence.tokens) for sequence in sample.sequences] == [6, 6]
    # Position i of the input predicts target i: the sampler and the trainer see the same sequence.
    np.testing.assert_allclose(sampler.compute_logprobs(prompt(0)).result()[1:], logprobs(training), atol=2e-5)


# --- losses -----------------------------------------------------------------------------------------------------------

CLIPS = {'clip_low_threshold': 0.8, 'clip_high_threshold': 1.2}
CONFIGS = {'gspo': CLIPS, 'dro': {'beta': 0.1}}


def by_hand(name: str) -> Callable[[Any, Any], Any]:
    """The loss in torch, as a client writes it."""

    def loss(data: Any, outputs: Sequence[Any]) -> tuple[Any, dict[str, float]]:
        total = 0.0
        for one, lp in zip(data, outputs, strict=True):
            inputs = {key: torch.tensor(x.data) for key, x in one.loss_fn_inputs.items()}
            if name == 'cross_entropy':
                total = total - (inputs['weights'] * lp).sum()
                continue
            q, a = inputs['logprobs'], inputs['advantages']
            r = torch.exp(lp - q)
            if name == 'importance_sampling':
                total = total - (r * a).sum()
            elif name == 'ppo':
                total = total - torch.minimum(r * a, r.clamp(0.8, 1.2) * a).sum()
            elif name == 'cispo':
                total = total - (r.clamp(0.0, 4.0).detach() * lp * a).sum()
            elif name == 'gspo':
                counted = inputs['sequence_ratio_mask'] != 0
                mean = (lp - q)[counted].mean().detach()
                r = torch.exp(mean + lp - lp.detach())
                total = total - torch.minimum(r * a, r.clamp(0.8, 1.2) * a).sum()
            elif name == 'dro':
                total = total - (lp * a - 0.05 * (lp - q) ** 2).sum()
        return total, {}

    return loss


@pytest.mark.parametrize('name', LOSSES)
def test_a_loss_is_that_of_the_same_formula_on_the_client(client, tiny_folder, name):
    data = batch() if name == 'cross_entropy' else [datum(row, **sampled(row)) for row in range(4)]
    if name == 'gspo':
        masks = [np.arange(length - 1) % 3 != 0 for length in LENGTHS]
        data = [datum(row, **sampled(row), sequence_ratio_mask=masks[row].astype(np.float32)) for row in range(4)]

    def native(training: Any) -> Any:
        return training.forward_backward(data, name, CONFIGS.get(name)).result()

    def custom(training: Any) -> Any:
        return training.forward_backward_custom(data, by_hand(name)).result()

    ours, one = stepped(client, tiny_folder, native)
    theirs, other = stepped(client, tiny_folder, custom)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert one.metrics['loss:sum'] == pytest.approx(other.metrics['loss:sum'], rel=1e-5)


def test_losses_are_sums(client, connect, tiny_folder):
    def halves(training: Any) -> Any:
        training.forward_backward(batch()[:2], 'cross_entropy').result()
        # A forward pass in between leaves the sum as it is.
        training.forward(batch(), 'cross_entropy').result()
        return training.forward_backward(batch()[2:], 'cross_entropy').result()

    def whole(training: Any) -> Any:
        return training.forward_backward(batch(), 'cross_entropy').result()

    once, result = stepped(client, tiny_folder, whole)
    np.testing.assert_allclose(stepped(client, tiny_folder, halves)[0], once, atol=1e-6)
    for flags in ({'fwdbwd_max_chunk_len': 1}, {'fwdbwd_max_chunk_len': 1, 'parallel_fwdbwd_chunks': False}):
        chunked, joined = stepped(connect(**flags), tiny_folder, whole)
        np.testing.assert_allclose(chunked, once, atol=1e-6)
        assert joined.metrics['loss:sum'] == pytest.approx(result.metrics['loss:sum'], rel=1e-6)
        assert [len(out['logprobs'].data) for out in joined.loss_fn_outputs] == [length - 1 for length in LENGTHS]
    packed, _ = stepped(connect(proto_compress_fwdbwd=True), tiny_folder, whole)
    np.testing.assert_array_equal(packed, once)


def test_steps_with_other_numbers_compile_nothing(client, tiny_folder, service):
    training = model(client, tiny_folder, rank=3)
    for i in range(4):
        training.forward_backward(batch(), 'cross_entropy').result()
        numbers = {
            'learning_rate': 1e-3 * i,
            'beta1': 0.5 + 0.1 * i,
            'weight_decay': 0.1 * i,
            'grad_clip_norm': 1.0 * i,
        }
        training.optim_step(types.AdamParams(**numbers)).result()
    tenant = service.tenant(training.model_id)
    assert service.trainer._step(tenant.shape)._cache_size() == 1


def test_the_output_matrix_is_trained_unless_it_is_not_to_be(client, tiny_folder, service):
    for trained in (True, False):
        training = model(client, tiny_folder, train_unembed=trained)
        training.forward_backward(batch(), 'cross_entropy').result()
        training.optim_step(types.AdamParams()).result()
        adapter = service.tenant(training.model_id).params['unembed']
        assert (adapter is not None and bool((adapter.b != 0).any())) == trained


# --- order and faults -------------------------------------------------------------------------------------------------


class Raw:
    """Requests by hand, of the session of a client."""

    def __init__(self, client: Any):
        holder = client.holder
        self.http = httpx.Client(base_url=f'{holder._base_url}/api/v1', headers={'X-API-Key': 'tml-test'}, timeout=60)

    def post(self, path: str, body: Any) -> httpx.Response:
        if isinstance(body, bytes):
            return self.http.post(path, content=body, headers={'content-type': 'application/x-protobuf'})
        return self.http.post(path, json=body)

    def result(self, request_id: str) -> httpx.Response:
        return self.http.post('retrieve_future', json={'request_id': request_id})


def forward_backward(model_id: str, seq_id: int, rows: Sequence[int]) -> bytes:
    from tinker.proto import tinker_public_pb2 as pb

    message = pb.ForwardBackwardRequest(model_id=model_id, seq_id=seq_id, loss_fn='cross_entropy')
    for row in rows:
        tokens = TOKENS[row, : LENGTHS[row]]
        part = message.data.add()
        part.model_input.add().encoded_text.tokens = tokens[:-1].astype(np.int32).tobytes()
        part.loss_fn_inputs['target_tokens'].dense = tokens[1:].astype(np.int64).tobytes()
        part.loss_fn_inputs['target_tokens'].dtype = pb.DTYPE_INT64
    return message.SerializeToString()


def operations(model_id: str) -> list[tuple[str, Any]]:
    adam = {
        'learning_rate': 0.01,
        'beta1': 0.9,
        'beta2': 0.95,
        'eps': 1e-12,
        'weight_decay': 0.0,
        'grad_clip_norm': 0.0,
    }
    return [
        ('forward_backward', forward_backward(model_id, 1, [0, 1])),
        ('forward_backward', forward_backward(model_id, 2, [2])),
        ('optim_step', {'model_id': model_id, 'seq_id': 3, 'adam_params': adam, 'type': 'optim_step'}),
        ('forward_backward', forward_backward(model_id, 4, [3])),
        ('optim_step', {'model_id': model_id, 'seq_id': 5, 'adam_params': adam, 'type': 'optim_step'}),
    ]


def test_reversed_and_repeated_operations_are_carried_out_once_in_order(client, tiny_folder, service):
    raw, weights = Raw(client), []
    for sent in (lambda ops: ops, lambda ops: [x for op in reversed(ops) for x in (op, op)]):
        training = model(client, tiny_folder)
        answers = [raw.post(path, body) for path, body in sent(operations(training.model_id))]
        ids = dict.fromkeys(answer.raise_for_status().json()['request_id'] for answer in answers)
        assert len(ids) == 5
        for request_id in ids:
            # A result can be had twice.
            assert raw.result(request_id).content == raw.result(request_id).content
        weights.append(service.tenant(training.model_id).params)
        other = {'model_id': training.model_id, 'seq_id': 5, 'adam_params': {}, 'type': 'optim_step'}
        assert raw.post('optim_step', other).status_code == 409
    import jax

    jax.tree.map(np.testing.assert_array_equal, *weights)


@pytest.mark.parametrize(
    ('broken', 'named'),
    [
        (lambda t: t.forward_backward([datum(0)], 'stable_reinforce'), 'stable_reinforce'),
        (lambda t: t.forward_backward([datum(0, weights=np.ones(3, np.float32))], 'cross_entropy'), 'weights'),
        (lambda t: t.forward_backward([datum(0, **sampled(0) | {'advantages': NAN})], 'ppo'), 'advantages'),
        (lambda t: t.forward_backward([long_datum()], 'cross_entropy'), '200 tokens'),
        (lambda t: t.forward_backward([pictured()], 'cross_entropy'), 'image'),
        (lambda t: t.forward_backward([datum(0, **sampled(0))], 'ppo', {'clip': 0.2}), "'clip'"),
        (lambda t: t.optim_step(types.AdamParams()), 'nothing to apply'),
        (lambda t: t.save_state('a/b'), "'a/b'"),
    ],
)  # fmt: skip
def test_a_fault_of_the_user_names_the_input_and_the_next_call_works(client, tiny_folder, broken, named):
    training = model(client, tiny_folder)
    with pytest.raises(tinker.RequestFailedError, match=named) as failed:
        broken(training).result()
    assert failed.value.category is types.RequestErrorCategory.User
    if 'forward_backward' in str(broken.__code__.co_names):
        # A step on the rest of a batch would be a silent one.
        with pytest.raises(tinker.RequestFailedError, match='forward_backward 1'):
            training.optim_step(types.AdamParams()).result()
    training.forward_backward(batch(), 'cross_entropy').result()
    assert training.optim_step(types.AdamParams()).result().metrics['skipped:sum'] == 0


def long_datum() -> Any:
    tokens = torch.zeros(200, dtype=torch.int64)
    return types.Datum(
        model_input=types.ModelInput.from_ints(tokens.tolist()),
        loss_fn_inputs={'target_tokens': types.TensorData.from_torch(tokens)},
    )


def pictured() -> Any:
    image = types.ImageChunk(data=b'\x89PNG', format='png', expected_tokens=3)
    tokens = types.TensorData.from_torch(torch.zeros(3, dtype=torch.int64))
    return types.Datum(model_input=types.ModelInput(chunks=[image]), loss_fn_inputs={'target_tokens': tokens})


def test_an_unknown_base_and_rank_are_refused(client, tiny_folder):
    for options, named in (({'base_model': 'other'}, 'other'), ({'rank': 1000}, 'rank=1000')):
        with pytest.raises(tinker.RequestFailedError, match=named):
            client.create_lora_training_client(**{'base_model': str(tiny_folder), 'rank': 4} | options).result()


def test_a_wrong_key_and_an_unknown_field_are_refused(client, connect):
    with pytest.raises(tinker.AuthenticationError):
        connect(key='tml-other').get_server_capabilities()
    raw = Raw(client)
    answer = raw.post('create_session', {'tags': [], 'sdk_version': '1', 'colour': 'red'})
    assert answer.status_code == 422
    assert 'colour' in answer.text
    assert raw.post('publish_everything', {}).status_code == 404
    assert raw.result('nothing').status_code == 404


def test_a_lost_connection_loses_no_result(client, tiny_folder, service):
    training = model(client, tiny_folder)
    raw = Raw(client)
    ids = [raw.post(path, body).json()['request_id'] for path, body in operations(training.model_id)]
    for request_id in ids * 4:
        body = json.dumps({'request_id': request_id}).encode()
        head = (
            'POST /api/v1/retrieve_future HTTP/1.1\r\nHost: localhost\r\nX-API-Key: tml-test\r\n'
            f'Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n'
        )
        # The connection is closed while the server waits or answers.
        with socket.create_connection((raw.http.base_url.host, raw.http.base_url.port)) as lost:
            lost.sendall(head.encode() + body)
    assert all(raw.result(request_id).status_code == 200 for request_id in ids)
    assert service.tenant(training.model_id).seq == 5


def test_close_ends_the_session(connect, tiny_folder, service):
    client = connect()
    training = model(client, tiny_folder)
    client.close('success').result()
    for _ in range(100):
        if training.model_id not in service.trainer.tenants:
            break
        time.sleep(0.05)
    assert training.model_id not in service.trainer.tenants


# --- samples ----------------------------------------------------------------------------------------------------------


def tokens_of(response: Any) -> list[list[int]]:
    return [list(sequence.tokens) for sequence in response.sequences]


def test_a_seeded_sample_depends_on_nothing_else(client, tiny_folder):
    sampler = client.create_sampling_client(base_model=str(tiny_folder))
    sampler = sampler.result() if hasattr(sampler, 'result') else sampler

    def ask(seed: int, n: int, **more: Any) -> Any:
        settings = types.SamplingParams(**{'max_tokens': 6, 'seed': seed} | more)
        return sampler.sample(prompt=prompt(1), num_samples=n, sampling_params=settings)

    alone = tokens_of(ask(5, 3).result())
    crowd = [ask(seed, 2) for seed in range(10)]
    assert tokens_of(ask(5, 3).result()) == alone
    assert tokens_of(crowd[5].result()) == alone[:2]
    assert len({tuple(x) for x in alone}) > 1
    greedy = tokens_of(ask(0, 2, temperature=0.0).result())
    assert greedy[0] == greedy[1]
    assert tokens_of(ask(1, 1, top_k=1).result())[0] == greedy[0]


def test_the_likeliest_tokens_stand_beside_samples_and_prompts(client, tiny_folder):
    sampler = client.create_sampling_client(base_model=str(tiny_folder))
    sampler = sampler.result() if hasattr(sampler, 'result') else sampler
    settings = types.SamplingParams(max_tokens=5, temperature=0.0, stop=[])
    answer = sampler.sample(
        prompt=prompt(3), num_samples=1, sampling_params=settings, include_prompt_logprobs=True,
        topk_prompt_logprobs=20, topk_sample_logprobs=2,
    ).result()  # fmt: skip
    sample = answer.sequences[0]
    # A greedy sample takes the likeliest token.
    assert [row[0][0] for row in sample.topk_logprobs] == list(sample.tokens)
    np.testing.assert_allclose([row[0][1] for row in sample.topk_logprobs], sample.logprobs, atol=1e-5)
    assert all(len(row) == 2 and row[0][1] >= row[1][1] for row in sample.topk_logprobs)
    ids, (first, *rows) = prompt(3).to_ints(), answer.topk_prompt_logprobs
    assert first is None
    assert len(rows) == len(ids) - 1
    for token, logprob, row in zip(ids[1:], answer.prompt_logprobs[1:], rows, strict=True):
        assert len(row) == 20
        assert dict(row).get(token, logprob) == pytest.approx(logprob, abs=1e-5)


def test_stops_end_a_sample_and_stay_in_it(client, tiny_folder):
    sampler = client.create_sampling_client(base_model=str(tiny_folder))
    sampler = sampler.result() if hasattr(sampler, 'result') else sampler

    def ask(**more: Any) -> Any:
        settings = types.SamplingParams(**{'max_tokens': 12, 'temperature': 0.0} | more)
        return sampler.sample(prompt=prompt(2), num_samples=1, sampling_params=settings).result().sequences[0]

    full = list(ask(stop=[]).tokens)
    end = full[2]
    stopped = ask(stop=[end])
    assert list(stopped.tokens) == full[: full.index(end) + 1]
    assert stopped.stop_reason == 'stop'
    assert ask(stop=[]).stop_reason == 'length'


def test_what_samples_cannot_have_is_refused_by_name(client, tiny_folder):
    sampler = client.create_sampling_client(base_model=str(tiny_folder))
    sampler = sampler.result() if hasattr(sampler, 'result') else sampler
    settings = types.SamplingParams(max_tokens=2)
    for more, named in (({'topk_sample_logprobs': 21}, 'topk_sample_logprobs=21'), ({'prompt_alt_tokens_k': 2}, 'alt')):
        with pytest.raises(tinker.RequestFailedError, match=named):
            sampler.sample(prompt=prompt(0), num_samples=1, sampling_params=settings, **more).result()
    long = types.ModelInput.from_ints([1] * 127)
    with pytest.raises(tinker.RequestFailedError, match='room for 128'):
        sampler.sample(prompt=long, num_samples=1, sampling_params=settings).result()


# --- weights ----------------------------------------------------------------------------------------------------------


def train(training: Any, steps: int) -> None:
    for _ in range(steps):
        training.forward_backward(batch(), 'cross_entropy').result()
        training.optim_step(types.AdamParams(learning_rate=0.01)).result()


def test_saved_weights_go_on_bit_for_bit(client, tiny_folder, service):
    import jax

    training = model(client, tiny_folder, user_metadata={'renderer_name': 'role_colon'})
    train(training, 2)
    path = training.save_state('two').result().path
    assert path == f'tinker://{training.model_id}/weights/two'
    with pytest.raises(tinker.RequestFailedError, match='two exists'):
        training.save_state('two').result()
    training.save_state('two', overwrite=True).result()
    train(training, 2)
    resumed = client.create_training_client_from_state_with_optimizer(path).result()
    train(resumed, 2)
    ours, theirs = (service.tenant(x.model_id).params for x in (training, resumed))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    rest = client.create_rest_client()
    run = rest.get_training_run(training.model_id).result()
    assert (run.lora_rank, run.user_metadata) == (4, {'renderer_name': 'role_colon'})
    assert run.last_checkpoint.tinker_path == path
    assert rest.get_weights_info_by_tinker_path(path).result().lora_rank == 4


def test_a_snapshot_stays_and_saved_weights_can_be_sampled(client, tiny_folder, monkeypatch):
    monkeypatch.setattr('pal_jax.training_server.worker.IN_MEMORY', 1)
    training = model(client, tiny_folder)
    train(training, 1)
    frozen = training.save_weights_and_get_sampling_client()
    frozen = frozen.result() if hasattr(frozen, 'result') else frozen
    saved = training.save_weights_for_sampler('one').result().path
    before = frozen.compute_logprobs(prompt(0)).result()
    train(training, 1)
    assert frozen.compute_logprobs(prompt(0)).result() == before
    again = client.create_sampling_client(model_path=saved)
    again = again.result() if hasattr(again, 'result') else again
    assert again.compute_logprobs(prompt(0)).result() == before
    assert np.abs(np.subtract(before[1:], logprobs(training))).max() > 1e-3
    # The next snapshot sends the adapters of this one to a file.
    for _ in range(2):
        newer = training.save_weights_and_get_sampling_client()
        newer = newer.result() if hasattr(newer, 'result') else newer
    assert newer.compute_logprobs(prompt(0)).result() != before
    assert frozen.compute_logprobs(prompt(0)).result() == before


def test_the_loops_of_the_page_run_as_they_stand(client, monkeypatch, capsys):
    first, second = (block.text for block in pages.blocks(pages.DOCS / 'serve_training.md') if block.kind == 'python')
    *begin, end = first.splitlines(keepends=True)
    assert end.startswith('service.close')
    url = Raw(client).http.base_url
    monkeypatch.setenv('TINKER_BASE_URL', f'http://{url.host}:{url.port}')
    monkeypatch.setenv('TINKER_API_KEY', 'tml-test')
    names: dict[str, Any] = {}
    exec(''.join(begin) + second + end, names)
    losses = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 10 and losses[-1] < losses[0]
    assert names['path'].endswith('/weights/four-steps')
