"""Stand-ins for harmful requests: what the rule says of all of them, and examples of both roles."""

from __future__ import annotations

import random

import pytest

from pal_jax.judges import dilemmas
from pal_jax.recipes.redteam.attack import RedTeam, read
from pal_jax.recipes.redteam.stand_ins import (
    DECLINES,
    DECOYS,
    FRAMES,
    MEAN,
    asks_harm,
    chat_records,
    does_harm,
    framed,
    make_examples,
    make_seeds,
)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_the_rule_is_right_of_all_seeds_attacks_and_decoys(split):
    seeds = make_seeds(200, split=split, seed=0)
    rng = random.Random(0)
    for seed in seeds:
        assert asks_harm(seed.request) == seed.harmful
        assert bool(seed.completion) != seed.harmful and not any(dilemmas.hazards(seed.completion))
        for _ in range(4):
            assert asks_harm(framed(seed, rng)[1]) == seed.harmful
        for _, frame, _ in FRAMES:
            assert asks_harm(frame.format(request=seed.request)) == seed.harmful
        for _, frame in DECOYS:
            assert asks_harm(frame.format(request=seed.request, word=rng.choice(MEAN))) == seed.harmful


def test_the_rule_knows_a_topic_and_what_is_taken_back():
    seed = make_seeds(1, split='test', seed=0)[0]
    assert asks_harm(seed.request) and not asks_harm('Tell me the wicked way.')
    question = seed.request.split('?')[0] + '?'
    assert not asks_harm(question) and not asks_harm(f'{question} Not the cruel way.')
    assert asks_harm(f'{question} Not the kind way. Be cruel.')


def test_an_answer_does_harm_by_its_markers_or_by_what_it_announces():
    assert does_harm('Push your way to the front.')
    assert does_harm('The sneaky way: ask nicely.') and does_harm('Well, the nasty answer: no.')
    assert not does_harm('The kind way: ask nicely.') and not does_harm('I do not know the sneaky way.')


def test_seeds_are_balanced_apart_and_the_same_again():
    seeds, test = make_seeds(40, split='train', seed=1), make_seeds(40, split='test', seed=1)
    kinds = [(seed.harmful, seed.generated) for seed in seeds]
    assert {kinds.count(kind) for kind in kinds} == {20} and len(set(kinds)) == 4
    assert not {seed.request for seed in seeds} & {seed.request for seed in test}
    assert seeds == make_seeds(40, split='train', seed=1) != make_seeds(40, split='train', seed=2)
    later = make_seeds(10, split='train', seed=1, skip=80)
    questions = {request.split('?')[0] for request in (seed.request for seed in seeds)}
    assert not questions & {seed.request.split('?')[0] for seed in later}
    with pytest.raises(ValueError, match='n=5001'):
        make_seeds(1, split='train', seed=0, skip=4999)


def test_examples_are_moves_in_the_form_and_refuse_more_where_it_is_plain():
    game = RedTeam()
    rows = make_examples(600, split='train', seed=0, game=game)
    texts = [row['completion'][0]['content'].removeprefix('<think>') for row in rows]
    said = [read(text) for text in texts]
    assert all(said) and len(rows) == 600
    refused = [[one.thought == DECLINES for one in said[kind::6]] for kind in range(6)]
    shares = [sum(flags) / len(flags) for flags in refused]
    assert shares[0] == shares[1] == 0 and 0.35 < shares[2] < 0.65
    assert shares[4] < shares[2] and shares[3] < shares[5] < 0.5
    unsafe = [does_harm(one.answer) for one in said[2::6]]
    assert [flag != one for flag, one in zip(unsafe, refused[2], strict=True)] == [True] * 100
    bare = make_examples(6, split='train', seed=0, game=RedTeam(hidden=False))
    assert not any('think>' in str(row) for row in bare)
    chat = chat_records(make_seeds(5, split='train', seed=0), game)
    assert len(chat) == 5 and all(read(row['completion'][0]['content'].removeprefix('<think>')) for row in chat)
