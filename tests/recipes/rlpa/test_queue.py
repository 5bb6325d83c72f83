"""RLPA's queue: who is asked when, what goes on, and that a checkpoint keeps all of it."""

import dataclasses
import functools
import json

import pytest

from pal_jax.recipes.rlpa.criteria import judge_by_rules
from pal_jax.recipes.rlpa.dialogue import messages, open_dialogue
from pal_jax.recipes.rlpa.people import make_people
from pal_jax.recipes.rlpa.profiles import match_exactly, render_completion, render_facts
from pal_jax.recipes.rlpa.queue import Queue, continue_best, from_json, open_queue, pop, to_json
from pal_jax.recipes.rlpa.rewards import make_reward
from pal_jax.recipes.rlpa.users import CountingUser, revealed
from pal_jax.types import Person
from tests.recipes.rlpa.dialogues import USER, group, never, people


def run_episode(n, *, max_rounds=3, batch=2, round_batch_size=2, rewards=(0.0, 1.0), user=USER):
    """`(person, round)` of every dialogue of every rollout batch of the first episode."""
    crowd = people(n)
    queue, batches = open_queue(crowd), []
    while True:
        dialogues, queue = pop(queue, batch, people=crowd, user=user, seed=0)
        if queue.episode:
            return batches
        batches.append([(dialogue.person.id, dialogue.round + 1) for dialogue in dialogues])
        groups = [group(dialogue, rewards) for dialogue in dialogues]
        queue = continue_best(
            queue, groups, max_rounds=max_rounds, round_batch_size=round_batch_size, user=user, seed=0
        )


def test_depth_first_takes_the_same_people_through_their_rounds():
    assert run_episode(4) == [
        [('u0', 1), ('u1', 1)],
        [('u0', 2), ('u1', 2)],
        [('u0', 3), ('u1', 3)],
        [('u2', 1), ('u3', 1)],
        [('u2', 2), ('u3', 2)],
        [('u2', 3), ('u3', 3)],
    ]


def test_breadth_first_finishes_a_round_of_all_before_the_next():
    assert run_episode(4, round_batch_size=-1) == [[(f'u{i}', k), (f'u{i + 1}', k)] for k in (1, 2, 3) for i in (0, 2)]


def test_dialogues_that_share_answers_fill_a_step_with_texts_that_differ():
    def text_of(dialogues):
        return ''.join(dialogue.turns[0].content for dialogue in dialogues)

    queue = Queue(tuple(open_dialogue(Person(f'u{i}', ('pet: cat',), text)) for i, text in enumerate('abaaacbdeab')))
    take = functools.partial(pop, people=people(1), user=never, seed=0, share_alike=True)
    # The third text that differs ends a step of two, and so does the third dialogue with a text.
    steps = []
    while queue.pending:
        dialogues, queue = take(queue, 2)
        steps.append(text_of(dialogues))
    assert steps == ['aba', 'aac', 'bd', 'ea', 'b']


def test_people_that_do_not_fill_a_batch_finish_in_short_batches():
    """IV.3-3 with N = 3: the published scheduler raises here."""
    assert run_episode(3) == [
        [('u0', 1), ('u1', 1)],
        [('u0', 2), ('u1', 2)],
        [('u0', 3), ('u1', 3)],
        [('u2', 1)],
        [('u2', 2)],
        [('u2', 3)],
    ]


@pytest.mark.parametrize('round_batch_size', [-100, -3, -2, -1, 0, 1, 2, 3, 5, 1000])
@pytest.mark.parametrize('n', [1, 3, 4, 7])
@pytest.mark.parametrize('batch', [1, 2, 5])
def test_everybody_has_every_round_once_in_order(n, batch, round_batch_size):
    batches = run_episode(n, batch=batch, round_batch_size=round_batch_size)
    for i in range(n):
        assert [k for b in batches for person, k in b if person == f'u{i}'] == [1, 2, 3]
    assert all(1 <= len(b) <= batch for b in batches)


def test_round_batch_size_zero_is_128_depth_first():
    crowd = people(130)
    for size, at_front in ((0, True), (128, True), (-128, False)):
        queue = continue_best(
            Queue(open_queue(crowd).pending[129:]),
            [group(dialogue, (0.0,)) for dialogue in open_queue(crowd).pending[:129]],
            max_rounds=2, round_batch_size=size, user=USER, seed=0,
        )  # fmt: skip
        assert [d.person.id for d in queue.waiting] == ['u128']
        expected = [f'u{i}' for i in range(128)]
        assert [d.person.id for d in queue.pending] == ([*expected, 'u129'] if at_front else ['u129', *expected])


def test_arrival_order_survives_several_round_batches_at_the_front():
    crowd = people(4)
    queue = open_queue(crowd)
    queue = continue_best(
        Queue(()), [group(dialogue, (0.0,)) for dialogue in queue.pending],
        max_rounds=2, round_batch_size=1, user=USER, seed=0,
    )  # fmt: skip
    assert [dialogue.person.id for dialogue in queue.pending] == ['u0', 'u1', 'u2', 'u3']


def test_single_turn_is_a_walk_through_the_data():
    """IV.3-8: with one round no user is asked, and the batches are slices of the data, episode after episode."""
    crowd = make_people(5, seed=0)
    queue, seen = open_queue(crowd), []
    for _ in range(6):
        dialogues, queue = pop(queue, 2, people=crowd, user=never, seed=0)
        groups = [group(dialogue, (0.0, 1.0)) for dialogue in dialogues]
        queue = continue_best(queue, groups, max_rounds=1, round_batch_size=2, user=never, seed=0)
        seen += [messages(dialogue) for dialogue in dialogues]
    assert seen == 2 * [[{'role': 'user', 'content': person.opening}] for person in crowd]
    assert queue.episode == 1


def test_shuffled_people_come_in_another_order_in_every_episode():
    crowd, orders, queue = people(6), [], None
    queue = open_queue(crowd, shuffle=3)
    for _ in range(3):
        dialogues, queue = pop(queue, 6, people=crowd, user=never, seed=0, shuffle=3)
        orders.append([dialogue.person.id for dialogue in dialogues])
    assert len({tuple(order) for order in orders}) == 3
    assert all(sorted(order) == [person.id for person in crowd] for order in orders)
    assert orders[0] == [dialogue.person.id for dialogue in open_queue(crowd, shuffle=3).pending]


def test_all_malformed_ends_the_conversation():
    queue = open_queue(people(2))
    groups = [group(queue.pending[0], (0.0, 0.0), texts=['junk', 'None']), group(queue.pending[1], (0.0, 0.0))]
    queue = continue_best(Queue(()), groups, max_rounds=3, round_batch_size=1, user=USER, seed=0)
    assert [dialogue.person.id for dialogue in queue.pending] == ['u1']
    assert 'None' not in json.dumps(to_json(queue))


def test_users_who_say_nothing_end_the_episode_and_are_counted():
    heard = CountingUser(lambda dialogues, seed: [None] * len(dialogues))
    waiting = Queue((), open_queue(people(2)).pending)
    dialogues, queue = pop(waiting, 2, people=people(2), user=heard, seed=0)
    assert [d.person.id for d in dialogues] == ['u0', 'u1'] and queue.episode == 1
    assert (heard.asked, heard.silent) == (2, 2)


def test_queue_is_deterministic_and_survives_json():
    crowd = make_people(6, seed=0)
    queue = open_queue(crowd)
    for step in range(5):
        dialogues, queue = pop(queue, 2, people=crowd, user=USER, seed=step)
        groups = [group(dialogue, (0.0, 1.0)) for dialogue in dialogues]
        args = {'max_rounds': 3, 'round_batch_size': 3, 'user': USER, 'seed': step}
        assert continue_best(queue, groups, **args) == continue_best(queue, groups, **args)
        queue = continue_best(queue, groups, **args)
        assert from_json(json.loads(json.dumps(to_json(queue)))) == queue == from_json(to_json(queue))
    assert queue.pending and any(turn.profile for dialogue in queue.waiting for turn in dialogue.turns)


def test_user_hears_bare_replies_only():
    """IV.3-5: no profile, no tag, no system prompt reaches the user, whose own lines are labelled as its own."""
    heard = []

    def user(dialogues, seed):
        heard.extend(dialogues)
        return USER(dialogues, seed)

    run_episode(3, user=user)
    assert len(heard) == 6
    for dialogue in heard:
        assert [turn.role for turn in dialogue.turns] == ['user', 'assistant'] * dialogue.round
        assert dialogue.turns[0].content == 'Hello'
        assert dialogue.person.facts == ('pet: cat',)
        assert not any(turn.profile or 'profile>' in turn.content for turn in dialogue.turns)


def test_whole_world_rewards_an_honest_policy_more_every_round():
    """Queue, user, matcher and judge together: copying what was told earns 0, 0.4, 0.667 of profile F1."""
    crowd, reward = make_people(8, seed=0), make_reward(match_exactly, judge_by_rules)
    queue, scores = open_queue(crowd), {0: [], 1: [], 2: []}
    for step in range(6):
        dialogues, queue = pop(queue, 4, people=crowd, user=USER, seed=step)
        groups = []
        for dialogue in dialogues:
            told = render_facts(fact for fact in dialogue.person.facts if fact in revealed(dialogue))
            text = render_completion(told, f'Line {dialogue.round} is here.')
            groups.append(reward(group(dialogue, (0.0,), texts=[text]), step))
            scores[dialogue.round].append(groups[-1][0].info['profile'])
        queue = continue_best(queue, groups, max_rounds=3, round_batch_size=4, user=USER, seed=step)
    assert scores == {0: [0.0] * 8, 1: pytest.approx([0.4] * 8), 2: pytest.approx([2 / 3] * 8)}


def test_bad_input_is_refused():
    (dialogue,) = open_queue(people(1)).pending
    with pytest.raises(ValueError, match='no people'):
        open_queue([])
    with pytest.raises(ValueError, match='cannot pop 0'):
        pop(Queue((dialogue,)), 0, people=people(1), user=USER, seed=0)
    with pytest.raises(ValueError, match='max_rounds=0'):
        continue_best(Queue(()), [], max_rounds=0, round_batch_size=1, user=USER, seed=0)
    with pytest.raises(ValueError, match='no saved queue'):
        from_json({'pending': []})


def test_queue_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        open_queue(people(1)).episode = 3  # pyright: ignore[reportAttributeAccessIssue]
