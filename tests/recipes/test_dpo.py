"""DPO from its config: it comes to prefer what it is told to, whatever the loss, the mesh and the packing."""

from __future__ import annotations

import contextlib
import functools
import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pal_jax.data.packing import Example, shared_prompt
from pal_jax.data.rows import Rows
from pal_jax.recipes import dpo
from pal_jax.run import devices
from pal_jax.run.recipe import Context, Plan
from tests import configs

ONE = Context(devices.make_mesh(devices=jax.devices()[:1]), lambda name: contextlib.nullcontext())
EIGHT = Context(devices.make_mesh(data=2, fsdp=4), lambda name: contextlib.nullcontext())


get_config = functools.partial(configs.load, 'dpo')


def pairs_file(path, rows=12):
    path.write_text(''.join(
        json.dumps({'prompt': [{'role': 'user', 'content': f'{i}?' * (1 + i % 3)}],
                    'chosen': [{'role': 'assistant', 'content': 'yes ' * (1 + i % 2)}],
                    'rejected': [{'role': 'assistant', 'content': 'no'}]}) + '\n'
        for i in range(rows)
    ))  # fmt: skip
    return str(path)


def run(context, steps=3, **changes):
    recipe = dpo.make(get_config(**changes), context)
    state, host = recipe.init()
    rows = []
    for i in range(steps):
        state, host, _, metrics = recipe.step(state, host, i)
        rows.append(metrics)
    return rows, recipe, state


@pytest.mark.slow
@pytest.mark.parametrize('changes', [
    {'dpo.loss': 'sigmoid'}, {'dpo.loss': 'hinge'}, {'dpo.loss': 'ipo'}, {'dpo.reference_free': True},
    {'policy.lora.rank': 4, 'optimizer.lr': 3e-2},
], ids=lambda changes: next(iter(map(str, changes.values()))))  # fmt: skip
def test_it_comes_to_prefer_what_was_chosen(tmp_path, changes):
    train = pairs_file(tmp_path / 'a.jsonl')
    settings = {
        'data.train': train,
        'data.test': configs.other_prompts(train),
        'optimizer.lr': 1e-2,
        'total_steps': 12,
    } | changes
    rows, recipe, state = run(ONE, steps=12, **settings)
    if not settings.get('dpo.reference_free'):
        first = {'sigmoid': np.log(2.0), 'hinge': 1.0, 'ipo': 25.0}[settings.get('dpo.loss', 'sigmoid')]
        assert rows[0]['loss'] == pytest.approx(first, rel=1e-3)  # the policy is still its reference
        assert rows[0]['margin'] == pytest.approx(0.0, abs=1e-4)
    before, after = (recipe.evaluate(each, 'x').record for each in (recipe.init()[0], state))
    share = 'likelier' if settings.get('dpo.reference_free') else 'accuracy'
    assert after['rows'] == 12 and after[share] > 0.7
    assert after['loss'] < before['loss'] and after['margin'] > before['margin'] + 0.05


@pytest.mark.slow
def test_the_step_is_that_of_the_loss_itself(tmp_path):
    """The gradient by way of log-probs against one through a loss of whole completions, written out."""
    config = get_config(**{'data.train': pairs_file(tmp_path / 'a.jsonl'), 'data.micro_rows': 1})
    recipe = dpo.make(config, ONE)
    learner = dpo.make_pair_learner(config, recipe.plan.trained.model, ONE, 6)
    state, _ = recipe.init()
    moved = jax.tree.map(
        lambda x: x + 0.02 * jnp.sin(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), state.model.params
    )
    state = state.replace(model=state.model.replace(params=moved))
    tokenizer, cfg = recipe.plan.trained.tokenizer, recipe.plan.trained.model
    rows = dpo.data.make_rows(config, tokenizer, dpo.to_group, 'chosen', n=2)
    batch = rows.batch(0, ONE.mesh)

    def sequence(params):
        from pal_jax.models import decoder

        hidden = decoder.forward(params, cfg, batch.tokens, batch.positions, batch.segments, batch.prefix)
        logits = hidden @ decoder.unembed_weight(params, cfg).T
        r = jnp.arange(batch.tokens.shape[0])[:, None, None]
        chosen = jax.nn.log_softmax(logits)[r, batch.states, batch.actions]
        return jnp.where(batch.acts, chosen, 0.0).sum(-1).reshape(-1, 2)

    def loss(params):
        h = (sequence(params) - sequence(state.reference)) @ jnp.array([1.0, -1.0])
        pairs = batch.acts.any(-1).reshape(-1, 2).all(-1)
        return jnp.where(pairs, -jax.nn.log_sigmoid(0.1 * h), 0.0).sum() / pairs.sum()

    expected, gradient = jax.jit(jax.value_and_grad(loss))(state.whole)
    norm = jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient)))
    _, metrics = learner.prefer(state, batch)
    assert metrics['loss'] == pytest.approx(float(expected), rel=1e-5)
    assert metrics['grad_norm'] == pytest.approx(float(norm), rel=1e-4)


def test_a_recipe_of_fake_parts_means_its_test_batches_by_their_pairs():
    groups = [shared_prompt([Example([1, 2], [3 + side] * (1 + k)) for side in range(2)]) for k in range(3)]
    rows = Rows(groups, groups, n=2, actions=8, left_out=0, batch_size=2, test_prompts=['a', 'b', 'a'])
    state: Any = None
    learner: Any = SimpleNamespace(
        compare=lambda state, batch: (None, {'loss': float(batch.acts.sum())}),
        actor=SimpleNamespace(weights=lambda state: {'weights': state}),
    )
    recipe: Any = dpo.DPORecipe(
        Plan(1, None, lambda i: None), ONE, learner, rows, lambda weights: [weights], lambda shardings: {}
    )
    record, dialogues, *_ = recipe.evaluate(state, 'final')
    assert dialogues == [{'weights': None}]
    assert record == {'rows': 3, 'prompts': 2, 'moved': 0, 'loss': (2 * 6 + 1 * 6) / 3}


def test_a_batch_without_a_whole_pair_teaches_nothing(tmp_path):
    config = get_config(**{'data.train': pairs_file(tmp_path / 'a.jsonl')})
    recipe = dpo.make(config, ONE)
    learner, (state, _) = (
        dpo.make_pair_learner(config, recipe.plan.trained.model, ONE, 6),
        recipe.init(),
    )
    rows = dpo.data.make_rows(config, recipe.plan.trained.tokenizer, dpo.to_group, 'chosen', n=2)
    batch = rows.batch(0, ONE.mesh)
    chosen = (jnp.arange(batch.acts.shape[1]) % 2 == 0)[None, :, None]  # the other side of each pair is missing
    same, metrics = learner.prefer(state, batch.replace(acts=batch.acts & chosen))
    jax.tree.map(np.testing.assert_array_equal, same, state)
    assert metrics == {}


@pytest.mark.slow
def test_a_mesh_and_packing_change_no_loss(tmp_path):
    changes = {'data.train': pairs_file(tmp_path / 'a.jsonl', 24), 'data.batch_size': 16, 'data.micro_rows': 1}
    alone, *_ = run(ONE, **changes, **{'data.row_tokens': 0})
    for context, row_tokens in ((ONE, 256), (EIGHT, 256)):
        again, *_ = run(context, **changes, **{'data.row_tokens': row_tokens})
        for a, b in zip(again, alone, strict=True):
            np.testing.assert_allclose([a[k] for k in b], list(b.values()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('variant', ['', 'paper'])
def test_every_variant_is_complete(variant):
    dpo.data.check(get_config(variant))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'dpo.loss': 'simpo'}, "dpo.loss='simpo'; use one of sigmoid, hinge, ipo"),
        ({'dpo.beta': 0.0}, 'dpo.beta=0.0 must be above 0'),
        ({'dpo.label_smoothing': 0.1, 'dpo.loss': 'ipo'}, 'dpo.label_smoothing=0.1 must be'),
        ({'data.train': 'nowhere.jsonl'}, 'nowhere.jsonl is no file'),
    ],
)
def test_wrong_values_are_told_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        dpo.make(get_config(**changes), ONE)
    assert '\n' not in str(error.value)
