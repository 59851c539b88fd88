"""Sessions: an answer or a conversation in a file, to go on with later as if nothing had happened, bit for bit.

    magic | length of the header | header (JSON) | BLAKE2b of all before | KV pages as they are in memory | BLAKE2b of the pages

The header holds ids, text and the sampler's state, and what the pages are bound to: the model file, the arithmetic version, the KV type. Only whole pages are
written: the up to 63 tokens after them are computed again, which gives the same bits. Pages that don't fit or are damaged are refused, and the ids
are computed again (a file of another model: the text is tokenised again). Nothing in a file is believed before it is checked, and pages from a file are
never lent to other sequences. Written beside, synced, renamed: a session is the old one or the new one, whatever happens meanwhile.
"""
from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ...kernels import ARITHMETIC_VERSION
from ...kernels.elementwise import PAGE
from ..errors import FileError, FormatError, OutOfMemoryError
from ..files import new_file, open_regular, reason, shown, writing
from ..run.adapters import Use, described, ordered
from ..units import size

if TYPE_CHECKING:
    from ..run import kv_cache
    from .core import Core

MAGIC = b"LLAMINA\x01"
MAX_HEADER = 32 << 20
_DIGEST = 32


@dataclass
class Session:
    """A file's header, checked as far as it can be without a model. refused: why its pages are not used, or None."""

    path: Path
    kind: str
    state: dict[str, Any]
    ids: list[int]
    pages: int
    windows: int = 0
    """The first page whose windowed layers' part is there."""
    foreign: bool = False
    """Made with another model: not even the ids mean the same."""
    refused: str | None = None
    recurrent: int = 0
    """After how many positions the recurrent layers' state is, which follows the pages; 0: there is none."""
    adapters: Use = ()
    """Of those that are loaded: the ones that it was made with, or the model's own."""
    start: int = 0  # of the pages in the file
    file: BinaryIO | None = None
    """Open until the pages are read."""


def save(path: str | os.PathLike[str], model: Core, kind: str, state: dict[str, Any], ids: list[int], sequence: kv_cache.Sequence | None,
         use: Use | None = None) -> None:
    """Write a session: `ids` is the text, the first of which `sequence` has keys and values of. use: its adapters (default: the
    model's). FileError: then the file is as it was before."""
    target = Path(path)
    n, windows, pages = sequence.saved() if sequence is not None else (0, 0, [])
    header = {"kind": kind, "model": model.runtime.digest, "arithmetic": ARITHMETIC_VERSION, "kv": model.runtime.kv_name,
              "page_bytes": model.runtime.page_bytes, "pages": n, "windows": windows, "ids": ids, "state": state,
              "recurrent": sequence.states.at if sequence is not None and sequence.states else 0,
              "adapters": described(model.runtime.adapters.default if use is None else use), "control": model.runtime.adapters.control_digest}
    raw = json.dumps(header, separators=(",", ":")).encode()
    if len(raw) > MAX_HEADER:
        raise FileError(f"{target}: the session's text has {size(len(raw))}, at most {size(MAX_HEADER)} are written")
    head = MAGIC + len(raw).to_bytes(8, "little") + raw
    with writing(target, "the session"), new_file(target, private=True) as new:
        new.file.write(head + blake2b(head, digest_size=_DIGEST).digest())
        digest = blake2b(digest_size=_DIGEST)
        for page in pages:
            new.file.write(page.data)
            digest.update(page.data)
        new.file.write(digest.digest())


def read(path: str | os.PathLike[str], model: Core, kind: str) -> Session:
    """A file's header, held against the model. FileError; FormatError if it is no session of this kind or its header is damaged."""
    target = Path(path)
    file = open_regular(target, "a session")  # stays open until the pages are read: another process may put a new session under the name meanwhile
    try:
        found = _parse(target, file, os.fstat(file.fileno()).st_size, model, kind)
    except OSError as error:
        file.close()
        raise FileError(f"{shown(target)}: the session cannot be read ({reason(error)})") from None
    except BaseException:
        file.close()
        raise
    found.file = file
    return found


def _parse(path: Path, file: BinaryIO, size: int, model: Core, kind: str) -> Session:
    def damaged(why: str) -> FormatError:
        return FormatError(f"{path}: is a damaged session ({why}): move it away to begin anew")
    head = file.read(len(MAGIC) + 8)
    if head[:1] in (b"{", b"["):
        raise FormatError(f"{path}: is no session but JSON, perhaps a conversation that /save wrote: for that, start a chat without --session and type "
                          f"/load {path}")
    if head[:len(MAGIC)] != MAGIC or len(head) != len(MAGIC) + 8:
        raise FormatError(f"{path}: is not a session of llamina (it begins with other bytes): choose another file")
    length = int.from_bytes(head[len(MAGIC):], "little")
    if length > min(MAX_HEADER, size):
        raise damaged(f"its header would have {length} bytes")
    raw = file.read(length)
    if file.read(_DIGEST) != blake2b(head + raw, digest_size=_DIGEST).digest():
        raise damaged("the checksum of its header is wrong")
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):
        raise damaged("its header is not JSON") from None
    take = Reader(header, damaged)
    layout = model.runtime.plan.layout
    windows = take("windows", int) if layout.windowed and "windows" in header else 0
    recurrent = take("recurrent", int) if layout.slot and "recurrent" in header else 0
    found = Session(path, take("kind", str), take("state", dict), take.numbers("ids"), take("pages", int), windows, recurrent=recurrent,
                    start=len(head) + length + _DIGEST)
    if found.kind != kind:
        raise FormatError(f"{path}: is a session of another kind: expected {kind}, found {found.kind[:40]!r}")
    rows = (("model file", "model", model.runtime.digest), ("arithmetic version", "arithmetic", ARITHMETIC_VERSION),
            ("type of keys and values", "kv", model.runtime.kv_name), ("page size", "page_bytes", model.runtime.page_bytes))
    for what, name, own in rows:
        if take(name, type(own)) != own and found.refused is None:
            found.refused, found.foreign = f"it was made with another {what}", name == "model"
    found.adapters = model.runtime.adapters.default
    if not found.foreign:
        made_with = _adapters(header.get("adapters", []), model)
        if made_with is None or kind == "chat" and made_with != found.adapters:  # a conversation goes on with the model's
            found.refused = found.refused or "it was made with other adapters"
        elif header.get("control", "") != model.runtime.adapters.control_digest:
            found.refused = found.refused or "it was made with other control vectors"
        else:
            found.adapters = made_with
    if not found.foreign and any(not 0 <= id < model.config.n_vocab for id in found.ids):
        raise damaged("it has ids outside the vocabulary")
    if found.refused is None and layout.slot and not (0 <= recurrent <= min(len(found.ids), model.context) and found.pages == -(-recurrent // PAGE)):
        found.refused = f"it has a state after {recurrent} of {len(found.ids)} tokens, and {found.pages} pages"
    if found.refused is None and not (0 <= found.pages <= -(-len(found.ids) // PAGE) - (not recurrent) * bool(len(found.ids) % PAGE)
                                      and len(found.ids) <= model.context + 1):
        found.refused = f"it has {len(found.ids)} tokens in {found.pages} pages, the context has {model.context}"
    if found.refused is None and not 0 <= windows <= layout.first(found.pages * PAGE):
        found.refused = f"its {found.pages} pages lack what windows see before page {windows}"
    units = found.pages * layout.rows - windows * layout.windowed
    if found.refused is None and size != found.start + units * model.runtime.page_bytes + bool(recurrent) * layout.state_bytes + _DIGEST:
        found.refused = "it has been cut short, or something was added to it"
    return found


def _adapters(told: Any, model: Core) -> Use | None:
    """[[digest, scale], …] of a header -> those, if all are loaded."""
    by_digest = {loaded.digest: loaded for loaded in model.runtime.adapters.by_name.values()}
    try:
        return ordered([(by_digest[digest], float(scale)) for digest, scale in told])
    except (KeyError, TypeError, ValueError):
        return None


def restore(session: Session, model: Core) -> kv_cache.Sequence:
    """A private sequence with the session's pages; an empty one if they are refused (then .refused says why)."""
    if session.refused is not None or not session.pages:
        if session.file is not None:
            session.file.close()
        return model.runtime.new_sequence(cached=True, adapters=session.adapters)
    sequence = model.runtime.new_sequence(slides=True, adapters=session.adapters)
    try:
        positions = session.recurrent or session.pages * PAGE
        sequence.reserve(positions, session.windows)
        states = sequence.ready(positions).target if session.recurrent else None
        assert session.file is not None
        with session.file as file:
            file.seek(session.start)
            digest = blake2b(digest_size=_DIGEST)
            for page in [*sequence.units(), *(states.units if states else [])]:
                if file.readinto(page.data) != len(page):  # type: ignore[attr-defined]
                    break
                digest.update(page.data)
            whole = file.read(_DIGEST + 1) == digest.digest()
    except (OSError, FileError) as error:
        session.refused = f"it cannot be read: {reason(error)}"
    except OutOfMemoryError as error:
        session.refused = str(error)
    else:
        session.refused = None if whole else "its checksum is wrong: it is damaged"
    if session.refused is None:
        sequence.append(session.ids[:positions])
    else:
        sequence.close()
        sequence = model.runtime.new_sequence(cached=True, adapters=session.adapters)
    return sequence


def refusal(session: Session) -> str | None:
    """A line for people if what was computed is not used."""
    if session.refused is None:
        return None
    return f"{session.path}: what it had computed is not used, because {session.refused}; the text is computed again"


class Reader:
    """Takes values out of a JSON object, with their types."""

    def __init__(self, data: Any, damaged: Callable[[str], Exception]) -> None:
        self._data, self._damaged = data if isinstance(data, dict) else {}, damaged

    def __call__(self, name: str, kind: type, *or_none: None) -> Any:
        value = self._data.get(name)
        if value is None and or_none:
            return None
        if kind is float and type(value) is int:
            value = float(value) if abs(value) < 1 << 62 else None
        if type(value) is not kind:
            raise self._damaged(f"{name} is {type(value).__name__}, expected {kind.__name__}")
        return value

    def numbers(self, name: str) -> list[int]:
        """A list of whole numbers from 0 on, below 2**31."""
        values = self(name, list)
        if not all(type(value) is int and 0 <= value < 1 << 31 for value in values):
            raise self._damaged(f"{name} are not numbers of tokens")
        return values

    def texts(self, name: str) -> list[str]:
        values = self(name, list)
        if not all(type(value) is str for value in values):
            raise self._damaged(f"{name} are not texts")
        return values
