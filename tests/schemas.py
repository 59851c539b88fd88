"""A hundred JSON schemas, varied and small enough that a model which knows no JSON ends its answer soon."""
from __future__ import annotations

from typing import Any

WORD, INT, NULL, BOOL = {"type": "string", "maxLength": 8}, {"type": "integer", "minimum": -99, "maximum": 99}, {"type": "null"}, {"type": "boolean"}


def obj(required: Any = None, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties if required is None else required), "additionalProperties": False}


def arr(items: Any, most: int, least: int = 0) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


def pattern(regex: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "pattern": regex, **more}


def form(name: str) -> dict[str, Any]:
    return {"type": "string", "format": name, "maxLength": 40}


_TREE = {"$defs": {"t": obj(("v",), v=BOOL, next={"$ref": "#/$defs/t"})}, "$ref": "#/$defs/t"}
_A, _B = obj(kind={"const": "a"}, x=INT), obj(kind={"const": "b"}, y=BOOL)

SCHEMAS: list[Any] = [
    # values
    WORD, INT, NULL, BOOL, {"type": ["integer", "null"], "minimum": 0, "maximum": 9}, {"type": ["boolean", "null"]}, {"const": {"a": [1, 2.5, None]}},
    {"const": "one"}, {"const": -7}, {"const": []}, {"enum": ["a", 1, None, [True]]}, {"type": "string", "enum": ["red", "green\n\"blue\"", "ünï 🦊"]},
    {"enum": [{"a": 1}, {"a": 2, "b": [None]}]}, {"enum": [0.5, 1.5, -2.25]}, {"enum": ["\t\\/", "\u2028", "</s>", "\x7f"]},
    # numbers
    {"type": "number", "minimum": 0, "maximum": 1}, {"type": "number", "exclusiveMinimum": -1, "exclusiveMaximum": 0},
    {"type": "number", "minimum": 99.5, "maximum": 100.25}, {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10},
    {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 95}, {"type": "integer", "multipleOf": 7, "minimum": -70, "maximum": 70},
    {"type": "integer", "minimum": 1000, "maximum": 1003}, {"type": "integer", "minimum": -3, "maximum": -3},
    {"type": "number", "multipleOf": 1, "minimum": 3, "maximum": 5},
    {"type": "integer", "minimum": 9007199254740990, "maximum": 9007199254740992}, {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 7}]},
    {"type": "integer", "minimum": 2.5, "maximum": 4.5},
    # strings
    {"type": "string", "minLength": 2, "maxLength": 4}, {"type": "string", "maxLength": 0}, {"type": "string", "minLength": 12, "maxLength": 12},
    pattern("^[a-z]{2,5}-[0-9]{3}$"), pattern("^(yes|no|maybe)$"), pattern("^\\d{4}-\\d{2}$"), pattern("^[A-Z][a-z]{1,6}( [A-Z][a-z]{1,6}){0,2}$"),
    pattern("^#[0-9a-fA-F]{6}$"), pattern("^[^\"\\\\a-z]{1,3}$"), pattern("^.{3}$", maxLength=3), pattern("^v[0-9]+\\.[0-9]+$", maxLength=7),
    pattern("^[äöü€🦊]{2}$"),
    pattern("b", maxLength=4), pattern("^a", maxLength=4), pattern("z$", maxLength=4),
    form("date"), form("time"), form("date-time"), form("ipv4"), form("ipv6"), form("uuid"), form("email"), form("hostname"), form("duration"), form("uri"),
    # arrays
    arr(INT, 3, 2), arr(INT, 0), arr(BOOL, 4, 4), arr({"enum": ["x", "y"]}, 4), arr(arr(NULL, 2), 2), arr(WORD, 2, 1), arr({"anyOf": [INT, NULL]}, 3, 1),
    {"type": "array", "prefixItems": [BOOL, INT], "items": False}, {"type": "array", "prefixItems": [BOOL, INT], "items": False, "minItems": 2},
    {"type": "array", "prefixItems": [{"const": "at"}], "items": INT, "minItems": 2, "maxItems": 3}, {"type": "array", "maxItems": 0},
    arr(arr(arr({"const": 0}, 1, 1), 1, 1), 2, 1), arr(obj(id=INT), 2), arr(obj(name=WORD, tags=arr({"enum": ["new", "old"]}, 2)), 2, 1),
    # objects
    obj(), obj(a=INT), obj(name=WORD, age=INT), obj(("a",), a=INT, b=BOOL, c=NULL), obj((), a=INT, b=BOOL), obj(outer=obj(inner=obj(deep=BOOL))),
    obj(items=arr(obj(id=INT), 2)), {"type": "object", "additionalProperties": INT, "maxProperties": 0}, obj(**{"kéy \"q\"": INT, "": BOOL}),
    {"type": "object", "properties": {"a": INT}, "patternProperties": {"^x[0-9]$": BOOL}, "additionalProperties": False, "required": ["a"], "maxProperties": 2},
    obj(title={"type": "string", "title": "Title", "description": "of a story", "default": "x", "maxLength": 6}), obj(type=WORD, properties=INT, required=BOOL),
    obj(city={"enum": ["Paris", "Rome"]}, days={"type": "integer", "minimum": 1, "maximum": 7}, units={"enum": ["C", "F", None]}),
    obj(lat={"type": "number", "minimum": -90, "maximum": 90, "multipleOf": 1}, lon={"type": "integer", "minimum": -180, "maximum": 180}),
    obj(("id", "email"), id=pattern("^[0-9]{3}$"), email=form("email"), active=BOOL), obj(rating={"type": "integer", "minimum": 1, "maximum": 5}, text=WORD),
    obj(name={"const": "get_weather"}, arguments=obj(city=WORD)), obj(steps=arr(obj(do=WORD), 2, 1), answer=INT),
    obj(**{f"k{i}": {"const": i} for i in range(6)}), obj((), **{f"o{i}": {"const": i} for i in range(12)}),
    obj(a={"type": ["string", "null"], "maxLength": 5}),
    # combinations
    {"anyOf": [INT, BOOL]}, {"anyOf": [_A, _B]}, {"oneOf": [_A, _B]}, {"oneOf": [INT, BOOL, NULL, arr(NULL, 1)]}, {"anyOf": [obj(a=INT), obj(a=INT, b=INT)]},
    {"allOf": [{"type": "object", "properties": {"a": INT}, "required": ["a"]}, {"properties": {"b": BOOL}, "required": ["b"]}], "maxProperties": 2},
    {"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 3}]}, {"type": "integer", "enum": [1, "x", 3, None]},
    {"anyOf": [{"type": "array", "items": NULL, "maxItems": 1}, {"type": "string", "maxLength": 2}], "description": "either"},
    # references
    {"$defs": {"p": obj(x=INT, y=INT)}, **arr({"$ref": "#/$defs/p"}, 2, 1)}, {"definitions": {"p": obj(x=INT)}, "$ref": "#/definitions/p"}, _TREE,
    {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": BOOL}, "$ref": "#/$defs/a"}, obj(a={"$ref": "#/properties/b"}, b=INT),
    {"$defs": {"tree": obj(v=BOOL, kids=arr({"$ref": "#/$defs/tree"}, 2))}, "$ref": "#/$defs/tree"},
    {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "https://example.org/x.json", "title": "X", "$comment": "c",
        **obj(x={"$ref": "#/$defs/y"}),
     "$defs": {"y": {"type": "integer", "minimum": 0, "maximum": 3, "examples": [1]}}},
    {"$defs": {"even": obj(odd={"anyOf": [NULL, {"$ref": "#/$defs/odd"}]}), "odd": obj(even={"anyOf": [NULL, {"$ref": "#/$defs/even"}]})},
        "$ref": "#/$defs/even"},
    # integers beyond 2^53
    {"enum": [1234567890123456789, 1234567890123456790]}, obj(id={"type": "integer", "minimum": 2**53 + 1, "maximum": 2**63 - 1}, ok=BOOL),
    {"$defs": {"id": {"type": "integer", "minimum": -2**63, "maximum": 2**63 - 1}},
     **arr(obj(("id",), id={"$ref": "#/$defs/id"}, tag={"enum": ["x", 2**60]}), 2, 1)},
]
