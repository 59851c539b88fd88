"""Which of some labels a text has: the one that the model finds likeliest after it. `Model.classify`, `llamina classify`.

    text -> template -> context; labels -> continuations -> scoring.py -> calibrated -> probabilities -> Classified

A label's weight is its probability after the context, all of its tokens. Models prefer some labels whatever the text; calibration takes that out:
    contextual  divides by what the label gets after content-free texts ("N/A", "", "[MASK]"), on average (Zhao et al. 2021, arXiv 2102.09690)
    pmi         divides by what it gets after the template with no text: pointwise mutual information (Holtzman et al. 2021, arXiv 2104.08315)
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import LlaminaError, OptionError, quoted
from ..sampling.arithmetic import log
from .likelihood import mean, probabilities
from .scoring import score, score_many
from .template import Same, check_template, filled

if TYPE_CHECKING:
    from ..answers.core import Core

CALIBRATIONS = ("none", "contextual", "pmi")
NO_CONTENT = ("N/A", "", "[MASK]")


@dataclass(frozen=True)
class Classified:
    """Of one text. label: None if the model abstained, or on an `error`; probabilities: of each label, after calibration, in the labels' order;
    logprobs: of each label's text, before it."""

    label: str | None
    probabilities: dict[str, float]
    logprobs: dict[str, float]
    error: LlaminaError | None = None


def check_labels(labels: Any) -> dict[str, str]:
    """A list of labels, or a mapping of labels to the texts that stand for them -> such a mapping. OptionError."""
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable):
        raise OptionError(f"labels must be a list of texts, found {quoted(labels)}")
    found = dict(labels) if isinstance(labels, Mapping) else {}
    if not found:
        listed = list(labels)
        if wrong := [label for label in listed if not isinstance(label, str)]:
            raise OptionError(f"labels must be texts, found {quoted(wrong[0])}")
        if len(set(listed)) < len(listed):
            raise OptionError(f"the label {quoted(next(a for a in listed if listed.count(a) > 1))} is given twice")
        found = {label: label for label in listed}
    if wrong := [part for pair in found.items() for part in pair if not isinstance(part, str) or not part.strip()]:
        raise OptionError(f"labels must be texts that say something, found {quoted(wrong[0])}")
    if len(found) < 2:
        raise OptionError(f"there must be at least two labels to choose from, found {len(found)}")
    if len(set(found.values())) < len(found):
        raise OptionError("two labels have the same text: the model can't tell them apart")
    return found


def check_calibration(calibrate: Any) -> str:
    """OptionError unless it is one of CALIBRATIONS."""
    if calibrate not in CALIBRATIONS:
        raise OptionError(f"calibrate must be one of {', '.join(CALIBRATIONS)}, found {quoted(calibrate)}")
    return str(calibrate)


def check_abstain(abstain: Any) -> float | None:
    """OptionError unless it is None or a probability."""
    if abstain is None:
        return None
    if isinstance(abstain, bool) or not isinstance(abstain, (int, float)) or not 0 <= abstain <= 1:
        raise OptionError(f"abstain must be a probability from 0 to 1, found {quoted(abstain)}")
    return float(abstain)


class Classifier:
    """Labels, template and calibration, bound to a model. Arguments as of `Model.classify`."""

    def __init__(self, model: Core, labels: Any, template: str = "{text}", *, calibrate: str = "none", abstain: float | None = None,
                 delimiter: str = " ", special: bool = False):
        self.labels, self.template = check_labels(labels), check_template(template)
        self.calibrate, self.abstain = check_calibration(calibrate), check_abstain(abstain)
        self._model, self._special = model, special
        gap = "" if template[-1:].isspace() else delimiter
        self._continuations = [gap + text for text in self.labels.values()]
        self._offsets: list[float] | None = None

    @property
    def offsets(self) -> list[float]:
        """What is taken from each label's log-probability: computed once, at first need."""
        if self._offsets is None:
            if self.calibrate == "none":
                self._offsets = [0.0] * len(self.labels)
            elif self.calibrate == "pmi":
                self._offsets = self._of("")
            else:
                rows = [probabilities(self._of(text)) for text in NO_CONTENT]
                self._offsets = [log(mean(column)) for column in zip(*rows)]
        return self._offsets

    def _of(self, text: str) -> list[float]:
        return [s.logprob for s in score(self._model, filled(self.template, Same(text)), self._continuations, self._special)]

    def many(self, texts: Iterable[str | Mapping[str, Any]], ordered: bool = True) -> Iterator[tuple[int, Classified]]:
        """(index, result) of each text, or of a mapping's fields."""
        offsets = self.offsets
        bad: dict[int, LlaminaError] = {}

        def requests() -> Iterator[tuple[str, list[str]]]:
            for index, text in enumerate(texts):
                try:
                    fields = {"text": text} if isinstance(text, str) else text
                    if not isinstance(fields, Mapping):
                        raise OptionError(f"a text must be a str, found {type(text).__name__}")
                    yield filled(self.template, fields), self._continuations
                except OptionError as error:
                    bad[index] = error
                    yield "", []
        for found in score_many(self._model, requests(), self._special, ordered):
            error = bad.pop(found.index, found.error)
            yield found.index, Classified(None, {}, {}, error) if error else self._classified([s.logprob for s in found.scores], offsets)

    def _classified(self, logprobs: Sequence[float], offsets: Sequence[float]) -> Classified:
        shares = probabilities([a - b for a, b in zip(logprobs, offsets)])
        best = max(range(len(shares)), key=shares.__getitem__)  # the first of equals
        label = None if self.abstain is not None and shares[best] < self.abstain else [*self.labels][best]
        return Classified(label, dict(zip(self.labels, shares)), dict(zip(self.labels, logprobs)))


def classify(model: Core, texts: Any, labels: Any, template: str = "{text}", **options: Any) -> Any:
    """See `Model.classify`."""
    classifier = Classifier(model, labels, template, **options)
    one = isinstance(texts, (str, Mapping))
    found = [result for _, result in classifier.many([texts] if one else texts)]
    if one and found[0].error is not None:
        raise found[0].error
    return found[0] if one else found
