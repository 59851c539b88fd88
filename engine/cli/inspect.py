"""`llamina inspect`: what a model file holds, and how it would run here."""
from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

import click

from ..errors import LlaminaError
from . import one_line
from .options import as_json_line, debug_option, model_argument
from .progress import Progress, size

if TYPE_CHECKING:
    from ..architectures.config import ModelConfig
    from ..gguf.file import GGUFFile

SHOWN = 72  # characters of a metadata value


@click.command("inspect")
@model_argument
@click.option("--context", type=int, metavar="N", help="Positions to plan memory for.  [default: as trained, at most 4096]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--settings", "show_settings", is_flag=True, help="Show instead which options hold for MODEL, and where each was said.")
@click.option("--program", "show_program", is_flag=True, help="Show instead the stages that a step runs.")
@debug_option
def command(model: str, context: int | None, as_json: bool, show_settings: bool, show_program: bool) -> None:
    """Say whether a model runs here, with how much memory, and whether it chats; then show its metadata, configuration, tensors with the kernels that would run
    them, vocabulary and chat template.

    MODEL is a .gguf file, vocabulary-only ones too, a name that llamina list shows, or one of the hub. Only the header is read: of a model on the hub, only
    that is downloaded.

    \b
    Examples:
      llamina inspect model.gguf
      llamina inspect model.gguf --json
      llamina inspect hf:TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF:Q4_K_M
      llamina inspect model.gguf --settings
      llamina inspect model.gguf --program
    """
    from ..checks import count
    from ..gguf.file import open_gguf
    from ..home.resolve import resolve
    with Progress() as progress, contextlib.ExitStack() as stack:
        remote = _remote(model, progress, stack) if not show_settings else None
        path = None if remote else resolve(model, progress.loading)
        progress.clear()
        if show_settings and path:
            from .inspect_settings import show
            show(path, as_json)
            return
        gguf = remote or stack.enter_context(open_gguf(path or ""))
        if show_program:
            stages = program(gguf)
            print(as_json_line(stages) if as_json else "\n".join(_program_lines(stages)))
            return
        report = describe(gguf, count("context", context))
    if remote:
        from ..home.hub import from_address
        report["path"] = from_address(model)
    if as_json:
        print(as_json_line(report))
    else:
        print("\n".join(_lines(report)))


def _remote(model: str, progress: Progress, stack: contextlib.ExitStack) -> GGUFFile | None:
    """The header of a model on the hub; None for any other, or one that is in the hub's cache."""
    from ..home.library import is_hub_name
    if not is_hub_name(model):
        return None
    from ..home.hub import cached_file, find_gguf
    from ..home.hub_peek import remote_gguf
    progress.stage("asking the hub")
    listing, files = find_gguf(model)
    return None if listing.cached or cached_file(listing, files) else stack.enter_context(remote_gguf(listing, files))


def describe(gguf: GGUFFile, context: int | None = None) -> dict[str, Any]:
    """The report as JSON-able values. What cannot be said of this file (a configuration that is refused, no vocabulary) is the reason why."""
    from ..architectures.config import ModelConfig, check_tensors
    from ..home.verdict import judge
    from ..text.tokenizer import load_tokenizer
    report: dict[str, Any] = {
        "path": str(gguf.path), "shards": len(gguf.paths), "version": gguf.version, "alignment": gguf.alignment,
        "file_bytes": sum(p.stat().st_size for p in gguf.paths), "metadata": {key: _value(gguf, key) for key in gguf.metadata},
        "runs": True, "config": None, "target": None, "memory": None, "tokenizer": None,
    }
    kernels: dict[str, str] = {}
    try:
        config = ModelConfig.from_gguf(gguf)
        report["config"] = config.summary()
        check_tensors(gguf, config)
        kernels, report["memory"] = _plan(gguf, config, context)
        from ...kernels.target import TARGET
        report["target"] = TARGET
        report["threads"] = _threads(sum(t.n_bytes for t in gguf.tensors.values()))
    except LlaminaError:
        pass  # the verdict says it
    report["tensors"] = [
        {"name": t.name, "shape": list(t.shape), "format": t.format.name, "bytes": t.n_bytes, "kernel": kernels.get(t.name)} for t in gguf.tensors.values()
    ]
    try:
        t = load_tokenizer(gguf.metadata, gguf.path)
        ids = {"bos": t.bos_id, "eos": t.eos_id, "unknown": t.unk_id, "padding": t.pad_id}
        report["tokenizer"] = {
            "kind": t.kind, "n_vocab": t.n_vocab, "ids": {name: None if i is None else [i, t.token_text(i)] for name, i in ids.items()},
            "end_of_generation": [[i, t.token_text(i)] for i in sorted(t.eog_ids)], "add_bos": t.add_bos, "add_eos": t.add_eos, "digest": t.vocab_digest(),
            "notes": t.vocabulary.notes,
        }
    except LlaminaError as error:
        report["tokenizer"] = str(error)
    verdict = judge(gguf, context)
    report["runs"] = verdict.problem or True
    report["verdict"] = {"what": verdict.what, "name": verdict.name, "memory": verdict.memory, "free": verdict.free, "fits": verdict.fits, "chat": verdict.chat,
                         "trained_context": verdict.trained}
    report["formats"], report["bits_per_weight"] = _mix(gguf)
    templates = {key.removeprefix("tokenizer.chat_template").lstrip(".") or "default": gguf.metadata[key]
                 for key in gguf.metadata if key.startswith("tokenizer.chat_template") and key[23:24] in ("", ".")}
    report["chat_templates"] = {name: text for name, text in templates.items() if isinstance(text, str)}
    report["chat_template"] = report["chat_templates"].get("default")
    return report


def program(gguf: GGUFFile) -> list[dict[str, Any]]:
    """The stages of a step, unobserved: {"layer", "name", "op", "works_on"}. Raises what ModelConfig.from_gguf and check_tensors raise."""
    from ...kernels.formats import registry
    from ..architectures.config import ModelConfig, check_tensors
    from ..run.program import listing
    config = ModelConfig.from_gguf(gguf)
    check_tensors(gguf, config)
    layers, end = config.fused(lambda m: not registry.takes_floats(gguf.tensors[m.tensor].format.name))
    formats = {name: info.format.name for name, info in gguf.tensors.items()}
    return [row for part in (*layers, end) for row in listing(part, formats)]


def _program_lines(stages: list[dict[str, Any]]) -> list[str]:
    """Layers that differ in nothing but their number are told once."""
    lines: list[str] = []
    layers: dict[int | None, list[dict[str, Any]]] = {}
    for stage in stages:
        layers.setdefault(stage["layer"], []).append(stage)
    texts = {layer: [f"  {s['name']:17} {s['op']:12} {s['works_on']}".rstrip().replace(f"blk.{layer}.", "blk.N.") for s in part]
             for layer, part in layers.items()}
    order = list(texts)
    i = 0
    while i < len(order):
        last = i
        while last + 1 < len(order) and order[last + 1] is not None and texts[order[last + 1]] == texts[order[i]]:
            last += 1
        layer = order[i]
        title = "end" if layer is None else f"layer {layer}" if last == i else f"layers {layer} to {order[last]}"
        lines += [title, *texts[layer]]
        i = last + 1
    return lines


def _mix(gguf: GGUFFile) -> tuple[dict[str, dict[str, Any]], float | None]:
    """(per format: tensors, weights, bytes, the largest share first; bits per weight of all tensor data, None without tensors)."""
    formats: dict[str, dict[str, Any]] = {}
    for t in gguf.tensors.values():
        held = formats.setdefault(t.format.name, {"tensors": 0, "weights": 0, "bytes": 0})
        held["tensors"] += 1
        held["weights"] += math.prod(t.shape)
        held["bytes"] += t.n_bytes
    weights = sum(held["weights"] for held in formats.values())
    ordered = dict(sorted(formats.items(), key=lambda item: -item[1]["bytes"]))
    return ordered, 8 * sum(held["bytes"] for held in formats.values()) / weights if weights else None


def _value(gguf: GGUFFile, key: str) -> Any:
    """A metadata value; of an array its length only, of a number that JSON can't write its name."""
    length = gguf.metadata.array_length(key)
    if length is not None:
        return f"[{length} values]"
    value = gguf.metadata[key]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _plan(gguf: GGUFFile, config: ModelConfig, context: int | None) -> tuple[dict[str, str], dict[str, int]]:
    """({tensor: what computes with it}, bytes that running takes)."""
    from ..run.kv_cache import PAGE, kv_type
    from ..run.kv_groups import kv_layout
    from ..run.memory import DEFAULT_CONTEXT, MOST_TOKENS
    from ..run.weights import matrix_names, weight_bytes
    matrices = matrix_names(config)
    kernels = {name: f"matmul_{gguf.tensors[name].format.name}" for name in matrices}
    embedding = kernels.get("token_embd.weight")
    kernels["token_embd.weight"] = "row look-up" + (f", {embedding}" if embedding else "")
    kernels.update({name: "float32 gain" for name, info in gguf.tensors.items() if name.endswith("_norm.weight") and len(info.shape) == 1})
    context = context or min(config.context_length, DEFAULT_CONTEXT)
    weights = weight_bytes(gguf, config)
    layout = kv_layout(config, kv_type(config), context, MOST_TOKENS)
    return kernels, {"weights": weights, "context": context, "kv_per_page": layout.rows * layout.unit, "kv_page_positions": PAGE, "kv": layout.bytes(context),
                     "kv_windowed": layout.bytes(context) - layout.whole * -(-context // PAGE) * layout.unit if layout.windowed else 0}


def _threads(weight_bytes: int) -> dict[str, Any]:
    """{"threads": how many by default, None until measured; "because": why}"""
    from ...kernels.threads import default_threads
    from ..run import thread_choice
    if asked := thread_choice.asked():
        return {"threads": asked, "because": f"{thread_choice.VARIABLE} says so"}
    found = thread_choice.lookup(weight_bytes)
    if found is None:
        return {"threads": None, "because": "measured at first use"}
    measured = weight_bytes >= thread_choice.SMALL and found is not None and default_threads() > 1
    return {"threads": found, "because": "measured" if measured else "one for each physical core"}


def _summary(r: dict[str, Any]) -> list[str]:
    """What most people want to know."""
    v, m, shards = r["verdict"], r["memory"], f", {r['shards']} shards" if r["shards"] > 1 else ""
    lines = [one_line(f"{v['name'] or r['path']}: {v['what']}, {size(r['file_bytes'])}{shards}"),
             "runs here: " + (f"yes, with the {r['target']} kernels" if r["runs"] is True else f"no: {one_line(r['runs'])}")]
    if m:
        trained = f", trained with {v['trained_context']}" if v["trained_context"] and v["trained_context"] != m["context"] else ""
        lines.append(f"memory: about {size(v['memory'])}: weights {size(m['weights'])}, KV cache {size(m['kv'])} for a context of {m['context']} tokens"
                     f"{trained}" + ("" if v["fits"] else f"; only {size(v['free'])} are free"))
    if r["tensors"]:
        lines.append("chat: " + {"own": "yes, the file has a template", "none": "no template in the file: perhaps a base model, that continues texts"}.get(
            v["chat"], f"the file's template can't be used: {one_line(v['chat'])}"))
    if r.get("threads"):
        lines.append(f"threads by default: {r['threads']['threads'] or 'not known yet'} ({r['threads']['because']})")
    return lines


def _lines(r: dict[str, Any]) -> list[str]:
    lines = [*_summary(r), f"file: {one_line(r['path'])}, GGUF version {r['version']}, alignment {r['alignment']}"]
    lines += ["", "metadata"]
    for key, value in r["metadata"].items():
        text = one_line(str(value))
        lines.append(f"  {one_line(key)} = {text if len(text) <= SHOWN else text[:SHOWN] + '...'}")
    if r["config"]:
        lines += ["", "configuration"] + [f"  {key} = {one_line(str(value))}" for key, value in r["config"].items()]
    if r["tensors"]:
        weights, n_bytes = (sum(held[key] for held in r["formats"].values()) for key in ("weights", "bytes"))
        lines += ["", f"{len(r['tensors'])} tensors, {weights:,} weights, {size(n_bytes)}: {r['bits_per_weight']:.2f} bits per weight"]
        for name, held in r["formats"].items():
            lines.append(f"  {name:8} {held['tensors']:4} tensors {size(held['bytes']):>9}  {100 * held['bytes'] / n_bytes:5.1f} % of the bytes, "
                         f"{8 * held['bytes'] / held['weights']:.4g} bits per weight")
        lines.append("")
        width = min(40, max(len(one_line(t["name"])) for t in r["tensors"]))
        for t in r["tensors"]:
            shape = " x ".join(str(n) for n in t["shape"])
            lines.append(f"  {one_line(t['name']):{width}}  {t['format']:8} {shape:>16} {size(t['bytes']):>9}  {t['kernel'] or ''}".rstrip())
    if r["memory"]:
        m = r["memory"]
        windowed = f"; a context of {m['context']} takes {size(m['kv'])}, {size(m['kv_windowed'])} of it in layers with windows" if m["kv_windowed"] else ""
        lines += ["", f"KV cache: {size(m['kv_per_page'])} for each {m['kv_page_positions']} positions, as they are used{windowed}"]
    t = r["tokenizer"]
    if isinstance(t, dict):
        named = [f"{name} {pair[0]} {pair[1]!r}" for name, pair in t["ids"].items() if pair]
        lines += ["", f"vocabulary: {t['n_vocab']} tokens, {t['kind']}; {', '.join(named)}; BOS {'added' if t['add_bos'] else 'not added'}"]
        lines += [f"  note: {note}" for note in t["notes"]]
        lines += ["  ends an answer: " + (", ".join(f"{i} {text!r}" for i, text in t["end_of_generation"]) or "nothing")]
    else:
        lines += ["", f"vocabulary: none that can be used: {t}"]
    for name, text in r["chat_templates"].items():
        lines += ["", "chat template" + (f" '{one_line(name)}'" if name != "default" else "")] + ["  " + one_line(line) for line in text.splitlines()]
    return lines
