"""What a Hugging Face folder says about its model beside weights and tokenizer: generation_config.json's sampling, and the model card's front matter.

    generation_config.json -> general.sampling.*
    README.md, between its first two lines of dashes -> general.name, author, license, base_model.*, tags, languages

Keys: github.com/ggml-org/ggml, docs/gguf.md. The front matter is YAML; only what cards hold is read, by hand: "key: value", lists in brackets or one
item a line.
"""
from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .base import Fields

MAX_CARD, MAX_TEXT, MAX_ITEMS = 1 << 16, 200, 64


def sampling(settings: Fields | None) -> dict[str, Any]:
    """The sampling that the checkpoint's authors recommend (generation_config.json), under GGUF's general.sampling.* keys."""
    if settings is None or settings.values.get("do_sample") is False:
        return {}
    keys: dict[str, tuple[str, Callable[[Any], Any]]] = {
        "temperature": ("temp", float), "top_p": ("top_p", float), "min_p": ("min_p", float), "top_k": ("top_k", int),
        "repetition_penalty": ("penalty_repeat", float)}
    found = {name: settings.get(name, (int, float), None) for name in keys}
    return {f"general.sampling.{keys[name][0]}": keys[name][1](value) for name, value in found.items() if value is not None and 0 <= value < 1e6}


def read_card(folder: Path) -> dict[str, Any]:
    """general.* keys of the model card, {} without one. What is no plain text of sensible length is left out."""
    try:
        with open(folder / "README.md", encoding="utf-8-sig", errors="replace") as card:
            text = card.read(MAX_CARD)
    except OSError:
        return {}
    front = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---", text, re.S)
    values = _front_matter(front[1]) if front else {}
    found: dict[str, Any] = {}
    for key, name in ("model_name", "general.name"), ("license", "general.license"), ("license_name", "general.license.name"), (
            "license_link", "general.license.link"), ("author", "general.author"), ("model_creator", "general.author"):
        if values.get(key):
            found.setdefault(name, values[key][0])
    for key, name in ("tags", "general.tags"), ("language", "general.languages"):
        if values.get(key):
            found[name] = values[key]
    bases = values.get("base_model", [])
    for i, base in enumerate(bases):
        organization, slash, name = base.rpartition("/")
        found[f"general.base_model.{i}.name"] = name
        if slash and re.fullmatch(r"[\w.-]+", organization) and re.fullmatch(r"[\w.-]+", name):
            found[f"general.base_model.{i}.organization"] = organization
            found[f"general.base_model.{i}.repo_url"] = f"https://huggingface.co/{base}"
    if bases:
        found["general.base_model.count"] = len(bases)
    return found


def _front_matter(text: str) -> dict[str, list[str]]:
    """Key -> its value, or values, of the keys that begin a line."""
    values: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if match := re.fullmatch(r"([A-Za-z_][\w-]*):[ \t]*(.*)", line):
            current = values.setdefault(match[1], [])
            inner = match[2].strip()
            listed = inner[1:-1].split(",") if inner.startswith("[") and inner.endswith("]") else [inner]
        elif (match := re.fullmatch(r"[ \t]*-[ \t]+(.*)", line)) and not re.match(r"[\w-]+:(\s|$)", match[1]):
            listed = [match[1]]
        else:
            continue
        for item in listed:
            plain = _plain(item)
            if plain and len(current) < MAX_ITEMS:
                current.append(plain)
    return values


def _plain(text: str) -> str:
    """A scalar without its quotes; "" for what is none."""
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    else:
        text = re.sub(r"\s+#.*", "", text)
        if text[:1] in ("|", ">", "{", "[", "&", "*", "!"):
            return ""
    return text if 0 < len(text) <= MAX_TEXT and text.isprintable() else ""
