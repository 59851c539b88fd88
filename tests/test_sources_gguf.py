"""GGUF files as sources: rows copied or decoded, metadata kept, shards merged."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from checkpoints import all_rows
from llamina.convert.sources import open_source
from llamina.engine.errors import ClosedError, FormatError, OptionError, UnsupportedError
from llamina.engine.gguf.file import open_gguf
from small_models import write_small_model


@pytest.mark.parametrize("format", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "Q4_K", "Q6_K"])
def test_copy_and_decode(tmp_path: Path, format: str) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize
    path = write_small_model(tmp_path / "m.gguf", format)
    with open_source(path) as source, open_gguf(path) as gguf:
        assert source.kind == "gguf" and source.files == [path]
        assert {t.name for t in source.tensors} == set(gguf.tensors)
        comp = all_rows(source, 300)
        for t in source.tensors:
            raw = t.raw()
            assert raw is not None and raw.dtype == np.uint8 and t.dtype == gguf.tensors[t.name].format.name
            np.testing.assert_array_equal(raw, gguf.data(t.name))
            ref = dequantize(gguf.data(t.name), GGMLQuantizationType[t.dtype]).reshape(t.shape)
            np.testing.assert_array_equal(comp[t.name], ref, err_msg=t.name)
            np.testing.assert_array_equal(t.rows(0, 1)[0], ref.reshape(t.n_rows, -1)[0])
        assert {t.dtype for t in source.tensors} >= {format}
        for key in gguf.metadata:
            np.testing.assert_array_equal(source.metadata[key], gguf.metadata[key])
    with pytest.raises(ClosedError):
        source.tensors[0].rows(0, 1)


def test_shards_are_merged(tmp_path: Path) -> None:
    whole = write_small_model(tmp_path / "m.gguf", "Q8_0")
    from gguf_builder import Builder
    with open_gguf(whole) as gguf:
        names = list(gguf.tensors)
        paths = [tmp_path / f"s-{i:05d}-of-00002.gguf" for i in (1, 2)]
        for i, path in enumerate(paths):
            b = Builder()
            if i == 0:
                for key in gguf.metadata:
                    value = gguf.metadata[key]
                    b.set(key, value.tolist() if isinstance(value, np.ndarray) else value)
            for key, value in ("split.no", i), ("split.count", 2), ("split.tensors.count", len(names)):
                b.set(key, value)
            for name in names[i::2]:
                info = gguf.tensors[name]
                b.add(name, info.shape, info.format.name, gguf.data(name).tobytes())
            b.write(path)
        with open_source(paths[0]) as source:
            assert source.files == paths and "2 shards merged" in source.notes and not any(key.startswith("split.") for key in source.metadata)
            for t in source.tensors:
                np.testing.assert_array_equal(t.raw(), gguf.data(t.name))


def test_refused(tmp_path: Path) -> None:
    path = write_small_model(tmp_path / "m.gguf")
    with pytest.raises(OptionError, match="tokenizer"):
        open_source(path, tokenizer=path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FormatError, match=r"m\.gguf"):
        open_source(path)


def test_vocabulary_only(real: Path) -> None:
    with pytest.raises(UnsupportedError, match="only a vocabulary"):
        open_source(real / "tokenizer" / "ggml-vocab-llama-spm.gguf")
