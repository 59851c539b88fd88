"""llamina: language models on ordinary CPUs, offline, exact, in pure Python.

    import llamina
    with llamina.load("demo") as model:
        print(model.generate("Once upon a time", max_tokens=64).text())

The public names are looked up on first use, so that importing the package costs nothing.
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "load": "engine.model",
    "Model": "engine.model",
    "Generation": "engine.answers.generation",
    "SamplingOptions": "engine.sampling.sampler",
    "Chat": "engine.answers.chat",
    "convert": "convert",
    "Request": "engine.answers.batch",
    "Result": "engine.answers.batch",
    "load_activations": "engine.look.store",
    "SteeringVector": "engine.look.steer",
    "load_steering_vector": "engine.look.steer",
    "LlaminaError": "engine.errors",
    "errors": "engine.errors",
}
__all__ = ["Chat", "Generation", "LlaminaError", "Model", "Request", "Result", "SamplingOptions", "SteeringVector", "__version__", "convert", "errors",
           "load", "load_activations", "load_steering_vector"]

if TYPE_CHECKING:
    from .convert.convert import convert
    from .engine import errors
    from .engine.answers.batch import Request, Result
    from .engine.answers.chat import Chat
    from .engine.answers.generation import Generation
    from .engine.errors import LlaminaError
    from .engine.look.steer import SteeringVector, load_steering_vector
    from .engine.look.store import load_activations
    from .engine.model import Model, load
    from .engine.sampling.sampler import SamplingOptions


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'llamina' has no attribute {name!r}")
    module = importlib.import_module("." + _PUBLIC[name], __name__)
    return module if name in ("errors", "convert") else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
