"""Make docs/notebooks/*.ipynb of the texts below, with what running them gives: python docs/notebooks/build.py MODEL [NAME...]

    cells of NOTEBOOKS ──► run one after the other, as a notebook would (`execute`) ──► NAME.ipynb with outputs

SST2, if set, is the path of SST-2's dev.tsv (label, tab, sentence); without it the steering notebook uses its own sentences. tests/test_look_notebooks.py runs
all cells in miniature.
"""
from __future__ import annotations

import ast
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

Cell = tuple[str, str]
"""("md" or "code", text)"""

_LOAD = ("code", """import os
import numpy as np
import llamina

small = os.environ.get("LOOK_MINIATURE")  # a test's: fewer texts
model = llamina.load(os.environ.get("LOOK_MODEL", "demo"))
model""")

NOTEBOOKS: dict[str, list[Cell]] = {
    "induction_heads": [
        ("md", """# Induction heads of a quantised model

A text of random tokens that is repeated: on the second time a model can only know what follows by looking for the token's first time and what came after it.
Heads that do so are *induction heads* (Olsson et al. 2022). Their score is the mean weight that a query in the second half gives to the position *after* its
own token's first time. Run with SmolLM2-135M-Instruct in Q4_1."""),
        _LOAD,
        ("code", """T = 12 if small else 48
rng = np.random.default_rng(0)
low, high = (300, 1900) if model.config.n_vocab < 10000 else (1000, 40000)

def repeated():
    half = [int(i) for i in rng.integers(low, high, T)]
    return [model.tokenizer.bos_id or 1, *half, *half]

texts = [repeated() for _ in range(1 if small else 3)]
scores = np.mean([[model.attention(ids, positions=slice(T + 1, None), maps=False, mean=False, top=1).by_distance[layer][:, T - 1]
                   for layer in range(model.config.n_layers)] for ids in texts[:1]], axis=0)
for ids in texts[1:]:
    a = model.attention(ids, positions=slice(T + 1, None), maps=False, mean=False, top=1)
    scores = scores + np.stack([a.by_distance[layer][:, T - 1] for layer in a.layers])
scores = scores / len(texts)
best = np.dstack(np.unravel_index(np.argsort(-scores.ravel()), scores.shape))[0]
for layer, head in best[:8]:
    print(f"layer {layer:2d} head {head}: {scores[layer, head]:.2f}")"""),
        ("md", "The map of the strongest one: the second diagonal is the token after the first time."),
        ("code", """layer, head = map(int, best[0])
llamina_picture = model.attention(texts[0][:1 + 2 * T], layer)
class Head:
    def _repr_html_(self): return llamina_picture.html(layer, head)
Head()"""),
        ("md", "Are they what the model repeats with? Without the eight strongest the second half is nearly as surprising as the first."),
        ("code", """import contextlib

def second_half(heads):
    with contextlib.ExitStack() as stack:
        for layer, head in heads:
            stack.enter_context(model.ablate(f"blocks.{layer}.attn.hook_z", heads=[int(head)]))
        surprise = model.trace(texts[-1], attribution=False).surprise
    return surprise[T + 2:].mean(), surprise[1:T + 1].mean()

weak = [pair for pair in rng.permutation(best[20:])[:8]]
for name, heads in (("all heads", []), ("without the 8 strongest", best[:8]), ("without 8 others", weak)):
    again, first = second_half(heads)
    print(f"{name:24} first time {first:6.2f}  second time {again:6.2f} nats a token")"""),
    ],
    "patching": [
        ("md", """# Where a quantised model keeps a name: activation patching

"When Mary and John went to the store, John gave a drink to" goes on with " Mary". If the second " John" is " Mary", with " John". We put numbers of the first
text's pass into the second's, one place and position at a time, and see how much of the difference of both names' logits comes back (Wang et al. 2022). Only
layers and positions that a change can reach are computed again."""),
        _LOAD,
        ("code", """clean = "When Mary and John went to the store, John gave a drink to"
corrupt = "When Mary and John went to the store, Mary gave a drink to"
metric = (" Mary", " John")
if small:  # a model of little stories, whose vocabulary lacks these names
    clean, corrupt, metric = "Tim had a cat and a dog. The", "Tim had a cat and a hat. The", (" dog", " cat")
    clean, corrupt = model.tokenize(clean)[:8], model.tokenize(clean)[:7] + model.tokenize(corrupt)[-1:]
    metric = (5, 9)
stream = model.patch(clean, corrupt, "blocks.*.hook_resid_pre", metric)
print(stream)
stream"""),
        ("md", "Up to some layer all is in the token that differs; then it is read from there, and what is left is at the end. Which heads bring it there?"),
        ("code", """heads = range(model.config.n_heads)
moved = model.patch(clean, corrupt, "blocks.*.attn.hook_z", metric, positions="last", heads=heads)
recovered = moved.recovered[:, 0]
for i in np.argsort(-recovered.ravel())[:5]:
    layer, head = divmod(int(i), len(heads))
    print(f"layer {layer:2d} head {head}: {recovered[layer, head]:+.2f}")"""),
        ("md", "What the strongest of them looks at, from the last token:"),
        ("code", """layer, head = divmod(int(np.argmax(recovered)), len(heads))
looks = model.attention(clean, layer, heads=head, positions="last", top=3)
for key, weight in zip(looks.top_keys[layer][0, 0], looks.top_weights[layer][0, 0]):
    print(f"{looks.tokens[key]!r} at {key}: {weight:.2f}")"""),
        ("md", "And how the model sees the clean text, layer by layer:"),
        ("code", "model.lens(clean)"),
    ],
    "steering": [
        ("md", """# Steering a quantised model by a direction of its own

The mean of the stream after positive sentences less the mean after negative ones is a direction for each layer. Added to the stream, it moves what the model
says of *other* sentences: the probability of " positive" rises with the strength, one way only. Sentences are SST-2's (Socher et al. 2013)."""),
        _LOAD,
        ("code", """import random
path = os.environ.get("SST2")
if path:
    lines = [line.rstrip("\\n").split("\\t") for line in open(path, encoding="utf-8")][1:]
    rows = [(text.strip(), int(label)) for label, text in lines if len(text) < 110]
else:
    rows = [("a warm and funny film", 1), ("a joy from beginning to end", 1), ("i loved every minute", 1), ("beautiful and moving", 1),
            ("dull and far too long", 0), ("a waste of time", 0), ("i hated every minute", 0), ("ugly and empty", 0)] * 2
random.Random(0).shuffle(rows)
n = 8 if small else 80
known, others = rows[:n], rows[n:n + (2 if small else 24)]

def prompt(text):
    return f"Review: {text}\\nSentiment (positive or negative):"

layers = range(model.config.n_layers // 4, 3 * model.config.n_layers // 4)
vector = model.steering_vector([prompt(text) for text, label in known if label], [prompt(text) for text, label in known if not label], layers=layers)
vector"""),
        ("code", """yes, no = (model.tokenize(word, bos=False)[0] for word in (" positive", " negative"))

def probability():
    found = []
    for text, _ in others:
        logits = model.logits(model.tokenize(prompt(text)))[-1].astype(float)
        found.append(1 / (1 + np.exp(logits[no] - logits[yes])))
    return np.mean(found)

strengths = [-1, -0.5, 0, 0.5, 1]
means = []
for strength in strengths:
    with model.steer(vector, strength):
        means.append(probability())
    print(f"strength {strength:+.1f}: P(positive) {means[-1]:.3f}")"""),
        ("md", "Before and after, for an answer:"),
        ("code", """model.steered("I watched the film last night and it was", vector, [-0.7, 0, 0.7], max_tokens=8 if small else 40)"""),
        ("md", "Kept as llama.cpp and repeng keep control vectors:"),
        ("code", """import tempfile
with tempfile.TemporaryDirectory() as folder:
    vector.save(os.path.join(folder, "sentiment.gguf"))
    print(llamina.load_steering_vector(os.path.join(folder, "sentiment.gguf")))"""),
    ],
}


def execute(cells: list[Cell]) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    """Run the code cells in one namespace, which it returns, with the outputs of every cell as nbformat has them."""
    names: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for kind, text in cells:
        outputs.append(_run(text, names) if kind == "code" else [])
    return names, outputs


def _run(text: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    tree, printed = ast.parse(text), io.StringIO()
    found: list[dict[str, Any]] = []
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "<cell>", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names) if isinstance(last, ast.Expr) else None
    if printed.getvalue():
        found.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(keepends=True)})
    if value is not None:
        data = {"text/plain": [_shown(value)]}
        if hasattr(type(value), "_repr_html_"):
            data["text/html"] = value._repr_html_().splitlines(keepends=True)
        found.append({"output_type": "execute_result", "execution_count": None, "metadata": {}, "data": data})
    return found


def _shown(value: Any) -> str:
    """Its repr, without a path of the machine that ran it."""
    if type(value).__name__ == "Model":
        return f"<llamina.Model {value.path.name!r}, context {value.context}>"
    return "a picture" if type(value).__name__ == "Head" else repr(value)


def notebook(cells: list[Cell], outputs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """nbformat 4.5"""
    found = []
    for i, ((kind, text), out) in enumerate(zip(cells, outputs)):
        cell: dict[str, Any] = {"cell_type": "markdown" if kind == "md" else "code", "id": f"cell{i}", "metadata": {}, "source": text.splitlines(keepends=True)}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": out}
        found.append(cell)
    return {"cells": found, "metadata": {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
                                         "language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5}


def main() -> None:
    import os
    os.environ["LOOK_MODEL"] = sys.argv[1]
    for name in sys.argv[2:] or NOTEBOOKS:
        names, outputs = execute(NOTEBOOKS[name])
        names["model"].close()
        path = Path(__file__).parent / f"{name}.ipynb"
        path.write_text(json.dumps(notebook(NOTEBOOKS[name], outputs), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{path.name}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
