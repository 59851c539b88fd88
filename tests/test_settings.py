"""Where options come from: flag before environment before settings file before the model's own before what is built in."""
from __future__ import annotations

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from gguf_builder import Builder
from llamina.engine.cli import llamina as group
from llamina.engine.cli import main
from llamina.engine.errors import FileError, FormatError, LlaminaError, OptionError
from llamina.engine.home.settings import COMMANDS, MODEL_KEYS, Settings, model_defaults, names, settings_path
from llamina.engine.sampling.options import SamplingOptions


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LLAMINA_CONFIG", str(tmp_path / "c.toml"))

    def write(text: str | bytes) -> Path:
        (tmp_path / "c.toml").write_bytes(text.encode() if isinstance(text, str) else text)
        return tmp_path / "c.toml"
    write("")
    return write


def test_every_option_of_the_commands_that_can_be_set():
    """The names are those of the parameters; what a command has besides is about one run: prompts, output."""
    sampling = {field.name for field in fields(SamplingOptions)}
    assert sampling < set(names())
    found = {p.name for name in COMMANDS for p in (group.get_command(click.Context(group), name) or click.Command("none")).params}
    assert set(names()) <= found | {"parallel"}
    one_run = {"prompt", "file", "special", "no_bos", "echo", "as_json", "logprobs", "json_schema", "regex", "grammar", "choices", "debug", "show_settings"}
    assert {name for name in found - set(names()) if name} >= one_run - {"parallel"}


def test_precedence(config, monkeypatch, capsys):
    path = config('temperature = 0.1\ntop_k = 1\nmin_p = 0.2\nstop = ["a", "b"]\n[chat]\ntop_k = 2\nsystem = "Be brief."\n')
    monkeypatch.setenv("LLAMINA_TEMPERATURE", "0.3")
    monkeypatch.setenv("LLAMINA_TOP_P", "")  # as if it was not there
    settings = Settings()
    assert settings.get("generate", "temperature") == settings.get("chat", "temperature") == (0.3, "environment LLAMINA_TEMPERATURE")
    assert settings.get("generate", "top_k") == (1, f"{path} top_k") and settings.get("chat", "top_k") == (2, f"{path} [chat] top_k")
    assert settings.get("generate", "system") is settings.get("generate", "top_p") is None
    monkeypatch.setattr("llamina.engine.cli.generate.command.callback", lambda **given: print(json.dumps(given, default=str)))
    assert main(["generate", "-p", "x", "--temperature", "0.9"]) == 0
    given = json.loads(capsys.readouterr().out)
    assert (given["temperature"], given["top_k"], given["min_p"], given["top_p"], given["stop"]) == (0.9, 1, 0.2, 0.95, ["a", "b"])
    assert main(["generate", "-p", "x"]) == 0
    assert json.loads(capsys.readouterr().out)["temperature"] == 0.3


def test_the_environments_values(config, monkeypatch):
    for name, text, value in [("STOP", "a b", ["a b"]), ("STOP", '["a", "b"]', ["a", "b"]), ("QUIET", "yes", True), ("QUIET", "0", False), ("SEED", "7", 7),
                              ("MODEL", "7", "7"), ("SYSTEM", "[x]", "[x]"), ("LOGIT_BIAS", "29=-5", ["29=-5"]),
                              ("ORDER", "top_k;temperature", "top_k;temperature")]:
        settings = Settings(environment={f"LLAMINA_{name}": text})
        found = settings.get("chat", name.lower())
        assert found is not None and found.value == value and type(found.value) is type(value), name
    assert Settings(environment={"LLAMINA_NONSENSE": "1", "LLAMINA_HOME": "/x"}).get("chat", "top_k") is None  # others' variables


BAD = [
    ('temperature = "hot"', OptionError, "temperature: must be a number, found 'hot'"), ("temperature = -1", OptionError, "temperature must be 0 or more"),
    ("temperature = nan", OptionError, "finite"), ("top_k = 1.5", OptionError, "must be a whole number"),
    ("top_k = true", OptionError, "must be a whole number"),
    ("tempreature = 1", OptionError, "tempreature: there is no such option: did you mean temperature?"), ("top-k = 1", OptionError, "did you mean top_k?"),
    ("[chta]\n", OptionError, "[chta] is no command with settings: did you mean chat?"), ("[chat]\ntop_k = -1", OptionError, "[chat] top_k: top_k must be 0"),
    ("x = ", FormatError, "is not TOML"), (b"\xff", FormatError, "is not UTF-8"), ("a = " + "[" * 5000, FormatError, "is not TOML"),
    ("#" * 2_000_000, FormatError, "larger"),
    ('stop = [""]', OptionError, "stop must be non-empty"), ("stop = [1]", OptionError, "list of texts"), ('logit_bias = ["a"]', OptionError, "TOKEN=NUMBER"),
    ("threads = 0", OptionError, "threads must be a whole number above 0"), ("quiet = 1", OptionError, "true or false"),
    ("max_tokens = -5", OptionError, "max_tokens must"),
    ('model = ""', OptionError, "must be a text"), ('order = "x"', OptionError, "order must be"), ("seed = -1", OptionError, "seed must be"),
]


@pytest.mark.parametrize("text, kind, message", BAD, ids=lambda v: str(v)[:30])
def test_errors_name_file_and_key(config, capsys, text, kind, message):
    path = config(text)
    with pytest.raises(kind) as caught:
        Settings()
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    assert main(["inspect", "--settings"]) == caught.value.exit_code
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and str(path) in err
    assert main(["generate", "--help"]) == 0  # help works


def test_places(tmp_path, monkeypatch):
    monkeypatch.delenv("LLAMINA_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert settings_path() == tmp_path / "llamina" / "config.toml"
    assert Settings(environment={}).get("chat", "top_k") is None  # there need not be one
    monkeypatch.setenv("LLAMINA_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(FileError, match="LLAMINA_CONFIG names it"):
        Settings()
    monkeypatch.setenv("LLAMINA_CONFIG", str(tmp_path))
    with pytest.raises(FileError, match="cannot be read"):
        Settings()
    with pytest.raises(OptionError, match="^environment LLAMINA_TOP_K: must be a whole number, found 'many'"):
        Settings(tmp_path / "none", {"LLAMINA_TOP_K": "many"})


def test_the_models_own():
    metadata = {"general.sampling.temp": 0.6000000238418579, "general.sampling.top_k": 20, "general.sampling.penalty_last_n": -1,
                "general.sampling.top_p": math.nan, "general.sampling.min_p": "x", "general.sampling.mirostat": 1, "general.sampling.xtc_threshold": 0}
    found = model_defaults(metadata, "m.gguf")
    assert found == {"temperature": (0.6, "m.gguf general.sampling.temp"), "top_k": (20, "m.gguf general.sampling.top_k"),
                     "repeat_last_n": (-1, "m.gguf general.sampling.penalty_last_n"), "xtc_threshold": (0.0, "m.gguf general.sampling.xtc_threshold")}
    import gguf.constants
    known = {value for key, value in vars(gguf.constants.Keys.General).items() if key.startswith("SAMPLING_")}
    assert {f"general.sampling.{key}" for key in MODEL_KEYS} == known - {"general.sampling.sequence"}


def test_inspect_settings(config, capsys, tmp_path, monkeypatch):
    config("top_k = 5\n[chat]\ntop_k = 6\n")
    monkeypatch.setenv("LLAMINA_SEED", "7")
    model = Builder().set("general.architecture", "llama").set("general.sampling.temp", 0.5).set("general.sampling.top_k", 3).write(tmp_path / "m.gguf")
    assert main(["inspect", str(model), "--settings", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = [(row["value"], row["origin"].removeprefix(f"{tmp_path}/"), row["commands"]) for row in report["settings"] if row["option"] in ("top_k",
            "temperature", "seed", "top_p")]
    users = "generate, batch" if group.get_command(click.Context(group), "batch") else "generate"
    assert rows == [(0.5, "m.gguf general.sampling.temp", "all"), (5, "c.toml top_k", users), (6, "c.toml [chat] top_k", "chat"), (0.95, "built-in", "all"),
                    (7, "environment LLAMINA_SEED", "all")]
    assert report["settings_file"] == str(tmp_path / "c.toml")
    assert main(["inspect", str(model), "--settings"]) == 0
    text = capsys.readouterr().out
    assert "general.sampling.temp" in text and "models folder" in text


def test_the_command_line_uses_the_models_own(config, capsys, monkeypatch):
    from fake_model import fake_model
    model = fake_model("", after=2)
    model._gguf.metadata.update({"general.sampling.temp": 0.25, "general.sampling.top_k": 9})
    asked: list[dict[str, Any]] = []
    generate = model.generate

    def asking(ids: list[int], **options: Any) -> Any:
        asked.append(options)
        return generate(ids, **options)
    monkeypatch.setattr(model, "generate", asking)
    monkeypatch.setattr("llamina.engine.cli.generate.open_model", lambda *args: model)
    assert model.sampling_defaults == {"temperature": 0.25, "top_k": 9}
    assert main(["generate", "-p", "x", "--top-k", "4"]) == 0
    assert (asked[0]["temperature"], asked[0]["top_k"], asked[0]["top_p"]) == (0.25, 4, 0.95)


def test_settings_raise_only_our_errors(config):
    for text in "a.b = 1", "generate = 3", "[generate.x]\ny = 1", "[[chat]]\nx = 1", 'chat = "x"', "stop = {a = 1}", "top_k = 2024-01-01":
        config(text)
        with pytest.raises(LlaminaError):
            Settings()
