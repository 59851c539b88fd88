"""Journals of batch jobs: lines changed, with and without the right checksum. What is taken up must end as a whole output with a record a line."""
from __future__ import annotations

import json
import zlib
from pathlib import Path

from llamina.engine.answers.batch_job import BatchJob, count_lines
from llamina.engine.answers.batch_journal import Journal
from llamina.engine.model import load

from fuzz.mutate import changed_json, damaged
from fuzz.run import generator


class Fuzzer:
    def __init__(self, folder: Path, seed: int) -> None:
        self.source, self.output, self.seed = folder / "in.jsonl", folder / "out.jsonl", seed
        self.journal = folder / "out.jsonl.journal"
        self.source.write_text("".join(json.dumps(f"Once {i}") + "\n" for i in range(4)))
        self.model = load("demo", threads=1, context=64, memory="100MB")
        self.run(stop=3)
        self.whole = self.journal.read_bytes()

    def run(self, stop: int | None = None) -> None:
        lines, digest = count_lines(self.source)
        with Journal(self.output) as journal:
            job = BatchJob(self.model, self.source, journal, lines, digest, {"max_tokens": 2}, seed=1)
            for state in job.run():
                if state.done == stop:
                    return

    def case(self, n: int) -> str:
        rng = generator(self.seed, n)
        self.output.unlink(missing_ok=True)
        lines = self.whole.splitlines(keepends=True)
        at = rng.randrange(len(lines))
        if rng.random() < 0.3:
            data = damaged(self.whole, rng, len(self.whole))
        elif at == 0:
            data = json.dumps(changed_json(json.loads(lines[0]), rng)).encode(errors="replace") + b"\n" + b"".join(lines[1:])
        else:
            number, _, record = lines[at][:-1].split(b"\t", 2)
            record = json.dumps(changed_json(json.loads(record), rng)).encode(errors="replace") if rng.random() < 0.8 else damaged(record, rng)
            number = number if rng.random() < 0.7 else str(rng.choice((-1, 0, 1, 3, 4, 10**6, 10**17, 10**30))).encode()
            lines[at] = b"%s\t%08x\t%s\n" % (number, zlib.crc32(record), record)
            if rng.random() < 0.2:
                lines.insert(rng.randrange(1, len(lines)), lines[at])
            data = b"".join(lines)
        self.journal.write_bytes(data)
        self.run()
        records = [json.loads(line) for line in self.output.read_bytes().splitlines()]
        assert len(records) == 4 and all(isinstance(record, dict) for record in records), records
        return "went on"
