"""Chat messages to a prompt, with the template inside the GGUF file (tokenizer.chat_template), or Llama 2's where there is none.

    messages -> messages.normalise() -> render() -> text -> special tokens found -> ids, BOS once at the start

render() equals Hugging Face's apply_chat_template(tokenize=False), of messages as they are. encode() normalises them first (messages.py), and
keeps what people write apart from what the template writes: a
"</s>" or "<|eot_id|>" in a message is text, the same in the template is the token. To tell them apart after rendering, encode() renders the
messages with the first character of every control token's text (and of the beginning of one at a message's end) swapped for a private-use
character that occurs nowhere, finds the special tokens, and swaps back. A template that changes the letters of a message (upper case, say), or
cuts it, can still put a special token together, and one that looks for control tokens in a message does not find them in encode().
Role names go through the template as they are; they are the caller's to choose, not the user's.
"""
from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..child import Fault
from ..errors import FormatError, LlaminaWarning, OptionError, TokenizerError, UnsupportedError
from .messages import left_out, normalise
from .template_service import Runner, apart, here
from .tokenizer.base import Tokenizer

# The format of Meta's llama/generation.py (chat_completion), as meta-llama/Llama-2-7b-chat-hf has it: BOS and EOS around every exchange.
LLAMA2 = """\
{%- if messages[0]['role'] == 'system' %}
    {%- set system, turns = messages[0]['content'], messages[1:] %}
{%- else %}
    {%- set system, turns = false, messages %}
{%- endif %}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- set content = message['content'] %}
    {%- if loop.first and system is not false %}
        {%- set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + content %}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {%- else %}
        {{- ' ' + content.strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""
FIRST_PRIVATE = 0xF0000  # plane 15: private use, 65,534 characters


class ChatTemplate:
    """A template and the tokenizer that it is for. `source` is its text, `built_in` whether it is Llama 2's for lack of another. Where it runs:
    template_service.py. Threads may share one; they take turns."""

    def __init__(self, source: str, tokenizer: Tokenizer, *, path: str = "chat template", tool_use: str | None = None, built_in: bool = False) -> None:
        """`tool_use`: the template for when tools are given, where a file has two. Raises FormatError for a template that does not compile,
        UnsupportedError for one that uses filters or tests that llamina does not have."""
        self.source, self._sources, self.tokenizer, self.path, self.built_in = source, source + (tool_use or ""), tokenizer, path, built_in
        self._source, self._tool_use = source, tool_use or None
        self._runner: Runner = here if built_in else apart
        self._compile()
        v = tokenizer.vocabulary
        names = {"bos_token": v.bos_id, "eos_token": v.eos_id, "unk_token": v.unk_id, "pad_token": v.pad_id}
        self._tokens = {name: v.tokens[id] for name, id in names.items() if id is not None}
        self._tokens = {"bos_token": "", "eos_token": ""} | self._tokens

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate:
        """The template of a GGUF file: tokenizer.chat_template, and tokenizer.chat_template.tool_use where there is one."""
        texts = [metadata.get(key) for key in ("tokenizer.chat_template", "tokenizer.chat_template.tool_use")]
        for text in texts:
            if text is not None and not isinstance(text, str):
                raise FormatError(f"{tokenizer.path}: tokenizer.chat_template must be a string, not {type(text).__name__}")
        source, tool_use = texts
        if not source:
            return cls(LLAMA2, tokenizer, path=tokenizer.path, built_in=True)
        return cls(source, tokenizer, path=tokenizer.path, tool_use=tool_use)

    @property
    def sources(self) -> str:
        """Its text, with that of the template for tools."""
        return self._sources

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end the assistant's answer."""
        return self.tokenizer.eog_ids

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **extra: Any) -> str:
        """The prompt's text. `messages`: dicts with "role", "content" and whatever else the template reads; `extra`: more variables for it
        (tools=[...] as JSON schemas, documents, date_string, ...). Raises OptionError for messages that the template refuses or that are not plain
        data, FormatError for a template that fails or uses too much time or memory."""
        return self._render(*self._data(messages, extra), add_generation_prompt)

    def encode(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, *, begun: str = "", **extra: Any) -> list[int]:
        """The prompt's ids. begun: the beginning of the answer, which is to be continued; text, whatever it looks like. They begin with one BOS, the
        template's or ours, if the vocabulary begins texts with BOS at all; a BOS that the template writes between exchanges (Llama 2) stays. Raises what
        render() and Tokenizer.encode() raise."""
        given = self._data(normalise(messages, self._sources), extra)
        swap = _Swap(self.tokenizer, "".join({*self._sources, *begun, *(c for text in _strings(list(given)) for c in set(text))}))
        swapped = swap.away(given[0])
        text = self._render(swapped, swap.away(given[1]), add_generation_prompt)
        if line := left_out(swapped, text):
            warnings.warn(f"{self.path}: {line}", LlaminaWarning, stacklevel=2)
        text += swap.away(begun)
        parts = [swap.back(part) if isinstance(part, str) else part for part in self.tokenizer.split(text, parse_special=True)]
        ids = self.tokenizer.encode_parts(parts)
        bos = self.tokenizer.bos_id
        if bos is not None and (self.tokenizer.add_bos or ids[:1] == [bos]):
            ids = [bos, *ids[_leading(ids, bos) :]]
        return ids

    # ---- helpers

    def _compile(self) -> None:
        for source in filter(None, (self._source, self._tool_use)):
            try:
                source.encode()
                self._runner.compile(source)
            except UnicodeEncodeError:
                raise FormatError(f"{self.path}: the chat template is not valid Unicode (a lone surrogate)") from None
            except Fault as fault:
                if fault.kind == "unsupported":
                    raise UnsupportedError(f"{self.path}: the chat template asks for something llamina does not have: {fault.why}") from None
                what = {"syntax": "has a syntax error", "compile": "does not compile:"}.get(fault.kind, f"does not compile: {_used(fault)}")
                raise FormatError(f"{self.path}: the chat template {what} {fault.why}") from None

    def _render(self, messages: Any, extra: dict[str, Any], add_generation_prompt: bool) -> str:
        source = self._tool_use if self._tool_use is not None and extra.get("tools") else self._source
        variables = {"tools": None, "documents": None, **self._tokens, **extra, "messages": messages, "add_generation_prompt": add_generation_prompt}
        try:
            return self._runner.render(source, variables)
        except Fault as fault:
            if fault.kind == "long":
                raise OptionError(f"{self.path}: the messages are too long for a prompt") from None
            if fault.kind == "refusal":
                raise OptionError(f"{self.path}: the chat template refuses these messages: {fault.why}") from None
            what = {"limit": "was stopped:", "fails": "fails on these messages:"}.get(fault.kind, f"was stopped: {_used(fault)}")
            raise FormatError(f"{self.path}: the chat template {what} {fault.why}") from None

    def _data(self, messages: Sequence[Mapping[str, Any]], extra: dict[str, Any]) -> tuple[Any, Any]:
        if isinstance(messages, (str, Mapping)) or not all(isinstance(message, Mapping) for message in messages):
            raise OptionError("chat messages must be a list of dicts with role and content")
        try:
            return _plain(list(messages), "messages"), _plain(extra, "")
        except RecursionError:
            raise OptionError("chat messages and tools are nested too deeply") from None


def _plain(value: Any, where: str) -> Any:
    """A copy of JSON-like data in Python's own types: a template must not get at objects with methods."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{n}]") for n, item in enumerate(value)]
    raise OptionError(f"chat messages and tools must be plain JSON data: found {type(value).__name__} at {where or 'the top'}")


class _Swap:
    """Swaps the first characters of control tokens in people's texts for characters that occur in none of them, and back."""

    def __init__(self, tokenizer: Tokenizer, used: str) -> None:
        self._control = tokenizer.control
        free = (chr(code) for code in range(FIRST_PRIVATE, 0x10FFFE) if chr(code) not in used)
        self._away = dict(zip(sorted(self._control.firsts), free))
        if len(self._away) < len(self._control.firsts):
            raise TokenizerError(f"{tokenizer.path}: the messages use up all private-use characters")
        self._back = {ord(private): first for first, private in self._away.items()}

    def away(self, value: Any) -> Any:
        """The same data with every string's control tokens broken."""
        if isinstance(value, str):
            places = self._control.beginnings(value)
            if not places:
                return value
            chars = list(value)
            for at in places:
                chars[at] = self._away[value[at]]
            return "".join(chars)
        if isinstance(value, dict):
            return {self.away(key): self.away(item) for key, item in value.items()}
        return [self.away(item) for item in value] if isinstance(value, list) else value

    def back(self, text: str) -> str:
        return text.translate(self._back)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _strings(item)


def _leading(ids: list[int], id: int) -> int:
    return next((n for n, other in enumerate(ids) if other != id), len(ids))


def _used(fault: Fault) -> str:
    """What a template took that the child process ended for."""
    return {"time": "it takes", "memory": "it takes"}.get(fault.kind, "it breaks:")
