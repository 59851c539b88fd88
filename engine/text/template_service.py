"""Where a chat template runs: our own here, those of files in a child process with limits.

    here or apart -> .compile(source), .render(source, variables) -> text; a Fault says what went wrong

The sandbox (template_sandbox.py) counts steps and characters, which stops loops and most ways to make large values; what Python's own string methods,
comparisons and slices do inside one call it can't count. So a template from a file runs in a child process (child.py) that may use SECONDS of CPU time and
MEMORY bytes. Our own (Llama 2's, for files without one) runs here; so do all where no child process can be started, with the sandbox's counts alone.
"""
from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any, Protocol

from ..child import Child, Fault, NoChild

SECONDS = 2.0
MEMORY = 256 << 20
KEPT = 16
"""Compiled templates that are kept."""


class Runner(Protocol):
    def compile(self, source: str) -> None:
        """Fault: of kind "unsupported", "syntax", "compile", or of a child's end."""

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """Fault: of kind "long" (the variables), "refusal", "limit", "fails", or of a child's end."""


class Here:
    """Runs templates in this process, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._templates: dict[str, Any] = {}

    def compile(self, source: str) -> None:
        with self._lock:
            self._template(source)

    def _template(self, source: str) -> Any:
        from .template_sandbox import TemplateEnvironment, jinja2
        if source in self._templates:
            return self._templates[source]
        try:
            template = TemplateEnvironment().template(source)
        except jinja2.TemplateAssertionError as error:  # no such filter or test
            raise Fault("unsupported", _line(error)) from None
        except jinja2.TemplateSyntaxError as error:
            raise Fault("syntax", f"in line {error.lineno}: {_line(error)}") from None
        except MemoryError:
            raise
        except Exception as error:
            raise Fault("compile", _line(error)) from None
        while len(self._templates) >= KEPT:
            del self._templates[next(iter(self._templates))]
        self._templates[source] = template
        return template

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        from .template_sandbox import TemplateLimitError, TemplateRefusalError
        with self._lock:
            template = self._template(source)
            template.environment.reset()
            try:
                template.environment.text_size(variables)
            except TemplateLimitError:
                raise Fault("long", "") from None
            try:
                return str(template.render(variables))
            except TemplateRefusalError as error:
                raise Fault("refusal", _line(error)) from None
            except TemplateLimitError as error:
                raise Fault("limit", _line(error)) from None
            except MemoryError:
                raise
            except Exception as error:
                raise Fault("fails", _line(error)) from None


class Apart:
    """Runs templates in the child process; here if there can be none."""

    def compile(self, source: str) -> None:
        self._call(source, None)

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        return self._call(source, variables)

    def _call(self, source: str, variables: Mapping[str, Any] | None) -> str:
        try:
            return child.call([source, variables])
        except NoChild:
            if variables is not None:
                return here.render(source, variables)
            here.compile(source)
            return ""


def warm() -> None:
    """Start the child process, to have it ready when a template comes."""
    child.warm()


child = Child("engine.text.template_service", SECONDS)
here, apart = Here(), Apart()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=here.__init__)  # type: ignore[misc] # a lock may be held by a thread that is not in the fork


def serve(request: Any) -> str:
    """In the child process: one template compiled, or rendered with variables."""
    source, variables = request
    if variables is not None:
        return here.render(source, variables)
    here.compile(source)
    return ""


def ready() -> None:
    """In the child process, before its limits are set."""
    from . import template_sandbox  # noqa: F401


def _line(error: Exception) -> str:
    return " ".join(f"{str(error) or type(error).__name__}".split())[:300]
