"""The hub as huggingface_hub reaches it: what a repository holds, one file fetched and checked, and its errors as ours."""
from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import os
import re
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..errors import FileError, FormatError, LlaminaError, OptionError, UnsupportedError
from ..units import size

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class HubName:
    """What a user wrote: a repository, a branch, tag or commit, a file or folder in it, or the name of a quantisation."""

    repo: str
    revision: str = "main"
    path: str = ""
    quant: str = ""

    def __str__(self) -> str:
        revision = self.revision if self.revision.startswith("refs/") else self.revision.replace("/", "%2F")
        at = f"@{revision}" if revision != "main" else ""
        return f"hf:{self.repo}{at}" + (f"/{self.path}" if self.path else f":{self.quant}" if self.quant else "")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. digest: SHA-256 of large files, Git's SHA-1 of a blob for small ones, "" if unknown."""

    path: str
    size: int
    digest: str = ""


@dataclass(frozen=True)
class Listing:
    """A repository at one commit. cached: seen in the cache only, because there is no network or none is wanted."""

    name: HubName
    commit: str
    files: tuple[RemoteFile, ...]
    cached: bool = False


# -- the hub ------------------------------------------------------------------------------------------------------------------------------------


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.file_download
    except ImportError:
        raise UnsupportedError("hf:… needs the package huggingface_hub: pip install 'llamina[hub]', or download the file yourself and give its path") from None
    return huggingface_hub


def offline_reason() -> str:
    return "HF_HUB_OFFLINE is set" if _library().constants.HF_HUB_OFFLINE else "it can't be reached"


def list_files(name: HubName) -> Listing:
    """What the repository holds now, or, offline, what of it the cache holds. FileError: no such repository or revision, no permission, no network."""
    hub = _library()
    if hub.constants.HF_HUB_OFFLINE:
        return _cached_listing(name, "HF_HUB_OFFLINE is set")
    try:
        with _quiet():
            api = hub.HfApi(endpoint=hub.constants.ENDPOINT, library_name="llamina")
            info = api.model_info(name.repo, revision=name.revision, files_metadata=True, timeout=10)
    except Exception as error:
        if _unreachable(error):
            return _cached_listing(name, f"{hub.constants.ENDPOINT} can't be reached ({_brief(error)})")
        _refuse(str(name), error)
    files = []
    for sibling in info.siblings or []:
        lfs: Any = sibling.lfs
        sha256 = (lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)) if lfs else None
        files.append(RemoteFile(sibling.rfilename, sibling.size or 0, sha256 or sibling.blob_id or ""))
    for f in files:  # these become paths on this machine
        if f.path.startswith("/") or "\\" in f.path or ".." in f.path.split("/") or not re.fullmatch(r"[0-9a-f]*", f.digest):
            raise FormatError(f"{name}: the hub lists a file of an impossible name: {f.path!r}")
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):
        raise FormatError(f"{name}: the hub gave no commit for it: {hub.constants.ENDPOINT} is no hub (HF_ENDPOINT)")
    return Listing(name, info.sha, tuple(files))


def _cached_listing(name: HubName, why: str) -> Listing:
    folder = repo_folder(name)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        ref = folder / "refs" / name.revision
        commit = ref.read_text().strip() if ref.is_file() else name.revision
        snapshot = folder / "snapshots" / commit
        if re.fullmatch(r"[0-9a-f]{40}", commit) and snapshot.is_dir():
            found = sorted(p for p in snapshot.rglob("*") if p.is_file())
            return Listing(name, commit, tuple(RemoteFile(p.relative_to(snapshot).as_posix(), p.stat().st_size) for p in found), cached=True)
    raise FileError(f"{name}: is not in the cache ({folder.parent}), and {why}")


def repo_folder(name: HubName) -> Path:
    hub = _library()
    return Path(hub.constants.HF_HUB_CACHE) / hub.file_download.repo_folder_name(repo_id=name.repo, repo_type="model")


# -- one file -----------------------------------------------------------------------------------------------------------------------------------


def fetch(listing: Listing, file: RemoteFile, target: Path, partial: Path, total: Total) -> None:
    """One file to `target`, which appears when it is whole and its hash is right; `partial` keeps what came so far for the next try."""
    hub = _library()
    from filelock import FileLock  # of huggingface_hub's own dependencies
    url = hub.hf_hub_url(listing.name.repo, file.path, revision=listing.commit, endpoint=hub.constants.ENDPOINT)
    what = f"{listing.name.repo}: {file.path}"
    with cannot_write(target), FileLock(str(partial.with_name(partial.name + ".lock"))):
        if target.is_file():  # another process was faster
            return total.add(file.size)
        have = partial.stat().st_size if partial.is_file() else 0
        if have > file.size:
            partial.unlink()
            have = 0
        free = shutil.disk_usage(partial.parent).free
        if file.size - have > free:
            raise FileError(f"{target.parent}: has {size(free)} free, but {what} needs {size(file.size - have)}: make room")
        total.begin(file.path, have)
        with Sink(partial, total) as sink:
            while have < file.size:
                try:
                    with _quiet():
                        headers = hub.utils.build_hf_headers(library_name="llamina")
                        hub.file_download.http_get(url, sink, resume_size=have, headers=headers, expected_size=file.size)
                    break
                except Exception as error:
                    before, have = have, os.fstat(sink.fileno()).st_size
                    if not (_unreachable(error) and before < have < file.size):  # else a connection that broke: on, as long as more comes
                        _stopped(what, file, partial, have, error)
            sink.flush()
            os.fsync(sink.fileno())
        found = digest_of(partial, file, total)
        if found != file.digest:
            partial.unlink()
            raise FormatError(f"{what}: what came has the hash {found[:16]}…, the hub says {file.digest[:16]}…: thrown away, try again")
        os.replace(partial, target)
    with contextlib.suppress(OSError):
        partial.with_name(partial.name + ".lock").unlink()


class _Enough(Exception):
    """So many bytes were wanted and not more."""


class _Beginning(io.BytesIO):
    def __init__(self, wanted: int) -> None:
        super().__init__()
        self.wanted = wanted

    def write(self, data: Any) -> int:
        written = super().write(data)
        if self.tell() >= self.wanted:
            raise _Enough
        return written


def beginning(listing: Listing, file: RemoteFile, n: int) -> bytes:
    """The first n bytes of a file, or all of a smaller one, by a range request; where that is ignored the transfer is ended. Errors as of `fetch`."""
    hub = _library()
    wanted = min(n, file.size)
    url = hub.hf_hub_url(listing.name.repo, file.path, revision=listing.commit, endpoint=hub.constants.ENDPOINT)
    into = _Beginning(wanted)
    try:
        with _quiet():
            hub.file_download.http_get(url, into, headers={**hub.utils.build_hf_headers(library_name="llamina"), "Range": f"bytes=0-{wanted - 1}"})
    except _Enough:
        pass
    except Exception as error:
        what = f"{listing.name.repo}: {file.path}"
        if _unreachable(error) or isinstance(error, OSError) and not hasattr(error, "response"):
            raise FileError(f"{what}: the transfer stopped ({_brief(error)}): try again") from error
        _refuse(what, error)
    return into.getvalue()[:wanted]


def _stopped(what: str, file: RemoteFile, partial: Path, got: int, error: Exception) -> NoReturn:
    """The transfer ended early, or brought too much."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
        raise error
    if got > file.size:
        partial.unlink()
        raise FormatError(f"{what}: {got} bytes came, the hub says it has {file.size}: thrown away, try again") from error
    if got < file.size and (_unreachable(error) or isinstance(error, OSError) and not hasattr(error, "response")):
        raise FileError(f"{what}: the transfer stopped after {got} of {file.size} bytes ({_brief(error)}): the same command goes on from there") from error
    _refuse(what, error)


def digest_of(path: Path, file: RemoteFile, total: Total) -> str:
    """The file's hash of the kind that `file.digest` is; "" if none is known."""
    if not file.digest:
        return ""
    if len(file.digest) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as stream:
        done = 0
        while block := stream.read(1 << 22):
            digest.update(block)
            done += len(block)
            total.show(f"checking {file.path}", done, file.size)
    return digest.hexdigest()


class Total:
    """Progress over several files."""

    def __init__(self, files: Sequence[RemoteFile], progress: Progress | None) -> None:
        self.total, self.done, self.what, self.progress = sum(f.size for f in files), 0, "", progress

    def begin(self, path: str, have: int) -> None:
        self.what = f"downloading {path}"
        self.add(have)

    def add(self, n: int) -> None:
        self.done += n
        self.show(self.what, self.done, self.total)

    def show(self, what: str, done: int, total: int) -> None:
        if self.progress:
            self.progress(what, min(done, total), total)


class Sink(io.FileIO):
    """A file that is appended to, and counts. What came so far must be a file of this user's own: others could change it after the check, or lead it elsewhere
    by a link."""

    def __init__(self, path: Path, total: Total) -> None:
        super().__init__(path, "ab+", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666))
        info = os.fstat(self.fileno())
        if not stat.S_ISREG(info.st_mode) or hasattr(os, "getuid") and info.st_uid != os.getuid():
            self.close()
            raise FileError(f"{path}: is not a file of yours: remove it, and the download begins anew")
        self.total = total

    def write(self, data: Any) -> int:
        view = memoryview(data)
        done = 0
        while done < len(view):
            done += super().write(view[done:]) or 0
        self.total.add(done)
        return done


# -- errors -------------------------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without huggingface_hub's own progress bars, log lines and warnings: we have our own."""
    hub = _library()
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            was = hub.utils.are_progress_bars_disabled()
            hub.utils.disable_progress_bars()
            try:
                yield
            finally:
                if not was:
                    hub.utils.enable_progress_bars()
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def cannot_write(path: Path) -> Iterator[None]:
    try:
        yield
    except LlaminaError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise FileError(f"{path}: cannot be written ({error.strerror or error})"
                        + ("; what came so far is kept: make room, and the same command goes on from there" if full else "")) from error


def _unreachable(error: Exception) -> bool:
    """No answer at all, or one that says "later": as opposed to a no."""
    response = getattr(error, "response", None)
    if response is not None:
        return response.status_code in (408, 425, 429) or response.status_code >= 500
    return any(word in type(k).__name__ + k.__name__ for k in type(error).__mro__ for word in ("ConnectionError", "TransportError", "Timeout")) \
        or type(error).__name__ in ("OfflineModeIsEnabled", "ChunkedEncodingError", "ProtocolError")


def _brief(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP status {response.status_code}"
    return (" ".join(str(error).split()) or type(error).__name__)[:120]


def _refuse(what: str, error: Exception) -> NoReturn:
    """An error of ours for one of huggingface_hub's."""
    errors = _library().utils
    status = getattr(getattr(error, "response", None), "status_code", None)
    where = "set HF_TOKEN or run `hf auth login`"
    if isinstance(error, errors.GatedRepoError):
        text = f"is gated: accept its terms on its page at the hub with your account, then {where}"
    elif isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        text = f"no such repository, or it is private: check the name, or {where}"
    elif isinstance(error, errors.RevisionNotFoundError):
        text = "the repository has no such revision (branch, tag or commit)"
    elif isinstance(error, errors.EntryNotFoundError) or status == 404:
        text = "no such file in the repository"
    elif status == 403:
        text = f"access was refused: {where} with an account that may read it"
    elif isinstance(error, errors.HFValidationError):
        raise OptionError(f"{what}: {_brief(error)}") from error
    else:
        text = f"cannot be had from the hub ({_brief(error)})"
    raise FileError(f"{what}: {text}") from error
