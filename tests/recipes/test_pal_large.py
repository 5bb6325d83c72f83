"""PAL on texts: Tiny and Large, statements and replies to prompts; one person's reward of them, and PPO on it."""

from __future__ import annotations

import contextlib
import functools
import json
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.data.comparisons import PairBatch
from pal_jax.data.texts import Text, TextPairs
from pal_jax.evals.panel import Trial
from pal_jax.evals.population import Panel
from pal_jax.learners.reader import Reading
from pal_jax.models import ideal_point
from pal_jax.parts.recipe import Context, Plan
from pal_jax.recipes.pal import batches as pal_batches
from pal_jax.recipes.pal import export as pal_export
from pal_jax.recipes.pal import kept as pal_kept
from pal_jax.recipes.pal import large as pal_large
from pal_jax.recipes.pal import person as pal_person
from pal_jax.recipes.pal import recipe as pal
from pal_jax.recipes.pal import reward as pal_reward
from pal_jax.recipes.pal import text as pal_text
from pal_jax.recipes.psoups import recipe as psoups
from pal_jax.runtime import checkpoint, devices
from pal_jax.runtime.checkpoint import Checkpoints
from tests import configs

ONE = Context(devices.make_mesh(devices=jax.devices()[:1]), lambda name: contextlib.nullcontext())
EIGHT = Context(devices.make_mesh(data=2, fsdp=4), lambda name: contextlib.nullcontext())

get_config = functools.partial(configs.load, 'pal')


@pytest.fixture(scope='module')
def asked(tmp_path_factory):
    """Whether a word has more a or more z in it: half of twenty people say yes to a, half to z."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp('asked') / 'pairs.jsonl'
    words = [''.join(rng.choice(list('az'[i % 2] * 6 + 'mn'), 12)) for i in range(40)]
    with path.open('w') as file:
        for person in range(20):
            for i, word in enumerate(words):
                answers = ('yes', 'no') if i % 2 == person % 2 else ('no', 'yes')
                record = dict(zip(('chosen', 'rejected'), answers, strict=True))
                file.write(
                    json.dumps({'user': f'p{person}', 'group': str(person % 2), 'prompt': word, **record}) + '\n'
                )
    return path


@pytest.fixture(scope='module')
def stated(tmp_path_factory):
    """Statements full of a and full of z, and two kinds of people who agree with the ones or the others."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp('stated') / 'pairs.jsonl'
    words = [[''.join(rng.choice(list(letter * 6 + 'mn'), 12)) for _ in range(20)] for letter in 'az']
    with path.open('w') as file:
        for person in range(20):
            for _ in range(60):
                sides = [words[kind][rng.integers(20)] for kind in (person % 2, 1 - person % 2)]
                record = {'user': f'p{person}', 'chosen': sides[0], 'rejected': sides[1], 'group': str(person % 2)}
                file.write(json.dumps(record) + '\n')
    return path


def small(path, variant='text-large', **changes):
    few = {
        'data': str(path), 'text.source': 'random:tiny', 'text.layers': 0, 'text.dtype': 'float32', 'text.width': 6,
        'text.pool': 'mean', 'text.folder': str(path.parent / 'states'), 'split.seeds': 1, 'prototypes': (1, 2),
        'split.control': False, 'baselines.own': False, 'baselines.embedding': 0, 'new.counts': (0, 5),
        'new.steps': 50, 'batch': 64, 'updates': 20, 'total_steps': 6, 'checkpoint.every': 1,
    }  # fmt: skip
    if variant == 'text-large':
        few |= {'hold.steps': 0, 'decoder.statements': 12, 'decoder.lora.rank': 2, 'decoder.optimizer.lr': 3e-4}
    return get_config(variant, **{**few, **changes})


def run(config, steps, context=ONE, recipe=None):
    recipe = recipe or (pal_large if config.recipe == 'pal_large' else pal).make(configs.parsed(config), context)
    state, host = recipe.init()
    for i in range(steps):
        state, host, *_ = recipe.step(state, host, i)
    return recipe, state


B = {'model.variant': 'B', 'model.projector': 'mlp1-gelu', 'model.dtype': 'float32'}


def taste(row):
    """What a prototype would rather hear said to words full of a; to those full of z it is the other."""
    opposite = {'yes': 'no', 'no': 'yes'}
    said = re.findall(r'([azmn]{12}) / (yes|no)', row[3])
    return {reply if word.count('a') > 3 else opposite[reply] for word, reply in said}


@pytest.mark.parametrize('variant', ['text', 'text-large'])
@pytest.mark.parametrize(('kind', 'changes'), [('asked', B), ('stated', {})], ids=['B', 'A'])
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
    if kind == 'asked':
        assert sorted(map(sorted, map(taste, table[1:]))) == [['no'], ['yes']]  # to words full of a
    assert len(table) == 3 and (' / ' in table[1][3]) == (kind == 'asked')


@pytest.mark.slow
def test_large_at_rate_0_is_tiny(stated):
    config = small(stated, **{'decoder.optimizer.lr': 0.0})
    _, state = run(config, 2)
    settings = configs.parsed(config)
    decoder = pal_text.open_decoder(settings.text, ONE, settings.seed)
    data = pal_text.read(settings, ONE, decoder)
    reader = pal_large.make_reader(settings, decoder, data.frame, ONE)
    for model in state.models.values():
        found = reader.read(model.readings[0], state.frozen, data.pairs.texts)
        np.testing.assert_allclose(found, data.items.chosen.table, atol=2e-4)


@pytest.mark.slow
def test_a_step_of_large_moves_prototypes_people_and_decoders_and_no_base(asked):
    recipe = pal_large.make(configs.parsed(small(asked, **B)), ONE)
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
def test_decoders_wait_while_prototypes_are_found(asked):
    config = small(asked, **B, **{'hold.steps': 2, 'hold.updates': 20, 'total_steps': 1})
    frozen = small(asked, 'text', **B, **{'baselines.groups': False})
    recipe, tiny = pal_large.make(configs.parsed(config), ONE), pal.make(configs.parsed(frozen), ONE)
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
        return 'frozen', Reading(seed, np.int32(0))

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
    drawn = pal_batches.Drawn(np.arange(3), np.zeros(2, int), np.ones(2, np.float32), *sides, None)
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
    assert (phase, reader.heard, state.models['K=1']) == ('hold', [], pal_large.Model(1, (Reading(5, 0),)))
    assert learners['K=1'].seen[0] is learners['K=2'].seen[0]  # which was put on the device once
    state, host, phase, metrics = recipe.step(state, host, 1)
    assert (phase, metrics['accuracy'], state.models['K=2']) == ('pal', 1.0, pal_large.Model(2, (Reading(15, 0),)))
    assert learners['K=2'].seen[1].chosen.shape == (1, 2, 1, 2)  # an update a pair
    assert reader.heard[0] == (3, [[2.0, 5.0], [6.0, 10.0], [4.0, 5.0]])  # the second text is in both pairs


@pytest.mark.parametrize('adapters', [0, 2], ids=['full', 'lora'])
@pytest.mark.slow
def test_a_resumed_run_is_the_unbroken_one(asked, tmp_path, adapters):
    config = small(asked, **B, **{'decoder.lora.rank': adapters, 'decoder.optimizer.lr': 1e-4})
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
def test_eight_devices_learn_what_one_does(asked):
    config = small(asked, **B, **{'decoder.optimizer.lr': 1e-4, 'decoder.row_tokens': 64, 'decoder.micro_rows': 1})
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
    settings = configs.parsed(config)
    data = pal_text.read(settings, ONE, pal_text.open_decoder(settings.text, ONE, settings.seed))
    learners = pal.make_learners(settings, pal_kept.of(settings, data.items, data), ONE, 1)
    return learners[name], pal_batches.make_draw(settings, data.items, pal.make_trials(settings, data.items), data)


@pytest.mark.slow
def test_a_span_judged_by_its_last_token_is_the_text_judged_by_its_last(asked):
    ends = []
    for span in ('', 'only_last'):
        _, state = run(small(asked, 'text', **B, **{'text.pool': 'last', 'text.span': span}), 2)
        ends.append(state['K=2'].params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), *ends)


@pytest.mark.parametrize('span', ['mean', 'cumulative'])
@pytest.mark.slow
def test_spans_teach_too(stated, span):
    recipe, state = run(small(stated, 'text', **{'text.pool': 'last', 'text.span': span}), 6)
    assert recipe.evaluate(state, 'final').record['seen_pal'] > 0.75


def test_no_array_of_pairs_tokens_and_prototypes_exists(stated):
    config = small(stated, 'text', **{'text.pool': 'last', 'text.span': 'cumulative', 'prototypes': (1, 7)}, batch=16)
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
def test_sides_prototypes_and_constants_may_be_exchanged(asked, rule):  # II.9-11
    learner, draw = learner_and_draw(small(asked, 'text', **B, **{'model.rule': rule}), 'K=2')
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
def test_tiny_has_no_decoder_to_train_and_judges_alike_twice(asked):  # II.9-14
    recipe, state = run(small(asked, 'text', **B), 2)
    names = {str(getattr(key, 'key', '')) for path, _ in jax.tree_util.tree_leaves_with_path(state) for key in path}
    assert not names & {'layers', 'embed', 'attn'}
    first, second = (recipe.evaluate(state, 'final').record for _ in range(2))
    assert first == second


def finished(config, workdir):
    """A run's folder as the training loop leaves it."""
    recipe, state = run(config, config.total_steps)
    checkpoint.write_config(workdir, config.to_dict())
    recipe.plan.keep(workdir / checkpoint.KEPT)
    checkpoints = Checkpoints(workdir, recipe.plan.abstract)
    checkpoints.save(config.total_steps, state, {})
    checkpoints.wait()
    record = {'step': config.total_steps, 'stage': 'final', **recipe.evaluate(state, 'final').record}
    (workdir / 'evals.jsonl').write_text(json.dumps(record) + '\n')
    return recipe, state, record


@pytest.fixture(scope='module', params=['text', 'text-large'])
def folder(request, asked, tmp_path_factory):
    workdir = tmp_path_factory.mktemp(request.param)
    return workdir, *finished(small(asked, request.param, **B, total_steps=4), workdir)


@pytest.mark.slow
def test_a_persons_reward_of_texts_says_what_the_pair_rule_says(folder, asked):  # II.9-12
    workdir, *_, record = folder
    assert record['chosen_prototypes'] == [2]
    run = pal_reward.open_pal(str(workdir))
    pairs = pal_text.read_pairs(run.settings, run.reading.decoder.tokenizer)
    items = pairs.in_states(run.reading.read(pairs.texts))
    margins = {}
    lines = [json.loads(line) for line in asked.read_text().splitlines()]
    trained = np.flatnonzero(run.state.users.updates)
    checked = 0
    for person in trained:
        name = pairs.names[person]
        model = pal_reward.load_pal_reward_model(str(workdir), user=name) if person < 4 else None
        w = ideal_point.weights(run.pal, run.state.users.z)[person]
        reward = model.reward if model else pal_reward.reward_of_replies(run, w)
        mine = np.flatnonzero(pairs.users == person)
        said = {
            side: reward([lines[i]['prompt'] for i in mine], [lines[i][side] for i in mine])
            for side in ('chosen', 'rejected')
        }
        u = ideal_point.user_point(run.state.params, run.pal, jnp.tile(w, (len(mine), 1)), items.prompt[mine])
        rule = [ideal_point.item_reward(run.state.params, run.pal, u, getattr(items, side)[mine]) for side in said]
        margins[name] = said['chosen'] - said['rejected']
        np.testing.assert_array_equal(np.sign(margins[name]), np.sign(rule[0] - rule[1]))
        checked += len(mine)
    assert checked >= 600
    one = pal_reward.load_pal_reward_model(str(workdir), mix=[0.0, 1.0])
    single = ideal_point.user_point(run.state.params, run.pal, jnp.eye(2)[1:], items.prompt[:1])
    expected = ideal_point.item_reward(run.state.params, run.pal, single, items.chosen[:1])
    np.testing.assert_allclose(one.reward([lines[0]['prompt']], [lines[0]['chosen']]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_mixture_is_kept_as_a_line_and_given_back(folder, tmp_path):
    workdir, *_ = folder
    run = pal_reward.open_pal(str(workdir))
    name = next(iter(run.people))
    model = pal_reward.load_pal_reward_model(str(workdir), user=name)
    pal_person.save(tmp_path / 'p.json', {'mixture': model.mixture, 'user': name})
    again = pal_reward.load_pal_reward_model(str(workdir), mix=pal_person.read_person(tmp_path / 'p.json').mixture)
    np.testing.assert_allclose(again.reward(['azaz'], ['yes']), model.reward(['azaz'], ['yes']), rtol=1e-5)
    with pytest.raises(ValueError, match='holds no mixture'):
        pal_person.read_person(workdir / 'config.json')
    with pytest.raises(ValueError, match="user 'nobody' is not among"):
        pal_reward.load_pal_reward_model(str(workdir), user='nobody')
    with pytest.raises(ValueError, match='2 prompts and 1 replies'):
        model.reward(['a', 'b'], ['yes'])


@pytest.mark.slow
def test_ppo_is_paid_by_one_persons_reward(folder, tmp_path):
    workdir, *_ = folder
    changes = {'stage': 'rlhf', 'rl.reward': f'pal:{workdir}', 'total_steps': 1, 'export': False}
    stage, folder_ = psoups.stages(configs.settings('psoups', **changes), tmp_path)[0]
    recipe = psoups.make(configs.parsed(stage), ONE._replace(workdir=folder_))
    state, host = recipe.init()
    _, _, _, metrics = recipe.step(state, host, 0)
    assert np.isfinite(metrics['reward']) and np.isfinite(metrics['policy_loss'])
    score = pal_person.make_score(f'pal:{workdir}', '')
    model = pal_reward.load_pal_reward_model(str(workdir))
    found = score([['zz', 'aa'], ['nn', 'mm']], [['yes', 'no', 'well'], ['no', 'x', 'y']])
    alone = [np.mean([model.reward([q], [reply])[0] for q in ('zz', 'aa')]) for reply in ('yes', 'no', 'well')]
    np.testing.assert_allclose(found[0], alone, rtol=1e-4, atol=1e-5)
    assert found.shape == (2, 3)
    with pytest.raises(ValueError, match='is unknown; use pal:<workdir>'):
        pal_person.make_score('hf:x', '')


@pytest.mark.parametrize('variant', ['text', 'text-large'])
@pytest.mark.long
def test_transformers_scores_a_persons_classifier_as_we_do(stated, tmp_path, variant):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    finished(small(stated, variant, **{'text.pool': 'last', 'total_steps': 4, 'prototypes': (1, 2)}), tmp_path)
    run = pal_reward.open_pal(str(tmp_path))
    name = next(iter(run.people))
    pal_export.save_classifier(str(tmp_path), tmp_path / 'classifier', user=name)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / 'classifier').eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / 'classifier')
    words = ['azam', 'zzzz', 'aan', 'mnmnmnaz']
    with torch.no_grad():
        theirs = model(**tokenizer(words, padding=True, return_tensors='pt')).logits[:, 0].numpy()
    ours = pal_reward.load_pal_reward_model(str(tmp_path), user=name).reward([''] * 4, words)
    np.testing.assert_allclose(np.diff(theirs), np.diff(ours), rtol=1e-3, atol=1e-4)
    assert np.abs(np.diff(ours)).max() > 0.01


def in_transformers(path):
    """Scores by a folder's model; replies to a prompt end as the run's do."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    model = transformers.AutoModel.from_pretrained(path, trust_remote_code=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=True)

    def score(texts, mixture=None, prompts=None):
        end = tokenizer.eos_token if prompts else ''
        inputs = dict(tokenizer([text + end for text in texts], padding=True, return_tensors='pt'))
        if prompts:
            asked = tokenizer(prompts, padding=True, return_tensors='pt')
            inputs |= {'prompt_ids': asked['input_ids'], 'prompt_mask': asked['attention_mask']}
        with torch.no_grad():
            return model(**inputs, mixture=mixture if mixture is None else torch.tensor(mixture)).numpy()

    return score


@pytest.mark.parametrize(
    'changes',
    [
        {'model.rule': 'dist', 'model.projector': 'mlp1-gelu', 'text.pool': 'mean'},
        {'model.rule': 'angle', 'model.scaled': True, 'model.projector': 'mlp2-relu-residual', 'text.pool': 'last'},
        {'model.rule': 'normalized_dist', 'model.point': '|f(P)|w', 'text.pool': 'last', 'text.width': 6},
    ],
    ids=lambda changes: changes['model.rule'],
)
@pytest.mark.long
def test_transformers_scores_everybody_as_we_do(stated, tmp_path, changes):
    changes = {'model.dtype': 'float32', 'total_steps': 4, 'prototypes': (1, 2), **changes}
    finished(small(stated, 'text', **changes), tmp_path)
    pal_export.save_model(str(tmp_path), tmp_path / 'hf')
    score, words = in_transformers(tmp_path / 'hf'), ['azam', 'zzzz', 'aan', 'mnmnmnaz']
    K = pal_reward.open_pal(str(tmp_path)).pal.prototypes
    for mix in (None, [[1.0], [0.25, 0.75]][K - 1]):
        ours = pal_reward.load_pal_reward_model(str(tmp_path), mix=mix).reward([''] * 4, words)
        np.testing.assert_allclose(score(words, mix), ours, rtol=1e-3, atol=1e-4)
        assert np.ptp(ours) > 1e-3


@pytest.mark.long
def test_transformers_mixes_functions_of_the_prompt_as_we_do(folder, tmp_path):
    workdir, *_ = folder
    pal_export.save_model(str(workdir), tmp_path / 'hf')
    score, asked, words = in_transformers(tmp_path / 'hf'), ['azaz', 'zz', 'nm'], ['yes', 'no', 'mmaz']
    ours = pal_reward.load_pal_reward_model(str(workdir), mix=[0.9, 0.1]).reward(asked, words)
    np.testing.assert_allclose(score(words, [0.9, 0.1], asked), ours, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match='give prompt_ids and prompt_mask'):
        score(words)


@pytest.mark.slow
def test_rewards_that_are_no_linear_head_are_not_exported(folder, tmp_path):
    with pytest.raises(ValueError, match='variant=B.*only rule dot of variant A'):
        pal_export.save_classifier(str(folder[0]), tmp_path / 'classifier')


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
def test_wrong_values_are_refused(stated, variant, changes, message):
    config = small(stated, variant, **changes)
    with pytest.raises(ValueError, match=message):
        run(config, 1)
