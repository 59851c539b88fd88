"""Recognise the kind of a checkpoint by what is in it, and open it."""
from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

from ...engine.architectures.config import MAX_CONTEXT
from ...engine.errors import FileError, FormatError, OptionError
from ...engine.files import paths
from ...engine.gguf.header import quote, refuse_pointer
from ...engine.home.library import is_hub_name
from ...engine.home.resolve import resolve
from .base import Source

KINDS = ("hf", "meta", "pytorch", "llama2c", "gguf")


@paths("the source")
def open_source(path: str | os.PathLike[str], kind: str | None = None, tokenizer: str | os.PathLike[str] | None = None,
                progress: Callable[[str, int, int], None] | None = None, context: int | None = None) -> Source:
    """Open a checkpoint: a Hugging Face or Meta folder, a .safetensors, PyTorch, llama2.c or GGUF file, "demo", or "hf:org/repo" (engine/home/hub.py), which
    is downloaded, with `progress`.

    kind: one of KINDS, instead of recognising it. tokenizer: a tokenizer file to use instead of the one found beside the weights (not for GGUF).
    context: positions to say instead of the trained ones, which makes a model of sliding windows one without, within one window.
    FileError: something is missing or unreadable. FormatError: damaged, or parts that do not fit each other. UnsupportedError: a model or field that
    llamina does not know, by its name. OptionError: an unknown `kind`, or a tokenizer for a GGUF file."""
    name = os.fspath(path)
    if kind is not None and kind not in KINDS:
        raise OptionError(f"source kind {quote(kind)} is unknown, expected one of {', '.join(KINDS)}")
    if isinstance(name, str) and is_hub_name(name):
        from ...engine.home.hub import checkpoint
        local, listing = checkpoint(name, progress)
        source = open_source(local, kind, tokenizer, context=context)
        if source.kind != "gguf":  # which has a name of its own
            source.metadata["general.name"] = listing.name.repo.split("/")[1]
        source.metadata["general.source.repo_url"] = f"https://huggingface.co/{listing.name.repo}"
        source.notes.insert(0, f"{name}: commit {listing.commit}{' as it is in the cache: the hub was not asked' if listing.cached else ''}")
        source.path = Path(str(listing.name))
        return source
    if context is not None and not 1 <= context <= MAX_CONTEXT:
        raise OptionError(f"a context of {context} positions: expected 1 to {MAX_CONTEXT}")
    path = resolve(name) if isinstance(path, str) and (name == "demo" or not os.path.exists(name)) else Path(name)  # ./demo is a folder of that name
    kind = kind or detect(path)
    vocabulary = None if tokenizer is None else Path(tokenizer)
    if vocabulary is not None and not vocabulary.is_file():
        raise FileError(f"{vocabulary}: no such tokenizer file")
    source = _open(kind, path, vocabulary, context)
    if context is not None:
        _say_context(source, context)
    return source


def _open(kind: str, path: Path, vocabulary: Path | None, context: int | None) -> Source:
    if kind == "hf":
        from .hf import open_hf
        return open_hf(path, vocabulary, context)
    if kind == "meta":
        from .meta import open_meta
        return open_meta(path, vocabulary, context)
    if kind == "pytorch":
        from .pytorch import open_pytorch
        return open_pytorch(path, vocabulary, context)
    if kind == "llama2c":
        from .llama2c import open_llama2c
        return open_llama2c(path, vocabulary)
    if vocabulary is not None:
        raise OptionError(f"{path}: a GGUF file keeps its own tokenizer; leave --tokenizer out")
    from .gguf_source import open_gguf_source
    return open_gguf_source(path)


def _say_context(source: Source, context: int) -> None:
    key = f"{source.metadata['general.architecture']}.context_length"
    trained = source.metadata.get(key)
    source.metadata[key] = context
    beyond = ": beyond it, nothing is known of how it does" if isinstance(trained, int) and context > trained else ""
    source.notes.append(f"context {context} as asked for, instead of {trained}{beyond}")


def detect(path: Path) -> str:
    """One of KINDS. FileError: nothing there; FormatError: nothing that llamina knows."""
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise FileError(f"{path}: no such file or folder" if not path.exists() else f"{path}: is not a regular file")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            head = file.read(200)
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror or error}") from None
    refuse_pointer(path, head)
    if head[:4] in (b"GGUF", b"FUGG"):
        return "gguf"
    meta = path.name.startswith("consolidated") and (path.parent / "params.json").is_file()
    small = head[2:4] == b"\0\0"  # a small number, such as llama2.c's first, of which a pickle's \x80\x02 can be the beginning, too
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05" and not small:
        return "meta" if meta else "pytorch"
    if head[:4] == b"24ka":
        return "llama2c"
    if len(head) >= 10 and head[8:9] == b"{" and (path.suffix == ".safetensors" or struct.unpack("<Q", head[:8])[0] < size):
        return "meta" if meta else "hf"
    if len(head) >= 28 and path.suffix != ".safetensors":
        dim, ffn_dim, n_layers, n_heads, n_kv_heads, n_vocab, context = struct.unpack("<7i", head[:28])
        if 0 < n_kv_heads <= n_heads <= dim <= 1 << 20 and 0 < ffn_dim <= 1 << 20 and 0 < n_layers <= 4096 and n_vocab and 0 < context <= 1 << 24:
            return "llama2c"
    if path.suffix == ".safetensors":
        return "hf"
    if path.name in ("config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json"):
        raise FormatError(f"{path}: give the folder that holds it instead")
    raise FormatError(f"{path}: is no checkpoint that llamina knows (Hugging Face, Meta, PyTorch, llama2.c, GGUF); it begins with {quote(head[:8])}")


def _folder(path: Path) -> str:
    params, whole = (path / "params.json").is_file(), [p.name for p in path.glob("consolidated*") if p.suffix in (".pth", ".safetensors")]
    if params and any(name.endswith(".pth") for name in whole):
        return "meta"
    if params and whole and not any(next(path.glob(pattern), None) for pattern in ("model*.safetensors", "pytorch_model*.bin")):
        return "meta"  # Mistral's form, alone; where Hugging Face's is there, too, that one is read
    if (path / "config.json").is_file():
        return "hf"
    if params:
        raise FileError(f"{path}: has params.json, but no consolidated.00.pth or consolidated.safetensors: expected Meta's or Mistral's release")
    ggufs = sorted(p.name for p in path.glob("*.gguf"))
    if ggufs:
        raise FileError(f"{path}: is a folder of GGUF files: give one of them, such as {ggufs[0]}")
    raise FileError(f"{path}: has neither config.json (Hugging Face) nor params.json and consolidated.* (Meta, Mistral)")
