"""How long work will still take, from the speed of its last part.

What lives here: the estimate, and saying it no more exactly than it is known. What does not:
showing it (`progress`), and how much work there is.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

_LEAST_SECONDS = 3.0
"""Measured time before there is an estimate."""
_LEAST_NOTES = 4
"""Steps before there is one: of two or three, one may be unlike the rest."""
_BURST_SECONDS = 0.05
"""Steps within this time ended together, as the texts of one forward pass do."""
_MARKS = 200
"""About how many marks cover the measured time, however long it lasts."""
_FEW_SECONDS = 10
_MINUTE = 60
_HOUR = 60 * _MINUTE


class _Mark(NamedTuple):
    """How much was done at a time."""

    seconds: float
    done: float


class RemainingTime:
    """Estimates how long work will still take.

    The speed is that of the last half of the measured time: work that becomes slower is estimated
    by how it goes now. What happens before the first step has ended is not measured, since it may
    be the loading of a model.

    Args:
        clock: Returns seconds that only grow.

    Example:
        >>> from unified_embeddings.system.remaining import RemainingTime
        >>> now = 0.0
        >>> remaining = RemainingTime(clock=lambda: now)
        >>> for step in range(10):
        ...     now += 2.0              # each step takes two seconds
        ...     remaining.note(step + 1)
        >>> remaining.seconds(90)
        180.0
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._marks: deque[_Mark] = deque()
        self._first = _Mark(0.0, 0.0)
        self._last = _Mark(0.0, 0.0)
        self._notes = 0

    def note(self, done: float) -> None:
        """Take down how much is done by now, in any unit that takes about the same time each."""
        now = self._clock()
        self._last = _Mark(now, done)
        if not self._marks:
            self._first = self._last
            self._marks.append(self._last)
            self._notes = 1
            return
        newest = self._marks[-1]
        if now - newest.seconds < _BURST_SECONDS:
            self._marks[-1] = _Mark(newest.seconds, done)
            return
        self._notes += 1
        measured = now - self._first.seconds
        if now - newest.seconds >= measured / _MARKS:
            self._marks.append(self._last)
        while len(self._marks) > 1 and self._marks[1].seconds <= now - measured / 2:
            self._marks.popleft()

    def seconds(self, remaining: float) -> float | None:
        """Return the seconds that so much work will take; None while too little was seen."""
        measured = self._last.seconds - self._first.seconds
        if self._notes < _LEAST_NOTES or measured < _LEAST_SECONDS:
            return None
        begin = self._marks[0]
        done = self._last.done - begin.done
        if done <= 0:
            return None
        return max(0.0, remaining) * (self._last.seconds - begin.seconds) / done


def describe_remaining(seconds: float | None) -> str:
    """Return a remaining time in words, as "about 3 min left"; "" for None.

    It is rounded as coarsely as such an estimate is: to 10 s, to minutes, from ten minutes on to
    five, from an hour on to a quarter of it, and from ten hours on to hours.
    """
    if seconds is None:
        return ""
    if seconds < _FEW_SECONDS:
        return "a few seconds left"
    if seconds < _MINUTE - 5:
        return f"about {_rounded(seconds, 10)} s left"
    if seconds < 10 * _MINUTE:
        return f"about {_rounded(seconds, _MINUTE) // _MINUTE} min left"
    if seconds < _HOUR - 150:
        return f"about {_rounded(seconds, 5 * _MINUTE) // _MINUTE} min left"
    quarters = _HOUR // 4 if seconds < 10 * _HOUR else _HOUR
    hours, rest = divmod(_rounded(seconds, quarters), _HOUR)
    minutes = f" {rest // _MINUTE} min" if rest else ""
    return f"about {hours} h{minutes} left"


def _rounded(seconds: float, step: int) -> int:
    """Return the multiple of a step that is nearest to some seconds, at least one."""
    return max(1, int(seconds / step + 0.5)) * step
