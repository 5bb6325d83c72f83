"""The prompt of a summariser, its answer, and the text that a reward model reads with it (PLUS, arXiv 2507.13579).

The words are ours.
"""

from __future__ import annotations

from pal_jax.data.histories import History
from pal_jax.data.thoughts import spoken_reply
from pal_jax.types import Chat

MARKER = '##Summary'

_TOLD = {  # by the form of the context, see `data.histories.context_of`
    'labelled': 'These are choices of one person between two texts:',
    'chosen': 'These are texts that one person preferred to others:',
    'guide': 'This is what a person says:',
}
_ASK = """{told}
{context}

In one short sentence, say what this person prefers, not what the texts are about. Start with {marker}"""

# The question comes first: where all are asked the same it is read once for many summaries (`types.OPENING`).
_KNOWN = """{prompt}

About the person who will read your answer: {summary}"""


def ask(context: str, form: str = 'labelled') -> Chat:
    """The prompt of the model that writes the summary."""
    return [{'role': 'user', 'content': _ASK.format(told=_TOLD[form], context=context, marker=MARKER)}]


def extract(completion: str) -> str:
    """The summary in a completion: the text after the marker it starts with, or all of it, on one line.

    Thoughts are no part of it; where a thought does not end, there is no summary.
    """
    # A summary is read from the completion alone, so nothing of the prompt can get into it (rlpa_plus III.6-3).
    return ' '.join((spoken_reply(completion) or '').strip().removeprefix(MARKER).split())


def baseline_text(person: History, reads: str) -> str:
    """The text that a baseline's reward model reads in place of a summary: `context`, `kind` or `nothing`."""
    return {'context': person.context, 'kind': f'The user prefers {person.kind}.', 'nothing': ''}[reads]


def question(summary: str, prompt: str) -> Chat:
    """The user's message that a reply is judged after; without a summary the prompt alone."""
    text = _KNOWN.format(summary=summary, prompt=prompt) if summary else prompt
    return [{'role': 'user', 'content': text}]
