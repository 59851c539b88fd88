"""Chat templates of a Hugging Face folder -> tokenizer.chat_template, and .NAME of others (tool_use, rag, ...), with tokenizer.chat_templates, their names.

Of several places, the first counts: chat_template.jinja, tokenizer_config.json, chat_template.json (a processor's, which tokenizers do not read); further ones
lie in additional_chat_templates/NAME.jinja. As transformers (tokenization_utils_base.py) and llama.cpp have it; a note says what was left out.
"""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...engine.errors import FileError, FormatError
from ...engine.gguf.header import quote
from .base import Fields, read_json

MAX_TEMPLATE = 1 << 20
FOLDER = "additional_chat_templates"
_KEY = "tokenizer.chat_template"


def read_templates(folder: Path, settings: Fields, notes: list[str]) -> tuple[dict[str, Any], list[Path]]:
    """Metadata keys, and the files they come from. FormatError: no template where one should be; FileError: unreadable."""
    places: list[tuple[Path, dict[str, str]]] = []
    files = []
    if (path := folder / "chat_template.jinja").is_file():
        places.append((path, {"default": _text(path)}))
        files.append(path)
    if (own := settings.values.get("chat_template")) is not None:
        places.append((settings.path, _named(settings.path, own)))
    if (path := folder / "chat_template.json").is_file():
        found = read_json(path).get("chat_template")
        if found is not None:
            places.append((path, _named(path, found)))
        files.append(path)
    templates: dict[str, str] = {}
    for path, named in places:
        for name, text in named.items():
            if templates.setdefault(name, text) != text:
                notes.append(f"the chat template {name} of {path.name} differs from {places[0][0].name}'s and was left out")
    for path in sorted((folder / FOLDER).glob("*.jinja")) if (folder / FOLDER).is_dir() else ():
        templates[path.stem] = _text(path)
        files.append(path)
    keys: dict[str, Any] = {}
    for name, text in templates.items():
        if not re.fullmatch(r"[\w-]{1,64}", name):
            raise FormatError(f"{folder}: a chat template has the name {quote(name)}, expected letters, digits and dashes")
        keys[_KEY if name == "default" else f"{_KEY}.{name}"] = text
    if others := [name for name in templates if name != "default"]:
        keys["tokenizer.chat_templates"] = others
    return keys, files


def _named(path: Path, found: Any) -> dict[str, str]:
    """Name -> template, of a text or a list of names and templates."""
    if isinstance(found, str):
        return {"default": found}
    if not isinstance(found, list):
        raise FormatError(f"{path}: field 'chat_template' must be a text or a list, found {quote(found)}")
    named: dict[str, str] = {}
    for entry in found:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not isinstance(entry.get("template"), str):
            raise FormatError(f"{path}: field 'chat_template' must be a text, or a list of names and templates")
        named[entry["name"]] = entry["template"]
    return named


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TEMPLATE:
            raise FormatError(f"{path}: has {path.stat().st_size} bytes, expected a template of at most {MAX_TEMPLATE}")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: cannot be read: {error}") from None
