"""How likely a model finds each of some continuations of a context: `Model.score` and `Model.score_many`.

    (context, continuations) -> border.py: ids and where they are scored -> paths.py: computed together -> Score each
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...kernels.float_env import in_default_floats
from ..errors import LlaminaError, OptionError
from .border import Text, join
from .paths import Group, Path, Walk

if TYPE_CHECKING:
    from ..answers.core import Core


@dataclass(frozen=True)
class Score:
    """Of a continuation. logprob: natural logarithm of its probability; logprobs: of each of its tokens `ids`; greedy: whether greedy sampling would have said
    all of it; spans: its first token begins in the context, whose end is scored with it."""

    logprob: float
    logprobs: list[float]
    ids: list[int]
    greedy: bool
    spans: bool


@dataclass(frozen=True)
class Scored:
    """Of one context. index: which, from 0 on; error: why there are no scores."""

    index: int
    scores: list[Score]
    error: LlaminaError | None = None


@in_default_floats
def score_of(path: Path, spans: bool = False) -> Score:
    """Of a path whose group is done."""
    return Score(math.fsum(path.logprobs), path.logprobs, path.ids[path.first:], all(path.said), spans)


def score(model: Core, context: Text, continuations: Sequence[Text], special: bool = False) -> list[Score]:
    """Of each continuation of one context. Raises what is wrong with any of them."""
    for found in score_many(model, [(context, continuations)], special):
        if found.error is not None:
            raise found.error
        return found.scores
    raise AssertionError("one context has one result")


def score_many(model: Core, requests: Iterable[tuple[Text, Sequence[Text]]], special: bool = False, ordered: bool = True) -> Iterator[Scored]:
    """Of many contexts, each with its continuations; taken as there is room. What is wrong with one is its result's `error`. ordered: False gives them as
    they are done."""
    bad: list[Scored] = []
    spans: dict[int, list[bool]] = {}

    def groups() -> Iterator[Group]:
        for index, (context, continuations) in enumerate(requests):
            try:
                if isinstance(continuations, (str, bytes)):
                    raise OptionError(f"continuations must be a list of texts, found one {type(continuations).__name__}: for one give [text]")
                ids = context if isinstance(context, str) else list(context)
                joined = [join(model, ids, c, special) for c in continuations]
            except LlaminaError as error:
                bad.append(Scored(index, [], error))
                continue
            spans[index] = [j.spans for j in joined]
            yield Group(index, [Path(j.ids, j.first) for j in joined])

    def results() -> Iterator[Scored]:
        walk = Walk(model, groups())
        for group in walk:
            yield from bad
            bad.clear()
            own = spans.pop(group.key)
            yield Scored(group.key, [] if group.error else [score_of(p, s) for p, s in zip(group.paths, own)], group.error)
        yield from bad

    if not ordered:
        yield from results()
        return
    kept: dict[int, Scored] = {}
    turn = 0
    for found in results():
        kept[found.index] = found
        while turn in kept:
            yield kept.pop(turn)
            turn += 1
