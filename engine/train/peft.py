"""PEFT folders (Hugging Face): adapter_config.json and adapter_model.safetensors, as an Adapter of a known model.

    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight ──► blk.0.attn_q.weight, a; rows of q's and k's b in GGUF's order

What would change the result and is not done here (DoRA, biases, whole replaced modules, base weights that the adapter's making changed) is refused by name.
"""
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...kernels.formats import registry
from ..architectures.adapted import targets
from ..architectures.hf import hf_tensors, of_text, row_orders
from ..architectures.pages import PAGES
from ..errors import FileError, FormatError, OptionError, UnsupportedError, quoted, why
from ..files import StableFile, read_file, shown
from ..gguf.safetensors import read_header
from .adapter import FORMATS, Adapter, Pair, scale_of

if TYPE_CHECKING:
    from ..architectures.config import ModelConfig

_WITHOUT_EFFECT = {
    "alora_invocation_tokens", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config",
    "megatron_config", "megatron_core", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules", "task_type",
}
"""Keys that say how the adapter was made, or where its tensors are, which their names say again."""
_USED = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "use_dora", "lora_bias"}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")


def read_peft(folder: Path, config: ModelConfig | None) -> Adapter:
    """FileError, FormatError, UnsupportedError; OptionError without the configuration of the model."""
    if config is None:
        raise OptionError(f"{shown(folder)}: what the tensors of a PEFT folder are is known beside their model alone: give the model, too")
    options = _config(folder / "adapter_config.json")
    file = folder / "adapter_model.safetensors"
    if not file.exists() and (folder / "adapter_model.bin").exists():
        raise UnsupportedError(f"{shown(folder)}: holds adapter_model.bin: save it as safetensors (PEFT's save_pretrained does)")
    page = PAGES[config.architecture]
    known, orders, output = hf_tensors(page, config), row_orders(page, config), config.output.matrix
    names = {hf.removesuffix(".weight"): tensor.name for hf, tensor in known.items()}
    if output and config.tied_output:
        names["lm_head"] = "output.weight"
    allowed = targets(config)
    recurrent = {m.tensor for block in config.recurrents() for m in block.matrices()}
    found: dict[str, dict[str, np.ndarray]] = {}
    modules, stored = dict[str, str](), dict[str, str]()
    for name, values, kind in _tensors(file):
        match = _TENSOR.fullmatch(name)
        if not match:
            raise UnsupportedError(f"{shown(file)}: tensor {quoted(name)}: {_unknown(name)}")
        module = match[1]
        ours = names.get(module) or names.get(of_text(module))
        if ours is None or ours not in allowed or ours in recurrent:
            raise UnsupportedError(f"{shown(file)}: tensor {quoted(name)} is of no matrix that llamina runs adapters of (architecture {config.architecture})")
        if match[2] == "B" and ours in orders:
            if len(values) != len(orders[ours]):
                raise FormatError(f"{shown(file)}: tensor {quoted(name)} has {len(values)} rows, the model's {ours} {len(orders[ours])}: another model's")
            values = np.ascontiguousarray(values[orders[ours]])
        found.setdefault(ours, {})[match[2]] = values
        modules[ours], stored[ours] = module, kind if stored.get(ours, kind) == kind else "F32"
    pairs = {}
    for ours in (name for name in allowed if name in found):  # in order of use
        both, module = found[ours], modules[ours]
        if len(both) < 2:
            raise FormatError(f"{shown(file)}: {quoted(module)} has only one of lora_A and lora_B: the adapter is not whole")
        rank = _by_pattern(options.get("rank_pattern"), module, options["r"])
        if both["A"].shape[0] != rank or both["B"].shape[1] != rank:
            raise FormatError(f"{shown(file)}: {quoted(module)}: lora_A {list(both['A'].shape)} and lora_B {list(both['B'].shape)} must be of rank {rank} "
                              "(adapter_config.json)")
        alpha = _by_pattern(options.get("alpha_pattern"), module, options["lora_alpha"])
        pairs[ours] = Pair(both["A"], both["B"], scale_of(alpha, rank, bool(options.get("use_rslora"))), stored[ours])
    return Adapter(config.architecture, pairs, float(options["lora_alpha"]), bool(options.get("use_rslora")), str(folder))


def _config(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileError(f"{shown(path)}: is missing: a folder with an adapter holds adapter_config.json and adapter_model.safetensors (PEFT)")
    where = shown(path)
    try:
        options = json.loads(read_file(path, 1 << 24).decode())
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: is not valid JSON ({why(error)})") from None
    if not isinstance(options, dict):
        raise FormatError(f"{where}: must be an object")

    def refuse(key: str, reason: str) -> UnsupportedError:
        return UnsupportedError(f"{where}: {key} is {quoted(options.get(key))}: {reason}")
    if options.get("peft_type") != "LORA":
        raise refuse("peft_type", "llamina runs LORA")
    if options.get("use_dora"):
        raise refuse("use_dora", "DoRA is not run: merge it into the model's weights (PEFT's merge_and_unload), and convert that")
    if options.get("modules_to_save"):
        raise refuse("modules_to_save", "whole replaced modules are not run: merge them into the model's weights (PEFT's merge_and_unload), and convert that")
    if options.get("bias", "none") != "none":
        raise refuse("bias", "trained biases are not run")
    start = options.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise refuse("init_lora_weights", "it changed the model's own weights as well: save it converted (path_initial_model_for_weight_conversion)")
    for key, value in options.items():
        on = value not in (None, False, "", 0) and value != [] and value != {}
        if on and (key == "lora_bias" or key == "alora_invocation_tokens" or key not in _USED | _WITHOUT_EFFECT):
            raise refuse(key, "llamina does not know this kind of adapter")
    for key in "r", "lora_alpha":
        value = options.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e9 or key == "r" and value != int(value):
            raise FormatError(f"{where}: {key} must be a number above 0, found {quoted(value)}")
    for key in "rank_pattern", "alpha_pattern":
        pattern = options.get(key) or {}
        if not isinstance(pattern, dict) or any(isinstance(v, bool) or not isinstance(v, (int, float)) or not 0 < v < 1e9 for v in pattern.values()):
            raise FormatError(f"{where}: {key} must give names numbers above 0, found {quoted(pattern)}")
    return options


def _by_pattern(pattern: dict[str, Any] | None, module: str, otherwise: Any) -> Any:
    """PEFT's get_pattern_key: the first key that is the module's name, or the end of it, as a regular expression."""
    for key, value in (pattern or {}).items():
        if key.isascii() and len(key) < 1000 and _matches(key, module):
            return value
    return otherwise


def _matches(key: str, module: str) -> bool:
    if re.fullmatch(r"\^?[\w.]+\$?", key):  # a plain name; a dot is one, or any character: the same for names as models have
        name = key.strip("^$")
        return module == name or not key.startswith("^") and module.endswith("." + name)
    raise UnsupportedError(f"rank_pattern or alpha_pattern has {quoted(key)}: llamina knows plain names there, no regular expressions")


def _unknown(name: str) -> str:
    if "lora_magnitude_vector" in name:
        return "DoRA is not run"
    if "lora_embedding" in name:
        return "llamina runs no adapters of embeddings"
    if "lora_" not in name:
        return "whole replaced tensors (modules_to_save, trained biases) are not run: merge the adapter into the model's weights, and convert that"
    return "is no lora_A or lora_B of a matrix"


def _tensors(path: Path) -> list[tuple[str, np.ndarray, str]]:
    found = []
    with StableFile(path, "an adapter's adapter_model.safetensors") as file:
        for name, entry in read_header(file).items():
            where = f"{shown(path)}: tensor {quoted(name)}"
            if entry.dtype not in FORMATS:
                raise UnsupportedError(f"{where} is {entry.dtype}, expected one of {', '.join(FORMATS)}")
            if len(entry.shape) != 2:
                raise UnsupportedError(f"{where} has shape {list(entry.shape)}: {_unknown(name) if not _TENSOR.fullmatch(name) else 'expected a matrix'}")
            raw = np.frombuffer(file.read(entry.offset, entry.n_bytes), np.uint8)
            values = np.ascontiguousarray(registry.decode(entry.dtype, raw.reshape(1, -1)).reshape(entry.shape), np.float32)
            if not np.isfinite(values).all():
                raise FormatError(f"{where} holds NaN or infinity")
            found.append((name, values, entry.dtype))
        file.check()
    return found
