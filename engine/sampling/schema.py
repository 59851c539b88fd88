"""JSON schemas, read and prepared for llguidance: the same meaning in fewer words, or an error that names what could not be kept.

    read_schema(JSON text, dict or pydantic model) -> plain data -> prepared() -> Lark source, mostly llguidance's %json

llguidance reads numbers as float64, knows neither annotations nor keywords that ask nothing, and can't keep every pair of keywords. So here

    annotations (title, default, format: path, …) and keywords that ask nothing (uniqueItems: false, not: false, …) are left out;
    names that `properties` and a pattern share get both schemas, and a pattern that no other name fits goes;
    minProperties where one name could be counted twice is refused by its place in the schema;
    integers that float64 would change get a grammar of their own (big_numbers.py).
"""
from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Any, NoReturn

from ..errors import OptionError, why

MAX_TEXT = 256 << 10
"""Most characters of a schema, regex, grammar, or all choices."""
MAX_DEPTH = 64
"""Of brackets within brackets."""
MAX_DIGITS = 400
"""Of a number: more have no use, and Python refuses some thousands."""
EXACT = 1 << 53
"""Integers up to here are what they are as float64, too."""
MAX_NAMES = 200
"""Names that a pattern may fit to be taken for a list of names."""
STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False, "coerce_one_of": False}
"""How JSON is written: as `json.dumps` does."""
ASSERTED = frozenset("regex iri iri-reference uri-reference uri-template json-pointer relative-json-pointer idn-email idn-hostname".split())  # noqa: SIM905
KNOWN = frozenset("date-time time date duration email hostname ipv4 ipv6 uuid uri".split())  # noqa: SIM905
"""Formats that JSON Schema defines: llguidance's are kept, the others refused by it. All others are annotations (OpenAPI's, pydantic's)."""
ANNOTATIONS = frozenset("title description default examples example deprecated readOnly writeOnly $comment".split())  # noqa: SIM905
IDLE: dict[str, tuple[Any, ...]] = {
    "uniqueItems": (False,), "not": (False,), "contains": (), "propertyNames": (True, {}), "unevaluatedProperties": (True, {}),
    "unevaluatedItems": (True, {}), "dependentRequired": ({},), "dependentSchemas": ({},), "dependencies": ({},), "patternProperties": ({},),
    "minItems": (0,), "minLength": (0,), "minProperties": (0,),
}
"""Keyword -> values that ask nothing."""
ONE, LIST, MAP = ("additionalProperties", "items", "contains", "not", "if", "then", "else", "propertyNames", "unevaluatedProperties", "unevaluatedItems"), (
    "allOf", "anyOf", "oneOf", "prefixItems", "items"), ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
"""Keywords whose value is a schema, a list of them, names and schemas."""
DEFINITIONS = ("$defs", "definitions")
COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


def schema_source(value: Any) -> str:
    """A schema as a Lark grammar in llguidance's dialect. OptionError."""
    from .big_numbers import has_big, lark_source
    found = read_schema(value)
    schema = found if isinstance(found, dict) else {} if found else {"anyOf": []}
    _check_counts(schema)
    schema = prepared(schema, "")
    return lark_source(schema) if has_big(schema, schema) else "start: %json " + json.dumps({**schema, "x-guidance": STYLE}, allow_nan=False)


def read_schema(value: Any) -> dict[str, Any] | bool:
    """JSON text, a dict or a pydantic model -> plain data, of bounded size and depth."""
    if hasattr(value, "model_json_schema"):
        value = _closed(value.model_json_schema())
    if isinstance(value, str):
        return _object(parse_json(value))
    try:
        text = json.dumps(_object(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"is not plain JSON data: {why(error)}") from None
    return _object(parse_json(text))


def _object(value: Any) -> dict[str, Any] | bool:
    if not isinstance(value, (dict, bool)):
        raise OptionError(f"must be a JSON object, found {type(value).__name__}")
    return value


def parse_json(text: str) -> Any:
    """JSON text of bounded size and depth, without what has no one meaning: a key twice in an object, NaN, numbers of thousands of digits. OptionError."""
    check_text(text, depth=False)
    check_depth(re.sub(r'"(?:[^"\\]|\\.)*"', "", text, flags=re.DOTALL))
    try:
        return json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_once, parse_int=_integer, parse_float=_float, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"is not JSON: {why(error)}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for n, name in enumerate(names) if name in names[:n])
        raise OptionError(f"has the key {twice!r:.60} twice in one object")
    return found


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise OptionError(f"has a number of {len(digits)} digits, at most {MAX_DIGITS} are taken")
    return int(digits)


def _float(text: str) -> float:
    value = float(text)
    if abs(value) > EXACT and (value in (math.inf, -math.inf) or Decimal(text) != Decimal(repr(value))):
        raise OptionError(f"has the number {text:.40}, which is beyond 2^53 and would be changed")
    return value


def _no_number(name: str) -> NoReturn:
    raise OptionError(f"has {name}, which is no JSON number")


def check_text(text: str, depth: bool = True) -> None:
    """OptionError for what is too long, no Unicode, or nested too deeply."""
    if len(text) > MAX_TEXT:
        raise OptionError(f"has {len(text)} characters, at most {MAX_TEXT} are taken")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise OptionError("is not valid Unicode") from None
    if depth:
        check_depth(text)


def check_depth(text: str) -> None:
    level = 0
    for c in text:
        level += (c in "([{") - (c in ")]}")
        if level > MAX_DEPTH:
            raise OptionError(f"is nested too deeply (more than {MAX_DEPTH} brackets)")


def prepared(schema: Any, where: str) -> Any:
    """A schema as llguidance can keep it. `where`: its place, for errors, which are OptionErrors."""
    if not isinstance(schema, dict):
        return schema
    out = {key: value for key, value in schema.items() if key not in ANNOTATIONS and not any(value == idle and type(value) is type(idle)
                                                                                            for idle in IDLE.get(key, ()))}
    if "if" in out and "then" not in out and "else" not in out:
        del out["if"]
    if out.get("minContains", 1) == 0 and "maxContains" not in out:
        out.pop("contains", None)
    if "contains" not in out:
        out.pop("minContains", None)
        out.pop("maxContains", None)
    _whole_counts(out)
    kind = out.get("format")
    if isinstance(kind, str) and kind not in ASSERTED | KNOWN:
        out.pop("format")
        if re.fullmatch(r"uuid[1-8]", kind):  # pydantic's
            out["format"] = "uuid"
    for key, value in out.items():
        if key in MAP and isinstance(value, dict) or key in LIST and isinstance(value, list):
            out[key] = type(value)(value)  # a copy
    for key, name, inner in list(inner_schemas(out)):
        if name is None:
            out[key] = prepared(inner, f"{where}/{key}")
        else:
            out[key][name] = prepared(inner, f"{where}/{key}/{name}")
    _names(out)
    _check_least(out, where)
    return out


def inner_schemas(schema: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(keyword, name or number or None, schema) of the schemas directly within one."""
    for key, value in schema.items():
        if key in MAP and isinstance(value, dict):
            yield from ((key, name, inner) for name, inner in value.items())
        elif key in LIST and isinstance(value, list):
            yield from ((key, n, inner) for n, inner in enumerate(value))
        elif key in ONE:
            yield key, None, value


def refuse(where: str, why: str) -> NoReturn:
    place = where if len(where) <= 80 else "…" + where[-79:]
    raise OptionError(f"{place or 'the schema'}: {why}")


# ---- numbers


def _whole_counts(schema: dict[str, Any]) -> None:
    for key in COUNTS:
        value = schema.get(key)
        if isinstance(value, float) and value.is_integer():  # JSON Schema: 2.0 is a whole number
            schema[key] = int(value)


def is_kept(value: Any) -> bool:
    """Whether llguidance writes and compares this number as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) <= EXACT:
        return True
    return isinstance(value, float) and int(Decimal(repr(value))) == value


def numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers(inner)
    else:
        yield value


# ---- names of properties


def _names(schema: dict[str, Any]) -> None:
    """Where patterns fit names of `properties`: those names get the patterns' schemas too; a pattern without other names goes."""
    named, patterns = schema.get("properties"), schema.get("patternProperties")
    if not isinstance(named, dict) or not isinstance(patterns, dict):
        return
    for pattern in list(patterns):
        fits = _language(pattern)
        if fits is not None and fits <= named.keys():
            for name in fits:
                named[name] = {"allOf": [named[name], patterns[pattern]]}
            del patterns[pattern]
    if not patterns:
        del schema["patternProperties"]


def _check_least(schema: dict[str, Any], where: str) -> None:
    """minProperties is kept by the names that must be there, or where each name can come only once."""
    least = schema.get("minProperties")
    if not isinstance(least, int) or isinstance(least, bool):
        return
    required = schema.get("required")
    if isinstance(required, list) and len(set(map(str, required))) >= least:
        del schema["minProperties"]
    elif schema.get("additionalProperties", True) is not False or schema.get("patternProperties"):
        refuse(f"{where}/minProperties", f"{least} can't be kept, since other names than the required ones could come twice: require names, "
                                          "or set additionalProperties to false")


def _language(pattern: str) -> set[str] | None:
    """The names that an anchored pattern of alternatives fits; None if they are many or it is of another kind."""
    try:
        from re import _parser  # type: ignore[attr-defined] # Python 3.11 and later
    except ImportError:
        import sre_parse as _parser  # type: ignore[no-redef]
    try:
        parts = list(_parser.parse(pattern))
    except (re.error, RecursionError, OverflowError, ValueError):
        return None
    if len(parts) < 2 or [str(parts[0][0]), str(parts[0][1])] != ["AT", "AT_BEGINNING"] or [str(parts[-1][0]), str(parts[-1][1])] != ["AT", "AT_END"]:
        return None
    return _words(parts[1:-1])


def _words(parts: Any) -> set[str] | None:
    """All texts of a parsed regex without anchors, or None."""
    found = {""}
    for kind, value in parts:
        more: set[str] | None = set()
        if str(kind) == "LITERAL":
            more = {chr(value)}
        elif str(kind) == "SUBPATTERN" and not value[1] and not value[2]:
            more = _words(value[3])
        elif str(kind) == "BRANCH":
            for branch in value[1]:
                words = _words(branch)
                more = None if more is None or words is None else more | words
        elif str(kind) == "IN":
            for inner, what in value:
                if str(inner) == "LITERAL" and more is not None:
                    more.add(chr(what))
                elif str(inner) == "RANGE" and more is not None and what[1] - what[0] < MAX_NAMES:
                    more |= {chr(code) for code in range(what[0], what[1] + 1)}
                else:
                    more = None
        elif str(kind) == "MAX_REPEAT" and int(value[1]) == 1:
            words = _words(value[2])
            more = None if words is None else words | ({""} if value[0] == 0 else set())
        else:
            more = None
        if more is None or len(found) * len(more) > MAX_NAMES:
            return None
        found = {a + b for a in found for b in more}
    return found


# ---- the whole


def _closed(schema: Any) -> Any:
    """A pydantic model's schema, without the properties that the model would ignore: JSON Schema allows any where it doesn't say otherwise."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: {name: _closed(inner) for name, inner in value.items()} if key in ("properties", "$defs") else  # names, not keywords
              value if key in ("const", "enum", "default", "examples") else _closed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **closed} if schema.get("type") == "object" and isinstance(schema.get("properties"), dict) else closed


def _check_counts(schema: Any) -> None:
    """Bound what llguidance follows by recursion (a chain of definitions) or compares each with each (patterns of properties)."""
    count = {"$defs": 0, "definitions": 0, "patternProperties": 0}
    parts = [schema]
    while parts:
        part = parts.pop()
        parts += part.values() if isinstance(part, dict) else part
        parts = [inner for inner in parts if isinstance(inner, (dict, list))]
        for key in count:
            inner = part.get(key) if isinstance(part, dict) else None
            count[key] += len(inner) if isinstance(inner, dict) else 0
            if count[key] > (most := 50 if key == "patternProperties" else 500):
                raise OptionError(f"{key}: has {count[key]} entries, at most {most} are taken")
