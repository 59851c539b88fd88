"""The GGUF reader on good files: equal to the gguf package's reader on real files, and to what our own writer wrote; split files."""
from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_builder import BOOL, F32, F64, I8, I16, I32, I64, STRING, U8, U16, U32, U64, Builder, llama
from llamina.engine.errors import ClosedError, FileError, FormatError
from llamina.engine.gguf.file import open_gguf
from llamina.kernels.formats.table import BY_ID, REMOVED
from runs import resident_megabytes


def check_same_as_reference(path: Path) -> None:
    """Metadata, tensor table and tensor bytes equal the gguf package's."""
    reference, ours = gguf.GGUFReader(path), open_gguf(path)
    fields = {k: f for k, f in reference.fields.items() if not k.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for key, f in fields.items():
        expected, found = f.contents(), ours.metadata[key]
        if isinstance(found, np.ndarray):
            assert found.tolist() == expected and found.dtype == f.parts[f.data[0]].dtype and found.flags.aligned, key
        else:
            assert found == expected and type(found) is type(expected), key
    assert list(ours.tensors) == [t.name for t in reference.tensors]
    for t in reference.tensors:
        info, data = ours.tensors[t.name], ours.data(t.name)
        assert info.shape == tuple(t.shape.tolist()[::-1]) and info.format.name == t.tensor_type.name and info.offset == t.data_offset
        assert data.shape == (info.rows, info.format.row_bytes(info.cols)) and data.dtype == np.uint8 and not data.flags.writeable
        assert data.tobytes() == t.data.tobytes(), t.name


@pytest.mark.parametrize("name", [
    "llama2c/stories260K.gguf", "tokenizer/ggml-vocab-llama-spm.gguf",
    *(f"gguf-by-llama.cpp/tinystories-656k.{q}.gguf" for q in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")),
])
def test_real_files_equal_the_reference_reader(real: Path, name: str) -> None:
    check_same_as_reference(real / name)


def test_files_of_the_reference_writer(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_array("a.strings", ["x", "", "żółw 🐢"])
    writer.add_array("a.floats", [1.5, -2.0])
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_custom_alignment(64)
    for name, shape in {"one": (5,), "two": (3, 64), "three": (2, 3, 32), "four": (2, 2, 3, 32)}.items():
        writer.add_tensor(name, rng.standard_normal(shape).astype(np.float32))
    writer.add_tensor("q8", gguf.quants.quantize(rng.standard_normal((4, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0),
                      raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_same_as_reference(tmp_path / "x.gguf")


def test_every_value_type(tmp_path: Path) -> None:
    scalars = {
        U8: 255, I8: -128, U16: 65535, I16: -32768, U32: 2**32 - 1, I32: -(2**31), F32: 1.5, BOOL: True, STRING: "żółw 🐢\n", U64: 2**64 - 1,
        I64: -(2**63), F64: 1e300,
    }
    b = Builder(version=2)
    for kind, value in scalars.items():
        b.set(f"s{kind}", value, kind).set(f"a{kind}", (kind, [value, value, 0 if kind != STRING else ""]), 9).set(f"e{kind}", (kind, []), 9)
    with open_gguf(b.write(tmp_path / "x.gguf")) as g:
        assert g.version == 2 and g.alignment == 32 and not g.tensors
        for kind, value in scalars.items():
            assert g.metadata[f"s{kind}"] == value
            assert list(g.metadata[f"a{kind}"]) == [value, value, 0 if kind != STRING else ""]  # type: ignore[arg-type]
            assert len(g.metadata[f"e{kind}"]) == 0  # type: ignore[arg-type]
            assert g.metadata.array_length(f"a{kind}") == 3 and g.metadata.array_length(f"s{kind}") is None
        assert g.metadata["s7"] is True
        assert len(g.metadata) == 36 and "s7" in g.metadata and "s9" not in g.metadata and g.metadata.get("s9", 5) == 5


def test_arrays_are_read_when_asked_for(tmp_path: Path) -> None:
    """Bad UTF-8 inside an array nobody reads is no error; reading it is one, by key and index."""
    b = Builder().set("good", 1).set("bad", (STRING, [b"ok", b"\xff"]), 9)
    g = open_gguf(b.write(tmp_path / "x.gguf"))
    assert g.metadata["good"] == 1 and g.metadata.array_length("bad") == 2
    with pytest.raises(FormatError, match=r"x\.gguf: string 1 of key 'bad' is not UTF-8"):
        g.metadata["bad"]


def test_typed_lookup(tmp_path: Path) -> None:
    b = Builder().set("i", 3).set("f", 0.5).set("b", True).set("s", "x").set("l", ["x", "y"]).set("n", [1, 2])
    g = open_gguf(b.write(tmp_path / "x.gguf"))
    assert g.get("i", int) == 3 and g.get("f", float) == 0.5 and g.get("b", bool) is True and g.get("s", str) == "x" and g.get("l", list) == ["x", "y"]
    assert g.get("n", np.ndarray).tolist() == [1, 2] and g.get("absent", int, None) is None
    three = g.get("i", float)
    assert three == 3.0 and isinstance(three, float)
    for key, kind, expected in (
        ("i", str, "must be a string, found 3"), ("f", int, "must be a whole number, found 0.5"), ("b", int, "must be a whole number, found True"),
        ("b", float, "must be a number, found True"), ("s", bool, "must be true or false, found 'x'"),
        ("l", np.ndarray, "must be an array of numbers, found an array of strings"), ("n", int, "must be a whole number, found an array of numbers"),
        ("absent", int, "is missing, expected a whole number"),
    ):
        with pytest.raises(FormatError, match=rf"x\.gguf: key '{key}' {expected}"):
            g.get(key, kind)


def test_format_table_equals_the_reference() -> None:
    sizes = {int(t): (t.name, *size) for t, size in gguf.GGML_QUANT_SIZES.items()}
    sizes[9] = ("Q8_1", 32, 36)  # the package says 40, from when its scales were float32; ggml-common.h: 2 halves + 32 bytes
    for number, f in BY_ID.items():
        assert sizes.get(number, (f.name, f.columns, f.bytes)) == (f.name, f.columns, f.bytes)
    assert not set(REMOVED) & (set(sizes) | set(BY_ID))


def write_shards(folder: Path, count: int = 3) -> list[Path]:
    """A tiny Llama split over `count` files as gguf-split does: all metadata in the first one; tensor i holds bytes i."""
    whole = llama()
    paths = []
    for i in range(count):
        b = Builder(pairs=list(whole.pairs) if i == 0 else [])
        b.set("split.no", i, U16).set("split.count", count, U16).set("split.tensors.count", len(whole.tensors), I32)
        b.tensors = whole.tensors[i::count]
        for t in b.tensors:
            t.data = bytes([whole.tensors.index(t)]) * t.n_bytes
        paths.append(b.write(folder / f"m-{i + 1:05d}-of-{count:05d}.gguf"))
    return paths


def test_split_file(tmp_path: Path) -> None:
    paths = write_shards(tmp_path)
    with open_gguf(paths[0]) as g:
        assert g.path == paths[0] and g.paths == paths
        names = [t.name for t in llama().tensors]
        assert sorted(g.tensors) == sorted(str(n) for n in names) and g.metadata["general.architecture"] == "llama"
        for i, name in enumerate(names):
            assert (g.data(str(name)) == i).all()
            assert g.tensors[str(name)].path == paths[i % 3]


def test_split_by_the_reference_writer(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    data = {f"t{i}": np.full((2, 3), i, np.float32) for i in range(5)}
    for name, array in data.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    g = open_gguf(tmp_path / "m-00001-of-00003.gguf")
    assert {n: g.data(n).view(np.float32).tolist() for n in g.tensors} == {n: a.tolist() for n, a in data.items()}


def test_split_file_errors(tmp_path: Path) -> None:
    paths = write_shards(tmp_path)
    with pytest.raises(FileError, match=r"m-00002-of-00003\.gguf: is shard 2 of 3: open the first one, m-00001-of-00003\.gguf"):
        open_gguf(paths[1])
    renamed = tmp_path / "renamed.gguf"
    paths[0].rename(renamed)
    with pytest.raises(FileError, match=r"renamed\.gguf: is the first of 3 shards, so it must be called renamed-00001-of-00003\.gguf"):
        open_gguf(renamed)
    renamed.rename(paths[0])
    third = paths[2].read_bytes()
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(FormatError, match=r"m-00003-of-00003\.gguf: key 'split.no' must be 2 in shard 3 of 3, found 1"):
        open_gguf(paths[0])
    paths[2].write_bytes(third[:100])
    with pytest.raises(FormatError, match=r"m-00003-of-00003\.gguf: .* cut short"):
        open_gguf(paths[0])
    b = Builder().set("split.no", 2).set("split.count", 3).add("token_embd.weight", (1, 1))
    for i in range(6):
        b.add(f"t{i}", (1,))
    b.write(paths[2])
    with pytest.raises(FormatError, match=r"m-00003-of-00003\.gguf: tensor 'token_embd.weight' is also in m-00001-of-00003\.gguf"):
        open_gguf(paths[0])
    Builder().set("split.no", 2).set("split.count", 3).write(paths[2])
    with pytest.raises(FormatError, match=r"m-00001-of-00003\.gguf: key 'split.tensors.count' is 21, the 3 shards hold 14"):
        open_gguf(paths[0])
    Builder().set("split.no", 0).set("split.count", 65535).write(tmp_path / "m-00001-of-65535.gguf")
    with pytest.raises(FormatError, match=r"m-00001-of-65535\.gguf: key 'split.count' is 65535, expected at most 4096"):
        open_gguf(tmp_path / "m-00001-of-65535.gguf")
    paths[2].unlink()
    with pytest.raises(FileError, match=r"m-00003-of-00003\.gguf: shard 3 of 3 is missing: put it beside m-00001-of-00003\.gguf"):
        open_gguf(paths[0])


def test_close_and_views(tmp_path: Path) -> None:
    """What was read and the metadata outlive close; nothing else does, and nothing keeps the file open."""
    b = Builder().set("n", [1, 2]).add("t", (2, 3), "F32", np.arange(6, dtype=np.float32))
    path = b.write(tmp_path / "x.gguf")
    with open_gguf(path) as g:
        view = g.data("t")
    assert view.view(np.float32).tolist() == [[0, 1, 2], [3, 4, 5]] and g.metadata["n"].tolist() == [1, 2]  # type: ignore[union-attr]
    with pytest.raises(ClosedError, match=r"x\.gguf: the file was closed: open it again to read tensor 't'"):
        g.data("t")
    assert str(path) not in open_files()


def test_rows(tmp_path: Path) -> None:
    """Some rows of a tensor, in its file's bytes."""
    values = np.arange(60, dtype=np.float32).reshape(2, 3, 10)
    with open_gguf(Builder().add("s", (1,)).add("t", values.shape, "F32", values).write(tmp_path / "x.gguf")) as g:
        assert g.data("t", 2, 5).view(np.float32).tolist() == values.reshape(6, 10)[2:5].tolist() and g.data("t", 6).shape == (0, 40)


def open_files() -> list[str]:
    """Of this process, open or mapped (Linux)."""
    if not os.path.exists("/proc/self/maps"):
        return []
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return [*links, *(line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines())]


def test_failed_open_leaves_nothing_open(tmp_path: Path) -> None:
    paths = write_shards(tmp_path)
    paths[2].unlink()
    with pytest.raises(FileError) as caught:
        open_gguf(paths[0])
    assert caught.value and not any(name.startswith(str(tmp_path)) for name in open_files())


def test_a_file_that_is_cut_short_or_changed(tmp_path: Path) -> None:
    """Told when it is read, and by `check`; what was read before stays."""
    path = Builder().set("words", ["a", "b"]).add("t", (1024, 1024)).write(tmp_path / "x.gguf")
    with open_gguf(path) as g:
        g.check()
        os.truncate(path, 4096)
        for use in (lambda: g.data("t"), g.check):
            with pytest.raises(FileError, match=r"x\.gguf: (ended at byte|was changed)"):
                use()
        assert g.get("words", list) == ["a", "b"]


def test_a_new_file_of_the_name_changes_nothing(tmp_path: Path) -> None:
    path = Builder().add("t", (2,), "F32", np.array([1, 2], np.float32)).write(tmp_path / "x.gguf")
    with open_gguf(path) as g:
        path.unlink()
        path.write_bytes(b"other")
        g.check()
        assert g.data("t").view(np.float32).tolist() == [[1, 2]]


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs /proc")
def test_seven_billion_parameters_open_without_being_read(tmp_path: Path) -> None:
    """A sparse file in the shape of Llama 2 7B Q4_0 with 32,000 tokens: 3.8 GB, all hole."""
    b = llama(n_layers=32, dim=4096, n_heads=32, n_kv_heads=32, ffn_dim=11008, n_vocab=32000, format="Q4_0")
    path = b.write(tmp_path / "7b.gguf")
    assert path.stat().st_size > 3.7e9 and len(b.tensors) == 291

    def taken() -> tuple[int, float]:
        return int(re.findall(r"rchar: (\d+)", Path("/proc/self/io").read_text())[0]), resident_megabytes("VmRSS")
    before = taken()
    g = open_gguf(path)
    n_bytes, megabytes = (b - a for a, b in zip(before, taken(), strict=True))
    assert n_bytes < 20e6 and megabytes < 100, "the header only"
    assert len(g.get("tokenizer.ggml.tokens", list)) == 32000 and g.data("output.weight").shape == (32000, 4096 // 32 * 18)
