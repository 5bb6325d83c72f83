"""The chat page of the server: one HTML file, and the settings that it reads."""

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
    """The settings with which the page talks with the model.

    system: the system prompt. The user may change it unless there is a `layout`.
    layout: the layout of an answer, with {profile} and {reply} in their places; '' where an answer is a reply alone.
    sampling: the sampling of answers. The user may change the temperature and the limit.
    asks: whether the page may ask for the user's taste (`interviews.py`).
    """

    system: str = ''
    layout: str = ''
    sampling: Sampling = Sampling(temperature=0.7, max_tokens=256)
    asks: bool = False

    def record(self) -> dict[str, Any]:
        """The settings as JSON for the page. `options` are those of a request."""
        sampling = self.sampling
        options = {'temperature': sampling.temperature, 'max_tokens': sampling.max_tokens}
        options |= {'top_k': sampling.top_k, 'top_p': sampling.top_p, 'stop': sampling.stop}
        return {'system': self.system, 'layout': self.layout, 'options': options, 'asks': self.asks}


PLAIN = Preset()


@functools.cache
def chat_page() -> HTMLResponse:
    """The page, which may load no other file, call its own server alone, and run its own script alone."""
    html = FILE.read_text('utf-8')
    policy = {
        'default-src': "'none'",
        # The hash allows the page's own script and no other one.
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
    """The name, in a content security policy, of the one block of `tag`, which is its hash."""
    (block,) = re.findall(f'<{tag}>(.*?)</{tag}>', html, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()}'"
