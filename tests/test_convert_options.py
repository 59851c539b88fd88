"""What users of other converters look for: metadata set by hand, a dry run, the vocabulary alone, a shorter context; no silent overwriting, no false alarms."""
from __future__ import annotations

import io
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    META,
    TINY,
    hf_weights,
    random_weights,
    renamed,
    sentencepiece_model,
    with_,
    write_hf,
    write_llama2c,
    write_safetensors,
    write_tokenizer_bin,
    write_torch,
)
from llamina.convert.convert import convert
from llamina.convert.importance import read, usable_weights
from llamina.convert.metadata import parse_meta
from llamina.convert.sources import open_source
from llamina.convert.sources.detect import detect
from llamina.convert.sources.vocabulary import read_vocabulary_file
from llamina.engine.cli import main
from llamina.engine.errors import FormatError, LlaminaError, OptionError
from llamina.engine.gguf.file import open_gguf
from small_models import write_small_model
from test_sources_tokenizers import spm_like


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_model(tmp_path_factory.mktemp("source") / "source.gguf", "F32")


def run(capfd: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main(["convert", *map(str, arguments)])
    out, err = capfd.readouterr()
    return code, out, err


def test_options(model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "m.gguf"
    code, told, _ = run(capfd, model, out, "--type", "q8_0", "--dry-run")
    assert code == 0 and "would convert source.gguf" in told and "bits per weight" in told and not out.exists()
    code, _, err = run(capfd, model, out, "--type", "q8_0", "--no-verify", "--context", 64, "--meta", "general.name=Mine", "--meta", "general.author=Me",
                       "--meta", "tokenizer.ggml.add_bos_token=false", "--meta", "mine.number=5", "--meta", "general.description=")
    assert code == 0 and "context 64 as asked for" in err
    with open_gguf(out) as file:
        m = file.metadata
        assert (m["general.name"], m["general.author"], m["tokenizer.ggml.add_bos_token"], m["mine.number"]) == ("Mine", "Me", False, 5)
        assert m["llama.context_length"] == 64 and "general.description" not in m
    size = out.stat().st_size
    code, _, err = run(capfd, model, out, "--type", "f16", "--no-verify")
    assert code == 2 and "exists already" in err and "--overwrite" in err and out.stat().st_size == size
    code, _, err = run(capfd, out, tmp_path / "f.gguf", "--type", "f32", "--no-verify")
    assert code == 0 and "is larger than the source" in err and "quantised already (Q8_0)" in err
    code, _, err = run(capfd, model, out, "--vocab-only", "--overwrite")
    assert code == 0 and "vocabulary only" in err
    with open_gguf(out) as file:
        assert not file.tensors and len(file.get("tokenizer.ggml.tokens", list)) > 100
    for meta in "general.architecture=x", "llamina.version=1", "nothing", "general.name", "a b.c=1":
        with pytest.raises(OptionError, match="--meta"):
            parse_meta([meta])
    with pytest.raises(OptionError, match="a whole number"):
        convert(model, tmp_path / "x.gguf", "q8_0", meta=["llama.context_length=long"])


def test_a_window_and_a_context(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "m", architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=64)
    for context, window in (None, 64), (64, None):  # within one window the model is the same without
        report = convert(folder, tmp_path / "m.gguf", "f16", context=context)
        assert report.verification.passed
        with open_gguf(tmp_path / "m.gguf") as file:
            assert file.metadata["llama.context_length"] == (context or 128) and file.metadata.get("llama.attention.sliding_window") == window


# ---- no false alarms


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_metaspace(tmp_path: Path, scheme: str) -> None:
    """tokenizer.json alone, as transformers 5 saves Llama 2, TinyLlama and Mistral."""
    folder = write_hf(tmp_path / "m", with_(TINY, n_vocab=700), tokenizer=False)
    path = spm_like(folder / "tokenizer.json", metaspace=True, bytes_=True)
    values = json.loads(path.read_text())
    values["pre_tokenizer"]["prepend_scheme"] = scheme
    values["model"]["unk_token"] = None
    path.write_text(json.dumps(values))
    n = len(values["model"]["vocab"])
    shutil.rmtree(folder)
    folder = write_hf(tmp_path / "m", with_(TINY, n_vocab=n), tokenizer=False)
    path.write_text(json.dumps(values))
    report = convert(folder, tmp_path / "m.gguf", "f16")
    assert report.verification.passed and report.verification.reference == "tokenizer.json"
    assert any("legacy: false" in note for note in report.notes) == (scheme == "first")


def test_a_training_checkpoint_of_llama2c(tmp_path: Path) -> None:
    t = with_(TINY, tied=True)
    args: dict[str, Any] = {"n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "dim": 32, "vocab_size": 320, "max_seq_len": 128, "dropout": 0.1}
    import sentencepiece
    raw = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(["the cat  sat on a mat and the dog ran"] * 20), model_writer=raw, vocab_size=320,
                                             model_type="bpe", byte_fallback=True, minloglevel=2, num_threads=1, hard_vocab_limit=False)
    (tmp_path / "tok.model").write_bytes(raw.getvalue())  # it removes extra spaces, which run.c does not
    n = len(read_vocabulary_file(tmp_path / "tok.model").tokens)
    t = with_(t, n_vocab=n)
    tensors, args["vocab_size"] = renamed(random_weights(t), META, ""), n
    assert convert(write_torch(tmp_path / "ckpt.pt", {"model": tensors, "model_args": args}), tmp_path / "m.gguf", "f16").verification.passed
    with open_source(write_torch(tmp_path / "ckpt.pt", {"model": tensors, "model_args": {**args, "rope_theta": 5e5}})) as source:
        assert source.metadata["llama.rope.freq_base"] == 5e5
    for more, word in ({"rope_scaling": 2.0}, "rope_scaling"), ({"dim": 64}, "dim = 64"), ({"hidden_dim": 5}, "hidden_dim"):
        with pytest.raises(LlaminaError, match=word):
            open_source(write_torch(tmp_path / "ckpt.pt", {"model": tensors, "model_args": {**args, **more}}))


@pytest.mark.parametrize("longest", [0x0A, 0x7B, 0x0D, 0x20, 0x0112])
def test_tokenizer_bin_whatever_its_first_byte(tmp_path: Path, longest: int) -> None:
    path = write_tokenizer_bin(tmp_path / "tokenizer.bin", sentencepiece_model())
    path.write_bytes(struct.pack("<I", longest) + path.read_bytes()[4:])
    assert len(read_vocabulary_file(path, n_vocab=320).tokens) == 320
    (tmp_path / "tok.model").write_bytes(sentencepiece_model())
    assert len(read_vocabulary_file(tmp_path / "tok.model").tokens) == 320


@pytest.mark.parametrize("dim", [640, 896, 1152, 1408])
def test_a_llama2c_file_whose_width_looks_like_a_pickle(tmp_path: Path, dim: int) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(struct.pack("<7i", dim, 64, 2, 4, 2, 320, 128) + bytes(64))
    assert detect(path) == "llama2c"


def test_bytes_left_over(tmp_path: Path) -> None:
    for version in 0, 1, 2:
        path = write_llama2c(tmp_path / "m.bin", TINY, random_weights(), version)
        write_tokenizer_bin(tmp_path / "tok.bin", sentencepiece_model())
        open_source(path).close()
        raw = path.read_bytes()
        path.write_bytes(raw + bytes(8))
        with pytest.raises(FormatError, match="8 bytes more"):
            open_source(path)
        if version:
            path.write_bytes(raw[:100] + b"\x01" + raw[101:])
            with pytest.raises(LlaminaError, match="header says more"):
                open_source(path)


def test_an_unknown_pre_tokenizer_is_copied(model: Path, tmp_path: Path) -> None:
    with open_source(model) as source:
        source.metadata |= {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "of-next-year", "tokenizer.ggml.merges": ["a b"]}
        report = convert(source, tmp_path / "m.gguf", "q8_0")
    assert report.verification.passed and len(report.verification.tensors) == len(report.tensors) and any("unchecked" in note for note in report.notes)
    with open_gguf(tmp_path / "m.gguf") as file:
        assert file.metadata["tokenizer.ggml.pre"] == "of-next-year"


def test_the_vocabulary_is_checked_before_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_hf(tmp_path / "m")
    with open_source(folder) as source:
        source.metadata["tokenizer.ggml.scores"] = -source.metadata["tokenizer.ggml.scores"]
        with pytest.raises(FormatError, match=r"tokenizer.model: the result would tokenise otherwise.*--no-verify"):
            convert(source, tmp_path / "m.gguf", "f16")
        assert not (tmp_path / "m.gguf").exists()
        assert any("tokenises otherwise" in note for note in convert(source, tmp_path / "m.gguf", "f16", verify=False).notes)


# ---- hostile and odd values


def test_padding_never_reaches_the_library(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "m", tokenizer=False)
    path = spm_like(folder / "tokenizer.json", bytes_=True)
    values = json.loads(path.read_text())
    values["padding"] = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}
    path.write_text(json.dumps(values))
    assert read_vocabulary_file(path).tokens


def test_numbers_where_texts_belong(tmp_path: Path) -> None:
    """A SentencePiece field that must be text, as a number of 10^12: bytes() of it would be a terabyte."""
    huge = b"\x80\xa0\x94\xa5\x8d\x1d"
    for raw in b"\x0a\x07\x08" + huge, sentencepiece_model() + b"\x1a\x07\x10" + huge, sentencepiece_model() + b"\x1a\x07\x08" + huge:
        (tmp_path / "tokenizer.model").write_bytes(raw)
        with pytest.raises(FormatError, match="tokenizer.model"):
            read_vocabulary_file(tmp_path / "tokenizer.model")


def test_long_tokens_of_tiktoken(tmp_path: Path) -> None:
    import base64
    lines = [base64.b64encode(bytes([i])).decode() + f" {i}" for i in range(256)] + [base64.b64encode(b"a" * 20_000).decode() + " 256"]
    (tmp_path / "tokenizer.model").write_text("\n".join(lines))
    with pytest.raises(FormatError, match="too long"):
        read_vocabulary_file(tmp_path / "tokenizer.model")


def test_metadata_beyond_float32(model: Path, tmp_path: Path) -> None:
    with open_source(model) as source:
        source.metadata |= {"general.large": 1e300, "general.hashes": ["0" * 64]}
        convert(source, tmp_path / "m.gguf", "f16", verify=False)
    with open_gguf(tmp_path / "m.gguf") as file:
        assert file.metadata["general.large"] == 1e300


@pytest.mark.parametrize("scale", [1e-30, 1e36, 3e38, 1.0])
def test_importance_of_any_scale(model: Path, tmp_path: Path, scale: float) -> None:
    """The same codes as by weights of usual size, if they differ by a power of two."""
    shapes = {t.name: t.shape for t in convert(model, tmp_path / "a.gguf", "q4_0", verify=False).tensors if len(t.shape) == 2}
    rng = np.random.default_rng(0)
    plain = {name: rng.random(shape[1], np.float32) + np.float32(0.01) for name, shape in shapes.items()}
    power = np.float32(2.0 ** int(np.floor(np.log2(scale)) - 1))
    report = convert(model, tmp_path / "b.gguf", "q4_0", importance={name: w * power for name, w in plain.items()})
    assert report.verification.passed
    convert(model, tmp_path / "c.gguf", "q4_0", importance=plain, verify=False)
    with open_gguf(tmp_path / "b.gguf") as b, open_gguf(tmp_path / "c.gguf") as c:
        for name in shapes:
            np.testing.assert_array_equal(b.data(name), c.data(name))


def test_columns_that_no_text_met(model: Path, tmp_path: Path) -> None:
    """A block whose importance is all zero is encoded all the same, not made zero."""
    shapes = {t.name: t.shape for t in convert(model, tmp_path / "a.gguf", "q4_0", verify=False).tensors if len(t.shape) == 2}
    weights = {name: np.concatenate([np.zeros(32, np.float32), np.ones(shape[1] - 32, np.float32)]) for name, shape in shapes.items()}
    assert convert(model, tmp_path / "b.gguf", "q4_0", importance=weights).verification.passed
    assert float(usable_weights(weights)["blk.0.attn_q.weight"][:32].min()) > 0
    np.testing.assert_array_equal(usable_weights({"x": np.zeros(64, np.float32)})["x"], 1)


def test_infinite_importance_is_refused(tmp_path: Path) -> None:
    import gguf
    writer = gguf.GGUFWriter(tmp_path / "i.gguf", "")
    writer.kv_data[0].pop("general.architecture", None)
    writer.add_type("imatrix")
    writer.add_tensor("blk.0.attn_q.weight.in_sum2", np.full((1, 32), 3e38, np.float32))
    writer.add_tensor("blk.0.attn_q.weight.counts", np.full((1, 1), 0.25, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(FormatError, match="infinite"):
        read(tmp_path / "i.gguf")


def test_consolidated_safetensors(tmp_path: Path) -> None:
    """Mistral's own form: Meta's names, in safetensors."""
    weights = random_weights()
    folder = tmp_path / "mistral"
    folder.mkdir()
    write_safetensors(folder / "consolidated.safetensors", renamed(weights, META, ""))
    params = {"dim": 32, "n_layers": 2, "head_dim": 8, "hidden_dim": 48, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5, "vocab_size": 320,
              "rope_theta": 1e6, "max_seq_len": 256}
    (folder / "params.json").write_text(json.dumps(params))
    (folder / "tokenizer.model.v3").write_bytes(sentencepiece_model())
    for path in folder, folder / "consolidated.safetensors":
        with open_source(path) as source:
            assert source.kind == "meta" and source.metadata["llama.context_length"] == 256 and source.metadata["llama.rope.freq_base"] == 1e6
            np.testing.assert_array_equal(source.tensors[2].rows(0, 4), weights[source.tensors[2].name][:4])
    write_safetensors(folder / "model.safetensors", hf_weights(TINY, weights))
    assert detect(folder / "consolidated.safetensors") == "meta"
