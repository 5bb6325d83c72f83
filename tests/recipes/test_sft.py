"""SFT from its config: what is learnt, on any mesh, packed or not, and what is refused."""

from __future__ import annotations

import contextlib
import functools
import json
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from pal_jax.data.packing import Example, shared_prompt
from pal_jax.data.rows import Rows, hold_out
from pal_jax.recipes import sft
from pal_jax.run import devices
from pal_jax.run.recipe import Context, Plan
from tests import configs

ONE = Context(devices.make_mesh(devices=jax.devices()[:1]), lambda name: contextlib.nullcontext())
EIGHT = Context(devices.make_mesh(data=2, fsdp=4), lambda name: contextlib.nullcontext())


get_config = functools.partial(configs.load, 'sft')


def chats_file(path, rows=10):
    words = ('a cat', 'two dogs', 'one bird')
    path.write_text(''.join(
        json.dumps({'messages': [{'role': 'user', 'content': f'{i}?'},
                                 {'role': 'assistant', 'content': words[i % 3] * (1 + i % 2)}]}) + '\n'
        for i in range(rows)
    ))  # fmt: skip
    return str(path)


def losses(context, steps=3, **changes):
    recipe = sft.make(get_config(**changes), context)
    state, host = recipe.init()
    out = []
    for i in range(steps):
        state, host, phase, metrics = recipe.step(state, host, i)
        out += [metrics['loss'], metrics['grad_norm']]
    assert phase == 'sft'
    return out, recipe, state


@pytest.mark.slow
def test_it_learns_what_it_is_shown_and_says_how_well(tmp_path):
    train = chats_file(tmp_path / 'a.jsonl')
    changes = {'data.train': train, 'data.test': configs.other_prompts(train), 'optimizer.lr': 1e-2, 'total_steps': 12}
    _, recipe, state = losses(ONE, steps=12, **changes)
    start, _ = recipe.init()
    before, after = (recipe.evaluate(each, 'x').record for each in (start, state))
    assert before['rows'] == after['rows'] == 10
    assert before['loss'] == pytest.approx(np.log(264), abs=0.5)  # a random model of 264 tokens
    assert after['loss'] < before['loss'] - 1.0
    assert after['perplexity'] == pytest.approx(np.exp(after['loss']))
    assert state.reference == {}  # no copy is kept


@pytest.mark.slow
def test_a_report_shows_what_the_policy_answers_before_and_after(tmp_path):
    train = chats_file(tmp_path / 'a.jsonl')
    changes = {'data.train': train, 'data.test': configs.other_prompts(train), 'optimizer.lr': 1e-2, 'total_steps': 24}
    _, recipe, state = losses(ONE, steps=24, **changes, **{'samples.count': 2, 'samples.max_tokens': 8})
    start, _ = recipe.init()
    before, after = (recipe.evaluate(model, 'x').dialogues for model in (start, state))
    assert (
        [record['person'] for record in before]
        == [record['person'] for record in after]
        == ['test row 1', 'test row 2']
    )
    assert before[0]['facts'] == after[0]['facts']
    assert before[0]['turns'][0] == after[0]['turns'][0]
    assert before[0]['turns'][1] != after[0]['turns'][1]
    # The learnt answer begins with a letter with which replies of the rows begin.
    assert after[0]['turns'][1]['content'].lstrip()[:1] in tuple('ato')


@pytest.mark.slow
def test_a_mesh_and_packing_change_no_loss(tmp_path):
    changes = {'data.train': chats_file(tmp_path / 'a.jsonl', 24), 'data.batch_size': 16, 'data.micro_rows': 1}
    plain, *_ = losses(ONE, steps=1, **changes, **{'data.row_tokens': 0})
    changes['max_z_coef'] = 0.01
    alone, *_ = losses(ONE, **changes, **{'data.row_tokens': 0})
    assert alone[0] > plain[0] + 1e-3
    for context, row_tokens in ((ONE, 256), (EIGHT, 256)):
        again, *_ = losses(context, **changes, **{'data.row_tokens': row_tokens})
        np.testing.assert_allclose(again, alone, rtol=1e-4)


def test_passes_over_the_rows_set_the_number_of_steps(tmp_path):
    train = chats_file(tmp_path / 'a.jsonl', 20)  # 4 are kept for testing
    config = {'data.train': train, 'total_steps': 0, 'data.epochs': 2.0, 'data.batch_size': 5}
    assert sft.make(get_config(**config), ONE).plan.total_steps == 7


@pytest.mark.parametrize('variant', ['', 'paper'])
def test_every_variant_is_complete(variant):
    sft.data.check(get_config(variant))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'data.batch_size': 0}, 'data.batch_size=0 must be at least 1'),
        ({'total_steps': 0, 'data.epochs': 0.0}, 'data.epochs=0.0 must be above 0, or give total_steps'),
        ({'data.train': 'nowhere.jsonl'}, 'nowhere.jsonl is no file'),
        ({'data.max_length': 5}, 'are of at most data.max_length=5 tokens'),
        ({'oracle.people': 1}, 'oracle.people=1 must be at least 2'),
    ],
)
def test_wrong_values_are_told_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        sft.make(get_config(**changes), ONE)
    assert '\n' not in str(error.value)


class Counting:
    """An actor that counts what it is shown."""

    mesh, param_shardings = ONE.mesh, {}

    def init(self, params):
        return SimpleNamespace(shown=0, skipped=0)

    def imitate(self, state, batch):
        return SimpleNamespace(shown=state.shown + int(batch.acts.sum()), skipped=0), {'loss': 1.0}


def test_a_recipe_of_fake_parts_makes_a_step_without_a_model():
    groups = [shared_prompt([Example([1, 2], [3] * (1 + k % 2))]) for k in range(6)]
    rows = Rows(groups, groups[:2], n=1, actions=8, left_out=2, batch_size=4)
    actor: Any = Counting()
    recipe: Any = sft.SFT(Plan(3, None, lambda i: None), ONE, actor, rows, lambda weights: [], lambda shardings: {})
    state, host = recipe.init()
    state, _, phase, metrics = recipe.step(state, host, 0)
    tokens = sum(len(group.branches[0].tokens) for group in rows.draw(0))
    assert (phase, state.shown) == ('sft', tokens)
    assert metrics == {'loss': 1.0, 'tokens': float(tokens), 'left_out': 2.0}


@pytest.mark.parametrize('row_tokens', [0, 256])
def test_the_interval_of_the_loss_is_over_prompts(row_tokens):
    groups = [shared_prompt([Example([1, 2], [3] * (2 + k))]) for k in range(5)]
    prompts = ['a', 'a', 'b', 'c', 'c']
    rows = Rows([], groups, n=1, actions=8, left_out=0, batch_size=2, row_tokens=row_tokens, test_prompts=prompts)
    # A token of a row with l tokens costs l nats.
    actor: Any = SimpleNamespace(
        logprobs=lambda state, batch: -batch.acts.sum(-1, keepdims=True) * np.ones(batch.acts.shape),
        weights=lambda state: {},
    )
    recipe: Any = sft.SFT(Plan(1, None, lambda i: None), ONE, actor, rows, lambda weights: [], lambda shardings: {})
    record = recipe.evaluate(SimpleNamespace(whole={}), 'final')[0]
    sums, tokens = np.array([4 + 9, 16, 25 + 36]), np.array([2 + 3, 4, 5 + 6])  # by prompt
    loss = sums.sum() / tokens.sum()
    error = np.sqrt(3 / 2 * np.sum((sums - loss * tokens) ** 2)) / tokens.sum()
    assert record['loss'] == pytest.approx(loss)
    assert record['loss_se'] == pytest.approx(error)
    assert record['loss_interval'] == pytest.approx([loss - 4.302653 * error, loss + 4.302653 * error])
    assert (record['rows'], record['prompts']) == (5, 3)


def test_rows_are_drawn_by_the_number_of_the_step_each_once_a_pass():
    numbers: Any = list(range(10))
    rows = Rows(train=numbers, test=[], n=1, actions=1, left_out=0, batch_size=4, seed=3)
    drawn = [row for i in range(5) for row in rows.draw(i)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    assert rows.draw(3) == drawn[12:16]


def test_who_is_tested_on_has_said_nothing_to_learn_from():
    people: Any = [['a1', 'a2', 'a3'], ['b1', 'b2', 'b3'], ['c1', 'c2', 'c3'], ['d1', 'd2', 'd3'], ['e1', 'e2', 'e3']]
    train, test = hold_out(people, most=64)  # a fifth
    assert test == ['e1', 'e2', 'e3'] and train[-1] == 'd3' and len(train) == 12
    assert hold_out(people, most=2) == (train, test)
    rows: Any = [[number] for number in range(10)]
    assert hold_out(rows, most=64)[1] == [8, 9]
