"""The page to talk on: plain HTML and ES modules beside this file, read once and served from memory by name.

Nothing of it comes from elsewhere, and its policy says so to the browser: no script, style, picture or connection but this server's own, no frame around it.
"""
from __future__ import annotations

from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..errors import ApiError

TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
FILES = ("index.html", "style.css", "icon.svg", "main.js", "api.js", "store.js", "markdown.js", "tokens.js", "inside.js", "view.js", "options.js")
POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
PATHS = frozenset(["/", "/favicon.ico", *(f"/page/{name}" for name in FILES)])
"""What a browser may fetch without a key: nothing here is anybody's."""


def routes() -> list[Route]:
    found = {name: resources.files(__package__).joinpath(name).read_bytes() for name in FILES}

    async def asset(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in found:
            raise ApiError(404, f"the page has no file {name[:80]!r}")
        return Response(found[name], headers={"content-type": TYPES[name.rsplit(".", 1)[1]], "content-security-policy": POLICY, "cache-control": "no-cache"})

    async def icon(request: Request) -> Response:
        request.path_params["name"] = "icon.svg"
        return await asset(request)
    return [Route("/", asset, methods=["GET"]), Route("/page/{name}", asset, methods=["GET"]), Route("/favicon.ico", icon, methods=["GET"])]
