"""`decode.exact`: the sampler's log-probs are the trainer's, bit for bit, or a run is refused."""

import dataclasses
import functools
import json
import queue
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.decoders import Endless
from pal_jax.data.packing import pack_rollouts
from pal_jax.decode.choose import check_exact, choose_decoder
from pal_jax.decode.driver import Driver
from pal_jax.decode.engine import attend_cache
from pal_jax.decode.local import LocalDecoder
from pal_jax.decode.requests import EXACT_SLOTS, Request, for_slots
from pal_jax.learners import forward
from pal_jax.models import attention, lora, params, soups
from pal_jax.models.config import LayerKind, tiny
from pal_jax.models.places import one_sequence
from pal_jax.recipes.rlpa import recipe as rlpa
from pal_jax.run import sharding
from pal_jax.run.devices import make_mesh
from pal_jax.run.processes import Shares
from pal_jax.run.progress import Stopwatch
from pal_jax.run.recipe import Context
from pal_jax.types import Sample, Sampling
from tests import configs, shell

CFG = tiny()
in_order = pytest.mark.skipif(
    not attention.adds_in_order(), reason='decode.exact refuses this processor, whose products add up in another order'
)


def test_an_exact_decoder_has_as_many_slots_as_products_round_alike():
    exact = dataclasses.replace(CFG, exact=True)
    assert [for_slots(exact, slots, 'cpu')[1] for slots in (1, 8, 65)] == [64, 64, 72]
    assert for_slots(exact, 8, 'cpu', ways=2)[1] == 128
    narrow = dataclasses.replace(exact, dtype='bfloat16')
    assert [for_slots(narrow, slots, 'cpu')[1] for slots in (1, 8, 33)] == [8, 8, 40]
    assert for_slots(CFG, 8, 'cpu')[1] == 8


def test_what_is_not_shown_to_be_exact_is_refused_by_name(monkeypatch):
    mesh = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(attention, 'adds_in_order', lambda: True)
    check_exact(CFG, mesh)
    with pytest.raises(ValueError, match='--exact: weights of eight bits'):
        check_exact(CFG, mesh, '--exact', int8=True)
    with pytest.raises(ValueError, match='mesh.tensor=2'):
        check_exact(CFG, make_mesh(tensor=2, devices=jax.devices()[:2]))
    monkeypatch.setattr(attention, 'adds_in_order', lambda: False)
    with pytest.raises(ValueError, match='processor'):
        check_exact(CFG, mesh)
    server = {'driver': 'jetstream', 'address': '127.0.0.1:9000'}
    with pytest.raises(ValueError, match='decode.exact off'):
        choose_decoder(CFG, types.SimpleNamespace(), mesh, **server, slots=8, stride=1, exact=True)


@pytest.mark.parametrize(
    ('key', 'value'),
    [('ppo.row_tokens', 5120), ('policy.lora.dropout', 0.1), ('policy.lora.targets', 'down,unembed')],
)
def test_a_learner_that_rounds_otherwise_is_refused_by_its_key(key, value):
    adapters = {'policy.lora.rank': 4} if 'lora' in key else {}
    settings = configs.load('rlpa', 'smoke', **{'decode.exact': True, 'ppo.row_tokens': 512, key: value, **adapters})
    context = Context(make_mesh(devices=jax.devices()[:1]), Stopwatch().phase)
    with pytest.raises(ValueError, match=key):
        rlpa.make_turn_learner(settings, CFG, context)
    learner = rlpa.make_turn_learner(
        configs.load('rlpa', 'smoke', **{'decode.exact': True, 'ppo.row_tokens': 512}), CFG, context
    )
    assert learner.ppo.exact and learner.ppo.old_logprobs == 'sampler'


@pytest.mark.parametrize(('rows', 'width'), [(3, 16), (3, 128), (130, 64), (300, 16)])
@in_order
def test_columns_are_added_up_in_their_order_at_any_number_of_them(rows, width):
    """Each product and sum of two numbers is rounded once to float32, which float64 can tell."""
    rng = np.random.default_rng(0)
    weights = rng.exponential(size=(2, 1, rows, 1100)).astype(np.float32)
    values = rng.normal(size=(2, 1, 1100, width)).astype(np.float32)
    total = np.zeros((2, 1, rows, width), np.float32)
    for column in range(1100):
        product = weights[..., column, None].astype(np.float64) * values[:, :, None, column]
        total = (product + total).astype(np.float32)
    np.testing.assert_array_equal(jax.jit(attention.in_order)(weights, values), total)


@pytest.mark.parametrize('cap', [None, 30.0])
@in_order
def test_a_query_over_a_long_cache_has_the_bits_of_a_training_row(cap):
    """More than 512 columns, of which the cache has some that are unused."""
    cfg = dataclasses.replace(CFG, exact=True, attention='blocks', attn_softcap=cap)
    length, room, last = 640, 768, jnp.arange(576, 640)[:, None]
    q, k, v = (
        jax.random.normal(jax.random.key(i), (1, length, heads, cfg.head_dim))
        for i, heads in enumerate((cfg.heads, cfg.kv_heads, cfg.kv_heads))
    )
    row, kind = one_sequence(jnp.arange(length)[None]), LayerKind()
    trained = jax.jit(functools.partial(attention.attention, cfg=cfg, kind=kind, causal=True))(q, k, v, row, row)
    spare = ((0, 0), (0, room - length), (0, 0), (0, 0))
    keys, values = (jnp.pad(x, spare).transpose(axes) for x, axes in ((k, (0, 2, 3, 1)), (v, (0, 2, 1, 3))))
    caches = [jnp.broadcast_to(x, (len(last), *x.shape[1:])) for x in (keys, values)]
    decoded = jax.jit(functools.partial(attend_cache, cfg=cfg, kind=kind))(q[0, last], *caches, last)
    np.testing.assert_array_equal(decoded[:, 0], trained[0, last[:, 0]])


@pytest.mark.parametrize('rows', [8, 64, 300])
@pytest.mark.parametrize('width', [64, 100, 576])
@in_order
def test_a_sum_has_one_order_for_any_number_of_rows(rows, width):
    x = np.random.default_rng(0).exponential(size=(512, width)).astype(np.float32)
    total = jax.jit(attention.summed)
    np.testing.assert_array_equal(total(x[:rows]), total(x)[:rows])
    np.testing.assert_allclose(total(x)[:, 0], x.astype(np.float64).sum(-1), rtol=1e-6)


@pytest.mark.parametrize('dtype', EXACT_SLOTS)
@pytest.mark.parametrize('kind', ['plain', 'factors', 'delta'])
@in_order
def test_a_scored_answer_has_the_log_probs_with_which_it_was_sampled(dtype, kind):
    """Four requests, each with a mixture of its own where the weights are a soup of three adapters."""
    cfg = dataclasses.replace(CFG, exact=True, dtype=dtype)
    plain, mixtures = params.init(params.decoder_specs(cfg), jax.random.key(0)), [None] * 4
    weights = plain
    if kind != 'plain':
        adapted = [adapters(plain, seed) for seed in range(3)]
        weights, mixtures = (
            soups.stack(plain, adapted, kind=kind),
            [(1.0, 0.0, 0.0), (0.2, 0.3, 0.5), None, (0.6, 0.4, 0)],
        )
    decoder = LocalDecoder(cfg, Endless(cfg.vocab), make_mesh(devices=jax.devices()[:1]), slots=4)
    decoder.load(weights)
    prompts = [tuple(range(5, 5 + size)) for size in (3, 17, 40, 66)]
    asked = [
        Request(prompt, Sampling(temperature=0.7, max_tokens=12), seed, mixture=mixture)
        for seed, (prompt, mixture) in enumerate(zip(prompts, mixtures, strict=True))
    ]
    for request, answer in zip(asked, decoder(asked), strict=True):
        whole = dataclasses.replace(request, prompt_ids=request.prompt_ids + tuple(answer.token_ids))
        scored = [logprob for piece in decoder.score(whole) for logprob in piece.logprobs]
        assert scored[len(request.prompt_ids) :] == list(answer.policy_logprobs)


@pytest.mark.parametrize('policy', ['drain', 'continue'])
@in_order
def test_around_a_swap_in_flight_tokens_have_the_log_probs_of_the_weights_that_sampled_them(policy):
    """With `continue`, the tokens after the swap are of a cache that two models made, and of no single one."""
    cfg, mesh = dataclasses.replace(CFG, exact=True), make_mesh(devices=jax.devices()[:1])
    models = [params.init(params.decoder_specs(cfg), jax.random.key(seed)) for seed in range(2)]
    decoder, ended, began = LocalDecoder(cfg, Endless(cfg.vocab), mesh, slots=8, stride=2), queue.Queue(), queue.Queue()
    decoder.load(models[0])
    driver = Driver(decoder)
    asked = [Request((5, 6, 7, seed), Sampling(temperature=0.7, max_tokens=48), seed) for seed in range(3)]

    def notify(k, news):
        began.put(k)
        if news.completion:
            ended.put((k, news.completion))

    driver.submit_all(asked[:2], notify)
    began.get(timeout=60)
    swapped = driver.swap(models[1], 1, policy)
    driver.submit(asked[2], lambda news: notify(2, news))
    assert swapped.result(timeout=60) == 1
    answers = dict(ended.get(timeout=60) for _ in asked)
    driver.close()
    assert set(answers[0].versions) == ({0} if policy == 'drain' else {0, 1})
    assert set(answers[2].versions) == {1}
    samples = [Sample(asked[k].prompt_ids, answers[k], k, rewards=(0.0,)) for k in range(3)]
    batch = pack_rollouts(samples, n=1, actions=48, mesh=mesh, row_tokens=256)
    trained = [
        np.asarray(jax.jit(forward.logprobs, static_argnums=(1, 3))(weights, cfg, batch.tokens, 0.7)[0]).reshape(-1, 48)
        for weights in models
    ]
    sampled, acts = (np.asarray(x).reshape(-1, 48) for x in (batch.sampler_logprobs, batch.tokens.acts))
    for row in np.flatnonzero(acts.any(-1)):
        (k,) = (k for k in answers if sampled[row].tolist() == list(answers[k].logprobs))
        versions = np.asarray(answers[k].versions)
        counted = versions == versions[0]
        np.testing.assert_array_equal(sampled[row][counted], trained[versions[0]][row][counted])


@in_order
def test_shares_of_a_decoder_have_the_bits_of_a_whole_one_with_adapters():
    cfg = dataclasses.replace(CFG, exact=True, dtype='bfloat16')
    plain = params.init(params.decoder_specs(cfg), jax.random.key(0))
    weights, mesh = lora.join(adapters(plain, 1), plain), make_mesh(devices=jax.devices()[:2])
    weights = jax.device_put(weights, sharding.replicated(mesh))
    asked = [Request((5, 6, seed), Sampling(max_tokens=8), seed) for seed in range(4)]
    answers = []
    for shares in (1, 2):
        decoder = choose_decoder(
            cfg,
            Endless(cfg.vocab),
            mesh,
            driver='local',
            address='',
            slots=4,
            stride=2,
            shares=Shares(shares),
            exact=True,
        )
        decoder.load(weights)
        answers.append(decoder(asked))
    assert answers[0] == answers[1]


def adapters(plain, seed):
    """Adapters that change what the model computes."""
    key = jax.random.key(seed)
    trained, _ = lora.split(lora.attach(plain, rank=4, alpha=3.0, targets='all-linear', key=key))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(key, x.shape), trained)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('dtype', 'rank', 'fewest'), [('float32', 0, 64), ('float32', 0, 8), ('bfloat16', 0, 8), ('bfloat16', 8, 8)]
)
@in_order
def test_scores_and_updates_have_the_bits_of_the_sampler_and_fewer_slots_have_not(dtype, rank, fewest, monkeypatch):
    """Two layers of SmolLM2's shape, rows beyond 512 columns: prefixes reused and fresh, packed and own rows, shuffled
    requests, with adapters and without."""
    # With far more threads than cores, a product in bfloat16 is cut into parts of one or two rows.
    monkeypatch.delenv('PJRT_NPROC', raising=False)
    monkeypatch.delenv('XLA_FLAGS', raising=False)
    sizes = '--layers=2', '--requests=8', '--prompt=600', '--new=24', '--row-tokens=1024'
    kind = f'--dtype={dtype}', f'--lora={rank}', f'--fewest={fewest}'
    done = shell.run('benchmarks.exact', '--quick', '--slots=8', *kind, *sizes)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert len(report['differences']) == 4
    exact = fewest == EXACT_SLOTS[dtype]
    assert (report['largest'] == 0.0) == exact
    assert all((case['equal'] == 1.0) == exact for case in report['differences'].values())
