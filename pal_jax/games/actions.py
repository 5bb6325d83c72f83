r"""The action that an answer names: the last `\boxed{...}` of it, or the whole of it (SPIRAL's released code)."""

from __future__ import annotations

import re

BOX = '\\boxed{'
# An answer of more words without brackets names no action.
WORDS = 5


def extract(text: str) -> str | None:
    r"""The action of an answer in brackets, such as `[4]` of `\boxed{\text{4}}`; None of an answer without words.

    The action is the content of the last `\boxed{...}` whose braces are balanced, without `\text{}`; without a box it
    is the whole answer. Whether the action is legal is for the game to say.
    """
    said = boxed(text)
    said = re.sub(r'\\text\{([^{}]*)\}', r'\1', text if said is None else said)
    words = said.split()
    if not words:
        return None
    # White space collapses to single blanks.
    action = ' '.join(words)
    # Brackets are added where there are none and the action has at most five words.
    return action if '[' in action or ']' in action or len(words) > WORDS else f'[{action}]'


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` with balanced braces; None where there is none."""
    start = text.rfind(BOX)
    while start >= 0:
        depth, first = 1, start + len(BOX)
        for place in range(first, len(text)):
            depth += {'{': 1, '}': -1}.get(text[place], 0)
            if not depth:
                return text[first:place]
        start = text.rfind(BOX, 0, start)
    return None
