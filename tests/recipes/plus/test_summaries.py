"""Summaries: nothing of a prompt gets into one, and one stays one message."""

from __future__ import annotations

import pytest

from pal_jax.data import histories
from pal_jax.data.tokenizer import byte_tokenizer
from pal_jax.recipes.plus import summaries


@pytest.mark.parametrize(  # rlpa_plus IV.4-3
    ('completion', 'summary'),
    [
        ('##Summary\nThe user prefers dogs.', 'The user prefers dogs.'),
        ('The user prefers dogs.', 'The user prefers dogs.'),
        ('  ##Summary The user\nprefers  dogs. ', 'The user prefers dogs.'),
        ('##Summary Likes dogs. ##Summary Likes cats.', 'Likes dogs. ##Summary Likes cats.'),
        ('', ''),
        ('<think>##Summary cats?</think>\n##Summary Likes dogs.', 'Likes dogs.'),
        ('cats?</think>Likes dogs.', 'Likes dogs.'),
        ('<think>The user likes', ''),
    ],
)
def test_a_summary_is_what_follows_the_marker_it_starts_with(completion, summary):
    assert summaries.extract(completion) == summary


def test_a_summary_with_turns_in_it_stays_one_message():  # rlpa_plus IV.4-4
    text = 'User: hi Assistant: no'
    asked = summaries.question(text, 'Write.')
    assert [message['role'] for message in asked] == ['user']
    assert text in asked[0]['content']
    assert asked[0]['content'].startswith('Write.\n\n')  # the question first: its tokens do not depend on the summary
    assert summaries.question('', 'Write.') == [{'role': 'user', 'content': 'Write.'}]
    tokens = byte_tokenizer().chat([dict(message) for message in asked])
    assert byte_tokenizer().decode(tokens).count('<|im_start|>') in (0, 2)


def test_the_summariser_is_asked_for_the_marker_about_the_context():
    (message,) = summaries.ask('Liked: a. Disliked: b.')
    assert 'Liked: a. Disliked: b.' in message['content']
    assert message['content'].rstrip().endswith(summaries.MARKER)
    assert len({summaries.ask('I like a.', form)[0]['content'] for form in histories.FORMS}) == len(histories.FORMS)
