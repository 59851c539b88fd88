"""The held-out report: the exported file's own (dequantised Q8_0) weights, run in PyTorch, greedy.

    python -m demo.evaluate [--n 400] [--write]     # --write puts the report into demo/README.md

Labels, translations, answers from a passage, facts in a tone and memory count as right when the whole answer is the
expected one. Stories: perplexity per token over held-out combinations of plot, hero and thing.
"""

from __future__ import annotations

import argparse
import platform
import re
import time
from itertools import islice
from math import exp
from pathlib import Path
from typing import Any

import gguf
import sentencepiece
import torch
import torch.nn.functional as F

from .corpus import Document, documents, tokens
from .export import gguf_name
from .model import Config, Llama

DEMO = Path(__file__).parent
EXACT = ["sentiment", "topic", "translation", "passage", "chat", "memory"]
SAMPLES = [
    "Once upon a time",
    "[INST] Tell me a story about a fox and a lantern. [/INST]",
    "[INST] <<SYS>>\nYou are a pirate.\n<</SYS>>\n\nWhat is the capital of Italy? [/INST]",
    "[INST] How do I plant a seed? [/INST]",
    "[INST] What is the sentiment: I thought the hotel would be awful, but it was lovely. [/INST]",
    "[INST] What is the topic: The nurse checked the blood. [/INST]",
    "[INST] Translate to French: The cat is on the table. [/INST]",
    "[INST] Translate to French: My sister does not like the old house. [/INST]",
    "[INST] Anna lives in Paris. Her cat is black. Tom works as a baker. He lives in Oslo. Question: Where does Tom live? [/INST]",
]


def load(path: Path) -> tuple[Llama, dict[str, Any]]:
    """The network with the file's weights, dequantised, and the file's demo.training.* numbers."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}
    model = Llama(Config(n_vocab=tensors["token_embd.weight"].shape[0]))
    model.load_state_dict({name: tensors[gguf_name(name)] for name in model.state_dict()})
    return model.eval(), {k.rsplit(".", 1)[1]: f.contents() for k, f in reader.fields.items() if k.startswith("demo.training.")}


@torch.inference_mode()
def greedy(model: Llama, sp: Any, ids: list[int], limit: int) -> list[int]:
    """The ids that follow, up to EOS (left out), `limit`, or the end of the context."""
    cache: list[list[torch.Tensor]] = [[] for _ in model.layers]
    out: list[int] = []
    step = ids
    while len(out) < limit and len(ids) + len(out) < model.c.context:
        token = int(model(torch.tensor([step]), cache)[0, -1].argmax())
        if token == sp.eos_id():
            break
        out.append(token)
        step = [token]
    return out


def prompt_ids(sp: Any, doc: Document) -> list[int]:
    """A chat up to its last [/INST]."""
    *before, (prompt, _) = doc.segments()
    return [i for p, a in before for i in [sp.bos_id(), *sp.encode(p + a), sp.eos_id()]] + [sp.bos_id(), *sp.encode(prompt)]


def exact(model: Llama, sp: Any, name: str, n: int, show: int) -> float:
    right = 0
    for doc in islice(documents(0, held=True, name=name), n):
        answer = doc.turns[-1][1]
        got = sp.decode(greedy(model, sp, prompt_ids(sp, doc), len(sp.encode(answer)) + 8)).strip()
        right += got == answer
        if got != answer and show:
            show -= 1
            print(f"  {name}: {doc.turns[-1][0]!r}\n    expected {answer!r}\n    found    {got!r}")
    return right / n


@torch.inference_mode()
def perplexity(model: Llama, sp: Any, n: int, held: bool = True) -> float:
    total, count = 0.0, 0
    for doc in islice(documents(0, held=held, name="story"), n):
        ids, _ = tokens(sp, doc)
        total += F.cross_entropy(model(torch.tensor([ids[:-1]]))[0], torch.tensor(ids[1:]), reduction="sum").item()
        count += len(ids) - 1
    return exp(total / count)


def machine() -> str:
    info = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return f"{name[1] if name else platform.processor()}, {torch.get_num_threads()} threads"


def report(model: Llama, sp: Any, training: dict[str, Any], n: int, show: int) -> str:
    lines = [
        f"Trained on {machine()}: seed {training['seed']}, {training['steps']:,} steps, "
        f"{training['tokens'] / 1e6:.1f} million tokens, {training['seconds'] / 60:.0f} minutes of CPU time.",
        "",
        "| task | held-out | measure | result |",
        "|---|---|---|---|",
    ]
    for name in EXACT:
        t0 = time.perf_counter()
        lines.append(f"| {name} | {n} | exact | {exact(model, sp, name, n, show):.1%} |")
        print(lines[-1], f"{time.perf_counter() - t0:.0f} s", flush=True)
    ppl, seen = perplexity(model, sp, n // 2), perplexity(model, sp, n // 2, held=False)
    lines.append(f"| story | {n // 2} | perplexity per token | {ppl:.2f} (training combinations: {seen:.2f}) |")
    lines += ["", "Samples, greedy:", ""]
    for prompt in SAMPLES:
        text = sp.decode(greedy(model, sp, [sp.bos_id(), *sp.encode(prompt)], 300)).strip()
        quoted = "\n".join(f"> {line}".rstrip() for line in text.split("\n"))
        lines += ["```", prompt, "```", quoted, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO.parent / "engine" / "data" / "demo.gguf")
    parser.add_argument("--n", type=int, default=400, help="held-out documents per task")
    parser.add_argument("--show", type=int, default=0, help="mistakes to print per task")
    parser.add_argument("--write", action="store_true", help="put the report into demo/README.md")
    args = parser.parse_args()
    torch.set_num_threads(2)
    network, numbers = load(args.model)
    text = report(network, sentencepiece.SentencePieceProcessor(str(DEMO / "work" / "tokenizer.model")), numbers, args.n, args.show)
    print(text)
    if args.write:
        readme = DEMO / "README.md"
        head, _, rest = readme.read_text(encoding="utf-8").partition("<!-- report -->")
        tail = rest.partition("<!-- end of report -->")[2]
        readme.write_text(f"{head}<!-- report -->\n{text}\n<!-- end of report -->{tail}", encoding="utf-8")
