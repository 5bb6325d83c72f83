"""Thoughts of reasoning models, which are nobody's to read: what is left of a text is what was said.

Thoughts stand between marks, before or within what is said: `<think>`, `[THINK]`, `<|begin_of_thought|>` and the like
in any case, or in a channel of their own (`<|channel|>analysis<|message|>...`). A chat template may open the thought at
the end of the prompt, so that the text has its closing mark alone.
"""

from __future__ import annotations

import re

_NAME = (
    r'(?:[a-z]+:)?(?:ant)?(?:thinking|think|thoughts|thought|reasoning|reason|reflection|reflect|analysis|scratchpad'
    r'|rationale|cot|chain[ _-]of[ _-]thoughts?|(?:inner|internal)[ _-]?(?:monologue|thoughts?))'
)
_TAG = (  # as in <longcat_think> or <thought_process>
    rf'(?:[a-z]+[_-])*{_NAME}(?:[_-](?:process|content|steps?|faste?r?))?'
)
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
_FRAMED = re.compile(  # what is said after a thought, between a mark of its beginning and one of its end
    r'\A\s*(?:<(?P<tag>(?:final_)?(?:answer|response))>|<\|begin_of_(?:solution|box)\|>|<\|START_RESPONSE\|>)\s*'
    r'(?P<said>.*?)\s*(?:(?(tag)</(?P=tag)>|(?:<\|end_of_(?:solution|box)\|>|<\|END_RESPONSE\|>)))?\s*\Z',
    re.DOTALL | re.IGNORECASE,
)

# OpenAI's harmony: messages in channels, of which `final` is said. Decoded without special tokens the channels' names
# run into the words: `analysisThe user ... assistantfinalHello`.
_MESSAGE = re.compile(
    r'<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>(.*?)'
    r'(?=<\|(?:start|channel|end|return|call)\|>|\Z)',
    re.DOTALL | re.IGNORECASE,
)
# Thoughts and what is said are announced in plain words (Granite, Apriel).
_ANNOUNCED = re.compile(
    r"\A\s*Here(?:'s my thought process| is my thought process| are my reasoning steps):"
    r"(?:.*?(?:Here(?:'s| is) my response:|\[BEGIN FINAL RESPONSE\])"
    r'(?P<said>.*?)(?:\[END FINAL RESPONSE\](?:\s*<\|end\|>)?\s*)?\Z)?',
    re.DOTALL | re.IGNORECASE,
)
_TOLD_APART = re.compile(rf'{MARK.pattern}|<\|(?:channel|message)\|>', re.IGNORECASE)  # what is said from thoughts
_HARMONY = re.compile(r'<\|channel\|>', re.IGNORECASE)
_RUN_TOGETHER = re.compile(r'\A\s*(?:analysis|commentary)(?=[A-Z"\'(]|.*assistantfinal)', re.DOTALL)


def spoken(text: str) -> str | None:
    """What is said in a text, without its thoughts; None where a thought does not end, for then nothing is said yet.

    Thoughts may follow each other or hold others. Before a closing mark that nothing opened all is thought. A text
    without thoughts is returned as it is.
    """
    if _HARMONY.search(text):
        final = [content for channel, content in _MESSAGE.findall(text) if channel.lower() == 'final']
        return spoken(final[-1].strip()) if final else None
    if _RUN_TOGETHER.match(text):
        _, end, said = text.rpartition('assistantfinal')
        return said.strip() if end else None
    if announced := _ANNOUNCED.match(text):
        return None if announced['said'] is None else announced['said'].strip()
    marks = list(MARK.finditer(text))
    if not marks:
        return text
    said, depth, at = [''], 0, 0
    for mark in marks:
        if not depth:
            said.append(text[at : mark.start()])
        if mark['closing'] and not depth:
            said.clear()
        depth = max(0, depth + bool(mark['opening']) - bool(mark['closing']))
        at = mark.end()
    if depth:
        return None
    text = ''.join([*said, text[at:]]).strip()
    framed = _FRAMED.match(text)
    return framed['said'] if framed else text


def is_mark(token: str) -> bool:
    """Whether a special token is needed to tell thoughts from what is said."""
    return bool(_TOLD_APART.search(token))


def unmarked(text: str) -> str:
    """A text that quotes someone, in which no thought begins or ends: marks are spaces."""
    return _TOLD_APART.sub(' ', text)


def closes(text: str) -> bool:
    """Whether a text ends a thought that it did not begin."""
    first = MARK.search(text)
    return first is not None and first['closing'] is not None


def after(prompt: str, text: str) -> str:
    """A completion of `prompt`, which begins with the mark of a thought that the prompt ends with and the completion
    does not end; any other as it is."""
    opened = _OPENED.search(prompt)
    return opened.group() + text if opened and not closes(text) else text
