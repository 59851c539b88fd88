"""What `llamina eval` found, as numbers: metrics of the records, a model against another, the file of results.

    rows, records -> measured() -> {"accuracy": {"value", "stderr"}, …} -> results(): one JSON object, the same bytes on every machine

Times, versions of libraries and the machine stand in environment(), a file of its own. sacrebleu goes through libm: its numbers are rounded to six digits.
"""
from __future__ import annotations

import json
import math
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ...kernels import ARITHMETIC_VERSION
from ..errors import UnsupportedError
from ..sampling.arithmetic import LN2
from . import metrics
from .answers import same
from .likelihood import divergence, log_probabilities_of, probabilities
from .task import SCORED

if TYPE_CHECKING:
    from .eval_work import EvalWork
    from .task import Item

Record = dict[str, Any]
MOST_ERRORS = 100
"""Rows with errors that are listed."""


def best(values: Sequence[float]) -> int:
    """The place of the greatest, the first of equals."""
    return max(range(len(values)), key=values.__getitem__)


def measured(work: EvalWork, records: Iterable[Record]) -> dict[str, Any]:
    """All numbers. Rows with errors are counted, and in no other number."""
    pairs: list[tuple[Item, Record, Any]] = []
    counts, problems = Counter[str](), []
    task = work.prompts.task
    for row, record in zip(work.rows(), records):
        counts["rows"] += 1
        if "error" in record:
            problems.append(record["error"])
            continue
        kept = {k: v for k, v in record.items() if not k.endswith("_ids") and k != "token_logprobs"}  # those may be long
        pairs.append((task.item(row), kept, task.match_of(row)))
    found: dict[str, Any] = {"rows": counts["rows"], "errors": len(problems)}
    if problems:
        found["first_errors"] = problems[:MOST_ERRORS]
    if task.kind in SCORED:
        return {**found, **_of_scored(work, pairs)}
    return {**found, **(_of_translations(pairs) if task.kind == "translation" else _of_matches(pairs))}


def _of_scored(work: EvalWork, pairs: list[tuple[Item, Record, Any]]) -> dict[str, Any]:
    items, records = [item for item, _, _ in pairs], [record for _, record, _ in pairs]
    right = [item.right for item in items]

    def by(divide: Callable[[str, int], int]) -> dict[str, Any]:
        """Accuracy with each choice's log-probability divided by its length."""
        return metrics.share(best([s / max(1, divide(c, n)) for s, c, n in zip(r["logprobs"], item.choices, r["tokens"])]) == item.right
                             for item, r in zip(items, records))
    found = _of_weights([r["logprobs"] for r in records], right, _classes(work, items))
    found["accuracy_by_length"] = {"characters": by(lambda choice, n: len(choice)), "bytes": by(lambda choice, n: len(choice.encode())),
                                   "tokens": by(lambda choice, n: n)}
    losses = [-r["logprobs"][i] for r, i in zip(records, right)]
    size = sum(len(item.gold[0].encode()) for item in items)
    found["nll"] = metrics.average(losses)
    found["bits_per_byte"] = math.fsum(losses) / LN2 / size if size else None
    found["greedy"] = metrics.share(r["greedy"][i] for r, i in zip(records, right))
    if spans := sum(any(r.get("spans", ())) for r in records):
        found["rows_with_a_token_over_the_border"] = spans
    if records and "calibrated" in records[0]:
        found["calibrated"] = _of_weights([r["calibrated"] for r in records], right, _classes(work, items))
    return found


def _classes(work: EvalWork, items: Sequence[Item]) -> list[str] | None:
    """What choices are called, if they are the same for all rows, or numbered alike."""
    if work.kind == "label":
        return list(work.prompts.task.labels)
    sizes = {len(item.choices) for item in items}
    return [str(i) for i in range(sizes.pop())] if len(sizes) == 1 else None


def _of_weights(weights: Sequence[Sequence[float]], right: Sequence[int], classes: list[str] | None) -> dict[str, Any]:
    """Of log-weights of each row's choices."""
    given = [best(row) for row in weights]
    shares = [probabilities(row) for row in weights]
    correct = [a == b for a, b in zip(given, right)]
    error, bins = metrics.calibration([row[i] for row, i in zip(shares, given)], correct)
    found: dict[str, Any] = {"accuracy": metrics.share(correct)}
    if classes:
        names = [classes[i] for i in right], [classes[i] for i in given]
        found |= {name: value for name, value in metrics.of_labels(*names, classes).items() if name != "accuracy"}
    return {**found, "brier": metrics.brier(shares, right), "calibration_error": error, "calibration": bins}


def _of_matches(pairs: list[tuple[Item, Record, Any]]) -> dict[str, Any]:
    return {"accuracy": metrics.share(same(match, item.fields["target"], record["text"]) for item, record, match in pairs), **_of_answers(pairs)}


def _of_answers(pairs: list[tuple[Item, Record, Any]]) -> dict[str, Any]:
    return {"answer_tokens": metrics.average([float(record["tokens"]) for _, record, _ in pairs]),
            "finish_reasons": dict(sorted(Counter(record["finish_reason"] for _, record, _ in pairs).items()))}


def need_sacrebleu() -> Any:
    """The module, or UnsupportedError that says what to install."""
    try:
        import sacrebleu
    except ImportError:
        raise UnsupportedError('translations are scored by sacrebleu, which is not installed: pip install "llamina[eval]"') from None
    return sacrebleu


def _of_translations(pairs: list[tuple[Item, Record, Any]]) -> dict[str, Any]:
    module = need_sacrebleu()
    answers = [record["text"].strip() for _, record, _ in pairs]
    most = max((len(item.gold) for item, _, _ in pairs), default=0)
    references = [[item.gold[k] if k < len(item.gold) else None for item, _, _ in pairs] for k in range(most)]
    found: dict[str, Any] = {}
    for name, metric in ("bleu", module.metrics.BLEU()), ("chrf", module.metrics.CHRF()):
        score = round(metric.corpus_score(answers, references).score, 6) if answers else None
        signature = str(metric.get_signature())
        found[name] = {"value": score, "signature": "|".join(part for part in signature.split("|") if not part.startswith("version:"))}
    return {**found, **_of_answers(pairs)}


def compared(work: EvalWork, records: Iterable[Record], reference: Iterable[Record]) -> dict[str, Any]:
    """A model against a reference on the same rows: whose answers are right where the other's aren't, and how far their choices' probabilities are apart."""
    task = work.prompts.task
    ours: list[bool] = []
    theirs: list[bool] = []
    changed: list[bool] = []
    apart: list[float] = []
    for row, a, b in zip(work.rows(), records, reference):
        if "error" in a or "error" in b:
            continue
        item = task.item(row)
        if task.kind in SCORED:
            key = "calibrated" if "calibrated" in a else "logprobs"
            first, second = best(a[key]), best(b[key])
            ours.append(first == item.right)
            theirs.append(second == item.right)
            changed.append(first != second)
            apart.append(divergence(log_probabilities_of(b[key]), log_probabilities_of(a[key])))
        else:
            changed.append(a["text"] != b["text"])
            if task.kind == "target":
                ours.append(same(task.match_of(row), item.fields["target"], a["text"]))
                theirs.append(same(task.match_of(row), item.fields["target"], b["text"]))
    found: dict[str, Any] = {"rows": len(changed), "answers_changed": metrics.share(changed)}
    if ours:
        found |= {"right_to_wrong": sum(t and not o for o, t in zip(ours, theirs)), "wrong_to_right": sum(o and not t for o, t in zip(ours, theirs))}
    if apart:
        found["kl"] = metrics.average(apart)
    return found


def text_of(results: dict[str, Any]) -> str:
    """As a file."""
    return json.dumps(results, ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def results_of(work: EvalWork, models: Sequence[dict[str, Any]], records: Sequence[Callable[[], Iterator[Record]]]) -> dict[str, Any]:
    """models: what each is called, its digest, how it keeps keys and values; the second is the reference. records: of each."""
    task = work.prompts.task
    options = {name: value for name, value in work.bound().items() if name not in ("command", "input", "samples", "shown")}
    found: dict[str, Any] = {"arithmetic": ARITHMETIC_VERSION, "task": {"name": task.source.name, "sha256": task.digest, "kind": task.kind},
                             "options": options, "model": models[0], "metrics": measured(work, records[0]())}
    if len(models) > 1:
        found |= {"reference": {**models[1], "metrics": measured(work, records[1]())}, "against": compared(work, records[0](), records[1]())}
    return found


def environment(seconds: float) -> dict[str, Any]:
    """What the results don't depend on."""
    import importlib.metadata

    import numpy

    from ...kernels.target import TARGET
    versions = {"python": platform.python_version(), "numpy": numpy.__version__}
    for name in ("llamina", "numba", "sacrebleu"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"seconds": round(seconds, 3), "target": TARGET, "machine": platform.machine(),
            "system": platform.system(), "versions": versions}


def samples(work: EvalWork, records: Iterator[Record]) -> Iterator[Record]:
    """Each row with what was asked and answered."""
    task = work.prompts.task
    for row, record in zip(work.rows(), records):
        head: Record = {"line": row.line, **({"id": row.fields["id"]} if "id" in row.fields else {})}
        if "error" not in record:
            item = task.item(row)
            if task.kind in SCORED:
                given = best(record["calibrated" if "calibrated" in record else "logprobs"])
                names = list(task.labels) if task.kind == "label" else item.choices
                head |= {"right": names[item.right], "answer": names[given], "correct": given == item.right}
            else:
                head |= {"right": item.gold[0] if len(item.gold) == 1 else list(item.gold)}
                if task.kind == "target":
                    head["correct"] = same(task.match_of(row), item.fields["target"], record["text"])
        yield {**head, **record}
