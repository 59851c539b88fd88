"""Write the pages that are made from the code: docs/formats.md from the format and kernel tables, docs/cli.md from the command line, docs/models.md from the
architectures' pages and their tests.

    python docs/generate.py            write them        (tests/test_docs.py checks that they are current)
"""
from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from llamina.engine.architectures.page import Page
from llamina.engine.architectures.pages import PAGES
from llamina.engine.cli import llamina as group
from llamina.engine.cli.help import sections
from llamina.engine.text.tokenizer.splits import known_names
from llamina.kernels.formats.floats import FloatPacking
from llamina.kernels.formats.registry import packing as packing_of
from llamina.kernels.formats.table import FORMATS, REMOVED, RUNNABLE, BlockFormat
from llamina.kernels.matmul import ROWS

DOCS = Path(__file__).resolve().parent
sys.path.append(str(DOCS.parent / "tests"))  # where it is said what is compared with what

FORMATS_HEAD = f"""\
# Weight formats

<!-- Made by docs/generate.py from kernels/formats/: edit there. -->

A matrix row in a GGUF file is a whole number of *blocks*, one after the other; a format says how many columns a block holds and in how many bytes. At
load every matrix is *retiled*: a **tile** is {ROWS} rows x one block of columns, lane = row, so that one vector holds the same columns of {ROWS} rows and no
kernel ever sums across lanes. The token embedding stays in the file; its rows are decoded as tokens need them.

## Formats that run

- *overhead*: bytes of a tile beyond those of its {ROWS} blocks in the file: what is widened so that nothing needs unpicking while weights stream.
- *input*: what the kernel multiplies with: float32 activations as they are, rounded to bfloat16, or quantised to int8 per 32 columns (kernels/activations.py).
- *zero*: the zero point of the unsigned codes in a tile, folded in exactly through the integer sum of the activations.
- *scale*, *minimum*: how many columns one multiplies in the kernel. "int": an integer that multiplies an exact integer sum before anything becomes a float;
  the others are floats.

| format | ggml id | columns | bytes | bits per weight | tile bytes | overhead | input | zero | scale | minimum |
|---|---:|---:|---:|---:|---:|---:|---|---:|---|---|
"""
KNOWN_HEAD = """
## Formats that are known, but have no kernel

A file that holds a weight matrix in one of these can be opened and inspected; running it is refused, by the tensor's and the format's name.

| format | ggml id | columns | bytes | bits per weight |
|---|---:|---:|---:|---:|
"""


def _runnable_row(f: BlockFormat) -> str:
    packing = packing_of(f.name)
    if isinstance(packing, FloatPacking):
        tile, rest = ROWS * f.bytes, ["bfloat16" if f.name == "BF16" else "float32", "", "", ""]
        size = f"{tile} a column"
    else:
        tile = packing.tile_bytes
        size = str(tile)
        minimum = "int per 16" if packing.half_minimums else "per 32" if packing.minimum else ""
        rest = ["int8", str(packing.zero), "int per 16" if packing.half_scales else "per 32", minimum]
    overhead = f"{100 * (tile / (ROWS * f.bytes) - 1):.1f} %"
    return "| " + " | ".join([f.name, str(f.ggml_id), str(f.columns), str(f.bytes), f"{f.bits_per_weight:g}", size, overhead, *rest]) + " |\n"


def formats_page() -> str:
    page = FORMATS_HEAD + "".join(_runnable_row(f) for f in FORMATS.values() if f.name in RUNNABLE)
    page += KNOWN_HEAD
    page += "".join(f"| {f.name} | {f.ggml_id} | {f.columns} | {f.bytes} | {f.bits_per_weight:.4g} |\n" for f in FORMATS.values() if f.name not in RUNNABLE)
    page += "\nNumbers that llama.cpp once used and took back are refused by name: " + ", ".join(f"{name} ({id})" for id, name in REMOVED.items()) + ".\n"
    modules = dict.fromkeys(sys.modules[packing_of(name).decode.__module__] for name in FORMATS if name in RUNNABLE)
    for module in modules:
        page += f"\n## kernels/formats/{Path(inspect.getfile(module)).name}\n\n```text\n{inspect.getdoc(module)}\n```\n"
    return page


def _paragraphs(text: str) -> Iterator[str]:
    """A command's help as Markdown: what click prints as it stands (after a backspace character) becomes a code block."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            yield "```text\n" + paragraph.removeprefix("\b").strip("\n") + "\n```"
        else:
            yield paragraph


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _parameters(command: click.Command) -> Iterator[str]:
    """Rows of the table of options, in their groups. Not click's own layout, which changes with its version."""
    for title, options in sections(command):
        if title:
            yield f"| **{title}** | |\n"
        yield from map(_parameter, options)


def _parameter(p: click.Option) -> str:
    names = ", ".join(p.opts) + (" / " + ", ".join(p.secondary_opts) if p.secondary_opts else "")
    value = "" if p.is_flag else f" {p.metavar or p.type.name.upper()}"
    default = f" [default: {p.default}]" if p.show_default is True else ""
    return f"| `{names}{value}` | {_cell((p.help or '') + default)} |\n"


def _command(name: str, command: click.Command) -> str:
    arguments = [p.metavar or (p.name or "").upper() if p.required else p.metavar or f"[{(p.name or '').upper()}]"
                 for p in command.params if isinstance(p, click.Argument)]
    text = f"\n## {name}\n\n```sh\n{' '.join([name, '[OPTIONS]', *arguments])}\n```\n\n" + "\n\n".join(_paragraphs(command.help or "")) + "\n"
    rows = "".join(_parameters(command))
    return text + (f"\n| option | |\n|---|---|\n{rows}" if rows else "")


def cli_page() -> str:
    context = click.Context(group, info_name="llamina")
    page = "# The command line\n\n<!-- Made by docs/generate.py from engine/cli/: edit there. -->\n\n" + "\n\n".join(_paragraphs(group.help or "")) + "\n"
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        page += _command(f"llamina {name}", command)
    return page


MODELS_HEAD = """\
# Models

<!-- Made by docs/generate.py from engine/architectures/ and tests/: edit there. -->

Families of models that run, by `general.architecture` of their GGUF files. A family is one file, its *page*, from which keys, tensors, stages and memory
follow.

- *vocabulary*: `tokenizer.ggml.model`, and for merges (`gpt2`) the values of `tokenizer.ggml.pre` that its published files have (struck out: refused);
  any of docs/tokenizers.md runs.
- *transformers*: tiny random checkpoints whose logits equal transformers' own class, float32, to 1e-4 of the largest over 300 tokens
  (tests/test_oracle_families.py); of encoders, rows of embeddings or scores (tests/test_oracle_encoders.py).
- *float64*: small files whose logits equal a float64 twin written from Hugging Face's code, in F32 to 1e-4 of the largest, and in Q8_0 and Q4_0 by their
  divergence (tests/test_pages.py); of encoders, rows and scores (tests/test_encoder_twins.py). The same cases have one digest on every CPU target, and, of
  models that generate, equal bits in the open form (tests/test_page_exactness.py).

| architecture | models | page | vocabulary | transformers | float64 |
|---|---|---|---|---|---|
"""
MODELS_TAIL = """
## Real models

Against llama.cpp (llama-cpp-python 0.3.36 without repacked weights) on the first tokens of WikiText-2's raw test text (tests/test_real_models.py). KL: to the
float64 twin on the same dequantised weights, nats a token over 500 tokens. Perplexity: eight windows of 512. Both programs round activations to 8 bits; one
standard error of the difference between two perplexities is about 0.2 %.

| file | KL, llamina | KL, llama.cpp | perplexity, llamina | llama.cpp | float64 |
|---|---:|---:|---:|---:|---:|
| Gemma 3 270M, Q4_K_M | 0.0023 | 0.0048 | 18.084 | 18.166 | 18.089 |
| SmolLM2 135M Instruct, Q4_1 | 0.0030 | 0.0029 | 24.611 | 24.615 | 24.497 |

Over four windows only, SmolLM2 has 22.926, llama.cpp 22.859 and float64 22.744 (0.8 % and 0.5 % more, with a standard error of 0.26 %): noise of few tokens. In
Q4_1 it answers "What is the capital of France?" with a loop at temperature 0; so does llama.cpp, after the same seven tokens.

## Experts

`llama` with `expert_count` (Mixtral), `qwen2moe`, `qwen3moe`, `olmoe`, `granitemoe`, `gpt-oss`. Routing is compared where no two experts are nearly equal:
torch leaves the order of ties open, and what quantised activations choose is their own matter, so in Q8_0 and Q4_0 the twin's median divergence counts beside
a looser mean. gpt-oss's YaRN does not round its corrections to whole pairs, as in OpenAI's and Hugging Face's code; llama.cpp does, and differs by that.
`norm_topk_prob` other than usual is kept in `expert_weights_norm`, which llama.cpp does not read in such files.

With less memory than the experts need (`--memory`): four layers in Qwen 3 30B-A3B's shape, 1.94 GB, in half of that have the bits of the whole model; the
process peaks at 1,012 MiB (927 allowed, 85 for Python and its libraries). Of 4,632 experts wanted by 100 tokens 3,776 were read, 250 a second from the
system's file cache: 15 s rather than 6 on two shared cores (tests/test_larger_than_memory.py). Experts of random weights are wanted alike; learnt ones are
not.

## States, experts and Gemma 4 beside llama.cpp

On the same F32 files, 200 tokens, keys and values float32 in both (tests/test_oracle_llamacpp_families.py): the largest difference of logits is at most
3e-5 of the largest logit (1e-6 is usual) for Mixtral, `qwen2moe`, `qwen3moe`, `olmoe`, `granitemoe` with and without a shared expert, `gpt-oss`, `lfm2`,
`lfm2moe`, `qwen35`, `qwen35moe`, `qwen3next`, `granitehybrid` with experts, `nemotron_h`, `nemotron_h_moe` with groups, `falcon-h1` and `deepseek2` (V2-Lite,
GLM-4.7-Flash with groups of experts), written by hand and by `convert` from transformers' checkpoints. With llama.cpp's usual keys and values in half
precision it is 1e-4 to 5e-4, and more where that chooses another expert. Gemma 4's differs by up to 5e-3, because llama.cpp looks GELU up in a table of
half precision: with gates so large that none falls into the table, it is 5e-5 as well (a test). llama.cpp has no place for OLMoE whose heads share keys,
fused rows of Qwen's experts, and YaRN's corrections between whole pairs; Gemma 4 without a cap of logits it caps at 30, unless the key says 0, which
`convert` writes.

## Trained tiny models

`demo/families.py` trained LFM2, Qwen 3.5, Gemma 4, Qwen 3 with experts and gpt-oss, 0.2 million parameters each, on the demo's stories (tests/trained/). Greedy
text equals transformers' for 100 tokens after three prompts in float32, and the perplexity of held-out stories in Q8_0 is float32's to 0.5 %
(tests/test_trained.py).

## States and latents

Qwen3-Next's files have q, k, v apart from z (`attn_qkv`, `attn_gate`); those that llama.cpp made before it parted them (`ssm_in`) are refused. Nemotron-H:
transformers' class keeps Mamba's step sizes at `time_step_min` at least, but only where it computes a prompt in chunks; GGUF has no key for it, and neither
llama.cpp nor llamina does so.
Falcon-H1's multipliers become part of the weights. `deepseek2` keeps one latent head a token (keys and values in the KV cache, the values a second time): files
of 2024 with `attn_kv_b` are refused. DeepSeek V2's `group_limited_greedy` is refused by convert; GLM-4.7-Flash's groups run.

## What is refused, and why

A file is refused by the name of what llamina would have to leave out, before its weights are read; `llamina inspect` says so without loading.

- An architecture without a page: its blocks are not known.
- A key below the architecture's name, or a tensor, that the page does not know: leaving it out would make another model of the file. Keys that turn a feature
  off are no reason. Among the tensors: Mixtral files of before
  April 2024, which hold a tensor for each expert (convert them again).
- Layers without experts between others that have them, of `qwen3moe` and `qwen2moe`: GGUF has no way to say so.
- Blocks that predict further tokens (`nextn_predict_layers`) are left out, and that is said: they change no token.
- RoPE scaled otherwise than none, linear, YaRN, by Llama 3's factors or (Phi-3) long and short factors.
- Values that are not as wide as keys; heads of an odd width.
- A way of cutting text that has no row in docs/tokenizers.md, where the vocabulary has merges.
"""
VOCABULARIES = {
    "llama": "llama; gpt2: llama-bpe, tekken, smollm, falcon3, deepseek-llm, deepseek-coder", "qwen2": "gpt2: qwen2, deepseek-r1-qwen", "qwen3": "gpt2: qwen2",
    "gemma": "llama", "gemma2": "llama", "gemma3": "llama", "gemma4": "gemma4",
    "phi3": "llama; gpt2: dbrx, gpt-4o", "granite": "gpt2: refact, dbrx", "mistral3": "gpt2: tekken",
    "smollm3": "gpt2: smaug-bpe", "olmo2": "gpt2: dbrx", "exaone": "gpt2: exaone", "exaone4": "gpt2: exaone4", "glm4": "gpt2: glm4",
    "seed_oss": "gpt2: seed-coder", "ernie4_5": "llama", "hunyuan-dense": "gpt2: hunyuan-dense", "arcee": "gpt2: llama-bpe", "minicpm": "llama",
    "stablelm": "gpt2: stablelm2", "gpt2": "gpt2: gpt-2", "gptneox": "gpt2: olmo", "phi2": "gpt2: phi-2",
    "starcoder2": "gpt2: starcoder", "command-r": "gpt2: command-r", "cohere2": "gpt2: command-r, tiny_aya",
    "qwen2moe": "gpt2: qwen2", "qwen3moe": "gpt2: qwen2", "olmoe": "gpt2: olmo", "granitemoe": "gpt2: refact",
    "gpt-oss": "gpt2: gpt-4o", "lfm2": "gpt2: lfm2", "qwen35": "gpt2: qwen35", "lfm2moe": "gpt2: lfm2", "qwen35moe": "gpt2: qwen35",
    "qwen3next": "gpt2: qwen2", "granitehybrid": "gpt2: dbrx", "nemotron_h": "gpt2: pixtral", "nemotron_h_moe": "gpt2: pixtral",
    "falcon-h1": "gpt2: falcon-h1", "deepseek2": "gpt2: glm4, deepseek-llm, kimi-k2, youtu",
    "bert": "bert; t5", "nomic-bert": "bert", "modern-bert": "gpt2: modern-bert", "gemma-embedding": "llama",
}
"""Architecture -> what its published files have."""


def _vocabulary(architecture: str) -> str:
    kinds = []
    for kind in VOCABULARIES[architecture].split("; "):
        model, _, names = kind.partition(": ")
        shown = ", ".join(name if name in known_names() else f"~~{name}~~" for name in names.split(", ") if name)
        kinds.append(f"{model}: {shown}" if shown else model)
    return "; ".join(kinds)


def _model_row(page: Page) -> str:
    from encoder_cases import CASES as ENCODER_CASES
    from encoder_checkpoints import VARIANTS as ENCODERS
    from families import VARIANTS, class_of
    from page_cases import CASES

    file = Path("engine/architectures") / Path(inspect.getfile(page.layer)).name
    variants = [name for name, v in VARIANTS.items() if class_of(v.kind) in page.hf] + [name for name, v in ENCODERS.items() if v.model in page.hf]
    cases = [name for name, case in {**CASES, **ENCODER_CASES}.items() if case.architecture == page.architecture]
    cells = [f"`{page.architecture}`", page.models, f"[{file.name}](../{file.as_posix()})", _vocabulary(page.architecture), ", ".join(variants) or "-",
             ", ".join(cases) or "-"]
    return "| " + " | ".join(cells) + " |\n"


def models_page() -> str:
    return MODELS_HEAD + "".join(map(_model_row, PAGES.values())) + MODELS_TAIL


def pages() -> dict[Path, str]:
    """File -> what it should hold."""
    return {DOCS / "formats.md": formats_page(), DOCS / "cli.md": cli_page(), DOCS / "models.md": models_page()}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path.name, len(text.splitlines()), "lines")
