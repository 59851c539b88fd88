"""Structured output: which tokens may come next, so that an answer obeys a JSON schema, a regex, a Lark grammar, or is one of several strings.

    compile_grammar(tokenizer, end_ids, json_schema=…) -> Grammar -> .start(prompt length) -> Constraint.allowed(history) -> bool [n_vocab] -> Sampler

llguidance (https://github.com/guidance-ai/llguidance) does the work: a lexer of regex derivatives and an Earley parser over the vocabulary's bytes. JSON comes
as `json.dumps` writes it, on one line. A constraint follows the history it is shown, backwards too, so speculation and banned texts need nothing from it.
Everything a hostile schema could make large is bounded here or by llguidance's limits, which count work, not time; what they don't count is tried out in a
child process with limits first (grammar_service.py).
"""
from __future__ import annotations

import json
import re
import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import OptionError, UnsupportedError
from ..panics import panics_are
from .grammar_service import LIMITS, NO_FORCING, try_out, warm
from .schema import check_text, schema_source

if TYPE_CHECKING:
    from ..text.tokenizer import Tokenizer

MAX_TOKEN = 1000
"""Bytes of a token that llguidance takes; longer ones can't be part of an answer here."""
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
        with panics_are(OptionError, "the grammar cannot be followed"):
            return Constraint(self._matcher.deep_copy(), self._n_vocab, prompt_length)


class Constraint:
    """Follows one answer."""

    def __init__(self, matcher: Any, n_vocab: int, prompt_length: int) -> None:
        self._matcher, self._n_vocab, self._start = matcher, n_vocab, prompt_length
        self._ids: list[int] = []  # that the matcher has consumed

    def allowed(self, history: Sequence[int]) -> np.ndarray:
        """bool [n_vocab]: what may follow these ids, prompt and answer; ids that end an answer where it may end. OptionError if the grammar grew
        beyond llguidance's limits."""
        with panics_are(OptionError, "the grammar cannot be followed"):
            return self._allowed(list(history[self._start:]))

    def _allowed(self, answer: list[int]) -> np.ndarray:
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
        with panics_are(OptionError, "it cannot be compiled"):
            matcher = _compiled(llguidance, _source(kind, given[kind]) + NO_FORCING, tokenizer, end)
    except OptionError as error:
        raise OptionError(str(error) if str(error).startswith(kind) else f"{kind}: {error}") from None
    except (ValueError, TypeError, RuntimeError) as error:  # what llguidance raises
        raise OptionError(f"{kind}: {_line(error)}") from None
    return Grammar(matcher, tokenizer.n_vocab)


def _compiled(llguidance: Any, source: str, tokenizer: Tokenizer, end: frozenset[int]) -> Any:
    """llguidance's matcher, after a trial in the child process."""
    warm()
    table, limits = _table(tokenizer, end), llguidance.LLParserLimits(**LIMITS)
    try_out(source)
    error = llguidance.LLMatcher.validate_grammar(source, table, limits=limits)
    if error and not error.startswith("WARNING"):
        raise OptionError(_line(error))
    matcher = llguidance.LLMatcher(table, source, log_level=0, limits=limits)
    if not allowed_ids(matcher, tokenizer.n_vocab).any():
        raise OptionError("it allows no answer at all")
    return matcher


def _source(kind: str, value: Any) -> str:
    """What the user gave, checked, as a Lark grammar in llguidance's dialect."""
    if kind == "json_schema":
        return schema_source(value)
    if kind == "choices":
        texts = [value] if isinstance(value, str) else list(value)
        if not all(isinstance(text, str) and text for text in texts) or not texts:
            raise OptionError("must be non-empty strings")
        check_text("".join(texts), depth=False)
        return "start: " + " | ".join(_lark_string(text) for text in texts)
    if not isinstance(value, str) or not value:
        raise OptionError(f"must be a non-empty string, found {type(value).__name__}")
    check_text(value)
    return value if kind == "grammar" else "start: /" + _lark_regex(value) + "/"


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
        self.special_token_ids = [id for id, token in enumerate(self.tokens) if not 0 < len(token) <= MAX_TOKEN or id in end]  # empty: control tokens
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
