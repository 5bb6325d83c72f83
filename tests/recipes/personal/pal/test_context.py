"""What PAL's in-context baseline tells of a person, and the reward it learns."""

from __future__ import annotations

import contextlib
import functools

import jax
import numpy as np
import pytest

from pal_jax.data.comparisons import rank_within
from pal_jax.data.texts import Text, TextPairs
from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.models import states
from pal_jax.recipes.personal import logit
from pal_jax.recipes.personal.pal import context as pal_context
from pal_jax.recipes.personal.pal import recipe as pal
from pal_jax.recipes.personal.pal import text as pal_text
from pal_jax.recipes.personal.panel import Trial
from pal_jax.run import devices
from pal_jax.run.recipe import Context
from tests import configs

CONTEXT = Context(devices.make_mesh(devices=jax.devices()[:1]), lambda _: contextlib.nullcontext())
SMALL = {'text.source': 'random:tiny', 'text.layers': 0, 'text.dtype': 'float32', 'split.seeds': 2}
SETTINGS = functools.partial(configs.load, 'pal', 'text', **SMALL, **{'split.control': False})
WORDS = tuple(f'statement {i}' for i in range(40))


@pytest.fixture(scope='module')
def pairs() -> TextPairs:
    """Of 40 statements, 20 people have chosen between 30 pairs each."""
    rng = np.random.default_rng(0)
    chosen, rejected = np.stack([rng.permutation(40)[:2] for _ in range(600)]).T
    texts = tuple(Text(tuple(byte_tokenizer().encode(words))) for words in WORDS)
    names = tuple(f'p{i}' for i in range(20))
    return TextPairs(np.repeat(np.arange(20), 30), chosen, rejected, None, texts, WORDS, names, np.full(20, -1))


@pytest.fixture(scope='module')
def trial(pairs) -> Trial:
    return pal.make_trials(SETTINGS(), pairs.in_states(np.zeros((40, 2), np.float32)))[0]


def statements(pairs: TextPairs, numbers) -> set[int]:
    return {int(side[k]) for k in numbers for side in (pairs.chosen, pairs.rejected)}


def test_seen_people_are_told_by_pairs_of_their_own_that_nothing_is_learnt_or_tested_from(pairs, trial):
    found = pal_context.seen_people(pairs, trial, 3)
    told = 0
    for name, (numbers, contexts) in found.items():
        assert np.array_equal(numbers, getattr(trial.split, name))
        for pair, context in zip(numbers, contexts, strict=True):
            assert len(context) <= 3
            assert set(context) <= set(trial.split.train)
            assert all(pairs.users[k] == pairs.users[pair] for k in context)
            assert not statements(pairs, context) & statements(pairs, [pair])
            told += bool(context)
    assert told > sum(len(each.pairs) for each in found.values()) / 2
    own = {(pairs.users[pair], context) for pair, context in zip(*found['train'], strict=True)}
    assert len(own) > len(np.unique(pairs.users[trial.split.train]))  # more than one context a person


def test_new_people_are_told_by_what_is_known_of_them(pairs, trial):
    fit = trial.split.fit
    rank = rank_within(pairs.users[fit], np.random.default_rng(0).permutation(len(fit)))
    none, two, four = (pal_context.new_people(trial, rank, known).context for known in (0, 2, 4))
    assert set(none) == {()}
    assert max(map(len, four)) == 4
    for pair, fewer, more in zip(trial.split.new_test, two, four, strict=True):
        assert len(fewer) <= 2 and len(more) <= 4 and set(fewer) <= set(more) <= set(fit)
        assert {pairs.users[k] for k in more} == {pairs.users[pair]}


def test_choices_are_told_in_words_before_the_pair(pairs):
    decoder = pal_text.open_reader(SETTINGS().text, CONTEXT, 0)
    start = pal_context.tell(decoder, pairs, (0, 1))
    words = decoder.tokenizer.decode(start)
    for k in (0, 1):
        assert f'Liked: {WORDS[pairs.chosen[k]]}' in words and f'Disliked: {WORDS[pairs.rejected[k]]}' in words
    asked = pairs._replace(prompt=pairs.rejected)
    left, right = pal_context.after(asked, 5, start)
    question = asked.texts[asked.prompt[5]].tokens
    assert left == Text(question + asked.texts[asked.chosen[5]].tokens, start)
    assert right == Text(question + asked.texts[asked.rejected[5]].tokens, start)
    assert pal_context.tell(decoder, pairs, ()) == ()


def test_texts_that_share_a_context_are_read_as_each_would_be_alone(pairs, tmp_path):
    text = SETTINGS(**{'text.folder': str(tmp_path)}).text
    decoder = pal_text.open_reader(text, CONTEXT, 0)
    starts = [(), *(pal_context.tell(decoder, pairs, context) for context in ((0, 1), (2, 3)))]
    texts = [text for k in range(9) for text in pal_context.after(pairs, k, starts[k % 3])]
    together = pal_context.make_vectors(text, CONTEXT, decoder)(texts)
    alone = np.zeros_like(together)
    for numbers, vectors in states.hidden_states(
        pal_text.load(decoder, CONTEXT), decoder.cfg, CONTEXT.mesh, texts, pool='last'
    ):
        alone[numbers] = vectors
    np.testing.assert_allclose(together, alone, atol=2e-5)


def test_the_reward_is_the_maximum_of_its_likelihood_with_the_pull_that_validates_best():
    rng = np.random.default_rng(0)
    taste = np.array([2.0, -1.0, 0.0])
    items = rng.standard_normal((4000, 3))
    better = rng.random(4000) < 1 / (1 + np.exp(-items @ taste))
    differences = np.where(better[:, None], items, -items)
    weights = pal_context.fit(differences[:3000], differences[3000:])
    np.testing.assert_allclose(weights, taste, atol=0.25)
    noise = rng.standard_normal((40, 60))  # nothing is to be learnt of it
    few = np.concatenate([differences[:40], noise], axis=1), np.pad(differences[3000:], ((0, 0), (0, 60)))
    by_pull = {pull: logit.logistic(few[0] / few[0].std(), 40 * pull) for pull in pal_context.PULLS}
    right = {pull: np.mean(few[1] @ weights > 0) for pull, weights in by_pull.items()}
    assert len(set(right.values())) > 1
    assert np.mean(few[1] @ pal_context.fit(*few) > 0) == max(right.values())


@pytest.mark.slow
def test_it_stands_in_the_table_beside_pal(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / 'pairs.jsonl'
    records = (
        f'{{"user": "p{p}", "chosen": "number {a if p % 2 else b}", "rejected": "number {b if p % 2 else a}"}}\n'
        for p in range(10) for a, b in (sorted(rng.permutation(12)[:2]) for _ in range(40))
    )  # fmt: skip
    path.write_text(''.join(records))
    small = {
        'data': str(path), 'text.width': 4, 'text.folder': str(tmp_path / 'states'), 'total_steps': 1, 'updates': 2,
        'prototypes': (1, 2), 'new.steps': 5, 'new.counts': (0, 2), 'new.ask': 0, 'baselines.context': 2, 'batch': 16,
        'baselines.groups': False,
    }  # fmt: skip
    recipe = pal.make(SETTINGS(**small), CONTEXT)
    evaluation = recipe.evaluate(recipe.init()[0], 'final')
    assert 0 <= evaluation.record['seen_context'] <= 1
    assert len(evaluation.record['new_context_by_known']) == len(evaluation.record['known_comparisons'])
    assert evaluation.exhibits[0].table[-1][0] == 'in context: earlier choices before the pair'


def test_a_text_behind_a_context_opens_no_second_time():
    """A tokenizer that begins texts with a token and ends them with one: `1` and `2` around."""
    texts = Text((1, 5, 6, 2)), Text((1, 7, 2))
    pairs = TextPairs(
        np.zeros(1, np.int32), np.array([0]), np.array([1]), None, texts, ('a', 'b'), ('x',), np.array([-1])
    )
    assert list(pal_context.after(pairs, 0, (1, 9), (1,))) == [Text((5, 6, 2), (1, 9)), Text((7, 2), (1, 9))]
    assert list(pal_context.after(pairs, 0, (), (1,))) == list(texts)
