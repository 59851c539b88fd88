"""Structured output: what finishes obeys its schema, regex, grammar or choice, greedy and hot; hostile input is an error, soon."""
from __future__ import annotations

import json
import random
import re
import resource
import time
import typing
from typing import Any

import jsonschema
import llamina
import pytest
from llamina.engine.errors import LlaminaError, OptionError
from llamina.engine.sampling import grammar as grammar_module
from llamina.engine.sampling import grammar_service
from llamina.engine.sampling.big_numbers import integers
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


@pytest.mark.parametrize("options, message", HOSTILE, ids=lambda v: re.sub(" at 0x[0-9a-f]+", "", str(v))[:50])
def test_hostile_input_is_an_error(model, options, message):
    start = time.monotonic()
    with pytest.raises(OptionError, match=re.escape(message)) as caught:
        model.generate("x", **options)
    assert time.monotonic() - start < 30 and "\n" not in str(caught.value) and len(str(caught.value)) < 500


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
    assert time.monotonic() - start < 60


# ---- what a schema says is kept, or refused when it is compiled


def accepts(model: Any, schema: Any, text: str) -> bool:
    """Whether an answer may be exactly this text."""
    grammar = compile_grammar(model.tokenizer, model.tokenizer.eog_ids, json_schema=schema)
    assert grammar is not None
    one, ids = grammar.start(0), list[int]()
    byte = {model.tokenizer.token_bytes(id): id for id in range(model.tokenizer.n_vocab) if len(model.tokenizer.token_bytes(id)) == 1}
    for b in text.encode():
        if not one.allowed(ids)[id := byte[bytes([b])]]:
            return False
        ids.append(id)
    return bool(one.allowed(ids)[sorted(model.tokenizer.eog_ids)].any())


BIG = 1234567890123456789
ID = {"type": "integer", "minimum": 2**53 + 1, "maximum": 2**63 - 1}
NODE = {"type": "object", "properties": {"v": {"$ref": "#/$defs/id"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, NULL]}}, "required": ["v", "next"]}
KEPT: list[tuple[Any, list[str], list[str]]] = [
    ({"enum": [BIG, BIG + 1]}, [f"{BIG}", f"{BIG + 1}"], [f"{BIG - 1}", f"{BIG + 2}", "1234567890123456768"]),
    ({"const": {"a": [BIG, "x"]}}, [f'{{"a": [{BIG}, "x"]}}'], ['{"a": [1234567890123456768, "x"]}']),
    (ID, [f"{2**53 + 1}", f"{2**63 - 1}"], [f"{2**53}", f"{2**63}", f"-{2**53 + 1}", "0"]),
    ({"type": "integer", "exclusiveMinimum": 2**53 + 1, "exclusiveMaximum": 2**53 + 4}, [f"{2**53 + 2}", f"{2**53 + 3}"], [f"{2**53 + 1}", f"{2**53 + 4}"]),
    ({"type": "integer", "minimum": -2**63}, ["0", "-1", f"-{2**63}", "9" * 40], [f"-{2**63 + 1}", "-0", "01"]),
    (obj(("id",), id=ID, n={"type": ["integer", "null"], "maximum": 2**64}, s=WORD),
     [f'{{"id": {2**53 + 1}}}', f'{{"id": {2**60}, "n": null, "s": "x"}}', f'{{"id": {2**60}, "s": "x"}}'], ["{}", f'{{"id": {2**53}}}', '{"s": "x"}']),
    ({"type": "array", "items": obj(id=ID), "minItems": 1, "maxItems": 2}, [f'[{{"id": {2**62}}}]', f'[{{"id": {2**62}}}, {{"id": {2**62}}}]'], ["[]"]),
    ({"$defs": {"id": ID, "node": NODE, "w": WORD}, **obj(a={"$ref": "#/$defs/node"}, w={"$ref": "#/$defs/w"})},
     [f'{{"a": {{"v": {2**62}, "next": {{"v": {2**62}, "next": null}}}}, "w": "k"}}'], ['{"a": {"v": 5, "next": null}, "w": "k"}']),
    ({"type": "integer", "default": BIG, "examples": [BIG], "title": "t"}, ["5", f"{BIG}"], []),
    ({"enum": [2**53, -2**53, 1e20]}, [f"{2**53}", f"-{2**53}", "1" + "0" * 20], []),
    ({"type": "array", "items": NULL, "uniqueItems": False, "minItems": 0}, ["[]", "[null, null]"], []),
    *(({"type": "string", "format": name}, ['"x"', '""'], ["1"])
      for name in ("path", "binary", "password", "byte", "color", "phone", "file-path", "base64url", "x")),
    ({"type": "integer", "format": "int64"}, ["5"], ['"5"']), ({"type": "string", "format": "uuid4"}, [], ['"x"']),
    ({"not": False, "dependentRequired": {}, "propertyNames": True, "if": True, "minContains": 0, "unevaluatedProperties": True}, ["1", "{}"], []),
    ({"type": "string", "minLength": 1.0, "maxLength": 2.0}, ['"a"', '"ab"'], ['""', '"abc"']),
    ({"type": "object", "properties": {"score": INT, "k": BOOL}, "patternProperties": {"^(score|k)$": {}, "^x$": NULL}, "additionalProperties": False},
     ['{"score": 5}', '{"score": 5, "k": true, "x": null}', "{}"], ['{"y": 1}']),
    ({"type": "object", "properties": {"ab": INT}, "patternProperties": {"^a[bc]?$": {"minimum": 5}, "^ab$": {"maximum": 7}}, "additionalProperties": False},
     ['{"ab": 6}'], ['{"ab": 8}', '{"ab": 4}']),
    ({"type": "object", "properties": {"a": INT, "b": INT}, "required": ["a", "b"], "minProperties": 2}, ['{"a": 1, "b": 2}'], ['{"a": 1}']),
]


@pytest.mark.parametrize("schema, good, bad", KEPT, ids=lambda v: str(v)[:40])
def test_what_a_schema_says_is_kept(model, schema, good, bad):
    for text in good:
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
        assert accepts(model, schema, text), text
    assert not any(accepts(model, schema, text) for text in bad)


def test_ranges_of_integers():
    rng = random.Random(3)
    for _ in range(300):
        scale = 10 ** rng.randint(0, 25)
        low = rng.randint(-scale, scale)
        high = low + rng.randint(0, 10 ** rng.randint(0, 25))
        least, most = rng.choice([(low, high), (low, None), (None, high)])
        found = re.compile(integers(least, most))
        for n in [low, high, low - 1, high + 1, 0, -1, 1, *(rng.randint(-3 * scale, 3 * scale) for _ in range(8))]:
            assert bool(found.fullmatch(str(n))) == ((least is None or n >= least) and (most is None or n <= most)), (least, most, n)
        assert not any(found.fullmatch(text) for text in ("-0", "00", "+1", ""))


NOT_KEPT: list[tuple[Any, str]] = [
    ({"type": "integer", "multipleOf": 2**60}, "/multipleOf"), ({"type": "number", "maximum": 2**60 + 1}, "integers only"),
    ({"allOf": [{"const": BIG}]}, "/allOf"),
    (obj(a=obj(b={"type": "number", "minimum": BIG})), "/properties/a/properties/b"), ({"type": "object", "additionalProperties": {"const": BIG}}, "2^53"),
    ('{"const": 12345678901234567890.0}', "2^53"), ('{"type": "integer", "maximum": 1e400}', "2^53"), ('{"const": NaN}', "NaN"),
    ('{"type": "integer", "type": "string"}', "'type' twice"), ('{"properties": {"a": {}, "a": {"type": "null"}}}', "'a' twice"),
    ('{"maximum": ' + "9" * 5000 + "}", "5000 digits"), ({"maximum": 10**5000}, "digits"), ({"enum": [{"a": float("nan")}]}, "plain JSON"),
    ({"type": "object", "patternProperties": {"^x$": BOOL}, "additionalProperties": False, "minProperties": 2}, "/minProperties"),
    ({"type": "object", "minProperties": 1}, "/minProperties"),
    (obj(o={"type": "object", "additionalProperties": BOOL, "minProperties": 3}), "/properties/o/minP"),
    (obj(id=ID, next={"$ref": "#/properties/id"}), "refer to $defs"),
]


@pytest.mark.parametrize("schema, message", NOT_KEPT, ids=[message for _, message in NOT_KEPT])
def test_what_cannot_be_kept_is_refused_when_compiled(model, schema, message):
    with pytest.raises(OptionError, match="^json_schema: .*" + re.escape(message)) as caught:
        model.generate("x", json_schema=schema)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_hundreds_of_open_properties(model):
    for n in 300, 1000:
        schema = {"type": "object", "properties": {f"property_{i}": WORD for i in range(n)}}
        answer = model.generate("x", json_schema=schema, max_tokens=12, **HOT)
        assert answer.text() and answer.finish_reason in ("length", "eos")


@pytest.mark.parametrize("regex", ["a?" * 40_000, "a?" * 60_000, "a*" * 30_000, "[ab]?" * 25_000], ids=lambda r: r[:6])
def test_a_grammar_that_would_end_the_process_is_an_error(model, regex, monkeypatch):
    monkeypatch.setattr(grammar_service.child, "seconds", 1.0)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(OptionError, match="^regex: it takes more"):
        model.generate("x", regex=regex)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000 and time.monotonic() - start < 60
    assert re.fullmatch("(?:a?b?){30}", model.generate("x", regex="(a?b?){30}", max_tokens=20, **HOT).text())


class LongTokens:
    """Bytes, two tokens that llguidance would panic about, and an end."""

    bos_id = None
    tokens = [*(bytes([b]) for b in range(256)), b"x" * 1500, b"y" * 70_000, b""]
    n_vocab = len(tokens)

    def token_bytes(self, id: int) -> bytes:
        return self.tokens[id]


def test_tokens_too_long_for_the_library_are_left_out():
    tokenizer: Any = LongTokens()
    grammar = compile_grammar(tokenizer, {258}, regex="[x-z]*")
    assert grammar is not None
    assert list(grammar.start(0).allowed([ord("x")]).nonzero()[0]) == [*b"xyz", 258]


def test_a_panic_is_an_error(model, monkeypatch):
    """At compile time, and in the middle of an answer."""
    class PanicException(BaseException):  # as PyO3 names it
        pass

    def panic(*given: Any) -> Any:
        raise PanicException("assertion failed:\n x <= 3")
    answer = model.generate("x", regex="a+", max_tokens=5, ignore_eos=False, **HOT)
    pieces = iter(answer)
    next(pieces)
    monkeypatch.setattr(grammar_module, "allowed_ids", panic)
    with pytest.raises(OptionError, match=r"the grammar cannot be followed: the library gave up \(assertion failed: x <= 3\)"):
        list(pieces)
    with pytest.raises(OptionError, match="^regex: it cannot be compiled: the library gave up"):
        model.generate("x", regex="a+b")


def test_a_constraint_follows_history_backwards(model):
    grammar = compile_grammar(model.tokenizer, model.tokenizer.eog_ids, choices=["abc", "abd"])
    assert grammar is not None
    a, b, c, d = (next(id for id in range(model.tokenizer.n_vocab) if model.tokenizer.token_bytes(id) == letter) for letter in (b"a", b"b", b"c", b"d"))
    one, other = grammar.start(1), grammar.start(1)
    one.allowed([9, a, b, c])
    assert (one.allowed([9, a, b]) == other.allowed([9, a, b])).all() and one.allowed([9, a, b])[d] and not one.allowed([9, a, b])[a]
    assert set(one.allowed([9, a, b, d]).nonzero()[0]) == model.tokenizer.eog_ids
