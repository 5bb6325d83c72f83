"""Thoughts of reasoning models, which are taken out of a text so that the reply is left.

Thoughts stand between marks, before or within the reply: `<think>`, `[THINK]`, `<|begin_of_thought|>` and the like in
upper or lower case, or in a channel of their own (`<|channel|>analysis<|message|>...`).
"""

from __future__ import annotations

import re

_NAME = (
    r'(?:[a-z]+:)?(?:ant)?(?:thinking|think|thoughts|thought|reasoning|reason|reflection|reflect|analysis|scratchpad'
    r'|rationale|cot|chain[ _-]of[ _-]thoughts?|(?:inner|internal)[ _-]?(?:monologue|thoughts?))'
)
# The name of a tag may have words around it, as in <longcat_think> or <thought_process>.
_TAG = rf'(?:[a-z]+[_-])*{_NAME}(?:[_-](?:process|content|steps?|faste?r?))?'
_OPENING = (
    rf'<\s*{_TAG}(?:\s[^<>]*)?(?<!/)>|\[\s*(?:think(?:ing)?|reasoning)\s*\]|◁\s*{_NAME}\s*▷'
    rf'|<\|\s*(?:begin_of_|start_)?{_NAME}(?:_start)?\s*\|>|<\|inner_prefix\|>|<\|channel>\s*thought'
    r'|<unused94>\s*thought'
)
_CLOSING = (
    rf'<\s*/\s*{_TAG}\s*>|\[\s*/\s*(?:think(?:ing)?|reasoning)\s*\]|◁\s*/\s*{_NAME}\s*▷'
    rf'|<\|\s*(?:end_of_|end_|/\s*){_NAME}\s*\|>|<\|\s*{_NAME}_end\s*\|>|<\|inner_suffix\|>|<channel\|>'
    r'|<unused95>'
)
MARK = re.compile(rf'(?P<opening>{_OPENING})|(?P<closing>{_CLOSING})|<\s*{_TAG}\s*/>', re.IGNORECASE)
_OPENED = re.compile(rf'(?:{_OPENING})\s*\Z', re.IGNORECASE)
# A reply after a thought may stand between a mark of its beginning and one of its end.
_FRAMED = re.compile(
    r'\A\s*(?:<(?P<tag>(?:final_)?(?:answer|response))>|<\|begin_of_(?:solution|box)\|>|<\|START_RESPONSE\|>)\s*'
    r'(?P<said>.*?)\s*(?:(?(tag)</(?P=tag)>|(?:<\|end_of_(?:solution|box)\|>|<\|END_RESPONSE\|>)))?\s*\Z',
    re.DOTALL | re.IGNORECASE,
)

# OpenAI's harmony has messages in channels, of which `final` is the reply. Decoded without special tokens the channels'
# names run into the words: `analysisThe user ... assistantfinalHello`.
_MESSAGE = re.compile(
    r'<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>(.*?)'
    r'(?=<\|(?:start|channel|end|return|call)\|>|\Z)',
    re.DOTALL | re.IGNORECASE,
)
# Some models announce thoughts and reply in plain words (Granite, Apriel).
_ANNOUNCED = re.compile(
    r"\A\s*Here(?:'s my thought process| is my thought process| are my reasoning steps):"
    r"(?:.*?(?:Here(?:'s| is) my response:|\[BEGIN FINAL RESPONSE\])"
    r'(?P<said>.*?)(?:\[END FINAL RESPONSE\](?:\s*<\|end\|>)?\s*)?\Z)?',
    re.DOTALL | re.IGNORECASE,
)
# Marks between thought and reply.
_TOLD_APART = re.compile(rf'{MARK.pattern}|<\|(?:channel|message)\|>', re.IGNORECASE)
_HARMONY = re.compile(r'<\|channel\|>', re.IGNORECASE)
_RUN_TOGETHER = re.compile(r'\A\s*(?:analysis|commentary)(?=[A-Z"\'(]|.*assistantfinal)', re.DOTALL)


def spoken_reply(text: str) -> str | None:
    """The reply in a text, without its thoughts; None where a thought does not end, since the reply has not begun.

    Thoughts may follow each other or contain others. All text before a closing mark without an opening one is thought.
    A text without thoughts is returned as it is.
    """
    if _HARMONY.search(text):
        final = [content for channel, content in _MESSAGE.findall(text) if channel.lower() == 'final']
        return spoken_reply(final[-1].strip()) if final else None
    # Decoded without special tokens, harmony's channels are words that run into the text.
    if _RUN_TOGETHER.match(text):
        _, end, pieces = text.rpartition('assistantfinal')
        return pieces.strip() if end else None
    if announced := _ANNOUNCED.match(text):
        return None if announced['said'] is None else announced['said'].strip()
    marks = list(MARK.finditer(text))
    if not marks:
        return text
    pieces, depth, at = [''], 0, 0
    for mark in marks:
        if not depth:
            pieces.append(text[at : mark.start()])
        # A chat template may open the thought at the end of the prompt, so that the text has the closing mark alone.
        if mark['closing'] and not depth:
            pieces.clear()
        # Thoughts may contain others, and a mark that closes nothing leaves the depth at 0.
        depth = max(0, depth + bool(mark['opening']) - bool(mark['closing']))
        at = mark.end()
    if depth:
        return None
    text = ''.join([*pieces, text[at:]]).strip()
    framed = _FRAMED.match(text)
    return framed['said'] if framed else text


def is_mark(token: str) -> bool:
    """True for a special token that marks where a thought or a reply begins or ends."""
    return bool(_TOLD_APART.search(token))


def unmarked(text: str) -> str:
    """The text with spaces in place of marks, so that no thought begins or ends in it. It may quote somebody."""
    return _TOLD_APART.sub(' ', text)


def closes(text: str) -> bool:
    """True where a text ends a thought that it did not begin."""
    first = MARK.search(text)
    return first is not None and first['closing'] is not None


def completion_after(prompt: str, text: str) -> str:
    """A completion of `prompt`, with the mark of an open thought before it where that is needed.

    The mark is put before the completion where the prompt ends with it and the completion does not end the thought.
    """
    opened = _OPENED.search(prompt)
    return opened.group() + text if opened and not closes(text) else text


def resumed_reply(prompt: str, text: str) -> str:
    """A reply as it goes on after `prompt`, so that its words are no thought that the prompt has opened."""
    opened = _OPENED.search(prompt)
    if not opened or closes(text):
        return text
    # A mark at the beginning of the reply that is the prompt's own is not repeated.
    mark, space = opened.group().strip(), opened.group()[len(opened.group().rstrip()) :]
    if text.lstrip().startswith(mark):
        return text.lstrip().removeprefix(mark).removeprefix(space)
    # A reply that has no thought ends an empty one.
    closing = f'{mark[0]}/{mark[1:]}'
    return f'\n{closing}\n\n{text}' if closes(closing) else text
