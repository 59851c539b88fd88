"""llama.cpp, through llama-cpp-python in an environment of its own:

    python -m venv peer && peer/bin/pip install llama-cpp-python --no-binary llama-cpp-python         # built for this CPU: a fair opponent
    LLAMINA_PEER_LLAMACPP=peer/bin/python python -m llamina.bench.compare model.gguf
"""
from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .child import Child, PeerError

VARIABLE = "LLAMINA_PEER_LLAMACPP"
_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "prompt": [{"flash": "off"}, {"flash": "on"}, {"flash": "off", "batch": 128}],
    "generate": [{"flash": "off"}, {"flash": "on"}],
    "deep": [{"flash": "on"}, {"flash": "off"}],
    "batch": [{"flash": flash, "unified": unified} for flash in ("off", "on") for unified in (False, True)],
}
"""What to measure -> settings to try; the fastest is used from then on."""


def start(python: str | None = None) -> LlamaCpp:
    """Start llama.cpp with the Python interpreter of its environment, by default that of $LLAMINA_PEER_LLAMACPP. PeerError."""
    python = python or os.environ.get(VARIABLE)
    if not python:
        raise PeerError(f"where is llama-cpp-python? Name its environment's Python with --python or {VARIABLE} (see {__name__})")
    return LlamaCpp([python, str(Path(__file__).with_name("llamacpp_child.py"))], "llama.cpp")


class LlamaCpp(Child):
    """Requests: load, measure, logits, tokenize, perplexity, quantize (llamacpp_child.py)."""

    def __init__(self, command: list[str], name: str):
        super().__init__(command, name)
        self.best: dict[str, dict[str, Any]] = {}

    def measure(self, what: str, n: int, sequences: int = 8, depth: int = 0, kv: str | None = None) -> dict[str, Any]:
        """Speed with the best settings for this measurement, found on first use by trying each once (after one to warm up).

        After many positions only flash attention is tried, which is faster there, and which quantised values need: reading them in takes long."""
        options = _OPTIONS[what][:1] if depth >= 2048 else _OPTIONS[what]
        more = {"depth": depth, "kv": kv or "f16"} if what == "deep" else {}
        if what not in self.best:
            self.ask("measure", what=what, n=n, sequences=sequences, **options[0], **more)
            speeds = [self.ask("measure", what=what, n=n, sequences=sequences, **o, **more)["tokens_per_second"] for o in options]
            self.best[what] = options[speeds.index(max(speeds))]
        return self.ask("measure", what=what, n=n, sequences=sequences, **self.best[what], **more)
