"""The oracle's answers to people of RLPA's training as records, from which supervised methods learn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pal_jax.recipes.rlpa import dialogue as env
from pal_jax.recipes.rlpa.oracle import make_answers
from pal_jax.recipes.rlpa.people import SLOTS, make_people
from pal_jax.recipes.rlpa.users import make_scripted_user
from pal_jax.run.language import SupervisedRun


def records(settings: SupervisedRun, key: str) -> Iterator[list[dict[str, Any]]]:
    """The oracle's answers to each person in the format of files: the good answer as `key`, the other one as
    `rejected`."""
    oracle, system = settings.oracle, env.actor_prompt(SLOTS)
    people = make_people(oracle.people, seed=settings.seed, facts=oracle.facts)
    user = make_scripted_user(p_spontaneous=oracle.p_spontaneous)
    by_person: dict[str, list[dict[str, Any]]] = {}
    for dialogue, good, worse in make_answers(people, user, rounds=oracle.rounds, seed=settings.seed):
        replies = [[{'role': 'assistant', 'content': text}] for text in (good, worse)]
        record = {'prompt': env.messages(dialogue, system), key: replies[0], 'rejected': replies[1]}
        by_person.setdefault(dialogue.person.id, []).append(record)
    yield from by_person.values()
