"""`--ray`: the files of one machine, byte for byte, from a cluster of two nodes of which one is killed; what is wrong with the cluster is told in a line."""
from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llamina.engine.cli.cluster import Loading, everywhere
from llamina.engine.errors import OptionError
from llamina.engine.score.cluster import check_address
from llamina.engine.score.cluster_node import Facts, Worker

HERE = Path(__file__).resolve().parent
WORDS = ["the", "cat", "dog", "bird", "saw", "liked", "ate", "a", "red", "big", "small", "house", "tree", "and", "then", "was", "happy", "sad", "very"]


def sentence(i: int, n: int) -> str:
    return " ".join(WORDS[(i * 7 + k * (i % 5 + 1)) % len(WORDS)] for k in range(n))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """cluster(journal, records, node, *command): a command on two nodes in a network namespace of its own, of which `node` is killed when the journal holds so
    many records (0: never; -1: while it loads the model)."""
    if not os.environ.get("LLAMINA_RAY"):
        pytest.skip("starts a Ray cluster, and a command on it takes half a minute (set LLAMINA_RAY)")
    pytest.importorskip("ray", reason='Ray is not installed: pip install "llamina[ray]"')
    namespace = ["unshare", "-rn"]
    if not shutil.which("unshare") or subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here (unshare -rn)")
    log = tmp_path_factory.mktemp("cluster") / "log"
    with open(log, "w") as told, subprocess.Popen([*namespace, sys.executable, str(HERE / "cluster_child.py")], stdin=subprocess.PIPE,
                                                  stdout=subprocess.PIPE, stderr=told, text=True) as child:
        def run_on_it(journal: Path, records: int, node: int, *command: str) -> Any:
            assert child.stdin is not None and child.stdout is not None
            print(json.dumps({"journal": str(journal), "records": records, "node": node, "command": command}), file=child.stdin, flush=True)
            found = child.stdout.readline()
            assert found, log.read_text()[-3000:]
            return json.loads(found)
        yield run_on_it


LINES = [{"id": i, "text": sentence(i, 40 + i % 9), "label": ("good", "bad")[i % 2]} for i in range(3000)]
PROMPTS = [{"id": i, "prompt": sentence(i, 5), "max_tokens": 30} for i in range(300)]
COMMANDS: dict[str, list[str]] = {
    "eval": ["eval", "demo", "IN", "--shots", "1"], "batch": ["batch", "IN", "--seed", "4"], "embed": ["embed", "demo", "IN", "--kind", "document"],
    "classify": ["classify", "demo", "IN", "--labels", "good,bad", "--label-column", "label", "--calibrate", "contextual"],
    "rerank": ["rerank", "demo", "a happy cat", "IN", "--judge", "the,a"]}


@pytest.mark.parametrize("command, records, node", [("eval", 600, 0), ("classify", 600, 1), ("batch", 80, 1), ("embed", 600, 0),
                                                    ("rerank", 200, 1), ("embed", 600, 1), ("eval", 600, 1), ("classify", -1, 1), ("embed", -1, 0)])
def test_one_of_two_nodes_killed(cluster, run, tmp_path, command, records, node):
    lines: list[Any] = [*PROMPTS, {"id": "bad", "prompt": 3}, "text"] if command == "batch" else LINES[:800] if command == "rerank" else LINES
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    argv = [str(source) if part == "IN" else part for part in COMMANDS[command]]
    end = "npy" if command == "embed" else "jsonl"
    one, many = tmp_path / f"one.{end}", tmp_path / f"many.{end}"
    here = run(*argv, "-o", str(one))
    assert here.code == 0, here.err
    found = cluster(tmp_path / f"many.{end}.journal", records, node, *argv, "-o", str(many))
    assert found["code"] == 0 and found["killed"] and "lost" in found["err"] and "Traceback" not in found["err"], found
    assert records > 0 or "while it loaded the model" in found["err"], found
    assert many.read_bytes() == one.read_bytes() and found["out"] == here.out
    assert not list(tmp_path.glob("*.journal"))


def test_a_model_that_nodes_lack(cluster, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text('"a"\n')
    found = cluster(tmp_path / "none", 0, 0, "batch", str(source), "-o", str(tmp_path / "o.jsonl"), "-m", "none.gguf")
    assert found["code"] == 1 and "no node of the cluster has the model" in found["err"] and "none.gguf" in found["err"] and "Traceback" not in found["err"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]


# -- without a cluster ----------------------------------------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.mark.parametrize("argv", [("eval", "demo", "in.jsonl"), ("classify", "demo", "in.jsonl", "--labels", "a,b"), ("batch", "in.jsonl", "-o", "out.jsonl")])
@pytest.mark.parametrize("address, words", [
    ("in.jsonl", "is no address"), ("ray://h:1", "client is not supported"), ("h:0", "is no address"), ("closed", "cannot be reached")])
def test_addresses(run, tmp_path, monkeypatch, argv, address, words):
    monkeypatch.chdir(tmp_path)
    Path("in.jsonl").write_text('{"text": "a", "label": "b"}\n{"text": "a", "label": "c"}\n')
    if address == "closed":
        pytest.importorskip("ray", reason='Ray is not installed: pip install "llamina[ray]"')
        address = f"127.0.0.1:{closed_port()}"
    found = run(*argv, "--ray", address)
    assert found.code == 2 and words in found.err and found.err.count("\n") == 1 and not found.out
    assert os.listdir() == ["in.jsonl"]


def test_without_ray(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "in.txt").write_text("a\n")
    found = run("classify", "demo", str(tmp_path / "in.txt"), "--labels", "a,b", "--ray")
    assert found.code == 1 and 'pip install "llamina[ray]"' in found.err


def test_names_that_other_nodes_understand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m.gguf").touch()
    assert [everywhere(n) for n in ("m.gguf", "demo", "hf:a/b/c.gguf", "short")] == [str(tmp_path / "m.gguf"), "demo", "hf:a/b/c.gguf", "short"]
    assert check_address("[::1]:6379") and check_address("auto")
    with pytest.raises(OptionError):
        check_address(":80")


def test_a_node(tmp_path):
    """What runs there, here."""
    from llamina.engine.answers.batch_work import BatchWork, Raw
    work, rows = BatchWork({"max_tokens": 3}, 5), [Raw(0, 0, b'"a"'), Raw(1, 1, b"{")]
    template = tmp_path / "t.jinja"
    worker = Worker()
    assert "no such file" in str(worker.load(Loading("none.gguf", None, None, None), 1, False))
    facts = worker.load(Loading("demo", 96, None, None, template=("{{ messages[0].content }}", str(template))), 1, True)
    assert isinstance(facts, Facts) and facts.context == 96 and facts.template == "{{ messages[0].content }}" and len(worker.digest()) == 64
    attempt, records = worker.work(7, work, rows)
    assert attempt == 7 and not isinstance(records, str)
    assert [n for n, _ in sorted(records)] == [0, 1] and dict(records)[0]["generated_tokens"] <= 3 and "JSON" in dict(records)[1]["error"]
    assert str(worker.work(8, None, rows)[1]).startswith("this answer ran into a fault")  # type: ignore[arg-type]
    other = worker.load(Loading("demo", 64, None, None), 1, True)
    assert isinstance(other, Facts) and "context" in str(facts.differs(other)) and facts.differs(facts) is None
