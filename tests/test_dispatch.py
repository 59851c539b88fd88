"""Rows to nodes that are slow, lie, hang or die: every row gets one record, of an attempt that counts; what fails three times becomes errors."""
from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from llamina.engine.errors import ClosedError, FormatError
from llamina.engine.score import dispatch
from llamina.engine.score.dispatch import ATTEMPTS, Dispatch, Outcome


@dataclass(frozen=True)
class Row:
    number: int
    size: int = 10


class Work:
    """A record is its row's number squared."""

    def records(self, model: Any, rows: Any) -> Any:
        return ((row.number, {"n": row.number ** 2}) for row in rows)

    def failed(self, row: Row, error: Exception) -> dict[str, Any]:
        return {"error": f"row {row.number}: {error}"}

    def weight(self, row: Row) -> int:
        return row.size


@dataclass
class Fakes:
    """Nodes on a clock of their own. speed: rows a second, of each; poison: rows that kill who works on them; lies: nodes whose records are of other rows;
    deaths: node -> when it goes; births: likewise; hangs: nodes that never answer."""

    speed: dict[str, float]
    poison: set[int] = field(default_factory=set)
    lies: set[str] = field(default_factory=set)
    deaths: dict[str, float] = field(default_factory=dict)
    births: dict[str, float] = field(default_factory=dict)
    hangs: set[str] = field(default_factory=set)
    restarts: bool = True
    now: float = 0.0
    sizes: list[int] = field(default_factory=list)
    working: dict[str, tuple[int, float, list[Row]]] = field(default_factory=dict)

    def ready(self) -> list[str]:
        return [n for n in self.speed if self.births.get(n, 0) <= self.now < self.deaths.get(n, 1e9)]

    def coming(self) -> bool:
        return any(t > self.now for t in self.births.values())

    def name(self, node: str) -> str:
        return f"node {node}"

    def begin(self, node: str, attempt: int, rows: list[Row]) -> None:
        assert node not in self.working and node in self.ready()
        self.sizes.append(len(rows))
        self.working[node] = attempt, self.now + len(rows) / self.speed[node], rows

    def outcomes(self, seconds: float) -> list[Outcome]:
        ends = [1e9 if n in self.hangs else end for n, (_, end, _) in self.working.items()] + [t for t in self.deaths.values() if t > self.now]
        self.now = min([self.now + seconds, *ends])
        found = []
        for node, (attempt, end, rows) in list(self.working.items()):
            if self.deaths.get(node, 1e9) <= self.now:
                found.append(Outcome(node, attempt, None, "was lost"))
            elif node in self.hangs or end > self.now:
                continue
            elif any(row.number in self.poison for row in rows):
                found.append(Outcome(node, attempt, None, "was killed"))
            else:
                found.append(Outcome(node, attempt, [(row.number + (node in self.lies), {"n": row.number ** 2}) for row in rows]))
            del self.working[node]
        return found


def done(fakes: Fakes, count: int, total: int | None = None, rows: Any = None) -> dict[int, dict[str, Any]]:
    """All records, each row's once."""
    found: dict[int, dict[str, Any]] = {}
    for number, record in Dispatch(fakes, Work(), iter(rows or map(Row, range(count))), count if total is None else total, clock=lambda: fakes.now):
        assert number not in found
        found[number] = record
    assert sorted(found) == list(range(count))
    return found


def good(found: dict[int, dict[str, Any]], but: Any = ()) -> bool:
    return all(record == {"n": number ** 2} for number, record in found.items() if number not in but)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1000, 20000])
def test_every_row_once(count):
    fakes = Fakes({"a": 50.0, "b": 5.0, "c": 500.0})
    assert good(done(fakes, count))
    if count == 20000:
        assert max(fakes.sizes) == dispatch.MOST and fakes.now < 1.3 * count / 555  # the slow one holds nobody up


def test_nodes_that_die_and_others_that_join():
    fakes = Fakes({"a": 50.0, "b": 50.0, "c": 50.0}, deaths={"a": 3.0, "b": 10.0}, births={"c": 8.0})
    assert good(done(fakes, 2000))
    assert good(done(Fakes({"a": 10.0, "b": 10.0}, deaths={"a": 1.0}, births={"b": 60.0}), 100))  # nobody for a while


def test_a_row_that_kills_takes_few_along():
    fakes = Fakes({"a": 50.0, "b": 50.0}, poison={777})
    found = done(fakes, 3000)
    errors = {number for number, record in found.items() if "error" in record}
    assert 777 in errors and len(errors) <= dispatch.MOST / dispatch.PIECES ** (ATTEMPTS - 1) and good(found, errors)
    assert found[777]["error"].startswith("row 777: failed 3 times on the cluster, at last on node ") and "was killed" in found[777]["error"]


def test_records_of_other_rows_do_not_count():
    found = done(Fakes({"a": 20.0, "liar": 20.0}, lies={"liar"}), 300)
    assert good(found, [n for n, record in found.items() if "error" in record]) and sum("error" not in r for r in found.values()) > 100
    assert all("not those of the rows" in r["error"] for r in found.values() if "error" in r)


def test_a_node_that_hangs_holds_nobody_up():
    fakes = Fakes({"a": 20.0, "b": 20.0}, hangs={"b"})
    assert good(done(fakes, 200)) and fakes.now > dispatch.LATE


def test_late_results_are_dropped():
    """The slow node ends after another one has done its chunk, or does not: the rows come once."""
    fakes = Fakes({"a": 100.0, "slow": 0.1})
    assert good(done(fakes, 500)) and fakes.working.keys() <= {"slow"}


def test_without_nodes_it_stops():
    fakes = Fakes({"a": 10.0}, deaths={"a": 5.0})
    with pytest.raises(ClosedError, match="no node of the cluster is left"):
        done(fakes, 1000)
    assert dispatch.WAIT <= fakes.now - 5 < dispatch.WAIT + 5


def test_a_bad_row_of_the_file_stops_it():
    def rows() -> Any:
        yield Row(0)
        raise FormatError("t.jsonl, line 2: is not JSON")
    with pytest.raises(FormatError, match="line 2"):
        done(Fakes({"a": 1.0}), 1, rows=rows())


def test_large_rows_make_small_chunks():
    fakes = Fakes({"a": 1000.0})
    assert good(done(fakes, 40, rows=[Row(i, dispatch.WEIGHT // 2) for i in range(40)])) and max(fakes.sizes) == 2


def test_chance():
    """Any of it together."""
    for seed in range(60):
        rng = random.Random(seed)
        names = [f"n{i}" for i in range(rng.randint(1, 5))]
        fakes = Fakes({n: 10 ** rng.uniform(-1, 3) for n in names} | {"sound": 30.0}, poison=set(rng.sample(range(400), rng.randint(0, 2))),
                      deaths={n: rng.uniform(0, 60) for n in names if rng.random() < 0.5}, births={n: rng.uniform(0, 20) for n in names if rng.random() < 0.3},
                      hangs={n for n in names if rng.random() < 0.2}, lies={n for n in names if rng.random() < 0.1})
        found = done(fakes, rng.randint(0, 400), total=400)
        assert good(found, [n for n, record in found.items() if "error" in record])
        if not fakes.poison and not fakes.lies and not fakes.deaths:
            assert good(found)
