"""Bad files as a user meets them: `llamina.load`, the whole way. Each is refused within a second and 100 MB above an idle process, before any step runs.

test_bad_files.py and test_tokenizer_spm.py say what each message must be; test_formats.py plants NaN into every place of every format's blocks.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf_builder import Builder, llama
from llamina.engine.errors import FileError, FormatError, LlaminaError, TokenizerError
from llamina.engine.gguf.file import open_gguf
from llamina.engine.model import load
from llamina.kernels.team import Team
from runs import resident_megabytes
from small_models import write_small_model
from test_bad_files import CONFIG, HEADER


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has everything imported and compiled, in which no step may run."""
    load("demo").close()

    def run(*_args: object) -> int:
        raise AssertionError("a damaged file reached the forward pass")
    monkeypatch.setattr(Team, "run", run)
    yield


def check_refused(path: Path, error: type[LlaminaError], message: str) -> None:
    before, start = resident_megabytes("VmRSS"), time.process_time()
    with pytest.raises(error, match=message) as caught:
        load(path)
    seconds, megabytes = time.process_time() - start, resident_megabytes("VmHWM") - before
    assert type(caught.value) is error and str(caught.value).startswith(f"{path.parent}/") and "\n" not in str(caught.value)
    assert seconds < 5 and megabytes < 100, (seconds, megabytes)


@pytest.mark.parametrize("cases", [HEADER, CONFIG], ids=["header", "configuration"])
def test_every_damaged_header(cases: dict[str, tuple[Callable[[Builder], object], type[LlaminaError], str]], tmp_path: Path) -> None:
    for name, (damage, error, message) in cases.items():
        b = llama()
        damage(b)
        if name != "token not UTF-8":  # in a key that nothing reads
            check_refused(b.write(tmp_path / "bad.gguf"), error, message)


def byte_token(b: Builder) -> None:
    tokens = next(value for key, _, value in b.pairs if key == "tokenizer.ggml.tokens")[1]
    b.set("tokenizer.ggml.tokens", [*tokens[:7], "<0xZZ>", *tokens[8:]])


VOCABULARY: dict[str, tuple[Callable[[Builder], object], str]] = {
    "scores too few": (lambda b: b.set("tokenizer.ggml.scores", [0.0] * 260), "scores has 260 entries, but tokenizer.ggml.tokens has 261"),
    "types too few": (lambda b: b.set("tokenizer.ggml.token_type", [1] * 3), "token_type has 3 entries, but tokenizer.ggml.tokens has 261"),
    "no byte": (byte_token, "id 7 has the type of a byte but the text '<0xZZ>'"),
    "no tokens": (lambda b: b.drop("tokenizer.ggml.tokens"), "tokens is missing"),
}


@pytest.mark.parametrize("name", VOCABULARY)
def test_damaged_vocabulary(name: str, tmp_path: Path) -> None:
    damage, message = VOCABULARY[name]
    b = llama()
    damage(b)
    check_refused(b.write(tmp_path / "bad.gguf"), TokenizerError, message)


SCALE_AT = {"F32": 0, "F16": 0, "BF16": 0, "Q8_0": 0, "Q4_0": 0, "Q4_1": 2, "Q5_0": 0, "Q5_1": 2, "Q4_K": 2, "Q5_K": 2, "Q6_K": 208}
"""Where in a block a scale or minimum lies."""


@pytest.mark.parametrize("tensor", ["blk.1.ffn_down.weight", "token_embd.weight"])
@pytest.mark.parametrize("format", SCALE_AT)
def test_weights_that_are_not_finite(format: str, tensor: str, tmp_path: Path) -> None:
    """The last block of the last row of a matrix, or of the embeddings, which are not retiled, holds NaN or infinity."""
    path = write_small_model(tmp_path / "m.gguf", format, blocks=True)
    with open_gguf(path) as file:
        t = file.tensors[tensor]
        row = file.data(t.name)[-1].tobytes()
    with pytest.raises(AssertionError, match="reached the forward pass"):
        load(path)  # whole; and the format's kernels are compiled now
    raw = path.read_bytes()
    at = raw.rindex(row) + len(row) - t.format.bytes + SCALE_AT[format]
    for value in np.array([np.nan, np.inf, -np.inf], np.float32):
        word = {"F32": value.tobytes(), "BF16": value.tobytes()[2:]}.get(format, value.astype(np.float16).tobytes())
        path.write_bytes(raw[:at] + word + raw[at + len(word):])
        check_refused(path, FormatError, f"{tensor!r} holds NaN or infinity in row {t.shape[0] - 1}: ")


def test_missing_shard(tmp_path: Path) -> None:
    path = llama().set("split.no", 0).set("split.count", 2).write(tmp_path / "m-00001-of-00002.gguf")
    check_refused(path, FileError, r"m-00002-of-00002\.gguf: shard 2 of 2 is missing")


def test_what_no_damage_does(tmp_path: Path) -> None:
    """The file of the headers above, whole, gets as far as the first step: or else those tests would prove nothing."""
    with pytest.raises(AssertionError, match="reached the forward pass"):
        load(llama().write(tmp_path / "a.gguf"))
