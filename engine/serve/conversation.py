"""A conversation and its answers, whatever the protocol: what is asked, checked; and what comes back, in parts that each protocol writes its own way.

    a protocol's request -> ChatAsked -> answers() -> generations -> the engine -> Answer.push(text) -> [Part] -> the protocol's deltas, or the whole
"""
from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..answers.chat_answer import chat_prompt
from ..errors import quoted
from ..text.harmony import FINAL
from ..text.messages import normalise
from ..text.thoughts import Thinking, marks_of, opened
from ..text.tool_calls import check_tools
from .asked import MAX_TOP_LOGPROBS, Asked, arguments_text, draw_seed
from .errors import ApiError, of
from .fields import Fields
from .shapes import STOPPED
from .tools import Forced, forced_prompt, schema_of

if TYPE_CHECKING:
    from ..answers.generation import Generation
    from ..model import Model

MAX_MESSAGES, MAX_TOOLS = 2048, 256
ROLES = ("system", "developer", "user", "assistant", "tool", "function")
OBEYED = ("json_schema", "regex", "grammar", "choices")
RESERVED = ("messages", "tools", "add_generation_prompt", "begun", "self", "bos_token", "eos_token")
"""Variables of templates that have a place of their own in a request."""


@dataclass
class ChatAsked(Asked):
    """A conversation to be answered. choice: auto, none or required; callable: the tools that a forced call may name; begun: the answer's beginning."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[Any] | None = None
    callable: list[Any] = field(default_factory=list)
    choice: str = "auto"
    parallel: bool = True
    template_options: dict[str, Any] = field(default_factory=dict)
    begun: str = ""
    split_thoughts: bool = True

    @property
    def forced(self) -> bool:
        return self.choice == "required"


def read_messages(given: Any, where: str = "messages") -> list[dict[str, Any]]:
    """OpenAI's messages, checked: contents are texts, arguments of calls are objects (text/messages.py does that). What clients send back of earlier answers
    and no template reads is dropped. ApiError."""
    if not isinstance(given, list) or not given:
        raise ApiError(400, f"{where} must be a list of at least one message, found {quoted(given, 60)}", where)
    if len(given) > MAX_MESSAGES:
        raise ApiError(400, f"{where} has {len(given)} entries, at most {MAX_MESSAGES} are taken", where)
    found = []
    for i, one in enumerate(given):
        at = f"{where}[{i}]"
        fields = Fields(one, at + ".")
        role = fields.text("role", "", ROLES)
        if not role:
            raise ApiError(400, f"{at}.role is missing", f"{at}.role")
        message: dict[str, Any] = {"role": "tool" if role == "function" else role, "content": _without_refusals(fields.any("content"))}
        calls = fields.list("tool_calls", None, MAX_TOOLS)
        if (call := fields.any("function_call")) is not None and not calls:
            calls = [{"type": "function", "function": call}]
        if message["content"] is None and not calls and role != "assistant":
            raise ApiError(400, f"{at}.content is missing", f"{at}.content")
        thoughts = fields.text("reasoning")
        for name in ("name", "tool_call_id", "reasoning_content"):
            if (value := fields.text(name, thoughts if name == "reasoning_content" else None)) is not None:
                message[name] = value
        for name in ("refusal", "audio", "annotations", "index", "id", "type", "status", "reasoning_details", "provider_specific_fields"):
            fields.any(name)
        fields.done()
        found.append({**message, "tool_calls": calls} if calls else message)
    try:
        normalise(found)  # the form, before anything is loaded for it; once more with the template, which may know more
    except Exception as error:
        raise of(error) from None
    return found


def _without_refusals(content: Any) -> Any:
    """An earlier answer's refusal is text like other."""
    if not isinstance(content, list):
        return content
    return [{"type": "text", "text": part["refusal"]} if isinstance(part, dict) and part.get("type") == "refusal" and "refusal" in part else part
            for part in content]


def with_begun(asked: ChatAsked, body: Fields) -> None:
    """The last message, if it is the assistant's, is the beginning of the answer: as llama-server has it, or asked for as vLLM has it."""
    adds, goes_on = body.truth("add_generation_prompt", None), body.truth("continue_final_message", None)
    if adds and goes_on:
        raise ApiError(400, "add_generation_prompt and continue_final_message contradict each other", "continue_final_message")
    last = asked.messages[-1]
    is_begun = last["role"] == "assistant" and not last.get("tool_calls")
    if goes_on and not is_begun:
        raise ApiError(400, "continue_final_message needs a last message of the assistant", "continue_final_message")
    if len(asked.messages) > 1 and asked.messages[-2]["role"] == "assistant" == last["role"]:
        raise ApiError(400, "the last two messages are both of the assistant: one can be continued", "messages")
    if is_begun and goes_on is not False:
        asked.begun = normalise([last])[0]["content"]
        asked.messages = asked.messages[:-1]
        if not asked.messages:
            raise ApiError(400, "messages has nothing to answer but the beginning of the answer", "messages")


def read_tools(given: Any, where: str = "tools") -> list[dict[str, Any]] | None:
    """OpenAI's tools, with names and parameters that are objects. ApiError."""
    if not given:
        return None
    for i, tool in enumerate(given):
        if isinstance(tool, dict) and tool.get("type", "function") != "function":
            raise ApiError(400, f"{where}[{i}] is of the type {quoted(tool['type'], 40)}: only functions are supported", f"{where}[{i}].type")
    try:
        tools = check_tools(given)
    except Exception as error:
        raise of(error) from None
    for i, tool in enumerate(tools):
        parameters = tool["function"].get("parameters")
        if parameters is not None and not isinstance(parameters, dict):
            raise ApiError(400, f"{where}[{i}].function.parameters must be a JSON schema, found {quoted(parameters, 60)}", f"{where}[{i}].function.parameters")
    return tools


def choose(asked: ChatAsked, tools: list[dict[str, Any]] | None, choice: Any) -> None:
    """tool_choice: "auto", "none", "required", or {"function": {"name"}} (or {"name"}): a call of that one. ApiError."""
    asked.tools = tools
    if isinstance(choice, dict):
        inner = choice.get("function", choice)
        name = inner.get("name") if isinstance(inner, dict) else None
        asked.choice, asked.callable = "required", [tool for tool in tools or [] if tool["function"]["name"] == name]
        if not asked.callable:
            raise ApiError(400, f"tool_choice names {quoted(name, 60)}, which is not among the tools", "tool_choice")
    elif choice not in ("auto", "none", "required"):
        raise ApiError(400, f'tool_choice must be "auto", "none", "required" or name a function, found {quoted(choice, 60)}', "tool_choice")
    else:
        asked.choice, asked.callable = choice, tools or []
        if choice == "required" and not tools:
            raise ApiError(400, "tool_choice is required, and there are no tools", "tool_choice")
    if asked.choice == "none":
        asked.tools = None
    if asked.forced and (names := obeyed(asked.options)):
        raise ApiError(400, f"a forced call and {names[0]} contradict each other: the answer is the one or the other", "tool_choice")


def template_options(given: dict[str, Any]) -> dict[str, Any]:
    """Variables for the template, which can't be its text, nor what has another place. ApiError."""
    for name in given:
        if name in RESERVED or not name.isidentifier():
            raise ApiError(400, f"chat_template_kwargs can't set {quoted(name, 40)}", "chat_template_kwargs")
    return given


def obeyed(options: Mapping[str, Any]) -> list[str]:
    return [name for name in OBEYED if name in options]


def top_logprobs(body: Fields) -> int | None:
    """OpenAI's two: logprobs says whether, top_logprobs how many."""
    top = body.integer("top_logprobs", None, 0, MAX_TOP_LOGPROBS)
    if body.truth("logprobs"):
        return top or 0
    if top:
        raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
    return None


def prompt_ids(model: Model, asked: ChatAsked) -> tuple[list[int], str | None]:
    """(the prompt, how the template wants calls written)"""
    ids, format, _ = chat_prompt(model, asked.messages, asked.tools, asked.template_options, asked.begun)
    return ids, format


def answers(model: Model, asked: ChatAsked) -> list[Generation]:
    """asked.n answers, checked whole; nothing is computed yet. A seed is drawn if none is given. What a grammar holds begins after the thoughts."""
    more: dict[str, Any] = {"logprobs": asked.top_logprobs}
    draw_seed(asked)
    options = {**asked.options, "ignore_eos": True} if asked.ignore_eos else asked.options
    held = asked.forced or bool(obeyed(options))
    if not held and not asked.begun and not asked.ignore_eos:
        return [model.chat(asked.messages, tools=asked.tools, template_options=asked.template_options, sample_index=i, **options, **more)
                for i in range(asked.n)]
    ids, format = prompt_ids(model, asked)
    if held and format == "harmony":
        ids = ids + model.tokenizer.encode(FINAL, bos=False, eos=False, parse_special=True)
    if held and thinks(model, ids):
        ids = ids + model.tokenizer.encode(f"\n{marks_of(model.chat_template.sources)[1]}\n\n", bos=False, eos=False, parse_special=True)
    if asked.forced:
        ids, options = forced_prompt(model, ids, format), {**options, "json_schema": schema_of(asked.callable, format)}
    return [model.generate(ids, sample_index=i, **options, **more) for i in range(asked.n)]


def thinks(model: Model, ids: Sequence[int]) -> bool:
    """Whether the template ends with the mark of thoughts, so that the answer begins inside."""
    return opened(model.tokenizer, ids, marks_of(model.chat_template.sources))


@dataclass
class Part:
    """A part of an answer: kind "thought", "said", "call" (a call begins: index, id, name) or "arguments" (more of its arguments' JSON text)."""

    kind: str
    text: str = ""
    index: int = 0
    id: str = ""
    name: str = ""


class Answer:
    """One answer as it comes: `push` for each piece of text -> parts; content, reasoning and calls are what came until then."""

    def __init__(self, model: Model, asked: ChatAsked, generation: Generation) -> None:
        self._generation, self._asked = generation, asked
        self._forced = Forced() if asked.forced else None
        whole = not asked.split_thoughts or bool(obeyed(asked.options))
        prompt = generation.history[:generation.stats.prompt_tokens]  # the engine may be ahead already
        self._thinking = None if whole else Thinking(not asked.begun and thinks(model, prompt), marks_of(model.chat_template.sources))
        self.content = self.reasoning = ""
        self.calls: list[dict[str, str]] = []
        """id, name, and arguments as JSON text."""

    def push(self, text: str, last: bool) -> list[Part]:
        """last: the answer has ended, no more comes."""
        if self._forced is not None:
            return self._pushed_call(*self._forced.push(text))
        thought, said = self._thinking.push(text, last) if self._thinking else ("", text)
        thought = thought if self.reasoning else thought.lstrip("\n")
        self.reasoning, self.content = self.reasoning + thought, self.content + said
        parts = ([Part("thought", thought)] if thought else []) + ([Part("said", said)] if said else [])
        if last:
            for call in getattr(self._generation, "tool_calls", [])[:None if self._asked.parallel else 1]:
                parts += self._pushed_call(call.name, arguments_text(call.arguments))
        return parts

    def _pushed_call(self, name: str | None, arguments: str) -> list[Part]:
        parts = []
        if name is not None:
            self.calls.append({"id": "call_" + secrets.token_hex(12), "name": name, "arguments": ""})
            parts.append(Part("call", "", len(self.calls) - 1, self.calls[-1]["id"], name))
        if arguments:
            self.calls[-1]["arguments"] += arguments
            parts.append(Part("arguments", arguments, len(self.calls) - 1))
        return parts

    @property
    def finish_reason(self) -> str:
        """OpenAI's. A forced call that max_tokens cut off is no call."""
        reason = STOPPED.get(self._generation.finish_reason or "", "stop")
        return "tool_calls" if self.calls and reason == "stop" else reason
