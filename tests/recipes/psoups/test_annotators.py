"""Annotators: what they are asked, how answers are read and un-switched, what is refused, and how far they agree."""

from __future__ import annotations

import re

import pytest

from pal_jax.recipes.psoups import annotators as a
from pal_jax.recipes.psoups.preferences import Preference, embedded, general

BRIEF = embedded()[2]  # P2A
SPEC = a.Spec()


def row(i, first='a long answer it is', second='short', text=''):
    return {'instruction': f'question {i}', 'input': text, 'output_1': first, 'output_2': second}


class Scripted:
    """Prefers the shorter output of every question it is shown; `spoil` answers other things by their number."""

    def __init__(self, spoil=None):
        self.chats, self.spoil = [], spoil or {}

    def __call__(self, chats, seed):
        start = len(self.chats)
        self.chats += chats
        return [self.spoil.get(start + k, self.answer(chat[-1]['content'])) for k, chat in enumerate(chats)]

    def answer(self, content):
        shown = re.findall(r'^Output \(a\): (.*)\nOutput \(b\): (.*)$', content, re.MULTILINE)
        return '\n'.join('TIE' if len(x) == len(y) else f'Output ({"a" if len(x) < len(y) else "b"})' for x, y in shown)


def test_rules_judge_without_an_order():
    rows = [row(0), row(1, 'short', 'a long answer'), row(2, 'two words', 'words two'), row(3, 'same', 'same')]
    assert a.annotate_by_rule(BRIEF, rows) == [2, 1, 0, 0]


def test_an_empty_answer_is_no_brief_one():
    rows = [row(0, '', 'a long answer'), row(1, 'short', ' \n'), row(2, '', ' ')]
    assert a.annotate_by_rule(BRIEF, rows) == [2, 1, 0]


def test_verdicts_are_those_of_the_rows_whatever_order_they_were_shown_in():
    rows = [row(i, *(('short', 'a long answer') if i % 3 else ('a long answer', 'short'))) for i in range(12)]
    rows[4] = row(4, 'same', 'same')
    model = Scripted()
    expected = [0 if i == 4 else 1 if i % 3 else 2 for i in range(12)]
    assert a.make_annotator(model, SPEC)(BRIEF, rows, 0) == expected
    assert len(model.chats) == 3  # 11 rows by fives; the equal one is not asked about
    assert BRIEF.text in model.chats[0][0]['content'] and BRIEF.text in model.chats[0][1]['content']
    assert 'question 4' not in str(model.chats)
    flags = [a.switches(BRIEF, each, 0) for each in rows]
    assert 2 < sum(flags) < 10
    assert flags == [a.switches(BRIEF, each, 0) for each in rows] != [a.switches(BRIEF, each, 1) for each in rows]
    for switched in (False, True):
        assert a.make_annotator(Scripted(), SPEC)(BRIEF, rows, 0, switched) == expected


def test_long_answers_are_judged_whole():
    rows = [row(0, 'word ' * 2000 + 'the end of one', 'word ' * 2000 + 'the end of another')]
    told = a.question(SPEC, BRIEF, rows)[-1]['content']
    assert 'the end of one"' in told and 'the end of another"' in told


def test_rows_with_an_input_are_asked_about_by_themselves():
    model = Scripted()
    rows = [row(0), row(1, text='some text'), row(2)]
    spec = SPEC._replace(batch_size=2, with_inputs='{input}|{output_1}{output_2}{instruction}' * 2)
    assert a.make_annotator(model, spec._replace(with_inputs=''))(BRIEF, rows, 0) == [2, 2, 2]
    assert ['some text' in chat[1]['content'] for chat in model.chats] == [True, False]
    asked = a.question(spec, BRIEF, [rows[1]])
    assert asked[0]['role'] == 'user' and asked[0]['content'].startswith('"some text"|"a long answer it is""short"')


def test_what_cannot_be_read_is_asked_again_and_then_left_out():
    model = Scripted(spoil={0: 'I like both.'})
    rows = [row(i) for i in range(7)]
    assert a.make_annotator(model, SPEC)(BRIEF, rows, 0) == [2] * 7
    assert len(model.chats) == 3
    always = dict.fromkeys((0, 2, 3), 'Output (a)')  # one verdict for five rows
    assert a.make_annotator(Scripted(spoil=always), SPEC)(BRIEF, rows, 0) == [None] * 5 + [2] * 2
    assert a.make_annotator(lambda chats, seed: [None] * len(chats), SPEC)(BRIEF, rows, 0) == [None] * 7


def test_ties_are_ties_whichever_way_they_were_shown():  # psoups I.7-14
    for flags in ([False, True, True], [False, True, False]):
        assert [a.unswitch(told, flag) for told, flag in zip([1, 2, a.TIE], flags, strict=True)] == [1, 1, 0]
    judge = a.make_annotator(Scripted(), a.COMPARING)
    assert judge(BRIEF, [row(0, 'abc', 'xyz'), row(1)], 0, True) == [0, 2]
    assert a.own_template(a.COMPARING).count('{output_1}') == 1


def test_answers_are_read_from_the_earliest_match_on():
    two = SPEC._replace(batch_size=2)
    assert a.read(two, 'Output (b)\nOutput (a)\n') == [2, 1]
    assert a.read(two, 'Output (b)\nOutput (a)\nOutput (a)') is None
    assert a.read(two, 'So: Output (b)') is None
    thought = '### Thought for example 4\nOutput (a)\nis short\n### Result for example 4\nOutput (b)'
    assert a.read(a.COMPARING, thought) == [2]
    assert a.read(a.COMPARING, '### Thought for example 4\nOutput (a)\nis short, or') is None  # it was cut
    assert a.read(two._replace(matches={1: 'x*', 2: 'b'}), 'what ends') is None


def test_the_general_preference_has_a_criterion():
    assert 'helpful' in a.question(SPEC, general(), [row(0)])[0]['content']


FILE = """
judge:
  prompt_templates: {with_inputs: '', without_inputs: plain.txt}
  fn_decoder: openai_completions
  decoder_kwargs: {model_name: judge-1, max_tokens: 250, temperature: 1.0}
  outputs_to_match: {1: '(?:^|\\n)Output \\(a\\)', 2: '(?:^|\\n)Output \\(b\\)'}
  batch_size: 1
P3A:
  prompt_templates: {with_inputs: '', without_inputs: ''}
  fn_decoder: rule
  decoder_kwargs: {}
  outputs_to_match: {1: a, 2: b, 3: t}
  batch_size: 5
"""


def test_a_file_of_annotators(tmp_path):
    (tmp_path / 'plain.txt').write_text('{preference} {instruction}\nOutput (a): {output_1}\nOutput (b): {output_2}')
    path = tmp_path / 'judges.yaml'
    path.write_text(FILE)
    judge, style = a.load_annotators(path).values()
    assert (judge.decoder, style.decoder, style.batch_size) == ('endpoint:judge', 'rule', 5)
    assert judge.model == {'model': 'judge-1', 'max_tokens': 250, 'temperature': 1.0}
    assert a.make_annotator(Scripted(), judge)(BRIEF, [row(0), row(1)], 0) == [2, 2]


@pytest.mark.parametrize(
    ('old', 'new', 'message'),
    [
        ('  batch_size: 5\n', '', 'judges.yaml: P3A lacks batch_size'),
        ('batch_size: 1', 'batch_size: 2', r'plain.txt has \{instruction\} 1 times; batch_size=2'),
        ('fn_decoder: rule', 'fn_decoder: magic', "P3A.fn_decoder='magic'; use openai_completions"),
        ('max_tokens: 250', 'max_token: 250', 'judge.decoder_kwargs.max_token is unknown'),
        ('max_tokens: 250', 'tokens_to_favor: [a]', 'judge.decoder_kwargs.tokens_to_favor is not supported'),
        ('max_tokens: 250', 'max_tokens: "250"', "judge.decoder_kwargs.max_tokens='250' must be a number"),
        ('model_name: judge-1', 'model_name: 3', 'judge.decoder_kwargs.model_name=3 must be a text'),
        ('openai_completions', 'local:random:tiny', 'model_name: fn_decoder=local:random:tiny names the model'),
        ('{1: a, 2: b, 3: t}', '{1: a}', 'P3A.outputs_to_match must have patterns for 1 and 2'),
        ('{1: a, 2: b, 3: t}', '{1: "(", 2: b}', r"P3A.outputs_to_match.1='\(': missing"),
        (
            "with_inputs: '', without_inputs: plain.txt",
            "with_inputs: plain.txt, without_inputs: ''",
            r'plain.txt has \{input\} 0 times; batch_size=1',
        ),
        ('plain.txt', 'absent.txt', 'judge.prompt_templates.without_inputs: .*absent.txt is no file'),
        ('P3A:', 'P3A: 3\nP3B:', 'P3A must have the keys'),
    ],
)
def test_a_faulty_file_is_one_line_with_file_and_key(old, new, message, tmp_path):
    (tmp_path / 'plain.txt').write_text('{instruction}{output_1}{output_2}')
    path = tmp_path / 'judges.yaml'
    path.write_text(FILE.replace(old, new))
    with pytest.raises(ValueError, match=message) as told:
        a.load_annotators(path)
    assert '\n' not in str(told.value)


def test_kappa():
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: (.7 - .5) / (1 - .5)
    first, second = [1] * 25 + [2] * 25, [1] * 20 + [2] * 5 + [1] * 10 + [2] * 15
    assert a.cohen_kappa(first, second) == pytest.approx(0.4)
    assert a.cohen_kappa([1, 1, None], [1, 1, 2]) == 1
    assert a.cohen_kappa([1, 2], [2, 1]) == -1
    assert a.cohen_kappa([None], [1]) == 0


def test_a_preference_without_a_rule_needs_a_language_model():
    with pytest.raises(ValueError, match='own has no rule; give it a judge, or name endpoint:<name>'):
        a.annotate_by_rule(Preference('own', 'manners', 'Be polite.', None), [])


def test_no_verdict_is_read_from_a_thought():
    texts = ['<think>\nOutput (a)', 'so\nOutput (a)\n</think>\nOutput (b)']
    judge = a.make_annotator(lambda chats, seed: [texts.pop(0) for _ in chats], a.COMPARING)
    assert judge(BRIEF, [row(0, 'abc', 'xyz')], 0, False) == [2]
    assert not texts
