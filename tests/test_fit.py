"""Fit: the knapsack against brute force, budgets kept, better than one format for all, refusals."""
from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from llamina.convert import fit
from llamina.convert.convert import convert
from llamina.convert.fit import Option, allocate, plan, sensitivity, spend
from llamina.convert.sources import open_source
from llamina.engine.cli import main
from llamina.engine.errors import OptionError
from llamina.engine.model import DEMO


@pytest.fixture(scope="module", autouse=True)
def measured_once():
    """A matrix of the demo model costs the same in every test: encoding it in all formats is most of their time."""
    known, usual = {}, fit.measure

    def measure(tensor, weights, weight, threads=None):
        assert weights is None
        key = tensor.name, tensor.shape, weight
        if key not in known:
            known[key] = usual(tensor, weights, weight, threads)
        return known[key]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "measure", measure)
        yield


def random_table(rng, n):
    table = []
    for _ in range(n):
        size = int(rng.integers(50, 400))
        table.append(tuple(Option(f"f{bits}", size * bits, float(rng.random() * 4.0 ** -bits)) for bits in (2, 3, 4, 6, 8)))
    return table


@pytest.mark.parametrize("seed", range(20))
def test_allocation_is_near_the_best(seed):
    rng = np.random.default_rng(seed)
    table = random_table(rng, 6)
    budget = int(sum(o[0].bytes for o in table) * rng.uniform(1.0, 3.5))
    chosen = allocate(table, budget)
    assert sum(o.bytes for o in chosen) <= budget
    best = min(sum(o.error for o in options) for options in itertools.product(*table) if sum(o.bytes for o in options) <= budget)
    # the hull's solution plus a greedy rest: never off by more than one matrix's step
    steps = max(a.error - b.error for options in table for a, b in itertools.pairwise(options) if a.bytes < b.bytes)
    assert sum(o.error for o in chosen) <= best + max(steps, 0.0)


def test_everything_fits_a_large_budget():
    table = random_table(np.random.default_rng(1), 5)
    assert [o.error for o in allocate(table, 10**9)] == [min(o.error for o in options) for options in table]


def test_too_small_a_budget_is_refused():
    with pytest.raises(OptionError, match="raise the budget"):
        allocate(random_table(np.random.default_rng(1), 5), 10)


def test_plan_beats_one_format_for_all():
    source = open_source(DEMO)
    result = plan(source, bits=4.7)
    weights = sum(int(np.prod(t.shape)) for t in source.tensors)
    assert result.bytes <= result.budget <= 4.7 * weights / 8
    assert all(error >= result.error for size, error in result.uniform.values() if size <= result.budget)
    assert len(set(result.formats.values())) > 1 and "times the plan's" in result.explain()[1]
    source.close()


def test_command_keeps_to_the_size(tmp_path, capfd):
    out = tmp_path / "fit.gguf"
    assert main(["convert", str(DEMO), str(out), "--fit", "3.2MB", "--no-verify"]) == 0
    assert 3.0e6 < out.stat().st_size <= 3.2e6
    assert "expected error" in capfd.readouterr().err
    assert main(["convert", str(DEMO), str(out), "--bits", "4.7", "-q", "--overwrite"]) == 0
    report = json.loads((tmp_path / "fit.report.json").read_text())
    planned = {m["name"]: m["format"] for m in report["plan"]["matrices"]}
    assert len(planned) == 43 and all(planned.get(t["name"], t["format"]) == t["format"] for t in report["tensors"]) and report["bits_per_weight"] <= 4.7
    assert sum(m["expected_error"] for m in report["plan"]["matrices"]) == pytest.approx(report["plan"]["expected_error"])
    assert "| next smaller | next larger |" in (tmp_path / "fit.report.md").read_text()
    assert main(["convert", str(DEMO), str(out), "--fit", "1MB", "--no-verify", "--overwrite"]) == 2
    assert "raise the budget" in capfd.readouterr().err
    assert main(["convert", str(DEMO), str(out), "--fit", "3MB", "--type", "q4_0", "--overwrite"]) == 2
    assert "one of --type, --fit and --bits" in capfd.readouterr().err


def test_the_output_matrix_is_one_against_all_layers():
    """Its error is whole in the logits, a layer's only one part of many: the deeper a model, the more bits the (tied) output gets."""
    assert sensitivity("token_embd.weight", True, 30) == sensitivity("output.weight", False, 30) > 40 * sensitivity("blk.3.ffn_down.weight", True, 30)
    assert sensitivity("token_embd.weight", False, 30) < sensitivity("output.weight", False, 30)


@pytest.mark.parametrize("seed", range(5))
def test_spending_only_improves(seed):
    rng = np.random.default_rng(seed)
    table = random_table(rng, 8)
    start = [options[0] for options in table]
    budget = int(sum(o.bytes for o in start) * 2)
    more = spend(table, start, budget)
    assert sum(o.bytes for o in more) <= budget and all(a.error <= b.error for a, b in zip(more, start)) and more != start


def test_never_worse_than_a_recipe_on_the_text(tmp_path):
    """With a text, plan and recipes of the size are measured, and the best is taken."""
    text = "Once upon a time there was a little fox who lived in a wood. One day he met a bird. " * 4
    with open_source(DEMO) as source:
        size = sum(t.bytes for t in convert(source, tmp_path / "r.gguf", "q4_k_m", verify=False).tensors if len(t.shape) == 2)
        weights = sum(int(np.prod(t.shape)) for t in source.tensors)
        vectors = sum(4 * int(np.prod(t.shape)) for t in source.tensors if len(t.shape) == 1)
        found = plan(source, bits=8 * (size + vectors + 64) / weights, text=text, folder=tmp_path)
    assert len(found.tried) >= 3 and list(found.tried.values()) == sorted(found.tried.values())
    assert "the plan" in found.tried and "q4_k_m" in found.tried and found.bytes <= found.budget
    assert "measured on the text" in found.explain()[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["r.gguf"]
