"""Reading a JSON body field by field: every field is asked for with its type and bounds, what nobody asked for is refused by name.

    body = Fields(data)
    n = body.integer("n", 1, least=1, most=16)
    body.done(ignored={"user", "store"})          -> names of the ignored ones that were there

Errors are ApiErrors of status 400 that name the field, what was expected and what was found.
"""
from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import quoted
from .errors import ApiError

MAX_DEPTH = 64
MISSING: Any = object()


def parse_json(raw: bytes) -> Any:
    """A JSON text in UTF-8 (RFC 8259): no NaN, no byte order mark trouble, no deep nesting, no key twice. ApiError 400."""
    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key comes twice in one object")
        return found
    try:
        value = json.loads(raw.decode("utf-8-sig"), parse_constant=refuse, object_pairs_hook=once)
        if b"\\ud" in raw.lower():
            json.dumps(value, ensure_ascii=False).encode()  # lone surrogates
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not UTF-8", code="invalid_json") from None
    except UnicodeEncodeError:
        raise ApiError(400, "the body has half of a surrogate pair (\\ud800 … \\udfff)", code="invalid_json") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {' '.join(str(error).split())[:160]}", code="invalid_json") from None
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [v for x in level if isinstance(x, (dict, list)) for v in (x.values() if isinstance(x, dict) else x)]
    if level:
        raise _too_deep()
    return value


Strings = list[str]  # within Fields, `list` is a method


def _too_deep() -> ApiError:
    return ApiError(400, f"the body is nested too deeply: at most {MAX_DEPTH} levels are read", code="invalid_json")


class Fields:
    """One JSON object. `where` stands before names in messages ("messages[0].")."""

    def __init__(self, data: Any, where: str = "") -> None:
        if not isinstance(data, Mapping):
            raise ApiError(400, f"{where.rstrip('.') or 'the body'} must be a JSON object, found {quoted(data, 60)}", where.rstrip(".") or None)
        self._data, self._where, self._left = data, where, set(data)

    def _bad(self, name: str, expected: str, value: Any) -> ApiError:
        return ApiError(400, f"{self._where}{name} must be {expected}, found {quoted(value, 60)}", self._where + name)

    def __contains__(self, name: str) -> bool:
        return self._data.get(name) is not None

    def any(self, name: str, default: Any = None) -> Any:
        """As it is; null counts as absent."""
        self._left.discard(name)
        value = self._data.get(name)
        if value is None:
            if default is MISSING:
                raise ApiError(400, f"{self._where}{name} is missing", self._where + name)
            return default
        return value

    def text(self, name: str, default: Any = None, choices: Collection[str] = (), most: int | None = None) -> Any:
        value = self.any(name, default)
        if value is default:
            return value
        if not isinstance(value, str) or choices and value not in choices:
            raise self._bad(name, "one of " + ", ".join(map(repr, choices)) if choices else "a string", value)
        if most is not None and len(value) > most:
            raise ApiError(400, f"{self._where}{name} has {len(value)} characters, at most {most} are taken", self._where + name)
        return value

    def truth(self, name: str, default: Any = False) -> Any:
        value = self.any(name, default)
        if value is not default and not isinstance(value, bool):
            raise self._bad(name, "true or false", value)
        return value

    def integer(self, name: str, default: Any = None, least: int | None = None, most: int | None = None) -> Any:
        value = self.any(name, default)
        if value is default:
            return value
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or least is not None and value < least or most is not None and value > most:
            bounds = "" if least is None and most is None else f" from {least} on" if most is None else f" from {least} to {most}"
            raise self._bad(name, "a whole number" + bounds, value)
        return value

    def number(self, name: str, default: Any = None, least: float | None = None, most: float | None = None) -> Any:
        value = self.any(name, default)
        if value is default:
            return value
        try:
            found = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else float(value)
        except OverflowError:
            found = math.nan
        if not math.isfinite(found) or least is not None and found < least or most is not None and found > most:
            bounds = "" if least is None and most is None else f" from {least:g} on" if most is None else f" from {least:g} to {most:g}"
            raise self._bad(name, "a number" + bounds, value)
        return found

    def list(self, name: str, default: Any = None, most: int | None = None) -> Any:
        value = self.any(name, default)
        if value is default:
            return value
        if not isinstance(value, list):
            raise self._bad(name, "a list", value)
        if most is not None and len(value) > most:
            raise ApiError(400, f"{self._where}{name} has {len(value)} entries, at most {most} are taken", self._where + name)
        return value

    def object(self, name: str, default: Any = None) -> Any:
        value = self.any(name, default)
        if value is not default and not isinstance(value, dict):
            raise self._bad(name, "an object", value)
        return value

    def sub(self, name: str) -> Fields | None:
        """The object of that name as Fields; None if absent."""
        value = self.object(name)
        return None if value is None else Fields(value, f"{self._where}{name}.")

    def strings(self, name: str, most: int, longest: int) -> Strings:
        """A string or a list of strings -> list."""
        value = self.any(name, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(s, str) for s in value):
            raise self._bad(name, "a string or a list of strings", value)
        if len(value) > most or any(len(s) > longest for s in value):
            raise ApiError(400, f"{self._where}{name}: at most {most} strings of {longest} characters are taken", self._where + name)
        return value

    def done(self, ignored: Collection[str] = ()) -> Strings:
        """Refuse what nobody asked for -> which of `ignored` were there and not null."""
        unknown = sorted(name for name in self._left - set(ignored) if self._data[name] is not None)
        if unknown:
            name = self._where + unknown[0][:60]
            raise ApiError(400, f"unknown or unsupported parameter {quoted(name, 120)}: take it out of the request", name, "unsupported_parameter")
        return sorted(name for name in self._left if self._data[name] is not None)
