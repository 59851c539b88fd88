"""JSON schemas with integers beyond 2^53, which llguidance would round: their surroundings as a Lark grammar of our own, the rest as %json.

    schema (prepared by schema.py) with such an integer somewhere -> rules from the root down to it -> Lark source

Known on that way: const and enum, integers with bounds, objects by their properties (in order; others than these are then not written, which obeys any
schema that doesn't require them), arrays of items, anyOf, $ref into $defs. What else stands there is refused by its place in the schema.
"""
from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import quoted
from .schema import BOUNDS, DEFINITIONS, STYLE, inner_schemas, is_kept, numbers, refuse

REMEDY = "take strings for such numbers, or a simpler schema around them"
MAX_MEMBERS = 300


def has_big(schema: Any, root: dict[str, Any], seen: set[str] | None = None) -> bool:
    """Whether a schema, or what it refers to, holds a number that float64 would change."""
    if not isinstance(schema, dict):
        return False
    seen = set() if seen is None else seen
    if not all(map(is_kept, [*(schema.get(key) for key in BOUNDS), *numbers(schema.get("const")), *numbers(schema.get("enum"))])):
        return True
    name = schema.get("$ref")
    if isinstance(name, str) and name not in seen:
        seen.add(name)
        if has_big(_target(name, root), root, seen):
            return True
    return any(has_big(inner, root, seen) for key, _, inner in inner_schemas(schema) if key not in DEFINITIONS)


def _target(name: str, root: dict[str, Any]) -> Any:
    if name == "#":
        return root
    part, _, key = name.removeprefix("#/").partition("/")
    found = root.get(part) if part in DEFINITIONS and name.startswith("#/") else None
    return found.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(name := schema.get("$ref"), str):
            yield name
        for _, _, inner in inner_schemas(schema):
            yield from _references(inner)


def lark_source(root: dict[str, Any]) -> str:
    """The whole grammar. OptionError."""
    return _Writer(root).source()


class _Writer:
    def __init__(self, root: dict[str, Any]) -> None:
        self.root, self.rules = root, list[str]()
        self.named: dict[str, str] = {}  # $ref -> rule

    def source(self) -> str:
        top = self.rule(self.root, "")
        return "\n".join([f"start: {top}", *self.rules])

    def add(self, body: str, name: str | None = None) -> str:
        name = name or f"r{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        return name

    def rule(self, schema: Any, where: str) -> str:
        """The name of a rule for a schema."""
        if not has_big(schema, self.root):
            for name in _references(schema):
                if _target(name, self.root) is None or name == "#":
                    refuse(where, f"$ref {quoted(name, 40)} can't be followed beside numbers beyond 2^53: refer to $defs")
            whole = schema if isinstance(schema, dict) else {} if schema else {"anyOf": []}
            definitions = {key: {name: inner for name, inner in self.root[key].items() if not has_big(inner, self.root)}
                           for key in DEFINITIONS if isinstance(self.root.get(key), dict)}
            return self.add("%json " + json.dumps({**definitions, **whole, "x-guidance": STYLE}))
        keys = schema.keys() - set(DEFINITIONS) - {"$schema", "$id", "id"}
        for wanted, beside, write in (
                ("$ref", (), self._ref), ("const", ("type",), self._values), ("enum", ("type",), self._values), ("anyOf", (), self._any),
                ("properties", ("required", "additionalProperties", "type"), self._object), ("items", ("minItems", "maxItems", "type"), self._array),
                ("type", BOUNDS[:4], self._integer)):
            if wanted in keys and keys <= {wanted, *beside}:
                return write(schema, where)
        other = sorted(keys - {"type", "properties", "items", "const", "enum", "anyOf", "$ref", "required", *BOUNDS})
        place = next((f"{where}/{key}" for key in ("multipleOf", *BOUNDS, *other) if key in keys), where)
        return refuse(place, f"can't be kept beside numbers beyond 2^53: {REMEDY}")

    def _ref(self, schema: dict[str, Any], where: str) -> str:
        name = schema["$ref"]
        if name not in self.named:
            self.named[name] = f"d{len(self.named)}"
            self.add(self.rule(_target(name, self.root), name.removeprefix("#")), self.named[name])
        return self.named[name]

    def _values(self, schema: dict[str, Any], where: str) -> str:
        values = schema["enum"] if "enum" in schema else [schema["const"]]
        kinds = schema.get("type", list(TYPES))
        values = [value for value in values if any(TYPES[kind](value) for kind in ([kinds] if isinstance(kinds, str) else kinds) if kind in TYPES)]
        if not values:
            refuse(where, "no value of enum or const has the type that is asked for")
        return self.add(" | ".join(_string(json.dumps(value, ensure_ascii=False)) for value in values))

    def _any(self, schema: dict[str, Any], where: str) -> str:
        return self.add(" | ".join(self.rule(inner, f"{where}/anyOf/{n}") for n, inner in enumerate(schema["anyOf"])))

    def _object(self, schema: dict[str, Any], where: str) -> str:
        members, required = schema["properties"], schema.get("required", [])
        kind = schema.get("type", "object")
        if kind != "object" or not isinstance(members, dict) or not isinstance(required, list) or not set(map(str, required)) <= members.keys():
            refuse(where, f"requires names that are not among its properties, or another type, beside numbers beyond 2^53: {REMEDY}")
        if len(members) > MAX_MEMBERS:
            refuse(where, f"has {len(members)} properties beside numbers beyond 2^53, at most {MAX_MEMBERS} are taken")
        first = after = self.add('""')
        for name, inner in reversed(members.items()):  # what may follow when nothing, or something, was written before
            value = self.rule(inner, f"{where}/properties/{name}")
            member = _string(json.dumps(name, ensure_ascii=False) + ": ")
            skip = name not in required
            first, after = (self.add(f"{member} {value} {after}" + (f" | {first}" if skip else "")),
                            self.add(f'", " {member} {value} {after}' + (f" | {after}" if skip else "")))
        return self.add(f'"{{" {first} "}}"')

    def _array(self, schema: dict[str, Any], where: str) -> str:
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if schema.get("type", "array") != "array" or not isinstance(least, int) or not isinstance(most, (int, type(None))) or isinstance(schema["items"], list):
            refuse(where, f"can't be kept beside numbers beyond 2^53: {REMEDY}")
        if most is not None and most < least:
            refuse(where, "maxItems is below minItems")
        item = self.rule(schema["items"], f"{where}/items")
        some = f'{item} (", " {item}){{{max(0, least - 1)},{"" if most is None else max(0, most - 1)}}}'
        return self.add('"[]"' if most == 0 else f'"[" {some} "]"' + (' | "[]"' if least == 0 else ""))

    def _integer(self, schema: dict[str, Any], where: str) -> str:
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not all(isinstance(schema.get(key, 0), (int, float)) for key in BOUNDS):
            refuse(where, "a bound is no number")
        if not isinstance(kinds, list) or "integer" not in kinds or set(kinds) & {"number", "object", "array", "string"}:
            refuse(where, f"numbers beyond 2^53 are bounds of integers only: {REMEDY}")
        ends: dict[str, Callable[[Any], int]] = {"minimum": math.ceil, "exclusiveMinimum": lambda v: math.floor(v) + 1, "maximum": math.floor,
                                                 "exclusiveMaximum": lambda v: math.ceil(v) - 1}
        lows, highs = ([ends[key](schema[key]) for key in pair if key in schema] for pair in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")))
        low, high = max(lows, default=None), min(highs, default=None)
        if low is not None and high is not None and low > high:
            refuse(where, f"minimum {low} is above maximum {high}")
        others = [_string(text) for kind, texts in (("null", ("null",)), ("boolean", ("true", "false"))) if kind in kinds for text in texts]
        return self.add(" | ".join([f"/{integers(low, high)}/", *others]))


TYPES: dict[str, Callable[[Any], bool]] = {
    "null": lambda v: v is None, "boolean": lambda v: isinstance(v, bool), "string": lambda v: isinstance(v, str), "array": lambda v: isinstance(v, list),
    "object": lambda v: isinstance(v, dict), "number": lambda v: isinstance(v, (int, float)) and not isinstance(v, bool),
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool) or isinstance(v, float) and v.is_integer(),
}


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


# ---- ranges of integers as regexes


def integers(low: int | None, high: int | None) -> str:
    """A regex for the integers from low to high, both included; None: without end."""
    parts = []
    if low is None or low < 0:
        least = 1 if high is None or high >= 0 else -high
        parts.append("-(" + _from(least, None if low is None else -low) + ")")
    if high is None or high >= 0:
        parts.append(_from(0 if low is None else max(low, 0), high))
    return "(" + "|".join(parts) + ")"


def _from(low: int, high: int | None) -> str:
    """The same for 0 <= low <= high."""
    first, parts = str(low), []
    if high is None:
        return f"{_same(first, '9' * len(first))}|[1-9][0-9]{{{len(first)},}}"
    last = str(high)
    for n in range(len(first), len(last) + 1):
        parts.append(_same(first if n == len(first) else "1" + "0" * (n - 1), last if n == len(last) else "9" * n))
    return "|".join(parts)


def _same(low: str, high: str) -> str:
    """The same for numbers of equally many digits."""
    if low == high:
        return low
    if low[0] == high[0]:
        return low[0] + "(" + _same(low[1:], high[1:]) + ")"
    n = len(low) - 1
    if not n:
        return f"[{low}-{high}]"
    whole = f"[0-9]{{{n}}}"
    if low[1:] == "0" * n and high[1:] == "9" * n:
        return f"[{low[0]}-{high[0]}]{whole}"
    middle = [f"[{int(low[0]) + 1}-{int(high[0]) - 1}]{whole}"] if int(high[0]) - int(low[0]) > 1 else []
    return "|".join([low[0] + "(" + _same(low[1:], "9" * n) + ")", *middle, high[0] + "(" + _same("0" * n, high[1:]) + ")"])
