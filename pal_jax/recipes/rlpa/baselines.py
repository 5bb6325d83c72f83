"""Policies in an evaluation: one that writes its profile with every reply, and models that were never taught to.

The latter talk plainly, and beside every reply they are asked for a profile of the user, which nobody else sees (RLPA,
section 4.1). Their system prompt has what they know beforehand, see `BASELINES`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pal_jax.data.thoughts import spoken_reply
from pal_jax.recipes.rlpa.personalization import Respond
from pal_jax.recipes.rlpa.profiles import parse_facts, plain_history, render_completion, render_facts, to_sample
from pal_jax.types import Chat, Completion, Dialogue, Person, Sample

Complete = Callable[[Sequence[Chat], int], list[Completion]]  # one completion a chat
Known = Callable[[Person], str]  # makes a system prompt

REMINDER = 'Be personal: keep in mind all that the user has told about themselves, and let your replies show it.'
_KNOWN = 'You chat with a user. What you know about them:\n{facts}Let your replies show that you know them.'
_QUESTION = (
    'Stop the chat for a moment. Write down what I have told you about me, a line each in the form "- topic: value". '
    'Topics: {topics}. Leave out what you do not know, and write nothing else.'
)

BASELINES: dict[str, Known] = {
    # This model knows nothing beforehand.
    'base': lambda person: '',
    # This model knows that it should be personal.
    'reminder': lambda person: REMINDER,
    # This model knows the user's true profile, which bounds the value of knowing the user for the reply.
    'oracle': lambda person: _KNOWN.format(facts=render_facts(person.facts)),
}


def profile_question(topics: Sequence[str]) -> dict[str, str]:
    """The message that asks a model for the profile of its user."""
    return {'role': 'user', 'content': _QUESTION.format(topics=', '.join(topics) or 'any')}


def plain_model(complete: Complete, known: Known, topics: Sequence[str]) -> Respond:
    """A model that replies as it likes after the system prompt `known`, and is asked for a profile besides."""
    question = profile_question(topics)

    def respond(dialogues: Sequence[Dialogue], seed: int) -> list[Sample]:
        chats = [_chat(dialogue, known(dialogue.person)) for dialogue in dialogues]
        replies = complete(chats, 2 * seed)
        lines = [{'role': 'assistant', 'content': (spoken_reply(reply.text) or '').strip()} for reply in replies]
        # The profile is asked for beside the dialogue, so neither question nor profile stands in the next turn's chat.
        profiles = complete([[*chat, turn, question] for chat, turn in zip(chats, lines, strict=True)], 2 * seed + 1)
        return _samples(dialogues, list(map(_together, profiles, replies)))

    return respond


def _chat(dialogue: Dialogue, system: str) -> list[dict[str, str]]:
    turns = [{'role': turn.role, 'content': turn.content} for turn in plain_history(dialogue).turns]
    return [{'role': 'system', 'content': system}, *turns] if system else turns


def _together(profile: Completion, reply: Completion) -> Completion:
    """The reply in the format, with the facts of the profile."""
    plain, facts = spoken_reply(reply.text), parse_facts(spoken_reply(profile.text) or '')
    # A reply that holds the format's tags stays malformed, and so does one whose thought does not end.
    text = '' if plain is None else render_completion(render_facts(facts), plain.strip())
    return Completion(text, reply.token_ids, reply.logprobs, reply.finish_reason)


def _samples(dialogues: Sequence[Dialogue], completions: Sequence[Completion]) -> list[Sample]:
    cases = enumerate(zip(dialogues, completions, strict=True))
    return [to_sample(dialogue, completion, group=group) for group, (dialogue, completion) in cases]
