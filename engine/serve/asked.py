"""From a request's fields to arguments of `Model.generate` and `Model.chat`: sampling options under OpenAI's names and our own, what the answer must obey.

Everything is checked here, before anything is computed; who calls this says which further fields there are.
"""
from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import quoted
from ..sampling.options import SamplingOptions
from .errors import ApiError
from .fields import Fields

MAX_STOPS, MAX_STOP = 16, 400
MAX_GRAMMAR = 1 << 17
MAX_N, MAX_TOP_LOGPROBS, MAX_BIASES = 16, 20, 1024
WHOLE = ("top_k", "repeat_last_n", "dry_allowed_length", "dry_last_n", "mirostat")
NUMBERS = ("min_p", "typical_p", "top_n_sigma", "repeat_penalty", "dry_multiplier", "dry_base", "xtc_probability", "xtc_threshold", "dynatemp_range",
           "dynatemp_exponent", "mirostat_tau", "mirostat_eta")
"""Our own samplers, under their own names, which are llama-server's, too."""


@dataclass
class Asked:
    """What a request asks of `generate` or `chat`. options: keyword arguments of both; chat: of `chat` alone."""

    options: dict[str, Any] = field(default_factory=dict)
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    top_logprobs: int | None = None
    timings_per_token: bool = False
    return_progress: bool = False
    ignore_eos: bool = False
    verbose: bool = False


def sampling(body: Fields, n_vocab: int, defaults: Mapping[str, Any], texts: bool = False) -> dict[str, Any]:
    """Options of SamplingOptions; `defaults` where nothing is asked for. texts: biases may name texts, too. ApiError."""
    found: dict[str, Any] = {name: value for name, value in defaults.items() if name not in ("max_tokens", "context_shift")}
    for name, least, most in (("temperature", 0.0, 100.0), ("top_p", 0.0, 1.0), ("presence_penalty", -100.0, 100.0), ("frequency_penalty", -100.0, 100.0)):
        value = body.number(name, None, least, most)
        if value is not None:
            found[name] = value
    seed = body.integer("seed", None, -1, 2**64 - 1)
    if seed is not None:
        found["seed"] = seed if seed >= 0 else None
    for name in (*WHOLE, *NUMBERS):
        value = body.integer(name, None, -1, 1 << 31) if name in WHOLE else body.number(name, None, -1e6, 1e6)
        if value is not None:
            found[name] = max(0, value) if name == "top_k" else value
    order = body.list("samplers", None, 32)
    if order is not None:
        found["order"] = order
    breakers = body.strings("dry_sequence_breakers", 32, 100)
    if breakers:
        found["dry_breakers"] = tuple(breakers)
    biases = body.any("logit_bias")
    if biases is not None:
        found["logit_bias"] = _biases(biases, n_vocab, texts)
    try:
        SamplingOptions(**found)
    except (ValueError, TypeError) as error:
        raise ApiError(400, str(error)) from None
    if (asked := adapters(body)) is not None:
        found["adapters"] = asked
    return found


def adapters(body: Fields) -> dict[Any, float] | None:
    """`lora`: llama-server's [{"id": number, "scale": factor}, …], or with a "name" for the id: those, and no others. None: not said. ApiError."""
    given = body.list("lora", None, 256)
    return None if given is None else adapter_scales(given, "lora")


def adapter_scales(given: Sequence[Any], where: str) -> dict[Any, float]:
    """{id or name: scale}. where: what the list is called. ApiError."""
    found: dict[Any, float] = {}
    for i, entry in enumerate(given):
        fields = Fields(entry, f"{where}[{i}].") if isinstance(entry, dict) else None
        if fields is None:
            raise ApiError(400, f"{where}[{i}] must be an object with id (or name) and scale, found {quoted(entry, 60)}", where)
        id, name, scale = fields.integer("id", None, 0, 255), fields.text("name", most=200), fields.number("scale", 1.0, -1e6, 1e6)
        fields.done()
        if (id is None) == (name is None):
            raise ApiError(400, f"{where}[{i}] must have one of id and name", where)
        found[name if id is None else id] = scale
    return found


def _biases(given: Any, n_vocab: int, texts: bool) -> dict[int | str, float]:
    """OpenAI's {"id": bias} or llama-server's [[id, bias or false], …]."""
    pairs = list(given.items()) if isinstance(given, dict) else given
    if not isinstance(pairs, list) or len(pairs) > MAX_BIASES or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        raise ApiError(400, f"logit_bias must map at most {MAX_BIASES} token ids to numbers, found {quoted(given, 60)}", "logit_bias")
    found: dict[int | str, float] = {}
    for id, bias in pairs:
        try:
            number: int | str | None = int(id) if not isinstance(id, bool) and str(id).strip() == str(int(id)) else None
        except (ValueError, TypeError, OverflowError):
            number = None
        if texts and number is None and isinstance(id, str) and id:
            number = id
        if number is None or isinstance(number, int) and not 0 <= number < n_vocab:
            raise ApiError(400, f"logit_bias: {quoted(id, 40)} is no token id of this model (0 to {n_vocab - 1})", "logit_bias")
        if bias is False:
            bias = -1e9
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -1e9 <= bias <= 1e9:
            raise ApiError(400, f"logit_bias of token {quoted(number, 40)} must be a number, found {quoted(bias, 40)}", "logit_bias")
        found[number] = float(bias)
    return found


def limit(body: Fields, defaults: Mapping[str, Any], *names: str) -> int | None:
    """The first of max_tokens' names that is given, else the default's; -1: none."""
    given = [value for name in names if (value := body.integer(name, None, -1, 1 << 31)) is not None]
    found = given[0] if given else defaults.get("max_tokens")
    return None if found == -1 else found


def draw_seed(asked: Asked) -> None:
    """A seed, if none is given: one for all answers of a request, which tells them apart by their numbers."""
    if asked.options.get("seed") is None:
        asked.options["seed"] = secrets.randbits(32)


def stops(body: Fields) -> list[str]:
    return [s for s in body.strings("stop", MAX_STOPS, MAX_STOP) if s]


def obey_format(body: Fields, name: str) -> dict[str, Any]:
    """response_format of chats; text.format of responses, which has the schema without a further object around it."""
    format = body.sub(name)
    if format is None:
        return {}
    kind = format.text("type", "text", ("text", "json_object", "json_schema"))
    schema, inner = format.any("schema"), format.sub("json_schema")
    for fields in filter(None, (format, inner)):
        fields.text("name"), fields.text("description"), fields.truth("strict", None)
    if inner is not None:
        schema = inner.any("schema", schema)
        inner.done()
    format.done()
    if schema is not None and not isinstance(schema, (dict, bool)):
        raise ApiError(400, f"{name}: the schema must be an object, found {quoted(schema, 60)}", name)
    if kind == "json_schema" and schema is None:
        raise ApiError(400, f"{name}: type json_schema needs a schema", name)
    if kind == "text":
        return {}
    return {"json_schema": {"type": "object"} if schema is None or schema == {} else schema}


def obey(body: Fields) -> dict[str, Any]:
    """response_format, and the names of our own and llama-server: json_schema, grammar (GBNF, or Lark as with `lark`), regex, choices. At most one."""
    found = obey_format(body, "response_format")
    for name in ("json_schema", "regex"):
        if (value := body.any(name)) is not None:
            found[name] = value
    for name in ("grammar", "lark"):
        if text := body.text(name, most=MAX_GRAMMAR):
            found["grammar"] = text if name == "lark" or "::=" not in text else from_gbnf(text)
    choices = body.list("choices", None, 1000)
    if choices is not None:
        found["choices"] = choices
    if len(found) > 1:
        raise ApiError(400, f"only one of {', '.join(found)} can be obeyed", "response_format")
    return found


def from_gbnf(text: str) -> str:
    """llama.cpp's form of grammars as Lark. ApiError."""
    try:
        from llguidance.gbnf_to_lark import gbnf_to_lark
        return gbnf_to_lark(text)
    except ImportError:
        raise ApiError(400, "grammar: grammars need the package llguidance, which is missing on this server", "grammar") from None
    except Exception as error:  # its parser raises what comes up
        raise ApiError(400, f"grammar is not valid GBNF: {' '.join(str(error).split())[:160]}", "grammar") from None


def arguments_text(arguments: Any) -> str:
    """A tool call's arguments as OpenAI writes them: JSON text."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
