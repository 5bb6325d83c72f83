import pytest

from pal_jax.recipes.rlpa.profiles import (
    fact_key,
    match_exactly,
    mentions,
    parse_completion,
    parse_facts,
    plain_history,
    profile_f1,
    profile_scores,
    render_completion,
    render_facts,
    split_fact,
)
from pal_jax.types import Dialogue, Person, Turn

WELL_FORMED = '<profile>\n- pet: cat\n</profile>\n\n<response>\nHi there.</response>'


def test_well_formed_completion_gives_facts_and_reply():
    parsed = parse_completion(WELL_FORMED)
    assert parsed == ('- pet: cat\n', ('pet: cat',), 'Hi there.')


@pytest.mark.parametrize(
    'text',
    [
        WELL_FORMED.replace('\n\n', '\n'),  # one newline between the blocks
        WELL_FORMED.replace('\n\n', '\n\n\n'),
        WELL_FORMED.replace('<profile>\n', '<profile>'),
        WELL_FORMED.replace('<response>\n', '<response>'),
        WELL_FORMED.replace('</profile>', ''),
        WELL_FORMED.replace('</response>', ''),
        WELL_FORMED.replace('Hi there.', WELL_FORMED),  # a block inside the reply
        WELL_FORMED.replace('- pet', '</profile>\n- pet'),
        'Hi there.',
        '',
    ],
)
def test_malformed_completion_is_none(text):
    assert parse_completion(text) is None


def test_text_around_the_blocks_is_ignored_and_the_first_blocks_count():
    parsed = parse_completion(f'Let me think. {WELL_FORMED} bye {WELL_FORMED.replace("cat", "dog")}')
    assert parsed is not None
    assert parsed.facts == ('pet: cat',)


def test_empty_profile_is_well_formed():
    parsed = parse_completion(render_completion('', 'Hello.'))
    assert parsed == ('', (), 'Hello.')


@pytest.mark.parametrize('facts', [(), ('pet: cat',), ('pet: cat', 'She has two sons.')])
def test_rendering_is_the_inverse_of_parsing(facts):
    parsed = parse_completion(render_completion(render_facts(facts), 'Hello.'))
    assert parsed is not None
    assert (parsed.facts, parsed.reply) == (facts, 'Hello.')
    assert render_completion(parsed.profile, parsed.reply) == render_completion(render_facts(facts), 'Hello.')


@pytest.mark.parametrize(
    'profile', ['- a\n- b', '- a\n- b\n', '\n* a\n\n  • b  \n', '1. a\n2) b\n', '- a\n- b\n- A.\n']
)
def test_facts_do_not_depend_on_layout(profile):
    assert parse_facts(profile) == ('a', 'b')


def test_brackets_and_headings_are_no_facts():
    assert parse_facts('[\nInterests:\n- chess\n- pet:\n]\n') == ('chess',)


def test_each_value_of_a_json_profile_is_a_fact():
    """The ten-slot form of RLPA's appendix: elements of a list are points of their own, blank slots none."""
    profile = '{\n "Age": 34, "Pet": "cat", "Interests": ["chess", "", "rowing"], "Others": [], "X": {"a": 1}, "Y": ""}'
    assert parse_facts(profile) == ('Age: 34', 'Pet: cat', 'Interests: chess', 'Interests: rowing')
    assert parse_facts('{"Pet": "cat"') == ('{"Pet": "cat"',)  # no JSON: a line
    assert parse_facts('{' * 20_000) == ()


def test_slot_has_at_most_three_words():
    assert split_fact('pet : cat') == ('pet', 'cat')
    assert split_fact('what she told me yesterday: nothing') == ('', 'what she told me yesterday: nothing')
    assert split_fact('34 years old') == ('', '34 years old')


@pytest.mark.parametrize('spelling', ['Pet: Cat', '- pet: a cat.', '* pet:  the cat', '"pet": "cat",'])
def test_spellings_of_one_fact_share_a_key(spelling):
    assert fact_key(spelling) == ('pet', 'cat')


@pytest.mark.parametrize(
    ('inferred', 'golden', 'count'),
    [
        (['pet: cat', 'city: Oslo'], ['pet: cat', 'job: nurse'], 1),
        (['pet: cat', 'Pet: the cat.'], ['pet: cat'], 1),  # one golden fact is matched once
        (['city: cat'], ['pet: cat'], 0),  # the right value in the wrong slot
        (['cat'], ['pet: cat'], 0),
        (['she keeps bees.'], ['She keeps bees'], 1),
        ([], ['pet: cat'], 0),
    ],
)
def test_exact_match_counts_shared_facts(inferred, golden, count):
    assert match_exactly([inferred], [golden]) == [count]
    assert match_exactly([golden], [inferred]) == [count]


def test_exact_match_is_batched_in_order():
    assert match_exactly([['a'], ['b'], ['c']], [['a'], ['x'], ['c']]) == [1, 0, 1]
    with pytest.raises(ValueError, match='zip'):
        match_exactly([['a']], [])


@pytest.mark.parametrize(
    ('c', 'inferred', 'golden', 'f1'),
    [
        (3, 4, 10, 0.428571),  # G16
        (3, 5, 10, 0.4),
        (0, 4, 10, 0.0),
        (10, 10, 10, 1.0),
        (5, 5, 1, 0.333333),  # over-counted: clamped to 1 match
        (99, 4, 4, 1.0),
        (-1, 4, 4, 0.0),
        (0, 0, 0, 0.0),
    ],
)
def test_profile_f1(c, inferred, golden, f1):
    assert profile_f1(c, inferred, golden) == pytest.approx(f1, abs=1e-6)


def test_f1_is_the_harmonic_mean_and_never_leaves_the_unit_interval():
    for c in range(8):
        for inferred in range(7):
            for golden in range(7):
                _, p, r, f1 = profile_scores(c, inferred, golden)
                assert 0 <= f1 <= 1
                assert f1 == pytest.approx(2 * p * r / (p + r) if p + r else 0.0)


def test_mention_is_a_whole_word_in_either_case_and_number():
    assert mentions('Two Cats sleep.', 'cat')
    assert mentions('mint tea, please', 'Mint tea')
    assert not mentions('The catalogue is here.', 'cat')


def test_plain_history_has_replies_but_no_profiles():
    turns = (Turn('user', 'Hello'), Turn('assistant', 'Hi', '- pet: cat\n'), Turn('user', 'Well'))
    plain = plain_history(Dialogue(Person('p', ('pet: cat',)), turns))
    assert [turn.content for turn in plain.turns] == ['Hello', 'Hi', 'Well']
    assert not any(turn.profile for turn in plain.turns)


def test_a_draft_in_a_thought_is_no_answer():
    draft, answer = render_completion('- pet: cat\n', 'Meow?'), render_completion('- pet: ferret\n', 'A ferret?')
    for thought in (f'<think>{draft}</think>', f'{draft}</think>', f'[THINK]{draft}[/THINK]\n'):
        assert parse_completion(thought + answer) == parse_completion(answer)
    assert parse_completion(f'<think>{draft}') is None
    within = render_completion('- pet: ferret\n', '<think>My user has a ferret.</think>A ferret?')
    assert parse_completion(within) == parse_completion(answer)
