"""A row's fields -> a prompt: '{text}\\nSentiment:' with {text} replaced. Braces around anything but a name are braces."""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import OptionError, quoted

_FIELD = re.compile(r"\{(\w+)\}")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


def unescaped(text: str) -> str:
    """An option's text with \\n, \\t, \\r and \\\\ as the characters they stand for: a shell passes them on as they were typed."""
    return re.sub(r"\\([ntr\\])", lambda found: _ESCAPES[found[1]], text)


def fields_of(template: str) -> list[str]:
    """Names that it asks for, in order, each once."""
    return list(dict.fromkeys(_FIELD.findall(template)))


def filled(template: str, fields: Mapping[str, Any]) -> str:
    """The template with its fields, of which what is not text is written as JSON would. OptionError: a field that isn't there."""
    def value(found: re.Match[str]) -> str:
        if found[1] not in fields:
            raise OptionError(f"there is no {quoted(found[1])}, which the template asks for: it has {', '.join(map(str, fields)) or 'nothing'}")
        v = fields[found[1]]
        return v if isinstance(v, str) else str(v).lower() if isinstance(v, bool) else "" if v is None else str(v)
    return _FIELD.sub(value, template)


def check_template(template: str) -> str:
    """OptionError unless it asks for something."""
    if not fields_of(template):
        raise OptionError(f"the template must have {{text}} where the text belongs, or other columns' names in braces, found {quoted(template)}")
    return template


class Same(dict[str, Any]):
    """Fields that are all the same text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: str) -> str:
        return self._text
