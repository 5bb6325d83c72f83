import dataclasses

import pytest

from pal_jax.recipes.rlpa import users
from pal_jax.recipes.rlpa.people import SCHEMA, SLOTS, make_people
from pal_jax.recipes.rlpa.profiles import mentions, split_fact
from pal_jax.recipes.rlpa.users import make_scripted_user, raises_topic, revealed
from pal_jax.types import Dialogue, Person, Turn

CHATTY = make_scripted_user(p_spontaneous=1.0)
SILENT = make_scripted_user(p_spontaneous=0.0)


def converse(person, user, replies, seed=0):
    """The dialogue after `replies`, ending with a message of the user."""
    dialogue = Dialogue(person, (Turn('user', person.opening),))
    for reply in replies:
        dialogue = Dialogue(person, (*dialogue.turns, Turn('assistant', reply)))
        dialogue = Dialogue(person, (*dialogue.turns, Turn('user', user([dialogue], seed)[0])))
    return dialogue


def prefix(dialogue, messages):
    """The dialogue up to the user's message number `messages`."""
    return Dialogue(dialogue.person, dialogue.turns[: 2 * messages - 1])


REPLIES = [f'Reply number {i} is about nothing.' for i in range(12)]


def test_every_telling_sentence_gives_away_its_own_value_only():
    for slot in SCHEMA:
        assert len(users._TELLING[slot.name]) >= 4
        for value in (*slot.known, *slot.unseen):
            everything = tuple(f'{other.name}: {v}' for other in SCHEMA for v in (*other.known, *other.unseen))
            for sentence in users._TELLING[slot.name]:
                told = Dialogue(Person('p', everything), (Turn('user', sentence.format(value=value)),))
                assert revealed(told) == {f'{slot.name}: {value}'}


def test_no_filler_or_complaint_gives_anything_away():
    lines = '\n'.join((*users._FILLERS, *users._COMPLAINTS))
    assert not [value for slot in SCHEMA for value in (*slot.known, *slot.unseen) if mentions(lines, value)]


def test_opens_with_the_greeting_and_has_told_nothing():
    for person in make_people(50, seed=0):
        assert CHATTY([Dialogue(person, ())], 0) == ['Hello']
        assert revealed(Dialogue(person, (Turn('user', 'Hello'),))) == frozenset()


def test_tells_one_new_fact_a_message_until_all_are_told():
    for person in make_people(30, seed=1):
        dialogue = converse(person, CHATTY, REPLIES[:6])
        assert [len(revealed(prefix(dialogue, k))) for k in range(1, 8)] == [0, 1, 2, 3, 4, 4, 4]


def test_tells_the_fact_that_the_reply_asks_for():
    for person in make_people(30, seed=2):
        for fact in person.facts:
            slot, _ = split_fact(fact)
            assert revealed(converse(person, SILENT, [f'So, about your {slot}?'])) == {fact}
            assert raises_topic(f'So, about your {slot}?', fact)


def test_tells_nothing_unasked_at_probability_zero_and_the_right_share_between():
    people = make_people(400, seed=3)
    assert not any(revealed(converse(person, SILENT, REPLIES[:3])) for person in people[:20])
    user = make_scripted_user(p_spontaneous=0.3)
    share = sum(len(revealed(converse(person, user, REPLIES[:1]))) for person in people) / len(people)
    assert abs(share - 0.3) < 0.08  # 3.5 standard errors


def test_disclosure_is_gradual():
    """IV.3-7: the mean share told by message k does not fall and is at most 0.15 k + 0.05; 0 at the greeting."""
    people = make_people(60, seed=4, facts=8)
    for user, replies in ((CHATTY, REPLIES[:6]), (make_scripted_user(), [f'Your {slot}?' for slot in SLOTS[:6]])):
        dialogues = [converse(person, user, replies) for person in people]
        shares = [sum(len(revealed(prefix(d, k))) / 8 for d in dialogues) / len(dialogues) for k in range(1, 8)]
        assert shares[0] == 0
        assert shares == sorted(shares)
        assert all(share <= 0.15 * k + 0.05 for k, share in enumerate(shares, start=1))
        assert shares[-1] > 0.3


def test_complains_about_a_repeated_reply_and_tells_nothing():
    person = make_people(1, seed=5)[0]
    dialogue = converse(person, CHATTY, ['What about your pet?', 'what about your PET'])
    assert 'said that already' in dialogue.turns[-1].content
    assert len(revealed(dialogue)) == 1


def test_answer_depends_on_its_own_dialogue_and_the_seed_alone():
    people = make_people(20, seed=6)
    dialogues = [Dialogue(p, (Turn('user', 'Hello'), Turn('assistant', 'Hi.'))) for p in people]
    together = CHATTY(dialogues, 7)
    assert together == [CHATTY([dialogue], 7)[0] for dialogue in dialogues]
    assert together[::-1] == CHATTY(dialogues[::-1], 7)
    assert together != CHATTY(dialogues, 8)


def test_answer_does_not_read_the_inferred_profile():
    """IV.3-5: what the policy noted about the person is not heard by the person."""
    person = make_people(1, seed=6)[0]
    told = Dialogue(person, (Turn('user', 'Hello'), Turn('assistant', 'Hi.', '- pet: cat\n')))
    bare = dataclasses.replace(told, turns=(told.turns[0], Turn('assistant', 'Hi.')))
    assert CHATTY([told], 0) == CHATTY([bare], 0)


@pytest.mark.parametrize(
    ('fact', 'words'),
    [
        ('She often knits with her sister.', 'I often knit with my sister'),
        ("He's a 30-year-old baker.", 'I am a 30-year-old baker'),
        ('She has two cats.', 'I have two cats'),
        ('He studies law and watches birds.', 'I study law and watches birds'),
        ('Lives in Porto', 'Lives in Porto'),
        ('age: 34', '34'),
    ],
)
def test_free_sentences_are_told_in_the_first_person(fact, words):
    dialogue = converse(Person('p', (fact,)), CHATTY, ['How are you?'])
    assert words in dialogue.turns[-1].content
    assert revealed(dialogue) == {fact}


def test_free_sentence_is_told_when_the_reply_shares_a_longer_word():
    person = Person('p', ('She keeps bees in her garden.',))
    assert not revealed(converse(person, SILENT, ['How are you?']))
    assert revealed(converse(person, SILENT, ['Is there a garden?']))


def test_unknown_slot_is_told_with_its_name():
    dialogue = converse(Person('p', ('shoe size: 41',)), SILENT, ['What is your shoe size?'])
    assert 'shoe size' in dialogue.turns[-1].content
    assert '41' in dialogue.turns[-1].content


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match='p_spontaneous=1.5'):
        make_scripted_user(p_spontaneous=1.5)
    with pytest.raises(ValueError, match="ends with 'user'"):
        CHATTY([Dialogue(Person('p', ('pet: cat',)), (Turn('user', 'Hello'),))], 0)
