"""A grammar's cost, found out where it harms nobody: compiled and followed for some bytes in a child process with limits of time and memory.

    try_out(Lark source) -> nothing, or OptionError

llguidance bounds much by counting (LIMITS), but not all: `a?` 40,000 times takes gigabytes while it compiles, 60,000 times ends the process. The trial has a
vocabulary of the 256 bytes, so it needs nothing of the model. What passed is remembered.
"""
from __future__ import annotations

from typing import Any

from ..child import Child, Fault, NoChild
from ..errors import OptionError

SECONDS = 4.0
MEMORY = 512 << 20
STEPS = 12
"""Bytes for which a trial follows the grammar."""
KEPT = 256
MAX_ALONE = 4096
"""Characters of a grammar that is taken without a trial, where no child process can be started."""
LIMITS: dict[str, Any] = {"initial_lexer_fuel": 2_000_000, "step_lexer_fuel": 500_000, "step_max_items": 100_000, "max_items_in_row": 20_000,
                          "max_lexer_states": 50_000, "max_grammar_size": 200_000, "verbose_errors": False}
NO_FORCING = '\n%llguidance {"no_forcing": true}\n'
"""Without it every step looks how far the text is determined, which takes seconds for /a{100000}/."""

child = Child("engine.sampling.grammar_service", SECONDS)
_passed: dict[str, None] = {}
_table: Any = None


def warm() -> None:
    """Start the child process, to have it ready soon."""
    child.warm()


def try_out(source: str) -> None:
    """OptionError if the grammar takes too much."""
    if source in _passed:
        return
    try:
        child.call(source)
    except Fault as fault:
        if fault.kind in ("time", "memory"):
            raise OptionError(f"it takes {fault.why} to compile and to follow: make it simpler") from None
        raise OptionError(fault.why if fault.kind == "refused" else f"it cannot be compiled: {fault.why}") from None
    except NoChild:
        if len(source) > MAX_ALONE:
            raise OptionError(f"has more than {MAX_ALONE} characters, and no child process can be started to try it out") from None
    while len(_passed) >= KEPT:
        _passed.pop(next(iter(_passed)), None)
    _passed[source] = None


# ---- in the child process


def ready() -> None:
    """Before its limits are set: the library and the table of bytes."""
    global _table
    import llguidance
    _table = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()), n_vocab=257, eos_token=[256])


class _Bytes:
    """A vocabulary of the bytes and an end."""

    eos_token_id, bos_token_id, special_token_ids = 256, None, [256]
    tokens = [*(bytes([b]) for b in range(256)), b"\xff[256]"]

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def serve(source: str) -> str:
    """One trial. What llguidance refuses passes: with the model's vocabulary it says so better."""
    import llguidance
    limits = llguidance.LLParserLimits(**LIMITS)
    error = llguidance.LLMatcher.validate_grammar(source, _table, limits=limits)
    if error and not error.startswith("WARNING"):
        return ""
    matcher = llguidance.LLMatcher(_table, source, log_level=0, limits=limits)
    for step in range(STEPS):
        bits = int.from_bytes(matcher.compute_bitmask(), "little") & ((1 << 256) - 1)
        if matcher.is_error():
            if not step:
                return ""
            raise Fault("refused", "it cannot be followed: " + " ".join(str(matcher.get_error()).split("\n")[0].split())[:200])
        places = [b for b in range(256) if bits >> b & 1]
        if not places:
            break
        matcher.consume_tokens([places[step * 37 % len(places)]])
    return ""
