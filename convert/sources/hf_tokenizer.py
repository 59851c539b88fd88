"""The tokenizer of a Hugging Face folder: its vocabulary, added tokens, special ids and chat templates (hf_template.py).

tokenizer.model (SentencePiece) comes first, as it is the original; tokenizer.json is read where there is none, and older files (older_tokenizers.py) where
there is neither. Added tokens come from tokenizer.json, tokenizer_config.json and added_tokens.json; ids from tokenizer_config.json, then
generation_config.json and config.json.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...engine.errors import FileError, FormatError
from ...engine.gguf.header import quote
from ...engine.text.tokenizer.vocabulary import CONTROL
from .base import Fields, read_json
from .hf_template import read_templates
from .older_tokenizers import NAMES, read_older
from .tokenizer_json import LEADING_SPACE, steps
from .vocabulary import Vocab, read_vocabulary_file

_SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def read_tokenizer(folder: Path, config: Fields, generation: Fields | None, given: Path | None) -> tuple[Vocab, dict[str, Any], list[Path]]:
    """The vocabulary, metadata with the chat templates, and the files read. given: a tokenizer file instead of the folder's."""
    path = given or next((p for name in ("tokenizer.model", "tokenizer.json", *NAMES) if (p := folder / name).is_file()), None)
    if path is None:
        raise FileError(f"{folder}: has no tokenizer.model, tokenizer.json, {', '.join(NAMES[:-1])} or {NAMES[-1]}: get one, or give one with --tokenizer")
    beside = folder / "tokenizer.json"
    fast = read_json(beside) if beside.is_file() else {}
    settings = Fields(folder / "tokenizer_config.json", read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {})
    vocab = read_older(path, config, settings) or read_vocabulary_file(path)
    own = vocab.from_json
    if not own or vocab.as_json is not None:
        for id, text, special in _added(folder, settings, fast):
            known = id < len(vocab.tokens) and vocab.tokens[id] == text
            if not known or special:
                vocab.add(id, text, special)
    if not own:
        vocab.add_bos, vocab.add_eos = settings.get("add_bos_token", bool, True), settings.get("add_eos_token", bool, False)
    elif vocab.model == "llama" and not _generic(vocab, settings):
        vocab.add_bos = settings.get("add_bos_token", bool, vocab.add_bos)
        vocab.add_eos = settings.get("add_eos_token", bool, vocab.add_eos)
    _space_prefix(vocab, settings, fast)
    _flags(vocab, settings, fast)
    _special_ids(vocab, settings, config, generation)
    templates, files = read_templates(folder, settings, vocab.notes)
    read = [path, *(p for p in (beside, folder / "added_tokens.json", settings.path) if p.is_file()), *files]
    return vocab, templates, read


def _generic(vocab: Vocab, settings: Fields) -> bool:
    """Whether tokenizer.json says all, as the class named by tokenizer_config.json is not one that builds its own rules of settings."""
    return vocab.from_json and settings.values.get("tokenizer_class") in ("PreTrainedTokenizerFast", "TokenizersBackend")


def _space_prefix(vocab: Vocab, settings: Fields, fast: Mapping[str, Any]) -> None:
    """Whether a space is put before a text, where tokenizer_config.json says; and a note where GGUF can't say it all.

    transformers: class LlamaTokenizer heeds add_prefix_space and legacy, whatever tokenizer.json says; the generic classes follow tokenizer.json alone."""
    if vocab.model != "llama":
        return
    generic = _generic(vocab, settings)
    prefix = settings.get("add_prefix_space", bool, None)
    if prefix is not None and not generic and prefix != vocab.add_space_prefix:
        vocab.add_space_prefix = prefix
        if not prefix:
            vocab.exceptions.discard("leading space")
            vocab.notes = [note for note in vocab.notes if note != LEADING_SPACE.format(vocab.path.name)]
    legacy = settings.get("legacy", bool, None)
    scheme = next((step.get("prepend_scheme") for step in steps(fast.get("pre_tokenizer"), "pretokenizers") if step.get("type") == "Metaspace"), None)
    first = scheme == "first" if generic or legacy is None else not legacy
    if vocab.add_space_prefix and first:
        vocab.notes.append("this tokenizer (legacy: false) puts a space before a text's beginning only; GGUF's SentencePiece kind has no word for that, and "
                           "puts one after each special token, too: text right after a special token begins with one more space")


def _flags(vocab: Vocab, settings: Fields, fast: Mapping[str, Any]) -> None:
    """A note on what added tokens ask for and GGUF can't say."""
    decoder = settings.get("added_tokens_decoder", dict, {})
    listed = fast.get("added_tokens")
    added = [t for t in (*decoder.values(), *(listed if isinstance(listed, list) else ())) if isinstance(t, dict)]
    for flag, what in ("lstrip", "takes the spaces before it"), ("rstrip", "takes the spaces after it"), ("single_word", "counts only as a whole word"):
        texts = list(dict.fromkeys(str(t.get("content")) for t in added if t.get(flag) is True))
        if texts:
            more = f" and {len(texts) - 1} more" if len(texts) > 1 else ""
            vocab.notes.append(f"added token {quote(texts[0])}{more} {what} ({flag}), which GGUF can't say: such spaces stay as they are")


def _added(folder: Path, settings: Fields, fast: Mapping[str, Any]) -> Iterator[tuple[int, str, bool]]:
    """(id, text, special) of tokens that files beside tokenizer.model add."""
    seen: set[int] = set()
    decoder = settings.get("added_tokens_decoder", dict, {})
    listed: Any = fast.get("added_tokens") or []
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
    for name, key in _SPECIAL.items():
        token = settings.values.get(key)
        text = token.get("content") if isinstance(token, dict) else token
        if isinstance(text, str) and text in places:
            vocab.ids[name] = places[text]
    ends: list[int] = []
    silent = {key: id for key, id in (("bos_token_id", 1), ("eos_token_id", 2))
              if key[:3] not in vocab.ids and _is_id(id, vocab) and vocab.types[id] == CONTROL}
    config = Fields(config.path, {**silent, **config.values})  # transformers' classes take these where config.json says nothing
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
