import pytest

from pal_jax.recipes.rlpa.criteria import CRITERIA, SCORES, judge_by_rules
from pal_jax.recipes.rlpa.people import SCHEMA, SLOTS, make_people
from pal_jax.recipes.rlpa.profiles import split_fact
from pal_jax.recipes.rlpa.users import make_scripted_user, revealed
from pal_jax.types import Dialogue, Person, Turn

PERSON = Person('p', ())


def scores(reply, *turns, inferred=()):
    """Scores of `reply` after `turns`: user, assistant, ..., user."""
    dialogue = Dialogue(PERSON, tuple(Turn(('user', 'assistant')[i % 2], text) for i, text in enumerate(turns)))
    return judge_by_rules([dialogue], [inferred], [reply], 0)[0].scores


def total(policy, *, rounds=3, people=60, kind='graded'):
    """Mean score by round of `policy(dialogue, told facts in order) -> reply` with users who talk freely."""
    user, by_round = make_scripted_user(p_spontaneous=1.0), [0.0] * rounds
    for person in make_people(people, seed=11):
        dialogue, told = Dialogue(person, (Turn('user', 'Hello'),)), []
        for k in range(rounds):
            told += [fact for fact in sorted(revealed(dialogue)) if fact not in told]
            reply = policy(dialogue, told)
            by_round[k] += judge_by_rules([dialogue], [told], [reply], 0)[0].scores[kind] / people
            dialogue = Dialogue(person, (*dialogue.turns, Turn('assistant', reply)))
            dialogue = Dialogue(person, (*dialogue.turns, Turn('user', user([dialogue], 0)[0])))
    return by_round


def attentive(dialogue, told):
    """Words of its own in each round, on what was just told, then an open topic: what the rules want."""
    open_slots = [slot for slot in SLOTS if slot not in {split_fact(fact)[0] for fact in told}]
    value = split_fact(told[-1])[1] if told else ''
    return (
        f'Hello! Quiet day here, I am sorting photos. Which {open_slots[0]} makes you happy?',
        f'Ah, {value} sounds cozy to me. Does any {open_slots[1]} go along with it?',
        f'I would never have guessed {value}, what a surprise! Tell me, what {open_slots[2]} suits your character?',
    )[dialogue.round]


def test_attentive_replies_can_earn_everything_in_every_round():
    assert total(attentive, kind='strict') == pytest.approx([1.0, 1.0, 1.0])


FIXED = 'Hello! Quiet day here, I am sorting photos. Which pet or hobby makes you happy?'


def one_text(dialogue, told):
    return FIXED


def filled_template(dialogue, told):
    value = split_fact(told[-1])[1] if told else 'Hello'
    slot = next(slot for slot in SLOTS if slot not in {split_fact(fact)[0] for fact in told})
    return f'{value} sounds charming and gives me comfort. What about your {slot} these days?'


def one_word_swapped(dialogue, told):
    return FIXED.replace('photos', ('photos', 'letters', 'stamps')[dialogue.round])


def fixed_question(dialogue, told):
    value = split_fact(told[-1])[1] if told else ''
    head = ('Hello, I am sorting photos.', f'Oh, {value} sounds cozy to me.', f'My cousin adores {value} as well.')
    return f'{head[dialogue.round]} Which hobby makes you happy in winter?'


def all_topics(dialogue, told):
    ask = f'Do you have a {", a ".join(SLOTS)}?'
    return (f'Hello, I am curious. {ask}', f'Fine, noted. {ask}', f'Good. {ask}')[dialogue.round]


def echo(dialogue, told):
    return f'{dialogue.turns[-1].content} Really?'


@pytest.mark.parametrize('policy', [one_text, filled_template, one_word_swapped, fixed_question, all_topics, echo])
def test_no_template_keeps_its_score_over_three_rounds(policy):
    graded, strict = total(policy), total(policy, kind='strict')
    assert max(strict[1:]) < 0.05
    assert max(graded[1:]) < 0.55  # two of four criteria are lost for nearly everybody


def text_of_the_round(dialogue, told):
    """Prepared for every round, deaf to the person."""
    return (
        FIXED,
        'Interesting stuff, tell me more. What hobby fills the winter nights?',
        'Clouds gather outside, yet spirits stay high! Any favorite city nearby?',
    )[dialogue.round]


def test_texts_that_never_listen_are_hardly_ever_logical():
    assert max(total(text_of_the_round, kind='logic')[1:]) < 0.15
    assert sum(total(text_of_the_round)[1:]) < sum(total(attentive)[1:]) - 0.4


def test_one_text_for_all_rounds_earns_next_to_nothing_after_the_first():
    first, *later = total(one_text)
    assert first == pytest.approx(1.0)
    assert max(later) <= 0.4


def test_bare_question_of_the_prototype_is_not_informative():
    assert scores('What about your pet?', 'Hello')['informativeness'] == 0
    assert scores('What about your pet?', 'Hello')['strict'] == 0


@pytest.mark.parametrize(
    'reply',
    [
        'Yes.',
        '',
        'I like it when the rain',  # cut
        'This is - well\n- a list of things.',
        '<b>Hello</b> there, how are you?',
        'Hello [name], how are you today?',
        'I am a language model and cannot eat.',
        'No no no, that cannot be true.',
        'You see the sea. You see the sea. You see the sea.',
        'Why? How? When did that happen?',
        'word, ' * 40 + 'and that is all.',
    ],
)
def test_unnatural_replies_get_nothing_at_all(reply):
    verdict = scores(reply, 'Hello')
    assert (verdict['naturalness'], verdict['graded'], verdict['strict']) == (0, 0, 0)


@pytest.mark.parametrize(
    ('reply', 'relevant'),
    [
        ('Does your ferret sleep all day?', 1),  # uses what was told
        ('I see. What do you do for a living?', 1),  # asks about an open topic
        ('I see. Do you have a pet at all?', 0),  # asks again
        ('I see. The rain goes on and on.', 0),
        ('I see. Your canary must be loud.', 0),  # not what was told
        ('Any food, drink or sport you like?', 0),  # three topics
    ],
)
def test_relevance(reply, relevant):
    assert scores(reply, 'Hello', 'Hi there.', 'I have a ferret at home.')['relevance'] == relevant


def test_invented_profile_makes_nothing_relevant():
    line, reply = 'I have a ferret at home.', 'Your yacht must be fast and loud.'
    assert scores(reply, 'Hello', 'Hi.', line, inferred=['boat: yacht'])['relevance'] == 0
    assert scores('I have one at home as well.', 'Hello', 'Hi.', line, inferred=['note: have'])['relevance'] == 0


def test_inferred_facts_of_any_schema_are_relevant_once_they_were_said():
    line = 'I am a retired gardener with a yacht.'
    assert scores('Where does the yacht sail?', 'Hello', 'Hi.', line, inferred=['boat: yacht'])['relevance'] == 1
    sentence = ['She is a retired gardener.']
    assert scores('A retired gardener never rests.', 'Hello', 'Hi.', line, inferred=sentence)['relevance'] == 1
    assert scores('A retired gardener never rests.', 'Hello', 'Hi.', line)['relevance'] == 0


def test_logic_exempts_the_greeting_and_counts_telling_words_only():
    assert scores('Nice to meet you, stranger.', 'Hello')['logic'] == 1
    line = ('Hello', 'Hi.', 'My favorite drink is cider.')
    assert scores('Cider on a warm evening, lovely.', *line)['logic'] == 1
    assert scores('My favorite drink is water.', *line)['logic'] == 0


def test_engagement_needs_an_invitation_in_new_sentences():
    assert scores('Rowing keeps you warm.', 'Hello')['engagement'] == 0
    assert scores('Rowing keeps you warm. Tell me more!', 'Hello')['engagement'] == 1
    assert scores('What is your favorite drink?', 'Hello', 'What is your favorite pet?', 'Well.')['engagement'] == 0


def test_informativeness_refuses_echo_and_flattery():
    line = ('Hello', 'Hi.', 'I painted my whole room teal.')
    assert scores('You painted your whole room teal?', *line)['informativeness'] == 0
    assert scores('Teal walls and white curtains look calm.', *line)['informativeness'] == 1
    assert scores('Teal walls and white curtains look amazing.', *line)['informativeness'] == 0


def test_totals_follow_from_the_criteria():
    for reply in ('What about your pet?', 'Cider, an apple thing! What music fits?', 'Yes.', FIXED):
        verdict = scores(reply, 'Hello', 'Hi.', 'My favorite drink is cider.')
        n, *others = (verdict[name] for name in CRITERIA)
        assert tuple(verdict) == SCORES
        assert verdict['graded'] == pytest.approx(n * sum(others) / 4)
        assert verdict['strict'] == n * min(others)


def test_every_schema_value_can_be_picked_up():
    for slot in SCHEMA:
        for value in (*slot.known, *slot.unseen):
            verdict = scores(f'I did think of {value} today.', 'Hello', 'Hi.', f'Well, it is {value}.')
            assert verdict['relevance'] == verdict['logic'] == 1, value


def test_verdicts_are_batched_in_order_and_do_not_depend_on_the_golden_profile():
    turns = (Turn('user', 'Hello'),)
    replies = ['Yes.', FIXED]
    for facts in ((), ('pet: cat',)):
        dialogues = [Dialogue(Person('p', facts), turns)] * 2
        assert [v.scores['graded'] for v in judge_by_rules(dialogues, [(), ()], replies, 0)] == [0.0, 1.0]


@pytest.mark.parametrize(
    'reply',
    [
        'As a helpful assistant, I appreciate lasagna. What hobby do you enjoy?',
        'I would be happy to assist you with lasagna, please provide more details?',
        'Thank you for sharing about lasagna. How can I help you today with a hobby?',
    ],
)
def test_stock_phrases_of_assistants_are_not_natural(reply):
    assert scores(reply, 'I spent the whole weekend baking lasagna with my sister.')['naturalness'] == 0
