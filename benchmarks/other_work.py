"""How much of the machine other programs took while something was measured."""

from __future__ import annotations

import contextlib

import psutil


class OtherWork:
    """The share of all cores that other programs have taken since this was made.

    Own work is that of this process and of the processes that it has started.
    """

    def __init__(self) -> None:
        self._busy, self._total = _machine_seconds()
        self._own = _own_seconds()

    def share(self) -> float:
        """Return the share, 0 to 1; above 0.05 or so, times on the wall clock mean little."""
        busy, total = _machine_seconds()
        others = busy - self._busy - (_own_seconds() - self._own)
        elapsed = total - self._total
        return min(1.0, max(0.0, others / elapsed)) if elapsed else 0.0


def _machine_seconds() -> tuple[float, float]:
    """Return the seconds that all cores have been busy since the start, and all their seconds."""
    times = psutil.cpu_times()._asdict()
    # The time of a guest is part of the user's.
    total = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
    return total - times["idle"] - times.get("iowait", 0.0), total


def _own_seconds() -> float:
    process = psutil.Process()
    seconds = 0.0
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = one.cpu_times()
            seconds += times.user + times.system
            # Of those that it started and that have ended.
            seconds += times.children_user + times.children_system
    return seconds
