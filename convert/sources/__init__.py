"""Checkpoints of every kind, seen alike: GGUF metadata and named float32 rows.

    open_source(path) -> detect.py finds the kind by content -> hf.py, meta.py, pytorch.py, llama2c.py or gguf_source.py -> base.Source

A reader maps its files (base.py, safetensors_file.py, ../unpickle.py), turns their configuration into an engine ModelConfig and so into metadata,
their vocabulary into tokenizer.ggml.* (vocabulary.py), and their tensor names into GGUF's (../names.py). Nothing is decoded before a tensor's
rows are asked for, so a source takes little memory however large the model is.
"""
from __future__ import annotations

from .base import Source, SourceTensor
from .detect import KINDS, open_source
from .fresh import open_config

__all__ = ["KINDS", "Source", "SourceTensor", "open_config", "open_source"]
