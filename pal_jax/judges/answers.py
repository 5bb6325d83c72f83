r"""Final answers of mathematics: where a text gives one, and whether two are the same.

Two answers are the same where they are equal without their dress (`plain`), as numbers (`number`, exact), or, where
either is no plain number, for the library math-verify, which knows expressions, sets, intervals and equations.
"""

from __future__ import annotations

import logging
import re
import threading
import unicodedata
from fractions import Fraction

from pal_jax.data.holdouts import normal
from pal_jax.games import actions

# The library reads so many characters, has so many seconds, and rounds values to so many digits.
LONGEST, SECONDS, DIGITS = 300, 10, 12
SIGNS = str.maketrans({
    **dict.fromkeys('−–‒﹣－', '-'), **dict.fromkeys('°€£¥', ''), '\u2044': '/', '×': r'\times ', '·': r'\cdot ',
    'π': r'\pi ', '∞': r'\infty ', '∪': r'\cup ', '√': r'\sqrt ',
})  # fmt: skip
TEXT = r'\\(?:text(?:bf|it|rm|normal)?|mbox|hbox|mathrm|mathbf|operatorname)\s*\{\s*([^{}]*?)\s*\}'
SPACE = r'(?:\\[,:;> ]|\\q?quad(?![A-Za-z])|[~\u00a0\u2009\u202f])'
WHOLE = r'\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+|(?:\.\d{3}){2,})(?![\d,])|\d+'
# Words behind a number are its unit, unless they change or continue it.
UNIT = r'(?! (?:and|or|to|of|over|pi|sqrt|times|plus|minus|dozen|hundred|thousand|million|billion)\b)'
UNIT += r'(?: ?(?:cm|mm|km|kg|mg|ml|ft|mph)| [A-Za-z]{2,}(?:[ /-][A-Za-z]+)*)(?:\^?\{?[23]\}?)?'
PLAIN = re.compile(
    rf'(?P<sign>[-+]?) ?(?:(?P<mixed>\d+) ?\\frac\{{(?P<a>\d+)\}}\{{(?P<b>\d+)\}}'
    rf'|\\frac\{{(?P<c>[-+]?\d+)\}}\{{(?P<d>\d+)\}}'
    rf'|(?:(?P<and>\d+) )?(?P<e>\d+)/(?P<f>\d+)|(?P<whole>{WHOLE})?(?P<point>\.\d*)?(?:[eE](?P<power>[-+]?\d{{1,3}}))?)'
    rf'(?P<percent> ?%| percent)?(?:{UNIT})?'
)
LAST = re.compile(  # numbers in running text; a hyphen behind a word or a number is no minus sign
    r'\\[dt]?frac\{\d+\}\{\d+\}|(?:(?<![\w)\]}])-)?\$?(?:\d+ \d+/\d+|\d+/\d+|'
    r'(?:\d{1,3}(?:(?:,|\{,\}|\\,|[\u00a0\u2009\u202f])\d{3})+(?!\d)|\d{1,3}(?:\.\d{3}){2,}|\d+)?(?:\.\d+)?(?<=\d)(?:[eE][-+]?\d+)?)'
)
# The library tells of every answer that is none.
logging.getLogger('math_verify').setLevel(logging.CRITICAL)


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}`, `\fbox{...}` or `\boxed 7`; None where there is none."""
    text = re.sub(r'\\(?:boxed|fbox)\s*\{', r'\\boxed{', text)
    return actions.boxed(re.sub(r'\\(?:boxed|fbox)\s*([^\s{$]*[^\s{}$.,;:])', r'\\boxed{\1}', text))


def last_number(text: str) -> str | None:
    """The content of the last box, else the last number of the text."""
    if inside := boxed(text):
        return inside
    numbers = [match for match in LAST.findall(text.translate(SIGNS)) if match]
    return numbers[-1].replace('{,}', ',').replace('$', '') if numbers else None


def is_same(said: str | None, answer: str) -> bool:
    """True for an answer that is the known one in any dress. Different numbers are never the same."""
    if said is None:
        return False
    ours, theirs = plain(said), plain(answer)
    # `x=7` is compared without the name of the unknown.
    values_of = [re.sub(r'^[a-zA-Z]=(?!.*=)', '', text) for text in (ours, theirs)]
    if values_of[0] == values_of[1]:
        return True
    # Words are compared as words, and are nothing for the library.
    if _words(ours) or _words(theirs):
        return _letters(ours) == _letters(theirs)
    values = list(map(number, values_of))
    if all(values):
        # Where one of the two is a percentage, its hundredth may be meant.
        percents = {'%' in text or ' percent' in text for text in (ours, theirs)}
        return bool(set(values[0]) & set(values[1])) if len(percents) > 1 else values[0][0] == values[1][0]
    return _agree(ours, theirs)


def plain(text: str) -> str:
    """LaTeX in one spelling: of fractions, roots, minus signs, spaces and digits; without `$`, degrees and brackets'
    sizes, and without a unit in text behind a value."""
    # Raised digits are a power.
    text = re.sub('[⁰¹²³⁴⁵⁶⁷⁸⁹]+', lambda power: f'^{{{unicodedata.normalize("NFKC", power[0])}}}', text)
    # A whole number and a sign such as ½ are a mixed number.
    text = re.sub(r'(?<=\d)(?=[¼-¾⅐-⅞])', ' ', text)
    text = unicodedata.normalize('NFKC', text.translate(SIGNS)).translate(SIGNS).strip().rstrip('.')
    # Sizes of brackets, dollars and degrees change no value.
    text = re.sub(r'\\(?:left|right|displaystyle|big|Big)(?![A-Za-z])|\\!|\\?\$|\^\{?\\circ\}?', '', text)
    text = re.sub(SPACE, ' ', text.replace('{,}', ',').replace('\\%', '%'))
    text = re.sub(r'\\[dtc]frac(?![A-Za-z])', r'\\frac', text)
    # The arguments of fractions and roots get braces.
    text = re.sub(
        r'\\frac\s*(\{[^{}]*\}|\w)\s*(\{[^{}]*\}|\w)', lambda f: rf'\frac{_braced(f[1])}{_braced(f[2])}', text
    )
    text = re.sub(r'\\sqrt\s*(\w)', r'\\sqrt{\1}', text)
    # A text behind a value is its unit.
    text = re.sub(rf'(?<=[\w}})\]]) *{TEXT}(?:\^\{{?\d\}}?)?$', '', text)
    text = re.sub(r'\s+', ' ', text).strip()
    # But for those between words and numbers, spaces say nothing.
    return re.sub(r' ?([^\w .\\]) ?', r'\1', text)


def number(text: str) -> list[Fraction]:
    """The value of a plain number with or without a unit; for a percentage also its hundredth; empty of anything else.

    It is a whole or a decimal number, a fraction, or a whole number with a fraction.
    """
    match = PLAIN.fullmatch(text)
    if not match or not any(character.isdigit() for character in text):
        return []
    try:
        value = _value(match)
    # ValueError comes of thousands of digits.
    except (ValueError, ZeroDivisionError):
        return []
    return [value, value / 100] if match['percent'] else [value]


def _value(match: re.Match[str]) -> Fraction:
    sign = -1 if match['sign'] == '-' else 1
    # A mixed number, as `3\frac{1}{2}`.
    if match['a']:
        return sign * (int(match['mixed']) + Fraction(int(match['a']), int(match['b'])))
    # A fraction, as `\frac{1}{2}`.
    if match['c']:
        return sign * Fraction(int(match['c']), int(match['d']))
    # A fraction or a mixed number with a slash, as `1/2` or `3 1/2`.
    if match['e']:
        return sign * (int(match['and'] or 0) + Fraction(int(match['e']), int(match['f'])))
    # A whole or a decimal number, as `1,000.5`, with or without a power of ten.
    whole = re.sub(r'[^\d]', '', match['whole'] or '0')
    return sign * Fraction(f'{whole}{match["point"] or ""}') * Fraction(10) ** int(match['power'] or 0)


def _braced(argument: str) -> str:
    return argument if argument.startswith('{') else f'{{{argument}}}'


def _words(text: str) -> bool:
    """True for an answer in words: a text in LaTeX, or letters and spaces alone, at least three."""
    return bool(re.fullmatch(TEXT, text)) or bool(re.fullmatch(r'[A-Za-z]{3,}(?: [A-Za-z]+)*', text))


def _letters(text: str) -> str:
    """The words of an answer, in normal form, without brackets around them."""
    return normal(re.sub(TEXT, r'\1', text)).strip(' ().')


def _agree(said: str, answer: str) -> bool:
    """True where the library finds two answers equal."""
    # The library's time limit needs the main thread of a program; in others, and for long answers, the library is not
    # asked.
    if max(len(said), len(answer)) > LONGEST or threading.current_thread() is not threading.main_thread():
        return False
    # The library brings sympy, which takes a second to import.
    from math_verify import parse, verify

    try:
        parsed = [parse(f'${text}$', parsing_timeout=SECONDS) for text in (answer, said)]
        return verify(*parsed, float_rounding=DIGITS, timeout_seconds=SECONDS)
    # The library parses what a model wrote, which may be anything.
    except Exception:
        return False
