"""Models on the Hugging Face hub: `hf:org/repo[@revision][/path]`, fetched into the hub's own cache, or into a folder.

    parse(name) -> list_files (one request: commit, sizes, hashes) -> which files are wanted -> fetch each: resume, check the hash, rename

huggingface_hub (the extra `hub`, imported when first needed) knows the endpoint, tokens, proxies, retries and offline mode, and where its cache lies. It
does not go on where an earlier process stopped, nor check hashes; both are done here. Files land where huggingface_hub itself looks for them
(huggingface.co/docs/huggingface_hub/guides/manage-cache): blobs/HASH, and snapshots/COMMIT/path links there.
"""
from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from ..errors import FileError, FormatError, OptionError
from ..files import read_file, write_file
from .hub_client import HubName, Listing, Progress, RemoteFile, Total, cannot_write, digest_of, fetch, list_files, offline_reason, repo_folder

SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_NAME = re.compile(r"hf:(?P<repo>[\w.-]+/[\w.-]+?)(?:@(?P<revision>refs/\w+/[\w.-]+|[\w.%+-]+))?(?::(?P<quant>[\w.-]+)|/(?P<path>[^@:]+))?")
_TOKENIZER = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "chat_template.json", "chat_template.jinja",
              "generation_config.json", "README.md")
_INDEXED = (("model.safetensors.index.json", "model.safetensors"), ("pytorch_model.bin.index.json", "pytorch_model.bin"))


_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")


def from_address(text: str) -> str:
    """An address of the hub (https://huggingface.co/org/repo, …/blob/main/file.gguf, …/resolve/…, …/tree/…, also without https://) -> hf:… What is none stays
    as it is. OptionError: an address of another place."""
    plain = text.strip()
    rest = re.sub(r"^https?://", "", plain)
    host, _, path = rest.partition("/")
    own = re.sub(r"^https?://", "", os.environ.get("HF_ENDPOINT", "")).rstrip("/")
    if own and rest.startswith(own + "/"):
        path = rest[len(own) + 1:]
    elif host.lower() not in _HOSTS:
        if rest != plain:
            raise OptionError(f"{text!r:.120} is no address of the Hugging Face hub: download the file with your browser, and give its path")
        return text
    path = unquote(re.split(r"[?#]", path)[0]).strip("/")
    match = re.fullmatch(r"([^/]+/[^/]+?)(?:/(blob|resolve|raw|tree)/(refs/[^/]+/[^/]+|[^/]+)(?:/(.+))?)?", path)
    if match is None:
        raise OptionError(f"{text!r:.120} is no address of a model: expected one such as https://{_HOSTS[0]}/org/repo/blob/main/file.gguf")
    revision = f"@{match[3]}" if match[3] and match[3] != "main" else ""
    repo, _, quant = match[1].partition(":")
    return f"hf:{repo}{revision}" + (f"/{match[4]}" if match[4] else f":{quant}" if quant else "")


def parse(name: str) -> HubName:
    """OptionError unless it is hf:org/repo, hf:org/repo@revision, with /file.gguf, /folder or :QUANT behind it, or an address of the hub."""
    name = from_address(name)
    match = _NAME.fullmatch(name)
    revision = ((match and match["revision"]) or "main").replace("%2F", "/").replace("%2f", "/")
    if match is None or any(part in ("", ".", "..") for text in (match["repo"], revision, match["path"] or "x") for part in text.split("/")):
        raise OptionError(f"{name!r} names no model of the hub, expected hf:org/repo, hf:org/repo/file.gguf or hf:org/repo:Q4_K_M, with @revision after repo")
    return HubName(match["repo"], revision, match["path"] or "", match["quant"] or "")


def model_file(name: str, progress: Progress | None = None) -> Path:
    """The GGUF file that `name` means, in the hub's cache, with all shards if it is split -> its (first shard's) path.
    progress: called as progress(what, bytes done, bytes in all). OptionError: several could be meant; FileError, FormatError (a wrong hash),
    UnsupportedError (no huggingface_hub)."""
    listing = list_files(parse(name))
    return _cache(listing, choose_gguf(listing), progress)[0]


def checkpoint(name: str, progress: Progress | None = None) -> tuple[Path, Listing]:
    """What a conversion of `name` needs, in the hub's cache -> (a folder, or a GGUF file; the listing). Errors as of model_file."""
    listing = list_files(parse(name))
    wanted = choose_checkpoint(listing, lambda file: _cache(listing, [file], None)[0])
    paths = _cache(listing, wanted, progress)
    first = PurePosixPath(wanted[0].path)
    return (paths[0] if first.suffix == ".gguf" or listing.name.path == wanted[0].path else paths[0].parents[0]), listing


def find_gguf(name: str) -> tuple[Listing, list[RemoteFile]]:
    """What the hub holds under a name: (the repository's listing, the GGUF file that is meant, or its shards). Errors as of model_file."""
    listing = list_files(parse(name))
    return listing, choose_gguf(listing)


def download(name: str, folder: str | os.PathLike[str], progress: Progress | None = None, found: tuple[Listing, list[RemoteFile]] | None = None) -> list[Path]:
    """Fetch the GGUF file that `name` means, with all its shards, into `folder` (which exists) -> paths, the first shard first. A file that is there with the
    right hash stays; another of that name is a FileError. Interrupted, it goes on when called again. found: of `find_gguf`. Errors as of model_file."""
    listing, files = found or find_gguf(name)
    if listing.cached:
        raise FileError(f"{listing.name}: the hub can't be asked ({offline_reason()}), and what the cache holds can't be checked")
    paths = []
    total = Total(files, progress)
    for file in files:
        target = Path(folder) / PurePosixPath(file.path).name
        if target.exists():
            if target.stat().st_size != file.size or digest_of(target, file, total) != file.digest:
                raise FileError(f"{target}: exists, and is not the file of {listing.name}: move it away first")
            total.add(file.size)
        else:
            fetch(listing, file, target, target.with_name(f".{target.name}.{file.digest[:12] or 'new'}.incomplete"), total)
        paths.append(target)
    return paths


# -- which files ------------------------------------------------------------------------------------------------------------------------------


def choose_gguf(listing: Listing) -> list[RemoteFile]:
    """The one GGUF file that the name means, or its shards in order. OptionError lists the choices if there are several, FileError if there is none."""
    name = listing.name
    ggufs = [f for f in listing.files if f.path.lower().endswith(".gguf")]
    exact = [f for f in ggufs if f.path == name.path]
    firsts = exact or [f for f in ggufs if not (s := SPLIT.fullmatch(f.path)) or int(s[2]) == 1]
    quant = name.quant or (name.path if not name.path.lower().endswith(".gguf") else "")
    if not exact and quant:
        pattern = re.compile(rf"(^|[^a-z0-9]){re.escape(quant.lower())}([^a-z0-9_]|$)")
        firsts = [f for f in firsts if pattern.search(f.path.lower()) or f.path.startswith(name.path + "/") and name.path]
    elif not exact and name.path:
        firsts = []
    if len(firsts) > 1:
        firsts = [f for f in firsts if not re.search(r"(^|[/._-])(mmproj|imatrix)", f.path.lower())] or firsts
    if len(firsts) > 1:
        raise OptionError(f"{name}: {len(firsts)} GGUF files could be meant, give one: {_shown(f.path for f in firsts)}")
    if not firsts:
        there = _shown(f.path for f in ggufs if not (s := SPLIT.fullmatch(f.path)) or int(s[2]) == 1)
        raise FileError(f"{name}: no such GGUF file in the repository{' (as far as it is in the cache)' if listing.cached else ''}; "
                        + (f"it has {there}" if there else "it has none: is it a checkpoint to convert (llamina convert)?"))
    if not (split := SPLIT.fullmatch(firsts[0].path)):
        return firsts
    by_path = {f.path: f for f in ggufs}
    names = [f"{split[1]}-{i:05d}-of-{split[3]}.gguf" for i in range(1, int(split[3]) + 1)]
    if missing := [n for n in names if n not in by_path]:
        raise FileError(f"{name}: shard {missing[0]} is missing in the repository")
    return [by_path[n] for n in names]


def choose_checkpoint(listing: Listing, get: Callable[[RemoteFile], Path]) -> list[RemoteFile]:
    """The files that a conversion reads, weights first; of a repository without other weights, its GGUF file. get: fetches one (an index of shards)."""
    name = listing.name
    if name.quant or name.path.lower().endswith(".gguf"):
        return choose_gguf(listing)
    by_path = {f.path: f for f in listing.files}
    folder = name.path if name.path not in by_path else str(PurePosixPath(name.path).parent)
    prefix = f"{folder}/" if folder not in ("", ".") else ""
    here = {f.path.removeprefix(prefix): f for f in listing.files if f.path.startswith(prefix)}
    beside = [here[n] for n in ("config.json", "params.json", *_TOKENIZER) if n in here]
    if name.path in by_path:
        return [by_path[name.path], *beside]
    if "config.json" in here:
        for index, whole in _INDEXED:
            if index in here:
                shards = _indexed(listing, get(here[index]))
                if missing := [s for s in shards if s not in here]:
                    raise FileError(f"{name}: shard {missing[0]} of {index} is missing in the repository")
                return [here[index], *(here[s] for s in shards), *beside]
            if whole in here:
                return [here[whole], *beside]
    meta = sorted(n for n in here if re.fullmatch(r"consolidated\.\d\d\.pth", n))
    if meta and "params.json" in here:
        return [*(here[n] for n in meta), *beside]
    if any(f.path.lower().endswith(".gguf") for f in listing.files):
        return choose_gguf(listing)
    folders = sorted({str(PurePosixPath(f.path).parent) for f in listing.files if PurePosixPath(f.path).name in ("config.json", "params.json")} - {"."})
    raise FileError(f"{name}: holds no checkpoint that llamina knows (config.json with safetensors or .bin, params.json with .pth, or GGUF)"
                    + (f"; try one of its folders: {_shown(f'{replace(name, path=p)}' for p in folders)}" if folders else ""))


def _indexed(listing: Listing, index: Path) -> list[str]:
    try:
        return sorted({str(shard) for shard in json.loads(read_file(index, 1 << 28, "an index of shards"))["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise FormatError(f"{listing.name}: {index.name} is not an index of shards (no JSON object with 'weight_map')") from None


def _shown(names: Iterable[str], most: int = 12) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def cached_file(listing: Listing, files: Sequence[RemoteFile]) -> Path | None:
    """The (first) file's place in the hub's cache, if all are there."""
    paths = [repo_folder(listing.name) / "snapshots" / listing.commit / file.path for file in files]
    return paths[0] if all(path.is_file() for path in paths) else None


# -- the hub's cache --------------------------------------------------------------------------------------------------------------


def _cache(listing: Listing, files: Sequence[RemoteFile], progress: Progress | None) -> list[Path]:
    """Their paths in the hub's cache, after fetching what it lacks."""
    folder = repo_folder(listing.name)
    paths = [folder / "snapshots" / listing.commit / f.path for f in files]
    missing = [(f, p) for f, p in zip(files, paths) if not p.is_file()]
    if missing and listing.cached:
        raise FileError(f"{listing.name}: {missing[0][0].path} is not in the cache, and {offline_reason()}")
    total = Total([f for f, _ in missing], progress)
    with cannot_write(folder):
        for file, pointer in missing:
            blob = folder / "blobs" / (file.digest or hashlib.sha256(f"{listing.commit}/{file.path}".encode()).hexdigest())
            for parent in blob.parent, pointer.parent:
                parent.mkdir(parents=True, exist_ok=True)
            if not blob.is_file():
                fetch(listing, file, blob, blob.with_name(blob.name + ".incomplete"), total)
            else:
                total.add(file.size)
            _link(blob, pointer)
        if not listing.cached and listing.commit != listing.name.revision:  # last: what it points to is whole
            ref = folder / "refs" / listing.name.revision
            if not ref.is_file() or read_file(ref, 1 << 10) != listing.commit.encode():
                ref.parent.mkdir(parents=True, exist_ok=True)
                write_file(ref, listing.commit)
    return paths


def _link(blob: Path, pointer: Path) -> None:
    beside = pointer.with_name(f".llamina-{secrets.token_hex(12)}.part")
    try:
        os.symlink(os.path.relpath(blob, pointer.parent), beside)
    except OSError:  # a system without links
        os.replace(blob, pointer)
    else:
        os.replace(beside, pointer)  # over a broken link, or the same one of another process
