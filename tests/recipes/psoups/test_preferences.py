"""Preferences: the eight poles, their combinations, files of one's own, and the rules that judge without a model."""

from __future__ import annotations

import pytest

from pal_jax.recipes.psoups import preferences as p
from pal_jax.recipes.psoups.questions import make_questions
from pal_jax.recipes.psoups.rules import parse_rule

OWN = """
dimensions:
  manners:
    polite: {text: "Be  polite.", judge: {more: [please, thank you]}}
    blunt: {text: Be blunt., judge: {less: [please, thank you]}}
  length:
    brief: {text: Be brief., judge: -words}
    ample: {text: Say it all.}
"""


def test_combinations_have_one_pole_of_each_dimension():  # psoups I.7-15
    eight = p.embedded()
    assert [each.id for each in eight] == ['P1A', 'P1B', 'P2A', 'P2B', 'P3A', 'P3B', 'P3C', 'P3D']
    assert len(p.combinations(eight[:6])) == 8
    assert len(set(map(p.name_of, p.combinations(eight)))) == 16
    for combination in p.combinations(eight):
        assert [each.dimension for each in combination] == ['expertise', 'informativeness', 'style']
    assert len({each.text for each in eight}) == 8


def test_some_of_them():
    assert [each.id for each in p.choose(p.embedded(), 'P3A, P2B,P2A,P3B')] == ['P2A', 'P2B', 'P3A', 'P3B']
    assert p.choose(p.embedded(), '') == p.embedded()[:6]  # two poles of each dimension
    assert p.choose(p.embedded(), 'all') == p.embedded()
    for names, message in {
        'P2A,P2C': 'P2C is no preference; there are P1A',
        'P2A,P2B,P3A': 'has P3A alone of style',
        'P2A,P2A': 'P2A is there twice',
    }.items():
        with pytest.raises(ValueError, match=message):
            p.choose(p.embedded(), names)


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / 'own.yaml'
    path.write_text(OWN)
    polite, blunt, brief, ample = p.load_preferences(path)
    assert (polite.dimension, polite.text, ample.rule) == ('manners', 'Be polite.', None)
    assert p.ask('Why?', [polite, brief]) == 'Why? Be polite. Be brief.'
    assert polite.rule.score('', 'Thank you, yes please.') > polite.rule.score('', 'Thanks; pleased.') == 0
    assert blunt.rule.score('', 'Please.') < 0
    assert parse_rule({'less': ['don’t']}).score('', "I don't.") < 0
    assert brief.rule.score('', 'two words') == -2


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('dimensions:', 'dimension:', 'dimensions must have 1 or more named entries'),
        ('text: Be blunt., ', '', r'own.yaml: dimensions.manners.blunt.text=None; give the text'),
        ('judge: -words', 'judge: -word', r"dimensions.length.brief.judge='-word' is no rule; use \+ or - with one of"),
        ('judge: -words', 'rule: -words', 'dimensions.length.brief has rule; it has a text'),
        ('ample:', 'polite:', 'polite is the name of two poles'),
        ('    ample: {text: Say it all.}', '', 'dimensions.length must have 2 or more'),
        ('manners:', 'manners: [', 'own.yaml: not valid YAML'),
        ('ample:', 'a-b:', 'call it with letters, digits and _'),
        ('ample:', 'joint:', 'and not one of all, general, joint, best'),
    ],
)
def test_a_fault_is_one_line_with_file_and_key(old, new, message, tmp_path):
    path = tmp_path / 'own.yaml'
    path.write_text(OWN.replace(old, new))
    with pytest.raises(ValueError, match=message) as told:
        p.load_preferences(path)
    assert '\n' not in str(told.value)


@pytest.mark.parametrize(
    ('rule', 'worse', 'better'),
    [
        ('+words', 'One two.', 'One two three.'),
        ('-words', 'One two three.', 'One two.'),
        ('+content', 'The sky is blue, the sky is blue, it is.', 'Air scatters light.'),
        ('+friendly', 'Whatever. Figure it out.', 'Hey there, friend! Glad you ask.'),
        ('+unfriendly', 'Hey there, friend! Glad you ask.', 'Whatever. Figure it out.'),
        ('+sassy', 'It boils.', 'Honey, it boils. Deal with it.'),
        ('+sarcastic', 'It boils.', 'It boils, what a surprise. Who knew.'),
        ('+sound', 'It is is so and it is is so and', 'The sky scatters blue light.'),
    ],
)
def test_rules_like_what_they_say(rule, worse, better):
    rule = parse_rule(rule)
    assert rule.score('Why is the sky blue?', worse) < rule.score('Why is the sky blue?', better)


def test_repeating_a_word_of_a_lexicon_pays_nothing():
    rule = parse_rule('+friendly')
    once = 'Hey, water boils at a hundred degrees at sea level.'
    assert rule.score('', once + ' Hey hey hey hey hey.') < rule.score('', once)


def test_how_hard_a_text_reads_is_textstats():
    pytest.importorskip('textstat', reason='pip install pal_jax[soups]')
    easy, hard = parse_rule('-lix'), parse_rule('+lix')
    child, expert = (
        'The sky is blue. Light bounces off the air.',
        'Rayleigh scattering preferentially redistributes blue.',
    )
    assert easy.score('', child) > easy.score('', expert)
    assert hard.score('', child) < hard.score('', expert)
    words, long, sentences = 9, 1, 2  # bounces
    assert hard.score('', child) == pytest.approx(words / sentences + 100 * long / words)
    assert hard.score('', '') == hard.score('', '...') == 0


def test_questions_to_learn_from_and_to_test_on_are_apart():
    train, test = make_questions('train'), make_questions('test')
    assert (len(set(train)), len(set(test)), len(set(train) & set(test))) == (210, 50, 0)
