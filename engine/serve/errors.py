"""What a client gets when something is wrong: one exception, shown in the form that the endpoint's clients know."""
from __future__ import annotations

import re
from typing import Any

from ..errors import ClosedError, ContextFullError, LlaminaError, OptionError, OutOfMemoryError, TokenizerError, UnsupportedError

TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error", 405: "invalid_request_error",
         408: "timeout_error", 413: "request_too_large", 415: "invalid_request_error", 421: "invalid_request_error",
         429: "rate_limit_error", 431: "invalid_request_error",
         500: "server_error", 501: "not_supported_error", 503: "unavailable_error"}


_FOLDERS = re.compile(r"(?:(?<=^)|(?<=[\s'\"(]))(?:[A-Za-z]:)?[/\\][^:'\"]*[/\\](?=[^/\\:'\"]*\.gguf)")


class ApiError(Exception):
    """status: of HTTP. param: the field at fault; code: a word for programs; more: further members of the error object; headers: of the answer."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, more: dict[str, Any] | None = None,
                 headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.more, self.headers = status, message, param, code, more or {}, headers or {}

    def openai(self) -> dict[str, Any]:
        """OpenAI's form. llama-server's `code` is the status and has its own type for a full context; both are kept where they don't clash."""
        return {"error": {"message": self.message, "type": self.more.get("type", TYPES.get(self.status, "server_error")), "param": self.param,
                          "code": self.code if self.code is not None else self.status, **{k: v for k, v in self.more.items() if k != "type"}}}

    def anthropic(self) -> dict[str, Any]:
        kind = {500: "api_error", 501: "invalid_request_error", 503: "overloaded_error", 413: "request_too_large"}.get(
            self.status, TYPES.get(self.status, "api_error"))
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    def ollama(self) -> dict[str, Any]:
        return {"error": self.message}


def too_long(error: ContextFullError) -> ApiError:
    """With llama-server's words and numbers, which its clients look for."""
    if error.tokens is None:
        return ApiError(400, str(error), code="context_length_exceeded", more={"type": "exceed_context_size_error"})
    more = " with an answer" if error.tokens == error.context else ""
    return ApiError(400, f"the request has {error.tokens} tokens, which{more} exceeds the available context size of {error.context}: shorten it, or serve with "
                         "a larger --context (nothing was cut off)", code="context_length_exceeded",
                    more={"type": "exceed_context_size_error", "n_prompt_tokens": error.tokens, "n_ctx": error.context})


def of(error: BaseException) -> ApiError:
    """What one of llamina's errors is to a client, which learns a model file's name, not where it lies. Whatever else comes up is our fault: 500, without
    details of the program."""
    if isinstance(error, ApiError):
        return error
    found = _of(error)
    found.message = _FOLDERS.sub("", found.message)
    return found


def _of(error: BaseException) -> ApiError:
    if isinstance(error, ContextFullError):
        return too_long(error)
    if isinstance(error, UnsupportedError):
        return ApiError(400, str(error), code="unsupported")
    if isinstance(error, (OptionError, TokenizerError)):
        place = re.match(r"(?:messages|tools|input)\[\d+\][\w.\[\]]*", str(error))
        return ApiError(400, str(error), place[0].rstrip(".") if place else None)
    if isinstance(error, OutOfMemoryError):
        return ApiError(503, str(error), code="out_of_memory", headers={"Retry-After": "5"})
    if isinstance(error, ClosedError):
        return ApiError(503, "the server is stopping: try another one", code="stopping")
    if isinstance(error, LlaminaError):
        return ApiError(500, str(error))
    return ApiError(500, f"a fault of llamina ({type(error).__name__}); the server's log has more")


def shape_of(path: str, error: ApiError) -> dict[str, object]:
    """An error in the form that a path's clients know."""
    if path.startswith("/v1/messages"):
        return error.anthropic()
    return error.ollama() if path.startswith("/api/") else error.openai()
