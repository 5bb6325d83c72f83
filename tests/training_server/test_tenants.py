"""Many tenants in one program: what one of them computes depends on no other, bit for bit, in training and sampling."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest

pytest.importorskip('tinker', reason="needs the client: pip install 'pal_jax[tinker]'")

from tinker.proto import tinker_public_pb2 as pb

from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.requests import PromptLogprobs, Request, RequestProgress
from pal_jax.models.files import sources
from pal_jax.models.params import decoder_specs
from pal_jax.run import devices, sharding
from pal_jax.training_server import wire
from pal_jax.training_server.executor import Executor
from pal_jax.training_server.futures import Operation, UserFault
from pal_jax.training_server.losses import NO_TARGET, Datum
from pal_jax.training_server.sampler import BASE, Bank, SampleJob, Sampler, Snapshot, Weights, never_ending
from pal_jax.training_server.trainer import Base, Shape, Tenant, Trainer
from pal_jax.training_server.wire import PromptWishes
from pal_jax.training_server.worker import Worker
from pal_jax.types import Completion, Sampling

STEP = {
    'learning_rate': 0.01, 'beta1': 0.9, 'beta2': 0.95, 'eps': 1e-12, 'weight_decay': 0.1, 'grad_clip_norm': 0.0,
}  # fmt: skip
# Tenants of several ranks, losses, numbers of data and lengths.
SHAPES = {'a': Shape(4, True, True, True), 'b': Shape(3, True, True, True), 'c': Shape(4, False, False, True)}
LOSSES = {'a': 'cross_entropy', 'b': 'ppo', 'c': 'cross_entropy'}
LENGTHS = {'a': (10, 70, 20, 30, 90), 'b': (12, 66, 25), 'c': (40,)}


@pytest.fixture(scope='module')
def base() -> Base:
    source = sources.resolve('random:tiny')
    cfg = dataclasses.replace(source.config, tie_embed=False, max_len=128)
    params = source.load()
    return Base(
        'tiny', 'random:tiny', cfg, {**params, 'unembed': params['embed']}, devices.make_mesh(devices=jax.devices()[:1])
    )


def data(name: str, step: int) -> list[Datum]:
    rng, made = np.random.default_rng([step, ord(name)]), []
    for length in LENGTHS[name]:
        tokens = rng.integers(0, 256, length + 1)
        inputs = {'target_tokens': tokens[1:]}
        if LOSSES[name] == 'ppo':
            inputs['logprobs'] = rng.normal(-5.5, 0.3, length).astype(np.float32)
            inputs['advantages'] = rng.normal(size=length).astype(np.float32)
        made.append(Datum(tokens[:-1].astype(np.int32), inputs))
    return made


def trained(base: Base, names: str) -> tuple[Trainer, dict[str, list[Any]]]:
    """The models of these names after two steps together, and the results of each."""
    trainer = Trainer(base, rows=4, max_rank=4)
    tenants = [trainer.create(name, SHAPES[name], ord(name), {}) for name in names]
    results: dict[str, list[Any]] = {name: [] for name in names}
    for step in range(2):
        batches = [trainer.checked(x, data(x.model_id, step), LOSSES[x.model_id], {}) for x in tenants]
        for name, result in zip(names, trainer.forward_backward(batches), strict=True):
            results[name].append(result)
        trainer.optim_steps([trainer.step_of(x, STEP) for x in tenants])
    return trainer, results


@pytest.mark.slow
def test_a_tenant_alone_trains_as_beside_others_bit_for_bit(base):
    alone, expected = trained(base, 'a')
    for names in ('abc', 'cba'):
        beside, results = trained(base, names)
        jax.tree.map(np.testing.assert_array_equal, results['a'], expected['a'])
        ours, theirs = alone.tenants['a'], beside.tenants['a']
        jax.tree.map(np.testing.assert_array_equal, (ours.params, ours.opt_state), (theirs.params, theirs.opt_state))
    # The others were trained, too, and a weight that is not to be trained has no adapter.
    assert beside.tenants['c'].params['unembed'] is None
    assert bool((beside.tenants['b'].params['unembed'].b != 0).any())


@pytest.mark.slow
def test_eight_devices_train_and_sample_as_one_does(base):
    """Their sums are added up in another order, so numbers agree to the precision of float32."""
    mesh = devices.make_mesh()
    assert mesh.size == 8
    params = jax.device_put(base.params, sharding.param_shardings(decoder_specs(base.cfg), mesh))
    spread = base._replace(mesh=mesh, params=params)
    answers, kept = [], []
    for where in base, spread:
        trainer, results = trained(where, 'abc')
        kept.append((results, [trainer.tenants[name].params for name in 'abc']))
        asked = [(snapshot_of(trainer.tenants['b']), 1), (Snapshot(dict, is_base=True), 2)]
        answers.append([pb.SampleResponse.FromString(body) for body in sampled(where, 2, asked)])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4), *kept)
    for one, other in zip(*answers, strict=True):
        for ours, theirs in zip(one.sequences, other.sequences, strict=True):
            assert ours.tokens == theirs.tokens
            one_lps, other_lps = (np.frombuffer(x.logprobs, np.float32) for x in (ours, theirs))
            np.testing.assert_allclose(one_lps, other_lps, atol=1e-4)


@pytest.mark.slow
def test_several_targets_of_a_position_are_the_sum_of_their_losses(base):
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, 256, 20).astype(np.int32), rng.integers(0, 256, (20, 2))
    weights = rng.normal(size=(20, 2)).astype(np.float32)
    # The last position has one target alone, whose weight counts nothing.
    targets[-1, 1] = NO_TARGET
    results, sums = [], []
    for columns in ([slice(None)], [0, 1]):
        trainer = Trainer(base, rows=4, max_rank=4)
        tenant = trainer.create('a', SHAPES['a'], 1, {})
        for k in columns:
            real = targets[:, k] != NO_TARGET
            single = {'target_tokens': np.maximum(targets[:, k], 0), 'weights': weights[:, k] * real}
            inputs = {'target_tokens': targets, 'weights': weights} if isinstance(k, slice) else single
            results += trainer.forward_backward([trainer.checked(tenant, [Datum(tokens, inputs)], 'cross_entropy', {})])
        sums.append(tenant.grads)
    ((both,), metrics), ((first,), one), ((second,), other) = results
    exists = targets != NO_TARGET
    np.testing.assert_allclose(both[exists], np.stack([first, second], axis=1)[exists], atol=1e-5)
    assert metrics['loss:sum'] == pytest.approx(one['loss:sum'] + other['loss:sum'], rel=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), *sums)


def sampled(base: Base, places: int, asked: Sequence[tuple[Snapshot, int]], **more: Any) -> list[bytes]:
    """The answers to requests of (snapshot, seed), three samples and the prompt's log-probs each."""
    tokenizer = never_ending(sources.resolve('random:tiny').tokenizer())
    cfg = dataclasses.replace(base.cfg, **more)
    decoder = LocalDecoder(cfg, tokenizer, base.mesh, slots=8)
    sampler, jobs = Sampler(Bank(decoder, base, size=places, rank=4)), []
    for snapshot, seed in asked:
        prompt = tuple(np.random.default_rng(seed).integers(0, 256, 20 + seed).tolist())
        requests = [Request(prompt, Sampling(1.0, 0, 1.0, 6), 100 * seed + i) for i in range(3)]
        jobs.append(SampleJob(str(len(jobs)), BASE, requests, PromptWishes(logprobs=True)))
        sampler.put(jobs[-1], snapshot)
    answers: dict[str, Any] = {}
    while sampler.busy:
        answers |= sampler.advance((), 0.0)
    return [answers[job.request_id].body for job in jobs]


@pytest.mark.slow
def test_a_seeded_sample_is_the_same_beside_other_adapters_bit_for_bit(base):
    trainer, _ = trained(base, 'abc')
    ours, *others = (snapshot_of(trainer.tenants[name]) for name in 'abc')
    asked = [(ours, 1), (ours, 2)]
    alone = sampled(base, 2, asked)
    # Four kinds of weights share two places and eight slots.
    crowd = [(others[0], 3), asked[0], (others[1], 4), (Snapshot(dict, is_base=True), 5), asked[1], (others[0], 6)]
    beside = sampled(base, 2, crowd)
    assert [beside[1], beside[4]] == alone
    # The adapters are those that were asked for.
    assert len(set(beside)) == len(beside)


def snapshot_of(tenant: Tenant) -> Snapshot:
    return Snapshot(lambda: tenant.params)


def test_a_snapshot_starts_several_jobs_in_its_turn_and_no_more_than_its_share(monkeypatch):
    started: list[str] = []
    put = mock.Mock()
    monkeypatch.setattr('pal_jax.training_server.sampler.soups.put', put)
    # Everybody has waited for long as soon as they wait.
    monkeypatch.setattr('pal_jax.training_server.sampler.TURN', -1.0)
    decoder = mock.Mock(slots=6, free=6)

    def add(request: Request) -> int:
        decoder.free -= 1
        started.append(chr(request.prompt_ids[0]))
        return len(started)

    def step() -> list[Any]:
        ended = range(len(started) - 5 + decoder.free, len(started) + 1)
        decoder.free = 6
        return [RequestProgress(number, (), (), Completion('', (), (), 'length')) for number in ended]

    decoder.add, decoder.step = add, step
    bank = Bank.__new__(Bank)
    bank.__dict__.update(decoder=decoder, size=2, _places={}, _weights=None)
    sampler = Sampler(bank)
    for name in 'abc':
        snapshot = Snapshot(dict)
        for _ in range(4):
            request = Request((ord(name),), Sampling(1.0, 0, 1.0, 1), 0)
            sampler.put(SampleJob(name, BASE, [request]), snapshot)
    while sampler.busy:
        sampler.advance((), 0.0)
    # Two places share six slots, so a turn has three samples.
    assert ''.join(started) == 'aaabbbcccabc'
    # A place is filled once a turn, and not once a job.
    assert put.call_count == 6


def test_operations_of_several_models_are_carried_out_together_and_each_model_keeps_its_order():
    worker = Worker(mock.Mock(), mock.Mock(), mock.Mock(busy=False))
    log, executor = [], Executor(worker, share=0.5)

    def together(_: Worker, parts: Sequence[Any]) -> Sequence[Any]:
        log.append(list(parts))
        return parts

    def step(_: Worker, parts: Sequence[Any]) -> Sequence[Any]:
        log.append(['step', *parts])
        return parts

    # The first operation keeps the thread until all others wait.
    go = threading.Event()
    operations = [Operation('', lambda _: go.wait())]
    for name, kind in (
        ('a1', together),
        ('a2', together),
        ('b1', together),
        ('a3', step),
        ('b2', step),
        ('c1', together),
    ):
        operations.append(Operation('', lambda _, name=name: name, name[0], kind))
    for operation in operations:
        executor.put(operation)
    go.set()
    assert [operation.done.result(5) for operation in operations[1:]] == ['a1', 'a2', 'b1', 'a3', 'b2', 'c1']
    executor.close()
    worker.close()
    assert log == [['a1', 'b1', 'c1'], ['a2'], ['step', 'a3', 'b2']]


def test_the_end_of_a_session_leaves_saved_weights_that_are_sampled_in_their_place():
    sampler = mock.Mock(busy=False)
    sampler.samples = lambda snapshot: snapshot is under_way
    worker, under_way, idle, held = Worker(mock.Mock(), mock.Mock(), sampler), *(Snapshot(dict) for _ in range(3))
    named = Weights('x', 1.0), Weights('y', 1.0), Weights('session:sample:0')
    worker._snapshots.update(zip(named, (under_way, idle, held), strict=True))
    worker.open_sampler(named[2].name, 'session', named[2])
    worker.release('session')
    worker.close()
    assert worker._snapshots.keys() == {BASE, named[0]}
    assert sampler.bank.forget.call_args.args == ([idle, held],)


def test_a_prompt_shorter_than_the_last_tokens_asked_for_has_all_log_probs():
    prompt = PromptLogprobs((None, -1.0, -2.0), ((), (), ()), 0)
    for last, expected in ((2, [np.nan, -1, -2]), (1, [np.nan, np.nan, -2]), (5, [np.nan, -1, -2])):
        answer = wire.sample_answer([], [], 0, prompt, PromptWishes(logprobs=True, last=last))
        given = pb.SampleResponse.FromString(answer.body).prompt_logprobs
        np.testing.assert_array_equal(np.frombuffer(given, np.float32), np.float32(expected))


def test_broken_tokens_are_the_fault_of_their_request():
    message = pb.ForwardBackwardRequest()
    message.data.add().model_input.add().encoded_text.tokens = b'12345'
    with pytest.raises(UserFault, match=r'data\[0\].*int32'):
        wire.data_of(message)
