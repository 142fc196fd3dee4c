"""A new process up to its first vector, timed from within by stage; see `cold_start`.

    python benchmarks/first_vector.py NAME FOLDER STARTED QUERY...

STARTED is `time.monotonic()` of whoever starts it. Prints the stages' seconds as JSON.
"""

from __future__ import annotations

import time

_FIRST_LINE = time.monotonic()

import builtins  # noqa: E402 — the clock comes first
import json  # noqa: E402
import os  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402


class _ImportClock:
    """Seconds the main thread spends in import statements, wherever they stand."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._import, self._depth, self._began = builtins.__import__, 0, 0.0
        builtins.__import__ = self._timed

    def _timed(self, *given: Any, **named: Any) -> Any:
        if threading.current_thread() is not threading.main_thread():
            return self._import(*given, **named)
        if not self._depth:
            self._began = time.monotonic()
        self._depth += 1
        try:
            return self._import(*given, **named)
        finally:
            self._depth -= 1
            if not self._depth:
                self.seconds += time.monotonic() - self._began


def _stages(name: str, folder: Path, started: float, queries: list[str]) -> dict[str, float]:
    clock = _ImportClock()
    import peers

    peer = peers.PEERS[name]
    model = peer.load(folder)
    peer.query(model, queries[0])
    total, imports = time.monotonic() - started, clock.seconds
    later = []
    for query in queries[1:]:
        began = time.monotonic()
        peer.query(model, query)
        later.append(time.monotonic() - began)
    known = {
        "interpreter": _FIRST_LINE - started,
        "imports": imports,
        "first query": statistics.median(later),
    }
    # What a first query takes beyond a later one is loading: some load with their first text.
    return known | {"tokenizer and weights": max(0.0, total - sum(known.values()))}


if __name__ == "__main__":
    print(json.dumps(_stages(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])))
    sys.stdout.flush()
    os._exit(0)  # FlagEmbedding raises in its __del__ at a normal exit
