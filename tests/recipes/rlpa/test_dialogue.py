"""The dialogue as a game, what the policy reads of it, and credit across its turns."""

import dataclasses
import re

import pytest

from pal_jax.recipes.rlpa.dialogue import (
    POLICY,
    Conversation,
    DialogueGame,
    actor_prompt,
    add_message,
    add_reply,
    converse,
    down_sampled,
    first_alike,
    learnt_once,
    messages,
    open_dialogue,
    with_best_reply,
    with_returns,
)
from pal_jax.recipes.rlpa.people import SCHEMA, SLOTS, make_people
from pal_jax.recipes.rlpa.profiles import mentions, parse_completion, render_completion
from pal_jax.recipes.rlpa.users import CountingUser
from pal_jax.types import Dialogue, Turn
from tests.recipes.rlpa.dialogues import BAD, USER, group, never, people


def test_best_is_the_first_maximum_and_keeps_its_profile():
    """IV.3-4."""
    dialogue = open_dialogue(people(1)[0])
    after = with_best_reply(group(dialogue, (0.3, 0.9, 0.9, 0.1)))
    assert after is not None
    assert after.turns == (*dialogue.turns, Turn('assistant', 'Reply 1 of 0.', '- note: 1\n'))


def test_malformed_never_goes_on_and_unjudged_only_if_nothing_else():
    dialogue = open_dialogue(people(1)[0])
    a, b = (render_completion('', text) for text in ('A.', 'B.'))

    def best(texts, rewards, oks):
        after = with_best_reply(group(dialogue, rewards, texts=texts, oks=oks))
        return after and after.turns[-1].content

    assert best(['junk', a, b], (0.0, 0.0, 0.0), [True] * 3) == 'A.'
    assert best([a, b], (0.0, 0.0), [False, True]) == 'B.'
    assert best([a, b], (0.0, 0.0), [False, False]) == 'A.'
    assert best(['junk', 'None'], (0.0, 0.0), [True, True]) is None


def test_dialogues_read_the_same_whoever_their_people_are():
    one, two, three = map(open_dialogue, people(3))
    assert first_alike([one, add_message(two, 'Hm.'), three, one]) == [0, 1, 0, 0]


def test_the_same_answers_are_learnt_once_by_their_mean_reward():
    one, two = map(open_dialogue, people(2))
    same, other = ('A.', 'B.'), ('C.', 'D.')

    def of(dialogue, rewards, texts, oks=(True, True)):
        return [
            dataclasses.replace(
                sample, completion=dataclasses.replace(sample.completion, token_ids=tuple(map(ord, text)))
            )
            for sample, text in zip(group(dialogue, rewards, texts=texts, oks=oks), texts, strict=True)
        ]

    groups = [of(one, (0.0, 1.0), same), of(two, (0.5, 0.0), same, (True, False)), of(one, (0.2, 0.3), other)]
    learnt = learnt_once(groups)
    # A reward that nobody could judge is in no mean.
    assert [[sample.reward for sample in members] for members in learnt] == [[0.25, 1.0], [0.2, 0.3]]
    assert learnt_once(groups[:1]) == groups[:1]


@pytest.mark.parametrize(
    ('rewards', 'oks', 'count', 'expected'),
    [
        ((0.3, 0.9, 0.0, 0.5), (True,) * 4, 3, [1, 2, 3]),
        ((0.3, 0.9, 0.0, 0.5), (True,) * 4, 4, [0, 1, 2, 3]),
        # The worst of the judged ones is learnt, and unjudged ones only where there are too few others.
        ((0.3, 0.9, 0.0, 0.5), (True, True, False, True), 2, [0, 1]),
        ((0.0, 0.9, 0.0, 0.0), (False, True, False, False), 2, [0, 1]),
    ],
)
def test_the_best_and_the_worst_are_learnt(rewards, oks, count, expected):
    members = group(open_dialogue(people(1)[0]), rewards, oks=oks)
    assert down_sampled(members, count) == [members[k] for k in expected]


def test_policy_sees_only_its_last_profile():
    """IV.3-5: from round 3 on just one block outside the system prompt, that of the turn before."""
    turns = (
        Turn('user', 'Hello'),
        Turn('assistant', 'Hi.', '- pet: dog\n'),
        Turn('user', 'Well.'),
        Turn('assistant', 'So?', '- pet: cat\n'),
        Turn('user', 'Yes.'),
    )
    chat = messages(Dialogue(people(1)[0], turns), 'Be kind.')
    assert chat == [
        {'role': 'system', 'content': 'Be kind.'},
        {'role': 'user', 'content': 'Hello'},
        {'role': 'assistant', 'content': 'Hi.'},
        {'role': 'user', 'content': 'Well.'},
        {'role': 'assistant', 'content': '<profile>\n- pet: cat\n</profile>\n\n<response>\nSo?</response>'},
        {'role': 'user', 'content': 'Yes.'},
    ]
    assert messages(Dialogue(people(1)[0], turns))[0]['role'] == 'user'


def test_policy_prompt_at_round_one_leaks_nothing():
    """IV.3-6: the person carries its profile to the user, but no word of it is in the prompt."""
    for split in ('train', 'heldout', 'unseen'):
        crowd = make_people(100, seed=0, split=split)
        for dialogue in map(open_dialogue, crowd):
            prompt = '\n'.join(message['content'] for message in messages(dialogue, actor_prompt(SLOTS)))
            assert not any(mentions(prompt, fact.split(': ')[1]) for fact in dialogue.person.facts)


def test_actor_prompt_lists_every_topic_no_value_and_the_format():
    prompt = actor_prompt(SLOTS)
    assert all(mentions(prompt, slot) for slot in SLOTS)
    assert not [value for slot in SCHEMA for value in (*slot.known, *slot.unseen) if mentions(prompt, value)]
    assert parse_completion(prompt) == ('- topic: ...\n', ('topic: ...',), '...')
    assert 'told about themselves. Then' in actor_prompt(())
    assert len(re.findall(r'\w+', prompt)) < 40


# --- credit across turns --------------------------------------------------------------------------------------------


def answered(samples):
    """The dialogue of a group after its best reply and the person's next message."""
    dialogue = with_best_reply(samples)
    assert dialogue is not None
    return add_message(dialogue, 'I see.')


def two_turns():
    """Two dialogues of two turns with two samples each; malformed ones get 0."""
    a, b = map(open_dialogue, people(2))
    formed = render_completion('- note: x\n', 'Hm?')
    first = [group(a, [1.0, 0.2]), group(b, [0.4, 0.0], texts=[formed, BAD])]
    later = list(map(answered, first))
    second = [group(later[0], [0.8, 0.6]), group(later[1], [0.2, 0.0], texts=[formed, BAD])]
    return [first, second]


def test_returns_of_two_turns():
    # Values of the second turn: 0.7 after a, 0.1 after b, 0.4 on average.
    expected = [1.0 + 0.5 * 0.7, 0.2 + 0.5 * 0.4, 0.4 + 0.5 * 0.1, 0.0, 0.8, 0.6, 0.2, 0.0]
    assert [sample.reward for sample in with_returns(two_turns(), gamma=0.5)] == pytest.approx(expected)


def test_returns_add_up_over_three_turns_and_unjudged_samples_count_nowhere():
    first = [group(open_dialogue(people(1)[0]), [1.0, 0.0])]
    turns = [first]
    for rewards, oks in (([0.5, 0.3], None), ([2.0, 9.0], [True, False])):
        turns.append([group(answered(turns[-1][0]), rewards, oks=oks)])
    # V3 = 2, so 0.5 + 2 and 0.3 + 2 (the only dialogue is the average one); V2 = 2.4, so 1 + 2.4 and 0 + 2.4.
    got = [sample.reward for sample in with_returns(turns, gamma=1.0)]
    assert got == pytest.approx([3.4, 2.4, 2.5, 2.3, 2.0, 9.0])


def test_without_discount_no_reward_moves_and_with_it_only_those_before():
    turns = two_turns()
    flat = [sample for groups in turns for samples in groups for sample in samples]
    assert with_returns(turns, gamma=0.0) == flat
    raised = [turns[0], [[dataclasses.replace(s, rewards=(s.reward + 1.0,)) for s in samples] for samples in turns[1]]]
    before, after = ([s.reward for s in with_returns(each, gamma=0.5)] for each in (turns, raised))
    assert [b - a for a, b in zip(before, after, strict=True)] == pytest.approx([0.5, 0.5, 0.5, 0.0, 1, 1, 1, 1])


# --- the game -------------------------------------------------------------------------------------------------------


def test_a_dialogue_is_played_to_its_end_or_until_it_is_malformed():
    seen, game = [], DialogueGame(people(2), 3)

    def answer(dialogues, turn):
        seen.append([(dialogue.person.id, dialogue.round, turn) for dialogue in dialogues])
        bad = [BAD, BAD]
        return [group(d, [0.0, 1.0], texts=bad if d.person.id == 'u1' and turn else None) for d in dialogues]

    heard = CountingUser(USER)
    played = converse(game, [game.start(0), game.start(1)], answer, heard)
    assert seen == [[('u0', 0, 0), ('u1', 0, 0)], [('u0', 1, 1), ('u1', 1, 1)], [('u0', 2, 2)]]
    assert [[samples[0].source.round for samples in groups] for groups in played] == [[0, 1, 2], [0, 1]]
    assert [len(samples) for groups in played for samples in groups] == [2] * 5
    assert heard.asked == 3  # two after the first turn, one after the second
    assert played[0][1][0].source.turns[1] == Turn('assistant', 'Reply 1 of 0.', '- note: 1\n')  # the best
    seen.clear()
    converse(DialogueGame(people(2), 1), [game.start(0)], answer, never)
    assert len(seen) == 1


def test_a_person_who_is_silent_ends_the_dialogue():
    game = DialogueGame(people(2), 3)

    def user(dialogues, turn):
        return [None if dialogue.person.id == 'u0' else f'Turn {turn}.' for dialogue in dialogues]

    played = converse(game, [game.start(0), game.start(1)], lambda ds, _: [group(d, [1.0]) for d in ds], user)
    assert [len(groups) for groups in played] == [1, 3]
    assert [turn.content for turn in played[1][2][0].source.turns if turn.role == 'user'] == [
        'Hello', 'Turn 0.', 'Turn 1.'
    ]  # fmt: skip


def test_moves_of_a_dialogue_are_pure_and_its_person_reads_no_profile():
    game = DialogueGame(people(1), 2, 'Be kind.')
    start = game.start(0)
    (reply,) = group(start.dialogue, [0.0])
    (junk,) = group(start.dialogue, [0.0], texts=[BAD])
    after = game.apply(start, reply)
    assert game.turn(start) == POLICY and start == game.start(0)
    assert game.roles[game.turn(after)] == 'person'
    assert game.turn(game.apply(start, junk)) is None
    assert game.prompt(start, POLICY)[0] == {'role': 'system', 'content': 'Be kind.'}
    assert '- note: 0' in str(game.prompt(after, POLICY))
    assert game.prompt(after, 1) == [
        {'role': 'assistant', 'content': 'Hello'}, {'role': 'user', 'content': 'Reply 0 of 0.'}
    ]  # fmt: skip
    last = Conversation(add_reply(add_message(after.dialogue, 'Yes.'), reply.parsed))
    assert game.turn(last) is None and game.rewards(last) == ()


def test_groups_that_are_no_groups_are_refused():
    dialogue, other = map(open_dialogue, people(2))
    with pytest.raises(ValueError, match='no samples'):
        with_best_reply([])
    with pytest.raises(ValueError, match='mixes dialogues'):
        with_best_reply([*group(dialogue, (0.0,)), *group(other, (0.0,))])
