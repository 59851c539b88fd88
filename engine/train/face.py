"""What `Model` does with adapters: take one in, let it go, take its changed numbers over.

    model.add_adapter("a.gguf", 0.8, "law") ──► engine/run/adapters.py      model.generate(prompt, adapters={"law": 1.0})
"""
from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..answers.core import Core
from ..errors import OptionError, quoted

if TYPE_CHECKING:  # what compiles is imported by who uses it: a tokenizer needs no compiler
    from ..architectures.config import ModelConfig
    from .adapter import Adapter
    from .tokens import TokenGradients


class Adapted(Core):
    """A part of Model."""

    def add_adapter(self, source: str | os.PathLike[str] | Adapter, scale: float = 1.0, name: str | None = None, *, default: bool = True) -> str:
        """Take in an adapter: llama.cpp's GGUF file, a PEFT folder, or an `Adapter` in memory -> its name (default: the file's, without its ending).

        default: answers and everything else have it from now on, at this scale, unless they say otherwise (`adapters=`); False: only who asks for it by name,
        {"name": scale} or ["name"], which is this scale then. What was computed before is not computed again. FileError, FormatError (damaged, or of another
        model), UnsupportedError, OptionError, OutOfMemoryError (no memory is left of what the model was allowed)."""
        from .adapter import given
        self._check_open()
        adapter = given(source, self.config)
        return self._take_adapter(adapter, scale, name, default, adapter is not source)

    def _take_adapter(self, adapter: Adapter, scale: float, name: str | None, default: bool, read: bool) -> str:
        """read: from a file, so that nobody else has its numbers."""
        from ..run.adapters import factor
        called = name if name is not None else self._name_of(adapter)
        if not isinstance(called, str) or not called or len(called) > 200 or not called.isprintable():
            raise OptionError(f"an adapter's name must be 1 to 200 printable characters, found {quoted(called)}")
        scale = factor(scale, called)
        with self.scheduler.alone() as runtime:
            loaded = runtime.adapters.add(called, adapter, scale, adapter.path)
            if read:
                loaded.forget_source()
            if default:
                runtime.adapters.use_by_default(loaded, scale)
        return called

    def use_adapters(self, scales: Mapping[str, float] | list[str]) -> None:
        """What everything has from now on that asks for none of its own: these, and no others ([]: none). {name: scale}, or names, at the scales that they were
        added with. OptionError."""
        self._check_open()
        with self.scheduler.alone() as runtime:
            runtime.adapters.default = runtime.adapters.chosen(scales)

    def remove_adapter(self, name: str) -> None:
        """Let it go: no new text has it. Texts under way keep it. OptionError."""
        self._check_open()
        with self.scheduler.alone() as runtime:
            runtime.adapters.remove(name)

    def update_adapter(self, name: str) -> None:
        """Take the numbers of an `Adapter` in memory over again, after they were changed in place or replaced by others of the same shapes: as training does
        after each step. Texts under way go on with the new ones, and with the keys and values that the old ones gave. OptionError."""
        self._check_open()
        with self.scheduler.alone() as runtime:
            runtime.adapters.update(name)

    @property
    def adapters(self) -> dict[str, dict[str, Any]]:
        """Those that are loaded: {name: {"path", "scale", "digest", "default"}}; "default": the scale that everything has it with, or 0."""
        table = self.runtime.adapters
        defaults = {loaded.name: scale for loaded, scale in table.default}
        return {name: {"path": loaded.path, "scale": loaded.scale, "digest": loaded.digest, "default": defaults.get(name, 0.0)}
                for name, loaded in table.by_name.items()}

    def token_gradients(self, text: str | Iterable[int], target: int | None = None) -> TokenGradients:
        """What a prediction hangs on: ln p(target | text), and for each token of the text gradient × input, by the way back that training takes; without any
        adapter. text: a str (with BOS as the file says) or ids; target: a token id, None: the first choice. UnsupportedError (experts, states, encoders),
        OptionError, ContextFullError."""
        from .tokens import token_gradients
        self._check_open()
        ids = self.tokenizer.encode(text, eos=False) if isinstance(text, str) else self._check_ids(text)
        return token_gradients(self, ids, None if target is None else self._check_ids([target])[0])

    def adapters_of(self, asked: Mapping[str, float] | list[str] | None = None) -> list[list[Any]]:
        """[[digest, scale], …] of what a request that asks for these has: what journals and fingerprints say. OptionError."""
        from ..run.adapters import described
        return described(self.runtime.adapters.chosen(asked))

    def _name_of(self, adapter: Adapter) -> str:
        stem = Path(adapter.path).stem if adapter.path else "adapter"
        taken, n = self.runtime.adapters.by_name, 2
        if stem not in taken:
            return stem
        while f"{stem}-{n}" in taken:
            n += 1
        return f"{stem}-{n}"


def read_adapters(asked: Iterable[tuple[str | os.PathLike[str], float]], config: ModelConfig) -> tuple[list[tuple[Adapter, float]], int]:
    """-> (adapter, scale) of each (path, scale), checked against the model, and how many bytes they will take. Raises as `add_adapter`."""
    asked = list(asked)
    if not asked:
        return [], 0
    from ..run.adapters import memory_of
    from .adapter import given
    found = [(given(path, config), scale) for path, scale in asked]
    return found, sum(memory_of(adapter, config) for adapter, _ in found)
