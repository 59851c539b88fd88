"""A small Hugging Face hub on 127.0.0.1 for tests: model info, and files with ETags, ranges and redirects, with faults to order."""
from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
LARGE = 1000  # bytes from which a file is "LFS": its hash is a SHA-256


class Hub:
    """`repos`: {"org/name": {path: bytes}}. Faults: `deny` (status, X-Error-Code) for everything; `stop_after`: bytes of a body after which the
    connection breaks, once; `corrupt`: paths whose bodies have a bit turned; `ignore_range`; `stall`: (bytes of a body, what is
    waited for then); `redirect`: bodies come from another host, as large files' do.
    `requests`: (method, path, Range) as they came; `tokens`: the tokens sent."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.commit = COMMIT
        self.deny: tuple[int, str] | None = None
        self.stop_after: int | None = None
        self.corrupt: set[str] = set()
        self.ignore_range = False
        self.redirect = False
        self.stall: tuple[int, threading.Event] | None = None
        self.requests: list[tuple[str, str, str]] = []
        self.tokens: set[str] = set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def bodies(self) -> list[str]:
        """The ranges of the files that were asked for, "" for whole ones."""
        return [r for method, path, r in self.requests if method == "GET" and "/resolve/" in path]


def digest(content: bytes) -> str:
    if len(content) >= LARGE:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        if token := self.headers.get("Authorization"):
            self.hub.tokens.add(("cdn " if path.startswith("/cdn/") else "") + token)
        if self.hub.deny:
            return self.refuse(*self.hub.deny)
        if info := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self.info(info[1], info[2] or "main")
        if self.hub.redirect and "/resolve/" in path and not path.startswith("/cdn/"):
            return self.reply(302, b"", {"Location": self.hub.url.replace("127.0.0.1", "localhost") + "/cdn" + self.path})
        if file := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path.removeprefix("/cdn")):
            return self.file(file[1], file[3])
        self.refuse(404, "")

    def refuse(self, status: int, code: str) -> None:
        self.reply(status, b"", {"X-Error-Code": code, "X-Error-Message": "as the test wants it"} if code else {})

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), "X-Repo-Commit": self.hub.commit, **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        stop, self.hub.stop_after = self.hub.stop_after, None
        if stop is not None and stop < len(body):
            self.wfile.write(body[:stop])
            self.wfile.flush()
            self.close_connection = True
            return
        if stop is not None:
            self.hub.stop_after = stop
        if self.hub.stall and len(body) > self.hub.stall[0]:
            self.wfile.write(body[:self.hub.stall[0]])
            self.hub.stall[1].wait(60)
            body = body[self.hub.stall[0]:]
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def info(self, repo: str, revision: str) -> None:
        if repo not in self.hub.repos:
            return self.refuse(404, "RepoNotFound")
        if revision not in ("main", "v1", "refs/pr/1", self.hub.commit):
            return self.refuse(404, "RevisionNotFound")
        siblings = []
        for path, content in self.hub.repos[repo].items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": digest(content) if len(content) < LARGE else "0" * 40}
            if len(content) >= LARGE:
                entry["lfs"] = {"sha256": digest(content), "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        body = json.dumps({"_id": "1", "id": repo, "modelId": repo, "sha": self.hub.commit, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0,
                           "private": False, "author": repo.split("/")[0]}).encode()
        self.reply(200, body, {"Content-Type": "application/json"})

    def file(self, repo: str, path: str) -> None:
        content = self.hub.repos.get(repo, {}).get(path)
        if content is None:
            return self.refuse(404, "EntryNotFound")
        etag = {"ETag": f'"{digest(content)}"', "X-Linked-Etag": f'"{digest(content)}"', "X-Linked-Size": str(len(content))}
        if path in self.hub.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and not self.hub.ignore_range:
            first = int(wanted[1])
            if first >= len(content):
                return self.reply(416, b"", {})
            last = min(int(wanted[2] or len(content)), len(content) - 1)
            return self.reply(206, content[first:last + 1], {**etag, "Content-Range": f"bytes {first}-{last}/{len(content)}"})
        self.reply(200, content, etag)
