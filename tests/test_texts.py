"""What people and files say: byte order marks, line ends, Git LFS pointers, control characters, values that can't be shown; and errors that are one line."""
from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llamina
import pytest
from llamina.convert.sources import open_source
from llamina.engine.answers.batch_job import count_lines
from llamina.engine.cli import main
from llamina.engine.cli.chat import _piped_turns
from llamina.engine.cli.options import as_json_line, read_text
from llamina.engine.errors import MOST, FormatError, LlaminaError, OptionError, quoted, why
from llamina.engine.gguf.file import open_gguf
from llamina.engine.gguf.header import LFS
from llamina.engine.home.settings import Settings
from llamina.engine.model import load
from llamina.engine.panics import panics_are
from llamina.engine.text.tokenizer import load_tokenizer
from small_models import write_small_model

BOM = b"\xef\xbb\xbf"
POINTER = LFS + b"oid sha256:" + b"a" * 64 + b"\nsize 123456\n"


@pytest.fixture(scope="module")
def model() -> Any:
    with llamina.load("demo", threads=1) as model:
        yield model


# ---- byte order marks and line ends


@pytest.mark.parametrize("raw", [b"Once upon\na time\n", BOM + b"Once upon\na time\n", b"Once upon\r\na time\r\n", BOM + b"Once upon\r\na time\r\n"])
def test_prompts_are_what_editors_mean(raw: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "p.txt").write_bytes(raw)
    assert read_text(str(tmp_path / "p.txt")) == "Once upon\na time\n"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw), isatty=lambda: False))
    for arguments in (["-f", str(tmp_path / "p.txt")], ["-f", "-"]):
        assert main(["generate", "-n", "1", "--json", "-q", "--seed", "1", *arguments]) == 0
        assert json.loads(capsys.readouterr().out)["prompt"] == "Once upon\na time"


def test_schemas_and_grammars_with_a_byte_order_mark(tmp_path: Path, capsys: Any) -> None:
    for name, content in ("--json-schema", b'{"type":\r\n"boolean"}'), ("--grammar", b'start: "true"\r\n| "false"'):
        (tmp_path / "g").write_bytes(BOM + content)
        assert main(["generate", "-p", "x", "-q", "--seed", "1", name, str(tmp_path / "g")]) == 0
        assert capsys.readouterr().out in ("true", "false")


def test_a_batch_with_a_byte_order_mark(tmp_path: Path, capsys: Any) -> None:
    line = b'{"id": 1, "prompt": "Once", "max_tokens": 2, "seed": 1}\r\n'
    (tmp_path / "in.jsonl").write_bytes(BOM + line + line)
    assert main(["batch", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "-q"]) == 0
    first, second = (json.loads(text) for text in (tmp_path / "out.jsonl").read_text().splitlines())
    assert first == second and first["text"]
    (tmp_path / "empty.jsonl").write_bytes(BOM + b"\n" + line)
    assert count_lines(tmp_path / "empty.jsonl")[0] == 1


def test_piped_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(BOM + "Hi\r\n\r\nü\n".encode()), newline=None))
    assert list(_piped_turns()) == ["Hi", "ü"]


def test_settings_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(BOM + b"top_k = 3\r\n")
    found = Settings(tmp_path / "c.toml", {}).get("chat", "top_k")
    assert found and found.value == 3


# ---- Git LFS pointers


@pytest.mark.parametrize("name", ["m.gguf", "model.safetensors", "pytorch_model.bin", "stories.bin"])
def test_pointers_in_place_of_models(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(POINTER)
    opens: list[Any] = [open_source] + [open_gguf, load] * (name == "m.gguf")
    for open_it in opens:
        with pytest.raises(FormatError, match=r"is a Git LFS pointer.*\(123456 bytes\).*git lfs pull"):
            open_it(tmp_path / name)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", "tokenizer.json", "model.safetensors", "tokenizer_config.json",
                                  "model.safetensors.index.json"])
def test_pointers_within_a_checkpoint(name: str, tmp_path: Path) -> None:
    from checkpoints import write_hf
    folder = write_hf(tmp_path / "hf")
    for other in ("tokenizer.model", "tokenizer.json"):
        if name.startswith("tokenizer.") and (folder / other).exists():
            (folder / other).unlink()
    if name.endswith("index.json"):  # beside the weights in one file it is not read
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(POINTER)
    with pytest.raises(FormatError, match="is a Git LFS pointer") as caught:
        open_source(folder)
    assert str(folder / name) in str(caught.value)


# ---- special tokens


def test_one_bos_though_the_prompt_writes_it(model: Any) -> None:
    assert model.prompt_ids("<s>Once", special=True) == model.tokenize("<s>Once", special=True) == model.prompt_ids("Once")
    assert model.prompt_ids("<s><s>Once", special=True)[:3] == [1, 1, model.prompt_ids("Once")[1]]
    assert model.prompt_ids("<s>Once", special=True, bos=True)[:2] == [1, 1]
    assert model.prompt_ids("<s>Once", special=True, bos=False) == model.prompt_ids("Once")
    assert model.prompt_ids("<s>Once") != model.prompt_ids("Once")  # text


# ---- control characters of a model's text


CONTROL = "a\x1b[31mb\x9b2Jc\x07"


@pytest.mark.parametrize("terminal", [False, True])
def test_what_drives_a_terminal_does_not_reach_it(terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from llamina.engine.cli import chat_terminal
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    expected = "a[31mb2Jc" if terminal else CONTROL
    chat_terminal.show_plain([CONTROL[:3], CONTROL[3:]])
    assert capsys.readouterr().out == expected + "\n"
    assert main(["generate", "-p", CONTROL, "--echo", "-q", "-n", "0"]) == 0
    assert capsys.readouterr().out == expected + "\n" * terminal
    regex = CONTROL.replace("[", r"\[")
    for more in [], ["--samples", "2"]:
        assert main(["generate", "-p", "x", "-q", "--regex", regex, *more]) == 0
        assert capsys.readouterr().out.count(expected) == (2 if more else 1)
    assert main(["generate", "-p", "x", "-q", "--regex", regex, "--json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["text"] == CONTROL and all(c.isprintable() or c == "\n" for c in out)


def test_json_lines_hold_no_control_characters() -> None:
    text = "".join(map(chr, range(0x300))) + "\u2028\u2029日本🦊"
    line = as_json_line({"x": text})
    assert json.loads(line)["x"] == text and "日本🦊" in line and len(line.splitlines()) == 1
    assert not any(c < " " or "\x7f" <= c <= "\x9f" for c in line)


# ---- errors


def test_every_error_is_one_printable_line_of_bounded_length() -> None:
    kinds = [kind for kind in vars(llamina.errors).values() if isinstance(kind, type) and issubclass(kind, LlaminaError)]
    assert len(kinds) > 8
    for kind in kinds:
        for text in "a\n  b\tc\x1b[31m\r\x00\u2028\x9b\ud800", "x" * 100_000 + ": the remedy", "":
            found = str(kind(text))
            assert found.isprintable() and len(found) <= MOST + 10 and (len(text) < MOST or found.endswith(": the remedy"))


def test_usage_errors_are_bounded_too(capsys: Any) -> None:
    for arguments in ["--top-k", "x\n" * 100_000], ["--no-such-" + "x" * 100_000]:
        assert main(["generate", "-p", "x", *arguments]) == 2
        err = capsys.readouterr().err
        assert len(err) < MOST + 50 and err.count("\n") == 1


def test_any_value_can_be_shown() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    for value in (10**5000, -10**5000, [10**5000], deep, "x" * 10**6, b"y" * 10**6, ["z" * 10**6], float("nan"), "a\n\x1b", object(), {1: {2: "\ud800"}}):
        found = quoted(value)
        assert found.isprintable() and 0 < len(found) < 140
    assert quoted("a'b") == '"a\'b"' and quoted(10**20) == str(10**20)
    assert why(ValueError("a\nb\n" * 1000)).startswith("a b a b") and len(why(ValueError("x" * 10**6))) < 250


def test_values_that_cannot_be_shown_are_errors_of_ours(model: Any) -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    for name in ("temperature", "top_k", "seed", "stop", "banned", "max_tokens", "logprobs", "json_schema", "choices",
                 "regex", "keep"):
        for value in (-10**5000, deep, [10**5000], "\ud800\n" * 1000):
            try:
                model.generate("x", **{"max_tokens": 1, name: value, **({"context_shift": True} if name == "keep" else {})}).text()
            except LlaminaError as error:
                assert str(error).isprintable() and len(str(error)) < 500


@pytest.mark.parametrize("text", ["model" + ".a" * 3000 + " = 1", "top_k = " + "9" * 5000, "[generate]\nmodel" + ".a" * 3000 + " = 1", "seed = 1e400",
                                  "x = [" + "[" * 3000,
                                  "\"a\\nb\" = 1", "stop = [" + "9" * 5000 + "]", "memory = \"" + "x" * 100_000 + "\"",
                                  "model = 1979-05-27", "top_k = 0x" + "f" * 9000])
def test_settings_that_mean_harm(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(text)
    try:
        Settings(tmp_path / "c.toml", {})
    except (FormatError, OptionError) as error:
        assert str(error).isprintable() and str(error).startswith(str(tmp_path)) and len(str(error)) < 500
    else:
        assert text.startswith(("memory", "top_k = 0x"))  # a text, a whole number; what they are good for is found out later


@pytest.mark.parametrize("value", ["9" * 5000, "-" + "9" * 5000, "[" * 3000, "1e999", "\ud800"])
def test_the_environment_too(value: str, tmp_path: Path) -> None:
    for name in ("TOP_K", "SEED", "TEMPERATURE", "STOP", "CONTEXT", "MAX_TOKENS", "QUIET"):
        try:
            Settings(tmp_path / "none.toml", {f"LLAMINA_{name}": value})
        except OptionError as error:
            assert str(error).isprintable() and len(str(error)) < 500
        else:
            assert name == "STOP" or value == "9" * 5000 and name == "MAX_TOKENS"


def test_a_files_values_in_errors(tmp_path: Path) -> None:
    from gguf_builder import Builder
    for value in ("x\n\x1b[31m" * 1000, ["a\nb"] * 50):
        path = Builder().set("general.architecture", value).write(tmp_path / "m.gguf")
        with pytest.raises(LlaminaError) as caught:
            load(path)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_a_panic_of_the_tokenizer_is_an_error() -> None:
    class PanicException(BaseException):
        pass
    with pytest.raises(FormatError, match=r"^here: the library gave up \(x y\)$"), panics_are(FormatError, "here"):
        raise PanicException("x\n y")
    with pytest.raises(KeyboardInterrupt), panics_are(FormatError, "here"):
        raise KeyboardInterrupt
    tokenizer = load_tokenizer(open_gguf(Path(llamina.__file__).parent / "engine" / "data" / "demo.gguf").metadata)

    def panic(text: str) -> list[int]:
        raise PanicException("index out of bounds")
    tokenizer._encode_text = panic  # type: ignore[method-assign]
    with pytest.raises(LlaminaError, match="the text cannot be tokenised: the library gave up"):
        tokenizer.encode("x")


def test_keys_that_overflow_name_what_helps(tmp_path: Path) -> None:
    path = write_small_model(tmp_path / "m.gguf", "BF16", edit=lambda name, values: values * 1e7 if name == "blk.1.attn_k.weight" else values)
    for kv in "f16", "f32":
        with load(path, threads=1, kv=kv) as model:
            if kv == "f16":
                with pytest.raises(llamina.errors.NumericError, match=r"larger than f16 keeps them: load with kv='f32' \(--kv f32\)"):
                    model.logits([1, 5, 9])
            else:
                assert model.logits([1, 5, 9]).shape[0] == 3
