"""Whether a generated answer is the expected one: exact, contains, numeric, regex, JSON.

    exact     the same text, white space around it aside            numeric   its last number is the target's, however written (1,000 = 1e3)
    contains  the target stands in it                               regex     the target, a Python expression, is found in it
    json      its first JSON value equals the target, whatever the order of keys
"""
from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from typing import Any

from ..errors import OptionError, quoted, why

MATCHES = ("exact", "contains", "numeric", "regex", "json")
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d{1,4})?|[-+]?\.\d+")
MOST = 1 << 20
"""Characters of an answer that are looked at."""


def numbers(text: str) -> list[Decimal]:
    """All numbers in a text, in order."""
    found = []
    for match in _NUMBER.findall(text[:MOST]):
        try:
            found.append(Decimal(match.replace(",", "")))
        except InvalidOperation:
            continue
    return found


def check_target(match: str, target: Any) -> None:
    """OptionError unless answers can be compared with it so."""
    if match not in MATCHES:
        raise OptionError(f'"match" must be one of {", ".join(MATCHES)}, found {quoted(match)}')
    if match == "numeric":
        if isinstance(target, bool) or not isinstance(target, (int, float)) and len(numbers(str(target))) != 1:
            raise OptionError(f'"target" must be a number to be compared as one, found {quoted(target)}')
    elif match == "json":
        _json_target(target)
    elif not isinstance(target, str):
        raise OptionError(f'"target" must be a text, found {quoted(target)}')
    elif match == "regex":
        try:
            re.compile(target)
        except (re.error, OverflowError, RecursionError) as error:
            raise OptionError(f'"target" is no regular expression: {why(error)}') from None


def _json_target(target: Any) -> Any:
    if not isinstance(target, str):
        return target
    try:
        return json.loads(target)
    except (ValueError, RecursionError):
        return target  # a text, which is a JSON value too


def same(match: str, target: Any, answer: str) -> bool:
    """Whether the answer is what was expected."""
    if match == "numeric":
        found, expected = numbers(answer), numbers(str(target))
        return bool(found) and found[-1] == expected[0]
    if match == "json":
        return any(_equal(value, _json_target(target)) for value in _first_json(answer))
    if match == "regex":
        return re.search(target, answer[:MOST]) is not None
    return target.strip() in answer if match == "contains" else answer.strip() == target.strip()


def _first_json(text: str) -> list[Any]:
    """The first JSON value in a text, in a list; an empty one if there is none."""
    decoder = json.JSONDecoder()
    text = text[:MOST]
    for start in re.finditer(r'[{\["]|-?\d|true|false|null', text):
        try:
            return [decoder.raw_decode(text, start.start())[0]]
        except (ValueError, RecursionError):
            continue
    return []


def _equal(a: Any, b: Any) -> bool:
    """As JSON has it: true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)
