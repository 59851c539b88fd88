"""How many of a team's threads the next run should use while other processes want the same CPUs.

A barrier waits for the slowest thread, and a thread that shares its CPU is away for whole time slices. Beside one busy neighbour on two CPUs one thread that is
never interrupted beats two of which one always is; beside two neighbours it does not. That depends on the machine, so it is measured: if threads keep
losing more of their time to late ones than fewer threads would cost, runs of a kind try the candidates in turn and then keep to the fastest, which is
questioned again from time to time. Numbers don't depend on it.
"""
from __future__ import annotations

from collections import deque

IGNORED, COUNTED = 1, 3
"""Runs of a trial: the first pays for waking threads up."""
FIRST_INTERVAL, LAST_INTERVAL = 12, 48
"""Runs between two rounds of trials, for each candidate of the round; it doubles as long as the answer stays."""
BETTER = 0.95  # of the present choice's time
WORTH_A_TRIAL = 0.5
"""Trials begin when n threads lose this / n of their time. Work that only computes is done sooner by n - 1 threads from 1 / n on; memory-bound, earlier."""
RECENT = 0.2  # weight of the last run


class _Kind:
    """Runs of one kind that do about the same work each."""

    def __init__(self, candidates: list[int]):
        self.candidates, self.best = candidates, candidates[0]
        self.lost = 0.0  # share of the time, of runs with all threads
        self.seconds: dict[int, float] = {}
        self.trials: deque[int] = deque()
        self.noted: list[float] = []
        self.runs, self.interval = 0, FIRST_INTERVAL

    def threads(self) -> int:
        return self.trials[0] if self.trials else self.best

    def note(self, threads: int, seconds: float, lost: float) -> None:
        n = self.candidates[0]
        if threads == n:
            self.lost += RECENT * (lost - self.lost)
        if self.trials:
            if threads == self.trials[0]:
                self.noted.append(seconds)
                if len(self.noted) == IGNORED + COUNTED:
                    self.seconds[threads] = sum(self.noted[IGNORED:]) / COUNTED
                    self.noted.clear()
                    self.trials.popleft()
                    if not self.trials:
                        self._decide()
            return
        self.seconds[self.best] = (1 - RECENT) * self.seconds.get(self.best, seconds) + RECENT * seconds
        if self.best == n and self.lost * n < WORTH_A_TRIAL:
            self.runs, self.interval = 0, FIRST_INTERVAL  # nobody disturbs
            return
        self.runs += 1
        if len(self.seconds) == 1 or self.runs >= self.interval * (len(self.candidates) - 1):
            self.runs = 0
            self.trials.extend(c for c in self.candidates if c != self.best or len(self.seconds) == 1)

    def _decide(self) -> None:
        fastest = min(self.seconds, key=self.seconds.__getitem__)
        if self.seconds[fastest] < BETTER * self.seconds[self.best]:
            self.best, self.interval = fastest, FIRST_INTERVAL
        else:
            self.interval = min(2 * self.interval, LAST_INTERVAL)


class Pace:
    """Of a team of n threads."""

    def __init__(self, n: int):
        self.n = n
        self._candidates = sorted({n, n - 1, 3 * n // 4, n // 2, 1} - {0}, reverse=True)
        self._kinds: dict[int, _Kind] = {}

    def threads(self, kind: int) -> int:
        """For the next run of this kind (any number that tells runs of like work apart)."""
        known = self._kinds.get(kind)
        return known.threads() if known else self.n

    def note(self, kind: int, threads: int, seconds: float, lost: float) -> None:
        """What a run took, per unit of its work, and the share of its time that a thread waited in vain for a late one (Team.lost_seconds), on average."""
        if self.n > 1:
            if kind not in self._kinds:
                self._kinds[kind] = _Kind(self._candidates)
            self._kinds[kind].note(threads, seconds, lost)
