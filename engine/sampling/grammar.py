"""Structured output: which tokens may come next, so that an answer obeys a JSON schema, a regex, a Lark grammar, or is one of several strings.

    compile_grammar(tokenizer, end_ids, json_schema=…) -> Grammar -> .start(prompt length) -> Constraint.allowed(history) -> bool [n_vocab] -> Sampler

llguidance (https://github.com/guidance-ai/llguidance) does the work: a lexer of regex derivatives and an Earley parser over the vocabulary's bytes. JSON comes
as `json.dumps` writes it, on one line. A constraint follows the history it is shown, backwards too, so speculation and banned texts need nothing from it.
Everything a hostile schema could make large is bounded here or by llguidance's limits, which count work, not time: errors are the same on every machine.
"""
from __future__ import annotations

import json
import re
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OptionError, UnsupportedError

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

MAX_TEXT = 256 << 10
"""Most characters of a schema, regex, grammar, or all choices."""
MAX_DEPTH = 64
"""Of brackets within brackets."""
LIMITS: dict[str, Any] = {"initial_lexer_fuel": 2_000_000, "step_lexer_fuel": 500_000, "step_max_items": 100_000, "max_lexer_states": 50_000,
          "max_grammar_size": 200_000, "verbose_errors": False}
NO_FORCING = '\n%llguidance {"no_forcing": true}\n'
"""Without it every step looks how far the text is determined, which takes seconds for /a{100000}/."""
KINDS = ("json_schema", "regex", "grammar", "choices")
_tables: weakref.WeakKeyDictionary[Any, dict[frozenset[int], Any]] = weakref.WeakKeyDictionary()


class Grammar:
    """A compiled grammar for one vocabulary; any number of answers may use it."""

    def __init__(self, matcher: Any, n_vocab: int) -> None:
        self._matcher, self._n_vocab = matcher, n_vocab
        self.asked: dict[str, Any] = {}
        """What it was compiled from, as arguments of `Model.generate`."""

    def start(self, prompt_length: int) -> Constraint:
        """The constraint of an answer to a prompt of so many ids."""
        return Constraint(self._matcher.deep_copy(), self._n_vocab, prompt_length)


class Constraint:
    """Follows one answer."""

    def __init__(self, matcher: Any, n_vocab: int, prompt_length: int) -> None:
        self._matcher, self._n_vocab, self._start = matcher, n_vocab, prompt_length
        self._ids: list[int] = []  # that the matcher has consumed

    def allowed(self, history: Sequence[int]) -> np.ndarray:
        """bool [n_vocab]: what may follow these ids, prompt and answer; ids that end an answer where it may end. OptionError if the grammar grew
        beyond llguidance's limits."""
        answer = list(history[self._start:])
        same = next((i for i, (a, b) in enumerate(zip(answer, self._ids)) if a != b), min(len(answer), len(self._ids)))
        if same < len(self._ids):
            self._matcher.rollback(len(self._ids) - same)
        if same < len(answer):
            self._matcher.consume_tokens(answer[same:])
        self._ids = answer
        mask = allowed_ids(self._matcher, self._n_vocab)
        if not mask.any():
            raise OptionError("the grammar allows nothing here: it contradicts itself")
        return mask


def allowed_ids(matcher: Any, n_vocab: int) -> np.ndarray:
    """bool [n_vocab]; OptionError if the matcher has failed."""
    bits = matcher.compute_bitmask()
    if matcher.is_error():
        raise OptionError(f"the grammar cannot be followed: {_line(matcher.get_error())}")
    mask = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")[:n_vocab].astype(bool)
    return mask if len(mask) == n_vocab else np.concatenate([mask, np.zeros(n_vocab - len(mask), bool)])


def compile_grammar(tokenizer: Tokenizer, end_ids: Iterable[int], *, json_schema: Any = None, regex: str | None = None, grammar: str | None = None,
                    choices: Sequence[str] | None = None) -> Grammar | None:
    """None if nothing is asked for. json_schema: JSON text, a dict, or a pydantic model. grammar: Lark, as llguidance reads it.

    OptionError for what is no schema, regex or grammar, contradicts itself, or is too large; UnsupportedError if llguidance is not installed.
    """
    given = {"json_schema": json_schema, "regex": regex, "grammar": grammar, "choices": choices}
    asked = [name for name, value in given.items() if value is not None and not (name == "choices" and value == ())]
    if not asked:
        return None
    if len(asked) > 1:
        raise OptionError(f"give one of {', '.join(KINDS)}, not {' and '.join(asked)}")
    try:
        import llguidance
    except ImportError:
        raise UnsupportedError("structured output needs the package llguidance: pip install llguidance") from None
    kind, end = asked[0], frozenset(end_ids)
    if not end:
        raise OptionError(f"{kind}: this model has no end-of-sequence token, so an answer could not end")
    try:
        source = _source(kind, given[kind]) + NO_FORCING
        table, limits = _table(tokenizer, end), llguidance.LLParserLimits(**LIMITS)
        error = llguidance.LLMatcher.validate_grammar(source, table, limits=limits)
        if error and not error.startswith("WARNING"):
            raise OptionError(f"{kind}: {_line(error)}")
        matcher = llguidance.LLMatcher(table, source, log_level=0, limits=limits)
        if not allowed_ids(matcher, tokenizer.n_vocab).any():
            raise OptionError("it allows no answer at all")
    except OptionError as error:
        raise OptionError(str(error) if str(error).startswith(kind) else f"{kind}: {error}") from None
    except (ValueError, TypeError, RuntimeError) as error:  # what llguidance raises
        raise OptionError(f"{kind}: {_line(error)}") from None
    return Grammar(matcher, tokenizer.n_vocab)


def _source(kind: str, value: Any) -> str:
    """What the user gave, checked, as a Lark grammar in llguidance's dialect."""
    if kind == "json_schema":
        return _json_source(value)
    if kind == "choices":
        texts = [value] if isinstance(value, str) else list(value)
        if not all(isinstance(text, str) and text for text in texts) or not texts:
            raise OptionError("must be non-empty strings")
        _check_text("".join(texts), depth=False)
        return "start: " + " | ".join(_lark_string(text) for text in texts)
    if not isinstance(value, str) or not value:
        raise OptionError(f"must be a non-empty string, found {type(value).__name__}")
    _check_text(value)
    return value if kind == "grammar" else "start: /" + _lark_regex(value) + "/"


def _json_source(value: Any) -> str:
    if hasattr(value, "model_json_schema"):
        value = _closed(value.model_json_schema())
    if isinstance(value, str):
        _check_text(value)
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise OptionError(f"is not JSON: {_line(error)}") from None
    if not isinstance(value, (dict, bool)):
        raise OptionError(f"must be a JSON object, found {type(value).__name__}")
    value = value if isinstance(value, dict) else {} if value else {"anyOf": []}
    style = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": False, "coerce_one_of": False}
    try:
        text = json.dumps({**value, "x-guidance": style}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"is not plain JSON data: {_line(error)}") from None
    _check_text(text)
    _check_counts(value)
    return f"start: %json {text}"


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


def _check_text(text: str, depth: bool = True) -> None:
    if len(text) > MAX_TEXT:
        raise OptionError(f"has {len(text)} characters, at most {MAX_TEXT} are taken")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise OptionError("is not valid Unicode") from None
    level = 0
    for c in text if depth else ():
        level += (c in "([{") - (c in ")]}")
        if level > MAX_DEPTH:
            raise OptionError(f"is nested too deeply (more than {MAX_DEPTH} brackets)")


def _lark_regex(regex: str) -> str:
    """A regex between slashes: these, and ends of lines, must be escaped there."""
    out, escaped = [], False
    for c in regex:
        if c in "/\n\r" and not escaped:
            out.append({"/": "\\/", "\n": "\\n", "\r": "\\r"}[c])
        elif c in "\n\r":  # escaped already
            out.append({"\n": "n", "\r": "r"}[c])
        else:
            out.append(c)
        escaped = c == "\\" and not escaped
    if escaped:
        raise OptionError("it ends with a lone backslash")
    return "".join(out)


def _lark_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _table(tokenizer: Tokenizer, end: frozenset[int]) -> Any:
    """llguidance's view of a vocabulary: bytes of each token. Made once for a tokenizer and its end ids (a second for 128,000 tokens)."""
    import llguidance
    known = _tables.setdefault(tokenizer, {})
    if end not in known:
        known[end] = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Vocabulary(tokenizer, end)), n_vocab=tokenizer.n_vocab, eos_token=sorted(end))
    return known[end]


class _Vocabulary:
    """A tokenizer as llguidance's TokenizerWrapper wants it."""

    def __init__(self, tokenizer: Tokenizer, end: frozenset[int]) -> None:
        self.eos_token_id, self.bos_token_id = min(end), tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(id) for id in range(tokenizer.n_vocab)]
        self.special_token_ids = [id for id, token in enumerate(self.tokens) if not token or id in end]  # empty: control tokens
        for id in self.special_token_ids:
            self.tokens[id] = b"\xff[%d]" % id  # never text

        self._ids = {token: id for id, token in reversed(list(enumerate(self.tokens)))}
        self._longest = max(map(len, self.tokens))

    def __call__(self, text: bytes | str) -> list[int]:
        """Greedy, longest token first: where a grammar leaves no choice, llguidance wants to know one way to cut the text."""
        raw, ids, at = text.encode() if isinstance(text, str) else text, [], 0
        while at < len(raw):
            n = next((n for n in range(min(self._longest, len(raw) - at), 0, -1) if raw[at:at + n] in self._ids), 0)
            if not n:
                break
            ids.append(self._ids[raw[at:at + n]])
            at += n
        return ids


def _line(error: object) -> str:
    """llguidance's message on one line, without the listing of the grammar that follows it."""
    text = re.split(r"\n\s*\d+ \| |; following special tokens|<non-verbose/>", str(error))[0]
    text = " ".join(re.sub(r"^at 1\(8\): failed to compile JSON schema: ", "", text).split())
    return text if len(text) <= 300 else text[:300] + "…"
