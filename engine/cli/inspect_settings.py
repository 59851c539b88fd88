"""`llamina inspect --settings`: which options hold, and where each was said."""
from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from . import llamina as group
from . import one_line

SHOWN = ("generate", "chat", "batch")


def table(path: Path) -> list[dict[str, Any]]:
    """For each option that can be set: its value, where that was said, and for which commands (all: for all that have it)."""
    from ..gguf.file import open_gguf
    from ..home.settings import Settings, model_defaults, names
    from ..sampling.options import SamplingOptions
    settings, built_in = Settings(), asdict(SamplingOptions())
    with open_gguf(path) as gguf:
        own = model_defaults(gguf.metadata, path.name)
    rows: list[dict[str, Any]] = []
    for name in names():
        per_command: dict[str, tuple[Any, str]] = {}
        for command_name in SHOWN:
            command = group.get_command(click.Context(group), command_name)
            parameter = next((p for p in command.params if p.name == name), None) if command else None
            if parameter is None:
                continue
            default = parameter.get_default(click.Context(command)) if command else None  # type: ignore[arg-type]
            if not isinstance(default, (str, int, float, list, tuple)):  # click's own word for none
                default = built_in.get(name, [] if getattr(parameter, "multiple", False) else None)
            setting = settings.get(command_name, name) or own.get(name)
            per_command[command_name] = (setting.value, setting.origin) if setting else (default, "built-in")
        for value, origin in dict.fromkeys((json.dumps(value, default=list), origin) for value, origin in per_command.values()):
            users = [c for c, found in per_command.items() if (json.dumps(found[0], default=list), found[1]) == (value, origin)]
            rows.append({"option": name, "value": json.loads(value), "origin": origin,
                         "commands": "all" if len(users) == len(per_command) else ", ".join(users)})
    return rows


def places() -> dict[str, str]:
    """Where files of llamina's lie."""
    from ...kernels import compile_cache
    from ..home.library import models_folder
    from ..home.settings import settings_path
    from .chat_terminal import history_place
    path = settings_path()
    return {"settings file": f"{path}{'' if path.exists() else ' (not there)'}", "models folder": str(models_folder()),
            "compile cache": str(compile_cache.cache_folder() or "kept nowhere"), "chat history": str(history_place() or "kept nowhere")}


def show(path: Path, as_json: bool) -> None:
    rows, folders = table(path), places()
    if as_json:
        print(json.dumps({"settings": rows, **{name.replace(" ", "_"): place for name, place in folders.items()}}, ensure_ascii=False))
        return
    width = max(len(row["option"]) for row in rows)
    for row in rows:
        value = "none" if row["value"] is None else json.dumps(row["value"], ensure_ascii=False)
        users = "" if row["commands"] == "all" else f"  ({row['commands']})"
        print(f"{row['option']:{width}}  {one_line(value):12}  {one_line(_short(row['origin']))}{users}")
    print()
    for name, place in folders.items():
        print(f"{name:{width}}  {one_line(_short(place))}")


def _short(text: str) -> str:
    home = str(Path.home())
    return text.replace(home + os.sep, "~" + os.sep) if len(home) > 1 else text
