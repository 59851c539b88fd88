"""The restricted unpickler: PyTorch files read without torch, and hostile ones refused by name, quickly, with nothing run."""
from __future__ import annotations

import os
import pickle
import random
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import Pickle, Tensor, bits, tensor, write_torch, write_zip
from llamina.convert.sources.base import SourceFile, Stored
from llamina.convert.unpickle import load_checkpoint, load_state_dict
from llamina.engine.errors import FormatError, LlaminaError, UnsupportedError

RNG = np.random.default_rng(1)
MATRIX = RNG.standard_normal((6, 5)).astype(np.float32)


def rows(stored: Stored) -> np.ndarray:
    n = stored.shape[0] if len(stored.shape) == 2 else 1
    return stored.read(np.arange(n)).reshape(stored.shape)


def load(path: Path) -> dict[str, Stored]:
    return load_state_dict(SourceFile(path))[0]


def refused(path: Path, kind: type[LlaminaError], *words: str) -> None:
    start = time.perf_counter()
    with pytest.raises(kind) as caught:
        load(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    for word in words:
        assert word in message, message
    assert time.perf_counter() - start < 20


def zipped(tmp_path: Path, code: bytes, storages: dict[str, bytes] | None = None) -> Path:
    return write_zip(tmp_path / "x.pth", code, storages or {})


def test_tensors(tmp_path: Path) -> None:
    half = tensor(MATRIX, "h", "F16")
    brain = tensor(MATRIX[:2], "b", "BF16")
    turned = Tensor(bits(MATRIX, "F32"), (5, 6), (1, 5), "t")
    part = Tensor(bits(MATRIX, "F32"), (2, 5), (5, 1), "t2", offset=10)
    column = Tensor(bits(MATRIX, "F32"), (6,), (5,), "t3", offset=2)
    found = load(write_torch(tmp_path / "x.pt", {"a": MATRIX, "v": MATRIX[0], "h": half, "b": brain, "turned": turned, "part": part, "column": column}))
    np.testing.assert_array_equal(rows(found["a"]), MATRIX)
    np.testing.assert_array_equal(rows(found["v"]), MATRIX[0])
    np.testing.assert_array_equal(rows(found["h"]), MATRIX.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(rows(found["b"]), (MATRIX[:2].view(np.uint32) >> 16 << 16).view(np.float32))
    np.testing.assert_array_equal(rows(found["turned"]), MATRIX.T)
    np.testing.assert_array_equal(rows(found["part"]), MATRIX[2:4])
    np.testing.assert_array_equal(rows(found["column"]), MATRIX[:, 2])
    assert found["a"].name == "a" and found["h"].dtype == "F16"
    np.testing.assert_array_equal(found["a"].read(np.array([4, 0, 3])), MATRIX[[4, 0, 3]])


def test_training_checkpoint(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "ckpt.pt", {"model": {"_orig_mod.norm.weight": MATRIX[0]}, "iter_num": 5, "best": 1.5, "args": {"dim": 8, "x": [None, True]}})
    tensors, rest = load_state_dict(SourceFile(path))
    assert list(tensors) == ["norm.weight"] and rest == {"iter_num": 5, "best": 1.5, "args": {"dim": 8, "x": [None, True]}}


def test_ordered_dict_with_attributes_and_parameters(tmp_path: Path) -> None:
    p = Pickle().name("collections", "OrderedDict").op(b")R(").value("w")
    p.name("torch._utils", "_rebuild_parameter").op(b"(").tensor(tensor(MATRIX, "0")).value(True).name("collections", "OrderedDict").op(b")RtRu")
    p.op(b"}").value("_metadata").name("collections", "OrderedDict").op(b")Rsb.")  # BUILD, as state_dict() has
    np.testing.assert_array_equal(rows(load(zipped(tmp_path, p.code, p.storages))["w"]), MATRIX)


def test_memo_and_protocol_4(tmp_path: Path) -> None:
    code = b"\x80\x04}(\x8c\x01a\x94\x8c\x0bcollections\x94\x8c\x0bOrderedDict\x94\x93\x94)R\x94h\x00h\x04u."  # a: OrderedDict(), by STACK_GLOBAL and MEMOIZE
    assert load_checkpoint(SourceFile(zipped(tmp_path, code))) == {"a": {}}
    with pytest.raises(FormatError, match="no state dict"):
        load(zipped(tmp_path, code))


class Evil:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_nothing_is_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "pwned"
    evil = {"w": Evil(os.system, f"touch {mark}")}
    with pytest.raises(UnsupportedError, match=r"(posix|nt)\.system|opcode"):
        load(zipped(tmp_path, pickle.dumps(evil, protocol)))
    assert not mark.exists()
    pickle.loads(pickle.dumps(evil, protocol))  # the same pickle would have
    assert mark.exists()


@pytest.mark.parametrize("module, attribute", [
    ("builtins", "eval"), ("torch", "load"), ("torch._utils", "_rebuild_tensor"), ("collections", "defaultdict"), ("torch.serialization", "_load"),
    ("torch", "OrderedDict"), ("os", "system"), ("torch._utils", "_rebuild_tensor_v2.__globals__"), ("torch", "hub"), ("numpy.core.multiarray", "_reconstruct"),
])
def test_unknown_names(tmp_path: Path, module: str, attribute: str) -> None:
    code = Pickle().name(module, attribute).value(()).op(b"R.").code
    refused(zipped(tmp_path, code), UnsupportedError, f"{module}.{attribute}", "nothing was run")


@pytest.mark.parametrize("name, code", [
    ("INST", b"(ios\nsystem\n."), ("OBJ", b"(cos\nsystem\no."), ("NEWOBJ", b")\x81."), ("NEWOBJ_EX", b")}\x92."), ("EXT1", b"\x82\x01."),
    ("EXT4", b"\x84\1\0\0\0."),
    ("PERSID", b"Pstorage\n."), ("POP", b"N0."), ("DUP", b"N2."), ("FROZENSET", b"(\x91."), ("LONG4", b"\x8b\1\0\0\0\1."), ("STRING", b"S'x'\n."),
    ("NEXT_BUFFER", b"\x97."), ("BYTEARRAY8", b"\x96" + bytes(8) + b"."), ("DICT", b"(d."), ("EMPTY_SET", b"\x8f."), ("GET", b"g0\n."),
])
def test_hostile_opcodes(tmp_path: Path, name: str, code: bytes) -> None:
    if name == "OBJ":
        refused(zipped(tmp_path, b"\x80\x02" + code), UnsupportedError, "os.system")
        code = b"(ctorch\nSize\no."
    refused(zipped(tmp_path, b"\x80\x02" + code), UnsupportedError, f"opcode {name},", "nothing was run")


DATA = bits(MATRIX, "F32")
BAD_TENSORS = {
    "offset": Tensor(DATA, (6, 5), (5, 1), "0", offset=1), "offset before": Tensor(DATA, (2,), (1,), "0", offset=-1),
    "stride": Tensor(DATA, (6, 5), (6, 1), "0"),
    "negative stride": Tensor(DATA, (6, 5), (-5, 1), "0"), "expanded": Tensor(DATA, (1 << 30, 5), (0, 1), "0"), "size": Tensor(DATA, (1 << 62, 5), (5, 1), "0"),
    "negative size": Tensor(DATA, (-6, 5), (5, 1), "0"), "dimensions": Tensor(DATA, (6, 5), (1,), "0"), "claim": Tensor(DATA, (6, 5), (5, 1), "0", claim=31),
    "negative claim": Tensor(DATA, (6, 5), (5, 1), "0", claim=-1), "many dimensions": Tensor(DATA, (1,) * 9, (1,) * 9, "0"),
    "wider type": Tensor(DATA, (6, 5), (5, 1), "0", storage="DoubleStorage", claim=30),
}


@pytest.mark.parametrize("name", BAD_TENSORS)
def test_tensors_beyond_their_storage(tmp_path: Path, name: str) -> None:
    refused(write_torch(tmp_path / "x.pth", {"w": BAD_TENSORS[name]}), FormatError, "hostile")


def test_missing_storage(tmp_path: Path) -> None:
    p = Pickle().value({"w": tensor(MATRIX, "7")}).op(b".")
    refused(zipped(tmp_path, p.code, {"8": DATA}), FormatError, "archive/data/7")
    p = Pickle().op(b"}(").value("w").name("torch._utils", "_rebuild_tensor_v2").value((1, 2, 3, 4, 5, 6)).op(b"Ru.")
    refused(zipped(tmp_path, p.code), FormatError, "without its storage")


@pytest.mark.parametrize("code", [
    b"\x80\x02}.x", b"\x80\x02", b"", b"\x80\x02}", b"\x80\x02u.", b"\x80\x02(u.", b"\x80\x02}(K\x01u.", b"\x80\x02}K\x01a.", b"\x80\x02}}Ns.",
    b"\x80\x02R.", b"\x80\x02}}R.",
    b"\x80\x02N}b.", b"\x80\x02q\x00.", b"\x80\x02h\x05.", b"\x80\x02]]]e.", b"\x80\x02(((t.", b"\x80\x02K\x01Q.",
    b"\x80\x02ccollections\nOrderedDict\nK\x05\x85R.",
    b"\x80\x02X\xff\xff\xff\xffabc.", b"\x80\x02}K\x01(su.", b"\x80\x02\x8a\xff.", b"\x80\x02ctorch\nSize\n]\x85R", b"\x80\x02NN.", b"\xff",
    b"\x80\x02}(](K\x01eK\x01u.",
])
def test_malformed(tmp_path: Path, code: bytes) -> None:
    with pytest.raises(FormatError):
        load(zipped(tmp_path, code))


def test_hostile_sizes(tmp_path: Path) -> None:
    """Programs that make pickle's own machine allocate gigabytes, overflow the C stack, or run for ever."""
    refused(zipped(tmp_path, b"\x80\x02}r\xff\xff\xff\x7f."), FormatError, "no state dict")  # memo index 2^31: pickle would make room for all before it
    deep = b"\x80\x02})" + b"\x85" * 300_000 + b"Ns."
    refused(zipped(tmp_path, deep), FormatError, "key is a tuple")  # hash() of it recurses
    lists = b"\x80\x02" + b"]" + b"".join(b"]q%ch%ch%ce" % (i, i - 1, i - 1) if i else b"q\x00" for i in range(0, 200))
    with pytest.raises(FormatError):
        load(zipped(tmp_path, lists + b"."))
    laughs = b"\x80\x02" + b"}q\x00"
    for i in range(1, 9):  # a dict that holds the one before 200 times
        laughs += b"}q" + bytes([i]) + b"(" + b"".join(b"K" + bytes([k]) + b"h" + bytes([i - 1]) for k in range(200)) + b"u"
    with pytest.raises(FormatError):
        load(zipped(tmp_path, laughs + b"."))
    refused(zipped(tmp_path, b"\x80\x02" + b"N" * 4_100_000 + b"."), FormatError, "opcodes")


def test_zip_damage(tmp_path: Path) -> None:
    p = Pickle().value({"w": tensor(MATRIX, "0")}).op(b".")
    path = tmp_path / "x.pth"
    refused(write_zip(path, p.code, {"0": bytes(1 << 22)}, compression=zipfile.ZIP_DEFLATED), UnsupportedError, "compressed")  # a bomb, were it opened
    whole = write_zip(path, p.code, p.storages).read_bytes()
    for cut in range(4, len(whole), 37):
        path.write_bytes(whole[:cut])
        with pytest.raises(FormatError):
            load(path)
    with pytest.warns(UserWarning, match="Duplicate"):
        write_zip(path, p.code, p.storages, more={"archive/data/0": DATA})
    refused(path, FormatError, "twice")
    refused(write_zip(path, p.code, p.storages, byteorder=b"big"), UnsupportedError, "big-endian")
    refused(write_zip(path, p.code, p.storages, more={"archive/code/model.py": b""}), UnsupportedError, "TorchScript")
    refused(write_zip(path, p.code, p.storages, more={"other/data.pkl": b""}), FormatError, "one data.pkl")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("hello.txt", "x")
    refused(path, FormatError, "one data.pkl")


def test_entry_offsets(tmp_path: Path) -> None:
    """A central directory whose entries point elsewhere."""
    p = Pickle().value({"w": tensor(MATRIX, "0")}).op(b".")
    path = write_zip(tmp_path / "x.pth", p.code, p.storages)
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02", data.find(b"PK\x01\x02") + 1)
    for offset in 0xFFFFFF00, 3, len(data) - 10:
        data[at + 42 : at + 46] = struct.pack("<I", offset)
        path.write_bytes(data)
        with pytest.raises(FormatError):
            load(path)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2) + b"rest")
    refused(path, UnsupportedError, "before version 1.6")
    path.write_bytes(pickle.dumps({"a": 1}))
    refused(path, UnsupportedError, "bare pickle")
    path.write_bytes(b"hello, world")
    refused(path, FormatError, "no PyTorch file")
    refused(write_torch(path, [1, 2]), FormatError, "no state dict")
    refused(write_torch(path, {"module.w": MATRIX, "w": MATRIX}), FormatError, "twice")


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_damage_anywhere(tmp_path: Path) -> None:
    """Bytes changed at random: a clear error, or a dict whose tensors lie within their storages."""
    p = Pickle().value({"model": {"w": tensor(MATRIX, "0"), "v": tensor(MATRIX[0], "1", "BF16")}, "n": 3}).op(b".")
    rng = random.Random(0)
    outcomes = set()
    for _ in range(1500):
        code = bytearray(p.code)
        for _ in range(rng.randint(1, 3)):
            code[rng.randrange(2, len(code))] = rng.randrange(256)
        path = zipped(tmp_path, bytes(code), p.storages)
        try:
            for stored in load(path).values():
                if len(stored.shape) <= 2 and stored.dtype in ("F32", "BF16", "F16"):
                    rows(stored)
            outcomes.add("read")
        except LlaminaError as error:
            assert "\n" not in str(error)
            outcomes.add(type(error).__name__)
    assert outcomes == {"read", "FormatError", "UnsupportedError"}


def test_torch_files(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="extra 'oracle' is not installed")
    a = torch.randn(6, 5)
    linear = torch.nn.Linear(5, 6)
    state = {"a": a, "turned": a.t(), "part": a[2:4, 1:], "half": a.half(), "brain": a.bfloat16(), "parameter": linear.weight, "f8": a.to(torch.float8_e4m3fn),
             "f8b": a.to(torch.float8_e5m2), "double": a.double()}
    torch.save({"model": state, "args": {"x": 1}}, tmp_path / "x.pt")
    found, rest = load_state_dict(SourceFile(tmp_path / "x.pt"))
    assert rest == {"args": {"x": 1}} and list(found) == list(state)
    for name, ref in state.items():
        np.testing.assert_array_equal(rows(found[name]), ref.detach().float().numpy(), err_msg=name)
    torch.save(linear.state_dict(), tmp_path / "y.pt")
    np.testing.assert_array_equal(rows(load(tmp_path / "y.pt")["bias"]), linear.bias.detach().numpy())
    torch.save(state, tmp_path / "z.pt", _use_new_zipfile_serialization=False)
    refused(tmp_path / "z.pt", UnsupportedError, "1.6")
    torch.save(linear, tmp_path / "w.pt")
    refused(tmp_path / "w.pt", UnsupportedError, "nothing was run")
