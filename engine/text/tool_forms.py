"""Calls of tools that are not JSON: Gemma 4's own notation and Qwen's XML-like one; tool_calls.py asks.

    gemma4   <|tool_call>call:name{key:<|"|>text<|"|>,n:3,list:[true,{a:null}]}<tool_call|>       keys bare, or quoted as texts are
    qwen     <tool_call>\\n<function=name>\\n<parameter=key>\\nvalue\\n</parameter>\\n</function>\\n</tool_call>

Both are read strictly: what does not parse is (None, where the text goes on) and stays text. A last closing tag may be missing.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

QUOTE = '<|"|>'
CALL, CALL_END = "<|tool_call>", "<tool_call|>"
_HEAD = re.compile(r"\s*call:([\w.-]+)\{")
_KEY = re.compile(r"[^\s:,{}\[\]<>]{1,200}")
_SCALAR = re.compile(r"[^,\]}<]{1,400}")
_MOST_DEEP = 100
_FUNCTION = re.compile(r"(?:<tool_call>\s*)?<function=([\w.-]+)>")
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]{1,200})>")
_PARAMETER_END, _FUNCTION_END, _CALL_END = "</parameter>", "</function>", re.compile(r"\s*</tool_call>")


class _Bad(Exception):
    pass


def gemma_calls(text: str) -> Iterator[tuple[str | None, Any, str]]:
    """(name, arguments, as it was written) of each call; (None, None, text) of what stands between, and of what is no call."""
    at = 0
    while (begin := text.find(CALL, at)) >= 0:
        yield None, None, text[at:begin]
        head = _HEAD.match(text, begin + len(CALL))
        end = text.find(CALL_END, begin)
        try:
            if not head:
                raise _Bad
            arguments, after = _members(text, head.end(), 0)
            rest = text[after:].lstrip()
            if rest and not rest.startswith(CALL_END):
                raise _Bad
            at = len(text) - len(rest) + (len(CALL_END) if rest else 0)
            yield head[1], arguments, text[begin:at]
        except _Bad:
            at = len(text) if end < 0 else end + len(CALL_END)
            yield None, None, text[begin:at]
    yield None, None, text[at:]


def _blank(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _members(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    """{"key": value} whose members begin there, after the brace -> (it, where the text goes on after the closing one)."""
    found: dict[str, Any] = {}
    at = _blank(text, at)
    if text[at:at + 1] == "}":
        return found, at + 1
    while True:
        at = _blank(text, at)
        if text.startswith(QUOTE, at):
            key, at = _quoted(text, at)
        elif match := _KEY.match(text, at):
            key, at = match[0], match.end()
        else:
            raise _Bad
        at = _blank(text, at)
        if text[at:at + 1] != ":":
            raise _Bad
        found[key], at = _value(text, at + 1, depth + 1)
        at = _blank(text, at)
        if text[at:at + 1] == "}":
            return found, at + 1
        if text[at:at + 1] != ",":
            raise _Bad
        at += 1


def _items(text: str, at: int, depth: int) -> tuple[list[Any], int]:
    found: list[Any] = []
    at = _blank(text, at)
    if text[at:at + 1] == "]":
        return found, at + 1
    while True:
        value, at = _value(text, at, depth + 1)
        found.append(value)
        at = _blank(text, at)
        if text[at:at + 1] == "]":
            return found, at + 1
        if text[at:at + 1] != ",":
            raise _Bad
        at += 1


def _value(text: str, at: int, depth: int) -> tuple[Any, int]:
    if depth > _MOST_DEEP:
        raise _Bad
    at = _blank(text, at)
    if text.startswith(QUOTE, at):
        return _quoted(text, at)
    if text[at:at + 1] == "{":
        return _members(text, at + 1, depth)
    if text[at:at + 1] == "[":
        return _items(text, at + 1, depth)
    match = _SCALAR.match(text, at)
    if not match:
        raise _Bad
    try:
        return json.loads({"None": "null", "True": "true", "False": "false"}.get(match[0].strip(), match[0])), match.end()
    except (ValueError, RecursionError):
        return match[0].strip(), match.end()  # a text without its quotes


def _quoted(text: str, at: int) -> tuple[str, int]:
    end = text.find(QUOTE, at + len(QUOTE))
    if end < 0:
        raise _Bad
    return text[at + len(QUOTE):end], end + len(QUOTE)


def qwen_calls(text: str, schemas: Mapping[str, Any]) -> Iterator[tuple[str | None, Any, str]]:
    """As `gemma_calls`. schemas: of each tool's parameters, which say what a value is: texts are written without quotes."""
    at = 0
    while match := _FUNCTION.search(text, at):
        yield None, None, text[at:match.start()]
        name, end = match[1], match.end()
        given: dict[str, Any] = {}
        arguments: dict[str, Any] | None = given
        while parameter := _PARAMETER.match(text, end):
            close = text.find(_PARAMETER_END, parameter.end())
            if close < 0:
                arguments = None
                break
            given[parameter[1]] = typed(text[parameter.end():close], _schema(schemas.get(name), parameter[1]))
            end = close + len(_PARAMETER_END)
        after = _blank(text, end)
        if arguments is not None and (text.startswith(_FUNCTION_END, after) or after >= len(text)):
            end = min(len(text), after + len(_FUNCTION_END))
            if match[0].startswith("<tool_call>") and (close_tag := _CALL_END.match(text, end)):
                end = close_tag.end()
            yield name, arguments, text[match.start():end]
        else:
            close = text.find(_FUNCTION_END, match.end())
            end = len(text) if close < 0 else close + len(_FUNCTION_END)
            yield None, None, text[match.start():end]
        at = end
    yield None, None, text[at:]


def _schema(parameters: Any, key: str) -> Any:
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    return properties.get(key) if isinstance(properties, Mapping) else None


def typed(written: str, schema: Any) -> Any:
    """A parameter's value: as it stands, without the line breaks around it, where the tool's schema says a text; else JSON if it is any."""
    value = written.removeprefix("\n").removesuffix("\n")
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "string" or isinstance(kind, list) and "string" in kind and value != "null":
        return value
    try:
        return json.loads({"None": "null", "True": "true", "False": "false"}.get(value.strip(), value))
    except (ValueError, RecursionError):
        return value
