"""People, users and samples for the tests of dialogues and of their queue."""

from __future__ import annotations

import dataclasses

from pal_jax.recipes.rlpa.profiles import render_completion, to_sample
from pal_jax.recipes.rlpa.users import make_scripted_user
from pal_jax.types import Completion, Person

BAD = 'no blocks'
USER = make_scripted_user(p_spontaneous=1.0)


def people(n):
    return [Person(f'u{i}', ('pet: cat',)) for i in range(n)]


def never(dialogues, seed):
    raise AssertionError('the user was asked')


def group(dialogue, rewards, *, texts=None, oks=None):
    texts = texts or [
        render_completion(f'- note: {i}\n', f'Reply {i} of {dialogue.round}.') for i in range(len(rewards))
    ]
    oks = oks or [True] * len(rewards)
    return [
        dataclasses.replace(to_sample(dialogue, Completion(text, (), (), 'stop')), rewards=(reward,), ok=ok)
        for text, reward, ok in zip(texts, rewards, oks, strict=True)
    ]
