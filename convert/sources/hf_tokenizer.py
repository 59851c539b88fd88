"""The tokenizer of a Hugging Face folder: its vocabulary, added tokens, special ids and chat template.

tokenizer.model (SentencePiece) comes first, as it is the original; tokenizer.json is read where there is none. Added tokens come from tokenizer.json,
tokenizer_config.json and added_tokens.json; ids from tokenizer_config.json, then generation_config.json and config.json.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...engine.errors import FileError, FormatError
from ...engine.gguf.header import quote
from .base import Fields, read_json
from .vocabulary import Vocab, read_vocabulary_file

_NAMES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def read_tokenizer(folder: Path, config: Fields, generation: Fields | None, given: Path | None) -> tuple[Vocab, dict[str, Any]]:
    """The vocabulary, and metadata with the chat template. given: a tokenizer file instead of the folder's."""
    path = given or next((p for p in (folder / "tokenizer.model", folder / "tokenizer.json") if p.is_file()), None)
    if path is None:
        raise FileError(f"{folder}: has neither tokenizer.model nor tokenizer.json: get one, or give one with --tokenizer")
    vocab = read_vocabulary_file(path)
    settings = Fields(folder / "tokenizer_config.json", read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {})
    own = path.name == "tokenizer.json" or path.read_bytes()[:1] == b"{"
    if not own:
        for id, text, special in _added(folder, settings):
            known = id < len(vocab.tokens) and vocab.tokens[id] == text
            if not known or special:
                vocab.add(id, text, special)
        vocab.add_bos, vocab.add_eos = settings.get("add_bos_token", bool, True), settings.get("add_eos_token", bool, False)
    _special_ids(vocab, settings, config, generation)
    return vocab, _template(folder, settings)


def _added(folder: Path, settings: Fields) -> Iterator[tuple[int, str, bool]]:
    """(id, text, special) of tokens that files beside tokenizer.model add."""
    seen: set[int] = set()
    decoder = settings.get("added_tokens_decoder", dict, {})
    listed: list[Any] = []
    if (folder / "tokenizer.json").is_file():
        listed = read_json(folder / "tokenizer.json").get("added_tokens") or []
    for key, token in [*decoder.items(), *((t.get("id"), t) for t in listed if isinstance(t, dict))]:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str) or not str(key).isdecimal() or len(str(key)) > 9:
            raise FormatError(f"{settings.path}: an added token must have an id and a content, found {quote(token)}")
        if int(key) not in seen:
            seen.add(int(key))
            yield int(key), token["content"], bool(token.get("special"))
    if (folder / "added_tokens.json").is_file():
        for text, id in read_json(folder / "added_tokens.json").items():
            if type(id) is not int or id < 0:
                raise FormatError(f"{folder / 'added_tokens.json'}: token {quote(text)} must have an id, found {quote(id)}")
            if id not in seen:
                yield id, text, text.startswith("<") and text.endswith(">")


def _special_ids(vocab: Vocab, settings: Fields, config: Fields, generation: Fields | None) -> None:
    """BOS, EOS, unknown and padding by the tokenizer's settings; failing that by the model's. Where generation ends at several tokens, the others
    become EOM (if that is its text) and EOT."""
    places = {text: id for id, text in reversed(list(enumerate(vocab.tokens)))}
    for name, key in _NAMES.items():
        token = settings.values.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text in places:
            vocab.ids[name] = places[text]
    ends: list[int] = []
    for fields in (generation, config):
        if fields is None:
            continue
        found: Any = fields.values.get("eos_token_id")
        listed = found if isinstance(found, list) else [found]
        ends = ends or [id for id in listed if _is_id(id, vocab)]
        bos: Any = fields.values.get("bos_token_id")
        if "bos" not in vocab.ids and _is_id(bos, vocab):
            vocab.ids["bos"] = bos
    if ends:
        if vocab.ids.get("eos") not in ends:
            vocab.ids["eos"] = ends[0]
        others = [id for id in ends if id != vocab.ids["eos"]]
        for id in others:
            name = "eom" if vocab.tokens[id] == "<|eom_id|>" else "eot"
            if name not in vocab.ids:
                vocab.ids[name] = id
            elif id not in vocab.ids.values():
                vocab.notes.append(f"generation ends at {quote(vocab.tokens[id])} too; GGUF has no more keys for such tokens")


def _is_id(id: Any, vocab: Vocab) -> bool:
    return type(id) is int and 0 <= id < len(vocab.tokens)


def _template(folder: Path, settings: Fields) -> dict[str, Any]:
    """tokenizer.chat_template, and .tool_use where there is one: from chat_template.jinja, else chat_template.json, else tokenizer_config.json."""
    keys: dict[str, Any] = {}
    found: Any = settings.values.get("chat_template")
    file = folder / "chat_template.json"
    if file.is_file():
        found = read_json(file).get("chat_template", found)
    if (folder / "chat_template.jinja").is_file():
        try:
            found = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FileError(f"{folder / 'chat_template.jinja'}: cannot be read: {error}") from None
    if isinstance(found, str):
        keys["tokenizer.chat_template"] = found
    elif isinstance(found, list):
        for entry in found:
            if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not isinstance(entry.get("template"), str):
                raise FormatError(f"{settings.path}: field 'chat_template' must be a text, or a list of names and templates")
            key = "tokenizer.chat_template" if entry["name"] == "default" else f"tokenizer.chat_template.{entry['name']}"
            keys[key] = entry["template"]
    elif found is not None:
        raise FormatError(f"{settings.path}: field 'chat_template' must be a text or a list, found {quote(found)}")
    return keys
