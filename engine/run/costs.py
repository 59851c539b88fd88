"""What steps take: Scheduler.run -> observe(tokens, seconds) -> ratio(tokens), which the lengths of drafts follow from (answers/speculation.py)."""
from __future__ import annotations

import numpy as np

_SLOPE = 0.07  # of a step of one, for each further token, until measured


class Costs:
    """What a step of M tokens of one model takes, measured as it runs: `one` in seconds, the others as multiples of it. Kept for the model's life."""

    def __init__(self) -> None:
        self.one = 0.0
        self.draft = 0.0
        """Seconds that the draft model takes for a token."""
        self._ratios: dict[int, float] = {}
        self._since_one = 0  # steps since one of one token

    def observe(self, m: int, seconds: float) -> None:
        """A step of m tokens took so long. Where steps of one don't occur (several answers at once), `one` follows the others."""
        self._since_one = 0 if m == 1 else self._since_one + 1
        if m == 1 or not self.one or self._since_one > 50 and m in self._ratios:
            one = seconds / self.ratio(m)
            self.one = mix(self.one, one, 0.2) if self.one else one
        else:
            self._ratios[m] = mix(self._ratios.get(m, self.ratio(m)), max(1.0, seconds / self.one), 0.25)

    def ratio(self, m: int) -> float:
        """Steps of one that a step of m takes."""
        known = sorted(self._ratios)
        last = known[-1] if known else 1
        if m > last:
            return (self._ratios[last] if known else 1.0) + _SLOPE * (m - last)
        return float(np.interp(m, [1, *known], [1.0, *(self._ratios[k] for k in known)]))


def mix(old: float, new: float, share: float) -> float:
    """A running mean that one outlier doesn't spoil."""
    return old + share * (min(new, 3 * old) - old)
