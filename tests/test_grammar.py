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
from llamina.engine.sampling.grammar import compile_grammar
from schemas import BOOL, INT, NULL, SCHEMAS, WORD, obj

GREEDY, HOT = {"temperature": 0}, {"temperature": 50.0, "top_k": 0, "top_p": 1.0, "seed": 2}  # hot: what the model thinks hardly matters
FORMATS = jsonschema.FormatChecker(("date", "ipv4", "ipv6", "uuid", "email"))
MAX_TOKENS, PROMPT = 64, "Answer in JSON:"
alone: dict[tuple[str, bool], str] = {}  # schema, whether hot -> answer


def validates(schema: Any, text: str, finish_reason: str | None) -> bool:
    """False if the answer was cut off; fails if it ended and is not what its schema says."""
    assert finish_reason in ("eos", "length")
    if finish_reason == "eos":
        jsonschema.Draft202012Validator(schema, format_checker=FORMATS).validate(json.loads(text))
    return finish_reason == "eos"


@pytest.fixture(scope="module")
def model() -> Any:
    with llamina.load("demo") as model:
        yield model


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda s: json.dumps(s)[:50])
def test_what_finishes_validates(model, schema):
    """Greedy and hot; an answer cut off at max_tokens is the beginning of a valid one, which is all that can be asked of it."""
    ended = 0
    for options in GREEDY, HOT:
        answer = model.generate(PROMPT, json_schema=schema, max_tokens=MAX_TOKENS, **options)
        ended += validates(schema, answer.text(), answer.finish_reason)
        alone[json.dumps(schema), options is HOT] = answer.text()
    assert ended


def test_in_a_batch(model):
    """All schemas at once, greedy and hot in turns: each answer validates, and is what it is alone."""
    requests = [{"prompt": PROMPT, "json_schema": schema, **options} for schema in SCHEMAS for options in (GREEDY, HOT)]
    ended = 0
    for result in model.generate_many(requests, max_tokens=MAX_TOKENS, live=16):
        schema, hot = SCHEMAS[result.index // 2], bool(result.index % 2)
        assert result.error is None, result.error
        ended += validates(schema, result.text, result.finish_reason)
        assert result.text == alone.get((json.dumps(schema), hot), result.text)
    assert ended > len(SCHEMAS)


def test_regex_grammar_choices(model):
    for options in GREEDY, HOT:
        assert re.fullmatch(r"[A-Z][a-z]{2,6}( [0-9]{1,3})?", model.generate("Name:", regex=r"[A-Z][a-z]{2,6}( [0-9]{1,3})?", **options).text())
        assert model.generate("Is it?", choices=["yes", "no \"\\ never", "🦊"], **options).text() in ("yes", "no \"\\ never", "🦊")
        lark = 'start: word (" " word)~1..3\nword: "la" | "lo"'
        assert re.fullmatch(r"(la|lo)( (la|lo)){1,3}", model.generate("Sing:", grammar=lark, **options).text())


def test_a_space_at_the_beginning_is_part_of_the_answer(model):
    """Where nothing stands before an answer, SentencePiece would drop its first space."""
    assert [model.generate(prompt, regex=" a b c").text() for prompt in ("", "x")] == [" a b c"] * 2


def test_speculation_changes_nothing(model):
    schema = {"type": "array", "items": obj(name=WORD, n=INT), "minItems": 3, "maxItems": 5}
    texts = {model.generate("[" * 3, json_schema=schema, seed=5, max_tokens=120, speculate=speculate).text() for speculate in (False, True)}
    assert len(texts) == 1


def test_in_a_chat(model):
    from llamina.engine.answers.chat import Chat
    with Chat(model) as chat:
        assert chat.ask("Is it good?", choices=["yes", "no"]).text() in ("yes", "no")
        assert json.loads(chat.ask("How many?", json_schema=obj(n=INT)).text())["n"] in range(-99, 100)


def test_pydantic(model):
    pydantic = pytest.importorskip("pydantic")
    Inner: Any = pydantic.create_model("Inner", type=(typing.Literal["object"], ...), properties=(bool, ...))
    Outer: Any = pydantic.create_model("Outer", inner=(Inner, ...))
    Point = pydantic.create_model("Point", x=(bool, ...), y=(bool, False), default=(Outer, ...), many=(list[Inner], pydantic.Field(max_length=1)))
    for options in GREEDY, HOT:
        text = model.generate("A point:", json_schema=Point, max_tokens=200, **options).text()
        assert Point.model_validate_json(text) and set(json.loads(text)) <= {"x", "y", "default", "many"}  # nothing that the model would ignore


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"json_schema": "{"}, "is not JSON"), ({"json_schema": 3}, "must be a JSON object"), ({"json_schema": {"type": "strin"}}, "strin"),
    ({"json_schema": {"x": object()}}, "plain JSON"), ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
    ({"json_schema": {"$ref": "#"}}, "json_schema: "), ({"json_schema": {"$ref": "http://example.org/x"}}, "json_schema: "),
    ({"json_schema": {"allOf": [WORD, BOOL]}}, "incompatible"),
    ({"json_schema": "[" * 100_000}, "nested too deeply"), ({"json_schema": "{" + " " * 300_000}, "characters"), ({"json_schema": False}, "json_schema: "),
    ({"json_schema": {"$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(2000)}, "$ref": "#/$defs/d0"}}, "$defs: has 2000"),
    ({"json_schema": {"patternProperties": {f"^x{i}.*y{i}$": NULL for i in range(300)}}}, "patternProperties"),
    ({"regex": "("}, "regex"), ({"regex": "(?=a)b"}, "look-around"), ({"regex": "(" * 500 + "a" + ")" * 500}, "nested too deeply"),
    ({"regex": r"[^\s\S]"}, "regex"),
    ({"regex": ""}, "non-empty"), ({"regex": "\ud800"}, "Unicode"), ({"regex": 7}, "non-empty string"), ({"grammar": "start: x"}, "unknown name"),
    ({"grammar": "start: start"}, "grammar: "), ({"grammar": "\0"}, "grammar: "), ({"choices": []}, "non-empty"), ({"choices": ["a", ""]}, "non-empty"),
    ({"choices": [1]}, "non-empty"), ({"regex": "a", "choices": ["b"]}, "give one of"), ({"regex": "a", "ignore_eos": True}, "contradict"),
]


REFUSED: list[tuple[Any, str]] = [
    ({"not": INT}, '"not"'), ({"if": INT, "then": BOOL}, '"if"'), ({"type": "array", "contains": INT}, '"contains"'),
    ({"type": "array", "uniqueItems": True}, '"uniqueItems"'),
    ({"type": "object", "propertyNames": {"pattern": "a"}}, '"propertyNames"'), ({"type": "object", "unevaluatedProperties": False}, '"unevaluatedProperties"'),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, '"dependentRequired"'), ({"$dynamicRef": "#x"}, '"$dynamicRef"'),
    ({"type": "string", "format": "regex"}, "format: regex"),
    ({"oneOf": [INT, {"type": "number"}]}, "oneOf"), ({"type": "string", "pattern": "(?=a)b"}, "look-ahead"),
    ({"type": "string", "pattern": r"(a)\1"}, "backreferences"),
    ({"type": "integer", "minimum": 2, "maximum": 1}, "minimum"), ({"enum": []}, "anyOf is empty"), ({"type": "integer", "multipleOf": 10**40}, "multipleOf"),
]


@pytest.mark.parametrize("schema, name", REFUSED, ids=lambda v: str(v)[:40])
def test_what_is_not_taken_is_refused_by_name(model, schema, name):
    with pytest.raises(OptionError, match=f"^json_schema: .*{re.escape(name)}") as caught:
        model.generate("x", json_schema=schema)
    assert "%json" not in str(caught.value)


@pytest.mark.parametrize("options, message", HOSTILE, ids=lambda v: str(v)[:50])
def test_hostile_input_is_an_error(model, options, message):
    start = time.monotonic()
    with pytest.raises(OptionError, match=re.escape(message)) as caught:
        model.generate("x", **options)
    assert time.monotonic() - start < 5 and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("options", [
    {"regex": "(a|b)*a(a|b){200}"}, {"regex": "((((a{10}){10}){10}){10}){10}"}, {"regex": "a{1000000}"}, {"grammar": "start: A\nA: ~/(.*a.{14})|(.*b.{15})/"},
    {"json_schema": {"const": "x" * 100_000}}, {"regex": "(a{1,1000}){1,1000}"}, {"regex": "((a*)*)*b"}, {"regex": "(.*a){50}"},
    {"grammar": 'start: a\na: a a | a | "x"'},
    {"json_schema": {"type": "string", "pattern": "(a|b)*a(a|b){100}"}}, {"json_schema": {"type": "string", "minLength": 10**9}},
    {"json_schema": {"type": "array", "minItems": 10**9, "items": NULL}},
    {"json_schema": {"anyOf": [{"type": "object", "properties": {f"k{i}": WORD for i in range(100)}} for _ in range(20)]}},
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
