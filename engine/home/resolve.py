"""MODEL as users write it -> the path of a file: the demo, a name in the models folder, one of the hub, or a path."""
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import OptionError, quoted
from .library import find, is_hub_name

DEMO = Path(__file__).parent.with_name("data") / "demo.gguf"


def resolve(path: str | os.PathLike[str], progress: Callable[[str, int, int], None] | None = None) -> Path:
    """MODEL as users write it -> the file's path; a str may be a short name in the models folder (library.py), or hf:..., which is downloaded if the
    hub's cache lacks it; errors then as of hub.model_file."""
    name = os.fspath(path)
    if not isinstance(name, str) or not name:
        raise OptionError(f"the model must be a path or 'demo', found {quoted(path)}")
    if path == "demo":  # not Path("demo"), which is a file
        return DEMO
    if is_hub_name(name):
        from .hub import model_file
        return model_file(name, progress)
    return find(name) if isinstance(path, str) else Path(name)
