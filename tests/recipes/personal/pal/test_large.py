"""PAL on texts: Tiny and Large, statements and replies to prompts, the tokens of spans, and what is refused."""

from __future__ import annotations

import contextlib
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.data.comparisons import PairBatch
from pal_jax.data.texts import Text, TextPairs
from pal_jax.recipes.personal.pal import batches as pal_batches
from pal_jax.recipes.personal.pal import kept as pal_kept
from pal_jax.recipes.personal.pal import large as pal_large
from pal_jax.recipes.personal.pal import recipe as pal
from pal_jax.recipes.personal.pal import text as pal_text
from pal_jax.recipes.personal.pal.reader import ReaderState
from pal_jax.recipes.personal.panel import Trial
from pal_jax.recipes.personal.population import Panel
from pal_jax.run import devices
from pal_jax.run.checkpoint import Checkpoints
from pal_jax.run.recipe import Context, Plan
from tests.recipes.personal.texts import ONE, B, run, small

EIGHT = Context(devices.make_mesh(data=2, fsdp=4), lambda name: contextlib.nullcontext())


def taste(row):
    """What a prototype would rather hear said to words full of a; to those full of z it is the other."""
    opposite = {'yes': 'no', 'no': 'yes'}
    said = re.findall(r'([azmn]{12}) / (yes|no)', row[3])
    return {reply if word.count('a') > 3 else opposite[reply] for word, reply in said}


@pytest.mark.parametrize('variant', ['text', 'text-large'])
@pytest.mark.parametrize(('kind', 'changes'), [('replies_file', B), ('statements_file', {})], ids=['B', 'A'])
@pytest.mark.long
def test_people_are_told_apart_by_texts_nobody_has_seen(request, kind, changes, variant):
    recipe, state = run(small(request.getfixturevalue(kind), variant, **changes), 6)
    evaluation = recipe.evaluate(state, 'final')
    record = evaluation.record
    assert record['seen_pal'] > 0.85 > 0.7 > record['seen_shared']
    assert record['new_pal'] > 0.85
    assert record['group_auc K=2'] > 0.95  # of groups that no model was told
    table = next(each.table for each in evaluation.exhibits if each.title == 'The prototypes')
    if variant == 'text':
        assert record['seen_groups'] > 0.85  # which is told them
        z = np.asarray(state['groups'].users.z)[0]
        assert {tuple(row) for row in z[:20].tolist()} == {(20.0, 0.0), (0.0, 20.0)}
    if kind == 'replies_file':
        assert sorted(map(sorted, map(taste, table[1:]))) == [['no'], ['yes']]  # to words full of a
    assert len(table) == 3 and (' / ' in table[1][3]) == (kind == 'replies_file')


@pytest.mark.slow
def test_large_at_rate_0_is_tiny(statements_file):
    config = small(statements_file, **{'decoder.optimizer.lr': 0.0})
    _, state = run(config, 2)
    settings = config
    decoder = pal_text.open_reader(settings.text, ONE, settings.seed)
    data = pal_text.read(settings, ONE, decoder)
    reader = pal_large.make_reader(settings, decoder, data.frame, ONE)
    for model in state.models.values():
        found = reader.read(model.readings[0], state.frozen, data.pairs.texts)
        np.testing.assert_allclose(found, data.items.chosen.table, atol=2e-4)


@pytest.mark.slow
def test_a_step_of_large_moves_prototypes_people_and_decoders_and_no_base(replies_file):
    recipe = pal_large.make(small(replies_file, **B), ONE)
    state, host = recipe.init()
    before = jax.tree.map(np.array, state)
    for i in range(3):  # the first at rate 0; the second moves only what adapters end in, which begins at 0
        state, host, *_ = recipe.step(state, host, i)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), before, jax.tree.map(np.asarray, state))
    assert not any(jax.tree.leaves(moved.frozen))
    model = moved.models['K=2']
    assert all(jax.tree.leaves(model.readings[0].model.params))
    model.pal.params['f'][-1].pop('bias')  # of both sides of a pair
    assert all(jax.tree.leaves(model.pal.params)) and model.pal.users.z


@pytest.mark.slow
def test_decoders_wait_while_prototypes_are_found(replies_file):
    config = small(replies_file, **B, **{'hold.steps': 2, 'hold.updates': 20, 'total_steps': 1})
    frozen = small(replies_file, 'text', **B, **{'baselines.groups': False})
    recipe, tiny = pal_large.make(config, ONE), pal.make(frozen, ONE)
    (state, host), (other, nothing) = recipe.init(), tiny.init()
    before = jax.tree.map(np.array, {name: model.readings for name, model in state.models.items()})
    assert recipe.plan.total_steps == 3 and [recipe.plan.stage(i) for i in range(4)] == [None, None, 'tiny', 'final']
    for i in range(2):
        state, host, phase, _ = recipe.step(state, host, i)
        other, nothing, *_ = tiny.step(other, nothing, i)
    assert phase == 'hold'
    after = {name: model.readings for name, model in state.models.items()}
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, after))
    people = {name: model.pal for name, model in state.models.items()}
    jax.tree.map(np.testing.assert_array_equal, people, other)
    found, expected = recipe.evaluate(state, 'tiny').record, tiny.evaluate(other, 'final').record
    assert found['seen_pal'] == expected['seen_pal']


class Decoders(NamedTuple):
    """Vectors of two numbers; a decoder is how many updates it has had, and `heard` is what it was told."""

    heard: list

    def divide(self, weights, seed):
        return 'frozen', ReaderState(seed, np.int32(0))

    def read(self, reading, frozen, texts):
        return np.array([[len(text.tokens), reading.model] for text in texts], np.float32)

    def learn(self, reading, frozen, texts, gradient):
        self.heard.append((len(texts), gradient.tolist()))
        return reading.replace(model=reading.model + 10), {}


class People(NamedTuple):
    """Every pair has its own vectors as its gradient."""

    seen: list

    def init(self, seeds):
        return 0

    def item_gradients(self, state, batch):
        return batch

    def update(self, state, batches):
        self.seen.append(batches)
        return state + 1, {'loss': np.zeros(1), 'accuracy': np.ones(1)}


def test_large_of_fake_parts_waits_and_then_hands_the_gradient_on():
    texts = tuple(Text(tuple(range(1, n))) for n in (3, 4, 5))
    sides = np.array([0, 1]), np.array([1, 2])
    drawn = pal_batches.StepPairs(np.arange(3), np.zeros(2, int), np.ones(2, np.float32), *sides, None)
    columns = np.zeros((1, 1, 2), np.int32), np.zeros((1, 1, 2, 2)), np.zeros((1, 1, 2, 2)), np.ones((1, 1, 2))
    pairs = TextPairs(np.zeros(2, int), *sides, None, texts, ('a', 'b', 'c'), ('ana',), np.array([-1]))
    learners, reader = {'K=1': People([]), 'K=2': People([])}, Decoders([])
    panel = Panel(None, [Trial(None, None, 5, False)], learners, (1, 2), (0,), 'zero')
    recipe = pal_large.PALLarge(
        Plan(2, None, lambda i: None), ONE, panel, pairs, reader, lambda: 'weights',
        lambda i: PairBatch(*columns), lambda trial, i: drawn, 1, 2,
    )  # fmt: skip
    state, host = recipe.init()
    state, host, phase, _ = recipe.step(state, host, 0)
    assert (phase, reader.heard, state.models['K=1']) == ('hold', [], pal_large.LargeModel(1, (ReaderState(5, 0),)))
    assert learners['K=1'].seen[0] is learners['K=2'].seen[0]  # which was put on the device once
    state, host, phase, metrics = recipe.step(state, host, 1)
    assert (phase, metrics['training_accuracy'], state.models['K=2']) == (
        'pal',
        1.0,
        pal_large.LargeModel(2, (ReaderState(15, 0),)),
    )
    assert learners['K=2'].seen[1].chosen.shape == (1, 2, 1, 2)  # an update a pair
    assert reader.heard[0] == (3, [[2.0, 5.0], [6.0, 10.0], [4.0, 5.0]])  # the second text is in both pairs


@pytest.mark.parametrize('adapters', [0, 2], ids=['full', 'lora'])
@pytest.mark.slow
def test_a_resumed_run_is_the_unbroken_one(replies_file, tmp_path, adapters):
    config = small(replies_file, **B, **{'decoder.lora.rank': adapters, 'decoder.optimizer.lr': 1e-4})
    recipe, whole = run(config, 4)
    _, half = run(config, 2)
    checkpoints = Checkpoints(tmp_path, recipe.plan.abstract)
    checkpoints.save(2, half, {})
    checkpoints.wait()
    state, host, first = Checkpoints(tmp_path, recipe.plan.abstract).restore()
    for i in range(first, 4):
        state, host, *_ = recipe.step(state, host, i)
    jax.tree.map(np.testing.assert_array_equal, state, whole)


@pytest.mark.slow
def test_eight_devices_learn_what_one_does(replies_file):
    config = small(
        replies_file, **B, **{'decoder.optimizer.lr': 1e-4, 'decoder.row_tokens': 64, 'decoder.micro_rows': 1}
    )
    (recipe, one), (_, eight) = run(config, 3), run(config, 3, EIGHT)
    records = [recipe.evaluate(jax.device_put(jax.tree.map(np.asarray, each)), 'final').record for each in (one, eight)]
    for name, model in one.models.items():
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3),
            model.pal.params,
            jax.tree.map(np.asarray, eight.models[name].pal.params),
        )
    assert records[0]['seen_pal'] == pytest.approx(records[1]['seen_pal'], abs=0.02)


# --- the tokens of a pair's span --------------------------------------------------------------------------------------


def learner_and_draw(config, name):
    """The learner of a model by its name, and what draws its batches."""
    settings = config
    data = pal_text.read(settings, ONE, pal_text.open_reader(settings.text, ONE, settings.seed))
    learners = pal.make_learners(settings, pal_kept.of(settings, data.items, data), ONE, 1)
    trials = pal.make_trials(settings, data.items)
    return learners[name], pal_batches.make_draw(data.items, trials, settings.updates, settings.batch, data)


@pytest.mark.long
def test_a_span_judged_by_its_last_token_is_the_text_judged_by_its_last(replies_file):
    ends = []
    for span in ('', 'only_last'):
        _, state = run(small(replies_file, 'text', **B, **{'text.pool': 'last', 'text.span': span}), 2)
        ends.append(state['K=2'].params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), *ends)


@pytest.mark.parametrize('span', ['mean', 'cumulative'])
@pytest.mark.long
def test_spans_teach_too(statements_file, span):
    recipe, state = run(small(statements_file, 'text', **{'text.pool': 'last', 'text.span': span}), 6)
    assert recipe.evaluate(state, 'final').record['seen_pal'] > 0.75


def test_no_array_of_pairs_tokens_and_prototypes_exists(statements_file):
    config = small(
        statements_file, 'text', **{'text.pool': 'last', 'text.span': 'cumulative', 'prototypes': (1, 7)}, batch=16
    )
    learner, draw = learner_and_draw(config, 'K=7')
    batch = jax.tree.map(lambda x: x[0, 0], draw(0))
    state = jax.tree.map(lambda x: x[0], learner.init(jnp.zeros(1, jnp.int32)))
    program = jax.make_jaxpr(learner._one)(state, batch)
    (pairs, tokens, width), K = batch.chosen.shape, 7
    sizes = [np.prod(var.aval.shape) for var in (*program.jaxpr.invars, *every_variable(program.jaxpr))]
    assert pairs * tokens * width <= max(sizes) < pairs * tokens * width * K


def every_variable(jaxpr):
    for equation in jaxpr.eqns:
        yield from equation.outvars
        for value in equation.params.values():
            inner = getattr(value, 'jaxpr', None)
            if inner is not None:
                yield from every_variable(getattr(inner, 'jaxpr', inner))


# --- checks of psoups_pal II.9 on texts -------------------------------------------------------------------------------


@pytest.mark.parametrize('rule', ['dist', 'angle', 'dot'])
def test_sides_prototypes_and_constants_may_be_exchanged(replies_file, rule):  # II.9-11
    learner, draw = learner_and_draw(small(replies_file, 'text', **B, **{'model.rule': rule}), 'K=2')
    batch, state = jax.tree.map(lambda x: x[0, 0], draw(0)), learner.init(jnp.zeros(1, jnp.int32))
    params = jax.tree.map(lambda x: x[0], state.params)
    z = jax.random.normal(jax.random.key(0), (len(batch.users), 2))
    _, margin = learner._losses(params, z, batch, None)
    swapped = batch.replace(chosen=batch.rejected, rejected=batch.chosen)
    np.testing.assert_allclose(learner._losses(params, z, swapped, None)[1], -margin, atol=1e-6)
    turned = {**params, 'g': jax.tree.map(lambda x: x[::-1], params['g'])}
    np.testing.assert_allclose(learner._judge(turned, z[:, ::-1], batch)[1], margin, atol=1e-5)
    np.testing.assert_allclose(learner._judge(params, z + 3.0, batch)[1], margin, atol=1e-5)


@pytest.mark.slow
def test_tiny_has_no_decoder_to_train_and_judges_alike_twice(replies_file):  # II.9-14
    recipe, state = run(small(replies_file, 'text', **B), 2)
    names = {str(getattr(key, 'key', '')) for path, _ in jax.tree_util.tree_leaves_with_path(state) for key in path}
    assert not names & {'layers', 'embed', 'attn'}
    first, second = (recipe.evaluate(state, 'final').record for _ in range(2))
    assert first == second


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('variant', 'changes', 'message'),
    [
        ('text-large', {'text.span': 'mean', 'text.pool': 'last'}, 'is of frozen states'),
        ('text-large', {'text.source': ''}, 'a decoder is needed'),
        ('text-large', {'decoder.statements': 0}, r'decoder.statements=0 must be at least 1'),
        ('text-large', {'decoder.statements': 1}, 'nobody was asked about two of those drawn'),
        ('text', {'text.span': 'sum', 'text.pool': 'last'}, "text.span='sum'"),
        ('text', {'text.span': 'mean'}, "text.pool='mean' must be 'last'"),
        ('text', B, 'makes prototypes of prompts, and .* has none'),
    ],
)
def test_wrong_values_are_refused(statements_file, variant, changes, message):
    with pytest.raises(ValueError, match=message):
        run(small(statements_file, variant, **changes), 1)
