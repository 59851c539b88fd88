"""`--ray`: where a command's rows are computed, here or on the nodes of a cluster (engine/score/cluster.py)."""
from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from .adapters import Extras, asked_for, steer
from .options import open_model, read_text, use_template
from .progress import Progress

if TYPE_CHECKING:
    from ..model import Model
    from ..score.cluster_node import Facts
    from ..score.dispatch import ClusterWork, Records

KEPT = 64 << 20
"""Bytes of beginnings that stay in memory for the rows that follow."""
ray_option = click.option("--ray", is_flag=False, flag_value="auto", metavar="[ADDRESS]",
                          help="Compute on all nodes of a Ray cluster: this machine's, or that of a head at HOST:PORT. See docs/cluster.md.")


@dataclass(frozen=True)
class Place:
    """Where records are made. facts: of the model there. digest: its file's SHA-256."""

    facts: Facts
    digest: Callable[[], str]
    _records: Callable[[Any, Iterable[Any], int], Records]

    def records(self, work: ClusterWork, rows: Iterable[Any], total: int) -> Records:
        """total: how many rows there are, or more."""
        return self._records(work, rows, total)


@dataclass(frozen=True)
class Loading:
    """How a node loads the model. template: a chat template's text, and the name of its file."""

    name: str
    context: int | None
    memory: str | None
    kv: str | None
    draft: str | None = None
    speculate: bool = True
    template: tuple[str, str] | None = None
    extras: Extras = field(default_factory=Extras)

    def __call__(self, threads: int) -> tuple[Model, dict[str, Any]]:
        from ..model import load
        model = load(self.name, threads=threads, context=self.context, draft=self.draft, memory=self.memory, kv=self.kv,
                     adapters=self.extras.lora)
        steer(model, self.extras)
        model.speculate = self.speculate
        model.runtime.keep_at_most(KEPT)
        if self.template is not None:
            from ..text.chat_template import ChatTemplate
            model._template = ChatTemplate(self.template[0], model.tokenizer, path=self.template[1])
        return model, model.sampling_defaults


def everywhere(name: str) -> str:
    """A model's name as other nodes understand it: a path is taken from the root; short names and the hub's are theirs to find."""
    from ..home.library import is_hub_name
    return os.path.abspath(name) if not is_hub_name(name) and name != "demo" and os.path.exists(name) else name


def _extras() -> Extras:
    """What --lora and its kin said, as other nodes understand it."""
    given = asked_for()
    return Extras([(everywhere(path), scale) for path, scale in given.lora], [(everywhere(path), strength) for path, strength in given.control], given.layers)


@contextlib.contextmanager
def place_for(ray: str | None, name: str, threads: int | None, context: int | None, progress: Progress, *, memory: str | None = None, kv: str | None = None,
              draft: str | None = None, no_speculation: bool = False, template: str | None = None, expected: str | None = None,
              adapters: bool = True) -> Iterator[Place]:
    """The model, loaded here, or with `ray` on the nodes of that cluster. template: a file with a chat template. expected: the fingerprint of an interrupted
    run's model. adapters: whether it has those of --lora."""
    if ray is None:
        from ..score.cluster_node import Facts
        with open_model(name, threads, context, progress, draft, no_speculation, memory, kv, adapters) as model:
            model.runtime.keep_at_most(KEPT)
            model.scheduler.reading = None  # the caller tells of all rows together
            use_template(model, template)
            yield Place(Facts.of(model, model.sampling_defaults, template is not None), lambda: model.digest,
                        lambda work, rows, total: work.records(model, rows))
        return
    from ..score.cluster import Cluster
    text = None if template is None else (read_text(template), template)
    loading = Loading(everywhere(name), context, memory, kv, None if draft is None else everywhere(draft), not no_speculation, text,
                      _extras() if adapters else Extras())
    with Cluster(ray, progress.note) as cluster, \
            cluster.loaded(loading, threads, template=template is not None, expected=expected, waiting=progress.stage) as nodes:
        yield Place(nodes.facts, nodes.digest, nodes.records)
