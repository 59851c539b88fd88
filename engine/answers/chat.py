"""A conversation over one KV sequence: each turn computes only the tokens that the cache does not hold yet.

    ask(text) -> the template writes the whole conversation -> ids -> keep the common beginning with what was computed, feed the rest

Exactness makes keeping harmless: the logits after a kept beginning equal, to the bit, those computed afresh.
"""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ...kernels.float_env import in_default_floats
from ..errors import FormatError, OptionError
from ..sampling.sampler import SamplingOptions
from ..text.harmony import FINAL, Harmony, is_harmony, split
from ..text.messages import normalise
from ..text.thoughts import Thinking, mark_ids, marks_of, opened
from ..text.tool_calls import written_ids
from . import session
from .core import Core, common_prefix
from .generation import Generation, check_max_tokens, check_stop

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..sampling.options import SamplingKeywords
    from ..text.tokenizer.stream import StreamDecoder


class ChatTurn(Generation):
    """The answer to a turn of a `Chat`; .message is the answer as a message, as far as it is known: without thoughts, where the template knows channels."""

    def __init__(self, model: Core, ids: list[int], options: SamplingOptions, **more: Any) -> None:
        self._channels = Harmony() if is_harmony(model.chat_template.sources) else None
        if self._channels and more.get("grammar") is not None:
            ids = ids + model.tokenizer.encode(FINAL, bos=False, eos=False, parse_special=True)
        super().__init__(model, ids, options, **more)

    def _stream(self, ids: Sequence[int]) -> StreamDecoder:
        if self._channels is None:
            return self._model.tokenizer.stream(ids, special=mark_ids(self._model.tokenizer), at_start=self._constraint is None)
        return self._model.tokenizer.stream(ids, special=written_ids(self._model.tokenizer, "harmony"), at_start=self._constraint is None)

    def _filter(self, piece: str) -> str:
        return self._channels.push(piece) if self._channels else super()._filter(piece)

    @property
    def message(self) -> dict[str, Any]:
        return {"role": "assistant", "content": split(self.so_far)[1] if self._channels else self.so_far}


def thinking_of(chat: Chat, answer: ChatTurn) -> Thinking:
    """What tells the thoughts of an answer that has not begun."""
    marks = marks_of(chat.template.sources)
    return Thinking(opened(chat.model.tokenizer, answer.history, marks), marks)


class Chat:
    """A conversation with a model; a context manager. `messages` is the history: {"role": "system" | "user" | "assistant", "content": str}, with the last
    answer once it has ended."""

    def __init__(self, model: Core, system: str | None = None) -> None:
        """Raises UnsupportedError or FormatError if the model has no usable chat template."""
        self.model, self.template = model, model.chat_template
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self._messages: list[dict[str, str]] = list(self._system)
        self._sequence = model.runtime.new_sequence(cached=True)
        self._computed: list[int] = []  # ids whose keys and values the sequence holds, while no answer is open
        self._answer: ChatTurn | None = None
        self.left_out = 0
        """Messages after the system message that no longer fit into the context, and that the model doesn't see any more."""

    @in_default_floats
    def ask(self, text: str, *, max_tokens: int | None = None, stop: Any = (), ignore_eos: bool = False, json_schema: Any = None,
            regex: str | None = None, grammar: str | None = None, choices: Any = None, context_shift: bool = False,
            options: SamplingOptions | Mapping[str, Any] | None = None, **sampling: Unpack[SamplingKeywords]) -> ChatTurn:
        """The answer to the user's next turn, as it comes. The turn before ends here, complete or not: what was shown of its answer stays in
        the history; a turn interrupted before its first word is forgotten. context_shift: when the context is full, the oldest turns are left out,
        and in the middle of an answer the older half of the text after the system message. Raises like `Model.generate`; then this turn is forgotten."""
        self._settle()
        messages = [*self.messages, {"role": "user", "content": text}]
        ids, left_out = self._encode(messages, context_shift)
        chosen, limit, stops = SamplingOptions.of(options, sampling, "ask"), check_max_tokens(max_tokens), check_stop(stop)
        obey = self.model.grammar(ignore_eos, self.template.stop_ids, json_schema=json_schema, regex=regex, grammar=grammar, choices=choices)
        keep = common_prefix(self._computed, ids[:-1])  # the last id is always fed: its logits are wanted
        self._sequence.truncate(keep)
        self._computed = self._computed[:keep]
        self._answer = ChatTurn(self.model, ids, chosen, max_tokens=limit, stop=stops, stop_ids=frozenset(self.template.stop_ids),
                                ignore_eos=ignore_eos, sequence=self._sequence, grammar=obey,
                                keep=self.model.system_tokens(messages) if context_shift else None)
        self._messages, self.left_out = messages, left_out
        return self._answer

    @property
    def messages(self) -> list[dict[str, str]]:
        answer = self._answer
        if answer is not None and answer.finish_reason is not None and (answer.so_far or answer.finish_reason != "interrupted"):
            self._settle()  # an interrupted question without an answer stays until something is done with it
        return self._messages

    @messages.setter
    def messages(self, messages: list[dict[str, str]]) -> None:
        self._messages = messages

    def _encode(self, messages: list[dict[str, str]], shift: bool) -> tuple[list[int], int]:
        """(the ids of a conversation, how many messages are left out of them); shift: if they don't fit, the oldest turns are left out, so that half of the
        context is free again."""
        turns = messages[len(self._system):]
        left_out = whole_turns(turns, min(self.left_out, len(turns) - 1)) if shift else 0
        ids = self.template.encode([*self._system, *turns[left_out:]])
        if shift and len(ids) > self.model.context:
            while len(ids) > self.model.context // 2 and (users := [i for i, m in enumerate(turns) if m["role"] == "user" and i > left_out]):
                left_out = users[0]
                ids = self.template.encode([*self._system, *turns[left_out:]])
        return ids, left_out

    @property
    def kv_bytes(self) -> int:
        """Memory of what was computed."""
        return self._sequence.kv_bytes

    @property
    def tokens(self) -> int:
        """How many positions of the context it fills, the answer under way included: never more than there are, also after a context shift."""
        return self._sequence.length

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation with what was computed for it, for `load`; an open turn ends. FileError: then a file that was there before is unchanged."""
        self._settle()
        session.save(path, self.model, "chat", {"messages": self.messages, "left_out": self.left_out}, self._computed, self._sequence,
                     self._sequence.adapters)

    def load(self, path: str | os.PathLike[str]) -> str | None:
        """Go on with a conversation that `save` wrote, with the same answers as if it had never been interrupted -> None, or a line about why what was
        computed can't be used (another model, a damaged file, …); then the text is computed again at the next question. FileError; FormatError (no session, or
        a damaged header)."""
        found = session.read(path, self.model, "chat")
        take = session.Reader(found.state, lambda why: FormatError(f"{found.path}: the session is damaged: {why}"))
        try:
            self.restore(take("messages", list))
        except OptionError as error:
            raise FormatError(f"{found.path}: the session is damaged: {error}") from None
        self.left_out = whole_turns(self.messages[len(self._system):], take("left_out", int))
        self._sequence.close()
        self._sequence = session.restore(found, self.model)
        self._computed = list(self._sequence.ids)
        return session.refusal(found)

    def clear(self) -> None:
        """Forget all turns; the system message stays."""
        self._settle()
        self.messages, self.left_out = list(self._system), 0

    def undo(self) -> str | None:
        """Take the last question and its answer back -> the question; None if nothing was asked."""
        before = self._messages[-1:]
        self._settle()
        if before and before[0]["role"] == "user" and self.messages[-1:] != before and (len(self.messages) < 2 or self.messages[-2] is not before[0]):
            return before[0]["content"]  # interrupted before the first word of its answer, hence forgotten already
        last = max((i for i, m in enumerate(self.messages) if m["role"] == "user"), default=None)
        if last is None:
            return None
        text = self.messages[last]["content"]
        del self.messages[last:]
        return text

    def instruct(self, system: str | None) -> None:
        """Change the system message (None: take it away); the turns stay."""
        self._settle()
        turns = self.messages[len(self._system):]
        self._system = [] if system is None else [{"role": "system", "content": system}]
        self.messages = [*self._system, *turns]

    def restore(self, messages: Any) -> None:
        """Go on with another conversation, e.g. a saved one. OptionError unless they are a list of {"role", "content"} texts."""
        try:
            found = normalise(messages)
        except OptionError as error:
            raise OptionError(f'a conversation must be a list of {{"role": ..., "content": ...}} with texts: {error}') from None
        self._settle()
        self.left_out = 0
        self.messages = [{"role": m["role"], "content": m["content"]} for m in found]
        self._system = [m for m in self.messages[:1] if m["role"] == "system"]

    def settled(self) -> list[dict[str, str]]:
        """The history with the open turn written into it, which ends it."""
        self._settle()
        return list(self.messages)

    def _settle(self) -> None:
        """End the open turn and write its answer into the history."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        answer.close()
        self._computed = answer.window[:self._sequence.length]
        if answer.so_far or answer.finish_reason != "interrupted":
            self._messages.append(answer.message)
        else:
            self._messages.pop()

    def close(self) -> None:
        """Give the KV pages back. Harmless twice."""
        self._settle()
        self._computed = []
        self._sequence.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def whole_turns(turns: Sequence[Mapping[str, Any]], most: int) -> int:
    """How many of the first messages can be left out, at most `most`, so that what is left begins with a question or is nothing: templates refuse an
    answer without its question."""
    borders = [i for i, message in enumerate(turns) if message["role"] == "user"] + [len(turns)]
    return max((i for i in borders if i <= most), default=0)
