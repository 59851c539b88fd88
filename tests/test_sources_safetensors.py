"""safetensors files: FP8 and 16-bit numbers, scales, and every kind of damage."""
from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import TINY, all_rows, assert_weights, hf_weights, random_weights, write_hf, write_safetensors
from llamina.convert.sources import open_source
from llamina.convert.sources.base import to_float32
from llamina.engine.errors import FormatError
from test_sources_hf import edit_json, refused


def test_float16_values() -> None:
    codes = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(to_float32(codes, "F16").view(np.uint32), codes.view(np.float16).astype(np.float32).view(np.uint32))
    np.testing.assert_array_equal(to_float32(codes, "BF16").view(np.uint32) >> 16, codes)


def e4m3(values: np.ndarray) -> np.ndarray:
    """Codes of values that E4M3 holds exactly."""
    from llamina.convert.sources.base import _float8
    table = _float8("F8_E4M3")
    codes = {float(v): i for i, v in reversed(list(enumerate(table))) if not math.isnan(v)}
    return np.vectorize(lambda v: codes[float(v)], otypes=[np.uint8])(values)


def test_float8_values() -> None:
    codes = np.arange(256, dtype=np.uint8)
    value = to_float32(codes, "F8_E4M3")
    assert value[0x38] == 1.0 and value[0x7E] == 448.0 and value[1] == 2.0**-9 and value[0x08] == 2.0**-6 and value[0xB8] == -1.0
    assert np.isnan(value[[0x7F, 0xFF]]).all() and np.isfinite(np.delete(value, [0x7F, 0xFF])).all()
    value = to_float32(codes, "F8_E5M2")
    assert value[0x3C] == 1.0 and value[0x7B] == 57344.0 and np.isinf(value[0x7C]) and np.isnan(value[0x7D])
    try:
        import ml_dtypes
    except ImportError:
        return
    np.testing.assert_array_equal(to_float32(codes, "F8_E4M3"), codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32))


@pytest.mark.parametrize("layout", ["block", "row", "one", "none"])
def test_float8(tmp_path: Path, layout: str) -> None:
    weights = random_weights()
    folder = write_hf(tmp_path / "m", weights=weights)
    tensors = hf_weights(TINY, weights)
    rng = np.random.default_rng(3)
    dtypes: dict[str, str] = {}
    want = dict(tensors)
    for name in [n for n in tensors if "proj" in n]:
        value = tensors[name]
        rows, cols = value.shape
        tensors[name], dtypes[name] = e4m3(value), "F8_E4M3"
        if layout == "block":
            scale = 2.0 ** rng.integers(-3, 3, (-(-rows // 16), -(-cols // 16)))
            tensors[name.replace(".weight", ".weight_scale_inv")] = scale.astype(np.float32)
            want[name] = value * np.repeat(np.repeat(scale, 16, 0)[:rows], 16, 1)[:, :cols]
        elif layout != "none":
            scale = 2.0 ** rng.integers(-3, 3, (rows, 1) if layout == "row" else ())
            tensors[name.replace(".weight", ".weight_scale")] = np.asarray(scale, np.float32)
            tensors[name.replace(".weight", ".input_scale")] = np.ones((), np.float32)
            want[name] = value * scale
    write_safetensors(folder / "model.safetensors", tensors, dtypes=dtypes)
    if layout == "block":
        edit_json(folder / "config.json", quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16]})
    with open_source(folder) as source:
        comp = hf_weights(TINY, all_rows(source))
    for name, ref in want.items():
        np.testing.assert_array_equal(comp[name], ref.astype(np.float32), err_msg=name)
    if layout == "block":
        edit_json(folder / "config.json", quantization_config={"quant_method": "fp8", "weight_block_size": [32, 8]})
        refused(folder, FormatError, "weight_scale_inv", "does not fit")
        write_safetensors(folder / "model.safetensors", {**tensors, "model.layers.0.nothing.weight_scale_inv": np.ones((1, 1), np.float32)}, dtypes=dtypes)
        edit_json(folder / "config.json", quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16]})
        refused(folder, FormatError, "model.layers.0.nothing.weight_scale_inv")


# ---- damaged safetensors


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": list(offsets) if isinstance(offsets, tuple) else offsets}


@pytest.mark.parametrize("header, word", [
    (b"[]", "no JSON object"), (b"{", "not valid JSON"), (b"\xff", "not valid JSON"), (b"[" * 200_000, "not valid JSON"), ({"a": 5}, "no dtype"),
    ({"a": {"dtype": "F32"}}, "shape"), ({"a": entry("Q4")}, "unknown type"), ({"a": entry(shape=(-2,))}, "shape"), ({"a": entry(shape="x")}, "shape"),
    ({"a": entry(offsets=(0, 8.0))}, "data_offsets"), ({"a": entry(offsets=(0, 16))}, "8 bytes"), ({"a": entry(offsets=(8, 0))}, "from byte 8 to 0"),
    ({"a": entry(offsets=(0, 1 << 60))}, "truncated"), ({"a": entry(shape=(1 << 61, 8), offsets=(0, 0))}, "needs"),
    ({"a": entry(offsets=(0, 8, 16))}, "data_offsets"),
    ({"a": entry(), "b": entry()}, "overlap"), ({"a": entry(), "b": entry(offsets=(16, 24))}, "holes"), ({"a": entry()}, "end at byte 8"),
    ({"a": entry(shape=(1,) * 9, offsets=(0, 4))}, "shape"), (b'{"a": 1, "a": 2}', "twice"), ({"a": entry(), "b": entry(offsets=(4, 12))}, "overlap"),
    ({"a": entry("F4", (3,), (0, 2))}, "needs"), (b'{"a": NaN}', "no dtype"),
])
def test_damaged_safetensors(tmp_path: Path, header: Any, word: str) -> None:
    folder = write_hf(tmp_path / "m")
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(24))
    refused(folder, FormatError, "model.safetensors", word)


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 1 << 40, 100_000_001, 1000])
def test_header_length(tmp_path: Path, length: int) -> None:
    folder = write_hf(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    refused(folder, FormatError, str(length))


def test_truncated_safetensors(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "m")
    whole = (folder / "model.safetensors").read_bytes()
    for size in 0, 5, 8, 100, len(whole) // 2, len(whole) - 1:
        (folder / "model.safetensors").write_bytes(whole[:size])
        refused(folder, FormatError, "model.safetensors")
    (folder / "model.safetensors").write_bytes(whole + b"x")
    refused(folder, FormatError, "end at byte")


def test_safetensors_library_agrees(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    weights = random_weights()
    folder = write_hf(tmp_path / "m")
    library.save_file(hf_weights(TINY, weights), folder / "model.safetensors", metadata={"format": "pt"})
    with open_source(folder) as source:
        assert_weights(source, weights)
