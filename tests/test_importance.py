"""Importance: sums of squares against the naive model's activations, the file format both ways, refusals."""
from __future__ import annotations

import struct

import llamina
import numpy as np
import pytest
from llamina.convert.importance import Columns, collect, read, weights_for, write
from llamina.engine.cli import main
from llamina.engine.errors import FormatError, OptionError

TEXT = "Once upon a time there was a small fox called Leo who lived at the edge of a quiet town. " * 6


@pytest.fixture(scope="module")
def demo():
    with llamina.load("demo", threads=1, context=128) as model:
        yield model


@pytest.fixture(scope="module")
def measured(demo):
    return collect(demo, TEXT, 64, most=1)


def test_every_matrix_is_measured(demo, measured):
    c = demo.config
    assert len(measured) == 7 * c.n_layers + 1
    for name, columns in measured.items():
        width = c.ffn_dim if "ffn_down" in name else c.n_heads * c.head_dim if "attn_output" in name else c.dim
        assert columns.sums.shape == (width,) and columns.count == 64 and (columns.sums >= 0).all() and columns.sums.any()


def test_sums_equal_a_recount(demo, measured):
    """The first layer's attention input is the normed embedding: counted here from the file, with gguf."""
    import gguf
    from gguf.quants import dequantize
    tensors = {t.name: t for t in gguf.GGUFReader(str(demo.path)).tensors}
    ids = demo.tokenize(TEXT)[:64]
    x = dequantize(tensors["token_embd.weight"].data, tensors["token_embd.weight"].tensor_type)[ids].astype(np.float64)
    gain = np.asarray(tensors["blk.0.attn_norm.weight"].data, np.float64)
    normed = x / np.sqrt((x * x).mean(1, keepdims=True) + demo.config.rms_eps) * gain
    np.testing.assert_allclose(measured["blk.0.attn_q.weight"].sums, (normed**2).sum(0), rtol=1e-6)


def test_observing_does_not_change_the_logits(demo):
    from llamina.engine.run.runtime import Feed
    ids = demo.tokenize(TEXT)[:20]
    logits = []
    for observe in (None, {site: lambda rows: None for site in demo.config.sites()}):
        sequence = demo.runtime.new_sequence()
        logits.append(demo.runtime.step([Feed(sequence, ids, "all")], observe))
        sequence.close()
    assert (logits[0].view(np.uint32) == logits[1].view(np.uint32)).all()


def test_file_round_trip(tmp_path, measured):
    path = tmp_path / "imatrix.gguf"
    write(path, measured, "text.txt", 64)
    again = read(path)
    assert set(again) == set(measured)
    for name, values in again.items():
        np.testing.assert_allclose(values, measured[name].sums / 64, rtol=1e-6)
    assert weights_for(again, "none", 5) is None
    with pytest.raises(OptionError, match="belongs to another model"):
        weights_for(again, "blk.0.attn_q.weight", 5)


@pytest.mark.parametrize(("sums", "count", "message"), [([1.0, -1.0], 3, "negative"), ([np.nan, 1.0], 3, "negative, NaN"), ([1.0, 1.0], 0, "count of 0")])
def test_bad_files(tmp_path, sums, count, message):
    path = tmp_path / "imatrix.gguf"
    write(path, {"blk.0.attn_q.weight": Columns(np.array(sums), count)}, "x", 1)
    with pytest.raises(FormatError, match=message):
        read(path)


def dat(entries) -> bytes:
    parts = [struct.pack("<i", len(entries))]
    for name, calls, values in entries:
        parts.append(struct.pack("<i", len(name)) + name.encode() + struct.pack(f"<2i{len(values)}f", calls, len(values), *values))
    return b"".join(parts) + struct.pack("<2i", 7, 4) + b"text"


def test_llama_cpp_dat(tmp_path):
    """The older file format, as tools/imatrix/imatrix.cpp writes it: mean squares times the number of calls."""
    path = tmp_path / "imatrix.dat"
    whole = dat([("blk.0.attn_q.weight", 4, [4.0, 8.0]), ("blk.0.ffn_down.weight", 0, [0.5])])
    path.write_bytes(whole)
    found = read(path)
    assert {name: values.tolist() for name, values in found.items()} == {"blk.0.attn_q.weight": [1.0, 2.0], "blk.0.ffn_down.weight": [0.5]}
    hostile = [dat([("a", 1, [-1.0])]), dat([("a", 1, [np.nan])]), dat([]), struct.pack("<2i", 1, 1 << 30), struct.pack("<2i", 1, -5)]
    for bad in hostile + [whole[:n] for n in range(0, 60, 7)]:
        path.write_bytes(bad)
        with pytest.raises(FormatError):
            read(path)


def test_command(tmp_path, capfd):
    text, out = tmp_path / "text.txt", tmp_path / "imatrix.gguf"
    text.write_text(TEXT)
    assert main(["importance", "demo", str(text), "-o", str(out), "--context", "64", "--windows", "1", "--threads", "1"]) == 0
    assert len(read(out)) > 10 and capfd.readouterr().out == ""
    for target in text, out.parent:
        assert main(["importance", "demo", str(text), "-o", str(target), "--context", "64"]) != 0
    assert text.read_text() == TEXT
    with pytest.raises(FormatError, match="is not an importance matrix"):
        read(llamina.engine.model.DEMO)
