"""Structured output: what finishes obeys its schema, regex, grammar or choice, greedy and hot; hostile input is an error, soon."""
from __future__ import annotations

import json
import re
import time
import typing
from typing import Any

import jsonschema
import llamina
import pytest
from llamina.engine.errors import LlaminaError, OptionError
from llamina.engine.grammar import compile_grammar

STRING, INT, NULL, BOOL = {"type": "string", "maxLength": 12}, {"type": "integer", "minimum": -99, "maximum": 99}, {"type": "null"}, {"type": "boolean"}


def obj(required: Any = None, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties if required is None else required), "additionalProperties": False}


SCHEMAS: list[Any] = [
    STRING, INT, NULL, BOOL, {"type": "number", "minimum": 0, "maximum": 1}, {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10},
    {"type": ["integer", "null"], "minimum": 0, "maximum": 9}, {"const": {"a": [1, 2.5, None]}}, {"enum": ["a", 1, None, [True]]},
    {"type": "string", "enum": ["red", "green\n\"blue\"", "ünï 🦊"]}, {"type": "string", "pattern": "^[a-z]{2,5}-[0-9]{3}$"},
    {"type": "string", "minLength": 2, "maxLength": 4}, {"type": "string", "format": "date"}, {"type": "string", "format": "time"},
    {"type": "string", "format": "ipv4"}, {"type": "string", "format": "uuid"}, {"type": "string", "format": "email", "maxLength": 30},
    {"type": "array", "items": INT, "minItems": 2, "maxItems": 3}, {"type": "array", "prefixItems": [BOOL, INT], "items": False},
    {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 4}, {"type": "array", "items": {"type": "array", "items": NULL, "maxItems": 2}, "maxItems": 2},
    obj(), obj(a=INT), obj(name=STRING, age=INT), obj(("a",), a=INT, b=BOOL, c=NULL), obj(outer=obj(inner=obj(deep=BOOL))),
    obj(items={"type": "array", "items": obj(id=INT), "maxItems": 2}), {"type": "object", "additionalProperties": INT, "maxProperties": 2},
    {"anyOf": [INT, BOOL]}, {"anyOf": [obj(kind={"const": "a"}, x=INT), obj(kind={"const": "b"}, y=BOOL)]},
    {"oneOf": [obj(kind={"const": "a"}, x=INT), obj(kind={"const": "b"}, y=BOOL)]}, {"allOf": [{"type": "integer"}, {"minimum": 3}, {"maximum": 7}]},
    {"$defs": {"p": obj(x=INT, y=INT)}, "type": "array", "items": {"$ref": "#/$defs/p"}, "minItems": 1, "maxItems": 2},
    {"$defs": {"t": obj(("v",), v=BOOL, next={"$ref": "#/$defs/t"})}, "$ref": "#/$defs/t"}, {"type": "integer", "multipleOf": 5, "minimum": 0, "maximum": 95},
    obj(**{"kéy \"q\"": INT, "": BOOL}), {"type": "object", "properties": {"a": INT}, "patternProperties": {"^x[0-9]$": BOOL}, "additionalProperties": False,
                                          "required": ["a"]},
]


@pytest.fixture(scope="module")
def model() -> Any:
    with llamina.load("demo") as model:
        yield model


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: json.dumps(s)[:50])
def test_what_finishes_validates(model, schema):
    """Greedy, warm and hot; an answer cut off at max_tokens is the beginning of a valid one, which is all that can be asked of it."""
    ended = 0
    for options in {"temperature": 0}, {"temperature": 1.0, "seed": 1}, {"temperature": 50.0, "top_k": 0, "top_p": 1.0, "seed": 2}:
        answer = model.generate("Answer in JSON:", json_schema=schema, max_tokens=100, **options)
        text = answer.text()
        assert answer.finish_reason in ("eos", "length")
        if answer.finish_reason == "eos":
            ended += 1
            jsonschema.Draft202012Validator(schema).validate(json.loads(text))
    assert ended


def test_regex_grammar_choices(model):
    for options in {"temperature": 0}, {"temperature": 50.0, "top_k": 0, "top_p": 1.0, "seed": 3}:
        assert re.fullmatch(r"[A-Z][a-z]{2,6}( [0-9]{1,3})?", model.generate("Name:", regex=r"[A-Z][a-z]{2,6}( [0-9]{1,3})?", **options).text())
        assert model.generate("Is it?", choices=["yes", "no \"\\ never", "🦊"], **options).text() in ("yes", "no \"\\ never", "🦊")
        lark = 'start: word (" " word)~1..3\nword: "la" | "lo"'
        assert re.fullmatch(r"(la|lo)( (la|lo)){1,3}", model.generate("Sing:", grammar=lark, **options).text())


def test_a_space_at_the_beginning_is_part_of_the_answer(model):
    """Where nothing stands before an answer, SentencePiece would drop its first space."""
    assert [model.generate(prompt, regex=" a b c").text() for prompt in ("", "x")] == [" a b c"] * 2


def test_speculation_changes_nothing(model):
    schema = {"type": "array", "items": obj(name=STRING, n=INT), "minItems": 3, "maxItems": 5}
    texts = {model.generate("[" * 3, json_schema=schema, seed=5, max_tokens=120, speculate=speculate).text() for speculate in (False, True)}
    assert len(texts) == 1


def test_in_a_chat(model):
    from llamina.engine.chat import Chat
    with Chat(model) as chat:
        assert chat.ask("Is it good?", choices=["yes", "no"]).text() in ("yes", "no")
        assert json.loads(chat.ask("How many?", json_schema=obj(n=INT)).text())["n"] in range(-99, 100)


def test_pydantic(model):
    pydantic = pytest.importorskip("pydantic")
    Inner = pydantic.create_model("Inner", type=(typing.Literal["object"], ...), properties=(bool, ...))
    Outer = pydantic.create_model("Outer", inner=(Inner, ...))
    Point = pydantic.create_model("Point", x=(bool, ...), y=(bool, False), default=(Outer, ...), many=(list[Inner], pydantic.Field(max_length=1)))
    for options in {"temperature": 0}, {"temperature": 50.0, "top_k": 0, "top_p": 1.0, "seed": 1}:
        text = model.generate("A point:", json_schema=Point, max_tokens=200, **options).text()
        assert Point.model_validate_json(text) and set(json.loads(text)) <= {"x", "y", "default", "many"}  # nothing that the model would ignore


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"json_schema": "{"}, "is not JSON"), ({"json_schema": 3}, "must be a JSON object"), ({"json_schema": {"type": "strin"}}, "strin"),
    ({"json_schema": {"x": object()}}, "plain JSON"), ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    ({"json_schema": {"$ref": "#"}}, "json_schema: "), ({"json_schema": {"$ref": "http://example.org/x"}}, "json_schema: "),
    ({"json_schema": {"allOf": [STRING, BOOL]}}, "incompatible"),
    ({"json_schema": "[" * 100_000}, "nested too deeply"), ({"json_schema": "{" + " " * 300_000}, "characters"), ({"json_schema": False}, "json_schema: "),
    ({"json_schema": {"$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(2000)}, "$ref": "#/$defs/d0"}}, "definitions"),
    ({"regex": "("}, "regex"), ({"regex": "(?=a)b"}, "look-around"), ({"regex": "(" * 500 + "a" + ")" * 500}, "nested too deeply"), ({"regex": r"[^\s\S]"}, "regex"),
    ({"regex": ""}, "non-empty"), ({"regex": "\ud800"}, "Unicode"), ({"regex": 7}, "non-empty string"), ({"grammar": "start: x"}, "unknown name"),
    ({"grammar": "start: start"}, "grammar: "), ({"grammar": "\0"}, "grammar: "), ({"choices": []}, "non-empty"), ({"choices": ["a", ""]}, "non-empty"),
    ({"choices": [1]}, "non-empty"), ({"regex": "a", "choices": ["b"]}, "give one of"), ({"regex": "a", "ignore_eos": True}, "contradict"),
]


@pytest.mark.parametrize("options, message", HOSTILE, ids=lambda v: str(v)[:50])
def test_hostile_input_is_an_error(model, options, message):
    start = time.monotonic()
    with pytest.raises(OptionError, match=re.escape(message)) as caught:
        model.generate("x", **options)
    assert time.monotonic() - start < 5 and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("options", [
    {"regex": "(a|b)*a(a|b){200}"}, {"regex": "(a{1,1000}){1,1000}"}, {"regex": "((a*)*)*b"}, {"regex": "(.*a){50}"}, {"grammar": 'start: a\na: a a | a | "x"'},
    {"json_schema": {"type": "string", "pattern": "(a|b)*a(a|b){100}"}}, {"json_schema": {"type": "string", "minLength": 10**9}},
    {"json_schema": {"type": "array", "minItems": 10**9, "items": NULL}},
    {"json_schema": {"anyOf": [{"type": "object", "properties": {f"k{i}": STRING for i in range(100)}} for _ in range(20)]}},
    {"json_schema": {"$defs": {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)} | {"d30": NULL}, "$ref": "#/$defs/d0"}},
], ids=lambda v: str(v)[:50])
def test_costly_grammars_end(model, options):
    """They run or are refused, in the beginning or on the way, but don't hang."""
    start = time.monotonic()
    try:
        assert model.generate("x", max_tokens=20, temperature=50.0, seed=1, **options).text() is not None
    except LlaminaError as error:
        assert "gramm" in str(error) or "json_schema" in str(error)
    assert time.monotonic() - start < 10


def test_a_constraint_follows_history_backwards(model):
    grammar = compile_grammar(model.tokenizer, model.tokenizer.eog_ids, choices=["abc", "abd"])
    assert grammar is not None
    a, b, c, d = (next(id for id in range(model.tokenizer.n_vocab) if model.tokenizer.token_bytes(id) == letter) for letter in (b"a", b"b", b"c", b"d"))
    one, other = grammar.start(1), grammar.start(1)
    one.allowed([9, a, b, c])
    assert (one.allowed([9, a, b]) == other.allowed([9, a, b])).all() and one.allowed([9, a, b])[d] and not one.allowed([9, a, b])[a]
    assert set(one.allowed([9, a, b, d]).nonzero()[0]) == model.tokenizer.eog_ids
