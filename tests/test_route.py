"""Routing by itself: the choice against a float64 twin, ties, groups; the lists; records moved to another row's place."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from llamina.kernels.activations import GROUP, quantize_row, record_bytes
from llamina.kernels.compile_cache import compiled
from llamina.kernels.route import (
    ACTIVE,
    COUNT,
    FIRST,
    FIRST_GROUP,
    GATINGS,
    LEAST_SUM,
    LIST_HEADER,
    LIST_N_ACTIVE,
    choose,
    group_by_expert,
    list_words,
    move_records,
)


@compiled("int64(int64, int64, int64, int64, int64, int64, int64, int64, float32, int64, int64, int64)")
def run_choose(kind, x, n, k, bias, groups, groups_used, normalise, scale, scores, indices, weights):
    return choose(kind, x, n, k, bias, groups, groups_used, normalise != 0, scale, scores, indices, weights)


@compiled("int64(int64, int64, int64, int64, int64, int64)")
def run_group(indices, ld, n_tokens, k, n_experts, lists):
    return group_by_expert(indices, ld, n_tokens, k, n_experts, lists)


@compiled("void(int64, int64, int64, int64)")
def run_quantize(x, columns, n_tokens, records):
    for m in range(n_tokens):
        quantize_row(x + 4 * m * columns, columns, m, n_tokens, records)


@compiled("void(int64, int64, int64, int64, int64, int64, int64)")
def run_move(source, m, n_tokens, target, row, n_rows, columns):
    move_records(source, m, n_tokens, target, row, n_rows, columns)


def chosen(logits: np.ndarray, k: int, gating: str = "softmax", bias: np.ndarray | None = None, groups: int = 0, groups_used: int = 0, normalise: bool = False,
           scale: float = 1.0) -> tuple[bool, np.ndarray, np.ndarray]:
    n = len(logits)
    x = np.full(-(-n // 16) * 16, 99.0, np.float32)  # what stands behind the last logit must not count
    x[:n] = logits
    scores, indices, weights = (np.full(-(-size // 16) * 16, -7.0, np.float32) for size in (n + groups, k, k))
    extra = np.ascontiguousarray(bias, np.float32) if bias is not None else None
    finite = run_choose.ctypes(GATINGS[gating], x.ctypes.data, n, k, extra.ctypes.data if extra is not None else 0, groups, groups_used, normalise,
                               scale, scores.ctypes.data, indices.ctypes.data, weights.ctypes.data)
    return bool(finite), indices[:k].astype(int), weights[:k]


def twin(logits: np.ndarray, k: int, gating: str = "softmax", bias: np.ndarray | None = None, groups: int = 0, groups_used: int = 0, normalise: bool = False,
         scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    x = logits.astype(np.float64)
    e = np.exp(x - x.max())
    p = {"softmax": e / e.sum(), "sigmoid": 1 / (1 + np.exp(-x)), "softmax_of_chosen": x}[gating]
    by = p + (0 if bias is None else bias)
    if groups > 1:
        parts = by.reshape(groups, -1)
        best = np.argsort(-np.sort(parts, axis=1)[:, -2:].sum(axis=1), kind="stable")[:groups_used]
        by = np.where(np.isin(np.arange(groups), best)[:, None], parts, -np.inf).ravel()
    at = np.argsort(-by, kind="stable")[:k]
    w = p[at]
    if gating == "softmax_of_chosen":
        w = np.exp(w - w.max()) / np.exp(w - w.max()).sum()
    if normalise:
        w = w / max(w.sum(), LEAST_SUM)
    return at, w * scale


CASES: list[dict[str, Any]] = [
    {}, {"normalise": True}, {"gating": "sigmoid", "normalise": True, "scale": 2.5}, {"gating": "softmax_of_chosen"},
    {"gating": "sigmoid", "bias": True}, {"gating": "sigmoid", "groups": 4, "groups_used": 2}, {"groups": 8, "groups_used": 3, "bias": True, "normalise": True},
]


@pytest.mark.parametrize("n, k", [(8, 2), (32, 4), (128, 8), (40, 1), (24, 6), (16, 4)])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_choice(case: dict[str, Any], n: int, k: int) -> None:
    rng = np.random.default_rng(n + k)
    options = dict(case)
    if options.get("groups") and k > n // options["groups"] * options["groups_used"]:
        pytest.skip("so few experts in the groups")
    for _ in range(20):
        logits = (rng.standard_normal(n) * 2).astype(np.float32)
        if case.get("bias"):
            options["bias"] = (rng.standard_normal(n) * 0.2).astype(np.float32)
        finite, at, w = chosen(logits, k, **options)
        expected, weights = twin(logits, k, **options)
        assert finite and at.tolist() == expected.tolist()
        np.testing.assert_allclose(w, weights, rtol=2e-6)


@pytest.mark.parametrize("gating", GATINGS)
def test_ties_go_to_the_lower_expert(gating: str) -> None:
    logits = np.array([1, 3, 2, 3, 2, 3, 0, 2], np.float32)
    assert chosen(logits, 5, gating)[1].tolist() == [1, 3, 5, 2, 4]
    assert chosen(np.zeros(130, np.float32), 4, gating)[1].tolist() == [0, 1, 2, 3]


def test_tied_groups_go_to_the_lower_one() -> None:
    assert chosen(np.zeros(16, np.float32), 4, groups=4, groups_used=1)[1].tolist() == [0, 1, 2, 3]
    assert chosen(np.repeat([0, 1, 1, 0], 4).astype(np.float32), 6, groups=4, groups_used=2)[1].tolist() == [4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("gating", GATINGS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 7, 20])
def test_what_is_not_finite_is_told(gating: str, bad: float, at: int) -> None:
    logits = np.zeros(21, np.float32)
    logits[at] = bad
    finite, indices, _ = chosen(logits, 3, gating)
    assert not finite and ((indices >= 0) & (indices < 21)).all()


def test_weights_that_vanish() -> None:
    """Sigmoids of very small logits: their sum is taken for at least 2**-14."""
    _, _, w = chosen(np.full(8, -40.0, np.float32), 2, "sigmoid", normalise=True)
    assert (w < 1e-10).all()


@pytest.mark.parametrize("n_tokens, k, n_experts", [(1, 4, 32), (5, 2, 8), (64, 3, 7), (100, 1, 3), (33, 4, 4)])
def test_lists(n_tokens: int, k: int, n_experts: int) -> None:
    rng = np.random.default_rng(1)
    indices = np.zeros((n_tokens, 32), np.float32)
    indices[:, :k] = [rng.permutation(n_experts)[:k] for _ in range(n_tokens)]
    lists = np.full(list_words(n_experts, n_tokens * k), -5, np.int64)
    assert run_group.ctypes(indices.ctypes.data, 32, n_tokens, k, n_experts, lists.ctypes.data)
    by = lists[LIST_HEADER:LIST_HEADER + 4 * n_experts].reshape(4, n_experts)
    origin, slots = lists[LIST_HEADER + 4 * n_experts:].reshape(2, -1)
    flat, slot, group = indices[:, :k].astype(int).ravel(), 0, 0
    present = sorted(set(flat))
    assert lists[LIST_N_ACTIVE] == len(present) and by[ACTIVE][:len(present)].tolist() == present
    for e in range(n_experts):
        mine = np.flatnonzero(flat == e)
        assert (by[COUNT][e], by[FIRST][e], by[FIRST_GROUP][e]) == (len(mine), slot, group)
        assert origin[slot:slot + len(mine)].tolist() == mine.tolist() and slots[mine].tolist() == list(range(slot, slot + len(mine)))
        slot, group = slot + len(mine), group - -len(mine) // GROUP


@pytest.mark.parametrize("bad", [-1.0, 8.0, np.nan, np.inf, 1e20])
def test_no_expert_of_that_number(bad: float) -> None:
    """Somebody who edits indices can't make compiled code read beyond the experts."""
    indices = np.array([[3, bad] + [0] * 30], np.float32)
    lists = np.zeros(list_words(8, 2), np.int64)
    assert not run_group.ctypes(indices.ctypes.data, 32, 1, 2, 8, lists.ctypes.data)
    assert indices[0, 1] == 0 and lists[LIST_N_ACTIVE] == 2


@pytest.mark.parametrize("n_tokens", [1, 2, 3, 8, 9, 12, 29])
def test_moved_records_are_quantised_ones(n_tokens: int) -> None:
    rng, columns = np.random.default_rng(2), 96
    x = np.ascontiguousarray(rng.standard_normal((n_tokens, columns)), np.float32)
    records = np.zeros(record_bytes(n_tokens, columns), np.uint8)
    run_quantize.ctypes(x.ctypes.data, columns, n_tokens, records.ctypes.data)
    for n_rows in (1, 2, 4, 5, 8, 11, 17):
        rows = rng.integers(0, n_tokens, n_rows)
        expected, moved = (np.zeros(record_bytes(n_rows, columns), np.uint8) for _ in range(2))
        some = np.ascontiguousarray(x[rows])
        run_quantize.ctypes(some.ctypes.data, columns, n_rows, expected.ctypes.data)
        for row, m in enumerate(rows):
            run_move.ctypes(records.ctypes.data, int(m), n_tokens, moved.ctypes.data, row, n_rows, columns)
        assert (moved == expected).all()
