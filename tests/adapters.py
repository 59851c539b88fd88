"""Adapters with random numbers, for tests.

    adapter = random_adapter(config, rank=4)                     a pair for every matrix that may have one
    write_peft(folder, config, adapter)                          the same as a PEFT folder
"""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import write_safetensors
from llamina.engine.architectures.adapted import targets
from llamina.engine.architectures.config import ModelConfig
from llamina.engine.architectures.hf import hf_tensors, row_orders
from llamina.engine.architectures.pages import PAGES
from llamina.engine.train.adapter import Adapter, Pair, scale_of


def random_adapter(config: ModelConfig, rank: int | Callable[[str], int] = 4, alpha: float = 8.0, seed: int = 0, stored: str = "F32",
                   only: Callable[[str], bool] = lambda name: True) -> Adapter:
    """Numbers are such that an adapter changes every matrix's results by about a third of their size."""
    rng, pairs = np.random.default_rng(seed), {}
    for name, target in targets(config).items():
        if not only(name):
            continue
        r = rank(name) if callable(rank) else rank
        a, b = rng.standard_normal((r, target.columns)) * target.columns**-0.5, rng.standard_normal((target.rows, r)) * 0.3 / (alpha / r) / r**0.5
        values = [np.ascontiguousarray(v, np.float32) for v in (a, b)]
        if stored == "F16":
            values = [v.astype(np.float16).astype(np.float32) for v in values]
        pairs[name] = Pair(values[0], values[1], scale_of(alpha, r), stored)
    return Adapter(config.architecture, pairs, alpha)


def write_peft(folder: Path, config: ModelConfig, adapter: Adapter, dtype: str = "F32", **options: Any) -> Path:
    """The adapter as PEFT keeps it: other names, rows of q and k in Hugging Face's order."""
    folder.mkdir()
    page = PAGES[config.architecture]
    names, orders = {t.name: hf.removesuffix(".weight") for hf, t in hf_tensors(page, config).items()}, row_orders(page, config)
    tensors = {}
    for name, pair in adapter.pairs.items():
        b = pair.b
        if name in orders:
            b = np.empty_like(pair.b)
            b[orders[name]] = pair.b
        tensors[f"base_model.model.{names[name]}.lora_A.weight"], tensors[f"base_model.model.{names[name]}.lora_B.weight"] = pair.a, b
    write_safetensors(folder / "adapter_model.safetensors", tensors, dtype)
    ranks = {pair.rank for pair in adapter.pairs.values()}
    r = max(ranks)
    config_json = {"peft_type": "LORA", "r": r, "lora_alpha": adapter.alpha, "target_modules": ["q_proj"], "bias": "none", "use_rslora": False,
                   "modules_to_save": None, "lora_dropout": 0.05, "task_type": "CAUSAL_LM", "base_model_name_or_path": "base", "inference_mode": True,
                   "rank_pattern": {names[n]: p.rank for n, p in adapter.pairs.items() if p.rank != r}, **options}
    (folder / "adapter_config.json").write_text(json.dumps(config_json))
    return folder
