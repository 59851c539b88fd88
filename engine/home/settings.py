"""Where the options of a run come from: flag, environment, settings file, the model's own, built-in; the first that says something wins.

    LLAMINA_TOP_K=20, [chat] top_k = 20, top_k = 20 -> Settings.get(command, option) -> Setting(value, where it was said)

The file is TOML: options by their names with _ for -, for all commands at the top, for one command in a table of its name. Values are checked when
they are read, so that errors name the file and the key. `model_defaults` are those that a GGUF file recommends (general.sampling.*).
"""
from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import FileError, FormatError, OptionError, quoted, why
from ..files import read_stream, reason, shown

COMMANDS = ("generate", "chat", "batch", "inspect")
"""Those that go by settings. Measurements (perplexity, bench) don't: they should say all that went into them."""
LISTS = ("stop", "banned", "logit_bias", "dry_breakers")
"""Options that may be given several times on the command line: lists in the file, a JSON list or one text in the environment."""
FLAGS = ("ignore_eos", "no_speculation", "context_shift", "quiet", "verbose", "plain")
TEXTS = ("model", "draft", "system", "memory", "kv")
COUNTS = ("threads", "context", "parallel")
MODEL_KEYS = {
    "temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p", "xtc_probability": "xtc_probability", "xtc_threshold": "xtc_threshold",
    "penalty_last_n": "repeat_last_n", "penalty_repeat": "repeat_penalty", "mirostat": "mirostat", "mirostat_tau": "mirostat_tau",
    "mirostat_eta": "mirostat_eta",
}
"""general.sampling.* of a GGUF file -> option."""
MAX_FILE = 1 << 20


class Setting(NamedTuple):
    value: Any
    origin: str
    """For people: "environment LLAMINA_TOP_K", "/home/…/config.toml [chat] top_k"."""


def settings_path() -> Path:
    """The settings file, whether it exists or not: $LLAMINA_CONFIG, else llamina/config.toml in the user's configuration folder."""
    name = os.environ.get("LLAMINA_CONFIG")
    if name:
        return Path(name).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME") or (os.environ.get("APPDATA") if os.name == "nt" else None) or Path.home() / ".config"
    return Path(base) / "llamina" / "config.toml"


def names() -> list[str]:
    """Options that may be set."""
    from ..sampling.options import SamplingOptions
    return [*(field.name for field in fields(SamplingOptions)), "stop", "max_tokens", *COUNTS, *FLAGS, *TEXTS]


class Settings:
    """The environment's and the file's settings. FileError, FormatError (no TOML), OptionError (unknown key, impossible value)."""

    def __init__(self, path: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self.path = settings_path() if path is None else path
        self._tables: dict[str, dict[str, Setting]] = {"": {}}  # command, "" for all -> option -> setting
        given = {key: text for key, text in environment.items() if key.startswith("LLAMINA_") and text}  # empty: as if it was not there
        content = _read(self.path)
        known = names() if given or content else []  # or nothing need be imported
        for name in known:
            key = f"LLAMINA_{name.upper()}"
            if key in given:
                self._tables.setdefault("environment", {})[name] = Setting(_from_text(name, given[key]), f"environment {key}")
        for key, value in content.items():
            if isinstance(value, dict):
                if key not in COMMANDS:
                    raise OptionError(f"{self.path}: [{key}] is no command with settings{_like(key, COMMANDS)}")
                self._tables[key] = {name: self._checked(f"[{key}] {name}", name, inner, known) for name, inner in value.items()}
            else:
                self._tables[""][key] = self._checked(key, key, value, known)

    def _checked(self, where: str, name: str, value: Any, known: list[str]) -> Setting:
        if name not in known:
            raise OptionError(f"{self.path}: {where}: there is no such option{_like(name, known)}")
        try:
            return Setting(check_value(name, value), f"{self.path} {where}")
        except OptionError as error:
            raise OptionError(f"{self.path}: {where}: {error}") from None

    def get(self, command: str, name: str) -> Setting | None:
        """What is set for an option of a command."""
        return next((found for table in ("environment", command, "") if (found := self._tables.get(table, {}).get(name))), None)


def _read(path: Path) -> dict[str, Any]:
    """The file's content; {} if there is none, unless $LLAMINA_CONFIG names it."""
    try:
        raw = read_stream(path, MAX_FILE)
    except FileError:
        raise FormatError(f"{shown(path)}: is larger than any settings file") from None
    except (FileNotFoundError, NotADirectoryError):  # the latter: a user without a home
        if os.environ.get("LLAMINA_CONFIG") and path == settings_path():
            raise FileError(f"{path}: no such file (LLAMINA_CONFIG names it)") from None
        return {}
    except (OSError, ValueError) as error:
        raise FileError(f"{shown(path)}: cannot be read ({reason(error)})") from None
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise FormatError(f"{path}: is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:  # ValueError: also integers of thousands of digits
        raise FormatError(f"{path}: is not TOML: {why(error)}") from None


def _like(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), known, 1)
    return f": did you mean {close[0]}?" if close else ""


def _from_text(name: str, text: str) -> Any:
    """A value as the environment has it, checked."""
    value: Any = text
    if name not in TEXTS and name != "order" and (name not in LISTS or text.startswith("[")):
        try:
            value = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.get(text.lower()) if name in FLAGS else None
            value = json.loads(text) if value is None else value
            value = bool(value) if name in FLAGS and value in (0, 1) else value
        except (ValueError, RecursionError):
            value = text
    try:
        return check_value(name, [value] if name in LISTS and isinstance(value, str) else value)
    except OptionError as error:
        raise OptionError(f"environment LLAMINA_{name.upper()}: {error}") from None


@lru_cache(1)
def _numbers() -> dict[str, type]:
    """Sampling options that are numbers, with their types."""
    from ..sampling.options import SamplingOptions
    defaults = SamplingOptions()
    return {field.name: type(value) for field in fields(SamplingOptions) if type(value := getattr(defaults, field.name)) in (int, float)} | {"seed": int}


def check_value(name: str, value: Any) -> Any:
    """A setting as the command line's parser wants it. OptionError unless it has the type and range of its option."""
    from ..checks import check_max_tokens, count
    from ..sampling.options import SamplingOptions
    from ..text.stops import check_stop
    if name in FLAGS:
        if not isinstance(value, bool):
            raise OptionError(f"must be true or false, found {quoted(value)}")
    elif name in TEXTS:
        if not isinstance(value, str) or not value:
            raise OptionError(f"must be a text, found {quoted(value)}")
    elif name in LISTS:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise OptionError(f"must be a list of texts, found {quoted(value)}")
        if name == "stop":
            check_stop(value)
        elif name == "logit_bias":
            SamplingOptions(logit_bias=[(token, _number(bias)) for token, _, bias in (item.rpartition("=") for item in value)])
        else:
            SamplingOptions(**{name: value})  # type: ignore[arg-type]
    elif name in COUNTS:
        count(name, value)
    elif name == "max_tokens":
        check_max_tokens(value)
    else:
        kind = _numbers().get(name, str)
        if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
            raise OptionError(f"must be a {'whole number' if kind is int else 'number' if kind is float else 'text'}, found {quoted(value)}")
        SamplingOptions(**{name: value})  # type: ignore[arg-type]
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"must be TOKEN=NUMBER, found {quoted(text)}") from None


def model_defaults(metadata: Mapping[str, Any], path: Any) -> dict[str, Setting]:
    """What a GGUF file recommends for its model, by option; what is no possible value is left out, since files are written by many programs."""
    found = {}
    for key, name in MODEL_KEYS.items():
        value = metadata.get(f"general.sampling.{key}")
        if value is None:
            continue
        kind = _numbers()[name]
        try:
            value = check_value(name, kind(value) if kind is float else value)
        except (OptionError, TypeError, ValueError):
            continue
        found[name] = Setting(round(value, 6) if kind is float else value, f"{path} general.sampling.{key}")
    return found
