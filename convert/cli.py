"""`llamina convert`: a checkpoint of any kind to a GGUF file in any format."""
from __future__ import annotations

import contextlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..engine.cli.options import debug_option, read_text
from ..engine.cli.progress import Progress, size
from ..engine.errors import OptionError
from ..engine.files import shown

if TYPE_CHECKING:
    from .convert import Report

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}


@click.command("convert")
@click.argument("source")
@click.argument("out")
@click.option("--type", "type_", metavar="TYPE", help="f32, f16, bf16, q8_0, q6_k, q5_k_m, q5_k_s, q5_0, q5_1, q4_k_m, q4_k_s, q4_0, q4_1, "
              "iq4_xs, iq4_nl, q3_k_l, q3_k_m, q3_k_s, q2_k; keep: as in the source.")
@click.option("--fit", metavar="SIZE", help="Instead of --type: the best mix whose file is at most SIZE, such as 4GB; the report explains it.")
@click.option("--bits", metavar="BITS", help="Instead of --type: the best mix of so many bits per weight on average, such as 4.2.")
@click.option("--from", "kind", metavar="KIND", help="hf, meta, pytorch, llama2c or gguf.  [default: recognised by content]")
@click.option("--tokenizer", metavar="FILE", help="Use this tokenizer file instead of the one beside the weights.")
@click.option("--tensor", "overrides", multiple=True, metavar="REGEX=FORMAT", help="Another format for matrices whose name matches; may be given several "
              "times, the last match counts.")
@click.option("--output-type", metavar="FORMAT", help="Format of the output matrix (the embedding, if tied).")
@click.option("--embedding-type", metavar="FORMAT", help="Format of the token embedding.")
@click.option("--importance", metavar="FILE", help="Importance matrix (llamina importance, or llama.cpp's imatrix, GGUF or .dat): weighs the columns' errors.")
@click.option("--lora", multiple=True, metavar="FILE[=SCALE]", help="Merge an adapter into the model (llama.cpp's .gguf or a PEFT folder); "
              "--type is keep then, unless said.")
@click.option("--base", metavar="MODEL", help="SOURCE is a PEFT folder: the model that the adapter is of.  [default: what the folder names]")
@click.option("--context", type=int, metavar="N", help="Positions to say instead of the trained ones; a model with sliding windows (Mistral 0.1, Zephyr) "
              "is the same without them within one window.")
@click.option("--meta", multiple=True, metavar="KEY=VALUE", help="Set a metadata key, such as general.name=mine; may be given several times. Nothing after = "
              "takes it out.")
@click.option("--vocab-only", is_flag=True, help="Write the vocabulary and metadata only, no tensors.")
@click.option("--split-max-size", "split", metavar="SIZE", help="Write shards of at most SIZE bytes of data, such as 500M or 2G.")
@click.option("--allow-nan", is_flag=True, help="Replace NaN and infinite weights by 0 instead of refusing them.")
@click.option("--verify/--no-verify", default=None, help="Check the result and write a report beside it.  [default: if it is smaller than 1 GB]")
@click.option("--verify-text", metavar="FILE", help="Also run result and source on this text: KL divergence and top-1 agreement.")
@click.option("--overwrite", is_flag=True, help="Replace OUT if it is there.")
@click.option("--dry-run", is_flag=True, help="Write nothing; say what there would be, how large, and about how long it takes.")
@click.option("--threads", type=int, metavar="N", help="Threads to encode with.  [default: all that may be used]")
@click.option("-q", "--quiet", is_flag=True, help="Nothing on stderr but errors.")
@debug_option
def command(source: str, out: str, type_: str | None, fit: str | None, bits: str | None, kind: str | None, tokenizer: str | None,
            overrides: tuple[str, ...], output_type: str | None, embedding_type: str | None, importance: str | None,
            lora: tuple[str, ...], base: str | None, context: int | None, meta: tuple[str, ...], vocab_only: bool, split: str | None,
            allow_nan: bool, verify: bool | None, verify_text: str | None, overwrite: bool,
            dry_run: bool, threads: int | None, quiet: bool) -> None:
    """Convert SOURCE to the GGUF file OUT.

    SOURCE is a folder of Hugging Face or of Meta's release, or a PyTorch, safetensors, llama2.c or GGUF file (the first shard of a split one), or
    hf:org/repo, which is downloaded first (extra hub); or a PEFT folder, whose adapter is written as llama.cpp's.
    OUT appears under its name once it is complete, and SOURCE is never written to.

    \b
    Examples:
      llamina convert ./Llama-2-7b-chat-hf llama2-7b.q4_k_m.gguf --type q4_k_m
      llamina convert hf:TinyLlama/TinyLlama-1.1B-Chat-v1.0 tinyllama.q4_k_m.gguf --type q4_k_m
      llamina convert model.f16.gguf model.q3_k_m.gguf --type q3_k_m --importance imatrix.gguf --tensor 'ffn_down=q4_k'
      llamina convert model.f16.gguf model.gguf --fit 4GB --importance imatrix.gguf
      llamina convert stories15M.bin stories15M.gguf --type q8_0 --tokenizer tokenizer.model
      llamina convert model-00001-of-00003.gguf model.gguf --type keep
      llamina convert ./my-lora my-lora.gguf --base model.gguf
      llamina convert model.gguf merged.gguf --lora my-lora.gguf=0.8
      llamina convert ./zephyr-7b-beta zephyr.gguf --type q4_k_m --context 4096 --meta general.name=Zephyr --dry-run
    """
    from ..engine.cli.adapters import with_number
    from .convert import convert
    from .merge import check_options, convert_adapter, distance, is_peft, kept_formats, merged, told
    from .sources import open_source
    from .writer import check_target
    if is_peft(source):
        check_options(type_ is not None, fit=fit, bits=bits, lora=lora, importance=importance, tensor=overrides, meta=meta, vocab_only=vocab_only)
        adapter = convert_adapter(source, out, base, overwrite=overwrite)
        if not quiet:
            print(f"{shown(out)}: {adapter}, {adapter.n_parameters:,} numbers, SHA-256 {adapter.digest}", file=sys.stderr)
        return
    if base is not None:
        raise OptionError("--base is for PEFT folders (with adapter_config.json)")
    adapters = [with_number(text, "--lora") for text in lora]
    if lora and type_ is None and fit is None and bits is None:
        type_ = "keep"
    if vocab_only and type_ is None and fit is None and bits is None:
        type_ = "keep"
    if [type_, fit, bits].count(None) != 2:
        raise OptionError("say what the result shall be by one of --type, --fit and --bits")
    check_target(Path(out), [Path(source)], overwrite)  # before anything is downloaded or measured
    weights = None
    if importance:
        from .importance import read
        weights = read(Path(importance))
    text = read_text(verify_text) if verify_text else None
    with Progress(quiet) as progress, contextlib.closing(open_source(source, kind, tokenizer, progress.loading, context)) as opened:
        unmerged, planned = opened, None
        if adapters:
            opened = merged(opened, adapters)
        if type_ is None:
            from .fit import parse_bits, plan
            planned = plan(opened, file_bytes=parse_size(fit) if fit else None, bits=parse_bits(bits) if bits else None, importance=weights, threads=threads,
                           progress=progress.counting, text=text, folder=Path(out).absolute().parent)
            opened.notes += planned.explain()  # each matrix stands in the report
            opened.metadata.pop("general.file_type", None)  # the commonest format's, not the source's
        report = convert(
            opened, out, type_ or "keep", formats=kept_formats(unmerged, opened) if type_ == "keep" else None, plan=planned, overrides=overrides,
            output_type=output_type, embedding_type=embedding_type, importance=weights, threads=threads,
            progress=lambda what, done, total: (progress.counting if what == "windows" else progress.loading)(what, done, total),
            split=None if split is None else parse_size(split), allow_nan=allow_nan,
            verify=False if verify is False and text is None else verify,
            verify_text=None if adapters and unmerged.kind == "gguf" else text, overwrite=overwrite, meta=meta, vocab_only=vocab_only,
            dry_run=dry_run)
        if adapters and not dry_run and unmerged.kind == "gguf":
            report.notes.append(told(distance(unmerged.path, adapters, report.paths[0], text, threads, progress.counting)))
        progress.clear()
    if dry_run:
        for line in dry_summary(report):
            print(line)
        return
    if not quiet:
        for line in summary(report):
            print(line, file=sys.stderr)
    if report.verification and not report.verification.passed:
        for problem in report.verification.problems[:10]:
            print(f"llamina: {problem}", file=sys.stderr)
        print(f"llamina: verification of {shown(report.paths[0])} failed: don't use it, and please report this with the source's name", file=sys.stderr)
        raise click.exceptions.Exit(1)


def parse_size(text: str) -> int:
    """ "500M", "2G", "1.5GB", "4096" -> bytes. OptionError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip().upper())
    if not match:
        raise OptionError(f"a size is a number with K, M or G such as 500M or 2G, found {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def summary(report: Report) -> list[str]:
    """What the user should know, line by line."""
    fallbacks = sum(t.wanted is not None for t in report.tensors)
    lines = [f"llamina: {note}" for note in report.notes[:20]]
    if len(report.notes) > 20:
        lines.append(f"llamina: and {len(report.notes) - 20} more such remarks{' (all are in the report)' if report.verification else ''}")
    shards = f" in {len(report.paths)} shards" if len(report.paths) > 1 else ""
    if not report.tensors:
        return [*lines, f"{shown(report.paths[0])}: {size(report.bytes)}, vocabulary only, {report.seconds:.1f} s"]
    lines.append(f"{shown(report.paths[0])}: {size(report.bytes)}{shards}, {report.bits_per_weight:.2f} bits per weight ({mix(report)}), {report.seconds:.1f} s"
                 + (f"; {fallbacks} matrices fell back to another format" if fallbacks else ""))
    if (v := report.verification) and v.passed:
        kl = f", mean KL {v.divergence.mean_kl:.6f}, same top token {100 * v.divergence.top1_agreement:.2f} %" if v.divergence else ""
        what = "all but the vocabulary, which llamina does not know" if v.unchecked else "vocabulary"
        lines.append(f"verified: {what}, {len(v.tensors)} tensors{kl}; report in {shown(v.files[1])}")
    return lines


def mix(report: Report) -> str:
    """ "113 Q4_K, 29 Q6_K, 45 F32"."""
    return ", ".join(f"{n} {name}" for name, n in report.mix.items())


def dry_summary(report: Report) -> list[str]:
    """What a dry run found: the answer, so for stdout."""
    shards = f" in {len(report.paths)} shards" if len(report.paths) > 1 else ""
    lines = [f"would convert {report.source} ({report.kind}, {len(report.tensors)} tensors) to {report.paths[0]}{shards}",
             f"about {size(report.bytes)}, {report.bits_per_weight:.2f} bits per weight ({mix(report)})",
             f"about {report.seconds:.0f} s to encode, then verification"]
    return [*lines, *(f"note: {note}" for note in report.notes)]
