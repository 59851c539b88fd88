"""A batch job with a scripted model, for processes that are killed."""
from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fake_model import EOS, fake_model
from llamina.engine.answers.batch_job import BatchJob, count_lines
from llamina.engine.answers.batch_journal import Journal
from llamina.engine.model import Model

OPTIONS: dict[str, Any] = {"max_tokens": 12, "temperature": 30.0, "top_k": 0, "top_p": 1.0}


def child_model(path: Path, seconds: float = 0.0) -> Model:
    """Says letters that depend on all there is so far; warm, so that seeds matter."""
    def say(ids: list[int]) -> int:
        time.sleep(seconds)
        return EOS if sum(ids) % 17 == 0 else 97 + sum(ids) % 26
    model = fake_model(say, context=100, max_batch=64)
    model.path = path
    return model


def run(source: Path, output: Path, seconds: float = 0.0, seed: int | None = 3, **more: Any) -> list[Any]:
    """The whole command but for the command line -> what the job reported."""
    lines, digest = count_lines(source)
    with Journal(output) as journal, child_model(source, seconds) as model:
        return list(BatchJob(model, source, journal, lines, digest, OPTIONS | more.pop("options", {}), seed=seed, **more).run())

