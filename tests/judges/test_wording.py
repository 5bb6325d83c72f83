"""What no rule may like: lists of words, repetitions, copies, whichever words they are made of."""

from __future__ import annotations

import pytest

from pal_jax.judges.wording import is_answer, is_copy, list_share
from pal_jax.recipes.psoups import rules
from pal_jax.recipes.psoups.annotators import annotate_by_rule
from pal_jax.recipes.psoups.preferences import embedded, general

QUESTION = 'Why is the sea salty?'
ANSWERS = (
    'The sea is salty because rivers carry minerals from rocks into it, and the water evaporates.',
    'Rivers wash salt out of the rocks and carry it to the sea.',
    'The salt in the sea comes mostly from rocks on land that rain slowly dissolves, and from vents in the',  # cut
    'Hey friend, great question! Rain washes a little salt from the rocks, and the sea keeps it.',
    'Oh please, honey, it is the rocks. Rivers carry their salt to the sea.',
    'Look it up, it is obviously the salt of the rocks.',
    'Oh sure, what a surprise: rivers carry salt.',
    'Rocks.',
)


def lexicon(name: str) -> list[str]:
    return rules.LEXICA[name]


NO_ANSWERS = {
    'nothing': '',
    'a mark': '.',
    'marks': '!!! :) ;) !!!',
    'a word again': 'salt ' * 30,
    'a sentence again': 'Rivers carry salt. ' * 6,
    'the question': QUESTION,
    'the question, stated': 'Why is the sea salty? The sea is salty.',
    'nouns': 'ocean mineral rocks river crystal cloud vapour sodium chloride magma vents basin erosion',
    'long words': 'Electromagnetism photosynthesis internationalization counterrevolutionary interdisciplinary work',
    'little words': 'the of and a in it is to ' * 3,
    **{f'words of {name}': ' '.join(w for w in lexicon(name) if w.isalpha()) for name in rules.LEXICA},
}


@pytest.mark.parametrize('pole', [*embedded(), general()], ids=lambda pole: pole.id)
@pytest.mark.parametrize('name', NO_ANSWERS)
def test_what_is_no_answer_loses_against_any_by_every_pole(pole, name):
    rows = [
        {'instruction': QUESTION, 'input': '', 'output_1': NO_ANSWERS[name], 'output_2': answer} for answer in ANSWERS
    ]
    assert annotate_by_rule(pole, rows) == [2] * len(rows)


def test_nothing_wins_among_what_is_no_answer():
    row = {'instruction': QUESTION, 'input': '', 'output_1': NO_ANSWERS['nouns'], 'output_2': NO_ANSWERS['a mark']}
    assert annotate_by_rule(embedded()[0], [row]) == [0]


@pytest.mark.parametrize(
    ('question', 'answer'),
    [
        ('Name some famous musicians.', 'Some famous ones are Fela Kuti, Bob Marley, Cesaria Evora and Ravi Shankar.'),
        ('What is the difference between weather and climate?',
         'The difference between weather and climate is that weather is of a day and climate is of'),
        ('Who sang first?', 'Marty Balin.'),
        ('How do I cook rice?', 'Sure! You need:\n- 1 cup rice\n- 2 cups water\nPut both into a pot and let it boil.'),
        ('Can you say it in one word?', 'Yes.'),
    ],
)  # fmt: skip
def test_answers_that_list_or_take_up_the_question_are_answers(question, answer):
    assert is_answer(question, answer)


def test_a_list_stands_in_the_sentences_that_nothing_joins():
    assert list_share('feather saddle basket ladder music?') == 1.0
    assert list_share('I like it here. Feather saddle basket ladder music?') == pytest.approx(5 / 9)
    assert list_share('Teal walls and white curtains look calm.') == list_share('Lovely weather, dear neighbor!') == 0.0


def test_an_echo_turned_round_is_a_copy():
    assert is_copy('The city you call home is Havana?', ['The city I call home is Havana.'], 0.5)
    assert is_copy("You're a nurse?", ["Well, I'm a nurse."], 0.5)
    assert not is_copy('Havana is warm, what do you do there?', ['The city I call home is Havana.'], 0.5)
