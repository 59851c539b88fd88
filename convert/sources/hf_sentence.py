"""What a folder of sentence-transformers says beside its model: pooling, matrices after it, prompts, the most tokens of a text.

    modules.json ──► 1_Pooling/config.json -> pooling_type; 2_Dense/ -> dense_2.weight;  config_sentence_transformers.json -> prompts;
    sentence_bert_config.json -> most tokens

Keys without an architecture's name are ours (engine/score/embedding_prompts.py reads them); what would change an embedding and can't be said is refused.
"""
from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...engine.errors import FormatError, UnsupportedError
from ...engine.files import read_file
from ...engine.gguf.header import quote, refuse_pointer
from .base import MAX_JSON, Fields, Rows, SourceFile, read_json
from .safetensors_file import read_safetensors

PREFIX = "sentence_transformers."
_MODES = {"pooling_mode_mean_tokens": 1, "pooling_mode_cls_token": 2, "pooling_mode_lasttoken": 3}
_BY_NAME = {"mean": 1, "cls": 2, "lasttoken": 3}
_IDENTITY = "torch.nn.modules.linear.Identity"


@dataclass
class Sentence:
    """keys: below the architecture's name; general: with their whole names; dense: tensor -> rows, with (rows, columns) in keys."""

    keys: dict[str, Any] = field(default_factory=dict)
    general: dict[str, Any] = field(default_factory=dict)
    dense: dict[str, Rows] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_sentence(folder: Path, maps: list[SourceFile]) -> Sentence:
    """Empty for a folder without modules.json. maps: gets the files that stay open."""
    found = Sentence()
    path = folder / "modules.json"
    if not path.is_file():
        return found
    found.files.append(path)
    normalise = False
    for module in _modules(path):
        kind, where = str(module.get("type", "")).rpartition(".")[2], _place(folder, module, path)
        if kind == "Pooling":
            _pooling(found, _fields(found, where / "config.json"))
        elif kind == "Dense":
            _dense(found, where, maps)
        elif kind == "Normalize":
            normalise = True
        elif kind != "Transformer":
            raise UnsupportedError(f"{path}: has a module of type {quote(module.get('type'))}; llamina knows Transformer, Pooling, Dense and Normalize")
    found.general[PREFIX + "normalize"] = normalise
    _settings(found, folder)
    return found


def _modules(path: Path) -> list[dict[str, Any]]:
    raw = read_file(path, MAX_JSON, "JSON")
    refuse_pointer(path, raw[:200])
    try:
        modules = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise FormatError(f"{path}: is not valid JSON") from None
    if not isinstance(modules, list) or not all(isinstance(m, dict) for m in modules):
        raise FormatError(f"{path}: must hold a list of modules, found {quote(modules)}")
    return modules


def _place(folder: Path, module: dict[str, Any], path: Path) -> Path:
    name = module.get("path", "")
    if not isinstance(name, str) or name and Path(name).name != name:
        raise FormatError(f"{path}: a module's path must be a folder beside it, found {quote(name)}")
    return folder / name


def _fields(found: Sentence, path: Path) -> Fields:
    found.files.append(path)
    return Fields(path, read_json(path))


def _pooling(found: Sentence, f: Fields) -> None:
    modes = [key for key, value in f.values.items() if key.startswith("pooling_mode_") and value is True]
    named = f.values.get("pooling_mode")
    kinds = [_MODES.get(key, 0) for key in modes] or [_BY_NAME.get(str(named), 0)]
    if len(kinds) != 1 or not kinds[0]:
        asked = ", ".join(modes) or f"pooling_mode = {quote(named)}"
        raise UnsupportedError(f"{f.path}: pools by {asked}; llamina knows one of mean, cls and last token")
    if f.values.get("include_prompt") is False:
        raise UnsupportedError(f"{f.path}: leaves a prompt's tokens out of the mean (include_prompt = false), which GGUF can't say")
    found.keys["pooling_type"] = kinds[0]


def _dense(found: Sentence, where: Path, maps: list[SourceFile]) -> None:
    f, n = _fields(found, where / "config.json"), 2 + len(found.dense)
    wide, narrow = f.integer("out_features", 1 << 20), f.integer("in_features", 1 << 20)
    if f.values.get("activation_function", _IDENTITY) != _IDENTITY or f.values.get("bias") or n > 3:
        raise UnsupportedError(f"{f.path}: is a layer after pooling that GGUF can't say: expected at most two matrices without bias and activation")
    path = where / "model.safetensors"
    map, tensors = read_safetensors(path)
    maps.append(map)
    found.files.append(path)
    if list(tensors) != ["linear.weight"]:
        raise FormatError(f"{path}: expected one tensor, linear.weight, found {quote(list(tensors))}")
    found.dense[f"dense_{n}.weight"] = tensors["linear.weight"]
    found.keys |= {f"dense_{n}_feat_in": narrow, f"dense_{n}_feat_out": wide}


def _settings(found: Sentence, folder: Path) -> None:
    path = folder / "config_sentence_transformers.json"
    if path.is_file():
        f = _fields(found, path)
        prompts = f.get("prompts", dict, {})
        if not all(isinstance(text, str) for text in prompts.values()):
            raise FormatError(f"{path}: field 'prompts' must map names to texts, found {quote(prompts)}")
        if any(prompts.values()):
            found.general |= {PREFIX + "prompt_names": list(prompts), PREFIX + "prompt_texts": list(prompts.values())}
        if (default := f.get("default_prompt_name", str, None)) is not None:
            if default not in prompts:
                raise FormatError(f"{path}: field 'default_prompt_name' is {quote(default)}, which 'prompts' does not have")
            found.general[PREFIX + "default_prompt"] = default
    for name in ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_xlm-roberta_config.json"):
        if (folder / name).is_file():
            f = _fields(found, folder / name)
            if (most := f.integer("max_seq_length", 1 << 24, None)) is not None:
                found.general[PREFIX + "max_tokens"] = most
            if f.values.get("do_lower_case") is True:
                found.notes.append(f"{name} says do_lower_case: the tokenizer decides that here")
