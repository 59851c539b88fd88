"""From a request's fields to arguments of `Model.generate` and `Model.chat`: sampling options under their OpenAI names and our own, what the answer must obey, limits.

Everything is checked here, before anything is computed; who calls this says which further fields there are.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import quoted
from ..sampling.options import SamplingOptions
from .errors import ApiError
from .fields import Fields

MAX_STOPS, MAX_STOP = 16, 400
MAX_N, MAX_TOP_LOGPROBS, MAX_BIASES = 16, 20, 1024
OURS = {name: kind for name, kind in (
    ("top_k", int), ("min_p", float), ("typical_p", float), ("top_n_sigma", float), ("repeat_penalty", float), ("repeat_last_n", int), ("dry_multiplier", float),
    ("dry_base", float), ("dry_allowed_length", int), ("dry_last_n", int), ("xtc_probability", float), ("xtc_threshold", float), ("dynatemp_range", float),
    ("dynatemp_exponent", float), ("mirostat", int), ("mirostat_tau", float), ("mirostat_eta", float))}
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


def sampling(body: Fields, n_vocab: int, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Options of SamplingOptions; what the file recommends (`defaults`) where nothing is asked for."""
    found: dict[str, Any] = dict(defaults)
    for name, least, most in (("temperature", 0.0, 100.0), ("top_p", 0.0, 1.0), ("presence_penalty", -100.0, 100.0), ("frequency_penalty", -100.0, 100.0)):
        value = body.number(name, None, least, most)
        if value is not None:
            found[name] = value
    seed = body.integer("seed", None, -1, 2**64 - 1)
    if seed is not None and seed >= 0:
        found["seed"] = seed
    for name, kind in OURS.items():
        value = body.integer(name, None, -1, 1 << 31) if kind is int else body.number(name, None, -1e6, 1e6)
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
        found["logit_bias"] = _biases(biases, n_vocab)
    try:
        SamplingOptions(**found)
    except (ValueError, TypeError) as error:
        raise ApiError(400, str(error)) from None
    return found


def _biases(given: Any, n_vocab: int) -> dict[int, float]:
    """OpenAI's {"id": bias} or llama-server's [[id, bias or false], …]."""
    pairs = list(given.items()) if isinstance(given, dict) else given
    if not isinstance(pairs, list) or len(pairs) > MAX_BIASES or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        raise ApiError(400, f"logit_bias must map at most {MAX_BIASES} token ids to numbers, found {quoted(given, 60)}", "logit_bias")
    found: dict[int, float] = {}
    for id, bias in pairs:
        try:
            number = int(id) if not isinstance(id, bool) and str(id).strip() == str(int(id)) else None
        except (ValueError, TypeError, OverflowError):
            number = None
        if number is None or not 0 <= number < n_vocab:
            raise ApiError(400, f"logit_bias: {quoted(id, 40)} is no token id of this model (0 to {n_vocab - 1})", "logit_bias")
        if bias is False:
            bias = -1e9
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -1e9 <= bias <= 1e9:
            raise ApiError(400, f"logit_bias of token {number} must be a number, found {quoted(bias, 40)}", "logit_bias")
        found[number] = float(bias)
    return found


def limit(body: Fields, *names: str) -> int | None:
    """The first of max_tokens' names that is given; -1: none."""
    found = None
    for name in names:
        value = body.integer(name, None, -1, 1 << 31)
        found = value if found is None else found
    return None if found == -1 else found


def stops(body: Fields) -> list[str]:
    return [s for s in body.strings("stop", MAX_STOPS, MAX_STOP) if s]


def obey(body: Fields) -> dict[str, Any]:
    """response_format, and the names of our own and llama-server: json_schema, grammar (Lark here), regex, choices. At most one."""
    found: dict[str, Any] = {}
    format = body.sub("response_format")
    if format is not None:
        kind = format.text("type", "text", ("text", "json_object", "json_schema"))
        schema = format.object("schema")
        if kind == "json_schema":
            inner = format.sub("json_schema")
            if inner is not None:
                inner.text("name"), inner.text("description"), inner.truth("strict", None)
                schema = inner.object("schema", schema)
                inner.done()
            if schema is None:
                raise ApiError(400, "response_format.json_schema.schema is missing", "response_format")
            found["json_schema"] = schema
        elif kind == "json_object":
            found["json_schema"] = schema or {"type": "object"}
        format.done()
    for name in ("json_schema", "regex", "lark"):
        value = body.any(name)
        if value is not None:
            found["grammar" if name == "lark" else name] = value
    choices = body.list("choices", None, 1000)
    if choices is not None:
        found["choices"] = choices
    if len(found) > 1:
        raise ApiError(400, f"only one of {', '.join(found)} can be obeyed", "response_format")
    return found


def tool_choice(body: Fields, tools: list[Any] | None) -> tuple[str, list[Any] | None]:
    """(auto, none, required; the tools that may be called). A named one: required, of that alone."""
    choice = body.any("tool_choice", "auto")
    if isinstance(choice, dict):
        inner = choice.get("function", choice)
        name = inner.get("name") if isinstance(inner, dict) else None
        named = [tool for tool in tools or [] if isinstance(tool, dict) and (tool.get("function", tool) or {}).get("name") == name]
        if not named:
            raise ApiError(400, f"tool_choice names {quoted(name, 60)}, which is not among the tools", "tool_choice")
        return "required", named
    if choice not in ("auto", "none", "required"):
        raise ApiError(400, f'tool_choice must be "auto", "none", "required" or name a function, found {quoted(choice, 60)}', "tool_choice")
    if choice == "required" and not tools:
        raise ApiError(400, "tool_choice is required, and there are no tools", "tool_choice")
    return choice, tools


def plain_text(value: Any, where: str) -> str:
    """A message's content as text: a string, or parts of type text. Image and audio parts are refused by name."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ApiError(400, f"{where} must be a string or a list of parts, found {quoted(value, 60)}", where)
    texts = []
    for i, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text", part.get("refusal")) if isinstance(part, dict) else None
        if kind not in ("text", "input_text", "output_text", "refusal") or not isinstance(text, str):
            shown = kind if isinstance(kind, str) else quoted(part, 60)
            raise ApiError(400, f"{where}[{i}]: parts of type {shown} are not taken: this server reads text only", f"{where}[{i}]", "unsupported_content")
        texts.append(text)
    return "\n".join(texts) if len(texts) > 1 else "".join(texts)


def arguments_text(arguments: Any) -> str:
    """A tool call's arguments as OpenAI writes them: JSON text."""
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
