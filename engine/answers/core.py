"""What answers need of a model in memory, and all that they see of it: `Model`, the face, is a `Core` that people can call.

    GGUFFile, Tokenizer, Runtime -> Core: the scheduler, the draft, the template, … -> Generation, Batch, Chat, sessions
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ...kernels.float_env import in_default_floats
from ..errors import ClosedError, OptionError, quoted
from ..gguf.digest import full_digest
from ..run.scheduler import Job, Scheduler

if TYPE_CHECKING:
    from ..architectures.config import ModelConfig
    from ..gguf.file import GGUFFile
    from ..run import kv_cache
    from ..run.costs import Costs
    from ..run.runtime import Runtime
    from ..sampling.grammar import Grammar
    from ..text.chat_template import ChatTemplate
    from ..text.tokenizer import Tokenizer
    from .batch import Batch
    from .generation import Generation


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two lists share at their beginning."""
    n = min(len(a), len(b))
    return next((i for i in range(n) if a[i] != b[i]), n)


class Core(ABC):
    """A model in memory as answers see it. Made by `load`, as a `Model`, which says how answers are asked for."""

    def __init__(self, gguf: GGUFFile, tokenizer: Tokenizer, runtime: Runtime, load_seconds: float = 0.0) -> None:
        self.path = gguf.path
        self.tokenizer, self.runtime = tokenizer, runtime
        self.load_seconds, self.compile_seconds = load_seconds, runtime.compile_seconds
        self._gguf = gguf
        self.scheduler = Scheduler(runtime)
        """Takes all steps."""
        self.draft: Core | None = None
        """Guesses for this model; closed with it."""
        self.speculate = True
        """Whether generations may guess ahead at all."""
        self._template: ChatTemplate | None = None
        self._closed = False

    @property
    def config(self) -> ModelConfig:
        return self.runtime.config

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The file's keys."""
        return self._gguf.metadata

    @property
    def context(self) -> int:
        """Most positions of a prompt with its answer."""
        return self.runtime.context

    @property
    def costs(self) -> Costs:
        """What its steps were measured to take: speculation goes by it."""
        return self.scheduler.costs

    @costs.setter
    def costs(self, costs: Costs) -> None:
        self.scheduler.costs = costs

    @property
    def threads(self) -> int:
        return self.runtime.n_threads

    @property
    def chat_template(self) -> ChatTemplate:
        """How the file wants a conversation written. UnsupportedError or FormatError if it has no usable template."""
        self._check_open()
        if self._template is None:
            from ..text.chat_template import ChatTemplate
            self._template = ChatTemplate.from_metadata(self._gguf.metadata, self.tokenizer)
        return self._template

    @property
    def digest(self) -> str:
        """SHA-256 of the whole model file, as `sha256sum` says it (of a split one: of its shards' digests), computed at first need and kept by
        path, size and time. FileError: the file has changed since it was loaded, or is gone."""
        self._check_open()
        return full_digest(self.runtime.stamps)

    @in_default_floats
    def tokenize(self, text: str, *, bos: bool | None = None, special: bool = False) -> list[int]:
        """Ids of a text. bos: begin with BOS (None: as the file says). special: names of special tokens ("</s>") are those tokens, not text. TokenizerError."""
        self._check_open()
        return self.tokenizer.encode(text, bos=bos, parse_special=special)

    def feed(self, sequence: kv_cache.Sequence, ids: Sequence[int], logits: Literal["none", "last", "all"] = "last") -> np.ndarray:
        """Append ids (at least one) to a sequence of this model's runtime, in as many steps as it takes -> the wanted rows of logits, float32
        [0, 1 or len(ids), n_vocab]. Steps of several threads take turns."""
        job = Job(sequence, ids, logits)
        self.scheduler.run([job])
        return job.rows if len(job.rows) else np.empty((0, self.config.n_vocab), np.float32)

    def system_tokens(self, messages: Sequence[Mapping[str, Any]]) -> int:
        """How many ids of a conversation belong to its system message alone (and to what the template puts before it)."""
        from ..text.messages import normalise
        system = [m for m in normalise(messages, self.chat_template.sources)[:1] if m["role"] == "system"]
        a, b = (self.chat_template.encode([*system, {"role": "user", "content": text}]) for text in ("a", "b"))
        return common_prefix(a, b)

    def grammar(self, ignore_eos: bool, stop_ids: Iterable[int] = (), **asked: Any) -> Grammar | None:
        """What `generate`'s json_schema, regex, grammar or choices ask for, compiled. OptionError."""
        if all(value is None for value in asked.values()):
            return None
        if ignore_eos:
            raise OptionError("ignore_eos and a grammar contradict each other: the grammar says where an answer ends")
        from ..sampling.grammar import compile_grammar
        found = compile_grammar(self.tokenizer, self.tokenizer.eog_ids | frozenset(stop_ids), **asked)
        if found is not None:
            found.asked = {name: value.model_json_schema() if hasattr(value, "model_json_schema") else value
                           for name, value in asked.items() if value is not None}
        return found

    def _check_ids(self, ids: Iterable[int]) -> list[int]:
        n_vocab = self.config.n_vocab
        if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
            raise OptionError(f"token ids must be a list of whole numbers, found {type(ids).__name__}")
        out = []
        for i, id in enumerate(ids):
            if isinstance(id, (bool, np.bool_)) or not isinstance(id, (int, np.integer)):
                raise OptionError(f"token ids must be whole numbers, found {quoted(id)} at index {i}")
            if not 0 <= id < n_vocab:
                raise OptionError(f"token id {id} at index {i} is outside this model's vocabulary of {n_vocab}")
            out.append(int(id))
        return out

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError(f"{self.path}: the model was closed: load it again")

    @abstractmethod
    def generate(self, *args: Any, **options: Any) -> Generation:
        """See `Model.generate`."""

    @abstractmethod
    def chat(self, *args: Any, **options: Any) -> Generation:
        """See `Model.chat`."""

    @abstractmethod
    def generate_many(self, *args: Any, **options: Any) -> Batch:
        """See `Model.generate_many`."""

    @abstractmethod
    def close(self) -> None:
        """End the threads and drop the weights."""
