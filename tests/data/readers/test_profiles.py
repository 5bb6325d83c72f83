"""Personalized RewardBench and PersonaMem, on ten rows of their form that were written for these tests."""

from __future__ import annotations

import csv
import json

import pytest

from pal_jax.data.readers import opinions
from pal_jax.types import Choice

ABOUT = (
    ('cooking', 'How do I keep dough from sticking?', 'A bread that needs no kneading?', 'flour'),
    ('travel', 'Which trains run to the coast?', 'A quiet beach that trains reach?', 'trains'),
    ('garden', 'My roses have black spots.', 'What grows beside roses?', 'roses'),
    ('music', 'How often should a cello be tuned?', 'A cello piece for a beginner?', 'cello'),
    ('sport', 'I ran my first ten kilometres.', 'How do I run farther?', 'running'),
    ('books', 'I gave up on a long novel.', 'A short novel for one evening?', 'brevity'),
    ('health', 'I sleep badly after coffee.', 'What helps me sleep?', 'sleep'),
    ('money', 'I keep a list of all I spend.', 'How do I spend less?', 'thrift'),
    ('pets', 'Our cat fears the vacuum cleaner.', 'How do I calm a cat?', 'calm'),
    ('home', 'The kitchen tap drips at night.', 'Who mends a tap on Sundays?', 'repairs'),
)
REWARDBENCH = [
    {
        'id': str(number),
        'question': question,
        'profile': [
            {'category': topic, 'id': f'{number}{k}', 'text': text}
            for k, text in enumerate((f'{earlier} ({topic})', 'Nothing else.', 'Zebras?', 'Quite so.'))
        ],
        'rubric_aspects': [{'aspect': f'SECRET {taste}', 'evidence': 'SECRET', 'reason': 'SECRET'}],
        'narrative': f'SECRET {taste}',
        'category': topic,
        'chosen': f'A good answer about {taste}.',
        'rejected': 'A good answer about something else.',
    }
    for number, (topic, earlier, question, taste) in enumerate(ABOUT)
]


def jsonl(path, rows):
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return str(path)


def test_rewardbench_shows_the_profile_and_keeps_the_rubrics_from_the_model(tmp_path):
    choices = list(opinions.read(f'rewardbench:{jsonl(tmp_path / "r.jsonl", REWARDBENCH)}'))
    assert [choice.user for choice in choices] == [str(number) for number in range(10)]
    assert not any('SECRET' in text for c in choices for text in (c.prompt, c.chosen, c.rejected, c.group))
    # Three of the four entries, in their order: the first shares a word with the question.
    assert choices[1] == Choice(
        'Which trains run to the coast? (travel)\n\nNothing else.\n\nZebras?\n\nA quiet beach that trains reach?',
        'A good answer about trains.',
        'A good answer about something else.',
        '1',
    )


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'profile': None}, 'r.jsonl, line 4.*profile'),
        ({'profile': ['text']}, "line 4: expected an object, got 'text'"),
        ({'chosen': 7}, 'line 4.*chosen'),
        ({'id': ''}, 'line 4.*id'),
    ],
)
def test_rewardbench_names_a_wrong_row(tmp_path, change, words):
    rows = [*REWARDBENCH[:3], REWARDBENCH[3] | change]
    with pytest.raises(ValueError, match=words):
        list(opinions.read(f'rewardbench:{jsonl(tmp_path / "r.jsonl", rows)}'))


def question(number: int, **changes: str) -> dict[str, str]:
    _, _, asked, taste = ABOUT[number]
    options = [f'({letter}) {text}' for letter, text in zip('abcd', (taste, 'x', 'y', "it's z"), strict=True)]
    return {
        'persona_id': str(number % 4), 'question_id': f'q{number}', 'question_type': 'recall', 'topic': 'any',
        'user_question_or_message': asked, 'correct_answer': '(a)', 'all_options': str(options),
        'shared_context_id': f'c{number}', 'end_index_in_shared_context': '4', **changes,
    }  # fmt: skip


def personamem(folder, questions):
    with (folder / 'questions_32k.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, list(questions[0]))
        writer.writeheader()
        writer.writerows(questions)
    said = 'system', 'user', 'assistant', 'user', 'assistant', 'user'
    contexts = [
        {
            f'c{number}': [
                {'role': role, 'content': text}
                for role, text in zip(
                    said, ('SECRET', f'User: {earlier}', 'Hm.', 'Ah.', 'SECRET', 'SECRET'), strict=True
                )
            ]
        }
        for number, (_, earlier, *_) in enumerate(ABOUT)
    ]
    jsonl(folder / 'shared_contexts_32k.jsonl', contexts)
    return f'personamem:{folder}'


def test_personamem_shows_what_was_said_before_the_question(tmp_path):
    choices = list(opinions.read(personamem(tmp_path, [question(number) for number in range(10)])))
    assert len(choices) == 30 and {choice.user for choice in choices} == set('0123')
    assert not any('SECRET' in choice.prompt for choice in choices)
    prompt = 'User: How do I keep dough from sticking?\n\nHm.\n\nAh.\n\nA bread that needs no kneading?'
    assert choices[:3] == [Choice(prompt, 'flour', other, '0') for other in ('x', 'y', "it's z")]


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        ({'correct_answer': '(e)'}, r"correct_answer is '\(e\)', and the options are \(a\), \(b\), \(c\), \(d\)"),
        ({'all_options': 'a or b'}, "all_options is 'a or b'"),
        ({'all_options': "['(a) x']"}, 'all_options'),
        ({'shared_context_id': 'c99'}, "shared_context_id 'c99'"),
        ({'end_index_in_shared_context': '-1'}, "end_index_in_shared_context is '-1'"),
    ],
)
def test_personamem_names_a_wrong_row(tmp_path, change, words):
    source = personamem(tmp_path, [question(0), question(1, **change)])
    with pytest.raises(ValueError, match=f'questions_32k.csv.*3.*{words}'):
        list(opinions.read(source))


def test_personamem_needs_one_file_of_each(tmp_path):
    source = personamem(tmp_path, [question(0)])
    (tmp_path / 'questions_1M.csv').write_text('a\n')
    with pytest.raises(ValueError, match=r'2 files questions_\*.csv'):
        list(opinions.read(source))
