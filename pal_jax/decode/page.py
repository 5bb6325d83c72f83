"""The chat page of the server: one HTML file, and what it has to know of the model."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path
from typing import Any, NamedTuple

from fastapi.responses import HTMLResponse

from pal_jax.types import Sampling

FILE = Path(__file__).with_name('chat.html')


class Preset(NamedTuple):
    """How the page talks with the model.

    system: the system prompt; the user may change it unless there is a `layout`.
    layout: how an answer is laid out, with {profile} and {reply} where they stand; '' where an answer is a reply.
    sampling: how answers are drawn; the user may change the temperature and the limit.
    """

    system: str = ''
    layout: str = ''
    sampling: Sampling = Sampling(temperature=0.7, max_tokens=256)

    def record(self) -> dict[str, Any]:
        """What the page reads; `options` are those of a request."""
        drawn = self.sampling
        options = {'temperature': drawn.temperature, 'max_tokens': drawn.max_tokens}
        options |= {'top_k': drawn.top_k, 'top_p': drawn.top_p, 'stop': drawn.stop}
        return {'system': self.system, 'layout': self.layout, 'options': options}


PLAIN = Preset()


@functools.cache
def chat_page() -> HTMLResponse:
    """The page, which may load nothing, talk to its own server alone, and run no script but the one it has."""
    html = FILE.read_text('utf-8')
    policy = {
        'default-src': "'none'",
        'script-src': _hash(html, 'script'),
        'style-src': _hash(html, 'style'),
        'img-src': 'data:',
        'connect-src': "'self'",
        'base-uri': "'none'",
        'form-action': "'none'",
        'frame-ancestors': "'none'",
    }
    headers = {
        'content-security-policy': '; '.join(f'{name} {value}' for name, value in policy.items()),
        'referrer-policy': 'no-referrer',
        'x-content-type-options': 'nosniff',
    }
    return HTMLResponse(html, headers=headers)


def _hash(html: str, tag: str) -> str:
    """The one block of `tag` as a policy names it."""
    (block,) = re.findall(f'<{tag}>(.*?)</{tag}>', html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"
