"""gguf.GGUFWriter on files that are open already: adapters, steering vectors, importance matrices, and convert's models.

    writer with its keys ──► write_arrays(writer, file, tensors): header, keys, tensors, each at a multiple of the alignment
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def write_through(writer: Any, file: Any) -> None:
    """Header, keys and the announced tensors' places (add_tensor_info), into an open file; the writer would open one by name."""
    from gguf.gguf_writer import WriterState
    writer.fout, writer.state = [file], WriterState.EMPTY
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()


def write_arrays(writer: Any, file: Any, tensors: Iterable[tuple[str, str, tuple[int, ...], np.ndarray]]) -> None:
    """A whole file. tensors: name, format, shape, and the C-contiguous array of its bytes. OSError."""
    import gguf
    arrays = []
    for name, kind, shape, array in tensors:
        writer.add_tensor_info(name, shape, np.dtype(np.float32), array.nbytes, gguf.GGMLQuantizationType[kind])
        arrays.append(array)
    write_through(writer, file)
    for array in (np.zeros(0, np.uint8), *arrays):
        file.write(array.data)
        file.write(b"\0" * (-file.tell() % writer.data_alignment))
